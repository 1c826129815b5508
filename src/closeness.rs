//! How close one tensor is to another as a whole.

/// How close a tensor is to an answer, in the measures by which quantised attention is judged (Zhang et al.,
/// "SageAttention", 2024).
///
/// ```
/// use headwise::Closeness;
///
/// let close = Closeness::of(&[1.0, 2.0, 2.5], [1.0, 2.0, 2.0]);
/// assert_eq!(close.relative_l1, 0.1);
/// assert!(close.cosine > 0.99 && close.cosine < 1.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Closeness {
    /// The cosine of the angle between the two.
    pub cosine: f64,
    /// The sum of the differences' magnitudes over that of the answer's.
    pub relative_l1: f64,
    /// The root of the mean square of the differences.
    pub rms: f64,
}

impl Closeness {
    /// Of as many numbers as there are of both. Without any, or of zeros alone, the ratios are NaN.
    pub fn of(got: &[f32], answer: impl IntoIterator<Item = f64>) -> Self {
        let (mut dot, mut squares, mut differences, mut sum) = (0.0, [0.0; 2], [0.0; 2], 0.0);
        let mut count = 0_u64;
        for (got, answer) in got.iter().map(|&x| f64::from(x)).zip(answer) {
            let difference = got - answer;
            dot += got * answer;
            squares = [squares[0] + got * got, squares[1] + answer * answer];
            differences = [differences[0] + difference.abs(), differences[1] + difference.powi(2)];
            sum += answer.abs();
            count += 1;
        }
        Self {
            cosine: dot / (squares[0] * squares[1]).sqrt(),
            relative_l1: differences[0] / sum,
            rms: (differences[1] / count.max(1) as f64).sqrt(),
        }
    }
}
