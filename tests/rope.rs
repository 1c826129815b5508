//! Rotary embeddings and the norm of queries and keys: against Hugging Face's transformers, against
//! the definition in `f64`, in every layout, and what is refused.

mod common;

use common::strided::{Layout, Strided};
use common::{Rng, for_all};
use headwise::kv_cache::{
    Frequencies, Llama3, Positions, QkNorm, QkTransform, Rope, RopeLayout, RopeScaling, Yarn,
};
use headwise::{Error, Result, Shape, View, ViewMut};
use proptest::prelude::*;
use serde_json::Value;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rope.json");
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().unwrap_or_else(|| panic!("{value}"));
    numbers.iter().filter_map(Value::as_f64).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

const YARN: Yarn = Yarn {
    factor: 4.0,
    original_positions: 32768,
    beta_fast: 32.0,
    beta_slow: 1.0,
    attention_factor: None,
    truncate: true,
};
const LLAMA: Llama3 =
    Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_positions: 8192 };

/// Rotated dimensions, base and scaling of the fixture's cases.
fn scaling(name: &str) -> (usize, f64, RopeScaling) {
    let dynamic =
        |factor, seq_len| RopeScaling::DynamicNtk { factor, original_positions: 2048, seq_len };
    match name {
        "unscaled" => (32, 1e4, RopeScaling::Unscaled),
        "linear" => (32, 1e4, RopeScaling::Linear { factor: 4.0 }),
        "dynamic within" => (32, 1e4, dynamic(2.0, 100)),
        "dynamic" => (32, 1e4, dynamic(2.0, 5000)),
        "ntk-aware by 4" => (32, 1e4, RopeScaling::NtkAware { factor: 4.0 }),
        "yarn" => (64, 1e6, RopeScaling::Yarn(YARN)),
        "yarn of deepseek" => {
            let ratio = Yarn::magnitude(40.0, 1.0) / Yarn::magnitude(40.0, 0.707);
            let yarn = Yarn { attention_factor: Some(ratio), ..Yarn::new(40.0, 4096) };
            (64, 1e4, RopeScaling::Yarn(yarn))
        }
        "yarn of gpt-oss" => {
            (64, 1.5e5, RopeScaling::Yarn(Yarn { truncate: false, ..Yarn::new(32.0, 4096) }))
        }
        "llama3" => (64, 5e5, RopeScaling::Llama3(LLAMA)),
        other => panic!("{other}"),
    }
}

#[test]
fn frequencies_are_those_of_transformers() -> Result<()> {
    let fixture = fixture();
    let cases = fixture["frequencies"].as_array().unwrap_or_else(|| panic!("no cases"));
    assert_eq!(cases.len(), 9);
    for case in cases {
        let name = case["name"].as_str().unwrap_or_default();
        let (rotary_dim, base, scaling) = scaling(name);
        let ours = Frequencies::new(rotary_dim, base, scaling)?;
        let theirs = numbers(&case["inverse"]);
        assert_eq!(ours.inverse().len(), theirs.len(), "{name}");
        for (ours, theirs) in ours.inverse().iter().zip(theirs) {
            // Theirs take a few steps in f32.
            assert!((ours / theirs - 1.0).abs() < 1e-6, "{name}: {ours} and {theirs}");
        }
        let theirs = case["attention_factor"].as_f64().unwrap_or_default();
        assert!((ours.attention_factor() - theirs).abs() < 1e-12, "{name}");
    }
    Ok(())
}

#[test]
fn rotations_are_those_of_transformers() -> Result<()> {
    let fixture = fixture();
    let cases = fixture["rotations"].as_array().unwrap_or_else(|| panic!("no cases"));
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = case["name"].as_str().unwrap_or_default();
        let rotary_dim = case["rotary_dim"].as_u64().unwrap_or_default() as usize;
        let scaling = match name.ends_with("yarn") {
            true => RopeScaling::Yarn(Yarn::new(4.0, 512)),
            false => RopeScaling::Unscaled,
        };
        let layout = match name.starts_with("interleaved") {
            true => RopeLayout::Interleaved,
            false => RopeLayout::HalfSplit,
        };
        let rope = Rope::new(layout, &Frequencies::new(rotary_dim, 1e4, scaling)?, 18)?;
        let norm = QkNorm::new(&floats(&case["weight"]), 1e-5)?;
        let positions: Vec<usize> =
            numbers(&case["positions"]).into_iter().map(|x| x as usize).collect();
        let positions = Positions::Each(&positions);
        let shape = [1, 2, 3, norm.head_dim()];
        let rows = floats(&case["rows"]);
        let transform = |transform: QkTransform<'_>| -> Result<Vec<f32>> {
            let mut out = vec![f32::NAN; rows.len()];
            let into = ViewMut::bhsd(&mut out, shape)?;
            transform.apply_into(View::bhsd(&rows, shape)?, positions, into)?;
            Ok(out)
        };
        let close = |ours: Vec<f32>, theirs: &str| {
            for (ours, theirs) in ours.into_iter().zip(floats(&case[theirs])) {
                // Their angles are products in f32, of up to 17: an error of 1e-6.
                assert!((ours - theirs).abs() < 4e-6, "{name}: {ours} and {theirs}");
            }
        };
        close(transform(QkTransform::new().norm(&norm))?, "normalised");
        close(transform(QkTransform::new().norm(&norm).rope(&rope))?, "out");
        // A rotation by itself.
        let mut out = floats(&case["normalised"]);
        rope.rotate(ViewMut::bhsd(&mut out, shape)?, positions)?;
        close(out, "out");
    }
    Ok(())
}

/// The definition, in `f64`.
fn rotated(row: &[f32], layout: RopeLayout, inverse: &[f64], position: usize) -> Vec<f64> {
    let mut out: Vec<f64> = row.iter().map(|&x| x.into()).collect();
    for (i, theta) in inverse.iter().enumerate() {
        let (x, y) = match layout {
            RopeLayout::HalfSplit => (i, i + inverse.len()),
            RopeLayout::Interleaved => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = (theta * position as f64).sin_cos();
        (out[x], out[y]) = (out[x] * cos - out[y] * sin, out[x] * sin + out[y] * cos);
    }
    out
}

#[test]
fn every_layout_is_rotated_as_defined() {
    let layouts = prop::sample::select(&Layout::INPUTS[..]);
    let outputs = prop::sample::select(&Layout::OUTPUTS[..]);
    let shape = (1_usize..3, 1_usize..4, 0_usize..5, 1_usize..5, 0_usize..4);
    let strategy = (shape, layouts, outputs, any::<bool>(), any::<bool>(), any::<u64>());
    for_all(200, strategy, |((batch, heads, seq, pairs, rest), from, to, half, turned, seed)| {
        let mut rng = Rng(seed);
        let shape = [batch, heads, seq, 2 * pairs + rest];
        let count: usize = shape.iter().product();
        let rows = Strided::new(&rng.normals(count), shape, from, f32::NAN);
        let rows = if turned { rows.transposed() } else { rows };
        let layout = if half { RopeLayout::HalfSplit } else { RopeLayout::Interleaved };
        let inverse: Vec<f64> = (0..pairs).map(|_| rng.uniform().into()).collect();
        let frequencies = Frequencies::from_inverse(inverse.clone(), 1.0).unwrap();
        let rope = Rope::new(layout, &frequencies, 1000).unwrap();
        let starts: Vec<usize> = (0..batch).map(|_| rng.below(900)).collect();
        let each: Vec<usize> = (0..batch * seq).map(|_| rng.below(1000)).collect();
        type At<'a> = &'a dyn Fn(usize, usize) -> usize;
        let positions: [(Positions<'_>, At<'_>); 3] = [
            (Positions::From(starts[0]), &|_, s| starts[0] + s),
            (Positions::Starts(&starts), &|b, s| starts[b] + s),
            (Positions::Each(&each), &|b, s| each[b * seq + s]),
        ];
        for (positions, at) in positions {
            let mut out = Strided::filled(shape, to, f32::NAN);
            rope.rotate_into(rows.view(), positions, out.view_mut()).unwrap();
            let mut in_place = rows.laid_out(to, f32::NAN);
            rope.rotate(in_place.view_mut(), positions).unwrap();
            assert_eq!(out.dense(), in_place.dense());
            assert!(out.gaps().iter().chain(&in_place.gaps()).all(|x| x.is_nan()));
            for (nth, ours) in out.dense().chunks(shape[3]).enumerate() {
                let (b, h, s) = (nth / (heads * seq), nth / seq % heads, nth % seq);
                let row: Vec<f32> = (0..shape[3]).map(|d| rows.get([b, h, s, d])).collect();
                for (ours, exact) in ours.iter().zip(rotated(&row, layout, &inverse, at(b, s))) {
                    assert!((f64::from(*ours) - exact).abs() < 1e-6, "{ours} and {exact}");
                }
            }
        }
    });
}

#[test]
fn a_callers_tables_are_taken_as_they_are() -> Result<()> {
    let frequencies = Frequencies::new(6, 100.0, RopeScaling::Yarn(Yarn::new(2.0, 10)))?;
    for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
        let rope = Rope::new(layout, &frequencies, 7)?;
        // Each number twice, as transformers keeps them, and the factor multiplied in.
        let twice = |f: fn(f64) -> f64| {
            let mut table = Vec::new();
            for position in 0..7 {
                let angles = frequencies.inverse().iter().map(|theta| theta * position as f64);
                let row = angles.map(|angle| (f(angle) * frequencies.attention_factor()) as f32);
                let row: Vec<f32> = row.collect();
                table.extend(row.repeat(2));
            }
            table
        };
        let (cos, sin) = (twice(f64::cos), twice(f64::sin));
        let half = |table| View::strided(table, 0, [1, 1, 7, 3], [0, 0, 6, 1]);
        let taken = Rope::of_tables(layout, half(&cos)?, half(&sin)?)?;
        assert_eq!(taken, rope);
        assert_eq!((taken.positions(), taken.rotary_dim()), (7, 6));
    }
    Ok(())
}

#[test]
fn the_norm_keeps_what_squares_would_lose() -> Result<()> {
    let norm = QkNorm::new(&[1.0, 2.0, 1.0], 0.0)?;
    for size in [1e-30_f32, 1.0, 1e30] {
        let mut row = [size, -size, 0.0];
        QkTransform::new()
            .norm(&norm)
            .apply(ViewMut::bhsd(&mut row, [1, 1, 1, 3])?, Positions::From(0))?;
        let expected = [1.5_f32.sqrt(), -2.0 * 1.5_f32.sqrt(), 0.0];
        for (ours, expected) in row.iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-6, "{row:?}");
        }
    }
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    match result {
        Err(error) => {
            let message = error.to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        Ok(value) => panic!("{parts:?}: {value:?}"),
    }
}

#[test]
fn parameters_outside_their_domain_are_refused() {
    let of = |dim, base, scaling| Frequencies::new(dim, base, scaling);
    let plain = RopeScaling::Unscaled;
    for dim in [0, 3] {
        refused(of(dim, 1e4, plain), &["rotary_dim", &dim.to_string(), "even"]);
    }
    for base in [1.0, -5.0, f64::NAN, f64::INFINITY] {
        refused(of(4, base, plain), &["base", &base.to_string(), "above 1"]);
    }
    refused(of(2, 1e4, RopeScaling::NtkAware { factor: 2.0 }), &["rotary_dim: 2", "4"]);
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let dynamic = RopeScaling::DynamicNtk { factor, original_positions: 9, seq_len: 9 };
        for scaling in [
            RopeScaling::Linear { factor },
            RopeScaling::NtkAware { factor },
            dynamic,
            RopeScaling::Yarn(Yarn { factor, ..YARN }),
            RopeScaling::Llama3(Llama3 { factor, ..LLAMA }),
        ] {
            refused(of(8, 1e4, scaling), &["factor", &factor.to_string(), "above 0"]);
        }
    }
    let yarn = |yarn| of(8, 1e4, RopeScaling::Yarn(yarn));
    refused(yarn(Yarn { original_positions: 0, ..YARN }), &["original_positions"]);
    refused(yarn(Yarn { beta_slow: 0.0, ..YARN }), &["beta_slow"]);
    refused(yarn(Yarn { beta_fast: 0.5, ..YARN }), &["beta_fast: 0.5", "beta_slow, 1"]);
    refused(yarn(Yarn { attention_factor: Some(f64::NAN), ..YARN }), &["NaN", "finite"]);
    let llama = |llama| of(8, 1e4, RopeScaling::Llama3(llama));
    refused(llama(Llama3 { high_freq_factor: 1.0, ..LLAMA }), &["high_freq_factor: 1"]);
    refused(llama(Llama3 { original_positions: 0, ..LLAMA }), &["original_positions"]);
    refused(Frequencies::from_inverse(vec![], 1.0), &["frequencies: none"]);
    refused(Frequencies::from_inverse(vec![1.0, f64::NAN], 1.0), &["frequencies: NaN"]);
    refused(QkNorm::new(&[], 0.0), &["weight"]);
    for eps in [-1.0, f32::NAN, f32::INFINITY] {
        refused(QkNorm::new(&[1.0], eps), &["eps", &eps.to_string()]);
    }
}

#[test]
fn calls_that_do_not_fit_are_refused_and_change_nothing() -> Result<()> {
    let frequencies = Frequencies::new(4, 1e4, RopeScaling::Unscaled)?;
    let rope = Rope::new(RopeLayout::HalfSplit, &frequencies, 10)?;
    let norm = QkNorm::new(&[1.0; 5], 0.0)?;
    let call = |shape: Shape, positions: Positions<'_>, transform: QkTransform<'_>| {
        let mut data = vec![1.0_f32; shape.iter().product()];
        let result = transform.apply(ViewMut::bhsd(&mut data, shape)?, positions);
        if result.is_err() {
            assert!(data.iter().all(|&x| x == 1.0));
        }
        result
    };
    let rotating = QkTransform::new().rope(&rope);
    let both = rotating.norm(&norm);
    let shape = [2, 1, 3, 5];
    assert_eq!(call(shape, Positions::From(7), both), Ok(()));
    refused(call(shape, Positions::From(8), both), &["position: 10", "below 10"]);
    refused(call(shape, Positions::From(usize::MAX), both), &["position"]);
    refused(call(shape, Positions::Starts(&[0, 8]), both), &["position: 10"]);
    refused(call(shape, Positions::Starts(&[0]), both), &["positions", "[1]", "[2]", "sequence"]);
    refused(call(shape, Positions::Each(&[0; 5]), both), &["positions", "[5]", "[6]", "token"]);
    refused(call(shape, Positions::Each(&[0, 1, 2, 3, 4, 11]), both), &["position: 11"]);
    refused(call([2, 1, 3, 6], Positions::From(0), both), &["weight", "[5]", "[6]"]);
    refused(call([2, 1, 3, 3], Positions::From(0), rotating), &["rotary_dim: 4", "head_dim, 3"]);
    // Without elements there is nothing to rotate, however many there are of them.
    assert_eq!(call([1 << 60, 1, 0, 5], Positions::From(99), both), Ok(()));
    let mut data = vec![1.0_f32; 60];
    let spread = ViewMut::strided(&mut data, 0, [1, 1, 3, 5], [0, 0, 10, 2])?;
    let result = both.apply(spread, Positions::From(0));
    assert!(matches!(result, Err(Error::Stride { argument: "rows", .. })), "{result:?}");
    let (rows, mut out) = (vec![1.0_f32; 15], vec![0.0_f32; 15]);
    let rows = View::bhsd(&rows, [1, 1, 3, 5])?;
    let into = ViewMut::bhsd(&mut out, [1, 3, 1, 5])?;
    refused(both.apply_into(rows, Positions::From(0), into), &["out", "[1, 3, 1, 5]"]);
    refused(Rope::new(RopeLayout::HalfSplit, &frequencies, usize::MAX / 2), &["rope", "memory"]);
    let (long, short) =
        (View::bhsd(&[1.0; 6], [1, 1, 3, 2])?, View::bhsd(&[1.0; 6], [1, 1, 2, 3])?);
    refused(Rope::of_tables(RopeLayout::HalfSplit, long, short), &["sin", "as cos"]);
    let heads = View::bhsd(&[1.0; 6], [1, 3, 1, 2])?;
    refused(Rope::of_tables(RopeLayout::HalfSplit, heads, heads), &["cos", "[1, 3, 1, 2]"]);
    Ok(())
}
