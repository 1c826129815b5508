//! An output of a call on four axes: where it is wanted, or scratch that is copied to there.

use headwise::ViewMut;
use pyo3::PyResult;

use super::element::is_in_place;
use super::{Stored, Strided, filled};
use crate::error;

/// An output of elements of `S`.
#[derive(Debug)]
pub(crate) struct Sink<S: Stored> {
    place: Strided,
    /// Dense, where kernels cannot write the place itself.
    scratch: Option<Vec<S>>,
    shape: [usize; 4],
    strides: [isize; 4],
}

impl<S: Stored> Sink<S> {
    /// # Safety
    /// The elements must be writable as long as this is there, and nobody else may use them.
    pub(crate) unsafe fn new(place: Strided) -> PyResult<Self> {
        let four = place.four_axes::<S>().filter(|_| is_in_place::<S>(&place));
        if let Some((shape, strides)) = four {
            return Ok(Self { place, scratch: None, shape, strides });
        }
        let [.., heads, seq, dim] = *place.shape() else {
            return Err(error::value("out", format_args!("{:?}", place.shape()), "three axes"));
        };
        if !place.is_distinct() {
            let got = format!("distances of {:?} bytes for {:?}", place.strides(), place.shape());
            return Err(error::value("out", got, "every index an element of its own"));
        }
        let scratch = filled(S::default(), place.count())?;
        let batch = place.shape()[..place.ndim() - 3].iter().product();
        let [h, s, d] = [heads, seq, dim].map(|extent| extent.max(1) as isize);
        let (shape, strides) = ([batch, heads, seq, dim], [h * s * d, s * d, d, 1]);
        Ok(Self { place, scratch: Some(scratch), shape, strides })
    }

    /// The output, to write.
    pub(crate) fn view(&mut self) -> PyResult<ViewMut<'_, S>> {
        let data = match &mut self.scratch {
            Some(scratch) => scratch.as_mut_ptr(),
            None => self.place.data.cast(),
        };
        // SAFETY: `new` was promised that the elements are writable and nobody else's, or there is
        // scratch; of one dtype a place is of `S`, aligned and whole elements apart.
        unsafe { ViewMut::from_raw_parts(data, self.shape, self.strides) }.map_err(error::of)
    }

    /// Brings what is in scratch to its place.
    pub(crate) fn finish(self) {
        let Some(scratch) = self.scratch else { return };
        let (Some(&stride), Some(&width)) =
            (self.place.strides().last(), self.place.shape().last())
        else {
            return;
        };
        let mut rows = scratch.chunks_exact(width.max(1));
        self.place.for_each_row(|row| {
            for (nth, &x) in rows.next().unwrap_or(&[]).iter().enumerate() {
                // SAFETY: `new` was promised that the elements are writable; nothing was said of
                // their alignment.
                unsafe {
                    row.offset(nth as isize * stride).cast::<S>().write_unaligned(x);
                }
            }
        });
    }
}
