//! The block of keys and values at work: read where they lie if they are evenly spaced, and otherwise,
//! where a block has rows of several pages, gathered first. A page of 128 rows or more is read in place
//! as long as its rows are a multiple of that.

use crate::microkernel::BLOCK_KV;
use crate::pages::KvRows;
use crate::view::Rows;

/// The keys and the values of a block.
pub(super) struct CurrentBlock<'a> {
    first: usize,
    gathered: [&'a mut [f32]; 2],
    rows: [Where; 2],
}

/// Where a block's rows are.
#[derive(Clone, Copy)]
struct Where {
    ptr: *const f32,
    stride: isize,
    len: usize,
    width: usize,
}

impl<'a> CurrentBlock<'a> {
    /// None yet; `gathered` has room for a block of each, if the rows are paged.
    pub(super) fn new(gathered: [&'a mut [f32]; 2], head: [KvRows<'_, f32>; 2]) -> Self {
        let nowhere = |rows: KvRows<'_, f32>| Where {
            ptr: std::ptr::null(),
            stride: 0,
            len: 0,
            width: rows.width(),
        };
        Self { first: usize::MAX, gathered, rows: head.map(nowhere) }
    }

    /// Goes to the block at `first`, which must have a row.
    #[inline(always)]
    pub(super) fn enter(&mut self, first: usize, head: [KvRows<'_, f32>; 2]) {
        if self.first == first {
            return;
        }
        self.first = first;
        for n in 0..2 {
            let end = (first + BLOCK_KV).min(head[n].len());
            self.rows[n] = match head[n].even(first, end) {
                Some(rows) => Where {
                    ptr: rows.row(0),
                    stride: rows.stride(),
                    len: rows.len(),
                    width: rows.width(),
                },
                None => gather(&head[n], first..end, self.gathered[n]),
            };
        }
    }

    /// The block's keys (0) or values (1).
    #[inline(always)]
    pub(super) fn rows(&self, n: usize) -> Rows<'_, f32> {
        let Where { ptr, stride, len, width } = self.rows[n];
        // SAFETY: `enter` took these from rows that outlive the item, or they are those gathered, which
        // stay as they are until it is called again.
        unsafe { Rows::new(ptr, stride, len, width) }
    }
}

#[inline(never)]
fn gather(rows: &KvRows<'_, f32>, range: std::ops::Range<usize>, to: &mut [f32]) -> Where {
    let width = rows.width();
    let len = range.len();
    for (row, to) in range.zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(rows.slice(row));
    }
    assert!(to.len() >= len * width);
    Where { ptr: to.as_ptr(), stride: width as isize, len, width }
}
