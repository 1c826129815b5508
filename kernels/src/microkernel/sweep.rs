//! The sweep: from dot products in memory to probabilities, with everything that the score
//! micro-kernel leaves out. It serves the blocks that need more than an exponential: those with a
//! mask or a bias, and those in which a row first needs, or outgrows, its reference maximum.
//!
//! ```text
//! for each vector of queries
//!   score = dot * factor                                 a power of two, or
//!           dot * factor + bias                          of e where there is a bias
//!   if some row needs a reference
//!     row_ref = max over the block's visible keys of score
//!     row_sum *= 2^(old row_ref - row_ref)
//!   for each key, in order
//!     prob = visible ? 2^(score - row_ref) : -0.0        e^ where there is a bias
//!     block_sum += prob
//!   row_sum += block_sum
//! ```
//!
//! Without a bias a visible key's probability has the bits that the score micro-kernel would have
//! given it.
//!
//! A probability's sign bit says that its key is masked: -0.0 adds nothing to a sum, and the
//! careful value kernel can tell it from a visible probability that underflowed to 0.

use super::{BLOCK_KV, BLOCK_Q, Lanes};
use crate::simd::{Kernel, MAX_LANES, Simd};

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

/// Dot products of a block, to be made probabilities.
pub(crate) struct Sweep<'a> {
    /// `[BLOCK_KV][BLOCK_Q]`.
    pub(crate) prob: &'a mut [f32],
    pub(crate) dense: Dense<'a>,
    /// The keys of the block to make, counted from its first.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Lanes in use, a multiple of the vector's.
    pub(crate) lanes: usize,
    /// For each row the keys it may see, counted from the block's first; `None`: all that are to
    /// be made.
    pub(crate) seen: Option<&'a [(usize, usize); BLOCK_Q]>,
    pub(crate) units: Units,
    /// What is added to a new reference: see `attention::pass::Care`.
    pub(crate) headroom: f32,
    /// Negative in rows which need a reference now.
    pub(crate) needs: &'a Lanes,
    pub(crate) row_ref: &'a mut Lanes,
    pub(crate) row_sum: &'a mut Lanes,
    /// The factor by which each row's earlier sums must shrink.
    pub(crate) rescale: &'a mut Lanes,
}

/// What may hide keys of a vector's rows: nothing, ranges, ranges and a mask, ranges and a bias.
const OPEN: u8 = 0;
const RANGES: u8 = 1;
const MASK: u8 = 2;
const BIAS: u8 = 3;

impl Kernel for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        assert!(self.start <= self.end && self.end <= BLOCK_KV);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        if let Dense::Mask(dense) | Dense::Bias(dense) = self.dense {
            assert!(dense.len() >= BLOCK_KV * BLOCK_Q);
        }
        let mut lane = 0;
        while lane < self.lanes {
            match (self.dense, self.seen) {
                (Dense::None, None) => self.vector::<S, OPEN>(s, lane, &[]),
                (Dense::None, Some(_)) => self.vector::<S, RANGES>(s, lane, &[]),
                (Dense::Mask(mask), _) => self.vector::<S, MASK>(s, lane, mask),
                (Dense::Bias(bias), _) => self.vector::<S, BIAS>(s, lane, bias),
            }
            lane += S::LANES;
        }
    }
}

impl Sweep<'_> {
    #[inline(always)]
    fn vector<S: Simd, const HIDES: u8>(&mut self, s: S, lane: usize, dense: &[f32]) {
        let mut bounds = [[0.0; MAX_LANES], [BLOCK_KV as f32; MAX_LANES]];
        if let Some(seen) = self.seen {
            for (i, &(start, end)) in seen[lane..lane + S::LANES].iter().enumerate() {
                // At most BLOCK_KV: exact.
                bounds[0][i] = start.min(BLOCK_KV) as f32;
                bounds[1][i] = end.min(BLOCK_KV) as f32;
            }
        }
        let hidden = s.splat(f32::NEG_INFINITY);
        let zero = s.splat(0.0);
        let factor = s.splat(self.units.factor);
        let to_log2 = s.splat(self.units.to_log2);
        // SAFETY: `run` checked the extents: every lane lies below BLOCK_Q, every key below
        // BLOCK_KV.
        unsafe {
            let seen_start = s.load(bounds[0].as_ptr());
            let seen_end = s.load(bounds[1].as_ptr());
            // A key's dot product, bias and visibility.
            let load = |prob: &[f32], key: usize| {
                let at = key * BLOCK_Q + lane;
                let dot = s.load(prob.as_ptr().add(at));
                let key = s.splat(key as f32);
                let mut visible = s.and(s.ge(key, seen_start), s.lt(key, seen_end));
                let mut bias = zero;
                if HIDES >= MASK {
                    bias = s.load(dense.as_ptr().add(at));
                    // A NaN is visible.
                    visible = s.and(visible, s.ne(bias, hidden));
                }
                (dot, bias, visible)
            };
            let needs = s.is_negative(s.load(self.needs.0.as_ptr().add(lane)));
            let row_ref_ptr = self.row_ref.0.as_mut_ptr().add(lane);
            let row_sum_ptr = self.row_sum.0.as_mut_ptr().add(lane);
            let mut row_ref = s.load(row_ref_ptr);
            let mut row_sum = s.load(row_sum_ptr);
            if s.any(needs) {
                let mut max = hidden;
                for key in self.start..self.end {
                    let (dot, bias, visible) = load(self.prob, key);
                    let x = if HIDES == BIAS {
                        s.mul_add(dot, factor, bias)
                    } else {
                        s.mul(dot, factor)
                    };
                    let x = if HIDES == OPEN { x } else { s.select(visible, x, hidden) };
                    // Keeps `max` where x is NaN: the probability will be NaN anyway.
                    max = s.max(x, max);
                }
                let found = s.and(needs, s.lt(hidden, max));
                let new = s.add(max, s.splat(self.headroom));
                let drop = s.mul(s.sub(row_ref, new), to_log2);
                let rescale = s.select(found, s.exp2(drop), s.splat(1.0));
                row_ref = s.select(found, new, row_ref);
                row_sum = s.mul(row_sum, rescale);
                s.store(row_ref_ptr, row_ref);
                s.store(self.rescale.0.as_mut_ptr().add(lane), rescale);
            }
            // Rows that have seen nothing yet have nothing but masked keys, or scores of -inf.
            let shift = s.select(s.ne(row_ref, hidden), s.sub(zero, row_ref), zero);
            let mut block_sum = zero;
            for key in self.start..self.end {
                let (dot, bias, visible) = load(self.prob, key);
                let p = if HIDES == BIAS {
                    s.exp2(s.mul(s.add(s.mul_add(dot, factor, bias), shift), to_log2))
                } else {
                    s.exp2(s.mul_add(dot, factor, shift))
                };
                let p = if HIDES == OPEN { p } else { s.select(visible, p, s.splat(-0.0)) };
                block_sum = s.add(block_sum, p);
                s.store(self.prob.as_mut_ptr().add(key * BLOCK_Q + lane), p);
            }
            s.store(row_sum_ptr, s.add(row_sum, block_sum));
        }
    }
}
