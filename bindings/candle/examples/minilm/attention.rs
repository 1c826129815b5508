//! The attention of a layer, in two ways: candle's is that of `bert.rs` of candle-transformers 0.11 (MIT
//! or Apache-2.0, by its authors), shortened.

use candle_core::{D, Device, Tensor};
use candle_nn::ops::softmax;
use headwise_candle::{AttentionOptions, attention};

use crate::common::{Result, Way};

/// Which keys are no tokens, as each way wants to know it.
pub(crate) enum Padding<'a> {
    /// A number added to scores, `[batch, 1, 1, seq]`.
    Candle(Tensor),
    /// The tokens of each sentence: what is behind them is not read.
    Headwise(&'a [usize]),
}

impl<'a> Padding<'a> {
    pub(crate) fn new(way: Way, lengths: &'a [usize], seq: usize) -> Result<Self> {
        if way == Way::Headwise {
            return Ok(Self::Headwise(lengths));
        }
        let added = |length, i| if i < length { 0.0 } else { f32::MIN };
        let mask: Vec<f32> =
            lengths.iter().flat_map(|&length| (0..seq).map(move |i| added(length, i))).collect();
        Ok(Self::Candle(Tensor::from_vec(mask, (lengths.len(), 1, 1, seq), &Device::Cpu)?))
    }
}

/// Attends within each sentence: `[batch, seq, heads * head_dim]` each, and the result likewise.
pub(crate) fn attend(
    [query, key, value]: [Tensor; 3],
    heads: usize,
    padding: &Padding<'_>,
) -> Result<Tensor> {
    let (batch, seq, width) = query.dims3()?;
    let split = |rows: &Tensor| rows.reshape((batch, seq, heads, width / heads))?.transpose(1, 2);
    let (query, key, value) = (split(&query)?, split(&key)?, split(&value)?);
    let out = match padding {
        Padding::Headwise(lengths) => {
            attention(&query, &key, &value, AttentionOptions::new().key_lengths(lengths))?
        }
        Padding::Candle(mask) => {
            let (query, key) = (query.contiguous()?, key.contiguous()?);
            let scores = (query.matmul(&key.t()?)? / ((width / heads) as f64).sqrt())?;
            let weights = softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
            weights.matmul(&value.contiguous()?)?
        }
    };
    Ok(out.transpose(1, 2)?.contiguous()?.flatten_from(D::Minus2)?)
}
