//! The element types that attention is computed in.

use crate::settings::sealed::Sealed;
use crate::storage::Storage;

/// The two ways to compute attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Tile by tile, scores never in memory.
    Fused,
    /// Scores in memory.
    Unfused,
}

/// A type that attention is computed in. Sealed: `f32` has the fused kernels, `f64` the unfused path.
pub trait Element: Sealed + Storage<Compute = Self> {
    /// Rounds a double to this type.
    fn from_f64(x: f64) -> Self;
    /// Widens a float, exactly.
    fn from_f32(x: f32) -> Self;
    /// Widens to a double, exactly.
    fn to_f64(self) -> f64;
    /// `a + b`, rounded to this type.
    fn sum(a: Self, b: Self) -> Self;
}

impl Element for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
    fn sum(a: Self, b: Self) -> Self {
        a + b
    }
}

impl Element for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
    fn from_f32(x: f32) -> Self {
        x.into()
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn sum(a: Self, b: Self) -> Self {
        a + b
    }
}
