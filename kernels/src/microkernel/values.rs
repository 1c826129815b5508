//! The value micro-kernel: acc += P V for a tile of queries and a block of keys.
//!
//! ```text
//! for each panel of 2 value vectors                     the block's panel stays in L1
//!   for each group of ROWS query rows                   accumulators: ROWS x 2 vectors
//!     sum = 0
//!     for each key of the block that the group sees, in order
//!       sum[r][v] += splat(prob[key][r]) * value[key][v]  2 loads, ROWS broadcasts, 2 ROWS FMAs
//!     acc += sum
//! ```
//!
//! Each element of the block's sum is one chain of multiply-adds over its keys in order, whatever
//! the tile. Adding by blocks keeps rounding errors to those of 64 keys and of a 64th of the keys.
//! AVX-512 takes 12 rows, AVX2 and the portable body 6 and 4; what is left goes by fours and
//! ones.
//!
//! A masked key's probability is -0.0 and usually multiplied like any other, which is exact as
//! long as the value is finite. The careful body selects instead, with the same bits.

use super::{BLOCK_Q, Block};
use crate::simd::{Isa, Kernel, Simd};

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
        assert!(self.rows <= BLOCK_Q);
        assert!(self.prob.len() >= super::BLOCK_KV * BLOCK_Q);
        assert!(self.acc.len() >= self.rows * self.acc_width);
        assert!(self.acc_width >= self.values.rows.width().next_multiple_of(S::LANES));
        match S::ISA {
            Isa::Avx512 => self.panels::<S, 12>(s),
            Isa::Avx2 => self.panels::<S, 6>(s),
            Isa::Portable => self.panels::<S, 4>(s),
        }
    }
}

impl<const CAREFUL: bool> Values<'_, CAREFUL> {
    #[inline(always)]
    fn panels<S: Simd, const ROWS: usize>(&mut self, s: S) {
        let width = self.values.rows.width();
        let mut column = 0;
        while column < width {
            let left = width - column;
            if left >= 2 * S::LANES {
                self.groups::<S, ROWS, 2, false>(s, column);
            } else if left > S::LANES {
                self.groups::<S, ROWS, 2, true>(s, column);
            } else {
                self.groups::<S, ROWS, 1, true>(s, column);
            }
            column += 2 * S::LANES;
        }
    }

    #[inline(always)]
    fn groups<S: Simd, const ROWS: usize, const VECS: usize, const TAIL: bool>(
        &mut self,
        s: S,
        column: usize,
    ) {
        let mut row = 0;
        while !CAREFUL && row + ROWS <= self.rows {
            self.tile::<S, ROWS, VECS, TAIL>(s, row, column);
            row += ROWS;
        }
        while row + 4 <= self.rows {
            self.tile::<S, 4, VECS, TAIL>(s, row, column);
            row += 4;
        }
        while row < self.rows {
            self.tile::<S, 1, VECS, TAIL>(s, row, column);
            row += 1;
        }
    }

    /// One micro-tile: `ROWS` query rows from `row` on, `VECS` vectors of the values from
    /// `column` on, the last of them cut short if `TAIL`.
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
        let tail = self.values.rows.width() - column - (VECS - 1) * S::LANES;
        // SAFETY: `run` checked the extents: row + ROWS <= rows <= BLOCK_Q, end <= BLOCK_KV, acc
        // has rows of acc_width >= column + VECS * LANES floats; the values' rows exist up to
        // `end` and are `width` floats long, of which a tail reads no more than are left.
        unsafe {
            let acc_ptr = self.acc.as_mut_ptr().add(row * self.acc_width + column);
            let mut sum = [[s.splat(0.0); VECS]; ROWS];
            let mut prob = self.prob.as_ptr().add(start * BLOCK_Q + row);
            for key in start..end {
                let value = self.values.rows.row(self.values.first + key).add(column);
                let values: [S::Vector; VECS] = core::array::from_fn(|v| {
                    if TAIL && v == VECS - 1 {
                        s.load_first(value.add(v * S::LANES), tail)
                    } else {
                        s.load(value.add(v * S::LANES))
                    }
                });
                for r in 0..ROWS {
                    let p = s.splat(*prob.add(r));
                    for v in 0..VECS {
                        let more = s.mul_add(p, values[v], sum[r][v]);
                        sum[r][v] = if CAREFUL {
                            s.select(s.is_negative(p), sum[r][v], more)
                        } else {
                            more
                        };
                    }
                }
                prob = prob.add(BLOCK_Q);
            }
            for r in 0..ROWS {
                for v in 0..VECS {
                    let at = acc_ptr.add(r * self.acc_width + v * S::LANES);
                    let before = if self.fresh { s.splat(0.0) } else { s.load(at) };
                    s.store(at, s.add(before, sum[r][v]));
                }
            }
        }
    }
}
