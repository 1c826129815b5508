//! Which micro-architecture this is, for what processors with the same instructions do at different rates.

use std::sync::OnceLock;

/// What the processor says of a leaf, and of a part of it.
#[cfg(target_arch = "x86_64")]
pub(super) fn cpuid(leaf: u32, part: u32) -> core::arch::x86_64::CpuidResult {
    // Safe in newer toolchains, unsafe in older ones.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has `cpuid`.
    unsafe {
        core::arch::x86_64::__cpuid_count(leaf, part)
    }
}

/// Whether `bf16` dot products come at the rate of multiply-adds of `f32`: see [`Isa::pays`](super::Isa::pays).
/// A virtual machine may take long to answer: asked once.
pub(super) fn has_fast_bf16() -> bool {
    static FAST: OnceLock<bool> = OnceLock::new();
    *FAST.get_or_init(described)
}

#[cfg(target_arch = "x86_64")]
fn described() -> bool {
    let maker = cpuid(0, 0);
    pays_bf16([maker.ebx, maker.edx, maker.ecx], cpuid(1, 0).eax)
}

#[cfg(not(target_arch = "x86_64"))]
fn described() -> bool {
    false
}

/// The same by the maker's name and the family, as `cpuid` gives them.
#[cfg(any(target_arch = "x86_64", test))]
fn pays_bf16(maker: [u32; 3], version: u32) -> bool {
    let name = maker.map(u32::to_le_bytes);
    let family = ((version >> 8) & 15) + ((version >> 20) & 255);
    // Zen 3 is of family 0x19 too, but has no such instructions.
    name.as_flattened() == b"AuthenticAMD" && family >= 0x19
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_and_families() {
        let amd = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
        let intel = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
        // Genoa, Turin, Rome; Sapphire Rapids.
        assert!(pays_bf16(amd, 0x00a1_0f11) && pays_bf16(amd, 0x00b0_0f21));
        assert!(!pays_bf16(amd, 0x0083_0f10) && !pays_bf16(intel, 0x0008_06f8));
    }
}
