//! The table of shapes that are measured, by the command and by the benches alike.

use std::time::Duration;

use headwise::{Executor, Int8, KvStorage, Precision, Rayon, Serial, bf16, f16};
use serde::Serialize;

use crate::extents::Extents;
use crate::sweep::SWEEP;
use crate::{Error, Result};

/// What a shape exercises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Many queries at once: bound by arithmetic.
    Prefill,
    /// One query per sequence: bound by memory.
    Decode,
    /// Decoding along one axis at a time: keys, queries, query heads to a key/value head, caches.
    /// Not measured unless asked for.
    Sweep,
    /// One shape of head over longer and longer sequences: what a useful operation costs must not
    /// grow with them.
    Growth,
    /// Masks that skip work: what a useful operation costs, and one that is computed.
    Masks,
    /// Calls so small that beginning and ending them shows.
    Call,
    /// Softmax of rows, alone.
    Softmax,
    /// The product of a linear layer with prepacked weights.
    Gemm,
    /// Self-attention with its projections.
    Layer,
    /// What a score term costs: attention with it and without it.
    Terms,
    /// What padding costs, and NaN in it.
    Poison,
    /// Tensors of half the width: how much faster than `f32`, and how exact.
    Precision,
}

impl Suite {
    /// Every suite.
    pub const ALL: [Self; 12] = [
        Self::Prefill,
        Self::Decode,
        Self::Sweep,
        Self::Growth,
        Self::Masks,
        Self::Call,
        Self::Softmax,
        Self::Gemm,
        Self::Layer,
        Self::Terms,
        Self::Poison,
        Self::Precision,
    ];

    /// The name, as `--suite` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Sweep => "sweep",
            Self::Growth => "growth",
            Self::Masks => "masks",
            Self::Call => "call",
            Self::Softmax => "softmax",
            Self::Gemm => "gemm",
            Self::Layer => "layer",
            Self::Terms => "terms",
            Self::Poison => "poison",
            Self::Precision => "precision",
        }
    }

    /// Whether it is measured where no suite is named.
    pub fn by_default(self) -> bool {
        self != Self::Sweep
    }

    /// Whether its shapes are steps of decoding, which can be varied along their axes.
    pub fn decodes(self) -> bool {
        matches!(self, Self::Decode | Self::Sweep)
    }
}

/// A cache that keys and values lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Rows of its own for each sequence.
    Contiguous,
    /// The same, come round to where it began.
    Ring,
    /// Pages of so many tokens, which lie in no order.
    Paged(usize),
}

impl Cache {
    /// Its kind, as `--cache` takes it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::Ring => "ring",
            Self::Paged(_) => "paged",
        }
    }

    /// The tokens of a page, where there are pages.
    pub fn page_size(self) -> Option<usize> {
        if let Self::Paged(size) = self { Some(size) } else { None }
    }
}

/// An attention problem; `value_dim` is `head_dim`, tensors lie in memory as batch, heads, seq,
/// dim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AttentionShape {
    pub name: &'static str,
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub seq_q: usize,
    pub seq_kv: usize,
    pub head_dim: usize,
    /// Bottom-right.
    pub causal: bool,
    /// Keys are those of another sequence, of which every query may see all.
    pub cross: bool,
    /// The cache that keys and values lie in; none: in dense tensors.
    pub cache: Option<Cache>,
    /// Keys visible before a query's own position.
    pub window_left: Option<usize>,
    /// The length of documents packed one behind the other; the last may be shorter.
    pub document: Option<usize>,
    /// On the calling thread alone, without a pool.
    pub serial: bool,
    /// How long the threads have been idle when a call begins; none: calls follow each other.
    pub pause: Duration,
}

impl AttentionShape {
    /// Query heads to a key/value head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    pub(crate) fn extents(&self) -> Extents {
        let query = [self.batch, self.q_heads, self.seq_q, self.head_dim];
        Extents::new(query, [self.batch, self.kv_heads, self.seq_kv, self.head_dim])
    }

    /// Where documents begin, and the end.
    pub(crate) fn documents(&self) -> Option<Vec<usize>> {
        let length = self.document?;
        Some((0..self.seq_kv).step_by(length).chain([self.seq_kv]).collect())
    }

    /// How many keys query `i` sees.
    fn visible(&self, i: usize) -> usize {
        let position = i + self.seq_kv - self.seq_q;
        let left = self.window_left.map_or(0, |left| position.saturating_sub(left));
        let document = self.document.map_or(0..self.seq_kv, |length| {
            let start = position / length * length;
            start..(start + length).min(self.seq_kv)
        });
        let end = if self.causal { position + 1 } else { self.seq_kv };
        end.min(document.end).saturating_sub(left.max(document.start))
    }

    fn flops(&self) -> f64 {
        if self.window_left.is_none() && self.document.is_none() {
            return self.extents().flops(self.causal);
        }
        self.extents().flops_of((0..self.seq_q).map(|i| self.visible(i)).sum())
    }
}

/// A score term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Term {
    /// A softcap of 50.
    Softcap,
    /// ALiBi with the paper's slopes.
    Alibi,
    /// T5's biases: 32 buckets up to a distance of 128.
    Relative,
    /// A dense additive mask in `f32`, one for all heads.
    Bias,
    /// A term of the caller's that multiplies scores by a constant.
    Own,
}

impl Term {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Softcap => "softcap",
            Self::Alibi => "alibi",
            Self::Relative => "relative",
            Self::Bias => "bias",
            Self::Own => "own",
        }
    }
}

/// Attention with a score term, to be compared with the same without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TermShape {
    pub name: &'static str,
    pub attention: AttentionShape,
    pub term: Term,
}

/// Keys that no query sees, in every sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Padding {
    /// So many before all others.
    Left(usize),
    /// So many behind all others.
    Right(usize),
    /// Every third key, by a boolean mask.
    Thirds,
}

impl Padding {
    /// Whether key `key` of `seq_kv` is padding.
    pub fn hides(self, key: usize, seq_kv: usize) -> bool {
        match self {
            Self::Left(count) => key < count,
            Self::Right(count) => key + count >= seq_kv,
            Self::Thirds => key % 3 == 2,
        }
    }
}

/// Attention with padding, to be compared with the same where the padding is NaN, and with the same
/// on tensors without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PoisonShape {
    pub name: &'static str,
    pub attention: AttentionShape,
    pub padding: Padding,
}

impl PoisonShape {
    fn flops(&self) -> f64 {
        let AttentionShape { seq_q, seq_kv, causal, .. } = self.attention;
        let visible: Vec<usize> =
            (0..seq_kv).filter(|&key| !self.padding.hides(key, seq_kv)).collect();
        let last = |i: usize| if causal { i + seq_kv - seq_q } else { seq_kv };
        let pairs = (0..seq_q).map(|i| visible.partition_point(|&key| key <= last(i))).sum();
        self.attention.extents().flops_of(pairs)
    }
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    /// Keys and values, beside the rest in `f32`.
    Int8,
}

impl Dtype {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => f32::NAME,
            Self::F16 => f16::NAME,
            Self::Bf16 => bf16::NAME,
            Self::Int8 => Int8::NAME,
        }
    }

    /// Bytes of a row.
    fn row_bytes(self, numbers: usize) -> usize {
        fn bytes<T: KvStorage>(numbers: usize) -> usize {
            (numbers + T::EXTRA) * size_of::<T>()
        }
        match self {
            Self::F32 => bytes::<f32>(numbers),
            Self::F16 => bytes::<f16>(numbers),
            Self::Bf16 => bytes::<bf16>(numbers),
            Self::Int8 => bytes::<Int8>(numbers),
        }
    }
}

/// Attention on narrower tensors, to be compared with the same in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PrecisionShape {
    pub name: &'static str,
    pub attention: AttentionShape,
    pub dtype: Dtype,
    pub precision: Precision,
}

/// Rows to take the softmax of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SoftmaxShape {
    pub name: &'static str,
    pub rows: usize,
    pub length: usize,
    /// Overwriting the input, or into another tensor.
    pub in_place: bool,
}

/// A product `m x k` times `k x n`: `m` rows through a linear layer of `k` inputs and `n` outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GemmShape {
    pub name: &'static str,
    pub m: usize,
    pub k: usize,
    pub n: usize,
}

/// Self-attention over hidden states of length `embed_dim`: the projections of queries, keys and
/// values, attention in `heads` of equal length, and the output projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LayerShape {
    pub name: &'static str,
    pub batch: usize,
    pub seq: usize,
    pub embed_dim: usize,
    pub heads: usize,
}

impl LayerShape {
    fn flops(&self) -> f64 {
        let weights = 4.0 * (self.embed_dim * self.embed_dim) as f64;
        let heads = [self.batch, self.heads, self.seq, self.embed_dim / self.heads];
        let projections = 2.0 * (self.batch * self.seq) as f64 * weights;
        projections + Extents::new(heads, heads).flops(false)
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Attention, and the suite it belongs to.
    Attention(Suite, AttentionShape),
    /// Attention with a score term.
    Term(TermShape),
    /// Attention with padding.
    Poison(PoisonShape),
    /// Attention on tensors of half the width.
    Precision(PrecisionShape),
    /// Softmax alone.
    Softmax(SoftmaxShape),
    /// A linear layer's product.
    Gemm(GemmShape),
    /// Self-attention with its projections.
    Layer(LayerShape),
}

impl Shape {
    /// The name, as `--shape` takes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attention(_, shape) => shape.name,
            Self::Term(shape) => shape.name,
            Self::Poison(shape) => shape.name,
            Self::Precision(shape) => shape.name,
            Self::Softmax(shape) => shape.name,
            Self::Gemm(shape) => shape.name,
            Self::Layer(shape) => shape.name,
        }
    }

    /// The suite it belongs to.
    pub fn suite(&self) -> Suite {
        match self {
            Self::Attention(suite, _) => *suite,
            Self::Term(_) => Suite::Terms,
            Self::Poison(_) => Suite::Poison,
            Self::Precision(_) => Suite::Precision,
            Self::Softmax(_) => Suite::Softmax,
            Self::Gemm(_) => Suite::Gemm,
            Self::Layer(_) => Suite::Layer,
        }
    }

    /// Who runs it: the current rayon pool, or the calling thread alone.
    pub fn executor(&self) -> &'static dyn Executor {
        if matches!(self, Self::Attention(_, AttentionShape { serial: true, .. })) {
            &Serial
        } else {
            &Rayon
        }
    }

    /// The idleness before each run.
    pub fn pause(&self) -> Duration {
        if let Self::Attention(_, shape) = self { shape.pause } else { Duration::ZERO }
    }

    /// Whether there is an unfused way to compare with.
    pub fn has_unfused(&self) -> bool {
        matches!(self, Self::Attention(_, AttentionShape { cache: None, .. }))
    }

    /// How its tensors are stored.
    pub fn dtype(&self) -> &'static str {
        if let Self::Precision(shape) = self { shape.dtype.name() } else { Dtype::F32.name() }
    }

    /// The useful floating-point operations of a run, where they are counted: twice the visible
    /// query-key pairs, over all heads, times the length of a key and a value; of a product twice
    /// its multiplications; of a layer both.
    pub fn flops(&self) -> Option<f64> {
        match self {
            Self::Attention(_, shape) => Some(shape.flops()),
            Self::Term(shape) => Some(shape.attention.flops()),
            Self::Poison(shape) => Some(shape.flops()),
            Self::Precision(shape) => Some(shape.attention.flops()),
            Self::Softmax(_) => None,
            Self::Gemm(s) => Some(2.0 * s.m as f64 * s.k as f64 * s.n as f64),
            Self::Layer(shape) => Some(shape.flops()),
        }
    }

    /// The bytes that a step of decoding cannot do without: keys, values, queries and output, each
    /// once. `None` for what is no such step.
    pub fn step_bytes(&self) -> Option<f64> {
        match self {
            Self::Attention(suite, shape) if suite.decodes() => Some(shape.extents().bytes()),
            _ => None,
        }
    }

    /// The bytes that a run must move: of attention keys and values, of softmax input and output, of
    /// a product and a layer the weights.
    pub fn bytes(&self) -> f64 {
        match self {
            Self::Attention(_, shape) => shape.extents().kv_bytes(),
            Self::Term(shape) => shape.attention.extents().kv_bytes(),
            Self::Poison(shape) => shape.attention.extents().kv_bytes(),
            Self::Precision(PrecisionShape { attention, dtype, .. }) => {
                let row = |dtype: Dtype| dtype.row_bytes(attention.head_dim) as f64;
                attention.extents().kv_bytes() * row(*dtype) / row(Dtype::F32)
            }
            Self::Softmax(s) => (2 * s.rows * s.length * size_of::<f32>()) as f64,
            Self::Gemm(s) => (s.k * s.n * size_of::<f32>()) as f64,
            Self::Layer(s) => (4 * s.embed_dim * s.embed_dim * size_of::<f32>()) as f64,
        }
    }
}

/// Query heads and key/value heads.
pub(crate) type Heads = (usize, usize);
/// Queries and keys.
pub(crate) type Lengths = (usize, usize);

pub(crate) const fn attention(
    name: &'static str,
    batch: usize,
    (q_heads, kv_heads): Heads,
    (seq_q, seq_kv): Lengths,
    head_dim: usize,
) -> AttentionShape {
    AttentionShape {
        name,
        batch,
        q_heads,
        kv_heads,
        seq_q,
        seq_kv,
        head_dim,
        causal: false,
        cross: false,
        cache: None,
        window_left: None,
        document: None,
        serial: false,
        pause: Duration::ZERO,
    }
}

pub(crate) const fn causal(shape: AttentionShape) -> AttentionShape {
    AttentionShape { causal: true, ..shape }
}

const fn cross(shape: AttentionShape) -> AttentionShape {
    AttentionShape { cross: true, ..shape }
}

pub(crate) const fn cached(cache: Cache, shape: AttentionShape) -> AttentionShape {
    AttentionShape { cache: Some(cache), ..shape }
}

const fn windowed(left: usize, shape: AttentionShape) -> AttentionShape {
    AttentionShape { window_left: Some(left), ..shape }
}

const fn packed(document: usize, shape: AttentionShape) -> AttentionShape {
    AttentionShape { document: Some(document), ..shape }
}

const fn serial(shape: AttentionShape) -> AttentionShape {
    AttentionShape { serial: true, ..shape }
}

const fn after_a_millisecond(shape: AttentionShape) -> AttentionShape {
    AttentionShape { pause: Duration::from_millis(1), ..shape }
}

const fn softmax(name: &'static str, rows: usize, length: usize, in_place: bool) -> SoftmaxShape {
    SoftmaxShape { name, rows, length, in_place }
}

/// The shape that `headwise demo` shows the speed on.
pub const LONG: AttentionShape = attention("long-8k", 1, (4, 4), (8192, 8192), 64);

const PREFILL: [AttentionShape; 15] = [
    attention("minilm-32", 1, (12, 12), (32, 32), 32),
    attention("bert-128", 1, (12, 12), (128, 128), 64),
    attention("bert-b8", 8, (12, 12), (128, 128), 64),
    attention("vit-197", 1, (12, 12), (197, 197), 64),
    causal(attention("gpt2-1k", 1, (12, 12), (1024, 1024), 64)),
    causal(attention("llama-512", 1, (32, 8), (512, 512), 128)),
    causal(attention("llama-2k", 1, (32, 8), (2048, 2048), 128)),
    attention("llama-2k-full", 1, (32, 8), (2048, 2048), 128),
    LONG,
    causal(attention("long-8k-causal", 1, (4, 4), (8192, 8192), 128)),
    attention("whisper-enc", 1, (8, 8), (1500, 1500), 64),
    cross(attention("whisper-cross", 1, (8, 8), (448, 1500), 64)),
    attention("sd-self", 1, (8, 8), (4096, 4096), 40),
    cross(attention("sd-cross", 2, (8, 8), (4096, 77), 40)),
    causal(attention("gemma-1k", 1, (8, 4), (1024, 1024), 256)),
];

const DECODE: [AttentionShape; 5] = [
    attention("decode-512", 1, (32, 8), (1, 512), 128),
    attention("decode-4k", 1, (32, 8), (1, 4096), 128),
    attention("decode-32k", 1, (32, 8), (1, 32768), 128),
    attention("decode-b4", 4, (32, 32), (1, 4096), 128),
    cross(attention("decode-cross", 1, (8, 8), (1, 1500), 64)),
];

const GROWTH: [AttentionShape; 12] = [
    attention("growth-1k", 1, (2, 2), (1024, 1024), 64),
    attention("growth-2k", 1, (2, 2), (2048, 2048), 64),
    attention("growth-4k", 1, (2, 2), (4096, 4096), 64),
    attention("growth-8k", 1, (2, 2), (8192, 8192), 64),
    attention("growth-16k", 1, (2, 2), (16_384, 16_384), 64),
    attention("growth-32k", 1, (2, 2), (32_768, 32_768), 64),
    causal(attention("growth-1k-causal", 1, (2, 2), (1024, 1024), 64)),
    causal(attention("growth-2k-causal", 1, (2, 2), (2048, 2048), 64)),
    causal(attention("growth-4k-causal", 1, (2, 2), (4096, 4096), 64)),
    causal(attention("growth-8k-causal", 1, (2, 2), (8192, 8192), 64)),
    causal(attention("growth-16k-causal", 1, (2, 2), (16_384, 16_384), 64)),
    causal(attention("growth-32k-causal", 1, (2, 2), (32_768, 32_768), 64)),
];

/// A long causal sequence, a window over it, and documents packed to its length.
const MASKS: [AttentionShape; 6] = [
    causal(attention("causal-8k-d64", 1, (4, 4), (8192, 8192), 64)),
    windowed(511, causal(attention("window-8k-d64", 1, (4, 4), (8192, 8192), 64))),
    packed(512, causal(attention("documents-8k-d64", 1, (4, 4), (8192, 8192), 64))),
    causal(attention("causal-8k-d128", 1, (4, 4), (8192, 8192), 128)),
    windowed(511, causal(attention("window-8k-d128", 1, (4, 4), (8192, 8192), 128))),
    packed(512, causal(attention("documents-8k-d128", 1, (4, 4), (8192, 8192), 128))),
];

const CALL: [AttentionShape; 3] = [
    serial(attention("call-1x1", 1, (1, 1), (1, 1), 64)),
    attention("bert-128-again", 1, (12, 12), (128, 128), 64),
    after_a_millisecond(attention("bert-128-idle", 1, (12, 12), (128, 128), 64)),
];

const SOFTMAX: [SoftmaxShape; 8] = [
    softmax("softmax-4096x128", 4096, 128, true),
    softmax("softmax-4096x1024", 4096, 1024, true),
    softmax("softmax-512x8192", 512, 8192, true),
    softmax("softmax-64x131072", 64, 131_072, true),
    softmax("softmax-4096x128-into", 4096, 128, false),
    softmax("softmax-4096x1024-into", 4096, 1024, false),
    softmax("softmax-512x8192-into", 512, 8192, false),
    softmax("softmax-64x131072-into", 64, 131_072, false),
];

const fn gemm(name: &'static str, m: usize, k: usize, n: usize) -> GemmShape {
    GemmShape { name, m, k, n }
}

const GEMM: [GemmShape; 6] = [
    gemm("32x384x384", 32, 384, 384),
    gemm("128x768x768", 128, 768, 768),
    gemm("128x768x2304", 128, 768, 2304),
    gemm("1024x768x768", 1024, 768, 768),
    gemm("512x4096x4096", 512, 4096, 4096),
    gemm("1x4096x4096", 1, 4096, 4096),
];

const fn layer(
    name: &'static str,
    batch: usize,
    seq: usize,
    embed_dim: usize,
    heads: usize,
) -> LayerShape {
    LayerShape { name, batch, seq, embed_dim, heads }
}

const LAYER: [LayerShape; 4] = [
    layer("layer-1x32x384", 1, 32, 384, 12),
    layer("layer-1x128x768", 1, 128, 768, 12),
    layer("layer-8x128x768", 8, 128, 768, 12),
    layer("layer-1x512x768", 1, 512, 768, 12),
];

const BERT_B8: AttentionShape = PREFILL[2];
const GPT2: AttentionShape = PREFILL[4];
const LLAMA: AttentionShape = PREFILL[6];
const LLAMA_FULL: AttentionShape = PREFILL[7];

const fn term(name: &'static str, attention: AttentionShape, term: Term) -> TermShape {
    TermShape { name, attention, term }
}

const TERMS: [TermShape; 12] = [
    term("gpt2-1k-softcap", GPT2, Term::Softcap),
    term("gpt2-1k-alibi", GPT2, Term::Alibi),
    term("gpt2-1k-relative", GPT2, Term::Relative),
    term("gpt2-1k-bias", GPT2, Term::Bias),
    term("gpt2-1k-own", GPT2, Term::Own),
    term("llama-2k-softcap", LLAMA, Term::Softcap),
    term("llama-2k-alibi", LLAMA, Term::Alibi),
    term("llama-2k-relative", LLAMA, Term::Relative),
    term("llama-2k-bias", LLAMA, Term::Bias),
    term("llama-2k-own", LLAMA, Term::Own),
    term("llama-2k-full-bias", LLAMA_FULL, Term::Bias),
    term("long-8k-own", LONG, Term::Own),
];

const fn poison(name: &'static str, attention: AttentionShape, padding: Padding) -> PoisonShape {
    PoisonShape { name, attention, padding }
}

/// Paddings that end within a vector and a group of keys.
const POISON: [PoisonShape; 6] = [
    poison("bert-b8-left", BERT_B8, Padding::Left(5)),
    poison("bert-b8-right", BERT_B8, Padding::Right(11)),
    poison("bert-b8-thirds", BERT_B8, Padding::Thirds),
    poison("llama-2k-left", LLAMA, Padding::Left(5)),
    poison("llama-2k-right", LLAMA, Padding::Right(11)),
    poison("llama-2k-thirds", LLAMA, Padding::Thirds),
];

const fn stored(name: &'static str, attention: AttentionShape, dtype: Dtype) -> PrecisionShape {
    PrecisionShape { name, attention, dtype, precision: Precision::Full }
}

/// The same with scores in integers.
const fn fast(name: &'static str, attention: AttentionShape, dtype: Dtype) -> PrecisionShape {
    PrecisionShape { precision: Precision::Fast, ..stored(name, attention, dtype) }
}

const PRECISION: [PrecisionShape; 39] = [
    stored("bert-b8-bf16", BERT_B8, Dtype::Bf16),
    stored("bert-b8-f16", BERT_B8, Dtype::F16),
    stored("gpt2-1k-bf16", GPT2, Dtype::Bf16),
    stored("gpt2-1k-f16", GPT2, Dtype::F16),
    stored("llama-2k-bf16", LLAMA, Dtype::Bf16),
    stored("llama-2k-f16", LLAMA, Dtype::F16),
    stored("llama-2k-full-bf16", LLAMA_FULL, Dtype::Bf16),
    stored("llama-2k-full-f16", LLAMA_FULL, Dtype::F16),
    stored("long-8k-bf16", LONG, Dtype::Bf16),
    stored("long-8k-f16", LONG, Dtype::F16),
    fast("bert-b8-f32-fast", BERT_B8, Dtype::F32),
    fast("bert-b8-bf16-fast", BERT_B8, Dtype::Bf16),
    fast("gpt2-1k-f32-fast", GPT2, Dtype::F32),
    fast("gpt2-1k-bf16-fast", GPT2, Dtype::Bf16),
    fast("llama-2k-f32-fast", LLAMA, Dtype::F32),
    fast("llama-2k-bf16-fast", LLAMA, Dtype::Bf16),
    fast("llama-2k-full-f32-fast", LLAMA_FULL, Dtype::F32),
    fast("llama-2k-full-bf16-fast", LLAMA_FULL, Dtype::Bf16),
    fast("long-8k-f32-fast", LONG, Dtype::F32),
    fast("long-8k-bf16-fast", LONG, Dtype::Bf16),
    stored("decode-4k-bf16", DECODE[1], Dtype::Bf16),
    stored("decode-4k-f16", DECODE[1], Dtype::F16),
    stored("decode-32k-bf16", DECODE[2], Dtype::Bf16),
    stored("decode-32k-f16", DECODE[2], Dtype::F16),
    stored("decode-32k-own-bf16", DECODE_OWN, Dtype::Bf16),
    stored("decode-32k-own-f16", DECODE_OWN, Dtype::F16),
    stored("decode-b4-bf16", DECODE[3], Dtype::Bf16),
    stored("decode-b4-f16", DECODE[3], Dtype::F16),
    stored("llama-2k-int8", LLAMA, Dtype::Int8),
    stored("decode-4k-int8", DECODE[1], Dtype::Int8),
    stored("decode-32k-int8", DECODE[2], Dtype::Int8),
    stored("decode-32k-own-int8", DECODE_OWN, Dtype::Int8),
    stored("decode-32k-eight-int8", DECODE_EIGHT, Dtype::Int8),
    stored("decode-b4-int8", DECODE[3], Dtype::Int8),
    fast("decode-4k-int8-fast", DECODE[1], Dtype::Int8),
    fast("decode-32k-int8-fast", DECODE[2], Dtype::Int8),
    fast("decode-32k-own-int8-fast", DECODE_OWN, Dtype::Int8),
    fast("decode-32k-eight-int8-fast", DECODE_EIGHT, Dtype::Int8),
    fast("decode-b4-int8-fast", DECODE[3], Dtype::Int8),
];

/// A key/value head to each query head.
const DECODE_OWN: AttentionShape = attention("decode-32k-own", 1, (8, 8), (1, 32_768), 128);
/// One to eight.
const DECODE_EIGHT: AttentionShape = attention("decode-32k-eight", 1, (64, 8), (1, 32_768), 128);

/// The whole table, suite by suite.
pub fn all() -> impl Iterator<Item = Shape> {
    let attention = |suite| move |shape| Shape::Attention(suite, shape);
    let prefill = PREFILL.into_iter().map(attention(Suite::Prefill));
    let decode = DECODE.into_iter().map(attention(Suite::Decode));
    let sweep = SWEEP.into_iter().map(attention(Suite::Sweep));
    let growth = GROWTH.into_iter().map(attention(Suite::Growth));
    let masks = MASKS.into_iter().map(attention(Suite::Masks));
    let call = CALL.into_iter().map(attention(Suite::Call));
    let softmax = SOFTMAX.into_iter().map(Shape::Softmax);
    let gemm = GEMM.into_iter().map(Shape::Gemm);
    let layer = LAYER.into_iter().map(Shape::Layer);
    let attention = prefill.chain(decode).chain(sweep).chain(growth).chain(masks).chain(call);
    let terms = TERMS.into_iter().map(Shape::Term);
    let poison = POISON.into_iter().map(Shape::Poison);
    let precision = PRECISION.into_iter().map(Shape::Precision);
    attention.chain(softmax).chain(gemm).chain(layer).chain(terms).chain(poison).chain(precision)
}

/// The shapes of `suite`, or of every suite that is measured by default; with `name`, that one of
/// them, or of any suite.
///
/// # Errors
/// Where none has that name; the message lists the names there are.
pub fn select(suite: Option<Suite>, name: Option<&str>) -> Result<Vec<Shape>> {
    let is_candidate = |shape: &Shape| match suite {
        Some(suite) => shape.suite() == suite,
        None => name.is_some() || shape.suite().by_default(),
    };
    let candidates: Vec<Shape> = all().filter(is_candidate).collect();
    let Some(name) = name else { return Ok(candidates) };
    match candidates.iter().find(|shape| shape.name() == name) {
        Some(shape) => Ok(vec![*shape]),
        None => {
            let names: Vec<_> = candidates.iter().map(Shape::name).collect();
            let expected = format!("one of {}", names.join(", "));
            Err(Error::input("--shape", format!("no shape {name:?}"), expected))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().map(|shape| shape.name()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_layer_counts_its_projections_and_its_attention() {
        let shape = Shape::Layer(layer("layer", 2, 3, 8, 4));
        let (projections, attention) = (4 * 2 * 2 * 3 * 8 * 8, 4 * 2 * 4 * 3 * 3 * 2);
        assert_eq!(shape.flops(), Some(f64::from(projections + attention)));
        assert_eq!(shape.bytes(), f64::from(4 * 8 * 8 * 4));
    }

    /// Nothing but the length varies, by factors of two, and both masks see the same lengths.
    #[test]
    fn growth_is_of_the_length_alone() {
        let (full, masked) = GROWTH.split_at(GROWTH.len() / 2);
        for (n, (full, masked)) in full.iter().zip(masked).enumerate() {
            let length = 1024 << n;
            assert_eq!(*full, attention(full.name, 1, (2, 2), (length, length), 64));
            assert_eq!(*masked, causal(AttentionShape { name: masked.name, ..*full }));
            assert_eq!(full.name, format!("growth-{}k", length / 1024));
            assert_eq!(masked.name, format!("{}-causal", full.name));
        }
    }

    /// Useful work is counted by the definition of the masks.
    #[test]
    fn masked_work() {
        let small = |shape: AttentionShape| AttentionShape { seq_q: 100, seq_kv: 100, ..shape };
        let pairs = |shape: AttentionShape| shape.flops() / (4.0 * 4.0 * 64.0);
        assert_eq!(pairs(small(MASKS[0])), 5050.0);
        let window = AttentionShape { window_left: Some(9), ..small(MASKS[1]) };
        assert_eq!(pairs(window), f64::from(90 * 10 + 55));
        let documents = AttentionShape { document: Some(30), ..small(MASKS[2]) };
        assert_eq!(documents.documents(), Some(vec![0, 30, 60, 90, 100]));
        assert_eq!(pairs(documents), f64::from(3 * 465 + 55));
    }

    /// A step moves its queries and its output besides keys and values, and other shapes have no
    /// bound of this kind.
    #[test]
    fn bytes_of_a_step() -> Result<()> {
        let step = select(None, Some("decode-512"))?[0];
        assert_eq!(step.step_bytes(), Some(step.bytes() + f64::from(2 * 32 * 128 * 4)));
        assert_eq!(select(None, Some("bert-128"))?[0].step_bytes(), None);
        Ok(())
    }

    /// Work on padding is not useful.
    #[test]
    fn padded_work() {
        let small = AttentionShape { seq_q: 9, seq_kv: 9, ..LLAMA };
        let pairs = |padding| {
            let flops = poison("small", small, padding).flops();
            flops / (4.0 * 32.0 * 128.0)
        };
        assert_eq!(pairs(Padding::Left(2)), 28.0);
        assert_eq!(pairs(Padding::Right(2)), 28.0 + 2.0 * 7.0);
        assert_eq!(pairs(Padding::Thirds), 45.0 - 7.0 - 4.0 - 1.0);
    }

    #[test]
    fn terms_are_named_after_what_they_are() {
        for shape in TERMS {
            assert_eq!(shape.name, format!("{}-{}", shape.attention.name, shape.term.name()));
        }
    }

    #[test]
    fn precisions_are_named_after_what_they_are() {
        for shape in PRECISION {
            let fast = if shape.precision == Precision::Fast { "-fast" } else { "" };
            let PrecisionShape { attention, dtype, .. } = shape;
            assert_eq!(shape.name, format!("{}-{}{fast}", attention.name, dtype.name()));
        }
    }

    #[test]
    fn calls_run_as_they_say() -> Result<()> {
        let one = select(None, Some("call-1x1"))?[0];
        assert_eq!((one.executor().threads(), one.pause()), (1, Duration::ZERO));
        let idle = select(None, Some("bert-128-idle"))?[0];
        assert_eq!(idle.executor().threads(), Rayon.threads());
        assert_eq!(idle.pause(), Duration::from_millis(1));
        Ok(())
    }

    #[test]
    fn selection() -> Result<()> {
        assert_eq!(select(Some(Suite::Decode), None)?.len(), DECODE.len());
        assert_eq!(select(None, Some("long-8k"))?, [Shape::Attention(Suite::Prefill, LONG)]);
        assert!(select(None, None)?.iter().all(|shape| shape.suite() != Suite::Sweep));
        assert_eq!(select(None, Some("sweep-4k"))?[0].suite(), Suite::Sweep);
        let error = select(Some(Suite::Decode), Some("long-8k")).map_err(|e| e.to_string());
        assert!(error.is_err_and(|e| e.contains("--shape") && e.contains("decode-4k")));
        Ok(())
    }
}
