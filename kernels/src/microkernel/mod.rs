//! The innermost loops: generic over the instruction set and a constant tile size. They allocate
//! nothing, know of no threads, and are called once per key block.
//!
//! Queries lie along the lanes. A query tile is [`BLOCK_Q`] rows, a key block [`BLOCK_KV`] keys:
//!
//! ```text
//!   q_t    [head_dim][BLOCK_Q]   the tile's queries, transposed and scaled
//!   key    [key][head_dim]       read where it lies, one float broadcast at a time
//!   prob   [BLOCK_KV][BLOCK_Q]   scores, then probabilities: S^T = K Q^T
//!   value  [key][value_dim]      read where it lies, along the lanes
//!   acc    [BLOCK_Q][acc_width]  sum of prob * value
//! ```

pub(crate) mod finish;
pub(crate) mod outer;
pub(crate) mod pack;
pub(crate) mod row_softmax;
pub(crate) mod scores;
pub(crate) mod sweep;
pub(crate) mod values;

use crate::view::Rows;

/// Query rows in a tile: a multiple of every instruction set's lanes, and the row pitch of `q_t`
/// and `prob`.
pub(crate) const BLOCK_Q: usize = 48;
/// Keys in a block. Blocks are counted from key 0, and decisions about a row's reference maximum
/// are taken per block: the number is part of what a row's bits depend on.
pub(crate) const BLOCK_KV: usize = 64;

/// One float for each row of a tile.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes(pub(crate) [f32; BLOCK_Q]);

impl Lanes {
    pub(crate) const fn splat(x: f32) -> Self {
        Self([x; BLOCK_Q])
    }

    pub(crate) fn map(&self, f: impl FnMut(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    /// As a flag, a lane is set where it is negative.
    pub(crate) fn flags(&self, mut f: impl FnMut(f32) -> bool) -> Self {
        self.map(|x| if f(x) { -1.0 } else { 0.0 })
    }

    pub(crate) fn is_set(&self, lane: usize) -> bool {
        self.0[lane] < 0.0
    }

    pub(crate) fn set(&mut self, lane: usize) {
        self.0[lane] = -1.0;
    }
}

/// The keys or values of one key block: rows `first + start .. first + end` of `rows`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) rows: Rows<'a, f32>,
    /// The key that the block starts with, a multiple of [`BLOCK_KV`].
    pub(crate) first: usize,
    /// The first key wanted, counted from `first`.
    pub(crate) start: usize,
    /// Behind the last key wanted, counted from `first`; at most [`BLOCK_KV`].
    pub(crate) end: usize,
}

impl Block<'_> {
    /// Checks what the loops rely on.
    pub(crate) fn check(&self) {
        assert!(self.start <= self.end && self.end <= BLOCK_KV);
        assert!(self.end == 0 || self.first + self.end <= self.rows.len());
    }
}
