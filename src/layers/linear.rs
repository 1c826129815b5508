//! The linear layer.

use crate::{Isa, PackedLinear, Result, Settings, Tensor, View, ViewMut, Workspace, linear};

/// `y = x W^T + b`, with `W` packed once, when the layer is made.
///
/// ```
/// use headwise::layers::Linear;
/// use headwise::{Settings, View};
///
/// // Two outputs of three inputs.
/// let weight = [1.0, 2.0, 3.0, 0.0, 1.0, 0.0];
/// let layer = Linear::new(View::bhsd(&weight, [1, 1, 2, 3])?, Some(&[0.5, 0.0]))?;
/// let x = View::bhsd(&[1.0, 10.0, 100.0], [1, 1, 1, 3])?;
/// assert_eq!(layer.forward(x, &Settings::default())?.data(), [321.5, 10.0]);
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Linear(PackedLinear);

impl Linear {
    /// A layer of `weight`, `[1, 1, outputs, inputs]` in any strides, as PyTorch's `nn.Linear` has
    /// it, and a bias of `outputs` numbers.
    ///
    /// # Errors
    /// As [`PackedLinear::pack`].
    pub fn new(weight: View<'_, f32>, bias: Option<&[f32]>) -> Result<Self> {
        Ok(Self(PackedLinear::pack(weight, bias)?))
    }

    /// The length of an input row.
    pub fn inputs(&self) -> usize {
        self.0.inputs()
    }

    /// The length of an output row.
    pub fn outputs(&self) -> usize {
        self.0.outputs()
    }

    /// The output for `x`, `[a, b, c, inputs]` in any strides.
    ///
    /// # Errors
    /// As [`linear`], and [`Error::Overflow`](crate::Error::Overflow) where there is no memory for
    /// the output.
    pub fn forward(&self, x: View<'_, f32>, settings: &Settings<'_>) -> Result<Tensor> {
        let [a, b, c, _] = x.shape();
        let mut out = Tensor::zeros([a, b, c, self.outputs()])?;
        self.forward_into(x, out.view_mut(), settings, &mut Workspace::new())?;
        Ok(out)
    }

    /// [`Linear::forward`] into the caller's memory, `[a, b, c, outputs]`; allocates nothing with a
    /// workspace of [`linear_workspace_bytes`](crate::linear_workspace_bytes).
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_into(
        &self,
        x: View<'_, f32>,
        out: ViewMut<'_, f32>,
        settings: &Settings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        linear(x, &self.0, out, settings, workspace)
    }

    /// The weights, as the kernel reads them.
    pub(super) fn packed(&self) -> &PackedLinear {
        &self.0
    }
}
