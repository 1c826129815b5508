//! How far a result is from the answer.

use serde::Serialize;

/// The distance of a tensor from its answer. A value that is not finite is infinitely far from
/// any other than itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Distance {
    /// The largest absolute difference.
    pub(crate) max_absolute: f64,
    /// The mean absolute difference.
    pub(crate) mean_absolute: f64,
    /// The largest difference, each relative to the largest magnitude in its row of the answer:
    /// an absolute bound would hide errors in small rows.
    pub(crate) max_relative: f64,
    /// The mean of the relative differences.
    pub(crate) mean_relative: f64,
}

/// [`headwise::Closeness`], to be written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Closeness {
    pub cosine: f64,
    pub relative_l1: f64,
    pub rms: f64,
}

impl Closeness {
    /// Of slices of the same length.
    pub fn of(got: &[f32], answer: &[f64]) -> Self {
        debug_assert_eq!(got.len(), answer.len());
        let of = headwise::Closeness::of(got, answer.iter().copied());
        Self { cosine: of.cosine, relative_l1: of.relative_l1, rms: of.rms }
    }
}

/// Compares rows of `width`; both slices have the same length.
pub(crate) fn distance<T: Copy + Into<f64>>(got: &[f32], answer: &[T], width: usize) -> Distance {
    debug_assert_eq!(got.len(), answer.len());
    let mut absolute = Spread::default();
    let mut relative = Spread::default();
    let width = width.max(1);
    for (got, answer) in got.chunks(width).zip(answer.chunks(width)) {
        let magnitudes = answer.iter().map(|&x| x.into().abs()).filter(|x| x.is_finite());
        let largest = magnitudes.fold(0.0, f64::max);
        for (&got, &answer) in got.iter().zip(answer) {
            let error = difference(got.into(), answer.into());
            absolute.add(error);
            relative.add(if error == 0.0 { 0.0 } else { error / largest });
        }
    }
    Distance {
        max_absolute: absolute.max,
        mean_absolute: absolute.mean(),
        max_relative: relative.max,
        mean_relative: relative.mean(),
    }
}

fn difference(got: f64, answer: f64) -> f64 {
    if got == answer || (got.is_nan() && answer.is_nan()) {
        0.0
    } else if got.is_finite() && answer.is_finite() {
        (got - answer).abs()
    } else {
        f64::INFINITY
    }
}

#[derive(Default)]
struct Spread {
    max: f64,
    sum: f64,
    count: usize,
}

impl Spread {
    fn add(&mut self, error: f64) {
        self.max = self.max.max(error);
        self.sum += error;
        self.count += 1;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_judged_by_their_own_largest() {
        let d = distance(&[1.0, 0.5, 10.0, 11.0], &[1.0_f32, 0.0, 10.0, 10.0], 2);
        assert_eq!((d.max_absolute, d.max_relative), (1.0, 0.5));
        assert_eq!((d.mean_absolute, d.mean_relative), (0.375, 0.15));
    }

    #[test]
    fn not_finite_is_far_from_all_but_itself() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(distance(&[inf, nan, -inf], &[inf, nan, -inf], 1).max_relative, 0.0);
        assert_eq!(distance(&[nan], &[1.0_f32], 1).max_relative, f64::INFINITY);
        assert_eq!(distance(&[inf], &[-inf], 1).max_absolute, f64::INFINITY);
        assert_eq!(distance(&[1e-9], &[0.0_f32], 1).max_relative, f64::INFINITY);
        assert_eq!(distance::<f32>(&[], &[], 4).mean_absolute, 0.0);
    }
}
