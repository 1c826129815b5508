//! A query tile: which rows it holds, which keys each of them sees, and the sums it keeps.

use std::ops::Range;

use crate::microkernel::{BLOCK_KV, BLOCK_Q, GROUP, Lanes, Seen};
use crate::plan::Layout;
use crate::problem::Problem;

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

/// What is known of up to [`BLOCK_Q`] query rows of one kv head. Threads keep theirs from item to
/// item: it is large enough that making it anew would show.
#[derive(Debug, Clone)]
pub(crate) struct TileRows {
    /// Rows flattened over the group, as `Plan` counts them.
    pub(crate) rows: Range<usize>,
    /// The rows rounded up to whole vectors; the lanes beyond repeat the last row's keys and have
    /// queries of zero.
    pub(crate) lanes: usize,
    /// For each lane the keys that structure lets it see; up to date unless all are the same.
    ranges: [(usize, usize); BLOCK_Q],
    /// From the first key that some row sees to behind the last.
    pub(crate) any: Range<usize>,
    /// The keys that every row sees.
    all: Range<usize>,
    /// The sums of the current split.
    pub(crate) split: Softmax,
    /// The sums of the splits before it; unused where there is but one.
    pub(crate) total: Softmax,
}

impl TileRows {
    /// No rows.
    pub(crate) const EMPTY: Self = Self {
        rows: 0..0,
        lanes: 0,
        ranges: [(0, 0); BLOCK_Q],
        any: 0..0,
        all: 0..0,
        split: Softmax::EMPTY,
        total: Softmax::EMPTY,
    };

    /// Takes up `rows` of batch entry `batch`.
    fn begin(
        &mut self,
        problem: &Problem<'_, f32>,
        batch: usize,
        rows: Range<usize>,
        lanes: usize,
    ) {
        self.rows = rows;
        self.lanes = lanes;
        if problem.has_uniform_ranges() {
            self.all = problem.visible_keys(batch, 0);
            self.any = self.all.clone();
            return;
        }
        let group_size = problem.dims().group_size();
        let last = self.rows.end - 1;
        let (mut first, mut last_end) = (usize::MAX, 0);
        let mut all = 0..usize::MAX;
        let mut query = usize::MAX;
        let mut keys = 0..0;
        for (lane, range) in self.ranges.iter_mut().enumerate().take(lanes) {
            let i = (self.rows.start + lane).min(last) / group_size;
            if i != query {
                query = i;
                keys = problem.visible_keys(batch, i);
            }
            *range = (keys.start, keys.end);
            all = all.start.max(keys.start)..all.end.min(keys.end);
            if !keys.is_empty() {
                (first, last_end) = (first.min(keys.start), last_end.max(keys.end));
            }
        }
        self.any = first.min(last_end)..last_end;
        self.all = all;
    }
}

/// A query tile at work: its rows and the memory of its sums.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    pub(crate) of: &'a mut TileRows,
    /// `[head_dim][BLOCK_Q]`: the queries.
    pub(crate) q_t: &'a mut [f32],
    /// `[..][BLOCK_Q]`: what the rows carry along for score terms; empty without any.
    pub(crate) term_rows: &'a mut [f32],
    /// `[BLOCK_Q][acc_width]`: the weighted values of the current split.
    pub(crate) acc: &'a mut [f32],
    /// Those of the splits before it; empty where there is but one.
    pub(crate) total_acc: &'a mut [f32],
    /// Whether `acc` has nothing of the current split yet.
    pub(crate) fresh: bool,
    /// Whether the outputs were written with the last block and, if so, whether they are finite.
    pub(crate) written: Option<bool>,
}

impl<'a> Tile<'a> {
    /// A tile of no rows, to [`Tile::begin`].
    pub(crate) fn new(of: &'a mut TileRows) -> Self {
        Self {
            of,
            q_t: &mut [],
            term_rows: &mut [],
            acc: &mut [],
            total_acc: &mut [],
            fresh: true,
            written: None,
        }
    }

    /// Takes up `rows`, with `lanes` lanes and its sums in `scratch`.
    pub(crate) fn begin(
        &mut self,
        (problem, layout): (&Problem<'_, f32>, &Layout),
        batch: usize,
        rows: Range<usize>,
        lanes: usize,
        scratch: &'a mut [f32],
    ) {
        let (q_t, scratch) = scratch.split_at_mut(layout.q_t);
        let (term_rows, scratch) = scratch.split_at_mut(layout.term_rows);
        let (acc, total_acc) = scratch.split_at_mut(layout.acc);
        (self.q_t, self.acc, self.total_acc) = (q_t, acc, total_acc);
        self.term_rows = term_rows;
        self.of.begin(problem, batch, rows, lanes);
    }

    /// Forgets all sums.
    pub(crate) fn reset(&mut self) {
        self.written = None;
        self.reset_split();
        self.total_acc.fill(0.0);
        self.of.total = Softmax::EMPTY;
    }

    /// Forgets the sums of the current split.
    pub(crate) fn reset_split(&mut self) {
        self.fresh = true;
        self.of.split = Softmax::EMPTY;
    }

    /// How many rows the tile has.
    pub(crate) fn len(&self) -> usize {
        self.of.rows.len()
    }

    /// The keys of the block at `first` that some row sees, counted from `first`, from the start of a
    /// group.
    pub(crate) fn keys_of_block(&self, first: usize) -> Range<usize> {
        in_block(self.of.any.start, first) / GROUP * GROUP..in_block(self.of.any.end, first)
    }

    /// For each lane the keys it sees of the block at `first`, counted from `first`; `None` where
    /// every row sees all that some row sees.
    pub(crate) fn seen(&self, first: usize) -> Option<Seen> {
        let keys = self.keys_of_block(first);
        let open = self.of.all.start <= first + keys.start && self.of.all.end >= first + keys.end;
        (!open).then(|| {
            let mut seen = Seen { start: [0; BLOCK_Q], end: [0; BLOCK_Q] };
            for (lane, &(start, end)) in self.of.ranges.iter().enumerate() {
                // At most BLOCK_KV.
                seen.start[lane] = in_block(start, first) as u32;
                seen.end[lane] = in_block(end, first) as u32;
            }
            seen
        })
    }
}

/// A key counted from its block's first, moved to the nearer end if it lies in another block.
fn in_block(key: usize, first: usize) -> usize {
    key.clamp(first, first + BLOCK_KV) - first
}
