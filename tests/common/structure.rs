//! Masks as descriptors: described in a few words, with their data, by the definition of what each
//! lets a query see, and cut down to a batch entry, a head or some queries.

use std::ops::Range;

use headwise::{AttentionOptions, BlockPattern, Documents, Element, Offsets, Tree};

use super::Rng;
use super::case::Dims;
use super::strided::{Layout, Strided};

/// How documents are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// One behind the other, in ascending order.
    Sorted,
    /// One behind the other, in any order.
    Shuffled,
    /// Any key belongs to any document.
    Scattered,
    /// Given by their offsets.
    Offsets,
}

/// Descriptors in a few words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    pub prefix: bool,
    pub starts: bool,
    pub documents: Option<Packing>,
    /// The most nodes, and whether as bits.
    pub tree: Option<(usize, bool)>,
    /// Queries and keys in a block.
    pub blocks: Option<(usize, usize)>,
    pub packed: bool,
}

#[derive(Debug, Clone)]
pub enum OwnedDocuments {
    Ids { query: Vec<i32>, key: Vec<i32> },
    Offsets { query: Vec<usize>, key: Vec<usize> },
}

/// A tree for each sequence.
#[derive(Debug, Clone)]
pub struct OwnedTree {
    pub nodes: usize,
    pub parents: Vec<Option<usize>>,
    /// The same as rows of bits, if it is to be given by them.
    pub bits: Option<Vec<u64>>,
}

impl OwnedTree {
    /// Chains and branches at random.
    pub fn random(nodes: usize, sequences: usize, as_bits: bool, rng: &mut Rng) -> Self {
        let mut parent = |node: usize| match rng.below(6) {
            _ if node == 0 => None,
            0 => None,
            1 | 2 => Some(node - 1),
            _ => Some(rng.below(node)),
        };
        let parents = (0..sequences * nodes).map(|at| parent(at % nodes)).collect();
        Self::new(nodes, parents, as_bits)
    }

    pub fn new(nodes: usize, parents: Vec<Option<usize>>, as_bits: bool) -> Self {
        let words = nodes.div_ceil(64);
        let mut bits = vec![0; parents.len() * words];
        for at in 0..parents.len() {
            let tree = at / nodes * nodes;
            let mut node = Some(at - tree);
            while let Some(n) = node {
                bits[at * words + n / 64] |= 1 << (n % 64);
                node = parents[tree + n];
            }
        }
        Self { nodes, parents, bits: as_bits.then_some(bits) }
    }

    /// The first `nodes` of each sequence's tree.
    fn first(&self, nodes: usize) -> Self {
        let trees = self.parents.chunks(self.nodes.max(1));
        let parents = trees.flat_map(|tree| tree[..nodes].to_vec()).collect();
        Self::new(nodes, parents, self.bits.is_some())
    }

    fn sees(&self, sequence: usize, node: usize, other: usize) -> bool {
        let mut next = Some(node);
        while let Some(n) = next {
            if n == other {
                return true;
            }
            next = self.parents[sequence * self.nodes + n];
        }
        false
    }
}

#[derive(Debug, Clone)]
pub struct OwnedBlocks {
    pub block_q: usize,
    pub block_kv: usize,
    pub visible: Strided<bool>,
}

/// Descriptors with their data.
#[derive(Debug, Clone, Default)]
pub struct Structure {
    pub prefix: Option<Vec<usize>>,
    pub starts: Option<Vec<usize>>,
    pub documents: Option<OwnedDocuments>,
    pub tree: Option<OwnedTree>,
    pub blocks: Option<OwnedBlocks>,
    pub packed: Option<Strided<u8>>,
}

impl Structure {
    /// For sequences of which `existing(b)` keys exist.
    pub fn new(kinds: Kinds, d: Dims, existing: impl Fn(usize) -> usize, rng: &mut Rng) -> Self {
        let numbers = |rng: &mut Rng| (0..d.batch).map(|_| rng.below(d.seq_kv + 1)).collect();
        let prefix = kinds.prefix.then(|| numbers(rng));
        let starts = kinds.starts.then(|| {
            let numbers: Vec<usize> = numbers(rng);
            // Mostly short of most keys.
            numbers.into_iter().map(|n| if rng.one_in(4) { n } else { n / 4 }).collect()
        });
        let shortest = (0..d.batch).map(existing).min().unwrap_or(0);
        let tree = kinds
            .tree
            .map(|(nodes, as_bits)| OwnedTree::random(nodes.min(shortest), d.batch, as_bits, rng));
        Self {
            prefix,
            starts,
            documents: kinds.documents.map(|packing| documents(packing, d, rng)),
            tree,
            blocks: kinds.blocks.map(|(block_q, block_kv)| {
                let axes = [d.batch, d.q_heads(), d.seq_q.div_ceil(block_q)];
                let [b, h, i] = axes.map(|n| if rng.one_in(3) { 1 } else { n });
                let shape = [b, h, i, d.seq_kv.div_ceil(block_kv)];
                let count = shape.iter().product();
                let dense: Vec<bool> = (0..count).map(|_| rng.one_in(2)).collect();
                let visible = Strided::new(&dense, shape, Layout::Padded, true);
                OwnedBlocks { block_q, block_kv, visible }
            }),
            packed: kinds.packed.then(|| {
                let axes =
                    [d.batch, d.q_heads(), d.seq_q].map(|n| if rng.one_in(2) { 1 } else { n });
                let shape = [axes[0], axes[1], axes[2], d.seq_kv.div_ceil(8)];
                let count = shape.iter().product();
                let dense: Vec<u8> = (0..count)
                    .map(|_| (rng.next() | if rng.one_in(3) { rng.next() } else { 255 }) as u8)
                    .collect();
                Strided::new(&dense, shape, Layout::Padded, 0x55)
            }),
        }
    }

    /// `options` with these masks.
    pub fn masked<'a, T: Element>(
        &'a self,
        mut options: AttentionOptions<'a, T>,
    ) -> AttentionOptions<'a, T> {
        if let Some(prefix) = &self.prefix {
            options = options.prefix(prefix);
        }
        if let Some(starts) = &self.starts {
            options = options.key_starts(starts);
        }
        if let Some(documents) = &self.documents {
            options = options.documents(match documents {
                OwnedDocuments::Ids { query, key } => Documents::Ids { query, key },
                OwnedDocuments::Offsets { query, key } => {
                    Documents::Offsets(Offsets { query, key })
                }
            });
        }
        if let Some(OwnedTree { nodes, parents, bits }) = &self.tree {
            options = options.tree(match bits {
                Some(bits) => Tree::of_bits(*nodes, bits),
                None => Tree::of_parents(*nodes, parents),
            });
        }
        if let Some(OwnedBlocks { block_q, block_kv, visible }) = &self.blocks {
            let visible = visible.view();
            options =
                options.blocks(BlockPattern { block_q: *block_q, block_kv: *block_kv, visible });
        }
        if let Some(packed) = &self.packed {
            options = options.packed_mask(packed.view());
        }
        options
    }

    /// Whether all but the prefix let query `i` see key `j`, of `existing` keys of batch entry `b`.
    pub fn sees(&self, [b, h, i, j]: [usize; 4], d: Dims, existing: usize) -> bool {
        let from_start = self.starts.as_ref().is_none_or(|starts| j >= starts[b]);
        let documents = self.documents.as_ref().is_none_or(|documents| match documents {
            OwnedDocuments::Ids { query, key } => query[b * d.seq_q + i] == key[b * d.seq_kv + j],
            OwnedDocuments::Offsets { query, key } => query
                .windows(2)
                .zip(key.windows(2))
                .any(|(q, k)| (q[0]..q[1]).contains(&i) && (k[0]..k[1]).contains(&j)),
        });
        let tree = self.tree.as_ref().is_none_or(|tree| {
            let base = existing - tree.nodes;
            let node = (i + tree.nodes).checked_sub(d.seq_q);
            j < base || node.is_some_and(|node| tree.sees(b, node, j - base))
        });
        let blocks = self.blocks.as_ref().is_none_or(|blocks| {
            get(&blocks.visible, [b, h, i / blocks.block_q, j / blocks.block_kv])
        });
        let packed = self
            .packed
            .as_ref()
            .is_none_or(|packed| get(packed, [b, h, i, j / 8]) >> (j % 8) & 1 == 1);
        from_start && documents && tree && blocks && packed
    }

    /// The structure of one batch entry.
    pub fn batch_entry(&self, b: usize, d: Dims) -> Self {
        let own = |numbers: &Option<Vec<usize>>| numbers.as_ref().map(|n| vec![n[b]]);
        let documents = self.documents.clone().map(|documents| match documents {
            OwnedDocuments::Ids { query, key } => OwnedDocuments::Ids {
                query: query[b * d.seq_q..][..d.seq_q].to_vec(),
                key: key[b * d.seq_kv..][..d.seq_kv].to_vec(),
            },
            offsets => offsets,
        });
        let tree = self.tree.as_ref().map(|tree| {
            let parents = tree.parents[b * tree.nodes..][..tree.nodes].to_vec();
            OwnedTree::new(tree.nodes, parents, tree.bits.is_some())
        });
        let (prefix, starts) = (own(&self.prefix), own(&self.starts));
        Self { prefix, starts, documents, tree, ..self.narrow(0, b..b + 1) }
    }

    /// The structure of one query head.
    pub fn head(&self, h: usize) -> Self {
        self.narrow(1, h..h + 1)
    }

    fn narrow(&self, axis: usize, range: Range<usize>) -> Self {
        let mut part = self.clone();
        if let Some(blocks) = &mut part.blocks {
            blocks.visible = narrow(&blocks.visible, axis, range.clone());
        }
        part.packed = self.packed.as_ref().map(|packed| narrow(packed, axis, range));
        part
    }

    /// The structure of some queries, and how many of the keys must be left out behind.
    pub fn queries(&self, range: Range<usize>, d: Dims) -> (Self, usize) {
        let mut part = self.clone();
        match &mut part.documents {
            Some(OwnedDocuments::Ids { query, .. }) => {
                *query =
                    query.chunks(d.seq_q).flat_map(|ids| ids[range.clone()].to_vec()).collect();
            }
            Some(OwnedDocuments::Offsets { query, .. }) => {
                query
                    .iter_mut()
                    .for_each(|o| *o = (*o).clamp(range.start, range.end) - range.start);
            }
            None => {}
        }
        let mut left_out = 0;
        if let Some(tree) = &self.tree {
            let nodes = (range.end + tree.nodes).saturating_sub(d.seq_q);
            left_out = tree.nodes - nodes;
            part.tree = Some(tree.first(nodes));
        }
        if let Some(blocks) = &self.blocks {
            // Blocks of one query, of which the part may begin anywhere.
            let [b, h, _, n] = blocks.visible.shape;
            let shape = [b, h, range.len(), n];
            let mut visible = Strided::filled(shape, Layout::Bhsd, false);
            for at in Strided::filled(shape, Layout::Bhsd, ()).indices() {
                let (row, block) = (at / n % range.len(), at % n);
                let head = [at / (h * range.len() * n), at / (range.len() * n) % h];
                let from = [head[0], head[1], (range.start + row) / blocks.block_q, block];
                visible.data[at] = get(&blocks.visible, from);
            }
            part.blocks = Some(OwnedBlocks { block_q: 1, block_kv: blocks.block_kv, visible });
        }
        part.packed = self.packed.as_ref().map(|packed| narrow(packed, 2, range));
        (part, left_out)
    }

    /// The structure with `count` more keys, which others hide.
    pub fn with_more_keys(&self, count: usize, d: Dims, rng: &mut Rng) -> Self {
        let mut longer = self.clone();
        match &mut longer.documents {
            Some(OwnedDocuments::Ids { key, .. }) => {
                let mut longer = Vec::new();
                for keys in key.chunks(d.seq_kv.max(1)) {
                    longer.extend(keys);
                    longer.extend((0..count).map(|_| rng.below(4) as i32));
                }
                *key = longer;
            }
            Some(OwnedDocuments::Offsets { key, .. }) => {
                key.iter_mut().rev().take(1).for_each(|end| *end += count);
            }
            None => {}
        }
        if let Some(blocks) = &mut longer.blocks {
            let width = (d.seq_kv + count).div_ceil(blocks.block_kv);
            blocks.visible = widened(&blocks.visible, width, || rng.one_in(2));
        }
        longer.packed = self
            .packed
            .as_ref()
            .map(|packed| widened(packed, (d.seq_kv + count).div_ceil(8), || rng.next() as u8));
        longer
    }
}

fn documents(packing: Packing, d: Dims, rng: &mut Rng) -> OwnedDocuments {
    if packing == Packing::Offsets {
        let parts = 1 + rng.below(5);
        let mut offsets = |length: usize| {
            let mut inner: Vec<usize> = (1..parts).map(|_| rng.below(length + 1)).collect();
            inner.sort_unstable();
            [vec![0], inner, vec![length]].concat()
        };
        return OwnedDocuments::Offsets { query: offsets(d.seq_q), key: offsets(d.seq_kv) };
    }
    let (mut query, mut key) = (Vec::new(), Vec::new());
    for _ in 0..d.batch {
        let mut id = rng.below(3) as i32 - 1;
        let mut keys = Vec::new();
        for _ in 0..d.seq_kv {
            if packing == Packing::Scattered || rng.one_in(20) {
                id = match packing {
                    Packing::Sorted => id + 1 + rng.below(2) as i32,
                    Packing::Scattered => rng.below(3) as i32,
                    _ => (id + 3) % 7,
                };
            }
            keys.push(id);
        }
        for i in 0..d.seq_q {
            // The document of the key at the query's place, if there is one.
            let place = (i + d.seq_kv).checked_sub(d.seq_q).and_then(|at| keys.get(at));
            let any = rng.below(4) as i32;
            query.push(if rng.one_in(15) { any } else { place.copied().unwrap_or(any) });
        }
        key.extend(keys);
    }
    OwnedDocuments::Ids { query, key }
}

/// An element of a mask whose axes of extent 1 repeat.
pub fn get<T: Copy>(mask: &Strided<T>, index: [usize; 4]) -> T {
    let one = |axis: usize| axis < 3 && mask.shape[axis] == 1;
    mask.get(std::array::from_fn(|axis| if one(axis) { 0 } else { index[axis] }))
}

fn narrow<T: Copy>(mask: &Strided<T>, axis: usize, range: Range<usize>) -> Strided<T> {
    if mask.shape[axis] == 1 { mask.clone() } else { mask.narrow(axis, range) }
}

/// A contiguous copy with a longer last axis.
fn widened<T: Copy>(mask: &Strided<T>, width: usize, mut more: impl FnMut() -> T) -> Strided<T> {
    let [b, h, i, old] = mask.shape;
    let mut dense = Vec::new();
    let rows = mask.dense();
    for row in 0..b * h * i {
        dense.extend(&rows[row * old..][..old]);
        dense.extend((old..width).map(|_| more()));
    }
    let gap = more();
    Strided::new(&dense, [b, h, i, width], Layout::Bhsd, gap)
}
