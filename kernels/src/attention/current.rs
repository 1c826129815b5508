//! The block of keys and values at work: read where they lie if they are evenly spaced or in pages of 16,
//! 32 or 64 rows, or of a multiple of 128, and floats. Otherwise, where a block has rows of several pages,
//! they are gathered first. Narrower numbers are widened on the way, so that all of an item's tiles read
//! floats; of few rows, which read each number once, the kernels widen them as they read. Where `bf16` is
//! multiplied in pairs, keys are pairs as they lie, and values are paired with those of the next key here.

use std::ops::Range;

use super::ahead::Ahead;
use crate::microkernel::BLOCK_KV;
use crate::microkernel::block::BlockRows;
use crate::microkernel::pairs::Interleave;
use crate::microkernel::widen::Widen;
use crate::simd::Simd;
use crate::storage::{Format, StoredRows, with_stored};
use crate::view::Rows;

/// What kernels read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Floats.
    Floats,
    /// Numbers as they are stored.
    Narrow,
    /// Pairs of `bf16`; the head's keys are such already.
    Pairs,
}

/// The keys and the values of a block.
pub(super) struct CurrentBlock<'a> {
    read: Read,
    first: usize,
    gathered: [&'a mut [f32]; 2],
    rows: [BlockRows<'a>; 2],
}

impl<'a> CurrentBlock<'a> {
    /// None yet; `gathered` has room for a block of each, if the rows are paged or narrower than floats.
    pub(super) fn new(gathered: [&'a mut [f32]; 2], head: [StoredRows<'_>; 2], read: Read) -> Self {
        let rows = head.map(|of| BlockRows::even(Rows::dense(&[], of.rows.width()), of.format));
        Self { read, first: usize::MAX, gathered, rows }
    }

    /// Whether numbers are multiplied in pairs of `bf16`.
    pub(super) fn is_in_pairs(&self) -> bool {
        self.read == Read::Pairs
    }

    /// Goes to the block at `first`, which must have a row.
    #[inline(always)]
    pub(super) fn enter<S: Simd>(
        &mut self,
        simd: S,
        first: usize,
        head: [StoredRows<'a>; 2],
        ahead: &mut Ahead<'_>,
    ) {
        if self.first == first {
            return;
        }
        self.first = first;
        for n in 0..2 {
            if const { S::BF16_DOTS } && n == 1 && self.is_in_pairs() {
                self.interleave(simd, &head[n], ahead);
                continue;
            }
            let end = (first + BLOCK_KV).min(head[n].rows.len());
            let readable = self.read == Read::Narrow || head[n].format == Format::Native;
            match readable.then(|| in_place(&head[n], first..end)).flatten() {
                Some(rows) => self.rows[n] = rows,
                None => self.gather(simd, n, &head[n]),
            }
        }
    }

    /// Makes floats of the block's keys (0) or values (1) if they are narrower, for kernels that read
    /// nothing else.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(&mut self, simd: S, n: usize, head: [StoredRows<'a>; 2]) {
        if self.rows[n].format() != Format::Native {
            self.gather(simd, n, &head[n]);
        }
    }

    /// Makes the block's keys (0) or values (1) floats in scratch.
    #[inline(never)]
    fn gather<S: Simd>(&mut self, simd: S, n: usize, of: &StoredRows<'_>) {
        let end = (self.first + BLOCK_KV).min(of.rows.len());
        // SAFETY: `rows` lends them no longer than until the next call.
        let rows = unsafe { gather(simd, of, self.first..end, self.gathered[n]) };
        self.rows[n] = BlockRows::even(rows.bytes(), Format::Native);
    }

    /// Pairs the block's values in scratch.
    #[inline(never)]
    fn interleave<S: Simd>(&mut self, simd: S, of: &StoredRows<'_>, ahead: &mut Ahead<'_>) {
        let keys = self.first..(self.first + BLOCK_KV).min(of.rows.len());
        let (width, rows) = (of.width(), keys.len().div_ceil(2));
        let to = &mut *self.gathered[1];
        let fetch = ahead.is_few().then_some(&mut ahead.fetch);
        simd.vectorize(Interleave { of, keys, to, fetch });
        // SAFETY: `to` has as many floats, which is checked there, and `rows` lends them no longer than until
        // the next call.
        let rows = unsafe { Rows::new(to.as_ptr(), width as isize, rows, width) };
        self.rows[1] = BlockRows::even(rows.bytes(), Format::Native);
    }

    /// The block's keys (0) or values (1).
    #[inline(always)]
    pub(super) fn rows(&self, n: usize) -> &BlockRows<'_> {
        &self.rows[n]
    }
}

/// The rows of `range`, a block, if kernels can read them where they lie.
#[inline(always)]
fn in_place<'a>(of: &StoredRows<'a>, range: Range<usize>) -> Option<BlockRows<'a>> {
    if let Some(rows) = of.rows.even(range.start, range.end) {
        return Some(BlockRows::even(rows, of.format));
    }
    let (page, len) = (of.rows.page_rows()?, range.len());
    BlockRows::of_stretches(of.rows.stretches(range), (page, len), of.format)
}

/// The rows of `range`, in `to`.
///
/// # Safety
/// They must not be used any more when `to` is written to again.
unsafe fn gather<'a, S: Simd>(
    simd: S,
    of: &StoredRows<'_>,
    range: Range<usize>,
    to: &mut [f32],
) -> Rows<'a, f32> {
    let (width, len) = (of.width(), range.len());
    assert!(to.len() >= len * width);
    let mut left = &mut to[..len * width];
    for stretch in of.rows.stretches(range) {
        let (part, rest) = left.split_at_mut(stretch.len() * width);
        left = rest;
        with_stored!(of.format, E => {
            // SAFETY: the format says that they are such numbers.
            simd.vectorize(unsafe { Widen::<E>::new(stretch, part) });
        });
    }
    // SAFETY: `to` has as many floats, and the caller's promise.
    unsafe { Rows::new(to.as_ptr(), width as isize, len, width) }
}
