//! What is to be computed: validated once, here. Behind this border the kernels trust every
//! number of a [`Problem`], as they do those of its [`Outputs`](crate::Outputs).

use std::fmt::Debug;
use std::ops::Range;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::mask::{Mask, Masking, Sequence, stretched_layout};
use crate::microkernel::{BLOCK_KV, block, int8_values, quads};
use crate::pages::{KvRows, PageTables, PagedRows};
use crate::storage::{Format, Input, StoredRows};
use crate::term::{MAX_POSITION, Terms};
use crate::view::{Rows, Shape, Strides};

/// The factor on every score `q . k`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Scale {
    /// `1 / sqrt(head_dim)`, as in "Attention Is All You Need" (Vaswani et al., 2017).
    InvSqrtHeadDim,
    /// No scaling.
    One,
    /// Any finite factor, negative and zero included.
    Value(f32),
}

impl Scale {
    fn factor(self, head_dim: usize) -> f64 {
        match self {
            Self::InvSqrtHeadDim => 1.0 / (head_dim as f64).sqrt(),
            Self::One => 1.0,
            Self::Value(x) => x.into(),
        }
    }
}

/// How exact the products of `f32` problems must be. Problems in `f64` are always computed in full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// As exact as the types of the tensors allow: see the table of errors in `docs/numerics.md`.
    #[default]
    Full,
    /// Where there are instructions for it and a sequence has rows enough to pay, scores are made of queries and keys
    /// rounded to integers of eight bits, row by row (Zhang et al., "SageAttention", 2024), and values multiplied in
    /// `bf16` if there are instructions for that too; and few rows multiply keys and values that are stored in
    /// [`Int8`](crate::Int8) as such. On tensors of real models the output errs by 0.3 to 1.6 % of its magnitude, and
    /// by up to 3.3 % from a cache of integers.
    /// Masks hide what they hide, but a hidden key or value may change how the visible ones are rounded; and a number in
    /// a query or a key that is not finite makes all scores of its row NaN. Everything else is computed in full: with
    /// [`Algorithm::Unfused`](crate::Algorithm::Unfused), with a term of the caller's, in `f64`.
    Fast,
}

/// The extents of an attention problem, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch entries: independent sequences, or one that holds those of a ragged batch.
    pub batch: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key/value heads; divides `q_heads`.
    pub kv_heads: usize,
    /// Queries in a batch entry.
    pub seq_q: usize,
    /// Keys in a sequence; of a ragged batch, in the longest.
    pub seq_kv: usize,
    /// Length of a query and of a key.
    pub head_dim: usize,
    /// Length of a value and of an output row.
    pub value_dim: usize,
}

impl Dims {
    /// Query heads per key/value head: query head `h` reads kv head `h / group_size`. 0 without
    /// heads, which no [`Problem`] has.
    pub fn group_size(&self) -> usize {
        self.q_heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// Whether there is anything to compute.
    pub(crate) fn has_rows(&self) -> bool {
        self.batch > 0 && self.seq_q > 0
    }
}

/// A validated attention problem: `softmax(scale * query key^T + bias, masked) value`.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a, T: Element> {
    pub(crate) query: Input<'a, T>,
    pub(crate) key: Input<'a, T>,
    pub(crate) value: Input<'a, T>,
    pages: Option<PageTables<'a>>,
    pub(crate) bias: Option<Input<'a, T>>,
    pub(crate) mask: Mask<'a>,
    pub(crate) terms: Terms<'a>,
    pub(crate) scale: f64,
    /// By which what is stored of a value is multiplied, `[kv_heads][value_dim]`.
    value_scales: Option<&'a [f32]>,
    pub(crate) precision: Precision,
    dims: Dims,
}

pub(crate) fn shape_error<T>(argument: &'static str, got: Shape, expected: String) -> Result<T> {
    Err(Error::Shape { argument, got: format!("{got:?}"), expected })
}

pub(crate) fn value_error<T>(
    argument: &'static str,
    got: impl Debug,
    expected: String,
) -> Result<T> {
    Err(Error::Value { argument, got: format!("{got:?}"), expected })
}

pub(crate) fn check_unit_inner_stride(
    argument: &'static str,
    shape: Shape,
    strides: Strides,
) -> Result<()> {
    if shape[3] > 1 && strides[3] != 1 {
        return Err(Error::Stride {
            argument,
            got: format!("{strides:?}"),
            expected: "an inner stride of 1; copy the tensor so that the last axis is contiguous"
                .into(),
        });
    }
    Ok(())
}

/// That there is a positive, finite factor for each channel of the values of each head.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Value`] that name `value_scales`.
pub fn check_value_scales(scales: &[f32], kv_heads: usize, value_dim: usize) -> Result<()> {
    if kv_heads.checked_mul(value_dim) != Some(scales.len()) {
        return Err(Error::Shape {
            argument: "value_scales",
            got: format!("[{}]", scales.len()),
            expected: format!("{kv_heads} kv heads of {value_dim} numbers each"),
        });
    }
    match scales.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
        Some(x) => value_error("value_scales", x, "positive, finite factors".into()),
        None => Ok(()),
    }
}

impl<'a, T: Element> Problem<'a, T> {
    /// Checks that the parts fit each other. The tensors are views of any [`Storage`](crate::Storage), keys
    /// and values of any [`KvStorage`](crate::KvStorage), that is computed in `T`, not all of the same.
    ///
    /// `query` is `[batch, q_heads, seq_q, head_dim]`, `key` `[batch, kv_heads, seq_kv,
    /// head_dim]`, `value` `[batch, kv_heads, seq_kv, value_dim]`; of a ragged batch, `batch` is 1
    /// and the sequences lie one behind the other; with pages, `key` and `value` are their pools.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Stride`] or [`Error::Value`] with the argument that does not
    /// fit.
    pub fn new(
        query: impl Into<Input<'a, T>>,
        key: impl Into<Input<'a, T>>,
        value: impl Into<Input<'a, T>>,
        scale: Scale,
        masking: &Masking<'a, T>,
    ) -> Result<Self> {
        let (query, key, value) = (query.into(), key.into(), value.into());
        let dims = check_dims(query.shape(), key.shape(), value.shape(), masking.pages.is_some())?;
        for (argument, input) in [("query", Some(&query)), ("bias", masking.bias.as_ref())] {
            check_floats(argument, input)?;
        }
        if let Some(pages) = &masking.pages {
            let layout = |pool: &Input<'_, T>| (pool.elements(), pool.strides());
            pages.check_pools(layout(&key), layout(&value))?;
        }
        for (argument, view) in [("query", &query), ("key", &key), ("value", &value)] {
            check_unit_inner_stride(argument, view.elements(), view.strides())?;
        }
        if let Scale::Value(x) = scale
            && !x.is_finite()
        {
            return value_error("scale", x, "a finite number".into());
        }
        let (mask, dims) = Mask::new(masking, (query.shape(), key.shape()), dims)?;
        let whole = [dims.batch, dims.q_heads, dims.seq_q, dims.seq_kv];
        Ok(Self {
            query,
            key,
            value,
            pages: masking.pages,
            bias: masking.bias.map(|bias| stretched(bias, whole)).transpose()?,
            mask,
            terms: Terms::default(),
            scale: scale.factor(dims.head_dim),
            value_scales: None,
            precision: Precision::Full,
            dims,
        })
    }

    /// The same with terms in its scores.
    ///
    /// # Errors
    /// [`Error::Value`] with the term that does not fit: a softcap that is not positive and finite,
    /// slopes, sinks or a table that are not of as many heads as the queries, or not numbers; and
    /// [`Error::Overflow`] with ALiBi where a position lies beyond
    /// [`MAX_POSITION`](crate::MAX_POSITION).
    pub fn with_terms(self, terms: &Terms<'a>) -> Result<Self> {
        terms.check(&self.dims)?;
        if terms.alibi.is_some() {
            self.check_positions("alibi")?;
        }
        Ok(Self { terms: *terms, ..self })
    }

    /// The same of values that are stored divided by these, `[kv_heads * value_dim]`: positive, finite factors
    /// of each channel.
    ///
    /// # Errors
    /// [`Error::Shape`] where there are not as many, [`Error::Value`] where one is no such number.
    pub fn with_value_scales(self, scales: &'a [f32]) -> Result<Self> {
        check_value_scales(scales, self.dims.kv_heads, self.dims.value_dim)?;
        Ok(Self { value_scales: Some(scales), ..self })
    }

    /// The same with products as exact as `precision` says.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The factors of a head's values.
    pub(crate) fn value_scales(&self, kv_head: usize) -> Option<&'a [f32]> {
        let width = self.dims.value_dim;
        self.value_scales.map(|scales| &scales[kv_head * width..][..width])
    }

    /// The same of tensors that nobody reads.
    pub(crate) fn without_tensors(&self) -> Self {
        Self {
            query: self.query.without_data(),
            key: self.key.without_data(),
            value: self.value.without_data(),
            ..*self
        }
    }

    /// The same of these tensors, which are stored alike.
    pub(crate) fn with_tensors<'t>(
        &self,
        [query, key, value]: [Input<'t, T>; 3],
    ) -> Result<Problem<'t, T>>
    where
        'a: 't,
    {
        let planned: Problem<'t, T> = *self;
        let pairs = [
            ("query", &query, &planned.query),
            ("key", &key, &planned.key),
            ("value", &value, &planned.value),
        ];
        for (argument, view, planned) in pairs {
            if view.shape() != planned.shape() {
                return shape_error(
                    argument,
                    view.shape(),
                    format!("{:?}, as planned", planned.shape()),
                );
            }
            if view.format() != planned.format() {
                let expected = format!("{}, as planned", planned.storage());
                return value_error(argument, format_args!("{}", view.storage()), expected);
            }
            check_unit_inner_stride(argument, view.elements(), view.strides())?;
        }
        Ok(Problem { query, key, value, ..planned })
    }

    /// Refuses positions that `f32` does not hold exactly.
    pub(crate) fn check_positions(&self, argument: &'static str) -> Result<()> {
        let ends = (0..self.sequences()).map(|s| self.mask.sequence(s)).flat_map(|sequence| {
            let last = sequence.seq_q.max(1) - 1;
            [0, last].map(|i| self.position(&sequence, i).unsigned_abs())
        });
        let far = ends.max().unwrap_or(0).max(self.dims.seq_kv as u128);
        if far > MAX_POSITION as u128 {
            return Err(Error::Overflow {
                argument,
                got: format!("a position of {far}"),
                expected: format!("positions up to {MAX_POSITION}, which f32 holds exactly"),
            });
        }
        Ok(())
    }

    /// Where query `i` of a sequence stands among its keys.
    pub(crate) fn position(&self, sequence: &Sequence, i: usize) -> i128 {
        self.mask.position(sequence, i)
    }

    /// The extents.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// How many sequences there are: batch entries, or the parts of a ragged batch.
    pub fn sequences(&self) -> usize {
        self.mask.sequences()
    }

    /// From the first key that query `i` of sequence `s` may see to behind the last, counted from the
    /// sequence's own first; none where there is no such sequence or query. A tree, documents in any
    /// order, block patterns, boolean and additive masks may hide some of them.
    pub fn visible_keys(&self, s: usize, i: usize) -> Range<usize> {
        if s >= self.sequences() {
            return 0..0;
        }
        let sequence = self.mask.sequence(s);
        if i >= sequence.seq_q { 0..0 } else { self.mask.range(&sequence, i) }
    }

    /// The keys of one head of a sequence.
    pub(crate) fn keys(&self, sequence: &Sequence, kv_head: usize) -> StoredRows<'a> {
        self.rows(&self.key, sequence, kv_head)
    }

    /// Its values.
    pub(crate) fn values(&self, sequence: &Sequence, kv_head: usize) -> StoredRows<'a> {
        self.rows(&self.value, sequence, kv_head)
    }

    fn rows(&self, of: &Input<'a, T>, sequence: &Sequence, kv_head: usize) -> StoredRows<'a> {
        let format = of.format();
        // A problem in f64 has nothing narrower.
        let size = if format == Format::Native { size_of::<T>() } else { format.size() };
        let rows = match &self.pages {
            None => {
                let rows = of.rows(sequence.batch, kv_head);
                KvRows::Even(rows.part(sequence.key, sequence.seq_kv))
            }
            Some(pages) => match pages.of(sequence.index) {
                [] => KvRows::Even(Rows::dense(&[], of.elements()[3] * size)),
                table => {
                    let stride = of.strides()[0].wrapping_mul(size as isize);
                    let page = of.rows(0, kv_head);
                    KvRows::Paged(PagedRows::new(page, stride, table, sequence.seq_kv))
                }
            },
        };
        StoredRows { rows, format }
    }

    /// Whether query, key and value are of the type that is computed in.
    pub(crate) fn is_native(&self) -> bool {
        [&self.query, &self.key, &self.value].iter().all(|of| of.format() == Format::Native)
    }

    /// Whether keys and values lie in pages.
    pub(crate) fn is_paged(&self) -> bool {
        self.pages.is_some()
    }

    /// Whether queries, keys and values can be multiplied in pairs of `bf16`.
    pub(crate) fn is_in_pairs(&self) -> bool {
        let formats = [self.query.format(), self.key.format(), self.value.format()];
        formats == [Format::Bf16; 3] && self.dims.head_dim.is_multiple_of(2)
    }

    /// Whether keys and values are integers that kernels multiply as such, where it is asked for.
    pub(crate) fn is_in_integers(&self) -> bool {
        let formats = [self.key.format(), self.value.format()];
        let is_wide = self.dims.value_dim.is_multiple_of(int8_values::COLUMNS);
        formats == [Format::Int8; 2] && is_wide && !self.gathers()
    }

    /// Whether blocks of keys and values lie in pages that kernels do not read where they are.
    pub(crate) fn gathers(&self) -> bool {
        let page = self.key.shape()[2];
        let several = self.is_paged() && self.dims.seq_kv > page;
        several && !page.is_multiple_of(BLOCK_KV) && !block::are_stretches(page)
    }

    /// Whether scores may be made of integers of eight bits, where a sequence has rows enough, or few enough.
    pub(crate) fn wants_quads(&self) -> bool {
        self.precision == Precision::Fast && self.dims.head_dim <= quads::MAX_WIDTH
    }

    /// Whether `f32` scores are powers of e, as their terms need, and not of 2: with a bias or other
    /// terms, and with a scale near `f32::MAX` that log2(e) would make overflow.
    pub(crate) fn has_natural_scores(&self) -> bool {
        let log2_scale = (self.scale * std::f64::consts::LOG2_E) as f32;
        self.bias.is_some() || self.terms.change_scores() || !log2_scale.is_finite()
    }

    /// Whether scores have a dense bias beside them: one that is no function of position and head
    /// alone.
    pub(crate) fn has_dense_bias(&self) -> bool {
        self.bias.is_some() || self.terms.relative_bias.is_some()
    }

    /// Whether scores have a dense term beside them, in some block: such a bias, or a mask.
    pub(crate) fn has_dense_term(&self) -> bool {
        self.mask.has_bits() || self.has_dense_bias()
    }
}

/// Refuses what has no kernels but as keys and values.
fn check_floats<T: Element>(argument: &'static str, input: Option<&Input<'_, T>>) -> Result<()> {
    match input.filter(|input| input.format().extra() > 0) {
        None => Ok(()),
        Some(input) => {
            let expected = "f32, f16 or bf16; only keys and values may be stored in int8";
            value_error(argument, input.storage(), expected.into())
        }
    }
}

/// A bias stretched to the whole problem.
fn stretched<T: Element>(bias: Input<'_, T>, whole: Shape) -> Result<Input<'_, T>> {
    let layout = stretched_layout("bias", (bias.shape(), bias.strides()), whole)?;
    Ok(bias.with_layout(layout))
}

/// With `paged` pools.
fn check_dims(q: Shape, k: Shape, v: Shape, paged: bool) -> Result<Dims> {
    for (argument, shape) in [("query", q), ("key", k), ("value", v)] {
        if shape[1] == 0 || shape[3] == 0 {
            return shape_error(
                argument,
                shape,
                "[batch, heads, seq, dim] with at least one head and a dim of at least 1".into(),
            );
        }
    }
    if (k[0] != q[0] && !paged) || k[3] != q[3] {
        let expected = if paged {
            format!("[pages, kv_heads, page_size, {}] to fit query {q:?}", q[3])
        } else {
            format!("[{}, kv_heads, seq_kv, {}] to fit query {q:?}", q[0], q[3])
        };
        return shape_error("key", k, expected);
    }
    if !q[1].is_multiple_of(k[1]) {
        return shape_error(
            "key",
            k,
            format!("a number of heads that divides the query's {} heads", q[1]),
        );
    }
    if v[..3] != k[..3] {
        return shape_error(
            "value",
            v,
            format!("[{}, {}, {}, value_dim] to fit key {k:?}", k[0], k[1], k[2]),
        );
    }
    Ok(Dims {
        batch: q[0],
        q_heads: q[1],
        kv_heads: k[1],
        seq_q: q[2],
        seq_kv: k[2],
        head_dim: q[3],
        value_dim: v[3],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{Causal, Window};
    use crate::view::View;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// The definition, key by key.
    fn sees(
        masking: &Masking<'_, f32>,
        (seq_q, seq_kv): (usize, usize),
        i: usize,
        j: usize,
    ) -> bool {
        let length = masking.key_lengths.map_or(seq_kv, |lengths| lengths[0]);
        let offset = match masking.causal {
            Some(Causal::TopLeft) => 0,
            Some(Causal::Offset(offset)) => i128::from(offset),
            Some(Causal::AtLength) => length as i128 - seq_q as i128,
            Some(Causal::BottomRight) | None => seq_kv as i128 - seq_q as i128,
        };
        let ahead = j as i128 - (i as i128 + offset);
        let window = masking.window;
        let prefix = masking.prefix.map_or(0, |prefix| prefix[0]);
        (masking.causal.is_none() || ahead <= 0 || j < prefix)
            && window.left.is_none_or(|left| ahead >= -(left as i128))
            && window.right.is_none_or(|right| ahead <= right as i128)
            && j < length
            && masking.key_starts.is_none_or(|starts| j >= starts[0])
    }

    fn causal() -> impl Strategy<Value = Option<Causal>> {
        prop_oneof![
            Just(None),
            Just(Some(Causal::BottomRight)),
            Just(Some(Causal::TopLeft)),
            Just(Some(Causal::AtLength)),
            (-30..30_i64).prop_map(|offset| Some(Causal::Offset(offset))),
            select(vec![i64::MIN, i64::MAX]).prop_map(|offset| Some(Causal::Offset(offset))),
        ]
    }

    fn reach() -> impl Strategy<Value = Option<usize>> {
        prop_oneof![Just(None), (0..25_usize).prop_map(Some), Just(Some(usize::MAX))]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2000,
            failure_persistence: None,
            ..Default::default()
        })]

        #[test]
        fn visible_keys_are_those_of_the_definition(
            causal in causal(),
            left in reach(),
            right in reach(),
            seq_q in 1..20_usize,
            seq_kv in 0..20_usize,
            numbers in prop::array::uniform3(prop::option::of(0..20_usize)),
        ) {
            let data = [0.0_f32; 20];
            let view = |seq| View::bhsd(&data, [1, 1, seq, 1]).unwrap_or_else(|e| panic!("{e}"));
            let numbers = numbers.map(|n| n.map(|n| [n.min(seq_kv)]));
            let [key_lengths, key_starts, prefix] =
                numbers.each_ref().map(|n| n.as_ref().map(|n| &n[..]));
            let masking = Masking {
                causal,
                window: Window { left, right },
                key_lengths,
                key_starts,
                prefix,
                ..Masking::default()
            };
            let (q, k) = (view(seq_q), view(seq_kv));
            let problem = Problem::new(q, k, k, Scale::One, &masking);
            let problem = problem.unwrap_or_else(|e| panic!("{e}"));
            for i in 0..seq_q {
                let range = problem.visible_keys(0, i);
                for j in 0..seq_kv {
                    let expected = sees(&masking, (seq_q, seq_kv), i, j);
                    prop_assert_eq!(range.contains(&j), expected, "query {}, key {}", i, j);
                }
            }
            prop_assert!(problem.visible_keys(0, seq_q).is_empty());
            prop_assert!(problem.visible_keys(1, 0).is_empty());
        }
    }
}
