//! What to fetch ahead. There are two things that hardware finds only by missing: the next block of
//! a long sequence's keys and values, which lie in the outer cache or in memory, and the rows with
//! which the thread's next item begins, in a new place.

use std::ops::Range;

use crate::microkernel::fetch::{Fetch, Queue, Stream};
use crate::microkernel::{BLOCK_KV, GROUP};
use crate::plan::{self, Plan};
use crate::problem::Problem;
use crate::view::Rows;

/// The rows to fetch while one item is computed.
pub(crate) struct Ahead<'p> {
    /// The keys and values of the item's head.
    head: [Rows<'p, f32>; 2],
    pub(crate) fetch: Fetch,
}

impl<'p> Ahead<'p> {
    /// For `item`, of which `head` are the keys and values, and after which `next` will probably
    /// come.
    pub(crate) fn new(
        (problem, plan): (&Problem<'p, f32>, &Plan),
        item: &plan::Item,
        head: [Rows<'p, f32>; 2],
        next: Option<plan::Item>,
    ) -> Self {
        let current = (item.sequence, item.kv_head);
        let item = match next {
            Some(next) => Queue::new(begin(problem, plan, &next, current)),
            None => Queue::EMPTY,
        };
        Self { head, fetch: Fetch { block: Queue::EMPTY, item } }
    }

    /// The item sees about `keys` keys with `tiles` tiles.
    pub(crate) fn begin(&mut self, keys: usize, tiles: usize) {
        self.fetch.item.pace(keys.div_ceil(GROUP).saturating_mul(tiles));
    }

    /// The item's `tiles` tiles are at a block after which `keys` will come.
    pub(crate) fn block(&mut self, keys: Range<usize>, tiles: usize) {
        self.fetch.block = Queue::new(self.head.map(|rows| Stream::new(rows, keys.clone())));
        self.fetch.block.pace(tiles * (BLOCK_KV / GROUP));
    }
}

/// The rows with which `item` begins: its queries, and its first block's keys and values unless
/// the `current` head has them.
fn begin(
    problem: &Problem<'_, f32>,
    plan: &Plan,
    item: &plan::Item,
    current: (usize, usize),
) -> [Stream; 3] {
    let (head, _) = plan.query_row(item.kv_head, 0);
    let sequence = problem.mask.sequence(item.sequence);
    let group = (problem.dims().group_size(), problem.query.strides()[1]);
    let queries = problem.query.rows(sequence.batch, head).part(sequence.query, sequence.seq_q);
    let queries = Stream::interleaved(queries, group, item.rows.clone());
    if (item.sequence, item.kv_head) == current {
        return [queries, Stream::EMPTY, Stream::EMPTY];
    }
    let (_, query) = plan.query_row(item.kv_head, item.rows.start);
    let keys = problem.mask.range(&sequence, query);
    let keys = keys.start..keys.end.min(keys.start + BLOCK_KV);
    let stream = |rows| Stream::new(rows, keys.clone());
    [
        queries,
        stream(problem.keys(&sequence, item.kv_head)),
        stream(problem.values(&sequence, item.kv_head)),
    ]
}
