//! Memory of ours.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::{self, NonNull};

use pyo3::PyResult;

use super::{DType, Strided};
use crate::error;

/// Memory of an array, from a cache line on. Nothing has written it at first: who makes one lets
/// nobody see it before it is written.
#[derive(Debug)]
pub(crate) struct Memory {
    data: NonNull<u8>,
    layout: Layout,
    place: Strided,
}

// SAFETY: it owns what its address names.
unsafe impl Send for Memory {}
// SAFETY: sharing it gives out addresses alone.
unsafe impl Sync for Memory {}

const LINE: usize = 64;

impl Memory {
    /// Dense, of these extents; with `swapped`, heads (the last axis but two) and positions (the last
    /// but one) lie in memory the other way about.
    pub(crate) fn new(dtype: DType, shape: &[usize], swapped: bool) -> PyResult<Self> {
        let fits = |n: usize| isize::try_from(n).is_ok();
        let bytes = shape.iter().try_fold(dtype.size(), |n, &extent| n.checked_mul(extent.max(1)));
        let Some(bytes) = bytes.filter(|&bytes| fits(bytes + LINE)) else {
            return Err(error::memory(format_args!("the size of {shape:?} in")));
        };
        let mut place = Strided::new("out", ptr::null_mut(), dtype, shape.len())?;
        for (axis, &extent) in shape.iter().enumerate() {
            place.set_axis(axis, extent, 0);
        }
        if swapped {
            place = place.heads_swapped();
        }
        place.densify();
        if swapped {
            place = place.heads_swapped();
        }
        let layout = Layout::from_size_align(bytes.max(1), LINE);
        let layout = layout.map_err(|_| error::memory(bytes))?;
        // SAFETY: the layout has a size.
        let data = NonNull::new(unsafe { alloc(layout) }).ok_or_else(|| error::memory(bytes))?;
        place.data = data.as_ptr();
        Ok(Self { data, layout, place })
    }

    pub(crate) fn place(&self) -> Strided {
        self.place
    }

    /// Where it lies as long as the memory is there.
    pub(crate) fn place_ref(&self) -> &Strided {
        &self.place
    }

    /// The same with heads and positions exchanged.
    pub(crate) fn heads_swapped(mut self) -> Self {
        self.place = self.place.heads_swapped();
        self
    }

    /// A copy, once it has been written.
    pub(crate) fn duplicate(&self) -> PyResult<Self> {
        let mut copy = Self::new(self.place.dtype, self.place.shape(), false)?;
        copy.place = self.place;
        copy.place.data = copy.data.as_ptr();
        // SAFETY: both are dense of the same bytes, initialised, and apart.
        unsafe {
            ptr::copy_nonoverlapping(self.data.as_ptr(), copy.data.as_ptr(), self.layout.size());
        }
        Ok(copy)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated so, and is dropped once.
        unsafe { dealloc(self.data.as_ptr(), self.layout) };
    }
}
