//! The same text on every kind of cache.

use std::time::Instant;

use headwise::kv_cache::PagedCapacity;
use headwise::{AttentionOptions, Result};

use crate::caches::Caches;
use crate::decoder::Decoder;
use crate::engine::{Engine, Generated};

/// Tokens in a page.
const PAGE: usize = 16;
/// Keys that a token sees before its own, in the runs where it does not see all.
const WINDOW: usize = 48;
/// Tokens of the prompt at a time, where it goes into a ring that is smaller.
const CHUNK: usize = 16;

/// A way to the text.
struct Plan<'a> {
    name: &'static str,
    caches: Caches,
    window: Option<usize>,
    /// The prompt, cut somehow.
    chunks: Vec<&'a [u8]>,
    /// Each goes on from the prompt in a sequence of its own.
    seeds: &'static [u64],
}

/// What was generated in one sequence, and how.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) window: Option<usize>,
    pub(crate) seed: u64,
    pub(crate) generated: Generated,
    /// Of the whole cache.
    pub(crate) bytes: usize,
    /// The pages of a layer that both sequences of a fork hold.
    pub(crate) shared_pages: usize,
    /// Of all sequences together, the prompt left out.
    pub(crate) tokens_per_second: f64,
}

/// Generates `count` tokens behind the prompt on every kind of cache.
pub(crate) fn run_all(decoder: &Decoder, prompt: &[u8], count: usize) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for plan in plans(decoder, prompt, count)? {
        runs.extend(plan.run(decoder, count)?);
    }
    Ok(runs)
}

/// Of the plans with the same window and the same seed, a contiguous cache comes first.
fn plans<'a>(decoder: &Decoder, prompt: &'a [u8], count: usize) -> Result<Vec<Plan<'a>>> {
    let (layers, kv) = (decoder.extents().layers, decoder.extents().kv());
    let length = prompt.len() + count;
    let contiguous = || Caches::contiguous(layers, kv, length);
    let ring = |capacity| Caches::ring(layers, kv, capacity);
    let pages_per_sequence = length.div_ceil(PAGE);
    let paged = |pages, sequences| {
        let capacity = PagedCapacity { pages, page_size: PAGE, sequences, pages_per_sequence };
        Caches::paged(layers, kv, capacity)
    };
    // The pages that the prompt fills are there once for both sequences of a fork.
    let forked = 2 * pages_per_sequence - prompt.len() / PAGE;

    let plan =
        |name, caches| Plan { name, caches, window: None, chunks: vec![prompt], seeds: &[1] };
    let windowed = |name, caches| Plan { window: Some(WINDOW), ..plan(name, caches) };
    Ok(vec![
        plan("contiguous", contiguous()?),
        Plan { chunks: uneven(prompt), ..plan("contiguous, prompt in chunks", contiguous()?) },
        plan("ring of the whole text", ring(length)?),
        plan("paged", paged(pages_per_sequence, 1)?),
        Plan { seeds: &[2], ..plan("contiguous", contiguous()?) },
        Plan { seeds: &[1, 2], ..plan("paged, forked", paged(forked, 2)?) },
        windowed("contiguous", contiguous()?),
        // All keys of a chunk are written before its queries read: the ring needs room for the
        // chunk and for the window before it.
        Plan {
            chunks: prompt.chunks(CHUNK).collect(),
            ..windowed("ring of the window", ring(WINDOW + CHUNK)?)
        },
    ])
}

/// The prompt in chunks of very different sizes.
fn uneven(prompt: &[u8]) -> Vec<&[u8]> {
    let (mut chunks, mut rest) = (Vec::new(), prompt);
    for size in [1, 7, 30, 2].into_iter().cycle() {
        if rest.len() <= size {
            break;
        }
        let (chunk, after) = rest.split_at(size);
        chunks.push(chunk);
        rest = after;
    }
    chunks.push(rest);
    chunks
}

impl Plan<'_> {
    fn run(self, decoder: &Decoder, count: usize) -> Result<Vec<Run>> {
        let options = AttentionOptions::new().causal().window(self.window, None);
        let mut engine = Engine { decoder, caches: self.caches, options };
        let logits = engine.prefill(&self.chunks)?;
        for _ in 1..self.seeds.len() {
            engine.caches.fork()?;
        }
        let start = Instant::now();
        let generated = engine.decode(&logits, self.seeds, count)?;
        let seconds = start.elapsed().as_secs_f64();
        let shared_pages = engine.caches.shared_pages()?;
        let runs = self.seeds.iter().zip(generated).map(|(&seed, generated)| Run {
            name: self.name,
            window: self.window,
            seed,
            generated,
            bytes: engine.caches.bytes(),
            shared_pages,
            tokens_per_second: (count * self.seeds.len()) as f64 / seconds,
        });
        Ok(runs.collect())
    }
}

/// The run that run `nth` has to equal: the first of the same window and seed.
pub(crate) fn reference(runs: &[Run], nth: usize) -> &Run {
    let same = |run: &&Run| (run.window, run.seed) == (runs[nth].window, runs[nth].seed);
    runs.iter().find(same).unwrap_or(&runs[nth])
}
