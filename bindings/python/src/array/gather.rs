//! Elements from wherever they lie, in order, and room for them.

use std::mem::size_of;

use pyo3::PyResult;

use super::Strided;
use crate::error;

/// As many elements of a value, or an error where there is not as much memory.
pub(crate) fn filled<T: Clone>(value: T, count: usize) -> PyResult<Vec<T>> {
    let mut data = reserved(count)?;
    data.resize(count, value);
    Ok(data)
}

/// Room for as many elements.
pub(crate) fn reserved<T>(count: usize) -> PyResult<Vec<T>> {
    let mut data = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    data.try_reserve_exact(count).map_err(|_| error::memory(bytes))?;
    Ok(data)
}

/// All elements in order, converted.
///
/// # Safety
/// Elements of `S` must be readable there.
pub(crate) unsafe fn gather<S: Copy, T>(
    place: &Strided,
    convert: impl Fn(S) -> T,
) -> PyResult<Vec<T>> {
    let mut data = reserved(place.count())?;
    let (stride, width) = match (place.strides().last(), place.shape().last()) {
        (Some(&stride), Some(&width)) => (stride, width),
        _ => (0, 1),
    };
    place.for_each_row(|row| {
        data.extend((0..width as isize).map(|nth| {
            // SAFETY: the caller's promise; nothing is said of the alignment.
            convert(unsafe { row.offset(nth * stride).cast::<S>().read_unaligned() })
        }));
    });
    Ok(data)
}
