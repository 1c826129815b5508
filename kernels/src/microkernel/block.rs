//! The keys, or the values, of one key block: evenly spaced, or in stretches that are, as in pages.

use std::marker::PhantomData;

use super::BLOCK_KV;
use super::fetch::Soon;
use super::outer::Right;
use crate::simd::Stored;
use crate::storage::Format;
use crate::view::Rows;

/// The rows of the least stretch: a run of keys along the lanes of any instruction set, and whole groups.
pub(crate) const LEAST_STRETCH: usize = 16;

/// The stretches of a block, at most.
pub(crate) const MAX_STRETCHES: usize = BLOCK_KV / LEAST_STRETCH;

/// Whether a block may be in stretches of so many rows.
pub(crate) fn are_stretches(rows: usize) -> bool {
    rows.is_power_of_two() && (LEAST_STRETCH..BLOCK_KV).contains(&rows)
}

/// The rows of a block as they are stored. A stretch has as many rows as the others, but for the last, a
/// power of two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockRows<'a> {
    /// The first row of each stretch.
    first: [*const u8; MAX_STRETCHES],
    /// The rows of a stretch are 2 to this power.
    shift: u32,
    /// The bytes of all rows in one stretch, for their number, pitch and width.
    rows: Rows<'a, u8>,
    format: Format,
}

impl<'a> BlockRows<'a> {
    /// One stretch.
    pub(crate) fn even(rows: Rows<'a, u8>, format: Format) -> Self {
        let mut first = [std::ptr::null(); MAX_STRETCHES];
        first[0] = rows.row(0);
        Self { first, shift: BLOCK_KV.ilog2(), rows, format }
    }

    /// `len` rows in stretches, of which all but the last have `rows` rows, and as many bytes to a row and
    /// between rows. `None` where they are too many, or their rows no power of two.
    pub(crate) fn of_stretches(
        stretches: impl Iterator<Item = Rows<'a, u8>>,
        (rows, len): (usize, usize),
        format: Format,
    ) -> Option<Self> {
        if !are_stretches(rows) || len > BLOCK_KV {
            return None;
        }
        let mut stretches = stretches.peekable();
        let mut this = Self { shift: rows.ilog2(), ..Self::even(*stretches.peek()?, format) };
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

    /// The address of row `index`, which must exist.
    #[inline(always)]
    fn row(&self, index: usize) -> *const u8 {
        let (stretch, row) = (index >> self.shift, index & ((1 << self.shift) - 1));
        self.first[stretch % MAX_STRETCHES].wrapping_offset(self.rows.stride() * row as isize)
    }

    /// The rows from `index` on, as if they were one stretch.
    pub(crate) fn from(&self, index: usize) -> Soon {
        Soon::new(self.row(index), self.rows.stride(), self.rows.len().saturating_sub(index))
    }

    /// How the numbers are stored.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Rows `start .. end`, of which the numbers are stored as `E`.
    pub(crate) fn block<E: Stored>(&self, start: usize, end: usize) -> Block<'_, E> {
        Block { rows: TypedRows { rows: self, stored: PhantomData }, start, end }
    }
}

/// The rows of a block whose numbers are stored as `E`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TypedRows<'a, E> {
    rows: &'a BlockRows<'a>,
    stored: PhantomData<E>,
}

impl<E: Stored> TypedRows<'_, E> {
    /// How many rows there are.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.rows.rows.len()
    }

    /// Numbers in a row.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.rows.rows.width() / size_of::<E>() - E::EXTRA
    }

    /// Bytes from a row to the next of the same stretch.
    #[inline(always)]
    pub(crate) fn stride(&self) -> isize {
        self.rows.rows.stride()
    }

    /// The address of row `index`, which must exist: `width` readable numbers.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> *const E {
        self.rows.row(index).cast()
    }
}

impl<E: Stored> Right for TypedRows<'_, E> {
    type Number = E;
    const WHOLE: bool = false;

    #[inline(always)]
    fn width(&self) -> usize {
        TypedRows::width(self)
    }

    #[inline(always)]
    fn stride(&self) -> isize {
        TypedRows::stride(self)
    }

    #[inline(always)]
    fn row(&self, k: usize) -> *const E {
        TypedRows::row(self, k)
    }

    #[inline(always)]
    fn stretch(&self, k: usize) -> usize {
        let shift = self.rows.shift;
        (1 << shift) - (k & ((1 << shift) - 1))
    }
}

/// What is wanted of one key block: rows `start .. end` of the block's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a, E> {
    pub(crate) rows: TypedRows<'a, E>,
    /// The first key wanted.
    pub(crate) start: usize,
    /// Behind the last key wanted; at most [`BLOCK_KV`].
    pub(crate) end: usize,
}

impl<E: Stored> Block<'_, E> {
    /// Checks what the loops rely on, if each row has so many keys.
    pub(crate) fn check(&self, keys: usize) {
        let format = self.rows.rows.format;
        assert_eq!((format.size(), format.extra()), (size_of::<E>(), E::EXTRA));
        assert!(self.start <= self.end && self.end <= BLOCK_KV);
        assert!(self.end.div_ceil(keys) <= self.rows.len());
    }
}
