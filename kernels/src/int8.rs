//! Integers of eight bits with a scale for each row.

use crate::error::{Error, Result};

/// A byte of a row that is stored in integers: `dim` numbers, `n` from -127 to 127, and behind them the
/// bytes of an `f32`, the row's scale. A number is `n * scale`, rounded to `f32`. So a tensor of `dim`
/// numbers to a row has [`Int8::SCALE`] elements more in its last extent.
///
/// ```
/// use headwise_kernels::Int8;
///
/// let row = [1.0, -0.25, 0.5, 2.0_f32];
/// let mut stored = [Int8::default(); 4 + Int8::SCALE];
/// Int8::quantize(&row, &mut stored)?;
/// assert_eq!(stored[..4], [64, -16, 32, 127].map(Int8));
/// let mut numbers = [0.0; 4];
/// Int8::dequantize(&stored, &mut numbers)?;
/// assert!(numbers.iter().zip(row).all(|(x, y)| (x - y).abs() <= 2.0 / 127.0 / 2.0));
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Int8(pub i8);

/// The largest integer that is used.
const MOST: f64 = 127.0;

impl Int8 {
    /// Elements behind the numbers of a row: the bytes of its scale, in the machine's order.
    pub const SCALE: usize = size_of::<f32>();

    /// Rounds a row of `to.len() - SCALE` numbers. The scale is the largest magnitude divided by 127, so
    /// that no number is off by more than half the scale, and by a rounding of the scale and one of the
    /// product. A row of zeros has a scale of 0; of a row with a number that is not finite none is a number
    /// any more, the scale being NaN.
    ///
    /// # Errors
    /// [`Error::Shape`] where `to` is not as long.
    pub fn quantize(row: &[f32], to: &mut [Self]) -> Result<()> {
        check("to", to.len(), row.len())?;
        Self::write(row, to);
        Ok(())
    }

    /// The numbers of a row, `to.len() + SCALE` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] where `row` is not as long.
    pub fn dequantize(row: &[Self], to: &mut [f32]) -> Result<()> {
        check("row", row.len(), to.len())?;
        Self::read(row, to);
        Ok(())
    }

    /// [`Int8::quantize`] where there is room for the numbers and, behind all that there is, the scale.
    pub(crate) fn write(row: &[f32], to: &mut [Self]) {
        let (numbers, scale) = to.split_at_mut(to.len() - Self::SCALE);
        let most = row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let is_finite = row.iter().all(|x| x.is_finite());
        let most = if is_finite { f64::from(most) } else { f64::NAN };
        for (to, &x) in numbers.iter_mut().zip(row) {
            // What is no number, as 0 / 0, becomes 0.
            *to = Self((f64::from(x) * (MOST / most)).round_ties_even() as i8);
        }
        let rounded = (most / MOST) as f32;
        // The largest number must not overflow.
        let fits = !(MOST as f32 * rounded).is_infinite();
        let rounded = if fits { rounded } else { rounded.next_down() };
        for (to, byte) in scale.iter_mut().zip(rounded.to_ne_bytes()) {
            *to = Self(byte as i8);
        }
    }

    /// [`Int8::dequantize`] where the lengths fit.
    pub(crate) fn read(row: &[Self], to: &mut [f32]) {
        let (numbers, scale) = row.split_at(to.len());
        let scale = Self::scale_of(std::array::from_fn(|i| scale[i]));
        to.iter_mut().zip(numbers).for_each(|(to, x)| *to = f32::from(x.0) * scale);
    }

    /// A scale by its bytes.
    pub(crate) fn scale_of(bytes: [Self; Self::SCALE]) -> f32 {
        f32::from_ne_bytes(bytes.map(|byte| byte.0 as u8))
    }
}

fn check(argument: &'static str, len: usize, numbers: usize) -> Result<()> {
    if numbers.checked_add(Int8::SCALE) == Some(len) {
        return Ok(());
    }
    Err(Error::Shape {
        argument,
        got: format!("[{len}]"),
        expected: format!("{numbers} numbers and the {} bytes of their scale", Int8::SCALE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(row: &[f32]) -> (Vec<i8>, f32, Vec<f32>) {
        let mut bytes = vec![Int8(99); row.len() + Int8::SCALE];
        Int8::write(row, &mut bytes);
        let mut numbers = vec![0.0; row.len()];
        Int8::read(&bytes, &mut numbers);
        let (integers, scale) = bytes.split_at(row.len());
        let scale = Int8::scale_of(std::array::from_fn(|i| scale[i]));
        (integers.iter().map(|x| x.0).collect(), scale, numbers)
    }

    #[test]
    fn rows_are_rounded_to_multiples_of_their_scale() {
        assert_eq!(stored(&[0.0, -0.0]), (vec![0, 0], 0.0, vec![0.0, 0.0]));
        assert_eq!(stored(&[127.0, 0.5, 1.5, -2.5, -127.0]).0, [127, 0, 2, -2, -127]);
        assert_eq!(stored(&[]).0, []);
        // At the ends of the range, and below the least scale.
        for x in [f32::MAX, f32::MIN_POSITIVE, 127.0 * f32::from_bits(1), 1e-37] {
            let (integers, _, numbers) = stored(&[x, -x, 0.25 * x]);
            assert_eq!(integers, [127, -127, 32], "{x:e}");
            assert!(numbers.iter().all(|x| x.is_finite()), "{x:e}");
            // The scale is rounded, and may be subnormal.
            let error = f64::from(numbers[0]) - f64::from(x);
            let bound =
                f64::from(f32::EPSILON) * f64::from(x) + 63.5 * f64::from(f32::from_bits(1));
            assert!(error.abs() <= bound, "{x:e}: {numbers:?}");
        }
        assert_eq!(stored(&[f32::from_bits(1)]).2, [0.0]);
    }

    #[test]
    fn a_number_that_is_not_finite_takes_its_row_along() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for row in [[x, 1.0], [1.0, x]] {
                let (_, scale, numbers) = stored(&row);
                assert!(scale.is_nan() && numbers.iter().all(|x| x.is_nan()), "{row:?}");
            }
        }
    }

    #[test]
    fn rows_of_another_length_are_refused() {
        let mut bytes = [Int8(0); 6];
        assert!(Int8::quantize(&[1.0; 3], &mut bytes).is_err());
        assert!(Int8::dequantize(&bytes, &mut [0.0; 1]).is_err());
        assert_eq!(Int8::quantize(&[1.0; 2], &mut bytes), Ok(()));
    }
}
