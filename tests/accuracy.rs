//! The errors of the fused kernel on tensors of real models beside those of PyTorch's `f32` attention:
//! `tests/fixtures/README.md` says how these were found.
#![cfg(feature = "safetensors")]

mod common;

use common::bounds::Expected;
use common::capture::{self, Capture, read};
use headwise::Isa;
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
