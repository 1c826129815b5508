//! The types of numbers that the operator takes.

use std::borrow::Cow;

use crate::Element;

/// A type of the operator's tensors: `f32` and `f64`, and with the feature `half` also `f16` and
/// `bf16`, which are widened to `f32` and rounded once, at the end. Sealed.
pub trait Float: Sealed + Copy {
    /// What is computed in.
    #[doc(hidden)]
    type Compute: Element;
    /// The same numbers to compute with, exactly.
    #[doc(hidden)]
    fn widened(data: &[Self]) -> Cow<'_, [Self::Compute]>;
    /// Rounded to this type.
    #[doc(hidden)]
    fn rounded(data: Vec<Self::Compute>) -> Vec<Self>;
}

mod sealed {
    pub trait Sealed {}
}
use sealed::Sealed;

macro_rules! computed_in_itself {
    ($($float:ty),*) => {$(
        impl Sealed for $float {}
        impl Float for $float {
            type Compute = Self;
            fn widened(data: &[Self]) -> Cow<'_, [Self]> {
                Cow::Borrowed(data)
            }
            fn rounded(data: Vec<Self>) -> Vec<Self> {
                data
            }
        }
    )*};
}
computed_in_itself!(f32, f64);

#[cfg(feature = "half")]
macro_rules! computed_in_f32 {
    ($($half:ty),*) => {$(
        impl Sealed for $half {}
        impl Float for $half {
            type Compute = f32;
            fn widened(data: &[Self]) -> Cow<'_, [f32]> {
                data.iter().map(|x| x.to_f32()).collect()
            }
            fn rounded(data: Vec<f32>) -> Vec<Self> {
                data.into_iter().map(Self::from_f32).collect()
            }
        }
    )*};
}
#[cfg(feature = "half")]
computed_in_f32!(half::f16, half::bf16);
