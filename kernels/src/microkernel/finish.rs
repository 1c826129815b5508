//! What happens to a row's sums: merged into those of earlier splits, scaled, written out.

use super::Lanes;
use crate::simd::{Kernel, Simd, Stored, StoredMut};
use crate::storage::{StoredRow, with_stored};

/// `dst = a * dst + b * src`, in place.
pub(crate) struct Combine<'a> {
    pub(crate) dst: &'a mut [f32],
    pub(crate) a: f32,
    pub(crate) src: &'a [f32],
    pub(crate) b: f32,
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.dst.len(), self.src.len());
        let (a, b) = (s.splat(self.a), s.splat(self.b));
        let mut i = 0;
        while i < self.dst.len() {
            let count = (self.dst.len() - i).min(S::LANES);
            // SAFETY: i + count lies within both slices.
            unsafe {
                let dst = self.dst.as_mut_ptr().add(i);
                let old = s.load_first(dst, count);
                let new = s.load_first(self.src.as_ptr().add(i), count);
                s.store_first(dst, count, s.mul_add(old, a, s.mul(new, b)));
            }
            i += S::LANES;
        }
    }
}

/// Multiplies rows by factors of their own.
pub(crate) struct Rescale<'a> {
    /// Up to `BLOCK_Q` rows, one behind the other.
    pub(crate) rows: &'a mut [f32],
    /// Whole vectors.
    pub(crate) width: usize,
    pub(crate) factor: &'a Lanes,
}

impl Kernel for Rescale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.width.is_multiple_of(S::LANES));
        for (row, &factor) in self.rows.chunks_exact_mut(self.width).zip(&self.factor.0) {
            if factor == 1.0 {
                continue;
            }
            for vector in row.chunks_exact_mut(S::LANES) {
                let at = vector.as_mut_ptr();
                // SAFETY: a vector's floats.
                unsafe { s.store(at, s.mul(s.load(at), s.splat(factor))) };
            }
        }
    }
}

/// A row of the output: it may be uninitialised until it is written.
pub(crate) struct OutRow<E> {
    ptr: *mut E,
    len: usize,
}

impl<E: StoredMut> OutRow<E> {
    /// # Safety
    /// `len` numbers must be writable at `ptr` as long as this is used, and be nobody else's.
    pub(crate) unsafe fn new(ptr: *mut E, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Writes `x` everywhere.
    pub(crate) fn fill(&mut self, x: f32) {
        // SAFETY: the promise to `new`.
        (0..self.len).for_each(|i| unsafe { self.ptr.add(i).write(E::round(x)) });
    }

    /// The row, to be read and written.
    ///
    /// # Safety
    /// All of it must have been written.
    pub(crate) unsafe fn written(&mut self) -> &mut [E] {
        // SAFETY: the caller's promise, and that to `new`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

/// The dot product of two rows, and that of their magnitudes.
pub(crate) struct Dot<'a>(pub(crate) [StoredRow<'a>; 2]);

impl Kernel for Dot<'_> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f64; 2] {
        let [a, b] = self.0;
        assert_eq!(a.len(), b.len());
        let zero = s.splat(0.0);
        let (mut dot, mut magnitude) = (zero, zero);
        let load = |row: StoredRow<'_>, i, count| {
            // SAFETY: i + count lies within either row.
            with_stored!(row.format(), E => unsafe { part::<S, E>(s, row, i, count) })
        };
        let mut i = 0;
        while i < a.len() {
            let count = (a.len() - i).min(S::LANES);
            let product = s.mul(load(a, i, count), load(b, i, count));
            dot = s.add(dot, product);
            magnitude = s.add(magnitude, s.max(product, s.sub(zero, product)));
            i += S::LANES;
        }
        [dot, magnitude].map(|v| s.to_array(v).iter().map(|&x| f64::from(x)).sum())
    }
}

/// The first `count` lanes of a row from `i` on.
///
/// # Safety
/// The row must be stored as `E` and have as many numbers.
#[inline(always)]
unsafe fn part<S: Simd, E: Stored>(s: S, row: StoredRow<'_>, i: usize, count: usize) -> S::Vector {
    let numbers = row.as_ptr::<E>();
    // SAFETY: the caller's promise; behind its numbers a row has its scale.
    unsafe { E::load_first(s, numbers.add(i), count, E::scale(s, numbers.add(row.len()))) }
}

/// `dst = factor * src`, and that times the `channels`; says whether the former is finite. A zero is written
/// as +0.
pub(crate) struct Normalize<'a, E> {
    pub(crate) src: &'a [f32],
    pub(crate) factor: f32,
    /// A factor of each number.
    pub(crate) channels: Option<&'a [f32]>,
    pub(crate) dst: OutRow<E>,
}

impl<E: StoredMut> Kernel for Normalize<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let OutRow { ptr: dst, len } = self.dst;
        assert!(self.src.len() >= len);
        assert!(self.channels.is_none_or(|channels| channels.len() >= len));
        let channels = self.channels.map(<[f32]>::as_ptr);
        let factor = s.splat(self.factor);
        let zero = s.splat(0.0);
        // x - x is 0, or NaN where x is not finite.
        let mut finite = zero;
        let mut normalize = |src| {
            let out = s.mul_add(src, factor, zero);
            finite = s.add(finite, s.sub(out, out));
            out
        };
        let mut i = 0;
        while i + S::LANES <= len {
            // SAFETY: i + LANES lies within src, the channels and the row.
            unsafe {
                let mut out = normalize(s.load(self.src.as_ptr().add(i)));
                if let Some(channels) = channels {
                    out = s.mul(out, s.load(channels.add(i)));
                }
                E::store(s, dst.add(i), out);
            }
            i += S::LANES;
        }
        if i < len {
            let count = len - i;
            // SAFETY: i + count is the end of the row, and src and the channels are no shorter.
            unsafe {
                let mut out = normalize(s.load_first(self.src.as_ptr().add(i), count));
                if let Some(channels) = channels {
                    out = s.mul(out, s.load_first(channels.add(i), count));
                }
                E::store_first(s, dst.add(i), count, out);
            }
        }
        !s.any(s.ne(finite, zero))
    }
}
