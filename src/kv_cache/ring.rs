//! A cache of the last tokens.

use super::batch::{Batch, Beyond};
use super::{KvShape, KvView, NewTokens};
use crate::Result;

/// Keys and values of the last `capacity` tokens of a batch of sequences, in constant memory: position
/// `p` lies in row `p % capacity`. Positions count on, and what was overwritten exists no more.
///
/// Queries that see `window` keys before their own and come `n` at a time need a capacity of `window +
/// n`: the keys of a call are written before its queries read.
///
/// ```
/// use headwise::View;
/// use headwise::kv_cache::{KvShape, NewTokens, RingCache};
///
/// let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
/// let mut cache = RingCache::new(shape, 1, 4)?;
/// let rows = [0.5_f32; 3 * 4];
/// let rows = View::bhsd(&rows, [1, 1, 3, 4])?;
/// cache.append(&NewTokens::new(rows, rows))?;
/// cache.append(&NewTokens::new(rows, rows))?;
/// assert_eq!((cache.starts(), cache.lengths()), (&[2][..], &[6][..]));
/// assert!(cache.truncate(0, 1).is_err()); // Tokens 0 and 1 are gone.
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct RingCache(Batch);

impl RingCache {
    /// An empty cache of `batch` sequences that keeps the last `capacity` tokens of each.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where an extent is 0,
    /// [`Error::Overflow`](crate::Error::Overflow) where there is not as much memory.
    pub fn new(shape: KvShape, batch: usize, capacity: usize) -> Result<Self> {
        Batch::new(shape, batch, capacity, Beyond::Wraps).map(Self)
    }

    /// What a token is.
    pub fn shape(&self) -> KvShape {
        self.0.shape()
    }

    /// The tokens of a sequence that are kept.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// The tokens of each sequence, those that are gone included.
    pub fn lengths(&self) -> &[usize] {
        self.0.lengths()
    }

    /// The first position of each sequence that still exists.
    pub fn starts(&self) -> &[usize] {
        self.0.starts()
    }

    /// What attention reads: all sequences, in order.
    pub fn view(&self) -> KvView<'_> {
        self.0.view()
    }

    /// Appends to every sequence, in the places of its oldest tokens. Of more tokens than the capacity
    /// the last are kept.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::Value`](crate::Error::Value) where the
    /// tokens do not fit the cache, their norm or their rope. The cache is as it was then.
    pub fn append(&mut self, tokens: &NewTokens<'_>) -> Result<()> {
        self.0.append(None, tokens)
    }

    /// Appends to the sequences that are named, each once, in the order of the tokens.
    ///
    /// # Errors
    /// As [`RingCache::append`], and [`Error::Value`](crate::Error::Value) where a sequence is
    /// not there or named twice.
    pub fn append_to(&mut self, sequences: &[usize], tokens: &NewTokens<'_>) -> Result<()> {
        self.0.append(Some(sequences), tokens)
    }

    /// Forgets the tokens of a sequence from position `length` on. Those that they overwrote do not
    /// come back.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where there is no such sequence, or `length` is not
    /// among the positions that exist.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
        self.0.truncate(sequence, length)
    }

    /// Makes a sequence empty, from position 0 on.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where there is no such sequence.
    pub fn clear(&mut self, sequence: usize) -> Result<()> {
        self.0.clear(sequence)
    }

    /// Makes all sequences empty, from position 0 on.
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
