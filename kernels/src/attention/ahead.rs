//! Fetching ahead: while one item is computed, the rows that the thread will want next come into
//! its cache, a few lines between micro-tiles. A head's queries, keys and values begin in a new
//! place, so hardware finds them only by missing; for short sequences those misses are a tenth of
//! the time. Within an item hardware does well alone.

use crate::plan::{self, Plan};
use crate::problem::Problem;
use crate::simd::prefetch;

/// The rows of one item, fetched in steps.
pub(crate) struct Ahead<'a, 'p> {
    problem: &'a Problem<'p, f32>,
    plan: &'a Plan,
    item: plan::Item,
    /// The next row: the item's queries, then its keys, then its values.
    next: usize,
    /// Keys, and as many values, to fetch: none where the current item has them.
    keys: usize,
}

/// Floats in a cache line.
const LINE: usize = 16;
/// Floats that a step fetches.
const STEP: usize = 32 * LINE;
/// Bytes of keys, and again of values, that are fetched at most: what a core's cache has room for
/// beside the current item.
const MOST: usize = 128 << 10;

impl<'a, 'p> Ahead<'a, 'p> {
    /// Fetches `item`, which comes after one of head `(batch, kv_head)`.
    pub(crate) fn new(
        (problem, plan): (&'a Problem<'p, f32>, &'a Plan),
        item: plan::Item,
        current: (usize, usize),
    ) -> Self {
        let dims = problem.dims();
        let widest = dims.head_dim.max(dims.value_dim);
        let keys = if (item.batch, item.kv_head) == current {
            0
        } else {
            dims.seq_kv.min(MOST / size_of::<f32>() / widest)
        };
        Self { problem, plan, item, next: 0, keys }
    }

    /// Asks for some more lines.
    pub(crate) fn step(&mut self) {
        let mut asked = 0;
        while asked < STEP {
            let Some((row, width)) = self.row() else { return };
            self.next += 1;
            for column in (0..width).step_by(LINE) {
                prefetch(row.wrapping_add(column));
            }
            asked += width;
        }
    }

    /// The address and the length of the next row.
    fn row(&self) -> Option<(*const f32, usize)> {
        let (problem, item) = (self.problem, &self.item);
        let dims = problem.dims();
        let mut n = self.next;
        if n < item.rows.len() {
            let (head, i) = self.plan.query_row(item.kv_head, item.rows.start + n);
            return Some((problem.query.row(item.batch, head, i), dims.head_dim));
        }
        n -= item.rows.len();
        if n < self.keys {
            return Some((problem.key.row(item.batch, item.kv_head, n), dims.head_dim));
        }
        n -= self.keys;
        (n < self.keys).then(|| (problem.value.row(item.batch, item.kv_head, n), dims.value_dim))
    }
}
