//! New tokens of a cache, and what is done to them on the way in.

use headwise::NewTokens;
use headwise::kv_cache::Positions;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::kind::Cache;
use super::sequence::Named;
use crate::array::{DType, Operand, Stretch, Strided};
use crate::attend::check_precision;
use crate::attention::{is_bshd, pairs};
use crate::error;
use crate::numbers::sizes;
use crate::rope::{QkNorm, Rope};
use crate::value_scales::ValueScales;

/// What is done to new tokens.
#[derive(Debug, Default)]
pub(crate) struct Append {
    offsets: Option<Vec<usize>>,
    positions: Option<Vec<usize>>,
    rope: Option<Py<Rope>>,
    norm: Option<Py<QkNorm>>,
    value_scales: Option<ValueScales>,
    pub(crate) bshd: bool,
}

impl Append {
    pub(crate) fn read(keywords: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut this = Self::default();
        for (name, value) in pairs(keywords)? {
            match &*name {
                "offsets" => this.offsets = Some(sizes(&name, &value)?),
                "positions" => this.positions = Some(sizes(&name, &value)?),
                "rope" => this.rope = Some(named(&name, &value, "a headwise.Rope")?),
                "norm" => this.norm = Some(named(&name, &value, "a headwise.QkNorm")?),
                "value_scales" => this.value_scales = Some(ValueScales::read(&name, &value)?),
                "layout" => this.bshd = is_bshd(&named::<String>(&name, &value, "a string")?)?,
                _ => {
                    let expected = "offsets, positions, rope, norm, value_scales or layout";
                    return Err(error::kind(&name, "an unknown keyword", expected));
                }
            }
        }
        Ok(this)
    }
}

/// The value of a keyword, of the type that it is expected to have.
fn named<'a, 'py, T: FromPyObject<'a, 'py>>(
    argument: &str,
    value: &'a Bound<'py, PyAny>,
    expected: &str,
) -> PyResult<T> {
    value.extract().map_err(|_: T::Error| match value.repr() {
        Ok(repr) => error::kind(argument, repr, expected),
        Err(e) => e,
    })
}

/// # Safety
/// The arrays must be readable until it is done.
pub(super) unsafe fn append(
    cache: &mut dyn Cache,
    named: Named,
    (key, value): (Strided, Strided),
    options: &Append,
) -> PyResult<()> {
    // SAFETY: the caller's promise.
    let (key, value) = unsafe { (new_rows("key", key)?, new_rows("value", value)?) };
    let mut tokens = NewTokens::new(key.view()?, value.view()?);
    if let Some(offsets) = &options.offsets {
        tokens = tokens.ragged(offsets);
    }
    if let Some(positions) = &options.positions {
        tokens = tokens.positions(Positions::Each(positions));
    }
    if let Some(rope) = &options.rope {
        tokens = tokens.rope(&rope.get().0);
    }
    if let Some(norm) = &options.norm {
        tokens = tokens.norm(&norm.get().0);
    }
    if let Some(scales) = &options.value_scales {
        let [_, kv_heads, _, value_dim] = value.view()?.shape();
        tokens = tokens.value_scales(scales.of(kv_heads, value_dim)?);
    }
    cache.append(&named, &tokens).map_err(error::of)
}

/// Rows for a cache, in single precision, which rounds them to what it holds.
///
/// # Safety
/// The array must be readable as long as the operand is there.
unsafe fn new_rows(argument: &'static str, place: Strided) -> PyResult<Operand<f32>> {
    let place = place.with_ndim(argument, 4)?;
    check_precision(argument, place.dtype)?;
    let stretch = Stretch { batch: &[], heads: None };
    // SAFETY: the caller's promise, of elements of the dtype's type.
    unsafe {
        match place.dtype {
            DType::F32 => Operand::plain(place, stretch),
            DType::F16 => Operand::converted(place, stretch, headwise::f16::to_f32),
            DType::BF16 => Operand::converted(place, stretch, headwise::bf16::to_f32),
            other => Err(error::kind(
                argument,
                format_args!("elements of {other}"),
                "float32, float16 or bfloat16",
            )),
        }
    }
}
