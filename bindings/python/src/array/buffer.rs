//! Python's buffer protocol, of memory of ours.

use std::ffi::c_int;
use std::ptr;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use super::Memory;

/// Describes `memory`, which `owner` keeps.
///
/// # Safety
/// `view` must be a structure to fill.
pub(crate) unsafe fn fill(
    owner: Bound<'_, PyAny>,
    memory: &Memory,
    view: *mut ffi::Py_buffer,
    flags: c_int,
) -> PyResult<()> {
    let place = memory.place_ref();
    let Some(format) = place.dtype.format() else {
        let message = format!("{} has no format in the buffer protocol; use DLPack", place.dtype);
        return Err(PyBufferError::new_err(message));
    };
    let asks = |flag: c_int| flags & flag == flag;
    let (by_rows, by_columns) = (place.is_contiguous(), place.reversed().is_contiguous());
    let refused = (!asks(ffi::PyBUF_STRIDES) || asks(ffi::PyBUF_C_CONTIGUOUS)) && !by_rows
        || asks(ffi::PyBUF_F_CONTIGUOUS) && !by_columns
        || asks(ffi::PyBUF_ANY_CONTIGUOUS) && !by_rows && !by_columns;
    if refused {
        return Err(PyBufferError::new_err("the array is not contiguous so: ask for strides"));
    }
    // SAFETY: the caller's promise. The extents and distances lie in the memory that the owner
    // keeps, and nobody writes them.
    unsafe {
        (*view).buf = place.data.cast();
        (*view).len = (place.count() * place.dtype.size()) as isize;
        (*view).readonly = 0;
        (*view).itemsize = place.dtype.size() as isize;
        (*view).format =
            if asks(ffi::PyBUF_FORMAT) { format.as_ptr().cast_mut() } else { ptr::null_mut() };
        (*view).ndim = place.ndim() as c_int;
        (*view).shape = if asks(ffi::PyBUF_ND) {
            place.shape().as_ptr().cast_mut().cast()
        } else {
            ptr::null_mut()
        };
        (*view).strides = if asks(ffi::PyBUF_STRIDES) {
            place.strides().as_ptr().cast_mut()
        } else {
            ptr::null_mut()
        };
        (*view).suboffsets = ptr::null_mut();
        (*view).internal = ptr::null_mut();
        (*view).obj = owner.into_ptr();
    }
    Ok(())
}
