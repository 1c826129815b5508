//! NumPy's `.npy` files.

use std::path::Path;

use half::f16;
use headwise::{Shape, Tensor};
use npyz::{DType, Deserialize, NpyFile, Order, WriterBuilder};

use crate::archive::read_file;
use crate::{Error, Result};

/// The tensor of four axes in a file of `f16`, `f32` or `f64`, as `f32`.
pub(crate) fn read(path: &Path) -> Result<Tensor> {
    let name = path.display().to_string();
    let bytes = read_file(path)?;
    let refuse = |got: String, expected: &str| Error::input(&name, got, expected);
    if !has_sane_header(&bytes) {
        return Err(refuse("no header of a .npy file".into(), "a file written by numpy.save"));
    }
    let file = NpyFile::new(&bytes[..])
        .map_err(|error| refuse(error.to_string(), "a file written by numpy.save"))?;

    let shape = file.shape().to_vec();
    let extents: Option<Vec<usize>> = shape.iter().map(|&n| usize::try_from(n).ok()).collect();
    let Some(shape) = extents.and_then(|shape| Shape::try_from(shape).ok()) else {
        return Err(refuse(format!("shape {shape:?}"), "four axes, [batch, heads, seq, dim]"));
    };
    if file.order() != Order::C && shape.iter().filter(|&&n| n > 1).count() > 1 {
        return Err(refuse("Fortran order".into(), "C order; save numpy.ascontiguousarray(x)"));
    }
    let DType::Plain(element) = file.dtype() else {
        return Err(refuse("a structured type".into(), "f2, f4 or f8"));
    };
    let kind = element.to_string();
    let data = match kind.get(1..) {
        Some("f2") => elements(file, f16::to_f32),
        Some("f4") => elements(file, |x: f32| x),
        Some("f8") => elements(file, |x: f64| x as f32),
        _ => return Err(refuse(format!("type {kind}"), "f2, f4 or f8")),
    };
    let data = data.map_err(|error| refuse(error.to_string(), "a whole file; save it again"))?;
    Tensor::new(data, shape).map_err(Error::in_file(&name))
}

/// Element by element, so that memory is taken only for what is there.
fn elements<T: Deserialize>(
    file: NpyFile<&[u8]>,
    convert: impl Fn(T) -> f32,
) -> std::io::Result<Vec<f32>> {
    let data = file.data().map_err(std::io::Error::other)?;
    data.map(|x| x.map(&convert)).collect()
}

/// Whether the product of all numbers in the header fits: the reader multiplies the extents
/// unchecked.
fn has_sane_header(bytes: &[u8]) -> bool {
    const MAGIC: &[u8] = b"\x93NUMPY";
    // The magic, the version, and a length of two or four bytes.
    const PREAMBLE: usize = MAGIC.len() + 2 + 4;
    let Some(text) = bytes.get(PREAMBLE..) else { return false };
    let text = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut numbers = text.split(|byte| !byte.is_ascii_digit()).filter(|run| !run.is_empty());
    let product = numbers.try_fold(1_u64, |product, run| {
        let number = str::from_utf8(run).ok()?.parse::<u64>().ok()?;
        product.checked_mul(number.max(1))
    });
    bytes.starts_with(MAGIC) && product.is_some()
}

/// The bytes of a file of `f32`.
pub(crate) fn serialize(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let write = |bytes: &mut Vec<u8>| -> std::io::Result<()> {
        let shape = tensor.shape().map(|n| n as u64);
        let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
        let mut writer = options.writer(bytes).begin_nd()?;
        writer.extend(tensor.data().iter().copied())?;
        writer.finish()
    };
    write(&mut bytes).map_err(|error| {
        Error::input("--out", error.to_string(), "a tensor that a .npy file can hold")
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(dict: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16 + 1).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.push(b'\n');
        bytes.extend(data);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn refusal(dict: &str, data: &[u8]) -> String {
        read(with_header(dict, data).path()).unwrap_err().to_string()
    }

    #[test]
    fn round_trip() {
        let tensor = Tensor::new(vec![1.0, -2.0, f32::NEG_INFINITY, 4.5], [1, 2, 1, 2]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serialize(&tensor).unwrap()).unwrap();
        assert_eq!(read(file.path()).unwrap(), tensor);
    }

    #[test]
    fn narrow_wide_and_big_endian() {
        let dict =
            |t| format!("{{'descr': '{t}', 'fortran_order': False, 'shape': (1, 1, 1, 2), }}");
        let f8: Vec<u8> = [0.5_f64, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let f4: Vec<u8> = [0.5_f32, 2.0].iter().flat_map(|x| x.to_be_bytes()).collect();
        let f2 = [0x00, 0x38, 0x00, 0x40];
        for (kind, data) in [("<f8", &f8[..]), (">f4", &f4), ("<f2", &f2)] {
            let tensor = read(with_header(&dict(kind), data).path()).unwrap();
            assert_eq!(tensor.data(), [0.5, 2.0], "{kind}");
        }
        assert!(refusal(&dict("<i4"), &[0; 8]).contains("type <i4"));
        assert!(refusal(&dict("<f4"), &[0; 7]).contains("a whole file"));
    }

    #[test]
    fn hostile_headers() {
        let dict = |order, shape| {
            format!("{{'descr': '<f4', 'fortran_order': {order}, 'shape': ({shape}), }}")
        };
        assert!(refusal(&dict("True", "1, 1, 2, 2"), &[0; 16]).contains("ascontiguousarray"));
        assert!(refusal(&dict("False", "2, 2"), &[0; 16]).contains("shape [2, 2]"));
        for shape in ["9999999999, 9999999999, 1, 1", "99999999999999999999999, 1, 1, 0"] {
            assert!(refusal(&dict("False", shape), &[]).contains("header"), "{shape}");
        }
        let huge = refusal(&dict("False", "1, 1, 1000000, 1000000"), &[0; 64]);
        assert!(huge.contains("a whole file"), "{huge}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\x93NUMPY").unwrap();
        assert!(read(file.path()).is_err());
    }
}
