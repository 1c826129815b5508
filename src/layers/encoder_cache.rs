//! What a layer attends to: hidden states, or what it made of them before.

use super::buffer::{self, Buffer};
use crate::{Error, Result, View, Workspace};

/// What a layer takes its keys and values from.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Memory<'a> {
    /// Hidden states to project, `[batch, 1, seq_kv, width]` each.
    Hidden {
        /// Of the keys.
        key: View<'a, f32>,
        /// Of the values.
        value: View<'a, f32>,
    },
    /// Keys and values that the layer projected before.
    Cached(&'a EncoderCache),
}

impl<'a> From<View<'a, f32>> for Memory<'a> {
    /// Keys and values of the same hidden states.
    fn from(hidden: View<'a, f32>) -> Self {
        Self::Hidden { key: hidden, value: hidden }
    }
}

impl<'a> From<(View<'a, f32>, View<'a, f32>)> for Memory<'a> {
    /// Keys and values of their own hidden states.
    fn from((key, value): (View<'a, f32>, View<'a, f32>)) -> Self {
        Self::Hidden { key, value }
    }
}

impl<'a> From<&'a EncoderCache> for Memory<'a> {
    fn from(cache: &'a EncoderCache) -> Self {
        Self::Cached(cache)
    }
}

/// The keys and values of an encoder's output, projected once for all calls of the layer that made
/// it.
#[derive(Debug, Clone, Default)]
pub struct EncoderCache {
    /// Keys, then values.
    data: Workspace,
    key: Buffer,
    value: Buffer,
    /// The layer; 0 as long as there is nothing.
    layer: u64,
}

impl EncoderCache {
    /// An empty cache, to be filled by a layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The encoder's batch entries.
    pub fn batch(&self) -> usize {
        self.key.batch
    }

    /// The keys in a sequence.
    pub fn seq_kv(&self) -> usize {
        self.key.seq
    }

    /// Room for keys and values; nobody's until it is [`sealed`](EncoderCache::seal).
    pub(super) fn prepare(
        &mut self,
        key: Buffer,
        value: Buffer,
    ) -> Result<(&mut [f32], &mut [f32])> {
        *self = Self { data: std::mem::take(&mut self.data), ..Self::default() };
        let data = self.data.first(buffer::total([key, value].into_iter())?)?;
        Ok(data.split_at_mut(key.floats()))
    }

    /// Says that `layer` has filled it with these.
    pub(super) fn seal(&mut self, layer: u64, key: Buffer, value: Buffer) {
        (self.layer, self.key, self.value) = (layer, key, value);
    }

    /// Where keys and values lie, if `layer` made them.
    pub(super) fn buffers(&self, layer: u64) -> Result<(Buffer, Buffer)> {
        if self.layer != layer {
            let got = match self.layer {
                0 => "an empty cache",
                _ => "keys and values of another layer",
            };
            return Err(Error::Value {
                argument: "memory",
                got: got.into(),
                expected: "a cache that this layer's `encode` filled".into(),
            });
        }
        Ok((self.key, self.value))
    }

    /// Keys and values.
    pub(super) fn data(&self) -> (&[f32], &[f32]) {
        self.data.as_slice().split_at(self.key.floats())
    }
}
