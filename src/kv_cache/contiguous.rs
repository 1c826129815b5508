//! A cache of sequences of at most so many tokens.

use super::batch::{BatchCache, Kind};

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
pub type ContiguousCache<T = f32> = BatchCache<Contiguous, T>;

/// Tokens beyond the capacity are refused.
#[derive(Debug, Clone, Copy)]
pub enum Contiguous {}

impl Kind for Contiguous {
    const WRAPS: bool = false;
}
