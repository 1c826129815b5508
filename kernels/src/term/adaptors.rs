//! Terms from what is not generic over instruction sets: a closure on one score, a function on a
//! tile of scores.

use std::ops::Range;

use super::{At, ROW_FACTS, Row, ScoreBlock, ScoreTerm};
use crate::microkernel::BLOCK_Q;
use crate::simd::Simd;

/// Where a score stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The query row.
    pub row: Row,
    /// The key.
    pub key: usize,
}

/// A term from a closure on one score: see [`scalar`].
#[derive(Debug, Clone, Copy)]
pub struct Scalar<F>(F);

/// A term from a closure on one score and its position. Vectors are taken apart and put together
/// around it: some nanoseconds a score, several times the cost of the attention itself. A
/// [`ScoreTerm`] runs at full speed.
///
/// ```
/// use headwise_kernels::{Position, scalar};
///
/// let even_keys = scalar(|score, at: Position| {
///     if at.key % 2 == 0 { score } else { f32::NEG_INFINITY }
/// });
/// ```
pub fn scalar<F: Fn(f32, Position) -> f32 + Sync>(term: F) -> Scalar<F> {
    Scalar(term)
}

impl<F: Fn(f32, Position) -> f32 + Sync> ScoreTerm for Scalar<F> {
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
        let mut scores = s.to_array(score);
        let facts = [at.head(), at.query(), at.position()].map(|v| s.to_array(v));
        for lane in 0..S::LANES {
            let row = row(at.batch(), facts.map(|fact| fact[lane]));
            scores[lane] = (self.0)(scores[lane], Position { row, key: at.key_index() });
        }
        s.vector(scores)
    }
}

fn row(batch: usize, [head, query, position]: [f32; ROW_FACTS]) -> Row {
    Row { batch, head: head as usize, query: query as usize, position: position as i64 }
}

/// Scores of some rows against some keys, to be changed in place.
#[derive(Debug)]
pub struct ScoreTile<'a> {
    /// The score of row `r` and key `keys.start + k` stands at `k * ScoreTile::PITCH + r`. What lies
    /// behind the last row is of no account, and so is the score of a masked key.
    pub scores: &'a mut [f32],
    /// The rows.
    pub rows: &'a [Row],
    /// The keys.
    pub keys: Range<usize>,
}

impl ScoreTile<'_> {
    /// From a key's scores to the next key's.
    pub const PITCH: usize = BLOCK_Q;
}

/// A term from a function on tiles: see [`tiles`].
#[derive(Debug, Clone, Copy)]
pub struct TileTerm<F>(F);

/// A term from a function that is given tiles of scores in memory, at most 48 rows by 128 keys, and
/// changes them in place: what can be called through a pointer, as from C. Each score must be
/// changed by itself and its position alone. The way through memory costs some percent more than a
/// [`ScoreTerm`].
///
/// ```
/// use headwise_kernels::{ScoreTile, tiles};
///
/// let half = tiles(|tile: ScoreTile<'_>| tile.scores.iter_mut().for_each(|x| *x *= 0.5));
/// ```
pub fn tiles<F: Fn(ScoreTile<'_>) + Sync>(term: F) -> TileTerm<F> {
    TileTerm(term)
}

impl<F: Fn(ScoreTile<'_>) + Sync> ScoreTerm for TileTerm<F> {
    const IN_MEMORY: bool = true;

    /// Never called: the kernel passes blocks to a term that is `IN_MEMORY`.
    #[inline(always)]
    fn apply<S: Simd>(&self, _s: S, score: S::Vector, _at: &At<'_, S>) -> S::Vector {
        score
    }

    #[inline(always)]
    fn block<S: Simd>(&self, _s: S, block: &mut ScoreBlock<'_>) {
        call(&self.0, block);
    }
}

fn call(term: &impl Fn(ScoreTile<'_>), block: &mut ScoreBlock<'_>) {
    let facts = block.rows;
    let rows: [Row; BLOCK_Q] = std::array::from_fn(|lane| {
        row(block.batch, std::array::from_fn(|fact| facts[fact * BLOCK_Q + lane]))
    });
    let keys = block.scores.len() / BLOCK_Q;
    term(ScoreTile {
        scores: &mut *block.scores,
        rows: &rows[..block.lanes.0],
        keys: block.first..block.first + keys,
    });
}
