//! Values to measure on: the same on every machine, roughly normal.

use headwise::{Result, Shape, Tensor};

/// A stream of bits: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, which is at least 1; as good as uniform where that is small.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.bits() % count as u64) as usize
    }
}

/// A stream of numbers of mean 0 and deviation 1.
pub(crate) struct Normal(Random);

impl Normal {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// The sum of four uniform numbers out of one step.
    fn next(&mut self) -> f32 {
        let z = self.0.bits();
        let sum: u64 = (0..4).map(|part| (z >> (16 * part)) & 0xffff).sum();
        // A uniform 16-bit number has mean 32767.5 and variance 65536^2 / 12.
        (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
    }

    /// A tensor of such numbers.
    pub(crate) fn tensor(&mut self, shape: Shape) -> Result<Tensor> {
        self.scaled(shape, 1.0)
    }

    /// A tensor of such numbers times `deviation`.
    pub(crate) fn scaled(&mut self, shape: Shape, deviation: f32) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(shape)?;
        tensor.data_mut().iter_mut().for_each(|x| *x = deviation * self.next());
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deterministic_and_roughly_normal() -> Result<()> {
        let shape = [1, 1, 100, 1000];
        let tensor = Normal::new(7).tensor(shape)?;
        assert_eq!(tensor, Normal::new(7).tensor(shape)?);
        let data = tensor.data();
        let mean =
            |f: fn(f64) -> f64| data.iter().map(|&x| f(x.into())).sum::<f64>() / data.len() as f64;
        assert!(mean(|x| x).abs() < 0.02);
        assert!((mean(|x| x * x) - 1.0).abs() < 0.02);
        Ok(())
    }
}
