//! Attention the plain way: the scores in memory, softmax, a second product, each product by
//! `matrixmultiply`. It is the baseline of the benchmarks, a second oracle in the tests, and the
//! `f64` implementation.
//!
//! `matrixmultiply` packs both operands on every call and allocates for it.

use crate::Settings;
use crate::element::Element;
use crate::error::Result;
use crate::executor::{Crew, for_each_tile};
use crate::mask::Sequence;
use crate::mask::rows::RowBits;
use crate::microkernel::BLOCK_KV;
use crate::microkernel::row_softmax::RowSoftmax;
use crate::outputs::{Outputs, Stage};
use crate::plan::Plan;
use crate::problem::Problem;
use crate::simd::{Isa, Kernel, Simd, dispatch};
use crate::storage::{Format, StoredRows};
use crate::view::Rows;
use crate::workspace::{Line, Workspace};

/// Query rows whose scores are in memory at once.
const ROWS: usize = 256;

/// An element type with a product and a softmax of its own.
pub(crate) trait Plain: Element {
    /// `c = alpha a b`, `c` `m x n` with rows `ldc` apart, `a` `m x k` and `b` `k x n` with the
    /// given row and column strides.
    ///
    /// # Safety
    /// As `matrixmultiply::sgemm`: every element of the operands must be readable, of `c`
    /// writable.
    unsafe fn product(
        sizes: [usize; 3],
        alpha: f64,
        a: Operand<Self>,
        b: Operand<Self>,
        c: *mut Self,
        ldc: isize,
    );

    /// Softmax of a row, giving its maximum and the sum of its exponentials.
    fn softmax<S: Simd>(simd: S, row: &mut [Self]) -> (Self, Self);
}

/// A matrix to read: its first element, row stride and column stride.
pub(crate) type Operand<T> = (*const T, isize, isize);

macro_rules! product {
    ($gemm:ident) => {
        unsafe fn product(
            [m, k, n]: [usize; 3],
            alpha: f64,
            a: Operand<Self>,
            b: Operand<Self>,
            c: *mut Self,
            ldc: isize,
        ) {
            let alpha = Self::from_f64(alpha);
            // SAFETY: the caller's promise.
            unsafe {
                matrixmultiply::$gemm(m, k, n, alpha, a.0, a.1, a.2, b.0, b.1, b.2, 0.0, c, ldc, 1)
            }
        }
    };
}

impl Plain for f32 {
    product!(sgemm);

    fn softmax<S: Simd>(simd: S, row: &mut [f32]) -> (f32, f32) {
        simd.vectorize(RowSoftmax { row, scale: 1.0 })
    }
}

impl Plain for f64 {
    product!(dgemm);

    fn softmax<S: Simd>(_simd: S, row: &mut [f64]) -> (f64, f64) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shift = if max == f64::NEG_INFINITY { 0.0 } else { max };
        row.iter_mut().for_each(|x| *x = (*x - shift).exp());
        let sum: f64 = row.iter().sum();
        let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        row.iter_mut().for_each(|x| *x *= factor);
        (max, sum)
    }
}

/// A chunk of scores, in lines.
fn lines_per_thread<T: Element>(problem: &Problem<'_, T>) -> usize {
    let dims = problem.dims();
    let bytes = dims.seq_q.min(ROWS).saturating_mul(dims.seq_kv).saturating_mul(size_of::<T>());
    bytes.div_ceil(size_of::<Line>())
}

/// The lines of workspace that [`unfused`] uses with so many threads.
pub(crate) fn lines<T: Element>(problem: &Problem<'_, T>, threads: usize) -> usize {
    lines_per_thread(problem).saturating_mul(threads)
}

/// Attention by the three plain steps.
pub(crate) fn unfused<T: Plain>(
    problem: &Problem<'_, T>,
    outputs: &Outputs<'_, T>,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let isa = settings.isa()?;
    let threads = settings.threads_for(Plan::work(problem));
    let scratch = workspace.scratch(lines(problem, threads))?;
    let crew = Crew { executor: settings.executor, threads };
    dispatch(isa, Drive { problem, outputs, crew, scratch })?;
    Ok(isa)
}

struct Drive<'a, 'p, T: Element> {
    problem: &'a Problem<'p, T>,
    outputs: &'a Outputs<'p, T>,
    crew: Crew<'a>,
    scratch: &'a mut [T],
}

impl<T: Plain> Kernel for Drive<'_, '_, T> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let dims = self.problem.dims();
        let part = lines_per_thread(self.problem) * size_of::<Line>() / size_of::<T>();
        let chunks = dims.seq_q.div_ceil(ROWS);
        let tiles = self.problem.sequences() * dims.q_heads * chunks;
        // Sums over a kv head's rows are one thread's, or their order would be anybody's.
        let sums = self.outputs.column_sums.as_ref();
        let together = if sums.is_some() { dims.group_size() * chunks } else { 1 };
        for_each_tile(
            self.crew,
            tiles / together,
            (self.scratch, part),
            || (),
            |(_, scratch), unit| {
                if let Some(sums) = sums {
                    // SAFETY: the outputs were checked, and no other thread has this head.
                    unsafe { sums.clear(unit / dims.kv_heads, unit % dims.kv_heads, dims) };
                }
                for tile in unit * together..(unit + 1) * together {
                    let (head, chunk) = (tile / chunks, tile % chunks);
                    let sequence = self.problem.mask.sequence(head / dims.q_heads);
                    let rows = chunk * ROWS..((chunk + 1) * ROWS).min(sequence.seq_q);
                    if rows.is_empty() {
                        continue;
                    }
                    let scores = &mut scratch[..rows.len() * sequence.seq_kv];
                    let chunk = Chunk {
                        problem: self.problem,
                        outputs: self.outputs,
                        sequence,
                        head: head % dims.q_heads,
                        rows,
                    };
                    chunk.run(simd, scores);
                }
            },
        );
    }
}

/// Rows of the problem's own type in no pages.
fn native<T: Element>(of: StoredRows<'_>) -> Option<Rows<'_, T>> {
    let rows = of.rows.even(0, of.rows.len()).filter(|_| of.format == Format::Native);
    // SAFETY: the format says what they are.
    rows.map(|rows| unsafe { rows.typed::<T>() })
}

/// Some query rows of one head.
struct Chunk<'a, 'p, T: Element> {
    problem: &'a Problem<'p, T>,
    outputs: &'a Outputs<'p, T>,
    sequence: Sequence,
    head: usize,
    rows: std::ops::Range<usize>,
}

impl<'p, T: Plain> Chunk<'_, 'p, T> {
    fn run<S: Simd>(&self, simd: S, scores: &mut [T]) {
        let problem = self.problem;
        let dims = problem.dims();
        let kv_head = self.head / dims.group_size();
        let (seq_kv, rows) = (self.sequence.seq_kv, self.rows.len());
        let (batch, first) = (self.sequence.batch, self.sequence.query + self.rows.start);
        // In no pages, and no narrower: `Settings` knows.
        let (Some(query), Some(out)) = (problem.query.native(), self.outputs.out.native()) else {
            return;
        };
        let keys = native(problem.keys(&self.sequence, kv_head));
        let values = native(problem.values(&self.sequence, kv_head));
        let (Some(keys), Some(values)) = (keys, values) else { return };
        let (q_step, query) = (query.strides()[2], query.row(batch, self.head, first));
        if seq_kv > 0 {
            // SAFETY: the views vouch for these rows of head_dim contiguous elements, and scores
            // has room for rows x seq_kv.
            unsafe {
                T::product(
                    [rows, dims.head_dim, seq_kv],
                    problem.scale,
                    (query, q_step, 1),
                    (keys.row(0), 1, keys.stride()),
                    scores.as_mut_ptr(),
                    seq_kv as isize,
                );
            }
        }
        // The log-sum-exp of each row, -inf of none.
        let mut lse = [0.0; ROWS];
        for (r, i) in self.rows.clone().enumerate() {
            let row = &mut scores[r * seq_kv..(r + 1) * seq_kv];
            let stage = self.outputs.wanted_scores(self.row(i));
            match stage {
                Some(Stage::Scaled) => self.write_scores(i, row, |x| x),
                Some(Stage::Capped) => self.write_scores(i, row, |x| problem.terms.capped(x)),
                _ => {}
            }
            self.add_terms(i, row);
            self.mask(i, row);
            if stage == Some(Stage::Final) {
                self.write_scores(i, row, |x| x);
            }
            let (max, sum) = T::softmax(simd, row);
            let (max, sum) = (max.to_f64(), sum.to_f64());
            lse[r] = if sum == 0.0 { f64::NEG_INFINITY } else { max + sum.ln() };
        }
        let (out_step, out) = (out.strides()[2], out.row(batch, self.head, first));
        if seq_kv > 0 {
            // SAFETY: as above; the outputs were checked against the problem, and no other chunk
            // has these rows.
            unsafe {
                T::product(
                    [rows, seq_kv, dims.value_dim],
                    1.0,
                    (scores.as_ptr(), seq_kv as isize, 1),
                    (values.row(0), values.stride(), 1),
                    out,
                    out_step,
                );
            }
        }
        for (r, i) in self.rows.clone().enumerate() {
            let (share, lse) = self.beside_sink(lse[r]);
            let weights = &mut scores[r * seq_kv..(r + 1) * seq_kv];
            let out = out.wrapping_offset(r as isize * out_step);
            if seq_kv == 0 {
                // SAFETY: as above.
                (0..dims.value_dim).for_each(|d| unsafe { out.add(d).write(T::default()) });
            }
            // SAFETY: as above; by now the row is initialised.
            let out = unsafe { std::slice::from_raw_parts_mut(out, dims.value_dim) };
            // A masked value that is no number leaks through the product.
            let nothing = share == 0.0;
            if nothing || out.iter().any(|x| !x.to_f64().is_finite()) {
                self.careful(i, weights, out, nothing);
            }
            if self.problem.terms.sinks.is_some() {
                out.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() * share));
            }
            if let Some(channels) = self.problem.value_scales(kv_head) {
                let factors = channels.iter().map(|&factor| f64::from(factor));
                out.iter_mut().zip(factors).for_each(|(x, f)| *x = T::from_f64(x.to_f64() * f));
            }
            if let Some(view) = &self.outputs.lse {
                // SAFETY: as above; lse has one element for each row.
                unsafe { view.row(batch, self.head, first + r).write(T::from_f64(lse)) };
            }
            if self.outputs.want_weights(self.row(i)) {
                self.write_weights(i, weights, share);
            }
        }
    }

    /// Batch entry, head and query of a row, as the tensors count them.
    fn row(&self, i: usize) -> [usize; 3] {
        [self.sequence.batch, self.head, self.sequence.query + i]
    }

    /// What stands for the keys that only longer sequences have.
    fn beyond(&self, x: T) -> impl Iterator<Item = T> {
        std::iter::repeat_n(x, self.problem.dims().seq_kv - self.sequence.seq_kv)
    }

    /// Writes scores to where they are wanted, those of hidden keys as -inf.
    fn write_scores(&self, i: usize, scores: &[T], stage: impl Fn(f64) -> f64) {
        let Some((_, picked)) = &self.outputs.scores else { return };
        let mut seen = Visible::new(self, i);
        let numbers = scores.iter().enumerate().map(|(j, x)| {
            T::from_f64(if seen.sees(j) { stage(x.to_f64()) } else { f64::NEG_INFINITY })
        });
        let numbers = numbers.chain(self.beyond(T::from_f64(f64::NEG_INFINITY)));
        // SAFETY: the outputs were checked against the problem, and no other chunk has this row.
        unsafe { picked.write(self.row(i), 0, numbers) };
    }

    /// Makes of a row's weights what is wanted of them; `share` is the keys' part beside the sink, 0
    /// of a row that sees nothing. -0.0 stands where a key is hidden.
    fn write_weights(&self, i: usize, weights: &mut [T], share: f64) {
        let at = self.row(i);
        let mut seen = Visible::new(self, i);
        for (j, weight) in weights.iter_mut().enumerate() {
            let shared = if seen.sees(j) { weight.to_f64() * share } else { -0.0 };
            *weight = T::from_f64(shared);
        }
        // SAFETY: as in `write_scores`; sums are cleared and in the hands of one thread.
        unsafe {
            if let Some(picked) = &self.outputs.weights {
                let zero = T::default();
                let shown = weights.iter().map(|&weight| T::sum(weight, zero));
                picked.write(at, 0, shown.chain(self.beyond(zero)));
            }
            if let Some(top_k) = &self.outputs.top_k {
                let mut held = 0;
                top_k.offer(at, &mut held, 0, if share == 0.0 { &[] } else { weights });
                top_k.finish(at, held);
            }
            if let Some(sums) = &self.outputs.column_sums {
                sums.add((at[0], self.head), self.problem.dims(), 0, weights);
            }
        }
    }

    /// The dense bias of key `j`, 0 without one.
    fn bias(&self, i: usize, j: usize) -> f64 {
        let mut bias = [T::default()];
        if let Some(dense) = &self.problem.bias {
            let [batch, head, i] = self.row(i);
            dense.widen((batch, head), i, j, &mut bias);
        }
        bias[0].to_f64()
    }

    /// Softcap and biases.
    fn add_terms(&self, i: usize, scores: &mut [T]) {
        let Problem { terms, bias, .. } = self.problem;
        if bias.is_none() && !terms.change_scores() {
            return;
        }
        let head = (self.head, self.problem.dims().q_heads);
        for (j, x) in scores.iter_mut().enumerate() {
            let distance = j as i128 - self.problem.position(&self.sequence, i);
            let bias = self.bias(i, j) + terms.bias(head, distance);
            let masked = bias == f64::NEG_INFINITY;
            *x = T::from_f64(if masked { bias } else { terms.capped(x.to_f64()) + bias });
        }
    }

    /// The keys' share in the weights beside the head's sink, 0 where there is nothing, and the
    /// log-sum-exp of both.
    fn beside_sink(&self, lse: f64) -> (f64, f64) {
        let sink = self.problem.terms.sink(self.head);
        let top = if sink > lse { sink } else { lse };
        if top == f64::NEG_INFINITY {
            return (0.0, top);
        }
        let sum = (lse - top).exp() + (sink - top).exp();
        ((lse - top).exp() / sum, top + sum.ln())
    }

    /// Hides what is masked.
    fn mask(&self, i: usize, scores: &mut [T]) {
        let hidden = T::from_f64(f64::NEG_INFINITY);
        let keys = self.problem.mask.range(&self.sequence, i);
        scores[keys.end..].fill(hidden);
        scores[..keys.start].fill(hidden);
        // Where a bias hides a key it has made its score -inf.
        if self.problem.mask.has_bits() {
            let mut seen = Visible::new(self, i);
            for j in keys {
                scores[j] = if seen.sees(j) { scores[j] } else { hidden };
            }
        }
    }

    /// The row's output from its weights, masked values left out.
    fn careful(&self, i: usize, weights: &[T], out: &mut [T], nothing: bool) {
        let kv_head = self.head / self.problem.dims().group_size();
        let Some(values) = native::<T>(self.problem.values(&self.sequence, kv_head)) else {
            return;
        };
        for (d, out) in out.iter_mut().enumerate() {
            let mut seen = Visible::new(self, i);
            let mut sum = 0.0;
            for (j, weight) in weights.iter().enumerate() {
                if !nothing && seen.sees(j) {
                    sum += weight.to_f64() * values.slice(j)[d].to_f64();
                }
            }
            *out = T::from_f64(sum);
        }
    }
}

/// Which keys a row sees, asked in ascending order.
struct Visible<'a, 'p, T: Element> {
    chunk: &'a Chunk<'a, 'p, T>,
    i: usize,
    range: std::ops::Range<usize>,
    /// The block that was asked for last, and its bits.
    block: usize,
    bits: u128,
}

impl<'a, 'p, T: Plain> Visible<'a, 'p, T> {
    fn new(chunk: &'a Chunk<'a, 'p, T>, i: usize) -> Self {
        let range = chunk.problem.mask.range(&chunk.sequence, i);
        Self { chunk, i, range, block: usize::MAX, bits: 0 }
    }

    fn sees(&mut self, j: usize) -> bool {
        let (block, key) = (j / BLOCK_KV * BLOCK_KV, j % BLOCK_KV);
        if self.block != block {
            let Chunk { problem, sequence, head, .. } = self.chunk;
            let keys = block..(block + BLOCK_KV).min(sequence.seq_kv);
            self.block = block;
            self.bits = RowBits::new(&problem.mask, sequence, keys).get(*head, self.i);
        }
        self.range.contains(&j)
            && self.bits >> key & 1 == 1
            && self.chunk.bias(self.i, j) != f64::NEG_INFINITY
    }
}
