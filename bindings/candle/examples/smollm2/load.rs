//! The model out of its GGUF file.

use std::fs::File;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Tensor};
use candle_nn::{Embedding, RmsNorm};
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::common::{self, Result};
use crate::model::{Block, Extents, Model};

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// What the products compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weights {
    /// Widened once, as the file is read.
    F32,
    /// As the file has them.
    Quantised,
}

pub(crate) struct Loaded {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    /// The token that ends an answer.
    pub(crate) end: u32,
}

pub(crate) fn load(weights: Weights) -> Result<Loaded> {
    let mut file = File::open(common::find("smollm2", FILE)?)?;
    let content = Content::read(&mut file)?;
    let extents = extents(&content)?;
    let tokenizer = tokenizer(&content)?;
    let end = number(&content, "tokenizer.ggml.eos_token_id")? as u32;
    let mut source = Source { content, file, weights };
    let blocks = (0..extents.layers).map(|layer| block(&mut source, layer, extents.epsilon));
    let blocks = blocks.collect::<Result<_>>()?;
    let table = source.read("token_embd.weight")?;
    let embedding = table.dequantize(&Device::Cpu)?;
    // Without an output matrix of its own, the table is that too.
    let output = match weights {
        Weights::F32 => QMatMul::Tensor(embedding.clone()),
        Weights::Quantised => QMatMul::from_qtensor(table)?,
    };
    let model = Model {
        embedding: Embedding::new(embedding, extents.width),
        blocks,
        norm: source.norm("output_norm", extents.epsilon)?,
        output,
        extents,
    };
    Ok(Loaded { model, tokenizer, end })
}

/// The file's vocabulary. candle knows no `smollm` among the ways to cut text into words.
fn tokenizer(content: &Content) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_gguf(content)?;
    let words = [Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(words.into())));
    Ok(tokenizer)
}

fn number(content: &Content, key: &str) -> Result<usize> {
    let value = content.metadata.get(key).ok_or_else(|| format!("the file has no {key}"))?;
    Ok(value.to_u32()? as usize)
}

fn extents(content: &Content) -> Result<Extents> {
    let number = |key| number(content, &format!("llama.{key}"));
    let real = |key: &str| -> Result<f64> {
        let value = content.metadata.get(key).ok_or_else(|| format!("the file has no {key}"))?;
        Ok(value.to_f32()?.into())
    };
    let (width, q_heads) = (number("embedding_length")?, number("attention.head_count")?);
    Ok(Extents {
        layers: number("block_count")?,
        width,
        q_heads,
        kv_heads: number("attention.head_count_kv")?,
        head_dim: width / q_heads,
        rope_base: real("llama.rope.freq_base")?,
        epsilon: real("llama.attention.layer_norm_rms_epsilon")?,
    })
}

fn block(source: &mut Source, layer: usize, epsilon: f64) -> Result<Block> {
    let name = |part: &str| format!("blk.{layer}.{part}");
    Ok(Block {
        attention_norm: source.norm(&name("attn_norm"), epsilon)?,
        query: source.product(&name("attn_q"))?,
        key: source.product(&name("attn_k"))?,
        value: source.product(&name("attn_v"))?,
        attention_output: source.product(&name("attn_output"))?,
        inner_norm: source.norm(&name("ffn_norm"), epsilon)?,
        gate: source.product(&name("ffn_gate"))?,
        up: source.product(&name("ffn_up"))?,
        down: source.product(&name("ffn_down"))?,
    })
}

struct Source {
    content: Content,
    file: File,
    weights: Weights,
}

impl Source {
    fn read(&mut self, name: &str) -> Result<QTensor> {
        Ok(self.content.tensor(&mut self.file, name, &Device::Cpu)?)
    }

    fn widened(&mut self, name: &str) -> Result<Tensor> {
        Ok(self.read(name)?.dequantize(&Device::Cpu)?)
    }

    fn product(&mut self, name: &str) -> Result<QMatMul> {
        let name = format!("{name}.weight");
        Ok(match self.weights {
            Weights::F32 => QMatMul::Tensor(self.widened(&name)?),
            Weights::Quantised => QMatMul::from_qtensor(self.read(&name)?)?,
        })
    }

    fn norm(&mut self, name: &str, epsilon: f64) -> Result<RmsNorm> {
        Ok(RmsNorm::new(self.widened(&format!("{name}.weight"))?, epsilon))
    }
}
