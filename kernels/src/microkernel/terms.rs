//! Score terms in the kernel: from dot products to scores, in registers. This is the one place of a
//! term's arithmetic; the score micro-kernel and the sweep both come here.
//!
//! ```text
//! score = dot * factor                     or cap * tanh(dot * factor / cap)
//! score += dense bias                      of a block, transposed; -inf masks
//! score += slope * (key - position)
//! score = the caller's term
//! ```
//!
//! A problem without terms has [`Plain`] instead, whose scores never come to be: its probabilities
//! are powers of two of one multiply-add of the dot product.

use super::BLOCK_Q;
use crate::problem::Problem;
use crate::simd::{Simd, TANH_EXPONENT, tanh_of_exponent};
use crate::term::{At, ROW_FACTS, Row, ScoreBlock, ScoreTerm};

/// What stands between dot products and exponentials.
pub(crate) trait Scoring: Sync {
    /// Nothing: scores stay dot products, to be scaled and shifted in one multiply-add.
    const PLAIN: bool;
    /// A score of -inf hides its key.
    const HIDES: bool = false;
    /// Scores go by way of memory.
    const IN_MEMORY: bool = false;
    /// There are kernels that read keys and values of half the width: not with terms of the caller's, for
    /// which all would be compiled again.
    const NARROW: bool;
    /// Numbers of each row.
    const NUMBERS: usize = 0;

    /// Floats of a tile for what its rows carry along.
    const TILE: usize = if Self::PLAIN { 0 } else { (ROW_FACTS + Self::NUMBERS) * BLOCK_Q };

    /// Whether scores grow with the key, so that its last key tells a row's reference best, and not
    /// the first; the row's numbers begin with the slope then.
    fn grow(&self) -> bool {
        false
    }

    /// Gives a row's numbers.
    fn row(&self, row: Row, numbers: &mut [f32]);

    /// Scores from the dot products of `N` keys, from the one that `at` says, with one vector of
    /// rows. `dense` is `[N..][BLOCK_Q]` from there on, or null.
    ///
    /// # Safety
    /// `dense` must be readable there.
    unsafe fn scores<S: Simd, const N: usize>(
        &self,
        s: S,
        dots: [S::Vector; N],
        dense: *const f32,
        at: At<'_, S>,
    ) -> [S::Vector; N];

    /// Scores as they are before any bias: scaled, and capped if there is a cap.
    fn capped<S: Simd, const N: usize>(&self, s: S, dots: [S::Vector; N]) -> [S::Vector; N];

    /// The caller's term on scores in memory, in place.
    fn block<S: Simd>(&self, s: S, block: &mut ScoreBlock<'_>);
}

/// No terms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain;

impl Scoring for Plain {
    const PLAIN: bool = true;
    const NARROW: bool = true;

    fn row(&self, _row: Row, _numbers: &mut [f32]) {}

    #[inline(always)]
    unsafe fn scores<S: Simd, const N: usize>(
        &self,
        _s: S,
        dots: [S::Vector; N],
        _dense: *const f32,
        _at: At<'_, S>,
    ) -> [S::Vector; N] {
        dots
    }

    #[inline(always)]
    fn capped<S: Simd, const N: usize>(&self, _s: S, dots: [S::Vector; N]) -> [S::Vector; N] {
        dots
    }

    #[inline(always)]
    fn block<S: Simd>(&self, _s: S, _block: &mut ScoreBlock<'_>) {}
}

/// The library's own terms, each switched on or off for the whole call, and then the caller's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'a, U> {
    problem: Facts<'a>,
    /// On the dot product: to a score, or with a cap to the exponent of its tanh.
    factor: f32,
    cap: Option<f32>,
    user: &'a U,
}

#[derive(Debug, Clone, Copy)]
struct Facts<'a> {
    terms: crate::term::Terms<'a>,
    heads: usize,
}

impl<'a, U: ScoreTerm> Chosen<'a, U> {
    pub(crate) fn new(problem: &Problem<'a, f32>, user: &'a U) -> Self {
        let cap = problem.terms.softcap;
        let factor = match cap {
            None => problem.scale,
            Some(cap) => problem.scale * f64::from(TANH_EXPONENT) / f64::from(cap),
        };
        Self {
            problem: Facts { terms: problem.terms, heads: problem.dims().q_heads },
            // A factor beyond f32 caps whatever it meets; a score of 0 stays.
            factor: (factor as f32).clamp(f32::MIN, f32::MAX),
            cap,
            user,
        }
    }
}

impl<U: ScoreTerm> Scoring for Chosen<'_, U> {
    const PLAIN: bool = false;
    const NARROW: bool = U::NONE;
    /// The library's own terms hide nothing but by the dense one.
    const HIDES: bool = !U::NONE;
    const IN_MEMORY: bool = U::IN_MEMORY;
    /// The first is the slope.
    const NUMBERS: usize = 1 + U::NUMBERS;

    fn grow(&self) -> bool {
        // What the caller's terms hide, nobody knows.
        U::NONE && self.problem.terms.alibi.is_some()
    }

    fn row(&self, row: Row, numbers: &mut [f32]) {
        let Facts { terms, heads } = &self.problem;
        numbers[0] = terms.alibi.map_or(0.0, |alibi| alibi.slope(row.head, *heads));
        self.user.row(row, &mut numbers[1..]);
    }

    #[inline(always)]
    unsafe fn scores<S: Simd, const N: usize>(
        &self,
        s: S,
        dots: [S::Vector; N],
        dense: *const f32,
        at: At<'_, S>,
    ) -> [S::Vector; N] {
        let mut scores = self.capped(s, dots);
        if !dense.is_null() {
            for k in 0..N {
                // SAFETY: the caller's promise.
                scores[k] = s.add(scores[k], unsafe { s.load(dense.add(k * BLOCK_Q)) });
            }
        }
        if self.problem.terms.alibi.is_some() {
            let slope = at.number(0);
            let ahead = s.sub(at.key(), at.position());
            for k in 0..N {
                let distance = s.add(ahead, s.splat(k as f32));
                scores[k] = s.mul_add(slope, distance, scores[k]);
            }
        }
        if !U::IN_MEMORY {
            let at = at.numbered(1, U::NUMBERS);
            for k in 0..N {
                scores[k] = self.user.apply(s, scores[k], &at.ahead(k));
            }
        }
        scores
    }

    #[inline(always)]
    fn capped<S: Simd, const N: usize>(&self, s: S, dots: [S::Vector; N]) -> [S::Vector; N] {
        let factor = s.splat(self.factor);
        let mut scores = dots;
        for k in 0..N {
            scores[k] = s.mul(dots[k], factor);
        }
        if let Some(cap) = self.cap {
            let cap = s.splat(cap);
            scores = tanh_of_exponent(s, scores);
            for k in 0..N {
                scores[k] = s.mul(scores[k], cap);
            }
        }
        scores
    }

    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: &mut ScoreBlock<'_>) {
        self.user.block(s, block);
    }
}
