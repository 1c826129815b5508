//! Memory of ours as a class of Python's.

use std::ffi::c_int;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

use super::Memory;
use super::export::capsule;
use crate::dlpack::{self, Device};
use crate::error;

/// An array of headwise's own, for which no library was named: it speaks DLPack and the buffer
/// protocol, so that `numpy.asarray`, `torch.from_dlpack` and others take it without a copy.
#[pyclass(frozen, module = "headwise")]
#[derive(Debug)]
pub(crate) struct Tensor {
    memory: Arc<Memory>,
}

impl Tensor {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self { memory }
    }
}

#[pymethods]
impl Tensor {
    /// The extents.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.memory.place_ref().shape())
    }

    /// The distances between neighbours, in bytes.
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.memory.place_ref().strides())
    }

    /// The number of axes.
    #[getter]
    fn ndim(&self) -> usize {
        self.memory.place_ref().ndim()
    }

    /// The name of the element type.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.memory.place_ref().dtype.name()
    }

    fn __repr__(&self) -> String {
        let place = self.memory.place_ref();
        format!("headwise.Tensor(shape={:?}, dtype={})", place.shape(), place.dtype)
    }

    /// DLPack's kind and number of the device: the processor.
    #[allow(clippy::unused_self)]
    fn __dlpack_device__(&self) -> (i32, i32) {
        (Device::CPU.kind, Device::CPU.id)
    }

    /// A capsule for DLPack's consumers, of version 1 for those that ask for it.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<i64>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        if let Some(stream) = stream.filter(|&stream| stream != -1) {
            return Err(error::value("stream", stream, "None or -1: the processor has none"));
        }
        if let Some((kind, id)) = dl_device.filter(|&(kind, _)| kind != Device::CPU.kind) {
            let got = Device { kind, id }.name();
            return Err(PyBufferError::new_err(format!("dl_device: {got}, expected cpu")));
        }
        let versioned = max_version.is_some_and(|(major, _)| major >= dlpack::VERSION.major);
        if copy != Some(true) {
            return capsule(py, Arc::clone(&self.memory), (versioned, 0));
        }
        capsule(py, Arc::new(self.memory.duplicate()?), (versioned, dlpack::COPIED))
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let memory = Arc::clone(&slf.get().memory);
        // SAFETY: Python calls it with a structure to fill.
        unsafe { super::buffer::fill(slf.into_any(), &memory, view, flags) }
    }
}
