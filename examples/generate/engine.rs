//! The loop of an engine: a prompt at once or in chunks, then token by token.

use headwise::{AttentionOptions, Result, Tensor};

use crate::caches::Caches;
use crate::decoder::{Decoder, VOCABULARY};
use crate::random::Random;

/// A decoder, what it remembers, and what it may see of that.
#[derive(Debug)]
pub(crate) struct Engine<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) caches: Caches,
    pub(crate) options: AttentionOptions<'a>,
}

/// What was generated in a sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Generated {
    pub(crate) tokens: Vec<u8>,
    /// Those from which each token was drawn.
    pub(crate) logits: Vec<Vec<f32>>,
}

impl Generated {
    /// The first token that is another one, or was drawn from other bits, in words.
    pub(crate) fn difference(&self, expected: &Self) -> Option<String> {
        let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        if self.tokens.len() != expected.tokens.len() {
            return Some(format!("{} tokens, not {}", self.tokens.len(), expected.tokens.len()));
        }
        (0..self.tokens.len()).find_map(|n| {
            let [token, other] = [self, expected].map(|of| char::from(of.tokens[n]));
            if token != other {
                return Some(format!("token {n} is {token:?}, not {other:?}"));
            }
            let same = bits(&self.logits[n]) == bits(&expected.logits[n]);
            (!same).then(|| format!("token {n} is the same, from other logits"))
        })
    }
}

impl Engine<'_> {
    /// Reads a prompt, chunk by chunk: the logits that follow it.
    pub(crate) fn prefill(&mut self, chunks: &[&[u8]]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        for chunk in chunks {
            logits = self.step(chunk)?.into_vec();
        }
        Ok(logits)
    }

    /// Goes on with so many tokens from the logits that follow the prompt: in each sequence of the
    /// caches, by a seed each, and in all of them by one call a token.
    pub(crate) fn decode(
        &mut self,
        logits: &[f32],
        seeds: &[u64],
        count: usize,
    ) -> Result<Vec<Generated>> {
        let mut random: Vec<_> = seeds.iter().map(|&seed| Random::new(seed)).collect();
        let mut generated = vec![Generated::default(); seeds.len()];
        let mut logits = logits.repeat(seeds.len());
        for _ in 0..count {
            let mut tokens = Vec::new();
            for (s, logits) in logits.chunks(VOCABULARY).enumerate() {
                let token = sample(logits, &mut random[s]);
                generated[s].tokens.push(token);
                generated[s].logits.push(logits.to_vec());
                tokens.push(token);
            }
            logits = self.step(&tokens)?.into_vec();
        }
        Ok(generated)
    }

    fn step(&mut self, tokens: &[u8]) -> Result<Tensor> {
        self.decoder.forward(tokens, &mut self.caches, &self.options)
    }
}

/// A byte, drawn by the softmax of the logits: the largest, once each has got a number of a Gumbel
/// distribution added.
fn sample(logits: &[f32], random: &mut Random) -> u8 {
    let noisy = logits.iter().map(|&logit| f64::from(logit) - (-random.uniform().ln()).ln());
    let largest = (0..=u8::MAX).zip(noisy).max_by(|(_, a), (_, b)| a.total_cmp(b));
    largest.map_or(0, |(byte, _)| byte)
}
