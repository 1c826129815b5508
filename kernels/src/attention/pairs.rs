//! How much of a problem is computed: pairs of a query and a key, as the micro-tiles take them.

use super::ahead::is_few;
use super::current::Read;
use super::tile::TileRows;
use crate::element::Element;
use crate::error::Result;
use crate::microkernel::few;
use crate::microkernel::outer::{height, low_height};
use crate::microkernel::scores::strip_vectors;
use crate::microkernel::values::most_rows;
use crate::microkernel::{BLOCK_KV, BLOCK_Q, GROUP, Seen, Span};
use crate::plan::Plan;
use crate::problem::Problem;
use crate::settings::Settings;
use crate::simd::{Isa, Kernel, Simd, dispatch};

/// Pairs of a query and a key, over all heads.
///
/// A useful operation is one on a visible pair: `2 * (head_dim + value_dim)` for each. Computed are
/// `2 * head_dim` for each pair of `scores` and `2 * value_dim` for each of `values`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pairs {
    /// Those visible by structural and boolean masks.
    pub visible: u64,
    /// Those in the micro-tiles of the scores that the fused kernel computes: whole vectors of
    /// queries by groups of keys, or a few queries by whole vectors of keys.
    pub scores: u64,
    /// Those in the micro-tiles of the values.
    pub values: u64,
}

/// Counts the pairs of a problem in the instruction set that `settings` choose: what the fused kernel
/// skips and what it computes beside what is visible. Nothing is computed, and blocks that would be
/// computed twice, for the sake of a reference maximum, count once.
///
/// ```
/// use headwise_kernels::{Causal, Masking, Problem, Scale, Settings, View, computed_pairs};
///
/// let data = [0.0_f32; 300 * 4];
/// let view = View::bhsd(&data, [1, 1, 300, 4])?;
/// let mut masking = Masking::default();
/// masking.causal = Some(Causal::BottomRight);
/// let problem = Problem::new(view, view, view, Scale::One, &masking)?;
/// let pairs = computed_pairs(&problem, &Settings::default())?;
/// assert_eq!(pairs.visible, 300 * 301 / 2);
/// assert!(pairs.scores >= pairs.visible && pairs.scores < 300 * 300);
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
///
/// # Errors
/// As [`Settings::isa`].
pub fn computed_pairs<T: Element>(
    problem: &Problem<'_, T>,
    settings: &Settings<'_>,
) -> Result<Pairs> {
    let isa = settings.isa()?;
    if !problem.dims().has_rows() {
        return Ok(Pairs::default());
    }
    dispatch(isa, Count { problem, plan: Plan::new(problem, 1, 0) })
}

struct Count<'a, 'p, T: Element> {
    problem: &'a Problem<'p, T>,
    plan: Plan,
}

impl<T: Element> Kernel for Count<'_, '_, T> {
    type Output = Pairs;

    fn run<S: Simd>(self, s: S) -> Pairs {
        let mut pairs = Pairs::default();
        let dims = self.problem.dims();
        let mut tile = TileRows::EMPTY;
        for sequence in (0..self.problem.sequences()).map(|s| self.problem.mask.sequence(s)) {
            let rows = sequence.seq_q * dims.group_size();
            let width = match Read::of(s, self.problem, (rows, rows))[0] {
                // Never few.
                Read::Quads => None,
                Read::Pairs => Some(dims.head_dim / 2),
                Read::Floats | Read::Narrow | Read::Integers => Some(dims.head_dim),
            };
            for first_row in (0..rows).step_by(BLOCK_Q) {
                let rows = first_row..(first_row + BLOCK_Q).min(rows);
                let lanes = rows.len().next_multiple_of(S::LANES);
                tile.begin(self.problem, &sequence, rows, lanes);
                for kv_head in 0..dims.kv_heads {
                    let first = tile.any.start / BLOCK_KV * BLOCK_KV;
                    for first in (first..tile.any.end).step_by(BLOCK_KV) {
                        let mut visit = tile.visit(first);
                        let head = (&sequence, kv_head);
                        let bits = tile.bits((self.problem, &self.plan), head, &visit);
                        let keys = first + visit.keys.start..first + visit.keys.end;
                        if self.problem.mask.needs_bits(&sequence, &keys) {
                            visit.restrict(&bits, lanes);
                        }
                        let seen = bits.iter().take(tile.rows.len());
                        pairs.visible += seen.map(|row| u64::from(row.count_ones())).sum::<u64>();
                        let of_block = Block {
                            seen: visit.seen.as_ref(),
                            keys: (visit.keys.start, visit.keys.end),
                        };
                        pairs.scores += of_block.scores::<S>(tile.rows.len(), width);
                        pairs.values += of_block.values(S::ISA, tile.rows.len());
                    }
                }
            }
        }
        pairs
    }
}

/// A tile's visit to a key block.
struct Block<'a> {
    seen: Option<&'a Seen>,
    keys: (usize, usize),
}

impl Block<'_> {
    /// What some of `lanes` rows from `lane` on see.
    fn span(&self, lane: usize, lanes: usize) -> Span {
        let (start, end) = self.keys;
        self.seen.map_or(Span::new(start, end), |seen| seen.span(lane, lanes))
    }

    /// Groups of keys, down to the block's last key, by each vector of `rows` that sees one of them. A
    /// vector of few rows that is in no wide strip takes runs of keys of which it sees some, one after
    /// the other, and groups where no run is left. Rows have `width` numbers, or pairs of them; if `None`, no
    /// rows are few.
    fn scores<S: Simd>(&self, rows: usize, width: Option<usize>) -> u64 {
        let (start, end) = self.keys;
        let run = few::run::<S>();
        let strip = strip_vectors(S::ISA) * S::LANES;
        let in_strips = rows.next_multiple_of(S::LANES) / strip * strip;
        let of_vector = |lane| {
            let span = self.span(lane, S::LANES);
            let few = lane >= in_strips
                && width.is_some_and(|width| few::fits::<f32>(S::ISA, rows - lane, width));
            let (mut pairs, mut made) = (0, start);
            for group in (start..end).step_by(GROUP) {
                let mut groups = (group..group + run).step_by(GROUP);
                if few && group >= made && group + run <= end && groups.any(|g| span.sees(g)) {
                    pairs += run * few::tile_rows(rows - lane);
                    made = group + run;
                }
                if group >= made && span.sees(group) {
                    pairs += GROUP.min(end - group) * S::LANES;
                }
            }
            pairs as u64
        };
        (0..rows).step_by(S::LANES).map(of_vector).sum()
    }

    /// The keys from the first to the last that some row of a micro-tile sees, by its rows: those of
    /// the tiles two vectors wide that `Values` takes.
    fn values(&self, isa: Isa, rows: usize) -> u64 {
        let (mut row, mut sum) = (0, 0);
        while row < rows {
            let left = rows - row;
            let high = if is_few(rows) { low_height(left) } else { height(most_rows(isa), left) };
            let (start, end) = self.span(row, high).within(self.keys.0, self.keys.1);
            sum += (end - start) * high;
            row += high;
        }
        sum as u64
    }
}
