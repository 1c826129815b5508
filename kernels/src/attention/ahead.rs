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
    /// For an item of the head `(batch, kv_head)`, after which `next` will probably come.
    pub(crate) fn new(
        (problem, plan): (&Problem<'p, f32>, &Plan),
        head: (usize, usize),
        next: Option<plan::Item>,
    ) -> Self {
        let item = match next {
            Some(next) => Queue::new(begin(problem, plan, &next, head)),
            None => Queue::EMPTY,
        };
        Self {
            head: [problem.key.rows(head.0, head.1), problem.value.rows(head.0, head.1)],
            fetch: Fetch { block: Queue::EMPTY, item },
        }
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
    let group = (problem.dims().group_size(), problem.query.strides()[1]);
    let queries = problem.query.rows(item.batch, head);
    let queries = Stream::interleaved(queries, group, item.rows.clone());
    if (item.batch, item.kv_head) == current {
        return [queries, Stream::EMPTY, Stream::EMPTY];
    }
    let (_, query) = plan.query_row(item.kv_head, item.rows.start);
    let keys = problem.visible_keys(item.batch, query);
    let keys = keys.start..keys.end.min(keys.start + BLOCK_KV);
    let stream = |view: &crate::View<'_, f32>| {
        Stream::new(view.rows(item.batch, item.kv_head), keys.clone())
    };
    [queries, stream(&problem.key), stream(&problem.value)]
}
