//! Which keys of a block a row sees, one bit for each: bit `k` is the block's key `k`.

use crate::microkernel::BLOCK_KV;

const _: () = assert!(BLOCK_KV == u128::BITS as usize);

/// The keys `start..end`, both at most [`BLOCK_KV`].
pub(crate) fn between(start: usize, end: usize) -> u128 {
    if start >= end { 0 } else { (u128::MAX >> (BLOCK_KV - (end - start))) << start }
}

/// The keys from the first one seen to behind the last, `(0, 0)` if there is none.
pub(crate) fn span(bits: u128) -> (usize, usize) {
    match bits {
        0 => (0, 0),
        _ => (bits.trailing_zeros() as usize, BLOCK_KV - bits.leading_zeros() as usize),
    }
}

/// A bit for each of at most [`BLOCK_KV`] flags.
pub(super) fn of_flags(flags: &[bool]) -> u128 {
    let mut packed = [0; BLOCK_KV / 8];
    for (packed, flags) in packed.iter_mut().zip(flags.chunks(8)) {
        let mut bytes = [0; 8];
        for (byte, &flag) in bytes.iter_mut().zip(flags) {
            *byte = flag.into();
        }
        // The product's highest byte has bit 0 of byte k at its bit k.
        *packed = (u64::from_le_bytes(bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    u128::from_le_bytes(packed)
}

/// At most [`BLOCK_KV`] bits in bytes, the lowest first.
pub(super) fn of_bytes(bytes: &[u8]) -> u128 {
    let mut packed = [0; BLOCK_KV / 8];
    packed.iter_mut().zip(bytes).for_each(|(packed, &byte)| *packed = byte);
    u128::from_le_bytes(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_they_belong() {
        for (start, end) in [(0, 0), (0, 1), (5, 9), (0, 128), (127, 128), (64, 128), (9, 3)] {
            let flags: Vec<bool> = (0..128).map(|k| (start..end).contains(&k)).collect();
            assert_eq!(of_flags(&flags), between(start, end), "{start}..{end}");
            let expected = if start < end { (start, end) } else { (0, 0) };
            assert_eq!(span(between(start, end)), expected);
        }
        for count in 0..=128_usize {
            let flags: Vec<bool> = (0..count).map(|k| k % 3 == 1 || k % 7 == 0).collect();
            let bits = of_flags(&flags);
            assert!((0..128).all(|k| (bits >> k & 1 == 1) == (k < count && flags[k])), "{count}");
            assert_eq!(of_bytes(&bits.to_le_bytes()), bits);
        }
        assert_eq!(of_bytes(&[0b101]), 0b101);
    }
}
