//! Memory of ours in capsules, as other libraries take it.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use super::{MAX_NDIM, Memory};
use crate::dlpack::{self, Device, Managed, ManagedVersioned};

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
    let place = memory.place();
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
