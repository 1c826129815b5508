//! Owned results.

use crate::{Error, KvStorage, Result, Shape, Storage, View, ViewMut};

/// A dense tensor that owns its data, `[batch, heads, seq, dim]` in that memory order. What it
/// allocates begins with a cache line: vectors that straddle two cost 1 to 3 % of attention's time.
#[derive(Debug)]
pub struct Tensor<T: KvStorage = f32> {
    memory: Vec<T>,
    /// Where the elements begin in `memory`; they go on to its end.
    start: usize,
    shape: Shape,
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// An empty vector with room for `count` elements from a cache line on, and how many stand before
/// that. `None`: there is not enough memory.
fn aligned<T: KvStorage>(count: usize) -> Option<(Vec<T>, usize)> {
    let mut memory: Vec<T> = Vec::new();
    memory.try_reserve_exact(count.checked_add(LINE / size_of::<T>())?).ok()?;
    let start = memory.as_ptr().align_offset(LINE);
    memory.resize(start, T::default());
    Some((memory, start))
}

/// The number of elements of a shape that views accept too: its extents' product must fit even if
/// those of 0 are left out.
fn element_count(shape: Shape) -> Result<usize> {
    let product = shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len.max(1)));
    let fits = product.filter(|&n| isize::try_from(n).is_ok());
    fits.map(|n| if shape.contains(&0) { 0 } else { n }).ok_or_else(|| too_large(shape))
}

fn too_large(shape: Shape) -> Error {
    Error::Overflow {
        argument: "tensor",
        got: format!("the size of {shape:?}"),
        expected: "an amount of memory that can be had".into(),
    }
}

impl<T: KvStorage> Tensor<T> {
    /// The extents, `[batch, heads, seq, dim]`.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements in memory order.
    pub fn data(&self) -> &[T] {
        &self.memory[self.start..]
    }

    /// The elements in memory order, to write.
    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..]
    }

    /// The elements, without the shape: moved to the front of their memory unless they begin it.
    pub fn into_vec(mut self) -> Vec<T> {
        self.memory.drain(..self.start);
        self.memory
    }

    /// A tensor of `data` in memory order batch, heads, seq, dim.
    ///
    /// # Errors
    /// [`Error::Shape`] where the length of `data` is not that of `shape`, [`Error::Overflow`]
    /// where the product of the extents, those of 0 left out, does not fit the machine.
    pub fn new(data: Vec<T>, shape: Shape) -> Result<Self> {
        if element_count(shape)? != data.len() {
            return Err(Error::Shape {
                argument: "tensor",
                got: format!("{shape:?} for {} elements", data.len()),
                expected: "a shape of as many elements as there are".into(),
            });
        }
        Ok(Self { memory: data, start: 0, shape })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Overflow`] where there is not enough memory, or as [`Tensor::new`].
    pub fn zeros(shape: Shape) -> Result<Self> {
        let count = element_count(shape)?;
        let (mut memory, start) = aligned(count).ok_or_else(|| too_large(shape))?;
        memory.resize(start + count, T::default());
        Ok(Self { memory, start, shape })
    }

    /// The tensor, to read.
    pub fn view(&self) -> View<'_, T> {
        match View::bhsd(self.data(), self.shape) {
            Ok(view) => view,
            Err(error) => unreachable!("the constructors checked the shape: {error}"),
        }
    }

    /// The tensor, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let shape = self.shape;
        match ViewMut::bhsd(self.data_mut(), shape) {
            Ok(view) => view,
            Err(error) => unreachable!("the constructors checked the shape: {error}"),
        }
    }
}

impl<T: KvStorage> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        // As much memory is there already: like any clone, this one fails where there is no more.
        let (mut memory, start) = aligned(self.data().len()).unwrap_or_default();
        memory.extend_from_slice(self.data());
        Self { memory, start, shape: self.shape }
    }
}

impl<T: KvStorage + PartialEq> PartialEq for Tensor<T> {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.data() == other.data()
    }
}

impl Tensor<f32> {
    /// A tensor of narrower data, widened exactly.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn widened<S: Storage<Compute = f32>>(data: &[S], shape: Shape) -> Result<Self> {
        Self::new(data.iter().map(|x| x.widen()).collect(), shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_with_a_line_and_is_given_back_without_it() -> Result<()> {
        for count in [0, 1, 15, 1000] {
            let mut tensor = Tensor::<f32>::zeros([1, 1, 1, count])?;
            tensor.data_mut().iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            for tensor in [&tensor, &tensor.clone()] {
                assert_eq!(tensor.data().as_ptr().align_offset(LINE), 0, "{count}");
                assert_eq!(tensor.data().len(), count);
            }
            let expected: Vec<f32> = (0..count).map(|i| i as f32).collect();
            assert_eq!(tensor, Tensor::new(expected.clone(), [1, 1, 1, count])?);
            assert_eq!(tensor.into_vec(), expected);
        }
        Ok(())
    }
}
