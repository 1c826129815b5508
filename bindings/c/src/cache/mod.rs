//! Caches of keys and values behind a handle.

mod append;
mod sequence;
mod stored;

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use headwise::kv_cache::SequenceId;

use crate::boundary::guard;
use crate::choice::choice;
use crate::list::reserved;
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};

#[cfg(test)]
pub(crate) use append::{headwise_append_call, headwise_cache_append};
pub use sequence::headwise_sequence;
#[cfg(test)]
pub(crate) use sequence::{
    headwise_cache_create_sequence, headwise_cache_evict, headwise_cache_extent,
    headwise_cache_fork_sequence, headwise_cache_release_sequence, headwise_cache_truncate,
    headwise_cache_unused_pages,
};
pub(crate) use stored::{Stored, stored};

/// What holds the tokens of a sequence.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_cache_kind {
    /// `sequences` sequences of at most `capacity` tokens.
    Contiguous = 0,
    /// `sequences` sequences, of each the last `capacity` tokens.
    Ring = 1,
    /// Sequences that come and go, in pages that they share.
    Paged = 2,
}
choice!(headwise_cache_kind: Contiguous, Ring, Paged);

/// How much a cache can hold; all of it is allocated when it is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_cache_options {
    /// `sizeof(headwise_cache_options)`.
    pub size: usize,
    /// A `headwise_cache_kind`.
    pub kind: u32,
    /// What keys and values are stored in, whatever tokens come in: `HEADWISE_DTYPE_F32`, `F16`, `BF16`
    /// or `I8`, each row of which has a scale of its own, or 0 for F32.
    pub dtype: u32,
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Elements of a head's key.
    pub head_dim: usize,
    /// Elements of a head's value.
    pub value_dim: usize,
    /// Sequences at a time.
    pub sequences: usize,
    /// Contiguous and ring: tokens of a sequence.
    pub capacity: usize,
    /// Paged: pages in all.
    pub pages: usize,
    /// Paged: tokens in a page, 1 to 1024; powers of two from 16 on are fastest.
    pub page_size: usize,
    /// Paged: the most pages of a sequence; 0 for all. The tables take `4 * sequences *
    /// pages_per_sequence` bytes, so with 0 the product of all sequences and all pages.
    pub pages_per_sequence: usize,
}
growing!(headwise_cache_options, ..=pages_per_sequence: usize);

/// Keys and values of past tokens. Several threads may attend to a cache at a time; what changes it
/// must be alone, and is refused (HEADWISE_STATUS_BUSY) where it is not.
pub struct headwise_cache {
    lock: RwLock<Inner>,
}

/// A cache, and room for the names of a call.
pub(crate) struct Inner {
    pub(crate) stored: Stored,
    names: Vec<SequenceId>,
    indices: Vec<usize>,
}

// Handles go from thread to thread, and several threads attend to a cache.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<headwise_cache>();
};

impl headwise_cache {
    /// # Safety
    /// As of [`sized::read`].
    unsafe fn new(options: *const headwise_cache_options) -> Result<Self> {
        // SAFETY: the caller's promise.
        let options = unsafe { sized::read("options", options)? };
        let stored = Stored::new(&options).map_err(|failure| named(failure, options.kind))?;
        let lock = RwLock::new(Inner {
            stored,
            names: reserved("options.sequences", options.sequences)?,
            indices: reserved("options.sequences", options.sequences)?,
        });
        Ok(Self { lock })
    }

    /// The cache, to attend to.
    pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, Inner>> {
        self.lock.try_read().map_err(refused)
    }

    /// The cache, to change.
    fn write(&self) -> Result<RwLockWriteGuard<'_, Inner>> {
        self.lock.try_write().map_err(refused)
    }
}

/// The library's refusal of a cache, with the names of the options.
fn named(failure: Failure, kind: u32) -> Failure {
    let of_batch = kind != headwise_cache_kind::Paged as u32;
    match failure.message.split_once(": ") {
        Some(("batch", _)) => failure.renamed("options.sequences"),
        Some(("tensor", _)) if of_batch => failure.renamed("options.capacity"),
        Some(("tensor", _)) => failure.renamed("options.pages"),
        Some((option, _)) if !option.starts_with("options") => {
            let option = format!("options.{option}");
            failure.renamed(&option)
        }
        _ => failure,
    }
}

fn refused<G>(error: TryLockError<G>) -> Failure {
    let (status, got, expected) = match error {
        TryLockError::WouldBlock => {
            (headwise_status::Busy, "in use by another thread", "one that changes it at a time")
        }
        TryLockError::Poisoned(_) => {
            (headwise_status::Internal, "left half changed by an internal error", "a new one")
        }
    };
    Failure { status, ..Failure::argument("cache", got, expected) }
}

fn unnamed() -> Failure {
    Failure::argument("sequences", "none", "those that are meant of a paged cache")
}

/// Makes a cache.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_create(
    options: *const headwise_cache_options,
    cache: *mut *mut headwise_cache,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe {
        guard(error, || pointer::give_handle("cache", cache, || headwise_cache::new(options)))
    }
}

/// Frees a cache that no call uses, and makes the handle NULL.
///
/// # Safety
/// `cache` must be null, or point at null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_free(cache: *mut *mut headwise_cache) {
    // SAFETY: the caller's promise.
    unsafe { pointer::free_handle(cache) }
}

/// Runs what reads a cache.
///
/// # Safety
/// Pointers must be null or as the header says.
unsafe fn look(
    cache: *const headwise_cache,
    error: *mut headwise_error,
    work: impl FnOnce(&Inner) -> Result<()>,
) -> headwise_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard(error, || work(&*pointer::required("cache", cache, "a headwise_cache")?.read()?))
    }
}

/// Runs what changes a cache.
///
/// # Safety
/// Pointers must be null or as the header says.
unsafe fn change(
    cache: *mut headwise_cache,
    error: *mut headwise_error,
    work: impl FnOnce(&mut Inner) -> Result<()>,
) -> headwise_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard(error, || work(&mut *pointer::required("cache", cache, "a headwise_cache")?.write()?))
    }
}
