//! The demo's forms of attention, with real weights.

use serde::Serialize;

use super::super::Session;
use crate::Result;
use crate::extents::Extents;
use crate::forms::{ALL, Form, Inputs, Judged};
use crate::table::{Column, Table, small};

const TABLE: Table<'_> = Table(&[
    Column::Text("form", 31),
    Column::Text("B, heads, queries x keys, dim", 29),
    Column::Text("", 6),
    Column::Text("isa", 8),
    Column::Number("threads", 7),
    Column::Number("out abs", 7),
    Column::Number("", 7),
    Column::Number("weights", 7),
    Column::Number("allowed", 7),
    Column::Text("", 4),
]);

/// A row of the table. Errors are the largest absolute ones.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    form: &'static str,
    what: &'static str,
    #[serde(flatten)]
    extents: Extents,
    isa: &'static str,
    threads: usize,
    out_error: f64,
    weights_error: f64,
    allowed: f64,
    pass: bool,
}

/// Checks every form; says of each whether it passes.
pub(super) fn check(session: &mut Session) -> Result<Vec<bool>> {
    session.output.line(format!("\n{}", TABLE.header()))?;
    let inputs = Inputs::embedded()?;
    ALL.iter().map(|form| show(session, form, &form.check(&inputs, session.isa)?)).collect()
}

fn show(session: &mut Session, form: &Form, judged: &Judged) -> Result<bool> {
    let row = Row {
        kind: "check",
        form: form.name,
        what: form.what,
        extents: judged.extents,
        isa: judged.isa.name(),
        threads: session.threads(),
        out_error: judged.out_error,
        weights_error: judged.weights_error,
        allowed: form.allowed,
        pass: judged.pass,
    };
    session.output.object(&row)?;
    session.output.line(TABLE.row([
        row.what.into(),
        row.extents.to_string(),
        String::new(),
        row.isa.into(),
        row.threads.to_string(),
        small(Some(row.out_error)),
        String::new(),
        small(Some(row.weights_error)),
        small(Some(row.allowed)),
        super::verdict(row.pass).into(),
    ]))?;
    Ok(row.pass)
}
