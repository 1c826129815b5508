//! A decoder in the manner of Llama, with random weights.
//!
//! ```text
//! tokens   one byte each -> a row of the embedding
//! layers   RMS norm -> attention -> +, RMS norm -> SwiGLU -> +
//! logits   RMS norm of each sequence's last token -> linear, one for each byte
//! ```
//!
//! Every step works on rows alone, as headwise does: a token's logits have the same bits, whichever
//! tokens are computed in the same call.

use headwise::kv_cache::{Frequencies, KvShape, Positions, RopeLayout, RopeScaling};
use headwise::layers::Linear;
use headwise::{
    AttentionOptions, NewTokens, Outputs, Result, Rope, Settings, Tensor, View, ViewMut, Workspace,
    attention_cached_into,
};

use crate::caches::Caches;
use crate::random::Random;

/// Tokens are bytes.
pub(crate) const VOCABULARY: usize = 256;

/// The extents of a decoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extents {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// The width between the linear layers that follow attention.
    pub(crate) inner: usize,
    /// The longest text.
    pub(crate) positions: usize,
}

impl Extents {
    /// What a cache keeps of a token in a layer.
    pub(crate) fn kv(&self) -> KvShape {
        let Self { kv_heads, head_dim, .. } = *self;
        KvShape { kv_heads, head_dim, value_dim: head_dim }
    }
}

#[derive(Debug)]
struct Layer {
    /// Queries, keys and values of all heads from one product.
    qkv: Linear,
    output: Linear,
    /// Gates, then what passes them.
    gate_up: Linear,
    down: Linear,
}

#[derive(Debug)]
pub(crate) struct Decoder {
    extents: Extents,
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    logits: Linear,
    rope: Rope,
}

impl Decoder {
    /// A decoder with the weights of a seed.
    pub(crate) fn random(extents: Extents, seed: u64) -> Result<Self> {
        let Extents { width, q_heads, kv_heads, head_dim, inner, .. } = extents;
        let random = &mut Random::new(seed);
        let mut layers = Vec::new();
        for _ in 0..extents.layers {
            layers.push(Layer {
                // Large enough that scores, and so the weights of the keys, differ widely.
                qkv: linear(random, [(q_heads + 2 * kv_heads) * head_dim, width], 1.5, None)?,
                output: linear(random, [width, q_heads * head_dim], 1.0, None)?,
                gate_up: linear(random, [2 * inner, width], 1.0, None)?,
                down: linear(random, [width, inner], 1.0, None)?,
            });
        }
        // Other bytes are as good as excluded, for the sake of whoever reads the text.
        let legible = |byte: u8| byte.is_ascii_lowercase() || byte == b' ';
        let bias = |byte| if legible(byte) { 0.0 } else { -100.0 };
        let bias: Vec<f32> = (0..=u8::MAX).map(bias).collect();
        let frequencies = Frequencies::new(head_dim, 10_000.0, RopeScaling::Unscaled)?;
        Ok(Self {
            extents,
            embedding: random.numbers(VOCABULARY * width, 1.0),
            layers,
            logits: linear(random, [VOCABULARY, width], 2.5, Some(&bias))?,
            rope: Rope::new(RopeLayout::HalfSplit, &frequencies, extents.positions)?,
        })
    }

    pub(crate) fn extents(&self) -> Extents {
        self.extents
    }

    /// The logits that follow the last token of each sequence, `[sequences, 1, 1, VOCABULARY]`.
    ///
    /// `tokens` are the next of each sequence, as many of all, one sequence behind the other: a
    /// prompt or a part of it, or a token each. The caches have them afterwards.
    pub(crate) fn forward(
        &self,
        tokens: &[u8],
        caches: &mut Caches,
        options: &AttentionOptions<'_>,
    ) -> Result<Tensor> {
        let (sequences, width) = (caches.sequences(), self.extents.width);
        let seq = tokens.len() / sequences;
        let mut x = self.embed(tokens, sequences)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let attended = self.attention(number, rms_norm(&x), caches, options)?;
            add(&mut x, &attended);
            let fed = layer.feed_forward(rms_norm(&x))?;
            add(&mut x, &fed);
        }
        let x = rms_norm(&x);
        let (last, row) = ((seq - 1) * width, width as isize);
        let strides = [seq as isize * row, 0, row, 1];
        let last = View::strided(x.data(), last, [sequences, 1, 1, width], strides)?;
        self.logits.forward(last, &Settings::default())
    }

    /// `[sequences, 1, seq, width]`.
    fn embed(&self, tokens: &[u8], sequences: usize) -> Result<Tensor> {
        let width = self.extents.width;
        let rows =
            tokens.iter().map(|&token| &self.embedding[usize::from(token) * width..][..width]);
        let data = rows.flatten().copied().collect();
        Tensor::new(data, [sequences, 1, tokens.len() / sequences, width])
    }

    /// The attention of a layer to all tokens so far, those of `x` included.
    fn attention(
        &self,
        layer: usize,
        x: Tensor,
        caches: &mut Caches,
        options: &AttentionOptions<'_>,
    ) -> Result<Tensor> {
        let Layer { qkv, output, .. } = &self.layers[layer];
        let Extents { q_heads, kv_heads, head_dim, .. } = self.extents;
        let [sequences, _, seq, _] = x.shape();
        let settings = Settings::default();

        // A row has the heads of the queries, of the keys and of the values side by side. Views
        // take them from there: nothing is split or transposed.
        let mut projected = qkv.forward(x.view(), &settings)?;
        let row = qkv.outputs() as isize;
        let strides = [seq as isize * row, head_dim as isize, row, 1];
        let shape = |heads| [sequences, heads, seq, head_dim];
        let heads_from = |head: usize| {
            View::strided(projected.data(), head * head_dim, shape(kv_heads), strides)
        };

        // Keys and values first, so that a token sees itself. The cache rotates the keys by the
        // positions that it gives them.
        let (key, value) = (heads_from(q_heads)?, heads_from(q_heads + kv_heads)?);
        caches.append(layer, &NewTokens::new(key, value).rope(&self.rope))?;
        let cache = caches.view(layer)?;

        // Queries stand where their keys do: at the end.
        let starts: Vec<_> = cache.tables().lengths.iter().map(|length| length - seq).collect();
        let query = ViewMut::strided(projected.data_mut(), 0, shape(q_heads), strides)?;
        self.rope.rotate(query, Positions::Starts(&starts))?;
        let query = View::strided(projected.data(), 0, shape(q_heads), strides)?;

        // The heads of a token go side by side again, which is how the next product reads them.
        let mut attended = Tensor::zeros([sequences, 1, seq, q_heads * head_dim])?;
        let outputs = Outputs::new(ViewMut::bshd(attended.data_mut(), shape(q_heads))?);
        // An engine would keep the workspace, and the tensors too, and allocate nothing.
        attention_cached_into(query, &cache, options, outputs, &mut Workspace::new())?;
        output.forward(attended.view(), &settings)
    }
}

impl Layer {
    /// SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020).
    fn feed_forward(&self, x: Tensor) -> Result<Tensor> {
        let settings = Settings::default();
        let gate_up = self.gate_up.forward(x.view(), &settings)?;
        let [sequences, _, seq, both] = gate_up.shape();
        let inner = gate_up.data().chunks(both).flat_map(|row| {
            let (gate, up) = row.split_at(both / 2);
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
        });
        let inner = Tensor::new(inner.collect(), [sequences, 1, seq, both / 2])?;
        self.down.forward(inner.view(), &settings)
    }
}

/// A linear layer that turns rows of variance 1 into rows of deviation `gain`.
fn linear(
    random: &mut Random,
    [outputs, inputs]: [usize; 2],
    gain: f64,
    bias: Option<&[f32]>,
) -> Result<Linear> {
    let weight = random.numbers(outputs * inputs, gain / (inputs as f64).sqrt());
    Linear::new(View::bhsd(&weight, [1, 1, outputs, inputs])?, bias)
}

/// Rows of mean square 1 (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).
fn rms_norm(x: &Tensor) -> Tensor {
    let (mut x, width) = (x.clone(), x.shape()[3]);
    for row in x.data_mut().chunks_mut(width) {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
        let factor = (mean + 1e-6).sqrt().recip();
        row.iter_mut().for_each(|x| *x *= factor);
    }
    x
}

/// Adds `y`, of the same shape, to `x`.
fn add(x: &mut Tensor, y: &Tensor) {
    x.data_mut().iter_mut().zip(y.data()).for_each(|(x, y)| *x += y);
}
