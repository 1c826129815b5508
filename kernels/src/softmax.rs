//! Scaled softmax over the last axis, as a kernel of its own.

use crate::Settings;
use crate::error::{Error, Result};
use crate::executor::{Crew, MAX_THREADS, for_each_tile};
use crate::microkernel::row_softmax::RowSoftmax;
use crate::simd::{Isa, Kernel, Simd, dispatch};
use crate::view::{View, ViewMut};
use crate::workspace::{Line, Workspace};

/// Multiply-adds that take as long as an element does.
const ELEMENT_WORK: u128 = 38;

/// Rows that a thread claims at once hold about this many elements.
const CLAIM_ELEMENTS: usize = 1 << 13;

/// `output = softmax(scale * input)` along the last axis, each row alone; rows of any length,
/// views of any strides. Computes `exp(scale * x - max)`, so no exponential overflows.
///
/// What counts is `scale * x`, rounded to `f32`: a row of -inf alone becomes 0; NaN or +inf, which
/// a large finite `x` may become and an infinite one times 0, makes its row NaN. A row's bits do
/// not depend on strides, threads or neighbours.
///
/// # Errors
/// [`Error::Shape`] where the shapes differ, [`Error::Value`] where `scale` is not finite,
/// [`Error::Overflow`] where there is no memory for the workspace, and as [`Settings::isa`].
pub fn softmax_into(
    input: View<'_, f32>,
    output: ViewMut<'_, f32>,
    scale: f32,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    if input.shape() != output.shape() {
        return Err(Error::Shape {
            argument: "output",
            got: format!("{:?}", output.shape()),
            expected: format!("{:?}, the input's", input.shape()),
        });
    }
    run(Rows { input: Some(input), output, scale }, settings, workspace)
}

/// [`softmax_into`] with the input overwritten.
///
/// # Errors
/// As [`softmax_into`], shapes apart.
pub fn softmax_in_place(
    data: ViewMut<'_, f32>,
    scale: f32,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    run(Rows { input: None, output: data, scale }, settings, workspace)
}

/// The bytes of workspace with which either function allocates nothing for views of this shape.
pub fn softmax_workspace_bytes(shape: [usize; 4], settings: &Settings<'_>) -> usize {
    let threads = settings.threads().min(MAX_THREADS);
    Line::count(shape[3]).saturating_mul(threads).saturating_mul(size_of::<Line>())
}

fn threads(shape: [usize; 4], settings: &Settings<'_>) -> usize {
    let elements = shape.iter().fold(1_u128, |n, &len| n.saturating_mul(len as u128));
    settings.threads_for(elements.saturating_mul(ELEMENT_WORK))
}

fn run(rows: Rows<'_>, settings: &Settings<'_>, workspace: &mut Workspace) -> Result<Isa> {
    if !rows.scale.is_finite() {
        return Err(Error::Value {
            argument: "scale",
            got: rows.scale.to_string(),
            expected: "a finite number".into(),
        });
    }
    let isa = settings.isa()?;
    if !rows.output.is_empty() {
        let threads = threads(rows.output.shape(), settings);
        let scratch =
            workspace.scratch(Line::count(rows.output.shape()[3]).saturating_mul(threads))?;
        let crew = Crew { executor: settings.executor, threads };
        dispatch(isa, Drive { rows, crew, scratch })?;
    }
    Ok(isa)
}

struct Rows<'a> {
    /// `None`: the output is the input.
    input: Option<View<'a, f32>>,
    output: ViewMut<'a, f32>,
    scale: f32,
}

struct Drive<'a> {
    rows: Rows<'a>,
    crew: Crew<'a>,
    /// A row for each thread, for rows that are not contiguous.
    scratch: &'a mut [f32],
}

impl Kernel for Drive<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let [_, heads, seq, len] = self.rows.output.shape();
        let total: usize = self.rows.output.shape()[..3].iter().product();
        let part = Line::count(len) * Line::FLOATS;
        let claim = (CLAIM_ELEMENTS / len).max(1);
        let scratch = (self.scratch, part);
        for_each_tile(
            self.crew,
            total.div_ceil(claim),
            scratch,
            || (),
            |(_, scratch), tile| {
                for row in tile * claim..((tile + 1) * claim).min(total) {
                    let index = (row / (heads * seq), row / seq % heads, row % seq);
                    // SAFETY: the row lies inside the views and is claimed once.
                    unsafe { self.rows.row(simd, index, scratch) }
                }
            },
        );
    }
}

impl Rows<'_> {
    /// # Safety
    /// The row must exist and be in nobody else's hands.
    unsafe fn row<S: Simd>(&self, simd: S, (b, h, s): (usize, usize, usize), scratch: &mut [f32]) {
        let len = self.output.shape()[3];
        let out = self.output.row(b, h, s);
        let out_stride = self.output.strides()[3];
        let (input, in_stride) = match &self.input {
            Some(view) => (view.row(b, h, s), view.strides()[3]),
            None => (out.cast_const(), out_stride),
        };
        assert!(scratch.len() >= len);
        let work = if out_stride == 1 { out } else { scratch.as_mut_ptr() };
        // SAFETY: both views vouch for `len` elements at these strides. `work` is the output's row
        // or the scratch; neither overlaps the input, unless it is the very same row, which is not
        // copied.
        unsafe {
            if !std::ptr::eq(work, input) {
                for i in 0..len {
                    *work.add(i) = *input.offset(i as isize * in_stride);
                }
            }
            let row = std::slice::from_raw_parts_mut(work, len);
            simd.vectorize(RowSoftmax { row, scale: self.scale });
            if work != out {
                for i in 0..len {
                    *out.offset(i as isize * out_stride) = *work.add(i);
                }
            }
        }
    }
}
