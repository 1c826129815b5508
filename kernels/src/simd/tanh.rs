//! The hyperbolic tangent, from a power of two: with `t = 2 x log2(e)`,
//!
//! ```text
//! tanh x = (2^t - 1) / (2^t + 1)
//! 2^t - 1 = 2^n (2^f - 1) + (2^n - 1)        n = t rounded, f = t - n
//! 2^f - 1 = f q(f)                           a polynomial, relative error 5e-7 on [-1/2, 1/2]
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
const Q: [f32; 5] =
    [0.693_147_12, 0.240_223_512, 0.055_505_003_8, 0.009_666_245_43, 0.001_333_353_92];

/// tanh of each x, given `t = x * EXPONENT`.
#[inline(always)]
pub(crate) fn of_exponent<S: Simd, const N: usize>(s: S, t: [S::Vector; N]) -> [S::Vector; N] {
    let (mut power, mut f) = (t, t);
    for i in 0..N {
        // At the end it is 1 - 2^-29, which is 1. A NaN stays, as the second operand.
        (power[i], f[i]) = s.split(s.min(s.splat(30.0), t[i]));
    }
    let mut q = [s.splat(Q[4]); N];
    for c in [Q[3], Q[2], Q[1], Q[0]] {
        for i in 0..N {
            q[i] = s.mul_add(q[i], f[i], s.splat(c));
        }
    }
    let mut tanh = q;
    for i in 0..N {
        let below = s.sub(power[i], s.splat(1.0));
        let above = s.mul_add(power[i], s.mul(f[i], q[i]), below);
        tanh[i] = s.div(above, s.add(above, s.splat(2.0)));
    }
    tanh
}
