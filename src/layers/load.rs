//! Layers out of safetensors files, under the names that PyTorch gives their parameters.

use super::{CrossAttention, Heads, Linear, MultiHeadAttention, Projections, SelfAttention};
use crate::safetensors::{Matrix, Reader, Source};
use crate::{Result, View};

impl Matrix {
    /// The rows from `first` on, as a layer.
    fn linear(&self, (first, rows): (usize, usize), bias: Option<&[f32]>) -> Result<Linear> {
        let shape = [1, 1, rows, self.columns];
        let strides = [0, 0, self.columns as isize, 1];
        Linear::new(View::strided(&self.data, first * self.columns, shape, strides)?, bias)
    }
}

/// What a linear layer is made of.
struct Parts {
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

impl Parts {
    /// `<name>.weight` and, if it is there, `<name>.bias`.
    fn read(reader: &mut Reader<'_>, name: &str) -> Self {
        let weight = reader.matrix(&format!("{name}.weight"));
        let bias = reader.bias(&format!("{name}.bias"), weight.rows);
        Self { weight, bias }
    }

    fn linear(&self) -> Result<Linear> {
        self.weight.linear((0, self.weight.rows), self.bias.as_deref())
    }
}

impl Linear {
    /// The layer `<name>.weight`, `[outputs, inputs]`, with `<name>.bias` if that is there.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) where the weight is missing or a shape is wrong.
    pub fn load(source: &Source<'_>, name: &str) -> Result<Self> {
        // A layer among others, whatever else the prefix has.
        let source = source.clone().partial();
        let mut reader = Reader::new(&source);
        let parts = Parts::read(&mut reader, name);
        reader.finish()?;
        parts.linear()
    }
}

/// Three projections by name, and a fourth if there is a name for it.
fn named<const N: usize>(source: &Source<'_>, names: [&str; N]) -> Result<[Linear; N]> {
    let mut reader = Reader::new(source);
    let parts = names.map(|name| Parts::read(&mut reader, name));
    reader.finish()?;
    let mut layers = Vec::with_capacity(N);
    for parts in &parts {
        layers.push(parts.linear()?);
    }
    // As many as there are names.
    Ok(layers.try_into().unwrap_or_else(|_| unreachable!()))
}

impl SelfAttention {
    /// The layer of `query`, `key` and `value`, each with `weight` and perhaps `bias`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) with all that is missing, misshapen or surplus, and
    /// as [`SelfAttention::new`].
    pub fn load(source: &Source<'_>) -> Result<Self> {
        let [query, key, value] = named(source, ["query", "key", "value"])?;
        Self::new(Projections { query, key, value })
    }
}

impl CrossAttention {
    /// The layer of `query_linear`, `key_linear` and `value_linear`, each with `weight` and perhaps
    /// `bias`.
    ///
    /// # Errors
    /// As [`SelfAttention::load`].
    pub fn load(source: &Source<'_>) -> Result<Self> {
        let [query, key, value] = named(source, ["query_linear", "key_linear", "value_linear"])?;
        Self::new(Projections { query, key, value })
    }
}

impl MultiHeadAttention {
    /// The layer of `linear_q`, `linear_k`, `linear_v` and `linear_out`, each with `weight` and
    /// perhaps `bias`.
    ///
    /// # Errors
    /// As [`SelfAttention::load`], and as [`MultiHeadAttention::new`].
    pub fn load(source: &Source<'_>, heads: impl Into<Heads>) -> Result<Self> {
        let names = ["linear_q", "linear_k", "linear_v", "linear_out"];
        let [query, key, value, out] = named(source, names)?;
        Self::new(Projections { query, key, value }, out, heads)
    }

    /// The layer that `torch.nn.MultiheadAttention` saves: `in_proj_weight`, or where keys and
    /// values have widths of their own `q_proj_weight`, `k_proj_weight` and `v_proj_weight`;
    /// `in_proj_bias`; and `out_proj`. Its `bias_k` and `bias_v` are surplus here.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::load`].
    pub fn load_torch(source: &Source<'_>, heads: impl Into<Heads>) -> Result<Self> {
        let mut reader = Reader::new(source);
        let (weights, width) = if source.has("in_proj_weight") {
            let all = reader.matrix("in_proj_weight");
            if all.rows != 3 * all.columns {
                reader.refuse("in_proj_weight", &all, "[3 * embed_dim, embed_dim]");
            }
            let width = all.rows / 3;
            (vec![all], width)
        } else {
            let names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"];
            let parts = names.map(|name| reader.matrix(name));
            let width = parts[0].rows;
            for (name, part) in names.iter().zip(&parts) {
                // A missing one is noted as that.
                if part.rows != width && part.rows != 0 && width != 0 {
                    reader.refuse(name, part, &format!("[{width}, inputs]"));
                }
            }
            (parts.into(), width)
        };
        let bias = reader.bias("in_proj_bias", 3 * width);
        let out = Parts::read(&mut reader, "out_proj");
        reader.finish()?;

        let nth = |n: usize| {
            let bias = bias.as_ref().map(|bias| &bias[n * width..][..width]);
            match &weights[..] {
                [all] => all.linear((n * width, width), bias),
                parts => parts[n].linear((0, width), bias),
            }
        };
        let projections = Projections { query: nth(0)?, key: nth(1)?, value: nth(2)? };
        Self::new(projections, out.linear()?, heads)
    }
}
