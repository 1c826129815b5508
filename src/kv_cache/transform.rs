//! What is done to queries and keys before attention, row by row.

use super::positions::{Positions, Run};
use super::{QkNorm, Rope};
use crate::{Error, Input, Result, ViewMut};

/// A norm and a rotation, in this order and each where it is asked for: of new keys on their way
/// into a cache, and of queries.
///
/// ```
/// use headwise::ViewMut;
/// use headwise::kv_cache::{
///     Frequencies, Positions, QkNorm, QkTransform, Rope, RopeLayout, RopeScaling,
/// };
///
/// let frequencies = Frequencies::new(8, 10_000.0, RopeScaling::Unscaled)?;
/// let rope = Rope::new(RopeLayout::HalfSplit, &frequencies, 100)?;
/// let norm = QkNorm::new(&[1.0; 8], 1e-6)?;
/// let transform = QkTransform::new().norm(&norm).rope(&rope);
/// let mut query = vec![0.5_f32; 2 * 3 * 8];
/// transform.apply(ViewMut::bhsd(&mut query, [1, 2, 3, 8])?, Positions::From(40))?;
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct QkTransform<'a> {
    norm: Option<&'a QkNorm>,
    rope: Option<&'a Rope>,
}

impl<'a> QkTransform<'a> {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Each row is normalised first.
    #[must_use]
    pub fn norm(mut self, norm: &'a QkNorm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// Each row is rotated by its position.
    #[must_use]
    pub fn rope(mut self, rope: &'a Rope) -> Self {
        self.rope = Some(rope);
        self
    }

    /// Changes rows in place, `[batch, heads, seq, head_dim]` with a contiguous last axis.
    ///
    /// # Errors
    /// [`Error::Shape`] where the norm has not `head_dim` weights or the positions are not as many
    /// as the call needs, [`Error::Value`] where the rope rotates more than `head_dim` dimensions
    /// or its table ends before a position, [`Error::Stride`] where a row is not contiguous.
    /// Nothing was changed then.
    pub fn apply(&self, rows: ViewMut<'_, f32>, positions: Positions<'_>) -> Result<()> {
        self.check_call(&rows, positions)?;
        self.rewrite(rows, positions, |_, _| ());
        Ok(())
    }

    /// Writes the changed rows to `out`, `[batch, heads, seq, head_dim]` with a contiguous last
    /// axis, in one pass. `rows` has the same shape, any strides and any type
    /// that is computed in `f32`.
    ///
    /// # Errors
    /// As [`QkTransform::apply`], and [`Error::Shape`] where the two shapes differ.
    pub fn apply_into<'t>(
        &self,
        rows: impl Into<Input<'t, f32>>,
        positions: Positions<'_>,
        out: ViewMut<'_, f32>,
    ) -> Result<()> {
        let rows = rows.into();
        if rows.shape() != out.shape() {
            return Err(Error::Shape {
                argument: "out",
                got: format!("{:?}", out.shape()),
                expected: format!("{:?}, as the rows", rows.shape()),
            });
        }
        self.check_call(&out, positions)?;
        self.rewrite(out, positions, |index, row| {
            rows.read_row(index, row);
        });
        Ok(())
    }

    /// Fills every row, then transforms it; all has been checked.
    fn rewrite(
        &self,
        mut rows: ViewMut<'_, f32>,
        positions: Positions<'_>,
        fill: impl Fn([usize; 3], &mut [f32]),
    ) {
        if rows.is_empty() {
            return;
        }
        let [batch, heads, seq, _] = rows.shape();
        for b in 0..batch {
            let run = Run::of_entry(b, seq);
            for s in 0..seq {
                let position = positions.at(run, s);
                for h in 0..heads {
                    if let Some(row) = rows.row_slice_mut([b, h, s]) {
                        fill([b, h, s], row);
                        self.apply_row(position, row);
                    }
                }
            }
        }
    }

    fn check_call(&self, rows: &ViewMut<'_, f32>, positions: Positions<'_>) -> Result<()> {
        let [batch, _, seq, head_dim] = rows.shape();
        if head_dim > 1 && rows.strides()[3] != 1 {
            return Err(Error::Stride {
                argument: "rows",
                got: format!("{:?}", rows.strides()),
                expected: "an inner stride of 1, since rows are changed where they lie".into(),
            });
        }
        self.check(head_dim)?;
        positions.check(batch, batch * seq)?;
        if rows.is_empty() {
            return Ok(());
        }
        (0..batch).try_for_each(|b| self.check_positions(positions, Run::of_entry(b, seq)))
    }

    /// Whether rows of `head_dim` elements can be changed so.
    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        self.norm.map_or(Ok(()), |norm| norm.check(head_dim))?;
        self.rope.map_or(Ok(()), |rope| rope.check(head_dim))
    }

    /// Whether all positions of a run can be rotated by.
    pub(super) fn check_positions(&self, positions: Positions<'_>, run: Run) -> Result<()> {
        self.rope.map_or(Ok(()), |rope| rope.check_positions(positions, run))
    }

    /// Changes a row of `head_dim` elements that stands at a checked position.
    #[inline]
    pub(super) fn apply_row(&self, position: usize, row: &mut [f32]) {
        if let Some(norm) = self.norm {
            norm.apply(row);
        }
        if let Some(rope) = self.rope {
            rope.apply(position, row);
        }
    }
}
