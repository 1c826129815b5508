//! Score terms of the caller's own: compiled into the kernel, vector by vector.

mod adaptors;
mod built_in;

use std::marker::PhantomData;

use crate::microkernel::BLOCK_Q;
use crate::simd::{MAX_LANES, Simd};

pub use adaptors::{Position, Scalar, ScoreTile, TileTerm, scalar, tiles};
pub use built_in::{Alibi, RelativeBias, Terms, alibi_slope};

/// Sequences of a problem with a term that asks for positions are shorter than this, so that an
/// `f32` holds every position exactly.
pub const MAX_POSITION: usize = 1 << 24;

/// A term of the score: from a score to the score that the softmax sees.
///
/// It stands behind scale, softcap and every bias, and before the masks; what it makes of a key
/// that is masked is ignored. A score that it makes exactly -inf hides its key, as a mask would: no
/// influence on any output bit, even where the value is NaN. A NaN makes its row NaN.
///
/// The result must depend on the score and its position alone, as a row's bits must not depend on
/// what is computed beside it. To keep the same bits however queries are split into calls, use
/// [`At::position`], not [`At::query`]. Lanes are query rows, in no order that a term may rely on:
/// with grouped heads they differ in head and query. A score may be asked for more than once.
///
/// A tuple of terms applies them from left to right.
///
/// ```
/// use headwise_kernels::{At, Row, ScoreTerm, Simd};
///
/// /// `score - slope[head] * |key - position|`.
/// struct Distance<'a>(&'a [f32]);
///
/// impl ScoreTerm for Distance<'_> {
///     const NUMBERS: usize = 1;
///
///     fn row(&self, row: Row, numbers: &mut [f32]) {
///         numbers[0] = -self.0[row.head];
///     }
///
///     #[inline(always)]
///     fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
///         let ahead = s.sub(at.key(), at.position());
///         let distance = s.max(ahead, s.sub(s.splat(0.0), ahead));
///         s.mul_add(at.number(0), distance, score)
///     }
/// }
/// ```
pub trait ScoreTerm: Sync {
    /// How many numbers each row carries along: what depends on batch, head and query alone.
    const NUMBERS: usize = 0;

    /// Scores must lie in memory for it: what [`tiles`] needs.
    #[doc(hidden)]
    const IN_MEMORY: bool = false;

    /// It changes no score.
    #[doc(hidden)]
    const NONE: bool = false;

    /// Gives a row's numbers, [`ScoreTerm::NUMBERS`] of them; asked for once for each tile that
    /// the row is in.
    fn row(&self, row: Row, numbers: &mut [f32]) {
        let _ = (row, numbers);
    }

    /// From a vector of scores, natural logarithms of weights, to the scores behind this term.
    /// It should be `#[inline(always)]`.
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector;

    /// The same for a block of scores in memory.
    #[doc(hidden)]
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: &mut ScoreBlock<'_>) {
        block.each(s, |score, at| self.apply(s, score, at));
    }
}

/// A query row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The batch entry, or the sequence of a ragged batch or a cache.
    pub batch: usize,
    /// The query head.
    pub head: usize,
    /// The query, counted from the first of the call, or of the sequence.
    pub query: usize,
    /// Where the query stands among the keys: its own key has this index. `query` plus the offset
    /// of the causal mask, or plus `seq_kv - seq_q` without one.
    pub position: i64,
}

/// What is known of each lane of a vector of scores. Numbers are exact.
#[derive(Clone, Copy)]
pub struct At<'a, S: Simd> {
    s: S,
    batch: usize,
    key_index: usize,
    key: S::Vector,
    /// `RowNumbers`, at the vector's first lane.
    rows: *const f32,
    /// The numbers of the term concerned, and how many they are.
    numbers: *const f32,
    count: usize,
    lifetime: PhantomData<&'a [f32]>,
}

impl<S: Simd> std::fmt::Debug for At<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("At")
            .field("batch", &self.batch)
            .field("key_index", &self.key_index)
            .finish_non_exhaustive()
    }
}

/// Floats for each row that every term may read: head, query, position.
pub(crate) const ROW_FACTS: usize = 3;

impl<'a, S: Simd> At<'a, S> {
    /// The vector at `lane` against key `key_index`.
    ///
    /// # Safety
    /// `rows` must be `[ROW_FACTS + count][BLOCK_Q]` and the vector's lanes lie below `BLOCK_Q`.
    #[inline(always)]
    pub(crate) unsafe fn new(
        s: S,
        (rows, count): (&'a [f32], usize),
        lane: usize,
        batch: usize,
        key_index: usize,
    ) -> Self {
        debug_assert!(rows.len() >= (ROW_FACTS + count) * BLOCK_Q && lane + S::LANES <= BLOCK_Q);
        let rows = rows.as_ptr().wrapping_add(lane);
        Self {
            s,
            batch,
            key_index,
            key: s.splat(key_index as f32),
            rows,
            numbers: rows.wrapping_add(ROW_FACTS * BLOCK_Q),
            count,
            lifetime: PhantomData,
        }
    }

    /// The same rows at a key further on.
    #[inline(always)]
    pub(crate) fn ahead(&self, keys: usize) -> Self {
        let key = self.s.add(self.key, self.s.splat(keys as f32));
        Self { key_index: self.key_index + keys, key, ..*self }
    }

    /// The same place as a term sees it whose numbers begin behind `skip` others and are `count`.
    #[inline(always)]
    pub(crate) fn numbered(&self, skip: usize, count: usize) -> Self {
        assert!(skip + count <= self.count);
        Self { numbers: self.numbers.wrapping_add(skip * BLOCK_Q), count, ..*self }
    }

    /// The batch entry of all lanes.
    #[inline(always)]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The key of all lanes.
    #[inline(always)]
    pub fn key_index(&self) -> usize {
        self.key_index
    }

    /// The key's index in every lane.
    #[inline(always)]
    pub fn key(&self) -> S::Vector {
        self.key
    }

    /// Each lane's query head.
    #[inline(always)]
    pub fn head(&self) -> S::Vector {
        // SAFETY: the rows that the maker vouched for.
        unsafe { self.s.load(self.rows) }
    }

    /// Each lane's query, counted from the call's first.
    #[inline(always)]
    pub fn query(&self) -> S::Vector {
        // SAFETY: as above.
        unsafe { self.s.load(self.rows.add(BLOCK_Q)) }
    }

    /// Each lane's position among the keys: see [`Row::position`].
    #[inline(always)]
    pub fn position(&self) -> S::Vector {
        // SAFETY: as above.
        unsafe { self.s.load(self.rows.add(2 * BLOCK_Q)) }
    }

    /// Number `n` of each lane, as [`ScoreTerm::row`] gave it.
    ///
    /// # Panics
    /// Where the term has no such number: see [`ScoreTerm::NUMBERS`].
    #[inline(always)]
    pub fn number(&self, n: usize) -> S::Vector {
        assert!(n < self.count, "number {n} of a term that has {}", self.count);
        // SAFETY: one of the numbers that the maker vouched for.
        unsafe { self.s.load(self.numbers.add(n * BLOCK_Q)) }
    }
}

/// No term.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTerm;

impl ScoreTerm for NoTerm {
    const NONE: bool = true;

    #[inline(always)]
    fn apply<S: Simd>(&self, _s: S, score: S::Vector, _at: &At<'_, S>) -> S::Vector {
        score
    }
}

impl<T: ScoreTerm> ScoreTerm for &T {
    const NUMBERS: usize = T::NUMBERS;
    const IN_MEMORY: bool = T::IN_MEMORY;

    fn row(&self, row: Row, numbers: &mut [f32]) {
        (**self).row(row, numbers);
    }

    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
        (**self).apply(s, score, at)
    }

    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: &mut ScoreBlock<'_>) {
        (**self).block(s, block);
    }
}

impl<A: ScoreTerm, B: ScoreTerm> ScoreTerm for (A, B) {
    const NUMBERS: usize = A::NUMBERS + B::NUMBERS;
    const IN_MEMORY: bool = A::IN_MEMORY || B::IN_MEMORY;

    fn row(&self, row: Row, numbers: &mut [f32]) {
        let (a, b) = numbers.split_at_mut(A::NUMBERS);
        self.0.row(row, a);
        self.1.row(row, b);
    }

    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
        let score = self.0.apply(s, score, &at.numbered(0, A::NUMBERS));
        self.1.apply(s, score, &at.numbered(A::NUMBERS, B::NUMBERS))
    }

    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: &mut ScoreBlock<'_>) {
        self.0.block(s, &mut block.numbered(0, A::NUMBERS));
        self.1.block(s, &mut block.numbered(A::NUMBERS, B::NUMBERS));
    }
}

impl<A: ScoreTerm, B: ScoreTerm, C: ScoreTerm> ScoreTerm for (A, B, C) {
    const NUMBERS: usize = <((A, B), C)>::NUMBERS;
    const IN_MEMORY: bool = <((A, B), C)>::IN_MEMORY;

    fn row(&self, row: Row, numbers: &mut [f32]) {
        ((&self.0, &self.1), &self.2).row(row, numbers);
    }

    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
        ((&self.0, &self.1), &self.2).apply(s, score, at)
    }

    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: &mut ScoreBlock<'_>) {
        ((&self.0, &self.1), &self.2).block(s, block);
    }
}

/// Scores of a tile's rows against some keys of a block, in memory.
#[derive(Debug)]
pub struct ScoreBlock<'a> {
    /// `[keys][BLOCK_Q]`.
    pub(crate) scores: &'a mut [f32],
    /// `[ROW_FACTS + count][BLOCK_Q]`.
    pub(crate) rows: &'a [f32],
    /// Of `rows`, the numbers of the term concerned: how many stand before them, and how many
    /// they are.
    pub(crate) numbers: (usize, usize),
    pub(crate) batch: usize,
    /// The key of the first row of scores.
    pub(crate) first: usize,
    /// Lanes that are rows, and those with what fills them up to whole vectors.
    pub(crate) lanes: (usize, usize),
}

impl ScoreBlock<'_> {
    fn numbered(&mut self, skip: usize, count: usize) -> ScoreBlock<'_> {
        let (before, all) = self.numbers;
        assert!(skip + count <= all);
        let numbers = (before + skip, count);
        ScoreBlock { scores: &mut *self.scores, numbers, ..*self }
    }

    /// Replaces each vector of scores.
    #[inline(always)]
    pub(crate) fn each<S: Simd>(
        &mut self,
        s: S,
        term: impl Fn(S::Vector, &At<'_, S>) -> S::Vector,
    ) {
        let (skip, count) = self.numbers;
        assert!(self.lanes.1 <= BLOCK_Q && self.lanes.1.is_multiple_of(S::LANES));
        assert!(self.rows.len() >= (ROW_FACTS + skip + count) * BLOCK_Q);
        for (k, scores) in self.scores.chunks_exact_mut(BLOCK_Q).enumerate() {
            for lane in (0..self.lanes.1).step_by(S::LANES) {
                let rows = (self.rows, skip + count);
                // SAFETY: checked above; LANES floats from `lane` on lie below BLOCK_Q.
                unsafe {
                    let at = At::new(s, rows, lane, self.batch, self.first + k);
                    let at = at.numbered(skip, count);
                    let at_lane = scores.as_mut_ptr().add(lane);
                    s.store(at_lane, term(s.load(at_lane), &at));
                }
            }
        }
    }
}

/// Lanes of the widest vector.
const _: () = assert!(BLOCK_Q.is_multiple_of(MAX_LANES));
