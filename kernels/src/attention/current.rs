//! The block of keys and values at work: read where they lie if they are floats, evenly spaced or in
//! pages of 16, 32 or 64 rows, or of a multiple of 128. Otherwise, where a block has rows of several
//! pages or its numbers are narrower, they are gathered first and widened on the way.

use std::ops::Range;

use crate::microkernel::BLOCK_KV;
use crate::microkernel::block::BlockRows;
use crate::microkernel::widen::Widen;
use crate::simd::Simd;
use crate::storage::{Format, StoredRows, with_stored};
use crate::view::Rows;

/// The keys and the values of a block.
pub(super) struct CurrentBlock<'a> {
    first: usize,
    gathered: [&'a mut [f32]; 2],
    rows: [BlockRows<'a>; 2],
}

impl<'a> CurrentBlock<'a> {
    /// None yet; `gathered` has room for a block of each, if the rows are paged or narrower than floats.
    pub(super) fn new(gathered: [&'a mut [f32]; 2], head: [StoredRows<'_>; 2]) -> Self {
        let rows = head.map(|of| BlockRows::even(Rows::dense(&[], of.width())));
        Self { first: usize::MAX, gathered, rows }
    }

    /// Goes to the block at `first`, which must have a row.
    #[inline(always)]
    pub(super) fn enter<S: Simd>(&mut self, simd: S, first: usize, head: [StoredRows<'a>; 2]) {
        if self.first == first {
            return;
        }
        self.first = first;
        for n in 0..2 {
            let end = (first + BLOCK_KV).min(head[n].rows.len());
            self.rows[n] = in_place(&head[n], first..end).unwrap_or_else(|| {
                // SAFETY: `rows` lends them no longer than until the next call.
                BlockRows::even(unsafe { gather(simd, &head[n], first..end, self.gathered[n]) })
            });
        }
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
    if of.format != Format::Native {
        return None;
    }
    // SAFETY: the format says that they are floats.
    let floats = |rows: Rows<'a, u8>| unsafe { rows.typed::<f32>() };
    if let Some(rows) = of.rows.even(range.start, range.end) {
        return Some(BlockRows::even(floats(rows)));
    }
    let (page, len) = (of.rows.page_rows()?, range.len());
    BlockRows::of_stretches(of.rows.stretches(range).map(floats), (page, len))
}

/// The rows of `range`, in `to`.
///
/// # Safety
/// They must not be used any more when `to` is written to again.
#[inline(never)]
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
            let rows = unsafe { stretch.typed::<E>() };
            simd.vectorize(Widen { rows, to: part });
        });
    }
    // SAFETY: `to` has as many floats, and the caller's promise.
    unsafe { Rows::new(to.as_ptr(), width as isize, len, width) }
}
