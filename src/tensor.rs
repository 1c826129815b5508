//! Owned results.

use crate::{Element, Error, Result, Shape, View, ViewMut};

/// A dense tensor that owns its data, `[batch, heads, seq, dim]` in that memory order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<T = f32> {
    data: Vec<T>,
    shape: Shape,
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

impl<T: Element> Tensor<T> {
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
        Ok(Self { data, shape })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Overflow`] where there is not enough memory, or as [`Tensor::new`].
    pub fn zeros(shape: Shape) -> Result<Self> {
        let count = element_count(shape)?;
        let mut data = Vec::new();
        data.try_reserve_exact(count).map_err(|_| too_large(shape))?;
        data.resize(count, T::default());
        Ok(Self { data, shape })
    }

    /// The extents, `[batch, heads, seq, dim]`.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements in memory order.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// The elements, without the shape.
    pub fn into_vec(self) -> Vec<T> {
        self.data
    }

    /// The tensor, to read.
    pub fn view(&self) -> View<'_, T> {
        match View::bhsd(&self.data, self.shape) {
            Ok(view) => view,
            Err(error) => unreachable!("the constructors checked the shape: {error}"),
        }
    }

    /// The tensor, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        match ViewMut::bhsd(&mut self.data, self.shape) {
            Ok(view) => view,
            Err(error) => unreachable!("the constructors checked the shape: {error}"),
        }
    }
}

#[cfg(feature = "half")]
impl Tensor<f32> {
    /// A tensor of half-precision data, widened exactly.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f16(data: &[half::f16], shape: Shape) -> Result<Self> {
        Self::new(data.iter().map(|x| x.to_f32()).collect(), shape)
    }

    /// A tensor of bfloat16 data, widened exactly.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_bf16(data: &[half::bf16], shape: Shape) -> Result<Self> {
        Self::new(data.iter().map(|x| x.to_f32()).collect(), shape)
    }
}
