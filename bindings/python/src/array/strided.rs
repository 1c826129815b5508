//! Where the elements of an array lie.

use std::mem::size_of;

use pyo3::PyResult;

use super::DType;
use crate::error;

/// The most axes.
pub(crate) const MAX_NDIM: usize = 8;

/// Elements at even distances: an address, extents, and distances in bytes. It says nothing of how
/// long they are there; who has made it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided {
    pub(crate) data: *mut u8,
    pub(crate) dtype: DType,
    ndim: usize,
    shape: [usize; MAX_NDIM],
    strides: [isize; MAX_NDIM],
}

// SAFETY: it is an address; whoever reads or writes there answers for that.
unsafe impl Send for Strided {}
// SAFETY: as above.
unsafe impl Sync for Strided {}

/// Refuses extents whose product, those of 0 left out, is more than memory can have bytes of.
pub(crate) fn check_size(argument: &str, shape: &[usize]) -> PyResult<()> {
    let most = isize::MAX as usize / 16;
    let count = shape.iter().try_fold(1_usize, |n, &extent| n.checked_mul(extent.max(1)));
    if count.is_some_and(|count| count <= most) {
        return Ok(());
    }
    Err(error::value(argument, format_args!("{shape:?}"), format_args!("at most {most} elements")))
}

impl Strided {
    /// Of extents, with distances that are filled in afterwards.
    pub(crate) fn new(argument: &str, data: *mut u8, dtype: DType, ndim: usize) -> PyResult<Self> {
        if ndim > MAX_NDIM {
            let expected = format!("at most {MAX_NDIM}");
            return Err(error::value(argument, format!("{ndim} axes"), expected));
        }
        Ok(Self { data, dtype, ndim, shape: [1; MAX_NDIM], strides: [0; MAX_NDIM] })
    }

    pub(crate) fn set_axis(&mut self, axis: usize, extent: usize, stride: isize) {
        (self.shape[axis], self.strides[axis]) = (extent, stride);
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape[..self.ndim]
    }

    /// In bytes.
    pub(crate) fn strides(&self) -> &[isize] {
        &self.strides[..self.ndim]
    }

    pub(crate) fn ndim(&self) -> usize {
        self.ndim
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shape().contains(&0)
    }

    /// The same, once it is known that its extents' product can be computed with.
    pub(crate) fn checked(self, argument: &str) -> PyResult<Self> {
        check_size(argument, self.shape())?;
        Ok(self)
    }

    /// The number of elements, which `checked` bounded.
    pub(crate) fn count(&self) -> usize {
        self.shape().iter().product()
    }

    /// The extent of an axis counted from the last, which is 1.
    pub(crate) fn extent_from_last(&self, axis: usize) -> usize {
        self.shape[self.ndim - axis]
    }

    /// The distances of a dense array of these extents, last axis first.
    pub(crate) fn densify(&mut self) {
        let mut stride = self.dtype.size() as isize;
        for axis in (0..self.ndim).rev() {
            self.strides[axis] = stride;
            stride *= self.shape[axis].max(1) as isize;
        }
    }

    /// Whether the elements follow one another, the last axis first.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut dense = *self;
        dense.densify();
        let axes = self.strides().iter().zip(dense.strides()).zip(self.shape());
        self.is_empty() || axes.into_iter().all(|((a, b), &extent)| extent == 1 || a == b)
    }

    /// The same with all axes the other way about.
    pub(crate) fn reversed(mut self) -> Self {
        let ndim = self.ndim;
        self.shape[..ndim].reverse();
        self.strides[..ndim].reverse();
        self
    }

    /// The same with two axes exchanged.
    pub(crate) fn swapped(mut self, a: usize, b: usize) -> Self {
        self.shape.swap(a, b);
        self.strides.swap(a, b);
        self
    }

    /// The same with the axes before the last but one and the last but two exchanged, if there are
    /// as many: heads and positions.
    pub(crate) fn heads_swapped(self) -> Self {
        if self.ndim < 3 { self } else { self.swapped(self.ndim - 3, self.ndim - 2) }
    }

    /// The same with axes of one element in front, or, where they are of one element, with fewer.
    pub(crate) fn with_ndim(self, argument: &str, ndim: usize) -> PyResult<Self> {
        let mut to = Self::new(argument, self.data, self.dtype, ndim)?;
        let extra = self.ndim.saturating_sub(ndim);
        if self.shape[..extra].iter().any(|&extent| extent != 1) {
            let expected = format!("at most {ndim} axes, as the query, key and value have");
            return Err(error::value(argument, format_args!("{:?}", self.shape()), expected));
        }
        for axis in extra..self.ndim {
            to.set_axis(axis + ndim - self.ndim, self.shape[axis], self.strides[axis]);
        }
        Ok(to)
    }

    /// The same with a last axis of one element.
    pub(crate) fn with_last_axis(self, argument: &str) -> PyResult<Self> {
        let mut to = Self::new(argument, self.data, self.dtype, self.ndim + 1)?;
        for axis in 0..self.ndim {
            to.set_axis(axis, self.shape[axis], self.strides[axis]);
        }
        to.set_axis(self.ndim, 1, self.dtype.size() as isize);
        Ok(to)
    }

    /// The same with an axis of one element repeated.
    pub(crate) fn repeated(mut self, axis: usize, extent: usize) -> Self {
        if self.shape[axis] == 1 && extent != 1 {
            self.set_axis(axis, extent, 0);
        }
        self
    }

    /// Whether kernels can work where the elements lie: aligned, whole elements apart, the last axis
    /// contiguous.
    pub(crate) fn is_direct<T>(&self) -> bool {
        if self.is_empty() {
            return true;
        }
        let size = size_of::<T>() as isize;
        let last = self.ndim - 1;
        self.data.cast::<T>().is_aligned()
            && self.strides().iter().all(|stride| stride % size == 0)
            && (self.shape[last] == 1 || self.strides[last] == size)
    }

    /// All axes before the last three as one, in elements of `T`: extents and distances. `None` where
    /// they are not evenly spaced.
    pub(crate) fn four_axes<T>(&self) -> Option<([usize; 4], [isize; 4])> {
        let size = size_of::<T>() as isize;
        let lead = self.ndim.checked_sub(3)?;
        let (mut batch, mut stride) = (1_usize, 0_isize);
        // From the innermost on: each axis must step over all within.
        for axis in (0..lead).rev().filter(|&axis| self.shape[axis] != 1) {
            if batch == 1 {
                stride = self.strides[axis];
            } else if self.strides[axis] != stride.wrapping_mul(batch as isize) && !self.is_empty()
            {
                return None;
            }
            batch = batch.wrapping_mul(self.shape[axis]);
        }
        let [.., a, b, c] = *self.shape() else { return None };
        let [.., of_a, of_b, of_c] = *self.strides() else { return None };
        let inner = if c == 1 { size } else { of_c };
        Some(([batch, a, b, c], [stride, of_a, of_b, inner].map(|bytes| bytes / size)))
    }

    /// The bytes from the first element to behind the furthest, of distances that are not negative.
    pub(crate) fn reach(&self) -> usize {
        self.bytes().1.wrapping_sub(self.data as usize)
    }

    /// Whether no two indices name one element, by the usual rule: sorted by size, each distance must
    /// step over everything that the smaller ones reach.
    pub(crate) fn is_distinct(&self) -> bool {
        let axes = self.shape().iter().zip(self.strides());
        let mut axes: Vec<_> = axes.filter(|&(&extent, _)| extent > 1).collect();
        axes.sort_unstable_by_key(|(_, stride)| stride.unsigned_abs());
        let mut reached = self.dtype.size() as u128;
        let steps_over = |(&extent, &stride): (&usize, &isize)| {
            let bytes = stride.unsigned_abs() as u128;
            let fits = bytes >= reached;
            reached += bytes * (extent as u128 - 1);
            fits
        };
        self.is_empty() || axes.into_iter().all(steps_over)
    }

    /// From the lowest to behind the highest byte.
    fn bytes(&self) -> (usize, usize) {
        let (mut low, mut high) = (self.data as usize, self.data as usize + self.dtype.size());
        for (&extent, &stride) in self.shape().iter().zip(self.strides()) {
            let reach = (extent as isize - 1).wrapping_mul(stride);
            if reach < 0 {
                low = low.wrapping_add_signed(reach);
            } else {
                high = high.wrapping_add_signed(reach);
            }
        }
        (low, high)
    }

    /// Whether the stretches of memory from the first to the last element have a byte in common.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.bytes(), other.bytes());
        !self.is_empty() && !other.is_empty() && a.0 < b.1 && b.0 < a.1
    }

    /// Calls `row` with the address of the first element of each row of the last axis, in order.
    pub(crate) fn for_each_row(&self, mut row: impl FnMut(*mut u8)) {
        if self.is_empty() {
            return;
        }
        let outer = self.ndim.saturating_sub(1);
        let mut index = [0_usize; MAX_NDIM];
        let mut at = self.data;
        loop {
            row(at);
            let mut axis = outer;
            loop {
                let Some(next) = axis.checked_sub(1) else { return };
                axis = next;
                index[axis] += 1;
                at = at.wrapping_offset(self.strides[axis]);
                if index[axis] < self.shape[axis] {
                    break;
                }
                at = at.wrapping_offset(-(self.shape[axis] as isize * self.strides[axis]));
                index[axis] = 0;
            }
        }
    }
}
