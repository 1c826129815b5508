//! Self-attention of one head.

use super::projected::Projected;
use super::{Heads, LayerWorkspace, Projections};
use crate::{Attention, AttentionOptions, Isa, Outputs, Result, Scale, View};

/// Self-attention of one head without a scale: `softmax(q k^T) v` with `q`, `k` and `v` linear in
/// `x`.
///
/// ```
/// use headwise::layers::{Linear, Projections, SelfAttention};
/// use headwise::{AttentionOptions, View};
///
/// let eye = [1.0, 0.0, 0.0, 1.0];
/// let linear = || Linear::new(View::bhsd(&eye, [1, 1, 2, 2])?, None);
/// let projections = Projections { query: linear()?, key: linear()?, value: linear()? };
/// let layer = SelfAttention::new(projections)?;
///
/// let x = [9.0, 0.0, 0.0, 9.0]; // two positions that see themselves alone
/// let result = layer.forward(View::bhsd(&x, [1, 1, 2, 2])?, &AttentionOptions::new())?;
/// assert!(result.out.data().iter().zip(x).all(|(y, x)| (y - x).abs() < 1e-6));
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SelfAttention(Projected);

impl SelfAttention {
    /// A layer of these projections.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where the keys are not as long as the queries.
    pub fn new(projections: Projections) -> Result<Self> {
        Ok(Self(Projected::new(projections, None, Heads::from(1), Scale::One, ["x"; 3])?))
    }

    /// The output for `x`, `[batch, 1, seq, width]`, and what else the options ask for.
    ///
    /// # Errors
    /// Where shapes, masks or options do not fit; the message names the argument.
    pub fn forward(&self, x: View<'_, f32>, options: &AttentionOptions<'_>) -> Result<Attention> {
        self.0.forward(x, x.into(), options)
    }

    /// [`SelfAttention::forward`] into the caller's memory: `out` is `[batch, 1, seq, value_dim]`,
    /// weights `[batch, 1, seq, seq]`, lse `[batch, 1, seq, 1]`.
    ///
    /// # Errors
    /// As [`SelfAttention::forward`], and where the outputs do not fit; then nothing is written.
    pub fn forward_into(
        &self,
        x: View<'_, f32>,
        options: &AttentionOptions<'_>,
        outputs: Outputs<'_, f32>,
        workspace: &mut LayerWorkspace,
    ) -> Result<Isa> {
        self.0.forward_into(x, x.into(), options, outputs, workspace)
    }

    /// A workspace with which calls on such an `x` allocate nothing.
    ///
    /// # Errors
    /// As [`SelfAttention::forward`].
    pub fn workspace(
        &self,
        x: View<'_, f32>,
        options: &AttentionOptions<'_>,
    ) -> Result<LayerWorkspace> {
        self.0.workspace(x, x.into(), options)
    }
}
