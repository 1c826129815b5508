//! A paged cache as it is after many sequences have come and gone.

use headwise::kv_cache::{KvShape, PagedCapacity, SequenceId};
use headwise::{NewTokens, PagedCache, Tensor, View};

use crate::Result;
use crate::inputs::Random;

/// Sequences that are served at a time.
const AT_A_TIME: usize = 16;

/// How often each page is taken, on average, before the cache is handed over.
const GENERATIONS: usize = 4;

/// A cache of no sequence, whose free pages lie in no order, with room for `sequences` in `pages`
/// of `page_size` tokens.
pub(crate) fn served_cache(
    shape: KvShape,
    sequences: usize,
    (pages, page_size): (usize, usize),
) -> Result<PagedCache> {
    let sequences = sequences + AT_A_TIME;
    let capacity = PagedCapacity { pages, page_size, sequences, pages_per_sequence: pages };
    let mut cache = PagedCache::new(shape, capacity)?;
    let key = Tensor::zeros([1, shape.kv_heads, page_size, shape.head_dim])?;
    let value = Tensor::zeros([1, shape.kv_heads, page_size, shape.value_dim])?;
    serve(&mut cache, (key.view(), value.view()))?;
    Ok(cache)
}

/// Sequences take a page in random turn. When there is none left, one of them ends.
fn serve(cache: &mut PagedCache, (key, value): (View<'_, f32>, View<'_, f32>)) -> Result<()> {
    let mut random = Random::new(1);
    let mut live: Vec<SequenceId> = Vec::new();
    for _ in 0..GENERATIONS * cache.capacity().pages {
        while cache.free_pages() == 0 {
            cache.free(live.swap_remove(random.below(live.len())))?;
        }
        while live.len() < AT_A_TIME {
            live.push(cache.create()?);
        }
        let turn = live[random.below(live.len())];
        cache.append(&[turn], &NewTokens::new(key, value))?;
    }
    // They stand in no order.
    live.into_iter().try_for_each(|sequence| cache.free(sequence))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lie_in_no_order() -> Result<()> {
        let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 2 };
        for (pages, page_size) in [(1, 3), (2, 1), (256, 1), (256, 16)] {
            let mut cache = served_cache(shape, 1, (pages, page_size))?;
            assert_eq!((cache.free_pages(), cache.free_sequences()), (pages, AT_A_TIME + 1));
            let sequence = cache.create()?;
            let [key, value] =
                [4, 2].map(|dim| Tensor::<f32>::zeros([1, 1, pages * page_size, dim]));
            let (key, value) = (key?, value?);
            cache.append(&[sequence], &NewTokens::new(key.view(), value.view()))?;
            let taken = cache.pages(sequence)?;
            let mut sorted = taken.to_vec();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..pages as u32));
            let pairs = || taken.windows(2).map(|pair| (pair[0], pair[1]));
            let neighbours = pairs().filter(|(a, b)| a.abs_diff(*b) == 1).count();
            let falling = pairs().filter(|(a, b)| a > b).count();
            if pages > 2 {
                assert!(neighbours < pages / 16, "{neighbours} of {pages}: {taken:?}");
                assert!(falling > pages / 8, "{falling} of {pages}: {taken:?}");
            }
        }
        Ok(())
    }
}
