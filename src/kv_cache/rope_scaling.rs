//! The angles of rotary embeddings: a frequency for each pair of dimensions, stretched to contexts
//! longer than the model was trained on by one of the published formulas.

use std::f64::consts::{PI, TAU};

use super::value_error;
use crate::Result;

/// YaRN's parameters (Peng, Quesnelle, Fan, Shippole: "YaRN: Efficient Context Window Extension of
/// Large Language Models", arXiv 2309.00071, sections 3.2 to 3.4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// By how much the context is longer than the original one, `s`.
    pub factor: f64,
    /// The positions that the model was trained on, `L`.
    pub original_positions: usize,
    /// Dimensions that turn at least as often within the original context keep their frequency.
    pub beta_fast: f64,
    /// Dimensions that turn at most as often are interpolated in full.
    pub beta_slow: f64,
    /// The factor on cosines and sines; `None` is the paper's `0.1 ln(s) + 1`.
    pub attention_factor: Option<f64>,
    /// Whether the ends of the ramp are rounded outwards to whole dimensions, as published.
    pub truncate: bool,
}

impl Yarn {
    /// The published parameters: `beta_fast` 32, `beta_slow` 1.
    pub fn new(factor: f64, original_positions: usize) -> Self {
        Self {
            factor,
            original_positions,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        }
    }

    /// `0.1 mscale ln(factor) + 1`, or 1 for factors up to 1. DeepSeek's models take as
    /// `attention_factor` this of `mscale`, divided by this of `mscale_all_dim`.
    pub fn magnitude(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }
}

/// The parameters of Llama 3.1 (Meta's `apply_scaling` in `llama-models`,
/// `models/llama3/model.py`, and the model's card).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    /// By how much low frequencies are divided.
    pub factor: f64,
    /// Wavelengths above the original context divided by this are low frequencies.
    pub low_freq_factor: f64,
    /// Wavelengths below the original context divided by this keep their frequency.
    pub high_freq_factor: f64,
    /// The positions that the model was trained on.
    pub original_positions: usize,
}

/// How frequencies are stretched. `d` is the number of rotated dimensions, `theta_i =
/// base^(-2i/d)` the frequency of pair `i` as in RoFormer (Su et al., arXiv 2104.09864, section
/// 3.2.2).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// `theta_i`.
    Unscaled,
    /// Position interpolation, `theta_i / factor` (Chen et al., arXiv 2306.15595).
    Linear {
        /// By how much the context is longer.
        factor: f64,
    },
    /// NTK-aware: the base becomes `base * factor^(d / (d - 2))` (bloc97, 2023; arXiv 2309.00071,
    /// definition 1).
    NtkAware {
        /// By how much the context is longer.
        factor: f64,
    },
    /// Dynamic NTK: as NTK-aware with `factor * seq_len / original_positions - (factor - 1)`, once
    /// `seq_len` is beyond the original context (emozilla, 2023, as in Hugging Face's
    /// `modeling_rope_utils.py`).
    DynamicNtk {
        /// How fast the base grows.
        factor: f64,
        /// The positions that the model was trained on.
        original_positions: usize,
        /// The positions to stretch to.
        seq_len: usize,
    },
    /// See [`Yarn`].
    Yarn(Yarn),
    /// See [`Llama3`].
    Llama3(Llama3),
}

fn positive(argument: &'static str, x: f64) -> Result<()> {
    if x > 0.0 && x.is_finite() {
        return Ok(());
    }
    Err(value_error(argument, x, "a finite number above 0"))
}

fn some_positions(positions: usize) -> Result<f64> {
    positive("original_positions", positions as f64).map(|()| positions as f64)
}

/// The angle by which each pair of dimensions turns from one position to the next, and a factor on
/// the rotated dimensions.
///
/// ```
/// use headwise::kv_cache::{Frequencies, Llama3, RopeScaling};
///
/// let (factor, low_freq_factor, high_freq_factor) = (8.0, 1.0, 4.0);
/// let original_positions = 8192;
/// let llama = Llama3 { factor, low_freq_factor, high_freq_factor, original_positions };
/// let frequencies = Frequencies::new(128, 500_000.0, RopeScaling::Llama3(llama))?;
/// assert_eq!(frequencies.inverse().len(), 64);
/// assert_eq!(frequencies.inverse()[0], 1.0);
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    inverse: Vec<f64>,
    attention_factor: f64,
}

impl Frequencies {
    /// Those of `rotary_dim` rotated dimensions, computed in `f64`.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where `rotary_dim` is odd or 0 (or 2, for an NTK
    /// scaling), `base` is not above 1, or a parameter of the scaling outside its domain.
    pub fn new(rotary_dim: usize, base: f64, scaling: RopeScaling) -> Result<Self> {
        let ntk = matches!(scaling, RopeScaling::NtkAware { .. } | RopeScaling::DynamicNtk { .. });
        let least = if ntk { 4 } else { 2 };
        if rotary_dim < least || !rotary_dim.is_multiple_of(2) {
            let expected = format!("an even number of at least {least}");
            return Err(value_error("rotary_dim", rotary_dim, expected));
        }
        if !(base > 1.0 && base.is_finite()) {
            return Err(value_error("base", base, "a finite number above 1"));
        }
        let d = rotary_dim as f64;
        let plain = |base: f64| (0..rotary_dim / 2).map(move |i| base.powf(-2.0 * i as f64 / d));
        let stretched = |factor: f64| plain(base * factor.powf(d / (d - 2.0))).collect();
        let inverse = match scaling {
            RopeScaling::Unscaled => plain(base).collect(),
            RopeScaling::Linear { factor } => {
                positive("factor", factor)?;
                plain(base).map(|theta| theta / factor).collect()
            }
            RopeScaling::NtkAware { factor } => {
                positive("factor", factor)?;
                stretched(factor)
            }
            RopeScaling::DynamicNtk { factor, original_positions, seq_len } => {
                positive("factor", factor)?;
                let original = some_positions(original_positions)?;
                stretched(factor * (seq_len as f64).max(original) / original - (factor - 1.0))
            }
            RopeScaling::Yarn(yarn) => return of_yarn(yarn, base, plain(base).collect()),
            RopeScaling::Llama3(llama) => of_llama3(llama, plain(base).collect())?,
        };
        Self::from_inverse(inverse, 1.0)
    }

    /// Frequencies of the caller's, one for each pair of rotated dimensions, such as those of
    /// LongRoPE.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) without frequencies, or where one or the factor is not
    /// finite.
    pub fn from_inverse(inverse: Vec<f64>, attention_factor: f64) -> Result<Self> {
        if inverse.is_empty() {
            return Err(value_error("frequencies", "none", "one for each pair of dimensions"));
        }
        let numbers = inverse.iter().chain([&attention_factor]);
        if let Some(x) = numbers.into_iter().find(|x| !x.is_finite()) {
            return Err(value_error("frequencies", x, "finite numbers"));
        }
        Ok(Self { inverse, attention_factor })
    }

    /// Radians from one position to the next, pair by pair.
    pub fn inverse(&self) -> &[f64] {
        &self.inverse
    }

    /// The factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }
}

/// Section 3.2's "NTK-by-parts" and section 3.4's temperature.
fn of_yarn(yarn: Yarn, base: f64, plain: Vec<f64>) -> Result<Frequencies> {
    positive("factor", yarn.factor)?;
    positive("beta_fast", yarn.beta_fast)?;
    positive("beta_slow", yarn.beta_slow)?;
    if yarn.beta_fast < yarn.beta_slow {
        let expected = format!("at least beta_slow, {}", yarn.beta_slow);
        return Err(value_error("beta_fast", yarn.beta_fast, expected));
    }
    let original = some_positions(yarn.original_positions)?;
    let d = 2.0 * plain.len() as f64;
    // The pair that turns so many times within the original context.
    let pair = |turns: f64| d * (original / (turns * TAU)).ln() / (2.0 * base.ln());
    let (low, high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
    let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
    if low == high {
        // Published so, to avoid a division by zero.
        high += 0.001;
    }
    let inverse = plain.into_iter().enumerate().map(|(i, theta)| {
        let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        theta / yarn.factor * interpolated + theta * (1.0 - interpolated)
    });
    let factor = yarn.attention_factor.unwrap_or_else(|| Yarn::magnitude(yarn.factor, 1.0));
    Frequencies::from_inverse(inverse.collect(), factor)
}

fn of_llama3(llama: Llama3, plain: Vec<f64>) -> Result<Vec<f64>> {
    positive("factor", llama.factor)?;
    positive("low_freq_factor", llama.low_freq_factor)?;
    let (low, high) = (llama.low_freq_factor, llama.high_freq_factor);
    if !(high > low && high.is_finite()) {
        let expected = format!("a finite number above low_freq_factor, {low}");
        return Err(value_error("high_freq_factor", high, expected));
    }
    let original = some_positions(llama.original_positions)?;
    let scaled = plain.into_iter().map(|theta| {
        let wavelength = 2.0 * PI / theta;
        let kept = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * theta / llama.factor + kept * theta
    });
    Ok(scaled.collect())
}
