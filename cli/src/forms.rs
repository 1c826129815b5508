//! The forms of attention with the weights of real models, against answers that others computed in
//! float64; `fixtures/README.md` says how.

use headwise::layers::{CrossAttention, MultiHeadAttention, SelfAttention};
use headwise::{Attention, AttentionOptions, Isa, Tensor, dot_product_attention};

use crate::Result;
use crate::albert::{HEADS, WEIGHTS, attention_source};
use crate::archive::Archive;
use crate::compare::distance;
use crate::extents::Extents;

/// Inputs and answers of all forms, and the weights of those from Whisper.
pub(crate) const FILE: &[u8] = include_bytes!("../fixtures/forms.safetensors");

/// A form of attention that has answers.
pub(crate) struct Form {
    pub(crate) name: &'static str,
    /// The function or layer, and whose tensors it has.
    pub(crate) what: &'static str,
    /// Allowed of out and weights, absolute: a few times what PyTorch misses in `f32`.
    pub(crate) allowed: f64,
    run: fn(&Inputs<'_>, &AttentionOptions<'_>) -> Result<Attention>,
}

/// Every form.
pub(crate) const ALL: [Form; 5] = [
    Form {
        name: "dot-product",
        what: "dot_product_attention, MiniLM",
        allowed: 1e-5,
        run: |inputs, options| {
            let [q, k, v] = &inputs.qkv;
            Ok(dot_product_attention(q.view(), k.view(), v.view(), options)?)
        },
    },
    Form {
        name: "self-attention",
        what: "SelfAttention, ALBERT",
        allowed: 5e-5,
        run: |inputs, options| {
            let source = attention_source(&inputs.albert);
            Ok(SelfAttention::load(&source)?.forward(inputs.x.view(), options)?)
        },
    },
    Form {
        name: "multi-head",
        what: "MultiHeadAttention, ALBERT",
        allowed: 1e-5,
        run: |inputs, options| {
            let layer = MultiHeadAttention::load(&attention_source(&inputs.albert), HEADS)?;
            Ok(layer.forward(inputs.x.view(), inputs.x.view(), options)?)
        },
    },
    Form {
        name: "cross-attention",
        what: "CrossAttention, Whisper",
        allowed: 1e-4,
        run: |inputs, options| {
            let source = inputs.forms.source().prefix("cross_attention.").partial();
            let layer = CrossAttention::load(&source)?;
            Ok(layer.forward(inputs.decoder.view(), inputs.encoder.view(), options)?)
        },
    },
    Form {
        name: "cross-multi-head",
        what: "MultiHeadAttention, Whisper",
        allowed: 5e-6,
        run: |inputs, options| {
            // The projections stand with those of the form before.
            let source = inputs.forms.source().prefix("cross_").partial();
            let source = source.rename("linear_q", "attention.query_linear");
            let source = source.rename("linear_k", "attention.key_linear");
            let source = source.rename("linear_v", "attention.value_linear");
            let source = source.rename("linear_out", "multi_head.linear_out");
            let layer = MultiHeadAttention::load(&source, 6)?;
            Ok(layer.forward(inputs.decoder.view(), inputs.encoder.view(), options)?)
        },
    },
];

/// What the forms read.
pub(crate) struct Inputs<'a> {
    forms: Archive<'a>,
    albert: Archive<'a>,
    qkv: [Tensor; 3],
    x: Tensor,
    decoder: Tensor,
    encoder: Tensor,
}

impl Inputs<'_> {
    pub(crate) fn embedded() -> Result<Self> {
        let forms = Archive::parse("forms", "", FILE)?;
        let hidden = |name: &str, seq, width| -> Result<Tensor> {
            Ok(Tensor::new(forms.shaped(name, &[&[1, seq, width]])?, [1, 1, seq, width])?)
        };
        let part = |name: &str| forms.tensor(&format!("dot_product.{name}"));
        Ok(Self {
            qkv: [part("q")?, part("k")?, part("v")?],
            x: hidden("self_attention.x", 61, 256)?,
            decoder: hidden("cross_attention.decoder_hidden", 14, 384)?,
            encoder: hidden("cross_attention.encoder_hidden", 375, 384)?,
            albert: Archive::parse(WEIGHTS.0, "", WEIGHTS.1)?,
            forms,
        })
    }
}

/// How far a form is from its answers: the largest absolute errors.
pub(crate) struct Judged {
    pub(crate) extents: Extents,
    pub(crate) isa: Isa,
    pub(crate) out_error: f64,
    pub(crate) weights_error: f64,
    pub(crate) pass: bool,
}

impl Form {
    pub(crate) fn check(&self, inputs: &Inputs<'_>, isa: Isa) -> Result<Judged> {
        let options = AttentionOptions::new().return_weights().isa(isa);
        let result = (self.run)(inputs, &options)?;
        let Some(weights) = result.weights else { unreachable!("they were asked for") };

        let prefix = self.name.replace('-', "_");
        let error = |part: &str, got: &Tensor| -> Result<f64> {
            // The answers leave out an axis of one head.
            let shape = match got.shape() {
                [batch, 1, rows, columns] => vec![batch, rows, columns],
                all => all.to_vec(),
            };
            let answer = inputs.forms.shaped(&format!("{prefix}.{part}"), &[&shape])?;
            Ok(distance(got.data(), &answer, answer.len()).max_absolute)
        };
        let (out_error, weights_error) = (error("out", &result.out)?, error("weights", &weights)?);

        let [batch, heads, seq_q, seq_kv] = weights.shape();
        // A layer's output has its heads side by side.
        let dim = result.out.data().len() / (batch * heads * seq_q);
        let extents = Extents::new([batch, heads, seq_q, dim], [batch, heads, seq_kv, dim]);
        let pass = out_error <= self.allowed && weights_error <= self.allowed;
        Ok(Judged { extents, isa: result.isa, out_error, weights_error, pass })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_on_every_instruction_set() -> Result<()> {
        let inputs = Inputs::embedded()?;
        for isa in Isa::available() {
            for form in &ALL {
                let judged = form.check(&inputs, isa)?;
                let Judged { out_error, weights_error, .. } = judged;
                assert!(judged.pass, "{isa}: {}: {out_error}, {weights_error}", form.name);
                assert!(out_error > 0.0 && weights_error > 0.0, "compared with itself");
                assert_eq!(judged.isa, isa);
            }
        }
        Ok(())
    }
}
