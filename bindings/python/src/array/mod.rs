//! Arrays of other libraries, and ours: where elements lie, how they come in and how they go out.

mod buffer;
mod dtype;
mod element;
mod export;
mod gather;
mod give_back;
mod import;
mod memory;
mod operand;
mod sink;
mod strided;
mod tensor;

pub(crate) use dtype::DType;
pub(crate) use element::{Compute, Stored, Typed, computed, is_in_place};
pub(crate) use gather::{filled, gather};
pub(crate) use give_back::give_back;
pub(crate) use import::{Array, exchange_api_of};
pub(crate) use memory::Memory;
pub(crate) use operand::{Operand, Stretch, bools};
pub(crate) use sink::Sink;
pub(crate) use strided::{MAX_NDIM, Strided, check_size};
pub(crate) use tensor::Tensor;

/// Calls `$body` with `$S` the type that elements of this dtype are stored as: the one place that
/// says which there are.
macro_rules! with_stored {
    ($argument:expr, $dtype:expr, $S:ident => $body:expr) => {{
        use $crate::array::DType;
        match $dtype {
            DType::F32 => {
                type $S = f32;
                $body
            }
            DType::F64 => {
                type $S = f64;
                $body
            }
            DType::F16 => {
                type $S = headwise::f16;
                $body
            }
            DType::BF16 => {
                type $S = headwise::bf16;
                $body
            }
            other => Err($crate::error::kind(
                $argument,
                format_args!("elements of {other}"),
                "float32, float64, float16 or bfloat16",
            )),
        }
    }};
}
pub(crate) use with_stored;
