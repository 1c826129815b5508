//! Inputs of a call on four axes: where they lie, or a copy where kernels cannot read that.

use std::mem::size_of;
use std::slice;

use headwise::View;
use pyo3::PyResult;

use super::Strided;
use super::gather::{gather, reserved};
use crate::error;

/// An input in elements of `T`.
#[derive(Debug)]
pub(crate) struct Operand<T> {
    copy: Option<Vec<T>>,
    data: *const T,
    shape: [usize; 4],
    strides: [isize; 4],
}

/// How far an input is stretched: its axes before the last three, and that of its heads, where they
/// are of one element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch<'a> {
    pub(crate) batch: &'a [usize],
    pub(crate) heads: Option<usize>,
}

impl<T: Copy> Operand<T> {
    /// Elements of `S`, whose bits are those of a `T` if `same` says so.
    ///
    /// # Safety
    /// They must be readable as long as this is there.
    unsafe fn new<S: Copy>(
        place: Strided,
        stretch: Stretch<'_>,
        same: bool,
        convert: impl Fn(S) -> T,
    ) -> PyResult<Self> {
        let direct = same && size_of::<S>() == size_of::<T>() && place.is_direct::<T>();
        let mut copy = None;
        let mut place = place;
        if !direct {
            // SAFETY: the caller's promise.
            let data = copy.insert(unsafe { gather(&place, convert) }?);
            place = dense_copy(&place, data);
        }
        let stretched = stretch.apply(place);
        let four = match stretched.four_axes::<T>() {
            Some(four) => four,
            None => {
                // SAFETY: the caller's promise, or a copy that is there.
                let data = unsafe { gather(&stretched, |x: T| x) }?;
                place = dense_copy(&stretched, &data);
                copy = Some(data);
                place.four_axes::<T>().ok_or_else(|| unreachable_layout(&place))?
            }
        };
        Ok(Self { copy, data: place.data.cast_const().cast(), shape: four.0, strides: four.1 })
    }

    /// The input, to read.
    pub(crate) fn view(&self) -> PyResult<View<'_, T>> {
        // SAFETY: `new` was promised that the elements are readable as long as this is there, or has
        // copied them; they are `T`s, aligned and whole elements apart, or there would be a copy.
        unsafe { View::from_raw_parts(self.data, self.shape, self.strides) }.map_err(error::of)
    }

    /// Changes every element, of a copy.
    pub(crate) fn update(&mut self, change: impl Fn(T) -> T) -> PyResult<()> {
        if self.copy.is_none() {
            let view = self.view()?;
            let mut data = reserved(view.shape().iter().product())?;
            let [batch, heads, seq, _] = self.shape;
            for row in 0..batch * heads * seq {
                let index = [row / seq / heads, row / seq % heads, row % seq];
                data.extend_from_slice(view.row_slice(index).unwrap_or(&[]));
            }
            let [_, heads, seq, dim] = self.shape.map(|extent| extent as isize);
            self.strides = [heads * seq * dim, seq * dim, dim, 1];
            self.copy = Some(data);
        }
        if let Some(copy) = &mut self.copy {
            copy.iter_mut().for_each(|x| *x = change(*x));
            self.data = copy.as_ptr();
        }
        Ok(())
    }
}

impl Stretch<'_> {
    fn apply(&self, mut place: Strided) -> Strided {
        for (axis, &extent) in self.batch.iter().enumerate() {
            place = place.repeated(axis, extent);
        }
        let heads = place.ndim() - 3;
        self.heads.map_or(place, |extent| place.repeated(heads, extent))
    }
}

impl<T: Copy> Operand<T> {
    /// Elements of `T` itself.
    ///
    /// # Safety
    /// They must be readable as long as this is there, as `T`s.
    pub(crate) unsafe fn plain(place: Strided, stretch: Stretch<'_>) -> PyResult<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::new(place, stretch, true, |x: T| x) }
    }
}

impl<T: Copy> Operand<T> {
    /// Elements of `S`, copied in another type.
    ///
    /// # Safety
    /// They must be readable.
    pub(crate) unsafe fn converted<S: Copy>(
        place: Strided,
        stretch: Stretch<'_>,
        convert: impl Fn(S) -> T,
    ) -> PyResult<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::new(place, stretch, false, convert) }
    }
}

/// Truth values, of bytes that need not be 0 or 1.
///
/// # Safety
/// They must be readable as long as the operand is there.
pub(crate) unsafe fn bools(place: Strided, stretch: Stretch<'_>) -> PyResult<Operand<bool>> {
    let stride = place.strides().last().copied().unwrap_or(0);
    let count = place.shape().last().copied().unwrap_or(1);
    let mut all = 0_u8;
    place.for_each_row(|row| {
        if stride == 1 {
            // SAFETY: the caller's promise, and the row's bytes follow one another.
            let row = unsafe { slice::from_raw_parts(row.cast_const(), count) };
            all |= row.iter().fold(0, |all, byte| all | byte);
        } else {
            for nth in 0..count as isize {
                // SAFETY: the caller's promise.
                all |= unsafe { row.offset(nth * stride).read() };
            }
        }
    });
    // SAFETY: the caller's promise; bytes of 0 and 1 are the bits of truth values.
    unsafe { Operand::new(place, stretch, all <= 1, |byte: u8| byte != 0) }
}

/// Where the elements of a copy in order lie.
fn dense_copy<T>(of: &Strided, data: &[T]) -> Strided {
    let mut place = *of;
    place.data = data.as_ptr().cast_mut().cast();
    let mut stride = size_of::<T>() as isize;
    for axis in (0..of.ndim()).rev() {
        place.set_axis(axis, of.shape()[axis], stride);
        stride *= of.shape()[axis].max(1) as isize;
    }
    place
}

fn unreachable_layout(place: &Strided) -> pyo3::PyErr {
    error::value("array", format_args!("{:?}", place.shape()), "at least three axes")
}
