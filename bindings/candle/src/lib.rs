//! Fused attention on the CPU for [candle](candle_core): `softmax(scale * query key^T + bias, masked)
//! value` by [`headwise`], on candle's tensors where they lie.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use headwise_candle::{AttentionOptions, attention};
//!
//! // A projection leaves [batch, seq, heads * dim]; heads are split by strides alone.
//! let x = Tensor::randn(0_f32, 1.0, (1, 16, 8 * 64), &Device::Cpu)?;
//! let heads = |n| x.narrow(2, 0, n * 64)?.reshape((1, 16, n, 64))?.transpose(1, 2);
//! let (query, key, value) = (heads(8)?, heads(2)?, heads(2)?);
//! let out = attention(&query, &key, &value, AttentionOptions::new().causal())?;
//! let out = out.transpose(1, 2)?.reshape((1, 16, 8 * 64))?; // Copies nothing either.
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! | instead of | |
//! |---|---|
//! | `matmul`, mask, `softmax_last_dim`, `matmul` | [`attention`] |
//! | `repeat_kv` | nothing: query heads share those of keys and values |
//! | a tensor of the causal mask | [`AttentionOptions::causal`] |
//! | masks that are tensors | [`Options::mask`], [`Options::bias`] |
//! | `Tensor::cat` of past and new keys | [`KvCache`] |
//! | `rotary_emb::rope`, `rope_i` | [`KvCache::append_rotated`] for keys, [`rotate`] for queries |
//!
//! Inputs are of rank 4, `[batch, heads, seq, dim]`, of any strides with a contiguous last axis: tensors
//! of `[batch, seq, heads, dim]` transposed, and narrowed ones of a fused projection, are read in place. They are
//! `F32`, `F16`, `BF16`, in any mix, or `F64`. The output is stored as the query is and lies in
//! memory as `[batch, seq, heads, dim]`, as the output projection reads it.
//!
//! Inference alone: a tensor of which variables want gradients is computed, and `backward` through it is
//! candle's error [`BackwardNotSupported`](candle_core::Error::BackwardNotSupported).
//!
//! Whatever else [`headwise`] has takes a [`Borrowed`] tensor's views.

#![forbid(unsafe_code)]

mod attention;
mod borrowed;
mod computed;
mod error;
mod graph;
mod kv_cache;
mod mask;
mod options;
mod output;
mod rope;
mod workspace;

pub use attention::{attention, attention_with_lse};
pub use borrowed::Borrowed;
pub use headwise;
pub use headwise::kv_cache::{Frequencies, KvShape, Rope, RopeLayout, RopeScaling};
pub use headwise::{Alibi, AttentionOptions, Causal, Precision, Scale};
pub use kv_cache::KvCache;
pub use options::Options;
pub use output::tensor;
pub use rope::rotate;

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So do those of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/candle.md")]
struct Guide;
