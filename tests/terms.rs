//! Score terms: softcap, ALiBi, tables of biases, sinks, the caller's own, alone and together,
//! against the naive f64 computation; the same bits whatever does not belong to a row; nothing of
//! what is masked.

mod common;

use std::ops::Range;

use common::bounds::{Expected, F32, F64, FUSED, Got};
use common::case::{Case, Data, DenseMask, Dims, Inputs, Masks, row};
use common::executors::{Boastful, Scoped};
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::structure::Kinds;
use common::terms::{Own, Relative, Terms};
use common::{Rng, bits, for_all, poison, result_bits, row_bits};
use headwise::kv_cache::{KvShape, PagedCapacity, TableBuffer};
use headwise::{
    Algorithm, Alibi, At, Attention, AttentionOptions, Causal, Isa, KvView, NewTokens, NoTerm,
    PagedCache, Position, RelativeBias, RingCache, Row, Scalar, Scale, ScoreTerm, ScoreTile,
    Serial, Simd, View, attention, attention_cached_with, attention_with, scalar, tiles,
};
use proptest::prelude::*;
use proptest::sample::select;

impl Inputs<f32> {
    fn with_term(&self, term: &impl ScoreTerm, options: &AttentionOptions<'_>) -> Attention {
        let (q, k, v) = (self.query.view(), self.key.view(), self.value.view());
        let options = options.return_lse().return_weights();
        attention_with(q, k, v, term, &options).unwrap_or_else(|error| panic!("{error}"))
    }

    fn run_term(&self, term: &impl ScoreTerm, isa: Isa) -> Attention {
        self.with_term(term, &self.options().isa(isa))
    }
}

/// A term of several kinds. Each type of term compiles the kernel once more for every instruction
/// set, which takes far longer than the tests: but for [`Own`], which is inlined as terms should be,
/// and for one that needs scores in memory, they share this one.
enum Any<'a> {
    Nothing(NoTerm),
    Scalar(Scalar<&'a (dyn Fn(f32, Position) -> f32 + Sync)>),
    Slopes(Slopes),
    Cap(Cap),
    AmongNone((NoTerm, &'a Own, NoTerm)),
    Three((Own, Own, Own)),
}

/// Evaluates an expression of the term inside.
macro_rules! inside {
    ($any:expr, $term:ident => $result:expr) => {
        match $any {
            Any::Nothing($term) => $result,
            Any::Scalar($term) => $result,
            Any::Slopes($term) => $result,
            Any::Cap($term) => $result,
            Any::AmongNone($term) => $result,
            Any::Three($term) => $result,
        }
    };
}

impl ScoreTerm for Any<'_> {
    const NUMBERS: usize = <(Own, Own, Own)>::NUMBERS;

    fn row(&self, row: Row, numbers: &mut [f32]) {
        inside!(self, term => term.row(row, numbers));
    }

    // All of them inlined wherever the kernel has scores would take minutes to compile.
    #[inline(never)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
        inside!(self, term => term.apply(s, score, at))
    }
}

/// A closure on scores.
fn by_scalar<'a>(term: &'a (dyn Fn(f32, Position) -> f32 + Sync)) -> Any<'a> {
    Any::Scalar(scalar(term))
}

fn own() -> impl Strategy<Value = Own> {
    let factor = select(vec![1.0_f32, 0.7, -0.5]);
    let start = select(vec![None, None, Some(0), Some(-20), Some(130)]);
    (factor, select(vec![0.0_f32, 0.125, 0.01]), start).prop_map(|(factor, slope, start)| Own {
        factor,
        slope,
        start,
    })
}

/// Shapes around the edges of tiles, groups, blocks and splits, under masks, with terms.
fn cases() -> impl Strategy<Value = (Case, u8)> {
    let lengths = (
        select(vec![1_usize, 2, 7, 47, 48, 49, 97]),
        select(vec![1_usize, 7, 8, 9, 127, 128, 129, 257, 2047, 2049]),
    );
    (masked_cases(), lengths, any::<u8>(), any::<bool>()).prop_map(
        |(mut case, (seq_q, seq_kv), which, bias)| {
            let long = seq_kv > 1000;
            case.dims =
                Dims { seq_q: if long { seq_q.min(16) } else { seq_q }, seq_kv, ..case.dims };
            if long {
                case.dims = Dims { batch: 1, kv_heads: 1, ..case.dims };
            }
            if !bias {
                case.masks.bias = None;
            }
            (case, which)
        },
    )
}

fn inputs(case: &Case, which: u8) -> Inputs<f32> {
    let mut inputs = case.inputs();
    let mut rng = Rng(case.seed ^ 0x7e);
    inputs.terms = Terms::random(which, case.dims.q_heads(), &mut rng);
    inputs
}

#[test]
fn random_problems() {
    for_all(500, cases(), |(case, which)| {
        let inputs = inputs(&case, which);
        let expected = Expected::of(&inputs);
        let what = format!("{case:?}, {:?}", inputs.terms);
        for isa in Isa::available() {
            let got = Got::of(&inputs.run(isa));
            expected.assert_explains(&got, FUSED, &format!("fused on {isa}, {what}"));
        }
        let options = inputs.options().algorithm(Algorithm::Unfused).return_lse().return_weights();
        expected.assert_explains(
            &Got::of(&inputs.run_with(&options)),
            F32,
            &format!("unfused {what}"),
        );
        let wide = inputs.map(f64::from);
        expected.assert_explains(&Got::of(&wide.run(Isa::Portable)), F64, &format!("f64 {what}"));
    });
}

#[test]
fn random_problems_with_a_term_of_the_callers() {
    for_all(400, (cases(), own()), |((case, which), own)| {
        let inputs = inputs(&case, which);
        let expected = Expected::of_own(&inputs, &own);
        for isa in Isa::available() {
            let got = Got::of(&inputs.run_term(&own, isa));
            let what = format!("on {isa}, {own:?}, {case:?}, {:?}", inputs.terms);
            expected.assert_explains(&got, FUSED, &what);
        }
    });
}

/// Vectors, scalars and tiles in memory, alone and with another term before and behind.
#[test]
fn adaptors_have_the_bits_of_vectors() {
    for_all(150, (cases(), own()), |((case, which), own)| {
        let inputs = inputs(&case, which);
        let scalars = |score, at: Position| own.scalar(score, at);
        let by_scalar = by_scalar(&scalars);
        let by_tile = tiles(|tile: ScoreTile<'_>| {
            for (key, scores) in tile.keys.zip(tile.scores.chunks_exact_mut(ScoreTile::PITCH)) {
                for (score, &row) in scores.iter_mut().zip(tile.rows) {
                    *score = own.scalar(*score, Position { row, key });
                }
            }
        });
        let times = |factor| Own { factor, slope: 0.0, start: None };
        let half = times(0.5);
        for isa in Isa::available() {
            let what = format!("on {isa}, {own:?}, {case:?}, {:?}", inputs.terms);
            let expected = result_bits(&inputs.run_term(&own, isa));
            let same = |name: &str, got: Attention| {
                assert!(expected == result_bits(&got), "{name} {what}");
            };
            same("scalar", inputs.run_term(&by_scalar, isa));
            // Times one is exact.
            same("tiles", inputs.run_term(&(times(1.0), &by_tile, times(1.0)), isa));
            same("among none", inputs.run_term(&Any::AmongNone((NoTerm, &own, NoTerm)), isa));
            let expected = result_bits(&inputs.run_term(&Any::Three((half, own, half)), isa));
            let got = result_bits(&inputs.run_term(&(half, &by_tile, half), isa));
            assert!(expected == got, "composed {what}");
        }
    });
}

/// `score + slope * (key - position)` in one multiply-add, as the library does.
struct Slopes(Vec<f32>);

impl ScoreTerm for Slopes {
    const NUMBERS: usize = 1;

    fn row(&self, row: Row, numbers: &mut [f32]) {
        numbers[0] = self.0[row.head];
    }

    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
        s.mul_add(at.number(0), s.sub(at.key(), at.position()), score)
    }
}

/// `cap * tanh(score / cap)`.
struct Cap(f32);

impl ScoreTerm for Cap {
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, _at: &At<'_, S>) -> S::Vector {
        let [tanh] = s.tanh([s.mul(score, s.splat(1.0 / self.0))]);
        s.mul(tanh, s.splat(self.0))
    }
}

#[test]
fn the_callers_may_do_what_the_librarys_do() {
    for_all(100, masked_cases(), |mut case| {
        case.masks.bias = None;
        let plain = case.inputs();
        let heads = case.dims.q_heads();
        let slopes = Terms { alibi: Some(None), ..Terms::default() }.slopes(heads).unwrap();
        for isa in Isa::available() {
            let what = format!("{case:?} on {isa}");
            let built_in = plain.options().alibi(Alibi::Standard).isa(isa);
            let expected = plain.run_with(&built_in.return_lse().return_weights());
            let got = plain.run_term(&Any::Slopes(Slopes(slopes.clone())), isa);
            assert!(result_bits(&expected) == result_bits(&got), "ALiBi, {what}");
            let mut capped = plain.clone();
            capped.terms.softcap = Some(20.0);
            let got = Got::of(&plain.run_term(&Any::Cap(Cap(20.0)), isa));
            Expected::of(&capped).assert_explains(&got, FUSED, &format!("softcap, {what}"));
            // No term at all, but powers of e: near, not the same.
            let got = Got::of(&plain.run_term(&Any::Nothing(NoTerm), isa));
            Expected::of(&plain).assert_explains(&got, FUSED, &what);
        }
    });
}

/// A table of distances that all have one number of their own is ALiBi.
#[test]
fn a_table_of_slopes_is_alibi() {
    let mut inputs = Case::plain(Dims { group: 3, ..Dims::single(60, 300, 16, 8) }, 3).inputs();
    // So flat that references are taken alike: see `Item::foresee`.
    let slopes = [0.5, 0.25, 0.125].map(|slope: f32| slope / 16.0);
    let table = |slope: f32| (-400..400).map(move |distance| slope * distance as f32);
    inputs.terms.relative =
        Some(Relative::new(slopes.into_iter().flat_map(table).collect(), 3, -400));
    let mut other = inputs.clone();
    other.terms = Terms { alibi: Some(Some(slopes.to_vec())), ..Terms::default() };
    for isa in Isa::available() {
        let (a, b) = (inputs.run(isa), other.run(isa));
        // Products of a power of two are exact, so the sums are the same.
        assert!(result_bits(&a) == result_bits(&b), "{isa}");
    }
}

/// Some of the queries, each where it stood.
fn queries(inputs: &Inputs<f32>, range: Range<usize>) -> Inputs<f32> {
    let mut part = inputs.clone();
    part.query = inputs.query.narrow(2, range.clone());
    let offset = inputs.diagonal(0) + range.start as i128;
    part.causal = Some(Causal::Offset(offset as i64));
    let part_of = |rows: usize| if rows == 1 { 0..1 } else { range.clone() };
    part.boolean = inputs.boolean.as_ref().map(|mask| mask.narrow(2, part_of(mask.shape[2])));
    part.bias = inputs.bias.as_ref().map(|bias| bias.narrow(2, part_of(bias.shape[2])));
    part
}

#[test]
fn queries_split_into_calls_keep_their_bits() {
    for_all(120, (cases(), own(), 1..97_usize), |((mut case, which), own, at)| {
        // A diagonal that an offset can follow, and no mask whose rows would have to be cut as well.
        case.masks.causal = match case.masks.causal {
            Some(causal) if causal != Causal::AtLength => Some(causal),
            _ => Some(Causal::BottomRight),
        };
        case.masks.kinds = Kinds::default();
        let whole = inputs(&case, which);
        let at = at.min(case.dims.seq_q);
        for isa in Isa::available() {
            let all = [whole.run(isa), whole.run_term(&own, isa)];
            for range in [0..at, at..case.dims.seq_q] {
                let part = queries(&whole, range.clone());
                let parts = [part.run(isa), part.run_term(&own, isa)];
                for ([b, h, i], (all, part)) in part
                    .rows()
                    .into_iter()
                    .flat_map(|at| all.iter().zip(&parts).map(move |p| (at, p)))
                {
                    assert_eq!(
                        row_bits(all, [b, h, range.start + i]),
                        row_bits(part, [b, h, i]),
                        "row {i} of {range:?} on {isa}, {own:?}, {case:?}, {:?}",
                        whole.terms
                    );
                }
            }
        }
    });
}

const CACHE: KvShape = KvShape { kv_heads: 2, head_dim: 16, value_dim: 12 };

fn rows(data: &[f32], shape: [usize; 4]) -> View<'_, f32> {
    View::bhsd(data, shape).unwrap_or_else(|error| panic!("{error}"))
}

/// Keys and values of a sequence, and its queries.
fn tokens(length: usize, seq_q: usize, rng: &mut Rng) -> [Vec<f32>; 3] {
    let kv = CACHE.kv_heads * length;
    [kv * CACHE.head_dim, kv * CACHE.value_dim, 4 * seq_q * CACHE.head_dim].map(|n| rng.normals(n))
}

fn views([key, value, query]: &[Vec<f32>; 3]) -> [View<'_, f32>; 3] {
    let of = |data, heads, dim| {
        let seq = <[f32]>::len(data) / heads / dim;
        rows(data, [1, heads, seq, dim])
    };
    let KvShape { kv_heads, head_dim, value_dim } = CACHE;
    [of(key, kv_heads, head_dim), of(value, kv_heads, value_dim), of(query, 4, head_dim)]
}

/// A term that goes by all that a row is told of.
fn by_everything(sequence: impl Fn(usize) -> usize + Sync) -> impl Fn(f32, Position) -> f32 + Sync {
    move |score, Position { row, key }| {
        let odd = (sequence(row.batch) + row.head + row.query) as f32;
        let ahead = (row.position - key as i64) as f32;
        if key % 7 == 3 { f32::NEG_INFINITY } else { score + 0.01 * ahead - 0.1 * odd }
    }
}

/// Sequences of a cache, of which tokens before the starts are gone, to the bits of each in tensors.
fn as_in_tensors(cache: &KvView<'_>, starts: &[usize], sequences: &[[Vec<f32>; 3]]) {
    let options = AttentionOptions::new().causal().return_lse();
    let query: Vec<f32> = sequences.iter().flat_map(|[_, _, query]| query.clone()).collect();
    let seq_q = query.len() / sequences.len() / 4 / CACHE.head_dim;
    let query = rows(&query, [sequences.len(), 4, seq_q, CACHE.head_dim]);
    for isa in Isa::available() {
        let options = options.isa(isa);
        let term = by_everything(|batch| batch);
        let all = attention_cached_with(query, cache, &by_scalar(&term), &options);
        let all = all.unwrap_or_else(|error| panic!("{error}"));
        for (s, (sequence, start)) in sequences.iter().zip(starts).enumerate() {
            let ([key, value, query], start) = (views(sequence), [*start]);
            let term = by_everything(move |_| s);
            let options = options.key_starts(&start);
            let alone = attention_with(query, key, value, &by_scalar(&term), &options);
            let alone = alone.unwrap_or_else(|error| panic!("{error}"));
            for [h, i] in (0..4).flat_map(|h| (0..seq_q).map(move |i| [h, i])) {
                assert_eq!(row_bits(&all, [s, h, i]), row_bits(&alone, [0, h, i]), "{s} on {isa}");
            }
        }
    }
}

/// Of a few tokens and of many, decoding and prefilling, and where a ring has let go of some.
#[test]
fn caches_have_the_bits_of_tensors() -> headwise::Result<()> {
    let mut rng = Rng(51);
    let capacity =
        PagedCapacity { pages: 150, page_size: 16, sequences: 3, pages_per_sequence: 140 };
    for seq_q in [1, 5] {
        let sequences = [5, 130, 2100].map(|length| tokens(length, seq_q, &mut rng));
        let mut cache = PagedCache::new(CACHE, capacity)?;
        let mut ids = Vec::new();
        for sequence in &sequences {
            let [key, value, _] = views(sequence);
            let id = cache.create()?;
            cache.append(&[id], &NewTokens::new(key, value))?;
            ids.push(id);
        }
        let mut tables = TableBuffer::new();
        as_in_tensors(&cache.view(&ids, &mut tables)?, &[0; 3], &sequences);
        let sequence = tokens(200, seq_q, &mut rng);
        let [key, value, _] = views(&sequence);
        let mut ring = RingCache::new(CACHE, 1, 64)?;
        ring.append(&NewTokens::new(key, value))?;
        as_in_tensors(&ring.view(), &[136], std::slice::from_ref(&sequence));
    }
    Ok(())
}

#[test]
fn heads_and_batch_entries_alone_keep_their_bits() {
    for_all(60, cases(), |(mut case, which)| {
        (case.masks.boolean, case.masks.bias, case.masks.key_lengths) = (None, None, false);
        case.masks.kinds = Kinds::default();
        let whole = inputs(&case, which);
        let d = case.dims;
        for isa in Isa::available() {
            let all = whole.run(isa);
            for b in 0..d.batch {
                for h in 0..d.q_heads() {
                    let mut one = whole.clone();
                    let kv_head = h / d.group;
                    one.query = whole.query.narrow(0, b..b + 1).narrow(1, h..h + 1);
                    one.key = whole.key.narrow(0, b..b + 1).narrow(1, kv_head..kv_head + 1);
                    one.value = whole.value.narrow(0, b..b + 1).narrow(1, kv_head..kv_head + 1);
                    one.terms = whole.terms.head(h, d.q_heads());
                    let alone = one.run(isa);
                    for i in 0..d.seq_q {
                        let (a, b) = (row_bits(&all, [b, h, i]), row_bits(&alone, [0, 0, i]));
                        assert_eq!(a, b, "{h}, {i} on {isa}, {case:?}, {:?}", whole.terms);
                    }
                }
            }
        }
    });
}

#[test]
fn threads_change_no_bit() {
    let masks = Masks {
        causal: Some(Causal::BottomRight),
        bias: Some(DenseMask { axes: [true, false, true], layout: Layout::Bhsd }),
        ..Masks::default()
    };
    let dims = Dims { batch: 2, kv_heads: 2, group: 3, ..Dims::single(150, 150, 32, 40) };
    let own = Own { factor: 0.7, slope: 0.125, start: Some(-20) };
    for data in [Data::Normal, Data::Wide] {
        let case = Case { data, masks, ..Case::plain(dims, 21) };
        let inputs = inputs(&case, 0b1111);
        for isa in Isa::available() {
            let options = inputs.options().isa(isa);
            let run = |options: &AttentionOptions<'_>| {
                let built_in = inputs.run_with(&options.return_lse().return_weights());
                [built_in, inputs.with_term(&own, options)].map(|result| result_bits(&result))
            };
            let expected = run(&options.executor(&Serial));
            assert!(expected == run(&options), "{isa}");
            assert!(expected == run(&options.executor(&Scoped(3))), "{isa}");
            assert!(expected == run(&options.executor(&Boastful)), "{isa}");
        }
    }
}

/// Keys that nobody sees, be it for a mask or for a term's -inf, may hold anything.
#[test]
fn poison_that_nobody_sees_changes_no_bit() {
    let poisoned = std::cell::Cell::new([0; 2]);
    for_all(200, (cases(), own()), |((case, which), own)| {
        let clean = inputs(&case, which);
        let d = case.dims;
        let mut rng = Rng(case.seed ^ 1);
        let (mut masked, mut hidden) = (clean.clone(), clean.clone());
        let mut count = poisoned.get();
        for b in 0..d.batch {
            for kv_head in 0..d.kv_heads {
                for j in 0..d.seq_kv {
                    let rows = || {
                        (0..d.group * d.seq_q)
                            .map(|r| (kv_head * d.group + r % d.group, r / d.group))
                    };
                    let sees = |(h, i): (usize, usize)| clean.is_visible([b, h, i, j]);
                    let lets = |(h, i): (usize, usize)| {
                        !own.hides([b, h, i, j], i as i128 + clean.diagonal(b))
                    };
                    let mut spoil = |inputs: &mut Inputs<f32>| {
                        (0..d.head_dim)
                            .for_each(|x| inputs.key.set([b, kv_head, j, x], poison(&mut rng)));
                        (0..d.value_dim)
                            .for_each(|x| inputs.value.set([b, kv_head, j, x], poison(&mut rng)));
                    };
                    if !rows().any(sees) {
                        spoil(&mut masked);
                        count[0] += 1;
                    }
                    if !rows().any(|row| sees(row) && lets(row)) {
                        spoil(&mut hidden);
                        count[1] += 1;
                    }
                }
            }
        }
        poisoned.set(count);
        for isa in Isa::available() {
            let what = format!("{own:?}, {case:?}, {:?} on {isa}", clean.terms);
            assert_eq!(result_bits(&clean.run(isa)), result_bits(&masked.run(isa)), "{what}");
            let clean = result_bits(&clean.run_term(&own, isa));
            assert_eq!(clean, result_bits(&hidden.run_term(&own, isa)), "{what}");
            let scalars = |score, at: Position| own.scalar(score, at);
            assert_eq!(
                clean,
                result_bits(&hidden.run_term(&by_scalar(&scalars), isa)),
                "scalar, {what}"
            );
        }
    });
    let [masked, hidden] = poisoned.get();
    assert!(masked > 1000 && hidden > masked, "{masked} and {hidden} keys");
}

/// One score of a block replaced by a number: what a term may come up with.
fn only(at: [usize; 4], with: f32) -> impl Fn(f32, Position) -> f32 + Sync {
    move |score, position: Position| {
        let Position { row, key } = position;
        if [row.batch, row.head, row.query, key] == at { with } else { score }
    }
}

#[test]
fn whatever_a_term_gives_stays_in_its_row() {
    let clean = Case::plain(Dims { group: 2, ..Dims::single(50, 2100, 8, 8) }, 30).inputs();
    for isa in Isa::available() {
        let expected = clean.run_term(&Any::Nothing(NoTerm), isa);
        for key in [0, 3, 9, 200, 2090] {
            let at = [0, 1, 20, key];
            for with in [f32::NAN, f32::NEG_INFINITY, 3e38, -3e38, 1e5, f32::INFINITY] {
                let got = clean.run_term(&by_scalar(&only(at, with)), isa);
                let what = format!("{with} at key {key} on {isa}");
                for other in clean.rows().into_iter().filter(|row| row[..] != at[..3]) {
                    assert_eq!(row_bits(&expected, other), row_bits(&got, other), "{what}");
                }
                let place = [at[0], at[1], at[2]];
                let (out, weights) =
                    (row(&got.out, place), row(got.weights.as_ref().unwrap(), place));
                if with.is_nan() || with == f32::INFINITY {
                    assert!(out.iter().chain(weights).all(|x| x.is_nan()), "{what}");
                } else if with > 0.0 {
                    let value: Vec<f32> = (0..8).map(|c| clean.value.get([0, 0, key, c])).collect();
                    assert_eq!((out, weights[key]), (&value[..], 1.0), "{what}");
                    let lse = row(got.lse.as_ref().unwrap(), place)[0];
                    assert!((lse / with - 1.0).abs() < 1e-6, "{what}: lse {lse}");
                } else {
                    assert_eq!(weights[key], 0.0, "{what}");
                    let sum: f32 = weights.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-4, "{what}");
                }
            }
        }
    }
}

/// A row of which a term hides everything is empty, unless a sink is there.
#[test]
fn rows_that_terms_empty() {
    let mut inputs = Case::plain(Dims { group: 2, ..Dims::single(9, 2100, 8, 5) }, 31).inputs();
    let nothing = by_scalar(&|_, _| f32::NEG_INFINITY);
    for sinks in [None, Some(vec![1.5, -2.0]), Some(vec![f32::NEG_INFINITY, 300.0])] {
        inputs.terms.sinks = sinks.clone();
        let mut masked = inputs.clone();
        masked.lengths = Some(vec![0]);
        for isa in Isa::available() {
            for result in [inputs.run_term(&nothing, isa), masked.run(isa)] {
                for at in inputs.rows() {
                    let lse = sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks[at[1]]);
                    assert_eq!(row(result.lse.as_ref().unwrap(), at), [lse], "{at:?} on {isa}");
                    assert!(bits(row(&result.out, at)).iter().all(|&x| x == 0));
                    assert!(
                        bits(row(result.weights.as_ref().unwrap(), at)).iter().all(|&x| x == 0)
                    );
                }
            }
        }
        let wide = masked.map(f64::from).run(Isa::Portable);
        for at in inputs.rows() {
            let lse = sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[at[1]].into());
            assert_eq!(row(wide.lse.as_ref().unwrap(), at), [lse]);
        }
    }
}

/// Sinks far above and below all scores.
#[test]
fn sinks_of_any_size() {
    let mut inputs = Case::plain(Dims { group: 4, ..Dims::single(5, 60, 8, 5) }, 32).inputs();
    inputs.terms.sinks = Some(vec![-1e30, -200.0, 200.0, 1e30]);
    let plain = Inputs { terms: Terms::default(), ..inputs.clone() };
    for isa in Isa::available() {
        let (got, plain) = (inputs.run(isa), plain.run(isa));
        for at in inputs.rows() {
            let lse = row(got.lse.as_ref().unwrap(), at)[0];
            if at[1] < 2 {
                assert_eq!(row_bits(&got, at), row_bits(&plain, at), "{at:?} on {isa}");
            } else {
                assert_eq!(lse, [200.0, 1e30][at[1] - 2]);
                assert!(row(&got.out, at).iter().all(|x| x.abs() < 1e-30));
            }
        }
    }
}

/// The cap is before the bias, the bias before the caller's term, that before the mask.
#[test]
fn the_order_of_terms() {
    let masks = Masks {
        boolean: Some(DenseMask { axes: [false; 3], layout: Layout::Bhsd }),
        ..Masks::default()
    };
    let mut inputs = Case { masks, ..Case::plain(Dims::single(3, 4, 1, 1), 33) }.inputs();
    // One key of score ln 3 behind everything, three of 0; the last is masked.
    inputs.query = Strided::filled([1, 1, 3, 1], Layout::Bhsd, 100.0);
    inputs.key = Strided::new(&[0.0, 1.0, -1.0, 0.0], [1, 1, 4, 1], Layout::Bhsd, 0.0);
    inputs.boolean =
        Some(Strided::new(&[true, true, true, false], [1, 1, 1, 4], Layout::Bhsd, true));
    inputs.bias = Some(Strided::new(&[1.0, -1.0, 3.0, 0.0], [1, 1, 1, 4], Layout::Bhsd, 0.0));
    inputs.scale = Scale::One;
    inputs.terms.softcap = Some(2.0);
    // Capped 0, 2, -2; biased 1, 1, 1; squared less 1, and ln 3 for key 1; the masked one to 1000.
    let term = |score: f32, at: Position| match at.key {
        1 => score * score - 1.0 + 3.0_f32.ln(),
        3 => 1000.0,
        _ => score * score - 1.0,
    };
    for isa in Isa::available() {
        let result = inputs.run_term(&by_scalar(&term), isa);
        for at in inputs.rows() {
            let weights = row(result.weights.as_ref().unwrap(), at);
            for (got, expected) in weights.iter().zip([0.2, 0.6, 0.2, 0.0]) {
                assert!((got - expected).abs() < 1e-6, "{weights:?} on {isa}");
            }
        }
    }
}

/// Softcap keeps what is small and bounds what is large.
#[test]
fn softcap_at_its_ends() {
    let mut inputs = Case::plain(Dims::single(1, 3, 1, 1), 34).inputs();
    inputs.query = Strided::filled([1, 1, 1, 1], Layout::Bhsd, 1.0);
    inputs.scale = Scale::One;
    for (cap, keys, expected) in [
        (30.0, [f32::INFINITY, f32::NEG_INFINITY, 0.0], [30.0, -30.0, 0.0]),
        (30.0, [3e38, -3e38, 1e-30], [30.0, -30.0, 0.0]),
        (1e30, [1.5, -2.5, 7.0], [1.5, -2.5, 7.0]),
        (1e-30, [1.5, -2.5, 0.0], [0.0, 0.0, 0.0]),
        (1e-45, [1.5, -2.5, 0.0], [0.0, 0.0, 0.0]),
    ] {
        inputs.key = Strided::new(&keys, [1, 1, 3, 1], Layout::Bhsd, 0.0);
        inputs.terms.softcap = Some(cap);
        let sum: f64 = expected.iter().map(|&x: &f64| x.exp()).sum();
        for isa in Isa::available() {
            let result = inputs.run(isa);
            for (got, x) in row(result.weights.as_ref().unwrap(), [0; 3]).iter().zip(expected) {
                let error = f64::from(*got) / (x.exp() / sum) - 1.0;
                assert!(error.abs() < 2e-5, "cap {cap}, {keys:?}: {got} on {isa}");
            }
        }
    }
}

#[test]
fn half_biases_are_their_widened_numbers() {
    use half::{bf16, f16};
    for_all(60, masked_cases(), |case| {
        let mut inputs = case.inputs();
        let Some(bias) = inputs.bias.take() else { return };
        // What f16 cannot hold becomes infinite and so hides, or is left out.
        let bias = bias.map(|x| if x == f32::MIN { -6e4 } else { x });
        let (short, brain) = (bias.map(f16::from_f32), bias.map(bf16::from_f32));
        for isa in Isa::available() {
            let options = inputs.options().isa(isa).return_lse().return_weights();
            let run = |options: AttentionOptions<'_>| result_bits(&inputs.run_with(&options));
            let wide = short.map(f16::to_f32);
            assert!(run(options.bias(wide.view())) == run(options.bias(short.view())), "{case:?}");
            let wide = brain.map(bf16::to_f32);
            assert!(run(options.bias(wide.view())) == run(options.bias(brain.view())), "{case:?}");
        }
        let options = inputs.options().algorithm(Algorithm::Unfused);
        let wide = short.map(f16::to_f32);
        let (a, b) = (options.bias(wide.view()), options.bias(short.view()));
        assert!(result_bits(&inputs.run_with(&a)) == result_bits(&inputs.run_with(&b)));
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let inputs = Case::plain(Dims { group: 3, ..Dims::single(4, 5, 8, 8) }, 35).inputs();
    let options = inputs.options();
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    let refused = |options: &AttentionOptions<'_>, parts: &[&str]| {
        let error = attention(q, k, v, options).map(|result| result.isa);
        let message = error.expect_err("an error").to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        refused(&options.softcap(cap), &["softcap", "positive finite"]);
    }
    for numbers in [&[1.0; 2][..], &[1.0; 4], &[]] {
        refused(&options.alibi(Alibi::Slopes(numbers)), &["alibi", "3 query heads"]);
        refused(&options.sinks(numbers), &["sinks", "3 query heads"]);
    }
    refused(&options.alibi(Alibi::Slopes(&[1.0, f32::NAN, 1.0])), &["alibi", "NaN", "finite"]);
    refused(&options.alibi(Alibi::Slopes(&[1.0, f32::INFINITY, 1.0])), &["alibi", "finite"]);
    refused(&options.sinks(&[1.0, f32::NAN, 1.0]), &["sinks", "NaN"]);
    refused(&options.sinks(&[1.0, f32::INFINITY, 1.0]), &["sinks", "inf"]);
    let bias = RelativeBias::by_distance(&[0.0; 4], 2, 0).unwrap();
    refused(&options.relative_bias(&bias), &["relative_bias", "2 heads", "3 query heads"]);
    refused(&options.causal_offset(1 << 25).alibi(Alibi::Standard), &["alibi", "16777216"]);
    refused(&options.causal_offset(i64::MIN).alibi(Alibi::Standard), &["alibi", "16777216"]);

    let tables = [
        (RelativeBias::by_distance(&[0.0; 5], 2, 0), "[heads, distances]"),
        (RelativeBias::by_distance(&[], 2, 0), "[heads, distances]"),
        (RelativeBias::by_distance(&[0.0; 4], 0, 0), "[heads, distances]"),
        (RelativeBias::by_distance(&[0.0, f32::NAN], 2, 0), "no NaN"),
        (RelativeBias::t5(&[0.0; 33], 2, 128, true), "[buckets, heads]"),
        (RelativeBias::t5(&[0.0; 6], 2, 128, true), "[buckets, heads]"),
        (RelativeBias::t5(&[0.0; 2], 2, 128, false), "[buckets, heads]"),
        (RelativeBias::t5(&[0.0; 8], 0, 128, false), "[buckets, heads]"),
        (RelativeBias::t5(&[f32::NAN; 8], 2, 128, false), "no NaN"),
        (RelativeBias::t5(&[0.0; 64], 2, 8, true), "more than 8"),
        (RelativeBias::t5(&[0.0; 64], 2, usize::MAX, true), "max_distance"),
        (RelativeBias::t5(&[0.0; 64], 2, isize::MAX as usize, true), "memory"),
    ];
    for (result, part) in tables {
        let message = result.expect_err("an error").to_string();
        assert!(message.contains(part), "{message}");
    }

    let refused = |options: &AttentionOptions<'_>, parts: &[&str]| {
        let error =
            attention_with(q, k, v, &Any::Nothing(NoTerm), options).map(|result| result.isa);
        let message = error.expect_err("an error").to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    refused(&options.causal_offset((1 << 24) - 2), &["term", "16777217", "16777216"]);
    refused(&options.algorithm(Algorithm::Unfused), &["algorithm", "Unfused"]);
    assert!(
        attention_with(q, k, v, &Any::Nothing(NoTerm), &options.causal_offset((1 << 24) - 3))
            .is_ok()
    );
}

/// Keys beyond what `f32` counts, over memory that repeats.
#[test]
fn sequences_too_long_for_a_term() {
    let zeros = [0.0_f32; 4];
    let view = |seq| View::strided(&zeros, 0, [1, 1, seq, 1], [0, 0, 0, 1]).unwrap();
    let keys = view((1 << 24) + 1);
    let error =
        attention_with(view(1), keys, keys, &Any::Nothing(NoTerm), &AttentionOptions::new());
    assert!(error.is_err_and(|error| error.to_string().contains("16777217")));
}

#[test]
fn no_keys_no_queries() {
    for (seq_q, seq_kv) in [(0, 5), (5, 0)] {
        let case = Case::plain(Dims { batch: 2, ..Dims::single(seq_q, seq_kv, 8, 3) }, 36);
        let inputs = inputs(&case, 0b11111);
        for isa in Isa::available() {
            let result = inputs.run_term(&Any::Nothing(NoTerm), isa);
            assert!(result.out.data().iter().all(|&x| x == 0.0));
            let sink = inputs.terms.sinks.as_ref().unwrap()[0];
            assert!(result.lse.unwrap().data().iter().all(|&x| x == sink));
        }
    }
}
