//! Matrix product with prepacked weights, `out = x W^T + bias`: what a linear layer is.
//!
//! The structure is that of BLIS (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly
//! Instantiating BLAS Functionality", 2015), with the wide operand packed once for ever:
//!
//! ```text
//! pack once:  W [outputs][inputs] -> panels [outputs / 32][inputs][32]
//! for each item: up to 288 rows of x, up to 10 panels                      threads claim items
//!   for each KC of the inputs                       10 panels x 96 KiB: L2, read for every group
//!     for each group of 12 rows of x                 12 x KC, where they lie: 36 KiB, L1 or L2
//!       for each panel                               and ask for a share of its next KC
//!         out += x W^T, a micro-tile of 12 x 32 over KC            microkernel/outer.rs
//! ```
//!
//! ```text
//!            32 outputs: 2 vectors of a panel's row, loaded once a step
//!           +-----------------+
//!  12 rows  | 24 accumulators |  12 numbers of x, broadcast, each for 2 multiply-adds
//!  of x     |                 |
//!           +-----------------+  KC steps, then out += the tile
//! ```
//!
//! Why these sizes. Outputs are loaded, added to and stored once a KC, from L2, fetched while the
//! tile is computed, so KC is long. The panels stream past a group from L2, 128 bytes in 12 cycles of
//! two multiply-adds, and come from memory once for 288 rows; of their next KC a line is asked for
//! in eight steps. x is not packed: its rows are broadcast number by number, which needs no order,
//! and packing costs where few outputs share it. Rows are copied only where they are not contiguous,
//! not evenly spaced (the loop has a pointer for four of them), or would meet in the cache's sets.
//!
//! An output is one chain of multiply-adds over each KC of the inputs, and the chains are added in
//! order, the bias to the first: its bits depend on its row of x, its row of W and its bias, not on
//! the other rows, threads or tiles. One row reads the weights once, as fast as memory gives them.

use crate::Settings;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::executor::{Crew, MAX_THREADS, for_each_tile};
use crate::microkernel::fetch::fetch_row;
use crate::microkernel::outer::{self, Operands, Order, Spaced, Straight, Tiled};
use crate::problem::{check_unit_inner_stride, shape_error, value_error};
use crate::simd::{Isa, Kernel, Simd, dispatch, l1_ways, prefetch};
use crate::view::{Rows, View, ViewMut};
use crate::workspace::{Line, Workspace};
use std::ops::Range;

/// Inputs in a chain, at most; part of what an output's bits depend on.
const MAX_KC: usize = 768;
/// Outputs in a panel: the widest micro-tile.
const PANEL: usize = 32;
/// Rows of x that pass the panels together: the highest micro-tile, and whole ones of the others.
const GROUP: usize = 12;
/// Groups in an item, at most: they share what is read of the panels.
const MAX_GROUPS: usize = 24;
/// Panels in an item, at most: so many stay in L2 for all groups.
const MAX_PANELS: usize = 10;
/// Items wanted for each thread, so that the last one is not waited for long. Items are of one size,
/// and each reads its rows again, so more than two cost more than they even out.
const ITEMS_PER_THREAD: usize = 2;
/// Floats from a copied row to the next; the lines of a group's rows fall into different sets.
const PITCH: usize = MAX_KC + 16;
/// Floats that a thread copies rows to.
const PART: usize = GROUP * PITCH;
/// Rows a multiple of this many floats apart share their sets in an L1 of 4 KiB a way.
const SET_PERIOD: usize = 1024;

/// The weights and the bias of a linear layer, in the order in which the kernel reads them.
///
/// ```
/// use headwise_kernels::{PackedLinear, Settings, View, ViewMut, Workspace, linear};
///
/// // Two outputs of three inputs.
/// let weights = PackedLinear::pack(View::bhsd(&[1.0, 2.0, 3.0, 0.0, 1.0, 0.0], [1, 1, 2, 3])?, Some(&[0.5, 0.0]))?;
/// let x = View::bhsd(&[1.0, 10.0, 100.0], [1, 1, 1, 3])?;
/// let mut out = [0.0; 2];
/// let settings = Settings::default();
/// linear(x, &weights, ViewMut::bhsd(&mut out, [1, 1, 1, 2])?, &settings, &mut Workspace::new())?;
/// assert_eq!(out, [321.5, 10.0]);
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PackedLinear {
    /// `[outputs / PANEL][inputs][PANEL]`, the last panel filled with zeros.
    panels: Workspace,
    bias: Option<Vec<f32>>,
    outputs: usize,
    inputs: usize,
}

impl PackedLinear {
    /// Packs `weight`, `[1, 1, outputs, inputs]` in any strides, as PyTorch's `nn.Linear` has it,
    /// with a bias of `outputs` numbers.
    ///
    /// # Errors
    /// [`Error::Shape`] where the weight is no matrix or has no elements,
    /// [`Error::Value`] where the bias has another length, [`Error::Overflow`] where memory does
    /// not suffice.
    pub fn pack(weight: View<'_, f32>, bias: Option<&[f32]>) -> Result<Self> {
        let [one, also_one, outputs, inputs] = weight.shape();
        if (one, also_one) != (1, 1) || outputs == 0 || inputs == 0 {
            let expected = "[1, 1, outputs, inputs], neither 0".into();
            return shape_error("weight", weight.shape(), expected);
        }
        if let Some(bias) = bias
            && bias.len() != outputs
        {
            let expected = format!("one for each of the {outputs} outputs");
            return value_error("bias", format_args!("{} numbers", bias.len()), expected);
        }
        let mut panels = Workspace::new();
        let floats = outputs.div_ceil(PANEL).saturating_mul(inputs).saturating_mul(PANEL);
        let packed = panels.scratch::<f32>(Line::count(floats))?;
        for (p, panel) in packed.chunks_exact_mut(inputs * PANEL).enumerate() {
            for output in p * PANEL..((p + 1) * PANEL).min(outputs) {
                for (input, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                    row[output % PANEL] = *weight.get([0, 0, output, input]).unwrap_or(&0.0);
                }
            }
        }
        Ok(Self { panels, bias: bias.map(<[f32]>::to_vec), outputs, inputs })
    }

    /// The length of an output row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The length of an input row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The packed weights as they lie in memory: what a product reads.
    pub fn packed(&self) -> &[f32] {
        self.panels.as_slice()
    }

    /// One panel's weights for some of the inputs.
    fn panel(&self, panel: usize, inputs: &Range<usize>) -> Rows<'_, f32> {
        let start = (panel * self.inputs + inputs.start) * PANEL;
        Rows::dense(&self.packed()[start..][..inputs.len() * PANEL], PANEL)
    }
}

/// The cut of one product.
#[derive(Debug, Clone, Copy, Default)]
struct Cut {
    rows: usize,
    /// Groups of rows in an item, and items that cover all rows.
    groups: usize,
    row_items: usize,
    /// Panels in an item, and items that cover all panels.
    panels: usize,
    panel_items: usize,
}

impl Cut {
    /// About `wanted` items.
    fn new(rows: usize, weights: &PackedLinear, wanted: usize) -> Self {
        let all_groups = rows.div_ceil(GROUP);
        let row_items = all_groups.div_ceil(MAX_GROUPS).max(1);
        let all_panels = weights.outputs.div_ceil(PANEL);
        let wanted = wanted.div_ceil(row_items).clamp(1, all_panels);
        let panels = all_panels.div_ceil(wanted).min(MAX_PANELS);
        Self {
            rows,
            groups: all_groups.div_ceil(row_items),
            row_items,
            panels,
            panel_items: all_panels.div_ceil(panels),
        }
    }

    fn items(&self) -> usize {
        if self.rows == 0 { 0 } else { self.row_items * self.panel_items }
    }

    /// Rows of x and panels of item `index`. Items of the same panels follow each other.
    fn item(&self, index: usize, weights: &PackedLinear) -> Item {
        let (panel_item, row_item) = (index / self.row_items, index % self.row_items);
        let step = self.groups * GROUP;
        let all = weights.outputs.div_ceil(PANEL);
        let panels = panel_item * self.panels..((panel_item + 1) * self.panels).min(all);
        Item {
            rows: row_item * step..((row_item + 1) * step).min(self.rows),
            columns: panels.start * PANEL..(panels.end * PANEL).min(weights.outputs),
        }
    }
}

/// One item of work.
struct Item {
    /// Of x and out, flattened over the leading axes.
    rows: Range<usize>,
    /// Of out, from a panel's start on.
    columns: Range<usize>,
}

/// One product of those that [`linear_all`] computes: `out = x W^T + bias`.
#[derive(Debug)]
#[must_use = "nothing is computed before `linear_all`"]
pub struct Product<'a> {
    x: View<'a, f32>,
    weights: &'a PackedLinear,
    out: ViewMut<'a, f32>,
    cut: Cut,
}

impl<'a> Product<'a> {
    /// The product of every row of x: `x` is `[a, b, c, inputs]` in any strides, `out` `[a, b, c,
    /// outputs]`; the leading axes only count rows.
    ///
    /// # Errors
    /// [`Error::Shape`] where the shapes do not fit the weights or each other, [`Error::Stride`]
    /// where the output's last axis is not contiguous.
    pub fn new(x: View<'a, f32>, weights: &'a PackedLinear, out: ViewMut<'a, f32>) -> Result<Self> {
        let [a, b, c, inputs] = x.shape();
        if inputs != weights.inputs {
            let expected = format!("rows of {} numbers, the weights' inputs", weights.inputs);
            return shape_error("x", x.shape(), expected);
        }
        let expected = [a, b, c, weights.outputs];
        if out.shape() != expected {
            return shape_error("out", out.shape(), format!("{expected:?}"));
        }
        check_unit_inner_stride("out", expected, out.strides())?;
        Ok(Self { x, weights, out, cut: Cut::default() })
    }

    fn rows(&self) -> usize {
        let [a, b, c, _] = self.out.shape();
        a * b * c
    }

    /// Multiply-adds.
    fn work(&self) -> u128 {
        self.rows() as u128 * self.weights.inputs as u128 * self.weights.outputs as u128
    }
}

/// The distance of neighbouring rows, flattened over the leading axes, if it is the same for all.
fn spacing(x: &View<'_, f32>) -> Option<isize> {
    let (shape, strides) = (x.shape(), x.strides());
    let mut axes = (0..3).rev().filter(|&axis| shape[axis] > 1);
    let Some(first) = axes.next() else { return Some(0) };
    let mut span = strides[first].checked_mul(shape[first] as isize)?;
    for axis in axes {
        if strides[axis] != span {
            return None;
        }
        span = span.checked_mul(shape[axis] as isize)?;
    }
    Some(strides[first])
}

/// The distance of x's rows if they are read where they lie. They are copied where they are not
/// contiguous or not evenly spaced, or more of them meet in one set of L1 than it holds.
fn in_place(x: &View<'_, f32>) -> Option<isize> {
    let [a, b, c, _] = x.shape();
    let meet = |stride: isize| stride != 0 && stride.unsigned_abs().is_multiple_of(SET_PERIOD);
    let collide = |stride| meet(stride) && (a * b * c).min(GROUP) > l1_ways();
    spacing(x).filter(|&stride| x.strides()[3] == 1 && !collide(stride))
}

/// `out = x W^T + bias` for every row of x, as [`Product::new`] has it.
///
/// # Errors
/// As [`Product::new`] and [`linear_all`].
pub fn linear(
    x: View<'_, f32>,
    weights: &PackedLinear,
    out: ViewMut<'_, f32>,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    linear_all(&mut [Product::new(x, weights, out)?], settings, workspace)
}

/// Several products at once: the threads take items of all of them, and start together once.
///
/// # Errors
/// [`Error::Overflow`] where there is no memory for the workspace, and as [`Settings::isa`].
/// Nothing is written then.
pub fn linear_all(
    products: &mut [Product<'_>],
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let isa = settings.isa()?;
    let work = products.iter().fold(0, |sum: u128, product| sum.saturating_add(product.work()));
    let threads = settings.threads_for(work);
    let wanted = if threads == 1 { 1 } else { ITEMS_PER_THREAD * threads };
    let each = work.div_ceil(wanted as u128).max(1);
    for product in &mut *products {
        let share = product.work().div_ceil(each) as usize;
        product.cut = Cut::new(product.rows(), product.weights, share);
    }
    if products.iter().all(|product| product.cut.items() == 0) {
        return Ok(isa);
    }
    let copy = products.iter().any(|product| in_place(&product.x).is_none());
    let part = if copy { PART } else { 0 };
    let scratch = workspace.scratch(Line::count(part) * threads)?;
    let crew = Crew { executor: settings.executor, threads };
    dispatch(isa, Drive { products, crew, scratch, part })?;
    Ok(isa)
}

/// The bytes of workspace with which [`linear`] on this input, and [`linear_all`] on such inputs,
/// allocates nothing.
pub fn linear_workspace_bytes(x: View<'_, f32>, settings: &Settings<'_>) -> usize {
    if x.is_empty() || in_place(&x).is_some() {
        return 0;
    }
    Line::count(PART) * settings.threads().min(MAX_THREADS) * size_of::<Line>()
}

struct Drive<'d, 'a> {
    products: &'d [Product<'a>],
    crew: Crew<'d>,
    scratch: &'d mut [f32],
    /// Floats of scratch for each thread.
    part: usize,
}

impl Kernel for Drive<'_, '_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { products, crew, scratch, part } = self;
        let items = products.iter().map(|product| product.cut.items()).sum();
        for_each_tile(
            crew,
            items,
            (scratch, part),
            || (),
            |(_, scratch), mut index| {
                for product in products {
                    let items = product.cut.items();
                    if index < items {
                        return product.item(
                            simd,
                            &product.cut.item(index, product.weights),
                            scratch,
                        );
                    }
                    index -= items;
                }
            },
        );
    }
}

impl Product<'_> {
    fn item<S: Simd>(&self, simd: S, item: &Item, scratch: &mut [f32]) {
        let all = self.weights.inputs;
        let kc = all.div_ceil(all.div_ceil(MAX_KC));
        for start in (0..all).step_by(kc) {
            let inputs = start..(start + kc).min(all);
            let next = inputs.end..(inputs.end + kc).min(all);
            for first in item.rows.clone().step_by(GROUP) {
                let group = first..(first + GROUP).min(item.rows.end);
                let soon = if group.end < item.rows.end {
                    self.soon(group.end..(group.end + GROUP).min(item.rows.end), &inputs)
                } else {
                    self.soon(item.rows.start..(item.rows.start + GROUP).min(item.rows.end), &next)
                };
                // Each group's share of the panels' next inputs.
                let share =
                    |row| next.start + next.len() * (row - item.rows.start) / item.rows.len();
                let mut out: [&mut [f32]; GROUP] = std::array::from_fn(|_| Default::default());
                for (out, row) in out.iter_mut().zip(group.clone()) {
                    let [i, j, k] = self.index(row);
                    // SAFETY: the row exists and has `outputs` contiguous floats, of which these
                    // columns are this item's alone.
                    *out = unsafe {
                        let at = self.out.row(i, j, k).add(item.columns.start);
                        std::slice::from_raw_parts_mut(at, item.columns.len())
                    };
                }
                simd.vectorize(Stripe {
                    x: self.read(&group, &inputs, scratch),
                    weights: self.weights,
                    inputs: inputs.clone(),
                    columns: item.columns.clone(),
                    out: &mut out[..group.len()],
                    ahead: share(group.start)..share(group.end),
                    soon,
                });
            }
        }
    }

    /// Some inputs of the rows that come next.
    fn soon(&self, rows: Range<usize>, inputs: &Range<usize>) -> Soon {
        let mut soon = Soon { rows: [std::ptr::null(); GROUP], width: inputs.len() };
        if self.x.strides()[3] == 1 {
            for (to, row) in soon.rows.iter_mut().zip(rows) {
                let [i, j, k] = self.index(row);
                *to = self.x.row(i, j, k).wrapping_add(inputs.start);
            }
        }
        soon
    }

    /// A row's place on the leading axes of x and out.
    fn index(&self, row: usize) -> [usize; 3] {
        let [_, b, c, _] = self.x.shape();
        [row / (b * c), row / c % b, row % c]
    }

    /// Some inputs of a group's rows: where they lie, or copied to `scratch`.
    fn read<'s>(
        &'s self,
        group: &Range<usize>,
        inputs: &Range<usize>,
        scratch: &'s mut [f32],
    ) -> Rows<'s, f32> {
        let (len, width) = (group.len(), inputs.len());
        if let Some(stride) = in_place(&self.x) {
            let [i, j, k] = self.index(group.start);
            let first = self.x.row(i, j, k).wrapping_add(inputs.start);
            // SAFETY: these rows of x exist, evenly spaced, and their inputs are contiguous.
            return unsafe { Rows::new(first, stride, len, width) };
        }
        for (row, copy) in group.clone().zip(scratch.chunks_exact_mut(PITCH)) {
            let ([i, j, k], copy) = (self.index(row), &mut copy[..width]);
            if self.x.strides()[3] == 1 {
                copy.copy_from_slice(&self.x.rows(i, j).slice(k)[inputs.clone()]);
            } else {
                for (x, input) in copy.iter_mut().zip(inputs.clone()) {
                    *x = *self.x.get([i, j, k, input]).unwrap_or(&0.0);
                }
            }
        }
        assert!(scratch.len() >= PART && len <= GROUP && width <= MAX_KC);
        // SAFETY: GROUP rows of PITCH floats exist.
        unsafe { Rows::new(scratch.as_ptr(), PITCH as isize, len, width) }
    }
}

/// Rows of x to fetch into L2 before they are wanted. Addresses alone: nothing is read.
struct Soon {
    /// Null where there is none.
    rows: [*const f32; GROUP],
    width: usize,
}

impl Soon {
    /// Asks for the share of panel `index` out of `panels`.
    #[inline(always)]
    fn fetch(&self, index: usize, panels: usize) {
        for &row in &self.rows[GROUP * index / panels..GROUP * (index + 1) / panels] {
            fetch_row::<false>(row.cast(), self.width * size_of::<f32>());
        }
    }
}

/// Some inputs of a group of rows against some panels.
struct Stripe<'a, 'c> {
    x: Rows<'a, f32>,
    weights: &'a PackedLinear,
    /// With the first inputs outputs begin, at the bias if there is one.
    inputs: Range<usize>,
    /// From a panel's start on.
    columns: Range<usize>,
    /// The outputs' rows, at these columns.
    out: &'a mut [&'c mut [f32]],
    /// Inputs of the same panels to fetch meanwhile, into L2.
    ahead: Range<usize>,
    soon: Soon,
}

impl Kernel for Stripe<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (rows, width) = (self.out.len(), self.columns.len());
        assert!(self.out.iter().all(|out| out.len() == width));
        assert!(self.x.len() == rows && self.x.width() == self.inputs.len());
        assert!(self.columns.start.is_multiple_of(PANEL));
        assert!(self.columns.end <= self.weights.outputs);
        let covered = width.next_multiple_of(2 * S::LANES);
        let (tiles, extents) = (&mut self, (rows, covered));
        match S::ISA {
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Neon => {
                outer::cover::<S, Self, 12, 0, true>(s, tiles, extents, Order::Across)
            }
            Isa::Avx2 => outer::cover::<S, Self, 6, 0, true>(s, tiles, extents, Order::Across),
            Isa::Portable => outer::cover::<S, Self, 4, 0, true>(s, tiles, extents, Order::Across),
        }
    }
}

impl Tiled for Stripe<'_, '_> {
    // A panel is padded to whole tiles.
    const NARROW: bool = false;

    #[inline(always)]
    fn pairs<S: Simd, const PAIRS: usize>(&mut self, _s: S, _row: usize, _column: usize) {}

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECS: usize, const TAIL: bool>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
    ) {
        let output = self.columns.start + column;
        let b = self.weights.panel(output / PANEL, &self.inputs);
        let first = self.inputs.start == 0;
        let bias = self.weights.bias.as_deref().filter(|_| first);
        let x = Spaced::new(self.x.row(row), self.x.stride());
        if row == 0 && output.is_multiple_of(PANEL) {
            self.soon.fetch(column / PANEL, self.columns.len().div_ceil(PANEL));
        }
        for r in 0..ROWS {
            for v in 0..VECS {
                prefetch(self.out[row + r].as_ptr().wrapping_add(column + v * S::LANES).cast());
            }
        }
        // SAFETY: `run` checked the extents: x's rows have b's depth, and b's rows are whole
        // vectors, two of which divide a panel. Outputs and bias are touched up to `columns` only,
        // which end with the outputs at the latest.
        unsafe {
            let operands = Operands { a: x, b, first: 0, column: output % PANEL, depth: b.len() };
            // Low tiles are over before anything could arrive.
            let sum = if ROWS > 4 && !self.ahead.is_empty() {
                let ahead = self.weights.panel(output / PANEL, &self.ahead).row(0);
                outer::sum::<S, _, _, ROWS, VECS, 1, false, false>(s, operands, Straight(ahead))
            } else {
                outer::sum::<S, _, _, ROWS, VECS, 1, false, false>(s, operands, ())
            };
            for v in 0..VECS {
                let column = column + v * S::LANES;
                let count = self.columns.len().saturating_sub(column).min(S::LANES);
                let start = match bias {
                    Some(bias) => {
                        load(s, bias.as_ptr().wrapping_add(self.columns.start + column), count)
                    }
                    None => s.splat(0.0),
                };
                for r in 0..ROWS {
                    let c = self.out[row + r].as_mut_ptr().wrapping_add(column);
                    let before = if first { start } else { load(s, c, count) };
                    let out = s.add(before, sum[r][v]);
                    if count == S::LANES {
                        s.store(c, out);
                    } else {
                        s.store_first(c, count, out);
                    }
                }
            }
        }
    }
}

/// # Safety
/// `count <= LANES` floats must be readable at `ptr`.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, ptr: *const f32, count: usize) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe { if count == S::LANES { s.load(ptr) } else { s.load_first(ptr, count) } }
}
