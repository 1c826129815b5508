//! Matrix product with prepacked weights, `out = x W^T + bias`: what a linear layer is.
//!
//! The structure is that of BLIS (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly
//! Instantiating BLAS Functionality", 2015), with the wide operand packed once for ever:
//!
//! ```text
//! pack once:  W [outputs][inputs] -> panels [outputs / 32][inputs][32]
//! for each item: up to 6 tiles of 48 rows of x, up to 8 panels            threads claim items
//!   for each KC = 384 of the inputs
//!     pack x: 48 rows -> [KC][48], for each tile                          6 x 72 KiB: L2
//!     for each tile, for each 12 of its rows (AVX-512)                    KC x 12: 24 KiB, L1
//!       for each panel                                                    8 x 48 KiB: L2
//!         out += x W^T, a micro-tile of 12 x 32 over KC                   microkernel/outer.rs
//! ```
//!
//! Why these sizes: every KC each output is loaded, added to and stored, so KC is long (at 192 that
//! cost 6 points of the peak). Twelve rows stay in L1 while the panels stream past them from L2, 128
//! bytes in 24 cycles; the panels' KC stays in L2 while six tiles pass. Weights come from memory once for 288 rows of x; x is packed again for each 8 panels,
//! a third of a cycle an element against the 16 that 256 outputs take.
//!
//! An output is one chain of multiply-adds over each KC of the inputs, and the chains are added in
//! order, the bias to the first: its bits depend on its row of x, its row of W and its bias, not on
//! the other rows, threads or tiles. One row reads the weights once, as fast as memory gives them.

use crate::Settings;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::executor::{Crew, ITEMS_PER_THREAD, SERIAL_WORK, for_each_tile, threads_for};
use crate::microkernel::BLOCK_Q;
use crate::microkernel::outer::{self, Operands, Order, Tiled};
use crate::microkernel::pack::Pack;
use crate::problem::{check_unit_inner_stride, shape_error, value_error};
use crate::simd::{Isa, Kernel, Simd, dispatch};
use crate::view::{Rows, View, ViewMut};
use crate::workspace::{Line, Workspace};
use std::ops::Range;

/// Inputs in a block; part of what an output's bits depend on.
const KC: usize = 384;
/// Outputs in a panel: the widest micro-tile.
const PANEL: usize = 32;
/// Tiles of rows in an item, at most.
const MAX_TILES: usize = 6;
/// Panels in an item, at most: so many outputs of its rows stay in L2 from one KC to the next.
const MAX_PANELS: usize = 8;

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
            let got = format_args!("{} numbers", bias.len());
            return value_error("bias", got, format!("one for each of the {outputs} outputs"));
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
        self.panels.floats()
    }

    /// One panel's weights for some of the inputs.
    fn panel(&self, panel: usize, inputs: &Range<usize>) -> Rows<'_, f32> {
        let start = (panel * self.inputs + inputs.start) * PANEL;
        Rows::dense(&self.packed()[start..][..inputs.len() * PANEL], PANEL)
    }
}

/// The cut of one product.
#[derive(Debug, Clone, Copy)]
struct Cut {
    rows: usize,
    /// Tiles of rows in an item, and items that cover all rows.
    tiles: usize,
    row_items: usize,
    /// Panels in an item, and items that cover all panels.
    panels: usize,
    panel_items: usize,
    threads: usize,
    /// Whether rows of x must be gathered before they are packed.
    gather: bool,
}

impl Cut {
    fn new(x: &View<'_, f32>, weights: &PackedLinear, settings: &Settings<'_>) -> Self {
        let [a, b, c, inputs] = x.shape();
        let rows = a * b * c;
        let work = rows as u128 * inputs as u128 * weights.outputs as u128;
        let threads = threads_for(work, SERIAL_WORK, settings.threads());
        let all_tiles = rows.div_ceil(BLOCK_Q);
        let row_items = all_tiles.div_ceil(MAX_TILES).max(1);
        let all_panels = weights.outputs.div_ceil(PANEL);
        let wanted =
            if threads == 1 { 1 } else { (ITEMS_PER_THREAD * threads).div_ceil(row_items) };
        let panels = all_panels.div_ceil(wanted.min(all_panels)).min(MAX_PANELS);
        Self {
            rows,
            tiles: all_tiles.div_ceil(row_items),
            row_items,
            panels,
            panel_items: all_panels.div_ceil(panels),
            threads,
            gather: x.strides()[3] != 1,
        }
    }

    fn items(&self) -> usize {
        if self.rows == 0 { 0 } else { self.row_items * self.panel_items }
    }

    /// Floats of scratch for each thread: the packed tiles, and a tile's rows if they are gathered.
    fn part(&self) -> usize {
        (self.tiles + usize::from(self.gather)) * BLOCK_Q * KC
    }

    fn lines(&self) -> usize {
        Line::count(self.part()) * self.threads.min(self.items().max(1))
    }

    /// Rows of x and panels of item `index`. Items of the same panels follow each other.
    fn item(&self, index: usize, weights: &PackedLinear) -> (Range<usize>, Range<usize>) {
        let (panel_item, row_item) = (index / self.row_items, index % self.row_items);
        let step = self.tiles * BLOCK_Q;
        let rows = row_item * step..((row_item + 1) * step).min(self.rows);
        let all = weights.outputs.div_ceil(PANEL);
        (rows, panel_item * self.panels..((panel_item + 1) * self.panels).min(all))
    }
}

/// `out = x W^T + bias` for every row of x. `x` is `[a, b, c, inputs]` in any strides, `out` `[a, b,
/// c, outputs]`; which axes are what does not matter here.
///
/// # Errors
/// [`Error::Shape`] where the shapes do not fit the weights or each other, [`Error::Stride`] where
/// the output's last axis is not contiguous.
pub fn linear(
    x: View<'_, f32>,
    weights: &PackedLinear,
    out: ViewMut<'_, f32>,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
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
    let isa = settings.isa()?;
    if out.is_empty() {
        return Ok(isa);
    }
    let cut = Cut::new(&x, weights, settings);
    let crew = Crew { executor: settings.executor, threads: cut.threads };
    dispatch(isa, Drive { x, weights, out, cut, crew, scratch: workspace.scratch(cut.lines())? })?;
    Ok(isa)
}

/// The bytes of workspace that [`linear`] uses for this input.
pub fn linear_workspace_bytes(
    x: View<'_, f32>,
    weights: &PackedLinear,
    settings: &Settings<'_>,
) -> usize {
    if x.is_empty() { 0 } else { Cut::new(&x, weights, settings).lines() * size_of::<Line>() }
}

struct Drive<'a> {
    x: View<'a, f32>,
    weights: &'a PackedLinear,
    out: ViewMut<'a, f32>,
    cut: Cut,
    crew: Crew<'a>,
    scratch: &'a mut [f32],
}

impl Kernel for Drive<'_> {
    type Output = ();

    fn run<S: Simd>(mut self, simd: S) {
        let scratch =
            (std::mem::take(&mut self.scratch), Line::count(self.cut.part()) * Line::FLOATS);
        for_each_tile(
            self.crew,
            self.cut.items(),
            scratch,
            || (),
            |(_, scratch), index| {
                let (rows, panels) = self.cut.item(index, self.weights);
                self.item(simd, rows, panels, scratch);
            },
        );
    }
}

/// Where a row of the product lies.
#[derive(Clone, Copy)]
struct Place {
    /// On the leading axes of x and out.
    index: (usize, usize, usize),
    out: *mut f32,
}

impl Drive<'_> {
    /// Where the item's output rows begin, and where its input rows are.
    fn places(&self, rows: Range<usize>) -> [Place; MAX_TILES * BLOCK_Q] {
        let [_, b, c, _] = self.x.shape();
        let mut places = [Place { index: (0, 0, 0), out: std::ptr::null_mut() }; _];
        for (place, row) in places.iter_mut().zip(rows) {
            place.index = (row / (b * c), row / c % b, row % c);
            place.out = self.out.row(place.index.0, place.index.1, place.index.2);
        }
        places
    }

    fn item<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        panels: Range<usize>,
        scratch: &mut [f32],
    ) {
        let (packed, gathered) = scratch.split_at_mut(self.cut.tiles * BLOCK_Q * KC);
        let places = self.places(rows.clone());
        let columns = panels.start * PANEL..(panels.end * PANEL).min(self.weights.outputs);
        let tiles = || places[..rows.len()].chunks(BLOCK_Q);
        for start in (0..self.weights.inputs).step_by(KC) {
            let inputs = start..(start + KC).min(self.weights.inputs);
            for (tile, packed) in tiles().zip(packed.chunks_exact_mut(BLOCK_Q * KC)) {
                self.pack(simd, tile, &inputs, (packed, gathered));
            }
            for (tile, a) in tiles().zip(packed.chunks_exact(BLOCK_Q * KC)) {
                let mut c: [&mut [f32]; BLOCK_Q] = std::array::from_fn(|_| Default::default());
                for (c, place) in c.iter_mut().zip(tile) {
                    // SAFETY: the row exists and has `outputs` contiguous floats, of which these
                    // columns are this item's alone.
                    *c = unsafe {
                        let at = place.out.add(columns.start);
                        std::slice::from_raw_parts_mut(at, columns.len())
                    };
                }
                simd.vectorize(Product {
                    a,
                    weights: self.weights,
                    inputs: inputs.clone(),
                    columns: columns.clone(),
                    c: &mut c[..tile.len()],
                });
            }
        }
    }

    /// Some inputs of a tile's rows, transposed.
    fn pack<S: Simd>(
        &self,
        simd: S,
        tile: &[Place],
        inputs: &Range<usize>,
        (packed, gathered): (&mut [f32], &mut [f32]),
    ) {
        let count = tile.len();
        let mut rows: [&[f32]; BLOCK_Q] = [&[]; BLOCK_Q];
        if self.cut.gather {
            for (copy, place) in gathered.chunks_exact_mut(KC).zip(tile) {
                let (i, j, k) = place.index;
                for (x, input) in copy.iter_mut().zip(inputs.clone()) {
                    *x = *self.x.get([i, j, k, input]).unwrap_or(&0.0);
                }
            }
            for (slice, copy) in rows.iter_mut().zip(gathered.chunks_exact(KC)) {
                *slice = copy;
            }
        } else {
            for (slice, place) in rows.iter_mut().zip(tile) {
                let (i, j, k) = place.index;
                *slice = &self.x.rows(i, j).slice(k)[inputs.clone()];
            }
        }
        simd.vectorize(Pack {
            rows: &rows[..count],
            width: inputs.len(),
            lanes: count.next_multiple_of(S::LANES),
            dst: packed,
        });
    }
}

/// A tile of packed rows against some inputs of some panels.
struct Product<'a, 'c> {
    /// `[inputs][BLOCK_Q]`.
    a: &'a [f32],
    weights: &'a PackedLinear,
    /// With the first inputs outputs begin, at the bias if there is one.
    inputs: Range<usize>,
    /// From a panel's start on.
    columns: Range<usize>,
    /// The outputs' rows, at these columns.
    c: &'a mut [&'c mut [f32]],
}

impl Kernel for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (rows, width) = (self.c.len(), self.columns.len());
        assert!(rows <= BLOCK_Q && self.c.iter().all(|c| c.len() == width));
        assert!(self.a.len() >= self.inputs.len() * BLOCK_Q);
        assert!(self.columns.start.is_multiple_of(PANEL));
        assert!(self.columns.end <= self.weights.outputs);
        let covered = width.next_multiple_of(2 * S::LANES);
        outer::cover::<S, Self, true>(s, &mut self, (rows, covered), Order::Across);
    }
}

impl Tiled for Product<'_, '_> {
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
        // SAFETY: `run` checked the extents: a has b's depth, row + ROWS <= rows <= BLOCK_Q, and
        // b's rows are whole vectors. Outputs and bias are touched up to `columns` only.
        unsafe {
            let operands = Operands {
                a: self.a.as_ptr().add(row),
                b,
                first: 0,
                column: output % PANEL,
                depth: b.len(),
            };
            let sum = outer::sum::<S, ROWS, VECS, false, false>(s, operands);
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
                    let c = self.c[row + r].as_mut_ptr().wrapping_add(column);
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
