//! Caches of keys and values: one class, of three kinds.

mod append;
mod sequence;

use headwise::kv_cache::{KvShape, PagedCapacity, TableBuffer};
use headwise::{ContiguousCache, KvView, PagedCache, RingCache};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::Array;
use crate::attend::attend;
use crate::attention::Attention;
use crate::error;
use append::{Append, append};
use sequence::Named;
pub(crate) use sequence::{Sequence, SequenceId};

#[derive(Debug)]
enum Kind {
    Contiguous(ContiguousCache),
    Ring(RingCache),
    Paged(PagedCache),
}

/// Keys and values of past tokens, in single precision. Made by `contiguous`, `ring` or `paged`.
#[pyclass(module = "headwise")]
#[derive(Debug)]
pub(crate) struct KvCache(Kind);

#[pymethods]
impl KvCache {
    /// A batch of sequences of at most `capacity` tokens.
    #[staticmethod]
    #[pyo3(signature = (*, batch, capacity, kv_heads, head_dim, value_dim=None))]
    fn contiguous(
        batch: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: Option<usize>,
    ) -> PyResult<Self> {
        let cache = ContiguousCache::new(shape(kv_heads, head_dim, value_dim), batch, capacity);
        cache.map(|cache| Self(Kind::Contiguous(cache))).map_err(error::of)
    }

    /// The last `capacity` tokens of a batch of sequences.
    #[staticmethod]
    #[pyo3(signature = (*, batch, capacity, kv_heads, head_dim, value_dim=None))]
    fn ring(
        batch: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: Option<usize>,
    ) -> PyResult<Self> {
        let cache = RingCache::new(shape(kv_heads, head_dim, value_dim), batch, capacity);
        cache.map(|cache| Self(Kind::Ring(cache))).map_err(error::of)
    }

    /// Many sequences in pages from one pool, which share the pages that they begin with.
    #[staticmethod]
    #[pyo3(signature = (
        *, pages, kv_heads, head_dim, value_dim=None, page_size=16, sequences=64,
        pages_per_sequence=None
    ))]
    fn paged(
        pages: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: Option<usize>,
        page_size: usize,
        sequences: usize,
        pages_per_sequence: Option<usize>,
    ) -> PyResult<Self> {
        let pages_per_sequence = pages_per_sequence.unwrap_or(pages);
        let capacity = PagedCapacity { pages, page_size, sequences, pages_per_sequence };
        let cache = PagedCache::new(shape(kv_heads, head_dim, value_dim), capacity);
        cache.map(|cache| Self(Kind::Paged(cache))).map_err(error::of)
    }

    /// `"contiguous"`, `"ring"` or `"paged"`.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0 {
            Kind::Contiguous(_) => "contiguous",
            Kind::Ring(_) => "ring",
            Kind::Paged(_) => "paged",
        }
    }

    /// The tokens of each sequence of a contiguous cache or a ring, those that are gone included.
    #[getter]
    fn lengths(&self) -> PyResult<Vec<usize>> {
        match &self.0 {
            Kind::Contiguous(cache) => Ok(cache.lengths().to_vec()),
            Kind::Ring(cache) => Ok(cache.lengths().to_vec()),
            Kind::Paged(_) => Err(self.not_of_this_kind("lengths", "length(sequence)")),
        }
    }

    /// The tokens of a sequence, those that are gone included.
    fn length(&self, sequence: Sequence) -> PyResult<usize> {
        let of = |lengths: &[usize]| -> PyResult<usize> {
            let index = sequence.index()?;
            let expected = format!("below {}", lengths.len());
            lengths.get(index).copied().ok_or_else(|| error::value("sequence", index, expected))
        };
        match &self.0 {
            Kind::Contiguous(cache) => of(cache.lengths()),
            Kind::Ring(cache) => of(cache.lengths()),
            Kind::Paged(cache) => cache.length(sequence.id()?).map_err(error::of),
        }
    }

    /// The pages of a paged cache that no sequence holds.
    #[getter]
    fn free_pages(&self) -> PyResult<usize> {
        match &self.0 {
            Kind::Paged(cache) => Ok(cache.free_pages()),
            _ => Err(self.not_of_this_kind("free_pages", "lengths")),
        }
    }

    /// An empty sequence of a paged cache.
    fn create(&mut self) -> PyResult<SequenceId> {
        self.as_paged("create")?.create().map(SequenceId).map_err(error::of)
    }

    /// A sequence of a paged cache that begins as another is: it holds the same pages.
    fn fork(&mut self, sequence: Sequence) -> PyResult<SequenceId> {
        let id = sequence.id();
        self.as_paged("fork")?.fork(id?).map(SequenceId).map_err(error::of)
    }

    /// Forgets a sequence; its name means nothing any more. Of a contiguous cache or a ring it is
    /// empty then.
    fn free(&mut self, sequence: Sequence) -> PyResult<()> {
        let freed = match &mut self.0 {
            Kind::Contiguous(cache) => cache.clear(sequence.index()?),
            Kind::Ring(cache) => cache.clear(sequence.index()?),
            Kind::Paged(cache) => cache.free(sequence.id()?),
        };
        freed.map_err(error::of)
    }

    /// Forgets the tokens of a sequence from position `length` on, such as rejected drafts.
    fn truncate(&mut self, sequence: Sequence, length: usize) -> PyResult<()> {
        let cut = match &mut self.0 {
            Kind::Contiguous(cache) => cache.truncate(sequence.index()?, length),
            Kind::Ring(cache) => cache.truncate(sequence.index()?, length),
            Kind::Paged(cache) => cache.truncate(sequence.id()?, length),
        };
        cut.map_err(error::of)
    }

    /// Forgets the tokens of a sequence of a paged cache before position `before`.
    fn evict(&mut self, sequence: Sequence, before: usize) -> PyResult<()> {
        let id = sequence.id();
        self.as_paged("evict")?.evict(id?, before).map_err(error::of)
    }

    /// Appends keys `[sequences, kv_heads, tokens, head_dim]` and values to the sequences named, or
    /// to all in order. With `offsets` the tokens of all lie one behind the other in one batch entry.
    #[pyo3(signature = (key, value, sequences=None, **options))]
    fn append(
        &mut self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        sequences: Option<Vec<Sequence>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let (key, value) = (Array::of("key", key)?, Array::of("value", value)?);
        let options = Append::read(options)?;
        let place = |array: &Array<'_>| {
            if options.bshd { array.place.heads_swapped() } else { array.place }
        };
        let named = Named::new(&self.0, sequences)?;
        let (key, value) = (place(&key), place(&value));
        // SAFETY: the arrays are there until the call returns, and the caller sees to it that nobody
        // writes them meanwhile.
        py.detach(|| unsafe { append(&mut self.0, named, (key, value), &options) })
    }

    /// Attention of queries `[sequences, q_heads, tokens, head_dim]`, the last tokens of the sequences
    /// named, or of all in order. Causal unless `causal=False`; other keywords are those of
    /// `attention`, and `query_offsets`.
    #[pyo3(signature = (query, sequences=None, *, out=None, layout="bhsd", **options))]
    fn attend(
        &self,
        query: &Bound<'_, PyAny>,
        sequences: Option<Vec<Sequence>>,
        out: Option<&Bound<'_, PyAny>>,
        layout: &str,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Attention> {
        let mut tables = TableBuffer::new();
        let cache = self.view(sequences, &mut tables)?;
        attend(query, &cache, out, layout, options)
    }

    fn __repr__(&self) -> String {
        let of = |lengths: &[usize], capacity: usize| {
            format!("headwise.KvCache.{}(lengths={lengths:?}, capacity={capacity})", self.kind())
        };
        match &self.0 {
            Kind::Contiguous(cache) => of(cache.lengths(), cache.capacity()),
            Kind::Ring(cache) => of(cache.lengths(), cache.capacity()),
            Kind::Paged(cache) => {
                let (free, all) = (cache.free_pages(), cache.capacity().pages);
                format!("headwise.KvCache.paged(free_pages={free}, pages={all})")
            }
        }
    }
}

impl KvCache {
    fn not_of_this_kind(&self, name: &str, instead: &str) -> PyErr {
        error::kind(name, format_args!("a {} cache", self.kind()), instead)
    }

    fn as_paged(&mut self, name: &str) -> PyResult<&mut PagedCache> {
        let kind = self.kind();
        match &mut self.0 {
            Kind::Paged(cache) => Ok(cache),
            _ => Err(error::kind(name, format_args!("a {kind} cache"), "a paged one")),
        }
    }

    fn view<'a>(
        &'a self,
        sequences: Option<Vec<Sequence>>,
        tables: &'a mut TableBuffer,
    ) -> PyResult<KvView<'a>> {
        match (&self.0, Named::new(&self.0, sequences)?) {
            (Kind::Contiguous(cache), Named::All) => Ok(cache.view()),
            (Kind::Ring(cache), Named::All) => Ok(cache.view()),
            (Kind::Paged(cache), Named::Ids(ids)) => cache.view(&ids, tables).map_err(error::of),
            (_, _) => {
                let expected = "None, for all: attention to some is that of a paged cache";
                Err(error::value("sequences", format_args!("a {} cache", self.kind()), expected))
            }
        }
    }
}

fn shape(kv_heads: usize, head_dim: usize, value_dim: Option<usize>) -> KvShape {
    KvShape { kv_heads, head_dim, value_dim: value_dim.unwrap_or(head_dim) }
}
