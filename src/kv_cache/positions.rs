//! Where tokens stand in their sequences.

use crate::{Error, Result};

/// The positions of the tokens of a call, by which they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Positions<'a> {
    /// Every sequence begins at this position.
    From(usize),
    /// A first position for each sequence.
    Starts(&'a [usize]),
    /// One for each token, sequence by sequence.
    Each(&'a [usize]),
}

impl Positions<'_> {
    /// Whether there are enough for so many sequences and tokens in all.
    pub(super) fn check(&self, sequences: usize, tokens: usize) -> Result<()> {
        let (got, expected, what) = match self {
            Self::From(_) => return Ok(()),
            Self::Starts(starts) => (starts.len(), sequences, "sequence"),
            Self::Each(each) => (each.len(), tokens, "token"),
        };
        if got == expected {
            return Ok(());
        }
        Err(Error::Shape {
            argument: "positions",
            got: format!("[{got}]"),
            expected: format!("[{expected}], one for each {what}"),
        })
    }

    /// That of token `within` of the sequence of this run; far beyond every table where it
    /// overflows.
    pub(super) fn at(&self, run: Run, within: usize) -> usize {
        match self {
            Self::From(from) => from.saturating_add(within),
            Self::Starts(starts) => starts[run.sequence].saturating_add(within),
            Self::Each(each) => each[run.nth + within],
        }
    }
}

/// The tokens of one sequence in a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// The sequence, as the call counts them.
    pub(super) sequence: usize,
    /// Where the tokens lie on the batch axis.
    pub(super) batch: usize,
    /// Where they begin on the sequence axis.
    pub(super) first: usize,
    pub(super) count: usize,
    /// How many tokens of the call come before, sequence by sequence.
    pub(super) nth: usize,
}

impl Run {
    /// All of a batch entry.
    pub(super) fn of_entry(batch: usize, seq: usize) -> Self {
        Self { sequence: batch, batch, first: 0, count: seq, nth: batch * seq }
    }
}
