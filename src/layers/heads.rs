//! How many heads a layer has.

/// The heads of the queries, and those of the keys and values, which divide them: query head `h`
/// reads kv head `h / (query / kv)`.
///
/// ```
/// # use headwise::layers::Heads;
/// assert_eq!(Heads::from(8), Heads { query: 8, kv: 8 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads.
    pub kv: usize,
}

impl From<usize> for Heads {
    /// As many of both.
    fn from(heads: usize) -> Self {
        Self { query: heads, kv: heads }
    }
}
