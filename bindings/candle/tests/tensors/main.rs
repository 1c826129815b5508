//! Calls on tensors, beside candle's own operations and, to the bit, beside the library's on slices.

mod attention;
mod errors;
mod kv_cache;
mod layouts;
mod masks;
mod plain;

use candle_core::{DType, Device, Result, Tensor};

/// Numbers between -1 and 1, alike in every run.
fn numbers(shape: &[usize], seed: usize) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 131) as f32 * 0.613).sin()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// The elements as `f32`, in order.
fn elements(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The largest difference.
fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    assert_eq!(a.dims(), b.dims());
    (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.max_all()?.to_scalar()
}
