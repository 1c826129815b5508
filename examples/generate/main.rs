//! Generates text token by token on each kind of cache, and shows that it is the same text, from
//! logits of the same bits:
//!
//! ```console
//! cargo run --release --example generate          # 64 tokens
//! cargo run --release --example generate -- 500
//! ```
//!
//! The weights are random, so the text is no language. To read is how an engine goes about it:
//!
//! - `decoder.rs`: a decoder, whose attention appends to a cache and then reads it;
//! - `caches.rs`: all kinds of cache behind one `append` and one `view`;
//! - `engine.rs`: the prompt, then token by token;
//! - `runs.rs`: what is run on which cache.

mod caches;
mod decoder;
mod engine;
mod random;
mod runs;

use std::error::Error;
use std::process::ExitCode;

use decoder::{Decoder, Extents};
use runs::{Run, reference, run_all};

const EXTENTS: Extents = Extents {
    layers: 4,
    width: 256,
    q_heads: 8,
    kv_heads: 2,
    head_dim: 32,
    inner: 512,
    positions: 4096,
};
const PROMPT: &str = "A cache keeps the keys and values of all tokens that came before, so that a \
                      new one costs a row of work and not the whole text.";
const TOKENS: usize = 64;

fn main() -> ExitCode {
    match generate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn generate() -> Result<(), Box<dyn Error>> {
    let count = token_count(std::env::args().nth(1))?;
    let decoder = Decoder::random(EXTENTS, 0)?;
    let runs = run_all(&decoder, PROMPT.as_bytes(), count)?;

    println!("{PROMPT}\n");
    print_table(&runs);
    let differences: Vec<_> = (0..runs.len()).filter_map(|nth| difference(&runs, nth)).collect();
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\nerror: ").into()) }
}

/// The number of tokens that was asked for.
fn token_count(argument: Option<String>) -> Result<usize, String> {
    let Some(argument) = argument else { return Ok(TOKENS) };
    let most = EXTENTS.positions - PROMPT.len();
    let count = argument.parse().ok().filter(|&count| count <= most);
    count.ok_or_else(|| format!("tokens: {argument:?}, expected a number of at most {most}"))
}

/// How a run differs from the one that it has to equal, in words.
fn difference(runs: &[Run], nth: usize) -> Option<String> {
    let (run, expected) = (&runs[nth], reference(runs, nth));
    let difference = run.generated.difference(&expected.generated)?;
    Some(format!("{}, seed {}: {difference}", run.name, run.seed))
}

fn print_table(runs: &[Run]) {
    println!(
        "{:28}  {:>6}  {:>4}  {:>6}  {:>6}  {:>12}  {:>8}  {:9}  text",
        "cache", "window", "seed", "tokens", "KiB", "shared pages", "tokens/s", "logits"
    );
    for (nth, run) in runs.iter().enumerate() {
        let verdict = match difference(runs, nth) {
            _ if std::ptr::eq(run, reference(runs, nth)) => "reference",
            None => "same bits",
            Some(_) => "DIFFER",
        };
        let tokens = &run.generated.tokens;
        println!(
            "{:28}  {:>6}  {:>4}  {:>6}  {:>6}  {:>12}  {:>8.0}  {verdict:9}  {}",
            run.name,
            run.window.map_or("-".into(), |window| window.to_string()),
            run.seed,
            tokens.len(),
            run.bytes / 1024,
            run.shared_pages,
            run.tokens_per_second,
            tokens[..tokens.len().min(32)].escape_ascii(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Extents = Extents {
        layers: 2,
        width: 48,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 8,
        inner: 64,
        positions: 256,
    };

    fn runs() -> Vec<Run> {
        let decoder = Decoder::random(SMALL, 0).unwrap_or_else(|error| panic!("{error}"));
        run_all(&decoder, PROMPT.as_bytes(), 24).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_cache_gives_the_same() {
        let runs = runs();
        assert_eq!(runs.len(), 9);
        for nth in 0..runs.len() {
            assert_eq!(difference(&runs, nth), None);
        }
        assert_eq!(runs.iter().map(|run| run.shared_pages).max(), Some(PROMPT.len() / 16));
    }

    /// Else there would be nothing to compare.
    #[test]
    fn seeds_and_windows_give_other_texts() {
        let runs = runs();
        let mut texts: Vec<_> = runs.iter().map(|run| &run.generated.tokens).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), 3);
        for text in texts {
            let kinds: std::collections::BTreeSet<_> = text.iter().collect();
            assert!(kinds.len() > 8, "{}", text.escape_ascii());
        }
        let windowed = runs.iter().find(|run| run.window.is_some());
        let difference = windowed.and_then(|run| run.generated.difference(&runs[0].generated));
        assert!(difference.is_some());
    }
}
