//! Fetching ahead: what a thread will read next comes into its cache a few rows at a time, between
//! micro-tiles. There are two things that hardware finds only by missing: the next block of a long
//! sequence's keys and values, which lie in the outer cache or in memory, and the rows with which
//! the thread's next item begins, in a new place. Both are spread evenly over the time until they
//! are wanted, so that they neither wait in line nor leave the cache again.

use crate::microkernel::{BLOCK_KV, GROUP};
use crate::plan::{self, Plan};
use crate::problem::Problem;
use crate::simd::prefetch;
use crate::view::Rows;
use std::ops::Range;

/// The rows to fetch while one item is computed.
pub(crate) struct Ahead<'a, 'p> {
    /// The keys and values of the item's head.
    head: [Rows<'p, f32>; 2],
    /// The keys of the next block: rows of both in turn.
    block: Range<usize>,
    block_pace: Pace,
    next: Option<Next<'a, 'p>>,
    next_pace: Pace,
}

/// An item to come.
struct Next<'a, 'p> {
    problem: &'a Problem<'p, f32>,
    plan: &'a Plan,
    item: plan::Item,
    /// Its first block's keys and values, unless the current item has them.
    keys: Range<usize>,
}

/// A number of rows in a number of steps.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    next: usize,
    rows: usize,
    /// Parts of a row, and how many a step adds.
    owed: usize,
    rate: usize,
}

impl Pace {
    const PARTS: usize = 256;

    fn new(rows: usize, steps: usize) -> Self {
        let rate = rows.saturating_mul(Self::PARTS).div_ceil(steps.max(1));
        Self { next: 0, rows, owed: 0, rate }
    }

    /// The rows of one step.
    fn step(&mut self) -> Range<usize> {
        self.owed += self.rate;
        let end = (self.next + self.owed / Self::PARTS).min(self.rows);
        self.owed %= Self::PARTS;
        std::mem::replace(&mut self.next, end)..end
    }
}

impl<'a, 'p> Ahead<'a, 'p> {
    /// For an item of the head `(batch, kv_head)`, after which `next` will probably come.
    pub(crate) fn new(
        (problem, plan): (&'a Problem<'p, f32>, &'a Plan),
        head: (usize, usize),
        next: Option<plan::Item>,
    ) -> Self {
        let next = next.map(|item| {
            let keys = if (item.batch, item.kv_head) == head {
                0..0
            } else {
                let (_, query) = plan.query_row(item.kv_head, item.rows.start);
                let keys = problem.visible_keys(item.batch, query);
                keys.start..keys.end.min(keys.start + BLOCK_KV)
            };
            Next { problem, plan, item, keys }
        });
        Self {
            head: [problem.key.rows(head.0, head.1), problem.value.rows(head.0, head.1)],
            block: 0..0,
            block_pace: Pace::default(),
            next,
            next_pace: Pace::default(),
        }
    }

    /// The item sees about `keys` keys with `tiles` tiles.
    pub(crate) fn begin(&mut self, keys: usize, tiles: usize) {
        let rows = self.next.as_ref().map_or(0, Next::rows);
        self.next_pace = Pace::new(rows, keys.div_ceil(GROUP).saturating_mul(tiles));
    }

    /// The item's `tiles` tiles are at a block after which `keys` will come.
    pub(crate) fn block(&mut self, keys: Range<usize>, tiles: usize) {
        self.block_pace = Pace::new(2 * keys.len(), tiles * (BLOCK_KV / GROUP));
        self.block = keys;
    }

    /// Asks for some more rows.
    pub(crate) fn step(&mut self) {
        for n in self.block_pace.step() {
            let rows = &self.head[n % 2];
            fetch(rows.row(self.block.start + n / 2), rows.width());
        }
        if let Some(next) = &self.next {
            for n in self.next_pace.step() {
                let (row, width) = next.row(n);
                fetch(row, width);
            }
        }
    }
}

impl Next<'_, '_> {
    fn rows(&self) -> usize {
        self.item.rows.len() + 2 * self.keys.len()
    }

    /// The address and the length of the `n`th row.
    fn row(&self, n: usize) -> (*const f32, usize) {
        let (problem, item) = (self.problem, &self.item);
        let dims = problem.dims();
        if let Some(n) = n.checked_sub(item.rows.len()) {
            let key = self.keys.start + n / 2;
            return if n % 2 == 0 {
                (problem.key.row(item.batch, item.kv_head, key), dims.head_dim)
            } else {
                (problem.value.row(item.batch, item.kv_head, key), dims.value_dim)
            };
        }
        let (head, i) = self.plan.query_row(item.kv_head, item.rows.start + n);
        (problem.query.row(item.batch, head, i), dims.head_dim)
    }
}

/// Asks for a row.
fn fetch(row: *const f32, width: usize) {
    /// Floats in a cache line.
    const LINE: usize = 16;
    for column in (0..width).step_by(LINE) {
        prefetch(row.wrapping_add(column));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_covers_its_rows_once_and_in_time() {
        for (rows, steps) in [(0, 5), (1, 7), (5, 0), (100, 7), (100, 100), (3, 100), (1000, 64)] {
            let mut pace = Pace::new(rows, steps);
            let mut seen = 0;
            for _ in 0..steps.max(1) {
                let step = pace.step();
                assert_eq!(step.start, seen);
                seen = step.end;
            }
            assert_eq!(seen, rows, "{rows} rows in {steps} steps");
            assert!(pace.step().is_empty());
        }
    }
}
