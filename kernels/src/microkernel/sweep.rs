//! The sweep: from dot products in memory to probabilities, with everything that the score
//! micro-kernel leaves out. It serves the groups of keys in which a row takes its reference, and the
//! blocks that have a dense mask or a bias or in which a row outgrows its reference.
//!
//! ```text
//! for each vector of queries
//!   if the block is done again
//!     row_ref = max of row_ref and the block's visible scores    in the rows that want it
//!   for each group of 8 keys
//!     score = dot * factor                             a power of two, or
//!             dot * factor + bias                      of e where there is a bias
//!     if some row has no reference yet
//!       row_ref = max over the group's visible keys of score
//!     for each key, in order
//!       prob = visible ? 2^(score - row_ref) : -0.0    e^ where there is a bias
//!       block_sum += prob of two keys
//! ```
//!
//! Without a bias a visible key's probability has the bits that the score micro-kernel would have
//! given it.
//!
//! A probability's sign bit says that its key is masked: -0.0 adds nothing to a sum, and the
//! careful value kernel can tell it from a visible probability that underflowed to 0.

use std::ops::Range;

use super::{BLOCK_KV, BLOCK_Q, GROUP, Lanes, Seen};
use crate::simd::Simd;

/// What lies dense beside the scores of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dense<'a> {
    None,
    /// -inf where a key is masked, shaped as `prob`.
    Mask(&'a [f32]),
    /// The additive term; -inf masks.
    Bias(&'a [f32]),
}

/// How scores of a call become powers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Units {
    /// On the dot product: to a power of two, or of e where powers of two could overflow.
    pub(crate) factor: f32,
    /// From such a power to a power of two: 1 or log2(e).
    pub(crate) to_log2: f32,
}

/// A block that is done again, since its sums were too large for their references.
pub(crate) struct Redo<'a> {
    /// Negative in the rows that raise their reference to the block's maximum.
    pub(crate) rows: &'a Lanes,
    /// The factor by which each row's earlier sums must shrink.
    pub(crate) rescale: &'a mut Lanes,
}

/// A tile's rows against a block of keys.
pub(crate) struct Sweep<'a> {
    /// `[BLOCK_KV][BLOCK_Q]`: dot products, then probabilities.
    pub(crate) prob: &'a mut [f32],
    pub(crate) dense: Dense<'a>,
    /// Lanes in use, a multiple of the vector's.
    pub(crate) lanes: usize,
    /// The keys that each row sees; `None`: all that are to be made.
    pub(crate) seen: Option<&'a Seen>,
    pub(crate) units: Units,
    /// What is added to a new reference: see `attention::pass::Care`.
    pub(crate) headroom: f32,
    /// -inf in the rows that have none yet.
    pub(crate) row_ref: &'a mut Lanes,
    /// Each row's sum over the block, added to.
    pub(crate) block_sum: &'a mut Lanes,
    pub(crate) redo: Option<Redo<'a>>,
}

/// What may hide keys of a vector's rows: nothing, ranges, ranges and a mask, ranges and a bias.
const OPEN: u8 = 0;
const RANGES: u8 = 1;
const MASK: u8 = 2;
const BIAS: u8 = 3;

/// The scores of one vector of queries.
#[derive(Clone, Copy)]
struct Column<S: Simd, const HIDES: u8> {
    s: S,
    prob: *mut f32,
    dense: *const f32,
    seen_start: S::Vector,
    seen_end: S::Vector,
    factor: S::Vector,
}

impl<S: Simd, const HIDES: u8> Column<S, HIDES> {
    /// A key's dot product, bias and visibility.
    ///
    /// # Safety
    /// The key must lie below `BLOCK_KV`.
    #[inline(always)]
    unsafe fn at(&self, key: usize) -> (S::Vector, S::Vector, S::Mask) {
        let s = self.s;
        // SAFETY: the maker's pointers are good for BLOCK_KV rows.
        let dot = unsafe { s.load(self.prob.add(key * BLOCK_Q)) };
        let index = s.splat(key as f32);
        let mut visible = s.and(s.ge(index, self.seen_start), s.lt(index, self.seen_end));
        let mut bias = s.splat(0.0);
        if HIDES >= MASK {
            // SAFETY: as above.
            bias = unsafe { s.load(self.dense.add(key * BLOCK_Q)) };
            // A NaN is visible.
            visible = s.and(visible, s.ne(bias, s.splat(f32::NEG_INFINITY)));
        }
        (dot, bias, visible)
    }

    /// The largest visible score, -inf of none; a NaN is passed over, since the probability will
    /// be NaN anyway.
    ///
    /// # Safety
    /// The keys must lie below `BLOCK_KV`.
    #[inline(always)]
    unsafe fn max(&self, keys: Range<usize>) -> S::Vector {
        let s = self.s;
        let hidden = s.splat(f32::NEG_INFINITY);
        let mut max = hidden;
        for key in keys {
            // SAFETY: the caller's promise.
            let (dot, bias, visible) = unsafe { self.at(key) };
            let x = if HIDES == BIAS {
                s.mul_add(dot, self.factor, bias)
            } else {
                s.mul(dot, self.factor)
            };
            let x = if HIDES == OPEN { x } else { s.select(visible, x, hidden) };
            max = s.max(x, max);
        }
        max
    }
}

impl Sweep<'_> {
    /// Checks what the loops rely on.
    #[inline(always)]
    pub(crate) fn check<S: Simd>(&self) {
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        if let Dense::Mask(dense) | Dense::Bias(dense) = self.dense {
            assert!(dense.len() >= BLOCK_KV * BLOCK_Q);
        }
    }

    /// All rows against `keys` of the block.
    ///
    /// # Safety
    /// The sweep must have been checked, and the keys must lie in the block.
    #[inline(always)]
    pub(crate) unsafe fn block<S: Simd>(&mut self, s: S, keys: Range<usize>) {
        for lane in (0..self.lanes).step_by(S::LANES) {
            // SAFETY: the caller's promise; the lane lies below BLOCK_Q.
            unsafe {
                match (self.dense, self.seen) {
                    (Dense::None, None) => self.vector::<S, OPEN>(s, lane, &keys),
                    (Dense::None, Some(_)) => self.vector::<S, RANGES>(s, lane, &keys),
                    (Dense::Mask(_), _) => self.vector::<S, MASK>(s, lane, &keys),
                    (Dense::Bias(_), _) => self.vector::<S, BIAS>(s, lane, &keys),
                }
            }
        }
    }

    /// One vector of rows, without a dense term, against at most a group of keys.
    ///
    /// # Safety
    /// As [`Sweep::block`]; the vector at `lane` must exist.
    #[inline(always)]
    pub(crate) unsafe fn few<S: Simd>(&mut self, s: S, lane: usize, keys: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            let column = self.column::<S, RANGES>(s, lane);
            self.group(s, lane, keys, column);
        }
    }

    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn vector<S: Simd, const HIDES: u8>(&mut self, s: S, lane: usize, keys: &Range<usize>) {
        // SAFETY: the caller's promise; groups lie in the block.
        unsafe {
            let column = self.column::<S, HIDES>(s, lane);
            if let Some(redo) = &mut self.redo {
                let row_ref_ptr = self.row_ref.0.as_mut_ptr().add(lane);
                let row_ref = s.load(row_ref_ptr);
                let max = column.max(keys.clone());
                let wanted = s.is_negative(s.load(redo.rows.0.as_ptr().add(lane)));
                let found = s.and(wanted, s.lt(s.splat(f32::NEG_INFINITY), max));
                let new = s.max(s.add(max, s.splat(self.headroom)), row_ref);
                let drop = s.mul(s.sub(row_ref, new), s.splat(self.units.to_log2));
                let [rescale] = s.exp2([drop]);
                let rescale = s.select(found, rescale, s.splat(1.0));
                s.store(row_ref_ptr, s.select(found, new, row_ref));
                s.store(redo.rescale.0.as_mut_ptr().add(lane), rescale);
            }
            let mut start = keys.start;
            while start < keys.end {
                let end = (start / GROUP * GROUP + GROUP).min(keys.end);
                self.group(s, lane, start..end, column);
                start = end;
            }
        }
    }

    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn column<S: Simd, const HIDES: u8>(&mut self, s: S, lane: usize) -> Column<S, HIDES> {
        let (start, end) = match self.seen {
            Some(seen) => seen.bounds(s, lane),
            None => (s.splat(0.0), s.splat(BLOCK_KV as f32)),
        };
        Column {
            s,
            // SAFETY: the caller's promise.
            prob: unsafe { self.prob.as_mut_ptr().add(lane) },
            dense: match self.dense {
                Dense::None => std::ptr::null(),
                Dense::Mask(dense) | Dense::Bias(dense) => dense.as_ptr().wrapping_add(lane),
            },
            seen_start: start,
            seen_end: end,
            factor: s.splat(self.units.factor),
        }
    }

    /// # Safety
    /// As [`Sweep::few`]; the column must be that of the lane.
    #[inline(always)]
    unsafe fn group<S: Simd, const HIDES: u8>(
        &mut self,
        s: S,
        lane: usize,
        keys: Range<usize>,
        column: Column<S, HIDES>,
    ) {
        let hidden = s.splat(f32::NEG_INFINITY);
        let to_log2 = s.splat(self.units.to_log2);
        // SAFETY: the caller's promise.
        unsafe {
            let row_ref_ptr = self.row_ref.0.as_mut_ptr().add(lane);
            let block_sum_ptr = self.block_sum.0.as_mut_ptr().add(lane);
            let mut row_ref = s.load(row_ref_ptr);
            let known = s.ne(row_ref, hidden);
            if s.any(s.lt(row_ref, s.splat(f32::MIN))) {
                let max = column.max(keys.clone());
                let new = s.add(max, s.splat(self.headroom));
                row_ref = s.select(known, row_ref, new);
                s.store(row_ref_ptr, row_ref);
            }
            // Rows that have seen nothing yet have nothing but masked keys, or scores of -inf.
            let shift = s.sub(s.splat(0.0), row_ref);
            let shift = s.select(s.ne(row_ref, hidden), shift, s.splat(0.0));
            let mut block_sum = s.load(block_sum_ptr);
            let mut pair = s.splat(-0.0);
            for key in keys.clone() {
                let (dot, bias, visible) = column.at(key);
                let power = if HIDES == BIAS {
                    let score = s.mul_add(dot, column.factor, bias);
                    s.mul(s.add(score, shift), to_log2)
                } else {
                    s.mul_add(dot, column.factor, shift)
                };
                let [p] = s.exp2([power]);
                let p = if HIDES == OPEN { p } else { s.select(visible, p, s.splat(-0.0)) };
                pair = s.add(pair, p);
                if key % 2 == 1 || key + 1 == keys.end {
                    block_sum = s.add(block_sum, pair);
                    pair = s.splat(-0.0);
                }
                s.store(column.prob.add(key * BLOCK_Q), p);
            }
            s.store(block_sum_ptr, block_sum);
        }
    }
}
