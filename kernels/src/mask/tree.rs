//! Ancestor trees, as speculative decoding drafts them: several continuations of one cache in one
//! call.

use std::ops::Range;

use super::{Sequence, bits};
use crate::error::Result;
use crate::problem::value_error;

/// A tree over the last `nodes` keys that exist. Node `n` is the `n`th of them, and the last queries
/// are the last nodes: query `i` is node `i + nodes - seq_q`. A node sees every key before the tree,
/// its ancestors and itself; queries that stand before the tree see no key of it.
///
/// ```
/// use headwise_kernels::Tree;
///
/// // "the" -> "cat" -> "sat", and "the" -> "dog".
/// let parents = [None, Some(0), Some(1), Some(0)];
/// let by_parents = Tree::of_parents(4, &parents);
/// let by_bits = Tree::of_bits(4, &[0b0001, 0b0011, 0b0111, 0b1001]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree<'a> {
    nodes: usize,
    ancestors: Ancestors<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ancestors<'a> {
    Parents(&'a [Option<usize>]),
    Bits(&'a [u64]),
}

impl<'a> Tree<'a> {
    /// Given by each node's parent, `None` for a root; a parent stands before its children.
    /// `[nodes]` for all sequences, or `[sequences, nodes]`.
    pub fn of_parents(nodes: usize, parents: &'a [Option<usize>]) -> Self {
        Self { nodes, ancestors: Ancestors::Parents(parents) }
    }

    /// Given by a row of bits for each node, in `nodes.div_ceil(64)` words: bit `m % 64` of word
    /// `m / 64` says that the node sees node `m`, which must not stand behind it. Its own bit counts
    /// as set. `[nodes, words]` for all sequences, or `[sequences, nodes, words]`.
    pub fn of_bits(nodes: usize, rows: &'a [u64]) -> Self {
        Self { nodes, ancestors: Ancestors::Bits(rows) }
    }

    fn words(&self) -> usize {
        self.nodes.div_ceil(u64::BITS as usize)
    }

    /// `existing` is the number of keys that exist in a sequence.
    pub(super) fn check(&self, sequences: usize, existing: impl Fn(usize) -> usize) -> Result<()> {
        if let Some(s) = (0..sequences).find(|&s| existing(s) < self.nodes) {
            return value_error(
                "tree",
                format_args!("{} nodes", self.nodes),
                format!("at most {}, the keys that exist", existing(s)),
            );
        }
        let (length, one, unit) = match self.ancestors {
            Ancestors::Parents(parents) => (parents.len(), Some(self.nodes), "parents"),
            Ancestors::Bits(rows) => (rows.len(), self.nodes.checked_mul(self.words()), "words"),
        };
        let all = one.and_then(|one| one.checked_mul(sequences));
        if Some(length) != one && Some(length) != all {
            return value_error(
                "tree",
                format_args!("{length} {unit}"),
                format!("{} for {} nodes, or that for each sequence", one.unwrap_or(0), self.nodes),
            );
        }
        match self.ancestors {
            Ancestors::Parents(parents) => self.check_parents(parents),
            Ancestors::Bits(rows) => self.check_bits(rows),
        }
    }

    fn check_parents(&self, parents: &[Option<usize>]) -> Result<()> {
        for (at, parent) in parents.iter().enumerate() {
            let node = at % self.nodes;
            if let Some(parent) = parent
                && *parent >= node
            {
                return value_error(
                    "tree",
                    format_args!("node {node} with parent {parent}"),
                    "a parent before the node, so that there is no cycle".into(),
                );
            }
        }
        Ok(())
    }

    fn check_bits(&self, rows: &[u64]) -> Result<()> {
        for (at, row) in rows.chunks_exact(self.words().max(1)).enumerate() {
            let node = at % self.nodes.max(1);
            for (word, &bits) in row.iter().enumerate() {
                // The bits up to the node's own.
                let own = (node + 1).saturating_sub(64 * word);
                let behind = if own >= 64 { 0 } else { bits >> own };
                if behind != 0 {
                    let sees = 64 * word + own + behind.trailing_zeros() as usize;
                    return value_error(
                        "tree",
                        format_args!("node {node} that sees node {sees}"),
                        "nodes that see none behind them".into(),
                    );
                }
            }
        }
        Ok(())
    }

    /// The tree's first key.
    fn base(&self, existing: usize) -> usize {
        existing - self.nodes
    }

    /// Which node query `i` is.
    fn node(&self, sequence: &Sequence, i: usize) -> Option<usize> {
        (i + self.nodes).checked_sub(sequence.seq_q)
    }

    /// From key 0 to behind the last key that query `i` may see.
    pub(super) fn range(&self, sequence: &Sequence, existing: usize, i: usize) -> Range<usize> {
        let nodes = self.node(sequence, i).map_or(0, |node| node + 1);
        0..self.base(existing) + nodes
    }

    /// Whether `end`, behind a row's last key, leaves a row keys of the tree.
    pub(super) fn begins_before(&self, existing: usize, end: usize) -> bool {
        self.base(existing) < end
    }

    /// The keys of `block` that query `i` sees.
    pub(super) fn bits(
        &self,
        sequence: &Sequence,
        existing: usize,
        i: usize,
        block: Range<usize>,
    ) -> u128 {
        let base = self.base(existing);
        let in_block = |key: usize| key.clamp(block.start, block.end) - block.start;
        let mut seen = bits::between(0, in_block(base));
        let Some(node) = self.node(sequence, i) else { return seen };
        let mut add = |node: usize| {
            if block.contains(&(base + node)) {
                seen |= 1 << (base + node - block.start);
            }
        };
        add(node);
        match self.ancestors {
            Ancestors::Parents(parents) => {
                let parents = if parents.len() == self.nodes {
                    parents
                } else {
                    &parents[sequence.index * self.nodes..][..self.nodes]
                };
                let mut next = parents[node];
                // Ancestors come in descending order.
                while let Some(node) = next.filter(|node| base + node >= block.start) {
                    add(node);
                    next = parents[node];
                }
            }
            Ancestors::Bits(rows) => {
                let words = self.words();
                let tree =
                    if rows.len() == self.nodes * words { 0 } else { sequence.index * self.nodes };
                for (word, &bits) in rows[(tree + node) * words..][..words].iter().enumerate() {
                    // Where the word's first node lies in the block.
                    let (key, bits) = (base + 64 * word, u128::from(bits));
                    let part = match key.checked_sub(block.start) {
                        Some(behind) if behind < u128::BITS as usize => bits << behind,
                        None if block.start - key < 64 => bits >> (block.start - key),
                        _ => 0,
                    };
                    seen |= part;
                }
            }
        }
        seen
    }
}
