//! The sweep: from scores in memory to probabilities, with everything that the score micro-kernel
//! leaves out. It serves the blocks that need more than an exponential: those with a mask or a
//! bias, and those in which a row first needs, or outgrows, its reference maximum.
//!
//! ```text
//! for each vector of queries
//!   if some row needs a reference
//!     row_ref = max over the block's visible keys of (score + bias)
//!     row_sum *= 2^(old row_ref - row_ref)
//!   for each key, in order
//!     prob = visible ? 2^((score + bias - shift) * to_log2) : -0.0
//!     row_sum += prob
//! ```
//!
//! A probability's sign bit says that its key is masked: -0.0 adds nothing to a sum, and the
//! careful value kernel can tell it from a visible probability that underflowed to 0.

use super::{BLOCK_KV, BLOCK_Q, Lanes};
use crate::simd::{Kernel, Simd};

/// Scores of a block, to be made probabilities.
pub(crate) struct Sweep<'a> {
    /// `[BLOCK_KV][BLOCK_Q]`.
    pub(crate) prob: &'a mut [f32],
    /// The additive term, shaped as `prob`; -inf masks.
    pub(crate) bias: Option<&'a [f32]>,
    /// The keys of the block to make, counted from its first.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Lanes in use, a multiple of the vector's.
    pub(crate) lanes: usize,
    /// For each row the keys it may see, counted from the block's first.
    pub(crate) seen: &'a [(usize, usize); BLOCK_Q],
    /// From the scores' unit to that of the exponent: 1, or log2(e) where a bias is in play.
    pub(crate) to_log2: f32,
    /// What is added to a new reference: see `attention::pass::Care`.
    pub(crate) headroom: f32,
    /// Negative in rows whose scores started at 0 and which need a reference now.
    pub(crate) needs: &'a Lanes,
    pub(crate) row_ref: &'a mut Lanes,
    pub(crate) row_sum: &'a mut Lanes,
    /// The factor by which each row's earlier sums must shrink.
    pub(crate) rescale: &'a mut Lanes,
}

impl Kernel for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        assert!(self.start <= self.end && self.end <= BLOCK_KV);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        assert!(self.bias.is_none_or(|bias| bias.len() >= BLOCK_KV * BLOCK_Q));
        let mut lane = 0;
        while lane < self.lanes {
            match self.bias {
                Some(bias) => self.vector::<S, true>(s, lane, bias),
                None => self.vector::<S, false>(s, lane, &[]),
            }
            lane += S::LANES;
        }
    }
}

impl Sweep<'_> {
    #[inline(always)]
    fn vector<S: Simd, const BIASED: bool>(&mut self, s: S, lane: usize, bias: &[f32]) {
        let mut bounds = [Lanes::splat(0.0), Lanes::splat(0.0)];
        for (i, &(start, end)) in self.seen[lane..lane + S::LANES].iter().enumerate() {
            // At most BLOCK_KV: exact.
            bounds[0].0[i] = start.min(BLOCK_KV) as f32;
            bounds[1].0[i] = end.min(BLOCK_KV) as f32;
        }
        let hidden = s.splat(f32::NEG_INFINITY);
        // SAFETY: `run` checked the extents: every lane lies below BLOCK_Q, every key below
        // BLOCK_KV.
        unsafe {
            let seen_start = s.load(bounds[0].0.as_ptr());
            let seen_end = s.load(bounds[1].0.as_ptr());
            // The score with its bias, and whether it counts.
            let score = |prob: &[f32], key: usize| {
                let at = key * BLOCK_Q + lane;
                let mut x = s.load(prob.as_ptr().add(at));
                let key = s.splat(key as f32);
                let mut visible = s.and(s.ge(key, seen_start), s.lt(key, seen_end));
                if BIASED {
                    let bias = s.load(bias.as_ptr().add(at));
                    x = s.add(x, bias);
                    // A NaN is visible.
                    visible = s.and(visible, s.ne(bias, hidden));
                }
                (x, visible)
            };
            let needs = s.is_negative(s.load(self.needs.0.as_ptr().add(lane)));
            let row_ref_ptr = self.row_ref.0.as_mut_ptr().add(lane);
            let row_sum_ptr = self.row_sum.0.as_mut_ptr().add(lane);
            let mut row_sum = s.load(row_sum_ptr);
            let mut shift = s.splat(0.0);
            if s.any(needs) {
                let mut max = hidden;
                for key in self.start..self.end {
                    let (x, visible) = score(self.prob, key);
                    // Keeps `max` where x is NaN: the probability will be NaN anyway.
                    max = s.max(s.select(visible, x, hidden), max);
                }
                let found = s.and(needs, s.lt(hidden, max));
                let new = s.add(max, s.splat(self.headroom));
                let old = s.load(row_ref_ptr);
                let drop = s.mul(s.sub(old, new), s.splat(self.to_log2));
                let rescale = s.select(found, s.exp2(drop), s.splat(1.0));
                shift = s.select(found, new, shift);
                row_sum = s.mul(row_sum, rescale);
                s.store(row_ref_ptr, s.select(found, new, old));
                s.store(self.rescale.0.as_mut_ptr().add(lane), rescale);
            }
            let to_log2 = s.splat(self.to_log2);
            for key in self.start..self.end {
                let (x, visible) = score(self.prob, key);
                let p = s.exp2(s.mul(s.sub(x, shift), to_log2));
                let p = s.select(visible, p, s.splat(-0.0));
                row_sum = s.add(row_sum, p);
                s.store(self.prob.as_mut_ptr().add(key * BLOCK_Q + lane), p);
            }
            s.store(row_sum_ptr, row_sum);
        }
    }
}
