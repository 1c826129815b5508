//! What is multiplied in pairs of `bf16`: probabilities and values of two keys side by side.
//!
//! ```text
//! prob   [keys][BLOCK_Q] floats        ->   [keys / 2][BLOCK_Q] pairs, rounded, in place
//! values [keys][value_dim]             ->   [keys / 2][value_dim] pairs, rounded if they are not bf16
//! ```
//!
//! Keys and queries are in pairs as they lie, along head_dim. So the score and the value micro-kernel are
//! those of floats, with half the steps, and a dot product where there is a multiply-add
//! ([`Stored::mul_add`](crate::simd::Stored::mul_add)). Of an odd number of keys the last has a hidden one
//! beside it.

use std::ops::Range;

use super::fetch::{Soon, lines};
use super::{BLOCK_KV, BLOCK_Q, GROUP, Lanes};
use crate::simd::{Kernel, Simd, Stored};
use crate::storage::{StoredRows, with_stored};

/// Pairs the values of `keys` at the front of `to`, row by row.
pub(crate) struct Interleave<'a, 'p> {
    pub(crate) of: &'a StoredRows<'p>,
    pub(crate) keys: Range<usize>,
    /// `[keys / 2][value_dim]`
    pub(crate) to: &'a mut [f32],
    /// The keys, which are read behind the values, where memory sets the pace: to ask for meanwhile.
    pub(crate) then: Option<Soon>,
}

impl Kernel for Interleave<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_stored!(self.of.format, E => self.of::<S, E>(s));
    }
}

impl Interleave<'_, '_> {
    #[inline(always)]
    fn of<S: Simd, E: Stored>(self, s: S) {
        let width = self.of.width();
        assert!(self.to.len() >= self.keys.len().div_ceil(2) * width);
        let mut to = self.to.as_mut_ptr();
        // No closure: one with so much in it would not be inlined.
        macro_rules! pair {
            ($first:expr, $second:expr) => {
                // SAFETY: both are rows of `width` numbers, and `to` has as many for each two of them.
                unsafe { pair_rows::<S, E>(s, [$first.cast(), $second.cast()], (to, width)) };
                to = to.wrapping_add(width);
            };
        }
        let lines = lines(width * size_of::<E>());
        let mut index = 0;
        let mut left: Option<*const u8> = None;
        for stretch in self.of.rows.stretches(self.keys) {
            let mut row = 0;
            if let Some(first) = left.take() {
                pair!(first, stretch.row(0));
                row = 1;
            }
            while row + 1 < stretch.len() {
                if let Some(then) = self.then {
                    for line in 0..lines {
                        then.fetch(index, 2, line);
                    }
                }
                index += 2;
                pair!(stretch.row(row), stretch.row(row + 1));
                row += 2;
            }
            left = (row < stretch.len()).then(|| stretch.row(row));
        }
        if let Some(first) = left {
            pair!(first, first);
            // SAFETY: the row that was just written.
            unsafe { clear_second(s, (to.wrapping_sub(width), width)) };
        }
    }
}

/// # Safety
/// Both rows must have `width` numbers, and `to` as many pairs.
#[inline(always)]
unsafe fn pair_rows<S: Simd, E: Stored>(
    s: S,
    [first, second]: [*const E; 2],
    (to, width): (*mut f32, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = [E::scale(s, first.add(width)), E::scale(s, second.add(width))];
        let whole = width / S::LANES * S::LANES;
        for column in (0..whole).step_by(S::LANES) {
            let rows = [first.add(column), second.add(column)];
            s.store(to.add(column), E::load_pairs(s, rows, S::LANES, scales));
        }
        if whole < width {
            let (rows, count) = ([first.add(whole), second.add(whole)], width - whole);
            s.store_first(to.add(whole), count, E::load_pairs(s, rows, count, scales));
        }
    }
}

/// Makes the second of each pair 0.
///
/// # Safety
/// `width` pairs must be at `to`.
#[inline(always)]
unsafe fn clear_second<S: Simd>(s: S, (to, width): (*mut f32, usize)) {
    // By its bits a pair of which the second is negative.
    let second = s.splat(-0.0);
    for column in (0..width).step_by(S::LANES) {
        let count = (width - column).min(S::LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.add(column);
            s.store_first(to, count, s.clear_where_negative_bf16(second, s.load_first(to, count)));
        }
    }
}

/// How the rows' probabilities are rounded before values are multiplied by them.
#[derive(Debug, Clone)]
pub(crate) struct Rounding {
    /// The largest so far.
    pub(crate) largest: Lanes,
    /// What they are multiplied by, so that the largest is a rounded number: nearly 1.
    factor: Lanes,
    /// The sums of what they are then.
    pub(crate) sum: Lanes,
    /// The largest of the block at hand.
    pub(crate) of_block: Lanes,
}

impl Rounding {
    pub(crate) const EMPTY: Self = Self {
        largest: Lanes::splat(0.0),
        factor: Lanes::splat(1.0),
        sum: Lanes::splat(0.0),
        of_block: Lanes::splat(0.0),
    };

    /// Where rows of the vector at `lane` have their largest probability so far in the block at hand, makes
    /// their factors such that it is a rounded number. Gives what earlier sums must be multiplied by, if not
    /// all by 1.
    ///
    /// # Safety
    /// The lanes must be there.
    #[inline(always)]
    unsafe fn anchor<S: Simd>(&mut self, s: S, lane: usize) -> Option<S::Vector> {
        let at = |lanes: &mut Lanes| lanes.0.as_mut_ptr().wrapping_add(lane);
        let (largest, factor, sum) =
            (at(&mut self.largest), at(&mut self.factor), at(&mut self.sum));
        // SAFETY: the caller's promise.
        unsafe {
            let max = s.load(self.of_block.0.as_ptr().add(lane));
            let (before, old) = (s.load(largest), s.load(factor));
            let grows = s.lt(before, max);
            if !s.any(grows) {
                return None;
            }
            let [rounded, _] = s.unpair_bf16(s.pair_bf16(max, max));
            let now = s.select(grows, s.div(rounded, max), old);
            let change = s.div(now, old);
            s.store(largest, s.select(grows, max, before));
            s.store(factor, now);
            s.store(sum, s.mul(s.load(sum), change));
            Some(change)
        }
    }
}

/// Pairs a visit's probabilities in place, multiplied by the rows' factors, and adds what they are then to
/// the sums. Gives what earlier sums of values must be multiplied by.
pub(crate) struct PairUp<'a> {
    /// `[BLOCK_KV][BLOCK_Q]`, and then half as many rows.
    pub(crate) prob: &'a mut [f32],
    /// From the start of a group.
    pub(crate) keys: Range<usize>,
    /// Whole vectors.
    pub(crate) lanes: usize,
    pub(crate) rounding: &'a mut Rounding,
}

impl Kernel for PairUp<'_> {
    type Output = Lanes;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Lanes {
        let Range { start, end } = self.keys;
        assert!(start.is_multiple_of(GROUP) && end <= BLOCK_KV);
        assert!(self.lanes.is_multiple_of(S::LANES) && self.lanes <= BLOCK_Q);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        let prob = self.prob.as_mut_ptr();
        let mut changes = Lanes::splat(1.0);
        for lane in (0..self.lanes).step_by(S::LANES) {
            let prob = prob.wrapping_add(lane);
            // SAFETY: the keys and the lanes lie in `prob`, and the lanes are there.
            unsafe {
                if let Some(change) = self.rounding.anchor(s, lane) {
                    s.store(changes.0.as_mut_ptr().add(lane), change);
                }
                let factor = s.load(self.rounding.factor.0.as_ptr().add(lane));
                let sum = pair_keys(s, prob, start..end, factor);
                let to = self.rounding.sum.0.as_mut_ptr().add(lane);
                s.store(to, s.add(s.load(to), sum));
            }
        }
        changes
    }
}

/// Chains of operations that need not wait for each other. Which of them a key belongs to does not depend on
/// where a visit begins.
const CHAINS: usize = GROUP / 2;

/// Pairs a vector's probabilities, multiplied by their rows' factors, in place; gives the sums of what they are
/// then. `keys` begin with a group.
///
/// # Safety
/// The keys must lie in the block at `prob`, which must be the caller's to write; with instructions for pairs
/// switched on.
#[inline(always)]
unsafe fn pair_keys<S: Simd>(
    s: S,
    prob: *mut f32,
    keys: Range<usize>,
    factor: S::Vector,
) -> S::Vector {
    // SAFETY: the caller's promise.
    let one = unsafe { s.pair_bf16(s.splat(1.0), s.splat(1.0)) };
    let mut sums = [s.splat(0.0); CHAINS];
    let mut key = keys.start;
    let (mut from, mut to) =
        (prob.wrapping_add(key * BLOCK_Q), prob.wrapping_add(key / 2 * BLOCK_Q));
    macro_rules! pair {
        ($chain:expr, $second:expr) => {
            // SAFETY: the caller's promise; a row is written when it has been read.
            unsafe {
                let first = s.mul(s.load(from), factor);
                let pair = s.pair_bf16(first, s.mul($second, factor));
                s.store(to, pair);
                sums[$chain] = s.dot_bf16(pair, one, sums[$chain]);
            }
            key += 2;
            (from, to) = (from.wrapping_add(2 * BLOCK_Q), to.wrapping_add(BLOCK_Q));
        };
    }
    while key + GROUP <= keys.end {
        for chain in 0..CHAINS {
            pair!(chain, s.load(from.add(BLOCK_Q)));
        }
    }
    for chain in 0..CHAINS {
        if key + 1 < keys.end {
            pair!(chain, s.load(from.add(BLOCK_Q)));
        } else if key < keys.end {
            // No key is hidden.
            pair!(chain, s.splat(-0.0));
        }
    }
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}
