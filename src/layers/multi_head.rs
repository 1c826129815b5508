//! Multi-head attention: self or cross, grouped queries, key and value widths of their own.

use super::projected::Projected;
use super::{EncoderCache, Heads, LayerWorkspace, Linear, Memory, Projections};
use crate::{Attention, AttentionOptions, Isa, Outputs, Result, Scale, Settings, View, Workspace};

/// Multi-head attention (Vaswani et al., "Attention Is All You Need", 2017, section 3.2.2):
/// `softmax(q k^T / sqrt(head_dim)) v` in each head, the heads side by side, and an output
/// projection.
///
/// Self-attention is `layer.forward(x, x, &options)`, cross-attention `layer.forward(decoder,
/// encoder, &options)`. Fewer kv heads than query heads make it grouped.
#[derive(Debug, Clone)]
pub struct MultiHeadAttention(Projected);

impl MultiHeadAttention {
    /// A layer of these projections, cut into `heads`: a number, or [`Heads`] for grouped queries.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where a projection's outputs are no multiple of its
    /// heads, the keys are not as long as the queries, or `out` does not take what the heads give.
    pub fn new(projections: Projections, out: Linear, heads: impl Into<Heads>) -> Result<Self> {
        Ok(Self(Projected::new(
            projections,
            Some(out),
            heads.into(),
            Scale::InvSqrtHeadDim,
            ["query", "key", "value"],
        )?))
    }

    /// The output for `query`, `[batch, 1, seq_q, width]`, and what else the options ask for.
    /// `memory` is what keys and values come from: a view, a pair of views, or an [`EncoderCache`].
    ///
    /// # Errors
    /// Where shapes, masks or options do not fit, or the cache is another layer's; the message
    /// names the argument.
    pub fn forward<'m>(
        &self,
        query: View<'_, f32>,
        memory: impl Into<Memory<'m>>,
        options: &AttentionOptions<'_>,
    ) -> Result<Attention> {
        self.0.forward(query, memory.into(), options)
    }

    /// [`MultiHeadAttention::forward`] into the caller's memory: `out` is `[batch, 1, seq_q,
    /// outputs]`, weights `[batch, heads, seq_q, seq_kv]`, lse `[batch, heads, seq_q, 1]`.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward`], and where the outputs do not fit; then nothing is
    /// written.
    pub fn forward_into<'m>(
        &self,
        query: View<'_, f32>,
        memory: impl Into<Memory<'m>>,
        options: &AttentionOptions<'_>,
        outputs: Outputs<'_, f32>,
        workspace: &mut LayerWorkspace,
    ) -> Result<Isa> {
        self.0.forward_into(query, memory.into(), options, outputs, workspace)
    }

    /// A workspace with which calls on such tensors allocate nothing.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward`].
    pub fn workspace<'m>(
        &self,
        query: View<'_, f32>,
        memory: impl Into<Memory<'m>>,
        options: &AttentionOptions<'_>,
    ) -> Result<LayerWorkspace> {
        self.0.workspace(query, memory.into(), options)
    }

    /// The keys and values of these hidden states, `[batch, 1, seq_kv, width]` each, for many
    /// calls.
    ///
    /// # Errors
    /// Where the shapes do not fit, or there is not as much memory.
    pub fn encode(
        &self,
        key: View<'_, f32>,
        value: View<'_, f32>,
        settings: &Settings<'_>,
    ) -> Result<EncoderCache> {
        self.0.encode((key, value), settings)
    }

    /// [`MultiHeadAttention::encode`] into a cache that may have served before. Allocates nothing
    /// where that is large enough and the workspace has
    /// [`linear_workspace_bytes`](crate::linear_workspace_bytes) of the hidden states.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::encode`]. A shape that does not fit leaves the cache as it was, any
    /// other error leaves it empty.
    pub fn encode_into(
        &self,
        key: View<'_, f32>,
        value: View<'_, f32>,
        cache: &mut EncoderCache,
        settings: &Settings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        self.0.encode_into((key, value), cache, settings, workspace)
    }
}
