//! The memory of a cache: pages of keys and pages of values.

use std::ops::Range;

use super::KvShape;
use super::lists::list;
use crate::{KvStorage, Result, Tensor, View};

/// Pages, `[pages, kv_heads, page_size, head_dim]` and the same with `value_dim`, and what rows have
/// behind their numbers: the rows of a head follow one another. In debug builds, rows that are no token's
/// hold NaN.
#[derive(Debug, Clone)]
pub(super) struct Pool<T: KvStorage> {
    key: Tensor<T>,
    value: Tensor<T>,
    /// A row on its way in, where rows are stored in less than what they are computed in.
    wide: Vec<f32>,
}

impl<T: KvStorage<Compute = f32>> Pool<T> {
    pub(super) fn new(shape: KvShape, pages: usize, page_size: usize) -> Result<Self> {
        shape.check()?;
        let [key, value] = shape.pools::<T>(pages, page_size);
        // First the pools, which are refused where there is no such memory.
        let (key, value) = (Tensor::zeros(key)?, Tensor::zeros(value)?);
        let width = shape.head_dim.max(shape.value_dim);
        let wide = list("head_dim", std::iter::repeat_n(0.0, width))?;
        let mut pool = Self { key, value, wide };
        (0..pages).for_each(|page| pool.poison(page, 0..page_size));
        Ok(pool)
    }

    /// The same pages and more behind them.
    pub(super) fn with_pages(&self, pages: usize) -> Result<Self> {
        let mut pool = Self::new(self.shape(), pages, self.page_size())?;
        for (tensor, old) in [(&mut pool.key, &self.key), (&mut pool.value, &self.value)] {
            tensor.data_mut()[..old.data().len()].copy_from_slice(old.data());
        }
        Ok(pool)
    }

    pub(super) fn key(&self) -> View<'_, T> {
        self.key.view()
    }

    pub(super) fn value(&self) -> View<'_, T> {
        self.value.view()
    }

    pub(super) fn shape(&self) -> KvShape {
        let [_, kv_heads, _, key] = self.key.shape();
        let [head_dim, value_dim] = [key, self.value.shape()[3]].map(|row| row - T::EXTRA);
        KvShape { kv_heads, head_dim, value_dim }
    }

    pub(super) fn pages(&self) -> usize {
        self.key.shape()[0]
    }

    pub(super) fn page_size(&self) -> usize {
        self.key.shape()[2]
    }

    /// Has `key` and `value` write those of a head in a row of a page, and rounds what they write to what
    /// is stored.
    pub(super) fn write(
        &mut self,
        [page, head, row]: [usize; 3],
        key: impl FnOnce(&mut [f32]),
        value: impl FnOnce(&mut [f32]),
    ) {
        fill(&mut self.key, [page, head, row], &mut self.wide, key);
        fill(&mut self.value, [page, head, row], &mut self.wide, value);
    }

    /// Copies rows of a page to the same rows of another.
    pub(super) fn copy(&mut self, from: usize, to: usize, rows: Range<usize>) {
        for head in 0..self.shape().kv_heads {
            for tensor in [&mut self.key, &mut self.value] {
                let source = span(tensor, from, head, rows.clone());
                let target = span(tensor, to, head, rows.clone()).start;
                tensor.data_mut().copy_within(source, target);
            }
        }
    }

    /// Copies rows of a page of another pool, whose tokens have the same shape.
    pub(super) fn copy_from(&mut self, other: &Self, page: usize, from: Range<usize>, to: usize) {
        for head in 0..self.shape().kv_heads {
            for (tensor, other) in [(&mut self.key, &other.key), (&mut self.value, &other.value)] {
                let target = span(tensor, page, head, to..to + from.len());
                let source = span(other, page, head, from.clone());
                tensor.data_mut()[target].copy_from_slice(&other.data()[source]);
            }
        }
    }

    /// In debug builds, fills rows that are no token's any more with NaN, which whoever reads them
    /// would notice.
    pub(super) fn poison(&mut self, page: usize, rows: Range<usize>) {
        if !cfg!(debug_assertions) {
            return;
        }
        for head in 0..self.shape().kv_heads {
            for tensor in [&mut self.key, &mut self.value] {
                for row in rows.clone() {
                    fill(tensor, [page, head, row], &mut self.wide, |row| row.fill(f32::NAN));
                }
            }
        }
    }
}

/// Has `write` write a row of a pool: where it lies, or to `wide` first.
fn fill<T: KvStorage<Compute = f32>>(
    tensor: &mut Tensor<T>,
    [page, head, row]: [usize; 3],
    wide: &mut [f32],
    write: impl FnOnce(&mut [f32]),
) {
    let elements = span(tensor, page, head, row..row + 1);
    let stored = &mut tensor.data_mut()[elements];
    if let Some(row) = T::native_mut(stored) {
        return write(row);
    }
    let wide = &mut wide[..stored.len() - T::EXTRA];
    write(wide);
    T::write_row(wide, stored);
}

/// Where rows of a head of a page lie in a pool.
fn span<T: KvStorage>(
    tensor: &Tensor<T>,
    page: usize,
    head: usize,
    rows: Range<usize>,
) -> Range<usize> {
    let [_, heads, page_size, dim] = tensor.shape();
    let first = (page * heads + head) * page_size;
    (first + rows.start) * dim..(first + rows.end) * dim
}
