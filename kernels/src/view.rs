//! Borrowed strided tensors: a pointer, an extent of four axes and their strides.
//!
//! The axes are always `[batch, heads, seq, dim]`, whatever their order in memory: strides say
//! where things lie. Strides count elements and may be zero (an input's broadcast axis) or
//! negative. The safe constructors check that every index stays inside the slice, and, for an
//! output, that no two indices name one element.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// The extent of the axes `[batch, heads, seq, dim]`.
pub type Shape = [usize; 4];
/// The distance, in elements, between neighbours along each axis.
pub type Strides = [isize; 4];

/// A tensor to read, `[batch, heads, seq, dim]`.
///
/// ```
/// # use headwise_kernels::View;
/// let data = [0.0_f32; 2 * 3 * 4];
/// let view = View::bhsd(&data, [1, 2, 3, 4])?;
/// assert_eq!(view.strides(), [24, 12, 4, 1]);
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
#[derive(Debug)]
pub struct View<'a, T> {
    ptr: *const T,
    shape: Shape,
    strides: Strides,
    lifetime: PhantomData<&'a [T]>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

/// A tensor to write, `[batch, heads, seq, dim]`: like [`View`], with distinct elements.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    ptr: *mut T,
    shape: Shape,
    strides: Strides,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a view is a shared slice in all but layout.
unsafe impl<T: Sync> Send for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for View<'_, T> {}
// SAFETY: a mutable view is an exclusive slice in all but layout.
unsafe impl<T: Send> Send for ViewMut<'_, T> {}
// SAFETY: sharing a `&ViewMut` gives out `&T` and raw pointers at most.
unsafe impl<T: Sync> Sync for ViewMut<'_, T> {}

/// Rows of contiguous elements, evenly spaced: the sequence axis of one head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    ptr: *const T,
    stride: isize,
    len: usize,
    width: usize,
    lifetime: PhantomData<&'a [T]>,
}

impl<'a, T> Rows<'a, T> {
    /// Rows of `width` elements, one behind the other.
    pub(crate) fn dense(data: &'a [T], width: usize) -> Self {
        let len = data.len() / width;
        Self { ptr: data.as_ptr(), stride: width as isize, len, width, lifetime: PhantomData }
    }

    /// `len` rows of `width` elements, `stride` apart.
    ///
    /// # Safety
    /// They must be readable for `'a`.
    pub(crate) unsafe fn new(ptr: *const T, stride: isize, len: usize, width: usize) -> Self {
        Self { ptr, stride, len, width, lifetime: PhantomData }
    }

    /// The `len` rows from `first` on.
    ///
    /// # Panics
    /// Where there are not as many.
    #[inline(always)]
    pub(crate) fn part(self, first: usize, len: usize) -> Self {
        assert!(first <= self.len && len <= self.len - first);
        Self { ptr: self.row(first), len, ..self }
    }

    /// The same rows as bytes.
    pub(crate) fn bytes(self) -> Rows<'a, u8> {
        // Strides that count step through memory that there is: in bytes too they fit.
        let stride = self.stride.wrapping_mul(size_of::<T>() as isize);
        let width = self.width.wrapping_mul(size_of::<T>());
        Rows { ptr: self.ptr.cast(), stride, len: self.len, width, lifetime: PhantomData }
    }

    /// `len` rows; those beyond the old ones must not be read.
    pub(crate) fn lengthened(self, len: usize) -> Self {
        Self { len, ..self }
    }

    /// As many rows, each so many elements further on, which must be rows of the same view.
    pub(crate) fn moved(self, by: isize) -> Self {
        Self { ptr: self.ptr.wrapping_offset(by), ..self }
    }

    /// Elements from one row to the next.
    #[inline(always)]
    pub(crate) fn stride(&self) -> isize {
        self.stride
    }

    /// How many rows there are.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Elements in a row.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The address of row `index`: `width` readable elements for `index < len`.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> *const T {
        self.ptr.wrapping_offset(index as isize * self.stride)
    }

    /// Row `index`.
    ///
    /// # Panics
    /// Where there is no such row.
    #[inline(always)]
    pub(crate) fn slice(&self, index: usize) -> &'a [T] {
        assert!(index < self.len, "row {index} of {}", self.len);
        // SAFETY: the view that this came from vouches for `len` rows of `width` elements.
        unsafe { std::slice::from_raw_parts(self.row(index), self.width) }
    }
}

impl<'a> Rows<'a, u8> {
    /// The same rows as elements.
    ///
    /// # Safety
    /// They must come from [`Rows::bytes`] of rows of `T`.
    #[inline(always)]
    pub(crate) unsafe fn typed<T>(self) -> Rows<'a, T> {
        let size = size_of::<T>();
        let (stride, width) = (self.stride / size as isize, self.width / size);
        Rows { ptr: self.ptr.cast(), stride, len: self.len, width, lifetime: PhantomData }
    }
}

/// The number of elements of `shape`; an error names `argument` where it overflows, or would if
/// the axes of extent 0 were not there: nobody need mind the products of a valid shape's extents.
fn element_count(argument: &'static str, shape: Shape) -> Result<usize> {
    let mut count = 1_u128;
    for len in shape {
        // Two factors below 2^64 fit, and a product above is never multiplied again.
        if count <= isize::MAX as u128 {
            count *= len.max(1) as u128;
        }
    }
    if count > isize::MAX as u128 {
        return Err(Error::Overflow {
            argument,
            got: format!("the number of elements of {shape:?}"),
            expected: format!("at most {} elements", isize::MAX),
        });
    }
    Ok(if shape.contains(&0) { 0 } else { count as usize })
}

/// The strides that every tensor without elements is given: none of its own counts, and these are
/// safe to multiply and have a unit inner stride.
const EMPTY: Strides = [0, 0, 0, 1];

fn strides_that_count(shape: Shape, strides: Strides) -> Strides {
    if shape.contains(&0) { EMPTY } else { strides }
}

/// The order of a dense tensor's axes in memory.
#[derive(Debug, Clone, Copy)]
enum Dense {
    /// Batch, heads, seq, dim.
    Bhsd,
    /// Batch, seq, heads, dim.
    Bshd,
}

impl Dense {
    /// The strides of a tensor of this order at the front of `len` elements.
    fn strides(self, argument: &'static str, len: usize, shape: Shape) -> Result<Strides> {
        let count = element_count(argument, shape)?;
        if count == 0 {
            return Ok(EMPTY);
        }
        // The count bounds every product.
        let [_, heads, seq, dim] = shape.map(|len| len as isize);
        let strides = match self {
            Self::Bhsd => [heads * seq * dim, seq * dim, dim, 1],
            Self::Bshd => [seq * heads * dim, dim, heads * dim, 1],
        };
        if count > len {
            check_bounds(argument, len, 0, shape, strides)?;
        }
        Ok(strides)
    }
}

/// The lowest and the highest offset that `shape` and `strides` reach from their first element,
/// or `None` where there is no element.
fn reach(argument: &'static str, shape: Shape, strides: Strides) -> Result<Option<(i128, i128)>> {
    if element_count(argument, shape)? == 0 {
        return Ok(None);
    }
    let (mut low, mut high) = (0_i128, 0_i128);
    for (&len, &stride) in shape.iter().zip(&strides) {
        // Both factors are below 2^64, so the product of two and a sum of four fit i128.
        let far = (len as i128 - 1) * stride as i128;
        low += far.min(0);
        high += far.max(0);
    }
    if high - low > isize::MAX as i128 {
        return Err(Error::Overflow {
            argument,
            got: format!("the extent of shape {shape:?} with strides {strides:?}"),
            expected: format!("a span of at most {} elements", isize::MAX),
        });
    }
    Ok(Some((low, high)))
}

fn check_bounds(
    argument: &'static str,
    len: usize,
    offset: usize,
    shape: Shape,
    strides: Strides,
) -> Result<()> {
    let Some((low, high)) = reach(argument, shape, strides)? else {
        return Ok(());
    };
    let (first, last) = (offset as i128 + low, offset as i128 + high);
    let reached = if first < 0 { first } else { last };
    if first < 0 || last >= len as i128 {
        return Err(Error::Bounds {
            argument,
            reached,
            len,
            expected: format!(
                "shape {shape:?} with strides {strides:?} from element {offset} needs elements \
                 {first} to {last}"
            ),
        });
    }
    Ok(())
}

/// Refuses strides by which two indices could name one element. The rule is the usual one: sorted
/// by size, each stride must step over everything that the smaller ones reach.
fn check_distinct(argument: &'static str, shape: Shape, strides: Strides) -> Result<()> {
    if shape.contains(&0) {
        return Ok(());
    }
    // Of an axis of one element the stride does not count, so it steps over everything.
    let mut axes: [(u128, u128); 4] = std::array::from_fn(|axis| match shape[axis] {
        1 => (u128::MAX, 0),
        len => (strides[axis].unsigned_abs() as u128, len as u128 - 1),
    });
    axes.sort_unstable();
    let mut reached = 0_u128;
    for (stride, steps) in axes {
        if stride <= reached {
            return Err(Error::Stride {
                argument,
                got: format!("{strides:?} for shape {shape:?}"),
                expected: "strides that give every index an element of its own, since it is \
                           written to"
                    .into(),
            });
        }
        reached += stride * steps;
    }
    Ok(())
}

macro_rules! shared_accessors {
    () => {
        /// The extents, `[batch, heads, seq, dim]`.
        pub fn shape(&self) -> Shape {
            self.shape
        }

        /// The strides in elements, `[batch, heads, seq, dim]`.
        pub fn strides(&self) -> Strides {
            self.strides
        }

        /// Whether there is no element at all.
        pub fn is_empty(&self) -> bool {
            self.shape.contains(&0)
        }

        /// The offset in elements of an index that lies inside the shape.
        fn offset(&self, index: [usize; 4]) -> isize {
            debug_assert!(index.iter().zip(&self.shape).all(|(i, n)| i < n));
            // The constructors bounded every reachable offset by isize.
            (0..4).map(|axis| index[axis] as isize * self.strides[axis]).sum()
        }
    };
}

impl<'a, T> View<'a, T> {
    /// A dense tensor in memory order batch, heads, seq, dim. The slice may be longer than
    /// the shape needs.
    ///
    /// # Errors
    /// [`Error::Bounds`] where the slice is too short, [`Error::Overflow`] where the sizes are
    /// too large.
    pub fn bhsd(data: &'a [T], shape: Shape) -> Result<Self> {
        let strides = Dense::Bhsd.strides("view", data.len(), shape)?;
        Ok(Self { ptr: data.as_ptr(), shape, strides, lifetime: PhantomData })
    }

    /// A dense tensor in memory order batch, seq, heads, dim, as projections leave it. `shape` is
    /// `[batch, heads, seq, dim]` here as everywhere.
    ///
    /// # Errors
    /// As [`View::bhsd`].
    pub fn bshd(data: &'a [T], shape: Shape) -> Result<Self> {
        let strides = Dense::Bshd.strides("view", data.len(), shape)?;
        Ok(Self { ptr: data.as_ptr(), shape, strides, lifetime: PhantomData })
    }

    /// Any strides, in elements; index zero lies at `data[offset]`. A tensor without elements
    /// takes any, and forgets them.
    ///
    /// # Errors
    /// As [`View::bhsd`].
    pub fn strided(data: &'a [T], offset: usize, shape: Shape, strides: Strides) -> Result<Self> {
        check_bounds("view", data.len(), offset, shape, strides)?;
        let offset = if shape.contains(&0) { 0 } else { offset };
        let strides = strides_that_count(shape, strides);
        let ptr = data.as_ptr().wrapping_add(offset);
        Ok(Self { ptr, shape, strides, lifetime: PhantomData })
    }

    /// A view of memory that somebody else describes: the entry for bindings.
    ///
    /// # Errors
    /// [`Error::Overflow`] where the extent does not fit the machine.
    ///
    /// # Safety
    /// For every index inside `shape`, `ptr` plus the sum of index times stride must be aligned
    /// and readable as an initialised `T` for `'a`, and nobody may write there meanwhile. Without
    /// elements `ptr` may be anything.
    pub unsafe fn from_raw_parts(ptr: *const T, shape: Shape, strides: Strides) -> Result<Self> {
        let empty = reach("view", shape, strides)?.is_none();
        let ptr = if empty { NonNull::dangling().as_ptr() } else { ptr };
        let strides = strides_that_count(shape, strides);
        Ok(Self { ptr, shape, strides, lifetime: PhantomData })
    }

    shared_accessors!();

    /// The element at `[batch, head, seq, dim]`, or `None` outside the shape.
    pub fn get(&self, index: [usize; 4]) -> Option<&'a T> {
        let inside = index.iter().zip(&self.shape).all(|(i, n)| i < n);
        // SAFETY: the constructors guarantee every index inside the shape.
        inside.then(|| unsafe { &*self.ptr.offset(self.offset(index)) })
    }

    /// The row at `[batch, head, seq]`, or `None` outside the shape or where the last axis is not
    /// contiguous.
    pub fn row_slice(&self, [batch, head, seq]: [usize; 3]) -> Option<&'a [T]> {
        let [batches, heads, rows, dim] = self.shape;
        let inside = batch < batches && head < heads && seq < rows;
        if dim == 0 {
            return inside.then_some(&[]);
        }
        let contiguous = self.strides[3] == 1 || dim == 1;
        // SAFETY: the constructors guarantee every index inside the shape, and the row's elements
        // follow one another.
        (inside && contiguous)
            .then(|| unsafe { std::slice::from_raw_parts(self.row(batch, head, seq), dim) })
    }

    /// All elements where they lie, or `None` where they do not follow one another in order batch,
    /// heads, seq, dim.
    pub fn as_slice(&self) -> Option<&'a [T]> {
        if self.is_empty() {
            return Some(&[]);
        }
        // The constructors bounded the number of elements by isize.
        let mut count = 1;
        for axis in (0..4).rev() {
            // Of an axis of one element the stride does not count.
            if self.shape[axis] > 1 && self.strides[axis] != count as isize {
                return None;
            }
            count *= self.shape[axis];
        }
        // SAFETY: the constructors guarantee every index inside the shape, and the elements follow
        // one another.
        Some(unsafe { std::slice::from_raw_parts(self.ptr, count) })
    }

    /// The elements in order batch, heads, seq, dim.
    pub fn to_vec(&self) -> Vec<T>
    where
        T: Copy,
    {
        let [batch, heads, seq, dim] = self.shape;
        let mut data = Vec::with_capacity(batch * heads * seq * dim);
        for b in 0..batch {
            for h in 0..heads {
                for s in 0..seq {
                    data.extend((0..dim).filter_map(|d| self.get([b, h, s, d])));
                }
            }
        }
        data
    }

    /// The same rows as one batch entry, one entry's behind the other's: `[1, heads, batch * seq, dim]`.
    /// `None` where they are not evenly spaced. Rows of a batch in the memory order batch, seq, heads,
    /// dim always are, and so is one row for each entry.
    ///
    /// ```
    /// use headwise_kernels::View;
    ///
    /// let data: Vec<f32> = (0..3 * 2 * 4 * 8).map(|x| x as f32).collect();
    /// let folded = View::bshd(&data, [3, 4, 2, 8])?.fold_batch().ok_or("not evenly spaced")?;
    /// assert_eq!(folded.shape(), [1, 4, 6, 8]);
    /// assert!(View::bhsd(&data, [3, 4, 2, 8])?.fold_batch().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fold_batch(self) -> Option<Self> {
        let ([batch, heads, seq, dim], [of_batch, of_head, of_seq, inner]) =
            (self.shape, self.strides);
        let stride = match (batch, seq) {
            (0 | 1, _) | (_, 0) => of_seq,
            (_, 1) => of_batch,
            // The constructors bounded the extents' product.
            _ if of_seq.checked_mul(seq as isize) == Some(of_batch) => of_seq,
            _ => return None,
        };
        Some(self.with_layout([1, heads, batch * seq, dim], [0, of_head, stride, inner]))
    }

    /// The address of `[batch, head, seq, 0]`.
    pub(crate) fn row(&self, batch: usize, head: usize, seq: usize) -> *const T {
        // In a tensor without elements the offset is never dereferenced.
        self.ptr.wrapping_offset(
            batch as isize * self.strides[0]
                + head as isize * self.strides[1]
                + seq as isize * self.strides[2],
        )
    }

    /// The rows of one head: the seam where keys and values are addressed.
    ///
    /// # Panics
    /// Where the inner stride is not 1, which `Problem` refuses.
    pub(crate) fn rows(&self, batch: usize, head: usize) -> Rows<'a, T> {
        assert!(batch < self.shape[0] && head < self.shape[1]);
        assert!(self.strides[3] == 1 || self.shape[3] <= 1);
        Rows {
            ptr: self.row(batch, head, 0),
            stride: self.strides[2],
            len: self.shape[2],
            width: self.shape[3],
            lifetime: PhantomData,
        }
    }

    /// A view of this shape that must not be read.
    pub(crate) fn without_data<'b>(&self) -> View<'b, T> {
        View {
            ptr: std::ptr::NonNull::dangling().as_ptr(),
            shape: self.shape,
            strides: EMPTY,
            lifetime: PhantomData,
        }
    }

    /// The same data under new extents and strides.
    pub(crate) fn with_layout(self, shape: Shape, strides: Strides) -> Self {
        Self { shape, strides, ..self }
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// A dense tensor in memory order batch, heads, seq, dim. The slice may be longer than
    /// the shape needs.
    ///
    /// # Errors
    /// [`Error::Bounds`] where the slice is too short, [`Error::Overflow`] where the sizes are
    /// too large.
    pub fn bhsd(data: &'a mut [T], shape: Shape) -> Result<Self> {
        let strides = Dense::Bhsd.strides("output view", data.len(), shape)?;
        Ok(Self { ptr: data.as_mut_ptr(), shape, strides, lifetime: PhantomData })
    }

    /// A dense tensor in memory order batch, seq, heads, dim; `shape` is `[batch, heads, seq,
    /// dim]`.
    ///
    /// # Errors
    /// As [`ViewMut::bhsd`].
    pub fn bshd(data: &'a mut [T], shape: Shape) -> Result<Self> {
        let strides = Dense::Bshd.strides("output view", data.len(), shape)?;
        Ok(Self { ptr: data.as_mut_ptr(), shape, strides, lifetime: PhantomData })
    }

    /// Any strides, in elements; index zero lies at `data[offset]`.
    ///
    /// # Errors
    /// As [`ViewMut::bhsd`], and [`Error::Stride`] where two indices could name one element.
    pub fn strided(
        data: &'a mut [T],
        offset: usize,
        shape: Shape,
        strides: Strides,
    ) -> Result<Self> {
        check_bounds("output view", data.len(), offset, shape, strides)?;
        check_distinct("output view", shape, strides)?;
        let offset = if shape.contains(&0) { 0 } else { offset };
        let strides = strides_that_count(shape, strides);
        let ptr = data.as_mut_ptr().wrapping_add(offset);
        Ok(Self { ptr, shape, strides, lifetime: PhantomData })
    }

    /// A view of memory that somebody else describes: the entry for bindings.
    ///
    /// # Errors
    /// [`Error::Overflow`] where the extent does not fit the machine, [`Error::Stride`] where two
    /// indices could name one element.
    ///
    /// # Safety
    /// For every index inside `shape`, `ptr` plus the sum of index times stride must be aligned
    /// and writable for `'a`, and nobody else may read or write there meanwhile. The memory may be
    /// uninitialised as long as the view only goes where it is written first, to `Outputs`, `Product`
    /// or `softmax_into`; what works in place reads it. Without elements `ptr` may be anything.
    pub unsafe fn from_raw_parts(ptr: *mut T, shape: Shape, strides: Strides) -> Result<Self> {
        let empty = reach("output view", shape, strides)?.is_none();
        let ptr = if empty { NonNull::dangling().as_ptr() } else { ptr };
        check_distinct("output view", shape, strides)?;
        let strides = strides_that_count(shape, strides);
        Ok(Self { ptr, shape, strides, lifetime: PhantomData })
    }

    shared_accessors!();

    /// A view that borrows this one for a shorter while.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { ptr: self.ptr, shape: self.shape, strides: self.strides, lifetime: PhantomData }
    }

    /// Writes one element; `false` where the index lies outside the shape.
    pub fn set(&mut self, index: [usize; 4], value: T) -> bool
    where
        T: Copy,
    {
        let inside = index.iter().zip(&self.shape).all(|(i, n)| i < n);
        if inside {
            // SAFETY: the constructors guarantee every index inside the shape.
            unsafe { self.ptr.offset(self.offset(index)).write(value) }
        }
        inside
    }

    /// The row at `[batch, head, seq]`, to read and to write, or `None` as of [`View::row_slice`].
    pub fn row_slice_mut(&mut self, [batch, head, seq]: [usize; 3]) -> Option<&mut [T]> {
        let [batches, heads, rows, dim] = self.shape;
        let inside = batch < batches && head < heads && seq < rows;
        if dim == 0 {
            return inside.then_some(&mut []);
        }
        let contiguous = self.strides[3] == 1 || dim == 1;
        // SAFETY: the constructors guarantee every index inside the shape, the row's elements
        // follow one another, and the view is borrowed as long as the row.
        (inside && contiguous)
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.row(batch, head, seq), dim) })
    }

    /// The address of `[batch, head, seq, 0]`.
    pub(crate) fn row(&self, batch: usize, head: usize, seq: usize) -> *mut T {
        // In a tensor without elements the offset is never dereferenced.
        self.ptr.wrapping_offset(
            batch as isize * self.strides[0]
                + head as isize * self.strides[1]
                + seq as isize * self.strides[2],
        )
    }
}

#[cfg(feature = "ndarray")]
mod from_ndarray {
    use super::{View, ViewMut};
    use crate::error::{Error, Result};
    use ndarray::{ArrayView4, ArrayViewMut4};

    fn four<I: TryInto<[U; 4]>, U>(parts: I) -> [U; 4] {
        // A four-dimensional array has four of each.
        parts.try_into().unwrap_or_else(|_| unreachable!())
    }

    impl<'a, T> TryFrom<ArrayView4<'a, T>> for View<'a, T> {
        type Error = Error;
        /// The array's axes are taken as `[batch, heads, seq, dim]`; use `permuted_axes` for
        /// other orders.
        fn try_from(array: ArrayView4<'a, T>) -> Result<Self> {
            let (shape, strides) = (four(array.shape()), four(array.strides()));
            // SAFETY: the array view vouches for its elements for 'a.
            unsafe { View::from_raw_parts(array.as_ptr(), shape, strides) }
        }
    }

    impl<'a, T> TryFrom<ArrayViewMut4<'a, T>> for ViewMut<'a, T> {
        type Error = Error;
        /// The array's axes are taken as `[batch, heads, seq, dim]`; use `permuted_axes` for
        /// other orders.
        fn try_from(mut array: ArrayViewMut4<'a, T>) -> Result<Self> {
            let (shape, strides) = (four(array.shape()), four(array.strides()));
            // SAFETY: the mutable array view vouches for its elements for 'a.
            unsafe { ViewMut::from_raw_parts(array.as_mut_ptr(), shape, strides) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_orders() -> Result<()> {
        let data: Vec<f32> = (0..24).map(|x| x as f32).collect();
        let a = View::bhsd(&data, [1, 2, 3, 4])?;
        assert_eq!(a.get([0, 1, 2, 3]), Some(&23.0));
        assert_eq!(a.get([0, 2, 0, 0]), None);
        let b = View::bshd(&data, [1, 2, 3, 4])?;
        assert_eq!(b.strides(), [24, 4, 8, 1]);
        assert_eq!(b.get([0, 1, 2, 0]), Some(&20.0));
        assert_eq!(a.to_vec(), data);
        Ok(())
    }

    #[test]
    fn rows_are_slices_where_they_are_contiguous() -> Result<()> {
        let mut data: Vec<f32> = (0..24).map(|x| x as f32).collect();
        let backwards = View::strided(&data, 20, [1, 2, 3, 4], [0, -12, -4, 1])?;
        assert_eq!(backwards.row_slice([0, 1, 2]), Some(&[0.0, 1.0, 2.0, 3.0][..]));
        for outside in [[1, 0, 0], [0, 2, 0], [0, 0, 3]] {
            assert_eq!(backwards.row_slice(outside), None);
        }
        assert_eq!(View::bhsd(&data, [1, 2, 3, 0])?.row_slice([0, 1, 2]), Some(&[][..]));
        let spread = [0, 0, 12, 2];
        assert_eq!(View::strided(&data, 0, [1, 1, 2, 6], spread)?.row_slice([0, 0, 1]), None);
        let mut view = ViewMut::bshd(&mut data, [1, 2, 3, 4])?;
        assert_eq!(view.row_slice_mut([0, 2, 0]), None);
        view.row_slice_mut([0, 1, 2]).into_iter().for_each(|row| row.fill(-1.0));
        assert_eq!(data[19..], [19.0, -1.0, -1.0, -1.0, -1.0]);
        assert_eq!(
            ViewMut::strided(&mut data, 0, [1, 1, 2, 6], spread)?.row_slice_mut([0; 3]),
            None
        );
        Ok(())
    }

    #[test]
    fn dense_views_are_slices() -> Result<()> {
        let data: Vec<f32> = (0..24).map(|x| x as f32).collect();
        assert_eq!(View::bhsd(&data, [1, 2, 3, 4])?.as_slice(), Some(&data[..]));
        assert_eq!(View::bhsd(&data, [2, 1, 2, 4])?.as_slice(), Some(&data[..16]));
        assert_eq!(View::bshd(&data, [1, 2, 3, 4])?.as_slice(), None);
        assert_eq!(View::bshd(&data, [2, 3, 1, 4])?.as_slice(), Some(&data[..]));
        assert_eq!(View::bhsd(&data, [1, 0, 3, 4])?.as_slice(), Some(&[][..]));
        let part = |strides| View::strided(&data, 8, [1, 1, 2, 4], strides);
        assert_eq!(part([7, -7, 4, 1])?.as_slice(), Some(&data[8..16]));
        for gaps in [[0, 0, 5, 1], [0, 0, 0, 1], [0, 0, -4, 1], [0, 0, 4, 2]] {
            assert_eq!(part(gaps)?.as_slice(), None);
        }
        Ok(())
    }

    #[test]
    fn bounds_are_checked_at_both_ends() {
        let data = [0.0_f32; 10];
        assert!(View::strided(&data, 9, [1, 1, 10, 1], [0, 0, -1, 1]).is_ok());
        assert!(View::strided(&data, 8, [1, 1, 10, 1], [0, 0, -1, 1]).is_err());
        assert!(View::strided(&data, 1, [1, 1, 10, 1], [0, 0, 1, 1]).is_err());
        assert!(View::strided(&data, 0, [1, 1, 2, 1], [0, 0, isize::MIN, 1]).is_err());
        assert!(View::strided(&data, 99, [0, 1, 1, 1], [0; 4]).is_ok());
    }

    #[test]
    fn sizes_that_overflow_are_errors() {
        let data = [0.0_f32; 10];
        for shape in [[usize::MAX, 2, 1, 1], [1 << 32, 1 << 32, 1 << 32, 1]] {
            assert!(matches!(View::bhsd(&data, shape), Err(Error::Overflow { .. })), "{shape:?}");
        }
        let wide = View::strided(&data, 0, [1, 1, 3, 2], [0, 0, isize::MAX, isize::MAX]);
        assert!(matches!(wide, Err(Error::Overflow { .. })));
    }

    #[test]
    fn outputs_need_distinct_elements() {
        let mut data = [0.0_f32; 100];
        let refused = [([1, 1, 2, 2], [0, 0, 0, 1]), ([1, 1, 3, 3], [0, 0, 2, 1])];
        for (shape, strides) in refused {
            let view = ViewMut::strided(&mut data, 0, shape, strides);
            assert!(matches!(view, Err(Error::Stride { .. })), "{shape:?} {strides:?}");
        }
        assert!(ViewMut::strided(&mut data, 0, [1, 1, 3, 3], [0, 0, 3, 1]).is_ok());
        assert!(ViewMut::strided(&mut data, 50, [1, 1, 3, 3], [7, 9, -3, 1]).is_ok());
    }
}
