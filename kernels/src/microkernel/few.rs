//! Scores of few queries, as in decoding: keys lie along the lanes, so that a vector is not mostly
//! empty.
//!
//! ```text
//! for each run of LANES keys
//!   acc = 0                                        accumulators: 2 x ROWS vectors
//!   for each line of head_dim
//!     ask for this line of a later run             8 KiB on; behind the last, and of narrow numbers, for values
//!     for each eight numbers of it, sixteen halves or 32 integers
//!       packed = these columns of the keys         transposed as they are loaded, as if they were floats
//!       for each of its 8 vectors                  1, 2 or 4 columns by turns in a lane
//!         key_t = unpack(packed)
//!         acc[d % 2][r] += key_t[d] * splat(q_t[d][r])
//!   dot[r] = acc[0][r] + acc[1][r]
//!   prob[key][r] = dot[r], or its power            transposed back
//! ```
//!
//! With AVX-512 a key of 128 floats takes 16 loads and 24 shuffles, whatever the rows, and 8
//! multiply-adds a row, where queries along the lanes would take 128; up to 8 rows that is less. Where
//! registers are few, and behind the last eight columns, four are taken at a time, for twice the loads.
//! Each score is the sum of the same two chains in the same order as in a wide tile: its bits are the same.

use super::block::TypedRows;
use super::fetch::{KeysAhead, Soon};
use super::{BLOCK_Q, GROUP};
use crate::simd::{Isa, MAX_LANES, Simd, Stored, opaque};
use crate::storage::Format;

/// The most rows for which keys along the lanes are the faster way, on this instruction set.
pub(crate) const fn most_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Bf16 | Isa::Avx512 => 8,
        Isa::Avx2 | Isa::Neon => 4,
        Isa::Portable => 2,
    }
}

/// Whether a vector with so many rows of this width is computed so, with keys that are stored as `E`.
#[inline(always)]
pub(crate) fn fits<E: Stored>(isa: Isa, rows: usize, width: usize) -> bool {
    E::FEW && rows <= most_rows(isa) && width.is_multiple_of(E::COLUMNS)
}

/// Whether narrow keys and values are widened by the kernels that read them, and not into scratch first,
/// where an item has so many rows: as many as have keys along the lanes.
pub(crate) fn reads_narrow(isa: Isa, rows: usize, (keys, head_dim): (Format, usize)) -> bool {
    rows <= most_rows(isa) && head_dim.is_multiple_of(keys.columns())
}

/// Keys that are taken together: whole vectors and whole groups.
pub(crate) const fn run<S: Simd>() -> usize {
    if S::LANES > GROUP { S::LANES } else { GROUP }
}

/// The rows that are computed for `rows` rows: there are tiles of 1, 2, 4 and 8.
pub(crate) fn tile_rows(rows: usize) -> usize {
    rows.next_power_of_two()
}

/// A run of `LANES` keys against the rows of one vector.
#[derive(Clone, Copy)]
pub(crate) struct Few<'a, E> {
    pub(crate) keys: TypedRows<'a, E>,
    /// The first key.
    pub(crate) key: usize,
    /// What is read behind the block's keys.
    pub(crate) values: Soon,
    /// As that of the scores, from the vector's first row on.
    pub(crate) q_t: *const f32,
    /// Where the rows' sums begin, and their scales: of integers.
    pub(crate) quads: [*const f32; 2],
    /// How many rows there are; the lanes behind them become 0, or, where nobody reads them, anything.
    pub(crate) rows: usize,
    /// `[LANES][BLOCK_Q]`, from the vector's first row on: where dot products go, or what becomes of them.
    pub(crate) prob: *mut f32,
}

/// What becomes of dot products before they are stored.
pub(crate) trait Then<S: Simd> {
    /// Whether what is stored in lanes without a row is read by nobody.
    const LOOSE: bool;

    /// The keys of a run lie along the lanes, one vector for each of the rows.
    fn rows<const ROWS: usize>(&mut self, dots: [S::Vector; ROWS]) -> [S::Vector; ROWS];

    /// Four keys of those in turn: the rows lie along the lanes.
    fn keys(&mut self, four: [S::Vector; 4]);

    /// All keys, of the first row alone.
    fn row(&mut self, keys: &[f32]);
}

/// Nothing.
impl<S: Simd> Then<S> for () {
    const LOOSE: bool = false;

    #[inline(always)]
    fn rows<const ROWS: usize>(&mut self, dots: [S::Vector; ROWS]) -> [S::Vector; ROWS] {
        dots
    }

    #[inline(always)]
    fn keys(&mut self, _four: [S::Vector; 4]) {}

    #[inline(always)]
    fn row(&mut self, _keys: &[f32]) {}
}

impl<E: Stored> Few<'_, E> {
    /// # Safety
    /// `LANES` keys from `key` on must exist; the rows and their width must be such as [`fits`]; a
    /// vector of every row of `q_t` and `prob` must be readable and writable, and of integers one of `quads`.
    #[inline(always)]
    pub(crate) unsafe fn dots<S: Simd, T: Then<S>>(self, s: S, then: &mut T) {
        // SAFETY: the caller's promise.
        unsafe {
            match tile_rows(self.rows) {
                1 => self.tile::<S, T, 1>(s, then),
                2 => self.tile::<S, T, 2>(s, then),
                8 if most_rows(S::ISA) == 8 => self.tile::<S, T, 8>(s, then),
                _ => self.tile::<S, T, 4>(s, then),
            }
        }
    }

    /// # Safety
    /// As [`Few::dots`].
    #[inline(always)]
    unsafe fn tile<S: Simd, T: Then<S>, const ROWS: usize>(self, s: S, then: &mut T) {
        let stride = self.keys.stride();
        // One pointer for every four keys: with one for each the loop would have to reload them.
        let mut keys: [*const E; MAX_LANES / 4] =
            core::array::from_fn(|n| self.keys.row(self.key + 4 * n));
        let width = self.keys.width();
        let mut ends = keys;
        for end in &mut ends {
            *end = end.wrapping_add(width);
        }
        // SAFETY: behind the rows' numbers.
        let scale = unsafe { E::scales(s, ends, stride) };
        let mut q = self.q_t;
        let mut acc = [[s.splat(0.0); ROWS]; 2];
        let [begins, scales] = self.quads;
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            acc[0][r] = unsafe { E::begin_row(s, begins.wrapping_add(r)) };
        }
        let mut ahead = KeysAhead::new(self.keys, (self.key, S::LANES), self.values);
        // So many vectors of columns.
        macro_rules! round {
            ($columns:ident, $vectors:literal) => {
                // SAFETY: the caller's promise: as many columns of each key, of any alignment, and as many
                // rows of q_t.
                unsafe {
                    let mut floats = [core::ptr::null(); MAX_LANES / 4];
                    for (floats, key) in floats.iter_mut().zip(keys) {
                        *floats = key.cast();
                    }
                    let packed = s.$columns(floats, stride);
                    for p in 0..$vectors {
                        let columns = E::unpack(s, packed[p], scale);
                        for n in 0..E::VECTORS {
                            let c = p * E::VECTORS + n;
                            for r in 0..ROWS {
                                let query = s.splat(*q.add(c * BLOCK_Q + r));
                                acc[c % 2][r] = E::mul_add(s, columns[n], query, acc[c % 2][r]);
                            }
                        }
                    }
                }
                for key in &mut keys {
                    *key = opaque(key.wrapping_add($vectors / 4 * E::COLUMNS));
                }
                q = q.wrapping_add($vectors * E::VECTORS * BLOCK_Q);
            };
        }
        // A line of each key at a time: four rounds of four vectors.
        let step = 4 * E::COLUMNS;
        for start in (0..width).step_by(step) {
            ahead.step(start / step, S::LANES);
            let mut rounds = (width - start).min(step) / E::COLUMNS;
            // Where there are registers for twice as many.
            if S::LANES == MAX_LANES {
                for _ in 0..rounds / 2 {
                    round!(eight_columns, 8);
                }
                rounds %= 2;
            }
            for _ in 0..rounds {
                round!(columns, 4);
            }
        }
        let mut dots = [s.splat(0.0); ROWS];
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            dots[r] =
                unsafe { E::total_row(s, [acc[0][r], acc[1][r]], scale, scales.wrapping_add(r)) };
        }
        let dots = then.rows(dots);
        if T::LOOSE && ROWS == 1 {
            // No vector for each key.
            let lanes = s.to_array(dots[0]);
            then.row(&lanes[..S::LANES]);
            for k in 0..S::LANES {
                // SAFETY: the caller's promise.
                unsafe { self.prob.add(k * BLOCK_Q).write(lanes[k]) };
            }
            return;
        }
        let mut square = [s.splat(0.0); MAX_LANES];
        square[..ROWS].copy_from_slice(&dots);
        s.transpose(&mut square);
        for k in (0..S::LANES).step_by(4) {
            then.keys([square[k], square[k + 1], square[k + 2], square[k + 3]]);
        }
        for k in 0..S::LANES {
            // SAFETY: the caller's promise.
            unsafe { s.store(self.prob.add(k * BLOCK_Q), square[k]) };
        }
    }
}
