//! Which keys each query sees. Every mask is a descriptor, borrowed and small; it compiles to a range
//! of keys for each query ([`Mask::range`]) and, where a range does not say all, to a bit for each key
//! of a block ([`rows::RowBits`]). All masks hold at once.

pub(crate) mod bits;
mod blocks;
mod dense;
mod documents;
mod keys;
mod positions;
mod ragged;
pub(crate) mod rows;
mod tree;

use std::ops::Range;

pub use blocks::BlockPattern;
pub(crate) use dense::stretched_layout;
pub use documents::Documents;
pub use positions::{Causal, Window};
pub use ragged::Offsets;
pub(crate) use ragged::Sequence;
pub use tree::Tree;

use crate::error::Result;
use crate::pages::PageTables;
use crate::problem::{Dims, value_error};
use crate::storage::Input;
use crate::view::{Shape, View};
use dense::Boolean;
use documents::Packed;
use keys::Existing;
use positions::{Band, Positions};
use ragged::Sequences;

/// Which keys each query sees, and what is added to its scores. All parts combine: a key is
/// visible where every part lets it be.
///
/// "For each sequence" means for each batch entry, or, of a ragged batch, for each of the packed
/// sequences; `seq_q` and `seq_kv` are then the sequence's own.
///
/// ```
/// use headwise_kernels::{Causal, Masking, Window};
///
/// // A sliding window of 512 keys over two sequences, the first with 3 keys of left padding.
/// let mut masking = Masking::<f32>::default();
/// masking.causal = Some(Causal::BottomRight);
/// masking.window = Window { left: Some(511), right: None };
/// masking.key_starts = Some(&[3, 0]);
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Masking<'a, T> {
    /// The causal diagonal.
    pub causal: Option<Causal>,
    /// The sliding window.
    pub window: Window,
    /// Keys before it are visible in spite of the causal diagonal (prefix-LM): one number, or one for
    /// each sequence. Without a diagonal it does nothing.
    pub prefix: Option<&'a [usize]>,
    /// For each sequence the first key that exists: left padding. The diagonal does not move by it.
    pub key_starts: Option<&'a [usize]>,
    /// For each sequence the number of leading keys that exist, or are padding on the left: right
    /// padding. The diagonal does not move by it unless it is [`Causal::AtLength`].
    pub key_lengths: Option<&'a [usize]>,
    /// Packed documents.
    pub documents: Option<Documents<'a>>,
    /// A tree over the last keys.
    pub tree: Option<Tree<'a>>,
    /// A block-sparse pattern.
    pub blocks: Option<BlockPattern<'a>>,
    /// `true` = attend. `[batch, q_heads, seq_q, seq_kv]`, each of the first three may be 1. Of a
    /// ragged batch the rows are the packed queries and the columns the keys of the query's own
    /// sequence, as many as the longest has.
    pub boolean: Option<View<'a, bool>>,
    /// As `boolean`, eight keys to a byte, the lowest bit first: `[batch, q_heads, seq_q, seq_kv / 8]`,
    /// rounded up.
    pub packed: Option<View<'a, u8>>,
    /// Added to the scaled and capped scores; exactly -inf masks. Shaped as `boolean`.
    pub bias: Option<Input<'a, T>>,
    /// Keys and values are pools of pages, `[pages, kv_heads, page_size, dim]`, and these say which hold
    /// what: a sequence's keys are all that it has so far, and those that exist no more are hidden.
    pub pages: Option<PageTables<'a>>,
    /// With pages: the queries of all sequences lie one behind the other, and each sequence's begin
    /// here; one offset more than sequences. Without, a sequence's are those of its batch entry.
    pub query_offsets: Option<&'a [usize]>,
    /// The tensors are a ragged batch: a query sees the keys of its own sequence, in which positions
    /// count from 0.
    pub ragged: Option<Offsets<'a>>,
}

impl<'a, T> Masking<'a, T> {
    /// The same masks for a computation in another type; `None` with a bias, whose numbers are of this
    /// one.
    pub fn of_element<U>(self) -> Option<Masking<'a, U>> {
        // Every field, so that a new mask is thought of here.
        let Self {
            causal,
            window,
            prefix,
            key_starts,
            key_lengths,
            documents,
            tree,
            blocks,
            boolean,
            packed,
            bias: None,
            pages,
            query_offsets,
            ragged,
        } = self
        else {
            return None;
        };
        Some(Masking {
            causal,
            window,
            prefix,
            key_starts,
            key_lengths,
            documents,
            tree,
            blocks,
            boolean,
            packed,
            bias: None,
            pages,
            query_offsets,
            ragged,
        })
    }

    /// Whether a query sees all keys of its sequence that stand before its own position and exist.
    pub fn sees_all_before(&self) -> bool {
        // Every field, so that a new mask is thought of here.
        matches!(
            self,
            Self {
                causal: None | Some(Causal::BottomRight),
                window: Window { left: None, right: None },
                prefix: _,
                key_starts: None,
                key_lengths: None,
                documents: None,
                tree: None,
                blocks: None,
                boolean: None,
                packed: None,
                bias: None,
                pages: _,
                query_offsets: _,
                ragged: None,
            }
        )
    }
}

impl<T> Default for Masking<'_, T> {
    fn default() -> Self {
        Self {
            causal: None,
            window: Window::default(),
            prefix: None,
            key_starts: None,
            key_lengths: None,
            documents: None,
            tree: None,
            blocks: None,
            boolean: None,
            packed: None,
            bias: None,
            pages: None,
            query_offsets: None,
            ragged: None,
        }
    }
}

impl<T> Masking<'_, T> {
    /// Refuses what cannot be beside pages, and what cannot be without.
    fn check_pages(&self) -> Result<()> {
        if self.pages.is_none() {
            return match self.query_offsets {
                None => Ok(()),
                Some(offsets) => {
                    let expected = "none without pages: a ragged batch has offsets of both kinds";
                    value_error("query_offsets", offsets, expected.into())
                }
            };
        }
        let expected = "none beside pages, whose sequences have";
        if let Some(starts) = self.key_starts {
            return value_error("key_starts", starts, format!("{expected} starts of their own"));
        }
        if let Some(ragged) = self.ragged {
            return value_error("ragged", ragged, format!("{expected} tables of their own"));
        }
        if let Some(documents) = self.documents {
            return value_error("documents", documents, format!("{expected} no documents"));
        }
        Ok(())
    }
}

/// Validated masks, but for the bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask<'a> {
    sequences: Sequences<'a>,
    positions: Positions<'a>,
    existing: Existing<'a>,
    documents: Option<Packed<'a>>,
    tree: Option<Tree<'a>>,
    blocks: Option<BlockPattern<'a>>,
    /// As bytes and as bits.
    boolean: [Option<Boolean<'a>>; 2],
}

impl<'a> Mask<'a> {
    /// The masks of a problem with tensors of these shapes, and its extents: of a ragged batch
    /// `seq_kv` is that of the longest sequence.
    pub(crate) fn new<T>(
        masking: &Masking<'a, T>,
        (query, key): (Shape, Shape),
        dims: Dims,
    ) -> Result<(Self, Dims)> {
        let sequences = match masking.pages {
            Some(pages) => Sequences::paged(query, masking.query_offsets, pages.lengths)?,
            None => Sequences::new(query, key, masking.ragged)?,
        };
        masking.check_pages()?;
        let (most_q, most_kv) = sequences.longest();
        let dims = Dims { seq_kv: most_kv, ..dims };
        let keys = |s: usize| sequences.at(s).seq_kv;
        let count = sequences.count();
        let starts = masking.pages.map(|pages| pages.starts).or(masking.key_starts);
        let existing = Existing::new(starts, masking.key_lengths, (count, keys))?;
        let Masking { causal, window, prefix, .. } = *masking;
        if let Some(tree) = &masking.tree {
            tree.check(count, |s| existing.end(&sequences.at(s)))?;
        }
        let whole = [dims.batch, dims.q_heads, dims.seq_q, dims.seq_kv];
        let documents = masking
            .documents
            .map(|documents| Packed::new(documents, &sequences, [query[0], query[2], key[2]]));
        let blocks =
            masking.blocks.map(|blocks| blocks.checked([count, dims.q_heads, most_q, most_kv]));
        let mask = Self {
            sequences,
            positions: Positions::new(causal, window, prefix, (count, keys))?,
            existing,
            documents: documents.transpose()?,
            tree: masking.tree,
            blocks: blocks.transpose()?,
            boolean: [
                masking.boolean.map(|mask| Boolean::of_bytes(mask, whole)).transpose()?,
                masking.packed.map(|mask| Boolean::of_bits(mask, whole)).transpose()?,
            ],
        };
        Ok((mask, dims))
    }

    /// How many sequences there are.
    pub(crate) fn sequences(&self) -> usize {
        self.sequences.count()
    }

    /// Sequence `index`, which must exist.
    pub(crate) fn sequence(&self, index: usize) -> Sequence {
        self.sequences.at(index)
    }

    /// Whether every query of a sequence has the same range.
    pub(crate) fn has_uniform_ranges(&self) -> bool {
        self.positions.are_uniform() && self.documents.is_none() && self.tree.is_none()
    }

    /// Whether sequences lie one behind the other in the tensors.
    pub(crate) fn is_ragged(&self) -> bool {
        self.sequences.are_ragged()
    }

    /// Whether how much a query sees is not a matter of its position alone.
    pub(crate) fn is_uneven(&self) -> bool {
        self.is_ragged()
            || self.existing.vary()
            || self.documents.is_some()
            || self.blocks.is_some()
    }

    /// Whether some rows need bits beside their ranges.
    pub(crate) fn has_bits(&self) -> bool {
        self.tree.is_some() || self.has_gaps_in_rows()
    }

    /// Whether a row's range may span blocks of which it sees nothing.
    fn has_gaps_in_rows(&self) -> bool {
        self.documents.is_some_and(|documents| !documents.are_ranges())
            || self.blocks.is_some()
            || self.boolean.iter().any(Option::is_some)
    }

    /// Whether there may be blocks between those that some rows see.
    pub(crate) fn has_gaps(&self) -> bool {
        self.documents.is_some() || self.has_gaps_in_rows()
    }

    /// Whether rows need bits to know what they see of `keys`.
    pub(crate) fn needs_bits(&self, sequence: &Sequence, keys: &Range<usize>) -> bool {
        self.has_gaps_in_rows()
            || self
                .tree
                .is_some_and(|tree| tree.begins_before(self.existing.end(sequence), keys.end))
    }

    /// Where query `i` stands among the keys.
    pub(crate) fn position(&self, sequence: &Sequence, i: usize) -> i128 {
        self.positions.position(sequence, self.existing.end(sequence), i)
    }

    /// The keys that query `i` sees, but for bits.
    pub(crate) fn range(&self, sequence: &Sequence, i: usize) -> Range<usize> {
        self.ranges(sequence).at(i)
    }

    /// The same of many queries of a sequence.
    pub(crate) fn ranges(&self, sequence: &Sequence) -> Ranges<'_, 'a> {
        Ranges {
            mask: self,
            sequence: *sequence,
            existing: self.existing.range(sequence),
            band: self.positions.band(sequence, self.existing.end(sequence)),
            document: None,
        }
    }

    /// An estimate, quickly found, of how many keys a query sees: the mean over some of `queries`.
    pub(crate) fn mean_keys(&self, sequence: &Sequence, queries: Range<usize>) -> f64 {
        /// Queries to ask.
        const SAMPLES: usize = 16;
        // The scan for a document in any order is too long.
        if self.documents.is_some_and(|documents| !documents.are_ranges()) {
            return sequence.seq_kv as f64;
        }
        let count = if self.has_uniform_ranges() { 1 } else { queries.len().min(SAMPLES) };
        let mut ranges = self.ranges(sequence);
        let keys: usize = (0..count)
            .map(|n| queries.start + (2 * n + 1) * queries.len() / (2 * count))
            .map(|i| ranges.at(i).len())
            .sum();
        let density = self.blocks.map_or(1.0, |blocks| blocks.density(sequence, queries));
        keys as f64 / count.max(1) as f64 * density
    }
}

/// The ranges of a sequence's queries: what they share is found once.
#[derive(Debug)]
pub(crate) struct Ranges<'m, 'a> {
    mask: &'m Mask<'a>,
    sequence: Sequence,
    existing: Range<usize>,
    band: Band,
    /// The last document, and its keys.
    document: Option<(i64, Range<usize>)>,
}

impl Ranges<'_, '_> {
    /// The keys that query `i` sees, but for bits.
    pub(crate) fn at(&mut self, i: usize) -> Range<usize> {
        let Self { mask, sequence, existing, .. } = self;
        let mut keys = both(self.band.range(i), existing.clone());
        if let Some(documents) = &mask.documents {
            let id = documents.id(sequence, i);
            let own = match self.document.take() {
                Some((last, keys)) if last == id => keys,
                _ => documents.range(sequence, id),
            };
            keys = both(keys, own.clone());
            self.document = Some((id, own));
        }
        if let Some(tree) = &mask.tree {
            keys = both(keys, tree.range(sequence, mask.existing.end(sequence), i));
        }
        keys
    }
}

/// The keys in both ranges, empty ones such that nothing lies outside either.
fn both(a: Range<usize>, b: Range<usize>) -> Range<usize> {
    let (start, end) = (a.start.max(b.start), a.end.min(b.end));
    start.min(end)..end
}
