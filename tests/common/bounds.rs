//! The f64 answer to a problem, and how far from it a computation may be.
//!
//! # The bound
//!
//! With `u` the unit roundoff (2^-24 for f32), take a row that sees `n` keys. A score is a chain
//! of `head_dim` multiply-adds over `q_d * k_jd`, or of two half as long in the fused kernel, then
//! scaled, with a bias added and the row's reference, a score of the same row, taken away. Let `m_j = sum_d |scale q_d k_jd| + |bias_j|`
//! and `S = max_j m_j`. Each step of the chain rounds a partial sum, at most `m_j` when scaled
//! (where a multiply-add rounds twice, also the term, `u m_j` over all terms; so does the sum of two
//! chains); the factor and its
//! product, the bias, the difference to the reference (at most `2 S`) and the change of base round
//! at most eight times more:
//!
//! `|score error| <= delta = S u (head_dim / chains + 9)`.
//!
//! A probability `exp(score - reference)` then has a relative error of at most
//! `expm1(delta) + 2.5e-7`, 2.5e-7 being that of the exponential. A sum has the error of its
//! longest chain of `c` additions, `c u` relative to the sum of magnitudes: the fused kernel adds
//! by blocks of 128 keys in two chains, `c = 64 + 1 + n / 128`, the unfused path in one, `c = n`. Merging and
//! rescaling cost a few exponentials more, whose error the sums of probabilities and of values
//! share but for rounding. So, with `e = expm1(delta) + 1e-6 + (c + 16) u` and to first order,
//!
//! - a weight has relative error `2 e`: its own and that of the sum it is divided by;
//! - an output has absolute error `2 e A`, `A = sum_j weight_j |v_j|`;
//! - the log-sum-exp has absolute error `delta + e + 2 u |lse|`.
//!
//! The second order is covered by 2.5 instead of 2 as long as `e <= 0.1`; beyond, the only claim
//! is that weights are weights and outputs convex combinations. Keys whose score lies more than
//! 150 (and its own error) under the maximum have weights below 1e-65 and take no part in `S`.
//! Where probabilities are rounded to `bf16` before they meet the values, an output has `2^-8 A` more.
//! The fused kernel takes probabilities below 2^-100 for 0; where values are huge those below 2^-126,
//! relative to a reference raised by 2^80: 1e-13 of the largest value in the column.

use headwise::oracle::reference::{self, Answer, Dense};
use headwise::{Attention, Element, Tensor};

use super::case::Inputs;
use super::terms::Own;

/// The arithmetic of a computation.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic {
    /// The unit roundoff.
    pub roundoff: f64,
    /// The error of a few exponentials.
    pub exp: f64,
    /// The weights that count as 0, and what underflows.
    pub tiny: f64,
    /// Chains into which a sum is cut, of a score or of a block.
    pub chains: usize,
    /// Keys that are summed before they are added to those before them.
    pub block: usize,
    /// The unit roundoff of probabilities where values are multiplied by them, if they are rounded.
    pub probabilities: f64,
}

impl Arithmetic {
    /// `delta / S`.
    pub fn score(&self, head_dim: usize) -> f64 {
        self.roundoff * (head_dim.div_ceil(self.chains) + 9) as f64
    }

    /// `e - expm1(delta)` of a row that sees `n` keys.
    pub fn sum(&self, n: usize) -> f64 {
        let chain = n.min(self.block).div_ceil(self.chains) + 1 + n / self.block;
        self.exp + self.roundoff * (chain + 16) as f64
    }
}

/// The fused kernel.
pub const FUSED: Arithmetic = Arithmetic { tiny: 8e-31, chains: 2, block: 128, ..F32 };
/// The fused kernel on pairs of `bf16`.
pub const PAIRS: Arithmetic = Arithmetic { probabilities: 1.0 / 256.0, ..FUSED };
/// The unfused path in f32.
pub const F32: Arithmetic = Arithmetic {
    roundoff: 1.0 / (1 << 24) as f64,
    exp: 1e-6,
    tiny: 1e-37,
    chains: 1,
    block: usize::MAX,
    probabilities: 0.0,
};
/// The unfused path in f64.
pub const F64: Arithmetic = Arithmetic {
    roundoff: f64::EPSILON / 2.0,
    exp: 1e-15,
    tiny: 1e-300,
    chains: 1,
    block: usize::MAX,
    probabilities: 0.0,
};

/// What a bound needs to know of a row.
#[derive(Debug, Clone)]
struct RowFacts {
    /// `S`.
    magnitude: f64,
    /// `n`.
    seen: usize,
    /// For each column `A` and the largest visible |v|.
    columns: Vec<(f64, f64)>,
}

/// The f64 answer with what its bounds need.
#[derive(Debug, Clone)]
pub struct Expected {
    pub answer: Answer,
    rows: Vec<RowFacts>,
    head_dim: usize,
}

/// What was computed, dense.
#[derive(Debug, Clone)]
pub struct Got {
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
    pub weights: Vec<f64>,
}

impl Got {
    /// Of a result with log-sum-exp and weights.
    pub fn of<T: Element>(result: &Attention<T>) -> Self {
        let part = |tensor: &Option<Tensor<T>>| {
            tensor.as_ref().map_or_else(Vec::new, |tensor| doubles(tensor.data()))
        };
        let out = doubles(result.out.data());
        Self { out, lse: part(&result.lse), weights: part(&result.weights) }
    }
}

fn doubles<T: Element>(data: &[T]) -> Vec<f64> {
    data.iter().map(|x| x.to_f64()).collect()
}

fn tensors<T: Element>(inputs: &Inputs<T>) -> [Vec<f64>; 3] {
    [&inputs.query, &inputs.key, &inputs.value].map(|tensor| doubles(&tensor.dense()))
}

fn dense<'a, T: Element>(inputs: &Inputs<T>, [query, key, value]: [&'a [f64]; 3]) -> Dense<'a> {
    let d = inputs.dims();
    Dense {
        batch: d.batch,
        q_heads: d.q_heads(),
        kv_heads: d.kv_heads,
        seq_q: d.seq_q,
        seq_kv: d.seq_kv,
        head_dim: d.head_dim,
        value_dim: d.value_dim,
        query,
        key,
        value,
        scale: inputs.scale_factor(),
    }
}

impl Expected {
    pub fn of<T: Element>(inputs: &Inputs<T>) -> Self {
        let [query, key, value] = tensors(inputs);
        Self::with(inputs, &dense(inputs, [&query, &key, &value]), None)
    }

    /// With a term of the caller's that lets errors of its scores grow by no more than 1, and adds
    /// no more than `Own::magnitude`.
    pub fn of_own<T: Element>(inputs: &Inputs<T>, own: &Own) -> Self {
        let [query, key, value] = tensors(inputs);
        Self::with(inputs, &dense(inputs, [&query, &key, &value]), Some(own))
    }

    fn with<T: Element>(inputs: &Inputs<T>, problem: &Dense<'_>, own: Option<&Own>) -> Self {
        let d = inputs.dims();
        let terms = &inputs.terms;
        let slopes = terms.slopes(d.q_heads());
        let slopes: Option<Vec<f64>> =
            slopes.map(|slopes| slopes.iter().map(|&x| x.into()).collect());
        let sinks: Option<Vec<f64>> =
            terms.sinks.as_ref().map(|sinks| sinks.iter().map(|&x| x.into()).collect());
        let relative = |h, distance| terms.relative_at(h, distance);
        let user = |score, b, h, i, j| {
            own.map_or(score, |own| {
                let position = i as i128 + inputs.diagonal(b);
                own.wide(score, [b, h, i, j], position)
            })
        };
        let answer = reference::attention_with(
            *problem,
            |b, h, i, j| inputs.sees([b, h, i, j]),
            &reference::Terms {
                softcap: terms.softcap.map(f64::from),
                bias: &|b, h, i, j| inputs.bias_at([b, h, i, j]),
                slopes: slopes.as_deref(),
                relative: terms.relative.is_some().then_some(&relative),
                offset: &|b| inputs.diagonal(b),
                user: Some(&user),
                sinks: sinks.as_deref(),
            },
        );
        let rows = inputs.rows().into_iter().enumerate();
        let rows = rows.map(|(at, row)| {
            let weights = &answer.weights[at * d.seq_kv..][..d.seq_kv];
            facts(inputs, own, problem, row, (at, weights))
        });
        let rows = rows.collect();
        Self { answer, rows, head_dim: d.head_dim }
    }

    /// Panics where `got` is farther from the answer than the arithmetic explains.
    pub fn assert_explains(&self, got: &Got, arithmetic: Arithmetic, what: &str) {
        let Arithmetic { roundoff: u, exp, tiny, probabilities, .. } = arithmetic;
        let (width, keys) = match self.rows.len() {
            0 => return,
            n => (self.answer.out.len() / n, self.answer.weights.len() / n),
        };
        for (r, row) in self.rows.iter().enumerate() {
            let delta = row.magnitude * arithmetic.score(self.head_dim);
            let e = delta.exp_m1() + arithmetic.sum(row.seen);
            let near = |part: &str, at: usize, pair: (f64, f64), bound: f64| {
                let ok = pair.0 == pair.1 || (pair.0 - pair.1).abs() <= bound;
                assert!(
                    ok,
                    "{part} {at} of row {r}: {} for {}, bound {bound:e}; {what}",
                    pair.0, pair.1
                );
            };
            let certain = e <= 0.1;
            let out = r * width..(r + 1) * width;
            let pairs = got.out[out.clone()].iter().zip(&self.answer.out[out]);
            for (c, ((&got, &expected), &(sum, largest))) in pairs.zip(&row.columns).enumerate() {
                if certain {
                    let bound = (2.5 * e + probabilities) * sum + 1e-13 * largest + tiny;
                    near("out", c, (got, expected), bound);
                } else {
                    let convex =
                        got.abs() <= largest * (1.0 + 2.5 * exp + 1e-3 + probabilities) + tiny;
                    assert!(convex, "out {c} of row {r}: {got} beyond {largest}; {what}");
                }
            }
            if certain {
                let bound = delta + e + 2.0 * u * self.answer.lse[r].abs();
                near("lse", 0, (got.lse[r], self.answer.lse[r]), bound);
            }
            let weights = r * keys..(r + 1) * keys;
            let pairs = got.weights[weights.clone()].iter().zip(&self.answer.weights[weights]);
            for (j, (&got, &expected)) in pairs.enumerate() {
                if certain {
                    near("weight", j, (got, expected), 2.5 * e * expected + tiny);
                } else {
                    let most = 1.0 + 2.5 * e;
                    assert!((0.0..=most).contains(&got), "weight {j} of row {r}: {got}; {what}");
                }
            }
        }
    }

    /// The largest error of an output, relative to the largest visible value of its column.
    pub fn largest_error(&self, got: &Got) -> f64 {
        let columns = self.rows.iter().flat_map(|row| &row.columns);
        let pairs = got.out.iter().zip(&self.answer.out);
        pairs.zip(columns).fold(0.0, |worst, ((got, expected), &(_, largest))| {
            worst.max((got - expected).abs() / largest.max(f64::MIN_POSITIVE))
        })
    }
}

fn facts<T: Element>(
    inputs: &Inputs<T>,
    own: Option<&Own>,
    p: &Dense<'_>,
    [b, h, i]: [usize; 3],
    (at, weights): (usize, &[f64]),
) -> RowFacts {
    let kv = b * p.kv_heads + h / (p.q_heads / p.kv_heads);
    let q = &p.query[at * p.head_dim..][..p.head_dim];
    let mut columns = vec![(0.0, 0.0); p.value_dim];
    let mut scores = vec![];
    let position = i as i128 + inputs.diagonal(b);
    let hides = |j: usize| own.is_some_and(|own| own.hides([b, h, i, j], position));
    for j in (0..p.seq_kv).filter(|&j| inputs.is_visible([b, h, i, j]) && !hides(j)) {
        let k = &p.key[(kv * p.seq_kv + j) * p.head_dim..][..p.head_dim];
        let v = &p.value[(kv * p.seq_kv + j) * p.value_dim..][..p.value_dim];
        for (column, v) in columns.iter_mut().zip(v) {
            *column = (column.0 + weights[j] * v.abs(), f64::max(column.1, v.abs()));
        }
        let bias = inputs.bias_at([b, h, i, j]);
        let distance = j as i128 - position;
        let others = inputs.terms.biases(h, p.q_heads, distance);
        let terms = q.iter().zip(k).map(|(q, k)| p.scale * q * k);
        let (sum, abs) = terms.fold((0.0, 0.0), |(sum, abs), x| (sum + x, abs + x.abs()));
        // The relative error of the cap's tanh, 8e-7, is what the score has in 13 roundings more.
        let (sum, abs) = match inputs.terms.softcap.map(f64::from) {
            Some(cap) => (cap * (sum / cap).tanh(), 2.5 * abs),
            None => (sum, abs),
        };
        let (sum, abs) = (sum + bias + others[0] + others[1], abs + bias.abs());
        let abs = abs + others[0].abs() + others[1].abs();
        match own {
            Some(own) => {
                let score = own.wide(sum, [b, h, i, j], position);
                scores.push((score, abs + own.magnitude(distance, h)));
            }
            None => scores.push((sum, abs)),
        }
    }
    let sink = inputs.terms.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[h].into());
    let row_max = scores.iter().fold(sink, |max, &(score, _)| max.max(score));
    // 1e-4 is above (head_dim + 8) u for f32.
    let counts = |&&(score, m): &&(f64, f64)| score + 1e-4 * m >= row_max - 150.0;
    let magnitude = scores.iter().filter(counts).fold(0.0, |max, &(_, m)| f64::max(max, m));
    RowFacts { magnitude, seen: scores.len(), columns }
}
