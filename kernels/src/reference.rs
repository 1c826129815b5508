//! The executable specification: attention in `f64`, naive and obvious. It shares no code with
//! what it checks; dense arrays in, dense arrays out.
//!
//! For each row, over its visible keys: `score = scale * q . k`, then as its [`Terms`] say, in the
//! order in which they stand there; `row_max = max score`; `row_sum = sum exp(score - row_max)`;
//! `weight = exp(score - row_max) / row_sum`; `out = sum weight * value`;
//! `lse = row_max + ln row_sum`. A bias of exactly -inf hides the key, and so does a score that the
//! last term makes -inf. A row that sees nothing, or nothing but scores of -inf, has `out = 0`,
//! `weights = 0` and `lse = -inf`. A sink adds `exp(sink - row_max)` to `row_sum` and nothing to
//! `out`.

/// The extents and the data of a dense attention problem, each tensor in memory order batch,
/// heads, seq, dim.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Dense<'a> {
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub seq_q: usize,
    pub seq_kv: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub query: &'a [f64],
    pub key: &'a [f64],
    pub value: &'a [f64],
    pub scale: f64,
}

/// What [`attention`] computes, dense: `out` `[batch, q_heads, seq_q, value_dim]`, `lse` without
/// the last axis, `weights` with `seq_kv` instead.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Answer {
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
    pub weights: Vec<f64>,
}

/// What happens to a scaled score, in this order. Functions take batch, query head, query and key.
pub struct Terms<'a> {
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// Added.
    pub bias: &'a dyn Fn(usize, usize, usize, usize) -> f64,
    /// For each query head a slope; `slope * (j - (i + offset))` is added.
    pub slopes: Option<&'a [f64]>,
    /// By query head and `j - (i + offset)`, added.
    pub relative: Option<&'a dyn Fn(usize, i128) -> f64>,
    /// Of a batch entry's diagonal: query `i` stands at key `i + offset`.
    pub offset: &'a dyn Fn(usize) -> i128,
    /// From a score to the score.
    pub user: Option<&'a dyn Fn(f64, usize, usize, usize, usize) -> f64>,
    /// For each query head a logit in the denominator, -inf for none.
    pub sinks: Option<&'a [f64]>,
}

impl std::fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms").field("softcap", &self.softcap).finish_non_exhaustive()
    }
}

impl Terms<'_> {
    /// The score behind all terms of a key that the bias does not hide.
    fn apply(&self, mut score: f64, [b, h, i, j]: [usize; 4]) -> f64 {
        if let Some(cap) = self.softcap {
            score = cap * (score / cap).tanh();
        }
        score += (self.bias)(b, h, i, j);
        let distance = j as i128 - (i as i128 + (self.offset)(b));
        if let Some(slopes) = self.slopes {
            score += slopes[h] * distance as f64;
        }
        if let Some(relative) = self.relative {
            score += relative(h, distance);
        }
        match self.user {
            Some(user) => user(score, b, h, i, j),
            None => score,
        }
    }
}

/// [`attention_with`] no terms but a bias.
///
/// # Panics
/// As [`attention_with`].
pub fn attention(
    p: Dense<'_>,
    visible: impl Fn(usize, usize, usize, usize) -> bool,
    bias: impl Fn(usize, usize, usize, usize) -> f64,
) -> Answer {
    let terms = Terms {
        softcap: None,
        bias: &bias,
        slopes: None,
        relative: None,
        offset: &|_| 0,
        user: None,
        sinks: None,
    };
    attention_with(p, visible, &terms)
}

/// Attention by the definition. `visible(b, h, i, j)` says whether query `i` of query head `h`
/// sees key `j`; terms are asked for visible keys only.
///
/// # Panics
/// Where the slices are shorter than the extents: it is a test's tool.
pub fn attention_with(
    p: Dense<'_>,
    visible: impl Fn(usize, usize, usize, usize) -> bool,
    terms: &Terms<'_>,
) -> Answer {
    let mut answer = Answer { out: vec![], lse: vec![], weights: vec![] };
    for b in 0..p.batch {
        for h in 0..p.q_heads {
            let kv = b * p.kv_heads + h / (p.q_heads / p.kv_heads);
            for i in 0..p.seq_q {
                let q = row(p.query, (b * p.q_heads + h) * p.seq_q + i, p.head_dim);
                let seen: Vec<(usize, f64)> = (0..p.seq_kv)
                    .filter(|&j| visible(b, h, i, j))
                    .filter(|&j| (terms.bias)(b, h, i, j) != f64::NEG_INFINITY)
                    .map(|j| {
                        let k = row(p.key, kv * p.seq_kv + j, p.head_dim);
                        let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                        (j, terms.apply(p.scale * dot, [b, h, i, j]))
                    })
                    .filter(|&(_, score)| score != f64::NEG_INFINITY)
                    .collect();
                let sink = terms.sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[h]);

                let row_max = seen.iter().fold(f64::NEG_INFINITY, |max, &(_, s)| {
                    if s.is_nan() || max.is_nan() { f64::NAN } else { max.max(s) }
                });
                let mut out = vec![0.0; p.value_dim];
                let mut weights = vec![0.0; p.seq_kv];
                let mut lse = sink;
                if row_max != f64::NEG_INFINITY {
                    // The largest of all, so that nothing overflows.
                    let top = if sink > row_max { sink } else { row_max };
                    let row_sum: f64 = seen.iter().map(|&(_, s)| (s - top).exp()).sum();
                    let row_sum = row_sum + (sink - top).exp();
                    lse = top + row_sum.ln();
                    for &(j, s) in &seen {
                        weights[j] = (s - top).exp() / row_sum;
                        let v = row(p.value, kv * p.seq_kv + j, p.value_dim);
                        out.iter_mut().zip(v).for_each(|(out, v)| *out += weights[j] * v);
                    }
                }
                answer.out.extend(out);
                answer.lse.push(lse);
                answer.weights.extend(weights);
            }
        }
    }
    answer
}

fn row(data: &[f64], index: usize, len: usize) -> &[f64] {
    &data[index * len..][..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_worked_by_hand() {
        // Scores ln 1 and ln 3 give weights 1/4 and 3/4.
        let p = Dense {
            batch: 1,
            q_heads: 1,
            kv_heads: 1,
            seq_q: 1,
            seq_kv: 3,
            head_dim: 1,
            value_dim: 1,
            query: &[1.0],
            key: &[0.0, 3.0_f64.ln(), f64::NAN],
            value: &[4.0, 8.0, f64::NAN],
            scale: 1.0,
        };
        let answer = attention(p, |_, _, _, j| j < 2, |_, _, _, _| 0.0);
        assert!((answer.out[0] - 7.0).abs() < 1e-12);
        assert!((answer.lse[0] - 4.0_f64.ln()).abs() < 1e-12);
        assert!((answer.weights[1] - 0.75).abs() < 1e-12);
        // A sink of ln 4 takes half.
        let terms = Terms {
            softcap: None,
            bias: &|_, _, _, _| 0.0,
            slopes: None,
            relative: None,
            offset: &|_| 0,
            user: None,
            sinks: Some(&[4.0_f64.ln()]),
        };
        let halved = attention_with(p, |_, _, _, j| j < 2, &terms);
        assert!(
            (halved.out[0] - 3.5).abs() < 1e-12 && (halved.lse[0] - 8.0_f64.ln()).abs() < 1e-12
        );
        let nothing = attention(p, |_, _, _, _| false, |_, _, _, _| 0.0);
        assert_eq!((nothing.out[0], nothing.lse[0]), (0.0, f64::NEG_INFINITY));
    }
}
