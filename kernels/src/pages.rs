//! Keys and values in pages of a pool.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::problem::{check_unit_inner_stride, shape_error, value_error};
use crate::view::{Rows, Shape, Strides, View};

/// Which pages hold which positions of which sequence. Position `p` of sequence `s` lies in row `p %
/// page_size` of page `pages[(p / page_size) % pages.len()]`, `pages` being
/// `table[offsets[s]..offsets[s + 1]]`: a contiguous cache has one page for a sequence, and a ring is
/// a table that wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageTables<'a> {
    /// The pages of all sequences, one sequence behind the other.
    pub table: &'a [u32],
    /// Where each sequence's pages begin, and where the last one's end: one more than sequences.
    pub offsets: &'a [usize],
    /// The tokens of each sequence so far, those that exist no more included.
    pub lengths: &'a [usize],
    /// The first position of each sequence that still exists.
    pub starts: &'a [usize],
}

impl<'a> PageTables<'a> {
    /// The pages of a sequence, which must exist.
    pub(crate) fn of(&self, sequence: usize) -> &'a [u32] {
        &self.table[self.offsets[sequence]..self.offsets[sequence + 1]]
    }

    /// The page and the row that hold a position of a sequence, if it exists.
    pub fn place(
        &self,
        page_size: usize,
        sequence: usize,
        position: usize,
    ) -> Option<(usize, usize)> {
        let exists = *self.starts.get(sequence)?..*self.lengths.get(sequence)?;
        let pages = *self.offsets.get(sequence)?..*self.offsets.get(sequence + 1)?;
        let pages = self.table.get(pages).filter(|pages| !pages.is_empty() && page_size > 0)?;
        exists.contains(&position).then(|| place(pages, page_size, position))
    }

    /// Checks that pools of keys and values, `[pages, kv_heads, page_size, dim]`, fit each other, and
    /// that the tables stay within them.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Stride`] or [`Error::Value`] with what does not fit.
    pub fn check<K, V>(&self, key: &View<'_, K>, value: &View<'_, V>) -> Result<()> {
        self.check_pools((key.shape(), key.strides()), (value.shape(), value.strides()))
    }

    /// The same of the pools' extents and strides.
    pub(crate) fn check_pools(&self, key: (Shape, Strides), value: (Shape, Strides)) -> Result<()> {
        let [pages, heads, page_size, _] = key.0;
        if value.0[..3] != key.0[..3] {
            let expected =
                format!("[{pages}, {heads}, {page_size}, value_dim], as the pool of keys");
            return shape_error("value", value.0, expected);
        }
        if page_size == 0 {
            return value_error("page_size", 0, "at least 1".into());
        }
        for (argument, (shape, strides)) in [("key", key), ("value", value)] {
            check_unit_inner_stride(argument, shape, strides)?;
        }
        self.check_tables(pages, page_size)
    }

    /// Whether they stay within so many pages of so many rows.
    fn check_tables(&self, pages: usize, page_size: usize) -> Result<()> {
        let sequences = self.lengths.len();
        self.check_extents(sequences)?;
        if let Some(page) = self.table.iter().find(|&&page| page as usize >= pages) {
            return value_error("table", page, format!("below {pages}, the pages there are"));
        }
        for sequence in 0..sequences {
            let (begin, end) = (self.offsets[sequence], self.offsets[sequence + 1]);
            if begin > end || end > self.table.len() {
                let got = format!("{begin} to {end} of sequence {sequence}");
                let expected = format!("not to decrease, up to {}", self.table.len());
                return value_error("offsets", format_args!("{got}"), expected);
            }
            let (start, length) = (self.starts[sequence], self.lengths[sequence]);
            if start > length {
                let got = format!("{start} of sequence {sequence}");
                return value_error(
                    "starts",
                    format_args!("{got}"),
                    format!("at most its length, {length}"),
                );
            }
            let rows = (end - begin).saturating_mul(page_size);
            if length - start > rows {
                let got = format!("{start} to {length} of sequence {sequence}");
                let expected = format!("at most {rows} positions, the rows of its pages");
                return value_error("lengths", format_args!("{got}"), expected);
            }
        }
        Ok(())
    }

    /// Whether there are as many entries as sequences.
    fn check_extents(&self, sequences: usize) -> Result<()> {
        let counts = [
            ("starts", self.starts.len(), sequences),
            ("offsets", self.offsets.len(), sequences + 1),
        ];
        for (argument, got, expected) in counts {
            if got != expected {
                return Err(Error::Shape {
                    argument,
                    got: format!("[{got}]"),
                    expected: format!("[{expected}], for {sequences} sequences"),
                });
            }
        }
        let ends = (self.offsets.first().copied(), self.offsets.last().copied());
        if ends != (Some(0), Some(self.table.len())) {
            let got = format!("{ends:?} at its ends");
            let expected = format!("0 first and {} last, the table's length", self.table.len());
            return value_error("offsets", format_args!("{got}"), expected);
        }
        Ok(())
    }
}

/// The page and the row that hold a position.
#[inline(always)]
fn place(pages: &[u32], page_size: usize, position: usize) -> (usize, usize) {
    (pages[position / page_size % pages.len()] as usize, position % page_size)
}

/// The keys or values of one head of a sequence: evenly spaced, or in pages.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KvRows<'a, T> {
    Even(Rows<'a, T>),
    Paged(PagedRows<'a, T>),
}

/// Rows in pages, each of which holds them evenly spaced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PagedRows<'a, T> {
    /// Those of the pool's first page.
    page: Rows<'a, T>,
    /// Elements from a page to the next of the pool.
    stride: isize,
    table: &'a [u32],
    len: usize,
}

impl<'a, T: Copy> PagedRows<'a, T> {
    /// `len` rows in the pages of a table, which must not be empty and name pages of the pool alone, as
    /// [`PageTables::check`] says.
    pub(crate) fn new(page: Rows<'a, T>, stride: isize, table: &'a [u32], len: usize) -> Self {
        Self { page, stride, table, len }
    }

    /// The page that holds row `index`, below `len`, and where in it.
    fn place(&self, index: usize) -> (Rows<'a, T>, usize) {
        let (page, row) = place(self.table, self.page.len(), index);
        (self.page.moved((page as isize).wrapping_mul(self.stride)), row)
    }
}

impl<'a, T: Copy> KvRows<'a, T> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Even(rows) => rows.len(),
            Self::Paged(rows) => rows.len,
        }
    }

    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Even(rows) => rows.width(),
            Self::Paged(rows) => rows.page.width(),
        }
    }

    /// Row `index`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub(crate) fn slice(&self, index: usize) -> &'a [T] {
        match self {
            Self::Even(rows) => rows.slice(index),
            Self::Paged(rows) => {
                assert!(index < rows.len, "row {index} of {}", rows.len);
                let (page, row) = rows.place(index);
                page.slice(row)
            }
        }
    }

    /// The rows from `first` to `end`, if they are evenly spaced.
    ///
    /// # Panics
    /// Where there are no such rows.
    #[inline(always)]
    pub(crate) fn even(&self, first: usize, end: usize) -> Option<Rows<'a, T>> {
        match self {
            Self::Even(rows) => Some(rows.part(first, end - first)),
            Self::Paged(rows) => {
                assert!(first < end && end <= rows.len);
                let (page, row) = rows.place(first);
                (row + (end - first) <= page.len()).then(|| page.part(row, end - first))
            }
        }
    }

    /// The rows of a page, if there are pages.
    pub(crate) fn page_rows(&self) -> Option<usize> {
        match self {
            Self::Even(_) => None,
            Self::Paged(rows) => Some(rows.page.len()),
        }
    }

    /// The rows of `range` in stretches that are evenly spaced each.
    ///
    /// # Panics
    /// As it goes, where there are no such rows.
    pub(crate) fn stretches(self, range: Range<usize>) -> impl Iterator<Item = Rows<'a, T>> {
        let mut first = range.start;
        std::iter::from_fn(move || {
            if first >= range.end {
                return None;
            }
            let rows = match &self {
                Self::Even(rows) => rows.part(first, range.end - first),
                Self::Paged(rows) => {
                    assert!(range.end <= rows.len);
                    let (page, row) = rows.place(first);
                    page.part(row, (range.end - first).min(page.len() - row))
                }
            };
            first += rows.len();
            Some(rows)
        })
    }
}
