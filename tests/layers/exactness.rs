//! Layers against their definition in `f64`, on every instruction set.
//!
//! # The bound
//!
//! Each step of the naive composition carries, beside its numbers, how far from them a computation
//! in `f32` may be; `u = 2^-24`.
//!
//! - A product of rows x, off by `dx`, with weights W has the error of `tests/linear.rs`,
//!   `c = 2 (min(inputs, 768) + inputs / 768 + 3) u` times `Σ|x w| + |b|`, and passes on `Σ|w| dx`.
//! - A score is off by what queries and keys are off, `|scale| Σ (|q| dk + dq |k| + dq dk)`, and by
//!   the chain's own roundings, `m u (head_dim + 8)` with `m = |scale| Σ|q k| + |bias|`. Let `delta`
//!   be the largest such sum among a row's visible keys.
//! - An error in a score is a relative error of its weight. With `e = expm1(delta) + 1e-6 +
//!   (chain + 16) u` as in `tests/common/bounds.rs`, a weight is off by `2.5 e` of itself, an output
//!   of attention by `2.5 e Σ w |v|` and by what the values are off, `Σ w dv`; the log-sum-exp by
//!   `delta + e + 2 u |lse|`.
//! - The output projection is a product as above.
//!
//! Inputs are moderate, so `e` is required to be small, and a second assertion on the largest error
//! keeps the worst case from hiding a defect.

use headwise::oracle::reference::Answer;
use headwise::{Algorithm, AttentionOptions, Causal, Isa, Result, Scale, Shape};
use proptest::prelude::*;
use proptest::sample::select;

use crate::common::bounds::{Arithmetic, Expected, F32, FUSED};
use crate::common::case::{Case, DenseMask, Dims, Inputs, Masks};
use crate::common::for_all;
use crate::common::layers::{Form, Model, Spec, Weights};
use crate::common::strided::{Layout, Strided};

/// No error of a moderate case is larger, relative to the largest number of its kind or to 1; it is
/// some six times what was measured.
const MODERATE: f64 = 1e-5;

/// Numbers, and how far from each a computation may be.
#[derive(Debug, Clone)]
struct Approx {
    values: Vec<f64>,
    errors: Vec<f64>,
}

impl Approx {
    /// Of inputs.
    fn exact(data: &[f32]) -> Self {
        let values: Vec<_> = data.iter().map(|&x| f64::from(x)).collect();
        Self { errors: vec![0.0; values.len()], values }
    }

    fn project(&self, weights: &Weights) -> Self {
        let (inputs, u) = (weights.inputs as f64, FUSED.roundoff);
        let chain = 2.0 * (inputs.min(768.0) + inputs / 768.0 + 3.0) * u;
        let rows = self.values.chunks(weights.inputs).zip(self.errors.chunks(weights.inputs));
        let mut out = Self { values: vec![], errors: vec![] };
        for (x, dx) in rows {
            for (o, w) in weights.weight.chunks(weights.inputs).enumerate() {
                let bias = weights.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
                let (mut sum, mut size, mut passed) = (bias, bias.abs(), 0.0);
                for ((x, dx), &w) in x.iter().zip(dx).zip(w) {
                    let w = f64::from(w);
                    sum += x * w;
                    size += (x.abs() + dx) * w.abs();
                    passed += dx * w.abs();
                }
                out.values.push(sum);
                out.errors.push(passed + chain * size);
            }
        }
        out
    }

    /// `[batch, a, b, dim]` in the order batch, b, a, dim.
    fn swapped(&self, shape: Shape) -> Self {
        Self { values: swapped(&self.values, shape), errors: swapped(&self.errors, shape) }
    }

    #[track_caller]
    fn assert_explains(&self, got: &[f32], what: &str) {
        assert_eq!(got.len(), self.values.len(), "{what}");
        let largest = self.values.iter().filter(|x| x.is_finite());
        let largest = largest.fold(1.0, |max: f64, x| max.max(x.abs()));
        for (at, &got) in got.iter().enumerate() {
            let (got, expected, bound) = (f64::from(got), self.values[at], self.errors[at]);
            let error = if got == expected { 0.0 } else { (got - expected).abs() };
            assert!(error <= bound, "{at}: {got} for {expected}, bound {bound:e}; {what}");
            assert!(error <= MODERATE * largest, "{at}: {got} for {expected}; {what}");
        }
    }
}

fn swapped(data: &[f64], [batch, a, b, dim]: Shape) -> Vec<f64> {
    let strides = [a * b * dim, dim, b * dim, 1].map(|stride| stride as isize);
    Strided { data: data.to_vec(), offset: 0, shape: [batch, b, a, dim], strides }.dense()
}

/// Attention's part of the answer: out, lse and weights.
fn attend(inputs: &Inputs<f64>, errors: [&[f64]; 3], arithmetic: Arithmetic) -> [Approx; 3] {
    let Arithmetic { roundoff: u, tiny, .. } = arithmetic;
    let (d, scale) = (inputs.dims(), inputs.scale_factor().abs());
    let Answer { out, lse, weights } = Expected::of(inputs).answer;
    let [q, k, v] = [&inputs.query, &inputs.key, &inputs.value].map(Strided::dense);
    let [dq, dk, dv] = errors;
    let (mut out_errors, mut lse_errors, mut weight_errors) = (vec![], vec![], vec![]);
    for (at, [b, h, i]) in inputs.rows().into_iter().enumerate() {
        let kv = (b * d.kv_heads + h / d.group) * d.seq_kv;
        let seen: Vec<_> = (0..d.seq_kv).filter(|&j| inputs.is_visible([b, h, i, j])).collect();
        let delta = seen.iter().fold(0.0, |max: f64, &j| {
            let (mut size, mut passed) = (0.0, 0.0);
            for x in 0..d.head_dim {
                let (n, m) = (at * d.head_dim + x, (kv + j) * d.head_dim + x);
                size += (q[n].abs() + dq[n]) * (k[m].abs() + dk[m]);
                passed += q[n].abs() * dk[m] + dq[n] * k[m].abs() + dq[n] * dk[m];
            }
            let size = scale * size + inputs.bias_at([b, h, i, j]).abs();
            max.max(scale * passed + size * arithmetic.score(d.head_dim))
        });
        let e = delta.exp_m1() + arithmetic.sum(seen.len());
        assert!(e < 0.02, "no moderate row: {e}");
        lse_errors.push(delta + e + 2.0 * u * lse[at].abs());
        let weights = &weights[at * d.seq_kv..][..d.seq_kv];
        weight_errors.extend(weights.iter().map(|weight| 2.5 * e * weight + tiny));
        for c in 0..d.value_dim {
            let mut error = tiny;
            for &j in &seen {
                let m = (kv + j) * d.value_dim + c;
                error += weights[j] * (2.5 * e * (v[m].abs() + dv[m]) + dv[m]) + 1e-13 * v[m].abs();
            }
            out_errors.push(error);
        }
    }
    [(out, out_errors), (lse, lse_errors), (weights, weight_errors)]
        .map(|(values, errors)| Approx { values, errors })
}

/// A layer, what is asked of it, and how.
#[derive(Debug, Clone, Copy)]
struct Task {
    spec: Spec,
    masks: Masks,
    /// Unless it is the form's own.
    scale: Option<Scale>,
    unfused: bool,
}

impl Task {
    /// The masks, with queries, keys and values that do not count; no bias is so large that scores
    /// vanish beside it.
    fn masks(&self, spec: Spec) -> Inputs<f32> {
        let scale = self.scale.unwrap_or(match spec.form {
            Form::MultiHead => Scale::InvSqrtHeadDim,
            _ => Scale::One,
        });
        let case = Case { masks: self.masks, scale, ..Case::plain(spec.dims, spec.seed) };
        let inputs = case.inputs();
        let small = |x| if x == f32::MIN { -7.0 } else { x };
        Inputs { bias: inputs.bias.as_ref().map(|bias| bias.map(small)), ..inputs }
    }

    /// Out, lse and weights.
    fn answer(&self, model: &Model, masks: &Inputs<f32>) -> [Approx; 3] {
        let d = model.spec.dims;
        let heads = |n: usize, heads, seq, dim| {
            let x = Approx::exact(&model.hidden[n].dense()).project(&model.weights[n]);
            x.swapped([d.batch, seq, heads, dim])
        };
        let q = heads(0, d.q_heads(), d.seq_q, d.head_dim);
        let k = heads(1, d.kv_heads, d.seq_kv, d.head_dim);
        let v = heads(2, d.kv_heads, d.seq_kv, d.value_dim);
        let tensor = |x: &Approx, heads, seq, dim| {
            Strided::new(&x.values, [d.batch, heads, seq, dim], Layout::Bhsd, 0.0)
        };
        let inputs = Inputs {
            query: tensor(&q, d.q_heads(), d.seq_q, d.head_dim),
            key: tensor(&k, d.kv_heads, d.seq_kv, d.head_dim),
            value: tensor(&v, d.kv_heads, d.seq_kv, d.value_dim),
            ..masks.map(f64::from)
        };
        let arithmetic = if self.unfused { F32 } else { FUSED };
        let [out, lse, weights] = attend(&inputs, [&q.errors, &k.errors, &v.errors], arithmetic);
        let out = out.swapped([d.batch, d.q_heads(), d.seq_q, d.value_dim]);
        let out = match model.spec.form {
            Form::MultiHead => out.project(&model.weights[3]),
            _ => out,
        };
        [out, lse, weights]
    }

    fn check(&self) -> Result<()> {
        let model = self.spec.model();
        let masks = self.masks(model.spec);
        let answer = self.answer(&model, &masks);
        let mut options = AttentionOptions::new().return_lse().return_weights();
        if let Some(scale) = self.scale {
            options = options.scale(scale);
        }
        if self.unfused {
            options = options.algorithm(Algorithm::Unfused);
        }
        for isa in Isa::available() {
            let result = model.forward(&masks.masked(options).isa(isa))?;
            assert_eq!(result.isa, isa);
            let what = format!("{self:?} on {isa}");
            let (Some(lse), Some(weights)) = (&result.lse, &result.weights) else {
                panic!("not returned: {what}")
            };
            assert_eq!(
                [result.out.shape(), lse.shape(), weights.shape()],
                model.spec.output_shapes()
            );
            let got = [&result.out, lse, weights];
            for ((got, expected), part) in got.iter().zip(&answer).zip(["out", "lse", "weights"]) {
                expected.assert_explains(got.data(), &format!("{part} of {what}"));
            }
        }
        Ok(())
    }
}

fn dense_mask() -> impl Strategy<Value = Option<DenseMask>> {
    let layout = select(vec![Layout::Bhsd, Layout::Padded]);
    let mask = (any::<[bool; 3]>(), layout).prop_map(|(axes, layout)| DenseMask { axes, layout });
    prop_oneof![2 => Just(None), 1 => mask.prop_map(Some)]
}

fn tasks() -> impl Strategy<Value = Task> {
    let width = || select(vec![1_usize, 31, 32, 33, 48]);
    let dim = || select(vec![1_usize, 3, 8, 17, 32, 33]);
    let counts = (1..3_usize, 1..3_usize, 1..4_usize);
    let lengths =
        (select(vec![0_usize, 1, 2, 13, 47, 48, 49, 65]), select(vec![0_usize, 1, 47, 48, 49, 65]));
    let dims = (counts, lengths, dim(), dim()).prop_map(
        |((batch, kv_heads, group), (seq_q, seq_kv), head_dim, value_dim)| Dims {
            batch,
            kv_heads,
            group,
            seq_q,
            seq_kv,
            head_dim,
            value_dim,
        },
    );
    let form = select(vec![Form::SelfAttention, Form::Cross, Form::MultiHead, Form::MultiHead]);
    let spec = (form, dims, [width(), width(), width()], width(), any::<[bool; 4]>(), any::<u64>());
    let spec = spec.prop_map(|(form, dims, widths, outputs, biases, seed)| {
        Spec { form, dims, widths, outputs, biases, seed }.fitted()
    });
    let causal = select(vec![
        None,
        None,
        Some(Causal::BottomRight),
        Some(Causal::TopLeft),
        Some(Causal::Offset(20)),
    ]);
    let reach = || select(vec![None, None, Some(3)]);
    let masks = (causal, reach(), reach(), any::<bool>(), dense_mask(), dense_mask());
    let masks = masks.prop_map(|(causal, left, right, key_lengths, boolean, bias)| Masks {
        causal,
        left,
        right,
        key_lengths,
        boolean,
        bias,
        ..Masks::default()
    });
    let scale = select(vec![None, None, Some(Scale::InvSqrtHeadDim), Some(Scale::Value(-0.3))]);
    let unfused = prop::bool::weighted(0.2);
    (spec, masks, scale, unfused).prop_map(|(spec, masks, scale, unfused)| Task {
        spec,
        masks,
        scale,
        unfused,
    })
}

#[test]
fn layers_are_what_they_are_defined_as() {
    for_all(1000, tasks(), |task| task.check().unwrap_or_else(|error| panic!("{error}, {task:?}")));
}
