//! Shapes of decoding that differ from one another in one axis: how its time grows with the keys,
//! the queries and the query heads to a key/value head, and what a cache costs.

use crate::shapes::{AttentionShape, Cache, Lengths, attention, cached, causal};

/// Heads of keys and values, and the length of each.
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;

const fn step(name: &'static str, group: usize, lengths: Lengths) -> AttentionShape {
    attention(name, 1, (KV_HEADS * group, KV_HEADS), lengths, HEAD_DIM)
}

/// The step that others vary, from this cache.
const fn from(cache: Cache, name: &'static str) -> AttentionShape {
    cached(cache, step(name, 4, (1, 4096)))
}

/// What a name leaves out is that of `sweep-4k`.
pub(crate) const SWEEP: [AttentionShape; 31] = [
    step("sweep-512", 4, (1, 512)),
    step("sweep-1k", 4, (1, 1024)),
    step("sweep-2k", 4, (1, 2048)),
    step("sweep-4k", 4, (1, 4096)),
    step("sweep-8k", 4, (1, 8192)),
    step("sweep-16k", 4, (1, 16_384)),
    step("sweep-32k", 4, (1, 32_768)),
    step("sweep-512-g1", 1, (1, 512)),
    step("sweep-1k-g1", 1, (1, 1024)),
    step("sweep-2k-g1", 1, (1, 2048)),
    step("sweep-4k-g1", 1, (1, 4096)),
    step("sweep-8k-g1", 1, (1, 8192)),
    step("sweep-16k-g1", 1, (1, 16_384)),
    step("sweep-32k-g1", 1, (1, 32_768)),
    step("sweep-4k-g2", 2, (1, 4096)),
    step("sweep-4k-g8", 8, (1, 4096)),
    step("sweep-4k-g16", 16, (1, 4096)),
    causal(step("sweep-4k-q2", 4, (2, 4096))),
    causal(step("sweep-4k-q4", 4, (4, 4096))),
    causal(step("sweep-4k-q8", 4, (8, 4096))),
    causal(step("sweep-4k-q16", 4, (16, 4096))),
    causal(step("sweep-4k-q32", 4, (32, 4096))),
    causal(step("sweep-4k-q64", 4, (64, 4096))),
    from(Cache::Contiguous, "sweep-4k-contiguous"),
    from(Cache::Ring, "sweep-4k-ring"),
    from(Cache::Paged(1), "sweep-4k-paged1"),
    from(Cache::Paged(16), "sweep-4k-paged16"),
    from(Cache::Paged(64), "sweep-4k-paged64"),
    from(Cache::Paged(128), "sweep-4k-paged128"),
    from(Cache::Paged(256), "sweep-4k-paged256"),
    from(Cache::Paged(1024), "sweep-4k-paged1024"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn name(shape: &AttentionShape) -> String {
        let mut name = match shape.seq_kv {
            512 => "sweep-512".to_owned(),
            length => format!("sweep-{}k", length / 1024),
        };
        if shape.group() != 4 {
            name += &format!("-g{}", shape.group());
        }
        if shape.seq_q != 1 {
            name += &format!("-q{}", shape.seq_q);
        }
        match shape.cache {
            None => name,
            Some(Cache::Paged(size)) => format!("{name}-paged{size}"),
            Some(cache) => format!("{name}-{}", cache.kind()),
        }
    }

    /// Names say what differs, and nothing else does.
    #[test]
    fn shapes_are_named_after_what_they_are() {
        for shape in SWEEP {
            assert_eq!(shape.name, name(&shape));
            let AttentionShape { seq_q, seq_kv, cache, .. } = shape;
            let usual = step(shape.name, shape.group(), (seq_q, seq_kv));
            assert_eq!(shape, AttentionShape { causal: seq_q > 1, cache, ..usual });
        }
    }

    /// Each axis through its range, while the others stand.
    #[test]
    fn axes_are_complete() {
        let has = |seq_q, group, seq_kv, cache| {
            let is = |s: &AttentionShape| {
                (s.seq_q, s.group(), s.seq_kv, s.cache) == (seq_q, group, seq_kv, cache)
            };
            assert_eq!(SWEEP.iter().filter(|s| is(s)).count(), 1, "{seq_q} {group} {seq_kv}");
        };
        (0..=6).for_each(|n| has(1 << n, 4, 4096, None));
        (0..=4).for_each(|n| has(1, 1 << n, 4096, None));
        for group in [1, 4] {
            (9..=15).for_each(|n| has(1, group, 1 << n, None));
        }
        let pages = [1, 16, 64, 128, 256, 1024].map(Cache::Paged);
        let caches = [Cache::Contiguous, Cache::Ring].into_iter().chain(pages);
        caches.for_each(|cache| has(1, 4, 4096, Some(cache)));
    }
}
