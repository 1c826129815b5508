//! Memory of ours, as other libraries take it.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

use super::{DType, MAX_NDIM, Strided};
use crate::dlpack::{self, Device, Managed, ManagedVersioned};
use crate::error;

/// Memory of an array, from a cache line on. Nothing has written it at first: who makes one lets
/// nobody see it before it is written.
#[derive(Debug)]
pub(crate) struct Memory {
    data: NonNull<u8>,
    layout: Layout,
    place: Strided,
}

// SAFETY: it owns what its address names.
unsafe impl Send for Memory {}
// SAFETY: sharing it gives out addresses alone.
unsafe impl Sync for Memory {}

const LINE: usize = 64;

impl Memory {
    /// Dense, of these extents; with `swapped`, heads (the last axis but two) and positions (the last
    /// but one) lie in memory the other way about.
    pub(crate) fn new(dtype: DType, shape: &[usize], swapped: bool) -> PyResult<Self> {
        let fits = |n: usize| isize::try_from(n).is_ok();
        let bytes = shape.iter().try_fold(dtype.size(), |n, &extent| n.checked_mul(extent.max(1)));
        let Some(bytes) = bytes.filter(|&bytes| fits(bytes + LINE)) else {
            return Err(error::memory(format_args!("the size of {shape:?} in")));
        };
        let mut place = Strided::new("out", ptr::null_mut(), dtype, shape.len())?;
        for (axis, &extent) in shape.iter().enumerate() {
            place.set_axis(axis, extent, 0);
        }
        if swapped {
            place = place.heads_swapped();
        }
        place.densify();
        if swapped {
            place = place.heads_swapped();
        }
        let layout = Layout::from_size_align(bytes.max(1), LINE);
        let layout = layout.map_err(|_| error::memory(bytes))?;
        // SAFETY: the layout has a size.
        let data = NonNull::new(unsafe { alloc(layout) }).ok_or_else(|| error::memory(bytes))?;
        place.data = data.as_ptr();
        Ok(Self { data, layout, place })
    }

    pub(crate) fn place(&self) -> Strided {
        self.place
    }

    /// Where it lies as long as the memory is there.
    pub(crate) fn place_ref(&self) -> &Strided {
        &self.place
    }

    /// The same with heads and positions exchanged.
    pub(crate) fn heads_swapped(mut self) -> Self {
        self.place = self.place.heads_swapped();
        self
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated so, and is dropped once.
        unsafe { dealloc(self.data.as_ptr(), self.layout) };
    }
}

/// What a capsule points to: the structure that others know, and what it names.
#[repr(C)]
struct Exported<M> {
    managed: M,
    shape: [i64; MAX_NDIM],
    strides: [i64; MAX_NDIM],
    memory: Arc<Memory>,
}

unsafe extern "C" fn delete<M>(managed: *mut M) {
    // SAFETY: `export` made it so, the structure being its first field, and a deleter is called once.
    drop(unsafe { Box::from_raw(managed.cast::<Exported<M>>()) });
}

/// Makes the structure of a kind of capsule.
fn export<M>(memory: Arc<Memory>, managed: impl FnOnce(dlpack::Tensor) -> M) -> NonNull<M> {
    let place = memory.place;
    let tensor = dlpack::Tensor {
        data: if place.is_empty() { ptr::null_mut() } else { place.data.cast() },
        device: Device::CPU,
        ndim: place.ndim() as i32,
        dtype: place.dtype.dlpack(),
        shape: ptr::null_mut(),
        strides: ptr::null_mut(),
        byte_offset: 0,
    };
    let mut shape = [0; MAX_NDIM];
    let mut strides = [0; MAX_NDIM];
    shape.iter_mut().zip(place.shape()).for_each(|(to, &extent)| *to = extent as i64);
    let size = place.dtype.size() as i64;
    strides.iter_mut().zip(place.strides()).for_each(|(to, &bytes)| *to = bytes as i64 / size);
    let exported = Exported { managed: managed(tensor), shape, strides, memory };
    NonNull::from(Box::leak(Box::new(exported))).cast()
}

/// For versions of DLPack from 1 on.
pub(crate) fn export_versioned(memory: Arc<Memory>, flags: u64) -> NonNull<ManagedVersioned> {
    let managed = export(memory, |tensor| ManagedVersioned {
        version: dlpack::VERSION,
        context: ptr::null_mut(),
        deleter: Some(delete::<ManagedVersioned>),
        flags,
        tensor,
    });
    // SAFETY: it is the first field of what was just made, and nobody else has it.
    unsafe {
        let exported = managed.cast::<Exported<ManagedVersioned>>().as_ptr();
        (*exported).managed.tensor.shape = (&raw mut (*exported).shape).cast();
        (*exported).managed.tensor.strides = (&raw mut (*exported).strides).cast();
    }
    managed
}

/// For versions before 1.
pub(crate) fn export_unversioned(memory: Arc<Memory>) -> NonNull<Managed> {
    let managed = export(memory, |tensor| Managed {
        tensor,
        context: ptr::null_mut(),
        deleter: Some(delete::<Managed>),
    });
    // SAFETY: as above.
    unsafe {
        let exported = managed.cast::<Exported<Managed>>().as_ptr();
        (*exported).managed.tensor.shape = (&raw mut (*exported).shape).cast();
        (*exported).managed.tensor.strides = (&raw mut (*exported).strides).cast();
    }
    managed
}

/// A capsule's destructor, for one that nobody has taken the tensor of.
unsafe extern "C" fn drop_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls it with the capsule, attached. A name says what the pointer is; taken
    // tensors have another.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, dlpack::VERSIONED.as_ptr()) != 0 {
            let managed = ffi::PyCapsule_GetPointer(capsule, dlpack::VERSIONED.as_ptr());
            delete::<ManagedVersioned>(managed.cast());
        } else if ffi::PyCapsule_IsValid(capsule, dlpack::UNVERSIONED.as_ptr()) != 0 {
            let managed = ffi::PyCapsule_GetPointer(capsule, dlpack::UNVERSIONED.as_ptr());
            delete::<Managed>(managed.cast());
        }
    }
}

/// A capsule, of DLPack 1 if the caller knows that.
pub(crate) fn capsule(
    py: Python<'_>,
    memory: Arc<Memory>,
    (versioned, flags): (bool, u64),
) -> PyResult<Bound<'_, PyCapsule>> {
    let (pointer, name): (NonNull<c_void>, &'static CStr) = if versioned {
        (export_versioned(memory, flags).cast(), dlpack::VERSIONED)
    } else {
        (export_unversioned(memory).cast(), dlpack::UNVERSIONED)
    };
    // SAFETY: the pointer is what its name says, until the destructor or a consumer deletes it.
    unsafe { PyCapsule::new_with_pointer_and_destructor(py, pointer, name, Some(drop_capsule)) }
}

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
        PyTuple::new(py, self.memory.place.shape())
    }

    /// The distances between neighbours, in bytes.
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.memory.place.strides())
    }

    /// The number of axes.
    #[getter]
    fn ndim(&self) -> usize {
        self.memory.place.ndim()
    }

    /// The name of the element type.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.memory.place.dtype.name()
    }

    fn __repr__(&self) -> String {
        let place = &self.memory.place;
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
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        if stream.is_some() {
            return Err(error::value("stream", "a stream", "None: the processor has none"));
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

impl Memory {
    fn duplicate(&self) -> PyResult<Self> {
        let mut copy = Self::new(self.place.dtype, self.place.shape(), false)?;
        copy.place = self.place;
        copy.place.data = copy.data.as_ptr();
        // SAFETY: both are dense of the same bytes, initialised, and apart.
        unsafe {
            ptr::copy_nonoverlapping(self.data.as_ptr(), copy.data.as_ptr(), self.layout.size());
        }
        Ok(copy)
    }
}
