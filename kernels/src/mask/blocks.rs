//! Block-sparse patterns: a bitmap of blocks of queries by blocks of keys.

use std::ops::Range;

use super::dense::stretched;
use super::{Sequence, bits};
use crate::error::Result;
use crate::problem::value_error;
use crate::view::View;

/// A block-sparse pattern: query `i` sees key `j` if `visible` is true at
/// `[.., i / block_q, j / block_kv]`.
#[derive(Debug, Clone, Copy)]
pub struct BlockPattern<'a> {
    /// Queries in a block.
    pub block_q: usize,
    /// Keys in a block.
    pub block_kv: usize,
    /// `[batch, q_heads, seq_q / block_q, seq_kv / block_kv]`, both quotients rounded up and each of
    /// the first three axes perhaps 1. Of a ragged batch the first axis is that of the sequences, and
    /// the lengths are the longest sequence's.
    pub visible: View<'a, bool>,
}

impl<'a> BlockPattern<'a> {
    /// For so many sequences, query heads, queries and keys at most.
    pub(super) fn checked(
        mut self,
        [sequences, q_heads, seq_q, seq_kv]: [usize; 4],
    ) -> Result<Self> {
        for (argument, block) in [("block_q", self.block_q), ("block_kv", self.block_kv)] {
            if block == 0 {
                return value_error(argument, block, "at least 1".into());
            }
        }
        let counts = [seq_q.div_ceil(self.block_q), seq_kv.div_ceil(self.block_kv)];
        let whole = [sequences, q_heads, counts[0], counts[1]];
        self.visible = stretched("blocks", self.visible, whole)?;
        Ok(self)
    }

    /// The row of the bitmap that a query reads: equal where the rows are one in memory.
    pub(super) fn row(&self, sequence: &Sequence, head: usize, i: usize) -> (*const bool, usize) {
        let row = i / self.block_q;
        (self.visible.row(sequence.index, head, row), row)
    }

    /// The keys of `block` that block row `row` sees.
    pub(super) fn bits(
        &self,
        sequence: &Sequence,
        head: usize,
        row: usize,
        block: Range<usize>,
    ) -> u128 {
        let row = self.visible.rows(sequence.index, head).slice(row);
        let mut seen = 0;
        for n in block.start / self.block_kv..block.end.div_ceil(self.block_kv) {
            if row[n] {
                let start = (n * self.block_kv).max(block.start);
                let end = (n + 1).saturating_mul(self.block_kv).min(block.end);
                seen |= bits::between(start - block.start, end - block.start);
            }
        }
        seen
    }

    /// The share of blocks that `queries` see of a sequence, by its first head.
    pub(super) fn density(&self, sequence: &Sequence, queries: Range<usize>) -> f64 {
        let rows = queries.start / self.block_q..queries.end.div_ceil(self.block_q);
        let bitmap = self.visible.rows(sequence.index, 0);
        let (mut seen, mut all) = (0_usize, 0_usize);
        for row in rows {
            let row = &bitmap.slice(row)[..sequence.seq_kv.div_ceil(self.block_kv)];
            seen += row.iter().filter(|&&visible| visible).count();
            all += row.len();
        }
        seen as f64 / all.max(1) as f64
    }
}
