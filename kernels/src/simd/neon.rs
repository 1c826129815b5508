//! NEON of aarch64: 4 lanes, 32 registers; all bits of a mask's lane are set, or none.

use core::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use half::{bf16, f16};

use super::sealed::Sealed;
use super::{Isa, Kernel, MAX_LANES, Simd, polynomial, split_by_magic};

/// Proof that NEON is present.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// `f16` as floats, by their bits.
#[inline(always)]
fn widened(halves: uint16x4_t) -> float32x4_t {
    let mut v: float32x4_t;
    // SAFETY: the instruction is part of NEON; the intrinsic has a type that is not stable.
    unsafe {
        core::arch::asm!(
            "fcvtl {0:v}.4s, {1:v}.4h",
            out(vreg) v,
            in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    v
}

impl Sealed for Neon {}

// SAFETY: the field is private and `detect` the only maker; 4 lanes in a float32x4_t.
unsafe impl Simd for Neon {
    const ISA: Isa = Isa::Neon;
    const LANES: usize = 4;
    type Vector = float32x4_t;
    type Mask = uint32x4_t;

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn enter<K: Kernel>(token: Neon, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: the token proves that the instruction set is present.
        unsafe { enter(self, kernel) }
    }

    ops! {
        splat(x: f32) -> float32x4_t = vdupq_n_f32(x);
        add(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32(a, b);
        sub(a: float32x4_t, b: float32x4_t) -> float32x4_t = vsubq_f32(a, b);
        mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
        div(a: float32x4_t, b: float32x4_t) -> float32x4_t = vdivq_f32(a, b);
        mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
        // `fmax` would give NaN where either is.
        max(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcgtq_f32(a, b), a, b);
        min(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcltq_f32(a, b), a, b);
        lt(a: float32x4_t, b: float32x4_t) -> uint32x4_t = vcltq_f32(a, b);
        ge(a: float32x4_t, b: float32x4_t) -> uint32x4_t = vcgeq_f32(a, b);
        ne(a: float32x4_t, b: float32x4_t) -> uint32x4_t = vmvnq_u32(vceqq_f32(a, b));
        is_negative(a: float32x4_t) -> uint32x4_t = vcltzq_s32(vreinterpretq_s32_f32(a));
        and(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t = vandq_u32(a, b);
        any(mask: uint32x4_t) -> bool = vmaxvq_u32(mask) != 0;
        select(m: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(m, a, b);
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> float32x4_t {
        // SAFETY: the token, and the caller's promise.
        unsafe { vld1q_f32(ptr) }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: float32x4_t) {
        // SAFETY: the token, and the caller's promise.
        unsafe { vst1q_f32(ptr, v) }
    }

    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, count: usize) -> float32x4_t {
        // SAFETY: the token, and the caller's promise; no more than the first `count` are touched.
        unsafe {
            let none = vdup_n_f32(0.0);
            match count {
                0 => vcombine_f32(none, none),
                1 => vcombine_f32(vld1_lane_f32::<0>(ptr, none), none),
                2 => vcombine_f32(vld1_f32(ptr), none),
                3 => vcombine_f32(vld1_f32(ptr), vld1_lane_f32::<0>(ptr.add(2), none)),
                _ => vld1q_f32(ptr),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, count: usize, v: float32x4_t) {
        // SAFETY: the token, and the caller's promise; no more than the first `count` are touched.
        unsafe {
            match count {
                0 => {}
                1 => vst1q_lane_f32::<0>(ptr, v),
                2 => vst1_f32(ptr, vget_low_f32(v)),
                3 => {
                    vst1_f32(ptr, vget_low_f32(v));
                    vst1q_lane_f32::<2>(ptr.add(2), v);
                }
                _ => vst1q_f32(ptr, v),
            }
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> float32x4_t {
        // SAFETY: the token, and the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(ptr.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> float32x4_t {
        // SAFETY: the caller's promise.
        let halves = unsafe { vld1_u16(ptr.cast()) };
        widened(halves)
    }

    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> float32x4_t {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let bytes = vcreate_s8(u64::from(ptr.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, ptr: *mut bf16, v: float32x4_t) {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let bits = vreinterpretq_u32_f32(v);
            let high = vshrq_n_u32::<16>(bits);
            // Half of the last place, and its odd bit, carry into what stays.
            let odd = vandq_u32(high, vdupq_n_u32(1));
            let carry = vaddq_u32(odd, vdupq_n_u32(0x7fff));
            let rounded = vshrq_n_u32::<16>(vaddq_u32(bits, carry));
            let quiet = vorrq_u32(high, vdupq_n_u32(0x40));
            let rounded = vbslq_u32(vceqq_f32(v, v), rounded, quiet);
            vst1_u16(ptr.cast(), vmovn_u32(rounded));
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, ptr: *mut f16, v: float32x4_t) {
        let mut halves: uint16x4_t;
        // SAFETY: the instruction is part of NEON; the intrinsic has a type that is not stable.
        unsafe {
            core::arch::asm!(
                "fcvtn {0:v}.4h, {1:v}.4s",
                out(vreg) halves,
                in(vreg) v,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: the caller's promise.
        unsafe { vst1_u16(ptr.cast(), halves) }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const f32) -> float32x4_t {
        // SAFETY: the token, and the caller's promise.
        unsafe { vreinterpretq_f32_f64(vdupq_n_f64(ptr.cast::<f64>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn load_twice(self, ptr: *const f32, count: usize) -> float32x4_t {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let v = self.load_first(ptr, count);
            vzip1q_f32(v, v)
        }
    }

    #[inline(always)]
    fn unzip(self, v: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe { [vuzp1q_f32(v, v), vuzp2q_f32(v, v)] }
    }

    /// floor(x), added to the exponent of a polynomial for 2^(x - floor(x)), which lies in [1, 2].
    /// The clamps keep NaN; the lower gives what is below 2^-126 without the leading one, and 0 at
    /// the end, the upper infinity.
    #[inline(always)]
    fn exp2<const N: usize>(self, x: [float32x4_t; N]) -> [float32x4_t; N] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let (mut floor, mut f) = (x, x);
            for i in 0..N {
                let x = vminq_f32(vmaxq_f32(x[i], vdupq_n_f32(-127.0)), vdupq_n_f32(128.0));
                floor[i] = vrndmq_f32(x);
                f[i] = vsubq_f32(x, floor[i]);
            }
            let mut power = polynomial::horner(self, polynomial::FLOOR, f);
            for i in 0..N {
                let n = vshlq_n_s32::<23>(vcvtq_s32_f32(floor[i]));
                let bits = vaddq_s32(vreinterpretq_s32_f32(power[i]), n);
                power[i] = vreinterpretq_f32_s32(bits);
            }
            power
        }
    }

    #[inline(always)]
    fn split(self, x: float32x4_t) -> (float32x4_t, float32x4_t) {
        split_by_magic(self, x, |n| {
            // SAFETY: the token proves that the instruction set is present.
            unsafe {
                let n = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(n))
            }
        })
    }

    #[inline(always)]
    fn unpair_bf16(self, pairs: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = vreinterpretq_u32_f32(pairs);
            let high = vandq_u32(bits, vdupq_n_u32(0xffff_0000));
            [vshlq_n_u32::<16>(bits), high].map(|v| vreinterpretq_f32_u32(v))
        }
    }

    #[inline(always)]
    fn unpair_f16(self, pairs: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: the token proves that the instruction set is present.
        let halves = unsafe {
            let bits = vreinterpretq_u32_f32(pairs);
            [vmovn_u32(bits), vshrn_n_u32::<16>(bits)]
        };
        [widened(halves[0]), widened(halves[1])]
    }

    #[inline(always)]
    fn unpack_i8(self, fours: float32x4_t) -> [float32x4_t; 4] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = vreinterpretq_s32_f32(fours);
            // One by one: the closure of an array is not always inlined.
            [
                vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<24>(bits))),
                vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<16>(bits))),
                vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<8>(bits))),
                vcvtq_f32_s32(vshrq_n_s32::<24>(bits)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn columns(self, fours: [*const f32; 4], stride: isize) -> [float32x4_t; 4] {
        let mut rows = [self.splat(0.0); MAX_LANES];
        for (r, row) in rows.iter_mut().enumerate().take(4) {
            // SAFETY: the caller's promise.
            *row = unsafe {
                self.load(fours[0].wrapping_byte_offset(stride.wrapping_mul(r as isize)))
            };
        }
        self.transpose(&mut rows);
        [rows[0], rows[1], rows[2], rows[3]]
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [float32x4_t; MAX_LANES]) {
        // Pairs of floats, then of doubles.
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let mut pairs = [vdupq_n_f64(0.0); 4];
            for i in [0, 2] {
                pairs[i] = vreinterpretq_f64_f32(vtrn1q_f32(rows[i], rows[i + 1]));
                pairs[i + 1] = vreinterpretq_f64_f32(vtrn2q_f32(rows[i], rows[i + 1]));
            }
            for c in 0..2 {
                rows[c] = vreinterpretq_f32_f64(vzip1q_f64(pairs[c], pairs[2 + c]));
                rows[2 + c] = vreinterpretq_f32_f64(vzip2q_f64(pairs[c], pairs[2 + c]));
            }
        }
    }
}
