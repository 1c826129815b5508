//! The hyperbolic tangent, from a power of two: with `t = 2 x log2(e)`,
//!
//! ```text
//! tanh x = (2^t - 1) / (2^t + 1)
//! 2^t - 1 = 2^n (2^f - 1) + (2^n - 1)        n = t rounded, f = t - n
//! 2^f - 1 = f q(f)                           a polynomial, relative error 2e-8 on [-1/2, 1/2]
//! ```
//!
//! Near 0, where `2^t - 1` would cancel, n is 0 and what is left is `f q(f)`, as exact as f.
//! `docs/numerics.md` adds up the errors.

use super::Simd;

/// From x to t.
pub(crate) const EXPONENT: f32 = 2.0 * std::f32::consts::LOG2_E;

/// (2^f - 1) / f, fitted for the smallest relative error.
#[allow(clippy::approx_constant)] // Near ln 2, as fitted.
#[allow(clippy::excessive_precision)]
const Q: [f32; 6] = [
    0.693_147_18,
    0.240_226_492,
    0.055_503_573_3,
    0.009_618_237_6,
    0.001_339_073_53,
    0.000_154_035_122,
];

/// tanh of each x, given `t = x * EXPONENT`.
#[inline(always)]
pub(crate) fn of_exponent<S: Simd, const N: usize>(s: S, t: [S::Vector; N]) -> [S::Vector; N] {
    /// Adding and taking away rounds to a whole number.
    const MAGIC: f32 = 12_582_912.0;
    // At the ends it is 1 - 2^-29, which is 1. Both keep NaN, as their second operand.
    let (mut n, mut f) = (t, t);
    for i in 0..N {
        let t = s.min(s.splat(30.0), s.max(s.splat(-30.0), t[i]));
        n[i] = s.sub(s.add(t, s.splat(MAGIC)), s.splat(MAGIC));
        f[i] = s.sub(t, n[i]);
    }
    let mut q = [s.splat(Q[5]); N];
    for c in [Q[4], Q[3], Q[2], Q[1], Q[0]] {
        for i in 0..N {
            q[i] = s.mul_add(q[i], f[i], s.splat(c));
        }
    }
    let mut tanh = q;
    for i in 0..N {
        let power = s.pow2(n[i]);
        let below = s.sub(power, s.splat(1.0));
        let above = s.mul_add(power, s.mul(f[i], q[i]), below);
        tanh[i] = s.mul(above, s.recip(s.add(above, s.splat(2.0))));
    }
    tanh
}
