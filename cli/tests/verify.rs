//! Captures against their answers, right and wrong.

mod common;

use common::{Part, fixture, headwise_on, qkv, write};
use safetensors::Dtype;

#[test]
fn every_fixture_passes() {
    for (name, flags) in [
        ("minilm_l0_t128", ""),
        ("minilm_l4_t128", ""),
        ("smollm2_l2_prefill256", ""),
        ("smollm2_l18_prefill256", " --causal --scale 0.125"),
        ("smollm2_l18_decode_kv257", " --causal"),
        ("whisper_dec_cross_l0_q9_k1500_f16", " --threads 1 --isa portable"),
        ("forms", " --prefix dot_product."),
    ] {
        let line = format!("verify {{}} --json{flags}");
        let report = headwise_on(&line, &fixture(&format!("{name}.safetensors"))).objects(0);
        assert_eq!(report[0]["pass"], true, "{name}");
        assert!(report[0]["out"]["mean_absolute"].as_f64().unwrap() > 0.0, "{name}");
        assert_eq!(report[0]["lse"].is_object(), name != "forms");
        assert_eq!(report[0]["weights"].is_object(), name == "forms");
    }
}

#[test]
fn flags_override_the_file() {
    let prefill = fixture("smollm2_l18_prefill256.safetensors");
    for (flags, code, mask) in [
        ("--causal-top-left", 0, "causal-top-left"),
        ("--window-right 0", 0, "window-right 0"),
        ("--causal --key-lengths 256", 0, "causal + key-lengths [256]"),
        ("--causal --key-starts 0 --prefix-lm 0", 0, "causal + key-starts [0] + prefix [0]"),
        ("--causal --key-starts 200", 1, "causal + key-starts [200]"),
        ("--causal --documents 0,256", 0, "causal + documents [0, 256]"),
        ("--causal --documents 0,9,256", 1, "causal + documents [0, 9, 256]"),
        ("--window-left 255 --causal", 0, "causal + window-left 255"),
        ("--window-left 3 --causal", 1, "causal + window-left 3"),
        ("--no-mask", 1, "none"),
        ("--scale 1", 1, "causal"),
        ("--scale 1/sqrt(64)", 0, "causal"),
        ("--tolerance 1e-9", 1, "causal"),
    ] {
        let report = headwise_on(&format!("verify {{}} --json {flags}"), &prefill).objects(code);
        assert_eq!(report[0]["mask"], mask, "{flags}");
        assert_eq!(report[0]["pass"], code == 0, "{flags}");
    }
}

#[test]
fn a_wrong_scale_fails_in_words() {
    let ran = headwise_on("verify {} --scale 1", &fixture("minilm_l4_t128.safetensors"));
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""));
    assert!(ran.stdout.contains("FAIL: tolerance 2e-5"), "{}", ran.stdout);
}

/// The file of `qkv` with `out` of zeros and more.
fn file_with(more: Vec<Part>) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    let mut parts = qkv();
    parts.push(Part::f32("out", &[2, 4, 5, 6], &[0.0; 240]));
    parts.retain(|part| more.iter().all(|other| other.name != part.name));
    parts.extend(more);
    write(file.path(), &parts, &[]);
    file
}

#[test]
fn masks_from_tensors() {
    // Nothing visible gives zeros, which is what the file expects.
    for (dtype, shape, bytes) in [
        (Dtype::BOOL, &[5, 7][..], vec![0; 35]),
        (Dtype::U8, &[1, 5, 7], vec![0; 35]),
        (Dtype::BOOL, &[2, 4, 5, 7], vec![0; 280]),
        (Dtype::F32, &[1, 7], f32::NEG_INFINITY.to_le_bytes().repeat(7)),
        (Dtype::F16, &[2, 1, 1, 7], 0xfc00_u16.to_le_bytes().repeat(14)),
    ] {
        let file = file_with(vec![Part::bytes("m", dtype, shape, &bytes)]);
        let ran = headwise_on("verify {} --json --mask-tensor m", file.path());
        assert_eq!(ran.objects(0)[0]["pass"], true, "{dtype:?} {shape:?}");
        headwise_on("verify {} --json", file.path()).objects(1);
    }
}

#[test]
fn masks_that_cannot_be() {
    for (dtype, shape, bytes, part) in [
        (Dtype::BOOL, &[1, 7][..], vec![2; 7], "byte of 2"),
        (Dtype::U8, &[1, 7], vec![255; 7], "byte of 255"),
        (Dtype::I64, &[1, 7], vec![0; 56], "type I64"),
        (Dtype::BOOL, &[7], vec![1; 7], "shape [7]"),
        (Dtype::BOOL, &[1, 1, 1, 5, 7], vec![1; 35], "2 to 4 axes"),
        (Dtype::BOOL, &[5, 1], vec![1; 5], "[1, 1, 5, 1]"),
        (Dtype::BOOL, &[3, 7], vec![1; 21], "[1, 1, 3, 7]"),
    ] {
        let file = file_with(vec![Part::bytes("m", dtype, shape, &bytes)]);
        let ran = headwise_on("verify {} --mask-tensor m", file.path());
        ran.refuses(&["mask", part]);
    }
    let file = file_with(vec![]);
    headwise_on("verify {} --mask-tensor m", file.path()).refuses(&["--mask-tensor", "\"m\""]);
}

#[test]
fn what_is_not_finite_fails() {
    let nan = Part::f32("out", &[2, 4, 5, 6], &[f32::NAN; 240]);
    let report = &headwise_on("verify {} --json", file_with(vec![nan]).path()).objects(1)[0];
    assert!(report["out"]["max_relative"].is_null(), "JSON has no infinity");
}

#[test]
fn tensors_that_do_not_fit() {
    let ran = |part| headwise_on("verify {}", file_with(vec![part]).path());
    ran(Part::waves("out", &[2, 4, 5, 7])).refuses(&["\"out\"", "[2, 4, 5, 7]", "[2, 4, 5, 6]"]);
    ran(Part::waves("lse", &[2, 4, 4])).refuses(&["\"lse\"", "[2, 4, 4]", "[2, 4, 5]"]);
    ran(Part::waves("q", &[4, 5, 8])).refuses(&["\"q\"", "[4, 5, 8]", "four axes"]);
    ran(Part::waves("k", &[2, 2, 7, 9])).refuses(&["key", "[2, 2, 7, 9]"]);
    ran(Part::waves("k", &[2, 3, 7, 8])).refuses(&["key", "heads"]);
    ran(Part::waves("k", &[2, 2, 7, 0])).refuses(&["key", "dim of at least 1"]);
    ran(Part::bytes("v", Dtype::I64, &[2, 2, 7, 6], &[0; 1344])).refuses(&["\"v\"", "I64"]);
    ran(Part::bytes("k", Dtype::F64, &[2, 2, 7, 8], &[0; 1792])).refuses(&["\"k\"", "F64"]);
}

#[test]
fn files_that_cannot_be_read() {
    let missing = std::path::Path::new("no/such.safetensors");
    headwise_on("verify {}", missing).refuses(&["no/such.safetensors", "cannot read"]);

    let whole = std::fs::read(fixture("minilm_l0_t128.safetensors")).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &whole[..length]).unwrap();
        let ran = headwise_on("verify {}", file.path());
        ran.refuses(&[file.path().to_str().unwrap(), "whole safetensors file"]);
    }
    headwise_on("verify {} --prefix x.", &fixture("forms.safetensors")).refuses(&[
        "\"x.q\"",
        "missing",
        "dot_product.q",
    ]);
}
