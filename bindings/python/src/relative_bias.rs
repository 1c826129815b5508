//! Biases by the distance from query to key.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::array::Array;
use crate::error;
use crate::numbers::floats;

/// A bias for each query head and distance from query to key, as in T5. Made once, when a model is
/// loaded, and used in every call.
#[pyclass(frozen, module = "headwise")]
#[derive(Debug)]
pub(crate) struct RelativeBias(Arc<headwise::RelativeBias>);

impl RelativeBias {
    pub(crate) fn shared(&self) -> Arc<headwise::RelativeBias> {
        Arc::clone(&self.0)
    }
}

#[pymethods]
impl RelativeBias {
    /// From a table `[heads, distances]` whose first column is of distance `low`.
    #[staticmethod]
    fn by_distance(table: &Bound<'_, PyAny>, low: i64) -> PyResult<Self> {
        let [heads, _] = two_axes("table", table)?;
        let bias = headwise::RelativeBias::by_distance(&floats("table", table)?, heads, low);
        bias.map(|bias| Self(Arc::new(bias))).map_err(error::of)
    }

    /// From T5's embedding `[buckets, heads]`.
    #[staticmethod]
    #[pyo3(signature = (embedding, max_distance=128, bidirectional=true))]
    fn t5(
        embedding: &Bound<'_, PyAny>,
        max_distance: usize,
        bidirectional: bool,
    ) -> PyResult<Self> {
        let [_, heads] = two_axes("embedding", embedding)?;
        let numbers = floats("embedding", embedding)?;
        let bias = headwise::RelativeBias::t5(&numbers, heads, max_distance, bidirectional);
        bias.map(|bias| Self(Arc::new(bias))).map_err(error::of)
    }

    /// The query heads that it has a bias for.
    #[getter]
    fn heads(&self) -> usize {
        self.0.heads()
    }

    fn __repr__(&self) -> String {
        format!("headwise.RelativeBias(heads={})", self.0.heads())
    }
}

fn two_axes(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<[usize; 2]> {
    let array = Array::of(argument, value)?;
    let shape = array.place.shape();
    shape.try_into().map_err(|_| error::value(argument, format_args!("{shape:?}"), "two axes"))
}
