//! The options of a call and the calls themselves: each maps its options to the kernels'
//! `Problem`.

use headwise_kernels::{Masking, Problem, workspace_bytes, workspace_bytes_with};

use crate::{
    Algorithm, Alibi, Bias, Causal, Element, Executor, Isa, Outputs, RelativeBias, Result, Scale,
    ScoreTerm, Settings, Shape, Tensor, Terms, View, Window, Workspace,
};

/// What to compute beyond the plain case, and how to run it.
///
/// ```
/// use headwise::{AttentionOptions, Scale, Serial};
///
/// let options: AttentionOptions =
///     AttentionOptions::new().scale(Scale::Value(0.125)).causal().window(Some(511), None);
/// let on_this_thread = options.executor(&Serial);
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct AttentionOptions<'a, T = f32> {
    scale: Option<Scale>,
    masking: Masking<'a, T>,
    terms: Terms<'a>,
    settings: Settings<'a>,
    lse: bool,
    weights: bool,
}

impl<T> Default for AttentionOptions<'_, T> {
    fn default() -> Self {
        Self {
            scale: None,
            masking: Masking::default(),
            terms: Terms::default(),
            settings: Settings::default(),
            lse: false,
            weights: false,
        }
    }
}

impl<'a, T: Element> AttentionOptions<'a, T> {
    /// Every key visible, the function's own scale, the widest instruction set, the default
    /// executor.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The factor on the scores. Left alone, [`attention`] takes [`Scale::InvSqrtHeadDim`] and
    /// [`dot_product_attention`] [`Scale::One`].
    #[must_use]
    pub fn scale(mut self, scale: Scale) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Query `i` sees key `j` if `j <= i + seq_kv - seq_q`: the last query sees the last key.
    #[must_use]
    pub fn causal(self) -> Self {
        self.causal_with(Causal::BottomRight)
    }

    /// Query `i` sees key `j` if `j <= i`, as PyTorch's `is_causal` has it.
    #[must_use]
    pub fn causal_top_left(self) -> Self {
        self.causal_with(Causal::TopLeft)
    }

    /// Query `i` sees key `j` if `j <= i + offset`.
    #[must_use]
    pub fn causal_offset(self, offset: i64) -> Self {
        self.causal_with(Causal::Offset(offset))
    }

    /// A causal mask whose diagonal lies as `causal` says.
    #[must_use]
    pub fn causal_with(mut self, causal: Causal) -> Self {
        self.masking.causal = Some(causal);
        self
    }

    /// Query `i` sees at most `left` keys before its own position and `right` after it; see
    /// [`Window`].
    #[must_use]
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        self.masking.window = Window { left, right };
        self
    }

    /// Only the first `lengths[b]` keys of batch entry `b` exist. The causal diagonal stays where
    /// it is.
    #[must_use]
    pub fn key_lengths(mut self, lengths: &'a [usize]) -> Self {
        self.masking.key_lengths = Some(lengths);
        self
    }

    /// A boolean mask, `true` = attend: `[batch, q_heads, seq_q, seq_kv]`, where each of the first
    /// three may be 1.
    #[must_use]
    pub fn mask(mut self, mask: View<'a, bool>) -> Self {
        self.masking.boolean = Some(mask);
        self
    }

    /// A term added to the scaled and capped scores; exactly -inf masks. Shaped as a boolean mask, of
    /// the tensors' element type or, with the feature `half`, `f16` or `bf16`.
    #[must_use]
    pub fn bias(mut self, bias: impl Into<Bias<'a, T>>) -> Self {
        self.masking.bias = Some(bias.into());
        self
    }

    /// Scores become `cap * tanh(score / cap)`, before any bias.
    #[must_use]
    pub fn softcap(mut self, cap: f32) -> Self {
        self.terms.softcap = Some(cap);
        self
    }

    /// Attention with linear biases: `slope * (j - (i + offset))` is added to scores.
    #[must_use]
    pub fn alibi(mut self, alibi: Alibi<'a>) -> Self {
        self.terms.alibi = Some(alibi);
        self
    }

    /// A bias by the distance from query to key, as in T5.
    #[must_use]
    pub fn relative_bias(mut self, bias: &'a RelativeBias) -> Self {
        self.terms.relative_bias = Some(bias);
        self
    }

    /// For each query head the logit of a sink, which joins the denominator and has no value.
    #[must_use]
    pub fn sinks(mut self, sinks: &'a [f32]) -> Self {
        self.terms.sinks = Some(sinks);
        self
    }

    /// The instruction set, instead of the one that `HEADWISE_ISA` names or else the widest.
    #[must_use]
    pub fn isa(mut self, isa: Isa) -> Self {
        self.settings.isa = Some(isa);
        self
    }

    /// Who does the work, instead of the current rayon pool.
    #[must_use]
    pub fn executor(mut self, executor: &'a dyn Executor) -> Self {
        self.settings.executor = executor;
        self
    }

    /// At most this many threads.
    #[must_use]
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.settings.max_threads = Some(threads);
        self
    }

    /// The plain computation instead of the fused one, to compare.
    #[must_use]
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.settings.algorithm = algorithm;
        self
    }

    /// Also give the log-sum-exp of each row. (For the `_into` functions the outputs say it.)
    #[must_use]
    pub fn return_lse(mut self) -> Self {
        self.lse = true;
        self
    }

    /// Also give the attention weights, by a second pass. (For the `_into` functions the outputs
    /// say it.)
    #[must_use]
    pub fn return_weights(mut self) -> Self {
        self.weights = true;
        self
    }

    /// The bytes of [`Workspace`] with which [`attention_into`] on these tensors allocates
    /// nothing, as long as the executor does not either.
    ///
    /// # Errors
    /// Where the tensors do not fit each other.
    pub fn workspace_bytes(
        &self,
        query: View<'_, T>,
        key: View<'_, T>,
        value: View<'_, T>,
    ) -> Result<usize> {
        let problem = self.problem(query, key, value, Scale::One)?;
        Ok(workspace_bytes(&problem, &self.settings))
    }

    pub(crate) fn problem<'p>(
        &self,
        query: View<'p, T>,
        key: View<'p, T>,
        value: View<'p, T>,
        default: Scale,
    ) -> Result<Problem<'p, T>>
    where
        'a: 'p,
    {
        let scale = self.scale.unwrap_or(default);
        Problem::new(query, key, value, scale, &self.masking)?.with_terms(&self.terms)
    }

    pub(crate) fn settings(&self) -> &Settings<'a> {
        &self.settings
    }

    /// Makes what the options ask for and has `run` fill it. `out` is the output's shape, `[batch,
    /// q_heads, seq_q, seq_kv]` that of the weights.
    pub(crate) fn allocate(
        &self,
        out: Shape,
        [batch, q_heads, seq_q, seq_kv]: Shape,
        run: impl FnOnce(Outputs<'_, T>) -> Result<Isa>,
    ) -> Result<Attention<T>> {
        let rows = |inner| Tensor::zeros([batch, q_heads, seq_q, inner]);
        let mut out = Tensor::zeros(out)?;
        let mut lse = self.lse.then(|| rows(1)).transpose()?;
        let mut weights = self.weights.then(|| rows(seq_kv)).transpose()?;
        let mut outputs = Outputs::new(out.view_mut());
        if let Some(lse) = &mut lse {
            outputs = outputs.with_lse(lse.view_mut());
        }
        if let Some(weights) = &mut weights {
            outputs = outputs.with_weights(weights.view_mut());
        }
        let isa = run(outputs)?;
        Ok(Attention { out, lse, weights, isa })
    }

    /// Makes what the options ask for of `problem` and has `run` fill it.
    fn fill(
        &self,
        problem: &Problem<'_, T>,
        run: impl FnOnce(Outputs<'_, T>) -> Result<Isa>,
    ) -> Result<Attention<T>> {
        let d = problem.dims();
        let rows = |inner| [d.batch, d.q_heads, d.seq_q, inner];
        self.allocate(rows(d.value_dim), rows(d.seq_kv), run)
    }

    fn compute(&self, problem: &Problem<'_, T>) -> Result<Attention<T>> {
        self.fill(problem, |outputs| {
            headwise_kernels::attention(problem, outputs, &self.settings, &mut Workspace::new())
        })
    }
}

impl AttentionOptions<'_> {
    /// The bytes of [`Workspace`] with which [`attention_with_into`] on these tensors with a term of
    /// type `U` allocates nothing, as long as the executor does not either.
    ///
    /// # Errors
    /// Where the tensors do not fit each other.
    pub fn workspace_bytes_with<U: ScoreTerm>(
        &self,
        query: View<'_, f32>,
        key: View<'_, f32>,
        value: View<'_, f32>,
    ) -> Result<usize> {
        let problem = self.problem(query, key, value, Scale::One)?;
        Ok(workspace_bytes_with::<U>(&problem, &self.settings))
    }
}

/// The results of a call.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Attention<T: Element = f32> {
    /// `[batch, q_heads, seq_q, value_dim]`.
    pub out: Tensor<T>,
    /// The natural logarithm of each row's softmax denominator, scale and bias included,
    /// `[batch, q_heads, seq_q, 1]`, if asked for.
    pub lse: Option<Tensor<T>>,
    /// The attention weights, `[batch, q_heads, seq_q, seq_kv]`, if asked for.
    pub weights: Option<Tensor<T>>,
    /// The instruction set that ran.
    pub isa: Isa,
}

/// Scaled dot-product attention, `softmax(query key^T / sqrt(head_dim)) value` unless the options
/// say otherwise (Vaswani et al., "Attention Is All You Need", 2017, equation 1).
///
/// `query` is `[batch, q_heads, seq_q, head_dim]`, `key` `[batch, kv_heads, seq_kv, head_dim]`,
/// `value` `[batch, kv_heads, seq_kv, value_dim]`; `kv_heads` divides `q_heads`, and query head `h`
/// reads kv head `h / (q_heads / kv_heads)`.
///
/// # Errors
/// Where shapes, strides, masks or options do not fit; the message names the argument.
pub fn attention<T: Element>(
    query: View<'_, T>,
    key: View<'_, T>,
    value: View<'_, T>,
    options: &AttentionOptions<'_, T>,
) -> Result<Attention<T>> {
    options.compute(&options.problem(query, key, value, Scale::InvSqrtHeadDim)?)
}

/// [`attention`] into the caller's memory. With a workspace of
/// [`AttentionOptions::workspace_bytes`] the library allocates nothing.
///
/// ```
/// use headwise::{AttentionOptions, Outputs, View, ViewMut, Workspace, attention_into};
///
/// let qkv = [0.5_f32; 4 * 3 * 2 * 8]; // seq, (q, k, v), heads, dim: as one projection leaves it
/// let part = |n: usize| View::strided(&qkv, n * 16, [1, 2, 4, 8], [0, 8, 48, 1]);
/// let mut out = [0.0; 4 * 2 * 8];
/// let outputs = Outputs::new(ViewMut::bshd(&mut out, [1, 2, 4, 8])?);
/// let options = AttentionOptions::new().causal();
/// attention_into(part(0)?, part(1)?, part(2)?, &options, outputs, &mut Workspace::new())?;
/// assert_eq!(out, [0.5; 64]);
/// # Ok::<(), headwise::Error>(())
/// ```
///
/// # Errors
/// As [`attention`], and where the outputs do not fit; then nothing is written.
pub fn attention_into<T: Element>(
    query: View<'_, T>,
    key: View<'_, T>,
    value: View<'_, T>,
    options: &AttentionOptions<'_, T>,
    outputs: Outputs<'_, T>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem = options.problem(query, key, value, Scale::InvSqrtHeadDim)?;
    headwise_kernels::attention(&problem, outputs, &options.settings, workspace)
}

/// [`attention`] with a term of the caller's in its scores: behind scale, softcap and biases,
/// before the masks. The term is compiled into the kernel and runs on vectors; see [`ScoreTerm`],
/// [`scalar`](crate::scalar) for a closure on one score, and [`tiles`](crate::tiles) for a function
/// on scores in memory.
///
/// ```
/// use headwise::{AttentionOptions, At, ScoreTerm, Simd, View, attention_with};
///
/// /// Keys further than `reach` away, on either side, weigh e^-1 of what they would.
/// struct Faint {
///     reach: f32,
/// }
///
/// impl ScoreTerm for Faint {
///     #[inline(always)]
///     fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
///         let ahead = s.sub(at.key(), at.position());
///         let distance = s.max(ahead, s.sub(s.splat(0.0), ahead));
///         let far = s.lt(s.splat(self.reach), distance);
///         s.select(far, s.sub(score, s.splat(1.0)), score)
///     }
/// }
///
/// let x: Vec<f32> = (0..2 * 9 * 4).map(|x| (x as f32).sin()).collect();
/// let x = View::bhsd(&x, [1, 2, 9, 4])?;
/// let options = AttentionOptions::new().causal().softcap(30.0);
/// let result = attention_with(x, x, x, &Faint { reach: 3.0 }, &options)?;
/// assert_eq!(result.out.shape(), [1, 2, 9, 4]);
/// # Ok::<(), headwise::Error>(())
/// ```
///
/// # Errors
/// As [`attention`]; where a position lies beyond [`MAX_POSITION`](crate::MAX_POSITION); with
/// [`Algorithm::Unfused`].
pub fn attention_with<U: ScoreTerm>(
    query: View<'_, f32>,
    key: View<'_, f32>,
    value: View<'_, f32>,
    term: &U,
    options: &AttentionOptions<'_>,
) -> Result<Attention> {
    let problem = options.problem(query, key, value, Scale::InvSqrtHeadDim)?;
    options.fill(&problem, |outputs| {
        let workspace = &mut Workspace::new();
        headwise_kernels::attention_with(&problem, term, outputs, &options.settings, workspace)
    })
}

/// [`attention_with`] into the caller's memory. With a workspace of
/// [`AttentionOptions::workspace_bytes_with`] the library allocates nothing.
///
/// # Errors
/// As [`attention_with`], and where the outputs do not fit; then nothing is written.
pub fn attention_with_into<U: ScoreTerm>(
    query: View<'_, f32>,
    key: View<'_, f32>,
    value: View<'_, f32>,
    term: &U,
    options: &AttentionOptions<'_>,
    outputs: Outputs<'_, f32>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem = options.problem(query, key, value, Scale::InvSqrtHeadDim)?;
    headwise_kernels::attention_with(&problem, term, outputs, &options.settings, workspace)
}

/// Dot-product attention, `softmax(query key^T) value`: [`attention`] without a scale unless the
/// options name one.
///
/// # Errors
/// As [`attention`].
pub fn dot_product_attention<T: Element>(
    query: View<'_, T>,
    key: View<'_, T>,
    value: View<'_, T>,
    options: &AttentionOptions<'_, T>,
) -> Result<Attention<T>> {
    options.compute(&options.problem(query, key, value, Scale::One)?)
}

/// [`dot_product_attention`] into the caller's memory, as [`attention_into`].
///
/// # Errors
/// As [`attention_into`].
pub fn dot_product_attention_into<T: Element>(
    query: View<'_, T>,
    key: View<'_, T>,
    value: View<'_, T>,
    options: &AttentionOptions<'_, T>,
    outputs: Outputs<'_, T>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem = options.problem(query, key, value, Scale::One)?;
    headwise_kernels::attention(&problem, outputs, &options.settings, workspace)
}
