//! What must be known of PyTorch, if it is there. It is never imported from here.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCapsule;

use crate::array::{Strided, exchange_api_of};
use crate::dlpack::ExchangeApi;
use crate::{error, imported};

struct Torch {
    tensor: Py<PyAny>,
    is_grad_enabled: Py<PyAny>,
    forward: Py<PyAny>,
    from_dlpack: Py<PyAny>,
    /// Of the versions that have it.
    increment_version: Option<Py<PyAny>>,
    /// DLPack's functions of plain tensors.
    api: Option<&'static ExchangeApi>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

/// PyTorch, if somebody has imported it.
fn torch(py: Python<'_>) -> PyResult<Option<&'static Torch>> {
    if let Some(torch) = TORCH.get(py) {
        return Ok(Some(torch));
    }
    let Some(module) = imported::module(intern!(py, "torch"))? else { return Ok(None) };
    // A module that is being imported has no attributes yet.
    let (Some(tensor), Some(is_grad_enabled)) =
        (module.getattr_opt("Tensor")?, module.getattr_opt("is_grad_enabled")?)
    else {
        return Ok(None);
    };
    let Some(from_dlpack) = module.getattr_opt("from_dlpack")? else { return Ok(None) };
    let autograd = module.getattr("autograd")?;
    let forward = autograd.getattr("forward_ad")?;
    let graph = autograd.getattr_opt("graph")?;
    let increment_version = match graph {
        Some(graph) => graph.getattr_opt("increment_version")?,
        None => None,
    };
    let api = exchange_api_of(&tensor)?;
    let torch = Torch {
        tensor: tensor.unbind(),
        is_grad_enabled: is_grad_enabled.unbind(),
        forward: forward.unbind(),
        from_dlpack: from_dlpack.unbind(),
        increment_version: increment_version.map(Bound::unbind),
        api,
    };
    Ok(Some(TORCH.get_or_init(py, || torch)))
}

/// Whether an object is a `torch.Tensor`.
pub(crate) fn is_tensor(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let torch = torch(object.py())?;
    Ok(torch.is_some_and(|t| imported::is_of(object, t.tensor.bind_borrowed(object.py()))))
}

/// DLPack's functions, if an object is a plain tensor and no instance of a class below.
pub(crate) fn exchange_api(object: &Bound<'_, PyAny>) -> PyResult<Option<&'static ExchangeApi>> {
    let Some(torch) = torch(object.py())? else { return Ok(None) };
    Ok(torch.api.filter(|_| object.get_type_ptr().cast() == torch.tensor.as_ptr()))
}

/// Of a tensor: refuses those that autograd must know of, and those whose numbers are not what lies in memory.
pub(crate) fn check(argument: &str, object: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = object.py();
    if object.getattr(intern!(py, "requires_grad"))?.is_truthy()? {
        let torch = torch(py)?.map(|torch| torch.is_grad_enabled.bind(py));
        if torch.map_or(Ok(false), |enabled| enabled.call0()?.is_truthy())? {
            return Err(error::unable(
                argument,
                "a tensor that requires gradients, which headwise does not compute",
                "one that does not: call under torch.no_grad(), or pass tensor.detach()",
            ));
        }
    }
    if has_tangent(object)? {
        return Err(error::unable(
            argument,
            "a dual tensor of forward differentiation, which headwise does not compute",
            "tensors without tangents",
        ));
    }
    if object.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
        let expected = "the numbers themselves: tensor.resolve_neg()";
        return Err(error::kind(argument, "a tensor that is a lazy negation", expected));
    }
    Ok(())
}

/// Refuses tensors that reach beyond their storage, which can be resized under them.
pub(crate) fn check_storage(
    argument: &str,
    object: &Bound<'_, PyAny>,
    place: &Strided,
) -> PyResult<()> {
    if place.is_empty() {
        return Ok(());
    }
    let py = object.py();
    let storage = object.call_method0(intern!(py, "untyped_storage"))?;
    let there: usize = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
    let offset: usize = object.call_method0(intern!(py, "storage_offset"))?.extract()?;
    let needed = offset.saturating_mul(place.dtype.size()).saturating_add(place.reach());
    if needed <= there {
        return Ok(());
    }
    let got = format!("a tensor that reaches {needed} bytes into a storage of {there}");
    Err(error::kind(argument, got, "a tensor within its storage"))
}

/// Lets autograd know that a tensor was written to, so that it refuses gradients that need what was
/// there before. Other objects have nobody to tell.
pub(crate) fn written(object: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = object.py();
    let increment = torch(py)?.and_then(|torch| torch.increment_version.as_ref());
    let Some(increment) = increment else { return Ok(()) };
    // Tensors of inference mode have no version.
    if is_tensor(object)? && !object.call_method0(intern!(py, "is_inference"))?.is_truthy()? {
        increment.bind(py).call1((object,))?;
    }
    Ok(())
}

/// Whether forward differentiation is at work and has a tangent of a tensor.
fn has_tangent(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    let Some(torch) = torch(py)? else { return Ok(false) };
    let forward = torch.forward.bind(py);
    // Of no level outside of it.
    let Some(level) = forward.getattr_opt(intern!(py, "_current_level"))? else {
        return Ok(false);
    };
    if level.extract::<i64>()? < 0 {
        return Ok(false);
    }
    let parts = forward.call_method1(intern!(py, "unpack_dual"), (object,))?;
    Ok(!parts.getattr(intern!(py, "tangent"))?.is_none())
}

/// A tensor that PyTorch exports although autograd knows of it; anything else as it is.
pub(crate) fn detached<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if is_tensor(object)? {
        return object.call_method0(intern!(object.py(), "detach"));
    }
    Ok(object.clone())
}

/// A tensor out of a capsule.
pub(crate) fn from_capsule(capsule: Bound<'_, PyCapsule>) -> PyResult<Bound<'_, PyAny>> {
    let py = capsule.py();
    match torch(py)? {
        Some(torch) => torch.from_dlpack.bind(py).call1((capsule,)),
        None => Ok(capsule.into_any()),
    }
}
