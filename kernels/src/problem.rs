//! What is to be computed: validated once, here. Behind this border the kernels trust every
//! number of a [`Problem`], as they do those of its [`Outputs`](crate::Outputs).

use std::fmt::Debug;
use std::ops::Range;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::term::{MAX_POSITION, Terms};
use crate::view::{Shape, Strides, View};

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

/// Where the causal diagonal lies: query `i` sees key `j` if `j <= i + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Causal {
    /// The last query sees the last key: `offset = seq_kv - seq_q`. What a cache needs.
    BottomRight,
    /// The first query sees the first key alone: `offset = 0`.
    TopLeft,
    /// Any offset: the position of query 0 among the keys.
    Offset(i64),
}

/// How far from its own position `i + offset` a query sees, its own position not counted; `None`
/// is without limit. `left: Some(2)` sees 3 keys: two before and its own.
///
/// The offset is that of the causal mask, or `seq_kv - seq_q` without one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// Keys visible before the query's own position.
    pub left: Option<usize>,
    /// Keys visible after it.
    pub right: Option<usize>,
}

/// Which keys each query sees, and what is added to its scores. All parts combine: a key is
/// visible where every part lets it be.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Masking<'a, T> {
    /// The causal diagonal.
    pub causal: Option<Causal>,
    /// The sliding window.
    pub window: Window,
    /// Per batch entry, the number of leading keys that exist. The diagonal does not move by it.
    pub key_lengths: Option<&'a [usize]>,
    /// `true` = attend. `[batch, q_heads, seq_q, seq_kv]`, each of the first three may be 1.
    pub boolean: Option<View<'a, bool>>,
    /// Added to the scaled and capped scores; exactly -inf masks. Shaped as `boolean`.
    pub bias: Option<Bias<'a, T>>,
}

impl<T> Default for Masking<'_, T> {
    fn default() -> Self {
        Self {
            causal: None,
            window: Window::default(),
            key_lengths: None,
            boolean: None,
            bias: None,
        }
    }
}

/// A dense additive mask, in the problem's element type or half as wide.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Bias<'a, T> {
    /// As the problem's other tensors.
    Native(View<'a, T>),
    /// Widened as it is read.
    #[cfg(feature = "half")]
    F16(View<'a, half::f16>),
    /// Widened as it is read.
    #[cfg(feature = "half")]
    Bf16(View<'a, half::bf16>),
}

impl<'a, T: Element> From<View<'a, T>> for Bias<'a, T> {
    fn from(view: View<'a, T>) -> Self {
        Self::Native(view)
    }
}

#[cfg(feature = "half")]
impl<'a, T: Element> From<View<'a, half::f16>> for Bias<'a, T> {
    fn from(view: View<'a, half::f16>) -> Self {
        Self::F16(view)
    }
}

#[cfg(feature = "half")]
impl<'a, T: Element> From<View<'a, half::bf16>> for Bias<'a, T> {
    fn from(view: View<'a, half::bf16>) -> Self {
        Self::Bf16(view)
    }
}

impl<'a, T: Element> Bias<'a, T> {
    /// Stretched to the whole problem.
    fn broadcast(self, dims: &Dims) -> Result<Self> {
        Ok(match self {
            Self::Native(view) => Self::Native(broadcast("bias", view, dims)?),
            #[cfg(feature = "half")]
            Self::F16(view) => Self::F16(broadcast("bias", view, dims)?),
            #[cfg(feature = "half")]
            Self::Bf16(view) => Self::Bf16(broadcast("bias", view, dims)?),
        })
    }

    /// The bias of query `i` of a head from key `first` on.
    pub(crate) fn widen(&self, b: usize, head: usize, i: usize, first: usize, to: &mut [T]) {
        let keys = first..first + to.len();
        match self {
            Self::Native(view) => to.copy_from_slice(&view.rows(b, head).slice(i)[keys]),
            #[cfg(feature = "half")]
            Self::F16(view) => {
                let row = &view.rows(b, head).slice(i)[keys];
                to.iter_mut().zip(row).for_each(|(to, x)| *to = T::from_f32(x.to_f32()));
            }
            #[cfg(feature = "half")]
            Self::Bf16(view) => {
                let row = &view.rows(b, head).slice(i)[keys];
                to.iter_mut().zip(row).for_each(|(to, x)| *to = T::from_f32(x.to_f32()));
            }
        }
    }
}

/// The extents of an attention problem, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Independent sequences.
    pub batch: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key/value heads; divides `q_heads`.
    pub kv_heads: usize,
    /// Queries in a sequence.
    pub seq_q: usize,
    /// Keys in a sequence.
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
    pub(crate) query: View<'a, T>,
    pub(crate) key: View<'a, T>,
    pub(crate) value: View<'a, T>,
    pub(crate) boolean: Option<View<'a, bool>>,
    pub(crate) bias: Option<Bias<'a, T>>,
    pub(crate) terms: Terms<'a>,
    pub(crate) scale: f64,
    dims: Dims,
    /// Query `i` stands at key position `i + offset`.
    offset: i128,
    causal: bool,
    window: Window,
    key_lengths: Option<&'a [usize]>,
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

/// A mask whose axes of extent 1 repeat, stretched to the whole problem with strides of zero.
fn broadcast<'a, E>(argument: &'static str, mask: View<'a, E>, dims: &Dims) -> Result<View<'a, E>> {
    let whole = [dims.batch, dims.q_heads, dims.seq_q, dims.seq_kv];
    let (shape, mut strides) = (mask.shape(), mask.strides());
    let fits = (0..3).all(|axis| shape[axis] == 1 || shape[axis] == whole[axis]);
    if !fits || shape[3] != whole[3] {
        return shape_error(
            argument,
            shape,
            format!("{whole:?}, where each of the first three may be 1"),
        );
    }
    check_unit_inner_stride(argument, shape, strides)?;
    for axis in 0..3 {
        if shape[axis] == 1 {
            strides[axis] = 0;
        }
    }
    Ok(mask.with_layout(whole, strides))
}

impl<'a, T: Element> Problem<'a, T> {
    /// Checks that the parts fit each other.
    ///
    /// `query` is `[batch, q_heads, seq_q, head_dim]`, `key` `[batch, kv_heads, seq_kv,
    /// head_dim]`, `value` `[batch, kv_heads, seq_kv, value_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Stride`] or [`Error::Value`] with the argument that does not
    /// fit.
    pub fn new(
        query: View<'a, T>,
        key: View<'a, T>,
        value: View<'a, T>,
        scale: Scale,
        masking: &Masking<'a, T>,
    ) -> Result<Self> {
        let dims = check_dims(query.shape(), key.shape(), value.shape())?;
        for (argument, view) in [("query", &query), ("key", &key), ("value", &value)] {
            check_unit_inner_stride(argument, view.shape(), view.strides())?;
        }
        if let Scale::Value(x) = scale
            && !x.is_finite()
        {
            return value_error("scale", x, "a finite number".into());
        }
        if let Some(lengths) = masking.key_lengths {
            if lengths.len() != dims.batch {
                return value_error(
                    "key_lengths",
                    format_args!("{} lengths", lengths.len()),
                    format!("one for each of the {} batch entries", dims.batch),
                );
            }
            if let Some(length) = lengths.iter().find(|&&n| n > dims.seq_kv) {
                return value_error("key_lengths", length, format!("at most {}", dims.seq_kv));
            }
        }
        let aligned_ends = dims.seq_kv as i128 - dims.seq_q as i128;
        Ok(Self {
            query,
            key,
            value,
            boolean: masking.boolean.map(|m| broadcast("mask", m, &dims)).transpose()?,
            bias: masking.bias.map(|m| m.broadcast(&dims)).transpose()?,
            terms: Terms::default(),
            scale: scale.factor(dims.head_dim),
            dims,
            offset: match masking.causal {
                Some(Causal::TopLeft) => 0,
                Some(Causal::Offset(offset)) => offset.into(),
                Some(Causal::BottomRight) | None => aligned_ends,
            },
            causal: masking.causal.is_some(),
            window: masking.window,
            key_lengths: masking.key_lengths,
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

    /// Refuses positions that `f32` does not hold exactly.
    pub(crate) fn check_positions(&self, argument: &'static str) -> Result<()> {
        let ends = [self.position(0), self.position(self.dims.seq_q.max(1) - 1)];
        let far = ends.iter().map(|end| end.unsigned_abs()).max().unwrap_or(0);
        let far = far.max(self.dims.seq_kv as u128);
        if far > MAX_POSITION as u128 {
            return Err(Error::Overflow {
                argument,
                got: format!("a position of {far}"),
                expected: format!("positions up to {MAX_POSITION}, which f32 holds exactly"),
            });
        }
        Ok(())
    }

    /// Where query `i` stands among the keys.
    pub(crate) fn position(&self, i: usize) -> i128 {
        i as i128 + self.offset
    }

    /// The extents.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// The keys that the structural masks (causal, window, key lengths) leave to query `i` of
    /// batch entry `b`: none where there is no such entry or query. Boolean and additive masks may
    /// hide more.
    pub fn visible_keys(&self, b: usize, i: usize) -> Range<usize> {
        if b >= self.dims.batch || i >= self.dims.seq_q {
            return 0..0;
        }
        let keys = self.key_lengths.map_or(self.dims.seq_kv, |lengths| lengths[b]);
        let position = i as i128 + self.offset;
        let clamp = |x: i128| x.clamp(0, keys as i128) as usize;
        let start = self.window.left.map_or(0, |left| clamp(position - left as i128));
        let ahead = match (self.causal, self.window.right) {
            (true, _) => Some(0),
            (false, right) => right,
        };
        let end = ahead.map_or(keys, |right| clamp(position + right as i128 + 1));
        start.min(end)..end
    }

    /// Whether `f32` scores are powers of e, as their terms need, and not of 2: with a bias or other
    /// terms, and with a scale near `f32::MAX` that log2(e) would make overflow.
    pub(crate) fn has_natural_scores(&self) -> bool {
        let log2_scale = (self.scale * std::f64::consts::LOG2_E) as f32;
        self.bias.is_some() || self.terms.change_scores() || !log2_scale.is_finite()
    }

    /// Whether scores have a dense term beside them: a mask, or a bias that is no function of
    /// position and head alone.
    pub(crate) fn has_dense_term(&self) -> bool {
        self.boolean.is_some() || self.bias.is_some() || self.terms.relative_bias.is_some()
    }

    /// Whether every query sees every key by structure, so that tiles need no ranges.
    pub(crate) fn has_uniform_ranges(&self) -> bool {
        !self.causal && self.window == Window::default()
    }
}

fn check_dims(q: Shape, k: Shape, v: Shape) -> Result<Dims> {
    for (argument, shape) in [("query", q), ("key", k), ("value", v)] {
        if shape[1] == 0 || shape[3] == 0 {
            return shape_error(
                argument,
                shape,
                "[batch, heads, seq, dim] with at least one head and a dim of at least 1".into(),
            );
        }
    }
    if k[0] != q[0] || k[3] != q[3] {
        return shape_error(
            "key",
            k,
            format!("[{}, kv_heads, seq_kv, {}] to fit query {q:?}", q[0], q[3]),
        );
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
    use proptest::prelude::*;
    use proptest::sample::select;

    /// The definition, key by key.
    fn sees(
        masking: &Masking<'_, f32>,
        (seq_q, seq_kv): (usize, usize),
        i: usize,
        j: usize,
    ) -> bool {
        let offset = match masking.causal {
            Some(Causal::TopLeft) => 0,
            Some(Causal::Offset(offset)) => i128::from(offset),
            Some(Causal::BottomRight) | None => seq_kv as i128 - seq_q as i128,
        };
        let ahead = j as i128 - (i as i128 + offset);
        let window = masking.window;
        (masking.causal.is_none() || ahead <= 0)
            && window.left.is_none_or(|left| ahead >= -(left as i128))
            && window.right.is_none_or(|right| ahead <= right as i128)
            && masking.key_lengths.is_none_or(|lengths| j < lengths[0])
    }

    fn causal() -> impl Strategy<Value = Option<Causal>> {
        prop_oneof![
            Just(None),
            Just(Some(Causal::BottomRight)),
            Just(Some(Causal::TopLeft)),
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
            length in prop::option::of(0..20_usize),
        ) {
            let data = [0.0_f32; 20];
            let view = |seq| View::bhsd(&data, [1, 1, seq, 1]).unwrap_or_else(|e| panic!("{e}"));
            let lengths = length.map(|n| [n.min(seq_kv)]);
            let masking = Masking {
                causal,
                window: Window { left, right },
                key_lengths: lengths.as_ref().map(|lengths| &lengths[..]),
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
