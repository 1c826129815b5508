//! The value micro-kernel: acc += P V for a tile of queries and a block of keys.
//!
//! ```text
//! for each panel of 2 value vectors                     the block's panel stays in L1
//!   for each group of rows                              12, 6 or 4 by instruction set
//!     sum = P V over the keys that the group sees       microkernel/outer.rs
//!     acc += sum
//! ```
//!
//! Adding by blocks keeps rounding errors to those of 64 keys and of a 64th of the keys.
//!
//! A masked key's probability is -0.0 and usually multiplied like any other, which is exact as
//! long as the value is finite. The careful body selects instead, with the same bits.

use super::outer::{self, Operands, Order, Packed, Tiled};
use super::{BLOCK_Q, Block};
use crate::simd::{Kernel, Simd};

/// A tile's probabilities against a block of values.
pub(crate) struct Values<'a, const CAREFUL: bool> {
    /// `[BLOCK_KV][BLOCK_Q]`.
    pub(crate) prob: &'a [f32],
    pub(crate) values: Block<'a>,
    /// Query rows in use.
    pub(crate) rows: usize,
    /// For each row the keys it may see, counted from the block's first.
    pub(crate) seen: &'a [(usize, usize); BLOCK_Q],
    /// `[BLOCK_Q][acc_width]`.
    pub(crate) acc: &'a mut [f32],
    /// Whether the sums start here, whatever `acc` holds.
    pub(crate) fresh: bool,
    /// `value_dim` rounded up to whole vectors.
    pub(crate) acc_width: usize,
}

impl<const CAREFUL: bool> Kernel for Values<'_, CAREFUL> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.values.check();
        let (rows, width) = (self.rows, self.values.rows.width());
        assert!(rows <= BLOCK_Q);
        assert!(self.prob.len() >= super::BLOCK_KV * BLOCK_Q);
        assert!(self.acc.len() >= rows * self.acc_width);
        assert!(self.acc_width >= width.next_multiple_of(S::LANES));
        if CAREFUL {
            // Selecting takes registers: only small tiles.
            outer::cover::<S, Self, false>(s, &mut self, (rows, width), Order::Down);
        } else {
            outer::cover::<S, Self, true>(s, &mut self, (rows, width), Order::Down);
        }
    }
}

impl<const CAREFUL: bool> Tiled for Values<'_, CAREFUL> {
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECS: usize, const TAIL: bool>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
    ) {
        let seen = &self.seen[row..row + ROWS];
        let start = seen.iter().map(|&(start, _)| start).min().unwrap_or(0);
        let end = seen.iter().map(|&(_, end)| end).max().unwrap_or(0);
        let (start, end) = (start.max(self.values.start), end.min(self.values.end));
        // A group may see none of the block.
        let (start, end) = if start < end { (start, end) } else { (0, 0) };
        // SAFETY: `run` checked the extents: row + ROWS <= rows <= BLOCK_Q, end <= BLOCK_KV, acc
        // has rows of acc_width >= column + VECS * LANES floats; the values' rows exist up to
        // `end`, and `cover` keeps to their width.
        unsafe {
            let operands = Operands {
                a: Packed(self.prob.as_ptr().add(start * BLOCK_Q + row)),
                b: self.values.rows,
                first: self.values.first + start,
                column,
                depth: end - start,
                ahead: std::ptr::null(),
            };
            let sum = outer::sum::<S, ROWS, VECS, TAIL, CAREFUL, false>(s, operands);
            let acc = self.acc.as_mut_ptr().add(row * self.acc_width + column);
            for r in 0..ROWS {
                for v in 0..VECS {
                    let at = acc.add(r * self.acc_width + v * S::LANES);
                    let before = if self.fresh { s.splat(0.0) } else { s.load(at) };
                    s.store(at, s.add(before, sum[r][v]));
                }
            }
        }
    }
}
