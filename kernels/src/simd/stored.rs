//! Numbers as they lie in memory. Kernels compute in `f32`: narrower numbers are widened by the load,
//! exactly, and rounded by the store, once; integers are multiplied by their row's scale as well.

use half::{bf16, f16};

use super::{Kernel, MAX_LANES, Simd};
use crate::int8::Int8;

/// A type of number that vectors are loaded from.
pub(crate) trait Stored: Copy + Default + 'static {
    /// What a row's numbers are multiples of: nothing to know of floats.
    type Scale<S: Simd>: Copy;

    /// Room for how many numbers is behind those of a row, for its scale.
    const EXTRA: usize;

    /// The scale of the row whose numbers end at `end`, for all lanes.
    ///
    /// # Safety
    /// `EXTRA` numbers must be readable at `end`.
    unsafe fn scale<S: Simd>(s: S, end: *const Self) -> Self::Scale<S>;

    /// The scales of `LANES` rows, each `stride` bytes behind the one before it; `fours` are the ends of
    /// the first row, the fifth and so on.
    ///
    /// # Safety
    /// `EXTRA` numbers must be readable at each.
    unsafe fn scales<S: Simd>(
        s: S,
        fours: [*const Self; MAX_LANES / 4],
        stride: isize,
    ) -> Self::Scale<S>;

    /// Loads a vector.
    ///
    /// # Safety
    /// `LANES` numbers must be readable at `ptr`, of any alignment.
    unsafe fn load<S: Simd>(s: S, ptr: *const Self, scale: Self::Scale<S>) -> S::Vector;

    /// Loads the first `count <= LANES` lanes; the others are zero, or not finite if the scale is not.
    ///
    /// # Safety
    /// `count` numbers must be readable at `ptr`, aligned.
    unsafe fn load_first<S: Simd>(
        s: S,
        ptr: *const Self,
        count: usize,
        scale: Self::Scale<S>,
    ) -> S::Vector;

    /// The first `count <= LANES / 2` numbers, each in two lanes side by side; the others as those of
    /// [`Stored::load_first`].
    ///
    /// # Safety
    /// `count` numbers must be readable at `ptr`, aligned.
    #[inline(always)]
    unsafe fn load_twice<S: Simd>(
        s: S,
        ptr: *const Self,
        count: usize,
        scale: Self::Scale<S>,
    ) -> S::Vector {
        // SAFETY: the caller's promise; the array has MAX_LANES floats.
        unsafe {
            let numbers = s.to_array(Self::load_first(s, ptr, count, scale));
            s.load_twice(numbers.as_ptr(), count)
        }
    }

    /// The first `count <= LANES` numbers of two rows, side by side, rounded to `bf16`.
    ///
    /// # Safety
    /// As many must be readable, aligned; with instructions for pairs of `bf16` switched on.
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(
        s: S,
        [first, second]: [*const Self; 2],
        count: usize,
        [of_first, of_second]: [Self::Scale<S>; 2],
    ) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe {
            if count == S::LANES {
                s.pair_bf16(Self::load(s, first, of_first), Self::load(s, second, of_second))
            } else {
                let first = Self::load_first(s, first, count, of_first);
                s.pair_bf16(first, Self::load_first(s, second, count, of_second))
            }
        }
    }

    /// A number in every lane, or as many as [`Stored::STEP`] says.
    ///
    /// # Safety
    /// As many must be readable at `ptr`, aligned.
    #[inline(always)]
    unsafe fn splat<S: Simd>(s: S, ptr: *const Self, scale: Self::Scale<S>) -> S::Vector {
        // SAFETY: the caller's promise.
        let numbers = [unsafe { *ptr }; MAX_LANES];
        // SAFETY: MAX_LANES numbers are at least LANES.
        unsafe { Self::load(s, numbers.as_ptr(), scale) }
    }

    /// How many numbers have room in a float.
    const PACKED: usize;

    /// How many numbers of a row are read together where keys lie along the lanes: as much as four floats.
    const COLUMNS: usize = 4 * Self::PACKED;

    /// Runs a kernel that multiplies such numbers, with the instructions for that switched on.
    #[inline(always)]
    fn vectorize<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
        s.vectorize(kernel)
    }

    /// How many products a multiply-add of it has.
    const PRODUCTS: usize = 1;

    /// How many numbers of a row one multiply-add takes where their products are not those of pairs or quads
    /// that stand where a float would.
    const STEP: usize = 1;

    /// Whether products are of integers, with queries in quads.
    const INTEGERS: bool = false;

    /// Whether few rows may be taken with keys along the lanes.
    const FEW: bool = true;

    /// What sums of products of a vector of queries begin with: of integers what is at `start`.
    ///
    /// # Safety
    /// Of integers a vector must be readable there.
    #[inline(always)]
    unsafe fn begin<S: Simd>(s: S, _start: *const f32) -> S::Vector {
        s.splat(0.0)
    }

    /// The same of one query with a vector of keys.
    ///
    /// # Safety
    /// Of integers a float must be readable there.
    #[inline(always)]
    unsafe fn begin_row<S: Simd>(s: S, _start: *const f32) -> S::Vector {
        s.splat(0.0)
    }

    /// The sum of two such sums with the key whose numbers end at `end`. Of integers it is multiplied by the
    /// key's scale and those of the queries, which are vectors. Where integers have no scale behind them, it is
    /// the first of `key`, and another vector of the queries is added: as many floats behind their second
    /// address as the second of `key`, an integer by its bits, says.
    ///
    /// # Safety
    /// Of integers as much must be readable.
    #[inline(always)]
    unsafe fn total<S: Simd>(
        s: S,
        [even, odd]: [S::Vector; 2],
        _end: *const Self,
        _key: [*const f32; 2],
        _queries: [*const f32; 2],
    ) -> S::Vector {
        s.add(even, odd)
    }

    /// The same of one query with a vector of keys of these scales.
    ///
    /// # Safety
    /// Of integers a float must be readable there.
    #[inline(always)]
    unsafe fn total_row<S: Simd>(
        s: S,
        [even, odd]: [S::Vector; 2],
        _scales: Self::Scale<S>,
        _query: *const f32,
    ) -> S::Vector {
        s.add(even, odd)
    }

    /// `c` and the products of `a` and `b`, which are such numbers.
    #[inline(always)]
    fn mul_add<S: Simd>(s: S, a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector {
        s.mul_add(a, b, c)
    }

    /// The same without the products of an `a` whose sign bit is set, whatever `b` is there.
    #[inline(always)]
    fn mul_add_seen<S: Simd>(s: S, a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector {
        s.select(s.is_negative(a), c, s.mul_add(a, b, c))
    }

    /// How many vectors become of packed numbers.
    const VECTORS: usize = Self::PACKED;

    /// Of `PACKED` numbers in each lane, by their bits, the first `VECTORS`: the first of all, the second and so
    /// on; behind them anything.
    fn unpack<S: Simd>(s: S, packed: S::Vector, scale: Self::Scale<S>) -> [S::Vector; 4];
}

/// A type of number that vectors are stored to as well.
pub(crate) trait StoredMut: Stored {
    /// Stores a vector.
    ///
    /// # Safety
    /// `LANES` numbers must be writable at `ptr`, of any alignment.
    unsafe fn store<S: Simd>(s: S, ptr: *mut Self, v: S::Vector);

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

    /// A float, rounded.
    fn round(x: f32) -> Self;

    /// The number, widened.
    fn widen(self) -> f32;
}

/// What is the same of all types without scales.
macro_rules! unscaled {
    () => {
        type Scale<S: Simd> = ();

        const EXTRA: usize = 0;

        #[inline(always)]
        unsafe fn scale<S: Simd>(_: S, _: *const Self) {}

        #[inline(always)]
        unsafe fn scales<S: Simd>(_: S, _: [*const Self; MAX_LANES / 4], _: isize) {}
    };
}

impl Stored for f32 {
    unscaled!();

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, ptr: *const f32, (): ()) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { s.load(ptr) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, ptr: *const f32, count: usize, (): ()) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { s.load_first(ptr, count) }
    }

    #[inline(always)]
    unsafe fn load_twice<S: Simd>(s: S, ptr: *const f32, count: usize, (): ()) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { s.load_twice(ptr, count) }
    }

    #[inline(always)]
    unsafe fn splat<S: Simd>(s: S, ptr: *const f32, (): ()) -> S::Vector {
        // SAFETY: the caller's promise.
        s.splat(unsafe { *ptr })
    }

    const PACKED: usize = 1;

    #[inline(always)]
    fn unpack<S: Simd>(_: S, packed: S::Vector, (): ()) -> [S::Vector; 4] {
        [packed; 4]
    }
}

impl StoredMut for f32 {
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, ptr: *mut f32, v: S::Vector) {
        // SAFETY: the caller's promise.
        unsafe { s.store(ptr, v) }
    }

    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, ptr: *mut f32, count: usize, v: S::Vector) {
        // SAFETY: the caller's promise.
        unsafe { s.store_first(ptr, count, v) }
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
    ($half:ty, $load:ident, $store:ident, $unpair:ident, $is_f16:literal, { $($load_pairs:tt)* }) => {
        impl Stored for $half {
            unscaled!();

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, ptr: *const $half, (): ()) -> S::Vector {
                // SAFETY: the caller's promise.
                unsafe { s.$load(ptr) }
            }

            #[inline(always)]
            unsafe fn load_first<S: Simd>(
                s: S,
                ptr: *const $half,
                count: usize,
                (): (),
            ) -> S::Vector {
                // SAFETY: the caller's promise.
                unsafe { s.load_halves::<$is_f16>(ptr.cast(), count) }
            }

            $($load_pairs)*

            const PACKED: usize = 2;

            #[inline(always)]
            fn unpack<S: Simd>(s: S, packed: S::Vector, (): ()) -> [S::Vector; 4] {
                let [first, second] = s.$unpair(packed);
                [first, second, first, second]
            }
        }

        impl StoredMut for $half {
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, ptr: *mut $half, v: S::Vector) {
                // SAFETY: the caller's promise.
                unsafe { s.$store(ptr, v) }
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
half_width!(bf16, load_bf16, store_bf16, unpair_bf16, false, {
    // By their bits.
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(
        s: S,
        [first, second]: [*const bf16; 2],
        count: usize,
        _: [(); 2],
    ) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { s.load_pairs(first, second, count) }
    }
});
half_width!(f16, load_f16, store_f16, unpair_f16, true, {});

/// Two `bf16` that are multiplied together, where a float would stand: of a row, one behind the other, or
/// one of a row and the one below it.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Bf16Pair(bf16, bf16);

/// Numbers that stand where a float would, by their bits: every way of loading floats leaves these alone.
macro_rules! by_bits {
    () => {
        unscaled!();

        #[inline(always)]
        unsafe fn load<S: Simd>(s: S, ptr: *const Self, (): ()) -> S::Vector {
            // SAFETY: the caller's promise.
            unsafe { s.load(ptr.cast()) }
        }

        #[inline(always)]
        unsafe fn load_first<S: Simd>(s: S, ptr: *const Self, count: usize, (): ()) -> S::Vector {
            // SAFETY: the caller's promise.
            unsafe { s.load_first(ptr.cast(), count) }
        }

        #[inline(always)]
        unsafe fn splat<S: Simd>(s: S, ptr: *const Self, (): ()) -> S::Vector {
            // SAFETY: the caller's promise.
            s.splat(unsafe { ptr.cast::<f32>().read_unaligned() })
        }

        const PACKED: usize = 1;

        #[inline(always)]
        fn unpack<S: Simd>(_: S, packed: S::Vector, (): ()) -> [S::Vector; 4] {
            [packed; 4]
        }
    };
}

/// What is multiplied as integers are.
macro_rules! integers {
    () => {
        const INTEGERS: bool = true;

        #[inline(always)]
        unsafe fn begin<S: Simd>(s: S, start: *const f32) -> S::Vector {
            // SAFETY: the caller's promise.
            unsafe { s.load(start) }
        }

        #[inline(always)]
        fn vectorize<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
            s.vectorize_int8(kernel)
        }

        /// `a` is of a key, `b` of queries.
        #[inline(always)]
        fn mul_add<S: Simd>(s: S, a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector {
            // SAFETY: what multiplies such numbers runs below `vectorize`.
            unsafe { s.dot_int8(a, b, c) }
        }
    };
}

impl Stored for Bf16Pair {
    by_bits!();

    const PRODUCTS: usize = 2;

    #[inline(always)]
    fn vectorize<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
        s.vectorize_bf16(kernel)
    }

    #[inline(always)]
    fn mul_add<S: Simd>(s: S, a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector {
        // SAFETY: what multiplies such numbers runs below `vectorize`.
        unsafe { s.dot_bf16(a, b, c) }
    }

    #[inline(always)]
    fn mul_add_seen<S: Simd>(s: S, a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector {
        // SAFETY: as above.
        unsafe { s.dot_bf16(a, s.clear_where_negative_bf16(a, b), c) }
    }
}

/// Four integers of a row that are multiplied together, where a float would stand: of keys without a sign, of
/// queries with one.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Int8Quad([u8; 4]);

impl Stored for Int8Quad {
    by_bits!();
    integers!();

    const PRODUCTS: usize = 4;

    const FEW: bool = false;

    #[inline(always)]
    unsafe fn total<S: Simd>(
        s: S,
        [even, odd]: [S::Vector; 2],
        _end: *const Int8Quad,
        [key_scale, adds]: [*const f32; 2],
        [scale, more]: [*const f32; 2],
    ) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe {
            let more = more.add((*adds).to_bits() as usize);
            let product = s.mul(s.sum_of_ints(even, odd), s.splat(*key_scale));
            s.mul_add(product, s.load(scale), s.load(more))
        }
    }
}

/// [`Int8`] of keys that are multiplied as integers, as [`Int8Quad`] are: four numbers by a multiply-add.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct Int8Dot(Int8);

/// The other sign bit of four bytes: plus 128, without a sign.
const SIGNS: u32 = 0x8080_8080;

impl Stored for Int8Dot {
    integers!();

    type Scale<S: Simd> = S::Vector;

    const EXTRA: usize = Int8::SCALE;

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, end: *const Int8Dot) -> S::Vector {
        // SAFETY: the caller's promise.
        let scale = unsafe { Int8::scale(s, end.cast()) };
        // NaN if it is not finite.
        s.add(scale, s.sub(scale, scale))
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(
        s: S,
        fours: [*const Int8Dot; MAX_LANES / 4],
        stride: isize,
    ) -> S::Vector {
        let mut ends = [core::ptr::null(); MAX_LANES / 4];
        for (end, four) in ends.iter_mut().zip(fours) {
            *end = four.cast();
        }
        // SAFETY: the caller's promise.
        let scales = unsafe { Int8::scales(s, ends, stride) };
        s.add(scales, s.sub(scales, scales))
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, ptr: *const Int8Dot, scale: S::Vector) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { Int8::load(s, ptr.cast(), scale) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(
        s: S,
        ptr: *const Int8Dot,
        count: usize,
        scale: S::Vector,
    ) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { Int8::load_first(s, ptr.cast(), count, scale) }
    }

    const STEP: usize = 4;

    /// Four numbers, without a sign.
    #[inline(always)]
    unsafe fn splat<S: Simd>(s: S, ptr: *const Int8Dot, _: S::Vector) -> S::Vector {
        // SAFETY: the caller's promise, of `STEP` numbers.
        let four = unsafe { ptr.cast::<u32>().read_unaligned() };
        s.splat(f32::from_bits(four ^ SIGNS))
    }

    const PACKED: usize = 4;

    const VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn begin_row<S: Simd>(s: S, start: *const f32) -> S::Vector {
        // SAFETY: the caller's promise.
        s.splat(unsafe { *start })
    }

    #[inline(always)]
    unsafe fn total<S: Simd>(
        s: S,
        [even, odd]: [S::Vector; 2],
        end: *const Int8Dot,
        _key: [*const f32; 2],
        [scale, _]: [*const f32; 2],
    ) -> S::Vector {
        // SAFETY: the caller's promise.
        let (of_key, of_queries) = unsafe { (Self::scale(s, end), s.load(scale)) };
        s.mul(s.mul(s.sum_of_ints(even, odd), of_key), of_queries)
    }

    #[inline(always)]
    unsafe fn total_row<S: Simd>(
        s: S,
        [even, odd]: [S::Vector; 2],
        scales: S::Vector,
        query: *const f32,
    ) -> S::Vector {
        // SAFETY: the caller's promise.
        let of_query = s.splat(unsafe { *query });
        s.mul(s.mul(s.sum_of_ints(even, odd), scales), of_query)
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, packed: S::Vector, _: S::Vector) -> [S::Vector; 4] {
        [s.flip_bits(packed, s.splat(f32::from_bits(SIGNS))); 4]
    }
}

impl Stored for Int8 {
    type Scale<S: Simd> = S::Vector;

    const EXTRA: usize = Int8::SCALE;

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, end: *const Int8) -> S::Vector {
        // SAFETY: the caller's promise: as many bytes as a float has.
        s.splat(unsafe { end.cast::<f32>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(
        s: S,
        fours: [*const Int8; MAX_LANES / 4],
        stride: isize,
    ) -> S::Vector {
        let mut scales = [0.0; MAX_LANES];
        for (r, scale) in scales.iter_mut().enumerate().take(S::LANES) {
            let end = fours[r / 4].wrapping_offset(stride.wrapping_mul((r % 4) as isize));
            // SAFETY: the caller's promise: as many bytes as a float has.
            *scale = unsafe { end.cast::<f32>().read_unaligned() };
        }
        s.vector(scales)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, ptr: *const Int8, scale: S::Vector) -> S::Vector {
        // SAFETY: the caller's promise.
        s.mul(unsafe { s.load_i8(ptr.cast()) }, scale)
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(
        s: S,
        ptr: *const Int8,
        count: usize,
        scale: S::Vector,
    ) -> S::Vector {
        let mut numbers = [Int8(0); MAX_LANES];
        for (i, x) in numbers.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise.
            *x = unsafe { *ptr.add(i) };
        }
        // SAFETY: MAX_LANES numbers are at least LANES.
        unsafe { Self::load(s, numbers.as_ptr(), scale) }
    }

    const PACKED: usize = 4;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, packed: S::Vector, scale: S::Vector) -> [S::Vector; 4] {
        let mut numbers = s.unpack_i8(packed);
        for x in &mut numbers {
            *x = s.mul(*x, scale);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, dispatch};

    /// Every number of a type of 16 bits, and floats all over the range, through vectors.
    struct Every<T>(std::marker::PhantomData<T>);

    /// The bits, but of all that are no number the same.
    fn bits(x: f32) -> u32 {
        if x.is_nan() { u32::MAX } else { x.to_bits() }
    }

    impl<T: StoredMut + From16> Kernel for Every<T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            const { assert!(T::EXTRA == 0) };
            for first in (0..1_u32 << 16).step_by(S::LANES) {
                let numbers: [T; MAX_LANES] =
                    std::array::from_fn(|i| T::from_16((first + i as u32) as u16));
                for count in [S::LANES, first as usize % S::LANES] {
                    // SAFETY: MAX_LANES numbers, and their type has no scales.
                    let v = unsafe {
                        let scale = T::scale(s, numbers.as_ptr());
                        T::load_first(s, numbers.as_ptr(), count, scale)
                    };
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

    /// Pairs of numbers, their products, and what is left of them.
    struct Pairs;

    impl Kernel for Pairs {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let mut state = 1_u32;
            let mut next = || {
                state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                (state >> 9) as f32 / (1 << 20) as f32 - 4.0
            };
            for count in [S::LANES, 1, S::LANES - 1] {
                let [a, b, c]: [[f32; MAX_LANES]; 3] =
                    std::array::from_fn(|_| std::array::from_fn(|_| next()));
                let narrow = [a, b].map(|x| x.map(bf16::from_f32));
                let pair = |i: usize| {
                    let [low, high] = narrow.map(|x| u32::from(x[i].to_bits()));
                    high << 16 | low
                };
                // SAFETY: entered so.
                let made = s.to_array(unsafe { s.pair_bf16(s.vector(a), s.vector(b)) });
                // SAFETY: MAX_LANES numbers.
                let loaded = unsafe { s.load_pairs(narrow[0].as_ptr(), narrow[1].as_ptr(), count) };
                let parts = s.to_array(loaded);
                let cleared = s.to_array(s.clear_where_negative_bf16(loaded, loaded));
                // SAFETY: entered so.
                let sum = s.to_array(unsafe { s.dot_bf16(loaded, loaded, s.vector(c)) });
                for i in 0..S::LANES {
                    let expected = if i < count { pair(i) } else { 0 };
                    assert_eq!(made[i].to_bits(), pair(i), "{}", S::ISA);
                    assert_eq!(parts[i].to_bits(), expected, "{i} of {count}, {}", S::ISA);
                    let [low, high] = [expected & 0xffff, expected >> 16]
                        .map(|half| if half & 0x8000 == 0 { half } else { 0 });
                    assert_eq!(cleared[i].to_bits(), high << 16 | low, "{}", S::ISA);
                    let [x, y] = [expected << 16, expected & 0xffff_0000].map(f32::from_bits);
                    assert!((sum[i] - (c[i] + x * x + y * y)).abs() < 1e-5, "{}", S::ISA);
                }
            }
        }
    }

    struct EnteredForPairs;
    impl Kernel for EnteredForPairs {
        type Output = ();
        fn run<S: Simd>(self, s: S) {
            if s.has_bf16_dots() {
                s.vectorize_bf16(Pairs)
            } else if !S::BF16_DOTS {
                s.vectorize(Pairs)
            }
        }
    }

    #[test]
    fn pairs_are_made_and_multiplied() {
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, EnteredForPairs), Ok(()), "{isa}");
        }
    }

    /// Quads of integers, their products, and how they are made.
    struct Quads;

    impl Kernel for Quads {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let mut state = 7_u32;
            let mut next = || {
                state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                state >> 1 ^ state << 7
            };
            for _ in 0..50 {
                let [a, b, c]: [[u32; MAX_LANES]; 3] =
                    std::array::from_fn(|_| std::array::from_fn(|_| next()));
                let vector = |x: [u32; MAX_LANES]| s.vector(x.map(f32::from_bits));
                let bits = |v| s.to_array(v).map(f32::to_bits);
                // SAFETY: entered so.
                let dot = bits(unsafe { s.dot_int8(vector(a), vector(b), vector(c)) });
                let difference = bits(s.sub_ints(vector(a), vector(b)));
                let sum = s.to_array(s.sum_of_ints(vector(a), vector(b)));
                for i in 0..S::LANES {
                    let bytes = a[i].to_le_bytes().into_iter().zip(b[i].to_le_bytes());
                    let products = bytes.map(|(a, b)| i32::from(a) * i32::from(b as i8));
                    let expected = (c[i] as i32).wrapping_add(products.sum::<i32>());
                    assert_eq!(dot[i] as i32, expected, "{}", S::ISA);
                    assert_eq!(difference[i], a[i].wrapping_sub(b[i]), "{}", S::ISA);
                    assert_eq!(
                        sum[i],
                        (a[i] as i32).wrapping_add(b[i] as i32) as f32,
                        "{}",
                        S::ISA
                    );
                }
                // Halves among them.
                let four: [[f32; MAX_LANES]; 4] = std::array::from_fn(|_| {
                    std::array::from_fn(|_| (next() % 509) as f32 / 2.0 - 127.0)
                });
                let quads = bits(s.quad_of_ints(four.map(|x| s.vector(x))));
                let mut bytes = [0_u8; MAX_LANES];
                // SAFETY: MAX_LANES bytes.
                unsafe {
                    let v = s.add(s.vector(four[0]), s.splat(128.0));
                    s.store_bytes(bytes.as_mut_ptr(), v);
                }
                for i in 0..S::LANES {
                    let rounded = four.map(|x| (x[i].round_ties_even() as i8) as u8);
                    assert_eq!(quads[i].to_le_bytes(), rounded, "{}", S::ISA);
                    assert_eq!(bytes[i], rounded[0].wrapping_add(128), "{}", S::ISA);
                }
            }
            let rows: [[i8; 4 * MAX_LANES]; 4] =
                std::array::from_fn(|_| std::array::from_fn(|_| next() as i8));
            // SAFETY: as many bytes.
            let columns = unsafe { s.interleave_bytes(rows.each_ref().map(|row| row.as_ptr())) };
            for (v, columns) in s.in_order(columns).into_iter().enumerate() {
                for (i, quad) in s.to_array(columns).into_iter().enumerate().take(S::LANES) {
                    let bytes = rows.map(|row| row[v * S::LANES + i] as u8);
                    assert_eq!(quad.to_bits().to_le_bytes(), bytes, "{}", S::ISA);
                }
            }
            let nan = s.max_magnitude(s.splat(f32::INFINITY), s.splat(-f32::NAN));
            assert!(s.largest_magnitude(nan).is_nan(), "{}", S::ISA);
            let most =
                s.max_magnitude(s.splat(2.0), s.vector(std::array::from_fn(|i| -(i as f32))));
            let lanes = s.to_array(most);
            assert!((0..S::LANES).all(|i| lanes[i] == (i as f32).max(2.0)), "{}", S::ISA);
            assert_eq!(s.largest_magnitude(most), (S::LANES - 1) as f32, "{}", S::ISA);
        }
    }

    struct EnteredForQuads;
    impl Kernel for EnteredForQuads {
        type Output = ();
        fn run<S: Simd>(self, s: S) {
            if s.has_int8_dots() {
                s.vectorize_int8(Quads)
            } else if !S::INT8_DOTS {
                s.vectorize(Quads)
            }
        }
    }

    #[test]
    fn quads_are_made_and_multiplied() {
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, EnteredForQuads), Ok(()), "{isa}");
        }
    }

    /// Rows of integers with their scales, by all ways of loading them.
    struct Integers;

    impl Kernel for Integers {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            const WIDTH: usize = 32;
            const STRIDE: usize = WIDTH + Int8::SCALE + 1;
            let mut bytes = [Int8(0); MAX_LANES * STRIDE];
            let mut rows = [[0.0; WIDTH]; MAX_LANES];
            for (r, row) in rows.iter_mut().enumerate() {
                let at = |c| ((r * WIDTH + c) as f32 - 200.0) * 0.37;
                row.iter_mut().enumerate().for_each(|(c, x)| *x = at(c));
                let bytes = &mut bytes[r * STRIDE..][..WIDTH + Int8::SCALE];
                Int8::write(&row.clone(), bytes);
                Int8::read(bytes, row);
            }
            for (r, row) in rows.iter().enumerate() {
                for count in [S::LANES, 1, S::LANES - 1] {
                    // SAFETY: a row has WIDTH numbers and its scale, more than two vectors' of them.
                    let (some, first) = unsafe {
                        let start = bytes.as_ptr().add(r * STRIDE);
                        let scale = Int8::scale(s, start.add(WIDTH));
                        let v = Int8::load_first(s, start.add(3), count, scale);
                        (s.to_array(v), s.to_array(Int8::splat(s, start, scale)))
                    };
                    assert_eq!(some[..count], row[3..3 + count], "{}", S::ISA);
                    assert!(some[count..].iter().all(|&x| x == 0.0));
                    assert!(first[..S::LANES].iter().all(|&x| x == row[0]));
                }
            }
            // SAFETY: LANES rows, of which the last has bytes for a column of floats behind the sixteenth
            // number.
            unsafe {
                let fours = |column| {
                    std::array::from_fn(|n| {
                        bytes.as_ptr().wrapping_add(4 * n % S::LANES * STRIDE + column)
                    })
                };
                let scale = Int8::scales(s, fours(WIDTH), STRIDE as isize);
                let packed = s.columns(fours(16).map(|row| row.cast()), STRIDE as isize);
                for (p, packed) in packed.into_iter().enumerate() {
                    for (n, column) in Int8::unpack(s, packed, scale).into_iter().enumerate() {
                        for (r, x) in s.to_array(column).into_iter().enumerate().take(S::LANES) {
                            assert_eq!(x, rows[r][16 + 4 * p + n], "{}", S::ISA);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn integers_are_multiplied_by_the_scales_of_their_rows() {
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, Entered(Integers)), Ok(()), "{isa}");
        }
    }
}
