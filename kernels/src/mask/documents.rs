//! Packed documents: a query sees the keys of its own document.

use std::ops::Range;

use super::bits;
use super::ragged::Offsets;
use super::{Sequence, Sequences};
use crate::error::Result;
use crate::problem::value_error;

/// Documents packed into the sequences. Positions count on over them: a causal mask or a window is
/// that of the whole sequence, and a document alone sees what [`Masking::ragged`] would show it only
/// where its queries and keys stand at the same places.
///
/// [`Masking::ragged`]: crate::Masking::ragged
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Documents<'a> {
    /// A document's number for each query and each key (segment ids): a query sees the keys of its
    /// number. `[batch, seq_q]` and `[batch, seq_kv]`, or `[seq_q]` and `[seq_kv]` for all batch
    /// entries alike. Numbers may come in any order; in ascending order of the keys they cost least.
    Ids {
        /// Of the queries.
        query: &'a [i32],
        /// Of the keys.
        key: &'a [i32],
    },
    /// Where each document begins (`cu_seqlens`), for all batch entries alike.
    Offsets(Offsets<'a>),
}

/// Validated documents.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packed<'a> {
    Ids {
        query: &'a [i32],
        key: &'a [i32],
        /// One list for all sequences.
        shared: bool,
        /// Ascending keys: a document's are a range.
        sorted: bool,
    },
    Offsets(Offsets<'a>),
}

impl<'a> Packed<'a> {
    /// For tensors of `[batch, seq_q]` queries and `[batch, seq_kv]` keys.
    pub(super) fn new(
        documents: Documents<'a>,
        sequences: &Sequences<'_>,
        [batch, seq_q, seq_kv]: [usize; 3],
    ) -> Result<Self> {
        let (query, key) = match documents {
            Documents::Offsets(offsets) => {
                offsets.check(["query documents", "key documents"], seq_q, seq_kv)?;
                return Ok(Self::Offsets(offsets));
            }
            Documents::Ids { query, key } => (query, key),
        };
        let shared = query.len() == seq_q && key.len() == seq_kv;
        let lists = [("query documents", query.len(), seq_q), ("key documents", key.len(), seq_kv)];
        for (argument, got, length) in lists {
            if !shared && Some(got) != batch.checked_mul(length) {
                return value_error(
                    argument,
                    format_args!("{got} numbers"),
                    format!("[{batch}, {length}], or [{length}] for queries and keys alike"),
                );
            }
        }
        let lists = if shared { 1 } else { batch };
        let mut this = Self::Ids { query, key, shared, sorted: false };
        let is_sorted = if sequences.are_ragged() {
            (0..sequences.count()).all(|s| this.keys(&sequences.at(s)).is_sorted())
        } else {
            (0..lists).all(|n| key[n * seq_kv..(n + 1) * seq_kv].is_sorted())
        };
        if let Self::Ids { sorted, .. } = &mut this {
            *sorted = is_sorted;
        }
        Ok(this)
    }

    /// Whether each document's keys are a range.
    pub(super) fn are_ranges(&self) -> bool {
        matches!(self, Self::Offsets(_) | Self::Ids { sorted: true, .. })
    }

    /// The numbers of the sequence's keys.
    fn keys(&self, sequence: &Sequence) -> &'a [i32] {
        let Self::Ids { key, shared, .. } = self else { return &[] };
        let entry = if *shared { 0 } else { sequence.batch * sequence.seq_kv };
        &key[entry + sequence.key..][..sequence.seq_kv]
    }

    /// The document of query `i`: its number or, where documents are ranges, its place among them.
    pub(super) fn id(&self, sequence: &Sequence, i: usize) -> i64 {
        match self {
            Self::Offsets(Offsets { query, .. }) => {
                query.partition_point(|&o| o <= sequence.query + i) as i64 - 1
            }
            Self::Ids { query, shared, .. } => {
                let entry = if *shared { 0 } else { sequence.batch * sequence.seq_q };
                query[entry + sequence.query + i].into()
            }
        }
    }

    /// From the first key of a document to behind the last.
    pub(super) fn range(&self, sequence: &Sequence, id: i64) -> Range<usize> {
        match self {
            Self::Offsets(Offsets { key, .. }) => {
                let document = id as usize;
                let own = |offset: usize| offset.saturating_sub(sequence.key).min(sequence.seq_kv);
                own(key[document])..own(key[document + 1])
            }
            Self::Ids { sorted, .. } => {
                let (id, keys) = (id as i32, self.keys(sequence));
                if *sorted {
                    keys.partition_point(|&key| key < id)..keys.partition_point(|&key| key <= id)
                } else {
                    let start = keys.iter().position(|&key| key == id).unwrap_or(0);
                    start..keys.iter().rposition(|&key| key == id).map_or(start, |last| last + 1)
                }
            }
        }
    }

    /// The keys of document `id` in the block at `first`.
    pub(super) fn bits(&self, sequence: &Sequence, id: i64, block: Range<usize>) -> u128 {
        let keys = &self.keys(sequence)[block];
        let id = id as i32;
        let mut same = [false; u128::BITS as usize];
        same.iter_mut().zip(keys).for_each(|(same, &key)| *same = key == id);
        bits::of_flags(&same)
    }
}
