//! The caller's tensors as views.

use headwise::{Shape, Strides, View, ViewMut};

use crate::choice::choose;
use crate::dtype::{self, Number, headwise_dtype};
use crate::sized;
use crate::status::{Failure, Result};

/// A tensor of four axes, always `[batch, heads, seq, dim]`, whatever their order in memory: strides
/// say where things lie. Its memory is the caller's.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_tensor {
    /// The element at index 0, on a boundary of its type. Inputs are not written to.
    pub data: *mut std::ffi::c_void,
    /// The extents.
    pub shape: [usize; 4],
    /// From an element to the next along each axis, in elements. The last axis must be contiguous
    /// (1). An input's may be 0 (every index the same element) or negative.
    pub strides: [isize; 4],
    /// A `headwise_dtype`.
    pub dtype: u32,
    /// Zero.
    pub reserved: u32,
}

impl headwise_tensor {
    /// Whether there is no element at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Refuses what no tensor can be: `data` null though there are elements, or between two of them.
    pub(crate) fn check(&self, argument: &str) -> Result<()> {
        let dtype: headwise_dtype = choose(format_args!("{argument}.dtype"), self.dtype)?;
        sized::check_reserved(argument, self.reserved)?;
        if self.is_empty() {
            return Ok(());
        }
        let data = |got, expected| Failure::argument(&format!("{argument}.data"), got, expected);
        if self.data.is_null() {
            let expected = format!("elements of shape {:?}", self.shape);
            return Err(data("a null pointer".to_string(), expected));
        }
        if !(self.data as usize).is_multiple_of(dtype.bytes()) {
            let expected = format!("an address that {} divides", dtype.bytes());
            return Err(data(format!("address {:p}", self.data), expected));
        }
        self.check_reach(argument, dtype)
    }

    /// Refuses strides that reach beyond the addresses that there are.
    fn check_reach(&self, argument: &str, dtype: headwise_dtype) -> Result<()> {
        let (mut low, mut high) = (self.data as i128, self.data as i128);
        for (&len, &stride) in self.shape.iter().zip(&self.strides) {
            // At most 2^64, 2^64 and 8: the product of three is below 2^127, saturating to be sure.
            let far = (len as i128 - 1).saturating_mul(stride as i128);
            let far = far.saturating_mul(dtype.bytes() as i128);
            low = low.saturating_add(far.min(0));
            high = high.saturating_add(far.max(0));
        }
        if low > 0 && high < usize::MAX as i128 && high - low < isize::MAX as i128 {
            return Ok(());
        }
        let got = format!("shape {:?} with strides {:?}", self.shape, self.strides);
        let expected = "elements within the memory that there is".into();
        let error = headwise::Error::Overflow { argument: "tensor", got, expected };
        Err(Failure::from(error).renamed(argument))
    }
}

/// The view of an input.
///
/// # Safety
/// The tensor's elements must be `T`s, checked or sure to be, which are readable and which nobody
/// writes to for `'a`.
pub(crate) unsafe fn view<'a, T>(argument: &str, tensor: &headwise_tensor) -> Result<View<'a, T>> {
    let (shape, strides) = layout(tensor);
    // SAFETY: the caller's promise.
    let view = unsafe { View::from_raw_parts(tensor.data.cast_const().cast(), shape, strides) };
    view.map_err(|error| Failure::from(error).renamed(argument))
}

/// The view of an output.
///
/// # Safety
/// The tensor's elements must be `T`s in memory that may be written to, and that nobody else uses for
/// `'a`.
pub(crate) unsafe fn view_mut<'a, T>(
    argument: &str,
    tensor: &headwise_tensor,
) -> Result<ViewMut<'a, T>> {
    let (shape, strides) = layout(tensor);
    // SAFETY: the caller's promise.
    let view = unsafe { ViewMut::from_raw_parts(tensor.data.cast(), shape, strides) };
    view.map_err(|error| Failure::from(error).renamed(argument))
}

fn layout(tensor: &headwise_tensor) -> (Shape, Strides) {
    (tensor.shape, tensor.strides)
}

/// The view of an input of the numbers that are computed in, checked as far as can be.
///
/// # Safety
/// The tensor's elements must be readable, and nobody may write to them for `'a`.
pub(crate) unsafe fn native<'a, T: Number>(
    argument: &str,
    tensor: &headwise_tensor,
) -> Result<View<'a, T>> {
    dtype::expect(argument, tensor.dtype, T::DTYPE)?;
    tensor.check(argument)?;
    // SAFETY: the caller's promise; of this type, and not null.
    unsafe { view(argument, tensor) }
}

/// The view of an output, checked as far as can be.
///
/// # Safety
/// The tensor's elements must be writable, and nobody else may use them for `'a`.
pub(crate) unsafe fn output<'a, T>(
    argument: &str,
    tensor: &headwise_tensor,
    dtype: headwise_dtype,
) -> Result<ViewMut<'a, T>> {
    dtype::expect(argument, tensor.dtype, dtype)?;
    tensor.check(argument)?;
    // SAFETY: the caller's promise; of this type, and not null.
    unsafe { view_mut(argument, tensor) }
}
