//! A plan made once serves all layers of a model, to the bits of calls without one.

mod common;

use common::executors::{Eager, Scoped};
use common::{Rng, bits, for_all};
use headwise::kv_cache::{KvShape, PagedCapacity, SequenceId, TableBuffer};
use headwise::{
    Algorithm, Alibi, AttentionOptions, Error, Executor, Isa, NewTokens, Outputs, PagedCache,
    PlanBuffer, Result, Serial, View, ViewMut, Workspace, attention_cached,
};
use proptest::prelude::*;
use proptest::sample::select;

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 12 };
const HEADS: usize = 6;

/// Caches that were told the same, with keys and values of their own.
struct Layers {
    caches: Vec<PagedCache>,
    ids: Vec<SequenceId>,
}

impl Layers {
    fn new(lengths: &[usize], page_size: usize, rng: &mut Rng) -> Result<Self> {
        let capacity = PagedCapacity {
            pages: lengths.iter().map(|n| n.div_ceil(page_size)).sum::<usize>() + 1,
            page_size,
            sequences: lengths.len(),
            pages_per_sequence: 9000_usize.div_ceil(page_size),
        };
        let (mut caches, mut ids) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let mut cache = PagedCache::new(SHAPE, capacity)?;
            ids = lengths.iter().map(|_| cache.create()).collect::<Result<_>>()?;
            for (&id, &tokens) in ids.iter().zip(lengths) {
                let KvShape { kv_heads, head_dim, value_dim, .. } = SHAPE;
                let key = rng.normals(tokens * kv_heads * head_dim);
                let value = rng.normals(tokens * kv_heads * value_dim);
                let key = View::bshd(&key, [1, kv_heads, tokens, head_dim])?;
                let value = View::bshd(&value, [1, kv_heads, tokens, value_dim])?;
                cache.append(&[id], &NewTokens::new(key, value))?;
            }
            caches.push(cache);
        }
        Ok(Self { caches, ids })
    }

    /// Compares each layer's results by one plan with those without.
    fn compare(&self, query: View<'_, f32>, options: &AttentionOptions<'_>) -> Result<()> {
        let (mut tables, mut buffer) = (TableBuffer::new(), PlanBuffer::new());
        let view = self.caches[0].view(&self.ids, &mut tables)?;
        let plan = options.plan_cached(query, &view, &mut buffer)?;
        let mut workspace = Workspace::with_bytes(plan.workspace_bytes())?;
        let bytes = workspace.bytes();
        let [batch, heads, seq, _] = query.shape();
        for cache in &self.caches {
            let mut out = vec![f32::NAN; batch * heads * seq * SHAPE.value_dim];
            let mut lse = vec![f32::NAN; batch * heads * seq];
            let to = ViewMut::bhsd(&mut out, [batch, heads, seq, SHAPE.value_dim])?;
            let outputs = Outputs::new(to);
            let outputs = outputs.with_lse(ViewMut::bhsd(&mut lse, [batch, heads, seq, 1])?);
            let isa = plan.run(query, [cache.key(), cache.value()], outputs, &mut workspace)?;
            let mut tables = TableBuffer::new();
            let view = cache.view(&self.ids, &mut tables)?;
            let expected = attention_cached(query, &view, &options.return_lse())?;
            assert_eq!(isa, expected.isa);
            assert!(bits(&out) == bits(expected.out.data()), "out on {isa}");
            let expected = expected.lse.map(|lse| bits(lse.data()));
            assert_eq!(Some(bits(&lse)), expected, "lse on {isa}");
        }
        assert_eq!(workspace.bytes(), bytes, "the workspace was too small");
        Ok(())
    }
}

#[test]
fn one_plan_for_all_layers() {
    let length = prop_oneof![1..20_usize, 100..300_usize, Just(5000)];
    let lengths = prop::collection::vec(length, 1..6);
    let page_sizes = select(vec![1, 16, 40, 128]);
    let rest = (1..4_usize, 0..4_usize, any::<u64>());
    for_all(40, (lengths, page_sizes, rest), |(lengths, page_size, (seq, kind, seed))| {
        let mut rng = Rng(seed);
        let fail = |error: Error| -> Layers { panic!("{error}") };
        let layers = Layers::new(&lengths, page_size, &mut rng).unwrap_or_else(fail);
        let count = lengths.len();
        let queries = rng.normals(count * seq * HEADS * SHAPE.head_dim);
        let offsets: Vec<usize> = (0..=count).map(|n| n * seq).collect();
        for isa in Isa::available() {
            for executor in [&Serial as &dyn Executor, &Scoped(3), &Eager(2)] {
                let plain = AttentionOptions::new().isa(isa).executor(executor).causal();
                let options = match kind {
                    0 => plain,
                    1 => plain.window(Some(30), None).softcap(4.0),
                    2 => plain.alibi(Alibi::Standard),
                    _ => plain.query_offsets(&offsets),
                };
                let query = match kind {
                    0..3 => View::bshd(&queries, [count, HEADS, seq, SHAPE.head_dim]),
                    _ => View::bshd(&queries, [1, HEADS, count * seq, SHAPE.head_dim]),
                };
                let done = query.and_then(|query| layers.compare(query, &options));
                assert_eq!(done, Ok(()), "{lengths:?} in pages of {page_size}");
            }
        }
    });
}

#[test]
fn tensors_of_other_shapes_are_refused() -> Result<()> {
    let layers = Layers::new(&[20, 7], 16, &mut Rng(3))?;
    let (mut tables, mut buffer) = (TableBuffer::new(), PlanBuffer::new());
    let view = layers.caches[0].view(&layers.ids, &mut tables)?;
    let queries = vec![0.5; 2 * HEADS * 3 * 8];
    let query = View::bshd(&queries, [2, HEADS, 1, 8])?;
    let options = AttentionOptions::new().causal();
    let plan = options.plan_cached(query, &view, &mut buffer)?;
    let cache = &layers.caches[1];
    let run = |[query, key, value]: [View<'_, f32>; 3]| {
        let mut out = [7.0; 2 * HEADS * 12];
        let outputs = Outputs::new(ViewMut::bshd(&mut out, [2, HEADS, 1, 12])?);
        let result = plan.run(query, [key, value], outputs, &mut Workspace::new());
        assert!(result.is_ok() || out == [7.0; 2 * HEADS * 12], "written in spite of {result:?}");
        result
    };
    let longer = View::bshd(&queries, [2, HEADS, 3, 8])?;
    let spaced = View::strided(&queries, 0, [2, HEADS, 1, 8], [96, 16, 1, 2])?;
    let (key, value) = (cache.key(), cache.value());
    let named = |error: Result<Isa>, name: &str| {
        let text = error.err().map_or_else(String::new, |error| error.to_string());
        assert!(text.contains(name), "{text:?} does not name {name}");
    };
    named(run([longer, key, value]), "query");
    named(run([spaced, key, value]), "query");
    named(run([query, value, value]), "key");
    named(run([query, key, key]), "value");
    assert!(run([query, key, value]).is_ok());
    let unfused = options.algorithm(Algorithm::Unfused);
    named(
        unfused.plan_cached(query, &view, &mut PlanBuffer::new()).map(|_| Isa::Portable),
        "algorithm",
    );
    Ok(())
}
