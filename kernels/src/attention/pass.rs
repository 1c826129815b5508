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

use super::ahead::Ahead;
use super::tile::{Softmax, Tile, TileRows};
use crate::microkernel::finish::{Combine, Dot, Normalize};
use crate::microkernel::pack::{Pack, Unpack};
use crate::microkernel::scores::Scores;
use crate::microkernel::sweep::{Redo, Sweep, Units};
use crate::microkernel::terms::Scoring;
use crate::microkernel::values::{Finish, OutRows, Values};
use crate::microkernel::{BLOCK_KV, BLOCK_Q, Block, Lanes, Seen};
use crate::plan::{self, Layout, Plan, SPLIT_KV};
use crate::problem::{Bias, Outputs, Problem};
use crate::simd::Simd;
use crate::term::{ROW_FACTS, Row};
use crate::view::Rows;
use std::ops::Range;

/// Everything about a call that its items share.
pub(crate) struct Job<'a, 'p, T> {
    pub(crate) problem: &'a Problem<'p, f32>,
    pub(crate) plan: Plan,
    outputs: &'a Outputs<'p, f32>,
    units: Units,
    /// From a reference, in those units, to a power of e.
    to_ln: f64,
    /// Where scores change.
    terms: T,
    /// Scores have a dense term, mask or bias.
    dense: bool,
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
            units: Units { factor: (problem.scale / to_ln) as f32, to_log2: to_log2 as f32 },
            to_ln,
            terms,
            dense: problem.has_dense_term(),
        }
    }
}

/// How much care a pass takes; each level is entered when the one before left something not
/// finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
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

    /// The sum of a block from which a reference is too low.
    fn limit(self) -> f32 {
        (60.0 - self.headroom()).exp2()
    }
}

/// A tile's visit to a key block.
struct Visit<'a> {
    /// The block's first key.
    first: usize,
    /// The keys that some row sees, counted from the first.
    keys: Range<usize>,
    /// Which of them each row sees; `None`: all.
    seen: Option<&'a Seen>,
}

impl<'a> Visit<'a> {
    /// The visit of `tile` to the block at `first`, of which `seen` is what `Tile::seen` says.
    fn new(tile: &Tile<'_>, first: usize, seen: Option<&'a Seen>) -> Self {
        Self { first, keys: tile.keys_of_block(first), seen }
    }

    /// The block's keys, or values.
    fn block<'r>(&self, rows: Rows<'r, f32>) -> Block<'r> {
        Block { rows, first: self.first, start: self.keys.start, end: self.keys.end }
    }
}

/// The growth of scores over a row's keys of a split, in powers of e, from which on the last of them
/// gives the reference.
const LEAST_GROWTH: f32 = 16.0;

/// The sum of magnitudes of a score up to which its rounding errors are no matter for a reference.
const MOST_MAGNITUDE: f64 = 1e6;

/// The most numbers that a row may carry along.
const MAX_NUMBERS: usize = 64;

/// ln(e^a + e^b), NaN if either is.
fn ln_add_exp(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// One item in the hands of one thread.
pub(crate) struct Item<'a, 'p, S, T> {
    simd: S,
    job: &'a Job<'a, 'p, T>,
    batch: usize,
    kv_head: usize,
    keys: Rows<'p, f32>,
    values: Rows<'p, f32>,
    prob: &'a mut [f32],
    dense: &'a mut [f32],
    ahead: Ahead<'p>,
}

impl<'a, 'p, S: Simd, T: Scoring> Item<'a, 'p, S, T> {
    /// Computes the item's rows and writes them to the outputs.
    /// `next` is the item that the thread will probably run after it.
    pub(crate) fn run<const TILES: usize>(
        job: &'a Job<'a, 'p, T>,
        simd: S,
        item: plan::Item,
        next: Option<plan::Item>,
        (local, scratch): (&'a mut [TileRows; TILES], &'a mut [f32]),
    ) {
        let layout = &job.plan.layout;
        let (prob, scratch) = scratch.split_at_mut(Layout::PROB);
        let (dense, scratch) = scratch.split_at_mut(layout.dense);
        let mut this = Self {
            simd,
            job,
            batch: item.batch,
            kv_head: item.kv_head,
            keys: job.problem.key.rows(item.batch, item.kv_head),
            values: job.problem.value.rows(item.batch, item.kv_head),
            prob,
            dense,
            ahead: Ahead::new((job.problem, &job.plan), (item.batch, item.kv_head), next),
        };
        let mut tiles = local.each_mut().map(Tile::new);
        let tiles = &mut tiles[..item.rows.len().div_ceil(BLOCK_Q)];
        let parts = scratch.chunks_exact_mut(layout.tile());
        for ((t, tile), part) in tiles.iter_mut().enumerate().zip(parts) {
            let start = item.rows.start + t * BLOCK_Q;
            let rows = start..(start + BLOCK_Q).min(item.rows.end);
            let lanes = rows.len().next_multiple_of(S::LANES);
            tile.begin((job.problem, layout), item.batch, rows, lanes, part);
            this.note_rows(tile);
        }
        this.compute(tiles);
    }

    fn compute(&mut self, tiles: &mut [Tile<'_>]) {
        for tile in tiles.iter_mut() {
            self.pack_queries(tile);
        }
        let finite = self.pass(tiles, Care::Fast) || self.pass(tiles, Care::Select);
        // Before references are raised, which may be for another row's sake.
        if self.job.outputs.weights.is_some() {
            tiles.iter_mut().for_each(|tile| self.weights(tile));
        }
        if !finite {
            self.pass(tiles, Care::Headroom);
        }
    }

    /// Computes the tiles' outputs and says whether they are finite.
    fn pass(&mut self, tiles: &mut [Tile<'_>], care: Care) -> bool {
        self.sums(tiles, care);
        let mut finite = true;
        for tile in tiles.iter() {
            finite &= tile.written.unwrap_or_else(|| self.write_out(tile, care));
            if care != Care::Headroom {
                self.write_lse(tile);
            }
        }
        finite
    }

    /// The query head and the query of a flattened row.
    fn row(&self, row: usize) -> (usize, usize) {
        self.job.plan.query_row(self.kv_head, row)
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
            let (head, query) = self.row(row);
            let position = self.job.problem.position(query);
            numbers.fill(0.0);
            // Where positions do not fit a term does not ask for them.
            let position = i64::try_from(position).unwrap_or(0);
            self.job.terms.row(Row { batch: self.batch, head, query, position }, numbers);
            let facts: [f32; ROW_FACTS] = [head as f32, query as f32, position as f32];
            for (n, &x) in facts.iter().chain(numbers.iter()).enumerate() {
                tile.term_rows[n * BLOCK_Q + lane] = x;
            }
        }
    }

    fn pack_queries(&self, tile: &mut Tile<'_>) {
        let query = &self.job.problem.query;
        let mut rows: [&[f32]; BLOCK_Q] = [&[]; BLOCK_Q];
        for (slice, row) in rows.iter_mut().zip(tile.of.rows.clone()) {
            let (head, i) = self.row(row);
            *slice = query.rows(self.batch, head).slice(i);
        }
        self.simd.vectorize(Pack {
            rows: &rows[..tile.len()],
            width: self.job.problem.dims().head_dim,
            lanes: tile.of.lanes,
            dst: tile.q_t,
        });
    }

    /// The splits and blocks that the tiles see, tile by tile within a block.
    fn sums(&mut self, tiles: &mut [Tile<'_>], care: Care) {
        tiles.iter_mut().for_each(Tile::reset);
        let start = tiles.iter().map(|tile| tile.of.any.start).min().unwrap_or(0);
        let end = tiles.iter().map(|tile| tile.of.any.end).max().unwrap_or(0);
        let first_split = start / SPLIT_KV;
        self.ahead.begin(end - start.min(end), tiles.len());
        for split in first_split..end.div_ceil(SPLIT_KV) {
            if split > first_split {
                tiles.iter_mut().for_each(Tile::reset_split);
            }
            let keys = (split * SPLIT_KV).max(start / BLOCK_KV * BLOCK_KV)
                ..((split + 1) * SPLIT_KV).min(end);
            if self.job.terms.grow() && !self.job.dense {
                tiles.iter_mut().for_each(|tile| self.foresee(tile, split, care));
            }
            for first in keys.step_by(BLOCK_KV) {
                let next = (first + BLOCK_KV).min(end)..(first + 2 * BLOCK_KV).min(end);
                self.ahead.block(next, tiles.len());
                for tile in tiles.iter_mut() {
                    self.block(tile, first, care);
                }
            }
            if self.job.plan.layout.merged > 0 {
                tiles.iter_mut().for_each(|tile| self.merge_split(tile));
            }
        }
    }

    /// References for rows whose scores grow so much over a split that those of its first keys would
    /// soon be too low: the score of the last key that the row sees of the split, nearly. No mask but
    /// that of structure may hide it.
    fn foresee(&self, tile: &mut Tile<'_>, split: usize, care: Care) {
        let Problem { query, terms, scale, .. } = self.job.problem;
        let heads = self.job.problem.dims().q_heads;
        // The lanes beyond the rows are the last row with a query of zeros.
        for r in 0..tile.of.lanes {
            let (head, i) = self.row((tile.of.rows.start + r).min(tile.of.rows.end - 1));
            let seen = self.job.problem.visible_keys(self.batch, i);
            let start = seen.start.max(split * SPLIT_KV);
            let end = seen.end.min((split + 1) * SPLIT_KV);
            let slope = tile.term_rows[ROW_FACTS * BLOCK_Q + r];
            if start >= end || slope * (end - start) as f32 <= LEAST_GROWTH {
                continue;
            }
            let key = end - 1;
            let [dot, magnitude] = if r < tile.len() {
                let rows = [query.rows(self.batch, head).slice(i), self.keys.slice(key)];
                self.simd.vectorize(Dot(rows))
            } else {
                [0.0; 2]
            };
            // A sum in another order than the kernel's must be near it.
            if magnitude * scale.abs() < MOST_MAGNITUDE {
                let bias = terms.bias((head, heads), key as i128 - self.job.problem.position(i));
                let score = (terms.capped(scale * dot) + bias) as f32;
                tile.of.split.row_ref.0[r] = score + care.headroom() / self.job.units.to_log2;
            }
        }
    }

    /// One key block through one tile.
    fn block(&mut self, tile: &mut Tile<'_>, first: usize, care: Care) {
        let seen = tile.seen(first);
        let visit = Visit::new(tile, first, seen.as_ref());
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
        if care == Care::Fast {
            tile.written = self.last_values(tile, &visit);
            if tile.written.is_none() {
                self.values::<false>(tile, &visit, None);
            }
        } else {
            self.values::<true>(tile, &visit, None);
        }
    }

    /// The values of a tile's last block, straight to the output; says whether it is finite.
    /// `None`: nothing was done, since there is more to come or a row's sum is no positive number.
    fn last_values(&mut self, tile: &mut Tile<'_>, visit: &Visit<'_>) -> Option<bool> {
        let is_last = visit.first + BLOCK_KV >= tile.of.any.end;
        if !is_last || self.job.plan.layout.merged > 0 {
            return None;
        }
        let sums = &tile.of.split.row_sum.0[..tile.len()];
        if !sums.iter().fold(true, |all, &sum| all & (sum > 0.0) & (sum < f32::INFINITY)) {
            return None;
        }
        let factor = self.factors(tile, &tile.of.split);
        let rows = tile.of.rows.clone().map(|row| {
            let (head, i) = self.row(row);
            self.job.outputs.out.row(self.batch, head, i)
        });
        // SAFETY: the outputs were checked against the problem: the rows exist, have value_dim
        // contiguous floats, and no other item has rows of these numbers.
        let out = unsafe { OutRows::new(rows, self.job.problem.dims().value_dim) };
        let finish = Finish { factor: &factor, out: &out, finite: true };
        Some(self.values::<false>(tile, visit, Some(finish)))
    }

    /// The probabilities of a visit, and their sums. Rows without a reference take one.
    fn prob(&mut self, tile: &mut Tile<'_>, visit: &Visit<'_>, care: Care) -> Lanes {
        let mut sums = Lanes::splat(0.0);
        if self.job.dense {
            self.pack_dense(tile, visit.first, visit.keys.end);
        }
        if T::IN_MEMORY || (T::PLAIN && self.job.dense) {
            self.scores::<true>(tile, visit, care, (&mut sums, None));
        } else {
            self.scores::<false>(tile, visit, care, (&mut sums, None));
        }
        sums
    }

    /// The probabilities again, with higher references in `rows`, whose earlier sums shrink.
    fn redo(&mut self, tile: &mut Tile<'_>, visit: &Visit<'_>, rows: &Lanes, care: Care) -> Lanes {
        let (mut sums, mut rescale) = (Lanes::splat(0.0), Lanes::splat(1.0));
        let redo = Redo { rows, rescale: &mut rescale };
        self.scores::<true>(tile, visit, care, (&mut sums, Some(redo)));
        for (sum, factor) in tile.of.split.row_sum.0.iter_mut().zip(&rescale.0) {
            *sum *= factor;
        }
        let width = self.job.plan.layout.acc_width;
        let rows = if tile.fresh { 0 } else { tile.len() };
        for (row, &factor) in tile.acc.chunks_exact_mut(width).zip(&rescale.0).take(rows) {
            if factor != 1.0 {
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
        sums
    }

    fn scores<const SWEPT: bool>(
        &mut self,
        tile: &mut Tile<'_>,
        visit: &Visit<'_>,
        care: Care,
        (block_sum, redo): (&mut Lanes, Option<Redo<'_>>),
    ) {
        self.simd.vectorize(Scores::<T, SWEPT> {
            q_t: tile.q_t,
            keys: visit.block(self.keys),
            sweep: Sweep {
                prob: self.prob,
                dense: self.job.dense.then_some(&*self.dense),
                terms: &self.job.terms,
                rows: tile.term_rows,
                place: (self.batch, visit.first),
                len: tile.of.rows.len(),
                lanes: tile.of.lanes,
                seen: visit.seen,
                units: self.job.units,
                headroom: care.headroom() / self.job.units.to_log2,
                row_ref: &mut tile.of.split.row_ref,
                block_sum,
                redo,
            },
            fetch: &mut self.ahead.fetch,
        });
    }

    /// Adds the visit's values to the sums, or finishes them; says whether what it finished is
    /// finite.
    fn values<const CAREFUL: bool>(
        &mut self,
        tile: &mut Tile<'_>,
        visit: &Visit<'_>,
        finish: Option<Finish<'_>>,
    ) -> bool {
        self.simd.vectorize(Values::<CAREFUL> {
            prob: self.prob,
            values: visit.block(self.values),
            rows: tile.len(),
            seen: visit.seen,
            acc: tile.acc,
            fresh: std::mem::replace(&mut tile.fresh, false),
            acc_width: self.job.plan.layout.acc_width,
            finish,
        })
    }

    /// The dense term of a block, transposed to the tile's orientation: the biases, or 0 without
    /// any, and -inf where the boolean mask is false.
    fn pack_dense(&mut self, tile: &Tile<'_>, first: usize, end: usize) {
        let problem = self.job.problem;
        let relative = problem.terms.relative_bias;
        let mut rows: [&[f32]; BLOCK_Q] = [&[]; BLOCK_Q];
        match (&problem.bias, relative, &problem.boolean) {
            // Read where they lie.
            (Some(Bias::Native(bias)), None, None) => {
                for (slice, row) in rows.iter_mut().zip(tile.of.rows.clone()) {
                    let (head, i) = self.row(row);
                    *slice = &bias.rows(self.batch, head).slice(i)[first..first + end];
                }
            }
            (None, Some(bias), None) => {
                for (slice, row) in rows.iter_mut().zip(tile.of.rows.clone()) {
                    let (head, i) = self.row(row);
                    *slice = bias.row(head, first as i128 - problem.position(i));
                }
            }
            _ => return self.pack_sums(tile, first, end),
        }
        let rows = &rows[..tile.len()];
        self.simd.vectorize(Pack { rows, width: end, lanes: tile.of.lanes, dst: self.dense });
    }

    /// The same where a row must be put together first.
    #[inline(never)]
    fn pack_sums(&mut self, tile: &Tile<'_>, first: usize, end: usize) {
        let problem = self.job.problem;
        let mut sums = [[0.0_f32; BLOCK_KV]; BLOCK_Q];
        for (sums, row) in sums.iter_mut().zip(tile.of.rows.clone()) {
            let (head, i) = self.row(row);
            let sums = &mut sums[..end];
            if let Some(bias) = &problem.bias {
                bias.widen(self.batch, head, i, first, sums);
            }
            if let Some(bias) = problem.terms.relative_bias {
                let row = bias.row(head, first as i128 - problem.position(i));
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            if let Some(mask) = &problem.boolean {
                let mask = &mask.rows(self.batch, head).slice(i)[first..first + end];
                for (x, &attend) in sums.iter_mut().zip(mask) {
                    *x = if attend { *x } else { f32::NEG_INFINITY };
                }
            }
        }
        let rows = sums.each_ref().map(|row| row.as_slice());
        let rows = &rows[..tile.len()];
        self.simd.vectorize(Pack { rows, width: end, lanes: tile.of.lanes, dst: self.dense });
    }

    /// `total = merge(total, split)`, row by row; an empty side changes no bit of the other.
    fn merge_split(&self, tile: &mut Tile<'_>) {
        let width = self.job.plan.layout.acc_width;
        let power = |x: f32| (x * self.job.units.to_log2).exp2();
        for r in 0..tile.len() {
            let (old, new) = (tile.of.total.row_ref.0[r], tile.of.split.row_ref.0[r]);
            // A sum of NaN counts, though a row without a number among its scores has no reference.
            if new == f32::NEG_INFINITY && tile.of.split.row_sum.0[r] == 0.0 {
                continue;
            }
            let top = if old > new { old } else { new };
            let (a, b) = (power(old - top), power(new - top));
            tile.of.total.row_ref.0[r] = top;
            tile.of.total.row_sum.0[r] =
                a * tile.of.total.row_sum.0[r] + b * tile.of.split.row_sum.0[r];
            let row = r * width..(r + 1) * width;
            self.simd.vectorize(Combine {
                dst: &mut tile.total_acc[row.clone()],
                a,
                src: &tile.acc[row],
                b,
            });
        }
    }

    /// Writes the tile's rows to the outputs; says whether they are finite, but for rows whose
    /// scores are not.
    fn write_out(&self, tile: &Tile<'_>, care: Care) -> bool {
        let (acc, state) = self.totals(tile);
        let factors = self.factors(tile, state);
        let value_dim = self.job.problem.dims().value_dim;
        let mut all_finite = true;
        for (r, row) in tile.of.rows.clone().enumerate() {
            let (head, i) = self.row(row);
            let row_sum = state.row_sum.0[r];
            // SAFETY: the outputs were checked against the problem: the row exists and has
            // value_dim contiguous floats, and no other item has a row of this number. It may be
            // uninitialised: the first pass writes it whole and reads nothing; only the pass with
            // headroom, which comes after, reads.
            let out = unsafe {
                let out = self.job.outputs.out.row(self.batch, head, i);
                std::slice::from_raw_parts_mut(out, value_dim)
            };
            if row_sum == 0.0 {
                out.fill(0.0);
            } else if !row_sum.is_finite() {
                out.fill(f32::NAN);
            } else {
                let src = &acc[r * self.job.plan.layout.acc_width..][..value_dim];
                let factor = factors.0[r];
                if care == Care::Headroom {
                    // What was finite without headroom stays.
                    for (out, x) in out.iter_mut().zip(src) {
                        if !out.is_finite() {
                            *out = x * factor;
                        }
                    }
                } else {
                    all_finite &= self.simd.vectorize(Normalize { src, factor, dst: out });
                }
            }
        }
        all_finite
    }

    /// Writes the tile's rows of the log-sum-exp, if it is asked for.
    fn write_lse(&self, tile: &Tile<'_>) {
        let Some(lse) = &self.job.outputs.lse else { return };
        let (_, state) = self.totals(tile);
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

    /// What each row's sums are multiplied by at the end: 1 / row_sum, or less where a sink takes a
    /// part. Of no account in rows without a positive sum.
    fn factors(&self, tile: &Tile<'_>, state: &Softmax) -> Lanes {
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

    /// The sums over all splits.
    fn totals<'t>(&self, tile: &'t Tile<'_>) -> (&'t [f32], &'t Softmax) {
        if self.job.plan.layout.merged > 0 {
            (&*tile.total_acc, &tile.of.total)
        } else {
            (&*tile.acc, &tile.of.split)
        }
    }

    /// The second pass, for the weights: the scores again, block by block, now with the final
    /// reference and sum.
    fn weights(&mut self, tile: &mut Tile<'_>) {
        let Some(weights) = &self.job.outputs.weights else { return };
        let seq_kv = self.job.problem.dims().seq_kv;
        let (_, state) = self.totals(tile);
        let mut factor = self.factors(tile, state);
        for (factor, &sum) in factor.0.iter_mut().zip(&state.row_sum.0) {
            *factor = if sum == 0.0 { 0.0 } else { *factor };
        }
        let row_ref = state.row_ref.map(|x| if x == f32::NEG_INFINITY { 0.0 } else { x });
        tile.of.split.row_ref = row_ref;
        let mut rows: [&mut [f32]; BLOCK_Q] = std::array::from_fn(|_| Default::default());
        for (slice, row) in rows.iter_mut().zip(tile.of.rows.clone()) {
            let (head, i) = self.row(row);
            // SAFETY: the outputs were checked against the problem: the row exists and has
            // seq_kv contiguous floats, and no other item has a row of this number.
            *slice =
                unsafe { std::slice::from_raw_parts_mut(weights.row(self.batch, head, i), seq_kv) };
            slice[..tile.of.any.start].fill(0.0);
            slice[tile.of.any.end..].fill(0.0);
        }
        let first_block = tile.of.any.start / BLOCK_KV * BLOCK_KV;
        for first in (first_block..tile.of.any.end).step_by(BLOCK_KV) {
            let seen = tile.seen(first);
            let visit = Visit::new(tile, first, seen.as_ref());
            let keys = visit.keys.clone();
            self.prob(tile, &visit, Care::Fast);
            let at = first + keys.start..first + keys.end;
            let mut parts: [&mut [f32]; BLOCK_Q] = std::array::from_fn(|_| Default::default());
            for (part, row) in parts.iter_mut().zip(rows.iter_mut()).take(tile.len()) {
                *part = &mut row[at.clone()];
            }
            self.simd.vectorize(Unpack {
                prob: self.prob,
                start: keys.start,
                factor: &factor,
                rows: &mut parts[..tile.len()],
            });
        }
    }
}
