//! Attention as candle's models compute it: products with a softmax between them.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

/// `softmax(query key^T / sqrt(head_dim) + bias) value`, on repeated heads.
pub(crate) fn attention(
    [query, key, value]: [&Tensor; 3],
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let group = query.dim(1)? / key.dim(1)?;
    let (key, value) = (repeated(key, group)?, repeated(value, group)?);
    let scale = (query.dim(D::Minus1)? as f64).powf(-0.5);
    let mut scores = (query.contiguous()?.matmul(&key.t()?.contiguous()?)? * scale)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias)?;
    }
    softmax_last_dim(&scores)?.matmul(&value)
}

/// Each head `group` times.
fn repeated(tensor: &Tensor, group: usize) -> Result<Tensor> {
    let (batch, heads, seq, dim) = tensor.dims4()?;
    let groups = tensor.unsqueeze(2)?.expand((batch, heads, group, seq, dim))?;
    groups.contiguous()?.reshape((batch, heads * group, seq, dim))
}

/// 0 where a query sees a key, else minus infinity: the last query sees the last key.
pub(crate) fn causal(seq_q: usize, seq_kv: usize, like: &Tensor) -> Result<Tensor> {
    let visible = |i, j| if j + seq_q <= i + seq_kv { 0.0 } else { f32::NEG_INFINITY };
    let bias: Vec<f32> = (0..seq_q).flat_map(|i| (0..seq_kv).map(move |j| visible(i, j))).collect();
    Tensor::from_vec(bias, (seq_q, seq_kv), like.device())?.to_dtype(like.dtype())
}
