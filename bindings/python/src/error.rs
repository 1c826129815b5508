//! The library's errors, and the bindings' own, as Python exceptions. Every message names the
//! argument, what came and what was expected.

use std::fmt::Display;

use headwise::Error;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

/// A value, a shape or a place in memory that does not fit.
pub(crate) fn value(argument: &str, got: impl Display, expected: impl Display) -> PyErr {
    PyValueError::new_err(format!("{argument}: {got}, expected {expected}"))
}

/// An object or elements of another type.
pub(crate) fn kind(argument: &str, got: impl Display, expected: impl Display) -> PyErr {
    PyTypeError::new_err(format!("{argument}: {got}, expected {expected}"))
}

/// What the library does not do.
pub(crate) fn unable(argument: &str, got: impl Display, expected: impl Display) -> PyErr {
    PyRuntimeError::new_err(format!("{argument}: {got}, expected {expected}"))
}

/// Too little memory.
pub(crate) fn memory(bytes: impl Display) -> PyErr {
    PyMemoryError::new_err(format!("{bytes} bytes cannot be had"))
}

/// The library's own: the state of a cache makes a `RuntimeError`, all else is a wrong argument.
pub(crate) fn of(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Exhausted { .. } => PyRuntimeError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}

/// A message about the argument of this name, which the caller knows by another.
pub(crate) fn renamed(error: PyErr, py: Python<'_>, names: [&str; 2], known_as: &str) -> PyErr {
    let message = error.value(py).to_string();
    let rest = names.iter().find_map(|name| message.strip_prefix(name));
    match rest.filter(|rest| rest.starts_with(':')) {
        Some(rest) if error.is_instance_of::<PyTypeError>(py) => {
            PyTypeError::new_err(format!("{known_as}{rest}"))
        }
        Some(rest) if error.is_instance_of::<PyValueError>(py) => {
            PyValueError::new_err(format!("{known_as}{rest}"))
        }
        _ => error,
    }
}
