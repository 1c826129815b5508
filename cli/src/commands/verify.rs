//! `headwise verify`: a file's q, k, v computed and compared with its answers.

use headwise::attention;
use serde::Serialize;

use super::{Session, Verdict};
use crate::archive::{Archive, read_file};
use crate::args::VerifyArgs;
use crate::compare::{Distance, distance};
use crate::extents::Extents;
use crate::{Error, Result, table};

#[derive(Serialize)]
struct Report {
    file: String,
    #[serde(flatten)]
    extents: Extents,
    mask: String,
    scale: String,
    isa: &'static str,
    threads: usize,
    tolerance: f64,
    out: Judged,
    lse: Option<Judged>,
    weights: Option<Judged>,
    pass: bool,
}

/// A tensor's distance from its answer, and whether it is small enough.
#[derive(Serialize)]
struct Judged {
    #[serde(flatten)]
    distance: Distance,
    pass: bool,
}

/// Checks the file.
pub(super) fn verify(session: &mut Session, args: &VerifyArgs) -> Result<Verdict> {
    let bytes = read_file(&args.file)?;
    let name = args.file.display().to_string();
    let file = Archive::parse(&name, &args.prefix, &bytes)?;
    let (q, k, v) = (file.tensor("q")?, file.tensor("k")?, file.tensor("v")?);
    let extents = Extents::new(q.shape(), v.shape());
    let rows = [extents.batch, extents.q_heads, extents.seq_q];
    let with = |inner| [&rows[..], &[inner]].concat();
    let out = file.shaped("out", &[&with(extents.value_dim)])?;
    let optional =
        |tensor, shapes: &[&[usize]]| file.has(tensor).then(|| file.shaped(tensor, shapes));
    let lse = optional("lse", &[&rows, &with(1)]).transpose()?;
    let weights = optional("weights", &[&with(extents.seq_kv)]).transpose()?;

    let spec = args.spec.spec(Some(&file))?;
    let mut options = spec.options()?.isa(session.isa);
    if lse.is_some() {
        options = options.return_lse();
    }
    if weights.is_some() {
        options = options.return_weights();
    }
    let result =
        attention(q.view(), k.view(), v.view(), &options).map_err(Error::in_file(&name))?;

    let judge = |distance: Distance, error: f64| Judged { distance, pass: error <= args.tolerance };
    let absolute = |got: Option<&[f32]>, answer: &[f32]| {
        let distance = distance(got.unwrap_or_default(), answer, extents.seq_kv);
        judge(distance, distance.max_absolute)
    };
    let lse = lse.map(|answer| absolute(result.lse.as_ref().map(|lse| lse.data()), &answer));
    let weights = weights
        .map(|answer| absolute(result.weights.as_ref().map(|weights| weights.data()), &answer));
    let distance = distance(result.out.data(), &out, extents.value_dim);
    let out = judge(distance, distance.max_relative);
    let pass = [Some(&out), lse.as_ref(), weights.as_ref()].into_iter().flatten().all(|j| j.pass);
    let report = Report {
        file: name,
        extents,
        mask: spec.mask_name(),
        scale: spec.scale_text(extents.head_dim),
        isa: result.isa.name(),
        threads: session.threads(),
        tolerance: args.tolerance,
        out,
        lse,
        weights,
        pass,
    };
    session.output.object(&report)?;
    for line in lines(&report) {
        session.output.line(line)?;
    }
    Ok(Verdict::from(pass))
}

fn lines(report: &Report) -> Vec<String> {
    let Report { file, extents, mask, scale, isa, threads, tolerance, .. } = report;
    let mut lines = vec![format!(
        "{file}: {extents}, mask {mask}, scale {scale}, {isa}, {}",
        table::threads(*threads)
    )];
    let verdict = |pass| if pass { "pass" } else { "FAIL" };
    let Judged { distance: d, pass } = &report.out;
    lines.push(format!(
        "out      max {:.1e}, mean {:.1e} of the row's largest; max {:.1e}, mean {:.1e} absolute: {}",
        d.max_relative,
        d.mean_relative,
        d.max_absolute,
        d.mean_absolute,
        verdict(*pass)
    ));
    for (name, judged) in [("lse", &report.lse), ("weights", &report.weights)] {
        if let Some(Judged { distance: d, pass }) = judged {
            let (max, mean) = (d.max_absolute, d.mean_absolute);
            let verdict = verdict(*pass);
            lines.push(format!("{name:<8} max {max:.1e}, mean {mean:.1e} absolute: {verdict}"));
        }
    }
    lines.push(format!("{}: tolerance {tolerance:e}", verdict(report.pass)));
    lines
}
