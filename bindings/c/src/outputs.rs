//! Where results go.

use headwise::{Outputs, Pick, Stage};

use crate::choice::{choice, choose};
use crate::dtype::{Number, headwise_dtype};
use crate::list::headwise_sizes;
use crate::overlap::Memory;
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::Result;
use crate::tensor::{headwise_tensor, output};

/// How far a score has come when it is taken.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_stage {
    /// Behind all biases and terms: what the softmax sees.
    Final = 0,
    /// `scale * q . k`.
    Scaled = 1,
    /// Behind the softcap.
    Capped = 2,
}
choice!(headwise_stage: Final, Scaled, Capped);

/// How query heads, or queries, are picked.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_pick_kind {
    /// All.
    All = 0,
    /// From `begin` to before `end`.
    Range = 1,
    /// Those of `list`, ascending.
    List = 2,
}
choice!(headwise_pick_kind: All, Range, List);

/// Which query heads, or queries, an output has rows of. All zero picks all.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_pick {
    /// A `headwise_pick_kind`.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// For `HEADWISE_PICK_KIND_RANGE`.
    pub begin: usize,
    /// For `HEADWISE_PICK_KIND_RANGE`.
    pub end: usize,
    /// For `HEADWISE_PICK_KIND_LIST`.
    pub list: headwise_sizes,
}

/// The index in `top_k_keys` where a row sees fewer keys than are asked for.
pub const HEADWISE_NO_KEY: u32 = 4294967295;
const _: () = assert!(HEADWISE_NO_KEY == headwise::NO_KEY);

/// Where the results go, each in memory that no other tensor of the call has, written and never read
/// (it may be uninitialised). NULL for what is not wanted; `out` must be there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_outputs {
    /// `sizeof(headwise_outputs)`.
    pub size: usize,
    /// `[batch, q_heads, seq_q, value_dim]`, of F32, F16 or BF16, or of F64 like all of the call. The
    /// others are of F32, or F64.
    pub out: *const headwise_tensor,
    /// The log-sum-exp of each row, natural logarithm, `[batch, q_heads, seq_q, 1]`.
    pub lse: *const headwise_tensor,
    /// The weights, `[batch, heads picked, queries picked, seq_kv]`.
    pub weights: *const headwise_tensor,
    /// Of which heads.
    pub weights_heads: headwise_pick,
    /// Of which queries.
    pub weights_queries: headwise_pick,
    /// The scores, shaped as the weights; -INFINITY where a key is hidden.
    pub scores: *const headwise_tensor,
    /// Of which heads.
    pub scores_heads: headwise_pick,
    /// Of which queries.
    pub scores_queries: headwise_pick,
    /// At which stage: a `headwise_stage`.
    pub scores_stage: u32,
    /// Zero.
    pub reserved: u32,
    /// The sum of each key's weights, `[batch, q_heads or kv_heads, 1, seq_kv]`.
    pub column_sums: *const headwise_tensor,
    /// The keys of the k largest weights of each row, largest first, `[batch, q_heads, seq_q, k]` of
    /// U32.
    pub top_k_keys: *const headwise_tensor,
    /// Their weights, the same shape; both or neither.
    pub top_k_weights: *const headwise_tensor,
}
growing!(headwise_outputs, ..=top_k_weights: *const headwise_tensor);

impl headwise_pick {
    /// # Safety
    /// The list must be there, and nobody write to it, for `'a`.
    unsafe fn build<'a>(&self, argument: &str) -> Result<Pick<'a>> {
        sized::check_reserved(argument, self.reserved)?;
        Ok(match choose(format_args!("{argument}.kind"), self.kind)? {
            headwise_pick_kind::All => Pick::All,
            headwise_pick_kind::Range => Pick::Range(self.begin..self.end),
            headwise_pick_kind::List => {
                // SAFETY: the caller's promise.
                Pick::List(unsafe { self.list.get(argument)? }.unwrap_or(&[]))
            }
        })
    }
}

impl headwise_outputs {
    /// The library's outputs.
    ///
    /// # Safety
    /// All that the outputs point at must be there, and nobody else use it, for `'a`.
    pub(crate) unsafe fn build<'a, T: Number>(&self) -> Result<Outputs<'a, T>> {
        sized::check_reserved("outputs", self.reserved)?;
        // SAFETY: the caller's promise, for each.
        unsafe {
            let out = pointer::required("outputs.out", self.out, "a headwise_tensor")?;
            let mut outputs = Outputs::new(T::writing("out", out)?);
            if let Some(lse) = pointer::optional("outputs.lse", self.lse)? {
                outputs = outputs.with_lse(output("lse", lse, T::DTYPE)?);
            }
            if let Some(weights) = pointer::optional("outputs.weights", self.weights)? {
                let heads = self.weights_heads.build("outputs.weights_heads")?;
                let queries = self.weights_queries.build("outputs.weights_queries")?;
                let weights = output("weights", weights, T::DTYPE)?;
                outputs = outputs.with_weights_of(heads, queries, weights);
            }
            if let Some(scores) = pointer::optional("outputs.scores", self.scores)? {
                let heads = self.scores_heads.build("outputs.scores_heads")?;
                let queries = self.scores_queries.build("outputs.scores_queries")?;
                let scores = output("scores", scores, T::DTYPE)?;
                outputs = outputs.with_scores_of(self.stage()?, heads, queries, scores);
            }
            if let Some(sums) = pointer::optional("outputs.column_sums", self.column_sums)? {
                outputs = outputs.with_column_sums(output("column_sums", sums, T::DTYPE)?);
            }
            self.with_top_k(outputs)
        }
    }

    fn stage(&self) -> Result<Stage> {
        Ok(match choose("outputs.scores_stage", self.scores_stage)? {
            headwise_stage::Final => Stage::Final,
            headwise_stage::Scaled => Stage::Scaled,
            headwise_stage::Capped => Stage::Capped,
        })
    }

    /// # Safety
    /// As of [`headwise_outputs::build`].
    unsafe fn with_top_k<'a, T: Number>(&self, outputs: Outputs<'a, T>) -> Result<Outputs<'a, T>> {
        if self.top_k_keys.is_null() && self.top_k_weights.is_null() {
            return Ok(outputs);
        }
        let expected = "a headwise_tensor, as of the other";
        // SAFETY: the caller's promise.
        unsafe {
            let keys = pointer::required("outputs.top_k_keys", self.top_k_keys, expected)?;
            let weights = pointer::required("outputs.top_k_weights", self.top_k_weights, expected)?;
            Ok(outputs.with_top_k(
                output("top_k_keys", keys, headwise_dtype::U32)?,
                output("top_k_weights", weights, T::DTYPE)?,
            ))
        }
    }

    /// The memory of the outputs, all of which were built before.
    ///
    /// # Safety
    /// As of [`headwise_outputs::build`].
    pub(crate) unsafe fn memory(&self) -> Result<[Option<Memory>; 7]> {
        let tensors = [
            ("out", self.out),
            ("lse", self.lse),
            ("weights", self.weights),
            ("scores", self.scores),
            ("column_sums", self.column_sums),
            ("top_k_keys", self.top_k_keys),
            ("top_k_weights", self.top_k_weights),
        ];
        let mut memory = [None; 7];
        for (to, (argument, tensor)) in memory.iter_mut().zip(tensors) {
            // SAFETY: the caller's promise.
            if let Some(tensor) = unsafe { pointer::optional(argument, tensor)? } {
                *to = Memory::of(argument, tensor)?;
            }
        }
        Ok(memory)
    }
}
