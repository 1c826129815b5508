//! Split-KV: threads share an item, which is one of few or far heavier than the others, by the splits
//! of its keys.
//!
//! ```text
//! for each run of SPLIT_KV * splits keys
//!   for each item, for each split of the run            on all threads
//!     the sums of the item's rows over the split         attention::pass
//!   for each item, for each of its splits, in order
//!     merge it into those before it
//! for each item                                          on all threads
//!   out = acc / row_sum, lse = row_ref + ln row_sum
//! ```
//!
//! The splits and the order of their merges are those of an item that one thread computes whole, so that
//! the bits are the same. A run has about as many splits, of all items, as keep the threads busy: the
//! memory for their sums does not grow with the keys. An item whose output is not finite is done again
//! whole, by one thread: see `attention::pass`.

use std::ops::Range;

use super::pass::{Care, Item, Job};
use super::tile::{Softmax, Tile, TileRows};
use crate::executor::{Crew, Shared, for_each_tile};
use crate::microkernel::finish::Combine;
use crate::microkernel::terms::Scoring;
use crate::plan::{self, Apart, Layout, SPLIT_KV};
use crate::simd::Simd;

/// A row's reference, its sum of probabilities and that of weighted values.
pub(super) type Row<'a> = (f32, f32, &'a [f32]);

/// How sums of different keys become one.
#[derive(Clone, Copy)]
pub(super) struct Merge<S> {
    pub(super) simd: S,
    /// From a reference to a power of two.
    pub(super) to_log2: f32,
}

impl<S: Simd> Merge<S> {
    /// `total = merge(total, more)`; an empty side changes no bit of the other.
    pub(super) fn row(self, total: (&mut f32, &mut f32, &mut [f32]), more: Row<'_>) {
        let (row_ref, row_sum, acc) = total;
        let (new, sum, src) = more;
        // A sum of NaN counts, though a row without a number among its scores has no reference.
        if new == f32::NEG_INFINITY && sum == 0.0 {
            return;
        }
        let top = if *row_ref > new { *row_ref } else { new };
        let [a, b] = [*row_ref, new].map(|x| Care::Fast.power((x - top) * self.to_log2));
        *row_ref = top;
        *row_sum = a * *row_sum + b * sum;
        self.simd.vectorize(Combine { dst: acc, a, src, b });
    }
}

/// The sums of an item's rows in memory.
struct Sums<'a> {
    row_ref: &'a mut [f32],
    row_sum: &'a mut [f32],
    acc: &'a mut [f32],
}

impl<'a> Sums<'a> {
    fn of(memory: &'a mut [f32], layout: &Layout) -> Self {
        let (row_ref, memory) = memory.split_at_mut(layout.rows);
        let (row_sum, memory) = memory.split_at_mut(layout.rows);
        Self { row_ref, row_sum, acc: &mut memory[..layout.rows * layout.acc_width] }
    }

    fn clear(&mut self) {
        self.row_ref.fill(f32::NEG_INFINITY);
        self.row_sum.fill(0.0);
    }

    /// Takes those of a tile whose first row is the item's row `first`.
    fn take(&mut self, tile: &Tile<'_>, first: usize, width: usize) {
        let (rows, len) = (first..first + tile.len(), tile.len());
        self.row_ref[rows.clone()].copy_from_slice(&tile.of.split.row_ref.0[..len]);
        self.row_sum[rows.clone()].copy_from_slice(&tile.of.split.row_sum.0[..len]);
        self.acc[rows.start * width..rows.end * width].copy_from_slice(&tile.acc[..len * width]);
    }

    /// Gives them back, as the tile's sums over all splits.
    fn give(&self, tile: &mut Tile<'_>, first: usize, width: usize) {
        let (rows, len) = (first..first + tile.len(), tile.len());
        let (acc, Softmax { row_ref, row_sum }) = tile.totals_mut();
        row_ref.0[..len].copy_from_slice(&self.row_ref[rows.clone()]);
        row_sum.0[..len].copy_from_slice(&self.row_sum[rows.clone()]);
        acc[..len * width].copy_from_slice(&self.acc[rows.start * width..rows.end * width]);
    }

    fn merge<S: Simd>(&mut self, merge: Merge<S>, more: &Self, width: usize) {
        for r in 0..self.row_ref.len() {
            let row = r * width..(r + 1) * width;
            let more = (more.row_ref[r], more.row_sum[r], &more.acc[row.clone()]);
            merge.row((&mut self.row_ref[r], &mut self.row_sum[r], &mut self.acc[row]), more);
        }
    }
}

/// The first items of a job, which threads share.
pub(super) struct SplitKv<'a, 'p, T, I> {
    pub(super) job: &'a Job<'a, 'p, T>,
    pub(super) crew: Crew<'a>,
    pub(super) apart: Apart,
    /// Item `index`.
    pub(super) item: I,
}

impl<T: Scoring, I: Fn(usize) -> plan::Item + Sync> SplitKv<'_, '_, T, I> {
    /// Computes them, with scratch of the given length for each thread and memory for the sums.
    pub(super) fn run<S: Simd, const TILES: usize>(
        &self,
        simd: S,
        (scratch, part): (&mut [f32], usize),
        sums: &mut [f32],
    ) {
        let len = self.job.plan.layout.sums();
        let (totals, of_splits) = sums.split_at_mut(self.apart.items * len);
        totals.chunks_exact_mut(len).for_each(|total| self.sums(total).clear());
        let splits = self.job.problem.dims().seq_kv.div_ceil(SPLIT_KV);
        for first in (0..splits).step_by(self.apart.splits) {
            let splits = first..(first + self.apart.splits).min(splits);
            self.splits::<S, TILES>(simd, splits.clone(), (scratch, part), of_splits);
            self.merge(simd, splits.len(), totals, of_splits);
        }
        self.finish::<S, TILES>(simd, (scratch, part), totals);
    }

    /// The sums of some splits of every item.
    fn splits<S: Simd, const TILES: usize>(
        &self,
        simd: S,
        splits: Range<usize>,
        scratch: (&mut [f32], usize),
        of_splits: &mut [f32],
    ) {
        let Layout { acc_width, .. } = self.job.plan.layout;
        let units = self.apart.items * splits.len();
        let unit = |index: usize| {
            let split = Some(splits.start + index % splits.len());
            plan::Item { split, ..(self.item)(index / splits.len()) }
        };
        let memory = Shared::new(of_splits);
        for_each_tile(self.crew, units, scratch, local::<TILES>, |mine, index| {
            let next = index + self.crew.threads;
            let next = (next < units).then(|| unit(next));
            let item = unit(index);
            let (first, split) = (item.rows.start, splits.start + index % splits.len());
            // SAFETY: each index is one thread's.
            let mut sums = self.sums(unsafe { memory.part(index, self.job.plan.layout.sums()) });
            sums.clear();
            Item::with(self.job, simd, (item, next), mine, |item, tiles| {
                item.pack_queries(tiles);
                if item.sums_of_split(tiles, split) {
                    tiles
                        .iter()
                        .for_each(|tile| sums.take(tile, tile.of.rows.start - first, acc_width));
                }
            });
        });
    }

    /// Merges as many splits of every item into its sums, in order.
    fn merge<S: Simd>(&self, simd: S, splits: usize, totals: &mut [f32], of_splits: &mut [f32]) {
        let layout = &self.job.plan.layout;
        let merge = Merge { simd, to_log2: self.job.to_log2() };
        let of_items = of_splits.chunks_exact_mut(splits * layout.sums());
        for (total, of_item) in totals.chunks_exact_mut(layout.sums()).zip(of_items) {
            let mut total = self.sums(total);
            for of_split in of_item.chunks_exact_mut(layout.sums()) {
                total.merge(merge, &self.sums(of_split), layout.acc_width);
            }
        }
    }

    /// The outputs of every item.
    fn finish<S: Simd, const TILES: usize>(
        &self,
        simd: S,
        scratch: (&mut [f32], usize),
        totals: &mut [f32],
    ) {
        let Layout { acc_width, .. } = self.job.plan.layout;
        let memory = Shared::new(totals);
        for_each_tile(self.crew, self.apart.items, scratch, local::<TILES>, |mine, index| {
            // SAFETY: each index is one thread's.
            let sums = self.sums(unsafe { memory.part(index, self.job.plan.layout.sums()) });
            let item = (self.item)(index);
            let first = item.rows.start;
            Item::with(self.job, simd, (item, None), mine, |item, tiles| {
                for tile in tiles.iter_mut() {
                    tile.reset();
                    sums.give(tile, tile.of.rows.start - first, acc_width);
                }
                if !item.write(tiles, Care::Fast) {
                    item.pack_queries(tiles);
                    item.take_care(tiles, false);
                }
            });
        });
    }

    fn sums<'m>(&self, memory: &'m mut [f32]) -> Sums<'m> {
        Sums::of(memory, &self.job.plan.layout)
    }
}

/// What a thread keeps of its tiles from item to item.
pub(super) fn local<const TILES: usize>() -> [TileRows; TILES] {
    [const { TileRows::EMPTY }; TILES]
}
