//! candle's tensors as the library's views.

use candle_core::{
    CpuStorage, DType, Error, Layout, Result, Storage, StorageRef, Tensor, WithDType,
};
use headwise::{Input, View};

use crate::computed::Computed;
use crate::error;

/// A tensor of rank 4 on the CPU, borrowed to read: for calls of [`headwise`] that this crate has no
/// function for. While it is borrowed candle does not let anybody write to it.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use headwise_candle::{Borrowed, headwise};
///
/// let x = Tensor::randn(0_f32, 1.0, (1, 5, 2, 8), &Device::Cpu)?;
/// let heads = x.transpose(1, 2)?;
/// let (borrowed, options) = (Borrowed::new(&heads)?, headwise::AttentionOptions::new());
/// let view = borrowed.view::<f32>()?;
/// let result = headwise::attention(view, view, view, &options.return_weights())
///     .map_err(candle_core::Error::wrap)?;
/// let weights = headwise_candle::tensor(result.weights.expect("asked for"))?;
/// assert_eq!(weights.dims(), [1, 2, 5, 5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct Borrowed<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Borrowed<'a> {
    /// Takes candle's lock on the tensor's memory, to read.
    ///
    /// # Errors
    /// Where the tensor is on another device.
    pub fn new(tensor: &'a Tensor) -> Result<Self> {
        on_cpu("tensor", tensor)?;
        let (storage, layout) = tensor.storage_and_layout();
        Ok(Self { storage, layout })
    }

    /// The elements where they lie.
    ///
    /// # Errors
    /// Where they are of another type, or the tensor's rank is not 4.
    pub fn view<T: WithDType>(&self) -> Result<View<'_, T>> {
        view("tensor", self.cpu()?, self.layout)
    }

    /// The elements where they lie, of any type that is computed in `f32`.
    ///
    /// # Errors
    /// As [`Borrowed::view`].
    pub fn input(&self) -> Result<Input<'_, f32>> {
        f32::operand("tensor", self.cpu()?, self.layout)
    }

    pub(crate) fn layout(&self) -> &Layout {
        self.layout
    }

    pub(crate) fn cpu(&self) -> Result<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => Err(Error::Msg("tensor: on another device than the CPU".into()).bt()),
        }
    }
}

/// Whether a tensor is where this crate computes.
pub(crate) fn on_cpu(argument: &str, tensor: &Tensor) -> Result<()> {
    if tensor.device().is_cpu() {
        return Ok(());
    }
    let location = tensor.device().location();
    Err(Error::Msg(format!("{argument}: on {location:?}, expected the CPU; see to_device")).bt())
}

/// A tensor of rank 4.
pub(crate) fn view<'s, T: WithDType>(
    argument: &str,
    storage: &'s CpuStorage,
    layout: &Layout,
) -> Result<View<'s, T>> {
    let (Ok(shape), Ok(strides)) = (layout.dims().try_into(), layout.stride().try_into()) else {
        let dims = layout.dims();
        let expected = "rank 4, [batch, heads, seq, dim]";
        return Err(Error::Msg(format!("{argument}: shape {dims:?}, expected {expected}")).bt());
    };
    strided(argument, storage, layout.start_offset(), (shape, strides))
}

/// Elements of a storage of four axes.
pub(crate) fn strided<'s, T: WithDType>(
    argument: &str,
    storage: &'s CpuStorage,
    offset: usize,
    (shape, strides): ([usize; 4], [usize; 4]),
) -> Result<View<'s, T>> {
    let data = elements(argument, storage)?;
    // candle's tensors lie in memory, whose offsets all fit.
    let strides = strides.map(|stride| isize::try_from(stride).unwrap_or(isize::MAX));
    View::strided(data, offset, shape, strides).map_err(error::from_headwise)
}

/// All elements of a storage.
pub(crate) fn elements<'s, T: WithDType>(
    argument: &str,
    storage: &'s CpuStorage,
) -> Result<&'s [T]> {
    let got = dtype(storage);
    if got != T::DTYPE {
        return error::dtype(argument, got, &format!("{:?}", T::DTYPE));
    }
    T::cpu_storage_as_slice(storage)
}

pub(crate) fn dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}
