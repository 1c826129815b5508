//! Layers out of files: which names are read, and how a file that does not fit is refused. The error
//! lists all that is wrong, and no file makes a panic.
#![cfg(feature = "safetensors")]

mod common;

use common::file::File;
use common::{Rng, for_all};
use headwise::layers::{CrossAttention, Heads, Linear, MultiHeadAttention, SelfAttention};
use headwise::safetensors::{Source, read_f32, read_tensor};
use headwise::{Attention, AttentionOptions, Error, Result, View};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

/// What `load` makes of the file's bytes.
fn load<T>(file: &File, load: impl FnOnce(&Source<'_>) -> Result<T>) -> Result<T> {
    let bytes = file.bytes();
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{error}"));
    load(&Source::new(&file))
}

/// The message is `tensors under <prefix>: <faults>, expected ...`, the faults in this order.
#[track_caller]
fn assert_faults<T: std::fmt::Debug>(result: Result<T>, prefix: &str, expected: &[&str]) {
    match result {
        Err(Error::Tensor { argument, got, .. }) => {
            assert_eq!(argument, format!("tensors under {prefix:?}"));
            assert_eq!(got.split("; ").collect::<Vec<_>>(), expected);
        }
        other => panic!("{other:?}"),
    }
}

/// The layer cannot be made of what was read.
#[track_caller]
fn assert_value<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    match result {
        Err(error @ Error::Value { .. }) => {
            let message = error.to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

/// Linear layers of these shapes with random weights and biases.
fn linears(prefix: &str, layers: &[(&str, [usize; 2])]) -> File {
    let mut rng = Rng(31);
    layers.iter().fold(File::default(), |file, &(name, [outputs, inputs])| {
        let (weight, bias) = (rng.normals(outputs * inputs), rng.normals(outputs));
        file.with(&format!("{prefix}{name}.weight"), &[outputs, inputs], &weight).with(
            &format!("{prefix}{name}.bias"),
            &[outputs],
            &bias,
        )
    })
}

/// Three projections of 6 inputs to 4 outputs.
fn single(prefix: &str, names: [&str; 3]) -> File {
    linears(prefix, &names.map(|name| (name, [4, 6])))
}

const SELF: [&str; 3] = ["query", "key", "value"];
const CROSS: [&str; 3] = ["query_linear", "key_linear", "value_linear"];

/// Two heads of 4, from 6 inputs to 5 outputs.
fn multi(prefix: &str) -> File {
    let projections = ["linear_q", "linear_k", "linear_v"].map(|name| (name, [8, 6]));
    linears(prefix, &[&projections[..], &[("linear_out", [5, 8])]].concat())
}

/// What `torch.nn.MultiheadAttention(6, 2)` saves.
fn torch() -> File {
    let mut rng = Rng(32);
    linears("", &[("out_proj", [6, 6])]).with("in_proj_weight", &[18, 6], &rng.normals(108)).with(
        "in_proj_bias",
        &[18],
        &rng.normals(18),
    )
}

/// The same with `kdim` 5 and `vdim` 7.
fn torch_apart() -> File {
    let mut rng = Rng(33);
    torch()
        .without("in_proj_weight")
        .with("q_proj_weight", &[6, 6], &rng.normals(36))
        .with("k_proj_weight", &[6, 5], &rng.normals(30))
        .with("v_proj_weight", &[6, 7], &rng.normals(42))
}

fn load_self(file: &File) -> Result<SelfAttention> {
    load(file, SelfAttention::load)
}

fn load_multi(file: &File) -> Result<MultiHeadAttention> {
    load(file, |source| MultiHeadAttention::load(source, 2))
}

fn load_torch(file: &File) -> Result<MultiHeadAttention> {
    load(file, |source| MultiHeadAttention::load_torch(source, 2))
}

/// The bits of two positions through a layer.
fn through(run: impl FnOnce(View<'_, f32>) -> Result<Attention>, width: usize) -> Result<Vec<u64>> {
    let x = Rng(34).normals(2 * width);
    Ok(common::bits(run(View::bhsd(&x, [1, 1, 2, width])?)?.out.data()))
}

fn through_self(layer: &SelfAttention) -> Result<Vec<u64>> {
    through(|x| layer.forward(x, &AttentionOptions::new()), 6)
}

fn through_multi(layer: &MultiHeadAttention) -> Result<Vec<u64>> {
    through(|x| layer.forward(x, x, &AttentionOptions::new()), 6)
}

#[test]
fn each_layer_finds_its_names() -> Result<()> {
    through_self(&load_self(&single("", SELF))?)?;
    let cross = load(&single("", CROSS), CrossAttention::load)?;
    let expected = through_self(&load_self(&single("", SELF))?)?;
    assert_eq!(through(|x| cross.forward(x, x, &AttentionOptions::new()), 6)?, expected);
    through_multi(&load_multi(&multi(""))?)?;
    through_multi(&load_torch(&torch())?)?;
    let apart = load_torch(&torch_apart())?;
    let (q, k, v) = ([0.5; 12], [0.25; 15], [0.75; 21]);
    let view = |data, seq, width| View::bhsd(data, [1, 1, seq, width]);
    let memory = (view(&k, 3, 5)?, view(&v, 3, 7)?);
    let result = apart.forward(view(&q, 2, 6)?, memory, &AttentionOptions::new())?;
    assert_eq!(result.out.shape(), [1, 1, 2, 6]);
    Ok(())
}

#[test]
fn names_of_the_files_own() -> Result<()> {
    let expected = through_self(&load_self(&single("", SELF))?)?;
    let file = single("layers.3.attn.", ["wq", "wk", "wv"]).with_shape("layers.3.norm", &[6]);
    let renamed = |source: &Source<'_>| {
        let source = source.clone().prefix("layers.3.attn.");
        SelfAttention::load(&source.rename("query", "wq").rename("key", "wk").rename("value", "wv"))
    };
    assert_eq!(through_self(&load(&file, renamed)?)?, expected);

    // Names exchanged are exchanged, and not twice over.
    let swapped = |source: &Source<'_>| {
        SelfAttention::load(&source.clone().rename("query", "key").rename("key", "query"))
    };
    let file = single("", ["key", "query", "value"]);
    assert_eq!(through_self(&load(&file, swapped)?)?, expected);

    // A module may stand elsewhere, and a lone tensor have another name.
    let file = multi("a.").without("a.linear_out.weight").without("a.linear_out.bias");
    let file = file.with_shape("b.out.weight", &[5, 8]);
    let elsewhere = |source: &Source<'_>| {
        let names = ["linear_q", "linear_k", "linear_v"];
        let source = names
            .iter()
            .fold(source.clone(), |source, name| source.rename(name, &format!("a.{name}")));
        MultiHeadAttention::load(&source.rename("linear_out", "b.out"), 2)
    };
    load(&file, elsewhere)?;
    let file = torch().without("in_proj_weight").with_shape("qkv", &[18, 6]);
    load(&file, |source| {
        MultiHeadAttention::load_torch(&source.clone().rename("in_proj_weight", "qkv"), 2)
    })?;
    Ok(())
}

/// A module renamed to nothing, and a file of nothing.
#[test]
fn nothing_is_found_by_no_name() {
    let nowhere = |source: &Source<'_>| SelfAttention::load(&source.clone().rename("query", ""));
    assert_faults(
        load(&single("", SELF), nowhere),
        "",
        &[r#"".weight" is missing"#, r#""query.bias" is surplus"#, r#""query.weight" is surplus"#],
    );
    assert_faults(
        load_self(&File::default()),
        "",
        &[
            r#""query.weight" is missing"#,
            r#""key.weight" is missing"#,
            r#""value.weight" is missing"#,
        ],
    );
}

#[test]
fn a_prefix_is_all_there_is() {
    let file = single("a.", SELF).with_shape("b.query.weight", &[4, 6]);
    let under = |prefix| {
        load(&file, |source| SelfAttention::load(&source.clone().prefix(prefix)).map(drop))
    };
    assert_eq!(under("a."), Ok(()));
    assert_faults(
        under("b."),
        "b.",
        &[r#""b.key.weight" is missing"#, r#""b.value.weight" is missing"#],
    );
    assert_faults(
        under("c."),
        "c.",
        &[
            r#""c.query.weight" is missing"#,
            r#""c.key.weight" is missing"#,
            r#""c.value.weight" is missing"#,
        ],
    );
}

#[test]
fn others_under_the_prefix_only_where_that_is_said() -> Result<()> {
    let file = single("", SELF).with_shape("norm.weight", &[6]).with_shape("key.scale", &[1]);
    assert_faults(
        load_self(&file),
        "",
        &[r#""key.scale" is surplus"#, r#""norm.weight" is surplus"#],
    );
    let partial = |source: &Source<'_>| SelfAttention::load(&source.clone().partial());
    let expected = through_self(&load_self(&single("", SELF))?)?;
    assert_eq!(through_self(&load(&file, partial)?)?, expected);
    assert_faults(load(&file.without("key.weight"), partial), "", &[r#""key.weight" is missing"#]);
    Ok(())
}

#[test]
fn a_bias_may_be_left_out() -> Result<()> {
    for name in ["query", "key", "value"] {
        let bias = format!("{name}.bias");
        let without = load_self(&single("", SELF).without(&bias))?;
        let zero = load_self(&single("", SELF).with(&bias, &[4], &[0.0; 4]))?;
        assert_eq!(through_self(&without)?, through_self(&zero)?, "{bias}");
    }
    let without = load_multi(&multi("").without("linear_out.bias"))?;
    let zero = load_multi(&multi("").with("linear_out.bias", &[5], &[0.0; 5]))?;
    assert_eq!(through_multi(&without)?, through_multi(&zero)?);
    for torch in [torch(), torch_apart()] {
        load_torch(&torch.without("in_proj_bias").without("out_proj.bias"))?;
    }
    Ok(())
}

#[test]
fn all_faults_at_once() {
    let file = multi("m.")
        .without("m.linear_q.weight")
        .with_shape("m.linear_k.weight", &[8, 6, 1])
        .with_bytes("m.linear_v.weight", Dtype::I64, &[8, 6], vec![0; 8 * 48])
        .with_shape("m.linear_out.bias", &[6])
        .with_shape("m.linear_o.bias", &[5])
        .with_shape("m.bias_k", &[1, 1, 8]);
    let result = load(&file, |source| MultiHeadAttention::load(&source.clone().prefix("m."), 2));
    assert_faults(
        result,
        "m.",
        &[
            r#""m.linear_q.weight" is missing"#,
            r#""m.linear_k.weight" has shape [8, 6, 1], not [outputs, inputs]"#,
            r#"tensor "m.linear_v.weight": type I64, expected F32, F16 or BF16"#,
            r#""m.linear_out.bias" has shape [6], not [5]"#,
            r#""m.bias_k" is surplus"#,
            r#""m.linear_o.bias" is surplus"#,
        ],
    );
}

#[test]
fn misshapen_tensors() {
    for (shape, text) in [
        (&[][..], "[]"),
        (&[24], "[24]"),
        (&[0, 6], "[0, 6]"),
        (&[4, 0], "[4, 0]"),
        (&[1, 1, 4, 6], "[1, 1, 4, 6]"),
    ] {
        let file = single("", SELF).with_shape("key.weight", shape);
        let fault = format!(r#""key.weight" has shape {text}, not [outputs, inputs]"#);
        assert_faults(load_self(&file), "", &[&fault]);
    }
    for (shape, text) in
        [(&[][..], "[]"), (&[0], "[0]"), (&[3], "[3]"), (&[5], "[5]"), (&[1, 4], "[1, 4]")]
    {
        let file = single("", SELF).with_shape("key.bias", shape);
        let fault = format!(r#""key.bias" has shape {text}, not [4]"#);
        assert_faults(load_self(&file), "", &[&fault]);
    }
}

#[test]
fn other_types() {
    let types =
        [(Dtype::I64, 8), (Dtype::F64, 8), (Dtype::I32, 4), (Dtype::U8, 1), (Dtype::BOOL, 1)];
    for (dtype, size) in types {
        for (name, shape) in [("query.weight", &[4, 6][..]), ("query.bias", &[4])] {
            let bytes = vec![0; size * shape.iter().product::<usize>()];
            let file = single("", SELF).with_bytes(name, dtype, shape, bytes);
            let fault = format!("tensor {name:?}: type {dtype:?}, expected F32, F16 or BF16");
            assert_faults(load_self(&file), "", &[&fault]);
        }
    }
}

#[test]
fn torch_faults() {
    let file = torch().with_shape("bias_k", &[1, 1, 6]).with_shape("bias_v", &[1, 1, 6]);
    assert_faults(load_torch(&file), "", &[r#""bias_k" is surplus"#, r#""bias_v" is surplus"#]);

    // 15 are three times something, but not three times the inputs.
    for rows in [1, 2, 15, 17, 19] {
        let file = torch().with_shape("in_proj_weight", &[rows, 6]).without("in_proj_bias");
        let fault =
            format!(r#""in_proj_weight" has shape [{rows}, 6], not [3 * embed_dim, embed_dim]"#);
        assert_faults(load_torch(&file), "", &[&fault]);
    }
    let file = torch().with_shape("in_proj_bias", &[17]);
    assert_faults(load_torch(&file), "", &[r#""in_proj_bias" has shape [17], not [18]"#]);

    // One kind or the other.
    let file = torch().without("in_proj_weight").without("out_proj.weight");
    assert_faults(
        load_torch(&file),
        "",
        &[
            r#""q_proj_weight" is missing"#,
            r#""k_proj_weight" is missing"#,
            r#""v_proj_weight" is missing"#,
            r#""out_proj.weight" is missing"#,
        ],
    );
    let file = torch().with_shape("q_proj_weight", &[6, 6]);
    assert_faults(load_torch(&file), "", &[r#""q_proj_weight" is surplus"#]);

    let file = torch_apart().with_shape("k_proj_weight", &[5, 5]).without("v_proj_weight");
    assert_faults(
        load_torch(&file),
        "",
        &[r#""v_proj_weight" is missing"#, r#""k_proj_weight" has shape [5, 5], not [6, inputs]"#],
    );
    let file = torch().with_shape("in_proj_weight", &[18]);
    assert_faults(
        load_torch(&file),
        "",
        &[r#""in_proj_weight" has shape [18], not [outputs, inputs]"#],
    );
}

/// Each tensor is sound, but the layer is not.
#[test]
fn parts_that_do_not_fit_each_other() {
    let heads = |query, kv| {
        load(&multi(""), |source| MultiHeadAttention::load(source, Heads { query, kv }))
    };
    assert_value(heads(3, 3), &["query: 8 outputs", "a multiple of the 3 heads"]);
    assert_value(heads(2, 0), &["heads: ", "kv: 0", "at least one"]);
    assert_value(heads(0, 0), &["heads: ", "at least one"]);
    assert_value(heads(4, 3), &["heads: ", "a divisor"]);
    // Keys of 8 are not 2 heads of 2.
    assert_value(heads(4, 2), &["key: 8 outputs", "2 heads of 2"]);
    let torch = load(&torch(), |source| MultiHeadAttention::load_torch(source, 4));
    assert_value(torch, &["query: 6 outputs", "a multiple of the 4 heads"]);

    let file = linears("", &[("query", [4, 6]), ("key", [5, 6]), ("value", [4, 6])]);
    assert_value(load_self(&file), &["key: 5 outputs", "1 heads of 4"]);
    let file = multi("").with_shape("linear_out.weight", &[5, 7]);
    assert_value(load_multi(&file), &["out: 7 inputs", "2 heads of 4"]);
}

#[test]
fn one_linear_layer_by_name() -> Result<()> {
    let file = single("a.", SELF);
    let by = |prefix, name: &str| {
        load(&file, |source| Linear::load(&source.clone().prefix(prefix), name))
    };
    assert_eq!((by("a.", "key")?.inputs(), by("", "a.key")?.outputs()), (6, 4));
    assert_faults(by("a.", "keys"), "a.", &[r#""a.keys.weight" is missing"#]);
    let file = file.without("a.key.weight");
    let lone = load(&file, |source| Linear::load(&source.clone().prefix("a."), "key"));
    assert_faults(lone, "a.", &[r#""a.key.weight" is missing"#]);
    Ok(())
}

#[test]
fn lone_tensors() -> Result<()> {
    let bytes = File::default()
        .with("x", &[1, 2], &[0.5, -0.0])
        .with_bytes("half", Dtype::F16, &[2], vec![0, 0x3c, 0, 0xfc])
        .with_bytes("brain", Dtype::BF16, &[1], vec![0xc0, 0x3f])
        .with_bytes("count", Dtype::I64, &[1], vec![0; 8])
        .bytes();
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read_f32(&file, "x")?, (vec![0.5, -0.0], vec![1, 2]));
    assert_eq!(read_f32(&file, "half")?, (vec![1.0, f32::NEG_INFINITY], vec![2]));
    assert_eq!(read_f32(&file, "brain")?, (vec![1.5], vec![1]));
    let message = |result: Result<_>| match result {
        Err(error @ Error::Tensor { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        message(read_f32(&file, "y").map(drop)),
        r#"tensor "y": missing, expected it among ["brain", "count", "half", "x"]"#
    );
    assert_eq!(
        message(read_f32(&file, "count").map(drop)),
        r#"tensor "count": type I64, expected F32, F16 or BF16"#
    );
    assert_eq!(
        message(read_tensor(&file, "x").map(drop)),
        r#"tensor "x": shape [1, 2], expected four axes, [batch, heads, seq, dim]"#
    );
    Ok(())
}

#[test]
fn no_file_at_all() {
    let bytes = multi("").bytes();
    for length in (0..bytes.len()).step_by(7) {
        assert!(SafeTensors::deserialize(&bytes[..length]).is_err(), "{length} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(SafeTensors::deserialize(&longer).is_err());
    let mut endless = bytes;
    endless[..8].fill(0xff);
    assert!(SafeTensors::deserialize(&endless).is_err());
}

/// Every way to read the file.
fn load_all(file: &SafeTensors<'_>) -> [bool; 6] {
    let source = Source::new(file);
    let partial = source.clone().partial();
    [
        SelfAttention::load(&source).is_ok(),
        CrossAttention::load(&partial).is_ok(),
        MultiHeadAttention::load(&source, 2).is_ok(),
        MultiHeadAttention::load_torch(&source, Heads { query: 2, kv: 2 }).is_ok(),
        MultiHeadAttention::load_torch(&partial, 3).is_ok(),
        Linear::load(&source, "query").is_ok(),
    ]
}

#[test]
fn flipped_bytes_never_panic() {
    let files = [single("", SELF), single("", CROSS), multi(""), torch(), torch_apart()];
    let files = files.map(|file| file.bytes());
    let counts = std::cell::Cell::new([0_usize; 3]);
    // Most of them in the header, which is what can be misread.
    let flip = (any::<bool>(), any::<prop::sample::Index>(), any::<u8>());
    let flips = prop::collection::vec(flip, 1..4);
    for_all(20_000, (0..files.len(), flips), |(file, flips)| {
        let mut bytes = files[file].clone();
        for (anywhere, at, value) in flips {
            let header = bytes.len() / 2;
            let at = at.index(if anywhere { bytes.len() } else { header });
            bytes[at] = value;
        }
        let [corrupt, refused, fine] = counts.get();
        counts.set(match SafeTensors::deserialize(&bytes) {
            Err(_) => [corrupt + 1, refused, fine],
            Ok(file) if load_all(&file).contains(&true) => [corrupt, refused, fine + 1],
            Ok(_) => [corrupt, refused + 1, fine],
        });
    });
    // All three happen.
    assert!(counts.get().iter().all(|&count| count > 100), "{:?}", counts.get());
}
