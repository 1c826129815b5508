//! Caches of keys and values: one class, of three kinds.

use headwise::kv_cache::{KvShape, PagedCapacity, Positions, TableBuffer};
use headwise::{ContiguousCache, KvView, NewTokens, PagedCache, RingCache};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{Array, DType, Operand, Stored, Stretch, Strided, with_stored};
use crate::attend::{attend, check_precision};
use crate::attention::{Attention, is_bshd, pairs};
use crate::error;
use crate::numbers::sizes;
use crate::rope::{QkNorm, Rope};

/// The name of a sequence of a paged cache. Caches that are told the same give the same names.
#[pyclass(frozen, eq, hash, module = "headwise", from_py_object)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SequenceId(headwise::kv_cache::SequenceId);

#[pymethods]
impl SequenceId {
    fn __repr__(&self) -> String {
        format!("headwise.{:?}", self.0)
    }
}

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

/// A sequence of a call: a number, or a name.
#[derive(Debug, FromPyObject)]
enum Sequence {
    Id(SequenceId),
    Index(usize),
}

impl Sequence {
    fn index(&self) -> PyResult<usize> {
        match self {
            Self::Index(index) => Ok(*index),
            Self::Id(id) => {
                let expected = "a number: this cache has one sequence for each of its batch";
                Err(error::kind("sequence", id.__repr__(), expected))
            }
        }
    }

    fn id(&self) -> PyResult<headwise::kv_cache::SequenceId> {
        match self {
            Self::Id(id) => Ok(id.0),
            Self::Index(index) => {
                let expected = "a name that create() or fork() gave";
                Err(error::kind("sequence", index, expected))
            }
        }
    }
}

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

/// The sequences of a call.
#[derive(Debug)]
enum Named {
    All,
    Indices(Vec<usize>),
    Ids(Vec<headwise::kv_cache::SequenceId>),
}

impl Named {
    fn new(kind: &Kind, sequences: Option<Vec<Sequence>>) -> PyResult<Self> {
        match (kind, sequences) {
            (Kind::Paged(_), None) => {
                Err(error::value("sequences", "None", "the names of a paged cache's sequences"))
            }
            (Kind::Paged(_), Some(names)) => {
                names.iter().map(Sequence::id).collect::<PyResult<_>>().map(Self::Ids)
            }
            (_, None) => Ok(Self::All),
            (_, Some(names)) => {
                names.iter().map(Sequence::index).collect::<PyResult<_>>().map(Self::Indices)
            }
        }
    }
}

/// What is done to new tokens.
#[derive(Debug, Default)]
struct Append {
    offsets: Option<Vec<usize>>,
    positions: Option<Vec<usize>>,
    rope: Option<Py<Rope>>,
    norm: Option<Py<QkNorm>>,
    bshd: bool,
}

impl Append {
    fn read(keywords: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut this = Self::default();
        for (name, value) in pairs(keywords)? {
            match &*name {
                "offsets" => this.offsets = Some(sizes(&name, &value)?),
                "positions" => this.positions = Some(sizes(&name, &value)?),
                "rope" => this.rope = Some(value.extract()?),
                "norm" => this.norm = Some(value.extract()?),
                "layout" => this.bshd = is_bshd(&value.extract::<String>()?)?,
                _ => {
                    let expected = "offsets, positions, rope, norm or layout";
                    return Err(error::kind(&name, "an unknown keyword", expected));
                }
            }
        }
        Ok(this)
    }
}

/// # Safety
/// The arrays must be readable until it is done.
unsafe fn append(
    kind: &mut Kind,
    named: Named,
    (key, value): (Strided, Strided),
    options: &Append,
) -> PyResult<()> {
    // SAFETY: the caller's promise.
    let (key, value) = unsafe { (new_rows("key", key)?, new_rows("value", value)?) };
    let mut tokens = NewTokens::new(key.view()?, value.view()?);
    if let Some(offsets) = &options.offsets {
        tokens = tokens.ragged(offsets);
    }
    if let Some(positions) = &options.positions {
        tokens = tokens.positions(Positions::Each(positions));
    }
    if let Some(rope) = &options.rope {
        tokens = tokens.rope(&rope.get().0);
    }
    if let Some(norm) = &options.norm {
        tokens = tokens.norm(&norm.get().0);
    }
    let done = match (kind, named) {
        (Kind::Contiguous(cache), Named::Indices(indices)) => cache.append_to(&indices, &tokens),
        (Kind::Ring(cache), Named::Indices(indices)) => cache.append_to(&indices, &tokens),
        (Kind::Paged(cache), Named::Ids(ids)) => cache.append(&ids, &tokens),
        (Kind::Contiguous(cache), _) => cache.append(&tokens),
        (Kind::Ring(cache), _) => cache.append(&tokens),
        (Kind::Paged(cache), _) => cache.append(&[], &tokens),
    };
    done.map_err(error::of)
}

/// Rows for a cache, which holds single precision.
///
/// # Safety
/// The array must be readable as long as the operand is there.
unsafe fn new_rows(argument: &'static str, place: Strided) -> PyResult<Operand<f32>> {
    let place = place.with_ndim(argument, 4)?;
    check_precision(argument, place.dtype)?;
    with_stored!(argument, place.dtype, S => {
        // SAFETY: the caller's promise; the dtype is that of `S`.
        unsafe { rows_of::<S>(place) }
    })
}

/// # Safety
/// As [`new_rows`], of elements of `S`.
unsafe fn rows_of<S: Stored>(place: Strided) -> PyResult<Operand<f32>> {
    let stretch = Stretch { batch: &[], heads: None };
    if S::DTYPE == DType::F32 {
        // SAFETY: the caller's promise.
        return unsafe { Operand::plain(place, stretch) };
    }
    // SAFETY: the caller's promise.
    unsafe { Operand::converted(place, stretch, |x: S| S::single(x)) }
}
