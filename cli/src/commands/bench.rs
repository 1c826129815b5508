//! `headwise bench`: the table of shapes against the machine's peaks.

use serde::Serialize;

use super::{Session, Verdict};
use crate::args::{BenchArgs, Which};
use crate::extents::Extents;
use crate::measure::{Measurement, Protocol, Timing, measure};
use crate::progress::Progress;
use crate::shapes::{self, AttentionShape, LayerShape, Padding, Shape, Suite, Term};
use crate::table::{Column, Table, milliseconds, number};
use crate::work::{Way, prepare};
use crate::{Error, Result};

const DTYPE: &str = "f32";

const TABLE: Table<'_> = Table(&[
    Column::Text("shape", 22),
    Column::Text("B, heads, queries x keys, dim", 29),
    Column::Text("mask", 14),
    Column::Text("isa", 8),
    Column::Number("threads", 7),
    Column::Text("algorithm", 9),
    Column::Number("ms", 8),
    Column::Number("best", 8),
    Column::Number("GFLOP/s", 7),
    Column::Number("% peak", 6),
    Column::Number("computed", 8),
    Column::Number("GB/s", 6),
    Column::Number("% read", 6),
    Column::Number("% busy", 6),
    Column::Number("vs unfused", 10),
    Column::Number("term's cost", 11),
    Column::Number("padding's", 9),
    Column::Number("poisoned", 8),
]);

const LISTING: Table<'_> = Table(&[
    Column::Text("suite", 7),
    Column::Text("shape", 22),
    Column::Text("B, heads, queries x keys, dim", 29),
    Column::Text("mask", 14),
    Column::Number("GFLOP", 8),
    Column::Number("MB", 7),
]);

/// A row of the table of shapes, not measured.
#[derive(Serialize)]
struct Listed {
    suite: Suite,
    shape: &'static str,
    dtype: &'static str,
    #[serde(flatten)]
    sizes: Sizes,
    /// Useful operations of one run; None where they are not counted.
    flops: Option<f64>,
    /// What one run must move, of attention the keys and values.
    bytes: f64,
}

/// A line of results. Times are those of one run.
#[derive(Serialize)]
struct Record {
    suite: Suite,
    shape: &'static str,
    dtype: &'static str,
    isa: &'static str,
    threads: usize,
    algorithm: &'static str,
    #[serde(flatten)]
    sizes: Sizes,
    samples: usize,
    median_ms: f64,
    best_ms: f64,
    /// None where operations are not counted.
    gflops: Option<f64>,
    peak_gflops: f64,
    pct_peak: Option<f64>,
    /// As `pct_peak`, counting every pair in the micro-tiles that the fused kernels compute; None
    /// where they are not counted.
    pct_peak_computed: Option<f64>,
    gbps: f64,
    read_gbps: f64,
    pct_read: f64,
    /// What a call takes in which every thread takes part and does nothing.
    fork_join_us: f64,
    pct_busy: f64,
    /// How many times as fast as the unfused path, where both were measured.
    vs_unfused: Option<f64>,
    /// How much longer it takes than without its term, where both were measured.
    pct_term: Option<f64>,
    /// How much longer it takes than on tensors without its padding, where both were measured.
    pct_padding: Option<f64>,
    /// How many times as long it takes where its padding is NaN, where both were measured.
    times_poisoned: Option<f64>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
enum Sizes {
    Attention {
        #[serde(flatten)]
        extents: Extents,
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
            causal: s.causal,
            window_left: s.window_left,
            document: s.document,
            term,
            padding,
        }
    }

    fn of(shape: &Shape) -> Self {
        match *shape {
            Shape::Attention(_, s) => Self::attention(s, None, None),
            Shape::Term(s) => Self::attention(s.attention, Some(s.term), None),
            Shape::Poison(s) => Self::attention(s.attention, None, Some(s.padding)),
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
    fn describe(self) -> (String, String) {
        let (sizes, mask) = match self {
            Self::Attention { extents, causal, window_left, document, term: _, padding } => {
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

/// Measures, or lists, the shapes that the arguments select.
pub(super) fn bench(session: &mut Session, args: &BenchArgs) -> Result<Verdict> {
    let mut shapes = shapes::select(args.suite, args.shape.as_deref())?;
    if args.list {
        return list(session, &shapes);
    }
    if args.algorithm == Which::Unfused {
        shapes.retain(Shape::has_unfused);
    }
    if shapes.is_empty() {
        let expected =
            "fused: softmax, products, layers, terms and padding are measured in one way";
        return Err(Error::input("--algorithm", "unfused", expected));
    }
    let protocol = Protocol { samples: args.samples.map(usize::from), ..Protocol::thorough() };
    session.output.line(TABLE.header())?;
    let progress = Progress::new(shapes.len());
    for shape in &shapes {
        progress.begin(shape.name());
        let records = run_shape(session, shape, args.algorithm, protocol)?;
        progress.done(|| records.iter().try_for_each(|record| show(session, record)))?;
    }
    Ok(Verdict::Pass)
}

fn list(session: &mut Session, shapes: &[Shape]) -> Result<Verdict> {
    session.output.line(LISTING.header())?;
    for shape in shapes {
        let (sizes, flops, bytes) = (Sizes::of(shape), shape.flops(), shape.bytes());
        let (suite, name) = (shape.suite(), shape.name());
        session.output.object(&Listed { suite, shape: name, dtype: DTYPE, sizes, flops, bytes })?;
        let (sizes, mask) = sizes.describe();
        session.output.line(LISTING.row([
            suite.name().into(),
            name.into(),
            sizes,
            mask,
            number(flops.map(|flops| flops / 1e9), 3),
            number(Some(bytes / 1e6), 2),
        ]))?;
    }
    Ok(Verdict::Pass)
}

fn ways(shape: &Shape, which: Which) -> &'static [Way] {
    match (which, shape) {
        (Which::Unfused, _) => &[Way::Unfused],
        (_, Shape::Term(_)) => &[Way::Fused, Way::Without],
        (_, Shape::Poison(_)) => &[Way::Fused, Way::Without, Way::Poisoned],
        (Which::Both, shape) if shape.has_unfused() => &[Way::Fused, Way::Unfused],
        (Which::Fused | Which::Both, _) => &[Way::Fused],
    }
}

fn run_shape(
    session: &Session,
    shape: &Shape,
    which: Which,
    protocol: Protocol,
) -> Result<Vec<Record>> {
    let ways = ways(shape, which);
    let mut work = prepare(shape, session.isa)?;
    let protocol = Protocol { pause: shape.pause(), ..protocol };
    let measured = measure(&mut *work, ways, shape.executor(), protocol)?;
    let computed = work.computed_flops()?;
    let results = Results { session, shape, ways, measured: &measured, computed };
    Ok([Way::Fused, Way::Unfused].into_iter().filter_map(|way| results.record(way)).collect())
}

struct Results<'a> {
    session: &'a Session,
    shape: &'a Shape,
    ways: &'a [Way],
    measured: &'a Measurement,
    /// Operations that a run by the fused kernels computes.
    computed: Option<f64>,
}

impl Results<'_> {
    /// What was measured of a way, if it was.
    fn timing(&self, way: Way) -> Option<&Timing> {
        let nth = self.ways.iter().position(|&other| other == way)?;
        self.measured.timings.get(nth)
    }

    fn record(&self, way: Way) -> Option<Record> {
        let timing = self.timing(way)?;
        let Measurement { timings: _, peak_flops, read_rate, fork_join, samples } = self.measured;
        let rate = self.shape.flops().map(|flops| flops / timing.median);
        let bytes = self.shape.bytes() / timing.median;
        let beside = |other| self.timing(other).filter(|_| way == Way::Fused);
        let without = beside(Way::Without).map(|t| 100.0 * (timing.median / t.median - 1.0));
        Some(Record {
            suite: self.shape.suite(),
            shape: self.shape.name(),
            dtype: DTYPE,
            isa: self.session.isa.name(),
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
            pct_busy: 100.0 * timing.busy,
            vs_unfused: beside(Way::Unfused).map(|unfused| unfused.median / timing.median),
            pct_term: without.filter(|_| matches!(self.shape, Shape::Term(_))),
            pct_padding: without.filter(|_| matches!(self.shape, Shape::Poison(_))),
            times_poisoned: beside(Way::Poisoned).map(|poison| poison.median / timing.median),
        })
    }
}

fn percent(cost: Option<f64>) -> String {
    cost.map_or_else(|| "-".into(), |cost| format!("{cost:.1} %"))
}

fn show(session: &mut Session, record: &Record) -> Result<()> {
    session.output.object(record)?;
    let (sizes, mask) = record.sizes.describe();
    session.output.line(TABLE.row([
        record.shape.into(),
        sizes,
        mask,
        record.isa.into(),
        record.threads.to_string(),
        record.algorithm.into(),
        milliseconds(record.median_ms / 1e3),
        milliseconds(record.best_ms / 1e3),
        number(record.gflops, 1),
        number(record.pct_peak, 1),
        number(record.pct_peak_computed, 1),
        number(Some(record.gbps), 1),
        number(Some(record.pct_read), 1),
        number(Some(record.pct_busy), 1),
        record.vs_unfused.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}x")),
        percent(record.pct_term),
        percent(record.pct_padding),
        record.times_poisoned.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}x")),
    ]))
}
