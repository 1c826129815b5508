//! Errors as candle's.

use candle_core::{DType, Error, Result};

/// An error of the library as candle's, whose cause it stays.
pub(crate) fn from_headwise(error: headwise::Error) -> Error {
    Error::wrap(error)
}

/// A tensor whose numbers are of a type that `expected` does not name.
pub(crate) fn dtype<T>(argument: &str, got: DType, expected: &str) -> Result<T> {
    Err(Error::Msg(format!("{argument}: dtype {got:?}, expected {expected}")).bt())
}
