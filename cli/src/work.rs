//! What is timed: inputs, outputs and scratch made once, so that a run is the kernel alone.

use headwise::layers::{LayerWorkspace, Linear, MultiHeadAttention, Projections};
use headwise::{
    Algorithm, Alibi, At, AttentionOptions, Documents, Executor, Isa, KvStorage, Offsets, Outputs,
    PackedLinear, RelativeBias, Scale, ScoreTerm, Settings, Simd, Tensor, View, Workspace,
    attention_into, attention_with_into, linear, softmax_in_place, softmax_into,
};

use crate::Result;
use crate::cached_work::CachedWork;
use crate::compare::Closeness;
use crate::extents::Extents;
use crate::inputs::Normal;
use crate::precision_work::precision_work;
use crate::shapes::{
    AttentionShape, GemmShape, LayerShape, Padding, PoisonShape, Shape, SoftmaxShape, Term,
    TermShape,
};

/// A way to run work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As it is, by the fused kernels.
    Fused,
    /// By the plain three steps.
    Unfused,
    /// Fused, without the term or the padding whose cost is measured, or in `f32`.
    Without,
    /// Fused, with NaN wherever no query looks.
    Poisoned,
}

impl Way {
    pub(crate) fn algorithm(self) -> Algorithm {
        if self == Self::Unfused { Algorithm::Unfused } else { Algorithm::Auto }
    }
}

/// Something to run again and again.
pub trait Work: Send {
    /// Runs it once, on the executor's threads.
    ///
    /// # Errors
    /// Where the library refuses the call.
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()>;

    /// The memory whose reading bounds a run from below: the bandwidth is measured on it.
    fn operands(&self) -> Vec<&[u8]>;

    /// How close the last run in the first of its ways came to the reference in `f64`; `None` where that
    /// is not asked.
    ///
    /// # Errors
    /// Where there is no memory for it.
    fn closeness(&self) -> Result<Option<Closeness>> {
        Ok(None)
    }

    /// The floating-point operations in the micro-tiles of a run by the fused kernels, those on what
    /// is masked included; `None` where they are not counted.
    ///
    /// # Errors
    /// Where the library refuses the call.
    fn computed_flops(&self) -> Result<Option<f64>> {
        Ok(None)
    }
}

/// The work of a row of the table.
///
/// # Errors
/// Where the tensors do not fit the machine.
pub fn prepare(shape: &Shape, isa: Isa) -> Result<Box<dyn Work>> {
    Ok(match shape {
        Shape::Attention(_, shape) => match shape.cache {
            None => Box::new(AttentionWork::synthetic(shape, isa)?),
            Some(cache) => Box::new(CachedWork::new(shape, cache, isa)?),
        },
        Shape::Term(shape) => Box::new(TermWork::new(shape, isa)?),
        Shape::Precision(shape) => precision_work(shape, isa)?,
        Shape::Poison(shape) => Box::new(PoisonWork::new(shape, isa)?),
        Shape::Softmax(shape) => Box::new(SoftmaxWork::new(shape, isa)?),
        Shape::Gemm(shape) => Box::new(GemmWork::new(shape, isa)?),
        Shape::Layer(shape) => Box::new(LayerWork::new(shape, isa)?),
    })
}

/// The inputs of an attention call.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
    pub(crate) scale: Scale,
    /// Bottom-right.
    pub(crate) causal: bool,
}

impl Problem {
    /// Random inputs of a shape.
    pub(crate) fn synthetic(s: &AttentionShape) -> Result<Self> {
        let mut normal = Normal::new(1);
        let kv = [s.batch, s.kv_heads, s.seq_kv, s.head_dim];
        Ok(Self {
            query: normal.tensor([s.batch, s.q_heads, s.seq_q, s.head_dim])?,
            key: normal.tensor(kv)?,
            value: normal.tensor(kv)?,
            scale: Scale::InvSqrtHeadDim,
            causal: s.causal,
        })
    }

    /// The options that say what to compute.
    pub(crate) fn options(&self) -> AttentionOptions<'static> {
        let options = AttentionOptions::new().scale(self.scale);
        if self.causal { options.causal() } else { options }
    }

    pub(crate) fn extents(&self) -> Extents {
        Extents::new(self.query.shape(), self.value.shape())
    }
}

/// Attention into outputs that are reused.
pub(crate) struct AttentionWork {
    problem: Problem,
    /// Masks beside the causal one.
    window_left: Option<usize>,
    documents: Option<Vec<usize>>,
    isa: Isa,
    out: Tensor,
    workspace: Workspace,
}

impl AttentionWork {
    pub(crate) fn new(problem: Problem, isa: Isa) -> Result<Self> {
        let [batch, q_heads, seq_q, _] = problem.query.shape();
        let out = Tensor::zeros([batch, q_heads, seq_q, problem.value.shape()[3]])?;
        let (window_left, documents, workspace) = (None, None, Workspace::new());
        Ok(Self { problem, window_left, documents, isa, out, workspace })
    }

    pub(crate) fn synthetic(s: &AttentionShape, isa: Isa) -> Result<Self> {
        let (window_left, documents) = (s.window_left, s.documents());
        Ok(Self { window_left, documents, ..Self::new(Problem::synthetic(s)?, isa)? })
    }

    pub(crate) fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What the last run left.
    pub(crate) fn out(&self) -> &Tensor {
        &self.out
    }
}

impl Work for AttentionWork {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        let Self { problem, isa, out, workspace, .. } = self;
        let options = masked(problem.options(), self.window_left, self.documents.as_deref());
        let options = options.isa(*isa).algorithm(way.algorithm()).executor(executor);
        let (q, k, v) = (problem.query.view(), problem.key.view(), problem.value.view());
        attention_into(q, k, v, &options, Outputs::new(out.view_mut()), workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        vec![f32::as_bytes(self.problem.key.data()), f32::as_bytes(self.problem.value.data())]
    }

    fn computed_flops(&self) -> Result<Option<f64>> {
        let Self { problem, window_left, documents, .. } = self;
        let options = masked(problem.options(), *window_left, documents.as_deref()).isa(self.isa);
        let (q, k, v) = (problem.query.view(), problem.key.view(), problem.value.view());
        let pairs = options.computed_pairs(q, k, v)?;
        let widths = (problem.query.shape()[3] as f64, problem.value.shape()[3] as f64);
        Ok(Some(2.0 * (pairs.scores as f64 * widths.0 + pairs.values as f64 * widths.1)))
    }
}

/// Options with more masks.
pub(crate) fn masked<'a>(
    options: AttentionOptions<'a>,
    window_left: Option<usize>,
    documents: Option<&'a [usize]>,
) -> AttentionOptions<'a> {
    let options = options.window(window_left, None);
    match documents {
        Some(starts) => {
            let offsets = Offsets { query: starts, key: starts };
            options.documents(Documents::Offsets(offsets))
        }
        None => options,
    }
}

/// Attention with a term in its scores.
struct TermWork {
    attention: AttentionWork,
    term: Term,
    /// A dense bias of the whole problem, one for all heads.
    bias: Option<Tensor>,
    relative: RelativeBias,
}

impl TermWork {
    fn new(s: &TermShape, isa: Isa) -> Result<Self> {
        let attention = AttentionWork::synthetic(&s.attention, isa)?;
        let (seq_q, seq_kv, heads) = (s.attention.seq_q, s.attention.seq_kv, s.attention.q_heads);
        let mut normal = Normal::new(2);
        let bias =
            (s.term == Term::Bias).then(|| normal.tensor([1, 1, seq_q, seq_kv])).transpose()?;
        let embedding = normal.tensor([1, 1, 32, heads])?;
        let relative = RelativeBias::t5(embedding.data(), heads, 128, true)?;
        Ok(Self { attention, term: s.term, bias, relative })
    }
}

/// A term of the caller's that costs next to nothing.
struct Times(f32);

impl ScoreTerm for Times {
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, _at: &At<'_, S>) -> S::Vector {
        s.mul(score, s.splat(self.0))
    }
}

impl Work for TermWork {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        if way == Way::Without {
            return self.attention.run(way, executor);
        }
        let AttentionWork { problem, isa, out, workspace, .. } = &mut self.attention;
        let options = problem.options().isa(*isa).algorithm(way.algorithm()).executor(executor);
        let (q, k, v) = (problem.query.view(), problem.key.view(), problem.value.view());
        let outputs = Outputs::new(out.view_mut());
        let options = match (self.term, &self.bias) {
            (Term::Softcap, _) => options.softcap(50.0),
            (Term::Alibi, _) => options.alibi(Alibi::Standard),
            (Term::Relative, _) => options.relative_bias(&self.relative),
            (Term::Bias, Some(bias)) => options.bias(bias.view()),
            (Term::Bias, None) => options,
            (Term::Own, _) => {
                attention_with_into(q, k, v, &Times(0.75), &options, outputs, workspace)?;
                return Ok(());
            }
        };
        attention_into(q, k, v, &options, outputs, workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        self.attention.operands()
    }
}

/// Attention with padding among the keys.
struct PoisonWork {
    attention: AttentionWork,
    /// Keys and values that are NaN where they are padding.
    poisoned: [Tensor; 2],
    hidden: Hidden,
}

/// Padding as the library takes it.
struct Hidden {
    padding: Padding,
    /// Where each sequence's keys begin, and where they end.
    starts: Vec<usize>,
    ends: Vec<usize>,
    /// Which keys are no padding.
    mask: Vec<bool>,
}

impl Hidden {
    fn new(padding: Padding, s: &AttentionShape) -> Self {
        let (start, end) = match padding {
            Padding::Left(count) => (count, s.seq_kv),
            Padding::Right(count) => (0, s.seq_kv - count),
            Padding::Thirds => (0, s.seq_kv),
        };
        let mask = (0..s.seq_kv).map(|key| !padding.hides(key, s.seq_kv)).collect();
        Self { padding, starts: vec![start; s.batch], ends: vec![end; s.batch], mask }
    }

    fn hide<'a>(&'a self, options: AttentionOptions<'a>) -> Result<AttentionOptions<'a>> {
        Ok(match self.padding {
            Padding::Left(_) => options.key_starts(&self.starts),
            Padding::Right(_) => options.key_lengths(&self.ends),
            Padding::Thirds => options.mask(View::bhsd(&self.mask, [1, 1, 1, self.mask.len()])?),
        })
    }

    /// Keys or values from the start to the end, where they lie.
    fn cut<'a>(&self, tensor: &'a Tensor) -> Result<View<'a, f32>> {
        let [batch, heads, _, width] = tensor.shape();
        let (start, end) = (self.starts[0], self.ends[0]);
        let shape = [batch, heads, end - start, width];
        Ok(View::strided(tensor.data(), start * width, shape, tensor.view().strides())?)
    }
}

impl PoisonWork {
    fn new(s: &PoisonShape, isa: Isa) -> Result<Self> {
        let attention = AttentionWork::synthetic(&s.attention, isa)?;
        let hidden = Hidden::new(s.padding, &s.attention);
        let mut poisoned = [attention.problem.key.clone(), attention.problem.value.clone()];
        for tensor in &mut poisoned {
            let rows = tensor.data_mut().chunks_exact_mut(s.attention.head_dim);
            for (row, _) in rows.zip(hidden.mask.iter().cycle()).filter(|&(_, &sees)| !sees) {
                row.fill(f32::NAN);
            }
        }
        Ok(Self { attention, poisoned, hidden })
    }
}

impl Work for PoisonWork {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        let Self { attention, poisoned, hidden } = self;
        let AttentionWork { problem, isa, out, workspace, .. } = attention;
        let options = problem.options().isa(*isa).algorithm(way.algorithm()).executor(executor);
        let (q, k, v) = (problem.query.view(), &problem.key, &problem.value);
        let (k, v, options) = match way {
            Way::Without => {
                // The diagonal stays where it is.
                let offset = k.shape()[2] as i64 - q.shape()[2] as i64 - hidden.starts[0] as i64;
                let options = if problem.causal { options.causal_offset(offset) } else { options };
                (hidden.cut(k)?, hidden.cut(v)?, options)
            }
            Way::Poisoned => {
                let [k, v] = poisoned;
                (k.view(), v.view(), hidden.hide(options)?)
            }
            Way::Fused | Way::Unfused => (k.view(), v.view(), hidden.hide(options)?),
        };
        attention_into(q, k, v, &options, Outputs::new(out.view_mut()), workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        self.attention.operands()
    }
}

fn settings(isa: Isa, way: Way, executor: &dyn Executor) -> Settings<'_> {
    Settings::default().with_isa(isa).with_algorithm(way.algorithm()).with_executor(executor)
}

/// Softmax of the rows of a tensor.
struct SoftmaxWork {
    input: Tensor,
    /// `None`: in place. The input then changes from run to run, the work does not.
    output: Option<Tensor>,
    isa: Isa,
    workspace: Workspace,
}

impl SoftmaxWork {
    fn new(shape: &SoftmaxShape, isa: Isa) -> Result<Self> {
        let extents = [1, 1, shape.rows, shape.length];
        let input = Normal::new(1).tensor(extents)?;
        let output = (!shape.in_place).then(|| Tensor::zeros(extents)).transpose()?;
        Ok(Self { input, output, isa, workspace: Workspace::new() })
    }
}

impl Work for SoftmaxWork {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        let settings = settings(self.isa, way, executor);
        let workspace = &mut self.workspace;
        match &mut self.output {
            None => softmax_in_place(self.input.view_mut(), 1.0, &settings, workspace)?,
            Some(output) => {
                softmax_into(self.input.view(), output.view_mut(), 1.0, &settings, workspace)?
            }
        };
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        vec![f32::as_bytes(self.input.data())]
    }
}

/// What a product multiplies: `x` `[m, k]` and the weight of a linear layer, `[n, k]`.
///
/// # Errors
/// Where the tensors do not fit the machine.
pub fn gemm_operands(s: &GemmShape) -> Result<(Tensor, Tensor)> {
    let mut normal = Normal::new(1);
    Ok((normal.tensor([1, 1, s.m, s.k])?, normal.tensor([1, 1, s.n, s.k])?))
}

/// A linear layer's product into an output that is reused.
struct GemmWork {
    x: Tensor,
    weights: PackedLinear,
    out: Tensor,
    isa: Isa,
    workspace: Workspace,
}

impl GemmWork {
    fn new(s: &GemmShape, isa: Isa) -> Result<Self> {
        let (x, weight) = gemm_operands(s)?;
        let bias = vec![0.5; s.n];
        let weights = PackedLinear::pack(weight.view(), Some(&bias))?;
        let out = Tensor::zeros([1, 1, s.m, s.n])?;
        Ok(Self { x, weights, out, isa, workspace: Workspace::new() })
    }
}

impl Work for GemmWork {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        let settings = settings(self.isa, way, executor);
        let (x, out) = (self.x.view(), self.out.view_mut());
        linear(x, &self.weights, out, &settings, &mut self.workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        vec![f32::as_bytes(self.weights.packed())]
    }
}

/// Self-attention with its projections into an output that is reused.
struct LayerWork {
    x: Tensor,
    layer: MultiHeadAttention,
    /// Those of the layer, which keeps its packed ones to itself; they are as large.
    weights: [Tensor; 4],
    out: Tensor,
    isa: Isa,
    workspace: LayerWorkspace,
}

impl LayerWork {
    fn new(s: &LayerShape, isa: Isa) -> Result<Self> {
        let mut normal = Normal::new(1);
        let activations = [s.batch, 1, s.seq, s.embed_dim];
        let x = normal.tensor(activations)?;
        // Projections of deviation 1, as x.
        let deviation = (s.embed_dim as f32).sqrt().recip();
        let mut weight = || normal.scaled([1, 1, s.embed_dim, s.embed_dim], deviation);
        let weights = [weight()?, weight()?, weight()?, weight()?];
        let bias = vec![0.5; s.embed_dim];
        let linear = |weight: &Tensor| Linear::new(weight.view(), Some(&bias));
        let [query, key, value, out] = &weights;
        let projections =
            Projections { query: linear(query)?, key: linear(key)?, value: linear(value)? };
        let layer = MultiHeadAttention::new(projections, linear(out)?, s.heads)?;
        let out = Tensor::zeros(activations)?;
        Ok(Self { x, layer, weights, out, isa, workspace: LayerWorkspace::new() })
    }
}

impl Work for LayerWork {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        let options =
            AttentionOptions::new().isa(self.isa).algorithm(way.algorithm()).executor(executor);
        let (x, outputs) = (self.x.view(), Outputs::new(self.out.view_mut()));
        self.layer.forward_into(x, x, &options, outputs, &mut self.workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        self.weights.iter().map(|weight| f32::as_bytes(weight.data())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{Suite, select};
    use headwise::Rayon;

    /// The same numbers whatever the padding holds, and without it.
    #[test]
    fn padding_is_padding_whatever_it_holds() -> Result<()> {
        for shape in select(Some(Suite::Poison), None)? {
            let Shape::Poison(mut shape) = shape else { panic!("{shape:?}") };
            (shape.attention.seq_q, shape.attention.seq_kv) = (150, 300);
            let mut work = PoisonWork::new(&shape, Isa::widest())?;
            let mut run = |way| {
                work.run(way, &Rayon)?;
                Ok::<_, crate::Error>(work.attention.out.data().to_vec())
            };
            let [clean, poisoned] = [run(Way::Fused)?, run(Way::Poisoned)?];
            assert!(clean.iter().all(|x| x.is_finite()) && clean == poisoned, "{}", shape.name);
            let without = run(Way::Without)?;
            let error = |(a, b): (&f32, &f32)| (a - b).abs();
            let error = clean.iter().zip(&without).map(error).fold(0.0, f32::max);
            assert_eq!(error < 1e-5, shape.padding != Padding::Thirds, "{}: {error}", shape.name);
        }
        Ok(())
    }
}
