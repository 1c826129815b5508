//! A cache of each kind, stored as each type.

use headwise::kv_cache::{
    ContiguousCache, KvShape, KvView, PagedCache, PagedCapacity, RingCache, SequenceId,
};
use headwise::{Int8, KvStorage, NewTokens, bf16, f16};

use super::{headwise_cache_kind, headwise_cache_options, headwise_sequence, sequence, unnamed};
use crate::choice::choose;
use crate::dtype::headwise_dtype;
use crate::status::{Failure, Result};
use crate::workspace::Lists;

/// A cache by the type that it stores.
pub(crate) enum Stored {
    F32(Kind<f32>),
    F16(Kind<f16>),
    Bf16(Kind<bf16>),
    I8(Kind<Int8>),
}

/// `stored!(&cache.stored, kind => ..)`: the same for every type.
macro_rules! stored {
    ($stored:expr, $kind:ident => $body:expr) => {
        match $stored {
            $crate::cache::Stored::F32($kind) => $body,
            $crate::cache::Stored::F16($kind) => $body,
            $crate::cache::Stored::Bf16($kind) => $body,
            $crate::cache::Stored::I8($kind) => $body,
        }
    };
}
pub(crate) use stored;

impl Stored {
    pub(super) fn new(options: &headwise_cache_options) -> Result<Self> {
        let dtype = match options.dtype {
            0 => headwise_dtype::F32,
            number => choose("options.dtype", number)?,
        };
        Ok(match dtype {
            headwise_dtype::F32 => Self::F32(Kind::new(options)?),
            headwise_dtype::F16 => Self::F16(Kind::new(options)?),
            headwise_dtype::Bf16 => Self::Bf16(Kind::new(options)?),
            headwise_dtype::I8 => Self::I8(Kind::new(options)?),
            other => {
                let expected = "F32, F16, BF16, I8 or 0";
                let got = format!("{other:?}");
                return Err(Failure::unsupported("options.dtype", got, expected));
            }
        })
    }
}

/// A cache by what holds the tokens of a sequence.
pub(crate) enum Kind<T: KvStorage> {
    Contiguous(ContiguousCache<T>),
    Ring(RingCache<T>),
    Paged(PagedCache<T>),
}

impl<T: KvStorage<Compute = f32>> Kind<T> {
    fn new(options: &headwise_cache_options) -> Result<Self> {
        let headwise_cache_options { kv_heads, head_dim, value_dim, .. } = *options;
        let shape = KvShape { kv_heads, head_dim, value_dim };
        let (batch, capacity) = (options.sequences, options.capacity);
        Ok(match choose("options.kind", options.kind)? {
            headwise_cache_kind::Contiguous => {
                Self::Contiguous(ContiguousCache::with_storage(shape, batch, capacity)?)
            }
            headwise_cache_kind::Ring => {
                Self::Ring(RingCache::with_storage(shape, batch, capacity)?)
            }
            headwise_cache_kind::Paged => {
                Self::Paged(PagedCache::with_storage(shape, paged(options))?)
            }
        })
    }

    /// What attention reads: the sequences named, or all.
    pub(crate) fn view<'a>(
        &'a self,
        sequences: Option<&[headwise_sequence]>,
        lists: &'a mut Lists,
    ) -> Result<KvView<'a, T>> {
        match (self, sequences) {
            (Self::Paged(cache), named) => {
                lists.reserve(cache.capacity())?;
                sequence::names(cache, named.ok_or_else(unnamed)?, &mut lists.names)?;
                Ok(cache.view(&lists.names, &mut lists.tables)?)
            }
            (Self::Contiguous(cache), None) => Ok(cache.view()),
            (Self::Ring(cache), None) => Ok(cache.view()),
            _ => {
                let expected = "none: a contiguous cache or a ring is attended to as a whole";
                Err(Failure::unsupported("sequences", "names of sequences", expected))
            }
        }
    }

    /// Appends to the sequences named, or to all.
    pub(super) fn append(
        &mut self,
        named: Option<&[headwise_sequence]>,
        tokens: &NewTokens<'_>,
        (names, indices): (&mut Vec<SequenceId>, &mut Vec<usize>),
    ) -> Result<()> {
        let appended =
            match (self, named) {
                (Self::Paged(cache), named) => {
                    sequence::names(cache, named.ok_or_else(unnamed)?, names)?;
                    cache.append(names, tokens)
                }
                (Self::Contiguous(cache), None) => cache.append(tokens),
                (Self::Ring(cache), None) => cache.append(tokens),
                (Self::Contiguous(cache), Some(named)) => cache
                    .append_to(sequence::indices(cache.lengths().len(), named, indices)?, tokens),
                (Self::Ring(cache), Some(named)) => cache
                    .append_to(sequence::indices(cache.lengths().len(), named, indices)?, tokens),
            };
        Ok(appended?)
    }

    /// The positions of a sequence that exist.
    pub(super) fn extent(&self, sequence: headwise_sequence) -> Result<(usize, usize)> {
        let (starts, lengths) = match self {
            Self::Contiguous(cache) => (cache.starts(), cache.lengths()),
            Self::Ring(cache) => (cache.starts(), cache.lengths()),
            Self::Paged(cache) => {
                let id = sequence.id(cache)?;
                return Ok((cache.start(id)?, cache.length(id)?));
            }
        };
        let index = sequence.index(lengths.len())?;
        Ok((starts[index], lengths[index]))
    }

    pub(super) fn truncate(&mut self, sequence: headwise_sequence, length: usize) -> Result<()> {
        let truncated = match self {
            Self::Contiguous(cache) => {
                cache.truncate(sequence.index(cache.lengths().len())?, length)
            }
            Self::Ring(cache) => cache.truncate(sequence.index(cache.lengths().len())?, length),
            Self::Paged(cache) => cache.truncate(sequence.id(cache)?, length),
        };
        Ok(truncated?)
    }

    pub(super) fn release(&mut self, sequence: headwise_sequence) -> Result<()> {
        let released = match self {
            Self::Contiguous(cache) => cache.clear(sequence.index(cache.lengths().len())?),
            Self::Ring(cache) => cache.clear(sequence.index(cache.lengths().len())?),
            Self::Paged(cache) => cache.free(sequence.id(cache)?),
        };
        Ok(released?)
    }

    pub(super) fn evict(&mut self, sequence: headwise_sequence, before: usize) -> Result<()> {
        let cache = self.paged_mut()?;
        Ok(cache.evict(sequence.id(cache)?, before)?)
    }

    pub(super) fn fork(&mut self, sequence: headwise_sequence) -> Result<SequenceId> {
        let cache = self.paged_mut()?;
        Ok(cache.fork(sequence.id(cache)?)?)
    }

    /// The paged cache that this is.
    pub(super) fn paged(&self) -> Result<&PagedCache<T>> {
        match self {
            Self::Paged(cache) => Ok(cache),
            _ => Err(not_paged()),
        }
    }

    /// The same, to change.
    pub(super) fn paged_mut(&mut self) -> Result<&mut PagedCache<T>> {
        match self {
            Self::Paged(cache) => Ok(cache),
            _ => Err(not_paged()),
        }
    }
}

fn not_paged() -> Failure {
    Failure::unsupported("cache", "a contiguous cache or a ring", "a paged cache")
}

fn paged(options: &headwise_cache_options) -> PagedCapacity {
    PagedCapacity {
        pages: options.pages,
        page_size: options.page_size,
        sequences: options.sequences,
        pages_per_sequence: match options.pages_per_sequence {
            0 => options.pages,
            pages => pages,
        },
    }
}
