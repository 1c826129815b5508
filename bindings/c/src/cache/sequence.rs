//! The sequences of a cache.

use headwise::KvStorage;
use headwise::kv_cache::{PagedCache, SequenceId};

use super::{Inner, change, headwise_cache, look, stored};
use crate::list::room;
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

    /// The library's name of a sequence that a cache has.
    pub(super) fn id<T: KvStorage<Compute = f32>>(
        self,
        cache: &PagedCache<T>,
    ) -> Result<SequenceId> {
        let id =
            u32::try_from(self.place).map(|place| SequenceId::from_raw((place, self.generation)));
        id.ok().filter(|&id| cache.length(id).is_ok()).ok_or_else(|| self.unknown())
    }

    /// Its number in a cache of a batch.
    pub(super) fn index(self, batch: usize) -> Result<usize> {
        match usize::try_from(self.place) {
            Ok(place) if self.generation == 0 && place < batch => Ok(place),
            _ => Err(self.unknown()),
        }
    }

    fn unknown(self) -> Failure {
        let Self { place, generation } = self;
        let got = format!("place {place} of generation {generation}");
        let expected = "a sequence that the cache has";
        Failure::new(headwise_status::Value, format!("sequence: {got}, expected {expected}"))
    }
}

/// Fills `names` with the library's names of sequences, all of which the cache has.
pub(super) fn names<T: KvStorage<Compute = f32>>(
    cache: &PagedCache<T>,
    sequences: &[headwise_sequence],
    names: &mut Vec<SequenceId>,
) -> Result<()> {
    room("sequences", names, sequences.len())?;
    for (nth, sequence) in sequences.iter().enumerate() {
        names.push(sequence.id(cache).map_err(|failure| of_list(failure, nth))?);
    }
    Ok(())
}

/// Fills `indices` with the numbers of sequences in a cache of a batch.
pub(super) fn indices<'a>(
    batch: usize,
    sequences: &[headwise_sequence],
    indices: &'a mut Vec<usize>,
) -> Result<&'a [usize]> {
    room("sequences", indices, sequences.len())?;
    for (nth, sequence) in sequences.iter().enumerate() {
        indices.push(sequence.index(batch).map_err(|failure| of_list(failure, nth))?);
    }
    Ok(indices)
}

fn of_list(failure: Failure, nth: usize) -> Failure {
    failure.renamed(&format!("sequences[{nth}]"))
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
        let created = stored!(&mut cache.stored, kind => kind.paged_mut()?.create()?);
        // SAFETY: the caller's promise.
        unsafe { pointer::give("sequence", sequence, headwise_sequence::of(created)) }
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
        let created = stored!(&mut cache.stored, kind => kind.fork(sequence)?);
        // SAFETY: the caller's promise.
        unsafe { pointer::give("forked", forked, headwise_sequence::of(created)) }
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
    let work =
        |cache: &mut Inner| stored!(&mut cache.stored, kind => kind.truncate(sequence, length));
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, work) }
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
    let work = |cache: &mut Inner| stored!(&mut cache.stored, kind => kind.evict(sequence, before));
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
    let work = |cache: &mut Inner| stored!(&mut cache.stored, kind => kind.release(sequence));
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, work) }
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
    let work = |cache: &Inner| {
        pointer::check_aligned("start", start)?;
        pointer::check_aligned("length", length)?;
        let extent = stored!(&cache.stored, kind => kind.extent(sequence)?);
        // SAFETY: the caller's promises.
        unsafe {
            pointer::give("start", start, extent.0)?;
            pointer::give("length", length, extent.1)
        }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { look(cache, error, work) }
}

/// The pages of a paged cache that no sequence holds.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_unused_pages(
    cache: *const headwise_cache,
    pages: *mut usize,
    error: *mut headwise_error,
) -> headwise_status {
    let work = |cache: &Inner| {
        pointer::check("pages", pages, "where the number goes")?;
        let unused = stored!(&cache.stored, kind => kind.paged()?.free_pages());
        // SAFETY: the caller's promise.
        unsafe { pointer::give("pages", pages, unused) }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { look(cache, error, work) }
}
