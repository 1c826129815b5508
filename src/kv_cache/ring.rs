//! A cache of the last tokens.

use super::batch::{BatchCache, Kind};

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
pub type RingCache<T = f32> = BatchCache<Ring, T>;

/// Tokens beyond the capacity take the places of the oldest.
#[derive(Debug, Clone, Copy)]
pub enum Ring {}

impl Kind for Ring {
    const WRAPS: bool = true;
}
