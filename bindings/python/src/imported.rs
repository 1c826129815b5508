//! Modules that somebody else has imported, and their classes.

use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{Borrowed, ffi};

/// A module, if it has been imported. Nothing is imported here.
pub(crate) fn module<'py>(name: &Bound<'py, PyString>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = name.py();
    // SAFETY: the name is a string, attached; what comes is a reference of ours, or none with or
    // without an exception.
    let module =
        unsafe { Bound::from_owned_ptr_or_opt(py, ffi::PyImport_GetModule(name.as_ptr())) };
    match PyErr::take(py) {
        Some(error) if module.is_none() => Err(error),
        _ => Ok(module),
    }
}

/// Whether an object is of a class or of one below it, by its type: `isinstance` would ask classes
/// what they think of it.
pub(crate) fn is_of(object: &Bound<'_, PyAny>, class: Borrowed<'_, '_, PyAny>) -> bool {
    // SAFETY: the first is an object, the second a class, attached.
    unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), class.as_ptr().cast()) != 0 }
}
