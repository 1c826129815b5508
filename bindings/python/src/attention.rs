//! The functions that Python calls.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};

use crate::array::{Array, Memory, Strided, give_back};
use crate::call::{Call, Results, Source};
use crate::frame::Frame;
use crate::options::Options;
use crate::wants::Wants;
use crate::{error, torch};

/// What a call gives: the output, and what else was asked for.
#[pyclass(frozen, get_all, module = "headwise")]
#[derive(Debug)]
pub(crate) struct Attention {
    out: Py<PyAny>,
    lse: Option<Py<PyAny>>,
    weights: Option<Py<PyAny>>,
    scores: Option<Py<PyAny>>,
    column_sums: Option<Py<PyAny>>,
    top_k: Option<(Py<PyAny>, Py<PyAny>)>,
    isa: &'static str,
}

#[pymethods]
impl Attention {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shape = self.out.bind(py).getattr("shape")?.repr()?;
        Ok(format!("headwise.Attention(out=<{shape}>, isa='{}')", self.isa))
    }
}

impl Attention {
    /// Results as arrays like the query.
    pub(crate) fn new(
        query: &Bound<'_, PyAny>,
        results: Results,
        given: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let array = |memory: Option<Memory>| -> PyResult<Option<Py<PyAny>>> {
            memory.map(|memory| give_back(query, memory).map(Bound::unbind)).transpose()
        };
        let out = match (given, results.out) {
            (Some(given), _) => {
                torch::written(given)?;
                given.clone().unbind()
            }
            (None, Some(memory)) => give_back(query, memory)?.unbind(),
            (None, None) => unreachable!("a call without memory of its own was given some"),
        };
        let top_k = results.top_k.map(|(keys, weights)| {
            Ok::<_, PyErr>((give_back(query, keys)?.unbind(), give_back(query, weights)?.unbind()))
        });
        Ok(Self {
            out,
            lse: array(results.lse)?,
            weights: array(results.weights)?,
            scores: array(results.scores)?,
            column_sums: array(results.column_sums)?,
            top_k: top_k.transpose()?,
            isa: results.isa,
        })
    }
}

/// `softmax(query key^T * scale + mask) value` with PyTorch's signature and meaning.
#[pyfunction]
#[pyo3(signature = (
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=false, scale=None,
    enable_gqa=false, *, out=None
))]
#[allow(clippy::too_many_arguments)] // PyTorch's.
pub(crate) fn scaled_dot_product_attention<'py>(
    py: Python<'py>,
    query: &Bound<'py, PyAny>,
    key: &Bound<'py, PyAny>,
    value: &Bound<'py, PyAny>,
    attn_mask: Option<&Bound<'py, PyAny>>,
    dropout_p: f64,
    is_causal: bool,
    scale: Option<f64>,
    enable_gqa: bool,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    if dropout_p != 0.0 {
        return Err(error::value("dropout_p", dropout_p, "0.0: headwise computes no dropout"));
    }
    if is_causal && attn_mask.is_some() {
        let expected = "one of them, as PyTorch has it; headwise.attention takes both";
        return Err(error::value("attn_mask", "a mask beside is_causal=True", expected));
    }
    let mut options = Options { scale, ..Options::default() };
    options.causal = is_causal.then_some(headwise::Causal::TopLeft);
    if let Some(mask) = attn_mask {
        let mask = Array::of("attn_mask", mask)?;
        match mask.place.dtype {
            crate::array::DType::Bool => options.mask = Some(mask),
            _ => options.bias = Some(mask),
        }
    }
    let inputs = Inputs::new([query, key, value], out, false)?;
    let results = inputs.run(py, &options, &Wants::default(), enable_gqa);
    let renamed = |e| error::renamed(e, py, ["mask", "bias"], "attn_mask");
    let mut results = results.map_err(renamed)?;
    match (out, results.out.take()) {
        (Some(out), _) => {
            torch::written(out)?;
            Ok(out.clone())
        }
        (None, Some(memory)) => give_back(query, memory),
        (None, None) => unreachable!("a call without memory of its own was given some"),
    }
}

/// Attention with all that the library can do.
///
/// Arrays are `[batch, heads, seq, dim]`, or with fewer or more axes in front; with `layout="bshd"`
/// `[batch, seq, heads, dim]`. Query heads may be a multiple of the heads of keys and values.
///
/// Masks, which hold all at once:
///   causal: True or "bottom_right", "top_left", "at_length" (of key_lengths)
///   causal_offset: query i sees key j if j <= i + offset
///   window: (left, right), keys before and after a query's own; None is no limit
///   prefix: keys that all see in spite of a causal mask, a number or one for each sequence
///   key_lengths, key_starts: padding on the right and on the left
///   documents: numbers of the document of each query and key; document_offsets: where they begin
///   ragged: where sequences begin that lie one behind the other (cu_seqlens), a list or a pair
///   tree: the parent of each drafted token, None or -1 for a root
///   blocks: (block_q, block_kv, visible)
///   mask: truth values, true attends; packed_mask: the same in bits, the lowest first
/// Terms of scores:
///   scale (1 / sqrt(head_dim)), softcap, bias, relative_bias, sinks
///   alibi: True for the paper's slopes, or a slope for each head
/// Values:
///   value_scales: factors `[kv_heads, value_dim]` by which they are stored divided
/// Results beside `out`:
///   return_lse, return_weights
///   weights_of: (heads, queries), lists or None for all
///   scores: "scaled", "capped" or "final"; scores_of: (heads, queries)
///   column_sums: True or "q_heads", "kv_heads"
///   top_k: as many keys of the largest weights, -1 where a row sees fewer
/// How it is run:
///   out: where the output goes; isa; threads; algorithm: "auto" or "unfused"
///   precision: "full", or "fast": scores of queries and keys rounded to eight bits, where that pays
#[pyfunction]
#[pyo3(signature = (query, key, value, *, out=None, layout="bhsd", **options))]
pub(crate) fn attention(
    py: Python<'_>,
    query: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    out: Option<&Bound<'_, PyAny>>,
    layout: &str,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Attention> {
    let keywords = pairs(options)?;
    let mut options = Options::default();
    let wants = read(&keywords, &mut options)?;
    let inputs = Inputs::new([query, key, value], out, is_bshd(layout)?)?;
    let results = inputs.run(py, &options, &wants, true)?;
    Attention::new(query, results, out)
}

/// Whether a layout has positions before heads.
pub(crate) fn is_bshd(layout: &str) -> PyResult<bool> {
    match layout {
        "bhsd" => Ok(false),
        "bshd" => Ok(true),
        other => Err(error::value("layout", format_args!("{other:?}"), "\"bhsd\" or \"bshd\"")),
    }
}

/// Keywords and their values, but for those that are None.
pub(crate) fn pairs<'py>(
    keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
    let Some(keywords) = keywords else { return Ok(Vec::new()) };
    let given = keywords.iter().filter(|(_, value)| !value.is_none());
    given.map(|(name, value)| Ok((name.cast::<PyString>()?.to_string(), value))).collect()
}

/// Reads keywords to options and wants.
pub(crate) fn read<'a>(
    keywords: &'a [(String, Bound<'_, PyAny>)],
    options: &mut Options<'a>,
) -> PyResult<Wants> {
    let mut wants = Wants::default();
    for (name, value) in keywords {
        if !options.set(name, value)? && !wants.set(name, value)? {
            let expected = "a keyword that help(headwise.attention) lists";
            return Err(error::kind(name, "an unknown keyword", expected));
        }
    }
    let given = |wanted| keywords.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let places = |value: &Bound<'_, PyAny>| !value.is(PyBool::new(value.py(), false));
    if given("causal_offset").is_some() && given("causal").is_some_and(places) {
        let got = "an offset beside causal, which says one too";
        return Err(error::value("causal_offset", got, "one of them"));
    }
    wants.check()?;
    Ok(wants)
}

/// The arrays of a call.
#[derive(Debug)]
struct Inputs<'a> {
    query: Array<'a>,
    key: Array<'a>,
    value: Array<'a>,
    out: Option<Array<'a>>,
    bshd: bool,
}

impl<'a> Inputs<'a> {
    fn new(
        [query, key, value]: [&'a Bound<'_, PyAny>; 3],
        out: Option<&'a Bound<'_, PyAny>>,
        bshd: bool,
    ) -> PyResult<Self> {
        let query = Array::of("query", query)?;
        let dtype = query.place.dtype;
        let same = |name: &str, object: &'a Bound<'_, PyAny>| {
            let array = Array::of(name, object)?;
            if array.place.dtype == dtype {
                return Ok(array);
            }
            let got = format_args!("elements of {}", array.place.dtype).to_string();
            Err(error::kind(name, got, format_args!("{dtype}, as the query")))
        };
        let out = out.map(|out| Array::writable("out", out)).transpose()?;
        Ok(Self { query, key: same("key", key)?, value: same("value", value)?, out, bshd })
    }

    fn run(
        &self,
        py: Python<'_>,
        options: &Options<'_>,
        wants: &Wants,
        grouped: bool,
    ) -> PyResult<Results> {
        let place = |array: &Array<'_>| {
            if self.bshd { array.place.heads_swapped() } else { array.place }
        };
        let mut inputs = [&self.query, &self.key, &self.value].map(place);
        let frame = Frame::new(&mut inputs, grouped)?;
        let [query, key, value] = &inputs;
        let (query, source) = (*query, Source::Dense(key, value));
        let out: Option<Strided> = self.out.as_ref().map(|out| out.place);
        let call = Call { query, source, frame, options, wants, out, bshd: self.bshd };
        // SAFETY: the arrays are there as long as `self` and `options`. The output overlaps no input,
        // and the caller sees to it that no other thread writes them, as with every library that
        // lets other threads run.
        py.detach(|| unsafe { call.run() })
    }
}
