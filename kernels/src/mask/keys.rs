//! Padding: which keys of a sequence exist.

use std::ops::Range;

use super::Sequence;
use crate::error::Result;
use crate::problem::value_error;

/// For each sequence the keys that exist.
#[derive(Debug, Clone, Copy)]
pub(super) struct Existing<'a> {
    starts: Option<&'a [usize]>,
    lengths: Option<&'a [usize]>,
}

impl<'a> Existing<'a> {
    pub(super) fn new(
        starts: Option<&'a [usize]>,
        lengths: Option<&'a [usize]>,
        (sequences, keys): (usize, impl Fn(usize) -> usize),
    ) -> Result<Self> {
        let lists = [("key_starts", "starts", starts), ("key_lengths", "lengths", lengths)];
        for (argument, what, numbers) in lists {
            let Some(numbers) = numbers else { continue };
            if numbers.len() != sequences {
                return value_error(
                    argument,
                    format_args!("{} {what}", numbers.len()),
                    format!("one for each of the {sequences} sequences"),
                );
            }
            if let Some((s, n)) = numbers.iter().enumerate().find(|&(s, &n)| n > keys(s)) {
                return value_error(argument, n, format!("at most {}", keys(s)));
            }
        }
        Ok(Self { starts, lengths })
    }

    /// Whether sequences may differ.
    pub(super) fn vary(&self) -> bool {
        self.starts.is_some() || self.lengths.is_some()
    }

    /// Behind the last key that exists.
    pub(super) fn end(&self, sequence: &Sequence) -> usize {
        self.lengths.map_or(sequence.seq_kv, |lengths| lengths[sequence.index])
    }

    pub(super) fn range(&self, sequence: &Sequence) -> Range<usize> {
        self.starts.map_or(0, |starts| starts[sequence.index])..self.end(sequence)
    }
}
