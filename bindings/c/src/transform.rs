//! What is done to queries before attention, as an append does it to keys.

use headwise::kv_cache::{Positions, QkTransform};

use crate::boundary::guard;
use crate::dtype::{Number, headwise_dtype};
use crate::list::headwise_sizes;
use crate::overlap::{self, Memory};
use crate::pointer;
use crate::qk_norm::headwise_qk_norm;
use crate::rope::headwise_rope;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};
use crate::tensor::{headwise_tensor, output};

/// Rows that are normalised and then rotated, each where it is asked for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_transform_call {
    /// `sizeof(headwise_transform_call)`.
    pub size: usize,
    /// Queries or keys, `[batch, heads, seq, head_dim]` of F32, F16 or BF16. NULL: those in `out`,
    /// which are changed where they lie.
    pub rows: *const headwise_tensor,
    /// Where they go, of F32, the same shape.
    pub out: *const headwise_tensor,
    /// NULL: not normalised.
    pub norm: *const headwise_qk_norm,
    /// NULL: not rotated.
    pub rope: *const headwise_rope,
    /// The position of each batch entry's first row.
    pub start: usize,
    /// Or one for each batch entry.
    pub starts: headwise_sizes,
    /// Or one for each row, batch entry by batch entry: `[batch, seq]`.
    pub positions: headwise_sizes,
}
growing!(headwise_transform_call, ..=positions: headwise_sizes);

/// The library's, of a norm and an embedding if there are any.
///
/// # Safety
/// They must be null or handles that live for `'a`.
unsafe fn build<'a>(
    norm: *const headwise_qk_norm,
    rope: *const headwise_rope,
) -> Result<QkTransform<'a>> {
    let mut transform = QkTransform::new();
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(norm) = pointer::optional("norm", norm)? {
            transform = transform.norm(&norm.norm);
        }
        if let Some(rope) = pointer::optional("rope", rope)? {
            transform = transform.rope(&rope.rope);
        }
    }
    Ok(transform)
}

impl headwise_transform_call {
    /// # Safety
    /// The lists must be there, and nobody write to them, for `'a`.
    unsafe fn places<'a>(&self) -> Result<Positions<'a>> {
        // SAFETY: the caller's promise.
        let (starts, each) =
            unsafe { (self.starts.get("starts")?, self.positions.get("positions")?) };
        match (self.start, starts, each) {
            (start, None, None) => Ok(Positions::From(start)),
            (0, Some(starts), None) => Ok(Positions::Starts(starts)),
            (0, None, Some(each)) => Ok(Positions::Each(each)),
            _ => {
                let got = "more than one of start, starts and positions";
                Err(Failure::argument("positions", got, "one of the three"))
            }
        }
    }
}

/// # Safety
/// All that the call points at must be what the header says.
unsafe fn run(call: &headwise_transform_call) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let (transform, positions) = (build(call.norm, call.rope)?, call.places()?);
        let out = pointer::required("out", call.out, "a headwise_tensor")?;
        let written = output("out", out, headwise_dtype::F32)?;
        let Some(rows) = pointer::optional("rows", call.rows)? else {
            return Ok(transform.apply(written, positions)?);
        };
        let read = f32::reading("rows", rows)?;
        overlap::check(&[Memory::of("out", out)?], &[Memory::of("rows", rows)?])?;
        Ok(transform.apply_into(read, positions, written)?)
    }
}

/// Normalises and rotates rows, in one pass. A call that is refused has written nothing.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_transform(
    call: *const headwise_transform_call,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, || run(&sized::read("call", call)?)) }
}
