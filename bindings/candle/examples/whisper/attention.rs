//! Attention in two ways: candle's is that of `whisper/model.rs` of candle-transformers 0.11 (MIT or Apache-2.0, by
//! its authors), shortened.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;
use headwise_candle::{AttentionOptions, KvCache, KvShape, attention};

use crate::common::{Result, Way};

/// The heads of `N` projections that lie side by side, `[1, seq, N * width]`, as views of them: `[1, heads, seq,
/// head_dim]` each.
pub(crate) fn split<const N: usize>(rows: &Tensor, heads: usize) -> Result<[Tensor; N]> {
    let (batch, seq, width) = rows.dims3()?;
    let rows = rows.reshape((batch, seq, N * heads, width / (N * heads)))?;
    let parts = (0..N).map(|n| rows.narrow(2, n * heads, heads)?.transpose(1, 2));
    let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(parts.try_into().map_err(|_| "as many parts as there are")?)
}

/// `[1, heads, seq, head_dim]` as `[1, seq, width]`.
pub(crate) fn joined(out: &Tensor) -> Result<Tensor> {
    Ok(out.transpose(1, 2)?.flatten_from(2)?)
}

/// What a layer of the decoder keeps of the text.
pub(crate) enum Memory {
    /// candle computes all anew.
    Candle,
    Headwise(Box<KvCache>),
}

impl Memory {
    pub(crate) fn new(way: Way, kv_heads: usize, head_dim: usize, capacity: usize) -> Result<Self> {
        if way == Way::Candle {
            return Ok(Self::Candle);
        }
        let shape = KvShape { kv_heads, head_dim, value_dim: head_dim };
        Ok(Self::Headwise(Box::new(KvCache::new(shape, 1, capacity, DType::F32)?)))
    }

    pub(crate) fn way(&self) -> Way {
        if self.keeps() { Way::Headwise } else { Way::Candle }
    }

    /// Whether what it was shown need not be shown again.
    pub(crate) fn keeps(&self) -> bool {
        matches!(self, Self::Headwise(_))
    }

    /// The attention of new tokens to those so far.
    pub(crate) fn attend(&mut self, [query, key, value]: [Tensor; 3]) -> Result<Tensor> {
        match self {
            Self::Candle => attend(Way::Candle, [&query, &key, &value], true),
            Self::Headwise(cache) => {
                cache.append(&key, &value)?;
                Ok(cache.attention(&query, AttentionOptions::new().causal())?)
            }
        }
    }
}

/// Attention to the same keys and values for all queries, or causal among as many of both.
pub(crate) fn attend(way: Way, [query, key, value]: [&Tensor; 3], causal: bool) -> Result<Tensor> {
    if way == Way::Headwise {
        let options = AttentionOptions::new();
        let options = if causal { options.causal() } else { options };
        return Ok(attention(query, key, value, options)?);
    }
    let (_, _, seq, head_dim) = query.dims4()?;
    let scale = (head_dim as f64).powf(-0.25);
    let (query, key) = ((query * scale)?, (key.transpose(2, 3)? * scale)?);
    let mut scores = query.matmul(&key)?;
    if causal {
        let visible = |i: usize, j: usize| if j > i { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..seq).flat_map(|i| (0..seq).map(move |j| visible(i, j))).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(mask, (seq, seq), &Device::Cpu)?)?;
    }
    Ok(softmax_last_dim(&scores)?.matmul(&value.contiguous()?)?)
}
