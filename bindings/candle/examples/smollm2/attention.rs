//! The attention of a layer, in two ways: candle's is that of `quantized_llama.rs` and `utils.rs` of
//! candle-transformers 0.11 (MIT or Apache-2.0, by its authors), shortened.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope_i;
use headwise_candle::{
    AttentionOptions, Frequencies, KvCache, KvShape, Rope, RopeLayout, RopeScaling, rotate,
};

use crate::common::{Result, Way};
use crate::model::Extents;

/// The keys and values of a layer so far.
pub(crate) enum Memory {
    Candle(Extents, Option<(Tensor, Tensor)>),
    Headwise(Extents, Box<KvCache>),
}

/// What all layers rotate by. The file has pairs of dimensions side by side.
pub(crate) enum Rotation {
    /// Cosines and sines, and the masks of each number of queries and keys.
    Candle {
        cos: Tensor,
        sin: Tensor,
        masks: HashMap<(usize, usize), Tensor>,
    },
    Headwise(Rope),
}

impl Rotation {
    pub(crate) fn new(way: Way, extents: Extents, positions: usize) -> Result<Self> {
        let Extents { head_dim, rope_base, .. } = extents;
        if way == Way::Headwise {
            let frequencies = Frequencies::new(head_dim, rope_base, RopeScaling::Unscaled)?;
            return Ok(Self::Headwise(Rope::new(
                RopeLayout::Interleaved,
                &frequencies,
                positions,
            )?));
        }
        let theta: Vec<f32> = (0..head_dim)
            .step_by(2)
            .map(|i| 1.0 / (rope_base as f32).powf(i as f32 / head_dim as f32))
            .collect();
        let theta = Tensor::new(theta, &Device::Cpu)?.unsqueeze(0)?;
        let positions = Tensor::arange(0, positions as u32, &Device::Cpu)?.to_dtype(DType::F32)?;
        let angles = positions.unsqueeze(1)?.matmul(&theta)?;
        Ok(Self::Candle { cos: angles.cos()?, sin: angles.sin()?, masks: HashMap::new() })
    }
}

impl Memory {
    pub(crate) fn new(way: Way, extents: Extents, capacity: usize) -> Result<Self> {
        let Extents { kv_heads, head_dim, .. } = extents;
        let shape = KvShape { kv_heads, head_dim, value_dim: head_dim };
        Ok(match way {
            Way::Candle => Self::Candle(extents, None),
            Way::Headwise => {
                let cache = KvCache::new(shape, 1, capacity, DType::F32)?;
                Self::Headwise(extents, Box::new(cache))
            }
        })
    }

    /// Remembers keys and values and attends to all: `[seq, heads * head_dim]` each, and the result
    /// likewise.
    pub(crate) fn attend(
        &mut self,
        [query, key, value]: [Tensor; 3],
        position: usize,
        rotation: &mut Rotation,
    ) -> Result<Tensor> {
        let (seq, width) = query.dims2()?;
        let (Self::Candle(extents, _) | Self::Headwise(extents, _)) = *self;
        let split =
            |rows: Tensor, heads| rows.reshape((1, seq, heads, extents.head_dim))?.transpose(1, 2);
        let query = split(query, extents.q_heads)?;
        let (key, value) = (split(key, extents.kv_heads)?, split(value, extents.kv_heads)?);
        let out = match (self, rotation) {
            (Self::Headwise(_, cache), Rotation::Headwise(rope)) => {
                cache.append_rotated(&key, &value, rope)?;
                let query = rotate(&query, rope, position)?;
                cache.attention(&query, AttentionOptions::new().causal())?
            }
            (Self::Candle(_, memory), Rotation::Candle { cos, sin, masks }) => {
                let rotate = |rows: Tensor| {
                    let (cos, sin) = (cos.narrow(0, position, seq)?, sin.narrow(0, position, seq)?);
                    rope_i(&rows.contiguous()?, &cos, &sin)
                };
                let (query, key, value) = (rotate(query)?, rotate(key)?, value.contiguous()?);
                let (key, value) = match memory {
                    None => (key, value),
                    Some((past_key, past_value)) => (
                        Tensor::cat(&[&*past_key, &key], 2)?,
                        Tensor::cat(&[&*past_value, &value], 2)?,
                    ),
                };
                *memory = Some((key.clone(), value.clone()));
                candle_attention([query, key, value], masks)?
            }
            _ => return Err("the rotation is of the other way".into()),
        };
        Ok(out.transpose(1, 2)?.reshape((seq, width))?)
    }
}

/// The last queries of a sequence to all of its keys.
fn candle_attention(
    [query, key, value]: [Tensor; 3],
    masks: &mut HashMap<(usize, usize), Tensor>,
) -> Result<Tensor> {
    let (_, q_heads, seq_q, head_dim) = query.dims4()?;
    let (_, kv_heads, seq_kv, _) = key.dims4()?;
    let (key, value) = (repeat_kv(key, q_heads / kv_heads)?, repeat_kv(value, q_heads / kv_heads)?);
    let mut scores = (query.matmul(&key.t()?)? / (head_dim as f64).sqrt())?;
    if seq_q > 1 {
        let mask = match masks.get(&(seq_q, seq_kv)) {
            Some(mask) => mask.clone(),
            None => causal_mask(seq_q, seq_kv)?,
        };
        masks.insert((seq_q, seq_kv), mask.clone());
        let hidden = Tensor::new(f32::NEG_INFINITY, &Device::Cpu)?.broadcast_as(scores.shape())?;
        scores = mask.broadcast_as(scores.shape())?.where_cond(&hidden, &scores)?;
    }
    Ok(softmax_last_dim(&scores)?.matmul(&value.contiguous()?)?)
}

/// 1 where a key is hidden.
fn causal_mask(seq_q: usize, seq_kv: usize) -> Result<Tensor> {
    let hidden = |i: usize, j: usize| u8::from(j > i + seq_kv - seq_q);
    let mask: Vec<u8> = (0..seq_q).flat_map(|i| (0..seq_kv).map(move |j| hidden(i, j))).collect();
    Ok(Tensor::from_slice(&mask, (seq_q, seq_kv), &Device::Cpu)?)
}

/// Each head `group` times.
fn repeat_kv(rows: Tensor, group: usize) -> Result<Tensor> {
    let (batch, kv_heads, seq, head_dim) = rows.dims4()?;
    if group == 1 {
        return Ok(rows);
    }
    Ok(Tensor::cat(&vec![&rows; group], 2)?.reshape((batch, kv_heads * group, seq, head_dim))?)
}
