//! Attention over tensors.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use headwise::{Outputs, attention_into};

use crate::borrowed::{dtype, on_cpu};
use crate::computed::{Computed, Number};
use crate::mask::Masks;
use crate::options::Options;
use crate::output::{HeadsLast, tensor};
use crate::{error, graph, workspace};

const NAME: &str = "headwise-attention";

/// Scaled dot-product attention, `softmax(scale * query key^T + bias, masked) value` with the scale `1 /
/// sqrt(head_dim)` unless the options say otherwise.
///
/// `query` is `[batch, q_heads, seq_q, head_dim]`, `key` `[batch, kv_heads, seq_kv, head_dim]`, `value`
/// `[batch, kv_heads, seq_kv, value_dim]`; `kv_heads` divides `q_heads`, and query head `h` reads the key/value head
/// `h / (q_heads / kv_heads)`. Nothing is copied on the way in.
///
/// The result, `[batch, q_heads, seq_q, value_dim]` of the query's dtype, lies in memory as `[batch, seq_q,
/// q_heads, value_dim]`: `out.transpose(1, 2)?.flatten_from(2)?` for the output projection copies nothing.
///
/// # Errors
/// Where a tensor is on another device, its rank is not 4, its last axis is not contiguous or its dtype is none
/// of the crate's; where shapes, masks or options do not fit. The message names the argument.
pub fn attention<'a>(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    options: impl Into<Options<'a>>,
) -> Result<Tensor> {
    let call = Call { options: options.into(), lse: None };
    call.apply([query, key, value])
}

/// [`attention`], and the natural logarithm of each row's softmax denominator, `[batch, q_heads, seq_q]` in
/// what was computed in: `F32`, or `F64` of `F64`.
///
/// # Errors
/// As [`attention`].
pub fn attention_with_lse<'a>(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    options: impl Into<Options<'a>>,
) -> Result<(Tensor, Tensor)> {
    let call = Call { options: options.into(), lse: Some(RefCell::new(None)) };
    let out = call.apply([query, key, value])?;
    let Some(lse) = call.lse.and_then(RefCell::into_inner) else {
        candle_core::bail!("{NAME}: no log-sum-exp");
    };
    let lse = graph::record3(NAME, [query, key, value], lse)?;
    Ok((out, lse.squeeze(3)?))
}

/// A call as an operation of candle's.
struct Call<'a> {
    options: Options<'a>,
    /// Where the log-sum-exp goes, if it is wanted.
    lse: Option<RefCell<Option<Tensor>>>,
}

impl Call<'_> {
    fn apply(&self, inputs: [&Tensor; 3]) -> Result<Tensor> {
        for (argument, tensor) in ["query", "key", "value"].into_iter().zip(inputs) {
            on_cpu(argument, tensor)?;
        }
        let [query, key, value] = inputs;
        let out = query.apply_op3_no_bwd(key, value, self)?;
        graph::record3(NAME, inputs, out)?.transpose(1, 2)
    }

    fn run<S: Number>(
        &self,
        [query, key, value]: [(&CpuStorage, &Layout); 3],
    ) -> Result<(CpuStorage, Shape)> {
        let query = S::Compute::operand("query", query.0, query.1)?;
        let key = S::Compute::operand("key", key.0, key.1)?;
        let value = S::Compute::operand("value", value.0, value.1)?;
        let masks = Masks::new(&self.options)?;
        let options = masks.added_to::<S::Compute>(self.options.plain)?;
        let [batch, q_heads, seq_q, _] = query.shape();
        let mut out = HeadsLast::<S>::zeros([batch, q_heads, seq_q, value.shape()[3]])?;
        let mut outputs = Outputs::new(S::output(out.view_mut()?));
        let rows = [batch, q_heads, seq_q, 1];
        let lse = self.lse.as_ref().map(|_| headwise::Tensor::<S::Compute>::zeros(rows));
        let mut lse = lse.transpose().map_err(error::from_headwise)?;
        if let Some(lse) = &mut lse {
            outputs = outputs.with_lse(lse.view_mut());
        }
        workspace::with(|workspace| {
            attention_into(query, key, value, &options, outputs, workspace)
        })
        .map_err(error::from_headwise)?;
        if let (Some(place), Some(lse)) = (&self.lse, lse) {
            place.replace(Some(tensor(lse)?));
        }
        Ok(out.into_storage())
    }
}

impl CustomOp3 for Call<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_layout: &Layout,
        key: &CpuStorage,
        key_layout: &Layout,
        value: &CpuStorage,
        value_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [(query, query_layout), (key, key_layout), (value, value_layout)];
        match query {
            CpuStorage::F32(_) => self.run::<f32>(inputs),
            CpuStorage::F16(_) => self.run::<half::f16>(inputs),
            CpuStorage::BF16(_) => self.run::<half::bf16>(inputs),
            CpuStorage::F64(_) => self.run::<f64>(inputs),
            other => error::dtype("query", dtype(other), "F32, F16, BF16 or F64"),
        }
    }
}
