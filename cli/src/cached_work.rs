//! Attention to keys and values in a cache.

use headwise::kv_cache::{KvShape, SequenceId, TableBuffer};
use headwise::{
    AttentionOptions, ContiguousCache, Executor, Isa, KvStorage, KvView, NewTokens, Outputs,
    PagedCache, RingCache, Tensor, View, Workspace, attention_cached_into,
};

use crate::Result;
use crate::served::served_cache;
use crate::shapes::{AttentionShape, Cache};
use crate::work::{Problem, Way, Work};

/// Attention to all sequences of a cache, into an output that is reused. A run makes the view that
/// it reads, page tables included, as a step of decoding does.
pub(crate) struct CachedWork {
    query: Tensor,
    options: AttentionOptions<'static>,
    cache: Filled,
    out: Tensor,
    workspace: Workspace,
}

impl CachedWork {
    /// The problem that the shape is in dense tensors, of a cache.
    pub(crate) fn new(s: &AttentionShape, cache: Cache, isa: Isa) -> Result<Self> {
        let problem = Problem::synthetic(s)?;
        let options = problem.options().isa(isa);
        let cache = Filled::new(cache, &problem)?;
        let out = Tensor::zeros([s.batch, s.q_heads, s.seq_q, s.head_dim])?;
        Ok(Self { query: problem.query, options, cache, out, workspace: Workspace::new() })
    }
}

impl Work for CachedWork {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        let Self { query, options, cache, out, workspace } = self;
        let options: AttentionOptions<'_> = *options;
        let options = options.algorithm(way.algorithm()).executor(executor);
        let outputs = Outputs::new(out.view_mut());
        attention_cached_into(query.view(), &cache.view()?, &options, outputs, workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        self.cache
            .pools()
            .into_iter()
            .filter_map(|pool| pool.as_slice().map(f32::as_bytes))
            .collect()
    }
}

/// A cache with a sequence for each entry of a batch.
enum Filled {
    Contiguous(ContiguousCache),
    Ring(RingCache),
    Paged(PagedCache, Vec<SequenceId>, TableBuffer),
}

impl Filled {
    /// The keys and values of a problem in a cache of that kind, which has no room beyond them.
    fn new(kind: Cache, Problem { key, value, .. }: &Problem) -> Result<Self> {
        let [batch, kv_heads, seq_kv, head_dim] = key.shape();
        let shape = KvShape { kv_heads, head_dim, value_dim: value.shape()[3] };
        let tokens = NewTokens::new(key.view(), value.view());
        Ok(match kind {
            Cache::Contiguous => {
                let mut cache = ContiguousCache::new(shape, batch, seq_kv)?;
                cache.append(&tokens)?;
                Self::Contiguous(cache)
            }
            Cache::Ring => {
                let mut cache = RingCache::new(shape, batch, seq_kv)?;
                // They wrap where a block of keys does not end.
                let before = seq_kv / 2 + 1;
                cache.append(&NewTokens::new(first(key, before)?, first(value, before)?))?;
                cache.append(&tokens)?;
                Self::Ring(cache)
            }
            Cache::Paged(page_size) => {
                let pages = batch * seq_kv.div_ceil(page_size);
                let mut cache = served_cache(shape, batch, (pages, page_size))?;
                let sequences =
                    (0..batch).map(|_| cache.create()).collect::<headwise::Result<Vec<_>>>()?;
                cache.append(&sequences, &tokens)?;
                Self::Paged(cache, sequences, TableBuffer::new())
            }
        })
    }

    /// What attention reads.
    fn view(&mut self) -> Result<KvView<'_>> {
        Ok(match self {
            Self::Contiguous(cache) => cache.view(),
            Self::Ring(cache) => cache.view(),
            Self::Paged(cache, sequences, tables) => cache.view(sequences, tables)?,
        })
    }

    /// The memory of keys and of values.
    fn pools(&self) -> [View<'_, f32>; 2] {
        match self {
            Self::Contiguous(cache) => [cache.view().key(), cache.view().value()],
            Self::Ring(cache) => [cache.view().key(), cache.view().value()],
            Self::Paged(cache, ..) => [cache.key(), cache.value()],
        }
    }
}

/// The first rows of each sequence.
fn first(tensor: &Tensor, rows: usize) -> Result<View<'_, f32>> {
    let [batch, heads, _, dim] = tensor.shape();
    let strides = tensor.view().strides();
    Ok(View::strided(tensor.data(), 0, [batch, heads, rows, dim], strides)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{Shape, select};
    use crate::work::AttentionWork;
    use headwise::Rayon;

    /// What a cache gives is what dense tensors give: to the bits where positions are the same. A
    /// ring's count on, and its sums begin elsewhere.
    #[test]
    fn caches_hold_the_problem() -> Result<()> {
        let Shape::Attention(_, shape) = select(None, Some("decode-4k"))?[0] else { panic!() };
        let step = AttentionShape { batch: 2, seq_q: 3, seq_kv: 300, causal: true, ..shape };
        let mut dense = AttentionWork::synthetic(&step, Isa::widest())?;
        dense.run(Way::Fused, &Rayon)?;
        let caches = [Cache::Contiguous, Cache::Ring, Cache::Paged(1), Cache::Paged(7)];
        for cache in caches.into_iter().chain([Cache::Paged(128), Cache::Paged(1024)]) {
            let mut work = CachedWork::new(&step, cache, Isa::widest())?;
            work.run(Way::Fused, &Rayon)?;
            let pairs = work.out.data().iter().zip(dense.out().data());
            let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let most = if cache == Cache::Ring { 1e-5 } else { 0.0 };
            assert!(error <= most, "{cache:?}: {error}");
        }
        Ok(())
    }

    /// The read loop reads the memory that attention reads.
    #[test]
    fn operands_are_the_pools() -> Result<()> {
        let Shape::Attention(_, shape) = select(None, Some("decode-512"))?[0] else { panic!() };
        for (cache, rows) in [(Cache::Contiguous, 512), (Cache::Ring, 512), (Cache::Paged(48), 528)]
        {
            let work = CachedWork::new(&shape, cache, Isa::widest())?;
            let operands = work.operands();
            assert!(operands.iter().map(|pool| pool.len()).eq([4 * 8 * 128 * rows; 2]));
        }
        Ok(())
    }
}
