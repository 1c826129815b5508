//! What the test files share: tensors in any layout, described problems and layers with their
//! data, captures of real models, the f64 answer with an error bound for each row, files in memory,
//! and executors.
// Each test binary uses its part.
#![allow(dead_code, unreachable_pub)]

pub mod bounds;
#[cfg(feature = "safetensors")]
pub mod capture;
pub mod case;
pub mod everything;
pub mod executors;
pub mod file;
pub mod layers;
pub mod narrow;
pub mod quads;
pub mod strategies;
pub mod strided;
pub mod structure;
pub mod terms;

use headwise::{Attention, Element, Tensor};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Runs `test` on `cases` values of `strategy`, or on as few as `PROPTEST_CASES` says; the same
/// ones each time unless `PROPTEST_RNG_SEED` says otherwise.
pub fn for_all<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    let fewer = std::env::var_os("PROPTEST_CASES").is_some();
    config.cases = if fewer { config.cases.min(cases) } else { cases };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(20_170_612);
    }
    let result = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Bits that tell everything apart that can be told apart, so NaN equals itself and -0 not +0.
pub fn bits<T: Element>(data: &[T]) -> Vec<u64> {
    data.iter().map(|x| x.to_f64().to_bits()).collect()
}

/// The bits of a whole result: output, log-sum-exp and weights.
pub fn result_bits<T: Element>(result: &Attention<T>) -> [Vec<u64>; 3] {
    let part = |tensor: &Option<Tensor<T>>| {
        tensor.as_ref().map_or_else(Vec::new, |tensor| bits(tensor.data()))
    };
    [bits(result.out.data()), part(&result.lse), part(&result.weights)]
}

/// The bits of one row, `[batch, query head, query]`: output, log-sum-exp and weights.
pub fn row_bits<T: Element>(result: &Attention<T>, at: [usize; 3]) -> [Vec<u64>; 3] {
    let part = |tensor: &Option<Tensor<T>>| {
        tensor.as_ref().map_or_else(Vec::new, |tensor| bits(case::row(tensor, at)))
    };
    [bits(case::row(&result.out, at)), part(&result.lse), part(&result.weights)]
}

/// What may lie in masked memory: every kind of NaN, infinities, the largest numbers.
pub const POISON: [u32; 8] = [
    0x7fc0_0000, // quiet NaN
    0xffc0_0000, // negative quiet NaN
    0x7f80_0001, // signalling NaN
    0xffbf_ffff, // negative signalling NaN
    0x7f80_0000, // +inf
    0xff80_0000, // -inf
    0x7f7f_ffff, // largest
    0xff7f_ffff, // lowest
];

pub fn poison(rng: &mut Rng) -> f32 {
    f32::from_bits(POISON[rng.below(POISON.len())])
}

/// A small generator of test data: splitmix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u32 << 24) as f32
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Near enough to a standard normal number.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.uniform() - 0.5).sum::<f32>() * 3.0_f32.sqrt()
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}
