//! The RMS norm of queries and keys behind a handle.

use headwise::QkNorm;

use crate::boundary::guard;
use crate::list::headwise_floats;
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};

/// `x / sqrt(mean(x^2) + eps) * weight` over the elements of a row.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_qk_norm_options {
    /// `sizeof(headwise_qk_norm_options)`.
    pub size: usize,
    /// One for each of `head_dim`, which are copied. Of models that store them less 1 (Gemma's) with
    /// 1 added.
    pub weight: headwise_floats,
    /// Added to the mean, such as 1e-6.
    pub eps: f32,
    /// Zero.
    pub reserved: u32,
}
growing!(headwise_qk_norm_options, ..=reserved: u32);

/// A norm of rows, made once and used in every call.
pub struct headwise_qk_norm {
    pub(crate) norm: QkNorm,
}

// Handles go from thread to thread, and several threads use a norm.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<headwise_qk_norm>();
};

/// # Safety
/// As of [`sized::read`], and the weights must be there.
unsafe fn make(options: *const headwise_qk_norm_options) -> Result<headwise_qk_norm> {
    // SAFETY: the caller's promise.
    let (options, weight) = unsafe {
        let options = sized::read("options", options)?;
        (options, options.weight.get("options.weight")?.unwrap_or(&[]))
    };
    sized::check_reserved("options", options.reserved)?;
    match QkNorm::new(weight, options.eps) {
        Ok(norm) => Ok(headwise_qk_norm { norm }),
        Err(error) => Err(named(error.into())),
    }
}

/// The library's refusal of a norm, with the names of the options.
fn named(failure: Failure) -> Failure {
    match failure.message.split_once(": ") {
        Some(("eps", _)) => failure.renamed("options.eps"),
        _ => failure.renamed("options.weight"),
    }
}

/// Makes a norm.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_qk_norm_create(
    options: *const headwise_qk_norm_options,
    norm: *mut *mut headwise_qk_norm,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, || pointer::give_handle("norm", norm, || make(options))) }
}

/// Frees a norm that no call uses, and makes the handle NULL.
///
/// # Safety
/// `norm` must be null, or point at null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_qk_norm_free(norm: *mut *mut headwise_qk_norm) {
    // SAFETY: the caller's promise.
    unsafe { pointer::free_handle(norm) }
}
