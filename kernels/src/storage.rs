//! How the tensors of a call are stored: in the type that is computed in, in half the width of `f32`, or,
//! keys and values, in integers of eight bits.
//!
//! Views know their type at compile time, calls at run time: behind [`Problem`](crate::Problem) and
//! [`Outputs`](crate::Outputs) stand [`Input`] and [`Output`], so that the kernels exist once, and rows
//! of bytes with their [`Format`], which are addressed and asked for alike whatever they hold.

use std::fmt::Debug;
use std::ops::Range;

use half::{bf16, f16};

use crate::element::Element;
use crate::int8::Int8;
use crate::pages::KvRows;
use crate::simd::Stored;
use crate::view::{Rows, Shape, Strides, View, ViewMut};

mod sealed {
    pub trait Sealed {}
}
use sealed::Sealed;

/// A type in which keys and values may be stored: any [`Storage`], and [`Int8`]. Sealed.
pub trait KvStorage: Sealed + Copy + Default + PartialOrd + Send + Sync + Debug + 'static {
    /// What is computed in.
    type Compute: Element;
    /// The type's name as safetensors and NumPy users know it, in lower case.
    const NAME: &'static str;
    /// Elements behind the numbers of a row, which the last extent of a tensor counts too: those of the
    /// scale of [`Int8`], else none.
    const EXTRA: usize;
    /// Writes a row, each number rounded to what is stored, to as many elements and [`KvStorage::EXTRA`]
    /// more; of a row of another length as many numbers as there are of both, and its scale at the end.
    fn write_row(row: &[Self::Compute], to: &mut [Self]);
    /// The bytes of elements.
    fn as_bytes(elements: &[Self]) -> &[u8] {
        // SAFETY: the bytes of as many elements, borrowed as long; none of the types has padding.
        unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
    }
    /// The same elements, if they are of the type that is computed in.
    #[doc(hidden)]
    fn native_mut(row: &mut [Self]) -> Option<&mut [Self::Compute]>;
    /// A tensor as a call takes it.
    fn input(view: View<'_, Self>) -> Input<'_, Self::Compute>;
}

/// A type of the numbers in a tensor: `f32` and `f64`, which are computed in themselves, and `f16` and
/// `bf16`, which are widened to `f32` as they are read, exactly, and rounded once as they are written, to
/// the nearest and to the even of two as near.
///
/// ```
/// use half::bf16;
/// use headwise_kernels::{KvStorage, Storage};
///
/// assert_eq!(bf16::round(1.0 / 3.0).widen(), 0.333_984_38);
/// assert_eq!(bf16::NAME, "bf16");
/// ```
pub trait Storage: KvStorage {
    /// The number, exactly.
    fn widen(self) -> Self::Compute;
    /// A number, rounded to this type.
    fn round(x: Self::Compute) -> Self;
    /// A tensor as a call writes it.
    fn output(view: ViewMut<'_, Self>) -> Output<'_, Self::Compute>;
}

macro_rules! storage {
    ($($float:ty, $compute:ty, $variant:ident, $name:literal, $widen:expr, $round:expr, $native:expr;)*) => {$(
        impl Sealed for $float {}
        impl KvStorage for $float {
            type Compute = $compute;
            const NAME: &'static str = $name;
            const EXTRA: usize = 0;
            fn write_row(row: &[$compute], to: &mut [Self]) {
                // Of the trait: floats have a method of this name that rounds to integers.
                to.iter_mut().zip(row).for_each(|(to, &x)| *to = <Self as Storage>::round(x));
            }
            fn native_mut(row: &mut [Self]) -> Option<&mut [$compute]> {
                $native(row)
            }
            fn input(view: View<'_, Self>) -> Input<'_, $compute> {
                Input::$variant(view)
            }
        }
        impl Storage for $float {
            fn widen(self) -> $compute {
                $widen(self)
            }
            fn round(x: $compute) -> Self {
                $round(x)
            }
            fn output(view: ViewMut<'_, Self>) -> Output<'_, $compute> {
                Output::$variant(view)
            }
        }
    )*};
}
storage! {
    f32, f32, Native, "f32", std::convert::identity, std::convert::identity, Some;
    f64, f64, Native, "f64", std::convert::identity, std::convert::identity, Some;
    f16, f32, F16, "f16", f16::to_f32, f16::from_f32, |_| None;
    bf16, f32, Bf16, "bf16", bf16::to_f32, bf16::from_f32, |_| None;
}

impl Sealed for Int8 {}
impl KvStorage for Int8 {
    type Compute = f32;
    const NAME: &'static str = "int8";
    const EXTRA: usize = Self::SCALE;
    fn write_row(row: &[f32], to: &mut [Self]) {
        if let Some(room) = to.len().checked_sub(Self::SCALE) {
            Self::write(&row[..row.len().min(room)], to);
        }
    }
    fn native_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    fn input(view: View<'_, Self>) -> Input<'_, f32> {
        Input::Int8(view)
    }
}

/// A tensor to read, of a problem that is computed in `T`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Input<'a, T> {
    /// Of the type that is computed in.
    Native(View<'a, T>),
    /// Widened as it is read.
    F16(View<'a, f16>),
    /// Widened as it is read.
    Bf16(View<'a, bf16>),
    /// Keys or values whose rows have scales: multiplied as they are read.
    Int8(View<'a, Int8>),
}

/// A tensor to write, of a problem that is computed in `T`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output<'a, T> {
    /// Of the type that is computed in.
    Native(ViewMut<'a, T>),
    /// Rounded as it is written.
    F16(ViewMut<'a, f16>),
    /// Rounded as it is written.
    Bf16(ViewMut<'a, bf16>),
}

// Not of any `S: Storage`: so the type of numbers without one of their own, `[0.0; 8]`, can be told by
// what a call computes in.
impl<'a, T: Element> From<View<'a, T>> for Input<'a, T> {
    fn from(view: View<'a, T>) -> Self {
        Self::Native(view)
    }
}

impl<'a, T: Element> From<ViewMut<'a, T>> for Output<'a, T> {
    fn from(view: ViewMut<'a, T>) -> Self {
        Self::Native(view)
    }
}

macro_rules! from_views {
    ($($half:ty, $variant:ident;)*) => {$(
        impl<'a> From<View<'a, $half>> for Input<'a, f32> {
            fn from(view: View<'a, $half>) -> Self {
                Self::$variant(view)
            }
        }

        impl<'a> From<ViewMut<'a, $half>> for Output<'a, f32> {
            fn from(view: ViewMut<'a, $half>) -> Self {
                Self::$variant(view)
            }
        }
    )*};
}
from_views! {
    f16, F16;
    bf16, Bf16;
}

impl<'a> From<View<'a, Int8>> for Input<'a, f32> {
    fn from(view: View<'a, Int8>) -> Self {
        Self::Int8(view)
    }
}

/// `$body` for the view that an [`Input`] or [`Output`] is; of the variants in brackets too.
macro_rules! with_view {
    ($of:ident::$tensor:expr, $view:ident => $body:expr $(, [$($more:ident),*])?) => {
        match $tensor {
            $of::Native($view) => $body,
            $of::F16($view) => $body,
            $of::Bf16($view) => $body,
            $($($of::$more($view) => $body,)*)?
        }
    };
}

impl<'a, T: Element> Input<'a, T> {
    /// The extents, `[batch, heads, seq, dim]`, of numbers: without the scales of integers.
    pub fn shape(&self) -> Shape {
        let [batch, heads, seq, elements] = self.elements();
        [batch, heads, seq, elements.saturating_sub(self.format().extra())]
    }

    /// The extents of all elements, those of scales included.
    pub(crate) fn elements(&self) -> Shape {
        with_view!(Input::self, view => view.shape(), [Int8])
    }

    /// The strides in elements, `[batch, heads, seq, dim]`.
    pub fn strides(&self) -> Strides {
        with_view!(Input::self, view => view.strides(), [Int8])
    }

    /// The same rows as one batch entry, as [`View::fold_batch`].
    pub fn fold_batch(self) -> Option<Self> {
        Some(match self {
            Self::Native(view) => Self::Native(view.fold_batch()?),
            Self::F16(view) => Self::F16(view.fold_batch()?),
            Self::Bf16(view) => Self::Bf16(view.fold_batch()?),
            Self::Int8(view) => Self::Int8(view.fold_batch()?),
        })
    }

    /// Writes the row at `[batch, head, seq]` to `to`, which is as long; `false` where the row does not
    /// exist or is not as long, and then nothing.
    pub fn read_row(&self, index: [usize; 3], to: &mut [T]) -> bool {
        match self {
            Self::Native(view) => read_row(view, index, to, |x| x),
            Self::F16(view) => read_row(view, index, to, |x| T::from_f32(x.to_f32())),
            Self::Bf16(view) => read_row(view, index, to, |x| T::from_f32(x.to_f32())),
            Self::Int8(view) => {
                let [batch, head, seq] = index;
                // Of no account where there is no such row.
                let byte = |i| view.get([batch, head, seq, to.len() + i]).copied();
                let scale = Int8::scale_of(std::array::from_fn(|i| byte(i).unwrap_or_default()));
                let numbers = view.with_layout(self.shape(), self.strides());
                read_row(&numbers, index, to, |x| T::from_f32(f32::from(x.0) * scale))
            }
        }
    }

    /// The view, if it is of the type that is computed in.
    pub(crate) fn native(&self) -> Option<&View<'a, T>> {
        match self {
            Self::Native(view) => Some(view),
            _ => None,
        }
    }

    /// The name of its [`KvStorage`].
    pub fn storage(&self) -> &'static str {
        match self {
            Self::Native(_) => T::NAME,
            Self::F16(_) => f16::NAME,
            Self::Bf16(_) => bf16::NAME,
            Self::Int8(_) => Int8::NAME,
        }
    }

    pub(crate) fn format(&self) -> Format {
        match self {
            Self::Native(_) => Format::Native,
            Self::F16(_) => Format::F16,
            Self::Bf16(_) => Format::Bf16,
            Self::Int8(_) => Format::Int8,
        }
    }

    /// The rows of one head.
    ///
    /// # Panics
    /// As [`View::rows`].
    pub(crate) fn rows(&self, batch: usize, head: usize) -> Rows<'a, u8> {
        with_view!(Input::self, view => view.rows(batch, head).bytes(), [Int8])
    }

    /// Row `i` of a head.
    ///
    /// # Panics
    /// As [`View::rows`], and where there is no such row.
    pub(crate) fn row(&self, (batch, head): (usize, usize), i: usize) -> StoredRow<'a> {
        StoredRow { bytes: self.rows(batch, head).slice(i), format: self.format() }
    }

    /// A tensor of this shape that must not be read.
    pub(crate) fn without_data<'b>(&self) -> Input<'b, T> {
        match self {
            Self::Native(view) => Input::Native(view.without_data()),
            Self::F16(view) => Input::F16(view.without_data()),
            Self::Bf16(view) => Input::Bf16(view.without_data()),
            Self::Int8(view) => Input::Int8(view.without_data()),
        }
    }

    /// The same data under new extents and strides, which count elements.
    pub(crate) fn with_layout(self, (shape, strides): (Shape, Strides)) -> Self {
        match self {
            Self::Native(view) => Self::Native(view.with_layout(shape, strides)),
            Self::F16(view) => Self::F16(view.with_layout(shape, strides)),
            Self::Bf16(view) => Self::Bf16(view.with_layout(shape, strides)),
            Self::Int8(view) => Self::Int8(view.with_layout(shape, strides)),
        }
    }

    /// The numbers of row `i` of a head from `first` on.
    ///
    /// # Panics
    /// As [`Input::row`], and where there are not as many numbers.
    pub(crate) fn widen(
        &self,
        (batch, head): (usize, usize),
        i: usize,
        first: usize,
        to: &mut [T],
    ) {
        let numbers = first..first + to.len();
        match self {
            Self::Native(view) => {
                widen(&view.rows(batch, head).slice(i)[numbers], to, |x| x);
            }
            Self::F16(view) => {
                widen(&view.rows(batch, head).slice(i)[numbers], to, |x| T::from_f32(x.to_f32()));
            }
            Self::Bf16(view) => {
                widen(&view.rows(batch, head).slice(i)[numbers], to, |x| T::from_f32(x.to_f32()));
            }
            Self::Int8(_) => unreachable!("only keys and values are stored so, and read otherwise"),
        }
    }
}

/// Each number of a row as `one` has it.
fn widen<S: Copy, T>(row: &[S], to: &mut [T], one: impl Fn(S) -> T) {
    to.iter_mut().zip(row).for_each(|(to, &x)| *to = one(x));
}

/// [`Input::read_row`] with each number as `one` has it.
fn read_row<S: Copy, T>(
    view: &View<'_, S>,
    [batch, head, seq]: [usize; 3],
    to: &mut [T],
    one: impl Fn(S) -> T,
) -> bool {
    let [batches, heads, rows, dim] = view.shape();
    if batch >= batches || head >= heads || seq >= rows || dim != to.len() {
        return false;
    }
    if let Some(row) = view.row_slice([batch, head, seq]) {
        widen(row, to, one);
        return true;
    }
    for (d, to) in to.iter_mut().enumerate() {
        view.get([batch, head, seq, d]).into_iter().for_each(|&x| *to = one(x));
    }
    true
}

impl<'a, T: Element> Output<'a, T> {
    /// The extents, `[batch, heads, seq, dim]`.
    pub fn shape(&self) -> Shape {
        with_view!(Output::self, view => view.shape())
    }

    /// The strides in elements, `[batch, heads, seq, dim]`.
    pub fn strides(&self) -> Strides {
        with_view!(Output::self, view => view.strides())
    }

    /// The view, if it is of the type that is computed in.
    pub(crate) fn native(&self) -> Option<&ViewMut<'a, T>> {
        match self {
            Self::Native(view) => Some(view),
            _ => None,
        }
    }

    /// The view, if it is of the type that is computed in.
    ///
    /// # Errors
    /// The tensor itself, otherwise.
    pub fn into_native(self) -> Result<ViewMut<'a, T>, Self> {
        match self {
            Self::Native(view) => Ok(view),
            other => Err(other),
        }
    }
}

/// How numbers lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// As they are computed in.
    Native,
    F16,
    Bf16,
    Int8,
}

/// `$body` with `$stored` as the type in which numbers of a problem in `f32` are stored.
macro_rules! with_stored {
    ($format:expr, $stored:ident => $body:expr) => {
        match $format {
            $crate::storage::Format::Int8 => {
                type $stored = $crate::int8::Int8;
                $body
            }
            float => $crate::storage::with_float!(float, $stored => $body),
        }
    };
}
pub(crate) use with_stored;

/// The same of a tensor that is not of keys or values: their numbers alone are integers.
macro_rules! with_float {
    ($format:expr, $stored:ident => $body:expr) => {
        match $format {
            $crate::storage::Format::Int8 => unreachable!("only keys and values are integers"),
            $crate::storage::Format::Native => {
                type $stored = f32;
                $body
            }
            $crate::storage::Format::F16 => {
                type $stored = half::f16;
                $body
            }
            $crate::storage::Format::Bf16 => {
                type $stored = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_float;

impl Format {
    /// Bytes of a number of a problem in `f32`.
    pub(crate) fn size(self) -> usize {
        with_stored!(self, E => size_of::<E>())
    }

    /// Elements behind the numbers of a row.
    pub(crate) fn extra(self) -> usize {
        with_stored!(self, E => <E as Stored>::EXTRA)
    }

    /// [`Stored::COLUMNS`] of the type.
    pub(crate) fn columns(self) -> usize {
        with_stored!(self, E => E::COLUMNS)
    }
}

/// A row of numbers of a problem in `f32`, as it is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredRow<'a> {
    bytes: &'a [u8],
    format: Format,
}

impl<'a> StoredRow<'a> {
    pub(crate) const EMPTY: Self = Self { bytes: &[], format: Format::Native };

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// A row of an even number of `bf16` as one of pairs, which are floats by their bits.
    pub(crate) fn pairs(self) -> Self {
        debug_assert!(self.format == Format::Bf16);
        Self { format: Format::Native, ..self }
    }

    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        (self.bytes.len() / self.format.size()).saturating_sub(self.format.extra())
    }

    /// Some of the numbers, which are floats.
    ///
    /// # Panics
    /// Where there are no such numbers.
    pub(crate) fn part(self, numbers: Range<usize>) -> Self {
        debug_assert_eq!(self.format.extra(), 0);
        let size = self.format.size();
        Self { bytes: &self.bytes[numbers.start * size..numbers.end * size], ..self }
    }

    /// The first number.
    #[inline(always)]
    pub(crate) fn as_ptr<E: Stored>(&self) -> *const E {
        debug_assert_eq!(size_of::<E>(), self.format.size());
        self.bytes.as_ptr().cast()
    }
}

impl<'a> From<&'a [f32]> for StoredRow<'a> {
    fn from(row: &'a [f32]) -> Self {
        Self { bytes: f32::as_bytes(row), format: Format::Native }
    }
}

/// The keys or the values of one head as they are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    /// Bytes.
    pub(crate) rows: KvRows<'a, u8>,
    pub(crate) format: Format,
}

impl<'a> StoredRows<'a> {
    /// As [`StoredRow::pairs`].
    pub(crate) fn pairs(self) -> Self {
        debug_assert!(self.format == Format::Bf16);
        Self { format: Format::Native, ..self }
    }

    /// Numbers in a row of a problem in `f32`.
    pub(crate) fn width(&self) -> usize {
        self.rows.width() / self.format.size() - self.format.extra()
    }

    /// Row `index` of a problem in `f32`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub(crate) fn row(&self, index: usize) -> StoredRow<'a> {
        StoredRow { bytes: self.rows.slice(index), format: self.format }
    }
}
