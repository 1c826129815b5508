//! Who has been named in a call.

use super::lists::{list, reserve};
use crate::Result;

/// For each of some things, the last call that named it.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    last: Vec<u64>,
    call: u64,
}

impl Marks {
    pub(super) fn new(count: usize) -> Result<Self> {
        Ok(Self { last: list("sequences", std::iter::repeat_n(0, count))?, call: 0 })
    }

    /// Has the memory for `count`, which are no less than now.
    pub(super) fn reserve(&mut self, count: usize) -> Result<()> {
        let more = count - self.last.len();
        reserve("sequences", &mut self.last, more)
    }

    /// Makes `count` of them, in memory that was reserved.
    pub(super) fn grow(&mut self, count: usize) {
        self.last.resize(count, 0);
    }

    pub(super) fn next_call(&mut self) {
        self.call += 1;
    }

    /// Names one: whether this call does for the first time.
    pub(super) fn first(&mut self, index: usize) -> bool {
        std::mem::replace(&mut self.last[index], self.call) != self.call
    }
}
