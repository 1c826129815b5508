//! The options of a call and the calls themselves: each maps its options to the kernels'
//! `Problem`.

use headwise_kernels::{Masking, Problem, computed_pairs, workspace_bytes, workspace_bytes_with};

use crate::{
    Algorithm, Alibi, AttentionPlan, BlockPattern, Causal, Closeness, Documents, Element, Error,
    Executor, Explanation, Input, Isa, KvStorage, KvView, Offsets, Outputs, Pairs, PlanBuffer,
    Precision, RelativeBias, Result, Scale, ScoreTerm, Settings, Shape, Storage, Tensor, Terms,
    Tree, View, Window, Workspace,
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
    value_scales: Option<&'a [f32]>,
    precision: Precision,
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
            value_scales: None,
            precision: Precision::Full,
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

    /// The first `prefix[s]` keys of sequence `s` are visible to all its queries in spite of a causal
    /// mask (prefix-LM); one number stands for all sequences.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, View, attention};
    /// # let data = [0.5_f32; 6 * 4];
    /// # let x = View::bhsd(&data, [1, 1, 6, 4])?;
    /// // Three keys of prompt, then three that see what is before them.
    /// let options = AttentionOptions::new().causal().prefix(&[3]).return_weights();
    /// let weights = attention(x, x, x, &options)?.weights.expect("asked for");
    /// let seen = |row: usize| weights.data()[6 * row..][..6].iter().filter(|w| **w > 0.0).count();
    /// assert_eq!([0, 1, 2, 3, 4, 5].map(seen), [3, 3, 3, 4, 5, 6]);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn prefix(mut self, prefix: &'a [usize]) -> Self {
        self.masking.prefix = Some(prefix);
        self
    }

    /// Only the first `lengths[b]` keys of batch entry `b`, or of sequence `b` of a ragged batch,
    /// exist: right padding. The causal diagonal stays where it is unless it is
    /// [`Causal::AtLength`].
    #[must_use]
    pub fn key_lengths(mut self, lengths: &'a [usize]) -> Self {
        self.masking.key_lengths = Some(lengths);
        self
    }

    /// The first `starts[b]` keys of batch entry `b`, or of sequence `b` of a ragged batch, do not
    /// exist: left padding. The causal diagonal stays where it is.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, View, attention};
    /// # let data = [0.5_f32; 2 * 6 * 4];
    /// # let x = View::bhsd(&data, [2, 1, 6, 4])?;
    /// // Six tokens, and four behind two of padding.
    /// let options = AttentionOptions::new().causal().key_starts(&[0, 2]);
    /// let result = attention(x, x, x, &options)?;
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn key_starts(mut self, starts: &'a [usize]) -> Self {
        self.masking.key_starts = Some(starts);
        self
    }

    /// Packed documents: a query sees the keys of its own document alone. Under a causal mask, or a
    /// window, positions count on over the documents.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, Documents, Offsets, View, attention};
    /// # let data: Vec<f32> = (0..6 * 4).map(|i| (i as f32).sin()).collect();
    /// # let x = View::bhsd(&data, [1, 1, 6, 4])?;
    /// // A document of four tokens and one of two, said in two ways.
    /// let ids = Documents::Ids { query: &[0, 0, 0, 0, 1, 1], key: &[0, 0, 0, 0, 1, 1] };
    /// let offsets = Documents::Offsets(Offsets { query: &[0, 4, 6], key: &[0, 4, 6] });
    /// let causal = AttentionOptions::new().causal();
    /// let a = attention(x, x, x, &causal.documents(ids))?;
    /// let b = attention(x, x, x, &causal.documents(offsets))?;
    /// assert_eq!(a.out, b.out);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn documents(mut self, documents: Documents<'a>) -> Self {
        self.masking.documents = Some(documents);
        self
    }

    /// A tree over the last keys, as speculative decoding drafts it: a node sees the keys before the
    /// tree, its ancestors and itself.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, Tree, View, attention};
    /// # let data = [0.5_f32; 9 * 4];
    /// # let keys = View::bhsd(&data, [1, 1, 9, 4])?;
    /// # let queries = View::bhsd(&data, [1, 1, 4, 4])?;
    /// // A cache of five tokens and four drafted ones: a -> b -> c, and a -> d.
    /// let parents = [None, Some(0), Some(1), Some(0)];
    /// let options = AttentionOptions::new().tree(Tree::of_parents(4, &parents)).return_weights();
    /// let weights = attention(queries, keys, keys, &options)?.weights.expect("asked for");
    /// assert_eq!(weights.data()[3 * 9 + 5..], [1.0 / 7.0, 0.0, 0.0, 1.0 / 7.0]);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn tree(mut self, tree: Tree<'a>) -> Self {
        self.masking.tree = Some(tree);
        self
    }

    /// A block-sparse pattern: which blocks of keys each block of queries sees. Blocks that nobody
    /// sees are not read.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, BlockPattern, View, attention};
    /// # let data = [0.5_f32; 256 * 4];
    /// # let x = View::bhsd(&data, [1, 1, 256, 4])?;
    /// // Four blocks of 64 queries; each sees the first block of keys and its own.
    /// let visible: Vec<bool> = (0..4 * 4).map(|n| n % 4 == 0 || n % 4 == n / 4).collect();
    /// let visible = View::bhsd(&visible, [1, 1, 4, 4])?;
    /// let blocks = BlockPattern { block_q: 64, block_kv: 64, visible };
    /// let result = attention(x, x, x, &AttentionOptions::new().causal().blocks(blocks))?;
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn blocks(mut self, blocks: BlockPattern<'a>) -> Self {
        self.masking.blocks = Some(blocks);
        self
    }

    /// A boolean mask, `true` = attend: `[batch, q_heads, seq_q, seq_kv]`, where each of the first
    /// three may be 1. Of a ragged batch the rows are the packed queries, the columns the keys of the
    /// query's own sequence, as many as the longest has.
    #[must_use]
    pub fn mask(mut self, mask: View<'a, bool>) -> Self {
        self.masking.boolean = Some(mask);
        self
    }

    /// A boolean mask in bits, eight keys to a byte and the lowest bit first, as
    /// `numpy.packbits(mask, axis=-1, bitorder="little")` has it: shaped as [`mask`](Self::mask) with
    /// a last axis of `seq_kv / 8` bytes, rounded up.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, View, attention};
    /// # let data = [0.5_f32; 9 * 4];
    /// # let x = View::bhsd(&data, [1, 1, 9, 4])?;
    /// let every_other = [0b0101_0101, 0b1];
    /// let mask = View::bhsd(&every_other, [1, 1, 1, 2])?;
    /// let result = attention(x, x, x, &AttentionOptions::new().packed_mask(mask))?;
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn packed_mask(mut self, mask: View<'a, u8>) -> Self {
        self.masking.packed = Some(mask);
        self
    }

    /// A ragged batch: the tensors have one batch entry, in which sequences of different lengths lie
    /// one behind the other. Each list has the first query, or key, of every sequence and the length of
    /// the tensor (`cu_seqlens`). A query sees the keys of its own sequence, whose positions count from
    /// 0 for every other mask; its bits are those of a call with that sequence alone.
    ///
    /// Weights are `[1, q_heads, total queries, keys of the longest sequence]`.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, View, attention};
    /// let data: Vec<f32> = (0..7 * 4).map(|i| (i as f32).sin()).collect();
    /// let packed = View::bhsd(&data, [1, 1, 7, 4])?;
    /// let options = AttentionOptions::new().causal();
    /// let all = attention(packed, packed, packed, &options.ragged(&[0, 2, 7], &[0, 2, 7]))?;
    /// let second = View::bhsd(&data[2 * 4..], [1, 1, 5, 4])?;
    /// let alone = attention(second, second, second, &options)?;
    /// assert_eq!(all.out.data()[2 * 4..], *alone.out.data());
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn ragged(mut self, query: &'a [usize], key: &'a [usize]) -> Self {
        self.masking.ragged = Some(Offsets { query, key });
        self
    }

    /// For [`attention_cached`]: the queries of all sequences lie one behind the other in one batch
    /// entry, as many of each as it has new tokens: prefilling and decoding in one call. The list has the
    /// first query of every sequence and the length of the tensor.
    ///
    /// ```
    /// use headwise::{AttentionOptions, ContiguousCache, NewTokens, View, attention_cached};
    /// use headwise::kv_cache::KvShape;
    ///
    /// let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
    /// let mut cache = ContiguousCache::new(shape, 2, 16)?;
    /// let rows = [0.5_f32; 6 * 4];
    /// let packed = View::bhsd(&rows, [1, 1, 6, 4])?;
    /// // A prompt of five tokens for one sequence, the next token of another.
    /// cache.append(&NewTokens::new(packed, packed).ragged(&[0, 5, 6]))?;
    /// let options = AttentionOptions::new().causal().query_offsets(&[0, 5, 6]);
    /// let result = attention_cached(packed, &cache.view(), &options)?;
    /// assert_eq!(result.out.data(), [0.5; 6 * 4]);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn query_offsets(mut self, offsets: &'a [usize]) -> Self {
        self.masking.query_offsets = Some(offsets);
        self
    }

    /// A term added to the scaled and capped scores; exactly -inf masks. Shaped as a boolean mask, of
    /// the type that is computed in or, beside `f32`, of `f16` or `bf16`.
    #[must_use]
    pub fn bias(mut self, bias: impl Into<Input<'a, T>>) -> Self {
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

    /// Values are stored divided by these, a positive factor for each channel of each kv head, `[kv_heads *
    /// value_dim]`: the output is multiplied by them. Where some channels are far larger than others, what is
    /// stored in [`Int8`](crate::Int8) is the more exact;
    /// [`NewTokens::value_scales`](crate::kv_cache::NewTokens::value_scales) divides what goes into a cache.
    #[must_use]
    pub fn value_scales(mut self, scales: &'a [f32]) -> Self {
        self.value_scales = Some(scales);
        self
    }

    /// For each query head the logit of a sink, which joins the denominator and has no value.
    #[must_use]
    pub fn sinks(mut self, sinks: &'a [f32]) -> Self {
        self.terms.sinks = Some(sinks);
        self
    }

    /// How exact the products are. With [`Precision::Fast`] long prompts take about half the time of `f32`, at
    /// an error of about 1 % of the output; [`AttentionOptions::measure_precision`] tells what it is on given tensors,
    /// [`AttentionOptions::explain`] whether a call takes it up.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, Precision, View, attention};
    /// # let data: Vec<f32> = (0..300 * 64).map(|i| (i as f32).sin()).collect();
    /// # let x = View::bhsd(&data, [1, 1, 300, 64])?;
    /// let options = AttentionOptions::new().causal().precision(Precision::Fast);
    /// let result = attention(x, x, x, &options)?;
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
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

    /// The same options for tensors that are computed in another type: for who learns the type of their
    /// tensors at run time.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, View, attention};
    /// let options: AttentionOptions = AttentionOptions::new().causal().softcap(30.0);
    /// let x = [0.5_f64; 6 * 4];
    /// let x = View::bhsd(&x, [1, 1, 6, 4])?;
    /// let result = attention(x, x, x, &options.of_element()?)?;
    /// # Ok::<(), headwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Value`] with a bias, whose numbers are of this type.
    pub fn of_element<U: Element>(&self) -> Result<AttentionOptions<'a, U>> {
        let masking = self.masking.of_element().ok_or_else(|| Error::Value {
            argument: "bias",
            got: "numbers of another type than is computed in".into(),
            expected: "options without a bias, to add one of that type".into(),
        })?;
        let Self { scale, masking: _, terms, value_scales, precision, settings, lse, weights } =
            *self;
        Ok(AttentionOptions {
            scale,
            masking,
            terms,
            value_scales,
            precision,
            settings,
            lse,
            weights,
        })
    }

    /// The bytes of [`Workspace`] with which [`attention_into`] on these tensors allocates
    /// nothing, as long as the executor does not either.
    ///
    /// # Errors
    /// Where the tensors do not fit each other.
    pub fn workspace_bytes<'t>(
        &self,
        query: impl Into<Input<'t, T>>,
        key: impl Into<Input<'t, T>>,
        value: impl Into<Input<'t, T>>,
    ) -> Result<usize> {
        let problem = self.problem([query.into(), key.into(), value.into()], Scale::One)?;
        Ok(workspace_bytes(&problem, &self.settings))
    }

    /// How many pairs of a query and a key are visible, and how many the fused kernel computes.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, View};
    /// # let data = [0.5_f32; 4096 * 4];
    /// # let x = View::bhsd(&data, [1, 1, 4096, 4])?;
    /// let full = AttentionOptions::new().causal();
    /// let window = full.window(Some(511), None);
    /// let pairs = |options: &AttentionOptions| options.computed_pairs(x, x, x);
    /// assert!(pairs(&full)?.scores > 3 * pairs(&window)?.scores);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the tensors do not fit each other.
    pub fn computed_pairs<'t>(
        &self,
        query: impl Into<Input<'t, T>>,
        key: impl Into<Input<'t, T>>,
        value: impl Into<Input<'t, T>>,
    ) -> Result<Pairs> {
        computed_pairs(
            &self.problem([query.into(), key.into(), value.into()], Scale::One)?,
            &self.settings,
        )
    }

    /// How [`attention_into`] would compute these tensors with these options, choice by choice.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, View};
    /// # let data = [0.5_f32; 64 * 16];
    /// # let x = View::bhsd(&data, [1, 1, 64, 16])?;
    /// let options: AttentionOptions = AttentionOptions::new().causal();
    /// println!("{}", options.explain(x, x, x)?);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the tensors do not fit each other, and as [`Settings::isa`].
    pub fn explain<'t>(
        &self,
        query: impl Into<Input<'t, T>>,
        key: impl Into<Input<'t, T>>,
        value: impl Into<Input<'t, T>>,
    ) -> Result<Explanation> {
        let problem = self.problem([query.into(), key.into(), value.into()], Scale::One)?;
        headwise_kernels::explain(&problem, &self.settings)
    }

    /// The width of the weights over `seq_kv` keys.
    pub(crate) fn weights_width(&self, seq_kv: usize) -> usize {
        let lengths = |ragged: Offsets<'a>| {
            ragged.key.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max()
        };
        self.masking.ragged.map_or(seq_kv, |ragged| lengths(ragged).unwrap_or(0))
    }

    pub(crate) fn problem<'p>(
        &self,
        [query, key, value]: [Input<'p, T>; 3],
        default: Scale,
    ) -> Result<Problem<'p, T>>
    where
        'a: 'p,
    {
        let scale = self.scale.unwrap_or(default);
        self.complete(Problem::new(query, key, value, scale, &self.masking)?)
    }

    /// A problem with all that is no mask.
    fn complete<'p>(&self, problem: Problem<'p, T>) -> Result<Problem<'p, T>>
    where
        'a: 'p,
    {
        let problem = problem.with_terms(&self.terms)?.with_precision(self.precision);
        match self.value_scales {
            Some(scales) => problem.with_value_scales(scales),
            None => Ok(problem),
        }
    }

    pub(crate) fn settings(&self) -> &Settings<'a> {
        &self.settings
    }

    /// Makes what the options ask for and has `run` fill it. `out` is the output's shape, `[batch,
    /// q_heads, seq_q, seq_kv]` that of the weights.
    pub(crate) fn allocate<S: Storage<Compute = T>>(
        &self,
        out: Shape,
        [batch, q_heads, seq_q, seq_kv]: Shape,
        run: impl FnOnce(Outputs<'_, T>) -> Result<Isa>,
    ) -> Result<Attention<S>> {
        let rows = |inner| Tensor::zeros([batch, q_heads, seq_q, inner]);
        let mut out = Tensor::zeros(out)?;
        let mut lse = self.lse.then(|| rows(1)).transpose()?;
        let mut weights = self.weights.then(|| rows(seq_kv)).transpose()?;
        let mut outputs = Outputs::new(S::output(out.view_mut()));
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
    fn fill<S: Storage<Compute = T>>(
        &self,
        problem: &Problem<'_, T>,
        run: impl FnOnce(Outputs<'_, T>) -> Result<Isa>,
    ) -> Result<Attention<S>> {
        let d = problem.dims();
        let rows = |inner| [d.batch, d.q_heads, d.seq_q, inner];
        self.allocate(rows(d.value_dim), rows(d.seq_kv), run)
    }

    fn compute<S: Storage<Compute = T>>(&self, problem: &Problem<'_, T>) -> Result<Attention<S>> {
        self.fill(problem, |outputs| {
            headwise_kernels::attention(problem, outputs, &self.settings, &mut Workspace::new())
        })
    }
}

impl AttentionOptions<'_> {
    /// How close the output of these options' precision is to that of [`Precision::Full`], on these tensors:
    /// both are computed.
    ///
    /// ```
    /// # use headwise::{AttentionOptions, Precision, View};
    /// # let data: Vec<f32> = (0..300 * 64).map(|i| (i as f32).sin()).collect();
    /// # let x = View::bhsd(&data, [1, 1, 300, 64])?;
    /// let options = AttentionOptions::new().causal().precision(Precision::Fast);
    /// let close = options.measure_precision(x, x, x)?;
    /// assert!(close.relative_l1 < 0.05 && close.cosine > 0.999);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`attention`].
    pub fn measure_precision<'t>(
        &self,
        query: impl Into<Input<'t, f32>>,
        key: impl Into<Input<'t, f32>>,
        value: impl Into<Input<'t, f32>>,
    ) -> Result<Closeness> {
        let problem =
            self.problem([query.into(), key.into(), value.into()], Scale::InvSqrtHeadDim)?;
        self.measure(&problem)
    }

    /// The bytes of [`Workspace`] with which [`attention_with_into`] on these tensors with a term of
    /// type `U` allocates nothing, as long as the executor does not either.
    ///
    /// # Errors
    /// Where the tensors do not fit each other.
    pub fn workspace_bytes_with<'t, U: ScoreTerm>(
        &self,
        query: impl Into<Input<'t, f32>>,
        key: impl Into<Input<'t, f32>>,
        value: impl Into<Input<'t, f32>>,
    ) -> Result<usize> {
        let problem = self.problem([query.into(), key.into(), value.into()], Scale::One)?;
        Ok(workspace_bytes_with::<U>(&problem, &self.settings))
    }
}

impl<'a> AttentionOptions<'a> {
    /// The bytes of [`Workspace`] with which [`attention_cached_into`] allocates nothing, as long as the
    /// executor does not either.
    ///
    /// # Errors
    /// Where the queries do not fit the cache.
    pub fn workspace_bytes_cached<'t, K: KvStorage<Compute = f32>>(
        &self,
        query: impl Into<Input<'t, f32>>,
        cache: &KvView<'t, K>,
    ) -> Result<usize> {
        Ok(workspace_bytes(&self.cached(query.into(), cache)?, &self.settings))
    }

    /// As [`AttentionOptions::workspace_bytes_cached`], of [`attention_cached_with_into`] with a term of
    /// type `U`.
    ///
    /// # Errors
    /// Where the queries do not fit the cache.
    pub fn workspace_bytes_cached_with<'t, U: ScoreTerm, K: KvStorage<Compute = f32>>(
        &self,
        query: impl Into<Input<'t, f32>>,
        cache: &KvView<'t, K>,
    ) -> Result<usize> {
        Ok(workspace_bytes_with::<U>(&self.cached(query.into(), cache)?, &self.settings))
    }

    /// As [`AttentionOptions::explain`], of [`attention_cached_into`].
    ///
    /// ```
    /// use headwise::kv_cache::KvShape;
    /// use headwise::{AttentionOptions, ContiguousCache, Int8, NewTokens, Precision, View};
    ///
    /// let shape = KvShape { kv_heads: 1, head_dim: 64, value_dim: 64 };
    /// let mut cache = ContiguousCache::<Int8>::with_storage(shape, 1, 300)?;
    /// let rows = vec![0.5_f32; 300 * 64];
    /// let rows = View::bhsd(&rows, [1, 1, 300, 64])?;
    /// cache.append(&NewTokens::new(rows, rows))?;
    /// let query = View::bhsd(&[0.1_f32; 4 * 64], [1, 4, 1, 64])?;
    /// let options = AttentionOptions::new().precision(Precision::Fast);
    /// println!("{}", options.explain_cached(query, &cache.view())?);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the queries do not fit the cache, and as [`Settings::isa`].
    pub fn explain_cached<'t, K: KvStorage<Compute = f32>>(
        &self,
        query: impl Into<Input<'t, f32>>,
        cache: &KvView<'t, K>,
    ) -> Result<Explanation> {
        headwise_kernels::explain(&self.cached(query.into(), cache)?, &self.settings)
    }

    /// As [`AttentionOptions::measure_precision`], of [`attention_cached_into`].
    ///
    /// # Errors
    /// As [`attention_cached`].
    pub fn measure_precision_cached<'t, K: KvStorage<Compute = f32>>(
        &self,
        query: impl Into<Input<'t, f32>>,
        cache: &KvView<'t, K>,
    ) -> Result<Closeness> {
        self.measure(&self.cached(query.into(), cache)?)
    }

    /// How close the output of a problem is to that in full precision.
    fn measure(&self, problem: &Problem<'_, f32>) -> Result<Closeness> {
        let alone = Self { lse: false, weights: false, ..*self };
        let got: Attention = alone.compute(problem)?;
        let full: Attention = alone.compute(&problem.with_precision(Precision::Full))?;
        Ok(Closeness::of(got.out.data(), full.out.data().iter().map(|&x| x.into())))
    }

    /// How many queries a sequence of a cache has, if they are packed.
    pub(crate) fn queries_of(&self, sequence: usize) -> Option<usize> {
        let offsets = self.masking.query_offsets?;
        let (begin, end) = (offsets.get(sequence)?, offsets.get(sequence + 1)?);
        Some(end.saturating_sub(*begin))
    }

    /// The options of a call to keys before all queries, which all sequences share.
    ///
    /// # Errors
    /// [`Error::Value`] with a mask or a term for which a query's place counts.
    pub(crate) fn of_shared_prefix(&self) -> Result<Self> {
        if !self.masking.sees_all_before() || self.terms.depend_on_position() {
            return Err(Error::Value {
                argument: "options",
                got: format!("{:?} and {:?}", self.masking, self.terms),
                expected:
                    "no mask but `causal()`, no term but a softcap and sinks, beside keys that \
                           sequences share"
                        .into(),
            });
        }
        let Self { scale, settings, value_scales, precision, .. } = *self;
        let mut shared = Self { scale, settings, value_scales, precision, ..Self::default() };
        shared.terms.softcap = self.terms.softcap;
        Ok(shared)
    }

    /// Checks and plans [`attention_cached_into`] once for the caches of all layers, which have the same
    /// pages of the same sequences: their book-keeping is read once, and once put in order of its work.
    /// [`AttentionPlan::run`] then takes the pools of one layer after the other. `query` and `cache` are
    /// those of any layer, with the tokens of this step appended.
    ///
    /// ```
    /// use headwise::kv_cache::{KvShape, PagedCapacity, TableBuffer};
    /// use headwise::{
    ///     AttentionOptions, NewTokens, Outputs, PagedCache, PlanBuffer, View, ViewMut, Workspace,
    /// };
    ///
    /// let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 8 };
    /// let capacity =
    ///     PagedCapacity { pages: 8, page_size: 16, sequences: 1, pages_per_sequence: 8 };
    /// let mut layers = [PagedCache::new(shape, capacity)?, PagedCache::new(shape, capacity)?];
    /// let sequence = layers[0].create()?;
    /// assert_eq!(layers[1].create()?, sequence);
    /// let (mut tables, mut buffer) = (TableBuffer::new(), PlanBuffer::new());
    /// let mut workspace = Workspace::new();
    /// let (query, rows) = ([0.1_f32; 4 * 8], [0.5_f32; 2 * 8]);
    /// let (query, rows) = (View::bshd(&query, [1, 4, 1, 8])?, View::bshd(&rows, [1, 2, 1, 8])?);
    /// for _token in 0..5 {
    ///     for layer in &mut layers {
    ///         layer.append(&[sequence], &NewTokens::new(rows, rows))?;
    ///     }
    ///     let cache = layers[0].view(&[sequence], &mut tables)?;
    ///     let options = AttentionOptions::new().causal();
    ///     let plan = options.plan_cached(query, &cache, &mut buffer)?;
    ///     for layer in &layers {
    ///         let mut out = [0.0; 4 * 8];
    ///         let outputs = Outputs::new(ViewMut::bshd(&mut out, [1, 4, 1, 8])?);
    ///         plan.run(query, [layer.key(), layer.value()], outputs, &mut workspace)?;
    ///         assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
    ///     }
    /// }
    /// # Ok::<(), headwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the queries do not fit the cache, and with [`Algorithm::Unfused`].
    pub fn plan_cached<'p, K: KvStorage<Compute = f32>>(
        &self,
        query: impl Into<Input<'p, f32>>,
        cache: &KvView<'p, K>,
        buffer: &'p mut PlanBuffer,
    ) -> Result<AttentionPlan<'p>>
    where
        'a: 'p,
    {
        AttentionPlan::new(&self.cached(query.into(), cache)?, &self.settings, buffer)
    }

    fn cached<'p, K: KvStorage<Compute = f32>>(
        &self,
        query: Input<'p, f32>,
        cache: &KvView<'p, K>,
    ) -> Result<Problem<'p, f32>>
    where
        'a: 'p,
    {
        let scale = self.scale.unwrap_or(Scale::InvSqrtHeadDim);
        let mut masking: Masking<'p, f32> = self.masking;
        masking.pages = Some(cache.tables());
        let (key, value) = (K::input(cache.key()), K::input(cache.value()));
        self.complete(Problem::new(query, key, value, scale, &masking)?)
    }
}

/// The results of a call.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Attention<S: Storage = f32> {
    /// `[batch, q_heads, seq_q, value_dim]`, stored as the queries were.
    pub out: Tensor<S>,
    /// The natural logarithm of each row's softmax denominator, scale and bias included,
    /// `[batch, q_heads, seq_q, 1]`, if asked for.
    pub lse: Option<Tensor<S::Compute>>,
    /// The attention weights, `[batch, q_heads, seq_q, seq_kv]`, if asked for.
    pub weights: Option<Tensor<S::Compute>>,
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
pub fn attention<S: Storage, K: KvStorage<Compute = S::Compute>>(
    query: View<'_, S>,
    key: View<'_, K>,
    value: View<'_, K>,
    options: &AttentionOptions<'_, S::Compute>,
) -> Result<Attention<S>> {
    options.compute(
        &options
            .problem([S::input(query), K::input(key), K::input(value)], Scale::InvSqrtHeadDim)?,
    )
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
pub fn attention_into<'t, T: Element>(
    query: impl Into<Input<'t, T>>,
    key: impl Into<Input<'t, T>>,
    value: impl Into<Input<'t, T>>,
    options: &AttentionOptions<'_, T>,
    outputs: Outputs<'_, T>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem =
        options.problem([query.into(), key.into(), value.into()], Scale::InvSqrtHeadDim)?;
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
pub fn attention_with<S: Storage<Compute = f32>, K: KvStorage<Compute = f32>, U: ScoreTerm>(
    query: View<'_, S>,
    key: View<'_, K>,
    value: View<'_, K>,
    term: &U,
    options: &AttentionOptions<'_>,
) -> Result<Attention<S>> {
    let problem = options
        .problem([S::input(query), K::input(key), K::input(value)], Scale::InvSqrtHeadDim)?;
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
pub fn attention_with_into<'t, U: ScoreTerm>(
    query: impl Into<Input<'t, f32>>,
    key: impl Into<Input<'t, f32>>,
    value: impl Into<Input<'t, f32>>,
    term: &U,
    options: &AttentionOptions<'_>,
    outputs: Outputs<'_, f32>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem =
        options.problem([query.into(), key.into(), value.into()], Scale::InvSqrtHeadDim)?;
    headwise_kernels::attention_with(&problem, term, outputs, &options.settings, workspace)
}

/// [`attention`] to the keys and values of a cache, to the bits that they would give in tensors of
/// their own.
///
/// `query` is `[sequences, q_heads, seq_q, head_dim]`, the last `seq_q` tokens of each sequence of the
/// cache, or as [`AttentionOptions::query_offsets`] says. Append their keys and values first:
/// [`AttentionOptions::causal`] has the last query see the last key. Positions count from each
/// sequence's first token, though a ring or a paged cache may have let go of it; what it let go of is
/// hidden. Weights are `[batch, q_heads, seq_q, tokens of the longest sequence]`.
///
/// ```
/// use headwise::{AttentionOptions, ContiguousCache, NewTokens, View, attention_cached};
/// use headwise::kv_cache::KvShape;
///
/// let mut cache = ContiguousCache::new(KvShape { kv_heads: 2, head_dim: 8, value_dim: 8 }, 1, 64)?;
/// for token in 0..5 {
///     // Four query heads, two of keys and values.
///     let (query, rows) = ([0.1 * token as f32; 4 * 8], [0.5_f32; 2 * 8]);
///     let rows = View::bshd(&rows, [1, 2, 1, 8])?;
///     cache.append(&NewTokens::new(rows, rows))?;
///     let query = View::bshd(&query, [1, 4, 1, 8])?;
///     let result = attention_cached(query, &cache.view(), &AttentionOptions::new().causal())?;
///     assert_eq!(result.out.shape(), [1, 4, 1, 8]);
/// }
/// # Ok::<(), headwise::Error>(())
/// ```
///
/// # Errors
/// As [`attention`]; with options that a cache has no use for: ragged keys, documents, starts of keys,
/// [`Algorithm::Unfused`].
pub fn attention_cached<S: Storage<Compute = f32>, K: KvStorage<Compute = f32>>(
    query: View<'_, S>,
    cache: &KvView<'_, K>,
    options: &AttentionOptions<'_>,
) -> Result<Attention<S>> {
    options.compute(&options.cached(S::input(query), cache)?)
}

/// [`attention_cached`] into the caller's memory. With a workspace of
/// [`AttentionOptions::workspace_bytes_cached`] the library allocates nothing.
///
/// # Errors
/// As [`attention_cached`], and where the outputs do not fit; then nothing is written.
pub fn attention_cached_into<'t, K: KvStorage<Compute = f32>>(
    query: impl Into<Input<'t, f32>>,
    cache: &KvView<'t, K>,
    options: &AttentionOptions<'_>,
    outputs: Outputs<'_, f32>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem = options.cached(query.into(), cache)?;
    headwise_kernels::attention(&problem, outputs, &options.settings, workspace)
}

/// [`attention_cached`] with a term of the caller's in its scores, as [`attention_with`] has it: a row's
/// batch entry is the sequence, and positions and keys count from the sequence's first token.
///
/// ```
/// use headwise::kv_cache::KvShape;
/// use headwise::{
///     AttentionOptions, ContiguousCache, NewTokens, Position, View, attention_cached_with, scalar,
/// };
///
/// let mut cache = ContiguousCache::new(KvShape { kv_heads: 1, head_dim: 8, value_dim: 8 }, 1, 64)?;
/// let rows: Vec<f32> = (0..5 * 8).map(|x| (x as f32).sin()).collect();
/// let rows = View::bhsd(&rows, [1, 1, 5, 8])?;
/// cache.append(&NewTokens::new(rows, rows))?;
/// let query = View::bhsd(&[0.5_f32; 8], [1, 1, 1, 8])?;
/// let recent = scalar(|score, at: Position| {
///     score - 0.1 * (at.row.position - at.key as i64) as f32
/// });
/// let result = attention_cached_with(query, &cache.view(), &recent, &AttentionOptions::new())?;
/// assert_eq!(result.out.shape(), [1, 1, 1, 8]);
/// # Ok::<(), headwise::Error>(())
/// ```
///
/// # Errors
/// As [`attention_cached`] and [`attention_with`].
pub fn attention_cached_with<S, K, U>(
    query: View<'_, S>,
    cache: &KvView<'_, K>,
    term: &U,
    options: &AttentionOptions<'_>,
) -> Result<Attention<S>>
where
    S: Storage<Compute = f32>,
    K: KvStorage<Compute = f32>,
    U: ScoreTerm,
{
    let problem = options.cached(S::input(query), cache)?;
    options.fill(&problem, |outputs| {
        let workspace = &mut Workspace::new();
        headwise_kernels::attention_with(&problem, term, outputs, &options.settings, workspace)
    })
}

/// [`attention_cached_with`] into the caller's memory. With a workspace of
/// [`AttentionOptions::workspace_bytes_cached_with`] the library allocates nothing.
///
/// # Errors
/// As [`attention_cached_with`], and where the outputs do not fit; then nothing is written.
pub fn attention_cached_with_into<'t, K: KvStorage<Compute = f32>, U: ScoreTerm>(
    query: impl Into<Input<'t, f32>>,
    cache: &KvView<'t, K>,
    term: &U,
    options: &AttentionOptions<'_>,
    outputs: Outputs<'_, f32>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem = options.cached(query.into(), cache)?;
    headwise_kernels::attention_with(&problem, term, outputs, &options.settings, workspace)
}

/// Dot-product attention, `softmax(query key^T) value`: [`attention`] without a scale unless the
/// options name one.
///
/// # Errors
/// As [`attention`].
pub fn dot_product_attention<S: Storage, K: KvStorage<Compute = S::Compute>>(
    query: View<'_, S>,
    key: View<'_, K>,
    value: View<'_, K>,
    options: &AttentionOptions<'_, S::Compute>,
) -> Result<Attention<S>> {
    options
        .compute(&options.problem([S::input(query), K::input(key), K::input(value)], Scale::One)?)
}

/// [`dot_product_attention`] into the caller's memory, as [`attention_into`].
///
/// # Errors
/// As [`attention_into`].
pub fn dot_product_attention_into<'t, T: Element>(
    query: impl Into<Input<'t, T>>,
    key: impl Into<Input<'t, T>>,
    value: impl Into<Input<'t, T>>,
    options: &AttentionOptions<'_, T>,
    outputs: Outputs<'_, T>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let problem = options.problem([query.into(), key.into(), value.into()], Scale::One)?;
    headwise_kernels::attention(&problem, outputs, &options.settings, workspace)
}
