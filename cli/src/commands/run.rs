//! `headwise run`: attention from files to a file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use headwise::{Attention, Tensor, attention};
use serde::Serialize;

use super::{Session, Verdict};
use crate::archive::{Archive, Part, read_file, serialize};
use crate::args::RunArgs;
use crate::extents::Extents;
use crate::spec::Spec;
use crate::{Error, Result, npy, table};

#[derive(Serialize)]
struct Report {
    out: String,
    #[serde(flatten)]
    extents: Extents,
    mask: String,
    scale: String,
    isa: &'static str,
    threads: usize,
    ms: f64,
}

/// The kinds of file that a result can go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Npy,
}

struct Inputs {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Spec,
}

/// Computes and writes.
pub(super) fn run(session: &mut Session, args: &RunArgs) -> Result<Verdict> {
    let format = format(args)?;
    let inputs = read_inputs(args)?;
    let Inputs { query, key, value, spec } = &inputs;
    let mut options = spec.options()?.isa(session.isa);
    if args.lse {
        options = options.return_lse();
    }
    if args.weights {
        options = options.return_weights();
    }
    let start = Instant::now();
    let result = attention(query.view(), key.view(), value.view(), &options)?;
    let seconds = start.elapsed().as_secs_f64();

    let bytes = match format {
        Format::Npy => npy::serialize(&result.out),
        Format::Safetensors => to_safetensors(&inputs, &result, args.keep_inputs)?,
    };
    write_whole(&args.out, &bytes)?;

    let extents = Extents::new(query.shape(), value.shape());
    let report = Report {
        out: args.out.display().to_string(),
        extents,
        mask: spec.mask_name(),
        scale: spec.scale_text(extents.head_dim),
        isa: result.isa.name(),
        threads: session.threads(),
        ms: seconds * 1e3,
    };
    session.output.object(&report)?;
    let Report { out, mask, scale, isa, threads, ms, .. } = report;
    session.output.line(format!(
        "{out}: {extents}, mask {mask}, scale {scale}, {isa}, {}, {ms:.3} ms",
        table::threads(threads)
    ))?;
    Ok(Verdict::Pass)
}

fn format(args: &RunArgs) -> Result<Format> {
    let refuse = |got: String, expected: &str| Err(Error::input("--out", got, expected));
    match args.out.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => Ok(Format::Safetensors),
        Some("npy") if args.lse || args.weights || args.keep_inputs => refuse(
            "a .npy file holds one tensor".into(),
            "a .safetensors file for --lse, --weights and --keep-inputs",
        ),
        Some("npy") => Ok(Format::Npy),
        _ => refuse(args.out.display().to_string(), "a name that ends in .safetensors or .npy"),
    }
}

fn read_inputs(args: &RunArgs) -> Result<Inputs> {
    if let Some(path) = &args.inputs.input {
        let bytes = read_file(path)?;
        let file = Archive::parse(&path.display().to_string(), &args.prefix, &bytes)?;
        return Ok(Inputs {
            query: file.tensor("q")?,
            key: file.tensor("k")?,
            value: file.tensor("v")?,
            spec: args.spec.spec(Some(&file))?,
        });
    }
    let read = |flag: &str, path: &Option<PathBuf>| match path {
        Some(path) => npy::read(path),
        None => Err(Error::input(flag, "missing", "a .npy file, or --input FILE.safetensors")),
    };
    Ok(Inputs {
        query: read("--q", &args.inputs.q)?,
        key: read("--k", &args.inputs.k)?,
        value: read("--v", &args.inputs.v)?,
        spec: args.spec.spec(None)?,
    })
}

fn to_safetensors(inputs: &Inputs, result: &Attention, keep_inputs: bool) -> Result<Vec<u8>> {
    let part = |name, tensor| dense(name, tensor, 4);
    let mut parts = vec![part("out", &result.out)];
    parts.extend(result.lse.as_ref().map(|lse| dense("lse", lse, 3)));
    parts.extend(result.weights.as_ref().map(|weights| part("weights", weights)));
    if keep_inputs {
        let Inputs { query, key, value, .. } = inputs;
        parts.extend([("q", query), ("k", key), ("v", value)].map(|(n, tensor)| part(n, tensor)));
    }
    let metadata = HashMap::from([
        ("mask".to_owned(), inputs.spec.mask_name()),
        ("scale".to_owned(), inputs.spec.scale_text(inputs.query.shape()[3])),
    ]);
    serialize(&parts, metadata)
}

/// A tensor by its first `axes` axes; the others have extent 1.
fn dense<'a>(name: &'static str, tensor: &'a Tensor, axes: usize) -> Part<'a> {
    Part { name, shape: tensor.shape()[..axes].to_vec(), data: tensor.data() }
}

/// Writes beside the target and renames, so that there is never a part of a file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = || Error::file(path, "write");
    // Opened here, it has the permissions of any new file; tempfile's own are its owner's alone.
    let create = |path: &Path| File::options().write(true).create_new(true).open(path);
    let mut temporary = tempfile::Builder::new().make_in(directory, create).map_err(file())?;
    temporary.write_all(bytes).map_err(file())?;
    temporary.persist(path).map_err(|error| file()(error.error))?;
    Ok(())
}
