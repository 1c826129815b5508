//! States of attention over parts of the keys, merged.

use headwise::{Settings, State, StateMut, merge_states_into};
use pyo3::prelude::*;

use crate::array::{Array, DType, Memory, Operand, Sink, Stretch, Strided, give_back};
use crate::attention::is_bshd;
use crate::error;
use crate::threads::{self, Pool};

/// The state over all keys of states over parts of them: pairs of an output `[batch, heads, seq, dim]`
/// and its log-sum-exp `[batch, heads, seq]`, of `float32`, as `attention` with `return_lse` gives
/// them. With `layout="bshd"` outputs are `[batch, seq, heads, dim]`, the log-sum-exps as before.
#[pyfunction]
#[pyo3(signature = (states, *, layout="bhsd"))]
pub(crate) fn merge_states<'py>(
    py: Python<'py>,
    states: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    layout: &str,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let Some((like, _)) = states.first() else {
        return Err(error::value("states", "none", "at least one"));
    };
    let bshd = is_bshd(layout)?;
    let mut arrays = Vec::with_capacity(states.len());
    for (out, lse) in &states {
        arrays.push((array("out", out, 4)?, array("lse", lse, 3)?));
    }
    let place = |out: &Array<'_>| if bshd { out.place.heads_swapped() } else { out.place };
    let places: Vec<_> = arrays.iter().map(|(out, lse)| (place(out), lse.place)).collect();
    // SAFETY: the arrays are there until the call returns, and the caller sees to it that nobody
    // writes them meanwhile.
    let (out, lse) = py.detach(|| unsafe { merged(&places, bshd) })?;
    let out = if bshd { out.heads_swapped() } else { out };
    Ok((give_back(like, out)?, give_back(like, lse)?))
}

/// An array of floats with so many axes.
fn array<'a>(argument: &str, object: &'a Bound<'_, PyAny>, ndim: usize) -> PyResult<Array<'a>> {
    let array = Array::of(argument, object)?;
    let place = &array.place;
    if place.dtype != DType::F32 {
        return Err(error::kind(argument, format!("elements of {}", place.dtype), "float32"));
    }
    if place.ndim() != ndim {
        let got = format!("{:?}", place.shape());
        return Err(error::value(argument, got, format!("{ndim} axes")));
    }
    Ok(array)
}

/// The state of states `[batch, heads, positions, elements]`, in whose output with `bshd` positions lie
/// before heads.
///
/// # Safety
/// The arrays must be readable.
unsafe fn merged(places: &[(Strided, Strided)], bshd: bool) -> PyResult<(Memory, Memory)> {
    let stretch = Stretch { batch: &[], heads: None };
    let mut operands = Vec::with_capacity(places.len());
    for (out, lse) in places {
        // SAFETY: the caller's promise, of floats.
        let pair = unsafe {
            (Operand::plain(*out, stretch)?, Operand::plain(lse.with_last_axis("lse")?, stretch)?)
        };
        operands.push(pair);
    }
    let mut states = Vec::with_capacity(places.len());
    for (out, lse) in &operands {
        states.push(State { out: out.view()?, lse: lse.view()? });
    }
    let memory = |place: &Strided, swapped| Memory::new(DType::F32, place.shape(), swapped);
    let (out, lse) = (memory(&places[0].0, bshd)?, memory(&places[0].1, false)?);
    // SAFETY: the memory is new, and dropped after the sinks.
    let (mut out_sink, mut lse_sink) = unsafe {
        (Sink::<f32>::new(out.place())?, Sink::<f32>::new(lse.place().with_last_axis("lse")?)?)
    };
    let pool = Pool(threads::pool()?);
    let settings = Settings::default().with_executor(&pool);
    let into = StateMut { out: out_sink.view()?, lse: lse_sink.view()? };
    merge_states_into(&states, into, &settings).map_err(error::of)?;
    Ok((out, lse))
}
