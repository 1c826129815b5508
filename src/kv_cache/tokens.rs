//! What goes into a cache.

use std::ops::Range;

use super::pool::Pool;
use super::positions::{Positions, Run};
use super::{KvShape, QkNorm, QkTransform, Rope, value_error};
use crate::{Error, Input, KvStorage, Result};
use headwise_kernels::check_value_scales;

/// Keys and values of new tokens, with what is done to the keys on the way in.
///
/// ```
/// use headwise::View;
/// use headwise::kv_cache::{
///     ContiguousCache, Frequencies, KvShape, NewTokens, Rope, RopeLayout, RopeScaling,
/// };
///
/// let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 8 };
/// let mut cache = ContiguousCache::new(shape, 1, 100)?;
/// let frequencies = Frequencies::new(8, 10_000.0, RopeScaling::Unscaled)?;
/// let rope = Rope::new(RopeLayout::HalfSplit, &frequencies, 100)?;
/// // Rows of a fused projection: keys of both heads, then values.
/// let rows: Vec<f32> = (0..3 * 32).map(|i| i as f32).collect();
/// let part = |first| View::strided(&rows, first, [1, 2, 3, 8], [96, 8, 32, 1]);
/// cache.append(&NewTokens::new(part(0)?, part(16)?).rope(&rope))?;
/// assert_eq!(cache.lengths(), [3]);
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct NewTokens<'a> {
    key: Input<'a, f32>,
    value: Input<'a, f32>,
    offsets: Option<&'a [usize]>,
    positions: Option<Positions<'a>>,
    transform: QkTransform<'a>,
    value_scales: Option<&'a [f32]>,
}

impl<'a> NewTokens<'a> {
    /// Keys `[sequences, kv_heads, new_tokens, head_dim]` and values, the same with `value_dim`, of
    /// any strides and any [`KvStorage`] that is computed in `f32`, whatever the cache's is.
    pub fn new(key: impl Into<Input<'a, f32>>, value: impl Into<Input<'a, f32>>) -> Self {
        let (key, value) = (key.into(), value.into());
        let transform = QkTransform::new();
        Self { key, value, offsets: None, positions: None, transform, value_scales: None }
    }

    /// The sequences are packed one behind the other, `[1, kv_heads, tokens, dim]`: those of
    /// sequence `s` are `offsets[s]..offsets[s + 1]`.
    #[must_use]
    pub fn ragged(mut self, offsets: &'a [usize]) -> Self {
        self.offsets = Some(offsets);
        self
    }

    /// Keys are normalised, before they are rotated.
    #[must_use]
    pub fn norm(mut self, norm: &'a QkNorm) -> Self {
        self.transform = self.transform.norm(norm);
        self
    }

    /// Keys are rotated by their positions.
    #[must_use]
    pub fn rope(mut self, rope: &'a Rope) -> Self {
        self.transform = self.transform.rope(rope);
        self
    }

    /// Values are divided by these before they are stored, positive factors for each channel of each kv head,
    /// `[kv_heads * value_dim]`, such as the largest magnitudes that a model's values are known to have:
    /// [`AttentionOptions::value_scales`](crate::AttentionOptions::value_scales) multiplies by them again. So a
    /// channel that is larger than the others takes nothing from what a row of [`Int8`](crate::Int8) tells of
    /// these.
    ///
    /// ```
    /// use headwise::kv_cache::{ContiguousCache, KvShape, NewTokens};
    /// use headwise::{AttentionOptions, Int8, View, attention_cached};
    ///
    /// let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
    /// let mut cache = ContiguousCache::<Int8>::with_storage(shape, 1, 16)?;
    /// let (key, value) = ([0.5_f32; 4], [0.3, 900.0, -0.2, 0.1]);
    /// let scales = [0.5, 1000.0, 0.5, 0.5];
    /// let (key, value) = (View::bhsd(&key, [1, 1, 1, 4])?, View::bhsd(&value, [1, 1, 1, 4])?);
    /// cache.append(&NewTokens::new(key, value).value_scales(&scales))?;
    /// let options = AttentionOptions::new().value_scales(&scales);
    /// let out = attention_cached(key, &cache.view(), &options)?.out;
    /// assert!((out.data()[0] - 0.3).abs() < 0.005 && (out.data()[1] - 900.0).abs() < 5.0);
    /// # Ok::<(), headwise::Error>(())
    /// ```
    #[must_use]
    pub fn value_scales(mut self, scales: &'a [f32]) -> Self {
        self.value_scales = Some(scales);
        self
    }

    /// Positions to rotate by, where they are not those at which the tokens go into the cache:
    /// drafts of a tree stand at their depth.
    #[must_use]
    pub fn positions(mut self, positions: Positions<'a>) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Whether these are tokens of that shape for so many sequences.
    pub(super) fn check(&self, shape: KvShape, sequences: usize) -> Result<()> {
        let seq = self.key.shape()[2];
        let batch = if self.offsets.is_some() { 1 } else { sequences };
        let parts = [("key", self.key, shape.head_dim), ("value", self.value, shape.value_dim)];
        for (argument, view, dim) in parts {
            let expected = [batch, shape.kv_heads, seq, dim];
            if view.shape() != expected {
                return Err(Error::Shape {
                    argument,
                    got: format!("{:?}", view.shape()),
                    expected: format!("{expected:?} for {sequences} sequences"),
                });
            }
        }
        if let Some(offsets) = self.offsets {
            check_offsets(offsets, sequences, seq)?;
        }
        let positions = self.positions.map_or(Ok(()), |p| p.check(sequences, batch * seq));
        positions?;
        if let Some(scales) = self.value_scales {
            check_value_scales(scales, shape.kv_heads, shape.value_dim)?;
        }
        self.transform.check(shape.head_dim)
    }

    /// The tokens of a checked call's sequence.
    pub(super) fn run(&self, sequence: usize) -> Run {
        match self.offsets {
            None => Run::of_entry(sequence, self.key.shape()[2]),
            Some(offsets) => {
                let first = offsets[sequence];
                let count = offsets[sequence + 1] - first;
                Run { sequence, batch: 0, first, count, nth: first }
            }
        }
    }

    /// Whether the keys of a run can be rotated where `length` tokens are in the cache.
    pub(super) fn check_positions(&self, run: Run, length: usize) -> Result<()> {
        self.transform.check_positions(self.positions_after(length), run)
    }

    fn positions_after(&self, length: usize) -> Positions<'a> {
        self.positions.unwrap_or(Positions::From(length))
    }

    /// Writes tokens of a checked run to the rows of a page from `row` on, where `length` tokens of
    /// the sequence were in the cache before the run.
    pub(super) fn write<T: KvStorage<Compute = f32>>(
        &self,
        (run, length): (Run, usize),
        tokens: Range<usize>,
        pool: &mut Pool<T>,
        (page, row): (usize, usize),
    ) {
        let positions = self.positions_after(length);
        for (row, token) in (row..).zip(tokens) {
            let position = positions.at(run, token);
            for head in 0..self.key.shape()[1] {
                let index = [run.batch, head, run.first + token];
                let key = |row: &mut [f32]| {
                    self.key.read_row(index, row);
                    self.transform.apply_row(position, row);
                };
                let value = |row: &mut [f32]| {
                    self.value.read_row(index, row);
                    if let Some(scales) = self.value_scales {
                        let scales = &scales[head * row.len()..];
                        row.iter_mut().zip(scales).for_each(|(x, scale)| *x /= scale);
                    }
                };
                pool.write([page, head, row], key, value);
            }
        }
    }
}

fn check_offsets(offsets: &[usize], sequences: usize, tokens: usize) -> Result<()> {
    if offsets.len() != sequences + 1 {
        return Err(Error::Shape {
            argument: "offsets",
            got: format!("[{}]", offsets.len()),
            expected: format!("[{}], for {sequences} sequences", sequences + 1),
        });
    }
    let ends = offsets[0] == 0 && offsets[sequences] == tokens;
    if !(ends && offsets.is_sorted()) {
        let expected = format!("from 0 to {tokens}, the tokens there are, not decreasing");
        return Err(value_error("offsets", format!("{offsets:?}"), expected));
    }
    Ok(())
}
