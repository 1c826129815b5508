//! Results as candle's tensors.

use candle_core::{Device, Result, Tensor, WithDType};
use headwise::{Storage, ViewMut};

use crate::error;

/// A result of [`headwise`] as candle's tensor, `[batch, heads, seq, dim]`.
///
/// # Errors
/// As [`Tensor::from_vec`].
pub fn tensor<T: Storage + WithDType>(result: headwise::Tensor<T>) -> Result<Tensor> {
    let [batch, heads, seq, dim] = result.shape();
    Tensor::from_vec(result.into_vec(), (batch, heads, seq, dim), &Device::Cpu)
}

/// `[batch, heads, seq, dim]`, that lies in memory as `[batch, seq, heads, dim]`.
pub(crate) struct HeadsLast<T> {
    data: Vec<T>,
    shape: [usize; 4],
}

impl<T: Storage + WithDType> HeadsLast<T> {
    /// Zeros of that shape.
    ///
    /// # Errors
    /// Where there is not as much memory.
    pub(crate) fn zeros(shape: [usize; 4]) -> Result<Self> {
        let count = shape.iter().try_fold(1_usize, |count, &extent| count.checked_mul(extent));
        let mut data = Vec::new();
        let Some(count) = count.filter(|&count| data.try_reserve_exact(count).is_ok()) else {
            candle_core::bail!("out: no memory for {shape:?} numbers");
        };
        data.resize(count, T::default());
        Ok(Self { data, shape })
    }

    pub(crate) fn view_mut(&mut self) -> Result<ViewMut<'_, T>> {
        ViewMut::bshd(&mut self.data, self.shape).map_err(error::from_headwise)
    }

    /// Each number as `to` has it, in the same order.
    pub(crate) fn map<U>(self, to: impl Fn(T) -> U) -> HeadsLast<U> {
        HeadsLast { data: self.data.into_iter().map(to).collect(), shape: self.shape }
    }

    /// Storage, and its shape in the order of memory: an operation of candle's gives no strides.
    pub(crate) fn into_storage(self) -> (candle_core::CpuStorage, candle_core::Shape) {
        let [batch, heads, seq, dim] = self.shape;
        (T::to_cpu_storage_owned(self.data), (batch, seq, heads, dim).into())
    }
}
