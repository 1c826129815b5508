//! Numbers as they lie in memory. Kernels compute in `f32`: narrower numbers are widened by the load,
//! exactly, and rounded by the store, once.

use half::{bf16, f16};

use super::{MAX_LANES, Simd};

/// A type of number that vectors are loaded from and stored to.
pub(crate) trait Stored: Copy + Default + 'static {
    /// Loads a vector.
    ///
    /// # Safety
    /// `LANES` numbers must be readable at `ptr`, of any alignment.
    unsafe fn load<S: Simd>(s: S, ptr: *const Self) -> S::Vector;
    /// Stores a vector.
    ///
    /// # Safety
    /// `LANES` numbers must be writable at `ptr`, of any alignment.
    unsafe fn store<S: Simd>(s: S, ptr: *mut Self, v: S::Vector);

    /// Loads the first `count <= LANES` lanes; the others are zero.
    ///
    /// # Safety
    /// `count` numbers must be readable at `ptr`, aligned.
    unsafe fn load_first<S: Simd>(s: S, ptr: *const Self, count: usize) -> S::Vector;

    /// Stores the first `count <= LANES` lanes.
    ///
    /// # Safety
    /// `count` numbers must be writable at `ptr`, aligned.
    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, ptr: *mut Self, count: usize, v: S::Vector) {
        let mut numbers = [Self::default(); MAX_LANES];
        // SAFETY: MAX_LANES numbers are at least LANES.
        unsafe { Self::store(s, numbers.as_mut_ptr(), v) };
        for (i, x) in numbers.into_iter().enumerate().take(count) {
            // SAFETY: the caller's promise.
            unsafe { ptr.add(i).write(x) };
        }
    }

    /// The first `count <= LANES / 2` numbers, each in two lanes side by side; the others are zero.
    ///
    /// # Safety
    /// `count` numbers must be readable at `ptr`, aligned.
    #[inline(always)]
    unsafe fn load_twice<S: Simd>(s: S, ptr: *const Self, count: usize) -> S::Vector {
        let mut numbers = [0.0; MAX_LANES];
        for (i, x) in numbers.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise.
            *x = unsafe { *ptr.add(i) }.widen();
        }
        // SAFETY: MAX_LANES floats.
        unsafe { s.load_twice(numbers.as_ptr(), count) }
    }

    /// A number in every lane.
    ///
    /// # Safety
    /// It must be readable at `ptr`, aligned.
    #[inline(always)]
    unsafe fn splat<S: Simd>(s: S, ptr: *const Self) -> S::Vector {
        // SAFETY: the caller's promise.
        let numbers = [unsafe { *ptr }; MAX_LANES];
        // SAFETY: MAX_LANES numbers are at least LANES.
        unsafe { Self::load(s, numbers.as_ptr()) }
    }

    /// Columns that are read together: 4, or 8 of half the width.
    const COLUMNS: usize;

    /// The first `COLUMNS` columns of `LANES` rows, each `stride` bytes behind the one before it; `fours`
    /// are the first row, the fifth and so on. Behind them zeros.
    ///
    /// # Safety
    /// As many numbers must be readable at each row, of any alignment.
    unsafe fn columns<S: Simd>(
        s: S,
        fours: [*const Self; MAX_LANES / 4],
        stride: isize,
    ) -> [S::Vector; 8];

    /// A float, rounded.
    fn round(x: f32) -> Self;

    /// The number, widened.
    fn widen(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, ptr: *const f32) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { s.load(ptr) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, ptr: *mut f32, v: S::Vector) {
        // SAFETY: the caller's promise.
        unsafe { s.store(ptr, v) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, ptr: *const f32, count: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { s.load_first(ptr, count) }
    }

    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, ptr: *mut f32, count: usize, v: S::Vector) {
        // SAFETY: the caller's promise.
        unsafe { s.store_first(ptr, count, v) }
    }

    #[inline(always)]
    unsafe fn load_twice<S: Simd>(s: S, ptr: *const f32, count: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { s.load_twice(ptr, count) }
    }

    #[inline(always)]
    unsafe fn splat<S: Simd>(s: S, ptr: *const f32) -> S::Vector {
        // SAFETY: the caller's promise.
        s.splat(unsafe { *ptr })
    }

    const COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn columns<S: Simd>(
        s: S,
        fours: [*const f32; MAX_LANES / 4],
        stride: isize,
    ) -> [S::Vector; 8] {
        // SAFETY: the caller's promise.
        let [a, b, c, d] = unsafe { s.columns(fours, stride) };
        let none = s.splat(0.0);
        [a, b, c, d, none, none, none, none]
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

macro_rules! half_width {
    ($half:ty, $load:ident, $store:ident, $unpair:ident, $is_f16:literal) => {
        impl Stored for $half {
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, ptr: *const $half) -> S::Vector {
                // SAFETY: the caller's promise.
                unsafe { s.$load(ptr) }
            }

            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, ptr: *mut $half, v: S::Vector) {
                // SAFETY: the caller's promise.
                unsafe { s.$store(ptr, v) }
            }

            #[inline(always)]
            unsafe fn load_first<S: Simd>(s: S, ptr: *const $half, count: usize) -> S::Vector {
                // SAFETY: the caller's promise.
                unsafe { s.load_halves::<$is_f16>(ptr.cast(), count) }
            }

            const COLUMNS: usize = 8;

            #[inline(always)]
            unsafe fn columns<S: Simd>(
                s: S,
                fours: [*const $half; MAX_LANES / 4],
                stride: isize,
            ) -> [S::Vector; 8] {
                // Two of half the width are as wide as a float.
                // SAFETY: the caller's promise; of any alignment.
                let pairs = unsafe { s.columns(fours.map(|row| row.cast()), stride) };
                let mut columns = [s.splat(0.0); 8];
                for (n, pair) in pairs.into_iter().enumerate() {
                    [columns[2 * n], columns[2 * n + 1]] = s.$unpair(pair);
                }
                columns
            }

            #[inline(always)]
            fn round(x: f32) -> $half {
                <$half>::from_f32(x)
            }

            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
        }
    };
}
half_width!(bf16, load_bf16, store_bf16, unpair_bf16, false);
half_width!(f16, load_f16, store_f16, unpair_f16, true);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel, dispatch};

    /// Every number of a type of 16 bits, and floats all over the range, through vectors.
    struct Every<T>(std::marker::PhantomData<T>);

    /// The bits, but of all that are no number the same.
    fn bits(x: f32) -> u32 {
        if x.is_nan() { u32::MAX } else { x.to_bits() }
    }

    impl<T: Stored + From16> Kernel for Every<T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for first in (0..1_u32 << 16).step_by(S::LANES) {
                let numbers: [T; MAX_LANES] =
                    std::array::from_fn(|i| T::from_16((first + i as u32) as u16));
                for count in [S::LANES, first as usize % S::LANES] {
                    // SAFETY: MAX_LANES numbers.
                    let v = unsafe { T::load_first(s, numbers.as_ptr(), count) };
                    for (i, x) in s.to_array(v).into_iter().enumerate().take(S::LANES) {
                        let expected = if i < count { numbers[i].widen() } else { 0.0 };
                        assert_eq!(bits(x), bits(expected), "{first} + {i} of {count}, {}", S::ISA);
                    }
                }
                // Halfway between two numbers, a little above and below, and at either.
                let floats: [f32; MAX_LANES] = std::array::from_fn(|i| {
                    let bits = (first << 16).wrapping_add(0x7fff_0000 * (i as u32 % 2));
                    let part = [0, 0x8000, 0x7fff, 0x8001, 0x1000, 0x1001, 0x0fff, 0x3000];
                    f32::from_bits(bits.wrapping_add(part[i % 8]))
                });
                let mut stored = [T::default(); MAX_LANES];
                // SAFETY: MAX_LANES numbers.
                unsafe { T::store(s, stored.as_mut_ptr(), s.vector(floats)) };
                for (stored, x) in stored.into_iter().zip(floats).take(S::LANES) {
                    let (got, expected) = (stored.widen(), T::round(x).widen());
                    assert_eq!(bits(got), bits(expected), "{x:?} on {}", S::ISA);
                }
            }
        }
    }

    trait From16 {
        fn from_16(bits: u16) -> Self;
    }
    impl From16 for bf16 {
        fn from_16(bits: u16) -> Self {
            Self::from_bits(bits)
        }
    }
    impl From16 for f16 {
        fn from_16(bits: u16) -> Self {
            Self::from_bits(bits)
        }
    }

    struct Entered<K>(K);
    impl<K: Kernel> Kernel for Entered<K> {
        type Output = K::Output;
        fn run<S: Simd>(self, s: S) -> K::Output {
            s.vectorize(self.0)
        }
    }

    #[test]
    fn every_half_is_widened_and_floats_are_rounded_to_the_nearest() {
        for isa in Isa::available() {
            let of_bf16 = dispatch(isa, Entered(Every::<bf16>(std::marker::PhantomData)));
            let of_f16 = dispatch(isa, Entered(Every::<f16>(std::marker::PhantomData)));
            assert_eq!((of_bf16, of_f16), (Ok(()), Ok(())), "{isa}");
        }
    }
}
