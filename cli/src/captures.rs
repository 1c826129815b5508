//! Tensors of real models, embedded, with answers that others computed in float64.
//! `fixtures/README.md` says where each comes from.

use headwise::{Attention, AttentionOptions, Scale, Tensor, attention, dot_product_attention};

use crate::archive::Archive;
use crate::spec::SpecArgs;
use crate::work::Problem;
use crate::{Result, forms};

/// Which of the library's functions a capture goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// [`attention`].
    Attention,
    /// [`dot_product_attention`], by its own default scale.
    DotProduct,
}

/// An embedded capture.
pub(crate) struct Capture {
    pub(crate) name: &'static str,
    /// The model, the layer and the kind of attention.
    pub(crate) what: &'static str,
    file: &'static [u8],
    prefix: &'static str,
    form: Form,
}

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/", $name, ".safetensors"))
    };
}

/// Every embedded capture.
pub(crate) const ALL: [Capture; 5] = [
    Capture {
        name: "minilm-l4",
        what: "MiniLM-L6 layer 4, encoder",
        file: fixture!("minilm_l4_t128"),
        prefix: "",
        form: Form::Attention,
    },
    Capture {
        name: "smollm2-l18",
        what: "SmolLM2-135M layer 18, prefill",
        file: fixture!("smollm2_l18_prefill256"),
        prefix: "",
        form: Form::Attention,
    },
    Capture {
        name: "smollm2-l18-decode",
        what: "SmolLM2-135M layer 18, decode",
        file: fixture!("smollm2_l18_decode_kv257"),
        prefix: "",
        form: Form::Attention,
    },
    Capture {
        name: "whisper-l0-cross",
        what: "Whisper tiny.en layer 0, cross",
        file: fixture!("whisper_dec_cross_l0_q9_k1500_f16"),
        prefix: "",
        form: Form::Attention,
    },
    Capture {
        name: "dot-product",
        what: "MiniLM-L6 layer 4, dot product",
        file: forms::FILE,
        prefix: "dot_product.",
        form: Form::DotProduct,
    },
];

/// The tensors of a capture.
pub(crate) struct Loaded {
    form: Form,
    pub(crate) problem: Problem,
    pub(crate) out: Tensor,
    pub(crate) lse: Option<Vec<f32>>,
    pub(crate) weights: Option<Tensor>,
}

impl Capture {
    pub(crate) fn load(&self) -> Result<Loaded> {
        let file = Archive::parse(self.name, self.prefix, self.file)?;
        let spec = SpecArgs::default().spec(Some(&file))?;
        let out = file.tensor("out")?;
        let lse = file.has("lse").then(|| file.shaped("lse", &[&out.shape()[..3]])).transpose()?;
        let weights = file.has("weights").then(|| file.tensor("weights")).transpose()?;
        let problem = Problem {
            query: file.tensor("q")?,
            key: file.tensor("k")?,
            value: file.tensor("v")?,
            scale: spec.scale().unwrap_or(Scale::InvSqrtHeadDim),
            causal: spec.plain_causal().unwrap_or_default(),
        };
        Ok(Loaded { form: self.form, problem, out, lse, weights })
    }
}

impl Loaded {
    /// Computes what the capture has answers for.
    pub(crate) fn compute(&self, isa: headwise::Isa) -> Result<Attention> {
        let problem = &self.problem;
        let (q, k, v) = (problem.query.view(), problem.key.view(), problem.value.view());
        let ask = |mut options: AttentionOptions<'static>| {
            if self.lse.is_some() {
                options = options.return_lse();
            }
            if self.weights.is_some() {
                options = options.return_weights();
            }
            options.isa(isa)
        };
        Ok(match self.form {
            Form::Attention => attention(q, k, v, &ask(problem.options()))?,
            // Without a scale among the options, so that the function's own is what is checked.
            Form::DotProduct => dot_product_attention(q, k, v, &ask(AttentionOptions::new()))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capture_says_what_it_is() -> Result<()> {
        for capture in &ALL {
            let loaded = capture.load()?;
            let file = Archive::parse(capture.name, capture.prefix, capture.file)?;
            let spec = SpecArgs::default().spec(Some(&file))?;
            assert!(spec.plain_causal().is_some(), "{}", capture.name);
            assert!(spec.scale().is_some(), "{}", capture.name);
            assert_eq!(loaded.form == Form::DotProduct, loaded.weights.is_some());
        }
        Ok(())
    }
}
