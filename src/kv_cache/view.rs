//! Keys and values in pages: what attention reads of every kind of cache.

use crate::{PageTables, Result, View};

/// Keys and values of sequences, in pages of two pools. Every cache gives one, and so can an engine
/// that keeps pages of its own.
///
/// ```
/// use headwise::View;
/// use headwise::kv_cache::{KvView, PageTables};
///
/// // Three pages of four rows in an engine's own order, pages, rows, heads, dim.
/// let pool: Vec<f32> = (0..3 * 4 * 2 * 8).map(|i| i as f32).collect();
/// let pool = View::bshd(&pool, [3, 2, 4, 8])?;
/// // One sequence of six tokens, in pages 2 and 0.
/// let tables = PageTables { table: &[2, 0], offsets: &[0, 2], lengths: &[6], starts: &[0] };
/// let view = KvView::new(pool, pool, tables)?;
/// assert_eq!(view.place(0, 5), Some((0, 1)));
/// assert_eq!(view.key_row(0, 5, 1), pool.row_slice([0, 1, 1]));
/// # Ok::<(), headwise::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct KvView<'a, T = f32> {
    key: View<'a, T>,
    value: View<'a, T>,
    tables: PageTables<'a>,
}

impl<'a, T> KvView<'a, T> {
    /// Pools of keys, `[pages, kv_heads, page_size, head_dim]`, and values, the same with
    /// `value_dim`, with contiguous rows and any other strides.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where the pools or the tables do not fit each other,
    /// [`Error::Stride`](crate::Error::Stride) where rows are not contiguous,
    /// [`Error::Value`](crate::Error::Value) where `page_size` is 0, offsets decrease, a page is
    /// not in the pools, or a sequence has more positions than its pages have rows.
    pub fn new(key: View<'a, T>, value: View<'a, T>, tables: PageTables<'a>) -> Result<Self> {
        tables.check(&key, &value)?;
        Ok(Self { key, value, tables })
    }

    /// Of a cache, whose book-keeping vouches for the tables.
    pub(super) fn of_cache(key: View<'a, T>, value: View<'a, T>, tables: PageTables<'a>) -> Self {
        debug_assert_eq!(tables.check(&key, &value), Ok(()));
        Self { key, value, tables }
    }

    /// The pool of keys, `[pages, kv_heads, page_size, head_dim]`.
    pub fn key(&self) -> View<'a, T> {
        self.key
    }

    /// The pool of values, `[pages, kv_heads, page_size, value_dim]`.
    pub fn value(&self) -> View<'a, T> {
        self.value
    }

    /// Which pages hold what.
    pub fn tables(&self) -> PageTables<'a> {
        self.tables
    }

    /// The rows of a page.
    pub fn page_size(&self) -> usize {
        self.key.shape()[2]
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.tables.lengths.len()
    }

    /// How many positions, from the first on, all of several sequences hold in the same pages, as forks
    /// of one sequence do; 0 where one has let go of its first.
    pub fn shared_prefix(&self) -> usize {
        let PageTables { table, offsets, lengths, starts } = self.tables;
        if lengths.len() < 2 || starts.iter().any(|&start| start > 0) {
            return 0;
        }
        let mut pages = offsets.windows(2).map(|of| &table[of[0]..of[1]]);
        let first = pages.next().unwrap_or(&[]);
        let alike = |other: &[u32]| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        let pages = pages.map(alike).min().unwrap_or(0);
        let rows = pages.saturating_mul(self.page_size());
        lengths.iter().copied().min().unwrap_or(0).min(rows)
    }

    /// The page and the row that hold a position of a sequence, if it exists.
    pub fn place(&self, sequence: usize, position: usize) -> Option<(usize, usize)> {
        self.tables.place(self.page_size(), sequence, position)
    }

    /// The key of a head at a position of a sequence, if it exists.
    pub fn key_row(&self, sequence: usize, position: usize, head: usize) -> Option<&'a [T]> {
        let (page, row) = self.place(sequence, position)?;
        self.key.row_slice([page, head, row])
    }

    /// The value of a head at a position of a sequence, if it exists.
    pub fn value_row(&self, sequence: usize, position: usize, head: usize) -> Option<&'a [T]> {
        let (page, row) = self.place(sequence, position)?;
        self.value.row_slice([page, head, row])
    }
}
