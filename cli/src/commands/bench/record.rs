//! What `headwise bench` says of a shape: its sizes, and what was measured of it.

use headwise::Isa;
use serde::Serialize;

use crate::compare::Closeness;
use crate::extents::Extents;
use crate::measure::{Measurement, Timing};
use crate::shapes::{AttentionShape, Cache, LayerShape, Padding, Shape, Suite, Term};
use crate::work::Way;

/// A row of the table of shapes, not measured.
#[derive(Serialize)]
pub(super) struct Listed {
    pub(super) suite: Suite,
    pub(super) shape: &'static str,
    pub(super) dtype: &'static str,
    #[serde(flatten)]
    pub(super) sizes: Sizes,
    /// Useful operations of one run; None where they are not counted.
    pub(super) flops: Option<f64>,
    /// What one run must move, of attention the keys and values.
    pub(super) bytes: f64,
}

impl Listed {
    pub(super) fn new(shape: &Shape) -> Self {
        Self {
            suite: shape.suite(),
            shape: shape.name(),
            dtype: shape.dtype(),
            sizes: Sizes::of(shape),
            flops: shape.flops(),
            bytes: shape.bytes(),
        }
    }
}

/// A line of results. Times are those of one run.
#[derive(Serialize)]
pub(super) struct Record {
    pub(super) suite: Suite,
    pub(super) shape: &'static str,
    pub(super) dtype: &'static str,
    pub(super) isa: &'static str,
    pub(super) threads: usize,
    pub(super) algorithm: &'static str,
    #[serde(flatten)]
    pub(super) sizes: Sizes,
    pub(super) samples: usize,
    pub(super) median_ms: f64,
    pub(super) best_ms: f64,
    /// None where operations are not counted.
    pub(super) gflops: Option<f64>,
    pub(super) peak_gflops: f64,
    pub(super) pct_peak: Option<f64>,
    /// As `pct_peak`, counting every pair in the micro-tiles that the fused kernels compute; None
    /// where they are not counted.
    pub(super) pct_peak_computed: Option<f64>,
    pub(super) gbps: f64,
    pub(super) read_gbps: f64,
    pub(super) pct_read: f64,
    /// What a call takes in which every thread takes part and does nothing.
    pub(super) fork_join_us: f64,
    /// How many times as long a step of decoding takes as its bound; None of other shapes.
    pub(super) times_bound: Option<f64>,
    pub(super) pct_busy: f64,
    /// How many times as fast as the unfused path, where both were measured.
    pub(super) vs_unfused: Option<f64>,
    /// How much longer it takes than without its term, where both were measured.
    pub(super) pct_term: Option<f64>,
    /// How much longer it takes than on tensors without its padding, where both were measured.
    pub(super) pct_padding: Option<f64>,
    /// How many times as long it takes where its padding is NaN, where both were measured.
    pub(super) times_poisoned: Option<f64>,
    /// How many times as fast as on the same numbers in f32, where both were measured.
    pub(super) vs_f32: Option<f64>,
    /// How close the result is to the reference, where that was asked.
    #[serde(flatten)]
    pub(super) closeness: Option<Closeness>,
}

/// The sizes of what is computed, and its mask.
#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
pub(super) enum Sizes {
    Attention {
        #[serde(flatten)]
        extents: Extents,
        /// Query heads to a key/value head.
        group: usize,
        /// Where keys and values lie.
        cache: &'static str,
        page_size: Option<usize>,
        causal: bool,
        window_left: Option<usize>,
        document: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        term: Option<Term>,
        #[serde(skip_serializing_if = "Option::is_none")]
        padding: Option<Padding>,
    },
    Softmax {
        rows: usize,
        length: usize,
        in_place: bool,
    },
    Gemm {
        m: usize,
        k: usize,
        n: usize,
    },
    Layer {
        batch: usize,
        seq: usize,
        embed_dim: usize,
        heads: usize,
    },
}

impl Sizes {
    fn attention(s: AttentionShape, term: Option<Term>, padding: Option<Padding>) -> Self {
        Self::Attention {
            extents: s.extents(),
            group: s.group(),
            cache: s.cache.map_or("dense", Cache::kind),
            page_size: s.cache.and_then(Cache::page_size),
            causal: s.causal,
            window_left: s.window_left,
            document: s.document,
            term,
            padding,
        }
    }

    pub(super) fn of(shape: &Shape) -> Self {
        match *shape {
            Shape::Attention(_, s) => Self::attention(s, None, None),
            Shape::Term(s) => Self::attention(s.attention, Some(s.term), None),
            Shape::Poison(s) => Self::attention(s.attention, None, Some(s.padding)),
            Shape::Precision(s) => Self::attention(s.attention, None, None),
            Shape::Softmax(s) => {
                Self::Softmax { rows: s.rows, length: s.length, in_place: s.in_place }
            }
            Shape::Gemm(s) => Self::Gemm { m: s.m, k: s.k, n: s.n },
            Shape::Layer(LayerShape { batch, seq, embed_dim, heads, .. }) => {
                Self::Layer { batch, seq, embed_dim, heads }
            }
        }
    }

    /// Sizes and mask in words.
    pub(super) fn describe(self) -> (String, String) {
        let (sizes, mask) = match self {
            Self::Attention { extents, causal, window_left, document, padding, .. } => {
                let mut mask = if causal { "causal" } else { "none" }.to_owned();
                if let Some(left) = window_left {
                    mask = format!("{mask} -{left}");
                }
                if let Some(length) = document {
                    mask = format!("{mask} /{length}");
                }
                mask += match padding {
                    None => "",
                    Some(Padding::Left(_)) => ", left",
                    Some(Padding::Right(_)) => ", right",
                    Some(Padding::Thirds) => ", thirds",
                };
                return (extents.to_string(), mask);
            }
            Self::Gemm { m, k, n } => (format!("{m} x {k} times {k} x {n}"), "-"),
            Self::Layer { batch, seq, embed_dim, heads } => {
                (format!("{batch}, {seq} x {embed_dim}, {heads} heads"), "none")
            }
            Self::Softmax { rows, length, in_place } => {
                let target = if in_place { "in place" } else { "to another" };
                (format!("{rows} rows of {length}, {target}"), "-")
            }
        };
        (sizes, mask.into())
    }
}

/// What a measurement found of a shape.
pub(super) struct Results<'a> {
    pub(super) isa: Isa,
    pub(super) shape: &'a Shape,
    pub(super) ways: &'a [Way],
    pub(super) measured: &'a Measurement,
    /// Operations that a run by the fused kernels computes.
    pub(super) computed: Option<f64>,
    pub(super) closeness: Option<Closeness>,
}

impl Results<'_> {
    /// What was measured of a way, if it was.
    fn timing(&self, way: Way) -> Option<&Timing> {
        let nth = self.ways.iter().position(|&other| other == way)?;
        self.measured.timings.get(nth)
    }

    /// The seconds that a step of decoding cannot be expected to fall below.
    fn bound(&self) -> Option<f64> {
        let (bytes, flops) = (self.shape.step_bytes()?, self.shape.flops()?);
        Some(self.measured.bound(bytes, flops))
    }

    pub(super) fn record(&self, way: Way) -> Option<Record> {
        let timing = self.timing(way)?;
        let Measurement { timings: _, peak_flops, read_rate, fork_join, samples } = self.measured;
        let rate = self.shape.flops().map(|flops| flops / timing.median);
        let bytes = self.shape.bytes() / timing.median;
        let beside = |other| self.timing(other).filter(|_| way == Way::Fused);
        let without = beside(Way::Without).map(|t| 100.0 * (timing.median / t.median - 1.0));
        Some(Record {
            suite: self.shape.suite(),
            shape: self.shape.name(),
            dtype: self.shape.dtype(),
            isa: self.isa.name(),
            threads: self.shape.executor().threads(),
            algorithm: if way == Way::Unfused { "unfused" } else { "fused" },
            sizes: Sizes::of(self.shape),
            samples: *samples,
            median_ms: timing.median * 1e3,
            best_ms: timing.best * 1e3,
            gflops: rate.map(|rate| rate / 1e9),
            peak_gflops: peak_flops / 1e9,
            pct_peak: rate.map(|rate| 100.0 * rate / peak_flops),
            pct_peak_computed: self
                .computed
                .filter(|_| way == Way::Fused)
                .map(|flops| 100.0 * flops / timing.median / peak_flops),
            gbps: bytes / 1e9,
            read_gbps: read_rate / 1e9,
            pct_read: 100.0 * bytes / read_rate,
            fork_join_us: fork_join * 1e6,
            times_bound: self.bound().map(|bound| timing.median / bound),
            pct_busy: 100.0 * timing.busy,
            vs_unfused: beside(Way::Unfused).map(|unfused| unfused.median / timing.median),
            pct_term: without.filter(|_| matches!(self.shape, Shape::Term(_))),
            pct_padding: without.filter(|_| matches!(self.shape, Shape::Poison(_))),
            times_poisoned: beside(Way::Poisoned).map(|poison| poison.median / timing.median),
            vs_f32: beside(Way::Without)
                .filter(|_| matches!(self.shape, Shape::Precision(_)))
                .map(|wide| wide.median / timing.median),
            closeness: self.closeness,
        })
    }
}
