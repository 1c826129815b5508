//! The terms that the library has: what they are, checked and, for one score, computed.

use crate::error::{Error, Result};
use crate::microkernel::BLOCK_KV;
use crate::problem::{Dims, value_error};

/// What is done to scores between the scale and the masks, beside the dense bias of
/// [`Masking`](crate::Masking). The order is fixed: scale, softcap, the biases, the caller's own
/// terms, masks; sinks join the denominator at the end.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Terms<'a> {
    /// `cap * tanh(score / cap)`, as in Gemma 2: keeps scores between -cap and cap. Positive and
    /// finite.
    pub softcap: Option<f32>,
    /// A bias that grows with the distance.
    pub alibi: Option<Alibi<'a>>,
    /// A bias out of a table by the distance.
    pub relative_bias: Option<&'a RelativeBias>,
    /// For each query head the logit of a sink: a key without a value that every query sees. Finite,
    /// or -inf for none.
    pub sinks: Option<&'a [f32]>,
}

impl Terms<'_> {
    /// Whether a score depends on where its query and its key stand.
    pub fn depend_on_position(&self) -> bool {
        // Every field, so that a new term is thought of here.
        !matches!(self, Self { softcap: _, alibi: None, relative_bias: None, sinks: _ })
    }
}

/// "Attention with linear biases" (Press et al., 2021): `slope * (j - (i + offset))` is added to the
/// score of query `i` and key `j`, with a slope for each query head. The offset is that of the
/// causal mask, or `seq_kv - seq_q` without one.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Alibi<'a> {
    /// The slopes of the paper: [`alibi_slope`].
    Standard,
    /// One finite slope for each query head.
    Slopes(&'a [f32]),
}

impl Alibi<'_> {
    /// The slope of `head` of `heads`.
    pub(crate) fn slope(&self, head: usize, heads: usize) -> f32 {
        match self {
            Self::Standard => alibi_slope(head, heads),
            Self::Slopes(slopes) => slopes[head],
        }
    }
}

/// The slope of query head `head` of `heads`: with `n` the largest power of two up to `heads`,
/// `2^(-8 (head + 1) / n)` for the first n heads, and for the others, as the paper's code has it,
/// every second slope of `2 n` heads, `2^(-4 (2 (head - n) + 1) / n)`.
pub fn alibi_slope(head: usize, heads: usize) -> f32 {
    let n = 1_usize << heads.max(1).ilog2();
    let (head, n) = if head < n {
        (8.0 * (head as f64 + 1.0), n as f64)
    } else {
        (4.0 * (2.0 * (head - n) as f64 + 1.0), n as f64)
    };
    (-head / n).exp2() as f32
}

/// Floats that repeat the ends of a table's row, so that a block's worth may be read anywhere.
const PAD: usize = BLOCK_KV;

/// A bias for each query head and distance `j - (i + offset)` from query to key; the offset is that
/// of the causal mask, or `seq_kv - seq_q` without one. Distances beyond the table take the nearest
/// that it has.
///
/// It is made once, when a model is loaded, and used in every call.
#[derive(Debug, Clone, PartialEq)]
pub struct RelativeBias {
    heads: usize,
    /// The distance of the first column.
    low: i64,
    /// Distances of each head.
    len: usize,
    /// `[heads][PAD + len + PAD]`.
    table: Vec<f32>,
}

impl RelativeBias {
    /// From a table `[heads, distances]` whose first column is of distance `low`.
    ///
    /// ```
    /// # use headwise_kernels::RelativeBias;
    /// // One head: 0 for the query's own key and all after it, -1 and -2 before.
    /// let bias = RelativeBias::by_distance(&[-2.0, -1.0, 0.0], 1, -2)?;
    /// assert_eq!([-9, -2, -1, 0, 5].map(|distance| bias.get(0, distance)), [-2.0, -2.0, -1.0, 0.0, 0.0]);
    /// # Ok::<(), headwise_kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Value`] where the table's length is not a multiple of `heads`, or a number is NaN.
    pub fn by_distance(table: &[f32], heads: usize, low: i64) -> Result<Self> {
        if heads == 0 || table.is_empty() || !table.len().is_multiple_of(heads) {
            return value_error(
                "relative_bias",
                format_args!("a table of {} numbers", table.len()),
                format!("[heads, distances] with {heads} heads and at least one distance"),
            );
        }
        check_numbers("relative_bias", table, |x| !x.is_nan(), "no NaN")?;
        let len = table.len() / heads;
        let rows = table.chunks_exact(len);
        Self::build(heads, low, len, |head, n| rows.clone().nth(head).map_or(0.0, |row| row[n]))
    }

    /// As in T5 (Raffel et al., 2020) from its embedding `[buckets, heads]`: half the buckets for a
    /// distance each, the others for ranges that grow to `max_distance`, the last one for all beyond.
    /// With `bidirectional` half of all buckets are for keys after the query; without, those share
    /// the bucket of distance 0.
    ///
    /// ```
    /// # use headwise_kernels::RelativeBias;
    /// let embedding: Vec<f32> = (0..32).map(|bucket| bucket as f32).collect(); // one head
    /// let bias = RelativeBias::t5(&embedding, 1, 128, true)?;
    /// assert_eq!([-200, -12, -1, 0, 1, 12].map(|d| bias.get(0, d)), [15.0, 9.0, 1.0, 0.0, 17.0, 25.0]);
    /// # Ok::<(), headwise_kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Value`] where the embedding's length is not a multiple of `heads`, a number is NaN,
    /// there are fewer than 2 buckets (4, and an even number, with `bidirectional`), or
    /// `max_distance` is not beyond the distances that have buckets of their own;
    /// [`Error::Overflow`] where there is no memory for `2 max_distance` numbers a head.
    pub fn t5(
        embedding: &[f32],
        heads: usize,
        max_distance: usize,
        bidirectional: bool,
    ) -> Result<Self> {
        let buckets = embedding.len().checked_div(heads).unwrap_or(0);
        let (least, step) = if bidirectional { (4, 2) } else { (2, 1) };
        if buckets < least || buckets * heads != embedding.len() || !buckets.is_multiple_of(step) {
            return value_error(
                "relative_bias",
                format_args!("an embedding of {} numbers", embedding.len()),
                format!("[buckets, heads] with {heads} heads and {least} buckets or more, evenly"),
            );
        }
        check_numbers("relative_bias", embedding, |x| !x.is_nan(), "no NaN")?;
        let exact = buckets / step / 2;
        if max_distance <= exact || i64::try_from(max_distance).is_err() {
            return value_error("max_distance", max_distance, format!("more than {exact}"));
        }
        let far = max_distance as i64;
        let high = if bidirectional { far } else { 0 };
        let len = max_distance.saturating_add(1).saturating_add(high as usize);
        Self::build(heads, -far, len, |head, n| {
            let bucket = t5_bucket(n as i64 - far, buckets, max_distance, bidirectional);
            embedding[bucket * heads + head]
        })
    }

    fn build(heads: usize, low: i64, len: usize, at: impl Fn(usize, usize) -> f32) -> Result<Self> {
        let overflow = || Error::Overflow {
            argument: "relative_bias",
            got: format!("{len} distances of {heads} heads"),
            expected: "an amount of memory that can be had".into(),
        };
        let size = len.checked_add(2 * PAD).and_then(|len| len.checked_mul(heads));
        let mut table = Vec::new();
        table.try_reserve_exact(size.ok_or_else(overflow)?).map_err(|_| overflow())?;
        for head in 0..heads {
            table.extend(std::iter::repeat_n(at(head, 0), PAD));
            table.extend((0..len).map(|n| at(head, n)));
            table.extend(std::iter::repeat_n(at(head, len - 1), PAD));
        }
        Ok(Self { heads, low, len, table })
    }

    /// The query heads that it has a bias for.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// The bias of `head` at a distance.
    ///
    /// # Panics
    /// Where there is no such head.
    pub fn get(&self, head: usize, distance: i64) -> f32 {
        self.row(head, distance.into())[0]
    }

    /// The biases of `head` from a distance on, `PAD` of them.
    #[inline]
    pub(crate) fn row(&self, head: usize, distance: i128) -> &[f32] {
        assert!(head < self.heads);
        let pad = PAD as i128;
        let nth = (distance - i128::from(self.low)).clamp(-pad, self.len as i128) + pad;
        &self.table[head * (self.len + 2 * PAD) + nth as usize..][..PAD]
    }
}

/// The bucket of a distance, in the arithmetic of the models that were trained with it: `f32`.
fn t5_bucket(distance: i64, buckets: usize, max_distance: usize, bidirectional: bool) -> usize {
    let (buckets, first) = match (bidirectional, distance > 0) {
        (true, after) => (buckets / 2, if after { buckets / 2 } else { 0 }),
        (false, _) => (buckets, 0),
    };
    let away = if bidirectional { distance.unsigned_abs() } else { distance.min(0).unsigned_abs() };
    let exact = buckets / 2;
    let away = usize::try_from(away).unwrap_or(usize::MAX);
    if away < exact {
        return first + away;
    }
    let growth = (max_distance as f64 / exact as f64).ln() as f32;
    let beyond = (away as f32 / exact as f32).ln() / growth * (buckets - exact) as f32;
    first + (exact + beyond as usize).min(buckets - 1)
}

fn check_numbers(
    argument: &'static str,
    numbers: &[f32],
    good: impl Fn(f32) -> bool,
    expected: &str,
) -> Result<()> {
    match numbers.iter().find(|&&x| !good(x)) {
        Some(x) => value_error(argument, x, expected.into()),
        None => Ok(()),
    }
}

impl Terms<'_> {
    /// Checks that they fit a problem.
    pub(crate) fn check(&self, dims: &Dims) -> Result<()> {
        let heads = dims.q_heads;
        let per_head = |argument, numbers: &[f32]| {
            if numbers.len() == heads {
                return Ok(());
            }
            let got = format!("{} numbers", numbers.len());
            let expected = format!("one for each of the {heads} query heads");
            Err(Error::Value { argument, got, expected })
        };
        if let Some(cap) = self.softcap
            && !(cap.is_finite() && cap > 0.0)
        {
            return value_error("softcap", cap, "a positive finite number".into());
        }
        if let Some(Alibi::Slopes(slopes)) = self.alibi {
            per_head("alibi", slopes)?;
            check_numbers("alibi", slopes, f32::is_finite, "finite slopes")?;
        }
        if let Some(bias) = self.relative_bias
            && bias.heads != heads
        {
            let expected = format!("one for each of the {heads} query heads");
            return value_error("relative_bias", format_args!("{} heads", bias.heads), expected);
        }
        if let Some(sinks) = self.sinks {
            per_head("sinks", sinks)?;
            let good = |x: f32| x < f32::INFINITY;
            check_numbers("sinks", sinks, good, "finite logits, or -inf for none")?;
        }
        Ok(())
    }

    /// Whether scores themselves change.
    pub(crate) fn change_scores(&self) -> bool {
        self.softcap.is_some() || self.alibi.is_some() || self.relative_bias.is_some()
    }

    /// The capped score.
    pub(crate) fn capped(&self, score: f64) -> f64 {
        self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    }

    /// What is added to a score of `head` of `heads` at a distance.
    pub(crate) fn bias(&self, (head, heads): (usize, usize), distance: i128) -> f64 {
        let slope = self.alibi.map_or(0.0, |alibi| f64::from(alibi.slope(head, heads)));
        slope * distance as f64
            + self.relative_bias.map_or(0.0, |bias| f64::from(bias.row(head, distance)[0]))
    }

    /// The logit of a head's sink; -inf: none.
    pub(crate) fn sink(&self, head: usize) -> f64 {
        self.sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[head].into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper, section 3: for 8 heads 1/2, 1/4 ... 1/256; for 16 the geometric means between
    /// them too.
    #[test]
    fn slopes_of_the_paper() {
        for head in 0..8 {
            assert_eq!(alibi_slope(head, 8), 1.0 / (2 << head) as f32);
            assert_eq!(alibi_slope(2 * head + 1, 16), alibi_slope(head, 8));
        }
        assert_eq!(alibi_slope(0, 16), std::f32::consts::FRAC_1_SQRT_2);
        // Of 12 heads the last four are every second of 16 heads, from the first.
        for head in 0..12 {
            let expected =
                if head < 8 { alibi_slope(head, 8) } else { alibi_slope(2 * (head - 8), 16) };
            assert_eq!(alibi_slope(head, 12), expected, "head {head}");
        }
        assert_eq!(alibi_slope(0, 1), 1.0 / 256.0);
    }

    /// The first distance of each bucket in Mesh TensorFlow's and in Transformers' T5: 32 buckets
    /// up to 128.
    #[test]
    fn buckets_of_t5() {
        let first = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for distance in 0..1000_i64 {
            let bucket = first.iter().rposition(|&first| first <= distance);
            let both = [-distance, distance].map(|d| t5_bucket(d, 32, 128, true));
            assert_eq!(Some(both[0]), bucket, "{distance} before");
            let after = if distance == 0 { Some(0) } else { bucket.map(|bucket| bucket + 16) };
            assert_eq!(Some(both[1]), after, "{distance} after");
            assert_eq!(t5_bucket(distance, 32, 128, false), 0);
        }
        let beyond = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113];
        let first: Vec<_> = (0..16).chain(beyond).collect();
        for distance in 0..1000_i64 {
            let bucket = first.iter().rposition(|&first| first <= distance);
            assert_eq!(Some(t5_bucket(-distance, 32, 128, false)), bucket, "{distance} before");
        }
    }

    #[test]
    fn tables_go_on_at_their_ends() {
        let table: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let bias = RelativeBias::by_distance(&table, 3, -1).unwrap_or_else(|e| panic!("{e}"));
        for head in 0..3 {
            for distance in -300..300_i64 {
                let nth = (distance + 1).clamp(0, 3) as usize;
                assert_eq!(bias.get(head, distance), table[4 * head + nth]);
                let row = bias.row(head, distance.into());
                for (ahead, &x) in row.iter().enumerate() {
                    assert_eq!(x, bias.get(head, distance + ahead as i64));
                }
            }
            assert_eq!(bias.row(head, i128::MAX / 2)[127], table[4 * head + 3]);
            assert_eq!(bias.row(head, i128::MIN / 2)[0], table[4 * head]);
        }
    }
}
