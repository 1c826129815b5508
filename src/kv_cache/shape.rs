//! What a token of a cache is.

use super::value_error;
use crate::{KvStorage, Result, Shape};

/// The extents of a token's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Elements of a head's key.
    pub head_dim: usize,
    /// Elements of a head's value.
    pub value_dim: usize,
}

impl KvShape {
    pub(super) fn check(&self) -> Result<()> {
        at_least_one("kv_heads", self.kv_heads)?;
        at_least_one("head_dim", self.head_dim)?;
        at_least_one("value_dim", self.value_dim)
    }

    /// The shapes of the pools of keys and values that are stored as `T`.
    pub(super) fn pools<T: KvStorage>(&self, pages: usize, page_size: usize) -> [Shape; 2] {
        [self.head_dim, self.value_dim]
            .map(|dim| [pages, self.kv_heads, page_size, dim.saturating_add(T::EXTRA)])
    }
}

pub(super) fn at_least_one(argument: &'static str, count: usize) -> Result<()> {
    if count == 0 {
        return Err(value_error(argument, count, "at least 1"));
    }
    Ok(())
}
