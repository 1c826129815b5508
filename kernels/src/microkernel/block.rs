//! The keys, or the values, of one key block: evenly spaced, or in stretches that are, as in pages.

use super::BLOCK_KV;
use super::outer::Right;
use crate::view::Rows;

/// The rows of the least stretch: a run of keys along the lanes of any instruction set, and whole groups.
pub(crate) const LEAST_STRETCH: usize = 16;

/// The stretches of a block, at most.
pub(crate) const MAX_STRETCHES: usize = BLOCK_KV / LEAST_STRETCH;

/// The rows of a block. A stretch has as many rows as the others, but for the last, a power of two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockRows<'a> {
    /// The first row of each stretch.
    first: [*const f32; MAX_STRETCHES],
    /// The rows of a stretch are 2 to this power.
    shift: u32,
    /// All rows in one stretch, for their number, pitch and width.
    rows: Rows<'a, f32>,
}

impl<'a> BlockRows<'a> {
    /// One stretch.
    pub(crate) fn even(rows: Rows<'a, f32>) -> Self {
        let mut first = [std::ptr::null(); MAX_STRETCHES];
        first[0] = rows.row(0);
        Self { first, shift: BLOCK_KV.ilog2(), rows }
    }

    /// `len` rows in stretches, of which all but the last have `rows` rows, and as many floats to a row and
    /// between rows. `None` where they are too many, or their rows no power of two.
    pub(crate) fn of_stretches(
        stretches: impl Iterator<Item = Rows<'a, f32>>,
        (rows, len): (usize, usize),
    ) -> Option<Self> {
        if !rows.is_power_of_two() || !(LEAST_STRETCH..BLOCK_KV).contains(&rows) || len > BLOCK_KV {
            return None;
        }
        let mut stretches = stretches.peekable();
        let mut this = Self { shift: rows.ilog2(), ..Self::even(*stretches.peek()?) };
        let mut left = len;
        for (first, stretch) in this.first.iter_mut().zip(stretches) {
            assert!(stretch.len() == rows.min(left) && stretch.width() == this.rows.width());
            assert_eq!(stretch.stride(), this.rows.stride());
            *first = stretch.row(0);
            left -= stretch.len();
        }
        assert_eq!(left, 0);
        this.rows = this.rows.lengthened(len);
        Some(this)
    }

    /// How many rows there are.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Floats in a row.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.rows.width()
    }

    /// Floats from a row to the next of the same stretch.
    #[inline(always)]
    pub(crate) fn stride(&self) -> isize {
        self.rows.stride()
    }

    /// The address of row `index`, which must exist: `width` readable floats.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> *const f32 {
        let (stretch, row) = (index >> self.shift, index & ((1 << self.shift) - 1));
        self.first[stretch % MAX_STRETCHES].wrapping_offset(self.stride() * row as isize)
    }
}

impl Right for &BlockRows<'_> {
    const WHOLE: bool = false;

    #[inline(always)]
    fn width(&self) -> usize {
        self.rows.width()
    }

    #[inline(always)]
    fn stride(&self) -> isize {
        self.rows.stride()
    }

    #[inline(always)]
    fn row(&self, k: usize) -> *const f32 {
        BlockRows::row(self, k)
    }

    #[inline(always)]
    fn stretch(&self, k: usize) -> usize {
        (1 << self.shift) - (k & ((1 << self.shift) - 1))
    }
}

/// What is wanted of one key block: rows `start .. end` of the block's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) rows: &'a BlockRows<'a>,
    /// The first key wanted.
    pub(crate) start: usize,
    /// Behind the last key wanted; at most [`BLOCK_KV`].
    pub(crate) end: usize,
}

impl Block<'_> {
    /// Checks what the loops rely on.
    pub(crate) fn check(&self) {
        assert!(self.start <= self.end && self.end <= BLOCK_KV);
        assert!(self.end <= self.rows.len());
    }
}
