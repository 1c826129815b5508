//! A query tile: which rows it holds, which keys each of them sees, and the sums it keeps.

use std::ops::Range;

use super::pass::Job;
use crate::microkernel::{BLOCK_KV, BLOCK_Q, Lanes};

/// Every key of a block, for every row.
pub(crate) static WHOLE_BLOCK: [(usize, usize); BLOCK_Q] = [(0, BLOCK_KV); BLOCK_Q];

/// The running softmax state of a tile's rows: the rows' sums are
/// `sum of 2^((score - row_ref) * to_log2)` over the keys so far; `row_ref` is -inf where there
/// were none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax {
    pub(crate) row_ref: Lanes,
    pub(crate) row_sum: Lanes,
}

impl Softmax {
    pub(crate) const EMPTY: Self =
        Self { row_ref: Lanes::splat(f32::NEG_INFINITY), row_sum: Lanes::splat(0.0) };
}

/// Up to [`BLOCK_Q`] query rows of one kv head.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    /// Rows flattened over the group, as `Plan` counts them.
    pub(crate) rows: Range<usize>,
    /// The rows rounded up to whole vectors; the lanes beyond repeat the last row's keys and have
    /// queries of zero.
    pub(crate) lanes: usize,
    /// For each lane the keys that structure lets it see.
    ranges: [(usize, usize); BLOCK_Q],
    /// From the first key that some row sees to behind the last.
    pub(crate) any: Range<usize>,
    /// The keys that every row sees.
    all: Range<usize>,
    pub(crate) q_t: &'a mut [f32],
    pub(crate) acc: &'a mut [f32],
    pub(crate) merged_acc: &'a mut [f32],
    pub(crate) state: Softmax,
    pub(crate) merged: Softmax,
}

impl<'a> Tile<'a> {
    /// The tile of `rows` in batch entry `batch`, its sums in `scratch`.
    pub(crate) fn new(
        job: &Job<'_, '_>,
        batch: usize,
        rows: Range<usize>,
        lanes: usize,
        scratch: &'a mut [f32],
    ) -> Self {
        let layout = &job.plan.layout;
        let (q_t, scratch) = scratch.split_at_mut(layout.q_t);
        let (acc, merged_acc) = scratch.split_at_mut(layout.acc);
        let last = rows.end.max(rows.start + 1) - 1;
        let group_size = job.problem.dims().group_size();
        let mut ranges = [(0, 0); BLOCK_Q];
        let (mut any, mut all) = (usize::MAX..0, 0..usize::MAX);
        let mut query = usize::MAX;
        let mut keys = 0..0;
        for (lane, range) in ranges.iter_mut().enumerate().take(lanes) {
            let i = (rows.start + lane).min(last) / group_size;
            if i != query {
                query = i;
                keys = job.problem.visible_keys(batch, i);
            }
            *range = (keys.start, keys.end);
            all = all.start.max(keys.start)..all.end.min(keys.end);
            if !keys.is_empty() {
                any = any.start.min(keys.start)..any.end.max(keys.end);
            }
        }
        let any = any.start.min(any.end)..any.end;
        Self {
            rows,
            lanes,
            ranges,
            any,
            all,
            q_t,
            acc,
            merged_acc,
            state: Softmax::EMPTY,
            merged: Softmax::EMPTY,
        }
    }

    /// A tile without rows, in the place of one that an item does not have.
    pub(crate) fn none() -> Self {
        Self {
            rows: 0..0,
            lanes: 0,
            ranges: [(0, 0); BLOCK_Q],
            any: 0..0,
            all: 0..0,
            q_t: &mut [],
            acc: &mut [],
            merged_acc: &mut [],
            state: Softmax::EMPTY,
            merged: Softmax::EMPTY,
        }
    }

    /// Forgets all sums.
    pub(crate) fn reset(&mut self) {
        self.reset_split();
        self.merged_acc.fill(0.0);
        self.merged = Softmax::EMPTY;
    }

    /// Forgets the sums of the current split.
    pub(crate) fn reset_split(&mut self) {
        self.acc.fill(0.0);
        self.state = Softmax::EMPTY;
    }

    /// The keys of the block at `first` that some row sees, counted from `first`.
    pub(crate) fn keys_of_block(&self, first: usize) -> Range<usize> {
        let clamp = |key: usize| key.clamp(first, first + BLOCK_KV) - first;
        clamp(self.any.start)..clamp(self.any.end)
    }

    /// Whether every row sees all of `keys` of the block at `first`.
    pub(crate) fn sees_all(&self, first: usize, keys: &Range<usize>) -> bool {
        self.all.start <= first + keys.start && self.all.end >= first + keys.end
    }

    /// For each lane the keys it sees of the block at `first`, counted from `first`.
    pub(crate) fn seen(&self, first: usize) -> [(usize, usize); BLOCK_Q] {
        let clamp = |key: usize| key.clamp(first, first + BLOCK_KV) - first;
        self.ranges.map(|(start, end)| (clamp(start), clamp(end)))
    }

    /// How many rows the tile has.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }
}
