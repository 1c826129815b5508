//! `headwise explain`: how a shape of the table would be computed, and why.

use headwise::{
    AttentionOptions, Choice, Executor, Explanation, Int8, Isa, KvStorage, Precision,
    Result as Done, Storage, View, bf16, f16,
};
use serde::Serialize;

use super::{Session, Verdict};
use crate::args::ExplainArgs;
use crate::shapes::{self, AttentionShape, Dtype, Shape};
use crate::work::masked;
use crate::{Error, Result};

/// A choice, as a JSON object.
#[derive(Serialize)]
struct Line<'a> {
    shape: &'static str,
    dtype: &'static str,
    choice: &'a str,
    chosen: &'a str,
    because: &'a str,
}

/// Says how the shape that the arguments name would be computed.
pub(super) fn explain(session: &mut Session, args: &ExplainArgs) -> Result<Verdict> {
    let shapes = shapes::select(None, Some(&args.shape))?;
    let [named @ Shape::Attention(_, shape)] = &shapes[..] else {
        let got = format!("{}, which is no shape of attention alone", args.shape);
        return Err(Error::input("--shape", got, "such as llama-2k or decode-4k"));
    };
    if shape.cache.is_some() {
        let got = format!("{}, whose keys lie in a cache", args.shape);
        return Err(Error::input("--shape", got, "a shape of dense tensors"));
    }
    let precision = if args.fast { Precision::Fast } else { Precision::Full };
    let (dtype, by) = (args.dtype.name(), (session.isa, named.executor(), precision));
    let explanation = match args.dtype {
        Dtype::F32 => of::<f32, f32>(shape, by)?,
        Dtype::F16 => of::<f16, f16>(shape, by)?,
        Dtype::Bf16 => of::<bf16, bf16>(shape, by)?,
        Dtype::Int8 => of::<f32, Int8>(shape, by)?,
    };
    for Choice { of, chosen, because, .. } in &explanation.choices {
        let line = Line { shape: shape.name, dtype, choice: of, chosen, because };
        session.output.object(&line)?;
    }
    session.output.line(format!("{} in {dtype}", shape.name))?;
    for line in explanation.to_string().lines() {
        session.output.line(line)?;
    }
    Ok(Verdict::Pass)
}

/// The explanation of a shape whose queries are stored as `Q` and its keys and values as `K`: of a row
/// each, since nobody reads them.
fn of<Q: Storage<Compute = f32>, K: KvStorage<Compute = f32>>(
    s: &AttentionShape,
    (isa, executor, precision): (Isa, &dyn Executor, Precision),
) -> Done<Explanation> {
    let (query, rows) = (vec![Q::default(); s.head_dim], vec![K::default(); s.head_dim + K::EXTRA]);
    let shape = |heads, seq, dim| [s.batch, heads, seq, dim];
    let query = View::strided(&query, 0, shape(s.q_heads, s.seq_q, query.len()), [0, 0, 0, 1])?;
    let rows = View::strided(&rows, 0, shape(s.kv_heads, s.seq_kv, rows.len()), [0, 0, 0, 1])?;
    let documents = s.documents();
    let options = AttentionOptions::new().isa(isa).executor(executor).precision(precision);
    let options = if s.causal { options.causal() } else { options };
    let options = masked(options, s.window_left, documents.as_deref());
    options.explain(Q::input(query), K::input(rows), K::input(rows))
}
