//! Masks by position: the causal diagonal, the sliding window, and the prefix that lifts the
//! diagonal.

use std::ops::Range;

use super::Sequence;
use crate::error::Result;
use crate::problem::value_error;

/// Where the causal diagonal lies: query `i` sees key `j` if `j <= i + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Causal {
    /// The last query sees the last key: `offset = seq_kv - seq_q`. What a cache needs.
    BottomRight,
    /// The first query sees the first key alone: `offset = 0`.
    TopLeft,
    /// Any offset: the position of query 0 among the keys.
    Offset(i64),
    /// The last query sees the last key that exists: `offset = key_lengths[b] - seq_q`. What a batch
    /// of caches of different lengths needs. Without key lengths as [`Causal::BottomRight`].
    AtLength,
}

/// How far from its own position `i + offset` a query sees, its own position not counted; `None`
/// is without limit. `left: Some(2)` sees 3 keys: two before and its own.
///
/// The offset is that of the causal mask, or `seq_kv - seq_q` without one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// Keys visible before the query's own position.
    pub left: Option<usize>,
    /// Keys visible after it.
    pub right: Option<usize>,
}

/// What a query's position lets it see.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positions<'a> {
    pub(super) causal: Option<Causal>,
    pub(super) window: Window,
    /// One number for all sequences, or one for each.
    pub(super) prefix: Option<&'a [usize]>,
}

impl<'a> Positions<'a> {
    /// `shortest` is the number of keys of a sequence, or, if one number is for all, of the
    /// shortest.
    pub(super) fn new(
        causal: Option<Causal>,
        window: Window,
        prefix: Option<&'a [usize]>,
        (sequences, keys): (usize, impl Fn(usize) -> usize),
    ) -> Result<Self> {
        if let Some(prefix) = prefix {
            if prefix.len() != 1 && prefix.len() != sequences {
                return value_error(
                    "prefix",
                    format_args!("{} lengths", prefix.len()),
                    format!("one, or one for each of the {sequences} sequences"),
                );
            }
            let length = |s: usize| prefix[s % prefix.len()];
            if let Some(s) = (0..sequences).find(|&s| length(s) > keys(s)) {
                return value_error("prefix", length(s), format!("at most {}", keys(s)));
            }
        }
        Ok(Self { causal, window, prefix })
    }

    /// Whether every query sees the same.
    pub(super) fn are_uniform(&self) -> bool {
        self.causal.is_none() && self.window == Window::default()
    }

    /// Where query `i` stands among the keys of a sequence in which `existing` keys exist.
    pub(super) fn position(&self, sequence: &Sequence, existing: usize, i: usize) -> i128 {
        let (seq_q, seq_kv) = (sequence.seq_q as i128, sequence.seq_kv as i128);
        i as i128
            + match self.causal {
                Some(Causal::TopLeft) => 0,
                Some(Causal::Offset(offset)) => offset.into(),
                Some(Causal::AtLength) => existing as i128 - seq_q,
                Some(Causal::BottomRight) | None => seq_kv - seq_q,
            }
    }

    /// What the queries of such a sequence see.
    pub(super) fn band(&self, sequence: &Sequence, existing: usize) -> Band {
        let first = self.position(sequence, existing, 0);
        // Beyond these bounds a query's number makes no difference.
        let bound = |x: i128| x.clamp(-(1 << 62), 1 << 62) as i64;
        let Window { left, right } = self.window;
        let prefix = self.prefix.map_or(0, |prefix| prefix[sequence.index % prefix.len()]);
        Band {
            seq_kv: sequence.seq_kv,
            left: left.map(|left| bound(first - left as i128)),
            right: right.map(|right| bound(first + right as i128 + 1)),
            diagonal: self.causal.map(|_| bound(first + 1)),
            prefix,
        }
    }
}

/// What a query's position lets it see, of one sequence: each bound is that of query 0, and goes on by
/// one with every query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    seq_kv: usize,
    left: Option<i64>,
    /// Behind the last key of the window, and behind the diagonal.
    right: Option<i64>,
    diagonal: Option<i64>,
    prefix: usize,
}

impl Band {
    /// The keys that query `i` sees.
    pub(super) fn range(&self, i: usize) -> Range<usize> {
        let at = |bound: i64| bound.saturating_add(i as i64).clamp(0, self.seq_kv as i64) as usize;
        let start = self.left.map_or(0, at);
        let mut end = self.right.map_or(self.seq_kv, at);
        if let Some(diagonal) = self.diagonal {
            end = end.min(at(diagonal).max(self.prefix));
        }
        start.min(end)..end
    }
}
