//! The block of keys and values at work: read where they lie if they are evenly spaced or in pages of 16,
//! 32 or 64 rows, or of a multiple of 128, and floats. Otherwise, where a block has rows of several pages,
//! they are gathered first. Narrower numbers are widened on the way, so that all of an item's tiles read
//! floats; of few rows, which read each number once, the kernels widen them as they read. Where `bf16` is
//! multiplied in pairs, keys are pairs as they lie, and values are paired with those of the next key here;
//! where integers are multiplied in quads, keys are rounded to them here.

use std::ops::Range;

use crate::element::Element;
use crate::microkernel::block::BlockRows;
use crate::microkernel::pairs::Interleave;
use crate::microkernel::quads::{self, KeyQuads, KeyRoom, QuantizeKeys};
use crate::microkernel::widen::Widen;
use crate::microkernel::{BLOCK_KV, few};
use crate::plan::SPLIT_KV;
use crate::problem::Problem;
use crate::simd::{Bf16Pair, Simd, Stored};
use crate::storage::{Format, StoredRows, with_stored};
use crate::view::Rows;

/// What kernels read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// Floats.
    Floats,
    /// Numbers as they are stored.
    Narrow,
    /// Pairs of `bf16`; the head's keys are such already.
    Pairs,
    /// Keys alone: quads of integers.
    Quads,
    /// Integers as they are stored, which queries and probabilities are rounded to as well.
    Integers,
}

impl Read {
    /// How the keys and the values of an item of so many rows are read, of a sequence of `all` rows: what rounds
    /// goes by the sequence, so that the cut into items reaches no bits.
    pub(crate) fn of<S: Simd, T: Element>(
        s: S,
        problem: &Problem<'_, T>,
        (rows, all): (usize, usize),
    ) -> [Self; 2] {
        let keys = (problem.key.format(), problem.dims().head_dim);
        let reads_narrow = |rows| few::reads_narrow(S::ISA, rows, keys);
        let in_pairs = s.has_bf16_dots();
        let in_quads = problem.wants_quads() && s.has_int8_dots();
        match () {
            () if in_quads && problem.is_in_integers() && reads_narrow(all) => [Self::Integers; 2],
            () if in_quads && quads::pays(all) => {
                [Self::Quads, if in_pairs { Self::Pairs } else { Self::Floats }]
            }
            () if in_pairs && problem.is_in_pairs() => [Self::Pairs; 2],
            () if reads_narrow(rows) => [Self::Narrow; 2],
            () => [Self::Floats; 2],
        }
    }

    /// Whether queries are rounded to integers for such keys.
    pub(super) fn rounds_queries(self) -> bool {
        matches!(self, Self::Quads | Self::Integers)
    }
}

/// The keys and the values of a block.
pub(super) struct CurrentBlock<'a> {
    /// The keys and the values.
    read: [Read; 2],
    first: usize,
    gathered: [&'a mut [f32]; 2],
    head_dim: usize,
    /// Of which the mean is known, of keys in quads.
    split: usize,
    rows: [BlockRows<'a>; 2],
}

impl<'a> CurrentBlock<'a> {
    /// None yet; `gathered` has room for a block of each, if the rows are paged or narrower than floats, or
    /// read as something else.
    pub(super) fn new(
        gathered: [&'a mut [f32]; 2],
        head: [StoredRows<'_>; 2],
        read: [Read; 2],
    ) -> Self {
        let rows = head.map(|of| BlockRows::even(Rows::dense(&[], of.rows.width()), of.format));
        let head_dim = head[0].width();
        Self { read, first: usize::MAX, gathered, head_dim, split: usize::MAX, rows }
    }

    /// How the keys are read.
    #[inline(always)]
    pub(super) fn keys(&self) -> Read {
        self.read[0]
    }

    /// Whether values are multiplied in pairs of `bf16`.
    #[inline(always)]
    pub(super) fn pairs_values(&self) -> bool {
        self.read[1] == Read::Pairs
    }

    /// Whether keys (0) or values (1) are multiplied as integers: not where they had to be gathered, as where a
    /// ring begins anew.
    #[inline(always)]
    pub(super) fn are_integers(&self, n: usize) -> bool {
        self.read[n] == Read::Integers && self.rows[n].format() == Format::Int8
    }

    /// What goes with keys that are read in quads.
    ///
    /// # Panics
    /// Where there is no room for such.
    pub(super) fn quads(&self) -> KeyQuads<'_> {
        KeyQuads::new(self.gathered[0], self.head_dim)
    }

    /// Goes to the block at `first`, which must have a row.
    #[inline(always)]
    pub(super) fn enter<S: Simd>(
        &mut self,
        simd: S,
        first: usize,
        head: [StoredRows<'a>; 2],
        few: bool,
    ) {
        if self.first == first {
            return;
        }
        self.first = first;
        for n in 0..2 {
            if const { S::BF16_DOTS } && n == 1 && self.pairs_values() {
                self.interleave(simd, &head[n], few);
                continue;
            }
            if const { S::INT8_DOTS } && n == 0 && self.keys() == Read::Quads {
                self.quantize(simd, &head[n]);
                continue;
            }
            let end = (first + BLOCK_KV).min(head[n].rows.len());
            let narrow = matches!(self.read[n], Read::Narrow | Read::Integers);
            let readable = narrow || head[n].format == Format::Native;
            match readable.then(|| in_place(&head[n], first..end)).flatten() {
                Some(rows) => self.rows[n] = rows,
                None => self.gather(simd, n, &head[n]),
            }
        }
    }

    /// Makes floats of the block's keys (0) or values (1) if they are narrower, for kernels that read
    /// nothing else.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(&mut self, simd: S, n: usize, head: [StoredRows<'a>; 2]) {
        if self.rows[n].format() != Format::Native {
            self.gather(simd, n, &head[n]);
        }
    }

    /// Makes the block's keys (0) or values (1) floats in scratch.
    #[inline(never)]
    fn gather<S: Simd>(&mut self, simd: S, n: usize, of: &StoredRows<'_>) {
        let end = (self.first + BLOCK_KV).min(of.rows.len());
        // SAFETY: `rows` lends them no longer than until the next call.
        let rows = unsafe { gather(simd, of, self.first..end, self.gathered[n]) };
        self.rows[n] = BlockRows::even(rows.bytes(), Format::Native);
    }

    /// Pairs the block's values in scratch.
    #[inline(never)]
    fn interleave<S: Simd>(&mut self, simd: S, of: &StoredRows<'_>, few: bool) {
        let keys = self.first..(self.first + BLOCK_KV).min(of.rows.len());
        let (width, rows) = (of.width(), keys.len().div_ceil(2));
        let to = &mut *self.gathered[1];
        let then = few.then(|| self.rows[0].from(0));
        Bf16Pair::vectorize(simd, Interleave { of, keys, to, then });
        // SAFETY: `to` has as many floats, which is checked there, and `rows` lends them no longer than until
        // the next call.
        let rows = unsafe { Rows::new(to.as_ptr(), width as isize, rows, width) };
        self.rows[1] = BlockRows::even(rows.bytes(), Format::Native);
    }

    /// Makes integers of the block's keys in scratch.
    #[inline(never)]
    fn quantize<S: Simd>(&mut self, simd: S, of: &StoredRows<'_>) {
        let keys = self.first..(self.first + BLOCK_KV).min(of.rows.len());
        let (len, head_dim) = (keys.len(), of.width());
        let split = self.first / SPLIT_KV;
        let first = std::mem::replace(&mut self.split, split) != split;
        let split = first.then(|| split * SPLIT_KV..((split + 1) * SPLIT_KV).min(of.rows.len()));
        let to = KeyRoom::new(self.gathered[0], head_dim);
        simd.vectorize(QuantizeKeys { of, keys, split, to });
        let (rows, width) =
            (KeyQuads::new(self.gathered[0], head_dim).rows, quads::quads(head_dim));
        // SAFETY: there are as many floats, and `rows` lends them no longer than until the next call.
        let rows = unsafe { Rows::new(rows.as_ptr(), width as isize, len, width) };
        self.rows[0] = BlockRows::even(rows.bytes(), Format::Native);
    }

    /// The block's keys (0) or values (1).
    #[inline(always)]
    pub(super) fn rows(&self, n: usize) -> &BlockRows<'_> {
        &self.rows[n]
    }
}

/// The rows of `range`, a block, if kernels can read them where they lie.
#[inline(always)]
fn in_place<'a>(of: &StoredRows<'a>, range: Range<usize>) -> Option<BlockRows<'a>> {
    if let Some(rows) = of.rows.even(range.start, range.end) {
        return Some(BlockRows::even(rows, of.format));
    }
    let (page, len) = (of.rows.page_rows()?, range.len());
    BlockRows::of_stretches(of.rows.stretches(range), (page, len), of.format)
}

/// The rows of `range`, in `to`.
///
/// # Safety
/// They must not be used any more when `to` is written to again.
unsafe fn gather<'a, S: Simd>(
    simd: S,
    of: &StoredRows<'_>,
    range: Range<usize>,
    to: &mut [f32],
) -> Rows<'a, f32> {
    let (width, len) = (of.width(), range.len());
    assert!(to.len() >= len * width);
    let mut left = &mut to[..len * width];
    for stretch in of.rows.stretches(range) {
        let (part, rest) = left.split_at_mut(stretch.len() * width);
        left = rest;
        with_stored!(of.format, E => {
            // SAFETY: the format says that they are such numbers.
            simd.vectorize(unsafe { Widen::<E>::new(stretch, part) });
        });
    }
    // SAFETY: `to` has as many floats, and the caller's promise.
    unsafe { Rows::new(to.as_ptr(), width as isize, len, width) }
}
