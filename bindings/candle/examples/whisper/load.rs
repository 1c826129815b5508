//! The model out of the file of CTranslate2 that faster-whisper users have.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};

use candle_core::{DType, Device, Tensor};
use candle_nn::{LayerNorm, Linear};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::common::{self, Result};
use crate::model::Whisper;
use crate::suppressing;

pub(crate) struct Loaded {
    pub(crate) model: Whisper,
    pub(crate) tokenizer: Tokenizer,
    /// The tokens that every text begins with, and that which ends it.
    pub(crate) prompt: Vec<u32>,
    pub(crate) end: u32,
    /// What is added to logits.
    pub(crate) suppressed: Tensor,
    pub(crate) suppressed_at_first: Tensor,
}

pub(crate) fn load() -> Result<Loaded> {
    let tokenizer = Tokenizer::from_file(common::find("whisper", "tokenizer.json")?)?;
    let token = |name| tokenizer.token_to_id(name).ok_or_else(|| format!("there is no {name}"));
    let config: Value =
        serde_json::from_reader(File::open(common::find("whisper", "config.json")?)?)?;
    let list =
        |key: &str| -> Result<Vec<usize>> { Ok(serde_json::from_value(config[key].clone())?) };
    let (ids, first) = (list("suppress_ids")?, list("suppress_ids_begin")?);
    let source = Source::read(BufReader::new(File::open(common::find("whisper", "model.bin")?)?))?;
    let model = Whisper::load(&source)?;
    let vocabulary = model.vocabulary();
    Ok(Loaded {
        prompt: vec![token("<|startoftranscript|>")?, token("<|notimestamps|>")?],
        end: token("<|endoftext|>")?,
        suppressed: suppressing(ids.iter().copied(), vocabulary)?,
        suppressed_at_first: suppressing(ids.into_iter().chain(first), vocabulary)?,
        model,
        tokenizer,
    })
}

/// The file's tensors by name, widened to `f32`.
pub(crate) struct Source(HashMap<String, Tensor>);

impl Source {
    /// Version, name of the architecture, its revision; then name, shape, type and bytes of each tensor.
    fn read(mut file: impl Read) -> Result<Self> {
        let version = number(&mut file)?;
        if version < 5 {
            return Err(format!("version {version} of the format, expected 5 or newer").into());
        }
        text(&mut file)?;
        number(&mut file)?;
        let mut tensors = HashMap::new();
        for _ in 0..number(&mut file)? {
            let name = text(&mut file)?;
            let [rank] = bytes(&mut file)?;
            let shape = (0..rank).map(|_| Ok(number(&mut file)? as usize));
            let shape = shape.collect::<Result<Vec<_>>>()?;
            let [kind] = bytes(&mut file)?;
            let mut data = vec![0; number(&mut file)? as usize];
            file.read_exact(&mut data)?;
            let dtype = match kind {
                0 => DType::F32,
                2 => DType::I16,
                4 => DType::F16,
                // Numbers that say what we know.
                _ => continue,
            };
            let tensor = Tensor::from_raw_buffer(&data, dtype, &shape, &Device::Cpu)?;
            tensors.insert(name, tensor.to_dtype(DType::F32)?);
        }
        Ok(Self(tensors))
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.0.get(name).ok_or_else(|| format!("the file has no {name}"))?.clone())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn number(&self, name: &str) -> Result<usize> {
        Ok(self.tensor(name)?.to_scalar::<f32>()? as usize)
    }

    pub(crate) fn linear(&self, name: &str) -> Result<Linear> {
        let part = |part| self.tensor(&format!("{name}/{part}"));
        Ok(Linear::new(part("weight")?, Some(part("bias")?)))
    }

    pub(crate) fn norm(&self, name: &str) -> Result<LayerNorm> {
        let part = |part| self.tensor(&format!("{name}/{part}"));
        Ok(LayerNorm::new(part("gamma")?, part("beta")?, 1e-5))
    }
}

fn bytes<const N: usize>(file: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(file: &mut impl Read) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes(file)?))
}

/// Text with its length, and a zero behind it that counts.
fn text(file: &mut impl Read) -> Result<String> {
    let mut text = vec![0; u16::from_le_bytes(bytes(file)?).into()];
    file.read_exact(&mut text)?;
    text.pop();
    Ok(String::from_utf8(text)?)
}
