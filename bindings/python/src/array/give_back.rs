//! Results, as arrays of the library that the query is of.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::{ffi, intern};

use super::export::{capsule, export_versioned};
use super::import::exchange_api;
use super::{Memory, Tensor};
use crate::{numpy, torch};

/// The memory as an array of the library that `like` is of, without a copy; as a
/// [`Tensor`] where that library has no way to take it.
pub(crate) fn give_back<'py>(
    like: &Bound<'py, PyAny>,
    memory: Memory,
) -> PyResult<Bound<'py, PyAny>> {
    let py = like.py();
    let memory = Arc::new(memory);
    if numpy::is_array(like)? {
        return numpy::as_array(Bound::new(py, Tensor::new(memory))?.as_any());
    }
    if let Some(api) = exchange_api(like)?
        && let Some(function) = api.object_of_managed
    {
        let managed = export_versioned(memory, 0);
        let mut object: *mut c_void = ptr::null_mut();
        // SAFETY: the structure is a new one, whose ownership goes to the function; attached.
        let failed = unsafe { function(managed.as_ptr(), &raw mut object) } != 0;
        if failed {
            return Err(PyErr::fetch(py));
        }
        // SAFETY: it succeeded, so it gave a reference of ours.
        return unsafe { Bound::from_owned_ptr_or_err(py, object.cast::<ffi::PyObject>()) };
    }
    if torch::is_tensor(like)? {
        return torch::from_capsule(capsule(py, memory, (false, 0))?);
    }
    let ours = Bound::new(py, Tensor::new(memory))?.into_any();
    // What the array API standard says.
    if let Some(namespace) = like.getattr_opt(intern!(py, "__array_namespace__"))? {
        return namespace.call0()?.call_method1(intern!(py, "from_dlpack"), (ours,));
    }
    Ok(ours)
}
