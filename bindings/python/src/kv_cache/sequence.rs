//! The names of sequences, and which of them a call is about.

use pyo3::prelude::*;

use super::kind::Cache;
use crate::error;

/// The name of a sequence of a paged cache. Caches that are told the same give the same names.
#[pyclass(frozen, eq, hash, module = "headwise", from_py_object)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SequenceId(pub(crate) headwise::kv_cache::SequenceId);

#[pymethods]
impl SequenceId {
    fn __repr__(&self) -> String {
        format!("headwise.{:?}", self.0)
    }
}

/// A sequence of a call: a number, or a name.
#[derive(Debug, FromPyObject)]
pub(crate) enum Sequence {
    Id(SequenceId),
    Index(usize),
}

impl Sequence {
    pub(crate) fn index(&self) -> PyResult<usize> {
        match self {
            Self::Index(index) => Ok(*index),
            Self::Id(id) => {
                let expected = "a number: this cache has one sequence for each of its batch";
                Err(error::kind("sequence", id.__repr__(), expected))
            }
        }
    }

    pub(crate) fn id(&self) -> PyResult<headwise::kv_cache::SequenceId> {
        match self {
            Self::Id(id) => Ok(id.0),
            Self::Index(index) => {
                let expected = "a name that create() or fork() gave";
                Err(error::kind("sequence", index, expected))
            }
        }
    }
}

/// The sequences of a call.
#[derive(Debug)]
pub(crate) enum Named {
    All,
    Indices(Vec<usize>),
    Ids(Vec<headwise::kv_cache::SequenceId>),
}

impl Named {
    pub(super) fn new(cache: &dyn Cache, sequences: Option<Vec<Sequence>>) -> PyResult<Self> {
        match (cache.lengths(), sequences) {
            (None, None) => {
                Err(error::value("sequences", "None", "the names of a paged cache's sequences"))
            }
            (None, Some(names)) => {
                names.iter().map(Sequence::id).collect::<PyResult<_>>().map(Self::Ids)
            }
            (Some(_), None) => Ok(Self::All),
            (Some(_), Some(names)) => {
                names.iter().map(Sequence::index).collect::<PyResult<_>>().map(Self::Indices)
            }
        }
    }
}
