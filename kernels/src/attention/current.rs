//! The block of keys and values at work: read where they lie if they are evenly spaced or in pages of 16,
//! 32 or 64 rows, or of a multiple of 128, and otherwise, where a block has rows of several pages,
//! gathered first.

use std::ops::Range;

use crate::microkernel::BLOCK_KV;
use crate::microkernel::block::BlockRows;
use crate::pages::KvRows;
use crate::view::Rows;

/// The keys and the values of a block.
pub(super) struct CurrentBlock<'a> {
    first: usize,
    gathered: [&'a mut [f32]; 2],
    rows: [BlockRows<'a>; 2],
}

impl<'a> CurrentBlock<'a> {
    /// None yet; `gathered` has room for a block of each, if the rows are paged.
    pub(super) fn new(gathered: [&'a mut [f32]; 2], head: [KvRows<'_, f32>; 2]) -> Self {
        let rows = head.map(|rows| BlockRows::even(Rows::dense(&[], rows.width())));
        Self { first: usize::MAX, gathered, rows }
    }

    /// Goes to the block at `first`, which must have a row.
    #[inline(always)]
    pub(super) fn enter(&mut self, first: usize, head: [KvRows<'a, f32>; 2]) {
        if self.first == first {
            return;
        }
        self.first = first;
        for n in 0..2 {
            let end = (first + BLOCK_KV).min(head[n].len());
            self.rows[n] = in_place(&head[n], first..end).unwrap_or_else(|| {
                // SAFETY: `rows` lends them no longer than until the next call.
                BlockRows::even(unsafe { gather(&head[n], first..end, self.gathered[n]) })
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
fn in_place<'a>(rows: &KvRows<'a, f32>, range: Range<usize>) -> Option<BlockRows<'a>> {
    if let Some(rows) = rows.even(range.start, range.end) {
        return Some(BlockRows::even(rows));
    }
    let (page, len) = (rows.page_rows()?, range.len());
    BlockRows::of_stretches(rows.stretches(range), (page, len))
}

/// The rows of `range`, in `to`.
///
/// # Safety
/// They must not be used any more when `to` is written to again.
#[inline(never)]
unsafe fn gather<'a>(rows: &KvRows<'_, f32>, range: Range<usize>, to: &mut [f32]) -> Rows<'a, f32> {
    let (width, len) = (rows.width(), range.len());
    assert!(to.len() >= len * width);
    let mut left = &mut to[..len * width];
    for stretch in rows.stretches(range) {
        let (part, rest) = left.split_at_mut(stretch.len() * width);
        left = rest;
        for (row, to) in part.chunks_exact_mut(width).enumerate() {
            to.copy_from_slice(stretch.slice(row));
        }
    }
    // SAFETY: `to` has as many floats, and the caller's promise.
    unsafe { Rows::new(to.as_ptr(), width as isize, len, width) }
}
