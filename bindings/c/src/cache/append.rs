//! New tokens of a cache.

use headwise::NewTokens;
use headwise::kv_cache::Positions;

use super::{Inner, change, headwise_cache, stored};
use crate::dtype::Number;
use crate::list::{headwise_floats, headwise_sequences, headwise_sizes};
use crate::pointer;
use crate::qk_norm::headwise_qk_norm;
use crate::rope::headwise_rope;
use crate::sized::{self, growing};
use crate::status::{Result, headwise_error, headwise_status};
use crate::tensor::headwise_tensor;

/// Keys and values of new tokens, which are copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_append_call {
    /// `sizeof(headwise_append_call)`.
    pub size: usize,
    /// The sequences, each once, in the order of the tokens. NULL and 0: all of a contiguous cache or
    /// a ring.
    pub sequences: headwise_sequences,
    /// `[sequences, kv_heads, new_tokens, head_dim]`, any strides.
    pub key: *const headwise_tensor,
    /// `[sequences, kv_heads, new_tokens, value_dim]`, any strides.
    pub value: *const headwise_tensor,
    /// If given, the tokens lie one behind the other, `[1, kv_heads, tokens, dim]`: the first of each
    /// sequence, and how many there are.
    pub offsets: headwise_sizes,
    /// If given, values are divided by these before they are stored, `[kv_heads, value_dim]` of
    /// positive, finite factors: those of `headwise_options`, which multiplies by them again.
    pub value_scales: headwise_floats,
    /// Keys are normalised; NULL: not.
    pub norm: *const headwise_qk_norm,
    /// Keys are rotated, behind the norm; NULL: not.
    pub rope: *const headwise_rope,
    /// If given, the positions to rotate by, one for each token, sequence by sequence, where they are
    /// not those at which the tokens go into the cache: drafts of a tree stand at their depth.
    pub positions: headwise_sizes,
}
growing!(headwise_append_call, ..=offsets: headwise_sizes, now ..=positions: headwise_sizes);

/// # Safety
/// All that the call points at must be what the header says.
unsafe fn append(cache: &mut Inner, call: *const headwise_append_call) -> Result<()> {
    // SAFETY: the caller's promise.
    let (named, tokens) = unsafe {
        let call = sized::read("call", call)?;
        let key = pointer::required("key", call.key, "a headwise_tensor")?;
        let value = pointer::required("value", call.value, "a headwise_tensor")?;
        let mut tokens = NewTokens::new(f32::reading("key", key)?, f32::reading("value", value)?);
        if let Some(offsets) = call.offsets.get("offsets")? {
            tokens = tokens.ragged(offsets);
        }
        if let Some(scales) = call.value_scales.get("value_scales")? {
            tokens = tokens.value_scales(scales);
        }
        if let Some(norm) = pointer::optional("norm", call.norm)? {
            tokens = tokens.norm(&norm.norm);
        }
        if let Some(rope) = pointer::optional("rope", call.rope)? {
            tokens = tokens.rope(&rope.rope);
        }
        if let Some(positions) = call.positions.get("positions")? {
            tokens = tokens.positions(Positions::Each(positions));
        }
        (call.sequences.get("sequences")?, tokens)
    };
    let Inner { stored, names, indices } = cache;
    stored!(stored, kind => kind.append(named, &tokens, (names, indices)))
}

/// Appends tokens. A call that is refused leaves the cache as it was.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_cache_append(
    cache: *mut headwise_cache,
    call: *const headwise_append_call,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe { change(cache, error, |cache| append(cache, call)) }
}
