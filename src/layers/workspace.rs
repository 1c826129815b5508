//! Where a layer keeps its projections for the length of a call.

use crate::Workspace;

/// Reusable memory of a layer's calls. It grows to what a call needs and keeps that; a call that
/// finds enough allocates nothing.
///
/// One serves any layers in turn, as large as the largest needs; one made by a layer's `workspace`
/// serves its calls on such tensors from the first on.
#[derive(Debug, Default, Clone)]
pub struct LayerWorkspace {
    /// Projected queries, keys and values, and what attention makes of them.
    pub(super) projections: Workspace,
    /// Of the kernels.
    pub(super) kernels: Workspace,
}

impl LayerWorkspace {
    /// An empty workspace; the first call will allocate.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes held.
    pub fn bytes(&self) -> usize {
        self.projections.bytes() + self.kernels.bytes()
    }
}
