//! all-MiniLM-L6-v2, a BERT whose means are the embeddings of sentences, on candle with candle's attention or
//! with headwise's:
//!
//! ```console
//! python3 fetch_models.py minilm
//! cargo run --release --example minilm                       # how alike some sentences are
//! cargo run --release --example minilm -- --attention candle
//! cargo run --release --example minilm -- --bench
//! ```
//!
//! To read is `attention.rs`, which has both.

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod model;

use std::process::ExitCode;

use candle_core::{Device, Tensor};
use common::{Arguments, Comparison, Result, Way};
use model::{Batch, Model};
use tokenizers::{PaddingParams, Tokenizer};

const SENTENCES: [&str; 4] = [
    "The cat sits on the mat and watches the rain.",
    "A kitten is looking at the rainy weather from a rug.",
    "Interest rates were raised by the central bank on Thursday.",
    "Offline builds with cargo need the crates to be vendored first.",
];

fn main() -> ExitCode {
    common::finish(run())
}

fn run() -> Result<()> {
    let mut arguments = Arguments::of_process();
    let (bench, way) = (arguments.flag("--bench"), arguments.way()?);
    arguments.end()?;
    let model = Model::load()?;
    if bench {
        return compare(&model);
    }
    let batch = batch(&SENTENCES)?;
    for (row, sentence) in similarities(&model, &batch, way)?.iter().zip(SENTENCES) {
        let row: Vec<_> = row.iter().map(|x| format!("{x:6.3}")).collect();
        println!("{}  {sentence}", row.join(" "));
    }
    Ok(())
}

/// The tokens of sentences, padded on the right to the longest.
fn batch(sentences: &[&str]) -> Result<Batch> {
    let file = common::find("minilm", "tokenizer.json")?;
    let mut tokenizer = Tokenizer::from_file(file)?;
    tokenizer.with_padding(Some(PaddingParams::default())).with_truncation(None)?;
    let rows = tokenizer.encode_batch(sentences.to_vec(), true)?;
    let length = |row: &tokenizers::Encoding| {
        row.get_attention_mask().iter().filter(|&&is_token| is_token == 1).count()
    };
    let ids: Vec<_> = rows.iter().map(|row| row.get_ids().to_vec()).collect();
    Ok(Batch { ids: Tensor::new(ids, &Device::Cpu)?, lengths: rows.iter().map(length).collect() })
}

/// The cosines between the embeddings of all pairs.
fn similarities(model: &Model, batch: &Batch, way: Way) -> Result<Vec<Vec<f32>>> {
    let embeddings = model.embed(batch, way)?;
    Ok(embeddings.matmul(&embeddings.t()?)?.to_vec2()?)
}

/// Embeds batches with both attentions in turns.
fn compare(model: &Model) -> Result<()> {
    for (sentences, seq) in [(32, 32), (8, 128), (8, 512)] {
        let ids: Vec<u32> = (0..sentences * seq).map(|i| 1000 + i * 7 % 20_000).collect();
        let ids = Tensor::from_vec(ids, (sentences as usize, seq as usize), &Device::Cpu)?;
        // Half of them are as long as the longest, half of them half of that.
        let lengths = (0..sentences as usize).map(|i| seq as usize >> (i % 2)).collect();
        let batch = Batch { ids, lengths };
        let comparison = Comparison::run(|way| common::sample(|| model.embed(&batch, way)))?;
        let work = format!("{sentences} sentences of up to {seq} tokens");
        comparison.print(&work, f64::from(sentences), "sentences/s");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs weights: python3 fetch_models.py minilm"]
    fn as_transformers_embeds() -> Result<()> {
        let golden = common::golden(include_str!("golden.json"));
        let sentences: Vec<String> = serde_json::from_value(golden["sentences"].clone())?;
        let lengths: Vec<usize> = serde_json::from_value(golden["lengths"].clone())?;
        let expected: Vec<Vec<f32>> = serde_json::from_value(golden["similarities"].clone())?;
        let batch = batch(&sentences.iter().map(String::as_str).collect::<Vec<_>>())?;
        assert_eq!(batch.lengths, lengths);
        let model = Model::load()?;
        for way in Way::BOTH {
            let similarities = similarities(&model, &batch, way)?;
            for (row, expected) in similarities.iter().flatten().zip(expected.iter().flatten()) {
                assert!((row - expected).abs() <= 1e-5, "{way}: {row}, expected {expected}");
            }
        }
        Ok(())
    }
}
