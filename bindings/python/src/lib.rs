//! The Python package `headwise`: attention on arrays of PyTorch, NumPy and others, where they lie.

mod array;
mod attend;
mod attention;
mod bench;
mod call;
mod dlpack;
mod error;
mod extra;
mod frame;
mod held;
mod imported;
mod kv_cache;
mod numbers;
mod numpy;
mod options;
mod relative_bias;
mod rope;
mod state;
mod threads;
mod torch;
mod value_scales;
mod wants;

use pyo3::prelude::*;

/// The instruction sets that this machine has, fastest first.
#[pyfunction]
fn available_isas() -> Vec<&'static str> {
    headwise::Isa::available().map(headwise::Isa::name).collect()
}

/// Whether calls read an array where it lies, without a copy.
#[pyfunction]
fn reads_in_place(array: &Bound<'_, PyAny>) -> PyResult<bool> {
    let place = array::Array::of("array", array)?.place;
    let place = place.with_ndim("array", place.ndim().max(3))?;
    array::with_stored!("array", place.dtype, S => Ok(array::is_in_place::<S>(&place)))
}

#[pymodule(gil_used = false)]
fn _headwise(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<array::Tensor>()?;
    module.add_class::<attention::Attention>()?;
    module.add_class::<relative_bias::RelativeBias>()?;
    module.add_class::<kv_cache::KvCache>()?;
    module.add_class::<kv_cache::SequenceId>()?;
    module.add_class::<rope::Rope>()?;
    module.add_class::<rope::QkNorm>()?;
    module.add_function(wrap_pyfunction!(attention::scaled_dot_product_attention, module)?)?;
    module.add_function(wrap_pyfunction!(attention::attention, module)?)?;
    module.add_function(wrap_pyfunction!(attend::paged_attention, module)?)?;
    module.add_function(wrap_pyfunction!(state::merge_states, module)?)?;
    module.add_function(wrap_pyfunction!(bench::seconds_of_calls, module)?)?;
    module.add_function(wrap_pyfunction!(available_isas, module)?)?;
    module.add_function(wrap_pyfunction!(reads_in_place, module)?)?;
    module.add_function(wrap_pyfunction!(threads::get_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(threads::set_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(threads::after_fork_in_child, module)?)?;
    Ok(())
}
