//! Masks: bytes that must be seen to be 0 or 1 before they are taken for booleans.

use headwise::View;

use crate::dtype::{self, headwise_dtype};
use crate::status::{Failure, Result, headwise_status};
use crate::tensor::{self, headwise_tensor};

/// A boolean mask, of which every byte was looked at once.
///
/// # Safety
/// The tensor's elements must be readable, and nobody may write to them for `'a`.
pub(crate) unsafe fn boolean<'a>(argument: &str, mask: &headwise_tensor) -> Result<View<'a, bool>> {
    dtype::expect(argument, mask.dtype, headwise_dtype::Bool)?;
    mask.check(argument)?;
    // SAFETY: the caller's promise; any byte is a u8.
    check_bytes(argument, unsafe { tensor::view(argument, &without_repeats(mask))? })?;
    // SAFETY: the caller's promise; every byte is 0 or 1, as a bool must be.
    unsafe { tensor::view(argument, mask) }
}

/// A mask in bits.
///
/// # Safety
/// As of [`boolean`].
pub(crate) unsafe fn bits<'a>(argument: &str, mask: &headwise_tensor) -> Result<View<'a, u8>> {
    dtype::expect(argument, mask.dtype, headwise_dtype::U8)?;
    mask.check(argument)?;
    // SAFETY: the caller's promise; any byte is a u8.
    unsafe { tensor::view(argument, mask) }
}

/// The same elements, each once.
fn without_repeats(mask: &headwise_tensor) -> headwise_tensor {
    let mut once = *mask;
    for (len, stride) in once.shape.iter_mut().zip(mask.strides) {
        if stride == 0 {
            *len = (*len).min(1);
        }
    }
    once
}

fn check_bytes(argument: &str, bytes: View<'_, u8>) -> Result<()> {
    let [batch, heads, seq, dim] = bytes.shape();
    if bytes.shape().contains(&0) {
        // The other extents may be any numbers.
        return Ok(());
    }
    for index in (0..batch * heads * seq).map(|n| [n / seq / heads, n / seq % heads, n % seq]) {
        let [b, h, s] = index;
        let all = match bytes.row_slice(index) {
            Some(row) => row.iter().fold(0, |all, byte| all | byte),
            None => (0..dim).filter_map(|d| bytes.get([b, h, s, d])).fold(0, |all, x| all | x),
        };
        if all > 1 {
            let got = format!("a byte that is neither 0 nor 1, in row [{b}, {h}, {s}]");
            let message = format!("{argument}: {got}, expected 0 or 1");
            return Err(Failure::new(headwise_status::Value, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_looked_at_wherever_they_lie() {
        let mut bytes = [1_u8; 24];
        let mut check = |at: usize, strides| {
            bytes.fill(1);
            bytes[at] = 2;
            let data = bytes.as_mut_ptr().cast();
            let dtype = headwise_dtype::Bool as u32;
            let shape = [1, 2, 3, 4];
            let mask = headwise_tensor { data, shape, strides, dtype, reserved: 0 };
            // SAFETY: the bytes are there.
            unsafe { boolean("mask", &mask) }.map(|_| ())
        };
        assert!(check(23, [0, 12, 4, 1]).is_err());
        assert!(check(12, [0, 12, 4, 1]).is_err());
        assert!(check(12, [0, 0, 4, 1]).is_ok(), "every head reads the first twelve");
        assert!(check(7, [0, 0, 2, 2]).is_ok());
        assert!(check(8, [0, 0, 2, 2]).is_err());
    }

    #[test]
    fn of_an_empty_mask_nothing_is_looked_at() {
        for shape in [[usize::MAX, usize::MAX, 3, 0], [usize::MAX, usize::MAX, 0, 4]] {
            let data = std::ptr::null_mut();
            let dtype = headwise_dtype::Bool as u32;
            let mask = headwise_tensor { data, shape, strides: [0, 0, 4, 1], dtype, reserved: 0 };
            // The library may refuse the extents; there are no bytes either way.
            // SAFETY: there are no elements.
            let _ = unsafe { boolean("mask", &mask) };
        }
    }
}
