//! Rows gathered one behind the other, widened to `f32` where they are stored in less.

use std::marker::PhantomData;

use crate::simd::{Kernel, Simd, Stored};
use crate::view::Rows;

/// Writes rows of numbers stored as `E` to the front of `to`, one behind the other.
pub(crate) struct Widen<'a, E> {
    rows: Rows<'a, u8>,
    stored: PhantomData<E>,
    to: &'a mut [f32],
}

impl<'a, E: Stored> Widen<'a, E> {
    /// # Safety
    /// `rows` must be the bytes of such numbers.
    pub(crate) unsafe fn new(rows: Rows<'a, u8>, to: &'a mut [f32]) -> Self {
        Self { rows, stored: PhantomData, to }
    }
}

impl<E: Stored> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (len, width) = (self.rows.len(), self.rows.width() / size_of::<E>() - E::EXTRA);
        assert!(width == 0 || self.to.len() / width >= len);
        let whole = width / S::LANES * S::LANES;
        for row in 0..len {
            let from = self.rows.row(row).cast::<E>();
            // SAFETY: `to` has `len` rows of `width` floats, and `rows` as many numbers, as was promised.
            unsafe {
                let to = self.to.as_mut_ptr().add(row * width);
                let scale = E::scale(s, from.add(width));
                for column in (0..whole).step_by(S::LANES) {
                    s.store(to.add(column), E::load(s, from.add(column), scale));
                }
                if whole < width {
                    let (from, count) = (from.add(whole), width - whole);
                    s.store_first(to.add(whole), count, E::load_first(s, from, count, scale));
                }
            }
        }
    }
}
