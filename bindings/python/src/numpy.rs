//! What must be known of NumPy, if it is there. It is never imported from here.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::imported;

struct Numpy {
    ndarray: Py<PyAny>,
    asarray: Py<PyAny>,
}

static NUMPY: PyOnceLock<Numpy> = PyOnceLock::new();

/// NumPy, if somebody has imported it.
fn numpy(py: Python<'_>) -> PyResult<Option<&'static Numpy>> {
    if let Some(numpy) = NUMPY.get(py) {
        return Ok(Some(numpy));
    }
    let Some(module) = imported::module(intern!(py, "numpy"))? else { return Ok(None) };
    let (Some(ndarray), Some(asarray)) =
        (module.getattr_opt("ndarray")?, module.getattr_opt("asarray")?)
    else {
        return Ok(None);
    };
    let numpy = Numpy { ndarray: ndarray.unbind(), asarray: asarray.unbind() };
    Ok(Some(NUMPY.get_or_init(py, || numpy)))
}

/// Whether an object is a `numpy.ndarray`.
pub(crate) fn is_array(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let numpy = numpy(object.py())?;
    Ok(numpy.is_some_and(|n| imported::is_of(object, n.ndarray.bind_borrowed(object.py()))))
}

/// An array of memory that speaks the buffer protocol.
pub(crate) fn as_array<'py>(buffer: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = buffer.py();
    match numpy(py)? {
        Some(numpy) => numpy.asarray.bind(py).call1((buffer,)),
        None => Ok(buffer.clone()),
    }
}
