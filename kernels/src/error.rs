//! The one error type of the library: every variant names the argument, what came and what was
//! expected.

use crate::Isa;

/// Why a call was refused. Nothing was written to any output.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument's shape does not fit the others.
    #[error("{argument}: shape {got}, expected {expected}")]
    Shape {
        /// The argument at fault.
        argument: &'static str,
        /// The shape that came.
        got: String,
        /// The shape or rule that would do.
        expected: String,
    },
    /// An argument's strides cannot be used; the message names the remedy.
    #[error("{argument}: strides {got}, expected {expected}")]
    Stride {
        /// The argument at fault.
        argument: &'static str,
        /// The strides that came.
        got: String,
        /// The rule, and how to meet it.
        expected: String,
    },
    /// Shape and strides reach outside the data they were given with.
    #[error("{argument}: reaches element {reached} of data that has {len}; {expected}")]
    Bounds {
        /// The argument at fault.
        argument: &'static str,
        /// The farthest element, counted from the start of the data.
        reached: i128,
        /// The number of elements there are.
        len: usize,
        /// What would do.
        expected: String,
    },
    /// A size or an offset does not fit the machine's integers.
    #[error("{argument}: {got} overflows; expected {expected}")]
    Overflow {
        /// The argument at fault.
        argument: &'static str,
        /// The sizes that came.
        got: String,
        /// The limit.
        expected: String,
    },
    /// A number is outside its domain.
    #[error("{argument}: {got}, expected {expected}")]
    Value {
        /// The argument at fault.
        argument: &'static str,
        /// The value that came.
        got: String,
        /// The domain.
        expected: String,
    },
    /// A cache has no room for what should go in. It is as it was before the call.
    #[error("{argument}: {needed} needed, {free} free; expected {expected}")]
    Exhausted {
        /// What there is not enough of.
        argument: &'static str,
        /// How much of it the call needs.
        needed: usize,
        /// How much of it there is.
        free: usize,
        /// What would do.
        expected: String,
    },
    /// The processor, or this build, does not have the requested instruction set.
    #[error("isa: {requested} is not available here, expected one of {available}")]
    IsaUnavailable {
        /// The one asked for.
        requested: Isa,
        /// Those that would run, fastest first.
        available: String,
    },
    /// What should be the name of an instruction set is none.
    #[error("{argument}: {got:?}, expected one of {expected}")]
    IsaName {
        /// Where it came from: `HEADWISE_ISA`, or `isa` for a name that was parsed.
        argument: &'static str,
        /// What came.
        got: String,
        /// The names known.
        expected: String,
    },
    /// A tensor file cannot be used as asked.
    #[error("{argument}: {got}, expected {expected}")]
    Tensor {
        /// The tensor's name, or the file's.
        argument: String,
        /// What was found.
        got: String,
        /// What was expected.
        expected: String,
    },
}

/// The library's result type.
pub type Result<T> = std::result::Result<T, Error>;
