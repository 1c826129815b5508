//! Element types: which there are, and the one place that says which of them attention is
//! computed in.

use headwise::{Element, Input, Output, bf16, f16};

use crate::choice::{choice, choose};
use crate::status::{Failure, Result};
use crate::tensor::{self, headwise_tensor};

/// What a tensor's elements are.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_dtype {
    /// `float`.
    F32 = 1,
    /// `double`; computed without the fused kernels.
    F64 = 2,
    /// IEEE half precision: widened as it is read, computed in `float`, rounded once.
    F16 = 3,
    /// bfloat16, likewise.
    Bf16 = 4,
    /// A byte that is 0 or 1: of masks.
    Bool = 5,
    /// A byte: of masks in bits.
    U8 = 6,
    /// `uint32_t`: of the indices of the largest keys.
    U32 = 7,
    /// A signed byte: of caches, whose rows have a scale each.
    I8 = 8,
}
choice!(headwise_dtype: F32, F64, F16, Bf16, Bool, U8, U32, I8);

impl headwise_dtype {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 => 8,
        }
    }
}

/// A type that attention is computed in, and the types that its tensors may be of.
pub(crate) trait Number: Element {
    const DTYPE: headwise_dtype;

    /// A tensor to read.
    ///
    /// # Safety
    /// The tensor's elements must be readable, and nobody may write to them for `'a`.
    unsafe fn reading<'a>(argument: &str, tensor: &headwise_tensor) -> Result<Input<'a, Self>>;

    /// A tensor to write.
    ///
    /// # Safety
    /// The tensor's elements must be writable, and nobody else may use them for `'a`.
    unsafe fn writing<'a>(argument: &str, tensor: &headwise_tensor) -> Result<Output<'a, Self>>;
}

/// The line for each: what is computed in, and what tensors may hold.
macro_rules! numbers {
    ($($compute:ty: $first:ident $(, $dtype:ident $storage:ty)*;)+) => {$(
        impl Number for $compute {
            const DTYPE: headwise_dtype = headwise_dtype::$first;

            unsafe fn reading<'a>(argument: &str, tensor: &headwise_tensor) -> Result<Input<'a, Self>> {
                // SAFETY: the caller's promise; of the type that the tensor says.
                unsafe {
                    match checked(argument, tensor)? {
                        $(headwise_dtype::$dtype => {
                            Ok(tensor::view::<$storage>(argument, tensor)?.into())
                        })*
                        _ => Ok(tensor::native::<Self>(argument, tensor)?.into()),
                    }
                }
            }

            unsafe fn writing<'a>(argument: &str, tensor: &headwise_tensor) -> Result<Output<'a, Self>> {
                // SAFETY: the caller's promise; of the type that the tensor says.
                unsafe {
                    match checked(argument, tensor)? {
                        $(headwise_dtype::$dtype => {
                            Ok(tensor::view_mut::<$storage>(argument, tensor)?.into())
                        })*
                        _ => Ok(tensor::output::<Self>(argument, tensor, Self::DTYPE)?.into()),
                    }
                }
            }
        }
    )+};
}

numbers! {
    f32: F32, F16 f16, Bf16 bf16;
    f64: F64;
}

/// The type of a tensor that has been checked.
fn checked(argument: &str, tensor: &headwise_tensor) -> Result<headwise_dtype> {
    tensor.check(argument)?;
    choose(format_args!("{argument}.dtype"), tensor.dtype)
}

/// What is the same for every type of number.
pub(crate) trait Generic {
    type Output;
    fn run<T: Number>(self) -> Result<Self::Output>;
}

/// Runs what is generic in the type that tensors of this type are computed in.
pub(crate) fn dispatch<G: Generic>(argument: &str, dtype: u32, generic: G) -> Result<G::Output> {
    match choose(format_args!("{argument}.dtype"), dtype)? {
        headwise_dtype::F32 | headwise_dtype::F16 | headwise_dtype::Bf16 => generic.run::<f32>(),
        headwise_dtype::F64 => generic.run::<f64>(),
        dtype => {
            let expected = "F32, F16, BF16 or F64";
            let argument = format!("{argument}.dtype");
            Err(Failure::argument(&argument, format!("{dtype:?}"), expected))
        }
    }
}

/// Whether a tensor's elements are of that type.
pub(crate) fn expect(argument: &str, number: u32, expected: headwise_dtype) -> Result<()> {
    let dtype: headwise_dtype = choose(format_args!("{argument}.dtype"), number)?;
    if dtype == expected {
        return Ok(());
    }
    let (got, expected) = (format!("{dtype:?}"), format!("{expected:?}"));
    Err(Failure::argument(&format!("{argument}.dtype"), got, expected))
}
