//! Whisper tiny.en, on candle with candle's attention or with headwise's:
//!
//! ```console
//! python3 fetch_models.py whisper
//! cargo run --release --example whisper                       # 44 s of Dickens
//! cargo run --release --example whisper -- --audio talk.wav   # 16 bit, one channel, 16 or 48 kHz
//! cargo run --release --example whisper -- --attention candle
//! cargo run --release --example whisper -- --bench
//! ```
//!
//! candle's decoder keeps the keys and values of the audio, and computes those of all text anew for each token;
//! with headwise both are kept. To read is `attention.rs`; `audio.rs` makes spectra, `model.rs` is the
//! rest of Whisper, `load.rs` reads the file.

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod audio;
mod load;
mod model;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{Device, Tensor};
use common::{Arguments, Comparison, Result, Way};
use load::Loaded;

/// The most tokens of a window: half of the model's positions, as Whisper has it.
const TOKENS: usize = 224;

fn main() -> ExitCode {
    common::finish(run())
}

fn run() -> Result<()> {
    let mut arguments = Arguments::of_process();
    let (bench, way) = (arguments.flag("--bench"), arguments.way()?);
    let file = arguments.value("--audio")?.map(PathBuf::from);
    arguments.end()?;
    let file = file.map_or_else(|| common::find("whisper", "two_cities.wav"), Ok)?;
    let samples = audio::read(&file)?;
    let seconds = samples.len() as f64 / audio::RATE as f64;
    let loaded = load::load()?;
    if bench {
        return compare(&loaded, &samples);
    }
    let start = Instant::now();
    for window in audio::windows(&samples) {
        let ids = transcribe(&loaded, &samples[window], way)?;
        println!("{}", loaded.tokenizer.decode(&ids, true)?.trim());
    }
    let factor = start.elapsed().as_secs_f64() / seconds;
    println!("\n{seconds:.1} s of audio, real-time factor {factor:.3}");
    Ok(())
}

/// The tokens of at most 30 s of speech, the likeliest one after the other.
fn transcribe(loaded: &Loaded, samples: &[f32], way: Way) -> Result<Vec<u32>> {
    let audio = loaded.model.encode(&audio::spectrum(samples)?, way)?;
    let mut text = loaded.model.text(&audio, way)?;
    let mut ids = loaded.prompt.clone();
    while ids.len() < TOKENS {
        let logits = text.logits(&ids)?;
        let suppressed = if ids.len() == loaded.prompt.len() {
            &loaded.suppressed_at_first
        } else {
            &loaded.suppressed
        };
        let next = likeliest(&logits, suppressed)?;
        if next == loaded.end {
            break;
        }
        ids.push(next);
    }
    Ok(ids.split_off(loaded.prompt.len()))
}

fn likeliest(logits: &Tensor, suppressed: &Tensor) -> Result<u32> {
    Ok((logits + suppressed)?.argmax(0)?.to_scalar()?)
}

/// 0, and minus infinity for tokens that may not be.
fn suppressing(tokens: impl Iterator<Item = usize>, vocabulary: usize) -> Result<Tensor> {
    let mut added = vec![0.0_f32; vocabulary];
    tokens.for_each(|token| added[token] = f32::NEG_INFINITY);
    Ok(Tensor::from_vec(added, vocabulary, &Device::Cpu)?)
}

/// Transcribes all with both attentions in turns, and does the two parts of it alone.
fn compare(loaded: &Loaded, samples: &[f32]) -> Result<()> {
    let windows = audio::windows(samples);
    let seconds = samples.len() as f64 / audio::RATE as f64;
    let all = Comparison::run(|way| {
        common::sample(|| {
            windows
                .iter()
                .try_for_each(|window| transcribe(loaded, &samples[window.clone()], way).map(drop))
        })
    })?;
    all.print("speech to text", seconds, "s of speech/s");
    let spectrum = audio::spectrum(&samples[windows[0].clone()])?;
    let encoder = Comparison::run(|way| common::sample(|| loaded.model.encode(&spectrum, way)))?;
    encoder.print("the encoder, on a window of 30 s", 1.0, "windows/s");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs weights: python3 fetch_models.py whisper"]
    fn as_ctranslate2_transcribes() -> Result<()> {
        let golden = common::golden(include_str!("golden.json"));
        let expected = golden["windows"].as_array().ok_or("no windows")?;
        let samples = audio::read(&common::find("whisper", "two_cities.wav")?)?;
        let loaded = load::load()?;
        assert_eq!(serde_json::json!(loaded.prompt), golden["prompt_ids"]);
        let windows = audio::windows(&samples);
        assert_eq!(windows.len(), expected.len());
        for (window, expected) in windows.into_iter().zip(expected) {
            assert_eq!(serde_json::json!(window.start), expected["start"]);
            for way in Way::BOTH {
                let ids = transcribe(&loaded, &samples[window.clone()], way)?;
                let text = loaded.tokenizer.decode(&ids, true)?;
                assert_eq!(serde_json::json!(text), expected["text"], "{way}");
                assert_eq!(serde_json::json!(ids), expected["ids"], "{way}");
            }
        }
        Ok(())
    }
}
