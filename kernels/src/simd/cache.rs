//! What the processor says of its first cache.

use std::sync::OnceLock;

/// Lines of the L1 data cache that one set holds; 8 where the processor does not say.
pub(crate) fn l1_ways() -> usize {
    static WAYS: OnceLock<usize> = OnceLock::new();
    *WAYS.get_or_init(|| described().unwrap_or(8))
}

/// By the leaf that describes caches one by one: Intel's, then AMD's of the same layout.
#[cfg(target_arch = "x86_64")]
fn described() -> Option<usize> {
    use super::cpu::cpuid;
    const LEAVES: [u32; 2] = [4, 0x8000_001d];
    LEAVES.into_iter().find_map(|leaf| {
        let (highest, first) = (cpuid(leaf & 0x8000_0000, 0).eax, cpuid(leaf, 0));
        // Level 1, for data or for both.
        let is_l1 = (first.eax >> 5) & 7 == 1 && matches!(first.eax & 31, 1 | 3);
        (highest >= leaf && is_l1).then_some((first.ebx >> 22) as usize + 1)
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn described() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_plausible() {
        assert!((1..=64).contains(&l1_ways()), "{}", l1_ways());
    }
}
