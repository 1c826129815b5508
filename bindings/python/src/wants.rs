//! Which results a call gives beside the output.

use headwise::Stage;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};

use crate::error;
use crate::numbers::sizes;

/// Which query heads, or queries: all, or a list that ascends.
pub(crate) type Picked = Option<Vec<usize>>;

#[derive(Debug, Default)]
pub(crate) struct Wants {
    pub(crate) lse: bool,
    pub(crate) weights: bool,
    pub(crate) weights_of: (Picked, Picked),
    pub(crate) scores: Option<Stage>,
    pub(crate) scores_of: (Picked, Picked),
    pub(crate) column_sums: Option<SumsBy>,
    pub(crate) top_k: Option<usize>,
}

/// What the weights of a key are added up over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SumsBy {
    QueryHead,
    KvHead,
}

impl Wants {
    /// Takes a keyword; `false` where it is not one of these.
    pub(crate) fn set(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        match name {
            "return_lse" => self.lse = value.is_truthy()?,
            "return_weights" => self.weights = value.is_truthy()?,
            "weights_of" => (self.weights, self.weights_of) = (true, picks(name, value)?),
            "scores" => self.scores = Some(stage(value)?),
            "scores_of" => self.scores_of = picks(name, value)?,
            "column_sums" => self.column_sums = sums(value)?,
            "top_k" => {
                let k = value.extract();
                self.top_k = Some(k.map_err(|_| error::kind(name, "a value", "a number of keys"))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// That what is picked has something to be picked of.
    pub(crate) fn check(&self) -> PyResult<()> {
        if self.scores.is_none() && (self.scores_of.0.is_some() || self.scores_of.1.is_some()) {
            return Err(error::value("scores_of", "no scores", "scores to say at which stage"));
        }
        Ok(())
    }
}

fn picks(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<(Picked, Picked)> {
    let pair: (Option<Bound<'_, PyAny>>, Option<Bound<'_, PyAny>>) =
        value.extract().map_err(|e: PyErr| {
            error::kind(argument, e.value(value.py()), "a pair (heads, queries)")
        })?;
    let list = |list: Option<Bound<'_, PyAny>>| list.map(|l| sizes(argument, &l)).transpose();
    Ok((list(pair.0)?, list(pair.1)?))
}

fn stage(value: &Bound<'_, PyAny>) -> PyResult<Stage> {
    const EXPECTED: &str = "\"scaled\", \"capped\" or \"final\"";
    let name = value.cast::<PyString>();
    let name = name.map_err(|_| error::kind("scores", "a value", EXPECTED))?.to_cow()?;
    match &*name {
        "scaled" => Ok(Stage::Scaled),
        "capped" => Ok(Stage::Capped),
        "final" => Ok(Stage::Final),
        other => Err(error::value("scores", format_args!("{other:?}"), EXPECTED)),
    }
}

fn sums(value: &Bound<'_, PyAny>) -> PyResult<Option<SumsBy>> {
    if let Ok(wanted) = value.cast::<PyBool>() {
        return Ok(wanted.is_true().then_some(SumsBy::QueryHead));
    }
    const EXPECTED: &str = "True, \"q_heads\" or \"kv_heads\"";
    let name = value.cast::<PyString>();
    let name = name.map_err(|_| error::kind("column_sums", "a value", EXPECTED))?.to_cow()?;
    match &*name {
        "q_heads" => Ok(Some(SumsBy::QueryHead)),
        "kv_heads" => Ok(Some(SumsBy::KvHead)),
        other => Err(error::value("column_sums", format_args!("{other:?}"), EXPECTED)),
    }
}
