//! BERT, as sentence-transformers has it.

use std::collections::HashMap;
use std::fs::File;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module};
use serde_json::Value;

use crate::attention::{Padding, attend};
use crate::common::{self, Result, Way};

/// Sentences, padded on the right.
pub(crate) struct Batch {
    /// `[batch, seq]`.
    pub(crate) ids: Tensor,
    /// The tokens of each sentence.
    pub(crate) lengths: Vec<usize>,
}

pub(crate) struct Model {
    words: Embedding,
    /// Of each position, that of the only type of tokens added.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

impl Model {
    pub(crate) fn load() -> Result<Self> {
        let config: Value =
            serde_json::from_reader(File::open(common::find("minilm", "config.json")?)?)?;
        let number = |key: &str| config[key].as_u64().map(|number| number as usize);
        let number = |key| number(key).ok_or_else(|| format!("config.json has no {key}"));
        let file = common::find("minilm", "model.safetensors")?;
        let source = Source {
            tensors: candle_core::safetensors::load(file, &Device::Cpu)?,
            epsilon: config["layer_norm_eps"]
                .as_f64()
                .ok_or("config.json has no layer_norm_eps")?,
        };
        let embeddings =
            |name: &str| source.tensor(&format!("embeddings.{name}_embeddings.weight"));
        let types = embeddings("token_type")?.narrow(0, 0, 1)?;
        let layers = (0..number("num_hidden_layers")?).map(|layer| Layer::load(&source, layer));
        Ok(Self {
            words: Embedding::new(embeddings("word")?, number("hidden_size")?),
            positions: embeddings("position")?.broadcast_add(&types)?,
            norm: source.norm("embeddings.LayerNorm")?,
            layers: layers.collect::<Result<_>>()?,
            heads: number("num_attention_heads")?,
        })
    }

    /// The embeddings of sentences, `[batch, width]`, of length 1.
    pub(crate) fn embed(&self, batch: &Batch, way: Way) -> Result<Tensor> {
        let seq = batch.ids.dim(1)?;
        let x = self.words.forward(&batch.ids)?;
        let x = x.broadcast_add(&self.positions.narrow(0, 0, seq)?)?;
        let mut x = self.norm.forward(&x)?;
        let padding = common::attention(|| Padding::new(way, &batch.lengths, seq))?;
        for layer in &self.layers {
            x = layer.forward(&x, self.heads, &padding)?;
        }
        mean(&x, &batch.lengths)
    }
}

/// The direction of the mean of each sentence's tokens.
fn mean(x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let seq = x.dim(1)?;
    let weights: Vec<f32> = lengths
        .iter()
        .flat_map(|&length| (0..seq).map(move |i| if i < length { 1.0 } else { 0.0 }))
        .collect();
    let weights = Tensor::from_vec(weights, (lengths.len(), 1, seq), x.device())?;
    let sums = weights.matmul(x)?.squeeze(1)?;
    let norms = sums.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(sums.broadcast_div(&norms)?)
}

impl Layer {
    fn load(source: &Source, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        Ok(Self {
            query: source.linear(&name("attention.self.query"))?,
            key: source.linear(&name("attention.self.key"))?,
            value: source.linear(&name("attention.self.value"))?,
            output: source.linear(&name("attention.output.dense"))?,
            attention_norm: source.norm(&name("attention.output.LayerNorm"))?,
            up: source.linear(&name("intermediate.dense"))?,
            down: source.linear(&name("output.dense"))?,
            norm: source.norm(&name("output.LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize, padding: &Padding<'_>) -> Result<Tensor> {
        let projected = [self.query.forward(x)?, self.key.forward(x)?, self.value.forward(x)?];
        let attended = common::attention(|| attend(projected, heads, padding))?;
        let x = self.attention_norm.forward(&(x + self.output.forward(&attended)?)?)?;
        let inner = self.up.forward(&x)?.gelu_erf()?;
        Ok(self.norm.forward(&(&x + self.down.forward(&inner)?)?)?)
    }
}

struct Source {
    tensors: HashMap<String, Tensor>,
    epsilon: f64,
}

impl Source {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.tensors.get(name).ok_or_else(|| format!("the file has no {name}"))?;
        Ok(tensor.to_dtype(DType::F32)?)
    }

    fn both(&self, name: &str) -> Result<(Tensor, Tensor)> {
        Ok((self.tensor(&format!("{name}.weight"))?, self.tensor(&format!("{name}.bias"))?))
    }

    fn linear(&self, name: &str) -> Result<Linear> {
        let (weight, bias) = self.both(name)?;
        Ok(Linear::new(weight, Some(bias)))
    }

    fn norm(&self, name: &str) -> Result<LayerNorm> {
        let (weight, bias) = self.both(name)?;
        Ok(LayerNorm::new(weight, bias, self.epsilon))
    }
}
