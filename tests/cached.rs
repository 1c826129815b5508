//! Attention over caches: to the bits that the same keys and values give in dense tensors, whatever the
//! pages, and however the queries came.

mod common;

use common::executors::Scoped;
use common::{Rng, bits, for_all, poison, result_bits};
use headwise::kv_cache::{KvShape, PagedCapacity, TableBuffer};
use headwise::{
    Algorithm, Alibi, Attention, AttentionOptions, ContiguousCache, Documents, Error, Isa, KvView,
    NewTokens, PageTables, PagedCache, RingCache, Serial, Tensor, View, attention,
    attention_cached,
};
use proptest::prelude::*;
use proptest::sample::select;

/// An engine's own pool, with pages in any order, and what it holds.
struct Pool {
    shape: KvShape,
    page_size: usize,
    key: Vec<f32>,
    value: Vec<f32>,
    table: Vec<u32>,
    offsets: Vec<usize>,
    lengths: Vec<usize>,
    starts: Vec<usize>,
}

impl Pool {
    /// Sequences of these lengths, of which the first positions no longer exist.
    fn new(shape: KvShape, page_size: usize, sequences: &[(usize, usize)], rng: &mut Rng) -> Self {
        let mut offsets = vec![0];
        for &(start, length) in sequences {
            // A table that wraps holds no more than what exists.
            let pages = if start > 0 {
                (length - start).div_ceil(page_size) + 1
            } else {
                length.div_ceil(page_size)
            };
            offsets.push(offsets[offsets.len() - 1] + pages);
        }
        let pages = offsets[sequences.len()];
        let mut table: Vec<u32> = (0..pages as u32).collect();
        for n in (1..pages).rev() {
            table.swap(n, rng.below(n + 1));
        }
        let rows = pages * shape.kv_heads * page_size;
        // Whatever is no token's must not matter.
        let mut fill = |dim: usize| (0..rows * dim).map(|_| poison(rng)).collect::<Vec<f32>>();
        let (key, value) = (fill(shape.head_dim), fill(shape.value_dim));
        let (starts, lengths) = sequences.iter().copied().unzip();
        let mut this = Self { shape, page_size, key, value, table, offsets, lengths, starts };
        for s in 0..sequences.len() {
            for position in this.starts[s]..this.lengths[s] {
                for head in 0..shape.kv_heads {
                    let row = this.row(s, position, head);
                    let (k, v) = (shape.head_dim, shape.value_dim);
                    this.key[row * k..][..k].copy_from_slice(&rng.normals(k));
                    this.value[row * v..][..v].copy_from_slice(&rng.normals(v));
                }
            }
        }
        this
    }

    fn row(&self, s: usize, position: usize, head: usize) -> usize {
        let pages = &self.table[self.offsets[s]..self.offsets[s + 1]];
        let page = pages[position / self.page_size % pages.len()] as usize;
        (page * self.shape.kv_heads + head) * self.page_size + position % self.page_size
    }

    fn view(&self) -> KvView<'_> {
        let pages = self.table.len();
        let KvShape { kv_heads, head_dim, value_dim, .. } = self.shape;
        let pool = |data, dim| view(data, [pages, kv_heads, self.page_size, dim]);
        let tables = PageTables {
            table: &self.table,
            offsets: &self.offsets,
            lengths: &self.lengths,
            starts: &self.starts,
        };
        KvView::new(pool(&self.key, head_dim), pool(&self.value, value_dim), tables)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

fn view(data: &[f32], shape: [usize; 4]) -> View<'_, f32> {
    View::bhsd(data, shape).unwrap_or_else(|error| panic!("{error}"))
}

/// The keys and values of one sequence of a cache, in tensors; what exists no more is poison.
fn dense(cache: &KvView<'_>, s: usize) -> [Tensor<f32>; 2] {
    let length = cache.tables().lengths[s];
    let mut rng = Rng(5);
    let mut tensor = |[_, heads, _, dim]: [usize; 4], is_key: bool| {
        let mut data = Vec::with_capacity(heads * length * dim);
        for (head, position) in (0..heads).flat_map(|head| (0..length).map(move |p| (head, p))) {
            let row = match is_key {
                true => cache.key_row(s, position, head),
                false => cache.value_row(s, position, head),
            };
            match row {
                Some(row) => data.extend_from_slice(row),
                None => data.extend((0..dim).map(|_| poison(&mut rng))),
            }
        }
        Tensor::new(data, [1, heads, length, dim]).unwrap_or_else(|error| panic!("{error}"))
    };
    [tensor(cache.key().shape(), true), tensor(cache.value().shape(), false)]
}

/// One sequence's queries against dense copies of its keys and values.
fn alone(
    query: View<'_, f32>,
    cache: &KvView<'_>,
    s: usize,
    options: &AttentionOptions<'_>,
) -> Attention {
    let [key, value] = dense(cache, s);
    let starts = [cache.tables().starts[s]];
    let options = options.key_starts(&starts);
    attention(query, key.view(), value.view(), &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Kinds of options.
fn options(kind: usize, sinks: &[f32]) -> AttentionOptions<'_> {
    let options = AttentionOptions::new().return_lse();
    match kind {
        0 => options,
        1 => options.causal(),
        2 => options.causal().window(Some(70), None),
        3 => options.causal().softcap(5.0).alibi(Alibi::Standard),
        _ => options.causal().sinks(sinks),
    }
}

#[test]
fn to_the_bits_of_dense_tensors() {
    let sizes = select(vec![1, 3, 8, 16, 16, 24, 32, 64, 100, 128, 256, 1024]);
    let length = || prop_oneof![0..20_usize, 100..300_usize, Just(0), 2000..2200_usize];
    let sequence =
        (length(), 0..3_usize).prop_map(|(n, kind)| (if kind == 0 { n / 2 } else { 0 }, n));
    let sequences = prop::collection::vec(sequence, 1..4);
    let dims = (select(vec![1, 3, 4, 8, 20, 64]), select(vec![2, 5, 16, 40]));
    let heads = (1..3_usize, 1..5_usize);
    let rest = (sizes, 1..20_usize, 0..5_usize, any::<u64>());
    for_all(90, (sequences, dims, heads, rest), |(sequences, dims, heads, rest)| {
        let (page_size, seq_q, kind, seed) = rest;
        let shape = KvShape { kv_heads: heads.0, head_dim: dims.0, value_dim: dims.1 };
        let q_heads = heads.0 * heads.1;
        let mut rng = Rng(seed);
        let pool = Pool::new(shape, page_size, &sequences, &mut rng);
        let (cache, count) = (pool.view(), sequences.len());
        let queries = rng.normals(count * q_heads * seq_q * dims.0);
        let query = view(&queries, [count, q_heads, seq_q, dims.0]);
        for isa in Isa::available() {
            let sinks = vec![0.5; q_heads];
            let options = options(kind, &sinks).isa(isa);
            for executor in [&Serial as &dyn headwise::Executor, &Scoped(3)] {
                let result = attention_cached(query, &cache, &options.executor(executor));
                let result = result.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(result.isa, isa);
                for s in 0..count {
                    let rows = q_heads * seq_q;
                    let one = &queries[s * rows * dims.0..][..rows * dims.0];
                    let one = view(one, [1, q_heads, seq_q, dims.0]);
                    let expected = alone(one, &cache, s, &options);
                    let out = &result.out.data()[s * rows * dims.1..][..rows * dims.1];
                    assert_eq!(bits(out), bits(expected.out.data()), "sequence {s} on {isa}");
                    let lse = [&result, &expected].map(|result| result.lse.as_ref());
                    let [Some(lse), Some(expected)] = lse else { panic!("no lse") };
                    let lse = &lse.data()[s * rows..][..rows];
                    assert_eq!(bits(lse), bits(expected.data()), "sequence {s} on {isa}");
                }
            }
        }
    });
}

/// A prompt and then token by token, through every kind of cache, and all at once without one.
#[test]
fn token_by_token_is_the_whole_prefill() {
    const TOKENS: usize = 300;
    const PROMPT: usize = 190;
    const WINDOW: usize = 40;
    let shape = KvShape { kv_heads: 2, head_dim: 16, value_dim: 8 };
    let mut rng = Rng(11);
    let [query, key, value] = [4 * 16, 2 * 16, 2 * 8].map(|width| rng.normals(TOKENS * width));
    let part = |data: &'static [f32], heads: usize, range: std::ops::Range<usize>| {
        let width = data.len() / TOKENS;
        let data = &data[range.start * width..range.end * width];
        View::bshd(data, [1, heads, range.len(), width / heads]).unwrap_or_else(|e| panic!("{e}"))
    };
    let [query, key, value] = [query, key, value].map(|data| &*data.leak());
    let chunks: Vec<_> = [0..PROMPT, PROMPT..PROMPT + 7]
        .into_iter()
        .chain((PROMPT + 7..TOKENS).map(|n| n..n + 1))
        .collect();
    for isa in Isa::available() {
        for windowed in [false, true] {
            let options = AttentionOptions::new().causal().return_lse().isa(isa);
            let options = if windowed { options.window(Some(WINDOW), None) } else { options };
            let (k, v) = (part(key, 2, 0..TOKENS), part(value, 2, 0..TOKENS));
            let whole = attention(part(query, 4, 0..TOKENS), k, v, &options);
            let whole = whole.unwrap_or_else(|error| panic!("{error}"));
            let check = |range: &std::ops::Range<usize>, result: headwise::Result<Attention>| {
                let result = result.unwrap_or_else(|error| panic!("{error}"));
                for (n, token) in range.clone().enumerate() {
                    for head in 0..4 {
                        let of =
                            |result: &Attention, token| common::row_bits(result, [0, head, token]);
                        assert_eq!(of(&result, n), of(&whole, token), "token {token} on {isa}");
                    }
                }
            };
            let new = |range: &std::ops::Range<usize>| {
                NewTokens::new(part(key, 2, range.clone()), part(value, 2, range.clone()))
            };
            let mut contiguous =
                ContiguousCache::new(shape, 1, TOKENS).unwrap_or_else(|e| panic!("{e}"));
            let pages = |page_size| PagedCapacity {
                pages: TOKENS.div_ceil(page_size) + 1,
                page_size,
                sequences: 1,
                pages_per_sequence: TOKENS.div_ceil(page_size),
            };
            let mut paged = [1, 16, 128].map(|page_size| {
                let mut cache =
                    PagedCache::new(shape, pages(page_size)).unwrap_or_else(|e| panic!("{e}"));
                let id = cache.create().unwrap_or_else(|e| panic!("{e}"));
                (cache, id)
            });
            // A window's keys, and those that a chunk adds before its first query reads.
            let mut ring =
                RingCache::new(shape, 1, WINDOW + PROMPT).unwrap_or_else(|e| panic!("{e}"));
            for range in &chunks {
                let query = part(query, 4, range.clone());
                contiguous.append(&new(range)).unwrap_or_else(|e| panic!("{e}"));
                check(range, attention_cached(query, &contiguous.view(), &options));
                for (cache, id) in &mut paged {
                    cache.append(&[*id], &new(range)).unwrap_or_else(|e| panic!("{e}"));
                    let mut tables = TableBuffer::new();
                    let view = cache.view(&[*id], &mut tables).unwrap_or_else(|e| panic!("{e}"));
                    check(range, attention_cached(query, &view, &options));
                }
                if windowed {
                    ring.append(&new(range)).unwrap_or_else(|e| panic!("{e}"));
                    check(range, attention_cached(query, &ring.view(), &options));
                }
            }
        }
    }
}

/// Some sequences prefilling and some decoding in one call, as each alone.
#[test]
fn mixed_batches_are_their_sequences() {
    let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 8 };
    let mut rng = Rng(3);
    let sequences = [(0, 500), (0, 0), (30, 300), (0, 1)];
    let pool = Pool::new(shape, 16, &sequences, &mut rng);
    let cache = pool.view();
    let counts = [1, 0, 130, 1];
    let mut offsets = vec![0];
    offsets.extend(counts.iter().scan(0, |sum, n| {
        *sum += n;
        Some(*sum)
    }));
    let total = offsets[counts.len()];
    let queries = rng.normals(total * 4 * 8);
    let query = View::bshd(&queries, [1, 4, total, 8]).unwrap_or_else(|e| panic!("{e}"));
    for isa in Isa::available() {
        let options = AttentionOptions::new().causal().return_lse().isa(isa);
        let together = attention_cached(query, &cache, &options.query_offsets(&offsets));
        let together = together.unwrap_or_else(|error| panic!("{error}"));
        for (s, n) in counts.into_iter().enumerate() {
            let own = &queries[offsets[s] * 32..offsets[s + 1] * 32];
            let own = View::bshd(own, [1, 4, n, 8]).unwrap_or_else(|e| panic!("{e}"));
            let expected = alone(own, &cache, s, &options);
            for (i, head) in (0..n).flat_map(|i| (0..4).map(move |head| (i, head))) {
                let of = |result: &Attention, at| common::row_bits(result, at);
                let got = of(&together, [0, head, offsets[s] + i]);
                assert_eq!(got, of(&expected, [0, head, i]), "sequence {s}, query {i} on {isa}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_a_cache() {
    let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 8 };
    let pool = Pool::new(shape, 4, &[(0, 5), (0, 9)], &mut Rng(1));
    let cache = pool.view();
    let data = [0.0; 2 * 4 * 8];
    let query = view(&data, [2, 4, 1, 8]);
    let plain = AttentionOptions::new();
    let refused = |query: View<'_, f32>, options: &AttentionOptions<'_>, argument: &str| {
        let error = attention_cached(query, &cache, options).err();
        let error = error.unwrap_or_else(|| panic!("{argument} was let pass"));
        assert!(error.to_string().contains(argument), "{error}");
    };
    refused(view(&data, [1, 4, 2, 8]), &plain, "query");
    refused(view(&data, [2, 8, 1, 4]), &plain, "key");
    refused(query, &plain.key_starts(&[0, 0]), "key_starts");
    refused(query, &plain.query_offsets(&[0, 1, 2]), "query");
    refused(view(&data, [1, 4, 2, 8]), &plain.query_offsets(&[0, 2]), "query_offsets");
    refused(view(&data, [1, 4, 2, 8]), &plain.query_offsets(&[0, 2, 1]), "query_offsets");
    refused(query, &plain.ragged(&[0, 1], &[0, 1]), "ragged");
    refused(query, &plain.algorithm(Algorithm::Unfused), "pages");
    let ids = Documents::Ids { query: &[0], key: &[0] };
    refused(query, &plain.documents(ids), "documents");
    let offsets = attention(query, query, query, &plain.query_offsets(&[0, 1])).err();
    assert!(matches!(offsets, Some(Error::Value { argument: "query_offsets", .. })), "{offsets:?}");
    // Neither is there where all that was there is gone, beside a sequence that has something.
    let pages = [(0, 5), (9, 9)];
    let mut gone = Pool::new(shape, 4, &pages, &mut Rng(1));
    gone.table.truncate(gone.offsets[1]);
    gone.offsets[2] = gone.offsets[1];
    let result = attention_cached(query, &gone.view(), &plain.executor(&Serial));
    let result = result.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(bits(&result.out.data()[32..]), [0; 32]);
    assert!(result.out.data()[..32].iter().all(|&x| x != 0.0));
    // Without a page there is nothing to see.
    let empty = Pool::new(shape, 4, &[(0, 0), (0, 0)], &mut Rng(1));
    let result = attention_cached(query, &empty.view(), &plain).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(bits(result.out.data()), [0; 64]);
    assert_eq!(result_bits(&result)[1], Vec::<u64>::new());
}
