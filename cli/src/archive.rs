//! Safetensors files: tensors, and the string metadata that says what they are.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use headwise::Tensor;
use headwise::safetensors::{Source, read_f32, read_tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::{Error, Result};

/// The content of the file at `path`.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::file(path, "read"))
}

/// A parsed file. Tensors go by short names, behind a prefix that all of them share.
pub(crate) struct Archive<'a> {
    /// What messages call it.
    name: String,
    prefix: String,
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> Archive<'a> {
    pub(crate) fn parse(name: &str, prefix: &str, bytes: &'a [u8]) -> Result<Self> {
        let refuse = |error| {
            Error::input(name, format!("{error}"), "a whole safetensors file; fetch it again")
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(refuse)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(refuse)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { name: name.into(), prefix: prefix.into(), tensors, metadata })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What is before the short names.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn full(&self, tensor: &str) -> String {
        format!("{}{tensor}", self.prefix)
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.tensors.tensor(&self.full(tensor)).is_ok()
    }

    /// A tensor of four axes, widened to `f32`.
    pub(crate) fn tensor(&self, tensor: &str) -> Result<Tensor> {
        read_tensor(&self.tensors, &self.full(tensor)).map_err(Error::in_file(&self.name))
    }

    /// Elements that must have one of the shapes, widened to `f32`.
    pub(crate) fn shaped(&self, tensor: &str, shapes: &[&[usize]]) -> Result<Vec<f32>> {
        let name = self.full(tensor);
        let (data, shape) = read_f32(&self.tensors, &name).map_err(Error::in_file(&self.name))?;
        if !shapes.contains(&&shape[..]) {
            let expected: Vec<_> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            return Err(Error::input(
                format!("{}: tensor {name:?}", self.name),
                format!("shape {shape:?}"),
                expected.join(" or "),
            ));
        }
        Ok(data)
    }

    /// Integers of I64, none of them negative, that must have the shape.
    pub(crate) fn counts(&self, tensor: &str, shape: &[usize]) -> Result<Vec<usize>> {
        let name = self.full(tensor);
        let refuse = |got: String| {
            let expected = format!("I64 of shape {shape:?}, none negative");
            Error::input(format!("{}: tensor {name:?}", self.name), got, expected)
        };
        let found = self.raw(&name).ok_or_else(|| refuse("missing".into()))?;
        if (found.dtype(), found.shape()) != (Dtype::I64, shape) {
            return Err(refuse(format!("{:?} of shape {:?}", found.dtype(), found.shape())));
        }
        let numbers = found.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes));
        numbers.map(|x| usize::try_from(x).map_err(|_| refuse(x.to_string()))).collect()
    }

    /// The tensors as layers load them.
    pub(crate) fn source(&self) -> Source<'_> {
        Source::new(&self.tensors).prefix(&self.prefix)
    }

    /// A tensor of any type and rank, by its whole name.
    pub(crate) fn raw(&self, name: &str) -> Option<TensorView<'a>> {
        self.tensors.tensor(name).ok()
    }

    /// The elements of a tensor of any rank, by its whole name, widened to `f32`.
    pub(crate) fn widened(&self, name: &str) -> Result<Vec<f32>> {
        let read = read_f32(&self.tensors, name).map_err(Error::in_file(&self.name))?;
        Ok(read.0)
    }
}

/// A dense `f32` tensor under construction into a file.
pub(crate) struct Part<'a> {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: &'a [f32],
}

/// The bytes of a safetensors file.
pub(crate) fn serialize(parts: &[Part<'_>], metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    let refuse = |error| Error::input("--out", format!("{error}"), "tensors that fit a file");
    let bytes: Vec<Vec<u8>> = parts.iter().map(|part| little_endian(part.data)).collect();
    let views = parts.iter().zip(&bytes).map(|(part, bytes)| {
        let view = TensorView::new(Dtype::F32, part.shape.clone(), bytes);
        view.map(|view| (part.name, view)).map_err(refuse)
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, Some(metadata)).map_err(refuse)
}

/// The bytes of the data in files.
pub(crate) fn little_endian(data: &[f32]) -> Vec<u8> {
    data.iter().flat_map(|x| x.to_le_bytes()).collect()
}
