//! Attention over parts of the keys, merged; prefixes that many sequences share.

mod common;

use common::bounds::{Expected, FUSED, Got};
use common::case::{Case, Data, Dims, Inputs};
use common::executors::{Eager, Scoped};
use common::{Rng, bits, for_all, result_bits};
use headwise::kv_cache::{KvShape, PagedCapacity, TableBuffer};
use headwise::{
    Attention, AttentionOptions, CascadeWorkspace, Error, Executor, Isa, NewTokens, PagedCache,
    Result, Serial, State, StateMut, Tensor, View, ViewMut, attention_cached,
    attention_cascade_into, merge_states, merge_states_into,
};
use proptest::prelude::*;
use proptest::sample::select;

const NOTHING: f32 = f32::NEG_INFINITY;

fn ok<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A state of one head, a row for each output.
fn state(out: &[f32], lse: &[f32]) -> Attention {
    let rows = lse.len();
    let x = ok(View::bhsd(&[0.0], [1, 1, 1, 1]));
    let options = AttentionOptions::new().return_lse();
    let mut state = ok(headwise::attention(x, x, x, &options));
    let width = out.len() / rows;
    state.out = ok(Tensor::new(out.to_vec(), [1, 1, rows, width]));
    state.lse = Some(ok(Tensor::new(lse.to_vec(), [1, 1, rows, 1])));
    state
}

fn merged(states: &[&Attention], options: &AttentionOptions<'_>) -> Attention {
    let states: Vec<State<'_>> = states.iter().map(|state| ok(state.state())).collect();
    ok(merge_states(&states, options))
}

/// Attention over the parts of the keys between `cuts`.
fn parts(inputs: &Inputs<f32>, cuts: &[usize], isa: Isa) -> Vec<Attention> {
    let end = inputs.dims().seq_kv;
    let ends = cuts.iter().copied().chain([end]);
    let starts = [0].into_iter().chain(cuts.iter().copied());
    let part = |(start, end)| {
        let mut part = inputs.clone();
        part.key = inputs.key.narrow(2, start..end);
        part.value = inputs.value.narrow(2, start..end);
        part.run(isa)
    };
    starts.zip(ends).map(part).collect()
}

#[test]
fn parts_merge_to_the_whole() {
    let dims = (1..3_usize, 1..3_usize, 1..60_usize, 1..300_usize, (1..70_usize, 1..70_usize));
    let cuts = prop::collection::btree_set(0..300_usize, 0..5);
    let data = select(vec![Data::Normal, Data::Wide, Data::Outlier]);
    for_all(150, (dims, cuts, data, any::<u64>()), |(dims, cuts, data, seed)| {
        let (batch, kv_heads, seq_q, seq_kv, (head_dim, value_dim)) = dims;
        let dims = Dims { batch, kv_heads, ..Dims::single(seq_q, seq_kv, head_dim, value_dim) };
        let inputs = Case { data, ..Case::plain(dims, seed) }.inputs();
        // Empty parts among them, at both ends too.
        let cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(seq_kv)).collect();
        let expected = Expected::of(&inputs);
        for isa in Isa::available() {
            let parts = parts(&inputs, &cuts, isa);
            let options = AttentionOptions::new().isa(isa);
            let all = merged(&parts.iter().collect::<Vec<_>>(), &options);
            assert_eq!(all.isa, isa);
            let mut whole = inputs.run(isa);
            (whole.out, whole.lse) = (all.out, all.lse);
            let what = format!("{dims:?}, cut at {cuts:?}, on {isa}");
            expected.assert_explains(&Got::of(&whole), FUSED, &what);
        }
    });
}

/// Any order and any brackets, up to rounding.
#[test]
fn order_and_brackets() {
    let inputs = Case::plain(Dims { kv_heads: 3, ..Dims::single(7, 90, 16, 20) }, 71).inputs();
    for isa in Isa::available() {
        let options = AttentionOptions::new().isa(isa);
        let parts = parts(&inputs, &[13, 50], isa);
        let [a, b, c] = [&parts[0], &parts[1], &parts[2]];
        let all = merged(&[a, b, c], &options);
        let ways = [
            merged(&[c, a, b], &options),
            merged(&[&merged(&[a, b], &options), c], &options),
            merged(&[a, &merged(&[b, c], &options)], &options),
        ];
        for way in ways {
            let close = |x: &Tensor, y: &Tensor| {
                x.data().iter().zip(y.data()).all(|(x, y)| (x - y).abs() <= 1e-6)
            };
            assert!(close(&way.out, &all.out), "{isa}");
            let lse = way.lse.zip(all.lse.as_ref().map(|lse| lse.data().to_vec()));
            let lse = lse.unwrap_or_else(|| panic!("no lse"));
            assert!(lse.0.data().iter().zip(&lse.1).all(|(x, y)| (x - y).abs() <= 1e-6), "{isa}");
        }
    }
}

/// Whatever a state of no keys holds.
#[test]
fn the_empty_state_is_the_exact_identity() {
    let inputs = Case::plain(Dims::single(5, 40, 8, 19), 72).inputs();
    let empty = state(&[f32::NAN; 5 * 19], &[NOTHING; 5]);
    for isa in Isa::available() {
        let options = AttentionOptions::new().isa(isa);
        let some = inputs.run(isa);
        for order in [&[&some, &empty][..], &[&empty, &some], &[&empty, &some, &empty], &[&some]] {
            assert_eq!(result_bits(&some)[..2], result_bits(&merged(order, &options))[..2]);
        }
        let none = merged(&[&empty, &empty], &options);
        assert_eq!(none.out.data(), [0.0; 5 * 19]);
        assert_eq!(none.lse.map(|lse| lse.data().to_vec()), Some(vec![NOTHING; 5]));
    }
}

/// Each row alone: NaN, infinity, one that outweighs all, one that weighs nothing.
#[test]
fn special_rows() {
    let a = state(&[1.0, 1.0, 1.0, 1.0, f32::NAN], &[f32::NAN, f32::INFINITY, 200.0, 3e38, 0.0]);
    let b = state(&[2.0; 5], &[0.0, 0.0, 0.0, -3e38, 0.0]);
    for isa in Isa::available() {
        let both = merged(&[&a, &b], &AttentionOptions::new().isa(isa));
        let lse = both.lse.unwrap_or_else(|| panic!("no lse"));
        let (out, lse) = (both.out.data(), lse.data());
        assert!(out[0].is_nan() && lse[0].is_nan() && out[1].is_nan() && lse[1].is_nan());
        assert_eq!((out[2], lse[2]), (1.0, 200.0));
        assert_eq!((out[3], lse[3]), (1.0, 3e38));
        assert!(out[4].is_nan() && (lse[4] - 2.0_f32.ln()).abs() < 1e-7);
    }
}

#[test]
fn threads_and_strides_change_no_bit() {
    let inputs = Case::plain(Dims { kv_heads: 8, ..Dims::single(100, 60, 8, 64) }, 73).inputs();
    for isa in Isa::available() {
        let parts = parts(&inputs, &[20], isa);
        let options = AttentionOptions::new().isa(isa);
        let both =
            |executor: &dyn Executor| merged(&[&parts[0], &parts[1]], &options.executor(executor));
        let expected = result_bits(&both(&Serial));
        assert!(expected == result_bits(&both(&Eager(3))), "{isa}");
        // Heads and rows change places in memory.
        let mut out = vec![0.0; 8 * 100 * 64];
        let mut lse = vec![0.0; 8 * 100];
        let into = StateMut {
            out: ok(ViewMut::bshd(&mut out, [1, 8, 100, 64])),
            lse: ok(ViewMut::bshd(&mut lse, [1, 8, 100, 1])),
        };
        let states = [ok(parts[0].state()), ok(parts[1].state())];
        let settings = headwise::Settings::default().with_isa(isa);
        ok(merge_states_into(&states, into, &settings));
        let out = ok(View::bshd(&out, [1, 8, 100, 64])).to_vec();
        assert!(expected[0] == bits(&out), "{isa}");
    }
}

#[test]
fn what_does_not_fit() {
    let (a, b) = (state(&[1.0; 6], &[0.0; 3]), state(&[1.0; 3], &[0.0; 3]));
    let options = AttentionOptions::new();
    let error = merge_states(&[ok(a.state()), ok(b.state())], &options);
    let error = error.err().map_or_else(String::new, |error| error.to_string());
    assert!(error.contains("states") && error.contains("[1, 1, 3, 2]"), "{error}");
    let lse = State { lse: ok(b.state()).out, out: ok(a.state()).out };
    assert!(merge_states(&[lse], &options).is_ok());
    let lse = State { lse: ok(a.state()).out, out: ok(a.state()).out };
    assert!(matches!(merge_states(&[lse], &options), Err(Error::Shape { .. })));
    assert!(matches!(merge_states(&[], &options), Err(Error::Value { .. })));
    let mut without = a.clone();
    without.lse = None;
    let error = without.state().err().map_or_else(String::new, |error| error.to_string());
    assert!(error.contains("return_lse"), "{error}");
}

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 16, value_dim: 12 };

/// Forks of a prompt, each with tokens of its own, and the queries of their last tokens.
struct Forks {
    cache: PagedCache,
    ids: Vec<headwise::kv_cache::SequenceId>,
    rng: Rng,
}

impl Forks {
    fn new(prompt: usize, own: &[usize], page_size: usize) -> Result<Self> {
        let capacity = PagedCapacity {
            pages: 2000 / page_size.min(64),
            page_size,
            sequences: own.len(),
            pages_per_sequence: 600,
        };
        let mut cache = PagedCache::new(SHAPE, capacity)?;
        let first = cache.create()?;
        let mut ids = vec![first];
        let mut this = Self { cache, ids: Vec::new(), rng: Rng(81) };
        this.append(first, prompt)?;
        for _ in 1..own.len() {
            ids.push(this.cache.fork(first)?);
        }
        for (&id, &own) in ids.iter().zip(own) {
            this.append(id, own)?;
        }
        this.ids = ids;
        Ok(this)
    }

    fn append(&mut self, id: headwise::kv_cache::SequenceId, tokens: usize) -> Result<()> {
        let KvShape { kv_heads, head_dim, value_dim, .. } = SHAPE;
        let key = self.rng.normals(tokens * kv_heads * head_dim);
        let value = self.rng.normals(tokens * kv_heads * value_dim);
        let key = View::bshd(&key, [1, kv_heads, tokens, head_dim])?;
        let value = View::bshd(&value, [1, kv_heads, tokens, value_dim])?;
        self.cache.append(&[id], &NewTokens::new(key, value))
    }

    /// The cascade's results beside those of the ordinary call.
    fn compare(&mut self, queries: [usize; 2], options: &AttentionOptions<'_>, what: &str) {
        const HEADS: usize = 6;
        let [batch, seq] = queries;
        let query = self.rng.normals(batch * seq * HEADS * SHAPE.head_dim);
        let query = ok(View::bshd(&query, [batch, HEADS, seq, SHAPE.head_dim]));
        let mut tables = TableBuffer::new();
        let view = ok(self.cache.view(&self.ids, &mut tables));
        let expected = ok(attention_cached(query, &view, &options.return_lse()));
        let (mut out, mut lse) = (vec![0.0; batch * seq * HEADS * SHAPE.value_dim], vec![]);
        lse.resize(batch * seq * HEADS, 0.0);
        let into = StateMut {
            out: ok(ViewMut::bhsd(&mut out, [batch, HEADS, seq, SHAPE.value_dim])),
            lse: ok(ViewMut::bhsd(&mut lse, [batch, HEADS, seq, 1])),
        };
        ok(attention_cascade_into(query, &view, options, into, &mut CascadeWorkspace::new()));
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-6);
        assert!(close(&out, expected.out.data()), "out, {what}");
        let expected = expected.lse.unwrap_or_else(|| panic!("no lse"));
        assert!(close(&lse, expected.data()), "lse, {what}");
    }
}

#[test]
fn a_shared_prefix_is_as_good_as_copies() -> Result<()> {
    let sinks = [0.5, -1.0, 2.0, 0.0, NOTHING, 1.0];
    for (page_size, prompt) in [(1, 40), (4, 41), (16, 130), (128, 300), (64, 5)] {
        let mut forks = Forks::new(prompt, &[1, 9, 30, 2], page_size)?;
        let shared = prompt / page_size * page_size;
        let mut tables = TableBuffer::new();
        assert_eq!(forks.cache.view(&forks.ids, &mut tables)?.shared_prefix(), shared);
        for isa in Isa::available() {
            let plain = AttentionOptions::new().isa(isa).causal();
            let what = format!("{prompt} in pages of {page_size} on {isa}");
            forks.compare([4, 1], &plain, &what);
            forks.compare([4, 1], &AttentionOptions::new().isa(isa), &what);
            forks.compare([4, 1], &plain.softcap(3.0).sinks(&sinks), &what);
            forks.compare([4, 1], &plain.executor(&Scoped(3)), &what);
            // More queries than one sequence has tokens of its own: the prefix ends earlier.
            forks.compare([4, 3], &plain, &what);
            forks.compare([1, 7], &plain.query_offsets(&[0, 1, 4, 6, 7]), &what);
        }
    }
    Ok(())
}

#[test]
fn what_a_shared_prefix_cannot_have() -> Result<()> {
    let forks = Forks::new(40, &[3, 4], 8)?;
    let mut tables = TableBuffer::new();
    let view = forks.cache.view(&forks.ids, &mut tables)?;
    let query = vec![0.5; 2 * 6 * 2 * 16];
    let (mut out, mut lse) = (vec![7.0; 2 * 6 * 2 * 12], vec![7.0; 2 * 6 * 2]);
    let mut run = |query: View<'_, f32>, options: &AttentionOptions<'_>| {
        let into = StateMut {
            out: ViewMut::bhsd(&mut out, [2, 6, 2, 12])?,
            lse: ViewMut::bhsd(&mut lse, [2, 6, 2, 1])?,
        };
        attention_cascade_into(query, &view, options, into, &mut CascadeWorkspace::new())
    };
    let causal = AttentionOptions::new().causal();
    let spaced = View::bshd(&query, [2, 6, 2, 16])?;
    for options in [
        causal.window(Some(20), None),
        causal.alibi(headwise::Alibi::Standard),
        AttentionOptions::new().causal_top_left(),
        causal.key_lengths(&[3, 3]),
    ] {
        assert!(matches!(run(spaced, &options), Err(Error::Value { argument: "options", .. })));
    }
    let unevenly = View::bhsd(&query, [2, 6, 2, 16])?;
    assert!(matches!(run(unevenly, &causal), Err(Error::Stride { argument: "query", .. })));
    let one = View::bshd(&query, [1, 6, 2, 16])?;
    assert!(run(one, &causal).is_err());
    assert!(run(spaced, &causal).is_ok());
    Ok(())
}
