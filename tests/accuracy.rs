//! The errors of the fused kernel on tensors of real models beside those of PyTorch's attention in the
//! same type: `tests/fixtures/README.md` says how these were found. Of a cache of integers, which PyTorch
//! has not, the measures by which quantised attention is judged.
#![cfg(feature = "safetensors")]

mod common;

use common::bounds::Expected;
use common::capture::{self, Capture, read};
use common::narrow::{integers, rounded};
use common::strided::Layout;
use headwise::{
    Closeness, Isa, Outputs, Storage, ViewMut, Workspace, attention, attention_into, bf16, f16,
};
use serde_json::Value;

/// How many times PyTorch's largest error ours may be: where one element of thousands errs most is
/// chance.
const MAX_RATIO: f64 = 1.5;

/// The root of the mean square, and the largest magnitude, of `got - expected`.
fn errors(got: &[f32], expected: &[f64]) -> [f64; 2] {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(&got, expected)| f64::from(got) - expected);
    let squares: f64 = errors.clone().map(|e| e * e).sum();
    [(squares / got.len() as f64).sqrt(), errors.map(f64::abs).fold(0.0, f64::max)]
}

fn check(captures: impl IntoIterator<Item = Capture>, on: impl Fn(Isa) -> bool) {
    let torch: Value = serde_json::from_slice(&read("torch_sdpa.json")).unwrap();
    let mut misses = Vec::new();
    for capture in captures {
        let theirs = &torch["captures"][capture.name];
        let [torch_rms, torch_max] = ["rms", "max"].map(|name| theirs[name].as_f64().unwrap());
        let inputs = capture.inputs();
        let expected = Expected::of(&inputs).answer.out;
        for isa in Isa::available().filter(|&isa| on(isa)) {
            let result = inputs.run_with(&inputs.options().isa(isa));
            let [rms, max] = errors(result.out.data(), &expected);
            let what = format!(
                "{} on {isa}: rms {rms:.2e} to PyTorch's {torch_rms:.2e}, largest {max:.2e} to \
                 {torch_max:.2e}",
                capture.name
            );
            println!("{what}");
            if !(rms <= torch_rms && max <= MAX_RATIO * torch_max) {
                misses.push(what);
            }
        }
    }
    assert!(misses.is_empty(), "{misses:#?}");
}

#[test]
fn errs_no_more_than_pytorch() {
    check(capture::ENCODERS.into_iter().chain(capture::PREFILLS).chain([capture::CROSS]), |_| true);
}

/// Nine rows alone, where the two roundings of a product that is not fused already show.
#[test]
fn errs_no_more_than_pytorch_in_a_decoding_step() {
    check([capture::DECODE], |isa| isa != Isa::Portable);
}

fn all() -> impl Iterator<Item = Capture> {
    let [prefills, steps] = [&capture::PREFILLS[..], &[capture::DECODE, capture::CROSS]];
    capture::ENCODERS.into_iter().chain(prefills.iter().copied()).chain(steps.iter().copied())
}

/// Of tensors in half the width, which are the numbers asked for.
fn check_halves<S: Storage<Compute = f32>>(name: &str) {
    let torch: Value = serde_json::from_slice(&read("torch_sdpa.json")).unwrap();
    let mut misses = Vec::new();
    for capture in all() {
        let theirs = &torch["captures"][capture.name][name];
        let [torch_rms, torch_max] = ["rms", "max"].map(|name| theirs[name].as_f64().unwrap());
        let ([query, key, value], wide) = rounded::<S>(&capture.inputs());
        let expected = Expected::of(&wide).answer.out;
        for isa in Isa::available() {
            let options = wide.options().isa(isa);
            let done = attention(query.view(), key.view(), value.view(), &options);
            let out = done.unwrap_or_else(|error| panic!("{error}")).out;
            let out: Vec<f32> = out.data().iter().map(|x| x.widen()).collect();
            let [rms, max] = errors(&out, &expected);
            let what = format!(
                "{} in {name} on {isa}: rms {rms:.2e} to PyTorch's {torch_rms:.2e}, largest {max:.2e} \
                 to {torch_max:.2e}",
                capture.name
            );
            println!("{what}");
            // At its worst element PyTorch too may err by the rounding of the output alone. In pairs
            // probabilities are rounded, as they are there: which of the two errs less in a few rows is chance.
            let rounds = name == "bfloat16" && isa == Isa::Avx512Bf16;
            let [most_rms, most_max] = if rounds { [1.02, MAX_RATIO] } else { [1.0, 1.01] };
            if !(rms <= most_rms * torch_rms && max <= most_max * torch_max) {
                misses.push(what);
            }
        }
    }
    assert!(misses.is_empty(), "{misses:#?}");
}

#[test]
fn halves_err_no_more_than_pytorch() {
    check_halves::<bf16>("bfloat16");
    check_halves::<f16>("float16");
}

#[test]
fn a_cache_of_integers_is_close_enough() {
    for capture in all() {
        let inputs = capture.inputs();
        let [(key, _), (value, _)] =
            [&inputs.key, &inputs.value].map(|tensor| integers(tensor, Layout::Bhsd));
        let expected = Expected::of(&inputs).answer.out;
        for isa in Isa::available() {
            let [batch, heads, seq, _] = inputs.query.shape;
            let shape = [batch, heads, seq, inputs.value.shape[3]];
            let mut out = vec![0.0_f32; shape.iter().product()];
            let options = inputs.options().isa(isa);
            let view = ViewMut::bhsd(&mut out, shape).unwrap_or_else(|error| panic!("{error}"));
            let (q, k, v) = (inputs.query.view(), key.view(), value.view());
            let ran = attention_into(q, k, v, &options, Outputs::new(view), &mut Workspace::new());
            assert_eq!(ran, Ok(isa));
            let Closeness { cosine, relative_l1: l1, .. } =
                Closeness::of(&out, expected.iter().copied());
            let what =
                format!("{} on {isa}: cosine {cosine:.6}, relative L1 {l1:.4}", capture.name);
            println!("{what}");
            assert!(cosine >= 0.999 && l1 <= 0.03, "{what}");
        }
    }
}
