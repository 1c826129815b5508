//! The vector interface that every kernel body is written against, and one token per instruction
//! set.
//!
//! A token is a zero-size proof that its instruction set is present: only [`detect`] makes one.
//! Kernel bodies are generic over `S: Simd` and `#[inline(always)]`, from the micro-kernel up to
//! the [`Kernel::run`] that [`Simd::vectorize`] calls: that call is the one edge that is not
//! inlined, where the instruction set is switched on. A body that misses its `#[inline(always)]`
//! still computes the same, slowly.
//!
//! An instruction set joins by one file here, a line in [`detect`], and its tile shapes in the
//! `match S::ISA` of the score and the value micro-kernel.

/// Methods of a token that are nothing but intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! ops {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: the token proves that the instruction set is present.
            unsafe { $body }
        }
    )*};
}

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod cpu;
mod detect;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod stored;
mod tanh;

pub(crate) use cache::l1_ways;
pub use detect::Isa;
pub(crate) use detect::dispatch;
pub(crate) use stored::{Bf16Pair, Int8Dot, Int8Quad, Stored, StoredMut};
pub(crate) use tanh::{EXPONENT as TANH_EXPONENT, of_exponent as tanh_of_exponent};

/// Asks for the cache line of `ptr`, wherever that points, in the second cache or, if it is wanted `SOON`, in
/// the first; where the target has no such hint, nothing.
#[inline(always)]
pub(crate) fn prefetch_to<const SOON: bool>(ptr: *const u8) {
    // SAFETY: SSE is part of the target's baseline, and a hint reads nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if SOON {
            _mm_prefetch::<_MM_HINT_T0>(ptr.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T1>(ptr.cast());
        }
    }
    // It is not followed.
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    #[allow(clippy::pointers_in_nomem_asm_block)]
    // SAFETY: a hint reads nothing.
    unsafe {
        if SOON {
            core::arch::asm!(
                "prfm pldl1keep, [{0}]",
                in(reg) ptr,
                options(nomem, nostack, preserves_flags)
            );
        } else {
            core::arch::asm!(
                "prfm pldl2keep, [{0}]",
                in(reg) ptr,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = ptr;
}

/// Asks for the cache line of `ptr` in the second cache.
#[inline(always)]
pub(crate) fn prefetch(ptr: *const u8) {
    prefetch_to::<false>(ptr);
}

/// The same pointer, of which the compiler knows nothing: it stays in a register of its own.
#[inline(always)]
pub(crate) fn opaque<T>(ptr: *const T) -> *const T {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let mut ptr = ptr;
        // It is not followed.
        #[allow(clippy::pointers_in_nomem_asm_block)]
        // SAFETY: a comment is no instruction.
        unsafe {
            core::arch::asm!(
                "/* {0} */",
                inout(reg) ptr,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        ptr
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    ptr
}

/// The widest vector of any instruction set, in `f32` lanes.
pub const MAX_LANES: usize = 16;

/// A computation to run with an instruction set switched on.
pub trait Kernel {
    /// What it gives.
    type Output;
    /// Must be `#[inline(always)]`, as must all that it calls in a loop.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

mod sealed {
    /// Implemented by tokens alone.
    pub trait Sealed {}
}

/// Vectors of `f32` in one instruction set: what kernels and [score terms](crate::ScoreTerm) are
/// generic over. A value of it proves that the processor has the instructions, so that the
/// operations are safe; only the library makes one, and it hands it to the code that it calls.
///
/// Functions that take it should be `#[inline(always)]`, since instruction sets are switched on
/// above them: a call that is not inlined still computes the same, slowly.
///
/// # Safety
/// A value of the implementing type must exist only where its instruction set does, and `LANES`
/// must be the number of `f32` in `Vector`, at most [`MAX_LANES`].
pub unsafe trait Simd: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Which instruction set this is.
    const ISA: Isa;
    /// `f32` lanes in a vector.
    const LANES: usize;
    /// A vector of `f32`.
    type Vector: Copy;
    /// One truth value per lane.
    type Mask: Copy;

    /// Runs `kernel` compiled for this instruction set.
    #[doc(hidden)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// Whether some token of this type has dot products of `bf16`.
    #[doc(hidden)]
    const BF16_DOTS: bool = false;
    /// Whether this token has them.
    #[doc(hidden)]
    fn has_bf16_dots(self) -> bool {
        false
    }
    /// Runs `kernel` compiled with them: only if [`Simd::has_bf16_dots`].
    #[doc(hidden)]
    fn vectorize_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        self.vectorize(kernel)
    }

    /// Whether some token of this type has dot products of integers of eight bits.
    #[doc(hidden)]
    const INT8_DOTS: bool = false;
    /// Whether this token has them.
    #[doc(hidden)]
    fn has_int8_dots(self) -> bool {
        false
    }
    /// Runs `kernel` compiled with them: only if [`Simd::has_int8_dots`].
    #[doc(hidden)]
    fn vectorize_int8<K: Kernel>(self, kernel: K) -> K::Output {
        self.vectorize(kernel)
    }

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::Vector;

    /// Loads a vector.
    ///
    /// # Safety
    /// `LANES` floats must be readable at `ptr`, of any alignment.
    unsafe fn load(self, ptr: *const f32) -> Self::Vector;
    /// Stores a vector.
    ///
    /// # Safety
    /// `LANES` floats must be writable at `ptr`, of any alignment.
    unsafe fn store(self, ptr: *mut f32, v: Self::Vector);
    /// Loads the first `count <= LANES` lanes; the others are zero.
    ///
    /// # Safety
    /// `count` floats must be readable at `ptr`.
    unsafe fn load_first(self, ptr: *const f32, count: usize) -> Self::Vector;
    /// Stores the first `count <= LANES` lanes.
    ///
    /// # Safety
    /// `count` floats must be writable at `ptr`.
    unsafe fn store_first(self, ptr: *mut f32, count: usize, v: Self::Vector);

    /// Loads a vector of `bf16`, widened exactly.
    ///
    /// # Safety
    /// `LANES` numbers must be readable at `ptr`, of any alignment.
    #[doc(hidden)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> Self::Vector;
    /// Loads a vector of `f16`, widened exactly.
    ///
    /// # Safety
    /// As [`Simd::load_bf16`].
    #[doc(hidden)]
    unsafe fn load_f16(self, ptr: *const f16) -> Self::Vector;
    /// Loads the first `count <= LANES` of as many `bf16`, or `f16` with `F16`, widened; the other lanes are
    /// zero.
    ///
    /// # Safety
    /// `count` numbers must be readable at `ptr`, aligned.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn load_halves<const F16: bool>(self, ptr: *const u16, count: usize) -> Self::Vector {
        let mut halves = [0_u16; MAX_LANES];
        for (i, half) in halves.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise.
            *half = unsafe { *ptr.add(i) };
        }
        // SAFETY: MAX_LANES numbers are at least LANES.
        unsafe {
            if F16 {
                self.load_f16(halves.as_ptr().cast())
            } else {
                self.load_bf16(halves.as_ptr().cast())
            }
        }
    }

    /// Loads a vector of integers.
    ///
    /// # Safety
    /// `LANES` bytes must be readable at `ptr`.
    #[doc(hidden)]
    unsafe fn load_i8(self, ptr: *const i8) -> Self::Vector;

    /// Stores a vector as `bf16`, rounded to the nearest, to the even of two as near.
    ///
    /// # Safety
    /// `LANES` numbers must be writable at `ptr`, of any alignment.
    #[doc(hidden)]
    unsafe fn store_bf16(self, ptr: *mut bf16, v: Self::Vector);
    /// Stores a vector as `f16`, rounded like [`Simd::store_bf16`]; beyond its range to infinity.
    ///
    /// # Safety
    /// As [`Simd::store_bf16`].
    #[doc(hidden)]
    unsafe fn store_f16(self, ptr: *mut f16, v: Self::Vector);

    /// Two floats by turns: the first in the even lanes, the second in the odd.
    ///
    /// # Safety
    /// Two floats must be readable at `ptr`, of any alignment.
    #[doc(hidden)]
    unsafe fn splat_pair(self, ptr: *const f32) -> Self::Vector;
    /// The first `count <= LANES / 2` floats, each in two lanes side by side; the others are zero.
    ///
    /// # Safety
    /// `count` floats must be readable at `ptr`.
    #[doc(hidden)]
    unsafe fn load_twice(self, ptr: *const f32, count: usize) -> Self::Vector;
    /// The even lanes and the odd, each in the lower half of a vector; the upper may hold anything.
    #[doc(hidden)]
    fn unzip(self, v: Self::Vector) -> [Self::Vector; 2];

    /// The first `LANES` numbers as a vector.
    #[inline(always)]
    fn vector(self, lanes: [f32; MAX_LANES]) -> Self::Vector {
        // SAFETY: MAX_LANES floats are at least LANES.
        unsafe { self.load(lanes.as_ptr()) }
    }

    /// The lanes of a vector, and 0 behind them.
    #[inline(always)]
    fn to_array(self, v: Self::Vector) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: MAX_LANES floats are at least LANES.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        lanes
    }

    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`.
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b`.
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a / b`.
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`, rounded once (the portable body may round twice).
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a > b ? a : b` in each lane: `b` where either is NaN.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a < b ? a : b` in each lane: `b` where either is NaN.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a < b` in each lane: false where either is NaN.
    fn lt(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// `a >= b` in each lane: false where either is NaN.
    fn ge(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// `a != b` in each lane: true where either is NaN.
    fn ne(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// Whether each lane's sign bit is set.
    fn is_negative(self, a: Self::Vector) -> Self::Mask;
    /// Whether both hold, in each lane.
    fn and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Whether `mask` holds in some lane.
    fn any(self, mask: Self::Mask) -> bool;
    /// `mask ? a : b` in each lane.
    fn select(self, mask: Self::Mask, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// 2 to the power of each lane: relative error below 2e-7 for -126 <= x < 127.5; from 0 to
    /// 2^-126 below, 0 for -inf; +inf or NaN from 128 on, and between 127.5 and 128 either that or
    /// the power; NaN for NaN.
    ///
    /// Of several vectors at once, step by step: each step waits for the one before it, so that
    /// vectors one after the other would fill the processor's queue with what cannot start yet.
    fn exp2<const N: usize>(self, x: [Self::Vector; N]) -> [Self::Vector; N];

    /// The same, but 0 for what is less than `least`, at least -126, or -inf for nothing: a power behind which
    /// many a processor takes a hundred cycles and more for an operation, on a subnormal number or what becomes
    /// one.
    #[doc(hidden)]
    #[inline(always)]
    fn exp2_from<const N: usize>(self, least: f32, x: [Self::Vector; N]) -> [Self::Vector; N] {
        let mut powers = self.exp2(x);
        for i in 0..N {
            // A NaN stays.
            powers[i] = self.select(self.lt(x[i], self.splat(least)), self.splat(0.0), powers[i]);
        }
        powers
    }

    /// The hyperbolic tangent of each lane: relative error below 8e-7 (absolute, of subnormal
    /// results, 2^-148), +-1 for +-inf, NaN for NaN. Of several vectors at once, as `exp2`.
    #[inline(always)]
    fn tanh<const N: usize>(self, x: [Self::Vector; N]) -> [Self::Vector; N] {
        let mut t = x;
        for i in 0..N {
            t[i] = self.mul(x[i], self.splat(tanh::EXPONENT));
        }
        tanh::of_exponent(self, t)
    }

    /// For `x` up to 100: `2^n` and `x - n`, where `n` is `x` rounded, or some such number below -60
    /// where x is. The difference is NaN for NaN.
    #[doc(hidden)]
    fn split(self, x: Self::Vector) -> (Self::Vector, Self::Vector);

    /// Transposes the square matrix of `LANES` rows in `rows`.
    #[doc(hidden)]
    fn transpose(self, rows: &mut [Self::Vector; MAX_LANES]);

    /// The first four columns of `LANES` rows, each `stride` bytes behind the one before it; `fours`
    /// are the first row, the fifth and so on.
    ///
    /// # Safety
    /// Four floats must be readable at each row, of any alignment.
    #[doc(hidden)]
    unsafe fn columns(self, fours: [*const f32; MAX_LANES / 4], stride: isize)
    -> [Self::Vector; 4];

    /// The same of eight columns, for which eight floats must be readable at each row.
    ///
    /// # Safety
    /// As there.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn eight_columns(
        self,
        fours: [*const f32; MAX_LANES / 4],
        stride: isize,
    ) -> [Self::Vector; 8] {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b, c, d] = self.columns(fours, stride);
            let [e, f, g, h] = self.columns(fours.map(|row| row.add(4)), stride);
            [a, b, c, d, e, f, g, h]
        }
    }

    /// `c` and the products of two pairs of `bf16` in each lane, by their bits: the second of each is added
    /// first; both additions round. With dot products subnormal numbers count as 0.
    ///
    /// # Safety
    /// Where the token has dot products of `bf16`, only below [`Simd::vectorize_bf16`].
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn dot_bf16(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        let ([a0, a1], [b0, b1]) = (self.unpair_bf16(a), self.unpair_bf16(b));
        self.mul_add(a0, b0, self.mul_add(a1, b1, c))
    }
    /// Pairs of numbers, each rounded as by [`Simd::store_bf16`].
    ///
    /// # Safety
    /// As [`Simd::dot_bf16`].
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn pair_bf16(self, first: Self::Vector, second: Self::Vector) -> Self::Vector {
        let (mut a, mut b) = ([bf16::ZERO; MAX_LANES], [bf16::ZERO; MAX_LANES]);
        // SAFETY: MAX_LANES numbers.
        unsafe {
            self.store_bf16(a.as_mut_ptr(), first);
            self.store_bf16(b.as_mut_ptr(), second);
            self.load_pairs(a.as_ptr(), b.as_ptr(), Self::LANES)
        }
    }
    /// The first `count <= LANES` numbers at `first`, each with the one at `second` behind it, by their bits.
    ///
    /// # Safety
    /// `count` numbers must be readable at both, aligned.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn load_pairs(
        self,
        first: *const bf16,
        second: *const bf16,
        count: usize,
    ) -> Self::Vector {
        let mut pairs = [0.0; MAX_LANES];
        for (i, pair) in pairs.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise.
            let [a, b] = unsafe { [*first.add(i), *second.add(i)] }.map(bf16::to_bits);
            *pair = f32::from_bits(u32::from(b) << 16 | u32::from(a));
        }
        self.vector(pairs)
    }
    /// Of two pairs in each lane, the second with 0 where the first is negative.
    #[doc(hidden)]
    #[inline(always)]
    fn clear_where_negative_bf16(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // The sign bit of each half over the whole of it.
        zip_bits(self, a, b, |a, b| b & !((a >> 15 & 0x1_0001) * 0xffff))
    }

    /// In each lane the integer `c`, by its bits, and the products of four bytes without a sign, of `a`, and
    /// four with one, of `b`.
    ///
    /// # Safety
    /// Where the token has dot products of integers, only below [`Simd::vectorize_int8`].
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn dot_int8(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        let (a, b, mut c) = (self.to_array(a), self.to_array(b), self.to_array(c));
        for ((a, b), c) in a.into_iter().zip(b).zip(&mut c) {
            let bytes = a.to_bits().to_le_bytes().into_iter().zip(b.to_bits().to_le_bytes());
            let products = bytes.map(|(a, b)| i32::from(a) * i32::from(b as i8));
            let sum = (c.to_bits() as i32).wrapping_add(products.sum());
            *c = f32::from_bits(sum as u32);
        }
        self.vector(c)
    }
    /// The sums of two integers, by their bits, as floats.
    #[doc(hidden)]
    #[inline(always)]
    fn sum_of_ints(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        let sum = zip_bits(self, a, b, u32::wrapping_add);
        self.vector(self.to_array(sum).map(|x| x.to_bits() as i32 as f32))
    }
    /// The difference of two integers, by their bits.
    #[doc(hidden)]
    #[inline(always)]
    fn sub_ints(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        zip_bits(self, a, b, u32::wrapping_sub)
    }
    /// The bits of `a`, those that `b` has turned over.
    #[doc(hidden)]
    #[inline(always)]
    fn flip_bits(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        zip_bits(self, a, b, |a, b| a ^ b)
    }
    /// Numbers from -128 to 255, rounded to the nearest integer, to the even of two as near, as bytes, with a
    /// sign if they have one: those of the first vector first in each lane.
    #[doc(hidden)]
    #[inline(always)]
    fn quad_of_ints(self, four: [Self::Vector; 4]) -> Self::Vector {
        let mut bytes = [[0_u8; 4]; MAX_LANES];
        for (n, v) in four.into_iter().enumerate() {
            for (bytes, x) in bytes.iter_mut().zip(self.to_array(v)) {
                bytes[n] = (x.round_ties_even() as i32) as u8;
            }
        }
        self.vector(bytes.map(|bytes| f32::from_bits(u32::from_le_bytes(bytes))))
    }
    /// Stores numbers from 0 to 255, rounded as by [`Simd::quad_of_ints`], as bytes without a sign.
    ///
    /// # Safety
    /// `LANES` bytes must be writable at `ptr`.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, v: Self::Vector) {
        for (i, x) in self.to_array(v).into_iter().enumerate().take(Self::LANES) {
            // SAFETY: the caller's promise.
            unsafe { ptr.add(i).write(x.round_ties_even() as u8) };
        }
    }
    /// Of each of `4 * LANES` columns of four rows of bytes the four, one behind the other, in the order of
    /// [`Simd::in_order`].
    ///
    /// # Safety
    /// As many bytes must be readable at each row.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn interleave_bytes(self, rows: [*const i8; 4]) -> [Self::Vector; 4] {
        let mut vectors = [self.splat(0.0); 4];
        for (n, vector) in vectors.iter_mut().enumerate() {
            let mut quads = [0.0; MAX_LANES];
            for (i, quad) in quads.iter_mut().enumerate().take(Self::LANES) {
                // SAFETY: the caller's promise.
                let bytes = rows.map(|row| unsafe { *row.add(n * Self::LANES + i) } as u8);
                *quad = f32::from_bits(u32::from_le_bytes(bytes));
            }
            *vector = self.vector(quads);
        }
        vectors
    }
    /// Lane by lane what became of the vectors of [`Simd::interleave_bytes`], in the order of the columns.
    #[doc(hidden)]
    #[inline(always)]
    fn in_order(self, vectors: [Self::Vector; 4]) -> [Self::Vector; 4] {
        vectors
    }
    /// The larger of a magnitude, which is not negative, and that of `x`, where NaN is larger than all numbers.
    #[doc(hidden)]
    #[inline(always)]
    fn max_magnitude(self, most: Self::Vector, x: Self::Vector) -> Self::Vector {
        zip_bits(self, most, x, |most, x| most.max(x & i32::MAX as u32))
    }
    /// The largest of all lanes, which are such magnitudes.
    #[doc(hidden)]
    #[inline(always)]
    fn largest_magnitude(self, v: Self::Vector) -> f32 {
        f32::from_bits(self.to_array(v).iter().fold(0, |most, x| most.max(x.to_bits())))
    }

    /// Of two `bf16` in each lane, by their bits, the first of all and the second of all, widened.
    #[doc(hidden)]
    fn unpair_bf16(self, pairs: Self::Vector) -> [Self::Vector; 2];
    /// The same of `f16`.
    #[doc(hidden)]
    fn unpair_f16(self, pairs: Self::Vector) -> [Self::Vector; 2];
    /// Of four bytes in each lane, by their bits, the first of all, the second and so on, as integers.
    #[doc(hidden)]
    fn unpack_i8(self, fours: Self::Vector) -> [Self::Vector; 4];
}

/// Lane by lane what `one` makes of the bits: for what an instruction set has no instructions for.
#[inline(always)]
fn zip_bits<S: Simd>(s: S, a: S::Vector, b: S::Vector, one: impl Fn(u32, u32) -> u32) -> S::Vector {
    let (mut a, b) = (s.to_array(a), s.to_array(b));
    for (a, b) in a.iter_mut().zip(b) {
        *a = f32::from_bits(one(a.to_bits(), b.to_bits()));
    }
    s.vector(a)
}

/// Polynomials for 2^f and Horner's rule for them. Fitted by iteratively re-weighted least squares
/// for the smallest relative error, the constant term held at 1 so that 2^0 is exact.
pub(crate) mod polynomial {
    use super::Simd;

    /// For f in [-1/2, 1/2]; relative error 1.7e-7 when evaluated in f32.
    #[allow(clippy::approx_constant)] // Near ln 2, as fitted.
    pub(crate) const CENTERED: [f32; 6] =
        [1.0, 0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

    /// For f in [0, 1]; relative error 1.5e-7 when evaluated in f32.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) const FLOOR: [f32; 6] =
        [1.0, 0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_031, 0.001_867_13];

    #[inline(always)]
    pub(crate) fn horner<S: Simd, const N: usize>(
        s: S,
        coefficients: [f32; 6],
        f: [S::Vector; N],
    ) -> [S::Vector; N] {
        let [c0, c1, c2, c3, c4, c5] = coefficients;
        // In loops: the closures of `map` are not always inlined.
        let mut sum = [s.splat(c5); N];
        for c in [c4, c3, c2, c1, c0] {
            for i in 0..N {
                sum[i] = s.mul_add(sum[i], f[i], s.splat(c));
            }
        }
        sum
    }
}

/// [`Simd::split`] by adding and taking away 1.5 * 2^23; `power` makes 2^n of n.
#[inline(always)]
pub(crate) fn split_by_magic<S: Simd>(
    s: S,
    x: S::Vector,
    power: impl Fn(S::Vector) -> S::Vector,
) -> (S::Vector, S::Vector) {
    const MAGIC: f32 = 12_582_912.0;
    // Keeps NaN, as the second operand.
    let x = s.max(s.splat(-64.0), x);
    let n = s.sub(s.add(x, s.splat(MAGIC)), s.splat(MAGIC));
    (power(n), s.sub(x, n))
}

/// 2^x for instruction sets without a scaling instruction: round x to n by adding and taking away
/// 1.5 * 2^23, a polynomial for 2^(x-n), times 2^n made from n's bits. `scale_bits` turns the
/// biased sum, whose low mantissa bits hold n, into that factor: 0 for -127, +inf for 128.
#[inline(always)]
pub(crate) fn exp2_by_magic<S: Simd, const N: usize>(
    s: S,
    x: [S::Vector; N],
    scale_bits: impl Fn(S::Vector) -> S::Vector,
) -> [S::Vector; N] {
    const MAGIC: f32 = 12_582_912.0;
    // Both keep NaN, which they pass on from their second operand.
    let (mut biased, mut f) = (x, x);
    for i in 0..N {
        let x = s.min(s.splat(128.0), s.max(s.splat(-127.0), x[i]));
        biased[i] = s.add(x, s.splat(MAGIC));
        f[i] = s.sub(x, s.sub(biased[i], s.splat(MAGIC)));
    }
    let mut power = polynomial::horner(s, polynomial::CENTERED, f);
    for i in 0..N {
        power[i] = s.mul(power[i], scale_bits(biased[i]));
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    /// Runs a kernel's body with the instruction set switched on.
    struct Entered<K>(K);

    impl<K: Kernel> Kernel for Entered<K> {
        type Output = K::Output;
        fn run<S: Simd>(self, s: S) -> K::Output {
            s.vectorize(self.0)
        }
    }

    fn on<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        dispatch(isa, Entered(kernel)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn lanes<S: Simd>(s: S, v: S::Vector) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: MAX_LANES floats.
        unsafe { s.store(lanes.as_mut_ptr(), v) };
        lanes
    }

    fn vector<S: Simd>(s: S, lanes: [f32; MAX_LANES]) -> S::Vector {
        // SAFETY: MAX_LANES floats.
        unsafe { s.load(lanes.as_ptr()) }
    }

    #[derive(Clone, Copy)]
    enum Function {
        Exp2,
        Tanh,
    }

    /// The function of every float.
    struct Apply<'a>(Function, &'a mut [f32]);

    impl Kernel for Apply<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for part in self.1.chunks_mut(S::LANES) {
                // SAFETY: the part has this many floats.
                unsafe {
                    let x = s.load_first(part.as_ptr(), part.len());
                    let [y] = match self.0 {
                        Function::Exp2 => s.exp2([x]),
                        Function::Tanh => s.tanh([x]),
                    };
                    s.store_first(part.as_mut_ptr(), part.len(), y);
                }
            }
        }
    }

    fn apply(function: Function, isa: Isa, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        on(isa, Apply(function, &mut y));
        y
    }

    /// Calls `test` with all floats, part by part.
    fn with_every_float(test: impl Fn(&[f32]) + Sync) {
        const PART: u32 = 1 << 16;
        (0..=u32::MAX / PART).into_par_iter().for_each(|part| {
            let x: Vec<f32> = (0..PART).map(|n| f32::from_bits(part * PART + n)).collect();
            test(&x);
        });
    }

    /// The relative error that [`Simd::exp2`] promises.
    const EXP2_ERROR: f64 = 2e-7;

    /// Whether `y` is what [`Simd::exp2`] promises for `x`, with `power` the exact result.
    fn keeps_the_promise(x: f32, power: f64, y: f32) -> bool {
        let close = (f64::from(y) - power).abs() <= EXP2_ERROR * power;
        let overflown = y.is_nan() || y == f32::INFINITY;
        match x {
            _ if x.is_nan() => y.is_nan(),
            f32::NEG_INFINITY => y.to_bits() == 0,
            ..-126.0 => (0.0..=f32::MIN_POSITIVE).contains(&y),
            -126.0..127.5 => close,
            127.5..128.0 => close || overflown,
            _ => overflown,
        }
    }

    fn assert_exp2(x: &[f32]) {
        let powers: Vec<f64> = x.iter().map(|&x| f64::from(x).exp2()).collect();
        for isa in Isa::available() {
            let y = apply(Function::Exp2, isa, x);
            for ((&x, &power), &y) in x.iter().zip(&powers).zip(&y) {
                assert!(keeps_the_promise(x, power, y), "2^{x:?} = {y:?} on {isa}");
            }
        }
    }

    #[test]
    fn exp2_keeps_its_promise() {
        // Steps of about 2^-12 over the normal results and beyond, every tenth float in a short
        // range, one in 2^16 of all there are, and the ends.
        let coarse = (0..1_050_000).map(|i| -127.0 + i as f32 * 0.000_244_2);
        let fine = (0..600_000).map(|i| f32::from_bits(0.75_f32.to_bits() + 10 * i));
        let all = (0..1 << 16).map(|i| f32::from_bits(0x9e37 + (i << 16)));
        let ends =
            [-126.0, 127.5_f32, 128.0].into_iter().flat_map(|x| [x.next_down(), x, x.next_up()]);
        let last = [f32::MIN, f32::MAX, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -f32::NAN];
        let x: Vec<f32> = coarse.chain(fine).chain(all).chain(ends).chain(last).collect();
        assert_exp2(&x);
        for isa in Isa::available() {
            assert_eq!(apply(Function::Exp2, isa, &[0.0, -0.0]), [1.0; 2], "{isa}");
        }
    }

    #[test]
    #[ignore = "about a minute: cargo test --release -p headwise-kernels --lib -- --ignored"]
    fn exp2_keeps_its_promise_for_every_float() {
        with_every_float(assert_exp2);
    }

    /// Says the largest relative error, of normal results.
    fn assert_tanh(x: &[f32]) -> f64 {
        let expected: Vec<f64> = x.iter().map(|&x| f64::from(x).tanh()).collect();
        let mut worst = 0.0;
        for isa in Isa::available() {
            let y = apply(Function::Tanh, isa, x);
            for ((&x, &expected), &y) in x.iter().zip(&expected).zip(&y) {
                if x.is_nan() {
                    assert!(y.is_nan(), "tanh of {x:?} on {isa}");
                    continue;
                }
                let error = (f64::from(y) - expected).abs();
                let tiny = expected.abs() < 2.0_f64.powi(-120);
                let bound = if tiny { 2.0_f64.powi(-140) } else { 8e-7 * expected.abs() };
                assert!(error <= bound, "tanh {x:?} = {y:?} for {expected:?} on {isa}");
                if !tiny {
                    worst = f64::max(worst, error / expected.abs());
                }
            }
        }
        worst
    }

    #[test]
    fn tanh_keeps_its_promise() {
        let coarse = (-1_000_000..1_000_000).map(|i| i as f32 * 1.3e-5);
        let all = (0..1 << 16).map(|i| f32::from_bits(0x3779 + (i << 16)));
        let last = [f32::MIN, f32::MAX, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -f32::NAN];
        let x: Vec<f32> = coarse.chain(all).chain(last).collect();
        println!("largest relative error {:e}", assert_tanh(&x));
    }

    #[test]
    #[ignore = "about a minute: cargo test --release -p headwise-kernels --lib -- --ignored"]
    fn tanh_keeps_its_promise_for_every_float() {
        with_every_float(|x| {
            assert_tanh(x);
        });
    }

    struct Transpose;

    impl Kernel for Transpose {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let element = |r: usize, c: usize| (100 * r + c) as f32;
            let row = |r| vector(s, std::array::from_fn(|c| element(r, c)));
            let mut rows: [S::Vector; MAX_LANES] = std::array::from_fn(row);
            s.transpose(&mut rows);
            for (r, &v) in rows.iter().enumerate().take(S::LANES) {
                for (c, &x) in lanes(s, v).iter().enumerate().take(S::LANES) {
                    assert_eq!(x, element(c, r), "row {r}, lane {c} on {}", S::ISA);
                }
            }
        }
    }

    struct Columns;

    impl Kernel for Columns {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let data: [f32; 8 * MAX_LANES] = std::array::from_fn(|i| i as f32);
            for (first, stride) in [(0, 4), (1, 7), (8 * S::LANES - 8, -8), (5, 0)] {
                // SAFETY: the rows lie in `data`.
                let columns = unsafe {
                    let row =
                        |n: usize| data.as_ptr().add(first).wrapping_offset(stride * n as isize);
                    s.columns([row(0), row(4), row(8), row(12)], 4 * stride)
                };
                for (c, v) in columns.into_iter().enumerate() {
                    for r in 0..S::LANES {
                        let expected = (first as isize + r as isize * stride) as f32 + c as f32;
                        assert_eq!(lanes(s, v)[r], expected, "row {r}, column {c} on {}", S::ISA);
                    }
                }
            }
        }
    }

    struct Partial;

    impl Kernel for Partial {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for count in 0..=S::LANES {
                // No longer than it must be, so that a reach beyond it may be noticed.
                let data: Box<[f32]> = (1..=count).map(|x| x as f32).collect();
                // SAFETY: `count` floats.
                let loaded = lanes(s, unsafe { s.load_first(data.as_ptr(), count) });
                let mut stored = [-1.0; MAX_LANES];
                // SAFETY: MAX_LANES floats.
                unsafe { s.store_first(stored.as_mut_ptr(), count, s.splat(7.0)) };
                for lane in 0..S::LANES {
                    let inside = lane < count;
                    let expected = if inside { (lane + 1) as f32 } else { 0.0 };
                    assert_eq!(loaded[lane], expected, "{count} loaded on {}", S::ISA);
                    let expected = if inside { 7.0 } else { -1.0 };
                    assert_eq!(stored[lane], expected, "{count} stored on {}", S::ISA);
                }
            }
        }
    }

    struct Halves;

    impl Kernel for Halves {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            // SAFETY: two floats.
            let pair = lanes(s, unsafe { s.splat_pair([3.0, 4.0].as_ptr()) });
            let numbers = std::array::from_fn(|i| i as f32);
            let [even, odd] = s.unzip(vector(s, numbers)).map(|v| lanes(s, v));
            for i in 0..S::LANES / 2 {
                assert_eq!([pair[2 * i], pair[2 * i + 1]], [3.0, 4.0], "pairs on {}", S::ISA);
                let expected = [2.0 * i as f32, 2.0 * i as f32 + 1.0];
                assert_eq!([even[i], odd[i]], expected, "unzipped on {}", S::ISA);
            }
            for count in 0..=S::LANES / 2 {
                let data: Box<[f32]> = (1..=count).map(|x| x as f32).collect();
                // SAFETY: `count` floats.
                let twice = lanes(s, unsafe { s.load_twice(data.as_ptr(), count) });
                for lane in 0..S::LANES {
                    let expected = if lane / 2 < count { (lane / 2 + 1) as f32 } else { 0.0 };
                    assert_eq!(twice[lane], expected, "{count} loaded twice on {}", S::ISA);
                }
            }
        }
    }

    /// Every pair of special numbers through every comparison.
    struct Comparisons;

    impl Kernel for Comparisons {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let special =
                [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
            for a in special {
                for b in special {
                    let (va, vb) = (s.splat(a), s.splat(b));
                    let what = format!("{a:?}, {b:?} on {}", S::ISA);
                    let says = |mask| {
                        let one = lanes(s, s.select(mask, s.splat(1.0), s.splat(0.0)))[0] == 1.0;
                        assert_eq!(one, s.any(mask), "{what}");
                        one
                    };
                    assert_eq!(says(s.lt(va, vb)), a < b, "{what}");
                    assert_eq!(says(s.ge(va, vb)), a >= b, "{what}");
                    assert_eq!(says(s.ne(va, vb)), a != b, "{what}");
                    let both = s.and(s.ge(va, vb), s.ge(vb, va));
                    assert_eq!(says(both), a == b, "{what}");
                    let max = if a > b { a } else { b };
                    assert_eq!(lanes(s, s.max(va, vb))[0].to_bits(), max.to_bits(), "{what}");
                    let min = if a < b { a } else { b };
                    assert_eq!(lanes(s, s.min(va, vb))[0].to_bits(), min.to_bits(), "{what}");
                }
                let negative = s.select(s.is_negative(s.splat(a)), s.splat(1.0), s.splat(0.0));
                let expected = f32::from(u8::from(a.is_sign_negative()));
                assert_eq!(lanes(s, negative)[0], expected, "{a:?} on {}", S::ISA);
            }
        }
    }

    /// Lanes are lanes: no operation moves them.
    struct Lanewise;

    impl Kernel for Lanewise {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let a: [f32; MAX_LANES] = std::array::from_fn(|i| i as f32 - 3.0);
            let b: [f32; MAX_LANES] = std::array::from_fn(|i| 10.0 - 2.0 * i as f32);
            let (va, vb) = (vector(s, a), vector(s, b));
            let results = [
                s.add(va, vb),
                s.sub(va, vb),
                s.mul(va, vb),
                s.mul_add(va, vb, vb),
                s.max(va, vb),
                s.min(va, vb),
                s.select(s.lt(va, vb), va, vb),
                s.select(s.is_negative(va), va, vb),
            ];
            let results = results.map(|v| lanes(s, v));
            for lane in 0..S::LANES {
                let (a, b) = (a[lane], b[lane]);
                let signed = if a < 0.0 { a } else { b };
                let (max, min) = (a.max(b), a.min(b));
                let expected = [a + b, a - b, a * b, a * b + b, max, min, min, signed];
                assert_eq!(results.map(|v| v[lane]), expected, "lane {lane} on {}", S::ISA);
            }
        }
    }

    #[test]
    fn vectors_do_what_the_trait_says() {
        for isa in Isa::available() {
            on(isa, Transpose);
            on(isa, Columns);
            on(isa, Partial);
            on(isa, Halves);
            on(isa, Comparisons);
            on(isa, Lanewise);
        }
    }
}
