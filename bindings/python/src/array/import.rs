//! Arrays of other libraries, where they lie: by DLPack's table of C functions, by the buffer
//! protocol, or by a DLPack capsule, whichever an object has first.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};
use pyo3::{ffi, intern};

use super::{DType, Strided};
use crate::dlpack::{self, Device, ExchangeApi, Managed, ManagedVersioned};
use crate::{error, numpy, torch};

/// An array that a call was given. What it is about lies still as long as the argument is there and
/// nobody resizes it; that nobody writes to it while a call reads is the caller's to see to, as it
/// is in every library that lets other threads of Python run.
#[derive(Debug)]
pub(crate) struct Array<'a> {
    pub(crate) place: Strided,
    read_only: bool,
    _owner: Owner,
    argument: PhantomData<&'a ()>,
}

/// What must be given back at the end.
#[derive(Debug)]
enum Owner {
    /// Nothing: the argument keeps the memory.
    Argument,
    Buffer(#[allow(dead_code)] PyUntypedBuffer),
    Managed(#[allow(dead_code)] Taken),
}

/// A tensor taken out of a capsule.
#[derive(Debug)]
enum Taken {
    Versioned(NonNull<ManagedVersioned>),
    Unversioned(NonNull<Managed>),
}

// SAFETY: sharing it gives out nothing; the tensor is given back by its owner.
unsafe impl Sync for Taken {}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: it was taken out of its capsule, so that its deleter is ours to call, once.
        unsafe {
            match self {
                Self::Versioned(managed) => {
                    if let Some(deleter) = managed.as_ref().deleter {
                        deleter(managed.as_ptr());
                    }
                }
                Self::Unversioned(managed) => {
                    if let Some(deleter) = managed.as_ref().deleter {
                        deleter(managed.as_ptr());
                    }
                }
            }
        }
    }
}

impl<'a> Array<'a> {
    /// The array of an object.
    pub(crate) fn of(argument: &str, object: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        match Self::try_of(argument, object)? {
            Some(array) => Ok(array),
            None => {
                let name = object.get_type().name()?;
                let expected = "an array: a torch.Tensor, a numpy.ndarray, or anything with \
                    __dlpack__ or the buffer protocol";
                Err(error::kind(argument, format_args!("a {name}"), expected))
            }
        }
    }

    /// The array of an object, if it is one.
    pub(crate) fn try_of(argument: &str, object: &'a Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let is_tensor = !numpy::is_array(object)? && torch::is_tensor(object)?;
        if is_tensor {
            torch::check(argument, object)?;
        }
        let array = Self::found(argument, object)?;
        if let (true, Some(array)) = (is_tensor, &array) {
            torch::check_storage(argument, object, &array.place)?;
        }
        Ok(array)
    }

    /// That by the first way in that an object has.
    fn found(argument: &str, object: &'a Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        if !numpy::is_array(object)?
            && let Some(api) = exchange_api(object)?
            && let Some(function) = api.tensor_of_object
        {
            return of_function(argument, object, function).map(Some);
        }
        // SAFETY: any object may be asked.
        let is_buffer = unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } != 0;
        let buffer = if is_buffer { Some(of_buffer(argument, object)) } else { None };
        if let Some(Ok(array)) = buffer {
            return Ok(Some(array));
        }
        if object.hasattr(intern!(object.py(), "__dlpack__"))? {
            // What the buffer protocol has no format for, DLPack may have.
            let array = of_dlpack(argument, object);
            return match (array, buffer) {
                (Err(_), Some(Err(first))) => Err(first),
                (array, _) => array.map(Some),
            };
        }
        buffer.transpose()
    }

    /// The array of an object that will be written to.
    pub(crate) fn writable(argument: &str, object: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        let array = Self::of(argument, object)?;
        if array.read_only || is_flagged_read_only(object)? {
            return Err(error::value(argument, "a read-only array", "one that can be written"));
        }
        Ok(array)
    }

    fn new(place: Strided, read_only: bool, owner: Owner) -> Self {
        Self { place, read_only, _owner: owner, argument: PhantomData }
    }
}

/// The table of functions of an object's type, if it has one of a version that we know.
pub(crate) fn exchange_api(object: &Bound<'_, PyAny>) -> PyResult<Option<&'static ExchangeApi>> {
    match torch::exchange_api(object)? {
        Some(api) => Ok(Some(api)),
        None => exchange_api_of(object.get_type().as_any()),
    }
}

/// That of a type.
pub(crate) fn exchange_api_of(class: &Bound<'_, PyAny>) -> PyResult<Option<&'static ExchangeApi>> {
    let name = intern!(class.py(), "__dlpack_c_exchange_api__");
    let Some(capsule) = class.getattr_opt(name)? else { return Ok(None) };
    let Ok(capsule) = capsule.cast_into::<PyCapsule>() else { return Ok(None) };
    let pointer = capsule.pointer_checked(Some(dlpack::EXCHANGE_API))?;
    // SAFETY: a capsule of that name has such a table, which stays as long as the process; its
    // version comes first in all of them.
    let api: &'static ExchangeApi = unsafe { pointer.cast().as_ref() };
    Ok(Some(api).filter(|api| api.version.major == dlpack::VERSION.major))
}

/// Whether a table's functions give a tensor flags that say so: the tensor alone, which arrays are
/// read by, has none.
fn is_flagged_read_only(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    if numpy::is_array(object)? {
        return Ok(false);
    }
    let function = exchange_api(object)?.and_then(|api| api.managed_of_object);
    let Some(function) = function else { return Ok(false) };
    let mut managed = ptr::null_mut();
    // SAFETY: the object is of the type that the function came from, and this thread is attached.
    let failed = unsafe { function(object.as_ptr().cast(), &raw mut managed) } != 0;
    if failed {
        return Err(PyErr::fetch(object.py()));
    }
    let Some(managed) = NonNull::new(managed) else { return Ok(false) };
    let _taken = Taken::Versioned(managed);
    // SAFETY: it succeeded, so the structure is ours until its deleter is called.
    Ok(unsafe { managed.as_ref() }.flags & dlpack::READ_ONLY != 0)
}

type TensorOfObject = unsafe extern "C" fn(*mut c_void, *mut dlpack::Tensor) -> i32;

fn of_function<'a>(
    argument: &str,
    object: &Bound<'_, PyAny>,
    function: TensorOfObject,
) -> PyResult<Array<'a>> {
    let mut tensor = MaybeUninit::uninit();
    // SAFETY: the object is of the type that the function came from, and this thread is attached.
    let failed = unsafe { function(object.as_ptr().cast(), tensor.as_mut_ptr()) } != 0;
    if failed {
        let cause = PyErr::fetch(object.py()).value(object.py()).to_string();
        let device = object.getattr_opt("device")?.map(|device| device.to_string());
        if let Some(device) = device.filter(|device| !device.starts_with("cpu")) {
            let expected = "memory of the CPU; copy it there first";
            return Err(error::value(argument, format_args!("on {device}"), expected));
        }
        // What follows is a trace of the other library's calls.
        let cause = cause.lines().next().unwrap_or_default();
        return Err(error::kind(argument, cause, "a dense tensor"));
    }
    // SAFETY: it succeeded, so it has filled the structure, whose arrays stay until Python runs.
    unsafe {
        let tensor = tensor.assume_init();
        Ok(Array::new(place_of(argument, &tensor)?, false, Owner::Argument))
    }
}

fn check_device(argument: &str, device: Device) -> PyResult<()> {
    if device.is_host() {
        return Ok(());
    }
    let got = format!("on {}", device.name());
    Err(error::value(argument, got, "memory of the CPU; copy it there first"))
}

/// # Safety
/// The structure's arrays must be there.
unsafe fn place_of(argument: &str, tensor: &dlpack::Tensor) -> PyResult<Strided> {
    check_device(argument, tensor.device)?;
    let Some(dtype) = DType::of_dlpack(tensor.dtype) else {
        let dlpack::DataType { code, bits, lanes } = tensor.dtype;
        let got = format!("elements of dlpack type {code}, {bits} bits, {lanes} lanes");
        return Err(error::kind(argument, got, "numbers or truth values"));
    };
    let ndim = usize::try_from(tensor.ndim).unwrap_or(0);
    let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    let mut place = Strided::new(argument, data, dtype, ndim)?;
    // SAFETY: the caller's promise; a tensor without axes may have none.
    let of = |list: *mut i64| unsafe {
        if ndim == 0 || list.is_null() { None } else { Some(slice::from_raw_parts(list, ndim)) }
    };
    for (axis, &extent) in of(tensor.shape).unwrap_or(&[]).iter().enumerate() {
        place.set_axis(axis, usize::try_from(extent).unwrap_or(0), 0);
    }
    match of(tensor.strides) {
        None => place.densify(),
        Some(strides) => {
            for (axis, &stride) in strides.iter().enumerate() {
                let bytes = (stride as isize).wrapping_mul(dtype.size() as isize);
                place.set_axis(axis, place.shape()[axis], bytes);
            }
        }
    }
    if tensor.data.is_null() && !place.is_empty() {
        return Err(error::kind(argument, "a tensor without memory", "a dense tensor"));
    }
    place.checked(argument)
}

fn of_buffer<'a>(argument: &str, object: &Bound<'_, PyAny>) -> PyResult<Array<'a>> {
    let buffer = PyUntypedBuffer::get(object)
        .map_err(|e| error::kind(argument, e.value(object.py()), "an array of numbers"))?;
    let Some(dtype) = DType::of_format(buffer.format(), buffer.item_size()) else {
        let got = format!("elements of buffer format {:?}", buffer.format());
        return Err(error::kind(argument, got, "numbers of this machine's byte order"));
    };
    if buffer.suboffsets().is_some_and(|offsets| offsets.iter().any(|&offset| offset >= 0)) {
        return Err(error::kind(argument, "an array of pointers", "elements at even distances"));
    }
    let data = buffer.buf_ptr().cast();
    let mut place = Strided::new(argument, data, dtype, buffer.dimensions())?;
    for (axis, (&extent, &stride)) in buffer.shape().iter().zip(buffer.strides()).enumerate() {
        place.set_axis(axis, extent, stride);
    }
    Ok(Array::new(place.checked(argument)?, buffer.readonly(), Owner::Buffer(buffer)))
}

fn of_dlpack<'a>(argument: &str, object: &Bound<'_, PyAny>) -> PyResult<Array<'a>> {
    let py = object.py();
    if let Some(device) = object.getattr_opt(intern!(py, "__dlpack_device__"))? {
        let (kind, id): (i32, i32) = device
            .call0()?
            .extract::<(Bound<'_, PyAny>, i32)>()
            .and_then(|(kind, id)| Ok((kind.extract()?, id)))?;
        check_device(argument, Device { kind, id })?;
    }
    let method = torch::detached(object)?.getattr(intern!(py, "__dlpack__"))?;
    let keywords = PyDict::new(py);
    let version = (dlpack::VERSION.major, dlpack::VERSION.minor);
    keywords.set_item(intern!(py, "max_version"), version)?;
    let capsule = match method.call((), Some(&keywords)) {
        // Of an array library from before version 1.
        Err(e) if e.is_instance_of::<PyTypeError>(py) => method.call0(),
        other => other,
    };
    let capsule = capsule.map_err(|e| {
        if !e.is_instance_of::<PyBufferError>(py) {
            return e;
        }
        error::kind(argument, e.value(py), "a dense array in memory of the CPU")
    })?;
    let capsule = capsule
        .cast_into::<PyCapsule>()
        .map_err(|_| error::kind(argument, "a __dlpack__ that gave no capsule", "one of DLPack"))?;
    of_capsule(argument, &capsule)
}

fn of_capsule<'a>(argument: &str, capsule: &Bound<'_, PyCapsule>) -> PyResult<Array<'a>> {
    if let Some(managed) = take(capsule, dlpack::VERSIONED, dlpack::USED_VERSIONED) {
        let managed: NonNull<ManagedVersioned> = managed.cast();
        let taken = Taken::Versioned(managed);
        // SAFETY: it was in a capsule of its name; the version and the deleter stand first in every
        // version, and the rest is looked at in ours alone.
        let managed = unsafe { managed.as_ref() };
        if managed.version.major != dlpack::VERSION.major {
            let got = format!("DLPack {}.{}", managed.version.major, managed.version.minor);
            return Err(error::kind(argument, got, "version 1"));
        }
        // SAFETY: the tensor is ours until its deleter is called.
        let place = unsafe { place_of(argument, &managed.tensor) }?;
        let read_only = managed.flags & dlpack::READ_ONLY != 0;
        return Ok(Array::new(place, read_only, Owner::Managed(taken)));
    }
    if let Some(managed) = take(capsule, dlpack::UNVERSIONED, dlpack::USED_UNVERSIONED) {
        let managed: NonNull<Managed> = managed.cast();
        let taken = Taken::Unversioned(managed);
        // SAFETY: as above.
        let place = unsafe { place_of(argument, &managed.as_ref().tensor) }?;
        return Ok(Array::new(place, false, Owner::Managed(taken)));
    }
    Err(error::kind(argument, "a capsule that was used, or is none of DLPack", "a new one"))
}

/// What is in a capsule of this name, which then has the other.
fn take(
    capsule: &Bound<'_, PyCapsule>,
    name: &'static CStr,
    used: &'static CStr,
) -> Option<NonNull<c_void>> {
    let pointer = capsule.pointer_checked(Some(name)).ok()?;
    // SAFETY: it is a capsule, attached; the new name lives as long as the process, and says that
    // the destructor has nothing to do.
    let renamed = unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) } == 0;
    renamed.then_some(pointer)
}
