//! Who has been named in a call.

/// For each of some things, the last call that named it.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    last: Vec<u64>,
    call: u64,
}

impl Marks {
    pub(super) fn new(count: usize) -> Self {
        Self { last: vec![0; count], call: 0 }
    }

    /// Makes room for `count`.
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
