//! The C structures of DLPack 1, <https://github.com/dmlc/dlpack>, and its names for capsules.

use std::ffi::{CStr, c_char, c_int, c_void};

/// The name of a capsule that nobody has taken the tensor of.
pub(crate) const UNVERSIONED: &CStr = c"dltensor";
pub(crate) const USED_UNVERSIONED: &CStr = c"used_dltensor";
pub(crate) const VERSIONED: &CStr = c"dltensor_versioned";
pub(crate) const USED_VERSIONED: &CStr = c"used_dltensor_versioned";
pub(crate) const EXCHANGE_API: &CStr = c"dlpack_exchange_api";

/// The version whose layout the structures have.
pub(crate) const VERSION: Version = Version { major: 1, minor: 0 };
pub(crate) const READ_ONLY: u64 = 1;
pub(crate) const COPIED: u64 = 2;

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) kind: i32,
    pub(crate) id: i32,
}

impl Device {
    pub(crate) const CPU: Self = Self { kind: 1, id: 0 };

    /// Whether the processor reads its memory where it lies: its own, or pinned for a device.
    pub(crate) fn is_host(self) -> bool {
        matches!(self.kind, 1 | 3 | 11)
    }

    /// The name that people know the kind by.
    pub(crate) fn name(self) -> String {
        let name = match self.kind {
            1 => "cpu",
            2 | 13 => "cuda",
            3 => "cuda host memory",
            7 => "vulkan",
            8 => "metal",
            10 => "rocm",
            11 => "rocm host memory",
            14 => "oneapi",
            other => return format!("dlpack device {other}:{}", self.id),
        };
        format!("{name}:{}", self.id)
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataType {
    pub(crate) code: u8,
    pub(crate) bits: u8,
    pub(crate) lanes: u16,
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) data: *mut c_void,
    pub(crate) device: Device,
    pub(crate) ndim: i32,
    pub(crate) dtype: DataType,
    pub(crate) shape: *mut i64,
    /// In elements; null where the tensor is dense.
    pub(crate) strides: *mut i64,
    pub(crate) byte_offset: u64,
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct Managed {
    pub(crate) tensor: Tensor,
    pub(crate) context: *mut c_void,
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct ManagedVersioned {
    pub(crate) version: Version,
    pub(crate) context: *mut c_void,
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    pub(crate) flags: u64,
    pub(crate) tensor: Tensor,
}

/// The functions of `__dlpack_c_exchange_api__`. Those that return a number return 0, or leave a
/// Python exception.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ExchangeApi {
    pub(crate) version: Version,
    pub(crate) previous: *mut c_void,
    pub(crate) allocate: Option<
        unsafe extern "C" fn(
            *mut Tensor,
            *mut *mut ManagedVersioned,
            *mut c_void,
            Option<unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char)>,
        ) -> c_int,
    >,
    pub(crate) managed_of_object:
        Option<unsafe extern "C" fn(*mut c_void, *mut *mut ManagedVersioned) -> c_int>,
    pub(crate) object_of_managed:
        Option<unsafe extern "C" fn(*mut ManagedVersioned, *mut *mut c_void) -> c_int>,
    pub(crate) tensor_of_object: Option<unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int>,
    pub(crate) current_stream: Option<unsafe extern "C" fn(i32, i32, *mut *mut c_void) -> c_int>,
}

// SAFETY: it is a table of functions, which nobody changes.
unsafe impl Send for ExchangeApi {}
// SAFETY: as above.
unsafe impl Sync for ExchangeApi {}
