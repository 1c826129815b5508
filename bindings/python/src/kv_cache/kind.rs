//! The kinds of caches, of each type that they store.

use std::fmt::Debug;

use headwise::kv_cache::{SequenceId, TableBuffer};
use headwise::{ContiguousCache, KvView, NewTokens, PagedCache, Result, RingCache};
use headwise::{Input, Int8, KvStorage, bf16, f16};
use pyo3::PyResult;

use super::sequence::{Named, Sequence};
use crate::array::{DType, Typed};
use crate::error;

/// A cache of one of the kinds.
#[derive(Debug)]
pub(super) enum Kind<T: KvStorage> {
    Contiguous(ContiguousCache<T>),
    Ring(RingCache<T>),
    Paged(PagedCache<T>),
}

/// Keys and values in pages, of one of the types that are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AnyView<'a> {
    F32(KvView<'a, f32>),
    F16(KvView<'a, f16>),
    Bf16(KvView<'a, bf16>),
    Int8(KvView<'a, Int8>),
}

impl AnyView<'_> {
    /// The tokens of the longest sequence.
    pub(crate) fn longest(&self) -> usize {
        let tables = match self {
            Self::F32(view) => view.tables(),
            Self::F16(view) => view.tables(),
            Self::Bf16(view) => view.tables(),
            Self::Int8(view) => view.tables(),
        };
        tables.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Of the values, `[pages, kv_heads, page_size, value_dim]`.
    pub(crate) fn value_shape(&self) -> [usize; 4] {
        let value: Input<'_, f32> = match self {
            Self::F32(view) => view.value().into(),
            Self::F16(view) => view.value().into(),
            Self::Bf16(view) => view.value().into(),
            Self::Int8(view) => view.value().into(),
        };
        value.shape()
    }
}

/// A type that caches store.
pub(crate) trait Cached: Typed + KvStorage<Compute = f32> {
    /// A view of elements of this type.
    fn any(view: KvView<'_, Self>) -> AnyView<'_>;
}

impl Cached for f32 {
    fn any(view: KvView<'_, Self>) -> AnyView<'_> {
        AnyView::F32(view)
    }
}

impl Cached for f16 {
    fn any(view: KvView<'_, Self>) -> AnyView<'_> {
        AnyView::F16(view)
    }
}

impl Cached for bf16 {
    fn any(view: KvView<'_, Self>) -> AnyView<'_> {
        AnyView::Bf16(view)
    }
}

impl Cached for Int8 {
    fn any(view: KvView<'_, Self>) -> AnyView<'_> {
        AnyView::Int8(view)
    }
}

/// What the class of Python's asks of a cache, whatever it stores.
pub(super) trait Cache: Debug + Send + Sync {
    fn dtype(&self) -> DType;
    fn kind(&self) -> &'static str;
    /// The tokens of all sequences, where these are numbered.
    fn lengths(&self) -> Option<&[usize]>;
    fn length(&self, sequence: &Sequence) -> PyResult<usize>;
    /// The pages that no sequence holds, and all of them.
    fn pages(&self) -> Option<(usize, usize)>;
    /// The tokens that a sequence has room for, where each has as much.
    fn capacity(&self) -> Option<usize>;
    fn create(&mut self) -> PyResult<SequenceId>;
    fn fork(&mut self, sequence: &Sequence) -> PyResult<SequenceId>;
    fn free(&mut self, sequence: &Sequence) -> PyResult<()>;
    fn truncate(&mut self, sequence: &Sequence, length: usize) -> PyResult<()>;
    fn evict(&mut self, sequence: &Sequence, before: usize) -> PyResult<()>;
    fn append(&mut self, named: &Named, tokens: &NewTokens<'_>) -> Result<()>;
    fn view<'a>(&'a self, named: Named, tables: &'a mut TableBuffer) -> PyResult<AnyView<'a>>;
}

impl<T: Cached> Kind<T> {
    fn as_paged(&mut self, name: &str) -> PyResult<&mut PagedCache<T>> {
        let kind = self.kind();
        match self {
            Self::Paged(cache) => Ok(cache),
            _ => Err(error::kind(name, format_args!("a {kind} cache"), "a paged one")),
        }
    }
}

impl<T: Cached> Cache for Kind<T> {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Contiguous(_) => "contiguous",
            Self::Ring(_) => "ring",
            Self::Paged(_) => "paged",
        }
    }

    fn lengths(&self) -> Option<&[usize]> {
        match self {
            Self::Contiguous(cache) => Some(cache.lengths()),
            Self::Ring(cache) => Some(cache.lengths()),
            Self::Paged(_) => None,
        }
    }

    fn length(&self, sequence: &Sequence) -> PyResult<usize> {
        if let Self::Paged(cache) = self {
            return cache.length(sequence.id()?).map_err(error::of);
        }
        let (index, lengths) = (sequence.index()?, self.lengths().unwrap_or(&[]));
        let expected = format!("below {}", lengths.len());
        lengths.get(index).copied().ok_or_else(|| error::value("sequence", index, expected))
    }

    fn pages(&self) -> Option<(usize, usize)> {
        match self {
            Self::Paged(cache) => Some((cache.free_pages(), cache.capacity().pages)),
            _ => None,
        }
    }

    fn capacity(&self) -> Option<usize> {
        match self {
            Self::Contiguous(cache) => Some(cache.capacity()),
            Self::Ring(cache) => Some(cache.capacity()),
            Self::Paged(_) => None,
        }
    }

    fn create(&mut self) -> PyResult<SequenceId> {
        self.as_paged("create")?.create().map_err(error::of)
    }

    fn fork(&mut self, sequence: &Sequence) -> PyResult<SequenceId> {
        self.as_paged("fork")?.fork(sequence.id()?).map_err(error::of)
    }

    fn free(&mut self, sequence: &Sequence) -> PyResult<()> {
        let freed = match self {
            Self::Contiguous(cache) => cache.clear(sequence.index()?),
            Self::Ring(cache) => cache.clear(sequence.index()?),
            Self::Paged(cache) => cache.free(sequence.id()?),
        };
        freed.map_err(error::of)
    }

    fn truncate(&mut self, sequence: &Sequence, length: usize) -> PyResult<()> {
        let cut = match self {
            Self::Contiguous(cache) => cache.truncate(sequence.index()?, length),
            Self::Ring(cache) => cache.truncate(sequence.index()?, length),
            Self::Paged(cache) => cache.truncate(sequence.id()?, length),
        };
        cut.map_err(error::of)
    }

    fn evict(&mut self, sequence: &Sequence, before: usize) -> PyResult<()> {
        self.as_paged("evict")?.evict(sequence.id()?, before).map_err(error::of)
    }

    fn append(&mut self, named: &Named, tokens: &NewTokens<'_>) -> Result<()> {
        match (self, named) {
            (Self::Contiguous(cache), Named::Indices(indices)) => cache.append_to(indices, tokens),
            (Self::Ring(cache), Named::Indices(indices)) => cache.append_to(indices, tokens),
            (Self::Paged(cache), Named::Ids(ids)) => cache.append(ids, tokens),
            (Self::Contiguous(cache), _) => cache.append(tokens),
            (Self::Ring(cache), _) => cache.append(tokens),
            (Self::Paged(cache), _) => cache.append(&[], tokens),
        }
    }

    fn view<'a>(&'a self, named: Named, tables: &'a mut TableBuffer) -> PyResult<AnyView<'a>> {
        match (self, named) {
            (Self::Contiguous(cache), Named::All) => Ok(T::any(cache.view())),
            (Self::Ring(cache), Named::All) => Ok(T::any(cache.view())),
            (Self::Paged(cache), Named::Ids(ids)) => {
                cache.view(&ids, tables).map(T::any).map_err(error::of)
            }
            (_, _) => {
                let expected = "None, for all: attention to some is that of a paged cache";
                Err(error::value("sequences", format_args!("a {} cache", self.kind()), expected))
            }
        }
    }
}
