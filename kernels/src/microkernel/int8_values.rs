//! Sums of a block's values that are stored in integers, for few rows whose probabilities are rounded to
//! integers as well.
//!
//! ```text
//! weight[j][r] = prob[j][r] * value_scale[j]
//! most[r]      = largest of them in the block
//! w[j / 4][r]  = four of round(weight * 255 / most)            bytes, in place
//! for each 64 columns of the values                            4 x LANES
//!   for each ROWS rows                                         accumulators: 4 x ROWS vectors
//!     for each four keys j
//!       v = the four rows' bytes, column by column             4 loads, 8 shuffles -> 4 vectors of quads
//!       acc[r] += w[j / 4][r] . v                              dot products of integers
//!     sums[r] += acc[r] * most[r] / 255
//! ```
//!
//! Where a key and a value of 128 take 264 bytes, this takes 2 loads, 4 shuffles and 2 dot products a row for the
//! value: what a conversion to floats alone would cost.
//!
//! A value row that is not finite has a scale of NaN, and one of a negative scale counts as such: so are then the
//! sums of all rows, whether they see it or not, and what is done again with care, in floats (`attention::pass`),
//! tells them apart.

use super::block::Block;
use super::fetch::{PanelAhead, Soon};
use super::outer::Meanwhile;
use super::{BLOCK_KV, BLOCK_Q, Lanes, quads};
use crate::int8::Int8;
use crate::simd::{Isa, Kernel, MAX_LANES, Simd, Stored};

/// The largest integer that is used.
const MOST: f32 = 255.0;

/// The columns that are taken together, as vectors.
const VECS: usize = 4;

/// The width of values is a multiple of this, on every instruction set.
pub(crate) const COLUMNS: usize = VECS * MAX_LANES;

/// Keys between two requests for what comes later.
const RUN: usize = 16;

/// Adds a visit's values to sums.
pub(crate) struct Int8Values<'a> {
    /// `[BLOCK_KV][BLOCK_Q]`; afterwards something else.
    pub(crate) prob: &'a mut [f32],
    pub(crate) values: Block<'a, Int8>,
    /// At most a vector of the narrowest instruction set that has such products.
    pub(crate) rows: usize,
    /// `[rows][acc_width]`
    pub(crate) acc: &'a mut [f32],
    pub(crate) acc_width: usize,
    /// Whether `acc` has nothing yet.
    pub(crate) fresh: bool,
    /// What the next block begins with, to ask for meanwhile.
    pub(crate) next: Option<Soon>,
}

impl Kernel for Int8Values<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.values.check(1);
        let width = self.values.rows.width();
        assert!(self.rows <= S::LANES && width.is_multiple_of(COLUMNS) && width <= self.acc_width);
        assert!(self.acc.len() >= self.rows * self.acc_width);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q && self.values.start.is_multiple_of(4));
        let mut scales = Lanes::splat(0.0);
        // SAFETY: the lengths were checked.
        unsafe { self.round(s, &mut scales) };
        for column in (0..width).step_by(VECS * S::LANES) {
            let mut row = 0;
            while row < self.rows {
                // SAFETY: the rows and columns exist.
                row += unsafe {
                    match self.rows - row {
                        1 => self.tile::<S, 1>(s, row, column, &scales),
                        // With 16 registers there is no room for more.
                        4.. if S::ISA != Isa::Avx2 => self.tile::<S, 4>(s, row, column, &scales),
                        _ => self.tile::<S, 2>(s, row, column, &scales),
                    }
                };
            }
        }
    }
}

impl Int8Values<'_> {
    /// Makes bytes of the weights, four keys at a time, where the first of these was; the rows' scales.
    ///
    /// # Safety
    /// The lengths must have been checked.
    #[inline(always)]
    unsafe fn round<S: Simd>(&mut self, s: S, scales: &mut Lanes) {
        let (start, end) = (self.values.start, self.values.end);
        let (rows, width) = (self.values.rows, self.values.rows.width());
        let prob = self.prob.as_mut_ptr();
        // SAFETY: the caller's promise: keys of the block, rows that exist with a scale behind them.
        unsafe {
            let mut most = s.splat(0.0);
            for key in start..end {
                let at = prob.add(key * BLOCK_Q);
                let scale = Int8::scale(s, rows.row(key).add(width));
                // A byte without a sign has no room for a negative scale: done again, with care.
                let scale = s.select(s.ge(scale, s.splat(0.0)), scale, s.splat(f32::NAN));
                let weight = s.mul(s.load(at), scale);
                s.store(at, weight);
                most = s.max_magnitude(most, weight);
            }
            for key in end..end.next_multiple_of(4) {
                s.store(prob.add(key * BLOCK_Q), s.splat(0.0));
            }
            let (inverse, of_rows) = quads::lanes(s, most, MOST);
            for key in (start..end).step_by(4) {
                let at = prob.add(key * BLOCK_Q);
                let mut four = [s.splat(0.0); 4];
                for n in 0..4 {
                    four[n] = s.mul(s.load(at.add(n * BLOCK_Q)), inverse);
                }
                s.store(at, s.quad_of_ints(four));
            }
            s.store(scales.0.as_mut_ptr(), of_rows);
        }
    }

    /// `ROWS` rows from `row` on, and the columns from `column` on; gives `ROWS`.
    ///
    /// # Safety
    /// They must exist, and the weights be rounded.
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
        scales: &Lanes,
    ) -> usize {
        let (rows, end) = (self.values.rows, self.values.end);
        let mut acc = [[s.splat(0.0); VECS]; ROWS];
        let panel = (column, VECS * S::LANES);
        let mut ahead = PanelAhead::new(rows, self.values.start..end, panel, self.next);
        for run in (self.values.start..end).step_by(RUN) {
            let keys = end.min(run + RUN);
            ahead.run(run);
            // Not in the loop, whose registers all have their use.
            for key in run..keys {
                ahead.step(key);
            }
            for key in (run..keys).step_by(4) {
                // SAFETY: the caller's promise; behind the last key, whose weights are 0, stands the last.
                unsafe {
                    let first = rows.row(key).add(column);
                    let mut four = [first.cast::<i8>(); 4];
                    for n in 1..4 {
                        let by = if key + n < end { rows.stride() } else { 0 };
                        four[n] = four[n - 1].wrapping_byte_offset(by);
                    }
                    let values = s.interleave_bytes(four);
                    let weights = self.prob.as_ptr().add(key * BLOCK_Q + row);
                    for r in 0..ROWS {
                        let weight = s.splat(*weights.add(r));
                        for v in 0..VECS {
                            acc[r][v] = s.dot_int8(weight, values[v], acc[r][v]);
                        }
                    }
                }
            }
        }
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            unsafe {
                let scale = s.splat(scales.0[row + r]);
                let to = self.acc.as_mut_ptr().add((row + r) * self.acc_width + column);
                let sums = s.in_order(acc[r]);
                for v in 0..VECS {
                    let to = to.add(v * S::LANES);
                    let before = if self.fresh { s.splat(0.0) } else { s.load(to) };
                    let sum = s.sum_of_ints(sums[v], s.splat(0.0));
                    s.store(to, s.mul_add(sum, scale, before));
                }
            }
        }
        ROWS
    }
}
