//! Real activations against answers that others computed in float64: every capture, on every
//! instruction set of this machine. `docs/numerics.md` says where the tolerances come from.
#![cfg(feature = "safetensors")]

mod common;

use common::capture::{self, Capture, read};
use headwise::safetensors::{read_f32, read_tensor};
use headwise::{Algorithm, AttentionOptions, Isa, Result, Tensor, dot_product_attention};
use safetensors::SafeTensors;

/// Relative to the largest magnitude in the row; absolute for lse.
const TOLERANCE: f32 = 2e-5;
/// Absolute.
const WEIGHTS_TOLERANCE: f32 = 1e-5;

fn assert_rows_close(got: &[f32], expected: &[f32], width: usize, tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (row, (got, expected)) in got.chunks(width).zip(expected.chunks(width)).enumerate() {
        let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        for (got, expected) in got.iter().zip(expected) {
            let error = (got - expected).abs();
            assert!(error <= tolerance * largest, "{what}, row {row}: {got} for {expected}");
        }
    }
}

fn check(capture: Capture) -> Result<()> {
    let bytes = capture.bytes();
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{capture:?}: {e}"));
    let inputs = capture.inputs();
    let out: Tensor = read_tensor(&file, "out")?;
    let (lse, _) = read_f32(&file, "lse")?;
    for isa in Isa::available() {
        for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
            let options = inputs.options().isa(isa).algorithm(algorithm).return_lse();
            let result = inputs.run_with(&options);
            let what = format!("{} on {isa}, {algorithm:?}", capture.name);
            assert_eq!(result.isa, isa, "{what}");
            let width = out.shape()[3];
            assert_rows_close(result.out.data(), out.data(), width, TOLERANCE, &what);
            let got = result.lse.as_ref().map_or(&[][..], |lse| lse.data());
            assert_eq!(got.len(), lse.len());
            for (got, expected) in got.iter().zip(&lse) {
                assert!((got - expected).abs() <= TOLERANCE, "{what}: lse {got} for {expected}");
            }
        }
    }
    Ok(())
}

#[test]
fn encoder_self_attention() -> Result<()> {
    capture::ENCODERS.into_iter().try_for_each(check)
}

#[test]
fn grouped_causal_prefill() -> Result<()> {
    capture::PREFILLS.into_iter().try_for_each(check)
}

#[test]
fn decode_step() -> Result<()> {
    check(capture::DECODE)
}

#[test]
fn cross_attention() -> Result<()> {
    check(capture::CROSS)
}

#[test]
fn dot_product_form_with_weights() -> Result<()> {
    let bytes = read("forms.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{e}"));
    let tensor = |part| read_tensor(&file, &format!("dot_product.{part}"));
    let (q, k, v) = (tensor("q")?, tensor("k")?, tensor("v")?);
    let (out, weights) = (tensor("out")?, tensor("weights")?);
    for isa in Isa::available() {
        for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
            let options = AttentionOptions::new().isa(isa).algorithm(algorithm).return_weights();
            let result = dot_product_attention(q.view(), k.view(), v.view(), &options)?;
            let what = format!("dot product on {isa}, {algorithm:?}");
            assert_rows_close(result.out.data(), out.data(), 32, TOLERANCE, &what);
            let got = result.weights.as_ref().map_or(&[][..], |weights| weights.data());
            assert_eq!(got.len(), weights.data().len());
            for (got, expected) in got.iter().zip(weights.data()) {
                let error = (got - expected).abs();
                assert!(error <= WEIGHTS_TOLERANCE, "{what}: weight {got} for {expected}");
            }
        }
    }
    Ok(())
}
