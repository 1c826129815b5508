//! `headwise demo`: every embedded capture against its answers, then a long shape, each with its
//! speed; then the forms of attention with real weights, and a whole model.

mod forms;
mod model;

use headwise::{Isa, Rayon};
use serde::Serialize;

use super::{Session, Verdict};
use crate::Result;
use crate::captures::{self, Capture};
use crate::compare::distance;
use crate::extents::Extents;
use crate::measure::{Protocol, measure, median, peak_flops};
use crate::progress::Progress;
use crate::shapes;
use crate::spot_check::spot_check;
use crate::table::{self, Column, Table, milliseconds, number, small};
use crate::work::{AttentionWork, Way};

/// Of out, relative to the row's largest value.
const OUT_TOLERANCE: f64 = 2e-5;
/// Absolute.
const LSE_TOLERANCE: f64 = 2e-5;
/// Absolute.
const WEIGHTS_TOLERANCE: f64 = 1e-5;

/// The rows of the long shape that are checked.
const CHECKED_ROWS: usize = 64;

const TABLE: Table<'_> = Table(&[
    Column::Text("capture", 31),
    Column::Text("B, heads, queries x keys, dim", 29),
    Column::Text("mask", 6),
    Column::Text("isa", 8),
    Column::Number("threads", 7),
    Column::Number("out err", 7),
    Column::Number("lse err", 7),
    Column::Number("weights", 7),
    Column::Number("ms", 7),
    Column::Number("GFLOP/s", 7),
    Column::Number("% peak", 6),
    Column::Text("", 4),
]);

/// A row of the table.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    capture: &'static str,
    what: &'static str,
    #[serde(flatten)]
    extents: Extents,
    mask: &'static str,
    isa: &'static str,
    threads: usize,
    #[serde(flatten)]
    errors: Errors,
    median_ms: f64,
    gflops: f64,
    peak_gflops: f64,
    pct_peak: f64,
    pass: bool,
}

/// The largest errors; of out relative to its row's largest value, of the others absolute.
#[derive(Serialize)]
struct Errors {
    out_error: f64,
    lse_error: Option<f64>,
    weights_error: Option<f64>,
}

impl Errors {
    fn pass(&self) -> bool {
        self.out_error <= OUT_TOLERANCE
            && self.lse_error.is_none_or(|error| error <= LSE_TOLERANCE)
            && self.weights_error.is_none_or(|error| error <= WEIGHTS_TOLERANCE)
    }
}

#[derive(Serialize)]
struct Summary {
    kind: &'static str,
    version: &'static str,
    isa: &'static str,
    threads: usize,
    checks: usize,
    failed: usize,
    pass: bool,
}

/// Runs the demo.
pub(super) fn demo(session: &mut Session) -> Result<Verdict> {
    let (isa, threads) = (session.isa, session.threads());
    // The first sample wakes the threads.
    let mut peaks = [(); 4].map(|()| peak_flops(&Rayon));
    let peaks = &mut peaks[1..];
    session.output.line(format!(
        "headwise {}: {isa}, {}, FMA peak {:.0} GFLOP/s",
        env!("CARGO_PKG_VERSION"),
        table::threads(threads),
        median(peaks) / 1e9
    ))?;
    session.output.line(TABLE.header())?;

    let progress = Progress::new(captures::ALL.len() + 1);
    let mut rows = Vec::new();
    for capture in &captures::ALL {
        progress.begin(capture.what);
        let row = run_capture(capture, isa, threads)?;
        progress.done(|| show(session, &row))?;
        rows.push(row.pass);
    }
    progress.begin(shapes::LONG.name);
    let row = run_long(isa, threads)?;
    progress.done(|| show(session, &row))?;
    rows.push(row.pass);
    rows.extend(forms::check(session)?);
    rows.extend(model::check(session)?);

    let failed = rows.iter().filter(|&&pass| !pass).count();
    let summary = Summary {
        kind: "summary",
        version: env!("CARGO_PKG_VERSION"),
        isa: isa.name(),
        threads,
        checks: rows.len(),
        failed,
        pass: failed == 0,
    };
    session.output.object(&summary)?;
    let tolerances = format!(
        "out within {OUT_TOLERANCE:.0e} of its row's largest value, lse within \
         {LSE_TOLERANCE:.0e}, weights within {WEIGHTS_TOLERANCE:.0e} of float64, forms and model \
         as allowed"
    );
    session.output.line(match failed {
        0 => format!("pass: all {} checks: {tolerances}", rows.len()),
        _ => format!("FAIL: {failed} of {} checks miss: {tolerances}", rows.len()),
    })?;
    Ok(Verdict::from(failed == 0))
}

fn verdict(pass: bool) -> &'static str {
    if pass { "pass" } else { "FAIL" }
}

fn show(session: &mut Session, row: &Row) -> Result<()> {
    session.output.object(row)?;
    session.output.line(TABLE.row([
        row.what.into(),
        row.extents.to_string(),
        row.mask.into(),
        row.isa.into(),
        row.threads.to_string(),
        small(Some(row.errors.out_error)),
        small(row.errors.lse_error),
        small(row.errors.weights_error),
        milliseconds(row.median_ms / 1e3),
        number(Some(row.gflops), 1),
        number(Some(row.pct_peak), 1),
        verdict(row.pass).into(),
    ]))
}

fn run_capture(capture: &Capture, isa: Isa, threads: usize) -> Result<Row> {
    let loaded = capture.load()?;
    let result = loaded.compute(isa)?;
    let width = loaded.out.shape()[3];
    let absolute = |got: Option<&[f32]>, answer: Option<&[f32]>| {
        answer.map(|answer| distance(got.unwrap_or_default(), answer, 1).max_absolute)
    };
    let errors = Errors {
        out_error: distance(result.out.data(), loaded.out.data(), width).max_relative,
        lse_error: absolute(result.lse.as_ref().map(|lse| lse.data()), loaded.lse.as_deref()),
        weights_error: absolute(
            result.weights.as_ref().map(|weights| weights.data()),
            loaded.weights.as_ref().map(|weights| weights.data()),
        ),
    };
    let mut work = AttentionWork::new(loaded.problem, isa)?;
    let label = Label { name: capture.name, what: capture.what, isa: result.isa, threads };
    timed(&label, &mut work, |_| errors)
}

fn run_long(isa: Isa, threads: usize) -> Result<Row> {
    let mut work = AttentionWork::synthetic(&shapes::LONG, isa)?;
    let label =
        Label { name: shapes::LONG.name, what: "long-8k, synthetic, 64 rows", isa, threads };
    timed(&label, &mut work, |work| {
        let checked = spot_check(work.problem(), work.out(), CHECKED_ROWS);
        Errors { out_error: checked.max_relative, lse_error: None, weights_error: None }
    })
}

struct Label {
    name: &'static str,
    what: &'static str,
    isa: Isa,
    threads: usize,
}

/// Times the work, then asks for its errors: by then the outputs are there.
fn timed(
    label: &Label,
    work: &mut AttentionWork,
    errors: impl FnOnce(&AttentionWork) -> Errors,
) -> Result<Row> {
    let measured = measure(work, &[Way::Fused], &Rayon, Protocol::quick())?;
    let errors = errors(work);
    let (extents, causal) = (work.problem().extents(), work.problem().causal);
    let seconds = measured.timings.first().map_or(f64::NAN, |timing| timing.median);
    let flops = extents.flops(causal) / seconds;
    Ok(Row {
        kind: "check",
        capture: label.name,
        what: label.what,
        extents,
        mask: if causal { "causal" } else { "none" },
        isa: label.isa.name(),
        threads: label.threads,
        pass: errors.pass(),
        errors,
        median_ms: seconds * 1e3,
        gflops: flops / 1e9,
        peak_gflops: measured.peak_flops / 1e9,
        pct_peak: 100.0 * flops / measured.peak_flops,
    })
}
