//! `headwise bench`: the table of shapes against the machine's peaks.

mod columns;
mod record;

use self::columns::Columns;
use self::record::{Listed, Record, Results};
use super::{Session, Verdict};
use crate::args::{BenchArgs, Which};
use crate::measure::{Protocol, measure};
use crate::progress::Progress;
use crate::shapes::{self, Shape};
use crate::table::Table;
use crate::work::{Way, prepare};
use crate::{Error, Result};

/// Measures, or lists, the shapes that the arguments select.
pub(super) fn bench(session: &mut Session, args: &BenchArgs) -> Result<Verdict> {
    let mut shapes = args.axes.vary(shapes::select(args.suite, args.shape.as_deref())?)?;
    if args.list {
        return list(session, &shapes);
    }
    if args.algorithm == Which::Unfused {
        shapes.retain(Shape::has_unfused);
    }
    if shapes.is_empty() {
        let expected = "fused: caches, softmax, products, layers, terms, padding and halves are measured in one way";
        return Err(Error::input("--algorithm", "unfused", expected));
    }
    let protocol = Protocol { samples: args.samples.map(usize::from), ..Protocol::thorough() };
    let columns = Columns::new(&shapes);
    let layout = columns.results();
    let table = Table(&layout);
    session.output.line(table.header())?;
    let progress = Progress::new(shapes.len());
    for shape in &shapes {
        progress.begin(shape.name());
        let records = run_shape(session, shape, args.algorithm, protocol)?;
        progress.done(|| {
            records.iter().try_for_each(|record| {
                session.output.object(record)?;
                session.output.line(table.row(columns.result(record)))
            })
        })?;
    }
    Ok(Verdict::Pass)
}

fn list(session: &mut Session, shapes: &[Shape]) -> Result<Verdict> {
    let columns = Columns::new(shapes);
    let layout = columns.listing();
    let table = Table(&layout);
    session.output.line(table.header())?;
    for listed in shapes.iter().map(Listed::new) {
        session.output.object(&listed)?;
        session.output.line(table.row(columns.listed(&listed)))?;
    }
    Ok(Verdict::Pass)
}

fn ways(shape: &Shape, which: Which) -> &'static [Way] {
    match (which, shape) {
        (Which::Unfused, _) => &[Way::Unfused],
        (_, Shape::Term(_) | Shape::Precision(_)) => &[Way::Fused, Way::Without],
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
    let closeness = work.closeness()?;
    let results =
        Results { isa: session.isa, shape, ways, measured: &measured, computed, closeness };
    Ok([Way::Fused, Way::Unfused].into_iter().filter_map(|way| results.record(way)).collect())
}
