//! A Llama for one sequence: activations are `[seq, width]`.

use candle_core::quantized::QMatMul;
use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Module, RmsNorm, ops::silu};

use crate::attention::{Memory, Rotation};
use crate::common::{self, Result, Way};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Extents {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rope_base: f64,
    pub(crate) epsilon: f64,
}

pub(crate) struct Model {
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: RmsNorm,
    pub(crate) output: QMatMul,
    pub(crate) extents: Extents,
}

pub(crate) struct Block {
    pub(crate) attention_norm: RmsNorm,
    pub(crate) query: QMatMul,
    pub(crate) key: QMatMul,
    pub(crate) value: QMatMul,
    pub(crate) attention_output: QMatMul,
    pub(crate) inner_norm: RmsNorm,
    pub(crate) gate: QMatMul,
    pub(crate) up: QMatMul,
    pub(crate) down: QMatMul,
}

/// A sequence so far.
pub(crate) struct Session {
    position: usize,
    rotation: Rotation,
    memories: Vec<Memory>,
}

impl Model {
    /// An empty sequence, with room for `capacity` tokens.
    pub(crate) fn session(&self, way: Way, capacity: usize) -> Result<Session> {
        let memories = (0..self.extents.layers).map(|_| Memory::new(way, self.extents, capacity));
        Ok(Session {
            position: 0,
            rotation: Rotation::new(way, self.extents, capacity)?,
            memories: memories.collect::<Result<_>>()?,
        })
    }

    /// Appends tokens; the logits behind the last of them.
    pub(crate) fn forward(&self, ids: &[u32], session: &mut Session) -> Result<Tensor> {
        let mut x = self.embedding.forward(&Tensor::new(ids, &Device::Cpu)?)?;
        let Session { position, rotation, memories } = session;
        for (block, memory) in self.blocks.iter().zip(memories) {
            x = block.forward(&x, |rows| {
                common::attention(|| memory.attend(rows, *position, rotation))
            })?;
        }
        *position += ids.len();
        let last = self.norm.forward(&x.narrow(0, ids.len() - 1, 1)?)?;
        Ok(self.output.forward(&last)?.squeeze(0)?)
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        attend: impl FnOnce([Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rows = self.attention_norm.forward(x)?;
        let projected =
            [self.query.forward(&rows)?, self.key.forward(&rows)?, self.value.forward(&rows)?];
        let x = (x + self.attention_output.forward(&attend(projected)?)?)?;
        let rows = self.inner_norm.forward(&x)?;
        let inner = (silu(&self.gate.forward(&rows)?)? * self.up.forward(&rows)?)?;
        Ok((x + self.down.forward(&inner)?)?)
    }
}
