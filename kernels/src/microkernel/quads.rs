//! What is multiplied in quads of integers of eight bits: queries and keys of which four numbers of a row,
//! side by side, stand where a float would. The score micro-kernel is that of floats, with a quarter of the
//! steps, and a dot product of integers where there is a multiply-add
//! ([`Stored::mul_add`](crate::simd::Stored::mul_add)).
//!
//! ```text
//! mean[d]    = mean of key[j][d] over some keys j of the split
//! rest[j]    = key[j] - mean                        or key[j], if its largest magnitude is no larger
//! k[j]       = round(rest[j] / key_scale[j]) + 128  key_scale = largest magnitude / 127
//! q[i]       = round(query[i] / query_scale[i])     query_scale likewise
//! start[i]   = -128 * sum of q[i]                   where the sum of products begins
//!
//! query[i] . key[j] = (start[i] + q[i] . k[j]) * key_scale[j] * query_scale[i] [+ query[i] . mean]
//! ```
//!
//! Keys of real models have a few channels that are far from 0 in every token: with the mean they leave, and
//! what remains of each key is resolved more finely (SageAttention, Zhang et al., 2024, section 4.2). There
//! the mean is that of all tokens and drops out of the softmax. Here it is a split's, and added back, exact
//! but for rounding: so no pass over all keys comes first, scores are what they are wherever they are asked
//! for or capped, and a channel that turns slowly with the position, as RoPE has it, leaves as well. Since any
//! vector would do, that of a few keys does. Keys that it would not bring nearer to 0 keep away from it: so no
//! key is rounded more coarsely than it would be alone, whatever others hold, the hidden ones among them.
//!
//! What is not finite makes its row's scale NaN, and with it all of the row's scores. Rows without a number
//! of at least [`LEAST`] count as rows of zeros.

use std::ops::Range;

use super::{BLOCK_KV, BLOCK_Q};
use crate::simd::{Kernel, MAX_LANES, Simd, Stored};
use crate::storage::{StoredRows, with_stored};

/// The largest integer that is used.
const MOST: f32 = 127.0;

/// The largest magnitude from which on a row is more than zeros: far enough from the subnormal numbers for its
/// inverse to be finite, and its scale exact.
pub(super) const LEAST: f32 = 1e-30;

/// The most numbers in a row, so that sums of products stay below 2^31.
pub(crate) const MAX_WIDTH: usize = 1 << 16;

/// Whether so many rows of a sequence are worth rounding the keys for.
pub(crate) fn pays(rows: usize) -> bool {
    rows >= LEAST_ROWS
}

/// See [`pays`].
pub(crate) const LEAST_ROWS: usize = 48;

/// Floats that a row of so many numbers takes.
pub(crate) const fn quads(width: usize) -> usize {
    width.div_ceil(4)
}

/// What turns the sums of a block's products into dot products.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quads<'a> {
    pub(crate) keys: KeyQuads<'a>,
    pub(crate) queries: QueryQuads<'a>,
}

impl Quads<'_> {
    /// Those of floats: nobody asks.
    pub(crate) const NONE: Self = Self { keys: KeyQuads::NONE, queries: QueryQuads::NONE };

    /// Where the sums of the queries from `lane` on begin.
    #[inline(always)]
    pub(crate) fn start(&self, lane: usize) -> *const f32 {
        self.queries.facts.as_ptr().wrapping_add(START + lane)
    }

    /// Where the sums of the queries from `lane` on begin, and their scales.
    #[inline(always)]
    pub(crate) fn of_rows(&self, lane: usize) -> [*const f32; 2] {
        [self.start(lane), self.queries(lane)[0]]
    }

    /// The scale of key `key`, and which of two vectors is added to the products with it.
    #[inline(always)]
    pub(crate) fn key(&self, key: usize) -> [*const f32; 2] {
        [self.keys.scale, self.keys.addend_at].map(|keys| keys.as_ptr().wrapping_add(key))
    }

    /// The scales of the queries from `lane` on, and the first of what may be added.
    #[inline(always)]
    pub(crate) fn queries(&self, lane: usize) -> [*const f32; 2] {
        [SCALE, ADDENDS].map(|fact| self.queries.facts.as_ptr().wrapping_add(fact + lane))
    }
}

/// A block's keys in integers, and what goes with them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyQuads<'a> {
    /// `[head_dim]`
    pub(crate) mean: &'a [f32],
    scale: &'a [f32],
    /// Where behind [`ADDENDS`] stands what is added to products with the key, integers by their bits: `BLOCK_Q`
    /// where the mean was taken from the key, else 0.
    addend_at: &'a [f32],
    /// `[keys][quads]`
    pub(crate) rows: &'a [f32],
}

impl<'a> KeyQuads<'a> {
    /// Those of keys that have no such.
    pub(crate) const NONE: Self = Self { mean: &[], scale: &[], addend_at: &[], rows: &[] };

    /// What was written to scratch of [`KeyRoom::floats`].
    pub(crate) fn new(scratch: &'a [f32], head_dim: usize) -> Self {
        let (mean, rest) = scratch.split_at(KeyRoom::mean(head_dim));
        let (scale, rest) = rest.split_at(BLOCK_KV);
        let (addend_at, rows) = rest.split_at(BLOCK_KV);
        Self { mean: &mean[..head_dim], scale, addend_at, rows }
    }
}

/// A tile's queries in integers, and what goes with them, `[..][BLOCK_Q]`: behind its floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryQuads<'a> {
    /// `[quads][BLOCK_Q]`
    pub(crate) rows: &'a [f32],
    facts: &'a [f32],
}

/// Rows of [`QueryQuads::facts`], as offsets: the scales, where sums begin (integers by their bits), and what may
/// be added to products, zeros and the products with the mean of the split at hand.
const SCALE: usize = 0;
const START: usize = BLOCK_Q;
const ADDENDS: usize = 2 * BLOCK_Q;
const OF_MEAN: usize = ADDENDS + BLOCK_Q;
const FACTS: usize = 4;

/// Rows of a tile behind those of its floats.
pub(crate) const fn query_rows(head_dim: usize) -> usize {
    quads(head_dim) + FACTS
}

impl<'a> QueryQuads<'a> {
    const NONE: Self = Self { rows: &[], facts: &[] };

    /// What [`QuantizeQueries`] and [`OfMean`] wrote to `q_t`.
    pub(crate) fn new(q_t: &'a [f32], head_dim: usize) -> Self {
        let (rows, facts) = q_t[head_dim * BLOCK_Q..].split_at(quads(head_dim) * BLOCK_Q);
        Self { rows, facts: &facts[..FACTS * BLOCK_Q] }
    }
}

/// Where a block's keys in integers go.
pub(crate) struct KeyRoom<'a> {
    /// `[head_dim]`, and up to a whole vector.
    mean: &'a mut [f32],
    scale: &'a mut [f32],
    addend_at: &'a mut [f32],
    /// `[keys][quads]`; a row's last vector may reach beyond it.
    rows: &'a mut [f32],
}

impl<'a> KeyRoom<'a> {
    /// Floats for keys of so many numbers.
    pub(crate) const fn floats(head_dim: usize) -> usize {
        let rows = BLOCK_KV.saturating_mul(quads(head_dim)).saturating_add(MAX_LANES);
        rows.saturating_add(2 * BLOCK_KV).saturating_add(Self::mean(head_dim))
    }

    const fn mean(head_dim: usize) -> usize {
        head_dim.div_ceil(MAX_LANES).saturating_mul(MAX_LANES)
    }

    /// In scratch of [`KeyRoom::floats`].
    pub(crate) fn new(scratch: &'a mut [f32], head_dim: usize) -> Self {
        let (mean, rest) = scratch.split_at_mut(Self::mean(head_dim));
        let (scale, rest) = rest.split_at_mut(BLOCK_KV);
        let (addend_at, rows) = rest.split_at_mut(BLOCK_KV);
        Self { mean, scale, addend_at, rows }
    }
}

/// Makes integers of `keys`, a block's, less a mean.
pub(crate) struct QuantizeKeys<'a, 'p> {
    pub(crate) of: &'a StoredRows<'p>,
    pub(crate) keys: Range<usize>,
    /// The keys of the block's split, of some of which the mean is taken; `None`: it is there.
    pub(crate) split: Option<Range<usize>>,
    pub(crate) to: KeyRoom<'a>,
}

/// Of so many keys one counts for the mean.
const SAMPLE: usize = 32;

impl Kernel for QuantizeKeys<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        with_stored!(self.of.format, E => {
            if let Some(keys) = self.split.take() {
                self.mean::<S, E>(s, keys);
            }
            self.of::<S, E>(s);
        });
    }
}

impl QuantizeKeys<'_, '_> {
    #[inline(always)]
    fn mean<S: Simd, E: Stored>(&mut self, s: S, keys: Range<usize>) {
        let (width, mean) = (self.of.width(), &mut *self.to.mean);
        assert!(mean.len() >= width.next_multiple_of(S::LANES));
        mean.fill(0.0);
        let sampled = keys.len().div_ceil(SAMPLE);
        for key in keys.step_by(SAMPLE) {
            let row = self.of.row(key);
            // SAFETY: a row of `width` numbers, and the mean has whole vectors.
            unsafe { add_row::<S, E>(s, row.as_ptr(), (mean.as_mut_ptr(), width)) };
        }
        let part = s.splat(1.0 / sampled.max(1) as f32);
        for at in (0..width).step_by(S::LANES) {
            // SAFETY: the mean has whole vectors.
            unsafe {
                let at = mean.as_mut_ptr().add(at);
                let mean = s.mul(s.load(at), part);
                // A row that is not finite answers for itself.
                let finite = s.ge(s.splat(0.0), s.mul(mean, s.splat(0.0)));
                s.store(at, s.select(finite, mean, s.splat(0.0)));
            }
        }
    }

    #[inline(always)]
    fn of<S: Simd, E: Stored>(self, s: S) {
        let Self { of, keys, to: KeyRoom { mean, scale, addend_at, rows }, .. } = self;
        let (width, len) = (of.width(), keys.len());
        assert!(len <= BLOCK_KV && mean.len() >= width.next_multiple_of(S::LANES));
        assert!(rows.len() >= len * quads(width) + S::LANES);
        let mut key = 0;
        for stretch in of.rows.stretches(keys) {
            for row in 0..stretch.len() {
                let to = rows.as_mut_ptr().wrapping_add(key * quads(width)).cast();
                let (row, mean) = (stretch.row(row).cast::<E>(), (mean.as_ptr(), width));
                // SAFETY: a row of `width` numbers, and there is room for it.
                (scale[key], addend_at[key]) = unsafe {
                    match width / S::LANES {
                        4 if width.is_multiple_of(S::LANES) => {
                            whole_row::<S, E, 4>(s, row, mean, to)
                        }
                        8 if width.is_multiple_of(S::LANES) => {
                            whole_row::<S, E, 8>(s, row, mean, to)
                        }
                        _ => quantize_row::<S, E>(s, row, mean, to),
                    }
                };
                key += 1;
            }
        }
        // Of what stands in for the keys behind the last.
        scale[key..].fill(0.0);
        addend_at[key..].fill(0.0);
    }
}

/// Adds a row to sums.
///
/// # Safety
/// `row` must have `width` numbers, and there must be whole vectors of sums for them.
#[inline(always)]
unsafe fn add_row<S: Simd, E: Stored>(s: S, row: *const E, (sums, width): (*mut f32, usize)) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = E::scale(s, row.add(width));
        for at in (0..width).step_by(S::LANES) {
            let x = load::<S, E>(s, row.add(at), width - at, scale);
            let sum = sums.add(at);
            s.store(sum, s.add(s.load(sum), x));
        }
    }
}

/// A vector, or the `left` numbers that there are and zeros.
///
/// # Safety
/// As many must be readable at `ptr`, aligned.
#[inline(always)]
unsafe fn load<S: Simd, E: Stored>(
    s: S,
    ptr: *const E,
    left: usize,
    scale: E::Scale<S>,
) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe {
        if left < S::LANES { E::load_first(s, ptr, left, scale) } else { E::load(s, ptr, scale) }
    }
}

/// Writes a row in integers, less the mean if that is nearer to 0; gives their scale, and what is
/// added to products for it: see [`KeyQuads::addend_at`].
///
/// # Safety
/// `row` must have `width` numbers, the mean whole vectors of as many, and there must be room for whole
/// vectors of bytes.
#[inline(always)]
unsafe fn quantize_row<S: Simd, E: Stored>(
    s: S,
    row: *const E,
    (mean, width): (*const f32, usize),
    to: *mut u8,
) -> (f32, f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = E::scale(s, row.add(width));
        let (mut most, mut most_rest) = (s.splat(0.0), s.splat(0.0));
        for at in (0..width).step_by(S::LANES) {
            let x = load::<S, E>(s, row.add(at), width - at, scale);
            most = s.max_magnitude(most, x);
            most_rest = s.max_magnitude(most_rest, s.sub(x, s.load(mean.add(at))));
        }
        let found = Found::new(s, most, most_rest);
        for at in (0..width).step_by(S::LANES) {
            let x = load::<S, E>(s, row.add(at), width - at, scale);
            let x = if found.is_rest { s.sub(x, s.load(mean.add(at))) } else { x };
            store_bytes(s, x, found.inverse, to.add(at));
        }
        (found.scale, found.addend_at())
    }
}

/// The same of a row of `VECS` whole vectors, which stay in registers.
///
/// # Safety
/// As [`quantize_row`].
#[inline(always)]
unsafe fn whole_row<S: Simd, E: Stored, const VECS: usize>(
    s: S,
    row: *const E,
    (mean, width): (*const f32, usize),
    to: *mut u8,
) -> (f32, f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = E::scale(s, row.add(width));
        let mut x = [s.splat(0.0); VECS];
        let (mut rest, mut most, mut most_rest) = (x, x[0], x[0]);
        for v in 0..VECS {
            let at = v * S::LANES;
            x[v] = E::load(s, row.add(at), scale);
            rest[v] = s.sub(x[v], s.load(mean.add(at)));
            most = s.max_magnitude(most, x[v]);
            most_rest = s.max_magnitude(most_rest, rest[v]);
        }
        let found = Found::new(s, most, most_rest);
        let numbers = if found.is_rest { rest } else { x };
        for v in 0..VECS {
            store_bytes(s, numbers[v], found.inverse, to.add(v * S::LANES));
        }
        (found.scale, found.addend_at())
    }
}

/// How a row is rounded.
struct Found {
    is_rest: bool,
    inverse: f32,
    scale: f32,
}

impl Found {
    /// By the largest magnitudes of a row, and of what is left without the mean.
    #[inline(always)]
    fn new<S: Simd>(s: S, most: S::Vector, most_rest: S::Vector) -> Self {
        let (most, most_rest) = (s.largest_magnitude(most), s.largest_magnitude(most_rest));
        let is_rest = most_rest < most;
        let most = if is_rest { most_rest } else { most };
        let inverse = if most < LEAST { 0.0 } else { MOST / most };
        let scale = if most.is_finite() { most / MOST } else { f32::NAN };
        Self { is_rest, inverse, scale }
    }

    #[inline(always)]
    fn addend_at(&self) -> f32 {
        f32::from_bits(if self.is_rest { BLOCK_Q as u32 } else { 0 })
    }
}

/// Writes numbers times `inverse` as integers without a sign.
///
/// # Safety
/// There must be room for a vector of bytes.
#[inline(always)]
unsafe fn store_bytes<S: Simd>(s: S, x: S::Vector, inverse: f32, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { s.store_bytes(to, s.mul_add(x, s.splat(inverse), s.splat(128.0))) };
}

/// By what numbers are multiplied of which the largest magnitudes are these, so that the largest is `limit`, and
/// the scales of what they become: lane by lane.
#[inline(always)]
pub(super) fn lanes<S: Simd>(s: S, most: S::Vector, limit: f32) -> (S::Vector, S::Vector) {
    let inverse = s.div(s.splat(limit), most);
    let inverse = s.select(s.lt(most, s.splat(LEAST)), s.splat(0.0), inverse);
    // With NaN, which the difference is, of what is not finite.
    (inverse, s.add(s.div(most, s.splat(limit)), s.sub(most, most)))
}

/// Makes integers of a tile's queries.
pub(crate) struct QuantizeQueries<'a> {
    /// `[head_dim][BLOCK_Q]` floats, and behind them room for as many rows as [`query_rows`] says.
    pub(crate) q_t: &'a mut [f32],
    pub(crate) head_dim: usize,
    /// Whole vectors.
    pub(crate) lanes: usize,
}

impl Kernel for QuantizeQueries<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (width, zero) = (self.head_dim, s.splat(0.0));
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        let (floats, to) = self.q_t.split_at_mut(width * BLOCK_Q);
        let (to, facts) = to.split_at_mut(quads(width) * BLOCK_Q);
        assert!(facts.len() >= FACTS * BLOCK_Q);
        for lane in (0..self.lanes).step_by(S::LANES) {
            // No closure: it might not be inlined.
            macro_rules! column {
                ($d:expr) => {
                    if $d < width {
                        // SAFETY: one of head_dim, and a vector of the tile's.
                        unsafe { s.load(floats.as_ptr().add($d * BLOCK_Q + lane)) }
                    } else {
                        zero
                    }
                };
            }
            let mut most = zero;
            for d in 0..width {
                most = s.max_magnitude(most, column!(d));
            }
            let (inverse, scale) = lanes(s, most, MOST);
            // 128 in each byte.
            let (by, mut sum) = (s.splat(f32::from_bits(0x8080_8080)), zero);
            for quad in 0..quads(width) {
                let mut four = [zero; 4];
                for n in 0..4 {
                    four[n] = s.mul(column!(4 * quad + n), inverse);
                }
                let four = s.quad_of_ints(four);
                // SAFETY: the lengths were checked, and this runs below `vectorize_int8`.
                unsafe {
                    sum = s.dot_int8(by, four, sum);
                    s.store(to.as_mut_ptr().add(quad * BLOCK_Q + lane), four);
                }
            }
            // SAFETY: a vector of the tile's lanes.
            unsafe {
                let facts = facts.as_mut_ptr().add(lane);
                s.store(facts.add(SCALE), scale);
                s.store(facts.add(START), s.sub_ints(zero, sum));
                s.store(facts.add(ADDENDS), zero);
            }
        }
    }
}

/// The products of a tile's queries with a split's mean.
pub(crate) struct OfMean<'a> {
    /// As that of [`QuantizeQueries`].
    pub(crate) q_t: &'a mut [f32],
    /// `[head_dim]`
    pub(crate) mean: &'a [f32],
    /// Whole vectors.
    pub(crate) lanes: usize,
}

impl Kernel for OfMean<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        let (floats, rest) = self.q_t.split_at_mut(self.mean.len() * BLOCK_Q);
        let to = &mut rest[quads(self.mean.len()) * BLOCK_Q..][..FACTS * BLOCK_Q];
        for lane in (0..self.lanes).step_by(S::LANES) {
            // Four chains, so that none waits.
            let mut sums = [s.splat(0.0); 4];
            let fours = self.mean.chunks_exact(4);
            let left = fours.remainder();
            let mut query = floats.as_ptr().wrapping_add(lane);
            macro_rules! add {
                ($chain:expr, $x:expr) => {
                    // SAFETY: as many rows of queries as the mean has numbers.
                    sums[$chain] = s.mul_add(unsafe { s.load(query) }, s.splat($x), sums[$chain]);
                    query = query.wrapping_add(BLOCK_Q);
                };
            }
            for four in fours {
                for chain in 0..4 {
                    add!(chain, four[chain]);
                }
            }
            for (chain, &x) in left.iter().enumerate() {
                add!(chain % 4, x);
            }
            let [a, b, c, d] = sums;
            // SAFETY: a vector of the tile's lanes.
            unsafe {
                let to = to.as_mut_ptr().add(OF_MEAN + lane);
                s.store(to, s.add(s.add(a, b), s.add(c, d)));
            }
        }
    }
}
