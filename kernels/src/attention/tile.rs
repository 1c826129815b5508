//! A query tile: which rows it holds, which keys each of them sees, and the sums it keeps.

use std::ops::Range;

use crate::mask::rows::RowBits;
use crate::mask::{Sequence, bits};
use crate::microkernel::block::{Block, BlockRows};
use crate::microkernel::pairs::Rounding;
use crate::microkernel::{BLOCK_KV, BLOCK_Q, GROUP, Lanes, Seen};
use crate::plan::{Layout, Plan, SPLIT_KV};
use crate::problem::Problem;
use crate::simd::Stored;

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
    /// For each lane the keys that structure lets it see; up to date unless all see the same from the
    /// start of a group.
    ranges: [(usize, usize); BLOCK_Q],
    /// From the first key that some row sees to behind the last.
    pub(crate) any: Range<usize>,
    /// The keys that every row sees.
    all: Range<usize>,
    /// The sums of the current split.
    pub(crate) split: Softmax,
    /// How probabilities of the current split are rounded, where they are; else it says nothing.
    pub(crate) rounding: Rounding,
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
        rounding: Rounding::EMPTY,
        total: Softmax::EMPTY,
    };

    /// Takes up `rows` of a sequence.
    pub(super) fn begin<T: crate::Element>(
        &mut self,
        problem: &Problem<'_, T>,
        sequence: &Sequence,
        rows: Range<usize>,
        lanes: usize,
    ) {
        self.rows = rows;
        self.lanes = lanes;
        let mask = &problem.mask;
        if mask.has_uniform_ranges() {
            self.all = mask.range(sequence, 0);
            self.any = self.all.clone();
            // Else the first visit is not to whole groups.
            if !self.all.start.is_multiple_of(GROUP) {
                self.ranges.fill((self.all.start, self.all.end));
            }
            return;
        }
        let group_size = problem.dims().group_size();
        let last = self.rows.end - 1;
        let (mut first, mut last_end) = (usize::MAX, 0);
        let mut all = 0..usize::MAX;
        let mut ranges = mask.ranges(sequence);
        let mut query = usize::MAX;
        let mut keys = 0..0;
        for (lane, range) in self.ranges.iter_mut().enumerate().take(lanes) {
            let i = (self.rows.start + lane).min(last) / group_size;
            if i != query {
                query = i;
                keys = ranges.at(i);
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

    /// What the rows see of the key block at `first` by their ranges.
    pub(super) fn visit(&self, first: usize) -> Visit {
        let keys = in_block(self.any.start, first) / GROUP * GROUP..in_block(self.any.end, first);
        let open = self.all.start <= first + keys.start && self.all.end >= first + keys.end;
        if open || keys.is_empty() {
            return Visit { first, keys, seen: None, holes: false, dense: false };
        }
        let mut seen = Seen { start: [0; BLOCK_Q], end: [0; BLOCK_Q] };
        for (lane, &(start, end)) in self.ranges.iter().enumerate() {
            // At most BLOCK_KV.
            seen.start[lane] = in_block(start, first) as u32;
            seen.end[lane] = in_block(end, first) as u32;
        }
        let keys = seen.any(self.lanes);
        Visit { first, keys, seen: Some(seen), holes: false, dense: false }
    }

    /// The bits of `visit` within the rows' ranges.
    pub(super) fn bits<T: crate::Element>(
        &self,
        (problem, plan): (&Problem<'_, T>, &Plan),
        (sequence, kv_head): (&Sequence, usize),
        visit: &Visit,
    ) -> [u128; BLOCK_Q] {
        let block = visit.first..visit.first + visit.keys.end;
        let mut of_mask = RowBits::new(&problem.mask, sequence, block);
        let mut rows = [0; BLOCK_Q];
        for (lane, bits) in rows.iter_mut().enumerate().take(self.lanes) {
            let range = match &visit.seen {
                None => bits::between(visit.keys.start, visit.keys.end),
                Some(seen) => bits::between(seen.start[lane] as usize, seen.end[lane] as usize),
            };
            if range != 0 {
                let row = (self.rows.start + lane).min(self.rows.end - 1);
                let (head, i) = plan.query_row(kv_head, row);
                *bits = range & of_mask.get(head, i);
            }
        }
        rows
    }
}

/// A tile's visit to a key block: nothing to do without keys; plain without `seen` and holes.
#[derive(Debug)]
pub(super) struct Visit {
    /// The block's first key.
    pub(super) first: usize,
    /// From the first key that some row sees, or the start of its group, to behind the last, counted
    /// from the block's first.
    pub(super) keys: Range<usize>,
    /// Which of them each row sees; `None`: all.
    pub(super) seen: Option<Seen>,
    /// Whether rows see some of those not.
    pub(super) holes: bool,
    /// Whether a dense term was made of the block.
    pub(super) dense: bool,
}

impl Visit {
    /// Restricts the visit to what `rows`, a tile's bits of it, let its `lanes` see.
    pub(super) fn restrict(&mut self, rows: &[u128; BLOCK_Q], lanes: usize) {
        let mut seen = Seen { start: [0; BLOCK_Q], end: [0; BLOCK_Q] };
        let mut all = 0..BLOCK_KV;
        self.holes = false;
        for (lane, &row) in rows.iter().enumerate().take(lanes) {
            let (start, end) = bits::span(row);
            self.holes |= row != bits::between(start, end);
            all = all.start.max(start)..all.end.min(end);
            (seen.start[lane], seen.end[lane]) = (start as u32, end as u32);
        }
        self.keys = seen.any(lanes);
        let open = all.start <= self.keys.start && all.end >= self.keys.end;
        self.seen = (!open).then_some(seen);
    }

    /// What it sees of the block's keys, or values, which are stored as `E`.
    pub(super) fn block<'r, E: Stored>(&self, rows: &'r BlockRows<'r>) -> Block<'r, E> {
        rows.block(self.keys.start, self.keys.end)
    }
}

/// A query tile at work: its rows and the memory of its sums.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    pub(crate) of: &'a mut TileRows,
    /// `[head_dim][BLOCK_Q]`: the queries; behind them, if so, their integers.
    pub(crate) q_t: &'a mut [f32],
    /// Of queries in integers, the split with whose mean they were multiplied.
    pub(crate) mean_of: Option<usize>,
    /// `[..][BLOCK_Q]`: what the rows carry along for score terms; empty without any.
    pub(crate) term_rows: &'a mut [f32],
    /// `[BLOCK_Q][acc_width]`: the weighted values of the current split.
    pub(crate) acc: &'a mut [f32],
    /// Those of the splits before it, if the tile merges.
    pub(crate) total_acc: &'a mut [f32],
    /// Whether `acc` has nothing of the current split yet.
    pub(crate) fresh: bool,
    /// Whether it has values times probabilities that were rounded, still to be balanced.
    pub(crate) rounded: bool,
    /// Whether the outputs were written with the last block and, if so, whether they are finite.
    pub(crate) written: Option<bool>,
}

impl<'a> Tile<'a> {
    /// A tile of no rows, to [`Tile::begin`].
    pub(crate) fn new(of: &'a mut TileRows) -> Self {
        Self {
            of,
            q_t: &mut [],
            mean_of: None,
            term_rows: &mut [],
            acc: &mut [],
            total_acc: &mut [],
            fresh: true,
            rounded: false,
            written: None,
        }
    }

    /// Takes up `rows`, with `lanes` lanes and its sums in `scratch`.
    pub(crate) fn begin(
        &mut self,
        (problem, layout): (&Problem<'_, f32>, &Layout),
        sequence: &Sequence,
        rows: Range<usize>,
        lanes: usize,
        scratch: &'a mut [f32],
    ) {
        let (q_t, scratch) = scratch.split_at_mut(layout.q_t);
        let (term_rows, scratch) = scratch.split_at_mut(layout.term_rows);
        let (acc, total_acc) = scratch.split_at_mut(layout.acc);
        (self.q_t, self.acc, self.total_acc) = (q_t, acc, total_acc);
        self.term_rows = term_rows;
        self.of.begin(problem, sequence, rows, lanes);
    }

    /// Whether the rows see keys of more than one split.
    pub(crate) fn merges(&self) -> bool {
        let any = &self.of.any;
        !any.is_empty() && any.start / SPLIT_KV != (any.end - 1) / SPLIT_KV
    }

    /// Forgets all sums.
    pub(crate) fn reset(&mut self) {
        self.written = None;
        self.reset_split();
        if self.merges() {
            self.total_acc.fill(0.0);
            self.of.total = Softmax::EMPTY;
        }
    }

    /// The sums over all splits.
    pub(crate) fn totals(&self) -> (&[f32], &Softmax) {
        if self.merges() { (self.total_acc, &self.of.total) } else { (self.acc, &self.of.split) }
    }

    /// The same, to be set.
    pub(crate) fn totals_mut(&mut self) -> (&mut [f32], &mut Softmax) {
        if self.merges() {
            (self.total_acc, &mut self.of.total)
        } else {
            (self.acc, &mut self.of.split)
        }
    }

    /// Forgets the sums of the current split.
    pub(crate) fn reset_split(&mut self) {
        (self.fresh, self.rounded) = (true, false);
        self.of.split = Softmax::EMPTY;
    }

    /// What the current split's sums of values, if they were multiplied by rounded probabilities, are to be
    /// multiplied by: then they are those of weights that add up to 1, as if the rounding had left their sum
    /// alone.
    pub(super) fn balance(&self) -> Option<Lanes> {
        let (sums, rounded) = (&self.of.split.row_sum.0, &self.of.rounding.sum.0);
        let factor = |r: usize| if rounded[r] == 0.0 { 1.0 } else { sums[r] / rounded[r] };
        self.rounded.then(|| Lanes(std::array::from_fn(factor)))
    }

    /// The tile's sums of values, in rows of `width`, if there are any yet.
    pub(super) fn sums(&mut self, width: usize) -> Option<&mut [f32]> {
        let rows = self.len();
        (!self.fresh).then(|| &mut self.acc[..rows * width])
    }

    /// How many rows the tile has.
    pub(crate) fn len(&self) -> usize {
        self.of.rows.len()
    }
}

/// A key counted from its block's first, moved to the nearer end if it lies in another block.
fn in_block(key: usize, first: usize) -> usize {
    key.clamp(first, first + BLOCK_KV) - first
}
