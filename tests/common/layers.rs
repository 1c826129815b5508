//! Attention layers: described small enough to print, and their numbers.

use headwise::layers::{
    CrossAttention, EncoderCache, Heads, LayerWorkspace, Linear, Memory, MultiHeadAttention,
    Projections, SelfAttention,
};
use headwise::{
    Attention, AttentionOptions, Isa, Outputs, Result, Settings, Shape, View, Workspace,
};

use super::Rng;
use super::case::{Dims, GAP};
use super::strided::{Layout, Strided};

/// The numbers of a linear layer.
#[derive(Debug, Clone)]
pub struct Weights {
    /// `[outputs, inputs]`.
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub outputs: usize,
    pub inputs: usize,
}

impl Weights {
    /// Of a size that leaves outputs as large as inputs.
    pub fn random(rng: &mut Rng, [outputs, inputs]: [usize; 2], bias: bool) -> Self {
        let size = 1.0 / (inputs as f32).sqrt();
        let weight = rng.normals(outputs * inputs).into_iter().map(|x| x * size).collect();
        let bias = bias.then(|| rng.normals(outputs));
        Self { weight, bias, outputs, inputs }
    }

    pub fn linear(&self) -> Result<Linear> {
        let weight = View::bhsd(&self.weight, [1, 1, self.outputs, self.inputs])?;
        Linear::new(weight, self.bias.as_deref())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    SelfAttention,
    Cross,
    MultiHead,
}

impl Form {
    pub const ALL: [Self; 3] = [Self::SelfAttention, Self::Cross, Self::MultiHead];
}

/// A layer and its inputs in a few words.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub form: Form,
    pub dims: Dims,
    /// Of the hidden states that queries, keys and values come from.
    pub widths: [usize; 3],
    pub outputs: usize,
    /// Of query, key, value, out.
    pub biases: [bool; 4],
    pub seed: u64,
}

impl Spec {
    /// With what the form does not have taken from what it has.
    pub fn fitted(mut self) -> Self {
        let [query, key, _] = self.widths;
        let d = &mut self.dims;
        if self.form != Form::MultiHead {
            (d.kv_heads, d.group, self.outputs) = (1, 1, d.value_dim);
            self.widths[2] = key;
        }
        if self.form == Form::SelfAttention {
            d.seq_kv = d.seq_q;
            self.widths = [query; 3];
        }
        self
    }

    pub fn model(&self) -> Model {
        let (spec, mut rng) = (self.fitted(), Rng(self.seed));
        let (d, [query, key, value]) = (spec.dims, spec.widths);
        let shapes = [
            [d.q_heads() * d.head_dim, query],
            [d.kv_heads * d.head_dim, key],
            [d.kv_heads * d.value_dim, value],
            [spec.outputs, d.q_heads() * d.value_dim],
        ];
        let nth = |n: usize| Weights::random(&mut rng, shapes[n], spec.biases[n]);
        let weights = [0, 1, 2, 3].map(nth);
        let mut hidden = |seq, width| {
            let shape = [d.batch, 1, seq, width];
            let dense = rng.normals(shape.iter().product());
            Strided::new(&dense, shape, Layout::Bhsd, GAP)
        };
        let query = hidden(d.seq_q, query);
        let key = hidden(d.seq_kv, key);
        let value = hidden(d.seq_kv, value);
        let hidden = match spec.form {
            Form::SelfAttention => [query.clone(), query.clone(), query],
            Form::Cross => [query, key.clone(), key],
            Form::MultiHead => [query, key, value],
        };
        let layer = spec.layer(&weights).unwrap_or_else(|error| panic!("{error}"));
        Model { spec, weights, hidden, layer }
    }

    fn layer(&self, weights: &[Weights; 4]) -> Result<Layer> {
        let [query, key, value, out] = weights;
        let projections =
            Projections { query: query.linear()?, key: key.linear()?, value: value.linear()? };
        let heads = Heads { query: self.dims.q_heads(), kv: self.dims.kv_heads };
        Ok(match self.form {
            Form::SelfAttention => Layer::SelfAttention(SelfAttention::new(projections)?),
            Form::Cross => Layer::Cross(CrossAttention::new(projections)?),
            Form::MultiHead => {
                Layer::MultiHead(MultiHeadAttention::new(projections, out.linear()?, heads)?)
            }
        })
    }

    /// Of out, lse and weights.
    pub fn output_shapes(&self) -> [Shape; 3] {
        let d = self.dims;
        let rows = |width| [d.batch, d.q_heads(), d.seq_q, width];
        [[d.batch, 1, d.seq_q, self.outputs], rows(1), rows(d.seq_kv)]
    }
}

/// A layer of any form. What keys and values come from does not count for self-attention.
#[derive(Debug, Clone)]
pub enum Layer {
    SelfAttention(SelfAttention),
    Cross(CrossAttention),
    MultiHead(MultiHeadAttention),
}

impl Layer {
    pub fn forward<'m>(
        &self,
        query: View<'_, f32>,
        memory: impl Into<Memory<'m>>,
        options: &AttentionOptions<'_>,
    ) -> Result<Attention> {
        match self {
            Self::SelfAttention(layer) => layer.forward(query, options),
            Self::Cross(layer) => layer.forward(query, memory, options),
            Self::MultiHead(layer) => layer.forward(query, memory, options),
        }
    }

    pub fn forward_into<'m>(
        &self,
        query: View<'_, f32>,
        memory: impl Into<Memory<'m>>,
        options: &AttentionOptions<'_>,
        outputs: Outputs<'_, f32>,
        workspace: &mut LayerWorkspace,
    ) -> Result<Isa> {
        match self {
            Self::SelfAttention(layer) => layer.forward_into(query, options, outputs, workspace),
            Self::Cross(layer) => layer.forward_into(query, memory, options, outputs, workspace),
            Self::MultiHead(layer) => {
                layer.forward_into(query, memory, options, outputs, workspace)
            }
        }
    }

    pub fn workspace<'m>(
        &self,
        query: View<'_, f32>,
        memory: impl Into<Memory<'m>>,
        options: &AttentionOptions<'_>,
    ) -> Result<LayerWorkspace> {
        match self {
            Self::SelfAttention(layer) => layer.workspace(query, options),
            Self::Cross(layer) => layer.workspace(query, memory, options),
            Self::MultiHead(layer) => layer.workspace(query, memory, options),
        }
    }

    /// Into a cache of keys and values of these hidden states, of which cross-attention takes the
    /// values'. Self-attention has none.
    pub fn encode_into(
        &self,
        (key, value): (View<'_, f32>, View<'_, f32>),
        cache: &mut EncoderCache,
        settings: &Settings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        match self {
            Self::SelfAttention(_) => panic!("self-attention has no cache"),
            Self::Cross(layer) => layer.encode_into(value, cache, settings, workspace),
            Self::MultiHead(layer) => layer.encode_into(key, value, cache, settings, workspace),
        }
    }

    pub fn encode(
        &self,
        (key, value): (View<'_, f32>, View<'_, f32>),
        settings: &Settings<'_>,
    ) -> Result<EncoderCache> {
        match self {
            Self::SelfAttention(_) => panic!("self-attention has no cache"),
            Self::Cross(layer) => layer.encode(value, settings),
            Self::MultiHead(layer) => layer.encode(key, value, settings),
        }
    }
}

/// A layer with its numbers and inputs.
#[derive(Debug, Clone)]
pub struct Model {
    pub spec: Spec,
    /// Of query, key, value, out.
    pub weights: [Weights; 4],
    /// What queries, keys and values come from, `[batch, 1, seq, width]`.
    pub hidden: [Strided<f32>; 3],
    pub layer: Layer,
}

impl Model {
    pub fn query(&self) -> View<'_, f32> {
        self.hidden[0].view()
    }

    pub fn memory(&self) -> (View<'_, f32>, View<'_, f32>) {
        (self.hidden[1].view(), self.hidden[2].view())
    }

    pub fn forward(&self, options: &AttentionOptions<'_>) -> Result<Attention> {
        self.layer.forward(self.query(), self.memory(), options)
    }
}
