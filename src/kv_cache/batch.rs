//! What contiguous and ring caches share: a page for each sequence of a batch.

use super::marks::Marks;
use super::pool::Pool;
use super::shape::at_least_one;
use super::{KvShape, KvView, NewTokens, PageTables, value_error};
use crate::{Error, Result};

/// What happens to tokens beyond the capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    /// They are refused.
    Refused,
    /// They take the places of the oldest.
    Wraps,
}

#[derive(Debug, Clone)]
pub(super) struct Batch {
    pool: Pool,
    beyond: Beyond,
    lengths: Vec<usize>,
    starts: Vec<usize>,
    /// Page `s` is that of sequence `s`.
    table: Vec<u32>,
    offsets: Vec<usize>,
    marks: Marks,
}

impl Batch {
    pub(super) fn new(
        shape: KvShape,
        batch: usize,
        capacity: usize,
        beyond: Beyond,
    ) -> Result<Self> {
        at_least_one("batch", batch)?;
        at_least_one("capacity", capacity)?;
        let Ok(pages) = u32::try_from(batch) else {
            return Err(value_error("batch", batch, format!("at most {}", u32::MAX)));
        };
        Ok(Self {
            pool: Pool::new(shape, batch, capacity)?,
            beyond,
            lengths: vec![0; batch],
            starts: vec![0; batch],
            table: (0..pages).collect(),
            offsets: (0..=batch).collect(),
            marks: Marks::new(batch),
        })
    }

    pub(super) fn shape(&self) -> KvShape {
        self.pool.shape()
    }

    pub(super) fn capacity(&self) -> usize {
        self.pool.page_size()
    }

    pub(super) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    pub(super) fn starts(&self) -> &[usize] {
        &self.starts
    }

    pub(super) fn view(&self) -> KvView<'_> {
        let tables = PageTables {
            table: &self.table,
            offsets: &self.offsets,
            lengths: &self.lengths,
            starts: &self.starts,
        };
        KvView::of_cache(self.pool.key(), self.pool.value(), tables)
    }

    /// Appends to the named sequences, or to all.
    pub(super) fn append(
        &mut self,
        sequences: Option<&[usize]>,
        tokens: &NewTokens<'_>,
    ) -> Result<()> {
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
        let free = match self.beyond {
            Beyond::Refused => self.capacity() - length,
            Beyond::Wraps => usize::MAX - length,
        };
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

    /// Forgets the tokens from position `length` on.
    pub(super) fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
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
    pub(super) fn clear(&mut self, sequence: usize) -> Result<()> {
        self.check_sequence(sequence)?;
        self.pool.poison(sequence, 0..self.capacity());
        (self.lengths[sequence], self.starts[sequence]) = (0, 0);
        Ok(())
    }

    pub(super) fn clear_all(&mut self) {
        (0..self.lengths.len()).for_each(|sequence| self.pool.poison(sequence, 0..self.capacity()));
        self.lengths.fill(0);
        self.starts.fill(0);
    }

    /// Moves everything to memory for `capacity` tokens, if that is more than there are.
    pub(super) fn reserve(&mut self, capacity: usize) -> Result<()> {
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
