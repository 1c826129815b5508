//! Lists of the caller's.

use crate::cache::headwise_sequence;
use crate::pointer;
use crate::status::{Failure, Result};

/// Sizes, lengths, offsets or indices. NULL and 0: none are given.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_sizes {
    /// As many as `count`.
    pub data: *const usize,
    /// How many.
    pub count: usize,
}

/// Numbers of documents. NULL and 0: none are given.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_ids {
    /// As many as `count`.
    pub data: *const i32,
    /// How many.
    pub count: usize,
}

/// Floats. NULL and 0: none are given.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_floats {
    /// As many as `count`.
    pub data: *const f32,
    /// How many.
    pub count: usize,
}

/// Words of bits. NULL and 0: none are given.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_words {
    /// As many as `count`.
    pub data: *const u64,
    /// How many.
    pub count: usize,
}

/// Sequences of a cache. NULL and 0: none are named.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_sequences {
    /// As many as `count`.
    pub data: *const headwise_sequence,
    /// How many.
    pub count: usize,
}

macro_rules! as_slice {
    ($($name:ident: $item:ty),+) => {$(
        impl $name {
            /// The list, if there is one.
            ///
            /// # Safety
            /// There must be `count` readable items at `data`, which nobody writes to for `'a`.
            pub(crate) unsafe fn get<'a>(&self, argument: &str) -> Result<Option<&'a [$item]>> {
                // SAFETY: the caller's promise.
                unsafe { pointer::slice(argument, self.data, self.count) }
            }
        }
    )+};
}

as_slice!(
    headwise_sizes: usize,
    headwise_ids: i32,
    headwise_floats: f32,
    headwise_words: u64,
    headwise_sequences: headwise_sequence
);

/// An empty list with room for `count` items.
pub(crate) fn reserved<T>(argument: &str, count: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    room(argument, &mut list, count)?;
    Ok(list)
}

/// Empties a list, and makes room for `count` items.
pub(crate) fn room<T>(argument: &str, list: &mut Vec<T>, count: usize) -> Result<()> {
    list.clear();
    list.try_reserve(count).map_err(|_| {
        let (got, expected) =
            (format!("{count} items"), "an amount of memory that can be had".into());
        let error = headwise::Error::Overflow { argument: "list", got, expected };
        Failure::from(error).renamed(argument)
    })
}
