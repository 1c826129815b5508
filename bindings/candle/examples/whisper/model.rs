//! Whisper, whose layers have queries, keys and values of a sequence in one product.

use candle_core::{Device, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Embedding, LayerNorm, Linear, Module};

use crate::attention::{Memory, attend, joined, split};
use crate::common::{self, Result, Way};
use crate::load::Source;

pub(crate) struct Whisper {
    convolutions: [Conv1d; 2],
    audio_positions: Tensor,
    audio_layers: Vec<AudioLayer>,
    audio_norm: LayerNorm,
    tokens: Embedding,
    text_positions: Tensor,
    text_layers: Vec<TextLayer>,
    text_norm: LayerNorm,
    heads: usize,
}

struct AudioLayer {
    attention: SelfAttention,
    inner: Inner,
}

struct TextLayer {
    attention: SelfAttention,
    audio: CrossAttention,
    inner: Inner,
}

/// A text that grows under one window of audio.
pub(crate) struct Text<'m> {
    model: &'m Whisper,
    /// Keys and values of the audio, layer by layer, computed once.
    audio: Vec<[Tensor; 2]>,
    memories: Vec<Memory>,
    /// The tokens that the memories hold.
    known: usize,
}

impl Whisper {
    pub(crate) fn load(source: &Source) -> Result<Self> {
        let convolution = |name: &str, stride| {
            let part = |part| source.tensor(&format!("encoder/{name}/{part}"));
            let config = Conv1dConfig { padding: 1, stride, ..Default::default() };
            Result::Ok(Conv1d::new(part("weight")?, Some(part("bias")?), config))
        };
        let layers = |part: &str| {
            let name = |layer| format!("{part}/layer_{layer}");
            let there = |name: &String| source.has(&format!("{name}/ffn/linear_0/weight"));
            (0..).map(name).take_while(there).collect::<Vec<_>>()
        };
        let table = source.tensor("decoder/embeddings/weight")?;
        let audio_layers =
            layers("encoder").into_iter().map(|name| AudioLayer::load(source, &name));
        let text_layers = layers("decoder").into_iter().map(|name| TextLayer::load(source, &name));
        Ok(Self {
            convolutions: [convolution("conv1", 1)?, convolution("conv2", 2)?],
            audio_positions: source.tensor("encoder/position_encodings/encodings")?,
            audio_layers: audio_layers.collect::<Result<_>>()?,
            audio_norm: source.norm("encoder/layer_norm")?,
            tokens: Embedding::new(table.clone(), table.dim(1)?),
            text_positions: source.tensor("decoder/position_encodings/encodings")?,
            text_layers: text_layers.collect::<Result<_>>()?,
            text_norm: source.norm("decoder/layer_norm")?,
            heads: source.number("decoder/num_heads")?,
        })
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.tokens.embeddings().dims()[0]
    }

    /// What is heard in a spectrum, `[1, 1500, width]`.
    pub(crate) fn encode(&self, spectrum: &Tensor, way: Way) -> Result<Tensor> {
        let mut x = spectrum.clone();
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?.gelu_erf()?;
        }
        let mut x = x.transpose(1, 2)?.contiguous()?.broadcast_add(&self.audio_positions)?;
        for layer in &self.audio_layers {
            x = layer.forward(&x, self.heads, way)?;
        }
        Ok(self.audio_norm.forward(&x)?)
    }

    /// An empty text under what was heard.
    pub(crate) fn text(&self, audio: &Tensor, way: Way) -> Result<Text<'_>> {
        let (positions, width) = self.text_positions.dims2()?;
        let audio = self.text_layers.iter().map(|layer| layer.audio.keys(audio, self.heads));
        let memory = |_| Memory::new(way, self.heads, width / self.heads, positions);
        Ok(Text {
            model: self,
            audio: audio.collect::<Result<_>>()?,
            memories: self.text_layers.iter().map(memory).collect::<Result<_>>()?,
            known: 0,
        })
    }
}

impl Text<'_> {
    /// The logits behind the last of all the text's tokens, of which those before may be known.
    pub(crate) fn logits(&mut self, ids: &[u32]) -> Result<Tensor> {
        let new = &ids[self.known..];
        let model = self.model;
        let x = model.tokens.forward(&Tensor::new(new, &Device::Cpu)?)?;
        let mut x = (x + model.text_positions.narrow(0, self.known, new.len())?)?.unsqueeze(0)?;
        let layers = model.text_layers.iter().zip(&self.audio).zip(&mut self.memories);
        for ((layer, audio), memory) in layers {
            x = layer.forward(&x, model.heads, audio, memory)?;
        }
        if self.memories.iter().all(Memory::keeps) {
            self.known = ids.len();
        }
        let last = model.text_norm.forward(&x.narrow(1, new.len() - 1, 1)?)?.squeeze(0)?;
        Ok(last.matmul(&model.tokens.embeddings().t()?)?.squeeze(0)?)
    }
}

impl AudioLayer {
    fn load(source: &Source, name: &str) -> Result<Self> {
        let attention = SelfAttention::load(source, name)?;
        Ok(Self { attention, inner: Inner::load(source, name)? })
    }

    fn forward(&self, x: &Tensor, heads: usize, way: Way) -> Result<Tensor> {
        let x = self
            .attention
            .forward(x, heads, |[query, key, value]| attend(way, [&query, &key, &value], false))?;
        self.inner.forward(&x)
    }
}

impl TextLayer {
    fn load(source: &Source, name: &str) -> Result<Self> {
        let attention = SelfAttention::load(source, name)?;
        let audio = CrossAttention::load(source, name)?;
        Ok(Self { attention, audio, inner: Inner::load(source, name)? })
    }

    fn forward(
        &self,
        x: &Tensor,
        heads: usize,
        audio: &[Tensor; 2],
        memory: &mut Memory,
    ) -> Result<Tensor> {
        let x = self.attention.forward(x, heads, |projected| memory.attend(projected))?;
        let x = self.audio.forward(&x, heads, audio, memory.way())?;
        self.inner.forward(&x)
    }
}

/// Attention of a sequence to itself, added to it.
struct SelfAttention {
    norm: LayerNorm,
    projection: Linear,
    output: Linear,
}

impl SelfAttention {
    fn load(source: &Source, name: &str) -> Result<Self> {
        let name = |part: &str| format!("{name}/self_attention/{part}");
        Ok(Self {
            norm: source.norm(&name("layer_norm"))?,
            projection: source.linear(&name("linear_0"))?,
            output: source.linear(&name("linear_1"))?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        heads: usize,
        attend: impl FnOnce([Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let projected = self.projection.forward(&self.norm.forward(x)?)?;
        let out = common::attention(|| joined(&attend(split(&projected, heads)?)?))?;
        Ok((x + self.output.forward(&out)?)?)
    }
}

/// Attention of a text to what was heard, added to it.
struct CrossAttention {
    norm: LayerNorm,
    query: Linear,
    keys: Linear,
    output: Linear,
}

impl CrossAttention {
    fn load(source: &Source, name: &str) -> Result<Self> {
        let name = |part: &str| format!("{name}/attention/{part}");
        Ok(Self {
            norm: source.norm(&name("layer_norm"))?,
            query: source.linear(&name("linear_0"))?,
            keys: source.linear(&name("linear_1"))?,
            output: source.linear(&name("linear_2"))?,
        })
    }

    fn keys(&self, audio: &Tensor, heads: usize) -> Result<[Tensor; 2]> {
        split(&self.keys.forward(audio)?, heads)
    }

    fn forward(
        &self,
        x: &Tensor,
        heads: usize,
        [key, value]: &[Tensor; 2],
        way: Way,
    ) -> Result<Tensor> {
        let query = self.query.forward(&self.norm.forward(x)?)?;
        let out = common::attention(|| {
            let [query] = split(&query, heads)?;
            joined(&attend(way, [&query, key, value], false)?)
        })?;
        Ok((x + self.output.forward(&out)?)?)
    }
}

/// The layer's two products of each position, added to it.
struct Inner {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Inner {
    fn load(source: &Source, name: &str) -> Result<Self> {
        Ok(Self {
            norm: source.norm(&format!("{name}/ffn/layer_norm"))?,
            up: source.linear(&format!("{name}/ffn/linear_0"))?,
            down: source.linear(&format!("{name}/ffn/linear_1"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.up.forward(&self.norm.forward(x)?)?.gelu_erf()?;
        Ok((x + self.down.forward(&inner)?)?)
    }
}
