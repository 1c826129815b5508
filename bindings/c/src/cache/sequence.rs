//! The sequences of a cache.

use headwise::kv_cache::SequenceId;

use super::{Inner, Kind, change, headwise_cache};
use crate::boundary::guard;
use crate::pointer;
use crate::status::{Failure, Result, headwise_error, headwise_status};

/// A sequence of a cache. Of a contiguous cache or a ring `place` counts from 0, and `generation` is
/// 0; they are always there. Of a paged cache both are what the cache gave, and caches that were told
/// the same give the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct headwise_sequence {
    /// Which one.
    pub place: u64,
    /// How many had its place before.
    pub generation: u64,
}

impl headwise_sequence {
    fn of(id: SequenceId) -> Self {
        let (place, generation) = id.to_raw();
        Self { place: place.into(), generation }
    }

    fn id(self) -> Result<SequenceId> {
        match u32::try_from(self.place) {
            Ok(place) => Ok(SequenceId::from_raw((place, self.generation))),
            Err(_) => Err(self.unknown()),
        }
    }

    /// Its number in a cache of a batch.
    pub(super) fn index(self) -> Result<usize> {
        match usize::try_from(self.place) {
            Ok(place) if self.generation == 0 => Ok(place),
            _ => Err(self.unknown()),
        }
    }

    fn unknown(self) -> Failure {
        let expected = "one that the cache has".to_string();
        Failure::new(headwise_status::Value, format!("sequence: {self:?}, expected {expected}"))
    }
}

/// Fills `names` with the library's names of sequences.
pub(super) fn names(sequences: &[headwise_sequence], names: &mut Vec<SequenceId>) -> Result<()> {
    names.clear();
    for sequence in sequences {
        names.push(sequence.id()?);
    }
    Ok(())
}

/// Fills `indices` with the numbers of sequences in a cache of a batch.
pub(super) fn indices<'a>(
    sequences: &[headwise_sequence],
    indices: &'a mut Vec<usize>,
) -> Result<&'a [usize]> {
    indices.clear();
    for sequence in sequences {
        indices.push(sequence.index()?);
    }
    Ok(indices)
}

impl Inner {
    fn extent(&self, sequence: headwise_sequence) -> Result<(usize, usize)> {
        let of_batch = |starts: &[usize], lengths: &[usize]| {
            let index = sequence.index()?;
            let extent = starts.get(index).copied().zip(lengths.get(index).copied());
            extent.ok_or_else(|| sequence.unknown())
        };
        match &self.kind {
            Kind::Contiguous(cache) => of_batch(cache.starts(), cache.lengths()),
            Kind::Ring(cache) => of_batch(cache.starts(), cache.lengths()),
            Kind::Paged(cache) => {
                let id = sequence.id()?;
                Ok((cache.start(id)?, cache.length(id)?))
            }
        }
    }

    fn truncate(&mut self, sequence: headwise_sequence, length: usize) -> Result<()> {
        let truncated = match &mut self.kind {
            Kind::Contiguous(cache) => cache.truncate(sequence.index()?, length),
            Kind::Ring(cache) => cache.truncate(sequence.index()?, length),
            Kind::Paged(cache) => cache.truncate(sequence.id()?, length),
        };
        Ok(truncated?)
    }

    fn release(&mut self, sequence: headwise_sequence) -> Result<()> {
        let released = match &mut self.kind {
            Kind::Contiguous(cache) => cache.clear(sequence.index()?),
            Kind::Ring(cache) => cache.clear(sequence.index()?),
            Kind::Paged(cache) => cache.free(sequence.id()?),
        };
        Ok(released?)
    }

    /// The paged cache that this is.
    fn paged(&mut self) -> Result<&mut headwise::PagedCache> {
        match &mut self.kind {
            Kind::Paged(cache) => Ok(cache),
            _ => {
                let got = "a contiguous cache or a ring";
                Err(Failure::unsupported("cache", got, "a paged cache"))
            }
        }
    }
}

/// Makes an empty sequence of a paged cache.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_create_sequence(
    cache: *mut headwise_cache,
    sequence: *mut headwise_sequence,
    error: *mut headwise_error,
) -> headwise_status {
    let work = |cache: &mut Inner| {
        pointer::check("sequence", sequence, "where its name goes")?;
        let created = headwise_sequence::of(cache.paged()?.create()?);
        // SAFETY: the caller's promise.
        unsafe { pointer::give("sequence", sequence, created) }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, work) }
}

/// Makes a sequence of a paged cache that begins as another is: the same pages, nothing copied.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_fork_sequence(
    cache: *mut headwise_cache,
    sequence: headwise_sequence,
    forked: *mut headwise_sequence,
    error: *mut headwise_error,
) -> headwise_status {
    let work = |cache: &mut Inner| {
        pointer::check("forked", forked, "where its name goes")?;
        let created = headwise_sequence::of(cache.paged()?.fork(sequence.id()?)?);
        // SAFETY: the caller's promise.
        unsafe { pointer::give("forked", forked, created) }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, work) }
}

/// Forgets the tokens of a sequence from position `length` on, such as rejected drafts.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_truncate(
    cache: *mut headwise_cache,
    sequence: headwise_sequence,
    length: usize,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, |cache| cache.truncate(sequence, length)) }
}

/// Forgets the tokens of a sequence of a paged cache before position `before`, and gives back the
/// pages that held nothing else; positions count on.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_evict(
    cache: *mut headwise_cache,
    sequence: headwise_sequence,
    before: usize,
    error: *mut headwise_error,
) -> headwise_status {
    let work = |cache: &mut Inner| Ok(cache.paged()?.evict(sequence.id()?, before)?);
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, work) }
}

/// Forgets a sequence. Of a paged cache its name means nothing any more; of others it is empty.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_release_sequence(
    cache: *mut headwise_cache,
    sequence: headwise_sequence,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, |cache| cache.release(sequence)) }
}

/// The positions of a sequence that exist: from `start` to before `length`. Both may be NULL.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_extent(
    cache: *const headwise_cache,
    sequence: headwise_sequence,
    start: *mut usize,
    length: *mut usize,
    error: *mut headwise_error,
) -> headwise_status {
    let read = || {
        // SAFETY: the caller's promises.
        unsafe {
            let cache = pointer::required("cache", cache, "a headwise_cache")?;
            let extent = cache.read()?.extent(sequence)?;
            pointer::give("start", start, extent.0)?;
            pointer::give("length", length, extent.1)
        }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, read) }
}

/// The pages of a paged cache that no sequence holds.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_unused_pages(
    cache: *mut headwise_cache,
    pages: *mut usize,
    error: *mut headwise_error,
) -> headwise_status {
    let work = |cache: &mut Inner| {
        // SAFETY: the caller's promise.
        unsafe { pointer::give("pages", pages, cache.paged()?.free_pages()) }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, work) }
}
