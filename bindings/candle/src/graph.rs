//! Results that know what they were made of.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor};

/// An operation that has been done, as candle's graph of gradients keeps it. It has to own what it holds,
/// which options that borrow cannot: so it holds the name, for the error of who asks for the gradient.
struct Done {
    name: &'static str,
    result: Tensor,
}

impl Done {
    fn storage(&self) -> Result<(CpuStorage, Shape)> {
        match &*self.result.storage_and_layout().0 {
            Storage::Cpu(storage) => Ok((storage.clone(), self.result.shape().clone())),
            _ => candle_core::bail!("{}: computed on another device", self.name),
        }
    }
}

impl CustomOp1 for Done {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.storage()
    }
}

impl CustomOp3 for Done {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.storage()
    }
}

/// The contiguous result of a computation without gradients on `input`, as one of a graph if `input` is
/// of one.
pub(crate) fn record1(name: &'static str, input: &Tensor, result: Tensor) -> Result<Tensor> {
    if !input.track_op() {
        return Ok(result);
    }
    input.apply_op1(Done { name, result })
}

/// As [`record1`], of three inputs.
pub(crate) fn record3(
    name: &'static str,
    [query, key, value]: [&Tensor; 3],
    result: Tensor,
) -> Result<Tensor> {
    if ![query, key, value].iter().any(|tensor| tensor.track_op()) {
        return Ok(result);
    }
    query.apply_op3(key, value, Done { name, result })
}
