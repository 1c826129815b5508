//! The ways in which candle computes attention on the CPU.

use std::path::Path;

use candle_core::{Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::ops::softmax_last_dim;
use serde::{Deserialize, Serialize};

/// A row of `headwise bench --list --json`.
#[derive(Deserialize)]
pub(crate) struct Shape {
    #[serde(rename = "shape")]
    pub(crate) name: String,
    q_heads: usize,
    kv_heads: usize,
    seq_q: usize,
    seq_kv: usize,
    head_dim: usize,
    causal: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Way {
    /// Products with a softmax between them, on repeated heads.
    #[serde(rename = "matmul, softmax, matmul")]
    Plain,
    /// Tensors that lie as it takes them: batch, sequence, heads, dim.
    #[serde(rename = "flash_attn")]
    Flash,
    /// Tensors that lie as batch, heads, sequence, dim, transposed by their strides alone.
    #[serde(rename = "flash_attn, split heads")]
    FlashSplit,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Flash, Self::FlashSplit];
}

/// Computes the output, `[batch, q_heads, seq_q, head_dim]`.
pub(crate) type Call = Box<dyn FnMut() -> Result<Tensor>>;

/// Reads the inputs in `directory` and lays them out.
pub(crate) fn prepare(shape: &Shape, way: Way, directory: &Path) -> Result<Call> {
    let read = |name| Tensor::read_npy(directory.join(name));
    let inputs = [read("query.npy")?, read("key.npy")?, read("value.npy")?];
    let scale = (shape.head_dim as f64).powf(-0.5);
    match way {
        Way::Plain => plain(shape, inputs, scale),
        Way::Flash | Way::FlashSplit => flash(shape, way, inputs, scale),
    }
}

fn plain(shape: &Shape, [query, key, value]: [Tensor; 3], scale: f64) -> Result<Call> {
    let group = shape.q_heads / shape.kv_heads;
    let repeat = |tensor: Tensor| {
        let (batch, heads, seq, dim) = tensor.dims4()?;
        let groups = tensor.unsqueeze(2)?.expand((batch, heads, group, seq, dim))?;
        groups.contiguous()?.reshape((batch, heads * group, seq, dim))
    };
    let (key, value) = (repeat(key)?, repeat(value)?);
    let mask = shape.causal.then(|| causal_mask(shape)).transpose()?;
    Ok(Box::new(move || {
        let mut scores = (query.matmul(&key.t()?)? * scale)?;
        if let Some(mask) = &mask {
            scores = scores.broadcast_add(mask)?;
        }
        softmax_last_dim(&scores)?.matmul(&value)
    }))
}

/// 0 where a query sees a key, else minus infinity.
fn causal_mask(shape: &Shape) -> Result<Tensor> {
    let offset = shape.seq_kv - shape.seq_q;
    let visible = |row, key| if key <= row + offset { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = (0..shape.seq_q)
        .flat_map(|row| (0..shape.seq_kv).map(move |key| visible(row, key)))
        .collect();
    Tensor::from_vec(values, (shape.seq_q, shape.seq_kv), &Device::Cpu)
}

fn flash(shape: &Shape, way: Way, inputs: [Tensor; 3], scale: f64) -> Result<Call> {
    let lay_out = |tensor: Tensor| {
        let transposed = tensor.transpose(1, 2)?;
        if way == Way::Flash { transposed.contiguous() } else { Ok(transposed) }
    };
    let [query, key, value] = inputs;
    let (query, key, value) = (lay_out(query)?, lay_out(key)?, lay_out(value)?);
    let mask = if shape.causal {
        AttnMask::causal_with_offset(shape.seq_kv - shape.seq_q)
    } else {
        AttnMask::None
    };
    Ok(Box::new(move || {
        flash_attn::<f32>(&query, &key, &value, scale as f32, mask.clone(), None, None)
    }))
}
