//! Ragged batches: sequences of different lengths, one behind the other in one tensor.

use crate::error::Result;
use crate::problem::{shape_error, value_error};
use crate::view::Shape;

/// Where each sequence of a ragged batch begins among the packed queries and among the packed keys
/// (`cu_seqlens`): `n + 1` offsets for `n` sequences, from 0 to the length of the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets<'a> {
    /// Among the queries.
    pub query: &'a [usize],
    /// Among the keys.
    pub key: &'a [usize],
}

impl Offsets<'_> {
    /// Checks that both lists cover `seq_q` queries and `seq_kv` keys with equally many parts.
    pub(super) fn check(
        &self,
        [query, key]: [&'static str; 2],
        seq_q: usize,
        seq_kv: usize,
    ) -> Result<()> {
        check_offsets(query, self.query, seq_q)?;
        check_offsets(key, self.key, seq_kv)?;
        if self.query.len() != self.key.len() {
            return value_error(
                key,
                format_args!("{} offsets", self.key.len()),
                format!("{}, as many as of the queries", self.query.len()),
            );
        }
        Ok(())
    }
}

/// Checks that offsets cover `length` tokens.
fn check_offsets(argument: &'static str, offsets: &[usize], length: usize) -> Result<()> {
    let ends = (offsets.first(), offsets.last());
    if ends != (Some(&0), Some(&length)) {
        let expected = format!("offsets from 0 to {length}, the length of the tensor");
        return value_error(argument, offsets, expected);
    }
    if let Some(n) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        return value_error(
            argument,
            format_args!("{} before {}", offsets[n], offsets[n + 1]),
            "offsets that do not decrease".into(),
        );
    }
    Ok(())
}

/// One sequence: where it lies in the tensors.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sequence {
    /// Its number: the batch entry, or the part of a ragged batch.
    pub(crate) index: usize,
    /// The tensors' batch entry.
    pub(crate) batch: usize,
    /// Its first query.
    pub(crate) query: usize,
    pub(crate) seq_q: usize,
    /// Its first key.
    pub(crate) key: usize,
    pub(crate) seq_kv: usize,
}

/// The sequences of a problem.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sequences<'a> {
    /// One to each batch entry.
    Batch {
        count: usize,
        seq_q: usize,
        seq_kv: usize,
    },
    Ragged(Offsets<'a>),
    /// One to each table of pages, with queries of its own batch entry or, by offsets, packed.
    Paged {
        query: Option<&'a [usize]>,
        seq_q: usize,
        lengths: &'a [usize],
    },
}

impl<'a> Sequences<'a> {
    pub(super) fn new(query: Shape, key: Shape, ragged: Option<Offsets<'a>>) -> Result<Self> {
        let Some(offsets) = ragged else {
            return Ok(Self::Batch { count: query[0], seq_q: query[2], seq_kv: key[2] });
        };
        if query[0] != 1 {
            let expected = "one batch entry, in which the sequences of a ragged batch are packed";
            return shape_error("query", query, expected.into());
        }
        offsets.check(["query_offsets", "key_offsets"], query[2], key[2])?;
        Ok(Self::Ragged(offsets))
    }

    /// The sequences of `lengths`, with the queries of a tensor of this shape.
    pub(super) fn paged(
        query: Shape,
        offsets: Option<&'a [usize]>,
        lengths: &'a [usize],
    ) -> Result<Self> {
        let Some(offsets) = offsets else {
            if query[0] != lengths.len() {
                let expected = format!("{} batch entries, as many as sequences", lengths.len());
                return shape_error("query", query, expected);
            }
            return Ok(Self::Paged { query: None, seq_q: query[2], lengths });
        };
        if query[0] != 1 {
            let expected = "one batch entry, in which the queries of all sequences are packed";
            return shape_error("query", query, expected.into());
        }
        if offsets.len() != lengths.len() + 1 {
            let expected = format!("{}, one more than sequences", lengths.len() + 1);
            return value_error(
                "query_offsets",
                format_args!("{} offsets", offsets.len()),
                expected,
            );
        }
        check_offsets("query_offsets", offsets, query[2])?;
        Ok(Self::Paged { query: Some(offsets), seq_q: 0, lengths })
    }

    pub(super) fn are_ragged(&self) -> bool {
        matches!(self, Self::Ragged(_) | Self::Paged { query: Some(_), .. })
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Self::Batch { count, .. } => *count,
            Self::Ragged(offsets) => offsets.query.len() - 1,
            Self::Paged { lengths, .. } => lengths.len(),
        }
    }

    /// Sequence `index`, which must exist.
    pub(super) fn at(&self, index: usize) -> Sequence {
        match *self {
            Self::Batch { seq_q, seq_kv, .. } => {
                Sequence { index, batch: index, query: 0, seq_q, key: 0, seq_kv }
            }
            Self::Paged { query: None, seq_q, lengths } => {
                let seq_kv = lengths[index];
                Sequence { index, batch: index, query: 0, seq_q, key: 0, seq_kv }
            }
            Self::Paged { query: Some(query), lengths, .. } => Sequence {
                index,
                batch: 0,
                query: query[index],
                seq_q: query[index + 1] - query[index],
                key: 0,
                seq_kv: lengths[index],
            },
            Self::Ragged(Offsets { query, key }) => Sequence {
                index,
                batch: 0,
                query: query[index],
                seq_q: query[index + 1] - query[index],
                key: key[index],
                seq_kv: key[index + 1] - key[index],
            },
        }
    }

    /// The most queries, and the most keys, of a sequence.
    pub(super) fn longest(&self) -> (usize, usize) {
        match self {
            Self::Batch { seq_q, seq_kv, .. } => (*seq_q, *seq_kv),
            Self::Ragged(_) | Self::Paged { .. } => (0..self.count())
                .map(|s| self.at(s))
                .fold((0, 0), |most, s| (most.0.max(s.seq_q), most.1.max(s.seq_kv))),
        }
    }
}
