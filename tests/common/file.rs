//! safetensors files in memory.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Tensors by name, to be changed one by one.
#[derive(Debug, Clone, Default)]
pub struct File(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl File {
    #[must_use]
    pub fn with(self, name: &str, shape: &[usize], data: &[f32]) -> Self {
        self.with_bytes(
            name,
            Dtype::F32,
            shape,
            data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        )
    }

    #[must_use]
    pub fn with_bytes(mut self, name: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Self {
        self.0.insert(name.into(), (dtype, shape.into(), data));
        self
    }

    /// A tensor whose numbers do not matter.
    #[must_use]
    pub fn with_shape(self, name: &str, shape: &[usize]) -> Self {
        self.with(name, shape, &vec![0.5; shape.iter().product()])
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name).unwrap_or_else(|| panic!("no {name}"));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let tensors = self.0.iter().map(|(name, (dtype, shape, data))| {
            let tensor = TensorView::new(*dtype, shape.clone(), data);
            (name, tensor.unwrap_or_else(|error| panic!("{name}: {error}")))
        });
        safetensors::serialize(tensors, None).unwrap_or_else(|error| panic!("{error}"))
    }
}
