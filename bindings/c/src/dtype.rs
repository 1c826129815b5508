//! Element types: which there are, and the one place that says which of them attention is
//! computed in.

use headwise::Element;

use crate::choice::{choice, choose};
use crate::status::{Failure, Result};

/// What a tensor's elements are.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_dtype {
    /// `float`.
    F32 = 1,
    /// `double`; computed without the fused kernels.
    F64 = 2,
    /// IEEE half precision: of a bias alone so far.
    F16 = 3,
    /// bfloat16: of a bias alone so far.
    Bf16 = 4,
    /// A byte that is 0 or 1: of masks.
    Bool = 5,
    /// A byte: of masks in bits.
    U8 = 6,
    /// `uint32_t`: of the indices of the largest keys.
    U32 = 7,
}
choice!(headwise_dtype: F32, F64, F16, Bf16, Bool, U8, U32);

impl headwise_dtype {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 => 8,
        }
    }
}

/// An element type that attention is computed in.
pub(crate) trait Number: Element {
    const DTYPE: headwise_dtype;
}

impl Number for f32 {
    const DTYPE: headwise_dtype = headwise_dtype::F32;
}

impl Number for f64 {
    const DTYPE: headwise_dtype = headwise_dtype::F64;
}

/// What is the same for every type of number.
pub(crate) trait Generic {
    type Output;
    fn run<T: Number>(self) -> Result<Self::Output>;
}

/// Runs what is generic on elements of this type: a type that the library learns gets its line here,
/// and its `Number` above.
pub(crate) fn dispatch<G: Generic>(argument: &str, dtype: u32, generic: G) -> Result<G::Output> {
    match choose(format_args!("{argument}.dtype"), dtype)? {
        headwise_dtype::F32 => generic.run::<f32>(),
        headwise_dtype::F64 => generic.run::<f64>(),
        dtype => Err(unsupported(argument, dtype)),
    }
}

/// Of a tensor that is no number's, or not yet.
fn unsupported(argument: &str, dtype: headwise_dtype) -> Failure {
    let argument = format!("{argument}.dtype");
    Failure::unsupported(&argument, format!("{dtype:?}"), "F32 or F64: others are not computed in")
}

/// Whether a tensor's elements are of that type.
pub(crate) fn expect(argument: &str, number: u32, expected: headwise_dtype) -> Result<()> {
    let dtype: headwise_dtype = choose(format_args!("{argument}.dtype"), number)?;
    if dtype == expected {
        return Ok(());
    }
    if matches!(dtype, headwise_dtype::F16 | headwise_dtype::Bf16) {
        return Err(unsupported(argument, dtype));
    }
    let (got, expected) = (format!("{dtype:?}"), format!("{expected:?}"));
    Err(Failure::argument(&format!("{argument}.dtype"), got, expected))
}
