//! Tensors that own their data in one of several memory layouts.

use headwise::{Shape, Strides, View, ViewMut};

/// How a `[batch, heads, seq, dim]` tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Bhsd,
    Bshd,
    /// Sequence outermost.
    Sbhd,
    /// Rows and ends padded.
    Padded,
    /// Batch, heads and sequence backwards.
    Reversed,
    /// One batch entry for all: inputs only, as the next two.
    SharedBatch,
    SharedHead,
    SharedRow,
}

impl Layout {
    pub const OUTPUTS: [Self; 5] =
        [Self::Bhsd, Self::Bshd, Self::Sbhd, Self::Padded, Self::Reversed];
    pub const INPUTS: [Self; 8] = [
        Self::Bhsd,
        Self::Bshd,
        Self::Sbhd,
        Self::Padded,
        Self::Reversed,
        Self::SharedBatch,
        Self::SharedHead,
        Self::SharedRow,
    ];

    /// The axes, outermost first.
    fn order(self) -> [usize; 4] {
        match self {
            Self::Bshd => [0, 2, 1, 3],
            Self::Sbhd => [2, 0, 1, 3],
            _ => [0, 1, 2, 3],
        }
    }

    fn shared_axis(self) -> Option<usize> {
        match self {
            Self::SharedBatch => Some(0),
            Self::SharedHead => Some(1),
            Self::SharedRow => Some(2),
            _ => None,
        }
    }
}

/// Unused elements before the first and behind the last in padded layouts.
const MARGIN: usize = 5;
/// Unused elements behind each row.
const PADDING: usize = 3;

/// A tensor, its data in a layout of its own.
#[derive(Debug, Clone)]
pub struct Strided<T> {
    pub data: Vec<T>,
    pub offset: usize,
    pub shape: Shape,
    pub strides: Strides,
}

impl<T: Copy> Strided<T> {
    /// A tensor of `shape` with `gap` everywhere.
    pub fn filled(shape: Shape, layout: Layout, gap: T) -> Self {
        let margin = if matches!(layout, Layout::Padded | Layout::Reversed) { MARGIN } else { 0 };
        let (mut strides, mut step, mut offset) = ([0; 4], 1, margin);
        for axis in layout.order().into_iter().rev() {
            if layout.shared_axis() == Some(axis) {
                continue;
            }
            strides[axis] = step as isize;
            if layout == Layout::Reversed && axis < 3 {
                strides[axis] = -strides[axis];
                offset += step * (shape[axis].max(1) - 1);
            }
            let padding = if layout == Layout::Padded && axis == 3 { PADDING } else { 0 };
            step *= (shape[axis] + padding).max(1);
        }
        Self { data: vec![gap; step + 2 * margin], offset, shape, strides }
    }

    /// The elements of `dense`, which is in order batch, heads, seq, dim; `gap` between them. Of
    /// a shared axis the first entry is taken.
    pub fn new(dense: &[T], shape: Shape, layout: Layout, gap: T) -> Self {
        let mut this = Self::filled(shape, layout, gap);
        // Backwards, so that an axis of stride 0 ends with its first entry.
        for (nth, at) in this.indices().into_iter().enumerate().rev() {
            this.data[at] = dense[nth];
        }
        this
    }

    /// Where each element lies, in order batch, heads, seq, dim.
    pub fn indices(&self) -> Vec<usize> {
        let [batch, heads, seq, dim] = self.shape;
        let mut indices = Vec::with_capacity(batch * heads * seq * dim);
        for b in 0..batch {
            for h in 0..heads {
                for s in 0..seq {
                    indices.extend((0..dim).map(|d| self.at([b, h, s, d])));
                }
            }
        }
        indices
    }

    pub fn at(&self, index: [usize; 4]) -> usize {
        let steps = index.iter().zip(self.strides).map(|(&i, stride)| i as isize * stride);
        (self.offset as isize + steps.sum::<isize>()) as usize
    }

    pub fn get(&self, index: [usize; 4]) -> T {
        self.data[self.at(index)]
    }

    pub fn set(&mut self, index: [usize; 4], x: T) {
        let at = self.at(index);
        self.data[at] = x;
    }

    /// The elements in order batch, heads, seq, dim.
    pub fn dense(&self) -> Vec<T> {
        self.indices().into_iter().map(|at| self.data[at]).collect()
    }

    /// The elements that belong to no index.
    pub fn gaps(&self) -> Vec<T> {
        let mut used = vec![false; self.data.len()];
        self.indices().into_iter().for_each(|at| used[at] = true);
        self.data.iter().zip(used).filter(|&(_, used)| !used).map(|(&x, _)| x).collect()
    }

    pub fn map<U>(&self, f: impl Fn(T) -> U) -> Strided<U> {
        Strided {
            data: self.data.iter().map(|&x| f(x)).collect(),
            offset: self.offset,
            shape: self.shape,
            strides: self.strides,
        }
    }

    /// Some of an axis: `range` of it.
    pub fn narrow(&self, axis: usize, range: std::ops::Range<usize>) -> Self {
        let mut this = self.clone();
        let moved = this.offset as isize + range.start as isize * this.strides[axis];
        this.offset = moved as usize;
        this.shape[axis] = range.len();
        this
    }

    /// The same elements in another layout.
    pub fn laid_out(&self, layout: Layout, gap: T) -> Self {
        Self::new(&self.dense(), self.shape, layout, gap)
    }

    /// The same elements with the last axis outermost, so that no row is contiguous.
    pub fn transposed(&self) -> Self {
        let [batch, heads, seq, dim] = self.shape;
        let (rows, dense) = (batch * heads * seq, self.dense());
        let data = (0..rows * dim).map(|at| dense[at % rows * dim + at / rows]).collect();
        let strides = [heads * seq, seq, 1, rows].map(|stride| stride as isize);
        Self { data, offset: 0, shape: self.shape, strides }
    }

    pub fn view(&self) -> View<'_, T> {
        View::strided(&self.data, self.offset, self.shape, self.strides)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut::strided(&mut self.data, self.offset, self.shape, self.strides)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}
