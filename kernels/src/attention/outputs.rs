//! The second pass over a tile: everything that needs a row's scores, or its final weights, key by
//! key. Block by block the scores are computed again, by the kernels and in the order of the first
//! pass, now with each row's final reference and sum, and turned over to the outputs that asked.
//!
//! What it needs beside the tile is one block of numbers, whatever the sequence.
//!
//! **Column sums** add up over the rows of a head, which may be several items in the hands of
//! several threads. Adding as items come would make the bits depend on who is first, and partial
//! sums to be merged later would need memory for every item and key, so one thread takes all items
//! of a kv head in order (`attention::Drive`): within a tile row by row, then tile by tile.

use std::ops::Range;

use super::pass::{Care, Item};
use super::tile::{Tile, Visit};
use crate::microkernel::pack::Unpack;
use crate::microkernel::terms::Scoring;
use crate::microkernel::{BLOCK_KV, BLOCK_Q, Lanes};
use crate::outputs::Stage;
use crate::simd::Simd;

/// A block of numbers, row by row.
type Block = [[f32; BLOCK_KV]; BLOCK_Q];

impl<S: Simd, T: Scoring> Item<'_, '_, S, T> {
    /// Fills the outputs that the tile's sums alone do not give.
    pub(super) fn second_pass(&mut self, tile: &mut Tile<'_>) {
        let outputs = self.job.outputs;
        let rows = || tile.of.rows.clone().map(|row| self.output_row(row));
        let weights = rows().any(|at| outputs.want_weights(at));
        let stage = rows().find_map(|at| outputs.wanted_scores(at));
        if weights {
            self.weights(tile);
        }
        if let Some(stage) = stage {
            self.staged_scores(tile, stage);
        }
    }

    /// Batch entry, query head and query of a flattened row.
    fn output_row(&self, row: usize) -> [usize; 3] {
        let (head, query) = self.row(row);
        [self.batch, head, query]
    }

    /// Calls `take` for each run of keys in order: those of a visit, and those that no row of the
    /// tile sees.
    fn for_each_run(
        &mut self,
        tile: &mut Tile<'_>,
        mut take: impl FnMut(&mut Self, &mut Tile<'_>, Range<usize>, Option<&Visit>),
    ) {
        let any = tile.of.any.clone();
        let mut done = 0;
        for first in (any.start / BLOCK_KV * BLOCK_KV..any.end).step_by(BLOCK_KV) {
            let visit = self.visit(tile, first);
            if visit.keys.is_empty() {
                continue;
            }
            let keys = first + visit.keys.start..first + visit.keys.end;
            take(self, tile, done..keys.start, None);
            done = keys.end;
            take(self, tile, keys, Some(&visit));
        }
        take(self, tile, done..self.job.problem.dims().seq_kv, None);
    }

    /// The final weights: those that are wanted, their sums by key, the largest of each row.
    fn weights(&mut self, tile: &mut Tile<'_>) {
        let (_, state) = tile.totals();
        let row_sum = state.row_sum;
        let mut factor = self.factors(tile, state);
        for (factor, &sum) in factor.0.iter_mut().zip(&row_sum.0) {
            *factor = if sum == 0.0 { 0.0 } else { *factor };
        }
        tile.of.split.row_ref = state.row_ref.map(|x| if x == f32::NEG_INFINITY { 0.0 } else { x });
        let mut block: Block = [[0.0; BLOCK_KV]; BLOCK_Q];
        let mut held = [0; BLOCK_Q];
        self.for_each_run(tile, |this, tile, keys, visit| {
            let outputs = this.job.outputs;
            if let Some(visit) = visit {
                this.prob(tile, visit, Care::Fast);
                this.unpack(tile, visit, &factor, &mut block);
            }
            for (r, row) in tile.of.rows.clone().enumerate() {
                let at = this.output_row(row);
                let weights = visit.map_or(&[][..], |visit| &block[r][..visit.keys.len()]);
                if let Some(picked) = &outputs.weights {
                    // Of a hidden key, -0.0, this makes +0.0.
                    let shown = weights.iter().map(|x| x + 0.0);
                    let hidden = keys.len() - weights.len();
                    let numbers = shown.chain(std::iter::repeat_n(0.0, hidden));
                    // SAFETY: the outputs were checked against the problem, and no other item has a
                    // row of this number.
                    unsafe { picked.write(at, keys.start, numbers) };
                }
                // Without a sum the row sees nothing that counts.
                if let Some(top_k) = &outputs.top_k
                    && row_sum.0[r] != 0.0
                {
                    // SAFETY: as above; `held` starts at 0 with the row.
                    unsafe { top_k.offer(at, &mut held[r], keys.start, weights) };
                }
            }
            if let Some(visit) = visit {
                this.add_columns(tile, visit, &mut block);
            }
        });
        if let Some(top_k) = &self.job.outputs.top_k {
            for (row, held) in tile.of.rows.clone().zip(held) {
                // SAFETY: as above.
                unsafe { top_k.finish(self.output_row(row), held) };
            }
        }
    }

    /// Adds a block of weights to the sums of its keys, if they are wanted: first the tile's rows of
    /// each head, in place, then those to what there is.
    fn add_columns(&self, tile: &Tile<'_>, visit: &Visit, block: &mut Block) {
        let Some(sums) = &self.job.outputs.column_sums else { return };
        let dims = self.job.problem.dims();
        let (group_size, width) = (dims.group_size(), visit.keys.len());
        let rows = &mut block[..tile.len()];
        for r in group_size..rows.len() {
            // Rows of one head lie a group apart.
            let (before, row) = rows.split_at_mut(r);
            let first = &mut before[r % group_size][..width];
            first.iter_mut().zip(&row[0]).for_each(|(sum, x)| *sum += x);
        }
        for (row, numbers) in tile.of.rows.clone().zip(rows).take(group_size) {
            let (head, _) = self.row(row);
            let first = visit.first + visit.keys.start;
            // SAFETY: the outputs were checked against the problem; where sums are wanted one
            // thread has all rows of the kv head, and it cleared them.
            unsafe { sums.add((self.batch, head), dims, first, &numbers[..width]) };
        }
    }

    /// The scores as they are at `stage`.
    fn staged_scores(&mut self, tile: &mut Tile<'_>, stage: Stage) {
        let mut block: Block = [[0.0; BLOCK_KV]; BLOCK_Q];
        self.for_each_run(tile, |this, tile, keys, visit| {
            let Some((_, picked)) = &this.job.outputs.scores else { return };
            if let Some(visit) = visit {
                this.scores_at(tile, visit, stage);
                this.unpack(tile, visit, &Lanes::splat(1.0), &mut block);
            }
            for (r, row) in tile.of.rows.clone().enumerate() {
                let scores = visit.map_or(&[][..], |visit| &block[r][..visit.keys.len()]);
                let hidden = std::iter::repeat_n(f32::NEG_INFINITY, keys.len() - scores.len());
                let numbers = scores.iter().copied().chain(hidden);
                // SAFETY: the outputs were checked against the problem, and no other item has a row
                // of this number.
                unsafe { picked.write(this.output_row(row), keys.start, numbers) };
            }
        });
    }

    /// Turns a visit's numbers over: row by row, times each row's factor.
    fn unpack(&self, tile: &Tile<'_>, visit: &Visit, factor: &Lanes, block: &mut Block) {
        self.simd.vectorize(Unpack {
            prob: self.prob,
            keys: visit.keys.clone(),
            factor,
            rows: &mut block[..tile.len()],
        });
    }
}
