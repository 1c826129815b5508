//! The innermost loops: generic over the instruction set and a constant tile size. They allocate
//! nothing, know of no threads, and are called once per key block.
//!
//! Queries lie along the lanes. A query tile is [`BLOCK_Q`] rows, a key block [`BLOCK_KV`] keys:
//!
//! ```text
//!   q_t    [head_dim][BLOCK_Q]   the tile's queries, transposed
//!   key    [key][head_dim]       read where it lies, one float broadcast at a time
//!   prob   [BLOCK_KV][BLOCK_Q]   scores, then probabilities: S^T = K Q^T
//!   value  [key][value_dim]      read where it lies, along the lanes
//!   acc    [BLOCK_Q][acc_width]  sum of prob * value
//! ```

pub(crate) mod block;
pub(crate) mod fetch;
pub(crate) mod few;
pub(crate) mod finish;
pub(crate) mod hidden;
pub(crate) mod int8_values;
pub(crate) mod outer;
pub(crate) mod pack;
pub(crate) mod pairs;
pub(crate) mod quads;
pub(crate) mod row_softmax;
pub(crate) mod scores;
pub(crate) mod sweep;
pub(crate) mod terms;
pub(crate) mod values;
pub(crate) mod widen;

use std::ops::Range;

use crate::simd::{Isa, MAX_LANES, Simd};

/// Runs `$body` for `$i` in `0..$n`, `$n` a constant of at most 12, unrolled in the source: a loop
/// that the compiler keeps would put the accumulators that it indexes into memory.
macro_rules! unroll {
    ($i:ident in 0..$n:ident $body:block) => {{
        const { assert!($n <= 12) };
        unroll!($i $n $body 0 1 2 3 4 5 6 7 8 9 10 11);
    }};
    ($i:ident $n:ident $body:block $($index:literal)*) => {$(
        if $index < $n {
            // Below $n in dead code as well.
            let $i = $index % $n;
            $body
        }
    )*};
}
pub(crate) use unroll;

/// Query rows in a tile: a multiple of every instruction set's lanes, and the row pitch of `q_t`
/// and `prob`.
pub(crate) const BLOCK_Q: usize = 48;
/// Keys in a block. Blocks are counted from key 0, and decisions about a row's reference maximum
/// are taken per block: the number is part of what a row's bits depend on.
pub(crate) const BLOCK_KV: usize = 128;
/// Keys that a micro-tile of scores takes together; a row takes its reference from the first of
/// these groups in which it sees a key.
pub(crate) const GROUP: usize = 8;

/// Whether the two chains of a sum are computed together, each with half of a tile's accumulators.
/// AVX2 computes one after the other: with 16 registers half a tile would need more loads than two
/// multiply-adds a cycle leave time for.
const fn together(isa: Isa) -> bool {
    !matches!(isa, Isa::Avx2)
}

/// One float for each row of a tile.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes(pub(crate) [f32; BLOCK_Q]);

impl Lanes {
    pub(crate) const fn splat(x: f32) -> Self {
        Self([x; BLOCK_Q])
    }

    pub(crate) fn map(&self, f: impl FnMut(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    /// Whether, as references, some of the vectors from `lane` on are unset: -inf.
    #[inline(always)]
    fn any_unset<S: Simd>(&self, s: S, lane: usize, vectors: usize) -> bool {
        // A loop: a closure would not always be inlined.
        let mut any = false;
        for v in 0..vectors {
            let lanes = &self.0[lane + v * S::LANES..][..S::LANES];
            // SAFETY: a vector's floats.
            any |= unsafe { s.any(s.lt(s.load(lanes.as_ptr()), s.splat(f32::MIN))) };
        }
        any
    }
}

/// For each row of a tile the keys that it sees of a block, counted from the block's first and at
/// most [`BLOCK_KV`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) start: [u32; BLOCK_Q],
    pub(crate) end: [u32; BLOCK_Q],
}

impl Seen {
    /// The keys that some of the first `lanes` rows see, from the start of a group.
    pub(crate) fn any(&self, lanes: usize) -> Range<usize> {
        let (mut first, mut last) = (BLOCK_KV as u32, 0);
        for (&start, &end) in self.start.iter().zip(&self.end).take(lanes) {
            let seen = start < end;
            first = first.min(if seen { start } else { BLOCK_KV as u32 });
            last = last.max(if seen { end } else { 0 });
        }
        first.min(last) as usize / GROUP * GROUP..last as usize
    }

    /// The bounds of the rows at `lane`, to be compared with a key's number.
    #[inline(always)]
    fn bounds<S: Simd>(&self, s: S, lane: usize) -> (S::Vector, S::Vector) {
        // Small enough to be exact.
        let start: [f32; MAX_LANES] =
            core::array::from_fn(|i| self.start[lane + i % S::LANES] as f32);
        let end: [f32; MAX_LANES] = core::array::from_fn(|i| self.end[lane + i % S::LANES] as f32);
        // SAFETY: LANES floats at most MAX_LANES.
        unsafe { (s.load(start.as_ptr()), s.load(end.as_ptr())) }
    }

    /// What the rows at `lanes` see together.
    #[inline(always)]
    pub(crate) fn span(&self, lane: usize, lanes: usize) -> Span {
        let mut span = Span { any: (u32::MAX, 0), all: (0, u32::MAX) };
        for lane in lane..lane + lanes {
            let (start, end) = (self.start[lane], self.end[lane]);
            span.all = (span.all.0.max(start), span.all.1.min(end));
            if start < end {
                span.any = (span.any.0.min(start), span.any.1.max(end));
            }
        }
        span
    }
}

/// The keys of a block that some of several rows see, and those that all do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    any: (u32, u32),
    all: (u32, u32),
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let keys = (start as u32, end as u32);
        Self { any: keys, all: keys }
    }

    /// The keys of `start..end` that some row sees, `(0, 0)` if none.
    #[inline(always)]
    pub(crate) fn within(&self, start: usize, end: usize) -> (usize, usize) {
        let (start, end) = (start.max(self.any.0 as usize), end.min(self.any.1 as usize));
        if start < end { (start, end) } else { (0, 0) }
    }

    /// Whether some row sees a key of the group.
    #[inline(always)]
    pub(crate) fn sees(&self, group: usize) -> bool {
        (self.any.0 as usize) < group + GROUP && self.any.1 as usize > group
    }

    /// Whether every row sees every key of the group.
    #[inline(always)]
    fn covers(&self, group: usize) -> bool {
        self.all.0 as usize <= group && self.all.1 as usize >= group + GROUP
    }
}
