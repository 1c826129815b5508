//! SmolLM2-135M, a Llama, on candle with candle's attention or with headwise's:
//!
//! ```console
//! python3 fetch_models.py smollm2
//! cargo run --release --example smollm2 -- --prompt "Why is the sky blue?" --tokens 64
//! cargo run --release --example smollm2 -- --attention candle
//! cargo run --release --example smollm2 -- --quantised       # products on the file's 4 bits
//! cargo run --release --example smollm2 -- --bench --context 2048
//! ```
//!
//! To read is `attention.rs`, which has both; `model.rs` is the rest of a Llama, `load.rs` reads the file.

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod load;
mod model;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use common::{Arguments, Comparison, Result, Way};
use load::{Loaded, Weights};
use model::{Model, Session};

const PROMPT: &str = "Explain in a few sentences why the sky is blue and why sunsets are red.";

fn main() -> ExitCode {
    common::finish(run())
}

fn run() -> Result<()> {
    let mut arguments = Arguments::of_process();
    let weights = if arguments.flag("--quantised") { Weights::Quantised } else { Weights::F32 };
    let (bench, way) = (arguments.flag("--bench"), arguments.way()?);
    let tokens = arguments.number("--tokens", 64)?;
    let context = arguments.number("--context", 2048)?;
    let prompt = arguments.value("--prompt")?.unwrap_or_else(|| PROMPT.into());
    arguments.end()?;
    let loaded = load::load(weights)?;
    if bench { compare(&loaded.model, context) } else { chat(&loaded, way, &prompt, tokens) }
}

/// Answers a question, and says how fast.
fn chat(loaded: &Loaded, way: Way, question: &str, tokens: usize) -> Result<()> {
    let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    let prompt = loaded.tokenizer.encode(prompt, false)?;
    let mut session = loaded.model.session(way, prompt.len() + tokens)?;
    let mut printed = String::new();
    let start = Instant::now();
    let ids = generate(&loaded.model, &mut session, prompt.get_ids(), tokens, |ids| {
        // Of the whole, since a character may take several tokens.
        let text = loaded.tokenizer.decode(ids, true).unwrap_or_default();
        print!("{}", text.strip_prefix(printed.as_str()).unwrap_or_default());
        std::io::stdout().flush().ok();
        printed = text;
        ids.last() != Some(&loaded.end)
    })?;
    let rate = ids.len() as f64 / start.elapsed().as_secs_f64();
    println!("\n\n{} tokens behind {} of prompt, {rate:.1} a second", ids.len(), prompt.len());
    Ok(())
}

/// The likeliest tokens behind a prompt, one after the other, until there are `count` or `go_on` of those
/// so far says no.
fn generate(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    count: usize,
    mut go_on: impl FnMut(&[u32]) -> bool,
) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    let mut logits = model.forward(prompt, session)?;
    while ids.len() < count {
        ids.push(logits.argmax(0)?.to_scalar()?);
        if ids.len() == count || !go_on(&ids) {
            break;
        }
        logits = model.forward(&ids[ids.len() - 1..], session)?;
    }
    Ok(ids)
}

/// Prefills and decodes with both attentions in turns.
fn compare(model: &Model, context: usize) -> Result<()> {
    const STEPS: usize = 16;
    let prompt: Vec<u32> = (0..context as u32).map(|i| 1000 + i * 7 % 40_000).collect();
    let prefill = Comparison::run(|way| {
        let mut session = model.session(way, context)?;
        common::sample(|| model.forward(&prompt, &mut session))
    })?;
    prefill.print(&format!("prefill of {context} tokens"), context as f64, "tokens/s");

    let mut sessions = Vec::new();
    for way in Way::BOTH {
        let mut session = model.session(way, context + 1024)?;
        model.forward(&prompt, &mut session)?;
        sessions.push((way, session));
    }
    let decode = Comparison::run(|way| {
        let (_, session) = &mut sessions[usize::from(way == Way::Headwise)];
        common::sample(|| {
            (0..STEPS).try_for_each(|step| model.forward(&prompt[step..=step], session).map(drop))
        })
    })?;
    let work = format!("{STEPS} tokens decoded behind {context}");
    decode.print(&work, STEPS as f64, "tokens/s");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn ids(value: &Value) -> Vec<u32> {
        let numbers = value.as_array().expect("a list").iter();
        numbers.map(|id| id.as_u64().expect("a number") as u32).collect()
    }

    #[test]
    #[ignore = "needs weights: python3 fetch_models.py smollm2"]
    fn as_transformers_answers() -> Result<()> {
        let golden = common::golden(include_str!("golden.json"));
        let (prompt, expected) = (ids(&golden["prompt_ids"]), ids(&golden["ids"]));
        let loaded = load::load(Weights::F32)?;
        let text = golden["prompt"].as_str().expect("text");
        let encoded = loaded.tokenizer.encode(text, false)?;
        assert_eq!(encoded.get_ids(), prompt);
        for way in Way::BOTH {
            let mut session = loaded.model.session(way, prompt.len() + expected.len())?;
            let answer = generate(&loaded.model, &mut session, &prompt, expected.len(), |_| true)?;
            assert_eq!(answer, expected, "{way}");
            let text = loaded.tokenizer.decode(&answer, false)?;
            assert_eq!(Some(text.as_str()), golden["text"].as_str());
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs weights: python3 fetch_models.py smollm2"]
    fn quantised_nearly_alike_with_both_attentions() -> Result<()> {
        let prompt = ids(&common::golden(include_str!("golden.json"))["prompt_ids"]);
        let loaded = load::load(Weights::Quantised)?;
        let logits = |way| {
            let mut session = loaded.model.session(way, prompt.len())?;
            Result::Ok(loaded.model.forward(&prompt, &mut session)?.to_vec1::<f32>()?)
        };
        let (ours, theirs) = (logits(Way::Headwise)?, logits(Way::Candle)?);
        // Not as many bits as in F32: candle rounds the activations of products to 8 bits, and a last bit
        // decides which way.
        let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
        let distance = largest(&mut ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()));
        let scale = largest(&mut theirs.iter().map(|x| x.abs()));
        assert!(distance <= 0.03 * scale, "{distance} of {scale}");
        Ok(())
    }
}
