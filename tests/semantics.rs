//! What the results mean where numbers are special: masked data of any kind changes no bit, NaN
//! and infinity go exactly where they belong, rows that see nothing are zero.

mod common;

use common::bounds::{Expected, F32, F64, FUSED, Got};
use common::case::{Case, Data, DenseMask, Dims, Inputs, Masks, row};
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::{POISON, Rng, bits, for_all, poison, result_bits, row_bits};
use headwise::{Algorithm, Attention, Causal, Isa, Scale};

/// Poisons every key and value that no query sees.
fn poison_unseen(inputs: &mut Inputs<f32>, rng: &mut Rng) -> usize {
    let d = inputs.dims();
    let mut poisoned = 0;
    for b in 0..d.batch {
        for kv_head in 0..d.kv_heads {
            for j in 0..d.seq_kv {
                let mut heads = kv_head * d.group..(kv_head + 1) * d.group;
                let seen = heads.any(|h| (0..d.seq_q).any(|i| inputs.is_visible([b, h, i, j])));
                if !seen {
                    poisoned += 1;
                    (0..d.head_dim).for_each(|at| inputs.key.set([b, kv_head, j, at], poison(rng)));
                    (0..d.value_dim)
                        .for_each(|at| inputs.value.set([b, kv_head, j, at], poison(rng)));
                }
            }
        }
    }
    poisoned
}

/// Keys and values that nobody sees may hold anything, and so may the bias under another mask.
#[test]
fn poison_that_nobody_sees_changes_no_bit() {
    let poisoned = std::cell::Cell::new(0);
    for_all(500, masked_cases(), |case| {
        let clean = case.inputs();
        let mut dirty = clean.clone();
        let mut rng = Rng(case.seed ^ 1);
        poisoned.set(poisoned.get() + poison_unseen(&mut dirty, &mut rng));
        if let Some(bias) = &mut dirty.bias
            && bias.shape[..3] == [case.dims.batch, case.dims.q_heads(), case.dims.seq_q]
        {
            for [b, h, i] in clean.rows() {
                let hidden = (0..case.dims.seq_kv).filter(|&j| !clean.sees([b, h, i, j]));
                hidden.for_each(|j| bias.set([b, h, i, j], poison(&mut rng)));
            }
        }
        for isa in Isa::available() {
            let (clean, dirty) = (clean.run(isa), dirty.run(isa));
            assert_eq!(result_bits(&clean), result_bits(&dirty), "{case:?} on {isa}");
        }
        // The unfused path promises the numbers, not the bits.
        let expected = Expected::of(&clean);
        let options = dirty.options().algorithm(Algorithm::Unfused).return_lse().return_weights();
        let what = format!("unfused, {case:?}");
        expected.assert_explains(&Got::of(&dirty.run_with(&options)), F32, &what);
        let wide = dirty.map(f64::from);
        expected.assert_explains(&Got::of(&wide.run(Isa::Portable)), F64, &what);
    });
    assert!(poisoned.get() > 1000, "only {} keys were poisoned", poisoned.get());
}

/// A key that some rows see and others do not: the others keep their bits.
#[test]
fn poison_reaches_only_the_rows_that_see_it() {
    for_all(500, masked_cases(), |case| {
        let clean = case.inputs();
        let d = case.dims;
        let mut rng = Rng(case.seed ^ 2);
        let (b, kv_head, j) = (rng.below(d.batch), rng.below(d.kv_heads), rng.below(d.seq_kv));
        let (mut bad_key, mut bad_value) = (clean.clone(), clean.clone());
        let (at_key, at_value) = (rng.below(d.head_dim), rng.below(d.value_dim));
        bad_key.key.set([b, kv_head, j, at_key], f32::from_bits(POISON[rng.below(4)]));
        bad_value.value.set([b, kv_head, j, at_value], f32::from_bits(POISON[rng.below(6)]));
        for isa in Isa::available() {
            let what = format!("key {j} of {b}, {kv_head}; {case:?} on {isa}");
            let [clean_run, bad_key, bad_value] =
                [&clean, &bad_key, &bad_value].map(|inputs| inputs.run(isa));
            for at in clean.rows() {
                let [batch, h, i] = at;
                let sees = batch == b && h / d.group == kv_head && clean.is_visible([b, h, i, j]);
                let parts = |result| row_bits(result, at);
                if !sees {
                    assert_eq!(parts(&clean_run), parts(&bad_key), "key, row {at:?}, {what}");
                    assert_eq!(parts(&clean_run), parts(&bad_value), "value, row {at:?}, {what}");
                    continue;
                }
                assert_nan_row(&clean, &bad_key, at, &what);
                let (clean_parts, bad_parts) = (parts(&clean_run), parts(&bad_value));
                assert_eq!(clean_parts[1], bad_parts[1], "lse, row {at:?}, {what}");
                assert_eq!(clean_parts[2], bad_parts[2], "weights, row {at:?}, {what}");
                let values = row(&clean_run.out, at).iter().zip(row(&bad_value.out, at));
                for (c, (clean, bad)) in values.enumerate() {
                    if c == at_value {
                        assert!(!bad.is_finite(), "column {c}, row {at:?}: {bad}; {what}");
                    } else {
                        assert_eq!(clean.to_bits(), bad.to_bits(), "column {c}, {at:?}, {what}");
                    }
                }
            }
        }
    });
}

/// NaN in output, log-sum-exp and all visible weights; hidden weights stay 0.
fn assert_nan_row(inputs: &Inputs<f32>, result: &Attention, at: [usize; 3], what: &str) {
    assert!(row(&result.out, at).iter().all(|x| x.is_nan()), "out of {at:?}, {what}");
    if let Some(lse) = &result.lse {
        assert!(row(lse, at)[0].is_nan(), "lse of {at:?}, {what}");
    }
    let [b, h, i] = at;
    let weights = result.weights.as_ref().map_or(&[][..], |weights| row(weights, at));
    assert_eq!(weights.len(), inputs.dims().seq_kv);
    for (j, weight) in weights.iter().enumerate() {
        let ok = if inputs.is_visible([b, h, i, j]) { weight.is_nan() } else { *weight == 0.0 };
        assert!(ok, "weight {j} of {at:?}: {weight}; {what}");
    }
}

/// Runs `test` on each instruction set and algorithm.
fn everywhere(inputs: &Inputs<f32>, test: impl Fn(&Attention, &str)) {
    for isa in Isa::available() {
        for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
            let options = inputs.options().isa(isa).algorithm(algorithm);
            let result = inputs.run_with(&options.return_lse().return_weights());
            test(&result, &format!("{algorithm:?} on {isa}"));
        }
    }
}

fn assert_empty_row(result: &Attention, at: [usize; 3], what: &str) {
    let zero = |data: &[f32]| data.iter().all(|x| x.to_bits() == 0);
    assert!(zero(row(&result.out, at)), "out of {at:?}, {what}");
    let lse = result.lse.as_ref().map(|lse| row(lse, at)[0]);
    assert_eq!(lse, Some(f32::NEG_INFINITY), "{at:?}, {what}");
    assert!(result.weights.as_ref().is_some_and(|weights| zero(row(weights, at))), "{what}");
}

#[test]
fn rows_that_see_nothing() {
    let case =
        Case::plain(Dims { batch: 2, kv_heads: 2, group: 2, ..Dims::single(9, 70, 8, 17) }, 5);
    let clean = case.inputs();
    let hidden = |layout: Layout| Strided::filled([1, 1, 9, 70], layout, false);
    type Poison = Box<dyn Fn(&mut Inputs<f32>)>;
    let cases: [(&str, Poison); 6] = [
        ("causal", Box::new(|x| x.causal = Some(Causal::Offset(-9)))),
        ("window", Box::new(|x| (x.causal, x.left) = (Some(Causal::Offset(100)), Some(2)))),
        ("key lengths", Box::new(|x| x.lengths = Some(vec![0, 0]))),
        ("boolean", Box::new(move |x| x.boolean = Some(hidden(Layout::Bhsd)))),
        (
            "-inf bias",
            Box::new(|x| {
                let bias = Strided::filled([2, 1, 1, 70], Layout::Bhsd, f32::NEG_INFINITY);
                x.bias = Some(bias);
            }),
        ),
        ("diagonal out of reach", Box::new(|x| x.causal = Some(Causal::Offset(i64::MIN)))),
    ];
    for (name, hide) in &cases {
        let mut inputs = clean.clone();
        hide(&mut inputs);
        everywhere(&inputs, |result, what| {
            let what = format!("{name}, {what}");
            clean.rows().into_iter().for_each(|at| assert_empty_row(result, at, &what));
        });
    }
}

#[test]
fn no_keys_at_all() {
    let dims = Dims { batch: 2, group: 3, ..Dims::single(5, 0, 8, 3) };
    let inputs = Case::plain(dims, 6).inputs();
    everywhere(&inputs, |result, what| {
        assert_eq!(result.out.shape(), [2, 3, 5, 3]);
        inputs.rows().into_iter().for_each(|at| assert_empty_row(result, at, what));
    });
}

#[test]
fn no_queries_and_no_batch() {
    for dims in [
        Dims { kv_heads: 2, ..Dims::single(0, 7, 8, 3) },
        Dims { batch: 0, kv_heads: 2, ..Dims::single(5, 7, 8, 3) },
    ] {
        let inputs = Case::plain(dims, 6).inputs();
        everywhere(&inputs, |result, what| {
            assert_eq!(result.out.shape(), [dims.batch, 2, dims.seq_q, 3], "{what}");
            assert!(result.out.data().is_empty());
        });
        let wide = inputs.map(f64::from);
        assert!(wide.run(Isa::Portable).out.data().is_empty());
    }
}

#[test]
fn a_nan_query_is_its_rows_alone() {
    let case = Case {
        masks: Masks { causal: Some(Causal::BottomRight), ..Masks::default() },
        ..Case::plain(Dims { kv_heads: 2, group: 2, ..Dims::single(60, 100, 16, 16) }, 7)
    };
    let clean = case.inputs();
    let mut bad = clean.clone();
    bad.query.set([0, 2, 33, 5], f32::NAN);
    for isa in Isa::available() {
        let (clean_run, bad) = (clean.run(isa), bad.run(isa));
        for at in clean.rows() {
            if at == [0, 2, 33] {
                assert_nan_row(&clean, &bad, at, isa.name());
            } else {
                assert_eq!(bits(row(&clean_run.out, at)), bits(row(&bad.out, at)), "{at:?} {isa}");
            }
        }
    }
}

/// Rows without one score that is a number, over so many keys that their sums are merged.
#[test]
fn a_row_of_nothing_but_nan_stays_nan_when_splits_merge() {
    let mut query = Case::plain(Dims::single(3, 4200, 4, 4), 20).inputs();
    query.query.set([0, 0, 1, 2], f32::NAN);
    everywhere(&query, |result, what| {
        assert_nan_row(&query, result, [0, 0, 1], what);
        assert!(row(&result.out, [0, 0, 0]).iter().all(|x| x.is_finite()), "{what}");
    });
    // The keys of one split alone, the first, the second or the third.
    for split in [0..2048, 2048..4096, 4096..4200] {
        let mut keys = Case::plain(Dims::single(3, 4200, 4, 4), 21).inputs();
        split.clone().for_each(|j| keys.key.set([0, 0, j, 0], f32::NAN));
        everywhere(&keys, |result, what| {
            for at in keys.rows() {
                assert_nan_row(&keys, result, at, &format!("keys {split:?}, {what}"));
            }
        });
    }
}

#[test]
fn a_nan_bias_is_its_row_alone() {
    let axes = [true; 3];
    let masks = Masks { bias: Some(DenseMask { axes, layout: Layout::Bhsd }), ..Masks::default() };
    let mut clean = Case { masks, ..Case::plain(Dims::single(50, 70, 16, 16), 8) }.inputs();
    clean.bias = Some(Strided::filled([1, 1, 50, 70], Layout::Bhsd, 0.5));
    let mut bad = clean.clone();
    if let Some(bias) = &mut bad.bias {
        bias.set([0, 0, 20, 66], f32::NAN);
    }
    everywhere(&bad, |bad_run, what| assert_nan_row(&clean, bad_run, [0, 0, 20], what));
    for isa in Isa::available() {
        let (clean_run, bad) = (clean.run(isa), bad.run(isa));
        for at in clean.rows().into_iter().filter(|&at| at != [0, 0, 20]) {
            assert_eq!(bits(row(&clean_run.out, at)), bits(row(&bad.out, at)), "{at:?} on {isa}");
        }
    }
}

/// The mean of the values, as `f32::MIN` in every place leaves all keys alike.
#[test]
fn a_row_of_the_lowest_bias_is_uniform() {
    let mut inputs = Case::plain(Dims::single(20, 150, 16, 9), 9).inputs();
    inputs.bias = Some(Strided::filled([1, 1, 1, 150], Layout::Bhsd, f32::MIN));
    everywhere(&inputs, |result, what| {
        for at in inputs.rows() {
            for (c, x) in row(&result.out, at).iter().enumerate() {
                let sum: f32 = (0..150).map(|j| inputs.value.get([0, 0, j, c])).sum();
                assert!((x - sum / 150.0).abs() < 1e-6, "{x}, column {c} of {at:?}, {what}");
            }
            let weights = result.weights.as_ref().map_or(&[][..], |weights| row(weights, at));
            assert!(weights.iter().all(|w| (w * 150.0 - 1.0).abs() < 1e-6), "{what}");
        }
    });
}

/// `f32::MIN`, and -100, whose weights would be subnormal, before and after keys without it: as good
/// as hidden, whichever comes first.
#[test]
fn a_low_bias_among_others_weighs_nothing() {
    let places = [0..100_usize, 50..150, 0..1, 2040..2060];
    for (low, lowest) in
        [f32::MIN, -100.0].into_iter().flat_map(|low| places.clone().map(|p| (low, p)))
    {
        let keys = if lowest.start > 1000 { 2100 } else { 150 };
        let mut inputs = Case::plain(Dims::single(20, keys, 16, 9), 10).inputs();
        let mut bias = Strided::filled([1, 1, 1, keys], Layout::Bhsd, 0.0);
        lowest.clone().for_each(|j| bias.set([0, 0, 0, j], low));
        inputs.bias = Some(bias.map(|x| if x == low { f32::NEG_INFINITY } else { x }));
        let hidden: Vec<_> = Isa::available().map(|isa| result_bits(&inputs.run(isa))).collect();
        inputs.bias = Some(bias);
        for (isa, hidden) in Isa::available().zip(hidden) {
            let result = inputs.run(isa);
            assert!(result.out.data().iter().all(|x| x.is_finite()));
            let close = |a: &[u64], b: &[u64]| {
                let pairs = a.iter().zip(b).map(|(&a, &b)| (f64::from_bits(a), f64::from_bits(b)));
                pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-5)
            };
            let got = result_bits(&result);
            let same = got.iter().zip(&hidden).all(|(got, hidden)| close(got, hidden));
            assert!(same, "{low} at {lowest:?} on {isa}");
            let weights = result.weights.as_ref().map_or(&[][..], |weights| weights.data());
            let tiny = |&w: &f32| w != 0.0 && w < 1e-30;
            assert!(!weights.iter().any(tiny), "{low} at {lowest:?} on {isa}");
        }
    }
}

#[test]
fn huge_values_stay_finite() {
    for keys in [1, 3, 64, 65, 300, 2100] {
        let mut inputs = Case::plain(Dims::single(10, keys, 8, 33), 11).inputs();
        inputs.value = inputs.value.map(|x| if x < 0.0 { -3e38 } else { 3e38 });
        // One column in which nothing cancels.
        (0..keys).for_each(|j| inputs.value.set([0, 0, j, 32], 3e38));
        for isa in Isa::available() {
            let result = inputs.run(isa);
            let finite = result.out.data().iter().all(|x| x.is_finite());
            assert!(finite, "{keys} keys on {isa}");
            for at in inputs.rows() {
                let x = row(&result.out, at)[32];
                assert!((x / 3e38 - 1.0).abs() < 1e-5, "{x}, {keys} keys on {isa}");
            }
        }
    }
}

/// Huge values in one row's keys do not change the bits of rows that do not see them, nor their
/// own log-sum-exp and weights.
#[test]
fn huge_values_leave_neighbours_alone() {
    let masks = Masks { causal: Some(Causal::TopLeft), ..Masks::default() };
    let case = Case { masks, ..Case::plain(Dims::single(90, 90, 8, 20), 12) };
    let clean = case.inputs();
    let mut huge = clean.clone();
    (40..90).for_each(|j| huge.value.set([0, 0, j, 3], 3e38));
    for isa in Isa::available() {
        let (clean_run, huge_run) = (clean.run(isa), huge.run(isa));
        let [clean_bits, huge_bits] = [&clean_run, &huge_run].map(result_bits);
        assert_eq!(clean_bits[1..], huge_bits[1..], "lse and weights on {isa}");
        assert_eq!(clean_bits[0][..40 * 20], huge_bits[0][..40 * 20], "out on {isa}");
        assert!(huge_run.out.data().iter().all(|x| x.is_finite()), "{isa}");
    }
}

/// Scores of 1e4 either way: the largest wins, nothing overflows.
#[test]
fn scores_of_ten_thousand() {
    for sign in [1.0, -1.0] {
        let mut inputs = Case::plain(Dims::single(3, 200, 1, 1), 13).inputs();
        inputs.scale = Scale::One;
        inputs.query = inputs.query.map(|_| 100.0 * sign);
        (0..200).for_each(|j| inputs.key.set([0, 0, j, 0], j as f32 - 100.0));
        (0..200).for_each(|j| inputs.value.set([0, 0, j, 0], j as f32));
        let winner = if sign > 0.0 { 199.0 } else { 0.0 };
        let lse = if sign > 0.0 { 9900.0 } else { 10_000.0 };
        everywhere(&inputs, |result, what| {
            let won = |x: &f32| (x - winner).abs() <= 1e-40;
            assert!(result.out.data().iter().all(won), "{:?} {what}", result.out);
            let close = |x: &f32| (x - lse).abs() <= 0.01;
            assert!(result.lse.as_ref().is_some_and(|lse| lse.data().iter().all(close)), "{what}");
        });
    }
}

/// Any finite scale: times log2(e) these are infinite.
#[test]
fn scales_near_the_largest_number() {
    let axes = [true; 3];
    let mask =
        Masks { boolean: Some(DenseMask { axes, layout: Layout::Bhsd }), ..Masks::default() };
    let causal = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
    for (scale, masks) in
        [(3e38, Masks::default()), (f32::MIN, causal), (f32::MAX, mask), (2.3e38, causal)]
    {
        let case = Case {
            scale: Scale::Value(scale),
            masks,
            ..Case::plain(Dims { group: 2, ..Dims::single(60, 200, 16, 8) }, 22)
        };
        let mut inputs = case.inputs();
        // Scores of some tens.
        inputs.key = inputs.key.map(|x| x * 2.0_f32.powi(-125));
        let expected = Expected::of(&inputs);
        everywhere(&inputs, |result, what| {
            let arithmetic = if what.starts_with("Auto") { FUSED } else { F32 };
            let what = format!("scale {scale:e}, {what}");
            expected.assert_explains(&Got::of(result), arithmetic, &what);
        });
    }
}

/// A score of +inf has no softmax; one of -inf is a weight of 0.
#[test]
fn infinite_scores() {
    for at in [0_usize, 30, 69] {
        let mut inputs = Case::plain(Dims::single(50, 70, 4, 4), 14).inputs();
        inputs.query = inputs.query.map(f32::abs);
        inputs.key.set([0, 0, at, 1], f32::INFINITY);
        everywhere(&inputs, |result, what| {
            let what = format!("key {at}, {what}");
            inputs.rows().into_iter().for_each(|row| assert_nan_row(&inputs, result, row, &what));
        });
        inputs.key.set([0, 0, at, 1], f32::NEG_INFINITY);
        everywhere(&inputs, |result, what| {
            assert!(result.out.data().iter().all(|x| x.is_finite()), "key {at}, {what}");
            let weights = result.weights.as_ref().map_or(&[][..], |weights| weights.data());
            assert!(weights.chunks(70).all(|weights| weights[at] == 0.0), "key {at}, {what}");
        });
    }
}

/// Nothing but scores of -inf: as if nothing were visible.
#[test]
fn nothing_but_minus_infinity() {
    let mut inputs = Case::plain(Dims::single(3, 70, 4, 4), 15).inputs();
    inputs.query = inputs.query.map(f32::abs);
    inputs.key = inputs.key.map(|_| f32::NEG_INFINITY);
    everywhere(&inputs, |result, what| {
        inputs.rows().into_iter().for_each(|at| assert_empty_row(result, at, what));
    });
}

#[test]
fn a_mask_that_hides_nothing_changes_no_bit() {
    for (dims, data) in [
        (Dims { batch: 2, group: 2, ..Dims::single(50, 130, 16, 20) }, Data::Normal),
        (Dims::single(3, 2100, 8, 8), Data::Wide),
    ] {
        let case = Case { data, ..Case::plain(dims, 16) };
        let plain = case.inputs();
        let mut masked = plain.clone();
        masked.boolean = Some(Strided::filled([1, 1, 1, dims.seq_kv], Layout::Bhsd, true));
        let mut windowed = plain.clone();
        (windowed.left, windowed.right) = (Some(usize::MAX), Some(usize::MAX));
        let mut long = plain.clone();
        long.lengths = Some(vec![dims.seq_kv; dims.batch]);
        for isa in Isa::available() {
            let expected = result_bits(&plain.run(isa));
            for other in [&masked, &windowed, &long] {
                assert_eq!(expected, result_bits(&other.run(isa)), "{case:?} on {isa}");
            }
        }
    }
}

/// A boolean mask, a structural one and key lengths that hide the same keys give the same bits.
#[test]
fn the_kind_of_mask_does_not_matter() {
    for data in [Data::Normal, Data::Wide] {
        let case = Case { data, ..Case::plain(Dims::single(60, 100, 16, 16), 17) };
        let mut structural = case.inputs();
        structural.causal = Some(Causal::Offset(20));
        let mut boolean = case.inputs();
        let mut mask = Strided::filled([1, 1, 60, 100], Layout::Bhsd, false);
        for i in 0..60 {
            (0..(i + 21).min(100)).for_each(|j| mask.set([0, 0, i, j], true));
        }
        boolean.boolean = Some(mask);
        for isa in Isa::available() {
            let (a, b) = (structural.run(isa), boolean.run(isa));
            assert_eq!(result_bits(&a), result_bits(&b), "{data:?} on {isa}");
        }
    }
}

/// The shorthands of the options are what they stand for.
#[test]
fn causal_masks_by_any_name() {
    let inputs = Case::plain(Dims::single(9, 14, 8, 4), 23).inputs();
    let bits = |options| result_bits(&inputs.run_with(&options));
    let options = inputs.options().return_lse();
    for (short, long) in [
        (options.causal(), Causal::BottomRight),
        (options.causal_offset(5), Causal::BottomRight),
        (options.causal_top_left(), Causal::TopLeft),
        (options.causal_offset(0), Causal::TopLeft),
    ] {
        assert_eq!(bits(short), bits(options.causal_with(long)), "{long:?}");
    }
}
