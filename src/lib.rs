//! Fused attention on the CPU: `softmax(scale * query key^T + bias, masked) value`, vectorised,
//! split over threads, with no score matrix in memory.
//!
//! Tensors are borrowed [`View`]s over four axes, `[batch, heads, seq, dim]`, in any memory order
//! with a contiguous last axis, of any [`Storage`]: `f16` and `bf16` are widened as they are read and rounded
//! as they are written, and each tensor of a call may have its own type. Query heads may be a multiple of the key/value heads (grouped and
//! multi-query attention), and `value_dim` may differ from `head_dim`.
//!
//! ```
//! use headwise::{AttentionOptions, View, attention};
//!
//! let (batch, heads, seq, dim) = (1, 2, 5, 8);
//! let data: Vec<f32> = (0..batch * heads * seq * dim).map(|i| (i as f32).sin()).collect();
//! let view = View::bhsd(&data, [batch, heads, seq, dim])?;
//!
//! let options = AttentionOptions::new().causal().return_lse();
//! let result = attention(view, view, view, &options)?;
//! assert_eq!(result.out.shape(), [batch, heads, seq, dim]);
//! // The first query sees the first key alone, so its output is the first value.
//! assert!((result.out.data()[0] - data[0]).abs() < 1e-6);
//! # Ok::<(), headwise::Error>(())
//! ```
//!
//! # What is promised
//! - **Masked is masked.** A key hidden by any mask, or by a bias of exactly -inf, changes no bit
//!   of the output, even where it holds NaN or infinity. A row that sees nothing gives 0, with a
//!   log-sum-exp of -inf.
//! - **The same bits** for any number of threads, any executor, any batch, and however the
//!   queries are split into calls, on one [`Isa`] of one build.
//! - **Errors, not panics.** Whatever is passed, a call computes or says in an [`Error`] which
//!   argument does not fit and what would.
//!
//! # What there is
//!
//! | | `f32`, `f16`, `bf16` | `f64` |
//! |---|---|---|
//! | [`attention`], [`dot_product_attention`] | fused | unfused |
//! | causal, window, prefix, padding, documents, trees, block patterns, boolean and additive masks | yes | yes |
//! | ragged batches | yes | yes |
//! | grouped and multi-query heads, `value_dim` apart from `head_dim` | yes | yes |
//! | log-sum-exp, weights, scores, sums by key, largest keys on request: [`Outputs`] | yes | yes |
//! | [`onnx`]: the operator `Attention`, opsets 23 to 25 | yes | yes |
//! | [`merge_states`]: attention over parts of the keys, merged; [`attention_cascade_into`]: a shared prefix read once | yes | |
//! | [`softmax_into`], [`softmax_in_place`] | `f32` | |
//! | [`linear`] with [`PackedLinear`] weights | `f32` | |
//! | [`kv_cache`]: contiguous, ring and paged caches; rotary embeddings and norms of queries and keys | yes | |
//! | [`layers`]: self-, cross- and multi-head attention with projections | `f32` | |
//!
//! # Features
//! `rayon` (default): work is split over the current rayon pool. `ndarray`: views of its arrays.
//! `safetensors`: tensors and layers read from its files.

#![forbid(unsafe_code)]

mod attention;
mod cascade;
mod closeness;
pub mod kv_cache;
pub mod layers;
pub mod onnx;
#[cfg(feature = "safetensors")]
pub mod safetensors;
mod state;
mod tensor;

pub use attention::{
    Attention, AttentionOptions, attention, attention_cached, attention_cached_into,
    attention_cached_with, attention_cached_with_into, attention_into, attention_with,
    attention_with_into, dot_product_attention, dot_product_attention_into,
};
pub use cascade::{CascadeWorkspace, attention_cascade_into};
pub use closeness::Closeness;
pub use half::{bf16, f16};
#[cfg(feature = "rayon")]
pub use headwise_kernels::Rayon;
pub use headwise_kernels::{
    Algorithm, Alibi, At, AttentionPlan, BlockPattern, Causal, Choice, Documents, Element, Error,
    Executor, Explanation, Input, Int8, Isa, KvStorage, MAX_LANES, MAX_POSITION, NO_KEY, NoTerm,
    Offsets, Output, Outputs, PackedLinear, PageTables, Pairs, Pick, PlanBuffer, Position,
    Precision, Product, RelativeBias, Result, Row, Scalar, Scale, ScoreTerm, ScoreTile, Serial,
    Settings, Shape, Simd, Stage, State, StateMut, Storage, Strides, Terms, TileTerm, Tree, View,
    ViewMut, Window, Workspace, alibi_slope, linear, linear_all, linear_workspace_bytes,
    merge_states_into, scalar, softmax_in_place, softmax_into, softmax_workspace_bytes, tiles,
};
pub use kv_cache::{ContiguousCache, KvView, NewTokens, PagedCache, QkNorm, RingCache, Rope};
pub use state::merge_states;
pub use tensor::Tensor;

/// What the library is tested and measured against.
pub mod oracle {
    pub use headwise_kernels::{probe, reference};
}

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So does that of the semantics.
#[cfg(doctest)]
#[doc = include_str!("../docs/semantics.md")]
struct Semantics;

/// And that of the caches.
#[cfg(doctest)]
#[doc = include_str!("../docs/kv-cache.md")]
struct KvCache;
