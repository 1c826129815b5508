//! Tensors out of safetensors files, widened to `f32`.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result, Tensor};

/// The elements and the shape of tensor `name`: `F32` as it is, `F16` and `BF16` widened exactly.
///
/// # Errors
/// [`Error::Tensor`] where there is no such tensor (the message lists those there are) or its
/// type is another.
pub fn read_f32(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
    let error = |got: String, expected: String| Error::Tensor {
        argument: format!("tensor {name:?}"),
        got,
        expected,
    };
    let tensor = file.tensor(name).map_err(|_| {
        let mut names = file.names();
        names.sort_unstable();
        error("missing".into(), format!("it among {names:?}"))
    })?;
    let bytes = tensor.data();
    let data = match tensor.dtype() {
        Dtype::F32 => elements(bytes, f32::from_le_bytes),
        Dtype::F16 => elements(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => elements(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        other => return Err(error(format!("type {other:?}"), "F32, F16 or BF16".into())),
    };
    Ok((data, tensor.shape().to_vec()))
}

fn elements<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect()
}

/// Tensor `name` of four axes.
///
/// # Errors
/// As [`read_f32`], and where it has another number of axes.
pub fn read_tensor(file: &SafeTensors<'_>, name: &str) -> Result<Tensor<f32>> {
    let (data, shape) = read_f32(file, name)?;
    let four = shape.as_slice().try_into().map_err(|_| Error::Tensor {
        argument: format!("tensor {name:?}"),
        got: format!("shape {shape:?}"),
        expected: "four axes, [batch, heads, seq, dim]".into(),
    })?;
    Tensor::new(data, four)
}
