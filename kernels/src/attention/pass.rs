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
//! nothing overflows. It takes the maximum of the first block in which it sees a key and keeps it;
//! a block that raises the row's sum to 2^60 or beyond is done again with the block's maximum as
//! the new reference. Both decisions are the row's own: its neighbours' bits do not depend on
//! them, nor its bits on its neighbours.
//!
//! **Care.** Masked keys are multiplied by a probability of -0.0, which is exact unless the value
//! is NaN or infinite; where it was, the item's output is not finite and the item is done again
//! with a value kernel that selects, to the same bits. What is still not finite is done once more
//! with references raised by 80 powers of two, so that no product of finite numbers overflows;
//! what is not finite even then comes from the inputs.

use super::ahead::Ahead;
use super::tile::{Softmax, Tile, TileRows, WHOLE_BLOCK};
use crate::microkernel::finish::{Combine, Normalize};
use crate::microkernel::pack::{Pack, Unpack};
use crate::microkernel::scores::Scores;
use crate::microkernel::sweep::{Dense, Sweep, Units};
use crate::microkernel::values::Values;
use crate::microkernel::{BLOCK_KV, BLOCK_Q, Block, Lanes};
use crate::plan::{self, Layout, MAX_TILES, Plan, SPLIT_KV};
use crate::problem::{Outputs, Problem};
use crate::simd::Simd;
use crate::view::Rows;
use std::ops::Range;

/// Everything about a call that its items share.
pub(crate) struct Job<'a, 'p> {
    pub(crate) problem: &'a Problem<'p, f32>,
    pub(crate) plan: Plan,
    outputs: &'a Outputs<'p, f32>,
    units: Units,
    /// From a reference, in those units, to a power of e.
    to_ln: f64,
    /// Scores are powers of e; the bias that they need may be 0.
    natural: bool,
    /// Scores have a dense term: no block goes straight to probabilities.
    masked: bool,
}

impl<'a, 'p> Job<'a, 'p> {
    pub(crate) fn new(
        problem: &'a Problem<'p, f32>,
        outputs: &'a Outputs<'p, f32>,
        plan: Plan,
    ) -> Self {
        use std::f64::consts::{LN_2, LOG2_E};
        let natural = problem.has_natural_scores();
        let (to_log2, to_ln) = if natural { (LOG2_E, 1.0) } else { (1.0, LN_2) };
        Self {
            problem,
            plan,
            outputs,
            units: Units { factor: (problem.scale / to_ln) as f32, to_log2: to_log2 as f32 },
            to_ln,
            natural,
            masked: problem.has_dense_term(),
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

    /// The row sum from which a reference is too low.
    fn limit(self) -> f32 {
        (60.0 - self.headroom()).exp2()
    }
}

/// What a thread keeps from item to item beside its scratch.
pub(crate) type Local = [TileRows; MAX_TILES];

fn ahead(ahead: &mut Option<Ahead<'_, '_>>) {
    if let Some(ahead) = ahead {
        ahead.step();
    }
}

/// A tile's visit to a key block.
struct Visit<'a> {
    /// The block's first key.
    first: usize,
    /// The keys that some row sees, counted from the first.
    keys: Range<usize>,
    /// Whether every row sees all of those.
    open: bool,
    /// For each lane the keys it sees, counted from the first.
    seen: &'a [(usize, usize); BLOCK_Q],
}

impl<'a> Visit<'a> {
    /// The visit of `tile` to the block at `first`, of which `seen` is what `Tile::seen` says.
    fn new(tile: &Tile<'_>, first: usize, seen: &'a Option<[(usize, usize); BLOCK_Q]>) -> Self {
        let keys = tile.keys_of_block(first);
        Self { first, keys, open: seen.is_none(), seen: seen.as_ref().unwrap_or(&WHOLE_BLOCK) }
    }

    /// The block's keys, or values.
    fn block<'r>(&self, rows: Rows<'r, f32>) -> Block<'r> {
        Block { rows, first: self.first, start: self.keys.start, end: self.keys.end }
    }
}

/// Which rows take a reference from a block, and by how much their earlier sums shrink for it.
struct References {
    /// Set in those rows.
    needs: Lanes,
    rescale: Lanes,
}

/// One item in the hands of one thread.
pub(crate) struct Item<'a, 'p, S> {
    simd: S,
    job: &'a Job<'a, 'p>,
    batch: usize,
    kv_head: usize,
    keys: Rows<'p, f32>,
    values: Rows<'p, f32>,
    prob: &'a mut [f32],
    bias: &'a mut [f32],
    ahead: Option<Ahead<'a, 'p>>,
}

impl<'a, 'p, S: Simd> Item<'a, 'p, S> {
    /// Computes the item's rows and writes them to the outputs.
    /// `next` is the item that the thread will probably run after it.
    pub(crate) fn run(
        job: &'a Job<'a, 'p>,
        simd: S,
        item: plan::Item,
        next: Option<plan::Item>,
        (local, scratch): (&'a mut Local, &'a mut [f32]),
    ) {
        let layout = &job.plan.layout;
        let (prob, scratch) = scratch.split_at_mut(Layout::PROB);
        let (bias, scratch) = scratch.split_at_mut(layout.bias);
        let mut this = Self {
            simd,
            job,
            batch: item.batch,
            kv_head: item.kv_head,
            keys: job.problem.key.rows(item.batch, item.kv_head),
            values: job.problem.value.rows(item.batch, item.kv_head),
            prob,
            bias,
            ahead: next
                .map(|next| Ahead::new((job.problem, &job.plan), next, (item.batch, item.kv_head))),
        };
        let mut tiles = local.each_mut().map(Tile::new);
        let tiles = &mut tiles[..item.rows.len().div_ceil(BLOCK_Q)];
        let parts = scratch.chunks_exact_mut(layout.tile());
        for ((t, tile), part) in tiles.iter_mut().enumerate().zip(parts) {
            let start = item.rows.start + t * BLOCK_Q;
            let rows = start..(start + BLOCK_Q).min(item.rows.end);
            let lanes = rows.len().next_multiple_of(S::LANES);
            tile.begin(job, item.batch, rows, lanes, part);
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
            finite &= self.finish(tile, care);
        }
        finite
    }

    /// The query head and the query of a flattened row.
    fn row(&self, row: usize) -> (usize, usize) {
        self.job.plan.query_row(self.kv_head, row)
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
        for split in first_split..end.div_ceil(SPLIT_KV) {
            if split > first_split {
                tiles.iter_mut().for_each(Tile::reset_split);
            }
            let keys = (split * SPLIT_KV).max(start / BLOCK_KV * BLOCK_KV)
                ..((split + 1) * SPLIT_KV).min(end);
            for first in keys.step_by(BLOCK_KV) {
                for tile in tiles.iter_mut() {
                    self.block(tile, first, care);
                }
            }
            if self.job.plan.layout.merged > 0 {
                tiles.iter_mut().for_each(|tile| self.merge_split(tile));
            }
        }
    }

    /// One key block through one tile.
    fn block(&mut self, tile: &mut Tile<'_>, first: usize, care: Care) {
        let ranges = tile.seen(first);
        let visit = Visit::new(tile, first, &ranges);
        if visit.keys.is_empty() {
            return;
        }
        let before = tile.of.split;
        let mut refs = References {
            needs: before.row_ref.flags(|row_ref| row_ref == f32::NEG_INFINITY),
            rescale: Lanes::splat(1.0),
        };
        let known = !(0..tile.of.lanes).any(|lane| refs.needs.is_set(lane));
        let whole = visit.keys.start == 0 && visit.keys.end.is_multiple_of(8);
        if visit.open && known && whole && !self.job.masked {
            self.known(tile, &visit);
        } else {
            if self.job.masked {
                self.pack_bias(tile, first, visit.keys.end);
            }
            self.swept(tile, &visit, &mut refs, care);
        }

        // A row sum that grew too large, or is no number, wants a higher reference, once.
        let limit = care.limit();
        let mut tripped = false;
        for lane in 0..tile.of.lanes {
            let (old, new) = (before.row_sum.0[lane], tile.of.split.row_sum.0[lane]);
            if !refs.needs.is_set(lane) && old < limit && (new >= limit || new.is_nan()) {
                refs.needs.set(lane);
                tripped = true;
            }
        }
        if tripped {
            tile.of.split = before;
            self.swept(tile, &visit, &mut refs, care);
            let width = self.job.plan.layout.acc_width;
            let rows = if tile.fresh { 0 } else { tile.len() };
            for (row, &factor) in tile.acc.chunks_exact_mut(width).zip(&refs.rescale.0).take(rows) {
                if factor != 1.0 {
                    row.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
        if care == Care::Fast {
            self.values::<false>(tile, &visit);
        } else {
            self.values::<true>(tile, &visit);
        }
    }

    /// Probabilities straight from the score kernel: every row sees all keys, by the reference it
    /// has.
    fn known(&mut self, tile: &mut Tile<'_>, visit: &Visit<'_>) {
        let mut block_sum = Lanes::splat(0.0);
        self.simd.vectorize(Scores::<true> {
            q_t: tile.q_t,
            keys: visit.block(self.keys),
            lanes: tile.of.lanes,
            factor: self.job.units.factor,
            row_ref: &tile.of.split.row_ref,
            block_sum: &mut block_sum,
            seen: visit.seen,
            prob: self.prob,
            between: &mut || ahead(&mut self.ahead),
        });
        for (sum, more) in tile.of.split.row_sum.0.iter_mut().zip(&block_sum.0) {
            *sum += more;
        }
    }

    /// Probabilities by way of dot products in memory; rows in need take the block's maximum as
    /// their reference.
    fn swept(&mut self, tile: &mut Tile<'_>, visit: &Visit<'_>, refs: &mut References, care: Care) {
        self.simd.vectorize(Scores::<false> {
            q_t: tile.q_t,
            keys: visit.block(self.keys),
            lanes: tile.of.lanes,
            factor: self.job.units.factor,
            row_ref: &tile.of.split.row_ref,
            block_sum: &mut Lanes::splat(0.0),
            seen: visit.seen,
            prob: self.prob,
            between: &mut || ahead(&mut self.ahead),
        });
        self.simd.vectorize(Sweep {
            prob: self.prob,
            dense: match (self.job.natural, self.job.masked) {
                (true, _) => Dense::Bias(self.bias),
                (false, true) => Dense::Mask(self.bias),
                (false, false) => Dense::None,
            },
            start: visit.keys.start,
            end: visit.keys.end,
            lanes: tile.of.lanes,
            seen: (!visit.open).then_some(visit.seen),
            units: self.job.units,
            headroom: care.headroom() / self.job.units.to_log2,
            needs: &refs.needs,
            row_ref: &mut tile.of.split.row_ref,
            row_sum: &mut tile.of.split.row_sum,
            rescale: &mut refs.rescale,
        });
    }

    fn values<const CAREFUL: bool>(&mut self, tile: &mut Tile<'_>, visit: &Visit<'_>) {
        self.simd.vectorize(Values::<CAREFUL> {
            prob: self.prob,
            values: visit.block(self.values),
            rows: tile.len(),
            seen: visit.seen,
            acc: tile.acc,
            fresh: std::mem::replace(&mut tile.fresh, false),
            acc_width: self.job.plan.layout.acc_width,
        });
    }

    /// The dense term of a block, transposed to the tile's orientation: the bias, or 0 without one,
    /// and -inf where the boolean mask is false.
    fn pack_bias(&mut self, tile: &Tile<'_>, first: usize, end: usize) {
        let problem = self.job.problem;
        let mut dense = [[0.0_f32; BLOCK_KV]; BLOCK_Q];
        for (dense, row) in dense.iter_mut().zip(tile.of.rows.clone()) {
            let (head, i) = self.row(row);
            let dense = &mut dense[..end];
            if let Some(bias) = &problem.bias {
                dense.copy_from_slice(&bias.rows(self.batch, head).slice(i)[first..first + end]);
            }
            if let Some(mask) = &problem.boolean {
                let mask = &mask.rows(self.batch, head).slice(i)[first..first + end];
                for (x, &attend) in dense.iter_mut().zip(mask) {
                    *x = if attend { *x } else { f32::NEG_INFINITY };
                }
            }
        }
        let rows = dense.each_ref().map(|row| row.as_slice());
        self.simd.vectorize(Pack { rows: &rows, width: end, lanes: tile.of.lanes, dst: self.bias });
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
    fn finish(&self, tile: &Tile<'_>, care: Care) -> bool {
        let outputs = self.job.outputs;
        let (acc, state) = self.totals(tile);
        let value_dim = self.job.problem.dims().value_dim;
        let mut all_finite = true;
        for (r, row) in tile.of.rows.clone().enumerate() {
            let (head, i) = self.row(row);
            let (row_ref, row_sum) = (state.row_ref.0[r], state.row_sum.0[r]);
            // SAFETY: the outputs were checked against the problem: the row exists and has
            // value_dim contiguous floats, and no other item has a row of this number. It may be
            // uninitialised: the first pass writes it whole and reads nothing; only the pass with
            // headroom, which comes after, reads.
            let out = unsafe {
                std::slice::from_raw_parts_mut(outputs.out.row(self.batch, head, i), value_dim)
            };
            if row_sum == 0.0 {
                out.fill(0.0);
            } else if !row_sum.is_finite() {
                out.fill(f32::NAN);
            } else {
                let src = &acc[r * self.job.plan.layout.acc_width..][..value_dim];
                let factor = 1.0 / row_sum;
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
            if let Some(lse) = &outputs.lse
                && care != Care::Headroom
            {
                let ln = f64::from(row_ref) * self.job.to_ln + f64::from(row_sum).ln();
                let ln = if row_sum == 0.0 { f64::NEG_INFINITY } else { ln };
                let ln = if row_sum.is_finite() { ln } else { f64::NAN };
                // SAFETY: as above; lse has one element for each row.
                unsafe { lse.row(self.batch, head, i).write(ln as f32) };
            }
        }
        all_finite
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
        let factor = state.row_sum.map(|sum| if sum == 0.0 { 0.0 } else { 1.0 / sum });
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
            let ranges = tile.seen(first);
            let visit = Visit::new(tile, first, &ranges);
            let keys = visit.keys.clone();
            if self.job.masked {
                self.pack_bias(tile, first, keys.end);
            }
            let mut refs = References { needs: Lanes::splat(0.0), rescale: Lanes::splat(1.0) };
            self.swept(tile, &visit, &mut refs, Care::Fast);
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
