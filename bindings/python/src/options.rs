//! What a call may ask for beside its tensors, as keywords.

use std::sync::Arc;

use headwise::{Causal, Isa, Precision};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

use crate::array::{Array, DType, gather};
use crate::error;
use crate::numbers::{floats, integers, sizes};
use crate::relative_bias::RelativeBias;
use crate::value_scales::ValueScales;

/// A pair of lists: of queries and of keys.
pub(crate) type Lists<T> = (Vec<T>, Vec<T>);

/// What is to be computed.
#[derive(Debug, Default)]
pub(crate) struct Options<'a> {
    pub(crate) scale: Option<f64>,
    pub(crate) causal: Option<Causal>,
    pub(crate) window: (Option<usize>, Option<usize>),
    pub(crate) prefix: Option<Vec<usize>>,
    pub(crate) key_lengths: Option<Vec<usize>>,
    pub(crate) key_starts: Option<Vec<usize>>,
    pub(crate) documents: Option<Lists<i32>>,
    pub(crate) document_offsets: Option<Lists<usize>>,
    pub(crate) ragged: Option<Lists<usize>>,
    pub(crate) query_offsets: Option<Vec<usize>>,
    pub(crate) tree: Option<Tree>,
    pub(crate) blocks: Option<Blocks>,
    pub(crate) mask: Option<Array<'a>>,
    pub(crate) packed_mask: Option<Array<'a>>,
    pub(crate) bias: Option<Array<'a>>,
    pub(crate) softcap: Option<f32>,
    pub(crate) alibi: Option<Slopes>,
    pub(crate) relative_bias: Option<Arc<headwise::RelativeBias>>,
    pub(crate) sinks: Option<Vec<f32>>,
    pub(crate) value_scales: Option<ValueScales>,
    pub(crate) precision: Precision,
    pub(crate) isa: Option<Isa>,
    pub(crate) threads: Option<usize>,
    pub(crate) unfused: bool,
}

/// A tree of drafts, by the parent of each node.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: usize,
    pub(crate) parents: Vec<Option<usize>>,
}

/// A block-sparse pattern.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub(crate) block_q: usize,
    pub(crate) block_kv: usize,
    pub(crate) visible: Vec<bool>,
    pub(crate) shape: [usize; 4],
}

/// ALiBi's slopes.
#[derive(Debug)]
pub(crate) enum Slopes {
    Standard,
    Given(Vec<f32>),
}

impl<'a> Options<'a> {
    /// Takes a keyword; `false` where it is not one of these.
    pub(crate) fn set(&mut self, name: &str, value: &'a Bound<'_, PyAny>) -> PyResult<bool> {
        match name {
            "scale" => self.scale = Some(number(name, value)?),
            "causal" => self.causal = causal(value)?.or(self.causal),
            "causal_offset" => self.causal = Some(Causal::Offset(number(name, value)?)),
            "window" => self.window = number(name, value)?,
            "prefix" => self.prefix = Some(one_or_more(name, value)?),
            "key_lengths" => self.key_lengths = Some(sizes(name, value)?),
            "key_starts" => self.key_starts = Some(sizes(name, value)?),
            "documents" => self.documents = Some(pair(name, value, ids)?),
            "document_offsets" => self.document_offsets = Some(pair(name, value, sizes)?),
            "ragged" => self.ragged = Some(pair(name, value, sizes)?),
            "query_offsets" => self.query_offsets = Some(sizes(name, value)?),
            "tree" => self.tree = Some(tree(value)?),
            "blocks" => self.blocks = Some(blocks(value)?),
            "mask" => self.mask = Some(of_dtype(name, value, DType::Bool)?),
            "packed_mask" => self.packed_mask = Some(of_dtype(name, value, DType::U8)?),
            "bias" => self.bias = Some(Array::of(name, value)?),
            "softcap" => self.softcap = Some(number(name, value)?),
            "alibi" => self.alibi = slopes(value)?,
            "relative_bias" => self.relative_bias = Some(table(value)?),
            "sinks" => self.sinks = Some(floats(name, value)?),
            "value_scales" => self.value_scales = Some(ValueScales::read(name, value)?),
            "precision" => self.precision = precision(value)?,
            "isa" => self.isa = Some(isa(value)?),
            "threads" => self.threads = Some(threads(value)?),
            "algorithm" => self.unfused = algorithm(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A value of the type that the field has.
fn number<'a, 'py, T: FromPyObject<'a, 'py>>(
    argument: &str,
    value: &'a Bound<'py, PyAny>,
) -> PyResult<T> {
    value.extract().map_err(|e: T::Error| {
        let cause: PyErr = e.into();
        let got = value.repr().map_or_else(|_| "a value".to_owned(), |repr| repr.to_string());
        let expected = match argument {
            "window" => "a pair (left, right) of numbers of keys or None",
            _ => "a number",
        };
        error::kind(argument, format_args!("{got} ({})", cause.value(value.py())), expected)
    })
}

fn causal(value: &Bound<'_, PyAny>) -> PyResult<Option<Causal>> {
    const EXPECTED: &str = "True, False, \"bottom_right\", \"top_left\" or \"at_length\"";
    if let Ok(causal) = value.cast::<PyBool>() {
        return Ok(causal.is_true().then_some(Causal::BottomRight));
    }
    let Ok(name) = value.cast::<PyString>() else {
        let got = value.repr()?;
        return Err(error::kind("causal", got, format_args!("{EXPECTED}; see causal_offset")));
    };
    match &*name.to_cow()? {
        "bottom_right" => Ok(Some(Causal::BottomRight)),
        "top_left" => Ok(Some(Causal::TopLeft)),
        "at_length" => Ok(Some(Causal::AtLength)),
        other => Err(error::value("causal", format_args!("{other:?}"), EXPECTED)),
    }
}

/// One number for all, or a list.
fn one_or_more(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    value.extract().map_or_else(|_| sizes(argument, value), |one: usize| Ok(vec![one]))
}

/// A tuple of two lists, or one list for queries and keys alike.
fn pair<T: Clone>(
    argument: &str,
    value: &Bound<'_, PyAny>,
    list: impl Fn(&str, &Bound<'_, PyAny>) -> PyResult<Vec<T>>,
) -> PyResult<Lists<T>> {
    match value.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() {
        Ok((query, key)) if !is_number(&query) => {
            Ok((list(argument, &query)?, list(argument, &key)?))
        }
        _ => list(argument, value).map(|both| (both.clone(), both)),
    }
}

/// Whether an object is a whole number. Arrays of one element, which can be made one, are lists.
fn is_number(value: &Bound<'_, PyAny>) -> bool {
    let axes = || value.getattr("ndim").and_then(|ndim| ndim.extract::<usize>());
    value.is_instance_of::<PyInt>()
        || (value.extract::<i64>().is_ok() && axes().is_ok_and(|n| n == 0))
}

fn ids(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<i32>> {
    let fits =
        |x| i32::try_from(x).map_err(|_| error::value(argument, x, "numbers that fit 32 bits"));
    integers(argument, value)?.into_iter().map(fits).collect()
}

/// The parents of a tree's nodes: a list, or an array with -1 for roots, of which the last axis has
/// the nodes.
fn tree(value: &Bound<'_, PyAny>) -> PyResult<Tree> {
    const EXPECTED: &str = "the parent of each node, None or -1 for a root";
    let parent = |parent: i64| match usize::try_from(parent) {
        Ok(parent) => Ok(Some(parent)),
        Err(_) if parent == -1 => Ok(None),
        Err(_) => Err(error::value("tree", parent, EXPECTED)),
    };
    if let Some(array) = Array::try_of("tree", value)? {
        let nodes = array.place.shape().last().copied().unwrap_or(0);
        let parents = integers("tree", value)?.into_iter().map(parent);
        return Ok(Tree { nodes, parents: parents.collect::<PyResult<_>>()? });
    }
    let given: PyResult<Vec<Option<i64>>> =
        value.try_iter().and_then(|items| items.map(|item| item?.extract()).collect());
    let given = given.map_err(|e| error::kind("tree", e.value(value.py()), EXPECTED))?;
    let parents = given.into_iter().map(|given| given.map_or(Ok(None), parent));
    Ok(Tree { nodes: parents.len(), parents: parents.collect::<PyResult<_>>()? })
}

fn blocks(value: &Bound<'_, PyAny>) -> PyResult<Blocks> {
    let parts = value.extract::<(usize, usize, Bound<'_, PyAny>)>();
    let (block_q, block_kv, visible) = parts.map_err(|e| {
        error::kind("blocks", e.value(value.py()), "a tuple (block_q, block_kv, visible)")
    })?;
    let array = of_dtype("blocks", &visible, DType::Bool)?;
    let place = array.place.with_ndim("blocks", 4)?;
    let [a, b, c, d] = *place.shape() else {
        return Err(error::value("blocks", format_args!("{:?}", place.shape()), "four axes"));
    };
    // SAFETY: the array lies there, and bytes are read whatever they hold.
    let visible = unsafe { gather(&place, |byte: u8| byte != 0) }?;
    Ok(Blocks { block_q, block_kv, visible, shape: [a, b, c, d] })
}

fn of_dtype<'a>(argument: &str, value: &'a Bound<'_, PyAny>, dtype: DType) -> PyResult<Array<'a>> {
    let array = Array::of(argument, value)?;
    if array.place.dtype == dtype {
        return Ok(array);
    }
    Err(error::kind(argument, format_args!("elements of {}", array.place.dtype), dtype))
}

fn slopes(value: &Bound<'_, PyAny>) -> PyResult<Option<Slopes>> {
    match value.cast::<PyBool>() {
        Ok(standard) => Ok(standard.is_true().then_some(Slopes::Standard)),
        Err(_) => Ok(Some(Slopes::Given(floats("alibi", value)?))),
    }
}

fn table(value: &Bound<'_, PyAny>) -> PyResult<Arc<headwise::RelativeBias>> {
    match value.cast::<RelativeBias>() {
        Ok(bias) => Ok(bias.get().shared()),
        Err(_) => Err(error::kind("relative_bias", value.repr()?, "a headwise.RelativeBias")),
    }
}

fn precision(value: &Bound<'_, PyAny>) -> PyResult<Precision> {
    const EXPECTED: &str = "\"full\" or \"fast\"";
    let Ok(name) = value.cast::<PyString>() else {
        return Err(error::kind("precision", value.repr()?, EXPECTED));
    };
    match &*name.to_cow()? {
        "full" => Ok(Precision::Full),
        "fast" => Ok(Precision::Fast),
        other => Err(error::value("precision", format_args!("{other:?}"), EXPECTED)),
    }
}

fn isa(value: &Bound<'_, PyAny>) -> PyResult<Isa> {
    let name: String = number("isa", value)?;
    name.parse().map_err(error::of)
}

fn threads(value: &Bound<'_, PyAny>) -> PyResult<usize> {
    let threads = number("threads", value)?;
    if threads == 0 { Err(error::value("threads", threads, "at least 1")) } else { Ok(threads) }
}

fn algorithm(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let name: String = number("algorithm", value)?;
    match &*name {
        "auto" => Ok(false),
        "unfused" => Ok(true),
        other => {
            Err(error::value("algorithm", format_args!("{other:?}"), "\"auto\" or \"unfused\""))
        }
    }
}
