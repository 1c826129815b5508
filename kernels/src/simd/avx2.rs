//! AVX2, FMA and F16C, which every processor with AVX2 has: 8 lanes, 16 registers; a mask is a vector whose sign bits say it.
//! And AVX-VNNI, where there are dot products of integers.

use core::arch::x86_64::*;

use half::{bf16, f16};

use super::sealed::Sealed;
use super::{Isa, Kernel, MAX_LANES, Simd, polynomial, split_by_magic};

/// Proof that AVX2, FMA and F16C are present, and AVX-VNNI if it says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2 {
    vnni: bool,
}

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then(|| Self { vnni: is_x86_feature_detected!("avxvnni") })
    }
}

/// Eight -1, then eight 0: a load at `8 - count` gives a mask of the first `count` lanes.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

impl Avx2 {
    /// `bf16`, or `f16`, by their bits, as floats.
    #[inline(always)]
    fn widen<const F16: bool>(self, halves: __m128i) -> __m256 {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            if F16 {
                _mm256_cvtph_ps(halves)
            } else {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            }
        }
    }

    #[inline(always)]
    fn first(self, count: usize) -> __m256i {
        debug_assert!(count <= 8);
        // SAFETY: the token; count <= 8 keeps the eight integers inside the table.
        unsafe { _mm256_loadu_si256(FIRST.as_ptr().add(8 - count).cast()) }
    }
}

impl Sealed for Avx2 {}

// SAFETY: the field is private, and `detect` the only maker; 8 lanes in a __m256.
unsafe impl Simd for Avx2 {
    const ISA: Isa = Isa::Avx2;
    const LANES: usize = 8;
    type Vector = __m256;
    type Mask = __m256;

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enter<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: the token proves that the instruction set is present.
        unsafe { enter(self, kernel) }
    }

    const INT8_DOTS: bool = true;

    #[inline(always)]
    fn has_int8_dots(self) -> bool {
        self.vnni
    }

    fn vectorize_int8<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,avxvnni,fma,f16c")]
        fn enter<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        assert!(self.vnni);
        // SAFETY: the token proves that the instruction set is present.
        unsafe { enter(self, kernel) }
    }

    /// Only below [`Simd::vectorize_int8`].
    #[inline(always)]
    unsafe fn dot_int8(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        debug_assert!(self.vnni);
        // SAFETY: the token has AVX-VNNI, which is switched on: the caller's promise.
        unsafe {
            let [a, b, c] =
                [_mm256_castps_si256(a), _mm256_castps_si256(b), _mm256_castps_si256(c)];
            _mm256_castsi256_ps(_mm256_dpbusd_avx_epi32(c, a, b))
        }
    }

    #[inline(always)]
    fn quad_of_ints(self, four: [__m256; 4]) -> __m256 {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let low = _mm256_set1_epi32(0xff);
            let [a, b, c, d] = four;
            let a = _mm256_and_si256(_mm256_cvtps_epi32(a), low);
            let b = _mm256_slli_epi32::<8>(_mm256_and_si256(_mm256_cvtps_epi32(b), low));
            let c = _mm256_slli_epi32::<16>(_mm256_and_si256(_mm256_cvtps_epi32(c), low));
            let d = _mm256_slli_epi32::<24>(_mm256_cvtps_epi32(d));
            let bytes = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
            _mm256_castsi256_ps(bytes)
        }
    }

    #[inline(always)]
    unsafe fn interleave_bytes(self, rows: [*const i8; 4]) -> [__m256; 4] {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let [a, b, c, d] = rows;
            let (a, b) = (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast()));
            let (c, d) = (_mm256_loadu_si256(c.cast()), _mm256_loadu_si256(d.cast()));
            let (ab, ab2) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (cd, cd2) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            // Vector n has, per half h, columns 16 h + 4 n and the three behind it.
            [
                _mm256_castsi256_ps(_mm256_unpacklo_epi16(ab, cd)),
                _mm256_castsi256_ps(_mm256_unpackhi_epi16(ab, cd)),
                _mm256_castsi256_ps(_mm256_unpacklo_epi16(ab2, cd2)),
                _mm256_castsi256_ps(_mm256_unpackhi_epi16(ab2, cd2)),
            ]
        }
    }

    #[inline(always)]
    fn in_order(self, [a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            [
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x20>(c, d),
                _mm256_permute2f128_ps::<0x31>(a, b),
                _mm256_permute2f128_ps::<0x31>(c, d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, v: __m256) {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let ints = _mm256_cvtps_epi32(v);
            // Of each half of the vector its four numbers, twice.
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(ints, ints));
            let packed = _mm256_castsi256_si128(packed);
            _mm_storel_epi64(ptr.cast(), _mm_packus_epi16(packed, packed));
        }
    }

    #[inline(always)]
    fn max_magnitude(self, most: __m256, x: __m256) -> __m256 {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            // As integers they are in the same order, and NaN behind all.
            let x = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX));
            _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most), x))
        }
    }

    #[inline(always)]
    fn largest_magnitude(self, v: __m256) -> f32 {
        // SAFETY: the token proves that the instruction set is present.
        let most = unsafe {
            let v = _mm256_castps_si256(v);
            let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b1110>(v));
            _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32::<1>(v)))
        };
        f32::from_bits(most as u32)
    }

    ops! {
        sum_of_ints(a: __m256, b: __m256) -> __m256 = _mm256_cvtepi32_ps(
            _mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
        sub_ints(a: __m256, b: __m256) -> __m256 = _mm256_castsi256_ps(
            _mm256_sub_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
        flip_bits(a: __m256, b: __m256) -> __m256 = _mm256_xor_ps(a, b);
    }

    ops! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        lt(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LT_OQ>(a, b);
        ge(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_GE_OQ>(a, b);
        ne(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_NEQ_UQ>(a, b);
        and(a: __m256, b: __m256) -> __m256 = _mm256_and_ps(a, b);
        any(mask: __m256) -> bool = _mm256_movemask_ps(mask) != 0;
        select(m: __m256, a: __m256, b: __m256) -> __m256 = _mm256_blendv_ps(b, a, m);
    }

    #[inline(always)]
    fn is_negative(self, a: __m256) -> __m256 {
        // Only the sign bit of a mask counts.
        a
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_loadu_ps(ptr) }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: __m256) {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_storeu_ps(ptr, v) }
    }

    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, count: usize) -> __m256 {
        // SAFETY: the token, and the caller's promise; masked lanes are not touched.
        unsafe { _mm256_maskload_ps(ptr, self.first(count)) }
    }

    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, count: usize, v: __m256) {
        // SAFETY: the token, and the caller's promise; masked lanes are not touched.
        unsafe { _mm256_maskstore_ps(ptr, self.first(count), v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { self.widen::<false>(_mm_loadu_si128(ptr.cast())) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { self.widen::<true>(_mm_loadu_si128(ptr.cast())) }
    }

    #[inline(always)]
    unsafe fn load_halves<const F16: bool>(self, ptr: *const u16, count: usize) -> __m256 {
        debug_assert!(count <= 8);
        // SAFETY: the token, and the caller's promise: four, two and one of the numbers, as many as there
        // are, those before them moved up.
        unsafe {
            if count == 8 {
                return self.widen::<F16>(_mm_loadu_si128(ptr.cast()));
            }
            let mut low = 0;
            let mut end = count;
            if count & 1 != 0 {
                end -= 1;
                low = u64::from(*ptr.add(end));
            }
            if count & 2 != 0 {
                end -= 2;
                low = low << 32 | u64::from(ptr.add(end).cast::<u32>().read_unaligned());
            }
            let halves = if count & 4 != 0 {
                _mm_set_epi64x(low as i64, ptr.cast::<i64>().read_unaligned())
            } else {
                _mm_set_epi64x(0, low as i64)
            };
            self.widen::<F16>(halves)
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(ptr.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, ptr: *mut bf16, v: __m256) {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let high = _mm256_srli_epi32::<16>(bits);
            // Half of the last place, and its odd bit, carry into what stays.
            let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let carry = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, carry));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let rounded = _mm256_blendv_epi8(rounded, quiet, is_nan);
            // Of each half of the vector its four numbers, twice.
            let packed = _mm256_packus_epi32(rounded, rounded);
            let packed = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm_storeu_si128(ptr.cast(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, ptr: *mut f16, v: __m256) {
        const NEAREST: i32 = 0;
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm_storeu_si128(ptr.cast(), _mm256_cvtps_ph::<NEAREST>(v)) }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const f32) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_castpd_ps(_mm256_set1_pd(ptr.cast::<f64>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn load_twice(self, ptr: *const f32, count: usize) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe {
            let twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
            _mm256_permutevar8x32_ps(self.load_first(ptr, count), twice)
        }
    }

    #[inline(always)]
    fn unzip(self, v: __m256) -> [__m256; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
            let odd = _mm256_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7);
            [_mm256_permutevar8x32_ps(v, even), _mm256_permutevar8x32_ps(v, odd)]
        }
    }

    /// floor(x), added to the exponent of a polynomial for 2^(x - floor(x)), which lies in [1, 2].
    /// The clamps keep NaN, as the second operand; the lower gives what is below 2^-126 without the
    /// leading one, and 0 at the end, the upper infinity.
    #[inline(always)]
    fn exp2<const N: usize>(self, x: [__m256; N]) -> [__m256; N] {
        let (mut floor, mut f) = (x, x);
        for i in 0..N {
            let x = self.min(self.splat(128.0), self.max(self.splat(-127.0), x[i]));
            // SAFETY: the token proves that the instruction set is present.
            floor[i] = unsafe { _mm256_floor_ps(x) };
            f[i] = self.sub(x, floor[i]);
        }
        let mut power = polynomial::horner(self, polynomial::FLOOR, f);
        for i in 0..N {
            // SAFETY: as above.
            power[i] = unsafe {
                let n = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(floor[i]));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(power[i]), n))
            };
        }
        power
    }

    #[inline(always)]
    fn split(self, x: __m256) -> (__m256, __m256) {
        split_by_magic(self, x, |n| {
            // SAFETY: the token proves that the instruction set is present.
            unsafe {
                let n = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
            }
        })
    }

    #[inline(always)]
    fn unpair_bf16(self, pairs: __m256) -> [__m256; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = _mm256_castps_si256(pairs);
            let high = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_slli_epi32::<16>(bits), high].map(|v| _mm256_castsi256_ps(v))
        }
    }

    #[inline(always)]
    fn unpair_f16(self, pairs: __m256) -> [__m256; 2] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = _mm256_castps_si256(pairs);
            let low = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff));
            let both = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(bits));
            // Of each half of the vector its first four numbers and its second four.
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
            [_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both)]
                .map(|v| _mm256_cvtph_ps(v))
        }
    }

    #[inline(always)]
    fn unpack_i8(self, fours: __m256) -> [__m256; 4] {
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let bits = _mm256_castps_si256(fours);
            // One by one: the closure of an array is not always inlined.
            [
                _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(bits))),
                _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<16>(bits))),
                _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<8>(bits))),
                _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(bits)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn columns(self, fours: [*const f32; 4], stride: isize) -> [__m256; 4] {
        // Vector r has four columns of the rows r and 4 + r.
        let [first, fifth, ..] = fours;
        let mut rows = [self.splat(0.0); 4];
        // SAFETY: the token, and the caller's promise.
        unsafe {
            for r in 0..4 {
                let at = stride.wrapping_mul(r as isize);
                let low = _mm256_castps128_ps256(_mm_loadu_ps(first.wrapping_byte_offset(at)));
                let high = _mm_loadu_ps(fifth.wrapping_byte_offset(at));
                rows[r] = _mm256_insertf128_ps::<1>(low, high);
            }
            let [a, b, c, d] = rows;
            let (ab, ab2) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd, cd2) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let [ab, ab2, cd, cd2] = [ab, ab2, cd, cd2].map(|v| _mm256_castps_pd(v));
            [
                _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
                _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)),
                _mm256_castpd_ps(_mm256_unpacklo_pd(ab2, cd2)),
                _mm256_castpd_ps(_mm256_unpackhi_pd(ab2, cd2)),
            ]
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m256; MAX_LANES]) {
        // Pairs of floats, pairs of doubles, then halves.
        // SAFETY: the token proves that the instruction set is present.
        unsafe {
            let mut a = *rows;
            for i in 0..4 {
                a[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut b = a;
            for i in 0..2 {
                for j in 0..2 {
                    let (lo, hi) =
                        (_mm256_castps_pd(a[4 * i + j]), _mm256_castps_pd(a[4 * i + j + 2]));
                    b[4 * i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(lo, hi));
                    b[4 * i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(lo, hi));
                }
            }
            for c in 0..4 {
                rows[c] = _mm256_permute2f128_ps::<0x20>(b[c], b[4 + c]);
                rows[4 + c] = _mm256_permute2f128_ps::<0x31>(b[c], b[4 + c]);
            }
        }
    }
}
