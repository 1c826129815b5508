//! Biases by the distance from query to key.

use headwise::RelativeBias;

use crate::boundary::guard;
use crate::choice::{choice, choose};
use crate::list::headwise_floats;
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};

/// What a table of biases is.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_relative_bias_kind {
    /// `[heads, distances]`, the first column of distance `low`.
    ByDistance = 0,
    /// T5's embedding, `[buckets, heads]`, keys before the query alone.
    T5 = 1,
    /// T5's embedding of an encoder, half of whose buckets are for keys behind the query.
    T5Bidirectional = 2,
}
choice!(headwise_relative_bias_kind: ByDistance, T5, T5Bidirectional);

/// A table of biases.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_relative_bias_options {
    /// `sizeof(headwise_relative_bias_options)`.
    pub size: usize,
    /// A `headwise_relative_bias_kind`.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// The numbers, which are copied.
    pub table: headwise_floats,
    /// The query heads.
    pub heads: usize,
    /// `ByDistance`: key minus query of the first column.
    pub low: i64,
    /// T5: the distance from which on all share a bucket.
    pub max_distance: usize,
}
growing!(headwise_relative_bias_options, ..=max_distance: usize);

/// A bias for each query head and distance, made once and used in every call.
pub struct headwise_relative_bias {
    pub(crate) bias: RelativeBias,
}

// Handles go from thread to thread, and several threads use a bias.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<headwise_relative_bias>();
};

/// Makes a bias.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_relative_bias_create(
    options: *const headwise_relative_bias_options,
    bias: *mut *mut headwise_relative_bias,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, || pointer::give_handle("bias", bias, || make(options))) }
}

/// # Safety
/// As of [`sized::read`], and the table must be there.
unsafe fn make(options: *const headwise_relative_bias_options) -> Result<headwise_relative_bias> {
    // SAFETY: the caller's promise.
    let (options, table) = unsafe {
        let options = sized::read("options", options)?;
        (options, options.table.get("options.table")?.unwrap_or(&[]))
    };
    sized::check_reserved("options", options.reserved)?;
    let t5 = |both| RelativeBias::t5(table, options.heads, options.max_distance, both);
    let bias = match choose("options.kind", options.kind)? {
        headwise_relative_bias_kind::ByDistance => {
            RelativeBias::by_distance(table, options.heads, options.low)
        }
        headwise_relative_bias_kind::T5 => t5(false),
        headwise_relative_bias_kind::T5Bidirectional => t5(true),
    };
    match bias {
        Ok(bias) => Ok(headwise_relative_bias { bias }),
        Err(error) => Err(named(error.into())),
    }
}

/// The library's refusal of a table, with the names of the options.
fn named(failure: Failure) -> Failure {
    match failure.message.split_once(": ") {
        Some(("max_distance", _)) => failure.renamed("options.max_distance"),
        _ => failure.renamed("options.table"),
    }
}

/// Frees a bias that no call uses, and makes the handle NULL.
///
/// # Safety
/// `bias` must be null, or point at null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_relative_bias_free(bias: *mut *mut headwise_relative_bias) {
    // SAFETY: the caller's promise.
    unsafe { pointer::free_handle(bias) }
}
