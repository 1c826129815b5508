//! What to fetch ahead. There are two things that hardware finds only by missing: the next block of
//! a long sequence's keys and values, which lie in the outer cache or in memory, and the rows with
//! which the thread's next item begins, in a new place.
//!
//! An item of many rows computes for so long that the next block, asked for a few rows at a time, is
//! there when it is wanted. One of few rows, as in decoding, waits for nothing but memory: its kernels ask
//! for rows of the same block as they go, and are told here where the next block begins, of the next item
//! too.

use std::ops::Range;

use crate::microkernel::block::LEAST_STRETCH;
use crate::microkernel::fetch::{Fetch, Queue, Soon, Stream};
use crate::microkernel::{BLOCK_KV, BLOCK_Q, few};
use crate::plan::{self, Plan};
use crate::problem::Problem;
use crate::simd::Isa;
use crate::storage::StoredRows;

/// The keys and values of one head.
type Head<'p> = [StoredRows<'p>; 2];

/// Some keys and values of a head.
type Part<'p> = (Head<'p>, Range<usize>);

/// The rows to fetch while one item is computed.
pub(crate) struct Ahead<'p> {
    head: Head<'p>,
    /// Those of the next item, and the keys that its first rows see.
    after: Option<(Head<'p>, Range<usize>)>,
    /// The most rows of a tile.
    rows: usize,
    /// What a block begins with: keys (0), or values (1), which are paired before its scores are made.
    first: usize,
    /// Whether the scores' kernel asks for keys itself.
    along_keys: bool,
    pub(crate) fetch: Fetch,
}

/// The most rows for which memory sets the pace: no less than those of which kernels read narrow numbers.
const FEW: usize = 16;
const _: () = assert!(FEW >= few::most_rows(Isa::Avx512) && FEW >= few::most_rows(Isa::Neon));

/// Whether memory sets the pace of tiles of so many rows.
pub(crate) const fn is_few(rows: usize) -> bool {
    rows <= FEW
}

impl<'p> Ahead<'p> {
    /// For `item`, of which `head` are the keys and values, the `first` of which a block begins with, and
    /// after which `next` will probably come.
    pub(crate) fn new(
        (problem, plan): (&Problem<'p, f32>, &Plan),
        item: &plan::Item,
        (head, isa, first): (Head<'p>, Isa, usize),
        next: Option<plan::Item>,
    ) -> Self {
        let rows = item.rows.len().min(BLOCK_Q);
        let along_keys = rows <= few::most_rows(isa);
        let mut this = Self { head, after: None, rows, first, along_keys, fetch: Fetch::NONE };
        let Some(next) = next else { return this };
        let sequence = problem.mask.sequence(next.sequence);
        let (query_head, query) = plan.query_row(next.kv_head, next.rows.start);
        let keys = next.part_of(problem.mask.range(&sequence, query));
        let head = [problem.keys(&sequence, next.kv_head), problem.values(&sequence, next.kv_head)];
        let first = query_head - query_head % problem.dims().group_size();
        let queries = problem.query.rows(sequence.batch, first);
        let queries = queries.part(sequence.query, sequence.seq_q);
        // In bytes, from a head to the next: wrapping, as a hint may go astray.
        let size = problem.query.format().size() as isize;
        let group = (problem.dims().group_size(), problem.query.strides()[1].wrapping_mul(size));
        let queries = Stream::interleaved(queries, group, next.rows.clone());
        let place = |item: &plan::Item| (item.sequence, item.kv_head, item.split);
        let is_new = place(&next) != place(item);
        let first = keys.start..keys.end.min(keys.start.saturating_add(BLOCK_KV));
        let begin = if is_new && !this.is_few() && !first.is_empty() {
            head.map(|of| of.rows.even(first.start, first.end).map_or(Stream::EMPTY, Stream::new))
        } else {
            [Stream::EMPTY; 2]
        };
        this.fetch.item = Queue::new([queries, begin[0], begin[1]]);
        // Where nothing is seen there may be no rows at all.
        this.after = (!keys.is_empty()).then_some((head, keys));
        this
    }

    /// Whether memory sets the pace.
    pub(crate) fn is_few(&self) -> bool {
        is_few(self.rows)
    }

    /// The item sees about `keys` keys with `tiles` tiles.
    pub(crate) fn begin(&mut self, keys: usize, tiles: usize) {
        if self.is_few() {
            // A few queries, all at once.
            self.fetch.item.pace(1);
            return self.fetch.step(1);
        }
        self.fetch.item.pace(self.work(keys.next_multiple_of(BLOCK_KV), tiles));
    }

    /// The item's `tiles` tiles are at a block; behind it they will come to `keys`.
    pub(crate) fn block(&mut self, keys: Range<usize>, tiles: usize) {
        let Some((head, keys)) = self.upcoming(keys.start, keys.end) else { return };
        if head[0].rows.page_rows().is_some_and(|rows| rows < LEAST_STRETCH) {
            return;
        }
        let few = self.is_few();
        if few {
            let mut stretches = head[self.first].rows.stretches(keys.clone());
            self.fetch.next =
                stretches.next().map(|rows| Soon::new(rows.row(0), rows.stride(), rows.len()));
            if self.along_keys {
                return;
            }
        }
        let work = self.work(BLOCK_KV, tiles);
        let blocks = &mut self.fetch.blocks;
        blocks.clear();
        // The kernel of few rows' values asks for them itself.
        for of in &head[..if few { 1 } else { 2 }] {
            for rows in of.rows.stretches(keys.clone()) {
                blocks.push(Stream::lines(rows));
            }
        }
        blocks.pace(work);
    }

    /// The block at `start` of keys that end at `end`; behind the end, of the next item's keys where
    /// memory sets the pace.
    fn upcoming(&self, start: usize, end: usize) -> Option<Part<'p>> {
        let block = |start: usize, end: usize| start..end.min(start + BLOCK_KV);
        if start < end {
            return Some((self.head, block(start, end)));
        }
        let (head, keys) = self.after.as_ref().filter(|_| self.is_few())?;
        let start = (keys.start / BLOCK_KV + (start - end) / BLOCK_KV) * BLOCK_KV;
        (start < keys.end).then(|| (*head, block(start, keys.end)))
    }

    /// What a block of `keys` keys is to [`Fetch::step`].
    fn work(&self, keys: usize, tiles: usize) -> usize {
        let key = self.head[0].width();
        // Of many rows only the scores ask.
        self.rows.saturating_mul(key).saturating_mul(keys).saturating_mul(tiles)
    }
}
