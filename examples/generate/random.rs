//! Random numbers that are the same on every machine.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number between 0 and 1, neither included.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((x ^ (x >> 31)) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Numbers of mean 0, evenly spread.
    pub(crate) fn numbers(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        let scale = deviation * 12.0_f64.sqrt();
        (0..count).map(|_| ((self.uniform() - 0.5) * scale) as f32).collect()
    }
}
