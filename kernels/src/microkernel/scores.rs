//! The score micro-kernel: S^T = K Q^T for a block of keys and a tile of queries.
//!
//! ```text
//! for each strip of VECS query vectors
//!   for each group of KEYS keys                    accumulators: KEYS x VECS vectors
//!     acc = 0
//!     for d in 0..head_dim
//!       acc[k][v] += splat(key[k][d]) * q_t[d][v]  VECS loads, KEYS broadcasts, KEYS * VECS FMAs
//!     known reference:   prob = exp2(acc * factor - row_ref), block_sum += prob
//!     otherwise:         prob = acc, for the sweep to finish
//! ```
//!
//! Each score is one chain of multiply-adds over head_dim: its bits depend neither on the tile
//! shape nor on its neighbours. The scale comes after the product, in the multiply-add that takes
//! the reference away: exact up to one rounding of the difference, where scaling the queries
//! would round each of them. AVX-512 and NEON keep 8 x 3 accumulators (24 of 32 registers: 11 loads
//! for 24 FMAs), AVX2 2 x 6 (12 of 16), the portable body 4 x 2.

use super::{BLOCK_Q, Block, Lanes};
use crate::simd::{Isa, Kernel, Simd};

/// A block of keys against a tile of queries.
pub(crate) struct Scores<'a, const KNOWN: bool> {
    /// `[head_dim][BLOCK_Q]`.
    pub(crate) q_t: &'a [f32],
    pub(crate) keys: Block<'a>,
    /// Query vectors in use, counted in lanes: a multiple of the lanes, at most [`BLOCK_Q`].
    pub(crate) lanes: usize,
    /// From a dot product to a power of two, if `KNOWN`.
    pub(crate) factor: f32,
    /// What is taken away from each row's powers, if `KNOWN`.
    pub(crate) row_ref: &'a Lanes,
    /// Each row's sum over the block, added to if `KNOWN`.
    pub(crate) block_sum: &'a mut Lanes,
    /// For each row the keys it may see, counted from the block's first: vectors that see none of
    /// a group are left alone unless `KNOWN`.
    pub(crate) seen: &'a [(usize, usize); BLOCK_Q],
    /// `[BLOCK_KV][BLOCK_Q]`: probabilities if `KNOWN`, else dot products.
    pub(crate) prob: &'a mut [f32],
    /// Called once for each group of keys, to slip other work between micro-tiles.
    pub(crate) between: &'a mut dyn FnMut(),
}

/// The keys of one micro-tile: a group's rows, the last repeated where the block ends.
const GROUP: usize = 8;

impl<const KNOWN: bool> Kernel for Scores<'_, KNOWN> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.keys.check();
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        assert!(self.q_t.len() >= self.keys.rows.width() * BLOCK_Q);
        assert!(self.prob.len() >= super::BLOCK_KV * BLOCK_Q);
        assert!(!KNOWN || (self.keys.end - self.keys.start).is_multiple_of(GROUP));
        match S::ISA {
            Isa::Avx512 | Isa::Neon => self.strips::<S, 8, 3>(s),
            Isa::Avx2 => self.strips::<S, 2, 6>(s),
            Isa::Portable => self.strips::<S, 4, 2>(s),
        }
    }
}

impl<const KNOWN: bool> Scores<'_, KNOWN> {
    /// Wide strips where they fit and are wanted, single vectors elsewhere.
    #[inline(always)]
    fn strips<S: Simd, const KEYS: usize, const VECS: usize>(&mut self, s: S) {
        let group_start = self.keys.start / GROUP * GROUP;
        let wide = VECS * S::LANES;
        let mut lane = 0;
        while lane < self.lanes {
            let fits = lane + wide <= self.lanes;
            let mut group = group_start;
            while group < self.keys.end {
                (self.between)();
                if fits && (KNOWN || self.is_seen(lane, wide, group, S::LANES)) {
                    let mut key = group;
                    while key < (group + GROUP).min(self.keys.end) {
                        self.tile::<S, KEYS, VECS>(s, lane, key);
                        key += KEYS;
                    }
                } else {
                    let end = if fits { lane + wide } else { self.lanes };
                    let mut single = lane;
                    while single < end {
                        if KNOWN || self.is_seen(single, S::LANES, group, S::LANES) {
                            self.tile::<S, GROUP, 1>(s, single, group);
                        }
                        single += S::LANES;
                    }
                }
                group += GROUP;
            }
            lane = if fits { lane + wide } else { self.lanes };
        }
    }

    /// Whether each vector among `width` lanes from `lane` on has a row that sees a key of the
    /// group.
    #[inline(always)]
    fn is_seen(&self, lane: usize, width: usize, group: usize, lanes: usize) -> bool {
        self.seen[lane..lane + width].chunks(lanes).all(|vector| {
            vector.iter().any(|&(start, end)| start < group + GROUP && end > group && start < end)
        })
    }

    /// One micro-tile: `KEYS` keys from `key` on, `VECS` vectors of queries from `lane` on.
    #[inline(always)]
    fn tile<S: Simd, const KEYS: usize, const VECS: usize>(
        &mut self,
        s: S,
        lane: usize,
        key: usize,
    ) {
        let last = self.keys.end - 1;
        let rows: [*const f32; KEYS] =
            core::array::from_fn(|k| self.keys.rows.row(self.keys.first + (key + k).min(last)));
        // SAFETY: `run` checked the extents: lane + VECS * LANES <= BLOCK_Q, key + KEYS <=
        // BLOCK_KV (both are whole groups of eight), q_t and prob as long as they must be; the
        // rows are clamped to rows that exist, each `width` floats long.
        unsafe {
            let mut acc = [[s.splat(0.0); VECS]; KEYS];
            let mut q = self.q_t.as_ptr().add(lane);
            for d in 0..self.keys.rows.width() {
                // The shorter side waits in registers, so that one more suffices for the other.
                if KEYS < VECS {
                    let keys: [S::Vector; KEYS] =
                        core::array::from_fn(|k| s.splat(*rows[k].add(d)));
                    for v in 0..VECS {
                        let query = s.load(q.add(v * S::LANES));
                        for k in 0..KEYS {
                            acc[k][v] = s.mul_add(keys[k], query, acc[k][v]);
                        }
                    }
                } else {
                    let queries: [S::Vector; VECS] =
                        core::array::from_fn(|v| s.load(q.add(v * S::LANES)));
                    for k in 0..KEYS {
                        let key = s.splat(*rows[k].add(d));
                        for v in 0..VECS {
                            acc[k][v] = s.mul_add(key, queries[v], acc[k][v]);
                        }
                    }
                }
                // Beyond the last row this may leave q_t, unread.
                q = q.wrapping_add(BLOCK_Q);
            }
            let prob = self.prob.as_mut_ptr().add(key * BLOCK_Q + lane);
            for v in 0..VECS {
                let sum_ptr = self.block_sum.0.as_mut_ptr().add(lane + v * S::LANES);
                let mut sum = s.load(sum_ptr);
                let factor = s.splat(self.factor);
                let row_ref = s.load(self.row_ref.0.as_ptr().add(lane + v * S::LANES));
                let shift = s.sub(s.splat(0.0), row_ref);
                for k in 0..KEYS {
                    let mut p = acc[k][v];
                    if KNOWN {
                        p = s.exp2(s.mul_add(p, factor, shift));
                        sum = s.add(sum, p);
                    }
                    s.store(prob.add(k * BLOCK_Q + v * S::LANES), p);
                }
                if KNOWN {
                    s.store(sum_ptr, sum);
                }
            }
        }
    }
}
