//! The bits of many rows against one block: what consecutive rows share is found once.

use std::ops::Range;

use super::{Mask, Sequence};

/// What was found last, and what for.
#[derive(Debug, Clone, Copy)]
struct Last<K>(Option<(K, u128)>);

impl<K: PartialEq + Copy> Last<K> {
    fn get(&mut self, key: K, find: impl FnOnce() -> u128) -> u128 {
        match self.0 {
            Some((last, bits)) if last == key => bits,
            _ => {
                let bits = find();
                self.0 = Some((key, bits));
                bits
            }
        }
    }
}

/// The rows of one sequence against one block of keys.
#[derive(Debug)]
pub(crate) struct RowBits<'m, 'a> {
    mask: &'m Mask<'a>,
    sequence: Sequence,
    /// The keys of the block, from its first on.
    block: Range<usize>,
    documents: Last<i64>,
    tree: Last<usize>,
    blocks: Last<(*const bool, usize)>,
    boolean: [Last<*const u8>; 2],
}

impl<'m, 'a> RowBits<'m, 'a> {
    /// `block` begins at a multiple of `BLOCK_KV` and has at most as many keys, all of which exist.
    pub(crate) fn new(mask: &'m Mask<'a>, sequence: &Sequence, block: Range<usize>) -> Self {
        Self {
            mask,
            sequence: *sequence,
            block,
            documents: Last(None),
            tree: Last(None),
            blocks: Last(None),
            boolean: [Last(None); 2],
        }
    }

    /// The keys of the block that every mask which is no range lets query `i` of query head `head`
    /// see. Bits beyond the block mean nothing.
    pub(crate) fn get(&mut self, head: usize, i: usize) -> u128 {
        let Self { mask, sequence, .. } = self;
        let block = || self.block.clone();
        let mut seen = u128::MAX;
        if let Some(tree) = &mask.tree {
            let existing = mask.existing.end(sequence);
            seen &= self.tree.get(i, || tree.bits(sequence, existing, i, block()));
        }
        if let Some(documents) = mask.documents.as_ref().filter(|packed| !packed.are_ranges()) {
            let id = documents.id(sequence, i);
            seen &= self.documents.get(id, || documents.bits(sequence, id, block()));
        }
        if let Some(blocks) = &mask.blocks {
            let key = blocks.row(sequence, head, i);
            seen &= self.blocks.get(key, || blocks.bits(sequence, head, key.1, block()));
        }
        for (last, boolean) in self.boolean.iter_mut().zip(&mask.boolean) {
            if let Some(boolean) = boolean {
                let row = boolean.row(sequence, head, i);
                seen &= last.get(row, || boolean.bits(sequence, (head, i), block()));
            }
        }
        seen
    }
}
