//! Captures of real models: `q`, `k`, `v` as they enter attention, and answers of others in float64.

use headwise::safetensors::read_tensor;
use headwise::{Causal, Scale, Tensor};
use safetensors::SafeTensors;

use super::case::Inputs;
use super::strided::{Layout, Strided};
use super::structure::Structure;
use super::terms::Terms;

/// A capture of the fixtures.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    /// The file's name, without its extension.
    pub name: &'static str,
    pub causal: bool,
    pub scale: Scale,
}

const fn plain(name: &'static str) -> Capture {
    Capture { name, causal: false, scale: Scale::InvSqrtHeadDim }
}

const fn causal(name: &'static str) -> Capture {
    Capture { causal: true, ..plain(name) }
}

pub const ENCODERS: [Capture; 2] = [plain("minilm_l0_t128"), plain("minilm_l4_t128")];
pub const PREFILLS: [Capture; 2] =
    [causal("smollm2_l2_prefill256"), causal("smollm2_l18_prefill256")];
pub const DECODE: Capture = causal("smollm2_l18_decode_kv257");
pub const CROSS: Capture =
    Capture { scale: Scale::One, ..plain("whisper_dec_cross_l0_q9_k1500_f16") };

/// A file of the fixtures, of the command's or of the tests'.
pub fn read(name: &str) -> Vec<u8> {
    let root = env!("CARGO_MANIFEST_DIR");
    let paths = ["cli/fixtures", "tests/fixtures"].map(|dir| format!("{root}/{dir}/{name}"));
    paths.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_else(|| panic!("{paths:?}"))
}

impl Capture {
    pub fn bytes(&self) -> Vec<u8> {
        read(&format!("{}.safetensors", self.name))
    }

    pub fn inputs(&self) -> Inputs<f32> {
        let bytes = self.bytes();
        let file =
            SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let tensor = |part| {
            let tensor: Tensor = read_tensor(&file, part).unwrap_or_else(|e| panic!("{e}"));
            Strided::new(tensor.data(), tensor.shape(), Layout::Bhsd, 0.0)
        };
        Inputs {
            query: tensor("q"),
            key: tensor("k"),
            value: tensor("v"),
            boolean: None,
            bias: None,
            lengths: None,
            structure: Structure::default(),
            causal: self.causal.then_some(Causal::BottomRight),
            left: None,
            right: None,
            scale: self.scale,
            terms: Terms::default(),
        }
    }
}
