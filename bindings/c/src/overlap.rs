//! Whether what a call writes lies apart from all else that it is given.
//!
//! A tensor is seen as runs of memory that repeat at a period: `run` bytes from `first` on, again and
//! again every `period` bytes or a multiple of it. Two such combs lie apart if their spans do, or if
//! their runs do modulo the common period, as queries and outputs in one fused buffer do. Whatever
//! cannot be shown to be apart so is refused.

use crate::choice::choose;
use crate::dtype::headwise_dtype;
use crate::status::{Failure, Result, headwise_status};
use crate::tensor::headwise_tensor;

/// A tensor's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    argument: &'static str,
    first: usize,
    end: usize,
    run: usize,
    /// 0 where there is one run.
    period: usize,
}

impl Memory {
    /// That of a checked tensor, unless it has no elements.
    pub(crate) fn of(argument: &'static str, tensor: &headwise_tensor) -> Result<Option<Self>> {
        if tensor.is_empty() {
            return Ok(None);
        }
        let dtype: headwise_dtype = choose(argument, tensor.dtype)?;
        let bytes = dtype.bytes();
        let axis = |n: usize| (tensor.strides[n].unsigned_abs() * bytes, tensor.shape[n] - 1);
        let mut axes: [(usize, usize); 4] = std::array::from_fn(|n| match tensor.shape[n] {
            1 => (0, 0),
            _ => axis(n),
        });
        axes.sort_unstable();
        let (mut run, mut period, mut length) = (bytes, 0, bytes);
        for (stride, steps) in axes.into_iter().filter(|&(stride, _)| stride > 0) {
            if period == 0 && stride <= run {
                run += stride * steps;
            } else {
                period = gcd(period, stride);
            }
            length += stride * steps;
        }
        // Of an axis of one element the stride may be any number.
        let backwards = |&n: &usize| tensor.strides[n] < 0 && tensor.shape[n] > 1;
        let below = (0..4).filter(backwards).map(axis);
        let first =
            tensor.data as usize - below.map(|(stride, steps)| stride * steps).sum::<usize>();
        Ok(Some(Self { argument, first, end: first + length, run, period }))
    }

    fn is_apart(&self, other: &Self) -> bool {
        if self.end <= other.first || other.end <= self.first {
            return true;
        }
        let period = gcd(self.period, other.period);
        if period == 0 {
            return false;
        }
        let behind = (other.first as i128 - self.first as i128).rem_euclid(period as i128) as usize;
        self.run <= behind && behind.saturating_add(other.run) <= period
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Refuses outputs that share memory with an input or with each other.
pub(crate) fn check(outputs: &[Option<Memory>], inputs: &[Option<Memory>]) -> Result<()> {
    for (n, output) in outputs.iter().enumerate() {
        let Some(output) = output else { continue };
        for other in outputs[n + 1..].iter().chain(inputs).flatten() {
            if !output.is_apart(other) {
                let (output, other) = (output.argument, other.argument);
                let message = format!(
                    "{output}: memory that may be {other}'s too, expected memory of its own"
                );
                return Err(Failure::new(headwise_status::Value, message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(base: usize, shape: [usize; 4], strides: [isize; 4]) -> Option<Memory> {
        let dtype = headwise_dtype::F32 as u32;
        let data = std::ptr::without_provenance_mut(4096 + 4 * base);
        let tensor = headwise_tensor { data, shape, strides, dtype, reserved: 0 };
        Memory::of("x", &tensor).unwrap_or(None)
    }

    fn apart(a: Option<Memory>, b: Option<Memory>) -> bool {
        let both = check(&[a], &[b]).is_ok();
        assert_eq!(both, check(&[b], &[a]).is_ok(), "{a:?} {b:?}");
        both
    }

    #[test]
    fn spans_and_combs() {
        let dense = |base| memory(base, [2, 3, 5, 8], [120, 40, 8, 1]);
        assert!(apart(dense(0), dense(240)));
        assert!(!apart(dense(0), dense(239)));
        assert!(apart(dense(0), memory(0, [2, 3, 0, 8], [0; 4])));
        // Two heads of 8 in rows of [query, key, out] of 16 each.
        let fused = |part: usize| memory(16 * part, [2, 2, 5, 8], [240, 8, 48, 1]);
        assert!(apart(fused(0), fused(2)));
        assert!(!apart(fused(0), fused(0)));
        assert!(!apart(fused(0), memory(8, [2, 2, 5, 8], [240, 8, 48, 1])));
        let odd = memory(0, [1, 1, 1, 8], [isize::MIN, isize::MAX, -1, 1]);
        assert!(apart(odd, memory(8, [1, 1, 1, 8], [0; 4])));
        assert!(!apart(odd, memory(7, [1, 1, 1, 8], [0; 4])));
        // Rows backwards, and one for all.
        let backwards = memory(32 + 16, [1, 1, 5, 8], [0, 0, -8, 1]);
        assert!(!apart(backwards, memory(16, [1, 1, 1, 8], [0; 4])));
        assert!(apart(backwards, memory(8, [1, 1, 9, 8], [0, 0, 0, 1])));
    }
}
