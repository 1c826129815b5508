//! A cache of keys and values in the place of `Tensor::cat`.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use headwise::kv_cache::KvShape;
use headwise::{ContiguousCache, Int8, NewTokens, Outputs, Rope, attention_cached_into};

use crate::borrowed::{Borrowed, dtype, on_cpu};
use crate::computed::{Computed, Number};
use crate::mask::Masks;
use crate::options::Options;
use crate::output::HeadsLast;
use crate::{error, graph, workspace};

const NAME: &str = "headwise-cached-attention";

/// Keys and values of a batch of sequences that grow together, in memory that is allocated once: new ones are
/// copied to their place, and past ones stay where they are.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use headwise_candle::{AttentionOptions, KvCache, KvShape};
///
/// let shape = KvShape { kv_heads: 2, head_dim: 64, value_dim: 64 };
/// let mut cache = KvCache::new(shape, 1, 2048, DType::BF16)?;
/// for tokens in [12, 1, 1] {
///     // A prompt of twelve tokens, then one after the other.
///     let rows = Tensor::randn(0_f32, 1.0, (1, 2, tokens, 64), &Device::Cpu)?;
///     let query = Tensor::randn(0_f32, 1.0, (1, 8, tokens, 64), &Device::Cpu)?;
///     cache.append(&rows, &rows)?;
///     let out = cache.attention(&query, AttentionOptions::new().causal())?;
///     assert_eq!(out.dims(), [1, 8, tokens, 64]);
/// }
/// assert_eq!(cache.len(), 14);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// Sequences of different lengths, rings and pages are [`headwise::kv_cache`]'s, which takes
/// [`Borrowed`](crate::Borrowed) tensors.
#[derive(Debug, Clone)]
pub struct KvCache {
    stored: Stored,
}

#[derive(Debug, Clone)]
enum Stored {
    F32(ContiguousCache<f32>),
    F16(ContiguousCache<half::f16>),
    Bf16(ContiguousCache<half::bf16>),
    Int8(ContiguousCache<Int8>),
}

/// `$body` for the cache that it is.
macro_rules! with_cache {
    ($stored:expr, $cache:ident => $body:expr) => {
        match $stored {
            Stored::F32($cache) => $body,
            Stored::F16($cache) => $body,
            Stored::Bf16($cache) => $body,
            Stored::Int8($cache) => $body,
        }
    };
}

impl KvCache {
    /// An empty cache of `batch` sequences of at most `capacity` tokens, stored as `dtype`: `F32`, `F16` or
    /// `BF16`, whatever the tensors are.
    ///
    /// # Errors
    /// With another dtype, where an extent is 0 or there is not as much memory.
    pub fn new(shape: KvShape, batch: usize, capacity: usize, dtype: DType) -> Result<Self> {
        let stored = match dtype {
            DType::F32 => ContiguousCache::with_storage(shape, batch, capacity).map(Stored::F32),
            DType::F16 => ContiguousCache::with_storage(shape, batch, capacity).map(Stored::F16),
            DType::BF16 => ContiguousCache::with_storage(shape, batch, capacity).map(Stored::Bf16),
            other => return error::dtype("cache", other, "F32, F16 or BF16"),
        };
        Ok(Self { stored: stored.map_err(error::from_headwise)? })
    }

    /// An empty cache in integers of eight bits with a scale for each token and head, [`Int8`]: for about a
    /// quarter of the bytes of `F32` the output of real models is off by 0.4 to 2 %.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use headwise_candle::{AttentionOptions, KvCache, KvShape};
    ///
    /// let shape = KvShape { kv_heads: 2, head_dim: 64, value_dim: 64 };
    /// let mut cache = KvCache::quantized(shape, 1, 2048)?;
    /// let rows = Tensor::randn(0_f32, 1.0, (1, 2, 12, 64), &Device::Cpu)?;
    /// cache.append(&rows, &rows)?;
    /// let query = Tensor::randn(0_f32, 1.0, (1, 8, 1, 64), &Device::Cpu)?;
    /// let out = cache.attention(&query, AttentionOptions::new())?;
    /// assert_eq!((out.dims(), out.dtype()), (&[1, 8, 1, 64][..], DType::F32));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`KvCache::new`].
    pub fn quantized(shape: KvShape, batch: usize, capacity: usize) -> Result<Self> {
        let stored = ContiguousCache::with_storage(shape, batch, capacity).map(Stored::Int8);
        Ok(Self { stored: stored.map_err(error::from_headwise)? })
    }

    /// Appends keys `[batch, kv_heads, tokens, head_dim]` and values, as many with `value_dim`.
    ///
    /// # Errors
    /// Where the tokens do not fit the cache, or there is no room for them: see [`KvCache::reserve`]. The cache is
    /// as it was then.
    pub fn append(&mut self, key: &Tensor, value: &Tensor) -> Result<()> {
        self.append_as(key, value, None)
    }

    /// Appends keys that are rotated on their way in by the positions at which they go into the cache.
    ///
    /// # Errors
    /// As [`KvCache::append`], and where the table of `rope` ends before a position.
    pub fn append_rotated(&mut self, key: &Tensor, value: &Tensor, rope: &Rope) -> Result<()> {
        self.append_as(key, value, Some(rope))
    }

    fn append_as(&mut self, key: &Tensor, value: &Tensor, rope: Option<&Rope>) -> Result<()> {
        on_cpu("key", key)?;
        on_cpu("value", value)?;
        let (key, value) = (Borrowed::new(key)?, Borrowed::new(value)?);
        let key = f32::operand("key", key.cpu()?, key.layout())?;
        let value = f32::operand("value", value.cpu()?, value.layout())?;
        let tokens = NewTokens::new(key, value);
        let tokens = rope.map_or(tokens, |rope| tokens.rope(rope));
        with_cache!(&mut self.stored, cache => cache.append(&tokens)).map_err(error::from_headwise)
    }

    /// [`attention`](crate::attention) of `query`, `[batch, q_heads, seq_q, head_dim]`, to all that is in the cache.
    /// Append the tokens of the queries first: with [`causal`](headwise::AttentionOptions::causal) the last
    /// query sees the last key.
    ///
    /// # Errors
    /// As [`attention`](crate::attention); with options that a cache has no use for: ragged keys, documents,
    /// starts of keys, the unfused algorithm.
    pub fn attention<'a>(&self, query: &Tensor, options: impl Into<Options<'a>>) -> Result<Tensor> {
        on_cpu("query", query)?;
        let out = query.apply_op1_no_bwd(&Call { cache: self, options: options.into() })?;
        graph::record1(NAME, query, out)?.transpose(1, 2)
    }

    /// The tokens of each sequence.
    pub fn len(&self) -> usize {
        with_cache!(&self.stored, cache => cache.lengths()[0])
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of a sequence that there is room for.
    pub fn capacity(&self) -> usize {
        with_cache!(&self.stored, cache => cache.capacity())
    }

    /// Makes room for `capacity` tokens in all, by copying everything to new memory unless there is.
    ///
    /// # Errors
    /// Where there is not as much memory. The cache is as it was then.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        with_cache!(&mut self.stored, cache => cache.reserve(capacity))
            .map_err(error::from_headwise)
    }

    /// Forgets tokens from `length` on, such as rejected drafts.
    ///
    /// # Errors
    /// Where there are not as many.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        with_cache!(&mut self.stored, cache => {
            (0..cache.lengths().len()).try_for_each(|sequence| cache.truncate(sequence, length))
        })
        .map_err(error::from_headwise)
    }

    /// Forgets everything, and keeps the memory.
    pub fn reset(&mut self) {
        with_cache!(&mut self.stored, cache => cache.clear_all());
    }
}

/// A call as an operation of candle's.
struct Call<'a> {
    cache: &'a KvCache,
    options: Options<'a>,
}

impl Call<'_> {
    fn run<S: Number + headwise::Storage<Compute = f32>>(
        &self,
        query: (&CpuStorage, &Layout),
    ) -> Result<(CpuStorage, Shape)> {
        let query = f32::operand("query", query.0, query.1)?;
        let masks = Masks::new(&self.options)?;
        let options = masks.added_to::<f32>(self.options.plain)?;
        let [batch, q_heads, seq_q, _] = query.shape();
        with_cache!(&self.cache.stored, cache => {
            let mut out = HeadsLast::<S>::zeros([batch, q_heads, seq_q, cache.shape().value_dim])?;
            let outputs = Outputs::new(S::output(out.view_mut()?));
            workspace::with(|workspace| {
                attention_cached_into(query, &cache.view(), &options, outputs, workspace)
            })
            .map_err(error::from_headwise)?;
            Ok(out.into_storage())
        })
    }
}

impl CustomOp1 for Call<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match storage {
            CpuStorage::F32(_) => self.run::<f32>((storage, layout)),
            CpuStorage::F16(_) => self.run::<half::f16>((storage, layout)),
            CpuStorage::BF16(_) => self.run::<half::bf16>((storage, layout)),
            other => error::dtype("query", dtype(other), "F32, F16 or BF16"),
        }
    }
}
