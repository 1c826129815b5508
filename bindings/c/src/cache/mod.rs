//! Caches of keys and values behind a handle.

mod append;
mod sequence;

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use headwise::kv_cache::{
    ContiguousCache, KvShape, KvView, PagedCache, PagedCapacity, RingCache, SequenceId,
};

use crate::boundary::guard;
use crate::choice::{choice, choose};
use crate::dtype::headwise_dtype;
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};
use crate::workspace::Lists;

#[cfg(test)]
pub(crate) use append::{headwise_append_call, headwise_cache_append};
pub use sequence::headwise_sequence;
#[cfg(test)]
pub(crate) use sequence::{
    headwise_cache_create_sequence, headwise_cache_extent, headwise_cache_fork_sequence,
    headwise_cache_release_sequence, headwise_cache_truncate,
};

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
    /// Of keys and values: a `headwise_dtype`, or 0 for F32.
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
    /// Paged: the most pages of a sequence; 0 for all.
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
    kind: Kind,
    names: Vec<SequenceId>,
    indices: Vec<usize>,
}

enum Kind {
    Contiguous(ContiguousCache),
    Ring(RingCache),
    Paged(PagedCache),
}

impl headwise_cache {
    /// # Safety
    /// As of [`sized::read`].
    unsafe fn new(options: *const headwise_cache_options) -> Result<Self> {
        // SAFETY: the caller's promise.
        let options = unsafe { sized::read("options", options)? };
        check_dtype(options.dtype)?;
        let headwise_cache_options { kv_heads, head_dim, value_dim, .. } = options;
        let shape = KvShape { kv_heads, head_dim, value_dim };
        let (batch, capacity) = (options.sequences, options.capacity);
        let kind = match choose("options.kind", options.kind)? {
            headwise_cache_kind::Contiguous => {
                Kind::Contiguous(ContiguousCache::new(shape, batch, capacity)?)
            }
            headwise_cache_kind::Ring => Kind::Ring(RingCache::new(shape, batch, capacity)?),
            headwise_cache_kind::Paged => Kind::Paged(PagedCache::new(shape, paged(&options))?),
        };
        let lock = RwLock::new(Inner { kind, names: Vec::new(), indices: Vec::new() });
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

/// Keys and values are kept in F32 so far.
fn check_dtype(dtype: u32) -> Result<()> {
    if dtype == 0 {
        return Ok(());
    }
    match choose("options.dtype", dtype)? {
        headwise_dtype::F32 => Ok(()),
        other => Err(Failure::unsupported("options.dtype", format!("{other:?}"), "F32 or 0")),
    }
}

fn paged(options: &headwise_cache_options) -> PagedCapacity {
    PagedCapacity {
        pages: options.pages,
        page_size: options.page_size,
        sequences: options.sequences,
        pages_per_sequence: match options.pages_per_sequence {
            0 => options.pages,
            pages => pages,
        },
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

impl Inner {
    /// What attention reads: the sequences named, or all.
    pub(crate) fn view<'a>(
        &'a self,
        sequences: Option<&[headwise_sequence]>,
        lists: &'a mut Lists,
    ) -> Result<KvView<'a>> {
        match (&self.kind, sequences) {
            (Kind::Paged(cache), named) => {
                let named = named.ok_or_else(unnamed)?;
                sequence::names(named, &mut lists.names)?;
                Ok(cache.view(&lists.names, &mut lists.tables)?)
            }
            (Kind::Contiguous(cache), None) => Ok(cache.view()),
            (Kind::Ring(cache), None) => Ok(cache.view()),
            _ => {
                let expected = "none: a contiguous cache or a ring is attended to as a whole";
                Err(Failure::unsupported("sequences", "names of sequences", expected))
            }
        }
    }
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
    unsafe { guard(error, || pointer::give_handle(cache, || headwise_cache::new(options))) }
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
