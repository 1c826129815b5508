//! The loop nest of fused attention, for one item of the plan:
//!
//! ```text
//! pack the item's query tiles
//! for each split of SPLIT_KV keys                      its own reference maxima
//!   for each block of BLOCK_KV keys                    K and V of the block stay in the cache
//!     for each tile of BLOCK_Q query rows
//!       prob = exp(score - row_ref), row_sum += prob   microkernel::{scores, sweep}
//!       acc += prob * value                            microkernel::values
//!   merge the split into the earlier ones
//! out = acc / row_sum, lse = row_ref + ln row_sum
//! what else was asked for, by a second pass                 attention::outputs
//! ```
//!
//! **Reference maximum.** A row needs no exact running maximum, only a reference near enough that
//! nothing overflows. It takes the maximum of the first group of 8 keys in which it sees one and
//! keeps it; a block whose sum reaches 2^60 is done again with the block's maximum as the new
//! reference. Both decisions are the row's own: its neighbours' bits do not depend on them, nor its
//! bits on its neighbours.
//!
//! **Care.** Masked keys are multiplied by a probability of -0.0, which is exact unless the value
//! is NaN or infinite; where it was, the item's output is not finite and the item is done again
//! with a value kernel that selects, to the same bits. What is still not finite is done once more
//! with references raised by 80 powers of two, so that no product of finite numbers overflows;
//! what is not finite even then comes from the inputs.

use std::ops::Range;

use super::ahead::Ahead;
use super::current::{CurrentBlock, Read};
use super::split_kv::Merge;
use super::tile::{Softmax, Tile, TileRows, Visit};
use crate::mask::Sequence;
use crate::microkernel::finish::{Dot, Normalize, OutRow, Rescale};
use crate::microkernel::hidden::Hidden;
use crate::microkernel::int8_values::Int8Values;
use crate::microkernel::pack::Pack;
use crate::microkernel::pairs::{PairUp, Rounding};
use crate::microkernel::quads::{OfMean, Quads, QuantizeQueries, QueryQuads};
use crate::microkernel::scores::Scores;
use crate::microkernel::sweep::{Redo, Staged, Sweep, Units};
use crate::microkernel::terms::Scoring;
use crate::microkernel::values::{Finish, OutRows, Values};
use crate::microkernel::{BLOCK_KV, BLOCK_Q, Lanes};
use crate::outputs::{Outputs, Stage};
use crate::plan::{self, Layout, Plan, SPLIT_KV};
use crate::problem::Problem;
use crate::simd::{Bf16Pair, Int8Dot, Int8Quad, Simd, Stored, StoredMut};
use crate::storage::{Output, StoredRow, StoredRows, with_stored};
use crate::term::{ROW_FACTS, Row};
use crate::view::ViewMut;

/// Everything about a call that its items share.
pub(crate) struct Job<'a, 'p, T> {
    pub(crate) problem: &'a Problem<'p, f32>,
    pub(crate) plan: Plan,
    pub(super) outputs: &'a Outputs<'p, f32>,
    /// Whether some output needs it: see `attention::outputs`.
    pub(super) second_pass: bool,
    units: Units,
    /// From a reference, in those units, to a power of e.
    to_ln: f64,
    /// Where scores change.
    terms: T,
    /// Some blocks have a dense term, or bits that may become one.
    dense: bool,
    /// All have a dense bias.
    biased: bool,
}

impl<'a, 'p, T: Scoring> Job<'a, 'p, T> {
    pub(crate) fn new(
        problem: &'a Problem<'p, f32>,
        terms: T,
        outputs: &'a Outputs<'p, f32>,
        plan: Plan,
    ) -> Self {
        use std::f64::consts::{LN_2, LOG2_E};
        // Terms give powers of e: log2(e) in their factors could overflow beside a bias of f32::MIN.
        let (to_log2, to_ln) = if T::PLAIN { (1.0, LN_2) } else { (LOG2_E, 1.0) };
        Self {
            problem,
            plan,
            outputs,
            second_pass: outputs.want_second_pass(),
            units: Units { factor: (problem.scale / to_ln) as f32, to_log2: to_log2 as f32 },
            to_ln,
            terms,
            dense: problem.has_dense_term(),
            biased: problem.has_dense_bias(),
        }
    }

    /// From a reference to a power of two.
    pub(super) fn to_log2(&self) -> f32 {
        self.units.to_log2
    }
}

/// How much care a pass takes; each level is entered when the one before left something not
/// finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// Masked values are multiplied by -0.0.
    Fast,
    /// Masked values are selected away; the same bits for finite values.
    Select,
    /// As `Select`, and references are raised so that sums of huge values stay finite.
    Headroom,
}

impl Care {
    /// Powers of two by which references are raised.
    fn headroom(self) -> f32 {
        if self == Self::Headroom { 80.0 } else { 0.0 }
    }

    /// The power of two below which a probability counts as 0: behind the last bit of any sum, and far
    /// enough from the subnormal numbers for products with all but the tiniest values.
    fn least(self) -> f32 {
        if self == Self::Headroom { -126.0 } else { -100.0 }
    }

    /// 2 to the power of `x`, for sums that shrink.
    pub(super) fn power(self, x: f32) -> f32 {
        if x < self.least() { 0.0 } else { x.exp2() }
    }

    /// The sum of a block from which a reference is too low.
    fn limit(self) -> f32 {
        (60.0 - self.headroom()).exp2()
    }
}

/// The growth of scores over a row's keys of a split, in powers of e, from which on the last of them
/// gives the reference.
const LEAST_GROWTH: f32 = 16.0;

/// The sum of magnitudes of a score up to which its rounding errors are no matter for a reference.
const MOST_MAGNITUDE: f64 = 1e6;

/// What sums are multiplied by that stay as they are.
const UNCHANGED: Lanes = Lanes::splat(1.0);

/// The most numbers that a row may carry along.
const MAX_NUMBERS: usize = 64;

/// ln(e^a + e^b), NaN if either is.
fn ln_add_exp(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// One item in the hands of one thread.
pub(crate) struct Item<'a, 'p, S, T> {
    pub(super) simd: S,
    pub(super) job: &'a Job<'a, 'p, T>,
    /// What the item's rows belong to.
    pub(super) sequence: Sequence,
    /// The batch entry in the tensors: see [`Item::row`].
    pub(super) batch: usize,
    kv_head: usize,
    /// The keys and the values of the head, the keys in pairs if they are multiplied so.
    head: [StoredRows<'p>; 2],
    block: CurrentBlock<'a>,
    pub(super) prob: &'a mut [f32],
    dense: &'a mut [f32],
    ahead: Ahead<'p>,
    /// Whether the item is but a split of its keys.
    is_split: bool,
}

impl<'a, 'p, S: Simd, T: Scoring> Item<'a, 'p, S, T> {
    /// Computes the item's rows and writes them to the outputs.
    /// `next` is the item that the thread will probably run after it.
    pub(crate) fn run<const TILES: usize>(
        job: &'a Job<'a, 'p, T>,
        simd: S,
        (item, next): (plan::Item, Option<plan::Item>),
        mine: (&'a mut [TileRows; TILES], &'a mut [f32]),
    ) {
        Self::with(job, simd, (item, next), mine, |this, tiles| this.compute(tiles));
    }

    /// Calls `run` with the item and its tiles.
    pub(super) fn with<const TILES: usize>(
        job: &'a Job<'a, 'p, T>,
        simd: S,
        (item, next): (plan::Item, Option<plan::Item>),
        (local, scratch): (&'a mut [TileRows; TILES], &'a mut [f32]),
        run: impl FnOnce(&mut Self, &mut [Tile<'a>]),
    ) {
        let layout = &job.plan.layout;
        let (prob, scratch) = scratch.split_at_mut(Layout::PROB);
        let (dense, scratch) = scratch.split_at_mut(layout.dense);
        let (keys_here, scratch) = scratch.split_at_mut(layout.gathered[0]);
        let (values_here, scratch) = scratch.split_at_mut(layout.gathered[1]);
        let (sequence, kv_head) = (job.problem.mask.sequence(item.sequence), item.kv_head);
        let head = [job.problem.keys(&sequence, kv_head), job.problem.values(&sequence, kv_head)];
        let read = if T::NARROW {
            let all = sequence.seq_q * job.problem.dims().group_size();
            Read::of(simd, job.problem, (item.rows.len(), all))
        } else {
            [Read::Floats; 2]
        };
        let kept = if read[0] == Read::Pairs { [head[0].pairs(), head[1]] } else { head };
        let mut this = Self {
            simd,
            job,
            batch: sequence.batch,
            sequence,
            kv_head,
            head: kept,
            block: CurrentBlock::new([keys_here, values_here], kept, read),
            prob,
            dense,
            ahead: Ahead::new(
                (job.problem, &job.plan),
                &item,
                (head, S::ISA, usize::from(read[1] == Read::Pairs)),
                next,
            ),
            is_split: item.split.is_some(),
        };
        let mut tiles = local.each_mut().map(Tile::new);
        let tiles = &mut tiles[..item.rows.len().div_ceil(BLOCK_Q)];
        let parts = scratch.chunks_exact_mut(layout.tile());
        for ((t, tile), part) in tiles.iter_mut().enumerate().zip(parts) {
            let start = item.rows.start + t * BLOCK_Q;
            let rows = start..(start + BLOCK_Q).min(item.rows.end);
            let lanes = rows.len().next_multiple_of(S::LANES);
            tile.begin((job.problem, layout), &this.sequence, rows, lanes, part);
            this.note_rows(tile);
        }
        run(&mut this, tiles);
    }

    fn compute(&mut self, tiles: &mut [Tile<'_>]) {
        self.pack_queries(tiles);
        let finite = self.pass(tiles, Care::Fast);
        self.take_care(tiles, finite);
    }

    /// What is left to do behind a fast pass with outputs that were `finite`, or were not.
    pub(super) fn take_care(&mut self, tiles: &mut [Tile<'_>], finite: bool) {
        let finite = finite || self.pass(tiles, Care::Select);
        // Before references are raised, which may be for another row's sake.
        if self.job.second_pass {
            tiles.iter_mut().for_each(|tile| self.second_pass(tile));
        }
        if !finite {
            self.pass(tiles, Care::Headroom);
        }
    }

    /// Computes the tiles' outputs and says whether they are finite.
    fn pass(&mut self, tiles: &mut [Tile<'_>], care: Care) -> bool {
        self.sums(tiles, care);
        self.write(tiles, care)
    }

    /// Writes what [`Item::sums`] left; says whether it is finite.
    pub(super) fn write(&self, tiles: &[Tile<'_>], care: Care) -> bool {
        let mut finite = true;
        for tile in tiles.iter() {
            finite &= tile.written.unwrap_or_else(|| self.write_out(tile, care));
            if care != Care::Headroom {
                self.write_lse(tile);
            }
        }
        finite
    }

    /// The query head of a flattened row, and its query as the tensors count it, to go with `batch`.
    pub(super) fn row(&self, row: usize) -> (usize, usize) {
        let (head, i) = self.job.plan.query_row(self.kv_head, row);
        (head, self.sequence.query + i)
    }

    /// The query head of a flattened row, and where its query stands among the keys.
    fn position(&self, row: usize) -> (usize, i128) {
        let (head, i) = self.job.plan.query_row(self.kv_head, row);
        (head, self.job.problem.position(&self.sequence, i))
    }

    /// What the terms want to know of a tile's rows; the lanes beyond repeat the last row.
    fn note_rows(&self, tile: &mut Tile<'_>) {
        if T::PLAIN {
            return;
        }
        const { assert!(T::NUMBERS <= MAX_NUMBERS, "a term of too many numbers a row") };
        let mut numbers = [0.0; MAX_NUMBERS];
        let numbers = &mut numbers[..T::NUMBERS];
        for lane in 0..tile.of.lanes {
            let row = (tile.of.rows.start + lane).min(tile.of.rows.end - 1);
            let (head, query) = self.job.plan.query_row(self.kv_head, row);
            let position = self.job.problem.position(&self.sequence, query);
            numbers.fill(0.0);
            // Where positions do not fit a term does not ask for them.
            let position = i64::try_from(position).unwrap_or(0);
            self.job.terms.row(Row { batch: self.sequence.index, head, query, position }, numbers);
            let facts: [f32; ROW_FACTS] = [head as f32, query as f32, position as f32];
            for (n, &x) in facts.iter().chain(numbers.iter()).enumerate() {
                tile.term_rows[n * BLOCK_Q + lane] = x;
            }
        }
    }

    /// The tiles' queries, with which their scores begin.
    pub(super) fn pack_queries(&self, tiles: &mut [Tile<'_>]) {
        tiles.iter_mut().for_each(|tile| self.pack_tile(tile));
    }

    fn pack_tile(&self, tile: &mut Tile<'_>) {
        let query = &self.job.problem.query;
        let mut rows = [StoredRow::EMPTY; BLOCK_Q];
        for (stored, row) in rows.iter_mut().zip(tile.of.rows.clone()) {
            let (head, i) = self.row(row);
            *stored = query.row((self.batch, head), i);
        }
        let rows = &mut rows[..tile.len()];
        let mut width = self.job.problem.dims().head_dim;
        if self.block.keys() == Read::Pairs {
            rows.iter_mut().for_each(|row| *row = row.pairs());
            width /= 2;
        }
        let lanes = tile.of.lanes;
        self.simd.vectorize(Pack { rows, width, lanes, dst: tile.q_t });
        if const { S::INT8_DOTS && T::NARROW } && self.block.keys().rounds_queries() {
            tile.mean_of = None;
            let queries = QuantizeQueries { q_t: tile.q_t, head_dim: width, lanes };
            Int8Quad::vectorize(self.simd, queries);
        }
    }

    /// The splits that the tiles see.
    fn sums(&mut self, tiles: &mut [Tile<'_>], care: Care) {
        tiles.iter_mut().for_each(Tile::reset);
        let keys = self.begin(tiles, 0..usize::MAX);
        let mut block = self.next_block(tiles, keys.start, keys.end);
        while block < keys.end {
            block = self.split(tiles, block..keys.end, care);
            for tile in tiles.iter_mut().filter(|tile| tile.merges()) {
                self.merge_split(tile);
                tile.reset_split();
            }
        }
    }

    /// The sums of a split alone; says whether the tiles see any of its keys.
    pub(super) fn sums_of_split(&mut self, tiles: &mut [Tile<'_>], split: usize) -> bool {
        tiles.iter_mut().for_each(Tile::reset_split);
        let keys = self.begin(tiles, split * SPLIT_KV..(split + 1) * SPLIT_KV);
        let block = self.next_block(tiles, keys.start, keys.end);
        if block < keys.end {
            self.split(tiles, block..keys.end, Care::Fast);
        }
        block < keys.end
    }

    /// From the first block, of those within `part`, of which the tiles see a key to behind the last key.
    fn begin(&mut self, tiles: &[Tile<'_>], part: Range<usize>) -> Range<usize> {
        let start = tiles.iter().map(|tile| tile.of.any.start).min().unwrap_or(0).max(part.start);
        let end = tiles.iter().map(|tile| tile.of.any.end).max().unwrap_or(0).min(part.end);
        self.ahead.begin(end - start.min(end), tiles.len());
        start / BLOCK_KV * BLOCK_KV..end
    }

    /// The blocks of `keys` up to the end of the split in which they begin, tile by tile within a block;
    /// gives the first block behind it of which the tiles see something.
    fn split(&mut self, tiles: &mut [Tile<'_>], keys: Range<usize>, care: Care) -> usize {
        let (mut block, end) = (keys.start, keys.end);
        let split = block / SPLIT_KV;
        if self.block.pairs_values() {
            tiles.iter_mut().for_each(|tile| tile.of.rounding = Rounding::EMPTY);
        }
        // A score of rounded numbers may lie far below the one that would be foreseen.
        let rounds = self.block.keys().rounds_queries();
        if self.job.terms.grow() && !self.job.dense && !rounds {
            tiles.iter_mut().for_each(|tile| self.foresee(tile, split, care));
        }
        while block < end.min((split + 1) * SPLIT_KV) {
            let next = self.next_block(tiles, block + BLOCK_KV, end).min(end);
            self.ahead.block(next..end, tiles.len());
            for tile in tiles.iter_mut() {
                self.block(tile, block, care);
            }
            block = next;
        }
        for tile in tiles.iter_mut().filter(|tile| tile.merges() || self.is_split) {
            if let Some(factor) = tile.balance() {
                self.rescale(tile, &factor);
                tile.rounded = false;
            }
        }
        block
    }

    /// Pairs a visit's probabilities; says what sums of earlier values are to be multiplied by.
    fn pair_up(&mut self, tile: &mut Tile<'_>, visit: &Visit) -> Lanes {
        tile.rounded = true;
        let (keys, lanes) = (visit.keys.clone(), tile.of.lanes);
        let pairs = PairUp { prob: self.prob, keys, lanes, rounding: &mut tile.of.rounding };
        Bf16Pair::vectorize(self.simd, pairs)
    }

    /// Multiplies the sums of values that there are by factors of their rows.
    fn rescale(&self, tile: &mut Tile<'_>, factor: &Lanes) {
        let width = self.job.plan.layout.acc_width;
        if let Some(rows) = tile.sums(width) {
            self.simd.vectorize(Rescale { rows, width, factor });
        }
    }

    /// The first block from `from` on, of those before `end`, of which some row may see something.
    fn next_block(&self, tiles: &[Tile<'_>], from: usize, end: usize) -> usize {
        let mask = &self.job.problem.mask;
        if !mask.has_gaps() {
            return from;
        }
        let sees = |tile: &Tile<'_>, first: usize| {
            let any = &tile.of.any;
            let block = any.start.max(first)..any.end.min(first + BLOCK_KV);
            !block.is_empty()
                && (!mask.needs_bits(&self.sequence, &block)
                    || self.bits(tile, &tile.of.visit(first)).iter().any(|&row| row != 0))
        };
        let mut blocks = (from..end).step_by(BLOCK_KV);
        blocks.find(|&first| tiles.iter().any(|tile| sees(tile, first))).unwrap_or(end)
    }

    /// What the tile sees of the block at `first`; makes the block's dense term if it has one.
    pub(super) fn visit(&mut self, tile: &Tile<'_>, first: usize) -> Visit {
        let mut visit = tile.of.visit(first);
        if !visit.keys.is_empty() {
            self.block.enter(self.simd, first, self.head, self.ahead.is_few());
        }
        if self.job.dense && !visit.keys.is_empty() {
            self.look_closer(tile, &mut visit);
        }
        visit
    }

    #[inline(never)]
    fn look_closer(&mut self, tile: &Tile<'_>, visit: &mut Visit) {
        let keys = visit.first + visit.keys.start..visit.first + visit.keys.end;
        let mut rows = None;
        if self.job.problem.mask.needs_bits(&self.sequence, &keys) {
            let bits = self.bits(tile, visit);
            visit.restrict(&bits, tile.of.lanes);
            rows = visit.holes.then_some(bits);
        }
        match &rows {
            _ if visit.keys.is_empty() => {}
            rows if self.job.biased => self.pack_dense(tile, visit, rows.as_ref()),
            Some(rows) => {
                self.simd.vectorize(Hidden { rows, keys: visit.keys.clone(), dst: self.dense })
            }
            None => {}
        }
        visit.dense = rows.is_some() || self.job.biased;
    }

    /// What the rows of a tile see of a block, where ranges do not say it all.
    fn bits(&self, tile: &Tile<'_>, visit: &Visit) -> [u128; BLOCK_Q] {
        let (problem, plan) = (self.job.problem, &self.job.plan);
        tile.of.bits((problem, plan), (&self.sequence, self.kv_head), visit)
    }

    /// References for rows whose scores grow so much over a split that those of its first keys would
    /// soon be too low: the score of the last key that the row sees of the split, nearly. No mask but
    /// that of structure may hide it.
    fn foresee(&self, tile: &mut Tile<'_>, split: usize, care: Care) {
        let Problem { query, terms, scale, .. } = self.job.problem;
        let heads = self.job.problem.dims().q_heads;
        let keys = self.job.problem.keys(&self.sequence, self.kv_head);
        // The lanes beyond the rows are the last row with a query of zeros.
        for r in 0..tile.of.lanes {
            let row = (tile.of.rows.start + r).min(tile.of.rows.end - 1);
            let (head, i) = self.job.plan.query_row(self.kv_head, row);
            let seen = self.job.problem.mask.range(&self.sequence, i);
            let start = seen.start.max(split * SPLIT_KV);
            let end = seen.end.min((split + 1) * SPLIT_KV);
            let slope = tile.term_rows[ROW_FACTS * BLOCK_Q + r];
            if start >= end || slope * (end - start) as f32 <= LEAST_GROWTH {
                continue;
            }
            let key = end - 1;
            let [dot, magnitude] = if r < tile.len() {
                let query = query.row((self.batch, head), self.sequence.query + i);
                self.simd.vectorize(Dot([query, keys.row(key)]))
            } else {
                [0.0; 2]
            };
            // A sum in another order than the kernel's must be near it.
            if magnitude * scale.abs() < MOST_MAGNITUDE {
                let position = self.job.problem.position(&self.sequence, i);
                let bias = terms.bias((head, heads), key as i128 - position);
                let score = (terms.capped(scale * dot) + bias) as f32;
                tile.of.split.row_ref.0[r] = score + care.headroom() / self.job.units.to_log2;
            }
        }
    }

    /// One key block through one tile.
    fn block(&mut self, tile: &mut Tile<'_>, first: usize, care: Care) {
        let visit = self.visit(tile, first);
        if visit.keys.is_empty() {
            return;
        }
        let mut sums = self.prob(tile, &visit, care);
        // A sum that is too large, or is no number, wants a higher reference, once.
        let limit = care.limit();
        // Without a branch in the loop; false for NaN.
        if !sums.0.iter().fold(true, |all, &sum| all & (sum < limit)) {
            let before = &tile.of.split.row_sum;
            let rows = Lanes(std::array::from_fn(|lane| {
                let is_below = sums.0[lane] < limit;
                if is_below || before.0[lane].is_nan() { 0.0 } else { -1.0 }
            }));
            sums = self.redo(tile, &visit, &rows, care);
        }
        for (sum, more) in tile.of.split.row_sum.0.iter_mut().zip(&sums.0) {
            *sum += more;
        }
        let earlier = if const { S::BF16_DOTS && T::NARROW } && self.block.pairs_values() {
            &self.pair_up(tile, &visit)
        } else {
            &UNCHANGED
        };
        let visit = (&visit, earlier);
        if care != Care::Fast {
            return self.values::<true>(tile, visit);
        }
        tile.written = self.last_values(tile, visit);
        if tile.written.is_none() {
            self.values::<false>(tile, visit);
        }
    }

    /// The values of a tile's last block, straight to the output; says whether it is finite.
    /// `None`: nothing was done, since there is more to come, a row's sum is no positive number, or few rows
    /// of halves, or of integers, are not worth kernels of their own.
    fn last_values(&mut self, tile: &mut Tile<'_>, visit: (&Visit, &Lanes)) -> Option<bool> {
        let is_last = visit.0.first + BLOCK_KV >= tile.of.any.end;
        let scaled = self.job.problem.value_scales(self.kv_head).is_some();
        let few = self.ahead.is_few();
        let few_halves = few && self.job.outputs.out.native().is_none();
        let in_integers = self.block.are_integers(1);
        let later = scaled || few_halves || in_integers;
        if !is_last || later || tile.merges() || self.is_split {
            return None;
        }
        let sums = &tile.of.split.row_sum.0[..tile.len()];
        if !sums.iter().fold(true, |all, &sum| all & (sum > 0.0) & (sum < f32::INFINITY)) {
            return None;
        }
        let factor = &self.value_factors(tile, &tile.of.split);
        Some(match &self.job.outputs.out {
            Output::Native(out) if few => {
                let out = &self.out_rows(tile, out);
                self.few_values::<false>(tile, visit, Some(Finish { factor, out, finite: true }))
            }
            Output::Native(out) => self.last_of_many(tile, visit, (factor, out)),
            Output::F16(out) => self.last_of_many(tile, visit, (factor, out)),
            Output::Bf16(out) => self.last_of_many(tile, visit, (factor, out)),
        })
    }

    /// The same of many rows, whose sums are multiplied by `factor`.
    fn last_of_many<O: StoredMut>(
        &mut self,
        tile: &mut Tile<'_>,
        visit: (&Visit, &Lanes),
        (factor, out): (&Lanes, &ViewMut<'_, O>),
    ) -> bool {
        let out = &self.out_rows(tile, out);
        self.many_values::<O, false>(tile, visit, Some(Finish { factor, out, finite: true }))
    }

    /// Where a tile's rows of the output are.
    fn out_rows<O: StoredMut>(&self, tile: &Tile<'_>, out: &ViewMut<'_, O>) -> OutRows<O> {
        let rows = tile.of.rows.clone().map(|row| {
            let (head, i) = self.row(row);
            out.row(self.batch, head, i)
        });
        // SAFETY: the outputs were checked against the problem: the rows exist, have value_dim
        // contiguous numbers, and no other item has rows of these numbers.
        unsafe { OutRows::new(rows, self.job.problem.dims().value_dim) }
    }

    /// The probabilities of a visit, and their sums. Rows without a reference take one.
    pub(super) fn prob(&mut self, tile: &mut Tile<'_>, visit: &Visit, care: Care) -> Lanes {
        let mut sums = Lanes::splat(0.0);
        if T::IN_MEMORY || (T::PLAIN && visit.dense) {
            self.scores::<true>(tile, visit, care, (&mut sums, None, None));
        } else {
            self.scores::<false>(tile, visit, care, (&mut sums, None, None));
        }
        sums
    }

    /// The scores of a visit as they are at `stage`, in natural units, -inf where they are hidden.
    pub(super) fn scores_at(&mut self, tile: &mut Tile<'_>, visit: &Visit, stage: Stage) {
        let staged = Staged { stage, scale: self.job.problem.scale as f32 };
        let mut no_sums = Lanes::splat(0.0);
        self.scores::<true>(tile, visit, Care::Fast, (&mut no_sums, None, Some(staged)));
    }

    /// The probabilities again, with higher references in `rows`, whose earlier sums shrink.
    fn redo(&mut self, tile: &mut Tile<'_>, visit: &Visit, rows: &Lanes, care: Care) -> Lanes {
        let (mut sums, mut rescale) = (Lanes::splat(0.0), Lanes::splat(1.0));
        let redo = Redo { rows, rescale: &mut rescale };
        self.scores::<true>(tile, visit, care, (&mut sums, Some(redo), None));
        let TileRows { split, rounding, .. } = &mut *tile.of;
        for sums in [&mut split.row_sum, &mut rounding.sum, &mut rounding.largest] {
            sums.0.iter_mut().zip(&rescale.0).for_each(|(sum, factor)| *sum *= factor);
        }
        self.rescale(tile, &rescale);
        sums
    }

    fn scores<const SWEPT: bool>(
        &mut self,
        tile: &mut Tile<'_>,
        visit: &Visit,
        care: Care,
        wanted: (&mut Lanes, Option<Redo<'_>>, Option<Staged>),
    ) {
        // Constant, so that what is not used is not compiled.
        if const { S::INT8_DOTS && T::NARROW } && self.block.keys() == Read::Quads {
            let split = Some(visit.first / SPLIT_KV);
            if tile.mean_of != split {
                tile.mean_of = split;
                let (mean, lanes) = (self.block.quads().mean, tile.of.lanes);
                self.simd.vectorize(OfMean { q_t: tile.q_t, mean, lanes });
            }
            return self.scores_of::<Int8Quad, SWEPT>(tile, visit, care, wanted);
        }
        if const { S::INT8_DOTS && T::NARROW } && self.block.are_integers(0) {
            return self.scores_of::<Int8Dot, SWEPT>(tile, visit, care, wanted);
        }
        if const { S::BF16_DOTS && T::NARROW } && self.block.keys() == Read::Pairs {
            return self.scores_of::<Bf16Pair, SWEPT>(tile, visit, care, wanted);
        }
        if const { SWEPT || !T::NARROW } {
            self.block.widen(self.simd, 0, self.head);
            self.scores_of::<f32, SWEPT>(tile, visit, care, wanted);
        } else {
            with_stored!(self.block.rows(0).format(), E => {
                self.scores_of::<E, SWEPT>(tile, visit, care, wanted)
            });
        }
    }

    /// The same of keys that are stored as `E`.
    #[inline(always)]
    fn scores_of<E: Stored, const SWEPT: bool>(
        &mut self,
        tile: &mut Tile<'_>,
        visit: &Visit,
        care: Care,
        (block_sum, redo, staged): (&mut Lanes, Option<Redo<'_>>, Option<Staged>),
    ) {
        // Values in pairs are read with the block's beginning: those of the next come behind the keys.
        let mut soon = self.block.rows(1).from(visit.keys.start);
        if const { S::BF16_DOTS && T::NARROW } && self.block.pairs_values() {
            soon = self.ahead.fetch.next.unwrap_or(soon);
        }
        let mut quads = Quads::NONE;
        if E::INTEGERS {
            quads.queries = QueryQuads::new(tile.q_t, self.job.problem.dims().head_dim);
            // Other keys have their scales behind them.
            if E::STEP == 1 {
                quads.keys = self.block.quads();
            }
        }
        E::vectorize(
            self.simd,
            Scores::<T, E, SWEPT> {
                q_t: if E::INTEGERS { quads.queries.rows } else { tile.q_t },
                keys: visit.block(self.block.rows(0)),
                quads,
                sweep: Sweep {
                    prob: self.prob,
                    dense: visit.dense.then_some(&*self.dense),
                    terms: &self.job.terms,
                    rows: tile.term_rows,
                    place: (self.sequence.index, visit.first),
                    len: tile.of.rows.len(),
                    lanes: tile.of.lanes,
                    seen: visit.seen.as_ref(),
                    units: self.job.units,
                    headroom: care.headroom() / self.job.units.to_log2,
                    least: care.least(),
                    row_ref: &mut tile.of.split.row_ref,
                    block_sum,
                    redo,
                    staged,
                },
                largest: &mut tile.of.rounding.of_block,
                values: soon,
                fetch: &mut self.ahead.fetch,
            },
        )
    }

    /// Adds the visit's values to the sums, those before it multiplied by factors that go with pairs.
    fn values<const CAREFUL: bool>(&mut self, tile: &mut Tile<'_>, visit: (&Visit, &Lanes)) {
        if self.ahead.is_few() {
            self.few_values::<CAREFUL>(tile, visit, None);
        } else {
            self.many_values::<f32, CAREFUL>(tile, visit, None);
        }
    }

    /// The same of many rows, or finishes the sums; says whether what it finished is finite.
    fn many_values<O: StoredMut, const CAREFUL: bool>(
        &mut self,
        tile: &mut Tile<'_>,
        visit: (&Visit, &Lanes),
        finish: Option<Finish<'_, O>>,
    ) -> bool {
        if const { S::BF16_DOTS && T::NARROW } && self.block.pairs_values() {
            self.values_of::<Bf16Pair, O, CAREFUL, false>(tile, visit, finish)
        } else {
            // All blocks are floats.
            self.values_of::<f32, O, CAREFUL, false>(tile, visit, finish)
        }
    }

    /// The same of few rows.
    fn few_values<const CAREFUL: bool>(
        &mut self,
        tile: &mut Tile<'_>,
        visit: (&Visit, &Lanes),
        finish: Option<Finish<'_, f32>>,
    ) -> bool {
        if const { S::BF16_DOTS && T::NARROW } && self.block.pairs_values() {
            self.values_of::<Bf16Pair, f32, CAREFUL, true>(tile, visit, finish)
        } else if const { S::INT8_DOTS && T::NARROW && !CAREFUL } && self.block.are_integers(1) {
            self.int8_values(tile, visit.0);
            false
        } else if const { CAREFUL || !T::NARROW } {
            self.block.widen(self.simd, 1, self.head);
            self.values_of::<f32, f32, CAREFUL, true>(tile, visit, finish)
        } else {
            with_stored!(self.block.rows(1).format(), E => {
                self.values_of::<E, f32, CAREFUL, true>(tile, visit, finish)
            })
        }
    }

    /// The same of values that are stored as `E`, and of `FEW` rows or of many.
    #[inline(always)]
    fn values_of<E: Stored, O: StoredMut, const CAREFUL: bool, const FEW: bool>(
        &mut self,
        tile: &mut Tile<'_>,
        (visit, earlier): (&Visit, &Lanes),
        finish: Option<Finish<'_, O>>,
    ) -> bool {
        E::vectorize(
            self.simd,
            Values::<E, O, CAREFUL, FEW> {
                prob: self.prob,
                values: visit.block(self.block.rows(1)),
                rows: tile.len(),
                seen: visit.seen.as_ref(),
                acc: tile.acc,
                fresh: std::mem::replace(&mut tile.fresh, false),
                earlier,
                acc_width: self.job.plan.layout.acc_width,
                finish,
                next: self.ahead.fetch.next.filter(|_| E::PRODUCTS == 1),
            },
        )
    }

    /// The same of values and probabilities in integers; nothing is finished so.
    fn int8_values(&mut self, tile: &mut Tile<'_>, visit: &Visit) {
        let values = Int8Values {
            prob: self.prob,
            values: visit.block(self.block.rows(1)),
            rows: tile.len(),
            acc_width: self.job.plan.layout.acc_width,
            fresh: std::mem::replace(&mut tile.fresh, false),
            acc: tile.acc,
            next: self.ahead.fetch.next,
        };
        Int8Dot::vectorize(self.simd, values);
    }

    /// The dense term of a visit, transposed to the tile's orientation: the biases, and -inf where
    /// `bits` hide a key.
    fn pack_dense(&mut self, tile: &Tile<'_>, visit: &Visit, bits: Option<&[u128; BLOCK_Q]>) {
        let problem = self.job.problem;
        let (first, end) = (visit.first, visit.keys.end);
        let relative = problem.terms.relative_bias;
        let mut rows = [StoredRow::EMPTY; BLOCK_Q];
        match (&problem.bias, relative, bits) {
            // Read where they lie.
            (Some(bias), None, None) => {
                for (stored, row) in rows.iter_mut().zip(tile.of.rows.clone()) {
                    let (head, i) = self.row(row);
                    *stored = bias.row((self.batch, head), i).part(first..first + end);
                }
            }
            (None, Some(bias), None) => {
                for (stored, row) in rows.iter_mut().zip(tile.of.rows.clone()) {
                    let (head, position) = self.position(row);
                    *stored = bias.row(head, first as i128 - position).into();
                }
            }
            _ => return self.pack_sums(tile, visit, bits),
        }
        let rows = &rows[..tile.len()];
        self.simd.vectorize(Pack { rows, width: end, lanes: tile.of.lanes, dst: self.dense });
    }

    /// The same where a row must be put together first.
    #[inline(never)]
    fn pack_sums(&mut self, tile: &Tile<'_>, visit: &Visit, bits: Option<&[u128; BLOCK_Q]>) {
        let problem = self.job.problem;
        let (first, end) = (visit.first, visit.keys.end);
        let mut sums = [[0.0_f32; BLOCK_KV]; BLOCK_Q];
        for ((lane, sums), row) in sums.iter_mut().enumerate().zip(tile.of.rows.clone()) {
            let sums = &mut sums[..end];
            if let Some(bias) = &problem.bias {
                let (head, i) = self.row(row);
                bias.widen((self.batch, head), i, first, sums);
            }
            if let Some(bias) = problem.terms.relative_bias {
                let (head, position) = self.position(row);
                let row = bias.row(head, first as i128 - position);
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            if let Some(bits) = bits {
                for (key, x) in sums.iter_mut().enumerate() {
                    *x = if bits[lane] >> key & 1 == 1 { *x } else { f32::NEG_INFINITY };
                }
            }
        }
        let rows = sums.each_ref().map(|row| StoredRow::from(row.as_slice()));
        let rows = &rows[..tile.len()];
        self.simd.vectorize(Pack { rows, width: end, lanes: tile.of.lanes, dst: self.dense });
    }

    /// Merges the current split into those before it.
    fn merge_split(&self, tile: &mut Tile<'_>) {
        let width = self.job.plan.layout.acc_width;
        let merge = Merge { simd: self.simd, to_log2: self.job.to_log2() };
        let TileRows { total, split, rows, .. } = &mut *tile.of;
        let sums = tile.total_acc.chunks_exact_mut(width).zip(tile.acc.chunks_exact(width));
        for (r, (total_acc, acc)) in sums.enumerate().take(rows.len()) {
            let total = (&mut total.row_ref.0[r], &mut total.row_sum.0[r], total_acc);
            merge.row(total, (split.row_ref.0[r], split.row_sum.0[r], acc));
        }
    }

    /// Writes the tile's rows to the outputs; says whether they are finite, but for rows whose
    /// scores are not.
    fn write_out(&self, tile: &Tile<'_>, care: Care) -> bool {
        match &self.job.outputs.out {
            Output::Native(out) => self.write_rows(tile, care, out),
            Output::F16(out) => self.write_rows(tile, care, out),
            Output::Bf16(out) => self.write_rows(tile, care, out),
        }
    }

    fn write_rows<E: StoredMut>(&self, tile: &Tile<'_>, care: Care, out: &ViewMut<'_, E>) -> bool {
        let (acc, state) = tile.totals();
        let factors = self.value_factors(tile, state);
        let value_dim = self.job.problem.dims().value_dim;
        let channels = self.job.problem.value_scales(self.kv_head);
        let mut all_finite = true;
        for (r, row) in tile.of.rows.clone().enumerate() {
            let (head, i) = self.row(row);
            let row_sum = state.row_sum.0[r];
            // SAFETY: the outputs were checked against the problem: the row exists and has
            // value_dim contiguous numbers, and no other item has a row of this number.
            let mut out = unsafe { OutRow::new(out.row(self.batch, head, i), value_dim) };
            if row_sum == 0.0 {
                out.fill(0.0);
            } else if !row_sum.is_finite() {
                out.fill(f32::NAN);
            } else {
                let src = &acc[r * self.job.plan.layout.acc_width..][..value_dim];
                let factor = factors.0[r];
                if care == Care::Headroom {
                    // What was finite without headroom stays.
                    // SAFETY: the passes before this one wrote the row.
                    let out = unsafe { out.written() };
                    for (c, (out, x)) in out.iter_mut().zip(src).enumerate() {
                        if !out.widen().is_finite() {
                            let channel = channels.map_or(1.0, |channels| channels[c]);
                            *out = E::round(x * factor * channel);
                        }
                    }
                } else {
                    all_finite &=
                        self.simd.vectorize(Normalize { src, factor, channels, dst: out });
                }
            }
        }
        all_finite
    }

    /// Writes the tile's rows of the log-sum-exp, if it is asked for.
    fn write_lse(&self, tile: &Tile<'_>) {
        let Some(lse) = &self.job.outputs.lse else { return };
        let (_, state) = tile.totals();
        for (r, row) in tile.of.rows.clone().enumerate() {
            let (head, i) = self.row(row);
            let (row_ref, row_sum) = (state.row_ref.0[r], state.row_sum.0[r]);
            let ln = f64::from(row_ref) * self.job.to_ln + f64::from(row_sum).ln();
            let ln = if row_sum == 0.0 { f64::NEG_INFINITY } else { ln };
            let ln = if row_sum.is_finite() { ln } else { f64::NAN };
            let ln = ln_add_exp(ln, self.job.problem.terms.sink(head));
            // SAFETY: the outputs were checked against the problem: lse has one element for each
            // row, and no other item has a row of this number.
            unsafe { lse.row(self.batch, head, i).write(ln as f32) };
        }
    }

    /// What each row's sums of values are multiplied by at the end.
    fn value_factors(&self, tile: &Tile<'_>, state: &Softmax) -> Lanes {
        let mut factors = self.factors(tile, state);
        if let Some(balance) = tile.balance() {
            factors.0.iter_mut().zip(&balance.0).for_each(|(factor, more)| *factor *= more);
        }
        factors
    }

    /// What each row's probabilities are multiplied by at the end: 1 / row_sum, or less where a sink takes a
    /// part. Of no account in rows without a positive sum.
    pub(super) fn factors(&self, tile: &Tile<'_>, state: &Softmax) -> Lanes {
        let mut factors = state.row_sum.map(|sum| 1.0 / sum);
        if let Some(sinks) = self.job.problem.terms.sinks {
            for (r, row) in tile.of.rows.clone().enumerate() {
                let (sum, sink) =
                    (f64::from(state.row_sum.0[r]), f64::from(sinks[self.row(row).0]));
                let row_ref = f64::from(state.row_ref.0[r]) * self.job.to_ln;
                // 1 / (sum + e^(sink - row_ref)), where the power may be infinite.
                factors.0[r] = (1.0 / (sum + (sink - row_ref).exp())) as f32;
            }
        }
        factors
    }
}
