//! The RMS norm of queries and keys, head by head.

use super::value_error;
use crate::{Error, Result};

/// RMS norm over `head_dim`, of queries or of keys: `x / sqrt(mean(x²) + eps) * weight`, with the
/// sum of squares in `f64`. The weights of models that store them less 1 (Gemma's) want 1 added.
///
/// ```
/// use headwise::kv_cache::QkNorm;
///
/// let norm = QkNorm::new(&[1.0, 1.0, 1.0, 2.0], 1e-6)?;
/// assert_eq!(norm.head_dim(), 4);
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QkNorm {
    weight: Vec<f32>,
    eps: f64,
}

impl QkNorm {
    /// A norm of rows of as many elements as there are weights.
    ///
    /// # Errors
    /// [`Error::Value`] without weights, or where `eps` is negative or not finite.
    pub fn new(weight: &[f32], eps: f32) -> Result<Self> {
        if weight.is_empty() {
            return Err(value_error(
                "weight of the norm",
                "no element",
                "one for each of head_dim",
            ));
        }
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(value_error("eps", eps, "a finite number of at least 0"));
        }
        Ok(Self { weight: weight.to_vec(), eps: eps.into() })
    }

    /// The elements of a row.
    pub fn head_dim(&self) -> usize {
        self.weight.len()
    }

    /// Whether rows have `head_dim` elements.
    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        if self.head_dim() == head_dim {
            return Ok(());
        }
        Err(Error::Shape {
            argument: "weight of the norm",
            got: format!("[{}]", self.head_dim()),
            expected: format!("[{head_dim}], as many weights as a row has elements"),
        })
    }

    /// Normalises a row of `head_dim` elements.
    pub(super) fn apply(&self, row: &mut [f32]) {
        const LANES: usize = 8;
        let mut sums = [0.0_f64; LANES];
        let (lanes, rest) = row.as_chunks::<LANES>();
        for chunk in lanes {
            for (sum, &x) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += f64::from(x) * f64::from(x);
        }
        let mean = sums.iter().sum::<f64>() / row.len() as f64;
        let factor = (mean + self.eps).sqrt().recip() as f32;
        for (x, weight) in row.iter_mut().zip(&self.weight) {
            *x = *x * factor * weight;
        }
    }
}
