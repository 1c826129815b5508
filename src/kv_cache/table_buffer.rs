//! Page tables of chosen sequences, in memory that is kept.

use super::PageTables;
use crate::{Error, Result};

/// Room for the page tables of a call: filled by
/// [`PagedCache::fill_tables`](super::PagedCache::fill_tables), once for all layers, and allocating
/// nothing once it has been large enough.
#[derive(Debug, Clone, Default)]
pub struct TableBuffer {
    table: Vec<u32>,
    /// One less than [`PageTables::offsets`] as long as there is no sequence.
    offsets: Vec<usize>,
    lengths: Vec<usize>,
    starts: Vec<usize>,
}

impl TableBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer with room for so many sequences and so many pages of theirs in all.
    pub fn with_capacity(sequences: usize, pages: usize) -> Self {
        Self {
            table: Vec::with_capacity(pages),
            offsets: Vec::with_capacity(sequences.saturating_add(1)),
            lengths: Vec::with_capacity(sequences),
            starts: Vec::with_capacity(sequences),
        }
    }

    /// Makes room for so many sequences and so many pages of theirs in all, those that were filled in
    /// last included.
    ///
    /// # Errors
    /// [`Error::Overflow`] where there is no memory for it. What was filled in is as it was.
    pub fn reserve(&mut self, sequences: usize, pages: usize) -> Result<()> {
        let Self { table, offsets, lengths, starts } = self;
        let reserved = room(table, pages)
            && room(offsets, sequences.saturating_add(1))
            && room(lengths, sequences)
            && room(starts, sequences);
        if reserved {
            return Ok(());
        }
        Err(Error::Overflow {
            argument: "sequences",
            got: format!("tables of {sequences} sequences with {pages} pages"),
            expected: "an amount of memory that can be had".into(),
        })
    }

    /// What was filled in last.
    pub fn tables(&self) -> PageTables<'_> {
        PageTables {
            table: &self.table,
            offsets: if self.offsets.is_empty() { &[0] } else { &self.offsets },
            lengths: &self.lengths,
            starts: &self.starts,
        }
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.lengths.clear();
        self.starts.clear();
    }

    /// Adds a sequence whose pages hold its positions from page `first` on, counted from position
    /// 0.
    pub(super) fn push(&mut self, pages: &[u32], first: usize, length: usize, start: usize) {
        let turn = if pages.is_empty() { 0 } else { first % pages.len() };
        // Page n of the sequence stands at n modulo their number.
        let (front, back) = pages.split_at(pages.len() - turn);
        self.table.extend_from_slice(back);
        self.table.extend_from_slice(front);
        self.offsets.push(self.table.len());
        self.lengths.push(length);
        self.starts.push(start);
    }
}

/// Whether there is room for `count` items in all, now.
fn room<T>(list: &mut Vec<T>, count: usize) -> bool {
    list.try_reserve(count.saturating_sub(list.len())).is_ok()
}
