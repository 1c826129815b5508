//! Rotary position embeddings.

use super::positions::{Positions, Run};
use super::rope_scaling::Frequencies;
use super::{QkTransform, value_error};
use crate::{Error, Result, View, ViewMut};

/// Which dimensions turn together, of the first `rotary_dim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX, Llama as Hugging Face stores it, Qwen, Mistral.
    HalfSplit,
    /// `2 i` and `2 i + 1`: RoFormer, GPT-J, Llama as Meta stores it.
    Interleaved,
}

/// A rotary embedding: cosines and sines of every position up to a last one. A pair `(x, y)` at
/// position `p` becomes `(x cos - y sin, x sin + y cos)`; dimensions from `rotary_dim` on stay.
///
/// ```
/// use headwise::ViewMut;
/// use headwise::kv_cache::{Frequencies, Positions, Rope, RopeLayout, RopeScaling};
///
/// let frequencies = Frequencies::new(4, 10_000.0, RopeScaling::Unscaled)?;
/// let rope = Rope::new(RopeLayout::HalfSplit, &frequencies, 1024)?;
/// let mut query = [1.0_f32, 0.0, 0.0, 0.0, 9.0]; // The last dimension is not rotated.
/// rope.rotate(ViewMut::bhsd(&mut query, [1, 1, 1, 5])?, Positions::From(1))?;
/// assert_eq!(query, [1.0_f32.cos(), 0.0, 1.0_f32.sin(), 0.0, 9.0]);
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    layout: RopeLayout,
    /// Pairs of dimensions, at least one.
    pairs: usize,
    /// For each position the cosines of all pairs, then their sines.
    table: Vec<f32>,
}

impl Rope {
    /// The positions `0..positions`, angles computed in `f64` and rounded once.
    ///
    /// # Errors
    /// [`Error::Overflow`] where the table does not fit the memory.
    pub fn new(layout: RopeLayout, frequencies: &Frequencies, positions: usize) -> Result<Self> {
        let inverse = frequencies.inverse();
        let mut table = room(positions, inverse.len())?;
        let factor = frequencies.attention_factor();
        for position in 0..positions {
            let angles = inverse.iter().map(|theta| theta * position as f64);
            table.extend(angles.clone().map(|angle| (angle.cos() * factor) as f32));
            table.extend(angles.map(|angle| (angle.sin() * factor) as f32));
        }
        Ok(Self { layout, pairs: inverse.len(), table })
    }

    /// Tables of the caller's, `[1, 1, positions, rotary_dim / 2]` in any layout: of tables that
    /// hold each pair's number twice, the view takes half.
    ///
    /// # Errors
    /// [`Error::Shape`] where the shapes differ or are not of that form, [`Error::Overflow`] as of
    /// [`Rope::new`].
    pub fn of_tables(layout: RopeLayout, cos: View<'_, f32>, sin: View<'_, f32>) -> Result<Self> {
        let [batch, heads, positions, pairs] = cos.shape();
        if batch != 1 || heads != 1 || pairs == 0 {
            return Err(Error::Shape {
                argument: "cos",
                got: format!("{:?}", cos.shape()),
                expected: "[1, 1, positions, rotary_dim / 2], of at least one pair".into(),
            });
        }
        if sin.shape() != cos.shape() {
            return Err(Error::Shape {
                argument: "sin",
                got: format!("{:?}", sin.shape()),
                expected: format!("{:?}, as cos", cos.shape()),
            });
        }
        let mut table = room(positions, pairs)?;
        for position in 0..positions {
            for part in [cos, sin] {
                table.extend((0..pairs).filter_map(|pair| part.get([0, 0, position, pair])));
            }
        }
        Ok(Self { layout, pairs, table })
    }

    /// The dimensions that are rotated, the first of a row.
    pub fn rotary_dim(&self) -> usize {
        2 * self.pairs
    }

    /// The positions there are: `0..positions`.
    pub fn positions(&self) -> usize {
        self.table.len() / self.rotary_dim()
    }

    /// Rotates queries or keys, `[batch, heads, seq, head_dim]`, in place.
    ///
    /// # Errors
    /// As [`QkTransform::apply`].
    pub fn rotate(&self, rows: ViewMut<'_, f32>, positions: Positions<'_>) -> Result<()> {
        QkTransform::new().rope(self).apply(rows, positions)
    }

    /// Writes rotated queries or keys to `out`, which has their shape.
    ///
    /// # Errors
    /// As [`QkTransform::apply_into`].
    pub fn rotate_into(
        &self,
        rows: View<'_, f32>,
        positions: Positions<'_>,
        out: ViewMut<'_, f32>,
    ) -> Result<()> {
        QkTransform::new().rope(self).apply_into(rows, positions, out)
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        if self.rotary_dim() <= head_dim {
            return Ok(());
        }
        Err(value_error("rotary_dim", self.rotary_dim(), format!("at most head_dim, {head_dim}")))
    }

    /// Whether all tokens of a run stand within the table.
    pub(super) fn check_positions(&self, positions: Positions<'_>, run: Run) -> Result<()> {
        let last = (0..run.count).map(|within| positions.at(run, within)).max();
        match last {
            Some(last) if last >= self.positions() => {
                let expected = format!("below {}, the positions of the table", self.positions());
                Err(value_error("position", last, expected))
            }
            _ => Ok(()),
        }
    }

    /// Rotates the first `rotary_dim` elements of a row that stands at a position of the table.
    pub(super) fn apply(&self, position: usize, row: &mut [f32]) {
        let angles = &self.table[position * self.rotary_dim()..][..self.rotary_dim()];
        let (cos, sin) = angles.split_at(self.pairs);
        let angles = cos.iter().zip(sin);
        let rotate = |x: &mut f32, y: &mut f32, cos: f32, sin: f32| {
            (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
        };
        let row = &mut row[..self.rotary_dim()];
        match self.layout {
            RopeLayout::HalfSplit => {
                let (x, y) = row.split_at_mut(self.pairs);
                for ((x, y), (&cos, &sin)) in x.iter_mut().zip(y).zip(angles) {
                    rotate(x, y, cos, sin);
                }
            }
            RopeLayout::Interleaved => {
                for ([x, y], (&cos, &sin)) in row.as_chunks_mut().0.iter_mut().zip(angles) {
                    rotate(x, y, cos, sin);
                }
            }
        }
    }
}

fn room(positions: usize, pairs: usize) -> Result<Vec<f32>> {
    let mut table = Vec::new();
    let size = positions.checked_mul(pairs).and_then(|n| n.checked_mul(2));
    match size.map(|size| table.try_reserve_exact(size)) {
        Some(Ok(())) => Ok(table),
        _ => Err(Error::Overflow {
            argument: "rope",
            got: format!("a table of {positions} positions and {pairs} pairs"),
            expected: "an amount of memory that can be had".into(),
        }),
    }
}
