//! What cannot be computed is refused by an error that names the argument, what came and what
//! would do; nothing is written then, and nothing panics.

mod common;

use common::case::{Case, Dims};
use common::executors::Boastful;
use common::for_all;
use common::strided::{Layout, Strided};
use headwise::{
    Algorithm, AttentionOptions, Element, Error, Isa, Outputs, Pick, Result, Scale, Serial,
    Settings, Shape, Stage, Strides, Tensor, View, ViewMut, Workspace, attention, attention_into,
    dot_product_attention, dot_product_attention_into, softmax_in_place, softmax_into,
};
use proptest::prelude::*;
use proptest::sample::select;

#[track_caller]
fn assert_error<T: std::fmt::Debug>(
    result: Result<T>,
    is_kind: fn(&Error) -> bool,
    parts: &[&str],
) {
    let Err(error) = result else { panic!("accepted: {result:?}") };
    let message = error.to_string();
    assert!(is_kind(&error), "{error:?}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

fn is_shape(error: &Error) -> bool {
    matches!(error, Error::Shape { .. })
}

fn is_stride(error: &Error) -> bool {
    matches!(error, Error::Stride { .. })
}

fn is_bounds(error: &Error) -> bool {
    matches!(error, Error::Bounds { .. })
}

fn is_overflow(error: &Error) -> bool {
    matches!(error, Error::Overflow { .. })
}

fn is_value(error: &Error) -> bool {
    matches!(error, Error::Value { .. })
}

/// Attention on zeros of these shapes, by every entry point; the first error.
fn on_zeros(q: Shape, k: Shape, v: Shape) -> Result<()> {
    let zeros = [0.0_f32; 4096];
    let (q, k, v) = (View::bhsd(&zeros, q)?, View::bhsd(&zeros, k)?, View::bhsd(&zeros, v)?);
    let options = AttentionOptions::new();
    let expected = attention(q, k, v, &options).map(|_| ());
    assert_eq!(dot_product_attention(q, k, v, &options).map(|_| ()), expected);
    let (mut a, mut b) = ([7.0_f32; 4096], [7.0_f32; 4096]);
    let shape = [q.shape()[0], q.shape()[1], q.shape()[2], v.shape()[3]];
    let outputs = Outputs::new(ViewMut::bhsd(&mut a, shape)?);
    let into = attention_into(q, k, v, &options, outputs, &mut Workspace::new());
    assert_eq!(into.map(|_| ()), expected);
    let outputs = Outputs::new(ViewMut::bhsd(&mut b, shape)?);
    let into = dot_product_attention_into(q, k, v, &options, outputs, &mut Workspace::new());
    assert_eq!(into.map(|_| ()), expected);
    if expected.is_err() {
        assert!(a == [7.0; 4096] && b == [7.0; 4096], "written in spite of {expected:?}");
        assert_eq!(options.workspace_bytes(q, k, v).map(|_| ()), expected);
    }
    expected
}

#[test]
fn shapes_that_do_not_fit() {
    let (q, k, v) = ([2, 4, 3, 8], [2, 2, 5, 8], [2, 2, 5, 6]);
    assert_eq!(on_zeros(q, k, v), Ok(()));
    let cases: [(Shape, Shape, Shape, &[&str]); 13] = [
        // Batch, head_dim.
        (q, [3, 2, 5, 8], v, &["key", "[3, 2, 5, 8]", "[2, kv_heads, seq_kv, 8]"]),
        (q, [2, 2, 5, 7], v, &["key", "[2, 2, 5, 7]", "[2, kv_heads, seq_kv, 8]"]),
        ([1, 4, 3, 8], k, v, &["key", "[2, 2, 5, 8]", "[1, kv_heads, seq_kv, 8]"]),
        // The value against the key.
        (q, k, [1, 2, 5, 6], &["value", "[1, 2, 5, 6]", "[2, 2, 5, value_dim]"]),
        (q, k, [2, 4, 5, 6], &["value", "[2, 4, 5, 6]", "[2, 2, 5, value_dim]"]),
        (q, k, [2, 2, 4, 6], &["value", "[2, 2, 4, 6]", "[2, 2, 5, value_dim]"]),
        // Heads that do not divide.
        (q, [2, 3, 5, 8], [2, 3, 5, 6], &["key", "[2, 3, 5, 8]", "divides", "4"]),
        (q, [2, 8, 5, 8], [2, 8, 5, 6], &["key", "[2, 8, 5, 8]", "divides", "4"]),
        // Zeros.
        ([2, 0, 3, 8], k, v, &["query", "[2, 0, 3, 8]", "at least one head"]),
        ([2, 4, 3, 0], k, v, &["query", "[2, 4, 3, 0]", "at least 1"]),
        (q, [2, 0, 5, 8], v, &["key", "[2, 0, 5, 8]", "at least one head"]),
        (q, [2, 2, 5, 0], v, &["key", "[2, 2, 5, 0]", "at least 1"]),
        (q, k, [2, 2, 5, 0], &["value", "[2, 2, 5, 0]", "at least 1"]),
    ];
    for (q, k, v, parts) in cases {
        assert_error(on_zeros(q, k, v), is_shape, parts);
    }
}

#[test]
fn views_outside_their_data() {
    let mut data = [0.0_f32; 24];
    let shape = [1, 2, 3, 4];
    assert!(View::bhsd(&data, shape).is_ok());
    assert_error(View::bhsd(&data[..23], shape), is_bounds, &["view", "element 23", "has 23"]);
    assert_error(View::bshd(&data[..23], shape), is_bounds, &["view", "element 23", "has 23"]);
    let ahead = View::strided(&data, 1, shape, [0, 12, 4, 1]);
    assert_error(ahead, is_bounds, &["element 24", "has 24", "[1, 2, 3, 4]", "[0, 12, 4, 1]"]);
    let before = View::strided(&data, 7, shape, [0, 12, -4, 1]);
    assert_error(before, is_bounds, &["element -1", "has 24"]);
    let output = ViewMut::strided(&mut data, 0, shape, [0, 13, 4, 1]);
    assert_error(output, is_bounds, &["output view", "element 24", "has 24"]);
    assert_error(View::<f32>::bhsd(&[], [1; 4]), is_bounds, &["element 0", "has 0"]);
}

#[test]
fn sizes_that_overflow() {
    let mut data = [0.0_f32; 24];
    let huge = usize::MAX / 2;
    let shape = [huge, 3, 1, 1];
    assert_error(View::bhsd(&data, shape), is_overflow, &["view", "elements", "at most"]);
    assert_error(ViewMut::bhsd(&mut data, shape), is_overflow, &["output view", "elements"]);
    let far = View::strided(&data, 0, [1, 2, 3, 4], [0, isize::MAX, isize::MIN, 1]);
    assert_error(far, is_overflow, &["view", "extent", "[0, 9223372036854775807,", "at most"]);
    let offset = View::strided(&data, usize::MAX, [1, 1, 1, 1], [0; 4]);
    assert_error(offset, is_bounds, &["element 18446744073709551615", "has 24"]);
    assert_error(Tensor::<f32>::zeros(shape), is_overflow, &["tensor", "size", "memory"]);
}

#[test]
fn outputs_that_overlap() {
    let mut data = [0.0_f32; 100];
    for strides in [[0, 12, 4, 1], [24, 12, 3, 1], [24, 4, 4, 1], [24, -4, 4, 1], [24, 12, 4, 0]] {
        let view = ViewMut::strided(&mut data, 40, [2, 2, 3, 4], strides);
        let strides = format!("{strides:?}");
        assert_error(view, is_stride, &["output view", &strides, "an element of its own"]);
    }
}

#[test]
fn inner_strides() {
    let data = [0.0_f32; 100];
    let fine = View::bhsd(&data, [1, 1, 3, 4]);
    let bad = || View::strided(&data, 0, [1, 1, 3, 4], [0, 0, 8, 2]);
    let options = AttentionOptions::new();
    for argument in ["query", "key", "value"] {
        let pick = |name| if name == argument { bad() } else { fine.clone() };
        let call = || attention(pick("query")?, pick("key")?, pick("value")?, &options);
        assert_error(call(), is_stride, &[argument, "[0, 0, 8, 2]", "stride of 1; copy"]);
    }
    let mask_data = [true; 100];
    let mask = View::strided(&mask_data, 20, [1, 1, 3, 3], [0, 0, 3, -1]);
    let masked =
        || attention(fine.clone()?, fine.clone()?, fine.clone()?, &options.mask(mask.clone()?));
    assert_error(masked(), is_stride, &["mask", "[0, 0, 3, -1]", "stride of 1; copy"]);
    let bias = View::strided(&data, 0, [1, 1, 3, 3], [0, 0, 9, 3]);
    let biased =
        || attention(fine.clone()?, fine.clone()?, fine.clone()?, &options.bias(bias.clone()?));
    assert_error(biased(), is_stride, &["bias", "[0, 0, 9, 3]", "stride of 1; copy"]);

    let mut out = [7.0; 100];
    let mut into = || {
        let outputs = Outputs::new(ViewMut::strided(&mut out, 0, [1, 1, 3, 4], [0, 0, 8, 2])?);
        let (x, mut workspace) = (fine.clone()?, Workspace::new());
        attention_into(x, x, x, &options, outputs, &mut workspace)
    };
    assert_error(into(), is_stride, &["out", "[0, 0, 8, 2]", "stride of 1; copy"]);
    assert_eq!(out, [7.0; 100]);
}

/// On zeros that fit, with options that may not.
fn with(options: &AttentionOptions<'_>) -> Result<Isa> {
    let zeros = [0.0_f32; 1000];
    let (q, k) = (View::bhsd(&zeros, [2, 4, 3, 8])?, View::bhsd(&zeros, [2, 2, 5, 8])?);
    attention(q, k, k, options).map(|result| result.isa)
}

#[test]
fn masks_that_do_not_broadcast() -> Result<()> {
    let (attend, zeros) = ([true; 1000], [0.0_f32; 1000]);
    let options = AttentionOptions::new();
    for shape in [[1, 1, 1, 5], [2, 1, 3, 5], [2, 4, 3, 5], [1, 4, 1, 5]] {
        assert!(with(&options.mask(View::bhsd(&attend, shape)?)).is_ok(), "{shape:?}");
        assert!(with(&options.bias(View::bhsd(&zeros, shape)?)).is_ok(), "{shape:?}");
    }
    for shape in
        [[1, 1, 1, 1], [1, 1, 3, 4], [3, 1, 1, 5], [1, 2, 3, 5], [2, 4, 2, 5], [0, 1, 1, 5]]
    {
        let name = format!("{shape:?}");
        let parts = [name.as_str(), "[2, 4, 3, 5]", "may be 1"];
        let mask = with(&options.mask(View::bhsd(&attend, shape)?));
        assert_error(mask, is_shape, &[&["mask"], &parts[..]].concat());
        let bias = with(&options.bias(View::bhsd(&zeros, shape)?));
        assert_error(bias, is_shape, &[&["bias"], &parts[..]].concat());
    }
    Ok(())
}

#[test]
fn key_lengths() {
    let options = AttentionOptions::new();
    assert!(with(&options.key_lengths(&[0, 5])).is_ok());
    for lengths in [&[][..], &[5], &[5, 5, 5]] {
        let count = format!("{} lengths", lengths.len());
        let parts = ["key_lengths", &count, "each of the 2"];
        assert_error(with(&options.key_lengths(lengths)), is_value, &parts);
    }
    let long = with(&options.key_lengths(&[5, 6]));
    assert_error(long, is_value, &["key_lengths", "6", "at most 5"]);
    let huge = with(&options.key_lengths(&[usize::MAX, 0]));
    assert_error(huge, is_value, &["key_lengths", "18446744073709551615", "at most 5"]);
}

#[test]
fn scales_that_are_no_number() {
    for (scale, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let options = AttentionOptions::new().scale(Scale::Value(scale));
        assert_error(with(&options), is_value, &["scale", name, "finite"]);
        let (mut x, settings) = ([7.0; 4], Settings::default());
        let view = ViewMut::bhsd(&mut x, [1, 1, 1, 4]);
        let result =
            view.and_then(|view| softmax_in_place(view, scale, &settings, &mut Workspace::new()));
        assert_error(result, is_value, &["scale", name, "finite"]);
        assert_eq!(x, [7.0; 4]);
    }
    for scale in [0.0, -0.0, -3.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45] {
        let options = AttentionOptions::new().scale(Scale::Value(scale));
        assert!(with(&options).is_ok(), "{scale}");
    }
}

#[test]
fn outputs_of_the_wrong_shape() {
    let zeros = [0.0_f32; 64];
    let x = View::bhsd(&zeros, [1, 2, 3, 4]).unwrap_or_else(|error| panic!("{error}"));
    let right = [[1, 2, 3, 4], [1, 2, 3, 1], [1, 2, 3, 3]];
    let wrong = [
        ("out", 0, [1, 2, 3, 5]),
        ("out", 0, [1, 2, 4, 4]),
        ("out", 0, [1, 1, 3, 4]),
        ("out", 0, [2, 2, 3, 4]),
        ("out", 0, [0, 2, 3, 4]),
        ("lse", 1, [1, 2, 3, 3]),
        ("lse", 1, [1, 2, 1, 3]),
        ("weights", 2, [1, 2, 3, 4]),
        ("weights", 2, [1, 2, 3, 0]),
    ];
    for (name, nth, shape) in wrong {
        let mut shapes = right;
        shapes[nth] = shape;
        let mut buffers = [[7.0_f32; 64]; 3];
        let [out, lse, weights] = &mut buffers;
        let result = (|| {
            let outputs = Outputs::new(ViewMut::bhsd(out, shapes[0])?)
                .with_lse(ViewMut::bhsd(lse, shapes[1])?)
                .with_weights(ViewMut::bhsd(weights, shapes[2])?);
            attention_into(x, x, x, &AttentionOptions::new(), outputs, &mut Workspace::new())
        })();
        let parts = [name.to_owned(), format!("{shape:?}"), format!("{:?}", right[nth])];
        assert_error(result, is_shape, &parts.each_ref().map(String::as_str));
        assert_eq!(buffers, [[7.0; 64]; 3], "written in spite of a wrong {name}");
    }
}

/// A tensor that can be made can be viewed.
#[test]
fn tensors_of_sizes_that_overflow() -> Result<()> {
    let (huge, max) = (1_usize << 40, usize::MAX);
    for shape in [[0, max, 2, 1], [max, 2, 1, 0], [0, max, 1, 1], [1, huge, huge, 0]] {
        assert_error(Tensor::<f32>::new(vec![], shape), is_overflow, &["tensor"]);
        assert_error(Tensor::<f64>::zeros(shape), is_overflow, &["tensor"]);
    }
    let mut empty = Tensor::<f32>::new(vec![], [0, huge, 1 << 20, 1])?;
    assert!(empty.view().is_empty() && empty.view_mut().is_empty());
    Ok(())
}

#[test]
fn tensors_and_softmax_of_the_wrong_shape() {
    let tensor = Tensor::new(vec![0.0_f32; 7], [1, 2, 2, 2]);
    assert_error(tensor, is_shape, &["tensor", "[1, 2, 2, 2]", "7 elements"]);
    let (input, mut output) = ([0.0; 24], [7.0; 24]);
    let result = (|| {
        let output = ViewMut::bhsd(&mut output, [1, 2, 4, 3])?;
        let input = View::bhsd(&input, [1, 2, 3, 4])?;
        softmax_into(input, output, 1.0, &Settings::default(), &mut Workspace::new())
    })();
    assert_error(result, is_shape, &["output", "[1, 2, 4, 3]", "[1, 2, 3, 4]"]);
    assert_eq!(output, [7.0; 24]);
}

/// Attention of 2 x 4 heads on 2 x 2, 3 queries, 5 keys, with outputs as `ask` has them, of which
/// nothing may be written. `numbers` and `keys` are for whatever is asked for.
fn asking(
    ask: impl for<'a> Fn(Outputs<'a, f32>, &'a mut [f32], &'a mut [u32]) -> Result<Outputs<'a, f32>>,
) -> Result<()> {
    let zeros = [0.0_f32; 240];
    let (mut out, mut numbers, mut keys) = ([7.0_f32; 144], [7.0_f32; 600], [7_u32; 600]);
    let result = (|| {
        let q = View::bhsd(&zeros, [2, 4, 3, 8])?;
        let (k, v) = (View::bhsd(&zeros, [2, 2, 5, 8])?, View::bhsd(&zeros, [2, 2, 5, 6])?);
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, [2, 4, 3, 6])?);
        let outputs = ask(outputs, &mut numbers, &mut keys)?;
        attention_into(q, k, v, &AttentionOptions::new(), outputs, &mut Workspace::new())
    })();
    if result.is_err() {
        assert!(out == [7.0; 144] && numbers == [7.0; 600] && keys == [7; 600], "{result:?}");
    }
    result.map(|_| ())
}

#[test]
fn weights_and_scores_of_rows_that_do_not_fit() {
    for stage in [None, Some(Stage::Scaled), Some(Stage::Final)] {
        let name = if stage.is_some() { "scores" } else { "weights" };
        let picked = |heads: Pick<'static>, queries: Pick<'static>, shape: Shape| {
            asking(|outputs, numbers, _| {
                let view = ViewMut::bhsd(numbers, shape)?;
                let (heads, queries) = (heads.clone(), queries.clone());
                Ok(match stage {
                    Some(stage) => outputs.with_scores_of(stage, heads, queries, view),
                    None => outputs.with_weights_of(heads, queries, view),
                })
            })
        };
        let all = || Pick::All;
        assert_eq!(picked(all(), all(), [2, 4, 3, 5]), Ok(()));
        assert_eq!(picked(Pick::List(&[1, 3]), Pick::Range(1..2), [2, 2, 1, 5]), Ok(()));
        assert_eq!(picked(Pick::Range(4..4), all(), [2, 0, 3, 5]), Ok(()));
        let shape = |result, got: &str, expected: &str| {
            assert_error(result, is_shape, &[name, got, expected]);
        };
        shape(picked(all(), all(), [2, 4, 3, 4]), "[2, 4, 3, 4]", "[2, 4, 3, 5]");
        shape(picked(all(), all(), [2, 2, 3, 5]), "[2, 2, 3, 5]", "[2, 4, 3, 5]");
        shape(picked(Pick::Range(0..1), all(), [2, 4, 3, 5]), "[2, 4, 3, 5]", "[2, 1, 3, 5]");
        let value = |result, parts: [&str; 3]| {
            let of = format!("{name}' {}", parts[0]);
            assert_error(result, is_value, &[&of, parts[1], parts[2]]);
        };
        value(picked(Pick::Range(3..5), all(), [2, 2, 3, 5]), ["heads", "3..5", "below 4"]);
        value(picked(all(), Pick::List(&[0, 3]), [2, 4, 2, 5]), ["queries", "[0, 3]", "below 3"]);
        value(picked(all(), Pick::List(&[1, 0]), [2, 4, 2, 5]), ["queries", "[1, 0]", "ascending"]);
        value(picked(Pick::List(&[2, 2]), all(), [2, 2, 3, 5]), ["heads", "[2, 2]", "ascending"]);
    }
}

#[test]
fn column_sums_that_do_not_fit() {
    let sums = |shape, strides: Option<Strides>| {
        asking(|outputs, numbers, _| {
            let view = match strides {
                Some(strides) => ViewMut::strided(numbers, 0, shape, strides)?,
                None => ViewMut::bhsd(numbers, shape)?,
            };
            Ok(outputs.with_column_sums(view))
        })
    };
    for heads in [2, 4] {
        assert_eq!(sums([2, heads, 1, 5], None), Ok(()));
        let expected = format!("[2, {heads}, 1, 5]");
        assert_error(sums([2, heads, 1, 4], None), is_shape, &["column_sums", &expected]);
    }
    assert_error(sums([2, 3, 1, 5], None), is_shape, &["column_sums", "[2, 4 or 2, 1, 5]"]);
    assert_error(sums([2, 4, 3, 5], None), is_shape, &["column_sums", "[2, 4, 1, 5]"]);
    let spread = sums([2, 4, 1, 5], Some([40, 10, 0, 2]));
    assert_error(spread, is_stride, &["column_sums", "inner stride of 1"]);
}

#[test]
fn top_k_that_does_not_fit() {
    let top = |k: usize, other: usize| {
        asking(|outputs, numbers, keys| {
            let weights = ViewMut::bhsd(numbers, [2, 4, 3, k])?;
            Ok(outputs.with_top_k(ViewMut::bhsd(keys, [2, 4, 3, other])?, weights))
        })
    };
    assert_eq!((top(1, 1), top(5, 5)), (Ok(()), Ok(())));
    assert_error(top(0, 0), is_value, &["top_k", "0 keys", "from 1 to the 5"]);
    assert_error(top(6, 6), is_value, &["top_k", "6 keys", "from 1 to the 5"]);
    assert_error(top(3, 2), is_shape, &["top_k's keys", "[2, 4, 3, 2]", "[2, 4, 3, 3]"]);
    let rows = asking(|outputs, numbers, keys| {
        let weights = ViewMut::bhsd(numbers, [2, 2, 3, 3])?;
        Ok(outputs.with_top_k(ViewMut::bhsd(keys, [2, 4, 3, 3])?, weights))
    });
    assert_error(rows, is_shape, &["top_k's weights", "[2, 2, 3, 3]", "[2, 4, 3, 3]"]);
}

/// Attention of one element type into `out`, fused or not.
fn call<T: Element>(
    [q, k, v]: [View<'_, T>; 3],
    out: ViewMut<'_, T>,
    algorithm: Algorithm,
) -> Result<Isa> {
    let options = AttentionOptions::new().algorithm(algorithm).executor(&Boastful);
    options.workspace_bytes(q, k, v)?;
    attention_into(q, k, v, &options, Outputs::new(out), &mut Workspace::new())
}

/// Nothing to compute is nothing to fail at, however large the other extents.
#[test]
fn empty_problems_of_any_size() -> Result<()> {
    let (large, huge) = (1_usize << 20, 1_usize << 50);
    let shapes = [
        ([0, large, large, large], [0, 1, large, large], [0, 1, large, large]),
        ([0, huge, 1024, 1], [0, 1, huge, 1], [0, 1, huge, 3]),
        ([0, 1024, huge, 1], [0, 1024, huge, 1], [0, 1024, huge, 1]),
        ([1, 1, 0, huge], [1, 1, 0, huge], [1, 1, 0, huge]),
        ([huge, 1, 0, 1], [huge, 1, 8, 1], [huge, 1, 8, 1]),
    ];
    for (q, k, v) in shapes {
        let shared = |shape| View::strided(&[0.0_f32], 0, shape, [0; 4]);
        let views = [shared(q)?, shared(k)?, shared(v)?];
        for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
            let out = ViewMut::strided(&mut [], 0, [q[0], q[1], q[2], v[3]], [0; 4])?;
            let result = call(views, out, algorithm);
            assert!(result.is_ok(), "{q:?}: {result:?}");
        }
    }
    Ok(())
}

/// The size of a workspace that no machine has is still a number.
#[test]
fn workspaces_of_any_size() -> Result<()> {
    let huge = isize::MAX as usize;
    let query = View::strided(&[0.0_f32], 0, [1, 1, 1, 1], [0; 4])?;
    let empty = |dim| View::strided(&[0.0_f32], 0, [1, 1, 0, dim], [0; 4]);
    let long = View::strided(&[0.0_f32], 0, [1, 1, 1 << 60, 1], [0; 4])?;
    let queries = View::strided(&[0.0_f32], 0, [1, 1, 300, 1], [0; 4])?;
    let options = AttentionOptions::new();
    for options in [options, options.algorithm(Algorithm::Unfused)] {
        options.workspace_bytes(query, empty(1)?, empty(huge)?)?;
        options.workspace_bytes(queries, long, long)?;
    }
    assert!(options.workspace_bytes(query, empty(1)?, empty(huge)?)? > 1 << 60);
    assert!(options.workspace_bytes(queries, long, long)? < 1 << 30);
    Ok(())
}

/// Tensors without elements may have any strides and lie anywhere.
#[test]
fn wild_strides_that_reach_nothing() -> Result<()> {
    let zeros = [0.0_f32; 64];
    let wild = [isize::MAX, isize::MIN, isize::MAX - 7, isize::MIN + 1];
    let q = View::bhsd(&zeros, [3, 2, 4, 2])?;
    let empty = View::strided(&zeros, usize::MAX, [3, 2, 0, 2], wild)?;
    let no_mask = View::strided(&[true], 77, [3, 2, 4, 0], wild)?;
    for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
        let options = AttentionOptions::new().mask(no_mask).algorithm(algorithm).return_weights();
        let result = attention(q, empty, empty, &options)?;
        assert_eq!(result.out.data(), [0.0; 48]);
    }
    // An axis of one element has a stride that nobody follows.
    let one = View::strided(&zeros, 0, [1, 1, 1, 2], [isize::MAX, isize::MIN, isize::MAX, 1])?;
    let mut out = [7.0_f32; 2];
    for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
        let out = ViewMut::strided(&mut out, 0, [1, 1, 1, 2], [isize::MIN, 0, isize::MAX, 1])?;
        assert!(call([one; 3], out, algorithm).is_ok());
    }
    assert_eq!(out, [0.0; 2]);
    Ok(())
}

#[test]
fn an_executor_that_promises_any_number_of_threads() -> Result<()> {
    let data: Vec<f32> = (0..1 << 17).map(|x| x as f32).collect();
    let mut outputs = [vec![0.0; 1 << 17], vec![0.0; 1 << 17]];
    for (out, executor) in outputs.iter_mut().zip([&Boastful as &dyn headwise::Executor, &Serial]) {
        let settings = Settings::default().with_executor(executor);
        let shape = [1, 1, 1 << 10, 1 << 7];
        let (input, out) = (View::bhsd(&data, shape)?, ViewMut::bhsd(out, shape)?);
        softmax_into(input, out, 1.0, &settings, &mut Workspace::new())?;
    }
    assert!(outputs[0] == outputs[1]);
    Ok(())
}

/// Shapes and strides of one call, mostly fitting.
#[derive(Debug, Clone)]
struct Wild {
    /// Of query, key, value, out, lse, weights, mask, bias.
    shapes: [Shape; 8],
    /// Where given, instead of dense ones; with an offset.
    strides: [Option<(Strides, usize)>; 8],
    scale: f32,
    lengths: Option<Vec<usize>>,
    causal: Option<i64>,
    window: (Option<usize>, Option<usize>),
    algorithm: Algorithm,
}

fn wild() -> impl Strategy<Value = Wild> {
    let extent = || select(vec![0_usize, 1, 1, 2, 3, 5, 17]);
    let dims = [(); 7].map(|()| extent());
    let spoil = prop::option::of((0..8_usize, 0..4_usize, extent()));
    let stride = select(vec![0_isize, 1, 1, 2, -1, 5, 17, 64, isize::MAX, isize::MIN]);
    let strides = prop::option::weighted(
        0.15,
        (prop::array::uniform4(stride), select(vec![0_usize, 40, usize::MAX])),
    );
    let number = || select(vec![0_usize, 1, 3, usize::MAX]);
    let options = (
        select(vec![1.0, 0.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX]),
        prop::option::of(prop::collection::vec(0..6_usize, 0..4)),
        prop::option::of(any::<i64>()),
        (prop::option::of(number()), prop::option::of(number())),
        any::<bool>(),
    );
    (dims, spoil, prop::array::uniform8(strides), options).prop_map(
        |([b, kv, group, sq, skv, d, vd], spoil, strides, options)| {
            let (scale, lengths, causal, window, fused) = options;
            let h = kv * group;
            let mut shapes = [
                [b, h, sq, d],
                [b, kv, skv, d],
                [b, kv, skv, vd],
                [b, h, sq, vd],
                [b, h, sq, 1],
                [b, h, sq, skv],
                [1, h, 1, skv],
                [b, 1, sq, skv],
            ];
            if let Some((tensor, axis, extent)) = spoil {
                shapes[tensor][axis] = extent;
            }
            let algorithm = if fused { Algorithm::Auto } else { Algorithm::Unfused };
            Wild { shapes, strides, scale, lengths, causal, window, algorithm }
        },
    )
}

fn view<'a, T>(data: &'a [T], wild: &Wild, nth: usize) -> Result<View<'a, T>> {
    match wild.strides[nth] {
        None => View::bhsd(data, wild.shapes[nth]),
        Some((strides, offset)) => View::strided(data, offset, wild.shapes[nth], strides),
    }
}

fn view_mut<'a, T>(data: &'a mut [T], wild: &Wild, nth: usize) -> Result<ViewMut<'a, T>> {
    match wild.strides[nth] {
        None => ViewMut::bhsd(data, wild.shapes[nth]),
        Some((strides, offset)) => ViewMut::strided(data, offset, wild.shapes[nth], strides),
    }
}

/// Computes or says why not.
fn throw<T: Element>(wild: &Wild, outputs: &mut [Vec<T>; 3]) -> Result<Isa> {
    let data = vec![T::from_f64(0.5); 1500];
    let attend = vec![true; 1500];
    let mut options = AttentionOptions::new()
        .scale(Scale::Value(wild.scale))
        .window(wild.window.0, wild.window.1)
        .algorithm(wild.algorithm)
        .mask(view(&attend, wild, 6)?)
        .bias(view(&data, wild, 7)?);
    if let Some(lengths) = &wild.lengths {
        options = options.key_lengths(lengths);
    }
    if let Some(offset) = wild.causal {
        options = options.causal_offset(offset);
    }
    let [out, lse, weights] = outputs;
    let results = Outputs::new(view_mut(out, wild, 3)?)
        .with_lse(view_mut(lse, wild, 4)?)
        .with_weights(view_mut(weights, wild, 5)?);
    let (q, k, v) = (view(&data, wild, 0)?, view(&data, wild, 1)?, view(&data, wild, 2)?);
    attention_into(q, k, v, &options, results, &mut Workspace::new())
}

#[test]
fn nothing_panics_and_errors_write_nothing() {
    let counts = std::cell::Cell::new((0_usize, 0_usize));
    for_all(4000, wild(), |wild| {
        let fresh = [(); 3].map(|()| vec![7.0_f32; 30_000]);
        let mut outputs = fresh.clone();
        let result = throw(&wild, &mut outputs);
        let (fine, refused) = counts.get();
        if result.is_ok() {
            counts.set((fine + 1, refused));
        } else {
            counts.set((fine, refused + 1));
            assert!(outputs == fresh, "written in spite of {result:?}");
        }
        let mut outputs = [(); 3].map(|()| vec![7.0_f64; 30_000]);
        assert_eq!(throw(&wild, &mut outputs).is_ok(), result.is_ok());
    });
    let (fine, refused) = counts.get();
    assert!(fine > 200 && refused > 200, "{fine} computed, {refused} refused");
}

/// The same for softmax.
#[test]
fn softmax_of_anything() {
    let extent = || select(vec![0_usize, 1, 2, 3, 5, 40]);
    let shapes = [(); 4].map(|()| extent());
    let stride = select(vec![0_isize, 1, 2, -1, 40, 200, isize::MAX, isize::MIN]);
    let strides = prop::array::uniform4(stride);
    for_all(2000, (shapes, strides.clone(), strides, 0..3000_usize), |(shape, a, b, offset)| {
        let input = vec![0.5_f32; 6000];
        let mut output = vec![7.0_f32; 6000];
        let result = (|| {
            let (input, output) = (
                View::strided(&input, offset, shape, a)?,
                ViewMut::strided(&mut output, offset, shape, b)?,
            );
            softmax_into(input, output, 1.0, &Settings::default(), &mut Workspace::new())
        })();
        assert!(result.is_ok() || output.iter().all(|&x| x == 7.0));
    });
}

#[test]
fn f64_gives_the_same_errors() {
    let inputs = Case::plain(Dims::single(3, 5, 4, 4), 51).inputs().map(f64::from);
    let short = Strided::filled([1, 1, 4, 4], Layout::Bhsd, 0.0);
    let options = AttentionOptions::new();
    let result = attention(inputs.query.view(), inputs.key.view(), short.view(), &options);
    assert_error(result, is_shape, &["value", "[1, 1, 4, 4]", "[1, 1, 5, value_dim]"]);
}

#[test]
fn a_bias_is_of_the_type_that_is_computed_in() -> Result<()> {
    let (bias, x) = ([0.5_f32; 9], [0.5_f64; 3 * 4]);
    let options = AttentionOptions::new().causal().softcap(2.0).scale(Scale::One);
    let with_bias = options.bias(View::bhsd(&bias, [1, 1, 3, 3])?);
    assert_error(with_bias.of_element::<f64>(), is_value, &["bias", "another type"]);
    let x = View::bhsd(&x, [1, 1, 3, 4])?;
    let same = AttentionOptions::new().causal().softcap(2.0).scale(Scale::One);
    assert_eq!(attention(x, x, x, &options.of_element()?)?, attention(x, x, x, &same)?);
    Ok(())
}
