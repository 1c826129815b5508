//! How a problem is cut into work: pure arithmetic, no memory touched.
//!
//! A head's query rows, flattened over its group (`row = i * group_size + g`, so that the rows of
//! a tile see nearly the same keys and share one pass over them), are cut into tiles of
//! `BLOCK_Q`, and runs of tiles into items. A thread claims an item and takes each key block
//! through all of the item's tiles while the block is in its cache. Neither the cut nor the order
//! of the items reaches a row's bits.

use std::ops::Range;

use crate::executor::ITEMS_PER_THREAD;
use crate::microkernel::{BLOCK_KV, BLOCK_Q};
use crate::problem::Problem;
use crate::simd::MAX_LANES;
use crate::workspace::Line;

/// Keys in a split: each split has reference maxima of its own and is merged into the earlier
/// ones, so that splits can be computed apart. Counted from key 0; part of what a row's bits
/// depend on.
pub(crate) const SPLIT_KV: usize = 2048;

/// The most tiles in an item.
pub(crate) const MAX_TILES: usize = 8;

/// One thread's scratch, in floats: where its parts begin, each a whole number of lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) q_t: usize,
    /// What a tile's rows carry along for score terms.
    pub(crate) term_rows: usize,
    pub(crate) acc: usize,
    pub(crate) merged: usize,
    pub(crate) dense: usize,
    pub(crate) tiles: usize,
    /// The pitch of a row of `acc`: `value_dim` in whole vectors of any instruction set.
    pub(crate) acc_width: usize,
}

impl Layout {
    /// The floats of `prob`.
    pub(crate) const PROB: usize = BLOCK_KV * BLOCK_Q;

    /// Floats for one tile.
    pub(crate) fn tile(&self) -> usize {
        let rows = self.q_t.saturating_add(self.term_rows);
        rows.saturating_add(self.acc).saturating_add(self.merged)
    }

    fn lines(&self) -> usize {
        Line::count(self.tiles.saturating_mul(self.tile()).saturating_add(Self::PROB + self.dense))
    }
}

/// The cut of one problem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) threads: usize,
    pub(crate) layout: Layout,
    batch: usize,
    kv_heads: usize,
    group_size: usize,
    rows: usize,
    items_per_head: usize,
    last_first: bool,
}

/// One item of work.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) batch: usize,
    pub(crate) kv_head: usize,
    /// Query rows, flattened over the group.
    pub(crate) rows: Range<usize>,
}

impl Plan {
    /// The multiply-adds of a problem, masked ones included.
    pub(crate) fn work<T: crate::Element>(problem: &Problem<'_, T>) -> u128 {
        let dims = problem.dims();
        // Without keys a value_dim may have any size; it saturates here and in the layout.
        let width = dims.head_dim.saturating_add(dims.value_dim);
        [dims.batch, dims.q_heads, dims.seq_q, dims.seq_kv, width]
            .iter()
            .fold(1_u128, |product, &n| product.saturating_mul(n as u128))
    }

    /// The plan for `threads` threads, at least one, of a problem that has rows, with `term_rows`
    /// floats a tile for its score terms.
    pub(crate) fn new<T: crate::Element>(
        problem: &Problem<'_, T>,
        threads: usize,
        term_rows: usize,
    ) -> Self {
        let dims = *problem.dims();
        let rows = dims.seq_q * dims.group_size();
        let heads = dims.batch * dims.kv_heads;
        let tiles_per_head = rows.div_ceil(BLOCK_Q);
        // Many tiles an item share each key block while it is in the cache, as long as there are
        // items enough for the threads. Then even items.
        let total_tiles = tiles_per_head.saturating_mul(heads);
        let affordable =
            if threads == 1 { MAX_TILES } else { total_tiles / (ITEMS_PER_THREAD * threads) };
        let items_per_head = tiles_per_head.div_ceil(affordable.clamp(1, MAX_TILES));
        let tiles = tiles_per_head.div_ceil(items_per_head);

        let acc_width = dims.value_dim.div_ceil(MAX_LANES).saturating_mul(MAX_LANES);
        let acc = BLOCK_Q.saturating_mul(acc_width);
        let layout = Layout {
            q_t: BLOCK_Q * dims.head_dim,
            term_rows,
            acc,
            merged: if dims.seq_kv > SPLIT_KV { acc } else { 0 },
            dense: if problem.has_dense_term() { Layout::PROB } else { 0 },
            tiles,
            acc_width,
        };
        Self {
            threads,
            layout,
            batch: dims.batch,
            kv_heads: dims.kv_heads,
            group_size: dims.group_size(),
            rows,
            items_per_head: tiles_per_head.div_ceil(tiles),
            last_first: !problem.has_uniform_ranges(),
        }
    }

    /// How many items there are.
    pub(crate) fn items(&self) -> usize {
        self.items_per_head * self.heads()
    }

    /// The kv heads of all batch entries.
    pub(crate) fn heads(&self) -> usize {
        self.batch * self.kv_heads
    }

    /// The items of each of them.
    pub(crate) fn items_per_head(&self) -> usize {
        self.items_per_head
    }

    /// Item `index`. Under a causal mask or a window the last rows come first over all heads,
    /// since they see the most; otherwise a head's items follow each other and share its keys.
    pub(crate) fn item(&self, index: usize) -> Item {
        let (head, nth) = if self.last_first {
            (index % self.heads(), self.items_per_head - 1 - index / self.heads())
        } else {
            (index / self.items_per_head, index % self.items_per_head)
        };
        self.nth_item(head, nth)
    }

    /// The `nth` item of a head, in the order of the rows.
    pub(crate) fn nth_item(&self, head: usize, nth: usize) -> Item {
        let step = self.layout.tiles * BLOCK_Q;
        Item {
            batch: head / self.kv_heads,
            kv_head: head % self.kv_heads,
            rows: nth * step..((nth + 1) * step).min(self.rows),
        }
    }

    /// The query head and the query of a flattened row.
    pub(crate) fn query_row(&self, kv_head: usize, row: usize) -> (usize, usize) {
        match self.group_size {
            // Without the divisions.
            1 => (kv_head, row),
            group_size => (kv_head * group_size + row % group_size, row / group_size),
        }
    }

    /// Lines of scratch for each thread.
    pub(crate) fn lines_per_thread(&self) -> usize {
        self.layout.lines()
    }

    /// Lines of scratch for all threads.
    pub(crate) fn lines(&self) -> usize {
        self.lines_per_thread().saturating_mul(self.threads.min(self.items().max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Dims;
    use crate::{Causal, Masking, Scale, View};
    use proptest::prelude::*;

    /// Calls `test` with a problem of these extents.
    fn with_problem<R>(dims: Dims, causal: bool, test: impl FnOnce(&Problem<'_, f32>) -> R) -> R {
        let data = [0.0; 512];
        let view = |heads, seq, dim| {
            View::strided(&data, 0, [dims.batch, heads, seq, dim], [0, 0, 0, 1])
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let masking =
            Masking { causal: causal.then_some(Causal::BottomRight), ..Masking::default() };
        let problem = Problem::new(
            view(dims.q_heads, dims.seq_q, dims.head_dim),
            view(dims.kv_heads, dims.seq_kv, dims.head_dim),
            view(dims.kv_heads, dims.seq_kv, dims.value_dim),
            Scale::One,
            &masking,
        );
        test(&problem.unwrap_or_else(|error| panic!("{error}")))
    }

    /// Problems that have rows: what a plan is made for.
    fn dims() -> impl Strategy<Value = Dims> {
        let heads = (1..5_usize, 1..5_usize);
        let lengths = (1..700_usize, 0..5000_usize);
        let widths = (1..512_usize, 1..512_usize);
        (1..4_usize, heads, lengths, widths).prop_map(
            |(batch, (kv_heads, group), (seq_q, seq_kv), (head_dim, value_dim))| Dims {
                batch,
                q_heads: kv_heads * group,
                kv_heads,
                seq_q,
                seq_kv,
                head_dim,
                value_dim,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn items_cover_every_row_once(dims in dims(), threads in 1..300_usize, causal: bool) {
            let plan = with_problem(dims, causal, |problem| Plan::new(problem, threads, 0));
            prop_assert_eq!(plan.threads, threads);
            let rows = dims.seq_q * dims.group_size();
            let mut covered = vec![0; dims.batch * dims.kv_heads * rows];
            for item in (0..plan.items()).map(|index| plan.item(index)) {
                prop_assert!(item.rows.len() <= plan.layout.tiles * BLOCK_Q);
                prop_assert!(plan.layout.tiles <= MAX_TILES);
                // Tiles begin at whole blocks, whatever the cut.
                prop_assert!(item.rows.start.is_multiple_of(BLOCK_Q));
                let head = item.batch * dims.kv_heads + item.kv_head;
                item.rows.for_each(|row| covered[head * rows + row] += 1);
            }
            prop_assert!(covered.iter().all(|&n| n == 1));
        }

        #[test]
        fn scratch_holds_the_tiles(dims in dims(), threads in 1..300_usize) {
            let plan = with_problem(dims, false, |problem| Plan::new(problem, threads, 0));
            let layout = plan.layout;
            let merged = if dims.seq_kv > SPLIT_KV { layout.acc } else { 0 };
            prop_assert_eq!(layout.merged, merged);
            prop_assert!(layout.acc_width >= dims.value_dim);
            prop_assert!(layout.acc >= BLOCK_Q * layout.acc_width);
            let floats = plan.lines_per_thread() * Line::FLOATS;
            prop_assert!(floats >= Layout::PROB + layout.dense + layout.tiles * layout.tile());
            let holders = plan.threads.min(plan.items().max(1));
            prop_assert_eq!(plan.lines(), plan.lines_per_thread() * holders);
        }
    }

    /// Under a causal mask the items that see the most come first.
    #[test]
    fn heavy_items_come_first() {
        let dims = Dims {
            batch: 2,
            q_heads: 2,
            kv_heads: 2,
            seq_q: 500,
            seq_kv: 500,
            head_dim: 64,
            value_dim: 64,
        };
        let plan = with_problem(dims, true, |problem| Plan::new(problem, 2, 0));
        let starts: Vec<_> = (0..plan.items()).map(|index| plan.item(index).rows.start).collect();
        assert!(starts.is_sorted_by(|a, b| a >= b), "{starts:?}");
        assert_eq!(plan.item(0).rows.end, 500);
    }
}
