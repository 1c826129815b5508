//! Softmax of one contiguous row: a pass for the maximum, one for the exponentials and their sum,
//! one to divide.

use crate::simd::{Kernel, Simd};

/// `row = softmax(scale * row)`; gives the row's maximum and the sum of its exponentials. A row of
/// -inf alone becomes 0.
pub(crate) struct RowSoftmax<'a> {
    pub(crate) row: &'a mut [f32],
    pub(crate) scale: f32,
}

/// Independent partial results, so that no pass waits for its own last step.
const CHAINS: usize = 4;

impl Kernel for RowSoftmax<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let len = self.row.len();
        let ptr = self.row.as_mut_ptr();
        let scale = s.splat(self.scale);
        let hidden = s.splat(f32::NEG_INFINITY);
        let step = CHAINS * S::LANES;
        let whole = len / step * step;

        let mut max = [hidden; CHAINS];
        let mut i = 0;
        while i < whole {
            for (c, max) in max.iter_mut().enumerate() {
                // SAFETY: i + step <= len.
                let x = unsafe { s.load(ptr.add(i + c * S::LANES)) };
                *max = s.max(s.mul(x, scale), *max);
            }
            i += step;
        }
        while i < len {
            let count = (len - i).min(S::LANES);
            // SAFETY: i + count <= len.
            let x = s.mul(unsafe { s.load_first(ptr.add(i), count) }, scale);
            max[0] = s.max(first(s, count, x, hidden), max[0]);
            i += S::LANES;
        }
        let max = max.into_iter().map(|v| fold(s, v, f32::max)).fold(f32::NEG_INFINITY, f32::max);
        // Nothing visible: weights of zero. (A NaN leaves `max` alone and shows in the sum.)
        let shift = s.splat(if max == f32::NEG_INFINITY { 0.0 } else { max });

        let mut sums = [s.splat(0.0); CHAINS];
        let mut i = 0;
        while i < whole {
            for (c, sum) in sums.iter_mut().enumerate() {
                // SAFETY: i + step <= len.
                unsafe {
                    let at = ptr.add(i + c * S::LANES);
                    let p = exp(s, s.load(at), scale, shift);
                    *sum = s.add(*sum, p);
                    s.store(at, p);
                }
            }
            i += step;
        }
        while i < len {
            let count = (len - i).min(S::LANES);
            // SAFETY: i + count <= len.
            unsafe {
                let x = s.load_first(ptr.add(i), count);
                let p = first(s, count, exp(s, x, scale, shift), s.splat(0.0));
                sums[0] = s.add(sums[0], p);
                s.store_first(ptr.add(i), count, p);
            }
            i += S::LANES;
        }
        let sum: f32 = sums.into_iter().map(|v| fold(s, v, |a, b| a + b)).sum();

        let factor = s.splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
        let mut i = 0;
        while i < len {
            let count = (len - i).min(S::LANES);
            // SAFETY: i + count <= len.
            unsafe {
                let p = s.mul(s.load_first(ptr.add(i), count), factor);
                s.store_first(ptr.add(i), count, p);
            }
            i += S::LANES;
        }
        (max, sum)
    }
}

/// `e^(scale * x - shift)`. Not a closure: one that is called twice is not inlined, and then lacks
/// the instruction set.
#[inline(always)]
fn exp<S: Simd>(s: S, x: S::Vector, scale: S::Vector, shift: S::Vector) -> S::Vector {
    let power = s.mul(s.sub(s.mul(x, scale), shift), s.splat(std::f32::consts::LOG2_E));
    let [exp] = s.exp2([power]);
    exp
}

/// `v` in the first `count` lanes, `other` in the rest.
#[inline(always)]
fn first<S: Simd>(s: S, count: usize, v: S::Vector, other: S::Vector) -> S::Vector {
    if count == S::LANES {
        return v;
    }
    let mut index = [0.0; crate::simd::MAX_LANES];
    for (i, x) in index.iter_mut().enumerate() {
        *x = i as f32;
    }
    // SAFETY: MAX_LANES floats.
    let index = unsafe { s.load(index.as_ptr()) };
    s.select(s.lt(index, s.splat(count as f32)), v, other)
}

/// The lanes of `v` folded together, from the first on.
#[inline(always)]
fn fold<S: Simd>(s: S, v: S::Vector, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; crate::simd::MAX_LANES];
    // SAFETY: MAX_LANES floats.
    unsafe { s.store(lanes.as_mut_ptr(), v) };
    lanes[1..S::LANES].iter().fold(lanes[0], |a, &b| f(a, b))
}
