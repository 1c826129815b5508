//! Factors of the values' channels.

use pyo3::prelude::*;

use crate::array::Array;
use crate::error;
use crate::numbers::floats;

/// A factor for each channel of each kv head.
#[derive(Debug)]
pub(crate) struct ValueScales {
    factors: Vec<f32>,
    /// Of an array of two axes.
    shape: Option<[usize; 2]>,
}

impl ValueScales {
    /// An array `[kv_heads, value_dim]`, or its elements one behind the other.
    pub(crate) fn read(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let factors = floats(argument, value)?;
        let shape = match Array::try_of(argument, value)?.as_ref().map(|array| array.place.shape())
        {
            None | Some([_]) => None,
            Some(&[heads, dim]) => Some([heads, dim]),
            Some(other) => {
                let got = format!("{other:?}");
                return Err(error::value(argument, got, "two axes: kv heads, channels"));
            }
        };
        Ok(Self { factors, shape })
    }

    /// The factors, for values of so many heads and channels; the library counts them.
    pub(crate) fn of(&self, kv_heads: usize, value_dim: usize) -> PyResult<&[f32]> {
        let expected = [kv_heads, value_dim];
        match self.shape {
            Some(got) if got != expected => {
                let got = format!("shape {got:?}");
                Err(error::value("value_scales", got, format_args!("{expected:?}, as the values")))
            }
            _ => Ok(&self.factors),
        }
    }
}
