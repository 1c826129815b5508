//! NumPy's `.npy` files, as far as tensors of floats need them (the format: NumPy Enhancement
//! Proposal 1). A reader of every such file would have to parse Python literals.

use std::path::Path;

use half::f16;
use headwise::{Shape, Tensor};

use crate::archive::{little_endian, read_file};
use crate::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The tensor of four axes in a file of `f2`, `f4` or `f8`, as `f32`.
pub(crate) fn read(path: &Path) -> Result<Tensor> {
    let name = path.display().to_string();
    let bytes = read_file(path)?;
    let refuse = |got: String, expected: &str| Error::input(&name, got, expected);
    let Some((header, data)) = split(&bytes) else {
        return Err(refuse("no header of a .npy file".into(), "a file written by numpy.save"));
    };
    let Some(Header { kind, fortran_order, shape }) = Header::parse(header) else {
        return Err(refuse(format!("header {header:?}"), "a file written by numpy.save"));
    };

    let Ok(shape) = Shape::try_from(shape.as_slice()) else {
        return Err(refuse(format!("shape {shape:?}"), "four axes, [batch, heads, seq, dim]"));
    };
    if fortran_order && shape.iter().filter(|&&n| n > 1).count() > 1 {
        return Err(refuse("Fortran order".into(), "C order; save numpy.ascontiguousarray(x)"));
    }
    let elements = match kind {
        "<f2" => elements(data, |b| f16::from_le_bytes(b).to_f32()),
        ">f2" => elements(data, |b| f16::from_be_bytes(b).to_f32()),
        "<f4" => elements(data, f32::from_le_bytes),
        ">f4" => elements(data, f32::from_be_bytes),
        "<f8" => elements(data, |b| f64::from_le_bytes(b) as f32),
        ">f8" => elements(data, |b| f64::from_be_bytes(b) as f32),
        _ => return Err(refuse(format!("type {kind}"), "f2, f4 or f8")),
    };
    let count = shape.iter().try_fold(1_usize, |count, &n| count.checked_mul(n));
    match elements {
        Some(elements) if count == Some(elements.len()) => {
            Tensor::new(elements, shape).map_err(Error::in_file(&name))
        }
        _ => Err(refuse(
            format!("{} bytes of data for shape {shape:?} of {kind}", data.len()),
            "a whole file; save it again",
        )),
    }
}

/// `None` where a part of an element is left over.
fn elements<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f32) -> Option<Vec<f32>> {
    let (chunks, rest) = data.as_chunks::<N>();
    rest.is_empty().then(|| chunks.iter().map(|&chunk| read(chunk)).collect())
}

/// The header's text, and the data behind it.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (&[major, _minor], rest) = rest.split_first_chunk()?;
    let (length, rest) = if major == 1 {
        let (length, rest) = rest.split_first_chunk()?;
        (u16::from_le_bytes(*length).into(), rest)
    } else {
        let (length, rest) = rest.split_first_chunk()?;
        (usize::try_from(u32::from_le_bytes(*length)).ok()?, rest)
    };
    let (header, data) = rest.split_at_checked(length)?;
    Some((str::from_utf8(header).ok()?, data))
}

/// What the header's dictionary says.
struct Header<'a> {
    /// Byte order and type, such as `<f4`.
    kind: &'a str,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl<'a> Header<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let value = |key| {
            let (_, rest) = text.split_once(key)?;
            Some(rest.trim_start().strip_prefix(':')?.trim_start())
        };
        let (kind, _) = value("'descr'")?.strip_prefix('\'')?.split_once('\'')?;
        let order = value("'fortran_order'")?;
        let fortran_order = order.starts_with("True");
        let (extents, _) = value("'shape'")?.strip_prefix('(')?.split_once(')')?;
        let extents = extents.split(',').map(str::trim).filter(|extent| !extent.is_empty());
        let shape = extents.map(|extent| extent.parse().ok()).collect::<Option<_>>()?;
        (fortran_order || order.starts_with("False")).then_some(Self { kind, fortran_order, shape })
    }
}

/// The bytes of a file of `f32`, just as `numpy.save` writes them.
pub(crate) fn serialize(tensor: &Tensor) -> Vec<u8> {
    /// Data begin at a multiple of this.
    const ALIGNMENT: usize = 64;
    let [batch, heads, seq, dim] = tensor.shape();
    let mut header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({batch}, {heads}, {seq}, {dim}), }}"
    );
    let preamble = MAGIC.len() + 2 + size_of::<u16>();
    let length = (preamble + header.len() + 1).next_multiple_of(ALIGNMENT) - preamble;
    header.extend(std::iter::repeat_n(' ', length - 1 - header.len()));
    header.push('\n');
    let length = length as u16; // four numbers of at most 20 digits: far below 65,536
    let data = little_endian(tensor.data());
    [MAGIC, &[1, 0], &length.to_le_bytes(), header.as_bytes(), &data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(dict: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let length = (dict.len() as u16 + 1).to_le_bytes();
        let bytes = [MAGIC, &[1, 0], &length, dict.as_bytes(), b"\n", data].concat();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn refusal(dict: &str, data: &[u8]) -> String {
        read(with_header(dict, data).path()).unwrap_err().to_string()
    }

    #[test]
    fn as_numpy_writes_it() {
        // numpy.save("x.npy", numpy.array([[[[0.5, -2]]]], dtype="f4")) of NumPy 2.
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 2), }");
        expected.resize(127, b' ');
        expected.extend(b"\n\x00\x00\x00\x3f\x00\x00\x00\xc0");
        let tensor = Tensor::new(vec![0.5, -2.0], [1, 1, 1, 2]).unwrap();
        assert_eq!(serialize(&tensor), expected);
    }

    #[test]
    fn round_trip() {
        for (data, shape) in
            [(vec![1.0, -2.0, f32::NEG_INFINITY, 4.5], [1, 2, 1, 2]), (vec![], [1, 2, 0, 4])]
        {
            let tensor = Tensor::new(data, shape).unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), serialize(&tensor)).unwrap();
            assert_eq!(read(file.path()).unwrap(), tensor);
        }
    }

    #[test]
    fn widths_and_byte_orders() {
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
        for length in [0, 4, 7, 9, 12] {
            assert!(refusal(&dict("<f4"), &vec![0; length]).contains("a whole file"), "{length}");
        }
    }

    #[test]
    fn hostile_headers() {
        let dict = |order, shape| {
            format!("{{'descr': '<f4', 'fortran_order': {order}, 'shape': ({shape}), }}")
        };
        assert!(refusal(&dict("True", "1, 1, 2, 2"), &[0; 16]).contains("ascontiguousarray"));
        assert!(refusal(&dict("False", "2, 2"), &[0; 16]).contains("shape [2, 2]"));
        for shape in ["9999999999, 9999999999, 1, 1", "1, 1, 1000000, 1000000"] {
            assert!(refusal(&dict("False", shape), &[0; 64]).contains("a whole file"), "{shape}");
        }
        for shape in ["99999999999999999999999, 1, 1, 0", "1, -1, 2, 2", "x, 1, 1, 1"] {
            assert!(refusal(&dict("False", shape), &[]).contains("header"), "{shape}");
        }
        assert!(refusal(&dict("Maybe", "1, 1, 1, 1"), &[0; 4]).contains("header"));
        let whole = serialize(&Tensor::new(vec![1.0], [1, 1, 1, 1]).unwrap());
        for length in 0..whole.len() {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &whole[..length]).unwrap();
            assert!(read(file.path()).is_err(), "{length}");
        }
    }
}
