//! Four lanes on `wide`, which compiles to the target's baseline (SSE2, wasm's simd128) or
//! to scalar code: the fallback that runs everywhere. A multiply-add may round twice here.

use half::{bf16, f16};
use wide::{f32x4, i32x4};

use super::sealed::Sealed;
use super::{Isa, Kernel, MAX_LANES, Simd, exp2_by_magic, split_by_magic};

/// Needs no proof; made here alone, as the others are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable(());

impl Portable {
    pub(super) fn detect() -> Option<Self> {
        Some(Self(()))
    }
}

impl Sealed for Portable {}

#[inline(always)]
fn bits(v: f32x4) -> i32x4 {
    i32x4::new(v.to_array().map(|x| x.to_bits() as i32))
}

#[inline(always)]
fn from_bits(v: i32x4) -> f32x4 {
    f32x4::new(v.to_array().map(|x| f32::from_bits(x as u32)))
}

// SAFETY: nothing beyond the target's baseline is used; 4 lanes in an f32x4.
unsafe impl Simd for Portable {
    const ISA: Isa = Isa::Portable;
    const LANES: usize = 4;
    type Vector = f32x4;
    /// All bits of a lane are set, or none.
    type Mask = f32x4;

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32x4 {
        f32x4::splat(x)
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> f32x4 {
        // SAFETY: the caller's promise; an array of floats may lie anywhere when read unaligned.
        f32x4::new(unsafe { ptr.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: f32x4) {
        // SAFETY: the caller's promise.
        unsafe { ptr.cast::<[f32; 4]>().write_unaligned(v.to_array()) }
    }

    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, count: usize) -> f32x4 {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise for the first `count`.
            *lane = unsafe { *ptr.add(i) };
        }
        f32x4::new(lanes)
    }

    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, count: usize, v: f32x4) {
        for (i, lane) in v.to_array().into_iter().enumerate().take(count) {
            // SAFETY: the caller's promise for the first `count`.
            unsafe { *ptr.add(i) = lane };
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> f32x4 {
        // SAFETY: the caller's promise.
        let halves = unsafe { ptr.cast::<[bf16; 4]>().read_unaligned() };
        f32x4::new(halves.map(bf16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> f32x4 {
        // SAFETY: the caller's promise.
        let halves = unsafe { ptr.cast::<[f16; 4]>().read_unaligned() };
        f32x4::new(halves.map(f16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> f32x4 {
        // SAFETY: the caller's promise.
        let bytes = unsafe { ptr.cast::<[i8; 4]>().read_unaligned() };
        f32x4::new(bytes.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, ptr: *mut bf16, v: f32x4) {
        // SAFETY: the caller's promise.
        unsafe { ptr.cast::<[bf16; 4]>().write_unaligned(v.to_array().map(bf16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, ptr: *mut f16, v: f32x4) {
        // SAFETY: the caller's promise.
        unsafe { ptr.cast::<[f16; 4]>().write_unaligned(v.to_array().map(f16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const f32) -> f32x4 {
        // SAFETY: the caller's promise.
        let [even, odd] = unsafe { ptr.cast::<[f32; 2]>().read_unaligned() };
        f32x4::new([even, odd, even, odd])
    }

    #[inline(always)]
    unsafe fn load_twice(self, ptr: *const f32, count: usize) -> f32x4 {
        // SAFETY: the caller's promise.
        let [a, b, ..] = unsafe { self.load_first(ptr, count) }.to_array();
        f32x4::new([a, a, b, b])
    }

    #[inline(always)]
    fn unzip(self, v: f32x4) -> [f32x4; 2] {
        let [a, b, c, d] = v.to_array();
        [f32x4::new([a, c, a, c]), f32x4::new([b, d, b, d])]
    }

    #[inline(always)]
    fn add(self, a: f32x4, b: f32x4) -> f32x4 {
        a + b
    }

    #[inline(always)]
    fn sub(self, a: f32x4, b: f32x4) -> f32x4 {
        a - b
    }

    #[inline(always)]
    fn mul(self, a: f32x4, b: f32x4) -> f32x4 {
        a * b
    }

    #[inline(always)]
    fn div(self, a: f32x4, b: f32x4) -> f32x4 {
        a / b
    }

    #[inline(always)]
    fn mul_add(self, a: f32x4, b: f32x4, c: f32x4) -> f32x4 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn max(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_gt(b).select(a, b)
    }

    #[inline(always)]
    fn min(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_lt(b).select(a, b)
    }

    #[inline(always)]
    fn lt(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_lt(b)
    }

    #[inline(always)]
    fn ge(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_ge(b)
    }

    #[inline(always)]
    fn ne(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_ne(b)
    }

    #[inline(always)]
    fn is_negative(self, a: f32x4) -> f32x4 {
        from_bits(bits(a) >> 31)
    }

    #[inline(always)]
    fn and(self, a: f32x4, b: f32x4) -> f32x4 {
        a & b
    }

    #[inline(always)]
    fn any(self, mask: f32x4) -> bool {
        mask.any()
    }

    #[inline(always)]
    fn select(self, mask: f32x4, a: f32x4, b: f32x4) -> f32x4 {
        mask.select(a, b)
    }

    #[inline(always)]
    fn exp2<const N: usize>(self, x: [f32x4; N]) -> [f32x4; N] {
        exp2_by_magic(self, x, |biased| from_bits((bits(biased) << 23) + i32x4::splat(127 << 23)))
    }

    #[inline(always)]
    fn split(self, x: f32x4) -> (f32x4, f32x4) {
        split_by_magic(self, x, |n| from_bits((n.round_int() + i32x4::splat(127)) << 23))
    }

    #[inline(always)]
    fn unpair_bf16(self, pairs: f32x4) -> [f32x4; 2] {
        let bits = pairs.to_array().map(f32::to_bits);
        let [low, high] =
            [0, 16].map(|shift| bits.map(|pair| bf16::from_bits((pair >> shift) as u16)));
        [low, high].map(|halves| f32x4::new(halves.map(bf16::to_f32)))
    }

    #[inline(always)]
    fn unpair_f16(self, pairs: f32x4) -> [f32x4; 2] {
        let bits = pairs.to_array().map(f32::to_bits);
        let [low, high] =
            [0, 16].map(|shift| bits.map(|pair| f16::from_bits((pair >> shift) as u16)));
        [low, high].map(|halves| f32x4::new(halves.map(f16::to_f32)))
    }

    #[inline(always)]
    fn unpack_i8(self, fours: f32x4) -> [f32x4; 4] {
        let bits = fours.to_array().map(f32::to_bits);
        [0, 8, 16, 24].map(|shift| f32x4::new(bits.map(|four| f32::from((four >> shift) as i8))))
    }

    #[inline(always)]
    unsafe fn columns(self, fours: [*const f32; 4], stride: isize) -> [f32x4; 4] {
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
    fn transpose(self, rows: &mut [f32x4; MAX_LANES]) {
        let square = [rows[0], rows[1], rows[2], rows[3]];
        rows[..4].copy_from_slice(&f32x4::transpose(square));
    }
}
