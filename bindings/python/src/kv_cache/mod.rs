//! Caches of keys and values: one class, of three kinds.

mod append;
mod kind;
mod sequence;

use headwise::kv_cache::{KvShape, PagedCapacity, TableBuffer};
use headwise::{ContiguousCache, Int8, PagedCache, RingCache, bf16, f16};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{Array, DType};
use crate::attend::attend;
use crate::attention::Attention;
use crate::error;
use append::{Append, append};
pub(crate) use kind::{AnyView, Cached};
use kind::{Cache, Kind};
use sequence::Named;
pub(crate) use sequence::{Sequence, SequenceId};

/// Keys and values of past tokens. Made by `contiguous`, `ring` or `paged`.
#[pyclass(module = "headwise")]
#[derive(Debug)]
pub(crate) struct KvCache(Box<dyn Cache>);

/// A cache whose elements are of the dtype, made by an expression in their type.
macro_rules! of_dtype {
    ($dtype:expr, $T:ident => $kind:expr) => {
        match dtype_of($dtype)? {
            DType::F16 => {
                type $T = f16;
                boxed($kind)
            }
            DType::BF16 => {
                type $T = bf16;
                boxed($kind)
            }
            DType::I8 => {
                type $T = Int8;
                boxed($kind)
            }
            _ => {
                type $T = f32;
                boxed($kind)
            }
        }
    };
}

#[pymethods]
impl KvCache {
    /// A batch of sequences of at most `capacity` tokens, stored as `dtype`: `"float32"`, `"float16"`,
    /// `"bfloat16"` or `"int8"`, each row with a scale, by name or as PyTorch's or NumPy's.
    #[staticmethod]
    #[pyo3(signature = (*, batch, capacity, kv_heads, head_dim, value_dim=None, dtype=None))]
    fn contiguous(
        batch: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: Option<usize>,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let shape = shape(kv_heads, head_dim, value_dim);
        of_dtype!(dtype, T => {
            ContiguousCache::<T>::with_storage(shape, batch, capacity).map(Kind::Contiguous)
        })
    }

    /// The last `capacity` tokens of a batch of sequences, stored as `dtype`.
    #[staticmethod]
    #[pyo3(signature = (*, batch, capacity, kv_heads, head_dim, value_dim=None, dtype=None))]
    fn ring(
        batch: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: Option<usize>,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let shape = shape(kv_heads, head_dim, value_dim);
        of_dtype!(dtype, T => RingCache::<T>::with_storage(shape, batch, capacity).map(Kind::Ring))
    }

    /// Many sequences in pages from one pool, which share the pages that they begin with, stored as
    /// `dtype`.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)] // Keywords, which Python's callers name.
    #[pyo3(signature = (
        *, pages, kv_heads, head_dim, value_dim=None, page_size=16, sequences=64,
        pages_per_sequence=None, dtype=None
    ))]
    fn paged(
        pages: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: Option<usize>,
        page_size: usize,
        sequences: usize,
        pages_per_sequence: Option<usize>,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let pages_per_sequence = pages_per_sequence.unwrap_or(pages);
        let capacity = PagedCapacity { pages, page_size, sequences, pages_per_sequence };
        let shape = shape(kv_heads, head_dim, value_dim);
        of_dtype!(dtype, T => PagedCache::<T>::with_storage(shape, capacity).map(Kind::Paged))
    }

    /// `"contiguous"`, `"ring"` or `"paged"`.
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    /// The name of the type that keys and values are stored as.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    /// The tokens of each sequence of a contiguous cache or a ring, those that are gone included.
    #[getter]
    fn lengths(&self) -> PyResult<Vec<usize>> {
        let lengths = self.0.lengths().map(<[_]>::to_vec);
        lengths.ok_or_else(|| self.not_of_this_kind("lengths", "length(sequence)"))
    }

    /// The tokens of a sequence, those that are gone included.
    fn length(&self, sequence: Sequence) -> PyResult<usize> {
        self.0.length(&sequence)
    }

    /// The pages of a paged cache that no sequence holds.
    #[getter]
    fn free_pages(&self) -> PyResult<usize> {
        let free = self.0.pages().map(|(free, _)| free);
        free.ok_or_else(|| self.not_of_this_kind("free_pages", "lengths"))
    }

    /// An empty sequence of a paged cache.
    fn create(&mut self) -> PyResult<SequenceId> {
        self.0.create().map(SequenceId)
    }

    /// A sequence of a paged cache that begins as another is: it holds the same pages.
    fn fork(&mut self, sequence: Sequence) -> PyResult<SequenceId> {
        self.0.fork(&sequence).map(SequenceId)
    }

    /// Forgets a sequence; its name means nothing any more. Of a contiguous cache or a ring it is
    /// empty then.
    fn free(&mut self, sequence: Sequence) -> PyResult<()> {
        self.0.free(&sequence)
    }

    /// Forgets the tokens of a sequence from position `length` on, such as rejected drafts.
    fn truncate(&mut self, sequence: Sequence, length: usize) -> PyResult<()> {
        self.0.truncate(&sequence, length)
    }

    /// Forgets the tokens of a sequence of a paged cache before position `before`.
    fn evict(&mut self, sequence: Sequence, before: usize) -> PyResult<()> {
        self.0.evict(&sequence, before)
    }

    /// Appends keys `[sequences, kv_heads, tokens, head_dim]` and values to the sequences named, or
    /// to all in order. With `offsets` the tokens of all lie one behind the other in one batch entry.
    /// Keys are normalised (`norm`) and rotated (`rope`, by `positions`), values divided by
    /// `value_scales`, which those of `attend` multiply by again.
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
        let named = Named::new(&*self.0, sequences)?;
        let (key, value) = (place(&key), place(&value));
        // SAFETY: the arrays are there until the call returns, and the caller sees to it that nobody
        // writes them meanwhile.
        py.detach(|| unsafe { append(&mut *self.0, named, (key, value), &options) })
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
        let cache = self.0.view(Named::new(&*self.0, sequences)?, &mut tables)?;
        attend(query, &cache, out, layout, options)
    }

    fn __repr__(&self) -> String {
        let (kind, dtype) = (self.kind(), self.dtype());
        let rest = match (self.0.lengths(), self.0.capacity(), self.0.pages()) {
            (_, _, Some((free, all))) => format!("free_pages={free}, pages={all}"),
            (lengths, capacity, None) => {
                let (lengths, capacity) = (lengths.unwrap_or(&[]), capacity.unwrap_or(0));
                format!("lengths={lengths:?}, capacity={capacity}")
            }
        };
        format!("headwise.KvCache.{kind}({rest}, dtype={dtype})")
    }
}

impl KvCache {
    fn not_of_this_kind(&self, name: &str, instead: &str) -> PyErr {
        error::kind(name, format_args!("a {} cache", self.kind()), instead)
    }
}

fn boxed<T: Cached>(kind: headwise::Result<Kind<T>>) -> PyResult<KvCache> {
    Ok(KvCache(Box::new(kind.map_err(error::of)?)))
}

/// The dtype of a name, or of an object that PyTorch, NumPy or a package beside it has for one.
fn dtype_of(dtype: Option<&Bound<'_, PyAny>>) -> PyResult<DType> {
    let Some(dtype) = dtype else { return Ok(DType::F32) };
    // `float16`, `torch.float16` or `<class 'numpy.float16'>`.
    let text = dtype.str()?.to_string();
    let name = text.rsplit(['.', '\'']).find(|part| !matches!(*part, "" | ">"));
    let stored = [DType::F32, DType::F16, DType::BF16, DType::I8];
    let found = stored.into_iter().find(|dtype| Some(dtype.name()) == name);
    found.ok_or_else(|| error::value("dtype", text, "float32, float16, bfloat16 or int8"))
}

fn shape(kv_heads: usize, head_dim: usize, value_dim: Option<usize>) -> KvShape {
    KvShape { kv_heads, head_dim, value_dim: value_dim.unwrap_or(head_dim) }
}
