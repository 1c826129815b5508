//! The sweep: from dot products in memory to probabilities, with everything that the score
//! micro-kernel leaves out. It serves the groups of keys in which a row takes its reference, and the
//! blocks in which a row outgrows its reference, or that have a mask without a term.
//!
//! ```text
//! for each vector of queries
//!   if the block is done again
//!     row_ref = max of row_ref and the block's visible scores    in the rows that want it
//!   for each group of 8 keys
//!     score = dot * factor                             a power of two; or, with terms,
//!             terms(dot)                               of e: microkernel/terms.rs
//!     if some row has no reference yet
//!       row_ref = max over the group's visible keys of score
//!     for each key, in order
//!       prob = visible ? 2^(score - row_ref) : -0.0    e^ with terms
//!       block_sum += prob of two keys
//! ```
//!
//! A visible key's probability has the bits that the score micro-kernel would have given it:
//! [`Sweep::probabilities`] is what both make of dot products.
//!
//! A probability's sign bit says that its key is masked: -0.0 adds nothing to a sum, and the
//! careful value kernel can tell it from a visible probability that underflowed to 0. A term masks
//! a key by a score of -inf.

use std::ops::Range;

use super::terms::Scoring;
use super::{BLOCK_KV, BLOCK_Q, GROUP, Lanes, Seen};
use crate::outputs::Stage;
use crate::simd::Simd;
use crate::term::{At, ScoreBlock};

/// How scores of a call become powers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Units {
    /// On the dot product, without terms: to a power of two.
    pub(crate) factor: f32,
    /// From a score to a power of two: 1, or with terms log2(e).
    pub(crate) to_log2: f32,
}

/// A block that is done again, since its sums were too large for their references.
pub(crate) struct Redo<'a> {
    /// Negative in the rows that raise their reference to the block's maximum.
    pub(crate) rows: &'a Lanes,
    /// The factor by which each row's earlier sums must shrink.
    pub(crate) rescale: &'a mut Lanes,
}

/// Scores that are wanted themselves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Staged {
    pub(crate) stage: Stage,
    /// On the dot product.
    pub(crate) scale: f32,
}

/// A tile's rows against a block of keys.
pub(crate) struct Sweep<'a, T> {
    /// `[BLOCK_KV][BLOCK_Q]`: dot products, then probabilities.
    pub(crate) prob: &'a mut [f32],
    /// Shaped as `prob`: -inf masks; with terms also what is added to a score.
    pub(crate) dense: Option<&'a [f32]>,
    pub(crate) terms: &'a T,
    /// What the rows carry along for the terms.
    pub(crate) rows: &'a [f32],
    /// The batch entry and the block's first key.
    pub(crate) place: (usize, usize),
    /// Lanes that are rows.
    pub(crate) len: usize,
    /// Lanes in use, a multiple of the vector's.
    pub(crate) lanes: usize,
    /// The keys that each row sees; `None`: all that are to be made.
    pub(crate) seen: Option<&'a Seen>,
    pub(crate) units: Units,
    /// What is added to a new reference: see `attention::pass::Care`.
    pub(crate) headroom: f32,
    /// The power of two below which a probability is 0: see `attention::pass::Care`.
    pub(crate) least: f32,
    /// -inf in the rows that have none yet.
    pub(crate) row_ref: &'a mut Lanes,
    /// Each row's sum over the block, added to.
    pub(crate) block_sum: &'a mut Lanes,
    pub(crate) redo: Option<Redo<'a>>,
    /// Instead of probabilities and their sums: scores, in natural units, -inf where hidden.
    pub(crate) staged: Option<Staged>,
}

/// What may hide keys of a vector's rows, but for their scores: nothing, ranges, ranges and a mask.
const OPEN: u8 = 0;
const RANGES: u8 = 1;
const MASK: u8 = 2;

/// The keys that one vector of queries sees.
#[derive(Clone, Copy)]
struct Column<S: Simd, const HIDES: u8> {
    s: S,
    lane: usize,
    seen_start: S::Vector,
    seen_end: S::Vector,
}

impl<S: Simd, const HIDES: u8> Column<S, HIDES> {
    /// Which rows' ranges hold a key.
    #[inline(always)]
    fn sees(&self, key: usize) -> S::Mask {
        let index = self.s.splat(key as f32);
        self.s.and(self.s.ge(index, self.seen_start), self.s.lt(index, self.seen_end))
    }
}

impl<T: Scoring> Sweep<'_, T> {
    /// From the dot products of `N` keys, from `key` on, with the rows of the vector at `lane`, to
    /// scores as their terms leave them. `Plain` scores are the dot products.
    ///
    /// # Safety
    /// The sweep must have been checked; the lanes must lie in the tile, the keys in the block.
    #[inline(always)]
    unsafe fn scores<S: Simd, const N: usize>(
        &self,
        s: S,
        (lane, key): (usize, usize),
        dots: [S::Vector; N],
    ) -> [S::Vector; N] {
        if T::PLAIN || T::IN_MEMORY {
            return dots;
        }
        // SAFETY: the caller's promise.
        unsafe { self.terms.scores(s, dots, self.dense_at(lane, key), self.at(s, lane, key)) }
    }

    /// The dense term of a key and of rows from `lane` on, or null.
    #[inline(always)]
    fn dense_at(&self, lane: usize, key: usize) -> *const f32 {
        match self.dense {
            Some(dense) => dense.as_ptr().wrapping_add(key * BLOCK_Q + lane),
            None => std::ptr::null(),
        }
    }

    /// # Safety
    /// As [`Sweep::scores`].
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, s: S, lane: usize, key: usize) -> At<'_, S> {
        // SAFETY: the caller's promise; `check` knows the rows' length.
        unsafe { At::new(s, (self.rows, T::NUMBERS), lane, self.place.0, self.place.1 + key) }
    }

    /// The power of two that a score, or a plain dot product, is the exponent of.
    #[inline(always)]
    fn exponent<S: Simd>(&self, s: S, score: S::Vector, shift: S::Vector) -> S::Vector {
        if T::PLAIN {
            s.mul_add(score, s.splat(self.units.factor), shift)
        } else {
            s.mul(s.add(score, shift), s.splat(self.units.to_log2))
        }
    }

    /// From dot products to probabilities: the keys and rows are those of [`Sweep::scores`], `shift`
    /// is minus the rows' references.
    ///
    /// # Safety
    /// As [`Sweep::scores`].
    #[inline(always)]
    pub(crate) unsafe fn probabilities<S: Simd, const N: usize>(
        &self,
        s: S,
        place: (usize, usize),
        dots: [S::Vector; N],
        shift: S::Vector,
    ) -> [S::Vector; N] {
        // Loops, here and in what this calls: the closures of arrays are not always inlined.
        let mut powers = dots;
        if T::PLAIN {
            for k in 0..N {
                powers[k] = self.exponent(s, dots[k], shift);
            }
            return s.exp2_from(self.least, powers);
        }
        // SAFETY: the caller's promise; `check` knows the length of the dense term.
        unsafe {
            let scores = self.scores(s, place, dots);
            for k in 0..N {
                powers[k] = self.exponent(s, scores[k], shift);
            }
            let mut prob = s.exp2_from(self.least, powers);
            let dense = self.dense_at(place.0, place.1);
            let (hidden, masked) = (s.splat(f32::NEG_INFINITY), s.splat(-0.0));
            for k in 0..N {
                // A NaN is visible.
                if T::HIDES {
                    prob[k] = s.select(s.ne(scores[k], hidden), prob[k], masked);
                }
                if !dense.is_null() {
                    let open = s.ne(s.load(dense.add(k * BLOCK_Q)), hidden);
                    prob[k] = s.select(open, prob[k], masked);
                }
            }
            prob
        }
    }

    /// The same of plain dot products where each vector has one row's, of the rows from `lane` on.
    #[inline(always)]
    pub(crate) fn powers_of_rows<S: Simd, const ROWS: usize>(
        &self,
        s: S,
        lane: usize,
        dots: [S::Vector; ROWS],
    ) -> [S::Vector; ROWS] {
        debug_assert!(T::PLAIN);
        let mut powers = dots;
        for r in 0..ROWS {
            let shift = s.splat(0.0 - self.row_ref.0[lane + r]);
            powers[r] = self.exponent(s, dots[r], shift);
        }
        s.exp2_from(self.least, powers)
    }

    /// Checks what the loops rely on.
    #[inline(always)]
    pub(crate) fn check<S: Simd>(&self) {
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        assert!(self.dense.is_none_or(|dense| dense.len() >= BLOCK_KV * BLOCK_Q));
        assert!(self.rows.len() >= T::TILE && self.len <= self.lanes);
    }

    /// Whether the scores are wanted behind all terms.
    pub(crate) fn wants_terms(&self) -> bool {
        self.staged.is_none_or(|staged| staged.stage == Stage::Final)
    }

    /// Puts the scores of `keys` in the place of their dot products and has the caller's term change
    /// them there.
    ///
    /// # Safety
    /// As [`Sweep::block`].
    #[inline(always)]
    pub(crate) unsafe fn score_block<S: Simd>(&mut self, s: S, keys: Range<usize>) {
        for key in keys.clone() {
            for lane in (0..self.lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise; the lane lies below BLOCK_Q.
                unsafe {
                    let score = self.prob.as_mut_ptr().add(key * BLOCK_Q + lane);
                    let (dense, at) = (self.dense_at(lane, key), self.at(s, lane, key));
                    let [new] = self.terms.scores(s, [s.load(score)], dense, at);
                    s.store(score, new);
                }
            }
        }
        let mut block = ScoreBlock {
            scores: &mut self.prob[keys.start * BLOCK_Q..keys.end * BLOCK_Q],
            rows: self.rows,
            numbers: (1, T::NUMBERS - 1),
            batch: self.place.0,
            first: self.place.1 + keys.start,
            lanes: (self.len, self.lanes),
        };
        self.terms.block(s, &mut block);
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
                    (None, None) => self.vector::<S, OPEN>(s, lane, &keys),
                    (None, Some(_)) => self.vector::<S, RANGES>(s, lane, &keys),
                    (Some(_), _) => self.vector::<S, MASK>(s, lane, &keys),
                }
            }
        }
    }

    /// One vector of rows against at most a group of keys; a plain one without a mask.
    ///
    /// # Safety
    /// As [`Sweep::block`]; the vector at `lane` must exist.
    #[inline(always)]
    pub(crate) unsafe fn few<S: Simd>(&mut self, s: S, lane: usize, keys: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            if T::PLAIN || self.dense.is_none() {
                let column = self.column::<S, RANGES>(s, lane);
                self.group(s, keys, column);
            } else {
                let column = self.column::<S, MASK>(s, lane);
                self.group(s, keys, column);
            }
        }
    }

    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn vector<S: Simd, const HIDES: u8>(&mut self, s: S, lane: usize, keys: &Range<usize>) {
        // SAFETY: the caller's promise; groups lie in the block.
        unsafe {
            let column = self.column::<S, HIDES>(s, lane);
            if let Some(staged) = self.staged {
                return self.stage(s, keys.clone(), column, staged);
            }
            if self.redo.is_some() {
                let max = self.max(s, column, keys.clone());
                self.raise(s, lane, max);
            }
            let mut start = keys.start;
            while start < keys.end {
                let end = (start / GROUP * GROUP + GROUP).min(keys.end);
                self.group(s, start..end, column);
                start = end;
            }
        }
    }

    /// Puts scores in the place of the dot products. Before the caller's term nothing is known of the
    /// keys that it hides.
    ///
    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn stage<S: Simd, const HIDES: u8>(
        &mut self,
        s: S,
        keys: Range<usize>,
        column: Column<S, HIDES>,
        Staged { stage, scale }: Staged,
    ) {
        let (scale, hidden) = (s.splat(scale), s.splat(f32::NEG_INFINITY));
        for key in keys {
            // SAFETY: the caller's promise.
            unsafe {
                let at = self.prob.as_mut_ptr().add(key * BLOCK_Q + column.lane);
                let dot = s.load(at);
                let mut visible = self.sees(column, key);
                let score = match stage {
                    Stage::Final if !T::PLAIN => {
                        let [score] = self.scores(s, (column.lane, key), [dot]);
                        visible = s.and(visible, s.ne(score, hidden));
                        score
                    }
                    Stage::Capped if !T::PLAIN => {
                        let [score] = self.terms.capped(s, [dot]);
                        score
                    }
                    _ => s.mul(dot, scale),
                };
                s.store(at, s.select(visible, score, hidden));
            }
        }
    }

    /// Raises the references of the rows that want it to their block's maximum.
    ///
    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn raise<S: Simd>(&mut self, s: S, lane: usize, max: S::Vector) {
        let Some(redo) = &mut self.redo else { return };
        // SAFETY: the caller's promise.
        unsafe {
            let row_ref_ptr = self.row_ref.0.as_mut_ptr().add(lane);
            let row_ref = s.load(row_ref_ptr);
            let wanted = s.is_negative(s.load(redo.rows.0.as_ptr().add(lane)));
            let found = s.and(wanted, s.lt(s.splat(f32::NEG_INFINITY), max));
            let new = s.max(s.add(max, s.splat(self.headroom)), row_ref);
            let drop = s.mul(s.sub(row_ref, new), s.splat(self.units.to_log2));
            let [rescale] = s.exp2_from(self.least, [drop]);
            let rescale = s.select(found, rescale, s.splat(1.0));
            s.store(row_ref_ptr, s.select(found, new, row_ref));
            s.store(redo.rescale.0.as_mut_ptr().add(lane), rescale);
        }
    }

    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn column<S: Simd, const HIDES: u8>(&self, s: S, lane: usize) -> Column<S, HIDES> {
        let (seen_start, seen_end) = match self.seen {
            Some(seen) => seen.bounds(s, lane),
            None => (s.splat(0.0), s.splat(BLOCK_KV as f32)),
        };
        Column { s, lane, seen_start, seen_end }
    }

    /// Where a key is visible but for its score.
    ///
    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn sees<S: Simd, const HIDES: u8>(
        &self,
        column: Column<S, HIDES>,
        key: usize,
    ) -> S::Mask {
        let sees = column.sees(key);
        if HIDES != MASK || self.dense.is_none() {
            return sees;
        }
        let s = column.s;
        // SAFETY: the caller's promise; `check` knows the length.
        let dense = unsafe { s.load(self.dense_at(column.lane, key)) };
        // A NaN is visible.
        s.and(sees, s.ne(dense, s.splat(f32::NEG_INFINITY)))
    }

    /// The largest visible score, -inf of none; a NaN is passed over, since the probability will
    /// be NaN anyway.
    ///
    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn max<S: Simd, const HIDES: u8>(
        &self,
        s: S,
        column: Column<S, HIDES>,
        keys: Range<usize>,
    ) -> S::Vector {
        let hidden = s.splat(f32::NEG_INFINITY);
        let factor = s.splat(self.units.factor);
        let mut max = hidden;
        // In pairs, as in `group`.
        for key in keys.clone().step_by(2) {
            // SAFETY: the caller's promise.
            let (scores, sees) = unsafe {
                let prob = self.prob.as_ptr().add(key * BLOCK_Q + column.lane);
                let dots = [s.load(prob), s.load(prob.add(BLOCK_Q))];
                let sees = [self.sees(column, key), self.sees(column, key + 1)];
                (self.scores(s, (column.lane, key), dots), sees)
            };
            for k in 0..2.min(keys.end - key) {
                // What a term hides is -inf already.
                let x = if T::PLAIN { s.mul(scores[k], factor) } else { scores[k] };
                let x = if HIDES == OPEN { x } else { s.select(sees[k], x, hidden) };
                max = s.max(x, max);
            }
        }
        max
    }

    /// # Safety
    /// As [`Sweep::few`].
    #[inline(always)]
    unsafe fn group<S: Simd, const HIDES: u8>(
        &mut self,
        s: S,
        keys: Range<usize>,
        column: Column<S, HIDES>,
    ) {
        let hidden = s.splat(f32::NEG_INFINITY);
        let lane = column.lane;
        // SAFETY: the caller's promise.
        unsafe {
            let row_ref_ptr = self.row_ref.0.as_mut_ptr().add(lane);
            let block_sum_ptr = self.block_sum.0.as_mut_ptr().add(lane);
            let mut row_ref = s.load(row_ref_ptr);
            let known = s.ne(row_ref, hidden);
            if s.any(s.lt(row_ref, s.splat(f32::MIN))) {
                let max = self.max(s, column, keys.clone());
                let new = s.add(max, s.splat(self.headroom));
                row_ref = s.select(known, row_ref, new);
                s.store(row_ref_ptr, row_ref);
            }
            // Rows that have seen nothing yet have nothing but masked keys, or scores of -inf.
            let shift = s.sub(s.splat(0.0), row_ref);
            let shift = s.select(s.ne(row_ref, hidden), shift, s.splat(0.0));
            let mut block_sum = s.load(block_sum_ptr);
            // In pairs; behind the last key of an odd number lies another, of no account.
            for key in keys.clone().step_by(2) {
                let prob = self.prob.as_mut_ptr().add(key * BLOCK_Q + lane);
                let dots = [s.load(prob), s.load(prob.add(BLOCK_Q))];
                let mut p = self.probabilities(s, (lane, key), dots, shift);
                for k in 0..2 {
                    if HIDES != OPEN {
                        let visible = self.sees(column, key + k);
                        p[k] = s.select(visible, p[k], s.splat(-0.0));
                    }
                }
                s.store(prob, p[0]);
                if key + 1 < keys.end {
                    block_sum = s.add(block_sum, s.add(p[0], p[1]));
                    s.store(prob.add(BLOCK_Q), p[1]);
                } else {
                    block_sum = s.add(block_sum, p[0]);
                }
            }
            s.store(block_sum_ptr, block_sum);
        }
    }
}
