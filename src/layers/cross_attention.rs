//! Cross-attention of one head.

use super::projected::Projected;
use super::{EncoderCache, Heads, LayerWorkspace, Memory, Projections};
use crate::{Attention, AttentionOptions, Isa, Outputs, Result, Scale, Settings, View, Workspace};

/// Attention of a decoder to an encoder, one head without a scale: `softmax(q k^T) v` with `q`
/// linear in the decoder's hidden states, `k` and `v` in the encoder's.
///
/// ```
/// use headwise::layers::{CrossAttention, Linear, Projections};
/// use headwise::{AttentionOptions, Settings, View};
///
/// let eye = [1.0, 0.0, 0.0, 1.0];
/// let linear = || Linear::new(View::bhsd(&eye, [1, 1, 2, 2])?, None);
/// let projections = Projections { query: linear()?, key: linear()?, value: linear()? };
/// let layer = CrossAttention::new(projections)?;
///
/// let (encoder, decoder) = ([1.0; 10], [0.5; 6]);
/// let encoder = View::bhsd(&encoder, [1, 1, 5, 2])?;
/// // Once for a sentence, then for every token.
/// let cache = layer.encode(encoder, &Settings::default())?;
/// for token in decoder.chunks(2) {
///     let token = View::bhsd(token, [1, 1, 1, 2])?;
///     let result = layer.forward(token, &cache, &AttentionOptions::new())?;
///     assert!(result.out.data().iter().all(|y| (y - 1.0).abs() < 1e-6));
/// }
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CrossAttention(Projected);

impl CrossAttention {
    /// A layer of these projections.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where the keys are not as long as the queries.
    pub fn new(projections: Projections) -> Result<Self> {
        Ok(Self(Projected::new(
            projections,
            None,
            Heads::from(1),
            Scale::One,
            ["query", "encoder", "encoder (values)"],
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

    /// [`CrossAttention::forward`] into the caller's memory: `out` is `[batch, 1, seq_q,
    /// value_dim]`, weights `[batch, 1, seq_q, seq_kv]`, lse `[batch, 1, seq_q, 1]`.
    ///
    /// # Errors
    /// As [`CrossAttention::forward`], and where the outputs do not fit; then nothing is written.
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
    /// As [`CrossAttention::forward`].
    pub fn workspace<'m>(
        &self,
        query: View<'_, f32>,
        memory: impl Into<Memory<'m>>,
        options: &AttentionOptions<'_>,
    ) -> Result<LayerWorkspace> {
        self.0.workspace(query, memory.into(), options)
    }

    /// The keys and values of `encoder`, `[batch, 1, seq_kv, width]`, for many calls.
    ///
    /// # Errors
    /// Where the shapes do not fit, or there is not as much memory.
    pub fn encode(&self, encoder: View<'_, f32>, settings: &Settings<'_>) -> Result<EncoderCache> {
        self.0.encode((encoder, encoder), settings)
    }

    /// [`CrossAttention::encode`] into a cache that may have served before. Allocates nothing where
    /// that is large enough and the workspace has
    /// [`linear_workspace_bytes`](crate::linear_workspace_bytes) of the hidden states.
    ///
    /// # Errors
    /// As [`CrossAttention::encode`]. A shape that does not fit leaves the cache as it was, any
    /// other error leaves it empty.
    pub fn encode_into(
        &self,
        encoder: View<'_, f32>,
        cache: &mut EncoderCache,
        settings: &Settings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        self.0.encode_into((encoder, encoder), cache, settings, workspace)
    }
}
