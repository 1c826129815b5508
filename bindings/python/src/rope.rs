//! What is done to keys on their way into a cache: a norm and a rotation.

use headwise::kv_cache::{
    Frequencies, Llama3, Positions, QkTransform, RopeLayout, RopeScaling, Yarn,
};
use headwise::{Storage, ViewMut};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{Array, DType, Memory, Operand, Stored, Stretch, Strided, filled, give_back};
use crate::attention::is_bshd;
use crate::error;
use crate::numbers::{floats, sizes};

/// A rotary embedding of positions up to a last one. `scaling` is a dictionary of a model's
/// configuration, as Hugging Face's: `{"rope_type": "llama3", "factor": 8.0, ...}`. `"dynamic"` stretches to
/// `seq_len` tokens, a number beside the others, or to all the positions there are.
#[pyclass(frozen, module = "headwise")]
#[derive(Debug)]
pub(crate) struct Rope(pub(crate) headwise::Rope);

#[pymethods]
impl Rope {
    #[new]
    #[pyo3(signature = (rotary_dim, positions, *, base=10_000.0, layout="half_split", scaling=None))]
    fn new(
        rotary_dim: usize,
        positions: usize,
        base: f64,
        layout: &str,
        scaling: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let layout = match layout {
            "half_split" => RopeLayout::HalfSplit,
            "interleaved" => RopeLayout::Interleaved,
            other => {
                let expected = "\"half_split\" or \"interleaved\"";
                return Err(error::value("layout", format_args!("{other:?}"), expected));
            }
        };
        let scaling = scaling.map_or(Ok(RopeScaling::Unscaled), |from| read(from, positions))?;
        let frequencies = Frequencies::new(rotary_dim, base, scaling).map_err(error::of)?;
        headwise::Rope::new(layout, &frequencies, positions).map(Self).map_err(error::of)
    }

    /// Queries, or keys, `[batch, heads, seq, dim]`, or with `layout="bshd"` `[batch, seq, heads, dim]`,
    /// rotated: an array of the same library. The positions are `start` and those behind it in every batch entry, or from one start for each
    /// (`starts`), or one for each token, batch entry by batch entry (`positions`).
    #[pyo3(signature = (rows, *, start=0, starts=None, positions=None, layout="bhsd"))]
    fn rotate<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        start: usize,
        starts: Option<&Bound<'py, PyAny>>,
        positions: Option<&Bound<'py, PyAny>>,
        layout: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let bshd = is_bshd(layout)?;
        let array = Array::of("rows", rows)?;
        let starts = starts.map(|starts| sizes("starts", starts)).transpose()?;
        let each = positions.map(|positions| sizes("positions", positions)).transpose()?;
        let positions = match (&starts, &each) {
            (None, None) => Positions::From(start),
            (Some(starts), None) => Positions::Starts(starts),
            (None, Some(each)) => Positions::Each(each),
            (Some(_), Some(_)) => {
                return Err(error::value("positions", "starts and positions", "one of them"));
            }
        };
        if array.place.ndim() != 4 {
            let got = format!("{:?}", array.place.shape());
            return Err(error::value("rows", got, "four axes: batch, heads, positions, elements"));
        }
        let place = if bshd { array.place.heads_swapped() } else { array.place };
        // SAFETY: the array is there until the call returns, and the caller sees to it that nobody
        // writes it meanwhile.
        let memory = py.detach(|| unsafe {
            match place.dtype {
                DType::F32 => rotated::<f32>(&self.0, (place, bshd), positions),
                DType::F16 => rotated::<headwise::f16>(&self.0, (place, bshd), positions),
                DType::BF16 => rotated::<headwise::bf16>(&self.0, (place, bshd), positions),
                other => {
                    let got = format!("elements of {other}");
                    Err(error::kind("rows", got, "float32, float16 or bfloat16"))
                }
            }
        })?;
        give_back(rows, if bshd { memory.heads_swapped() } else { memory })
    }

    /// The dimensions that are rotated, the first of a row.
    #[getter]
    fn rotary_dim(&self) -> usize {
        self.0.rotary_dim()
    }

    /// The positions there are.
    #[getter]
    fn positions(&self) -> usize {
        self.0.positions()
    }

    fn __repr__(&self) -> String {
        let (dim, positions) = (self.0.rotary_dim(), self.0.positions());
        format!("headwise.Rope(rotary_dim={dim}, positions={positions})")
    }
}

/// Rotates rows `[batch, heads, positions, elements]` to new memory, in which with `bshd` positions lie
/// before heads.
///
/// # Safety
/// The rows must be readable, as elements of `S`.
unsafe fn rotated<S: Stored + Storage<Compute = f32>>(
    rope: &headwise::Rope,
    (place, bshd): (Strided, bool),
    positions: Positions<'_>,
) -> PyResult<Memory> {
    let memory = Memory::new(S::DTYPE, place.shape(), bshd)?;
    // SAFETY: the caller's promise.
    let rows = unsafe { Operand::<S>::plain(place, Stretch { batch: &[], heads: None }) }?;
    let mut wide = filled(0.0, place.count())?;
    let view = rows.view()?;
    let out = ViewMut::bhsd(&mut wide, view.shape()).map_err(error::of)?;
    QkTransform::new().rope(rope).apply_into(S::input(view), positions, out).map_err(error::of)?;
    let mut numbers = wide.chunks_exact(view.shape()[3].max(1));
    memory.place().for_each_row(|row| {
        for (nth, &x) in numbers.next().unwrap_or(&[]).iter().enumerate() {
            // SAFETY: the memory is new and aligned, and has as many rows, each contiguous.
            unsafe { row.cast::<S>().add(nth).write(S::round(x)) };
        }
    });
    Ok(memory)
}

/// The scaling that a configuration names, of a table of so many positions.
fn read(from: &Bound<'_, PyDict>, positions: usize) -> PyResult<RopeScaling> {
    let optional = |name: &str| -> PyResult<Option<f64>> {
        from.get_item(name)?.filter(|value| !value.is_none()).map(|v| v.extract()).transpose()
    };
    let number = |name: &str| {
        optional(name)?.ok_or_else(|| error::value("scaling", format_args!("no {name}"), "one"))
    };
    let original = || number("original_max_position_embeddings").map(|n| n as usize);
    let name = match from.get_item("rope_type")? {
        Some(name) => Some(name),
        None => from.get_item("type")?,
    };
    let name: String = match name {
        Some(name) => name.extract()?,
        None => return Err(error::value("scaling", "no rope_type", "one")),
    };
    match &*name {
        "default" => Ok(RopeScaling::Unscaled),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "ntk" => Ok(RopeScaling::NtkAware { factor: number("factor")? }),
        "dynamic" => Ok(RopeScaling::DynamicNtk {
            factor: number("factor")?,
            original_positions: original()?,
            seq_len: optional("seq_len")?.map_or(positions, |n| n as usize),
        }),
        "yarn" => {
            let mut yarn = Yarn::new(number("factor")?, original()?);
            yarn.beta_fast = optional("beta_fast")?.unwrap_or(yarn.beta_fast);
            yarn.beta_slow = optional("beta_slow")?.unwrap_or(yarn.beta_slow);
            if let Some(truncate) = from.get_item("truncate")? {
                yarn.truncate = truncate.extract()?;
            }
            let magnitude = |mscale| Yarn::magnitude(yarn.factor, mscale);
            // As in DeepSeek's configurations.
            let of_mscales = match (optional("mscale")?, optional("mscale_all_dim")?) {
                (Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                    Some(magnitude(one) / magnitude(all))
                }
                _ => None,
            };
            yarn.attention_factor = optional("attention_factor")?.or(of_mscales);
            Ok(RopeScaling::Yarn(yarn))
        }
        "llama3" => Ok(RopeScaling::Llama3(Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_positions: original()?,
        })),
        other => {
            let expected = "\"default\", \"linear\", \"ntk\", \"dynamic\", \"yarn\" or \"llama3\"";
            Err(error::value("scaling", format_args!("rope_type {other:?}"), expected))
        }
    }
}

/// The RMS norm of keys over `head_dim`.
#[pyclass(frozen, module = "headwise")]
#[derive(Debug)]
pub(crate) struct QkNorm(pub(crate) headwise::QkNorm);

#[pymethods]
impl QkNorm {
    #[new]
    #[pyo3(signature = (weight, eps=1e-6))]
    fn new(weight: &Bound<'_, PyAny>, eps: f32) -> PyResult<Self> {
        let weight = floats("weight", weight)?;
        headwise::QkNorm::new(&weight, eps).map(Self).map_err(error::of)
    }

    fn __repr__(&self) -> String {
        format!("headwise.QkNorm(head_dim={})", self.0.head_dim())
    }
}
