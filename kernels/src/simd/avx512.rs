//! AVX-512 F, BW, DQ and VL: 16 lanes, 32 registers, masks of their own; and BF16 and VNNI, where there are
//! dot products.

use core::arch::x86_64::*;
use core::mem::transmute;

use half::{bf16, f16};

use super::sealed::Sealed;
use super::{Isa, Kernel, MAX_LANES, Simd, polynomial};

/// Proof that AVX-512 F, BW, DQ and VL are present, and BF16 and VNNI if it says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512 {
    bf16: bool,
    vnni: bool,
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        present.then(|| Self { bf16: false, vnni: is_x86_feature_detected!("avx512vnni") })
    }

    /// With BF16.
    pub(super) fn detect_bf16() -> Option<Self> {
        let token = Self::detect().filter(|_| is_x86_feature_detected!("avx512bf16"))?;
        Some(Self { bf16: true, ..token })
    }
}

impl Avx512 {
    /// `bf16`, or `f16`, by their bits, as floats.
    #[inline(always)]
    fn widen<const F16: bool>(self, halves: __m256i) -> __m512 {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            if F16 {
                _mm512_cvtph_ps(halves)
            } else {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            }
        }
    }
}

/// The lowest `count` bits, `count <= 16`.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}

/// Transposes each square of four rows and four columns.
///
/// # Safety
/// The instruction set must be present.
#[inline(always)]
unsafe fn transpose_fours([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (ab, ab2) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd, cd2) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let [ab, ab2, cd, cd2] = [ab, ab2, cd, cd2].map(|v| _mm512_castps_pd(v));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)),
        ]
    }
}

impl Sealed for Avx512 {}

// SAFETY: the field is private, and `detect` and `detect_bf16` the only makers; 16 lanes in a __m512.
unsafe impl Simd for Avx512 {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = 16;
    type Vector = __m512;
    type Mask = __mmask16;

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
        fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: the token proves that the instruction set is present.
        unsafe { enter(self, kernel) }
    }

    const BF16_DOTS: bool = true;

    #[inline(always)]
    fn has_bf16_dots(self) -> bool {
        self.bf16
    }

    fn vectorize_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
        fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        assert!(self.bf16);
        // SAFETY: the token proves that the instruction set is present.
        unsafe { enter(self, kernel) }
    }

    const INT8_DOTS: bool = true;

    #[inline(always)]
    fn has_int8_dots(self) -> bool {
        self.vnni
    }

    fn vectorize_int8<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
        fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        assert!(self.vnni);
        // SAFETY: the token proves that the instruction set is present.
        unsafe { enter(self, kernel) }
    }

    /// Only below [`Simd::vectorize_int8`].
    #[inline(always)]
    unsafe fn dot_int8(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        debug_assert!(self.vnni);
        // SAFETY: the token has VNNI, which is switched on: the caller's promise.
        unsafe {
            let [a, b, c] =
                [_mm512_castps_si512(a), _mm512_castps_si512(b), _mm512_castps_si512(c)];
            _mm512_castsi512_ps(_mm512_dpbusd_epi32(c, a, b))
        }
    }

    #[inline(always)]
    fn quad_of_ints(self, four: [__m512; 4]) -> __m512 {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let low = _mm512_set1_epi32(0xff);
            let [a, b, c, d] = four;
            let a = _mm512_and_si512(_mm512_cvtps_epi32(a), low);
            let b = _mm512_slli_epi32::<8>(_mm512_and_si512(_mm512_cvtps_epi32(b), low));
            let c = _mm512_slli_epi32::<16>(_mm512_and_si512(_mm512_cvtps_epi32(c), low));
            let d = _mm512_slli_epi32::<24>(_mm512_cvtps_epi32(d));
            let bytes = _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d));
            _mm512_castsi512_ps(bytes)
        }
    }

    #[inline(always)]
    unsafe fn interleave_bytes(self, rows: [*const i8; 4]) -> [__m512; 4] {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let [a, b, c, d] = rows;
            let (a, b) = (_mm512_loadu_si512(a.cast()), _mm512_loadu_si512(b.cast()));
            let (c, d) = (_mm512_loadu_si512(c.cast()), _mm512_loadu_si512(d.cast()));
            let (ab, ab2) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (cd, cd2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            // Vector n has, per quarter q, columns 16 q + 4 n and the three behind it.
            [
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(ab, cd)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(ab, cd)),
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(ab2, cd2)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(ab2, cd2)),
            ]
        }
    }

    #[inline(always)]
    fn in_order(self, [a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
        // Quarters transposed.
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let (ab, ab2) =
                (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let (cd, cd2) =
                (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            [
                _mm512_shuffle_f32x4::<0x88>(ab, cd),
                _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                _mm512_shuffle_f32x4::<0x88>(ab2, cd2),
                _mm512_shuffle_f32x4::<0xdd>(ab2, cd2),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, v: __m512) {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            _mm_storeu_si128(ptr.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
        }
    }

    #[inline(always)]
    fn max_magnitude(self, most: __m512, x: __m512) -> __m512 {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            // As integers they are in the same order, and NaN behind all.
            let x = _mm512_castps_si512(_mm512_abs_ps(x));
            _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most), x))
        }
    }

    #[inline(always)]
    fn largest_magnitude(self, v: __m512) -> f32 {
        // SAFETY: the token proves that the instruction set is present.
        let most = unsafe { _mm512_reduce_max_epi32(_mm512_castps_si512(v)) };
        f32::from_bits(most as u32)
    }

    ops! {
        sum_of_ints(a: __m512, b: __m512) -> __m512 = _mm512_cvtepi32_ps(
            _mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
        flip_bits(a: __m512, b: __m512) -> __m512 = _mm512_xor_ps(a, b);
        sub_ints(a: __m512, b: __m512) -> __m512 = _mm512_castsi512_ps(
            _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
    }

    /// Only below [`Simd::vectorize_bf16`].
    #[inline(always)]
    unsafe fn dot_bf16(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        debug_assert!(self.bf16);
        // SAFETY: the token has BF16, which is switched on: the caller's promise; vectors of 512 bits whatever
        // they hold.
        unsafe {
            _mm512_dpbf16_ps(c, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b))
        }
    }

    #[inline(always)]
    unsafe fn pair_bf16(self, first: __m512, second: __m512) -> __m512 {
        debug_assert!(self.bf16);
        // SAFETY: the token has BF16, which is switched on: the caller's promise; vectors of 512 bits whatever
        // they hold.
        unsafe {
            // The first in the lower half, the second in the upper, to be dealt out by turns.
            let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let turns = _mm512_set_epi16(
                31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
            );
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, halves))
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, first: *const bf16, second: *const bf16, count: usize) -> __m512 {
        let lanes = self::first(count);
        // SAFETY: the token, and the caller's promise; masked lanes are not touched.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, first.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, second.cast()));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        }
    }

    #[inline(always)]
    fn clear_where_negative_bf16(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let signs = _mm512_srai_epi16::<15>(_mm512_castps_si512(a));
            _mm512_castsi512_ps(_mm512_andnot_si512(signs, _mm512_castps_si512(b)))
        }
    }

    ops! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        lt(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
        ge(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b);
        ne(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, b);
        is_negative(a: __m512) -> __mmask16 = _mm512_movepi32_mask(_mm512_castps_si512(a));
        select(m: __mmask16, a: __m512, b: __m512) -> __m512 = _mm512_mask_blend_ps(m, b, a);
    }

    #[inline(always)]
    fn and(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn any(self, mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> __m512 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm512_loadu_ps(ptr) }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: __m512) {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm512_storeu_ps(ptr, v) }
    }

    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, count: usize) -> __m512 {
        // SAFETY: the token, and the caller's promise; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(first(count), ptr) }
    }

    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, count: usize, v: __m512) {
        // SAFETY: the token, and the caller's promise; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(ptr, first(count), v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> __m512 {
        // SAFETY: the token, and the caller's promise.
        unsafe { self.widen::<false>(_mm256_loadu_si256(ptr.cast())) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> __m512 {
        // SAFETY: the token, and the caller's promise.
        unsafe { self.widen::<true>(_mm256_loadu_si256(ptr.cast())) }
    }

    #[inline(always)]
    unsafe fn load_halves<const F16: bool>(self, ptr: *const u16, count: usize) -> __m512 {
        // SAFETY: the token, and the caller's promise; masked lanes are not touched.
        unsafe { self.widen::<F16>(_mm256_maskz_loadu_epi16(first(count), ptr.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> __m512 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(ptr.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, ptr: *mut bf16, v: __m512) {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let high = _mm512_srli_epi32::<16>(bits);
            // Half of the last place, and its odd bit, carry into what stays.
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let carry = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, carry));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_set1_epi32(0x40);
            let rounded = _mm512_mask_or_epi32(rounded, is_nan, high, quiet);
            _mm256_storeu_si256(ptr.cast(), _mm512_cvtepi32_epi16(rounded));
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, ptr: *mut f16, v: __m512) {
        // To nearest, no exceptions.
        const NEAREST: i32 = 0b1000;
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_storeu_si256(ptr.cast(), _mm512_cvtps_ph::<NEAREST>(v)) }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const f32) -> __m512 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm512_castpd_ps(_mm512_set1_pd(ptr.cast::<f64>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn load_twice(self, ptr: *const f32, count: usize) -> __m512 {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            _mm512_permutexvar_ps(twice, self.load_first(ptr, count))
        }
    }

    #[inline(always)]
    fn unzip(self, v: __m512) -> [__m512; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            [_mm512_permutexvar_ps(even, v), _mm512_permutexvar_ps(odd, v)]
        }
    }

    #[inline(always)]
    fn exp2<const N: usize>(self, x: [__m512; N]) -> [__m512; N] {
        self.exp2_from(f32::NEG_INFINITY, x)
    }

    /// `vreduce` gives x - floor(x), also 0 for an infinite x, and `vscalef` multiplies by
    /// 2^floor(x) with the right ends: no clamp is needed.
    #[inline(always)]
    fn exp2_from<const N: usize>(self, least: f32, x: [__m512; N]) -> [__m512; N] {
        // Round down, no exceptions.
        const FLOOR: i32 = 0b1001;
        let mut f = x;
        for i in 0..N {
            // SAFETY: the token proves that the instruction set is present.
            f[i] = unsafe { _mm512_reduce_ps::<FLOOR>(x[i]) };
        }
        let mut power = polynomial::horner(self, polynomial::FLOOR, f);
        for i in 0..N {
            // SAFETY: as above.
            power[i] = unsafe {
                // A NaN stays.
                let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x[i], _mm512_set1_ps(least));
                _mm512_maskz_scalef_ps(counts, power[i], x[i])
            };
        }
        power
    }

    #[inline(always)]
    fn split(self, x: __m512) -> (__m512, __m512) {
        // Round to nearest, no exceptions.
        const NEAREST: i32 = 0b1000;
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let f = _mm512_reduce_ps::<NEAREST>(x);
            (_mm512_scalef_ps(_mm512_set1_ps(1.0), _mm512_sub_ps(x, f)), f)
        }
    }

    #[inline(always)]
    fn unpair_bf16(self, pairs: __m512) -> [__m512; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = _mm512_castps_si512(pairs);
            let high = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_slli_epi32::<16>(bits), high].map(|v| _mm512_castsi512_ps(v))
        }
    }

    #[inline(always)]
    fn unpair_f16(self, pairs: __m512) -> [__m512; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = _mm512_castps_si512(pairs);
            let halves = [bits, _mm512_srli_epi32::<16>(bits)];
            halves.map(|v| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)))
        }
    }

    #[inline(always)]
    fn unpack_i8(self, fours: __m512) -> [__m512; 4] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = _mm512_castps_si512(fours);
            // One by one: the closure of an array is not always inlined.
            [
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(bits))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(bits))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(bits))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(bits)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn columns(self, fours: [*const f32; 4], stride: isize) -> [__m512; 4] {
        // Vector r has four columns of the rows r, 4 + r, 8 + r and 12 + r.
        let [p0, p1, p2, p3] = fours;
        let mut rows = [self.splat(0.0); 4];
        // SAFETY: the token, and the caller's promise.
        unsafe {
            for r in 0..4 {
                let at = stride.wrapping_mul(r as isize);
                let quarter = |p: *const f32| _mm_loadu_ps(p.wrapping_byte_offset(at));
                let v = _mm512_castps128_ps512(quarter(p0));
                let v = _mm512_mask_broadcast_f32x4(v, 0x00f0, quarter(p1));
                let v = _mm512_mask_broadcast_f32x4(v, 0x0f00, quarter(p2));
                rows[r] = _mm512_mask_broadcast_f32x4(v, 0xf000, quarter(p3));
            }
            transpose_fours(rows)
        }
    }

    #[inline(always)]
    unsafe fn eight_columns(self, fours: [*const f32; 4], stride: isize) -> [__m512; 8] {
        // Vector r of half h has eight columns of the rows 8 h + r and 8 h + 4 + r.
        let mut half = [[self.splat(0.0); 4]; 2];
        // SAFETY: the token, and the caller's promise.
        unsafe {
            for h in 0..2 {
                let mut rows = [self.splat(0.0); 4];
                for r in 0..4 {
                    let at = stride.wrapping_mul(r as isize);
                    let low = _mm256_loadu_ps(fours[2 * h].wrapping_byte_offset(at));
                    let high = _mm256_loadu_ps(fours[2 * h + 1].wrapping_byte_offset(at));
                    rows[r] = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
                }
                half[h] = transpose_fours(rows);
            }
            let mut columns = [self.splat(0.0); 8];
            for c in 0..4 {
                let (low, high) = (half[0][c], half[1][c]);
                columns[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low, high);
                columns[4 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low, high);
            }
            columns
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; MAX_LANES]) {
        // Three butterflies: pairs of floats, of doubles, then of 128-bit quarters twice.
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let mut a = *rows;
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut b = a;
            for i in 0..4 {
                for j in 0..2 {
                    let (lo, hi) =
                        (_mm512_castps_pd(a[4 * i + j]), _mm512_castps_pd(a[4 * i + j + 2]));
                    b[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
                    b[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
                }
            }
            // b[4 i + c] holds, per quarter q, column 4 q + c of rows 4 i .. 4 i + 4.
            for c in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(b[c], b[4 + c]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(b[c], b[4 + c]);
                let even2 = _mm512_shuffle_f32x4::<0x88>(b[8 + c], b[12 + c]);
                let odd2 = _mm512_shuffle_f32x4::<0xdd>(b[8 + c], b[12 + c]);
                rows[c] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                rows[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
                rows[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                rows[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
            }
        }
    }
}
