//! The score micro-kernel: S^T = K Q^T for a block of keys and a tile of queries, and P^T from it.
//!
//! ```text
//! for each strip of VECS query vectors
//!   for each group of 8 keys, KEYS at a time           accumulators: 2 x KEYS x VECS vectors
//!     acc = 0
//!     for d in 0..head_dim
//!       acc[d % 2][k][v] += splat(key[k][d]) * q_t[d][v]
//!     prob = exp2((acc[0] + acc[1]) * factor - row_ref)          or with terms: terms.rs
//!     block_sum += prob of two keys
//! ```
//!
//! A vector of few rows has its dot products made with keys along the lanes instead, microkernel/few.rs, and
//! where nothing but they is in a score, its probabilities too.
//!
//! Groups in which some row has no reference yet, or does not see every key, go by way of memory:
//! the dot products are stored, and the sweep takes references and makes probabilities of them. So
//! do whole blocks that have a mask but no terms, or a term that works in memory (`SWEPT`). A vector of rows
//! that sees nothing of a group is not computed.
//!
//! Each score is the sum of two chains of multiply-adds, over the even elements and the odd: half the
//! rounding errors of one chain for one addition. Its bits depend neither on the tile shape nor on
//! its neighbours. The scale comes after the product, in the multiply-add that takes the reference
//! away: exact up to one rounding of the difference, where scaling the queries would round each of
//! them. AVX-512 and NEON take two elements at a time, 4 keys x 3 vectors (24 of 32 registers: 14
//! loads for 24 multiply-adds), the portable body 2 x 2; AVX2 first all the even elements and then
//! the odd, 2 x 6 (12 of 16: 8 loads for 12).

use std::ops::Range;

use super::block::Block;
use super::fetch::{Fetch, Soon};
use super::few::{self, Few, Then};
use super::quads::Quads;
use super::sweep::Sweep;
use super::terms::Scoring;
use super::{BLOCK_KV, BLOCK_Q, GROUP, Lanes, Span, together, unroll};
use crate::simd::{Isa, Kernel, Simd, Stored, opaque};

/// The vectors of queries in a wide strip.
pub(crate) const fn strip_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Bf16 | Isa::Avx512 | Isa::Neon => 3,
        Isa::Avx2 => 6,
        Isa::Portable => 2,
    }
}

/// A block of keys against a tile of queries.
pub(crate) struct Scores<'a, T, E, const SWEPT: bool> {
    /// `[head_dim][BLOCK_Q]`, of pairs and quads a half and a quarter as many.
    pub(crate) q_t: &'a [f32],
    pub(crate) keys: Block<'a, E>,
    /// What turns sums of integers into dot products; unused by floats.
    pub(crate) quads: Quads<'a>,
    /// The rows, their references and sums, and where probabilities go.
    pub(crate) sweep: Sweep<'a, T>,
    /// Each row's largest probability of the block: noted with numbers in pairs, which are rounded by it.
    pub(crate) largest: &'a mut Lanes,
    /// The block's values.
    pub(crate) values: Soon,
    /// What to ask for between micro-tiles.
    pub(crate) fetch: &'a mut Fetch,
}

impl<T: Scoring, E: Stored, const SWEPT: bool> Kernel for Scores<'_, T, E, SWEPT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.keys.check(1);
        self.sweep.check::<S>();
        assert!(self.keys.rows.width().is_multiple_of(E::STEP));
        assert!(self.q_t.len() >= self.keys.rows.width() / E::STEP * BLOCK_Q);
        if E::PRODUCTS > 1 {
            *self.largest = Lanes::splat(0.0);
        }
        match S::ISA {
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Neon => self.strips::<S, 4, 3, 8>(s),
            Isa::Avx2 => self.strips::<S, 2, 6, 8>(s),
            Isa::Portable => self.strips::<S, 2, 2, 4>(s),
        }
        if SWEPT {
            let keys = self.keys.start..self.keys.end;
            // SAFETY: checked above.
            unsafe {
                if T::IN_MEMORY && self.sweep.wants_terms() {
                    self.sweep.score_block(s, keys.clone());
                }
                self.sweep.block(s, keys.clone());
                for lane in (0..self.sweep.lanes).step_by(S::LANES) {
                    self.note_largest(s, lane, keys.clone());
                }
            }
        }
    }
}

impl<T: Scoring, E: Stored, const SWEPT: bool> Scores<'_, T, E, SWEPT> {
    /// Wide strips where they fit, single vectors, `HIGH` keys at a time, behind them. Numbers of half the
    /// width come with few rows, and get no wide strip.
    #[inline(always)]
    fn strips<S: Simd, const KEYS: usize, const VECS: usize, const HIGH: usize>(&mut self, s: S) {
        debug_assert_eq!(VECS, strip_vectors(S::ISA));
        let mut lane = 0;
        let is_wide = size_of::<E>() == size_of::<f32>();
        while is_wide && lane + VECS * S::LANES <= self.sweep.lanes {
            self.strip::<S, KEYS, VECS, HIGH>(s, lane, false);
            lane += VECS * S::LANES;
        }
        while lane < self.sweep.lanes {
            let rows = self.sweep.len.saturating_sub(lane);
            let few = few::fits::<E>(S::ISA, rows, self.keys.rows.width());
            self.strip::<S, HIGH, 1, HIGH>(s, lane, few);
            lane += S::LANES;
        }
    }

    /// `few` if the one vector of rows is nearly empty.
    #[inline(always)]
    fn strip<S: Simd, const KEYS: usize, const VECS: usize, const HIGH: usize>(
        &mut self,
        s: S,
        lane: usize,
        few: bool,
    ) {
        let (start, end) = (self.keys.start, self.keys.end);
        // Behind the last key whose dot products are in memory already, and the last that is done.
        let (mut made, mut done) = (start, start);
        let spans: [Span; VECS] = core::array::from_fn(|v| match self.sweep.seen {
            None => Span::new(start, end),
            Some(seen) => seen.span(lane + v * S::LANES, S::LANES),
        });
        let mut known = !SWEPT && !self.sweep.row_ref.any_unset(s, lane, VECS);
        for group in (start..end).step_by(GROUP) {
            if VECS == 1 && few && group >= made {
                let groups = (group..group + few::run::<S>()).step_by(GROUP);
                if T::PLAIN && known && groups.clone().all(|group| spans[0].covers(group)) {
                    made = self.few::<S, true>(s, lane, group);
                    done = made;
                } else if groups.clone().any(|group| spans[0].sees(group)) {
                    made = self.few::<S, false>(s, lane, group);
                }
            }
            if VECS == 1 && group < done {
                continue;
            }
            let in_memory = VECS == 1 && group < made;
            if !in_memory {
                let width = self.keys.rows.width() * E::PRODUCTS;
                self.fetch.step(GROUP * VECS * S::LANES * width);
            }
            if known && spans.iter().all(|span| span.covers(group)) {
                if in_memory {
                    self.stored(s, lane, group);
                } else {
                    self.group::<S, KEYS, VECS, true>(s, lane, group);
                }
                continue;
            }
            let wide = spans.iter().all(|span| span.sees(group));
            if wide && !in_memory {
                self.group::<S, KEYS, VECS, false>(s, lane, group);
            }
            for v in 0..VECS {
                let (lane, seen) = (lane + v * S::LANES, spans[v].sees(group));
                if !wide && seen {
                    self.group::<S, HIGH, 1, false>(s, lane, group);
                }
                if !SWEPT && seen {
                    let keys = group..(group + GROUP).min(end);
                    // SAFETY: `run` checked; the lane and the keys exist.
                    unsafe {
                        self.sweep.few(s, lane, keys.clone());
                        self.note_largest(s, lane, keys);
                    }
                } else if !SWEPT {
                    self.hide(s, lane, group);
                }
            }
            known = !SWEPT && !self.sweep.row_ref.any_unset(s, lane, VECS);
        }
    }

    /// The dot products of the keys from `group` on with the few rows of one vector, or their probabilities
    /// if `KNOWN`, as many whole groups as lie in the block; says behind which key they end.
    #[inline(always)]
    fn few<S: Simd, const KNOWN: bool>(&mut self, s: S, lane: usize, group: usize) -> usize {
        let run = few::run::<S>();
        if group + run > self.keys.end {
            return group;
        }
        let prob = self.sweep.prob.as_mut_ptr();
        // SAFETY: `run` checked the lanes.
        let mut along = unsafe { AlongKeys::new(s, &self.sweep, lane) };
        for key in (group..group + run).step_by(S::LANES) {
            let rows = self.sweep.len.saturating_sub(lane);
            let prob = prob.wrapping_add(key * BLOCK_Q + lane);
            // SAFETY: `run` checked the extents: the keys lie in the block, the lanes in the tile.
            unsafe {
                let q_t = self.q_t.as_ptr().wrapping_add(lane);
                let quads = self.quads.of_rows(lane);
                let few =
                    Few { keys: self.keys.rows, key, values: self.values, q_t, quads, rows, prob };
                if KNOWN {
                    few.dots(s, &mut along);
                } else {
                    few.dots(s, &mut ());
                }
            }
        }
        if KNOWN {
            let sum = along.sum;
            // SAFETY: `run` checked the lanes; the keys lie in the block.
            unsafe {
                s.store(self.sweep.block_sum.0.as_mut_ptr().add(lane), sum);
                self.note_largest(s, lane, group..group + run);
            }
        }
        group + run
    }

    /// Notes the largest of the probabilities of `keys` that are in memory.
    ///
    /// # Safety
    /// The lanes must lie in the tile, the keys in the block.
    #[inline(always)]
    unsafe fn note_largest<S: Simd>(&mut self, s: S, lane: usize, keys: Range<usize>) {
        if E::PRODUCTS == 1 {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.largest.0.as_mut_ptr().add(lane);
            let mut max = s.load(to);
            for key in keys {
                let p = s.load(self.sweep.prob.as_ptr().add(key * BLOCK_Q + lane));
                // Of a number and none the number.
                max = s.max(p, max);
            }
            s.store(to, max);
        }
    }

    /// A group of keys of which the dot products with one vector of rows are in memory.
    #[inline(always)]
    fn stored<S: Simd>(&mut self, s: S, lane: usize, group: usize) {
        const KEYS: usize = 4;
        for key in (group..group + GROUP).step_by(KEYS) {
            // SAFETY: `run` checked the extents: the keys lie in the block, the lanes in the tile.
            unsafe {
                let dots = self.sweep.prob.as_ptr().wrapping_add(key * BLOCK_Q + lane);
                let dots: [S::Vector; KEYS] =
                    core::array::from_fn(|k| s.load(dots.add(k * BLOCK_Q)));
                self.column::<S, KEYS, true>(s, (lane, key), dots);
            }
        }
    }

    /// A group of keys that the rows of one vector do not see.
    #[inline(always)]
    fn hide<S: Simd>(&mut self, s: S, lane: usize, group: usize) {
        for key in group..group + GROUP {
            // SAFETY: `run` checked the extents: both lie in `prob`.
            unsafe {
                let prob = self.sweep.prob.as_mut_ptr().add(key * BLOCK_Q + lane);
                s.store(prob, s.splat(-0.0));
            }
        }
    }

    /// The micro-tiles of a group of keys.
    #[inline(always)]
    fn group<S: Simd, const KEYS: usize, const VECS: usize, const KNOWN: bool>(
        &mut self,
        s: S,
        lane: usize,
        group: usize,
    ) {
        let mut key = group;
        // A call of one or two keys would pay for eight.
        if KEYS > 2 && VECS == 1 && self.keys.end <= key + 2 {
            return self.tile::<S, 2, VECS, KNOWN>(s, lane, key);
        }
        while key < (group + GROUP).min(self.keys.end) {
            self.tile::<S, KEYS, VECS, KNOWN>(s, lane, key);
            key += KEYS;
        }
    }

    /// One micro-tile: `KEYS` keys from `key` on, `VECS` vectors of queries from `lane` on.
    #[inline(always)]
    fn tile<S: Simd, const KEYS: usize, const VECS: usize, const KNOWN: bool>(
        &mut self,
        s: S,
        lane: usize,
        key: usize,
    ) {
        const { assert!(BLOCK_KV.is_multiple_of(GROUP) && GROUP.is_multiple_of(KEYS)) };
        const { assert!(KEYS.is_multiple_of(2)) };
        let keys = self.keys.rows;
        let mut row = keys.row(key);
        let rows: [*const E; KEYS] = core::array::from_fn(|k| {
            // The last row stands in for those behind it. Step by step, without multiplications.
            if k > 0 && key + k < self.keys.end {
                row = row.wrapping_byte_offset(keys.stride());
            }
            row
        });
        // SAFETY: `run` checked the extents: lane + VECS * LANES <= BLOCK_Q, key + KEYS <=
        // BLOCK_KV (both are whole groups of eight), q_t and prob as long as they must be; the
        // rows are clamped to rows that exist, each `width` floats long.
        unsafe {
            let mut acc = [[[s.splat(0.0); VECS]; KEYS]; 2];
            for v in 0..VECS {
                let start = E::begin(s, self.quads.start(lane + v * S::LANES));
                for k in 0..KEYS {
                    acc[0][k][v] = start;
                }
            }
            let mut q = self.q_t.as_ptr().add(lane);
            let width = keys.width();
            let steps = width / E::STEP;
            let mut scales = [E::scale(s, rows[0].add(width)); KEYS];
            for k in 1..KEYS {
                scales[k] = E::scale(s, rows[k].add(width));
            }
            // One of head_dim, for one of the chains.
            macro_rules! step {
                ($d:expr, $chain:literal) => {
                    // The shorter side waits in registers, so that one more suffices for the other.
                    if KEYS < VECS {
                        let keys: [S::Vector; KEYS] = core::array::from_fn(|k| {
                            E::splat(s, rows[k].add(E::STEP * $d), scales[k])
                        });
                        for v in 0..VECS {
                            let query = s.load(q.add(v * S::LANES));
                            for k in 0..KEYS {
                                let sum = &mut acc[$chain][k][v];
                                *sum = E::mul_add(s, keys[k], query, *sum);
                            }
                        }
                    } else {
                        let queries: [S::Vector; VECS] =
                            core::array::from_fn(|v| s.load(q.add(v * S::LANES)));
                        for k in 0..KEYS {
                            let key = E::splat(s, rows[k].add(E::STEP * $d), scales[k]);
                            for v in 0..VECS {
                                let sum = &mut acc[$chain][k][v];
                                *sum = E::mul_add(s, key, queries[v], *sum);
                            }
                        }
                    }
                };
            }
            let prob = self.sweep.prob.as_mut_ptr().add(key * BLOCK_Q + lane);
            if together(S::ISA) {
                let mut d = 0;
                while d + 1 < steps {
                    step!(d, 0);
                    q = q.add(BLOCK_Q);
                    step!(d + 1, 1);
                    // Beyond the last row this may leave q_t, unread.
                    q = q.wrapping_add(BLOCK_Q);
                    d += 2;
                }
                if d < steps {
                    step!(d, 0);
                }
            } else {
                // The even elements wait in `prob`.
                let odd = q.wrapping_add(BLOCK_Q);
                for d in (0..steps).step_by(2) {
                    step!(d, 0);
                    q = q.wrapping_add(2 * BLOCK_Q);
                }
                unroll!(v in 0..VECS {
                    for k in 0..KEYS {
                        s.store(prob.add(k * BLOCK_Q + v * S::LANES), acc[0][k][v]);
                    }
                });
                q = odd;
                for d in (1..steps).step_by(2) {
                    step!(d, 1);
                    q = q.wrapping_add(2 * BLOCK_Q);
                }
            }
            // Not to be kept in registers beside the odd.
            let even = opaque(prob);
            unroll!(v in 0..VECS {
                let mut dots = [s.splat(0.0); KEYS];
                for k in 0..KEYS {
                    let even = if together(S::ISA) {
                        acc[0][k][v]
                    } else {
                        s.load(even.add(k * BLOCK_Q + v * S::LANES))
                    };
                    let queries = self.quads.queries(lane + v * S::LANES);
                    let (sums, end) = ([even, acc[1][k][v]], rows[k].add(width));
                    dots[k] = E::total(s, sums, end, self.quads.key(key + k), queries);
                }
                self.column::<S, KEYS, KNOWN>(s, (lane + v * S::LANES, key), dots);
            });
        }
    }

    /// From dot products of `KEYS` keys with the rows of the vector at `lane` to what is stored.
    ///
    /// # Safety
    /// The lanes must lie in the tile, the keys in the block.
    #[inline(always)]
    unsafe fn column<S: Simd, const KEYS: usize, const KNOWN: bool>(
        &mut self,
        s: S,
        (lane, key): (usize, usize),
        dots: [S::Vector; KEYS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let prob = self.sweep.prob.as_mut_ptr().add(key * BLOCK_Q + lane);
            if !KNOWN {
                for k in 0..KEYS {
                    s.store(prob.add(k * BLOCK_Q), dots[k]);
                }
                return;
            }
            let sum_ptr = self.sweep.block_sum.0.as_mut_ptr().add(lane);
            let mut sum = s.load(sum_ptr);
            let row_ref = s.load(self.sweep.row_ref.0.as_ptr().add(lane));
            let shift = s.sub(s.splat(0.0), row_ref);
            let largest_ptr = self.largest.0.as_mut_ptr().add(lane);
            let mut largest = if E::PRODUCTS > 1 { s.load(largest_ptr) } else { s.splat(0.0) };
            // Four at a time, where there are four: enough to hide each other's latency.
            unroll!(k in 0..KEYS {
                let prob = prob.add(k * BLOCK_Q);
                if KEYS.is_multiple_of(4) && k.is_multiple_of(4) {
                    let four = [dots[k], dots[(k + 1) % KEYS], dots[(k + 2) % KEYS], dots[(k + 3) % KEYS]];
                    let p = self.sweep.probabilities(s, (lane, key + k), four, shift);
                    sum = s.add(s.add(sum, s.add(p[0], p[1])), s.add(p[2], p[3]));
                    for (i, p) in p.into_iter().enumerate() {
                        s.store(prob.add(i * BLOCK_Q), p);
                        // As in `note_largest`.
                        largest = s.max(p, largest);
                    }
                } else if !KEYS.is_multiple_of(4) && k.is_multiple_of(2) {
                    let two = [dots[k], dots[(k + 1) % KEYS]];
                    let p = self.sweep.probabilities(s, (lane, key + k), two, shift);
                    sum = s.add(sum, s.add(p[0], p[1]));
                    largest = s.max(p[1], s.max(p[0], largest));
                    s.store(prob, p[0]);
                    s.store(prob.add(BLOCK_Q), p[1]);
                }
            });
            s.store(sum_ptr, sum);
            if E::PRODUCTS > 1 {
                s.store(largest_ptr, largest);
            }
        }
    }
}

/// Probabilities of plain scores while the keys lie along the lanes: as many powers as there are rows, where
/// rows along the lanes would take one for each key.
struct AlongKeys<'a, 'b, S: Simd, T> {
    s: S,
    sweep: &'a Sweep<'b, T>,
    lane: usize,
    /// The rows' sums over the block.
    sum: S::Vector,
}

impl<'a, 'b, S: Simd, T: Scoring> AlongKeys<'a, 'b, S, T> {
    /// # Safety
    /// A vector of rows must exist at `lane`.
    #[inline(always)]
    unsafe fn new(s: S, sweep: &'a Sweep<'b, T>, lane: usize) -> Self {
        // SAFETY: the caller's promise.
        let sum = unsafe { s.load(sweep.block_sum.0.as_ptr().add(lane)) };
        Self { s, sweep, lane, sum }
    }
}

impl<S: Simd, T: Scoring> Then<S> for AlongKeys<'_, '_, S, T> {
    // Sums of lanes without a row count for nothing.
    const LOOSE: bool = true;

    #[inline(always)]
    fn rows<const ROWS: usize>(&mut self, dots: [S::Vector; ROWS]) -> [S::Vector; ROWS] {
        self.sweep.powers_of_rows(self.s, self.lane, dots)
    }

    #[inline(always)]
    fn keys(&mut self, p: [S::Vector; 4]) {
        let s = self.s;
        self.sum = s.add(s.add(self.sum, s.add(p[0], p[1])), s.add(p[2], p[3]));
    }

    #[inline(always)]
    fn row(&mut self, keys: &[f32]) {
        let mut lanes = self.s.to_array(self.sum);
        for p in keys.chunks_exact(4) {
            lanes[0] = (lanes[0] + (p[0] + p[1])) + (p[2] + p[3]);
        }
        self.sum = self.s.vector(lanes);
    }
}
