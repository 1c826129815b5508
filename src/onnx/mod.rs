//! The operator `Attention` of ONNX, opsets 23, 24 and 25, for engines that run its graphs: inputs,
//! attributes and outputs under the operator's names and with its meaning, which is not everywhere
//! ours.
//!
//! ```
//! use headwise::Settings;
//! use headwise::onnx::{Array, Attributes, Inputs, Requested, Results, Tensor, attention};
//!
//! // Three steps of decoding, three heads of size 4 in inputs of three axes.
//! let attributes = Attributes {
//!     is_causal: true,
//!     q_num_heads: Some(3),
//!     kv_num_heads: Some(3),
//!     ..Attributes::default()
//! };
//! let requested = Requested { present: true, ..Requested::default() };
//! let token = [0.5_f32; 12];
//! let token = Array::new(&token, &[1, 1, 12]);
//! let mut last: Option<Results<f32>> = None;
//! for step in 1..=3 {
//!     let mut inputs = Inputs::new(token, token, token);
//!     if let Some(last) = &last {
//!         inputs.past_key = last.present_key.as_ref().map(Tensor::array);
//!         inputs.past_value = last.present_value.as_ref().map(Tensor::array);
//!     }
//!     let results = attention(&attributes, &inputs, requested, &Settings::default())?;
//!     assert_eq!(results.y.shape, [1, 1, 12]);
//!     assert_eq!(results.present_key.as_ref().map(|key| &key.shape[..]), Some(&[1, 3, step, 4][..]));
//!     last = Some(results);
//! }
//! # Ok::<(), headwise::Error>(())
//! ```
//!
//! `docs/semantics.md` sets the operator's terms beside ours.

mod call;
mod extents;

use crate::{Isa, Result, Settings, Storage};
use call::Call;
use extents::{Extents, Place, shape_error, value_error};

/// A dense tensor to read, in row-major order.
#[derive(Debug)]
pub struct Array<'a, T> {
    data: &'a [T],
    shape: &'a [usize],
}

impl<T> Clone for Array<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Array<'_, T> {}

impl<'a, T> Array<'a, T> {
    /// The elements of a tensor and its extents, which [`attention`] checks against each other.
    pub fn new(data: &'a [T], shape: &'a [usize]) -> Self {
        Self { data, shape }
    }

    fn check(&self, argument: &'static str) -> Result<()> {
        let count = self.shape.iter().try_fold(1_usize, |n, &extent| n.checked_mul(extent));
        if count == Some(self.data.len()) {
            return Ok(());
        }
        let got = format_args!("{:?} for {} elements", self.shape, self.data.len());
        shape_error(argument, got, "a shape of as many elements as there are")
    }
}

/// A dense tensor that was computed, in row-major order.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Tensor<T> {
    pub data: Vec<T>,
    pub shape: Vec<usize>,
}

impl<T> Tensor<T> {
    /// The tensor, to read.
    pub fn array(&self) -> Array<'_, T> {
        Array::new(&self.data, &self.shape)
    }
}

/// The operator's attributes; left alone they are its defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attributes {
    /// Query `i` sees key `j` if `j <= i + offset`: the offset is the length of the past, or
    /// `nonpad_kv_seqlen - q_sequence_length` of the batch entry, or 0 without either.
    pub is_causal: bool,
    /// Any finite factor; `1 / sqrt(head_size)` if none.
    pub scale: Option<f32>,
    /// With inputs of three axes. Of inputs of four it may repeat what they say.
    pub q_num_heads: Option<i64>,
    /// As `q_num_heads`.
    pub kv_num_heads: Option<i64>,
    /// `softcap * tanh(score / softcap)`, before the mask is added; 0 is none.
    pub softcap: f32,
    /// 1, 10, 11 or 16. Whatever it says, the softmax is taken in the type that is computed in: in
    /// `f32`, and in `f64` for `f64`.
    pub softmax_precision: Option<i64>,
    /// What `qk_matmul_output` is. 0: `scale * Q K^T`; 1: that after the softcap, both of all pairs,
    /// masked or not; 2: that and the mask, -inf where masked; 3: the weights.
    pub qk_matmul_output_mode: i64,
    /// Keys visible before the query's own position `i + offset`; -1 is without limit.
    pub left_window_size: i64,
    /// Keys visible after it.
    pub right_window_size: i64,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            is_causal: false,
            scale: None,
            q_num_heads: None,
            kv_num_heads: None,
            softcap: 0.0,
            softmax_precision: None,
            qk_matmul_output_mode: 0,
            left_window_size: -1,
            right_window_size: -1,
        }
    }
}

impl Attributes {
    /// Checks what no input has a part in.
    fn check(&self) -> Result<()> {
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return value_error("scale", scale, "a finite number");
        }
        if !self.softcap.is_finite() || self.softcap < 0.0 {
            return value_error("softcap", self.softcap, "0, or a positive number");
        }
        if let Some(precision) = self.softmax_precision
            && ![1, 10, 11, 16].contains(&precision)
        {
            let expected = "1 (FLOAT), 10 (FLOAT16), 11 (DOUBLE) or 16 (BFLOAT16)";
            return value_error("softmax_precision", precision, expected);
        }
        if !(0..=3).contains(&self.qk_matmul_output_mode) {
            return value_error(
                "qk_matmul_output_mode",
                self.qk_matmul_output_mode,
                "0, 1, 2 or 3",
            );
        }
        for (argument, size) in [
            ("left_window_size", self.left_window_size),
            ("right_window_size", self.right_window_size),
        ] {
            if size < -1 {
                return value_error(argument, size, "-1, which is no limit, or a number from 0");
            }
        }
        Ok(())
    }
}

/// A mask that broadcasts to `[batch, q_heads, q_sequence_length, total_sequence_length]` by the
/// rules of NumPy, of one to four axes. Where it has fewer columns, the keys behind are hidden (a
/// single column is not repeated).
#[derive(Debug)]
pub enum Mask<'a, T> {
    /// `true` = attend.
    Boolean(Array<'a, bool>),
    /// Added to the scores; exactly -inf masks.
    Additive(Array<'a, T>),
}

/// The operator's inputs.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inputs<'a, T> {
    /// `[batch, q_heads, q_sequence_length, head_size]`, or `[batch, q_sequence_length, q_heads *
    /// head_size]`.
    pub q: Array<'a, T>,
    /// `[batch, kv_heads, kv_sequence_length, head_size]`, or as `Q` in three axes.
    pub k: Array<'a, T>,
    /// `[batch, kv_heads, kv_sequence_length, v_head_size]`, or as `Q` in three axes.
    pub v: Array<'a, T>,
    /// `attn_mask`.
    pub attn_mask: Option<Mask<'a, T>>,
    /// The keys before those of `K`, `[batch, kv_heads, past_sequence_length, head_size]`. Together
    /// with `past_value`.
    pub past_key: Option<Array<'a, T>>,
    /// The values before those of `V`, `[batch, kv_heads, past_sequence_length, v_head_size]`.
    pub past_value: Option<Array<'a, T>>,
    /// For each batch entry the keys that are no padding. Not beside a past.
    pub nonpad_kv_seqlen: Option<&'a [i64]>,
}

impl<'a, T> Inputs<'a, T> {
    /// Those that must be there.
    pub fn new(q: Array<'a, T>, k: Array<'a, T>, v: Array<'a, T>) -> Self {
        let (attn_mask, past_key, past_value, nonpad_kv_seqlen) = (None, None, None, None);
        Self { q, k, v, attn_mask, past_key, past_value, nonpad_kv_seqlen }
    }
}

/// Which of the optional outputs are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Requested {
    /// `present_key` and `present_value`. Not beside `nonpad_kv_seqlen`.
    pub present: bool,
    pub qk_matmul_output: bool,
}

/// The operator's outputs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Results<T> {
    /// `[batch, q_heads, q_sequence_length, v_head_size]`, or `[batch, q_sequence_length, q_heads *
    /// v_head_size]` where the inputs have three axes. Rows that see no key are 0.
    pub y: Tensor<T>,
    /// The past and `K`, `[batch, kv_heads, total_sequence_length, head_size]`, if requested.
    pub present_key: Option<Tensor<T>>,
    /// The past and `V`, `[batch, kv_heads, total_sequence_length, v_head_size]`, if requested.
    pub present_value: Option<Tensor<T>>,
    /// `[batch, q_heads, q_sequence_length, total_sequence_length]`, if requested.
    pub qk_matmul_output: Option<Tensor<T>>,
    /// The instruction set that ran.
    pub isa: Isa,
}

/// Runs the operator. Its outputs are allocated, and a past is copied before the new keys and values: who must avoid all that calls [`attention_into`](crate::attention_into) with
/// views of a cache.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) and [`Error::Value`](crate::Error::Value), which name the
/// operator's inputs and attributes, and as [`attention`](crate::attention).
pub fn attention<T: Storage>(
    attributes: &Attributes,
    inputs: &Inputs<'_, T>,
    requested: Requested,
    settings: &Settings<'_>,
) -> Result<Results<T>> {
    attributes.check()?;
    let extents = Extents::of(attributes, inputs)?;
    if let (true, Some(lengths)) = (requested.present, inputs.nonpad_kv_seqlen) {
        let expected = "none where present_key and present_value are requested";
        return value_error("nonpad_kv_seqlen", lengths, expected);
    }
    // With a past before them, keys and values have a place of their own.
    let joined = |past: &Option<Array<'_, T>>, incoming: &Array<'_, T>, from: Place| {
        let past = past.map_or(&[][..], |past| past.data);
        let wanted = requested.present || inputs.past_key.is_some();
        wanted.then(|| joined(past, incoming.data, (from, extents.present(from)))).transpose()
    };
    let present_key = joined(&inputs.past_key, &inputs.k, extents.key)?;
    let present_value = joined(&inputs.past_value, &inputs.v, extents.value)?;
    let call = Call {
        attributes,
        extents: &extents,
        query: inputs.q.data,
        key: placed(&present_key, inputs.k.data, (extents.key, &extents)),
        value: placed(&present_value, inputs.v.data, (extents.value, &extents)),
        mask: inputs.attn_mask.as_ref().map(call::Mask::of),
        lengths: inputs.nonpad_kv_seqlen,
        settings,
    };
    let (y, scores, isa) = call.run(requested.qk_matmul_output)?;
    let shape = if extents.query.seq_first {
        let [batch, heads, seq, dim] = extents.out().shape;
        vec![batch, seq, heads * dim]
    } else {
        extents.out().shape.into()
    };
    let shown = |present: Option<Tensor<T>>| present.filter(|_| requested.present);
    Ok(Results {
        y: Tensor { data: y, shape },
        qk_matmul_output: scores.map(|scores| Tensor {
            data: scores.into_iter().map(T::round).collect(),
            shape: extents.scores().shape.into(),
        }),
        isa,
        present_key: shown(present_key),
        present_value: shown(present_value),
    })
}

/// Keys or values to compute with, and their place: with the past before them if that was joined.
fn placed<'a, T: Storage>(
    present: &'a Option<Tensor<T>>,
    incoming: &'a [T],
    (place, extents): (Place, &Extents),
) -> (&'a [T], Place) {
    match present {
        Some(present) => (&present.data, extents.present(place)),
        None => (incoming, place),
    }
}

/// The past, and behind it what comes in, head by head.
fn joined<T: Copy>(past: &[T], incoming: &[T], (from, to): (Place, Place)) -> Result<Tensor<T>> {
    let mut data = Vec::new();
    data.try_reserve_exact(to.len()).map_err(|_| crate::Error::Overflow {
        argument: "present",
        got: format!("the size of {:?}", to.shape),
        expected: "an amount of memory that can be had".into(),
    })?;
    let [batch, heads, seq, dim] = from.shape;
    let before = (to.shape[2] - seq) * dim;
    let heads_in_all = if to.len() == 0 { 0 } else { batch * heads };
    for head in 0..heads_in_all {
        data.extend_from_slice(&past[head * before..(head + 1) * before]);
        for row in 0..seq {
            data.extend_from_slice(from.row(incoming, [head / heads, head % heads, row]));
        }
    }
    Ok(Tensor { data, shape: to.shape.into() })
}
