//! What there is beside the output and the log-sum-exp: weights and scores of chosen rows, sums by
//! key, the largest keys. Each against its definition, and to the same bits whatever does not belong
//! to it.

mod common;

use common::case::{Case, Data, Dims, Inputs, Masks};
use common::everything::{Everything, Want};
use common::executors::{Boastful, Never, Scoped, TooOften};
use common::strategies::masked_cases;
use common::{Rng, bits, for_all, poison};
use headwise::{
    Algorithm, Alibi, AttentionOptions, Causal, Element, Executor, Isa, NO_KEY, Outputs, Pick,
    Position, RelativeBias, Result, ScoreTile, Serial, Stage, ViewMut, Workspace, alibi_slope,
    attention_into, attention_with_into, scalar, tiles,
};

const STAGES: [Stage; 3] = [Stage::Scaled, Stage::Capped, Stage::Final];

/// Runs `test` on each instruction set, fused, and unfused on the widest.
fn everywhere(inputs: &Inputs<f32>, test: impl Fn(&AttentionOptions<'_>, &str)) {
    for isa in Isa::available() {
        test(&inputs.options().isa(isa), &format!("fused on {isa}"));
    }
    test(&inputs.options().algorithm(Algorithm::Unfused), "unfused");
}

/// What to ask of a case: everything, with something of the case's own.
fn wanted(case: &Case) -> Want<'static> {
    let mut rng = Rng(case.seed ^ 7);
    let k = 1 + rng.below(case.dims.seq_kv.min(20));
    Want::all(STAGES[rng.below(3)], rng.one_in(2), k)
}

/// Some of `0..extent`, ascending.
fn some_of(extent: usize, rng: &mut Rng) -> Vec<usize> {
    (0..extent).filter(|_| rng.one_in(3)).collect()
}

/// Row `[batch, head, query]` of `[batch, q_heads, seq_q, width]`.
fn part<T>(data: &[T], d: Dims, [b, h, i]: [usize; 3], width: usize) -> &[T] {
    &data[((b * d.q_heads() + h) * d.seq_q + i) * width..][..width]
}

/// Chosen heads and queries have the bits that they have among all.
#[test]
fn chosen_rows_are_those_of_all_rows() {
    for_all(300, masked_cases(), |case| {
        let inputs = case.inputs();
        let d = case.dims;
        let mut rng = Rng(case.seed ^ 8);
        let want = wanted(&case);
        let (heads, queries) = (some_of(d.q_heads(), &mut rng), some_of(d.seq_q, &mut rng));
        let ends = [rng.below(d.seq_q + 1), rng.below(d.seq_q + 1)];
        let range = ends[0].min(ends[1])..ends[0].max(ends[1]);
        let (all_heads, in_range): (Vec<_>, Vec<_>) =
            ((0..d.q_heads()).collect(), range.clone().collect());
        let picks = [
            (Pick::from(&heads[..]), Pick::from(&queries[..]), &heads, &queries),
            (Pick::from(..), Pick::from(range), &all_heads, &in_range),
        ];
        everywhere(&inputs, |options, what| {
            let whole = Everything::of(&inputs, options, &want);
            for (heads, queries, h, i) in picks.clone() {
                let some = Want { heads, queries, ..want.clone() };
                let got = Everything::of(&inputs, options, &some);
                let gather = |data: &[f32]| -> Vec<f32> {
                    let rows = (0..d.batch).flat_map(|b| {
                        h.iter().flat_map(move |&h| i.iter().map(move |&i| [b, h, i]))
                    });
                    rows.flat_map(|at| part(data, d, at, d.seq_kv).to_vec()).collect()
                };
                let what = format!("{some:?}, {case:?}, {what}");
                assert_eq!(bits(&gather(&whole.weights)), bits(&got.weights), "weights, {what}");
                assert_eq!(bits(&gather(&whole.scores)), bits(&got.scores), "scores, {what}");
                let rest = |all: &Everything<f32>| {
                    [bits(&all.out), bits(&all.lse), bits(&all.sums), bits(&all.best)]
                };
                assert!(rest(&whole) == rest(&got) && whole.keys == got.keys, "{what}");
            }
        });
    });
}

/// Scores are those of the definition, in natural units, and -inf where a key is hidden.
fn check_scores<T: Element>(
    inputs: &Inputs<T>,
    got: &Everything<T>,
    stage: Stage,
    u: f64,
    what: &str,
) {
    let d = inputs.dims();
    let (scale, roundings) = (inputs.scale_factor(), (d.head_dim + 9) as f64);
    for [b, h, i] in inputs.rows() {
        let scores = part(&got.scores, d, [b, h, i], d.seq_kv);
        for (j, score) in scores.iter().enumerate() {
            let score = score.to_f64();
            if !inputs.is_visible([b, h, i, j]) {
                assert_eq!(score, f64::NEG_INFINITY, "hidden {:?}, {what}", [b, h, i, j]);
                continue;
            }
            let terms = (0..d.head_dim).map(|c| {
                let key = inputs.key.get([b, h / d.group, j, c]).to_f64();
                scale * inputs.query.get([b, h, i, c]).to_f64() * key
            });
            let (mut sum, mut size) = terms.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
            if stage == Stage::Final {
                let bias = inputs.bias_at([b, h, i, j]);
                (sum, size) = (sum + bias, size + bias.abs());
            }
            let bound = roundings * u * size + 1e-37;
            let error = (score - sum).abs();
            assert!(error <= bound, "{score} for {sum} at {:?}, {what}", [b, h, i, j]);
        }
    }
}

#[test]
fn scores_are_those_of_the_definition() {
    for_all(300, masked_cases(), |case| {
        let inputs = case.inputs();
        for stage in STAGES {
            let want = Want::all(stage, true, 1);
            everywhere(&inputs, |options, what| {
                let got = Everything::of(&inputs, options, &want);
                let what = format!("{stage:?}, {case:?}, {what}");
                check_scores(&inputs, &got, stage, 1.0 / (1 << 24) as f64, &what);
            });
            let wide = inputs.map(f64::from);
            let got = Everything::of(&wide, &wide.options(), &want);
            check_scores(&wide, &got, stage, f64::EPSILON, &format!("{stage:?}, {case:?}, f64"));
        }
    });
}

/// The sums of the weights that the same call gives, up to the rounding of additions.
fn check_sums<T: Element>(
    inputs: &Inputs<T>,
    got: &Everything<T>,
    want: &Want<'_>,
    u: f64,
    what: &str,
) {
    let d = inputs.dims();
    let group = if want.by_query_head { 1 } else { d.group };
    let heads = d.q_heads() / group;
    for (at, sum) in got.sums.iter().enumerate() {
        let (b, head, j) = (at / (heads * d.seq_kv), at / d.seq_kv % heads, at % d.seq_kv);
        let rows =
            (head * group..(head + 1) * group).flat_map(|h| (0..d.seq_q).map(move |i| [b, h, i]));
        let exact: f64 = rows.map(|at| part(&got.weights, d, at, d.seq_kv)[j].to_f64()).sum();
        let bound = (group * d.seq_q) as f64 * u * exact;
        let error = (sum.to_f64() - exact).abs();
        assert!(error <= bound, "{sum:?} for {exact}, key {j} of {b}, {head}, {what}");
    }
}

#[test]
fn column_sums_add_up_the_weights() {
    for_all(300, masked_cases(), |case| {
        let inputs = case.inputs();
        for by_query_head in [true, false] {
            let want = Want::all(Stage::Scaled, by_query_head, 1);
            everywhere(&inputs, |options, what| {
                let got = Everything::of(&inputs, options, &want);
                let u = 1.0 / (1 << 24) as f64;
                check_sums(&inputs, &got, &want, u, &format!("{want:?}, {case:?}, {what}"));
            });
            let wide = inputs.map(f64::from);
            let got = Everything::of(&wide, &wide.options(), &want);
            check_sums(&wide, &got, &want, f64::EPSILON, &format!("{want:?}, {case:?}, f64"));
        }
    });
}

/// What sorting all visible weights gives.
fn check_top_k<T: Element>(inputs: &Inputs<T>, got: &Everything<T>, k: usize, what: &str) {
    let d = inputs.dims();
    for at in inputs.rows() {
        let [b, h, i] = at;
        let weights = part(&got.weights, d, at, d.seq_kv);
        let mut sorted: Vec<usize> =
            (0..d.seq_kv).filter(|&j| inputs.is_visible([b, h, i, j])).collect();
        // Stable: the smaller index first.
        sorted.sort_by(|&a, &b| weights[b].to_f64().total_cmp(&weights[a].to_f64()));
        let best = sorted.iter().map(|&j| (j as u32, weights[j].to_f64()));
        let expected: Vec<_> = best.chain(std::iter::repeat((NO_KEY, 0.0))).take(k).collect();
        let keys = part(&got.keys, d, at, k).iter().copied();
        let found: Vec<_> =
            keys.zip(part(&got.best, d, at, k).iter().map(|w| w.to_f64())).collect();
        assert_eq!(expected, found, "row {at:?}, {what}");
    }
}

#[test]
fn the_largest_keys_are_those_that_sorting_finds() {
    for_all(300, masked_cases(), |case| {
        let inputs = case.inputs();
        let want = wanted(&case);
        everywhere(&inputs, |options, what| {
            let got = Everything::of(&inputs, options, &want);
            check_top_k(&inputs, &got, want.k, &format!("{case:?}, {what}"));
        });
        let wide = inputs.map(f64::from);
        let got = Everything::of(&wide, &wide.options(), &want);
        check_top_k(&wide, &got, want.k, &format!("{case:?}, f64"));
    });
}

/// Equal weights are told apart by their index, over several blocks and splits.
#[test]
fn ties_go_to_the_smaller_index() {
    for (seq_kv, k) in [(5, 5), (300, 4), (300, 300), (2100, 7)] {
        let inputs =
            Case { data: Data::Constant, ..Case::plain(Dims::single(3, seq_kv, 8, 4), 61) };
        let inputs = inputs.inputs();
        everywhere(&inputs, |options, what| {
            let got = Everything::of(&inputs, options, &Want::all(Stage::Scaled, true, k));
            let expected: Vec<u32> = (0..k as u32).collect();
            got.keys.chunks(k).for_each(|keys| assert_eq!(keys, expected, "{what}"));
        });
    }
}

/// Halves scores and hides every seventh key: a term of the caller's, by score and by tile.
fn halved(score: f32, key: usize) -> f32 {
    if key % 7 == 3 { f32::NEG_INFINITY } else { 0.5 * score }
}

const CAP: f32 = 0.8;

/// From 0.3 ten keys before the query to -0.3 ten keys behind it, other for each head.
fn table(heads: usize) -> RelativeBias {
    let rows = (0..heads).flat_map(|h| (0..21).map(move |n| 0.03 * (10 - n + h as i32) as f32));
    let table: Vec<f32> = rows.collect();
    RelativeBias::by_distance(&table, heads, -10).unwrap_or_else(|error| panic!("{error}"))
}

/// The scores of a softcap, ALiBi, [`table`] and, if `user`, [`halved`], at each stage; -inf where it hides, but
/// not where masks do.
fn staged(inputs: &Inputs<f32>, at: [usize; 4], relative: &RelativeBias, user: bool) -> [f64; 3] {
    let d = inputs.dims();
    let [b, h, i, j] = at;
    let dot: f64 = (0..d.head_dim)
        .map(|c| {
            let key = f64::from(inputs.key.get([b, h / d.group, j, c]));
            f64::from(inputs.query.get([b, h, i, c])) * key
        })
        .sum();
    let (scaled, cap) = (inputs.scale_factor() * dot, f64::from(CAP));
    let capped = cap * (scaled / cap).tanh();
    let distance = j as i64 - (i as i128 + inputs.diagonal(b)) as i64;
    let slope = f64::from(alibi_slope(h, d.q_heads()));
    let biased = capped + slope * distance as f64 + f64::from(relative.get(h, distance));
    let last = match (user, j % 7) {
        (true, 3) => f64::NEG_INFINITY,
        (true, _) => 0.5 * biased,
        (false, _) => biased,
    };
    [scaled, capped, last]
}

/// Softcap, biases, sinks and terms of the caller's: each stage is what it says, and the weights are
/// those of the last one beside the sink.
#[test]
fn terms_stand_between_the_stages() {
    let masks = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
    let dims = Dims { batch: 2, kv_heads: 2, group: 3, ..Dims::single(40, 150, 16, 8) };
    let inputs = Case { masks, ..Case::plain(dims, 65) }.inputs();
    let relative = table(dims.q_heads());
    let sinks = [0.5, -1.0, 2.0, f32::NEG_INFINITY, 0.0, 1.0];
    let check = |got: &Everything<f32>, stage: Stage, user: bool, what: &str| {
        let which = STAGES.iter().position(|&s| s == stage).unwrap_or(0);
        for at in inputs.rows() {
            let [b, h, i] = at;
            let scores = part(&got.scores, dims, at, dims.seq_kv);
            let weights = part(&got.weights, dims, at, dims.seq_kv);
            let lse = f64::from(part(&got.lse, dims, at, 1)[0]);
            for (j, (&score, &weight)) in scores.iter().zip(weights).enumerate() {
                let staged = staged(&inputs, [b, h, i, j], &relative, user);
                let sees = inputs.sees([b, h, i, j]);
                let hidden = f64::NEG_INFINITY;
                let expected = if sees { staged[which] } else { hidden };
                let error = (f64::from(score) - expected).abs();
                let close = f64::from(score) == expected || error < 1e-5;
                assert!(close, "score {score} for {expected}, {at:?}, {j}, {stage:?}, {what}");
                let expected = if sees { (staged[2] - lse).exp() } else { 0.0 };
                let error = (f64::from(weight) - expected).abs();
                assert!(error < 1e-5, "weight {weight} for {expected}, {at:?}, {j}, {what}");
            }
        }
        let sums = Want::all(stage, false, 4);
        check_sums(&inputs, got, &sums, 1.0 / (1 << 24) as f64, what);
        for (best, keys) in got.best.chunks(4).zip(got.keys.chunks(4)) {
            assert!(best.is_sorted_by(|a, b| a >= b), "{best:?}, {what}");
            assert!(!user || keys.iter().all(|key| key % 7 != 3), "{keys:?}, {what}");
        }
    };
    for stage in STAGES {
        let want = Want::all(stage, false, 4);
        everywhere(&inputs, |options, what| {
            let options = options.softcap(CAP).alibi(Alibi::Standard).sinks(&sinks);
            let options = options.relative_bias(&relative);
            check(&Everything::of(&inputs, &options, &want), stage, false, what);
            if what == "unfused" {
                return;
            }
            let by_score = scalar(|score, at: Position| halved(score, at.key));
            let by_tile = tiles(|tile: ScoreTile<'_>| {
                for (column, key) in tile.scores.chunks_mut(ScoreTile::PITCH).zip(tile.keys) {
                    column.iter_mut().for_each(|score| *score = halved(*score, key));
                }
            });
            let got = Everything::from(&inputs, &want, |[q, k, v], outputs| {
                let workspace = &mut Workspace::new();
                attention_with_into(q, k, v, &by_score, &options, outputs, workspace)
            });
            check(&got, stage, true, &format!("by score, {what}"));
            let got = Everything::from(&inputs, &want, |[q, k, v], outputs| {
                let workspace = &mut Workspace::new();
                attention_with_into(q, k, v, &by_tile, &options, outputs, workspace)
            });
            check(&got, stage, true, &format!("by tile, {what}"));
        });
    }
}

/// Problems large enough for threads, of one kv head and of several.
fn large_cases() -> [Case; 3] {
    let causal = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
    let grouped = Dims { batch: 2, kv_heads: 2, group: 3, ..Dims::single(150, 150, 32, 40) };
    let one = Dims { group: 2, ..Dims::single(500, 300, 16, 9) };
    let long = Dims { kv_heads: 2, ..Dims::single(60, 4200, 8, 9) };
    [(grouped, Data::Wide), (one, Data::Normal), (long, Data::Growing)].map(|(dims, data)| Case {
        data,
        masks: causal,
        ..Case::plain(dims, 62)
    })
}

#[test]
fn threads_and_executors_change_no_bit() {
    let executors: [&dyn Executor; 6] =
        [&Scoped(2), &Scoped(3), &Scoped(5), &Never, &TooOften, &Boastful];
    for case in large_cases() {
        assert!(case.dims.work() > 4_000_000, "too little work for threads: {case:?}");
        let inputs = case.inputs();
        for by_query_head in [true, false] {
            let want = Want::all(Stage::Final, by_query_head, 5);
            everywhere(&inputs, |options, what| {
                let of =
                    |executor| Everything::of(&inputs, &options.executor(executor), &want).bits();
                let expected = of(&Serial);
                for executor in executors {
                    assert!(expected == of(executor), "{want:?}, {case:?}, {what}");
                }
            });
        }
    }
}

/// A batch entry alone gives its part of the whole.
#[test]
fn the_batch_changes_no_bit() {
    for_all(150, masked_cases(), |case| {
        let whole = case.inputs();
        let want = wanted(&case);
        for isa in Isa::available() {
            let all = Everything::of(&whole, &whole.options().isa(isa), &want).bits();
            for b in 0..case.dims.batch {
                let mut entry = whole.clone();
                entry.query = whole.query.narrow(0, b..b + 1);
                entry.key = whole.key.narrow(0, b..b + 1);
                entry.value = whole.value.narrow(0, b..b + 1);
                entry.lengths = whole.lengths.as_ref().map(|lengths| vec![lengths[b]]);
                entry.structure = whole.structure.batch_entry(b, whole.dims());
                let axis = |extent: usize| if extent == 1 { 0..1 } else { b..b + 1 };
                entry.boolean = whole.boolean.as_ref().map(|m| m.narrow(0, axis(m.shape[0])));
                entry.bias = whole.bias.as_ref().map(|m| m.narrow(0, axis(m.shape[0])));
                let alone = Everything::of(&entry, &entry.options().isa(isa), &want).bits();
                for (all, alone) in all.iter().zip(&alone) {
                    let all = &all[b * alone.len()..(b + 1) * alone.len()];
                    assert!(all == alone, "entry {b}, {want:?}, {case:?} on {isa}");
                }
            }
        }
    });
}

/// Keys and values that nobody sees may hold anything.
#[test]
fn poison_that_nobody_sees_changes_no_output() {
    let poisoned = std::cell::Cell::new(0);
    for_all(300, masked_cases(), |case| {
        let (clean, d) = (case.inputs(), case.dims);
        let mut dirty = clean.clone();
        let mut rng = Rng(case.seed ^ 9);
        for at in 0..d.batch * d.kv_heads * d.seq_kv {
            let [b, kv, j] =
                [at / (d.kv_heads * d.seq_kv), at / d.seq_kv % d.kv_heads, at % d.seq_kv];
            let mut heads = kv * d.group..(kv + 1) * d.group;
            if heads.any(|h| (0..d.seq_q).any(|i| clean.is_visible([b, h, i, j]))) {
                continue;
            }
            poisoned.set(poisoned.get() + 1);
            (0..d.head_dim).for_each(|c| dirty.key.set([b, kv, j, c], poison(&mut rng)));
            (0..d.value_dim).for_each(|c| dirty.value.set([b, kv, j, c], poison(&mut rng)));
        }
        let want = wanted(&case);
        for isa in Isa::available() {
            let run = |inputs: &Inputs<f32>| {
                Everything::of(inputs, &inputs.options().isa(isa), &want).bits()
            };
            assert!(run(&clean) == run(&dirty), "{want:?}, {case:?} on {isa}");
        }
    });
    assert!(poisoned.get() > 1000, "only {} keys were poisoned", poisoned.get());
}

/// A key that is NaN shows in the rows that see it, in their scores and in its own sum alone.
#[test]
fn a_nan_key_shows_where_it_is_seen() {
    let masks = Masks { causal: Some(Causal::TopLeft), ..Masks::default() };
    let mut inputs = Case { masks, ..Case::plain(Dims::single(60, 60, 8, 4), 63) }.inputs();
    inputs.key.set([0, 0, 40, 3], f32::NAN);
    everywhere(&inputs, |options, what| {
        let got = Everything::of(&inputs, options, &Want::all(Stage::Scaled, true, 2));
        for at in 0..3600 {
            let (i, j) = (at / 60, at % 60);
            assert_eq!(got.scores[at].is_nan(), j == 40 && i >= 40, "score {i}, {j}, {what}");
            assert_eq!(got.weights[at].is_nan(), i >= 40 && j <= i, "weight {i}, {j}, {what}");
        }
        // Some row from 40 on is NaN in every key that it sees.
        assert!(got.sums.iter().all(|sum| sum.is_nan()), "{what}");
        for (i, keys) in got.keys.chunks(2).enumerate().skip(40) {
            assert_eq!(keys, [0, 1], "row {i}, {what}");
        }
    });
}

/// Without queries there is nothing to add, which is written; without keys there is nothing to write.
#[test]
fn nothing_to_add() {
    for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
        for (seq_q, seq_kv) in [(0, 9), (9, 0)] {
            let inputs = Case::plain(Dims { group: 2, ..Dims::single(seq_q, seq_kv, 8, 4) }, 64);
            let inputs = inputs.inputs();
            let options = inputs.options().algorithm(algorithm);
            let got = Everything::of(&inputs, &options, &Want::all(Stage::Final, false, 0));
            assert_eq!(got.sums, vec![0.0; seq_kv]);
            assert!(got.out.iter().all(|&x| x == 0.0));
        }
    }
}

/// Adds to the outputs, in memory for numbers and for keys.
type Ask<'s> =
    dyn for<'a> Fn(Outputs<'a, f32>, &'a mut [f32], &'a mut [u32]) -> Result<Outputs<'a, f32>> + 's;

/// One output of several may be asked for alone.
#[test]
fn each_output_alone() {
    let case = large_cases()[0];
    let (inputs, d) = (case.inputs(), case.dims);
    let want = Want::all(Stage::Final, false, 3);
    everywhere(&inputs, |options, what| {
        let expected = Everything::of(&inputs, options, &want);
        let rows = |inner| [d.batch, d.q_heads(), d.seq_q, inner];
        let mut out = expected.out.clone();
        let run = |ask: &Ask<'_>, out: &mut [f32], len: usize| {
            let (mut numbers, mut keys) = (vec![f32::NAN; len], vec![0; len]);
            let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
            let result = ViewMut::bhsd(out, rows(d.value_dim)).and_then(|out| {
                let outputs = ask(Outputs::new(out), &mut numbers, &mut keys)?;
                attention_into(q, k, v, options, outputs, &mut Workspace::new())
            });
            assert!(result.is_ok(), "{result:?}");
            (numbers, keys)
        };
        let (scores, _) = run(
            &|outputs, numbers, _| {
                Ok(outputs.with_scores(Stage::Final, ViewMut::bhsd(numbers, rows(d.seq_kv))?))
            },
            &mut out,
            expected.scores.len(),
        );
        assert!(bits(&scores) == bits(&expected.scores), "scores, {what}");
        let (sums, _) = run(
            &|outputs, numbers, _| {
                Ok(outputs
                    .with_column_sums(ViewMut::bhsd(numbers, [d.batch, d.kv_heads, 1, d.seq_kv])?))
            },
            &mut out,
            expected.sums.len(),
        );
        assert!(bits(&sums) == bits(&expected.sums), "sums, {what}");
        let (best, keys) = run(
            &|outputs, numbers, keys| {
                Ok(outputs
                    .with_top_k(ViewMut::bhsd(keys, rows(3))?, ViewMut::bhsd(numbers, rows(3))?))
            },
            &mut out,
            expected.best.len(),
        );
        assert!(bits(&best) == bits(&expected.best) && keys == expected.keys, "keys, {what}");
        assert!(bits(&out) == bits(&expected.out), "out, {what}");
    });
}
