//! The forms on real weights and activations against answers that others computed in float64, and
//! the same layers from files of other names and types.
//!
//! The tolerances are some five times what PyTorch's own `f32` is off on the same data, since an
//! error in a score is a relative error of its weight and the unscaled scores reach 429:
//!
//! | form | PyTorch, out | PyTorch, weights | tolerance |
//! |---|---|---|---|
//! | `self_attention` | 1.1e-5 | 3.7e-6 | 5e-5 |
//! | `multi_head` | 1.8e-6 | 8.3e-7 | 1e-5 |
//! | `cross_attention` | 6.7e-6 | 1.8e-5 | 1e-4 |
//! | `cross_multi_head` | 3.0e-7 | 6.0e-7 | 5e-6 |

use half::{bf16, f16};
use headwise::layers::{CrossAttention, Linear, MultiHeadAttention, SelfAttention};
use headwise::safetensors::{Source, read_f32};
use headwise::{Attention, AttentionOptions, Isa, Result, Scale, Tensor};
use safetensors::{Dtype, SafeTensors};

use super::{all, assert_same};
use crate::common::file::File;

const ALBERT: &str = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.";

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/cli/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn parse(bytes: &[u8]) -> SafeTensors<'_> {
    SafeTensors::deserialize(bytes).unwrap_or_else(|error| panic!("{error}"))
}

/// Both files: the forms with their answers, and ALBERT's weights.
struct Fixtures {
    forms: Vec<u8>,
    albert: Vec<u8>,
}

impl Fixtures {
    fn read() -> Self {
        Self { forms: read("forms.safetensors"), albert: read("rxn_albert_f32.safetensors") }
    }
}

/// Hidden states `[1, seq, width]` as a layer takes them.
fn hidden(file: &SafeTensors<'_>, name: &str) -> Result<Tensor> {
    match read_f32(file, name)? {
        (data, shape) if shape.len() == 3 => Tensor::new(data, [shape[0], 1, shape[1], shape[2]]),
        (_, shape) => panic!("{name}: {shape:?}"),
    }
}

fn largest_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).fold(0.0, |worst, (got, expected)| {
        // A NaN is an infinite error.
        let error = (got - expected).abs();
        worst.max(if error.is_nan() { f32::INFINITY } else { error })
    })
}

/// Compares with `<form>.out` and `<form>.weights`, on every instruction set.
fn check(
    forms: &SafeTensors<'_>,
    form: &str,
    tolerance: f32,
    run: impl Fn(&AttentionOptions<'_>) -> Result<Attention>,
) -> Result<()> {
    let (out, _) = read_f32(forms, &format!("{form}.out"))?;
    let (weights, _) = read_f32(forms, &format!("{form}.weights"))?;
    for isa in Isa::available() {
        let result = run(&all(isa))?;
        assert_eq!(result.isa, isa);
        let got = result.weights.as_ref().map_or(&[][..], |weights| weights.data());
        let errors = [largest_error(result.out.data(), &out), largest_error(got, &weights)];
        println!("{form} on {isa}: out {:.1e}, weights {:.1e}", errors[0], errors[1]);
        assert!(errors.iter().all(|&e| e <= tolerance), "{form} on {isa}: {errors:?}");
    }
    Ok(())
}

fn albert_self(file: &SafeTensors<'_>) -> Result<SelfAttention> {
    SelfAttention::load(&Source::new(file).prefix(ALBERT).partial())
}

fn albert_multi_head(file: &SafeTensors<'_>) -> Result<MultiHeadAttention> {
    let source = Source::new(file)
        .prefix(ALBERT)
        .rename("linear_q", "query")
        .rename("linear_k", "key")
        .rename("linear_v", "value")
        .rename("linear_out", "dense");
    MultiHeadAttention::load(&source.partial(), 8)
}

fn whisper_cross(file: &SafeTensors<'_>) -> Result<CrossAttention> {
    CrossAttention::load(&Source::new(file).prefix("cross_attention.").partial())
}

fn whisper_multi_head(file: &SafeTensors<'_>) -> Result<MultiHeadAttention> {
    let source = Source::new(file)
        .rename("linear_q", "cross_attention.query_linear")
        .rename("linear_k", "cross_attention.key_linear")
        .rename("linear_v", "cross_attention.value_linear")
        .rename("linear_out", "cross_multi_head.linear_out");
    MultiHeadAttention::load(&source.partial(), 6)
}

#[test]
fn self_attention() -> Result<()> {
    let fixtures = Fixtures::read();
    let (forms, albert) = (parse(&fixtures.forms), parse(&fixtures.albert));
    let (layer, x) = (albert_self(&albert)?, hidden(&forms, "self_attention.x")?);
    check(&forms, "self_attention", 5e-5, |options| layer.forward(x.view(), options))
}

#[test]
fn multi_head() -> Result<()> {
    let fixtures = Fixtures::read();
    let (forms, albert) = (parse(&fixtures.forms), parse(&fixtures.albert));
    let (layer, x) = (albert_multi_head(&albert)?, hidden(&forms, "self_attention.x")?);
    check(&forms, "multi_head", 1e-5, |options| layer.forward(x.view(), x.view(), options))
}

#[test]
fn cross_attention() -> Result<()> {
    let bytes = read("forms.safetensors");
    let forms = parse(&bytes);
    let decoder = hidden(&forms, "cross_attention.decoder_hidden")?;
    let encoder = hidden(&forms, "cross_attention.encoder_hidden")?;
    let layer = whisper_cross(&forms)?;
    check(&forms, "cross_attention", 1e-4, |options| {
        layer.forward(decoder.view(), encoder.view(), options)
    })
}

#[test]
fn cross_multi_head() -> Result<()> {
    let bytes = read("forms.safetensors");
    let forms = parse(&bytes);
    let decoder = hidden(&forms, "cross_attention.decoder_hidden")?;
    let encoder = hidden(&forms, "cross_attention.encoder_hidden")?;
    let layer = whisper_multi_head(&forms)?;
    check(&forms, "cross_multi_head", 5e-6, |options| {
        layer.forward(decoder.view(), encoder.view(), options)
    })
}

/// Weights and biases of query, key, value and output, of `width` each.
struct Parts {
    width: usize,
    /// Weight, bias.
    linear: [(Vec<f32>, Vec<f32>); 4],
}

impl Parts {
    fn read(file: &SafeTensors<'_>, names: [&str; 4]) -> Result<Self> {
        let mut linear = [const { (Vec::new(), Vec::new()) }; 4];
        for (part, name) in linear.iter_mut().zip(names) {
            let of = |kind| read_f32(file, &format!("{name}.{kind}")).map(|(data, _)| data);
            *part = (of("weight")?, of("bias")?);
        }
        Ok(Self { width: linear[0].1.len(), linear })
    }

    fn albert(file: &SafeTensors<'_>) -> Result<Self> {
        let names = ["query", "key", "value", "dense"].map(|name| format!("{ALBERT}{name}"));
        Self::read(file, names.each_ref().map(String::as_str))
    }

    fn whisper(file: &SafeTensors<'_>) -> Result<Self> {
        let [q, k, v] = ["query_linear", "key_linear", "value_linear"]
            .map(|name| format!("cross_attention.{name}"));
        Self::read(file, [&q, &k, &v, "cross_multi_head.linear_out"])
    }

    /// The output projection that changes nothing.
    fn without_output(mut self) -> Self {
        let n = self.width;
        let eye = (0..n * n).map(|at| f32::from(u8::from(at % (n + 1) == 0))).collect();
        self.linear[3] = (eye, vec![0.0; n]);
        self
    }

    /// As `torch.nn.MultiheadAttention` saves them, in one matrix or three.
    fn torch(&self, joint: bool) -> File {
        let (n, [q, k, v, out]) = (self.width, &self.linear);
        let bias = [&q.1[..], &k.1, &v.1].concat();
        let file = File::default()
            .with("attn.in_proj_bias", &[3 * n], &bias)
            .with("attn.out_proj.weight", &[n, n], &out.0)
            .with("attn.out_proj.bias", &[n], &out.1);
        if joint {
            let all = [&q.0[..], &k.0, &v.0].concat();
            return file.with("attn.in_proj_weight", &[3 * n, n], &all);
        }
        file.with("attn.q_proj_weight", &[n, n], &q.0)
            .with("attn.k_proj_weight", &[n, n], &k.0)
            .with("attn.v_proj_weight", &[n, n], &v.0)
    }
}

/// Both kinds of file that `torch.nn.MultiheadAttention` saves give the bits of `expected`.
fn check_torch(
    parts: &Parts,
    heads: usize,
    options: impl Fn(Isa) -> AttentionOptions<'static>,
    (query, memory): (&Tensor, &Tensor),
    expected: impl Fn(&AttentionOptions<'_>) -> Result<Attention>,
) -> Result<()> {
    for joint in [true, false] {
        let bytes = parts.torch(joint).bytes();
        let file = parse(&bytes);
        let layer = MultiHeadAttention::load_torch(&Source::new(&file).prefix("attn."), heads)?;
        for isa in Isa::available() {
            let got = layer.forward(query.view(), memory.view(), &options(isa))?;
            assert_same(&got, &expected(&options(isa))?, &format!("joint: {joint}, {isa}"));
        }
    }
    Ok(())
}

#[test]
fn torch_names_of_multi_head_give_the_same_bits() -> Result<()> {
    let fixtures = Fixtures::read();
    let (forms, albert) = (parse(&fixtures.forms), parse(&fixtures.albert));
    let (layer, x) = (albert_multi_head(&albert)?, hidden(&forms, "self_attention.x")?);
    check_torch(&Parts::albert(&albert)?, 8, all, (&x, &x), |options| {
        layer.forward(x.view(), x.view(), options)
    })?;
    let decoder = hidden(&forms, "cross_attention.decoder_hidden")?;
    let encoder = hidden(&forms, "cross_attention.encoder_hidden")?;
    let layer = whisper_multi_head(&forms)?;
    check_torch(&Parts::whisper(&forms)?, 6, all, (&decoder, &encoder), |options| {
        layer.forward(decoder.view(), encoder.view(), options)
    })
}

/// The forms of one head are multi-head attention without a scale and with an output projection
/// that changes nothing, exactly.
#[test]
fn torch_names_of_one_head_give_the_same_bits() -> Result<()> {
    let unscaled = |isa| all(isa).scale(Scale::One);
    let fixtures = Fixtures::read();
    let (forms, albert) = (parse(&fixtures.forms), parse(&fixtures.albert));
    let (layer, x) = (albert_self(&albert)?, hidden(&forms, "self_attention.x")?);
    let parts = Parts::albert(&albert)?.without_output();
    check_torch(&parts, 1, unscaled, (&x, &x), |options| layer.forward(x.view(), options))?;
    let decoder = hidden(&forms, "cross_attention.decoder_hidden")?;
    let encoder = hidden(&forms, "cross_attention.encoder_hidden")?;
    let (layer, parts) = (whisper_cross(&forms)?, Parts::whisper(&forms)?.without_output());
    check_torch(&parts, 1, unscaled, (&decoder, &encoder), |options| {
        layer.forward(decoder.view(), encoder.view(), options)
    })
}

/// A number's bytes in half precision, and the number they stand for.
type Round = fn(f32) -> ([u8; 2], f32);

/// Half-precision files give the bits of an `f32` file of the widened numbers.
#[test]
fn half_precision_weights_are_widened() -> Result<()> {
    let fixtures = Fixtures::read();
    let (forms, albert) = (parse(&fixtures.forms), parse(&fixtures.albert));
    let x = hidden(&forms, "self_attention.x")?;
    let kinds: [(Dtype, Round); 2] = [
        (Dtype::F16, |x| (f16::from_f32(x).to_le_bytes(), f16::from_f32(x).to_f32())),
        (Dtype::BF16, |x| (bf16::from_f32(x).to_le_bytes(), bf16::from_f32(x).to_f32())),
    ];
    for (dtype, round) in kinds {
        let (mut narrow, mut wide) = (File::default(), File::default());
        for module in ["query", "key", "value", "dense"] {
            for part in ["weight", "bias"] {
                let name = format!("{ALBERT}{module}.{part}");
                let (data, shape) = read_f32(&albert, &name)?;
                let bytes = data.iter().flat_map(|&x| round(x).0).collect();
                narrow = narrow.with_bytes(&name, dtype, &shape, bytes);
                let widened: Vec<_> = data.iter().map(|&x| round(x).1).collect();
                assert!(widened != data, "{name} is not rounded");
                wide = wide.with(&name, &shape, &widened);
            }
        }
        let (narrow, wide) = (narrow.bytes(), wide.bytes());
        let (narrow, wide) = (parse(&narrow), parse(&wide));
        for isa in Isa::available() {
            let what = format!("{dtype:?} on {isa}");
            let run = |file| albert_self(file)?.forward(x.view(), &all(isa));
            assert_same(&run(&narrow)?, &run(&wide)?, &what);
            let run = |file| albert_multi_head(file)?.forward(x.view(), x.view(), &all(isa));
            assert_same(&run(&narrow)?, &run(&wide)?, &what);
        }
    }
    Ok(())
}

/// A linear layer by its name, beside the layers that have it.
#[test]
fn a_linear_layer_among_others() -> Result<()> {
    let bytes = read("rxn_albert_f32.safetensors");
    let file = parse(&bytes);
    let layer = Linear::load(&Source::new(&file).prefix(ALBERT), "dense")?;
    assert_eq!((layer.inputs(), layer.outputs()), (256, 256));
    Ok(())
}
