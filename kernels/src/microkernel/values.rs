//! The value micro-kernel: acc += P V for a tile of queries and a block of keys.
//!
//! ```text
//! for each panel of 2 value vectors                     the block's panel stays in L1
//!   for each group of rows                              12, 6 or 4 by instruction set
//!     sum = P V over the keys that the group sees       microkernel/outer.rs
//!     acc += sum, or out = (acc + sum) / row_sum        with the tile's last block
//! ```
//!
//! Adding by blocks, in two chains of 64 keys, keeps rounding errors to those of 64 keys and of the
//! number of blocks.
//!
//! A masked key's probability is -0.0 and usually multiplied like any other, which is exact as
//! long as the value is finite. The careful body selects instead, with the same bits.

use super::outer::{self, Operands, Order, Packed, Tiled};
use super::{BLOCK_KV, BLOCK_Q, Block, Lanes, Seen, together, unroll};
use crate::simd::{Isa, Kernel, Simd};

/// A tile's probabilities against a block of values.
pub(crate) struct Values<'a, const CAREFUL: bool> {
    /// `[BLOCK_KV][BLOCK_Q]`.
    pub(crate) prob: &'a [f32],
    pub(crate) values: Block<'a>,
    /// Query rows in use.
    pub(crate) rows: usize,
    /// The keys that each row sees; `None`: all of the block's.
    pub(crate) seen: Option<&'a Seen>,
    /// `[BLOCK_Q][acc_width]`.
    pub(crate) acc: &'a mut [f32],
    /// Whether the sums start here, whatever `acc` holds.
    pub(crate) fresh: bool,
    /// `value_dim` rounded up to whole vectors.
    pub(crate) acc_width: usize,
    /// Where the sums go if they are complete, instead of `acc`.
    pub(crate) finish: Option<Finish<'a>>,
}

/// The rows of the output that a tile's complete sums become.
pub(crate) struct Finish<'a> {
    /// 1 / row_sum.
    pub(crate) factor: &'a Lanes,
    pub(crate) out: &'a OutRows,
    /// Stays true as long as everything written is finite.
    pub(crate) finite: bool,
}

/// The output rows of a tile, to be written only: they may be uninitialised.
pub(crate) struct OutRows {
    rows: [*mut f32; BLOCK_Q],
    len: usize,
    width: usize,
}

impl OutRows {
    /// # Safety
    /// `width` floats must be writable at each of `rows` as long as this is used, and be nobody
    /// else's.
    pub(crate) unsafe fn new(rows: impl Iterator<Item = *mut f32>, width: usize) -> Self {
        let mut this = Self { rows: [std::ptr::null_mut(); BLOCK_Q], len: 0, width };
        for (to, row) in this.rows.iter_mut().zip(rows) {
            *to = row;
            this.len += 1;
        }
        this
    }
}

impl<const CAREFUL: bool> Kernel for Values<'_, CAREFUL> {
    /// Whether everything that was finished is finite.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> bool {
        self.values.check();
        let (rows, width) = (self.rows, self.values.rows.width());
        assert!(rows <= BLOCK_Q);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        assert!(self.acc.len() >= rows * self.acc_width);
        assert!(self.acc_width >= width.next_multiple_of(S::LANES));
        if let Some(finish) = &self.finish {
            assert!(finish.out.len >= rows && finish.out.width == width);
        }
        if together(S::ISA) {
            self.cover(s);
        } else {
            // Chains of half a block, one after the other.
            const HALF: usize = BLOCK_KV / 2;
            let (start, end) = (self.values.start, self.values.end);
            let finish = self.finish.take();
            if start < HALF && end > HALF {
                self.values.end = HALF;
                self.cover(s);
                self.fresh = false;
                self.values = Block { start: HALF, end, ..self.values };
            }
            self.finish = finish;
            self.cover(s);
        }
        self.finish.is_none_or(|finish| finish.finite)
    }
}

impl<const CAREFUL: bool> Values<'_, CAREFUL> {
    #[inline(always)]
    fn cover<S: Simd>(&mut self, s: S) {
        let extents = (self.rows, self.values.rows.width());
        if CAREFUL {
            // Selecting takes registers: only small tiles.
            outer::cover::<S, Self, false>(s, self, extents, Order::Down);
        } else {
            outer::cover::<S, Self, true>(s, self, extents, Order::Down);
        }
    }
}

impl<const CAREFUL: bool> Tiled for Values<'_, CAREFUL> {
    #[inline(always)]
    fn chains(isa: Isa) -> usize {
        if together(isa) { 2 } else { 1 }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECS: usize, const TAIL: bool>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
    ) {
        let (mut start, mut end) = (self.values.start, self.values.end);
        if let Some(seen) = self.seen {
            (start, end) = seen.span(row, ROWS).within(start, end);
            // A key's chain is that of its number.
            start -= start % 2;
        }
        // SAFETY: `run` checked the extents: row + ROWS <= rows <= BLOCK_Q, end <= BLOCK_KV, acc
        // has rows of acc_width >= column + VECS * LANES floats; the values' rows exist up to
        // `end`, and `cover` keeps to their width, which is that of the output's rows, promised to
        // `OutRows::new`.
        unsafe {
            let operands = Operands {
                a: Packed(self.prob.as_ptr().add(start * BLOCK_Q + row)),
                b: self.values.rows,
                first: self.values.first + start,
                column,
                depth: end - start,
                ahead: std::ptr::null(),
            };
            let sum = if together(S::ISA) {
                outer::sum::<S, ROWS, VECS, 2, TAIL, CAREFUL, false>(s, operands)
            } else {
                outer::sum::<S, ROWS, VECS, 1, TAIL, CAREFUL, false>(s, operands)
            };
            let acc = self.acc.as_mut_ptr().add(row * self.acc_width + column);
            if let Some(finish) = &mut self.finish {
                let left = finish.out.width - column - (VECS - 1) * S::LANES;
                // x - x is 0, or NaN where x is not finite.
                let zero = s.splat(0.0);
                let mut finite = zero;
                unroll!(r in 0..ROWS {
                    let factor = s.splat(finish.factor.0[row + r]);
                    let out = finish.out.rows[row + r].add(column);
                    unroll!(v in 0..VECS {
                        let mut total = sum[r][v];
                        if !self.fresh {
                            total = s.add(s.load(acc.add(r * self.acc_width + v * S::LANES)), total);
                        }
                        let x = s.mul_add(total, factor, zero);
                        finite = s.add(finite, s.sub(x, x));
                        if TAIL && v == VECS - 1 {
                            s.store_first(out.add(v * S::LANES), left, x);
                        } else {
                            s.store(out.add(v * S::LANES), x);
                        }
                    });
                });
                finish.finite &= !s.any(s.ne(finite, zero));
                return;
            }
            unroll!(r in 0..ROWS {
                unroll!(v in 0..VECS {
                    let at = acc.add(r * self.acc_width + v * S::LANES);
                    let before = if self.fresh { s.splat(0.0) } else { s.load(at) };
                    s.store(at, s.add(before, sum[r][v]));
                });
            });
        }
    }
}
