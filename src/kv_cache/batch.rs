//! Caches of a page for each sequence of a batch.

use std::marker::PhantomData;

use super::lists::list;
use super::marks::Marks;
use super::pool::Pool;
use super::shape::at_least_one;
use super::{KvShape, KvView, NewTokens, PageTables, value_error};
use crate::{Error, KvStorage, Result};

mod sealed {
    /// What happens to tokens beyond the capacity.
    pub trait Kind {
        /// They take the places of the oldest, and are not refused.
        const WRAPS: bool;
    }
}
pub(super) use sealed::Kind;

/// Keys and values of a batch of sequences, each in a page of its own, `[batch, kv_heads, capacity,
/// dim]`, stored as `T` and allocated once: a [`ContiguousCache`](super::ContiguousCache) or a
/// [`RingCache`](super::RingCache).
#[derive(Debug, Clone)]
pub struct BatchCache<K, T: KvStorage = f32> {
    pool: Pool<T>,
    lengths: Vec<usize>,
    starts: Vec<usize>,
    /// Page `s` is that of sequence `s`.
    table: Vec<u32>,
    offsets: Vec<usize>,
    marks: Marks,
    kind: PhantomData<K>,
}

impl<K: Kind> BatchCache<K> {
    /// An empty cache of `batch` sequences of `capacity` tokens, in `f32`.
    ///
    /// # Errors
    /// [`Error::Value`] where an extent is 0, [`Error::Overflow`] where there is not as much memory.
    pub fn new(shape: KvShape, batch: usize, capacity: usize) -> Result<Self> {
        Self::with_storage(shape, batch, capacity)
    }
}

impl<K: Kind, T: KvStorage<Compute = f32>> BatchCache<K, T> {
    /// An empty cache of `batch` sequences of `capacity` tokens, whose type says how they are stored:
    ///
    /// ```
    /// use headwise::kv_cache::{ContiguousCache, KvShape};
    ///
    /// let shape = KvShape { kv_heads: 2, head_dim: 64, value_dim: 64 };
    /// let half_the_bytes = ContiguousCache::<headwise::bf16>::with_storage(shape, 1, 4096)?;
    /// # Ok::<(), headwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Value`] where an extent is 0, [`Error::Overflow`] where there is not as much memory.
    pub fn with_storage(shape: KvShape, batch: usize, capacity: usize) -> Result<Self> {
        at_least_one("batch", batch)?;
        at_least_one("capacity", capacity)?;
        let Ok(pages) = u32::try_from(batch) else {
            return Err(value_error("batch", batch, format!("at most {}", u32::MAX)));
        };
        Ok(Self {
            pool: Pool::new(shape, batch, capacity)?,
            lengths: list("batch", std::iter::repeat_n(0, batch))?,
            starts: list("batch", std::iter::repeat_n(0, batch))?,
            table: list("batch", 0..pages)?,
            offsets: list("batch", 0..batch.saturating_add(1))?,
            marks: Marks::new(batch)?,
            kind: PhantomData,
        })
    }

    /// What a token is.
    pub fn shape(&self) -> KvShape {
        self.pool.shape()
    }

    /// The tokens of a sequence that there is room for.
    pub fn capacity(&self) -> usize {
        self.pool.page_size()
    }

    /// The tokens of each sequence, those that are gone included.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The first position of each sequence that still exists: above 0 in a ring alone.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// What attention reads: all sequences, in order.
    pub fn view(&self) -> KvView<'_, T> {
        let tables = PageTables {
            table: &self.table,
            offsets: &self.offsets,
            lengths: &self.lengths,
            starts: &self.starts,
        };
        KvView::of_cache(self.pool.key(), self.pool.value(), tables)
    }

    /// Appends to every sequence; in a ring in the places of its oldest tokens, and of more tokens than
    /// the capacity the last are kept.
    ///
    /// # Errors
    /// [`Error::Exhausted`] where a sequence that is no ring would grow beyond the capacity,
    /// [`Error::Shape`] or [`Error::Value`] where the tokens do not fit the cache, their norm or their
    /// rope. The cache is as it was then.
    pub fn append(&mut self, tokens: &NewTokens<'_>) -> Result<()> {
        self.append_named(None, tokens)
    }

    /// Appends to the sequences that are named, each once, in the order of the tokens.
    ///
    /// # Errors
    /// As [`BatchCache::append`], and [`Error::Value`] where a sequence is not there or named twice.
    pub fn append_to(&mut self, sequences: &[usize], tokens: &NewTokens<'_>) -> Result<()> {
        self.append_named(Some(sequences), tokens)
    }

    fn append_named(&mut self, sequences: Option<&[usize]>, tokens: &NewTokens<'_>) -> Result<()> {
        let count = sequences.map_or(self.lengths.len(), <[_]>::len);
        tokens.check(self.shape(), count)?;
        self.marks.next_call();
        for nth in 0..count {
            self.check_append(sequences.map_or(nth, |named| named[nth]), nth, tokens)?;
        }
        for nth in 0..count {
            self.write(sequences.map_or(nth, |named| named[nth]), nth, tokens);
        }
        Ok(())
    }

    /// Whether the call's sequence `nth`, which is `sequence` here, can be appended to.
    fn check_append(&mut self, sequence: usize, nth: usize, tokens: &NewTokens<'_>) -> Result<()> {
        self.check_sequence(sequence)?;
        if !self.marks.first(sequence) {
            return Err(value_error("sequences", sequence, "each sequence once"));
        }
        let (run, length) = (tokens.run(nth), self.lengths[sequence]);
        let free = if K::WRAPS { usize::MAX } else { self.capacity() } - length;
        if run.count > free {
            let expected = format!("at most {} tokens in sequence {sequence}", self.capacity());
            return Err(Error::Exhausted {
                argument: "capacity",
                needed: run.count,
                free,
                expected,
            });
        }
        tokens.check_positions(run, length)
    }

    fn write(&mut self, sequence: usize, nth: usize, tokens: &NewTokens<'_>) {
        let (run, length, capacity) = (tokens.run(nth), self.lengths[sequence], self.capacity());
        // What would be overwritten in the same call is not written.
        let mut token = run.count.saturating_sub(capacity);
        while token < run.count {
            let row = (length + token) % capacity;
            let next = run.count.min(token + capacity - row);
            tokens.write((run, length), token..next, &mut self.pool, (sequence, row));
            token = next;
        }
        self.lengths[sequence] = length + run.count;
        let oldest = self.lengths[sequence].saturating_sub(capacity);
        self.starts[sequence] = self.starts[sequence].max(oldest);
    }

    /// Forgets the tokens of a sequence from position `length` on, such as rejected drafts. Those that
    /// they overwrote in a ring do not come back.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence, or `length` is not among the positions that
    /// exist.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
        self.check_sequence(sequence)?;
        check_cut("length", length, (self.starts[sequence], self.lengths[sequence]))?;
        let capacity = self.capacity();
        for position in length..self.lengths[sequence] {
            let row = position % capacity;
            self.pool.poison(sequence, row..row + 1);
        }
        self.lengths[sequence] = length;
        Ok(())
    }

    /// Makes a sequence empty, from position 0 on.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence.
    pub fn clear(&mut self, sequence: usize) -> Result<()> {
        self.check_sequence(sequence)?;
        self.pool.poison(sequence, 0..self.capacity());
        (self.lengths[sequence], self.starts[sequence]) = (0, 0);
        Ok(())
    }

    /// Makes all sequences empty, from position 0 on.
    pub fn clear_all(&mut self) {
        (0..self.lengths.len()).for_each(|sequence| self.pool.poison(sequence, 0..self.capacity()));
        self.lengths.fill(0);
        self.starts.fill(0);
    }

    /// Grows the capacity to `capacity`, by copying everything to new memory; does nothing where it is
    /// as large.
    ///
    /// # Errors
    /// [`Error::Overflow`] where there is not as much memory. The cache is as it was then.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if capacity <= self.capacity() {
            return Ok(());
        }
        let mut pool = Pool::new(self.shape(), self.lengths.len(), capacity)?;
        for (sequence, (&start, &length)) in self.starts.iter().zip(&self.lengths).enumerate() {
            let mut position = start;
            while position < length {
                let (from, to) = (position % self.capacity(), position % capacity);
                let count = (length - position).min(self.capacity() - from).min(capacity - to);
                pool.copy_from(&self.pool, sequence, from..from + count, to);
                position += count;
            }
        }
        self.pool = pool;
        Ok(())
    }

    fn check_sequence(&self, sequence: usize) -> Result<()> {
        let batch = self.lengths.len();
        if sequence < batch {
            return Ok(());
        }
        Err(value_error("sequence", sequence, format!("below {batch}, the batch")))
    }
}

/// Whether a sequence of which `start..length` exists can be cut at a position.
pub(super) fn check_cut(
    argument: &'static str,
    at: usize,
    (start, length): (usize, usize),
) -> Result<()> {
    if (start..=length).contains(&at) {
        return Ok(());
    }
    let expected = format!("{start} to {length}, the positions that exist");
    Err(value_error(argument, at, expected))
}
