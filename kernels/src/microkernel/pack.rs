//! Transposing into and out of a tile: rows of floats to `[column][BLOCK_Q]` and back, a square
//! of vectors at a time in registers.

use std::ops::Range;

use super::{BLOCK_KV, BLOCK_Q, Lanes};
use crate::simd::{Kernel, MAX_LANES, Simd, Stored};
use crate::storage::{StoredRow, with_float};

/// Writes `rows`, all of one format, to `dst`, transposed: `dst[c][r] = rows[r][c]`. Lanes without
/// a row, up to `lanes`, become zero.
pub(crate) struct Pack<'a> {
    pub(crate) rows: &'a [StoredRow<'a>],
    /// Columns to take from each row.
    pub(crate) width: usize,
    /// A multiple of the vector's lanes, at least the number of rows.
    pub(crate) lanes: usize,
    /// `[width][BLOCK_Q]`.
    pub(crate) dst: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let format = self.rows.first().map_or(StoredRow::EMPTY.format(), StoredRow::format);
        with_float!(format, E => self.of::<S, E>(s));
    }
}

impl Pack<'_> {
    #[inline(always)]
    fn of<S: Simd, E: Stored<Scale<S> = ()>>(self, s: S) {
        let size = size_of::<E>();
        assert!(self.rows.iter().all(|row| row.len() >= self.width && row.format().size() == size));
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        assert!(self.dst.len() >= self.width * BLOCK_Q);
        for lane in (0..self.lanes).step_by(S::LANES) {
            let rows = &self.rows[lane.min(self.rows.len())..];
            let rows = &rows[..rows.len().min(S::LANES)];
            let whole = if rows.len() == S::LANES { self.width / S::LANES * S::LANES } else { 0 };
            for column in (0..whole).step_by(S::LANES) {
                // SAFETY: every row has a vector at `column`, and dst LANES rows from there on.
                unsafe {
                    let mut square = [s.splat(0.0); MAX_LANES];
                    for r in 0..S::LANES {
                        square[r] = E::load(s, rows[r].as_ptr::<E>().add(column), ());
                    }
                    s.transpose(&mut square);
                    for c in 0..S::LANES {
                        let at = (column + c) * BLOCK_Q + lane;
                        s.store(self.dst.as_mut_ptr().add(at), square[c]);
                    }
                }
            }
            for column in (whole..self.width).step_by(S::LANES) {
                let count = (self.width - column).min(S::LANES);
                let mut square = [s.splat(0.0); MAX_LANES];
                // All lanes, though some are left out: so the square stays in registers.
                for r in 0..S::LANES {
                    if let Some(row) = rows.get(r) {
                        // SAFETY: the row has at least column + count <= width elements.
                        square[r] =
                            unsafe { E::load_first(s, row.as_ptr::<E>().add(column), count, ()) };
                    }
                }
                s.transpose(&mut square);
                for c in 0..S::LANES {
                    if c < count {
                        // SAFETY: column + c < width and lane + LANES <= BLOCK_Q stay inside dst.
                        unsafe {
                            let at = (column + c) * BLOCK_Q + lane;
                            s.store(self.dst.as_mut_ptr().add(at), square[c]);
                        }
                    }
                }
            }
        }
    }
}

/// Writes a block's numbers to rows: `rows[r][c] = factor[r] * prob[keys.start + c][r]`, but -0.0,
/// which says that a key is hidden, stays as it is.
pub(crate) struct Unpack<'a> {
    /// `[BLOCK_KV][BLOCK_Q]`.
    pub(crate) prob: &'a [f32],
    /// The keys to take, counted from the block's first.
    pub(crate) keys: Range<usize>,
    pub(crate) factor: &'a Lanes,
    /// One for each of up to `BLOCK_Q` lanes.
    pub(crate) rows: &'a mut [[f32; BLOCK_KV]],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.keys.len();
        assert!(self.keys.end <= BLOCK_KV && self.rows.len() <= BLOCK_Q);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        for lane in (0..self.rows.len()).step_by(S::LANES) {
            for column in (0..width).step_by(S::LANES) {
                let count = (width - column).min(S::LANES);
                let zero = s.splat(0.0);
                let mut square = [zero; MAX_LANES];
                for (c, v) in square.iter_mut().enumerate().take(count) {
                    // SAFETY: the key lies below BLOCK_KV, and lane + LANES <= BLOCK_Q.
                    *v = unsafe {
                        let key = self.keys.start + column + c;
                        s.load(self.prob.as_ptr().add(key * BLOCK_Q + lane))
                    };
                }
                s.transpose(&mut square);
                for (r, v) in square.iter().enumerate().take(S::LANES) {
                    if let Some(row) = self.rows.get_mut(lane + r) {
                        let number = s.mul(*v, s.splat(self.factor.0[lane + r]));
                        // A NaN may be negative too.
                        let is_hidden = s.and(s.is_negative(*v), s.ge(*v, zero));
                        let number = s.select(is_hidden, *v, number);
                        // SAFETY: column + count <= width <= BLOCK_KV.
                        unsafe { s.store_first(row.as_mut_ptr().add(column), count, number) };
                    }
                }
            }
        }
    }
}
