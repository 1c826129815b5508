//! The keys and values of a model, in any kind of cache.

use headwise::kv_cache::{KvShape, PagedCapacity, SequenceId, TableBuffer};
use headwise::{ContiguousCache, Error, KvView, NewTokens, PagedCache, Result, RingCache};

/// A cache for each layer, all of one kind. The decoder only appends and looks: what differs
/// between the kinds stays here.
#[derive(Debug)]
pub(crate) enum Caches {
    Contiguous(Vec<ContiguousCache>),
    Ring(Vec<RingCache>),
    Paged {
        layers: Vec<PagedCache>,
        /// The sequences of a step. Caches that are told the same give the same names, so that one
        /// list serves all layers.
        sequences: Vec<SequenceId>,
        tables: TableBuffer,
    },
}

impl Caches {
    /// Room for one sequence of at most `capacity` tokens.
    pub(crate) fn contiguous(layers: usize, shape: KvShape, capacity: usize) -> Result<Self> {
        let caches = (0..layers).map(|_| ContiguousCache::new(shape, 1, capacity));
        Ok(Self::Contiguous(caches.collect::<Result<_>>()?))
    }

    /// Room for the last `capacity` tokens of one sequence.
    pub(crate) fn ring(layers: usize, shape: KvShape, capacity: usize) -> Result<Self> {
        let caches = (0..layers).map(|_| RingCache::new(shape, 1, capacity));
        Ok(Self::Ring(caches.collect::<Result<_>>()?))
    }

    /// Pages for as many sequences as they suffice for. There is one at first.
    pub(crate) fn paged(layers: usize, shape: KvShape, capacity: PagedCapacity) -> Result<Self> {
        let caches = (0..layers).map(|_| PagedCache::new(shape, capacity));
        let mut layers: Vec<_> = caches.collect::<Result<_>>()?;
        let sequences = vec![in_all(&mut layers, PagedCache::create)?];
        Ok(Self::Paged { layers, sequences, tables: TableBuffer::new() })
    }

    /// Adds a sequence that begins as the first one does. It holds the same pages: nothing is
    /// copied until one of the two writes to a page.
    pub(crate) fn fork(&mut self) -> Result<()> {
        let Self::Paged { layers, sequences, .. } = self else {
            return Err(Error::Value {
                argument: "cache",
                got: "one in which a sequence has its rows to itself".into(),
                expected: "pages, which sequences can share".into(),
            });
        };
        let first = sequences[0];
        sequences.push(in_all(layers, |cache| cache.fork(first))?);
        Ok(())
    }

    /// The sequences that grow in a step.
    pub(crate) fn sequences(&self) -> usize {
        match self {
            Self::Contiguous(layers) => layers[0].lengths().len(),
            Self::Ring(layers) => layers[0].lengths().len(),
            Self::Paged { sequences, .. } => sequences.len(),
        }
    }

    /// Appends the same number of tokens to each sequence.
    pub(crate) fn append(&mut self, layer: usize, tokens: &NewTokens<'_>) -> Result<()> {
        match self {
            Self::Contiguous(layers) => layers[layer].append(tokens),
            Self::Ring(layers) => layers[layer].append(tokens),
            Self::Paged { layers, sequences, .. } => layers[layer].append(sequences, tokens),
        }
    }

    /// What attention reads of a layer. The layers of a step are looked at in order.
    pub(crate) fn view(&mut self, layer: usize) -> Result<KvView<'_>> {
        match self {
            Self::Contiguous(layers) => Ok(layers[layer].view()),
            Self::Ring(layers) => Ok(layers[layer].view()),
            Self::Paged { layers, sequences, tables } => {
                // All layers use the same pages: the tables of the first, filled once a step, serve
                // them all.
                if layer == 0 {
                    layers[0].fill_tables(sequences, tables)?;
                }
                layers[layer].view_by(tables.tables())
            }
        }
    }

    /// The memory of all layers, used or not.
    pub(crate) fn bytes(&self) -> usize {
        let (layers, tokens, shape) = match self {
            Self::Contiguous(layers) => (layers.len(), layers[0].capacity(), layers[0].shape()),
            Self::Ring(layers) => (layers.len(), layers[0].capacity(), layers[0].shape()),
            Self::Paged { layers, .. } => {
                let PagedCapacity { pages, page_size, .. } = layers[0].capacity();
                (layers.len(), pages * page_size, layers[0].shape())
            }
        };
        let token = shape.kv_heads * (shape.head_dim + shape.value_dim);
        layers * tokens * token * size_of::<f32>()
    }

    /// The pages of a layer that the first two sequences both hold.
    pub(crate) fn shared_pages(&self) -> Result<usize> {
        let Self::Paged { layers, sequences, .. } = self else { return Ok(0) };
        let [first, second, ..] = sequences[..] else { return Ok(0) };
        let [first, second] = [layers[0].pages(first)?, layers[0].pages(second)?];
        Ok(first.iter().filter(|page| second.contains(page)).count())
    }
}

/// Tells every layer's cache the same: a sequence, by one name for all.
fn in_all(
    layers: &mut [PagedCache],
    tell: impl FnMut(&mut PagedCache) -> Result<SequenceId>,
) -> Result<SequenceId> {
    let names = layers.iter_mut().map(tell).collect::<Result<Vec<_>>>()?;
    Ok(names[0])
}
