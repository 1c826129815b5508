//! Boolean masks with a place for each query and key: a byte each, or a bit.

use std::ops::Range;

use super::{Sequence, bits};
use crate::error::Result;
use crate::problem::{check_unit_inner_stride, shape_error};
use crate::view::{Shape, Strides, View};

/// A boolean mask as bytes or as bits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Boolean<'a> {
    Bytes(View<'a, bool>),
    Bits(View<'a, u8>),
}

impl<'a> Boolean<'a> {
    /// `whole` is `[batch, q_heads, seq_q, seq_kv]`.
    pub(super) fn of_bytes(mask: View<'a, bool>, whole: Shape) -> Result<Self> {
        stretched("mask", mask, whole).map(Self::Bytes)
    }

    /// As [`Boolean::of_bytes`], eight keys to a byte.
    pub(super) fn of_bits(mask: View<'a, u8>, whole: Shape) -> Result<Self> {
        let whole = [whole[0], whole[1], whole[2], whole[3].div_ceil(8)];
        stretched("packed_mask", mask, whole).map(Self::Bits)
    }

    /// The address of a query's row: equal where two rows are one in memory.
    pub(super) fn row(&self, sequence: &Sequence, head: usize, i: usize) -> *const u8 {
        let (batch, row) = (sequence.batch, sequence.query + i);
        match self {
            Self::Bytes(mask) => mask.row(batch, head, row).cast(),
            Self::Bits(mask) => mask.row(batch, head, row),
        }
    }

    /// The keys of `block`, which begins at a multiple of 8, that query `i` sees.
    pub(super) fn bits(
        &self,
        sequence: &Sequence,
        (head, i): (usize, usize),
        block: Range<usize>,
    ) -> u128 {
        let (batch, row) = (sequence.batch, sequence.query + i);
        match self {
            Self::Bytes(mask) => bits::of_flags(&mask.rows(batch, head).slice(row)[block]),
            Self::Bits(mask) => {
                let bytes = block.start / 8..block.end.div_ceil(8);
                bits::of_bytes(&mask.rows(batch, head).slice(row)[bytes])
            }
        }
    }
}

/// A mask whose axes of extent 1 repeat, stretched to `whole`.
pub(crate) fn stretched<'a, E>(
    argument: &'static str,
    mask: View<'a, E>,
    whole: Shape,
) -> Result<View<'a, E>> {
    let (shape, strides) = stretched_layout(argument, (mask.shape(), mask.strides()), whole)?;
    Ok(mask.with_layout(shape, strides))
}

/// The extents and strides of such a mask: strides of zero where it repeats.
pub(crate) fn stretched_layout(
    argument: &'static str,
    (shape, mut strides): (Shape, Strides),
    whole: Shape,
) -> Result<(Shape, Strides)> {
    let fits = (0..3).all(|axis| shape[axis] == 1 || shape[axis] == whole[axis]);
    if !fits || shape[3] != whole[3] {
        return shape_error(
            argument,
            shape,
            format!("{whole:?}, where each of the first three may be 1"),
        );
    }
    check_unit_inner_stride(argument, shape, strides)?;
    for axis in 0..3 {
        if shape[axis] == 1 {
            strides[axis] = 0;
        }
    }
    Ok((whole, strides))
}
