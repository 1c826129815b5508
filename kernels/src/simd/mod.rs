//! The vector interface that every kernel body is written against, and one token per instruction
//! set.
//!
//! A token is a zero-size proof that its instruction set is present: only [`detect`] makes one.
//! Kernel bodies are generic over `S: Simd` and `#[inline(always)]`, from the micro-kernel up to
//! the [`Kernel::run`] that [`Simd::vectorize`] calls: that call is the one edge that is not
//! inlined, where the instruction set is switched on. A body that misses its `#[inline(always)]`
//! still computes the same, slowly.
//!
//! An instruction set joins by one file here, a line in [`detect`], and its tile shapes in
//! `microkernel/tiles.rs`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod detect;
mod portable;

pub use detect::Isa;
pub(crate) use detect::dispatch;

/// Asks for the cache line of `ptr`, wherever that points; where the target has no such hint,
/// nothing.
#[inline(always)]
pub(crate) fn prefetch(ptr: *const f32) {
    // SAFETY: SSE is part of the target's baseline, and a hint reads nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// The widest vector of any instruction set, in `f32` lanes.
pub(crate) const MAX_LANES: usize = 16;

/// A computation to run with an instruction set switched on.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, as must all that it calls in a loop.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Vectors of `f32` in one instruction set.
///
/// # Safety
/// A value of the implementing type must exist only where its instruction set does, and `LANES`
/// must be the number of `f32` in `Vector`, at most [`MAX_LANES`].
pub(crate) unsafe trait Simd: Copy + Send + Sync + 'static {
    /// Which instruction set this is.
    const ISA: Isa;
    /// `f32` lanes in a vector.
    const LANES: usize;
    /// A vector of `f32`.
    type Vector: Copy;
    /// One truth value per lane.
    type Mask: Copy;

    /// Runs `kernel` compiled for this instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::Vector;

    /// # Safety
    /// `LANES` floats must be readable at `ptr`, of any alignment.
    unsafe fn load(self, ptr: *const f32) -> Self::Vector;
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

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a > b ? a : b` in each lane: `b` where either is NaN.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a < b` in each lane: false where either is NaN.
    fn lt(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// `a >= b` in each lane: false where either is NaN.
    fn ge(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// `a != b` in each lane: true where either is NaN.
    fn ne(self, a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// Whether each lane's sign bit is set.
    fn is_negative(self, a: Self::Vector) -> Self::Mask;
    fn and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Whether `mask` holds in some lane.
    fn any(self, mask: Self::Mask) -> bool;
    /// `mask ? a : b` in each lane.
    fn select(self, mask: Self::Mask, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// 2 to the power of each lane; relative error below 2e-7 where the result is normal, at most
    /// 2^-126 where it is not, 0 for -inf, +inf or NaN from 2^128 on, NaN for NaN.
    fn exp2(self, x: Self::Vector) -> Self::Vector;

    /// Transposes the square matrix of `LANES` rows in `rows`.
    fn transpose(self, rows: &mut [Self::Vector; MAX_LANES]);
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
    pub(crate) const FLOOR: [f32; 6] =
        [1.0, 0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_031, 0.001_867_13];

    #[inline(always)]
    pub(crate) fn horner<S: Simd>(s: S, coefficients: [f32; 6], f: S::Vector) -> S::Vector {
        let [c0, c1, c2, c3, c4, c5] = coefficients;
        let sum = s.mul_add(s.splat(c5), f, s.splat(c4));
        let sum = s.mul_add(sum, f, s.splat(c3));
        let sum = s.mul_add(sum, f, s.splat(c2));
        let sum = s.mul_add(sum, f, s.splat(c1));
        s.mul_add(sum, f, s.splat(c0))
    }
}

/// 2^x for instruction sets without a scaling instruction: round x to n by adding and taking away
/// 1.5 * 2^23, a polynomial for 2^(x-n), times 2^n made from n's bits. `scale_bits` turns the
/// biased sum, whose low mantissa bits hold n, into that factor.
#[inline(always)]
pub(crate) fn exp2_by_magic<S: Simd>(
    s: S,
    x: S::Vector,
    scale_bits: impl FnOnce(S::Vector) -> S::Vector,
) -> S::Vector {
    const MAGIC: f32 = 12_582_912.0;
    // Both keep NaN, which `max` passes on from its second operand. At 128 the factor is +inf.
    let low = s.splat(-126.0);
    let high = s.splat(128.0);
    let clamped = s.select(s.lt(high, x), high, s.max(low, x));
    let biased = s.add(clamped, s.splat(MAGIC));
    let f = s.sub(clamped, s.sub(biased, s.splat(MAGIC)));
    let power = s.mul(polynomial::horner(s, polynomial::CENTERED, f), scale_bits(biased));
    s.select(s.lt(x, low), s.splat(0.0), power)
}
