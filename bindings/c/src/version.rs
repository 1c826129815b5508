//! What this library is, and what it runs in.

use std::ffi::c_char;

use headwise::Isa;

use crate::boundary::guard;
use crate::choice::{choice, choose};
use crate::pointer;
use crate::status::{Result, headwise_error, headwise_status};

/// The version of the interface that this header describes. The same number: what was built with an
/// older header of it runs with a newer library.
pub const HEADWISE_ABI_VERSION: u32 = 1;

/// An instruction set.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_isa {
    /// The one that the environment variable `HEADWISE_ISA` names, or else the widest.
    Default = 0,
    /// AVX-512 F, BW, DQ, VL.
    Avx512 = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// NEON of aarch64.
    Neon = 3,
    /// What every machine of the target has.
    Portable = 4,
    /// AVX-512 with its dot products of `bf16`: queries, keys and values that are all `bf16` are multiplied
    /// in pairs, and probabilities rounded.
    Avx512Bf16 = 5,
}
choice!(headwise_isa: Default, Avx512, Avx2, Neon, Portable, Avx512Bf16);

/// The library's of a number, or `None` for the default.
pub(crate) fn isa_of(argument: &str, number: u32) -> Result<Option<Isa>> {
    Ok(match choose(argument, number)? {
        headwise_isa::Default => None,
        headwise_isa::Avx512 => Some(Isa::Avx512),
        headwise_isa::Avx2 => Some(Isa::Avx2),
        headwise_isa::Neon => Some(Isa::Neon),
        headwise_isa::Portable => Some(Isa::Portable),
        headwise_isa::Avx512Bf16 => Some(Isa::Avx512Bf16),
    })
}

/// The number of an instruction set that ran; 0 for one that this header does not know.
pub(crate) fn number_of(isa: Isa) -> u32 {
    let known = match isa {
        Isa::Avx512 => headwise_isa::Avx512,
        Isa::Avx2 => headwise_isa::Avx2,
        Isa::Neon => headwise_isa::Neon,
        Isa::Portable => headwise_isa::Portable,
        Isa::Avx512Bf16 => headwise_isa::Avx512Bf16,
        _ => headwise_isa::Default,
    };
    known as u32
}

/// The library's version, such as "0.1.0". The text is constant.
#[unsafe(no_mangle)]
pub extern "C" fn headwise_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The library's `HEADWISE_ABI_VERSION`, to compare with the header's.
#[unsafe(no_mangle)]
pub extern "C" fn headwise_abi_version() -> u32 {
    HEADWISE_ABI_VERSION
}

/// The name of a `headwise_isa`, as `HEADWISE_ISA` spells it; "unknown" for a number that is none. The
/// text is constant.
#[unsafe(no_mangle)]
pub extern "C" fn headwise_isa_name(isa: u32) -> *const c_char {
    let names = [c"default", c"avx512", c"avx2", c"neon", c"portable", c"avx512bf16"];
    names.get(isa as usize).unwrap_or(&c"unknown").as_ptr()
}

/// Whether this machine can run a `headwise_isa`; 0 for a number that is none.
#[unsafe(no_mangle)]
pub extern "C" fn headwise_isa_is_available(isa: u32) -> i32 {
    match isa_of("isa", isa) {
        Ok(Some(isa)) => isa.is_available().into(),
        Ok(None) => 1,
        Err(_) => 0,
    }
}

/// The `headwise_isa` that a call runs in which names none: a status if `HEADWISE_ISA` names nothing
/// that this machine can run.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_isa_default(
    isa: *mut u32,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe {
        guard(error, || pointer::give_required("isa", isa, || Ok(number_of(Isa::from_env()?))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_has_a_number_and_its_name() {
        for isa in Isa::ALL {
            let number = number_of(isa);
            assert_eq!(isa_of("isa", number), Ok(Some(isa)));
            // SAFETY: a constant text.
            let name = unsafe { std::ffi::CStr::from_ptr(headwise_isa_name(number)) };
            assert_eq!(name.to_str(), Ok(isa.name()));
        }
    }

    #[test]
    fn the_default_is_there() {
        let (mut isa, none) = (99, std::ptr::null_mut());
        // SAFETY: a number's place, and null, which is allowed.
        unsafe {
            assert_eq!(headwise_isa_default(&mut isa, none), headwise_status::Ok);
            assert_eq!(headwise_isa_default(std::ptr::null_mut(), none), headwise_status::Argument);
        }
        assert!(isa != headwise_isa::Default as u32 && headwise_isa_is_available(isa) == 1);
    }
}
