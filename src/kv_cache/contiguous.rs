//! A cache of sequences of at most so many tokens.

use super::batch::{Batch, Beyond};
use super::{KvShape, KvView, NewTokens};
use crate::Result;

/// Keys and values of a batch of sequences, each in rows of its own: `[batch, kv_heads, capacity,
/// dim]`, allocated once.
///
/// ```
/// use headwise::View;
/// use headwise::kv_cache::{ContiguousCache, KvShape, NewTokens};
///
/// let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
/// let mut cache = ContiguousCache::new(shape, 2, 16)?;
/// let rows = [0.5_f32; 2 * 3 * 4];
/// let rows = View::bhsd(&rows, [2, 1, 3, 4])?;
/// cache.append(&NewTokens::new(rows, rows))?;
/// cache.truncate(1, 2)?; // The last token of sequence 1 was a draft, and rejected.
/// assert_eq!(cache.lengths(), [3, 2]);
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ContiguousCache(Batch);

impl ContiguousCache {
    /// An empty cache of `batch` sequences of at most `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where an extent is 0,
    /// [`Error::Overflow`](crate::Error::Overflow) where there is not as much memory.
    pub fn new(shape: KvShape, batch: usize, capacity: usize) -> Result<Self> {
        Batch::new(shape, batch, capacity, Beyond::Refused).map(Self)
    }

    /// What a token is.
    pub fn shape(&self) -> KvShape {
        self.0.shape()
    }

    /// The tokens that a sequence can have.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// The tokens of each sequence.
    pub fn lengths(&self) -> &[usize] {
        self.0.lengths()
    }

    /// What attention reads: all sequences, in order.
    pub fn view(&self) -> KvView<'_> {
        self.0.view()
    }

    /// Appends to every sequence.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted) where a sequence would grow beyond the capacity,
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::Value`](crate::Error::Value) where the
    /// tokens do not fit the cache, their norm or their rope. The cache is as it was then.
    pub fn append(&mut self, tokens: &NewTokens<'_>) -> Result<()> {
        self.0.append(None, tokens)
    }

    /// Appends to the sequences that are named, each once, in the order of the tokens.
    ///
    /// # Errors
    /// As [`ContiguousCache::append`], and [`Error::Value`](crate::Error::Value) where a sequence
    /// is not there or named twice.
    pub fn append_to(&mut self, sequences: &[usize], tokens: &NewTokens<'_>) -> Result<()> {
        self.0.append(Some(sequences), tokens)
    }

    /// Forgets the tokens of a sequence from position `length` on, such as rejected drafts.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where there is no such sequence, or not as many
    /// tokens.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
        self.0.truncate(sequence, length)
    }

    /// Makes a sequence empty.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where there is no such sequence.
    pub fn clear(&mut self, sequence: usize) -> Result<()> {
        self.0.clear(sequence)
    }

    /// Makes all sequences empty.
    pub fn clear_all(&mut self) {
        self.0.clear_all();
    }

    /// Grows the capacity to `capacity`, by copying everything to new memory; does nothing where it
    /// is as large.
    ///
    /// # Errors
    /// [`Error::Overflow`](crate::Error::Overflow) where there is not as much memory. The cache is
    /// as it was then.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        self.0.reserve(capacity)
    }
}
