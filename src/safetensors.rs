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

/// Where a layer's tensors are in a file, and under which names.
///
/// A layer's `load` takes the tensors that it names, with the prefix before them, and refuses a
/// file that has others under that prefix: a name misspelt on either side is an error, not a layer
/// without its bias.
///
/// ```no_run
/// use headwise::layers::MultiHeadAttention;
/// use headwise::safetensors::Source;
/// use safetensors::SafeTensors;
///
/// let bytes = std::fs::read("model.safetensors")?;
/// let file = SafeTensors::deserialize(&bytes)?;
/// let source = Source::new(&file).prefix("encoder.layers.0.self_attn.");
/// let layer = MultiHeadAttention::load_torch(&source, 8)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Source<'a> {
    file: &'a SafeTensors<'a>,
    prefix: String,
    renamed: Vec<(String, String)>,
    partial: bool,
}

impl<'a> Source<'a> {
    /// Every tensor of `file`, under the names that layers give them.
    pub fn new(file: &'a SafeTensors<'a>) -> Self {
        Self { file, prefix: String::new(), renamed: Vec::new(), partial: false }
    }

    /// The tensors whose names begin with `prefix`, its dot included.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// The module (or lone tensor) that layers call `ours` is called `theirs` in the file, behind
    /// the prefix: `rename("linear_q", "query")` finds `query.weight` and `query.bias`.
    #[must_use]
    pub fn rename(mut self, ours: &str, theirs: &str) -> Self {
        self.renamed.push((ours.into(), theirs.into()));
        self
    }

    /// Tensors of others may stand under the same prefix.
    #[must_use]
    pub fn partial(self) -> Self {
        Self { partial: true, ..self }
    }

    /// The elements, widened to `f32`, and the shape of the tensor that layers call `name`.
    ///
    /// # Errors
    /// As [`read_f32`].
    pub fn tensor(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        read_f32(self.file, &self.full_name(name))
    }

    /// The name in the file of what layers call `name`.
    fn full_name(&self, name: &str) -> String {
        let split = name.find('.').unwrap_or(name.len());
        let (module, rest) = name.split_at(split);
        let renamed = self.renamed.iter().find(|(ours, _)| ours == module);
        format!("{}{}{rest}", self.prefix, renamed.map_or(module, |(_, theirs)| theirs))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file.tensor(&self.full_name(name)).is_ok()
    }
}

/// Takes a layer's tensors out of a source, and notes all that is wrong before it says so.
pub(crate) struct Reader<'s> {
    source: &'s Source<'s>,
    taken: Vec<String>,
    faults: Vec<String>,
}

/// Rows of equal length, `[outputs, inputs]` as PyTorch has a weight.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matrix {
    pub(crate) data: Vec<f32>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Source<'s>) -> Self {
        Self { source, taken: Vec::new(), faults: Vec::new() }
    }

    /// A tensor that must be there.
    fn take(&mut self, name: &str) -> Option<(Vec<f32>, Vec<usize>)> {
        let full = self.source.full_name(name);
        if !self.source.has(name) {
            self.faults.push(format!("{full:?} is missing"));
            return None;
        }
        self.taken.push(full);
        self.source.tensor(name).map_err(|error| self.faults.push(error.to_string())).ok()
    }

    /// A matrix; empty where it is missing or none, which is noted.
    pub(crate) fn matrix(&mut self, name: &str) -> Matrix {
        match self.take(name) {
            None => Matrix::default(),
            Some((data, shape)) => match shape[..] {
                [rows, columns] if rows > 0 && columns > 0 => Matrix { data, rows, columns },
                _ => {
                    let full = self.source.full_name(name);
                    self.faults
                        .push(format!("{full:?} has shape {shape:?}, not [outputs, inputs]"));
                    Matrix::default()
                }
            },
        }
    }

    /// A vector that may be left out.
    pub(crate) fn bias(&mut self, name: &str, length: usize) -> Option<Vec<f32>> {
        if !self.source.has(name) {
            return None;
        }
        let (data, shape) = self.take(name)?;
        // Without its matrix there is nothing to compare it with.
        if length > 0 && shape != [length] {
            let full = self.source.full_name(name);
            self.faults.push(format!("{full:?} has shape {shape:?}, not [{length}]"));
        }
        Some(data)
    }

    /// Notes a fault of a tensor's shape.
    pub(crate) fn refuse(&mut self, name: &str, got: &Matrix, expected: &str) {
        let full = self.source.full_name(name);
        self.faults
            .push(format!("{full:?} has shape {:?}, not {expected}", [got.rows, got.columns]));
    }

    /// Says what was wrong, with the tensors of the prefix that nobody took.
    pub(crate) fn finish(mut self) -> Result<()> {
        if !self.source.partial {
            let mut surplus: Vec<_> = self.source.file.names();
            surplus.retain(|name| {
                name.starts_with(&self.source.prefix) && !self.taken.iter().any(|n| n == name)
            });
            surplus.sort_unstable();
            self.faults.extend(surplus.iter().map(|name| format!("{name:?} is surplus")));
        }
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Error::Tensor {
            argument: format!("tensors under {:?}", self.source.prefix),
            got: self.faults.join("; "),
            expected: "the tensors of one layer, each as wide as the next wants it".into(),
        })
    }
}
