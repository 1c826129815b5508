//! The sizes of an attention problem: to print, and to count work by.

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

    /// The useful floating-point operations: twice the visible query-key pairs, over all heads,
    /// times the length of a key and a value. `causal` is bottom-right.
    pub(crate) fn flops(&self, causal: bool) -> f64 {
        let Self { seq_q, seq_kv, .. } = *self;
        let row = |i: usize| if causal { (i + 1 + seq_kv).saturating_sub(seq_q) } else { seq_kv };
        self.flops_of((0..seq_q).map(row).sum())
    }

    /// The operations on so many query-key pairs of each head.
    pub(crate) fn flops_of(&self, pairs: usize) -> f64 {
        let heads = (self.batch * self.q_heads) as f64;
        2.0 * pairs as f64 * heads * (self.head_dim + self.value_dim) as f64
    }

    /// The bytes of keys and values in `f32`.
    pub(crate) fn kv_bytes(&self) -> f64 {
        let rows = self.batch * self.kv_heads * self.seq_kv;
        (rows * (self.head_dim + self.value_dim) * size_of::<f32>()) as f64
    }

    /// The bytes of queries, keys, values and output in `f32`.
    pub(crate) fn bytes(&self) -> f64 {
        let rows = self.batch * self.q_heads * self.seq_q;
        self.kv_bytes() + (rows * (self.head_dim + self.value_dim) * size_of::<f32>()) as f64
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
    fn only_visible_pairs_count() {
        let extents = |seq_q, seq_kv| Extents::new([2, 4, seq_q, 8], [2, 2, seq_kv, 3]);
        let heads_and_dims = 2.0 * 8.0 * 11.0;
        assert_eq!(extents(5, 7).flops(false), heads_and_dims * 35.0);
        assert_eq!(extents(5, 7).flops(true), heads_and_dims * f64::from(3 + 4 + 5 + 6 + 7));
        assert_eq!(extents(3, 2).flops(true), heads_and_dims * 3.0);
        assert_eq!(extents(3, 7).kv_bytes(), f64::from(4 * 2 * 2 * 7 * (8 + 3)));
        let of_queries = f64::from(4 * 2 * 4 * 3 * (8 + 3));
        assert_eq!(extents(3, 7).bytes(), extents(3, 7).kv_bytes() + of_queries);
    }

    #[test]
    fn text() {
        let extents = Extents::new([1, 12, 9, 64], [1, 4, 1500, 64]);
        assert_eq!(extents.to_string(), "1, 12/4, 9x1500, 64");
        assert_eq!(Extents::new([1, 1, 2, 8], [1, 1, 3, 4]).to_string(), "1, 1/1, 2x3, 8/4");
    }
}
