//! Rows of a projection in memory: written as `[batch, 1, seq, heads * dim]`, read as `[batch,
//! heads, seq, dim]`.

use crate::{Error, Result, Shape, Strides, View, ViewMut};

/// Floats of a cache line.
const LINE: usize = 16;
/// Rows a multiple of this many floats apart share their sets in the first cache.
const SET_PERIOD: usize = 1024;

/// The extents of one part of a workspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Buffer {
    pub(super) batch: usize,
    pub(super) seq: usize,
    heads: usize,
    dim: usize,
    /// Floats from one row to the next.
    pitch: usize,
    floats: usize,
}

fn too_large(sizes: &[usize]) -> Error {
    Error::Overflow {
        argument: "workspace",
        got: format!("the product of {sizes:?}"),
        expected: "an amount of memory that can be had".into(),
    }
}

/// The sum of the parts' floats.
pub(super) fn total(parts: impl Iterator<Item = Buffer> + Clone) -> Result<usize> {
    let sizes = parts.clone().map(|part| part.floats);
    sizes
        .clone()
        .try_fold(0_usize, |sum, floats| sum.checked_add(floats))
        .ok_or_else(|| too_large(&sizes.collect::<Vec<_>>()))
}

impl Buffer {
    pub(super) fn new(batch: usize, seq: usize, heads: usize, dim: usize) -> Result<Self> {
        // Without the extents of 0 too: nobody need mind the products of a buffer's extents.
        let sizes = [batch.max(1), seq.max(1), heads.max(1), dim.max(1)];
        let pitched = |width: usize| {
            let pitch = width.checked_next_multiple_of(LINE)?;
            if pitch.is_multiple_of(SET_PERIOD) { pitch.checked_add(LINE) } else { Some(pitch) }
        };
        let pitch = sizes[2].checked_mul(sizes[3]).and_then(pitched);
        let floats = pitch.and_then(|p| sizes[0].checked_mul(sizes[1])?.checked_mul(p));
        let fits = floats.filter(|&floats| isize::try_from(floats).is_ok());
        let (Some(pitch), Some(floats)) = (pitch, fits) else { return Err(too_large(&sizes)) };
        let floats = if batch == 0 || seq == 0 { 0 } else { floats };
        Ok(Self { batch, seq, heads, dim, pitch, floats })
    }

    pub(super) fn floats(&self) -> usize {
        self.floats
    }

    fn hidden_layout(&self) -> (Shape, Strides) {
        let pitch = self.pitch as isize;
        let shape = [self.batch, 1, self.seq, self.heads * self.dim];
        (shape, [self.seq as isize * pitch, 0, pitch, 1])
    }

    fn heads_layout(&self) -> (Shape, Strides) {
        let (pitch, dim) = (self.pitch as isize, self.dim as isize);
        let shape = [self.batch, self.heads, self.seq, self.dim];
        (shape, [self.seq as isize * pitch, dim, pitch, 1])
    }

    /// `[batch, 1, seq, heads * dim]`.
    pub(super) fn hidden<'d>(&self, data: &'d [f32]) -> Result<View<'d, f32>> {
        let (shape, strides) = self.hidden_layout();
        View::strided(data, 0, shape, strides)
    }

    /// As [`Buffer::hidden`].
    pub(super) fn hidden_mut<'d>(&self, data: &'d mut [f32]) -> Result<ViewMut<'d, f32>> {
        let (shape, strides) = self.hidden_layout();
        ViewMut::strided(data, 0, shape, strides)
    }

    /// `[batch, heads, seq, dim]`.
    pub(super) fn heads<'d>(&self, data: &'d [f32]) -> Result<View<'d, f32>> {
        let (shape, strides) = self.heads_layout();
        View::strided(data, 0, shape, strides)
    }

    /// As [`Buffer::heads`].
    pub(super) fn heads_mut<'d>(&self, data: &'d mut [f32]) -> Result<ViewMut<'d, f32>> {
        let (shape, strides) = self.heads_layout();
        ViewMut::strided(data, 0, shape, strides)
    }
}
