//! How a problem is cut into work: pure arithmetic, no memory touched.
//!
//! A head's query rows, flattened over its group (`row = i * group_size + g`, so that the rows of
//! a tile see nearly the same keys and share one pass over them), are cut into tiles of
//! `BLOCK_Q`, and runs of tiles into items. A thread claims an item and takes each key block
//! through all of the item's tiles while the block is in its cache. Neither the cut nor the order
//! of the items reaches a row's bits.
//!
//! Where sequences or documents differ in length, a table of all runs is made in the workspace and
//! sorted by an estimate of their work.
//!
//! Items that are too few for the threads, or too heavy beside the others, are cut along the keys as
//! well: see [`Plan::apart`].

use std::cmp::Reverse;
use std::ops::Range;

use crate::executor::ITEMS_PER_THREAD;
use crate::mask::Sequence;
use crate::microkernel::quads::{self, KeyRoom};
use crate::microkernel::{BLOCK_KV, BLOCK_Q};
use crate::problem::Problem;
use crate::simd::MAX_LANES;
use crate::storage::Input;
use crate::workspace::{Entry, Line, lines_with_table};

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
    /// A block's keys and values: gathered from pages, widened, in pairs, or rounded to integers.
    pub(crate) gathered: [usize; 2],
    pub(crate) tiles: usize,
    /// The pitch of a row of `acc`: `value_dim` in whole vectors of any instruction set.
    pub(crate) acc_width: usize,
    /// The rows of an item, at most.
    pub(crate) rows: usize,
}

impl Layout {
    /// The floats of `prob`.
    pub(crate) const PROB: usize = BLOCK_KV * BLOCK_Q;

    /// Floats for one tile.
    pub(crate) fn tile(&self) -> usize {
        let rows = self.q_t.saturating_add(self.term_rows);
        rows.saturating_add(self.acc).saturating_add(self.merged)
    }

    /// Floats for the sums of an item's rows over some keys: reference, sum and weighted values of each.
    pub(crate) fn sums(&self) -> usize {
        let floats = self.rows.saturating_mul(self.acc_width.saturating_add(2));
        Line::count(floats).saturating_mul(Line::FLOATS)
    }

    fn lines(&self) -> usize {
        let [keys, values] = self.gathered;
        let blocks = (Self::PROB + self.dense).saturating_add(keys).saturating_add(values);
        Line::count(self.tiles.saturating_mul(self.tile()).saturating_add(blocks))
    }
}

/// A run of tiles in a table of all, which is sorted so that the heaviest come first. Its items, one
/// for each kv head, follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Pairs of query and key, about.
    work: u64,
    sequence: usize,
    /// The first row.
    row: usize,
}

impl Run {
    /// The run as it lies in the table.
    fn entry(self) -> Entry {
        [self.work, self.sequence as u64, self.row as u64]
    }

    fn of([work, sequence, row]: Entry) -> Self {
        Self { work, sequence: sequence as usize, row: row as usize }
    }
}

/// In which order items come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// A head's items follow each other and share its keys.
    Heads,
    /// The last rows first over all heads, since they see the most.
    LastFirst,
    /// By a table of runs.
    Table,
}

/// The cut of one problem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) threads: usize,
    pub(crate) layout: Layout,
    kv_heads: usize,
    group_size: usize,
    order: Order,
    /// Of all sequences.
    runs: usize,
    /// Of a sequence, where all are alike.
    rows: usize,
    runs_per_sequence: usize,
    /// The most items whose splits are computed apart.
    most_apart: usize,
}

/// Items that threads share: the splits of each are computed apart, some at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Apart {
    /// They are the first in the order.
    pub(crate) items: usize,
    /// The splits of an item that are computed at a time.
    pub(crate) splits: usize,
}

/// One item of work.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) sequence: usize,
    pub(crate) kv_head: usize,
    /// Query rows, flattened over the group.
    pub(crate) rows: Range<usize>,
    /// The split of the keys, where splits are computed apart.
    pub(crate) split: Option<usize>,
}

impl Item {
    /// What of `keys` are the item's.
    pub(crate) fn part_of(&self, keys: Range<usize>) -> Range<usize> {
        let Some(split) = self.split else { return keys };
        keys.start.max(split * SPLIT_KV)..keys.end.min((split + 1) * SPLIT_KV)
    }
}

/// The sequences of a problem that are alike, and how many they are.
fn sequences<'s, T: crate::Element>(
    problem: &'s Problem<'_, T>,
) -> impl Iterator<Item = (Sequence, usize)> + 's {
    let (count, even) = (problem.sequences(), !problem.mask.is_uneven());
    let (distinct, alike) = if even { (count.min(1), count) } else { (count, 1) };
    (0..distinct).map(move |s| (problem.mask.sequence(s), alike))
}

impl Plan {
    /// The multiply-adds of a problem, about, and of what is masked only what its tiles compute.
    pub(crate) fn work<T: crate::Element>(problem: &Problem<'_, T>) -> u128 {
        let dims = problem.dims();
        let pairs: f64 = sequences(problem)
            .map(|(sequence, alike)| {
                let queries = 0..sequence.seq_q;
                let keys = problem.mask.mean_keys(&sequence, queries);
                alike as f64 * sequence.seq_q as f64 * keys
            })
            .sum();
        // Without keys a value_dim may have any size; conversion saturates, as does the layout.
        let width = dims.head_dim.saturating_add(dims.value_dim);
        (pairs * dims.q_heads as f64 * width as f64) as u128
    }

    /// The plan for `threads` threads, at least one, of a problem that has rows, with `term_rows`
    /// floats a tile for its score terms.
    pub(crate) fn new<T: crate::Element>(
        problem: &Problem<'_, T>,
        threads: usize,
        term_rows: usize,
    ) -> Self {
        let dims = *problem.dims();
        let mask = &problem.mask;
        let group_size = dims.group_size();
        let tiles_of = |sequence: &Sequence| (sequence.seq_q * group_size).div_ceil(BLOCK_Q);
        let (mut most, mut total_tiles) = (Sequence::default(), 0_usize);
        for (sequence, alike) in sequences(problem) {
            let tiles = tiles_of(&sequence).saturating_mul(alike).saturating_mul(dims.kv_heads);
            total_tiles = total_tiles.saturating_add(tiles);
            most = if sequence.seq_q > most.seq_q { sequence } else { most };
        }
        // Many tiles an item share each key block while it is in the cache, as long as there are
        // items enough for the threads. Then even items.
        let affordable =
            if threads == 1 { MAX_TILES } else { total_tiles / (ITEMS_PER_THREAD * threads) };
        let most_runs = tiles_of(&most).div_ceil(affordable.clamp(1, MAX_TILES));
        let tiles = tiles_of(&most).div_ceil(most_runs.max(1)).max(1);
        let runs = sequences(problem)
            .map(|(sequence, alike)| tiles_of(&sequence).div_ceil(tiles) * alike)
            .sum();

        let acc_width = dims.value_dim.div_ceil(MAX_LANES).saturating_mul(MAX_LANES);
        let acc = BLOCK_Q.saturating_mul(acc_width);
        let rounds = problem.wants_quads();
        let in_quads = rounds && quads::pays(most.seq_q * group_size);
        let is_gathered = |of: &Input<'_, T>| problem.is_paged() || of.native().is_none();
        let gathered = |dim: usize, is_gathered: bool| {
            if is_gathered { BLOCK_KV.saturating_mul(dim.next_multiple_of(MAX_LANES)) } else { 0 }
        };
        let layout = Layout {
            q_t: BLOCK_Q
                * (dims.head_dim + if rounds { quads::query_rows(dims.head_dim) } else { 0 }),
            term_rows,
            acc,
            merged: if dims.seq_kv > SPLIT_KV { acc } else { 0 },
            dense: if problem.has_dense_term() { Layout::PROB } else { 0 },
            gathered: [
                gathered(dims.head_dim, is_gathered(&problem.key)).max(if in_quads {
                    KeyRoom::floats(dims.head_dim)
                } else {
                    0
                }),
                gathered(dims.value_dim, in_quads || is_gathered(&problem.value)),
            ],
            tiles,
            acc_width,
            rows: (tiles * BLOCK_Q).min(most.seq_q * group_size),
        };
        let kv_heads = dims.kv_heads;
        let order = match (mask.is_uneven(), mask.has_uniform_ranges()) {
            (true, _) => Order::Table,
            (false, true) => Order::Heads,
            (false, false) => Order::LastFirst,
        };
        let wanted = ITEMS_PER_THREAD * threads;
        let most_apart = match runs * kv_heads {
            _ if threads == 1 || dims.seq_kv <= SPLIT_KV => 0,
            items if items < wanted => items,
            // Each of which has more than its share of the work.
            _ if order == Order::Table => wanted,
            _ => 0,
        };
        Self {
            threads,
            layout,
            kv_heads,
            group_size,
            order,
            runs,
            rows: most.seq_q * group_size,
            runs_per_sequence: tiles_of(&most).div_ceil(tiles),
            most_apart,
        }
    }

    /// The items that threads share, by the filled table: all if there are fewer than each thread should
    /// have, otherwise those that alone have more work than that. Which they are reaches no row's bits.
    pub(crate) fn apart(&self, table: &[Entry]) -> Option<Apart> {
        let wanted = ITEMS_PER_THREAD * self.threads;
        let items = if self.items() < wanted || self.most_apart == 0 {
            self.most_apart
        } else {
            let work = |&entry: &Entry| u128::from(Run::of(entry).work);
            let all: u128 = table.iter().map(work).sum::<u128>() * self.kv_heads as u128;
            let heavy = table.iter().take_while(|entry| work(entry) * wanted as u128 > all);
            (heavy.count() * self.kv_heads).min(self.most_apart)
        };
        (items > 0).then(|| Apart { items, splits: wanted.div_ceil(items) })
    }

    /// How many items there are.
    pub(crate) fn items(&self) -> usize {
        self.runs * self.kv_heads
    }

    /// The most items whose splits are computed apart.
    pub(crate) fn most_apart(&self) -> usize {
        self.most_apart
    }

    /// The kv heads of all sequences.
    pub(crate) fn heads(&self) -> usize {
        self.items() / self.runs_per_sequence
    }

    /// The items of each of them, unless the batch is ragged.
    pub(crate) fn items_per_head(&self) -> usize {
        self.runs_per_sequence
    }

    /// How many entries the table of runs has.
    pub(crate) fn entries(&self) -> usize {
        if self.order == Order::Table { self.runs } else { 0 }
    }

    /// Rows in a run, at most.
    fn step(&self) -> usize {
        self.layout.tiles * BLOCK_Q
    }

    /// Fills the table, which has [`Plan::entries`].
    pub(crate) fn tabulate<T: crate::Element>(
        &self,
        problem: &Problem<'_, T>,
        table: &mut [Entry],
    ) {
        let sequences = (0..problem.sequences()).map(|s| problem.mask.sequence(s));
        let runs = sequences.flat_map(|sequence| {
            let rows = sequence.seq_q * self.group_size;
            (0..rows).step_by(self.step()).map(move |row| {
                let end = (row + self.step()).min(rows);
                let queries = row / self.group_size..end.div_ceil(self.group_size);
                let keys = problem.mask.mean_keys(&sequence, queries);
                let work = ((end - row) as f64 * keys) as u64;
                Run { work, sequence: sequence.index, row }
            })
        });
        table.iter_mut().zip(runs).for_each(|(entry, run)| *entry = run.entry());
        table
            .sort_unstable_by_key(|&[work, sequence, row]| (Reverse(work), sequence, Reverse(row)));
    }

    /// Item `index`, by the filled table.
    pub(crate) fn item<T: crate::Element>(
        &self,
        problem: &Problem<'_, T>,
        table: &[Entry],
        index: usize,
    ) -> Item {
        if self.order == Order::Table {
            let (run, kv_head) = (Run::of(table[index / self.kv_heads]), index % self.kv_heads);
            let rows = problem.mask.sequence(run.sequence).seq_q * self.group_size;
            let rows = run.row..(run.row + self.step()).min(rows);
            return Item { sequence: run.sequence, kv_head, rows, split: None };
        }
        let (head, nth) = if self.order == Order::LastFirst {
            (index % self.heads(), self.runs_per_sequence - 1 - index / self.heads())
        } else {
            (index / self.runs_per_sequence, index % self.runs_per_sequence)
        };
        self.nth_item(head, nth)
    }

    /// The `nth` item of a head, in the order of the rows. The batch must not be ragged.
    pub(crate) fn nth_item(&self, head: usize, nth: usize) -> Item {
        let step = self.step();
        Item {
            sequence: head / self.kv_heads,
            kv_head: head % self.kv_heads,
            rows: nth * step..((nth + 1) * step).min(self.rows),
            split: None,
        }
    }

    /// The query head and the query, in its sequence, of a flattened row.
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
    pub(crate) fn lines_of_threads(&self) -> usize {
        let busy = if self.most_apart > 0 { self.threads } else { self.items().max(1) };
        self.lines_per_thread().saturating_mul(self.threads.min(busy))
    }

    /// Lines of scratch, for all threads and, behind that, for the sums of items that they share: of each
    /// item's splits at work, and of those before them.
    pub(crate) fn lines(&self) -> usize {
        let sums = match self.most_apart {
            0 => 0,
            items => 2 * items + ITEMS_PER_THREAD * self.threads,
        };
        let sums = sums.saturating_mul(Line::count(self.layout.sums()));
        self.lines_of_threads().saturating_add(sums)
    }

    /// Lines of scratch and, behind it, of the table.
    pub(crate) fn lines_with_table(&self) -> usize {
        lines_with_table(self.lines(), self.entries())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Dims;
    use crate::{Causal, Masking, Scale, View};
    use proptest::prelude::*;

    /// The plan and its items, in their order.
    fn items(problem: &Problem<'_, f32>, threads: usize) -> (Plan, Vec<Item>) {
        let plan = Plan::new(problem, threads, 0);
        let mut table = vec![[0; 3]; plan.entries()];
        plan.tabulate(problem, &mut table);
        (plan, (0..plan.items()).map(|index| plan.item(problem, &table, index)).collect())
    }

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
            let (plan, items) = with_problem(dims, causal, |problem| items(problem, threads));
            prop_assert_eq!(plan.threads, threads);
            let rows = dims.seq_q * dims.group_size();
            let mut covered = vec![0; dims.batch * dims.kv_heads * rows];
            for item in items {
                prop_assert!(item.rows.len() <= plan.layout.tiles * BLOCK_Q);
                prop_assert!(plan.layout.tiles <= MAX_TILES);
                // Tiles begin at whole blocks, whatever the cut.
                prop_assert!(item.rows.start.is_multiple_of(BLOCK_Q));
                let head = item.sequence * dims.kv_heads + item.kv_head;
                item.rows.for_each(|row| covered[head * rows + row] += 1);
            }
            prop_assert!(covered.iter().all(|&n| n == 1));
        }

        /// Threads that have less than their share of whole items share some, if there are splits to
        /// share, and the scratch has room for the sums.
        #[test]
        fn few_items_are_shared(dims in dims(), threads in 1..300_usize, causal: bool) {
            let (plan, items) = with_problem(dims, causal, |problem| items(problem, threads));
            let wanted = ITEMS_PER_THREAD * threads;
            let is_shared = threads > 1 && dims.seq_kv > SPLIT_KV && items.len() < wanted;
            let apart = plan.apart(&[]);
            prop_assert_eq!(apart.is_some(), is_shared);
            let of_threads = plan.lines_of_threads();
            prop_assert_eq!(plan.lines() > of_threads, is_shared);
            if let Some(apart) = apart {
                prop_assert_eq!(apart.items, items.len());
                prop_assert!(apart.items * apart.splits >= wanted);
                let sums = apart.items * (apart.splits + 1) * plan.layout.sums();
                prop_assert!((plan.lines() - of_threads) * Line::FLOATS >= sums);
                prop_assert!(of_threads >= threads * plan.lines_per_thread());
            }
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
            // Threads that share items hold no less than those that do not.
            let least = if plan.most_apart > 0 { threads } else { plan.items().max(1) };
            let holders = plan.threads.min(least);
            prop_assert_eq!(plan.lines_of_threads(), plan.lines_per_thread() * holders);
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
        let (_, items) = with_problem(dims, true, |problem| items(problem, 2));
        let starts: Vec<_> = items.iter().map(|item| item.rows.start).collect();
        assert!(starts.is_sorted_by(|a, b| a >= b), "{starts:?}");
        assert_eq!(items[0].rows.end, 500);
    }

    /// A ragged batch is covered as well, and the longest sequence's last rows come first.
    #[test]
    fn heavy_sequences_come_first() {
        let data = [0.0; 64];
        let offsets = [0, 3, 3, 903, 1000];
        let view = |seq| {
            View::strided(&data, 0, [1, 2, seq, 8], [0, 0, 0, 1])
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let masking = Masking {
            causal: Some(Causal::BottomRight),
            ragged: Some(crate::Offsets { query: &offsets, key: &offsets }),
            ..Masking::default()
        };
        let problem = Problem::new(view(1000), view(1000), view(1000), Scale::One, &masking)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((problem.dims().seq_kv, problem.sequences()), (900, 4));
        let (plan, items) = items(&problem, 2);
        assert_eq!((items[0].sequence, items[0].rows.end), (2, 900));
        let mut covered = vec![0; 2 * 1000];
        for item in &items {
            assert!(item.rows.len() <= plan.step());
            let first = item.kv_head * 1000 + offsets[item.sequence];
            item.rows.clone().for_each(|row| covered[first + row] += 1);
        }
        assert!(covered.iter().all(|&n| n == 1));
        // Twice half of 900 x 900, and little else.
        let pairs = Plan::work(&problem) as f64 / 16.0;
        assert!((800_000.0..850_000.0).contains(&pairs), "{pairs}");
    }
}
