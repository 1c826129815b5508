//! The block of keys and values at work: read where they lie if they are evenly spaced, and otherwise,
//! where a block has rows of several pages, gathered first. A page of 128 rows or more is read in place
//! as long as its rows are a multiple of that.

use std::ops::Range;

use crate::microkernel::BLOCK_KV;
use crate::pages::KvRows;
use crate::view::Rows;

/// The keys and the values of a block.
pub(super) struct CurrentBlock<'a> {
    first: usize,
    gathered: [&'a mut [f32]; 2],
    rows: [Rows<'a, f32>; 2],
}

impl<'a> CurrentBlock<'a> {
    /// None yet; `gathered` has room for a block of each, if the rows are paged.
    pub(super) fn new(gathered: [&'a mut [f32]; 2], head: [KvRows<'_, f32>; 2]) -> Self {
        let rows = head.map(|rows| Rows::dense(&[], rows.width()));
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
            self.rows[n] = match head[n].even(first, end) {
                Some(rows) => rows,
                // SAFETY: `rows` lends them no longer than until the next call.
                None => unsafe { gather(&head[n], first..end, self.gathered[n]) },
            };
        }
    }

    /// The block's keys (0) or values (1).
    #[inline(always)]
    pub(super) fn rows(&self, n: usize) -> Rows<'_, f32> {
        self.rows[n]
    }
}

/// The rows of `range`, in `to`.
///
/// # Safety
/// They must not be used any more when `to` is written to again.
#[inline(never)]
unsafe fn gather<'a>(rows: &KvRows<'_, f32>, range: Range<usize>, to: &mut [f32]) -> Rows<'a, f32> {
    let (width, len) = (rows.width(), range.len());
    assert!(to.len() >= len * width);
    for (row, to) in range.zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(rows.slice(row));
    }
    // SAFETY: `to` has as many floats, and the caller's promise.
    unsafe { Rows::new(to.as_ptr(), width as isize, len, width) }
}
