//! The demo's whole model: its answers, its atom maps, its time.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::Session;
use crate::Result;
use crate::albert::Albert;
use crate::atom_map::AtomMap;
use crate::golden::{Check, Golden, batch};
use crate::measure::median;
use crate::smiles::{REACTIONS, tokenize};
use crate::table::{Column, Table, milliseconds, small};

/// What the objects call the model.
const MODEL: &str = "rxnmapper-albert";
/// How long to repeat the forward pass, and how often at least.
const BUDGET: Duration = Duration::from_millis(250);
const LEAST_RUNS: usize = 3;

const TABLE: Table<'_> = Table(&[
    Column::Text("rxnmapper ALBERT, 3 reactions", 31),
    Column::Number("max err", 7),
    Column::Number("allowed", 7),
    Column::Text("", 4),
]);

/// A row of the table. The error is the largest absolute one, or the number of tokens that differ.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    model: &'static str,
    what: &'static str,
    isa: &'static str,
    threads: usize,
    error: f64,
    allowed: f64,
    pass: bool,
}

/// A reaction with its atom map.
#[derive(Serialize)]
struct Mapped {
    kind: &'static str,
    name: &'static str,
    smiles: &'static str,
    mapped: String,
}

/// The time of the forward pass.
#[derive(Serialize)]
struct Time {
    kind: &'static str,
    model: &'static str,
    isa: &'static str,
    threads: usize,
    batch: usize,
    seq: usize,
    median_ms: f64,
}

/// Runs the model; says of each part whether it passes.
pub(super) fn check(session: &mut Session) -> Result<Vec<bool>> {
    let (model, batch, isa) = (Albert::embedded()?, batch()?, session.isa);
    let encoded = model.forward(&batch, isa)?;
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < LEAST_RUNS || start.elapsed() < BUDGET {
        let start = Instant::now();
        model.forward(&batch, isa)?;
        times.push(start.elapsed().as_secs_f64());
    }

    session.output.line(format!("\n{}", TABLE.header()))?;
    let mut passed = Vec::new();
    for check in Golden::load()?.check(&model, (&batch, &encoded), isa)? {
        show(session, check)?;
        passed.push(check.pass());
    }
    let seconds = median(&mut times);
    session.output.object(&Time {
        kind: "timing",
        model: MODEL,
        isa: isa.name(),
        threads: session.threads(),
        batch: batch.lengths().len(),
        seq: batch.seq(),
        median_ms: seconds * 1e3,
    })?;
    session.output.line(format!(
        "forward pass: {} ms a batch of {} x {} tokens",
        milliseconds(seconds),
        batch.lengths().len(),
        batch.seq()
    ))?;

    session.output.line("\natoms of the products and where they were, by attention")?;
    for (i, reaction) in REACTIONS.iter().enumerate() {
        let map = AtomMap::read(&tokenize(reaction.smiles), encoded.mapping_head(i)?)?;
        let mapped = map.to_string();
        session.output.line(format!("  {}\n    {mapped}", reaction.name))?;
        let (name, smiles) = (reaction.name, reaction.smiles);
        session.output.object(&Mapped { kind: "reaction", name, smiles, mapped })?;
    }
    session.output.line("")?;
    Ok(passed)
}

fn show(session: &mut Session, check: Check) -> Result<()> {
    let row = Row {
        kind: "check",
        model: MODEL,
        what: check.what,
        isa: session.isa.name(),
        threads: session.threads(),
        error: check.error,
        allowed: check.allowed,
        pass: check.pass(),
    };
    session.output.object(&row)?;
    let figure = |x: f64| if x == 0.0 { "0".into() } else { small(Some(x)) };
    session.output.line(TABLE.row([
        row.what.into(),
        figure(row.error),
        figure(row.allowed),
        super::verdict(row.pass).into(),
    ]))
}
