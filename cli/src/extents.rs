//! The sizes of an attention problem, to print.

use std::fmt;

use headwise::Shape;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Extents {
    pub(crate) batch: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) seq_q: usize,
    pub(crate) seq_kv: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
}

impl Extents {
    pub(crate) fn new(query: Shape, value: Shape) -> Self {
        Self {
            batch: query[0],
            q_heads: query[1],
            kv_heads: value[1],
            seq_q: query[2],
            seq_kv: value[2],
            head_dim: query[3],
            value_dim: value[3],
        }
    }
}

/// `batch, q_heads/kv_heads, seq_q x seq_kv, head_dim`, with `value_dim` where it differs.
impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, q_heads, kv_heads, seq_q, seq_kv, head_dim, value_dim } = self;
        write!(f, "{batch}, {q_heads}/{kv_heads}, {seq_q}x{seq_kv}, {head_dim}")?;
        if head_dim != value_dim {
            write!(f, "/{value_dim}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let extents = Extents::new([1, 12, 9, 64], [1, 4, 1500, 64]);
        assert_eq!(extents.to_string(), "1, 12/4, 9x1500, 64");
        assert_eq!(Extents::new([1, 1, 2, 8], [1, 1, 3, 4]).to_string(), "1, 1/1, 2x3, 8/4");
    }
}
