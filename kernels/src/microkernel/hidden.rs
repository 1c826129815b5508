//! From a bit for each key that a row sees to what the sweep adds: 0, or -inf for the others.

use std::ops::Range;

use super::{BLOCK_KV, BLOCK_Q};
use crate::simd::{Kernel, Simd};

/// Writes `dst[key][row] = 0` where bit `key` of `rows[row]` is set, -inf elsewhere.
pub(crate) struct Hidden<'a> {
    pub(crate) rows: &'a [u128; BLOCK_Q],
    /// The keys to write; others may be written as well.
    pub(crate) keys: Range<usize>,
    /// `[BLOCK_KV][BLOCK_Q]`.
    pub(crate) dst: &'a mut [f32],
}

impl Kernel for Hidden<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        const WORD: usize = u32::BITS as usize;
        const HIDDEN: u32 = f32::NEG_INFINITY.to_bits();
        assert!(self.keys.end <= BLOCK_KV);
        for word in self.keys.start / WORD..self.keys.end.div_ceil(WORD) {
            let words: [u32; BLOCK_Q] =
                core::array::from_fn(|row| (self.rows[row] >> (WORD * word)) as u32);
            let dst = &mut self.dst[WORD * word * BLOCK_Q..][..WORD * BLOCK_Q];
            for (key, dst) in dst.chunks_exact_mut(BLOCK_Q).enumerate() {
                for (dst, word) in dst.iter_mut().zip(&words) {
                    let seen = (word >> key) & 1;
                    *dst = f32::from_bits(seen.wrapping_sub(1) & HIDDEN);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, dispatch};

    #[test]
    fn every_bit_is_where_it_belongs() {
        let mut state = 1_u128;
        let rows: [u128; BLOCK_Q] = std::array::from_fn(|_| {
            state = state.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
            state ^ (state >> 64)
        });
        for isa in Isa::available() {
            for keys in [0..BLOCK_KV, 40..41, 0..0, 100..128] {
                let mut dst = vec![f32::NAN; BLOCK_KV * BLOCK_Q];
                let hidden = Hidden { rows: &rows, keys: keys.clone(), dst: &mut dst };
                assert!(dispatch(isa, hidden).is_ok());
                for (at, x) in dst.iter().enumerate() {
                    let (key, row) = (at / BLOCK_Q, at % BLOCK_Q);
                    if keys.contains(&key) {
                        let seen = rows[row] >> key & 1 == 1;
                        let expected = if seen { 0.0 } else { f32::NEG_INFINITY };
                        assert_eq!(x.to_bits(), expected.to_bits(), "key {key}, row {row}, {isa}");
                    }
                }
            }
        }
    }
}
