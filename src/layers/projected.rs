//! What all attention layers are: projections, attention, and perhaps an output projection.

use std::sync::atomic::{AtomicU64, Ordering};

use headwise_kernels::{Product, linear_all};

use super::buffer::{self, Buffer};
use super::{EncoderCache, Heads, LayerWorkspace, Linear, Memory};
use crate::{
    Attention, AttentionOptions, Error, Isa, Outputs, Result, Scale, Settings, Shape, View,
    ViewMut, Workspace, linear_workspace_bytes,
};

/// The learned projections before attention.
#[derive(Debug, Clone)]
pub struct Projections {
    /// Of the queries: `q_heads * head_dim` outputs.
    pub query: Linear,
    /// Of the keys: `kv_heads * head_dim` outputs.
    pub key: Linear,
    /// Of the values: `kv_heads * value_dim` outputs.
    pub value: Linear,
}

/// A layer. The public ones are this with their names, defaults and shapes of call.
#[derive(Debug, Clone)]
pub(super) struct Projected {
    projections: Projections,
    /// Without one, attention's output is the layer's.
    out: Option<Linear>,
    heads: Heads,
    head_dim: usize,
    value_dim: usize,
    /// Unless the options name one.
    scale: Scale,
    /// What messages call the hidden states of queries, keys and values.
    names: [&'static str; 3],
    /// Whose caches it takes: shared by clones, which have the same weights.
    id: u64,
}

fn value_error<T>(argument: &'static str, got: String, expected: String) -> Result<T> {
    Err(Error::Value { argument, got, expected })
}

fn shape_error<T>(argument: &'static str, got: Shape, expected: String) -> Result<T> {
    Err(Error::Shape { argument, got: format!("{got:?}"), expected })
}

/// Refuses what is not `[batch, 1, seq, width]`.
fn check_hidden(argument: &'static str, x: View<'_, f32>, width: usize) -> Result<()> {
    let [_, one, _, inputs] = x.shape();
    if one != 1 || inputs != width {
        let expected = format!("[batch, 1, seq, {width}], as wide as the weights");
        return shape_error(argument, x.shape(), expected);
    }
    Ok(())
}

/// The parts of a call.
struct Buffers {
    query: Buffer,
    key: Buffer,
    value: Buffer,
    /// Attention's output, if it is projected.
    context: Option<Buffer>,
}

impl Buffers {
    /// Floats of the parts that the call itself holds.
    fn floats(&self, memory: &Memory<'_>) -> Result<usize> {
        let own = match memory {
            Memory::Hidden { .. } => [Some(self.key), Some(self.value)],
            Memory::Cached(_) => [None, None],
        };
        let parts = [Some(self.query), self.context].into_iter().chain(own).flatten();
        buffer::total(parts)
    }
}

impl Projected {
    pub(super) fn new(
        projections: Projections,
        out: Option<Linear>,
        heads: Heads,
        scale: Scale,
        names: [&'static str; 3],
    ) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let Heads { query: q_heads, kv: kv_heads } = heads;
        if kv_heads == 0 || q_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            let expected = "at least one, the kv heads a divisor of the query heads";
            return value_error("heads", format!("{heads:?}"), expected.into());
        }
        let widths = [
            ("query", projections.query.outputs(), q_heads),
            ("key", projections.key.outputs(), kv_heads),
            ("value", projections.value.outputs(), kv_heads),
        ];
        for (argument, outputs, heads) in widths {
            if !outputs.is_multiple_of(heads) {
                let expected = format!("a multiple of the {heads} heads");
                return value_error(argument, format!("{outputs} outputs"), expected);
            }
        }
        let head_dim = projections.query.outputs() / q_heads;
        let value_dim = projections.value.outputs() / kv_heads;
        if kv_heads.checked_mul(head_dim) != Some(projections.key.outputs()) {
            let got = format!("{} outputs", projections.key.outputs());
            let expected = format!("{kv_heads} heads of {head_dim}, as long as the queries'");
            return value_error("key", got, expected);
        }
        if let Some(out) = &out
            && q_heads.checked_mul(value_dim) != Some(out.inputs())
        {
            let expected = format!("{q_heads} heads of {value_dim}, as long as the values'");
            return value_error("out", format!("{} inputs", out.inputs()), expected);
        }
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { projections, out, heads, head_dim, value_dim, scale, names, id })
    }

    /// The length of an output row.
    fn outputs(&self) -> usize {
        self.out.as_ref().map_or(self.value_dim, Linear::outputs)
    }

    /// Checks the inputs and says where their projections go.
    fn buffers(&self, query: View<'_, f32>, memory: &Memory<'_>) -> Result<Buffers> {
        check_hidden(self.names[0], query, self.projections.query.inputs())?;
        let [batch, _, seq_q, _] = query.shape();
        let (key, value) = match memory {
            Memory::Hidden { key, value } => self.kv_buffers(*key, *value)?,
            Memory::Cached(cache) => cache.buffers(self.id)?,
        };
        if key.batch != batch {
            let got = format!("{} batch entries", key.batch);
            return value_error("memory", got, format!("the query's {batch}"));
        }
        let heads = self.heads.query;
        let context = |_: &Linear| Buffer::new(batch, seq_q, heads, self.value_dim);
        Ok(Buffers {
            query: Buffer::new(batch, seq_q, heads, self.head_dim)?,
            key,
            value,
            context: self.out.as_ref().map(context).transpose()?,
        })
    }

    fn kv_buffers(&self, key: View<'_, f32>, value: View<'_, f32>) -> Result<(Buffer, Buffer)> {
        check_hidden(self.names[1], key, self.projections.key.inputs())?;
        check_hidden(self.names[2], value, self.projections.value.inputs())?;
        let [batch, _, seq_kv, _] = key.shape();
        if value.shape()[..3] != key.shape()[..3] {
            let [_, key_name, value_name] = self.names;
            let fit = format!("to fit {key_name} {:?}", key.shape());
            let expected = format!("[{batch}, 1, {seq_kv}, width] {fit}");
            return shape_error(value_name, value.shape(), expected);
        }
        let heads = self.heads.kv;
        let key = Buffer::new(batch, seq_kv, heads, self.head_dim)?;
        Ok((key, Buffer::new(batch, seq_kv, heads, self.value_dim)?))
    }

    pub(super) fn forward(
        &self,
        query: View<'_, f32>,
        memory: Memory<'_>,
        options: &AttentionOptions<'_>,
    ) -> Result<Attention> {
        let seq_kv = options.weights_width(self.buffers(query, &memory)?.key.seq);
        let [batch, _, seq_q, _] = query.shape();
        let out = [batch, 1, seq_q, self.outputs()];
        options.allocate(out, [batch, self.heads.query, seq_q, seq_kv], |outputs| {
            self.forward_into(query, memory, options, outputs, &mut LayerWorkspace::new())
        })
    }

    pub(super) fn forward_into(
        &self,
        query: View<'_, f32>,
        memory: Memory<'_>,
        options: &AttentionOptions<'_>,
        outputs: Outputs<'_, f32>,
        workspace: &mut LayerWorkspace,
    ) -> Result<Isa> {
        let (settings, scale) = (options.settings(), self.scale);
        let buffers = self.buffers(query, &memory)?;
        let LayerWorkspace { projections, kernels } = workspace;
        let data = projections.first(buffers.floats(&memory)?)?;
        let (q, rest) = data.split_at_mut(buffers.query.floats());
        let (context, rest) = rest.split_at_mut(buffers.context.map_or(0, |c| c.floats()));

        // Everything of the caller's is checked before anything of his is written.
        let (outputs, out) = match (&self.out, &buffers.context) {
            (Some(layer), Some(place)) => {
                let (outputs, out) = outputs.redirect(place.heads_mut(context)?);
                let out = out.into_native().map_err(|_| Error::Value {
                    argument: "out",
                    got: "a type narrower than f32".into(),
                    expected: "f32, in which layers compute".into(),
                })?;
                self.check_out(query, &out)?;
                (outputs, Some((layer, place, out)))
            }
            _ => (outputs, None),
        };
        let weights = &self.projections;
        let to_query = Product::new(query, weights.query.packed(), buffers.query.hidden_mut(q)?)?;
        let (k, v) = match memory {
            Memory::Hidden { key, value } => {
                let (k, v) = rest.split_at_mut(buffers.key.floats());
                let to_key = Product::new(key, weights.key.packed(), buffers.key.hidden_mut(k)?)?;
                let to_value =
                    Product::new(value, weights.value.packed(), buffers.value.hidden_mut(v)?)?;
                linear_all(&mut [to_query, to_key, to_value], settings, kernels)?;
                (&*k, &*v)
            }
            Memory::Cached(cache) => {
                linear_all(&mut [to_query], settings, kernels)?;
                cache.data()
            }
        };
        let heads = [buffers.query.heads(q)?, buffers.key.heads(k)?, buffers.value.heads(v)?];
        let problem = options.problem(heads.map(Into::into), scale)?;
        let isa = headwise_kernels::attention(&problem, outputs, settings, kernels)?;
        if let Some((layer, place, out)) = out {
            layer.forward_into(place.hidden(context)?, out, settings, kernels)?;
        }
        Ok(isa)
    }

    /// Refuses an output that is not `[batch, 1, seq_q, outputs]`.
    fn check_out(&self, query: View<'_, f32>, out: &ViewMut<'_, f32>) -> Result<()> {
        let [batch, _, seq_q, _] = query.shape();
        let expected = [batch, 1, seq_q, self.outputs()];
        if out.shape() != expected {
            return shape_error("out", out.shape(), format!("{expected:?}"));
        }
        if expected[3] > 1 && out.strides()[3] != 1 && !out.is_empty() {
            let (got, expected) = (format!("{:?}", out.strides()), "an inner stride of 1".into());
            return Err(Error::Stride { argument: "out", got, expected });
        }
        Ok(())
    }

    /// A workspace with which such calls allocate nothing.
    pub(super) fn workspace(
        &self,
        query: View<'_, f32>,
        memory: Memory<'_>,
        options: &AttentionOptions<'_>,
    ) -> Result<LayerWorkspace> {
        let settings = options.settings();
        let buffers = self.buffers(query, &memory)?;
        let mut projections = Workspace::new();
        let data = projections.first(buffers.floats(&memory)?)?;
        // For the kernels' needs it does not matter where the parts lie.
        let of = |place: &Buffer| place.heads(data);
        let mut bytes = match memory {
            Memory::Cached(cache) => {
                let (k, v) = cache.data();
                let (k, v) = (buffers.key.heads(k)?, buffers.value.heads(v)?);
                options.workspace_bytes(of(&buffers.query)?, k, v)?
            }
            Memory::Hidden { key, value } => {
                let attention = options.workspace_bytes(
                    of(&buffers.query)?,
                    of(&buffers.key)?,
                    of(&buffers.value)?,
                )?;
                let products = [key, value].map(|x| linear_workspace_bytes(x, settings));
                products.into_iter().fold(attention, usize::max)
            }
        };
        bytes = bytes.max(linear_workspace_bytes(query, settings));
        if let Some(context) = &buffers.context {
            bytes = bytes.max(linear_workspace_bytes(context.hidden(data)?, settings));
        }
        Ok(LayerWorkspace { projections, kernels: Workspace::with_bytes(bytes)? })
    }

    /// Projects keys and values once, for many calls.
    pub(super) fn encode_into(
        &self,
        (key, value): (View<'_, f32>, View<'_, f32>),
        cache: &mut EncoderCache,
        settings: &Settings<'_>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        let (key_place, value_place) = self.kv_buffers(key, value)?;
        let (k, v) = cache.prepare(key_place, value_place)?;
        let weights = &self.projections;
        let to_key = Product::new(key, weights.key.packed(), key_place.hidden_mut(k)?)?;
        let to_value = Product::new(value, weights.value.packed(), value_place.hidden_mut(v)?)?;
        let isa = linear_all(&mut [to_key, to_value], settings, workspace)?;
        cache.seal(self.id, key_place, value_place);
        Ok(isa)
    }

    pub(super) fn encode(
        &self,
        hidden: (View<'_, f32>, View<'_, f32>),
        settings: &Settings<'_>,
    ) -> Result<EncoderCache> {
        let mut cache = EncoderCache::default();
        self.encode_into(hidden, &mut cache, settings, &mut Workspace::new())?;
        Ok(cache)
    }
}
