//! What stands between a model's products: each works on rows alone, so that a row's bits do not
//! depend on its batch.

use headwise::{Result, Tensor};
use rayon::prelude::*;

use crate::archive::Archive;

/// Layer normalisation (Ba, Kiros and Hinton, "Layer Normalization", 2016): each row to mean 0 and
/// variance 1, then by `weight`, plus `bias`.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    /// Added to the variance.
    const EPSILON: f64 = 1e-12;

    pub(super) fn load(file: &Archive<'_>, name: &str, width: usize) -> crate::Result<Self> {
        let vector = |part| file.shaped(&format!("{name}.{part}"), &[&[width]]);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")? })
    }

    /// Normalises the rows, which are as wide as the weights.
    pub(super) fn apply(&self, x: Tensor) -> Result<Tensor> {
        each_row(x, |row| {
            let mean_of = |f: &dyn Fn(f64) -> f64| {
                row.iter().map(|&x| f(x.into())).sum::<f64>() / row.len() as f64
            };
            let mean = mean_of(&|x| x);
            let variance = mean_of(&|x| (x - mean) * (x - mean));
            let scale = 1.0 / (variance + Self::EPSILON).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                *x = ((f64::from(*x) - mean) * scale) as f32 * weight + bias;
            }
        })
    }
}

/// The Gaussian error linear unit, `x * P(X <= x)` for normal X (Hendrycks and Gimpel, "Gaussian
/// Error Linear Units", 2016), by the error function and not by its approximation with tanh.
pub(super) fn gelu(x: Tensor) -> Result<Tensor> {
    let unit = |x: f32| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
    each_row(x, |row| row.iter_mut().for_each(|x| *x = unit(*x)))
}

/// `x + y`, of one shape.
pub(super) fn add(x: Tensor, y: &Tensor) -> Result<Tensor> {
    let shape = x.shape();
    let mut sum = x.into_vec();
    sum.iter_mut().zip(y.data()).for_each(|(x, y)| *x += y);
    Tensor::new(sum, shape)
}

/// Changes every row, on the pool that the caller is in.
fn each_row(x: Tensor, change: impl Fn(&mut [f32]) + Send + Sync) -> Result<Tensor> {
    let shape = x.shape();
    let mut data = x.into_vec();
    data.par_chunks_mut(shape[3].max(1)).for_each(change);
    Tensor::new(data, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_each_by_itself() -> Result<()> {
        let norm = LayerNorm { weight: vec![1.0, 2.0], bias: vec![0.0, 10.0] };
        let x = Tensor::new(vec![1.0, 3.0, 500.0, -500.0, 7.0, 7.0], [1, 1, 3, 2])?;
        assert_eq!(norm.apply(x)?.data(), [-1.0, 12.0, 1.0, 8.0, 0.0, 10.0]);
        Ok(())
    }

    #[test]
    fn gelu_by_the_error_function() -> Result<()> {
        // x * P(X <= x) from a table of the normal distribution; tanh would give 0.841192 for 1.
        let table = [
            (0.0, 0.0),
            (0.5, 0.345_731_23),
            (1.0, 0.841_344_7),
            (-1.0, -0.158_655_25),
            (2.0, 1.954_499_7),
            (-3.0, -0.004_049_694),
            (30.0, 30.0),
            (-30.0, 0.0),
        ];
        let x = Tensor::new(table.iter().map(|pair| pair.0).collect(), [1, 1, 2, 4])?;
        for (got, (x, expected)) in gelu(x)?.data().iter().zip(table) {
            assert!((got - expected).abs() <= 3e-7, "gelu({x}) = {got}, not {expected}");
        }
        Ok(())
    }

    #[test]
    fn sums() -> Result<()> {
        let tensor = |data: [f32; 2]| Tensor::new(data.into(), [1, 1, 1, 2]);
        assert_eq!(add(tensor([1.0, 2.0])?, &tensor([0.5, -2.0])?)?.data(), [1.5, 0.0]);
        Ok(())
    }
}
