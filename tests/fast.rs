//! `Precision::Fast`: scores of integers of eight bits. What is computed is what `common::quads` says, and how
//! far that is from the answer is measured on tensors of real models and on made ones.

mod common;

use common::bounds::{Expected, FUSED, Got, PAIRS};
use common::case::{Case, Data, Dims, Inputs};
use common::executors::Scoped;
use common::for_all;
use common::narrow::{integers, rounded as narrowed};
use common::quads::{Smoothing, rounded, rounded_query, rounding_of_weights};
use common::result_bits;
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::terms::Terms;
use headwise::kv_cache::{KvShape, NewTokens, PagedCapacity, TableBuffer};
use headwise::{
    Attention, AttentionOptions, Closeness, Int8, Isa, KvStorage, Outputs, PagedCache, Precision,
    Result, Serial, Storage, View, ViewMut, Workspace, attention_cached, attention_into,
    attention_with, bf16, f16, scalar,
};
use proptest::prelude::*;
use proptest::sample::select;

/// The least rows of an item for which keys are rounded.
const LEAST_ROWS: usize = 48;

fn options<'a>(inputs: &'a Inputs<f32>, isa: Isa) -> AttentionOptions<'a> {
    inputs.options().isa(isa).executor(&Serial).precision(Precision::Fast)
}

/// Whether a call is computed so: it says it itself.
fn is_fast(inputs: &Inputs<f32>, isa: Isa) -> bool {
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    let said = options(inputs, isa).explain(q, k, v).unwrap_or_else(|error| panic!("{error}"));
    said.choices.iter().any(|choice| choice.chosen == "fast: scores of int8")
}

/// The same of keys and values that are stored in integers, which few rows multiply as such.
fn multiplies_integers(
    inputs: &Inputs<f32>,
    [key, value]: [&Strided<Int8>; 2],
    isa: Isa,
) -> Result<bool> {
    let said = options(inputs, isa).explain(inputs.query.view(), key.view(), value.view())?;
    let chosen = "fast: scores and values of int8";
    Ok(said.choices.iter().any(|choice| choice.chosen == chosen))
}

fn run(inputs: &Inputs<f32>, isa: Isa) -> Attention {
    inputs.run_with(&options(inputs, isa).return_lse().return_weights())
}

/// The instruction sets of this machine that have dot products of integers.
fn fast() -> Vec<Isa> {
    let inputs = Case::plain(Dims::single(LEAST_ROWS, 100, 64, 64), 1).inputs();
    let isas: Vec<Isa> = Isa::available().filter(|&isa| is_fast(&inputs, isa)).collect();
    // All processors with the one have the other.
    assert_eq!(isas.contains(&Isa::Avx512Bf16), Isa::Avx512Bf16.is_available());
    isas
}

fn assert_as_rounded(inputs: &Inputs<f32>, isa: Isa, what: &str) {
    let pairs = isa == Isa::Avx512Bf16;
    let expected = Expected::of(&rounded(inputs, Smoothing::On, pairs));
    let arithmetic = if pairs { PAIRS } else { FUSED };
    expected.assert_explains(&Got::of(&run(inputs, isa)), arithmetic, what);
}

/// Around the edges of quads, vectors, tiles, blocks and splits.
fn cases() -> impl Strategy<Value = (Case, u8)> {
    let lengths = (
        select(vec![48_usize, 49, 64, 96, 97]),
        select(vec![1_usize, 2, 31, 33, 127, 128, 129, 255, 2049]),
    );
    let widths =
        (select(vec![1_usize, 3, 4, 5, 16, 31, 64, 65, 80, 128]), select(vec![1_usize, 9, 16, 40]));
    let data = select(vec![Data::Normal, Data::Wide, Data::Growing, Data::Outlier, Data::Constant]);
    (masked_cases(), lengths, widths, data, any::<u8>()).prop_map(
        |(mut case, (seq_q, seq_kv), (head_dim, value_dim), data, which)| {
            case.dims = Dims { seq_q, seq_kv, head_dim, value_dim, ..case.dims };
            case.data = data;
            if seq_kv > 1000 {
                case.dims = Dims { batch: 1, kv_heads: 1, group: 1, seq_q: 48, ..case.dims };
            }
            (case, which)
        },
    )
}

#[test]
fn scores_are_those_of_the_rounded_numbers() {
    let isas = fast();
    for_all(300, cases(), |(case, which)| {
        let mut inputs = case.inputs();
        inputs.terms = Terms::random(which, case.dims.q_heads(), &mut common::Rng(case.seed));
        for &isa in &isas {
            assert!(is_fast(&inputs, isa));
            assert_as_rounded(&inputs, isa, &format!("{isa}, {case:?}, {which}"));
        }
    });
}

/// Where scores are small the bound is tight, and plain attention is beyond it.
#[test]
fn a_forced_instruction_set_rounds() {
    for isa in fast() {
        for head_dim in [64, 72, 128] {
            let inputs = Case::plain(Dims::single(200, 300, head_dim, 64), 7).inputs();
            assert_as_rounded(&inputs, isa, &format!("{isa}, {head_dim}"));
            let full = inputs.run(isa);
            assert_ne!(result_bits(&run(&inputs, isa)), result_bits(&full), "{isa}");
            let pairs = isa == Isa::Avx512Bf16;
            let expected = Expected::of(&rounded(&inputs, Smoothing::On, pairs));
            let error = |result: &Attention| expected.largest_error(&Got::of(result));
            assert!(error(&run(&inputs, isa)) < 0.5 * error(&full), "{isa}");
        }
    }
}

/// Few rows, terms of the caller's, and instruction sets without dot products of integers.
#[test]
fn what_is_not_fast_is_full() -> Result<()> {
    let isas = fast();
    for isa in Isa::available() {
        for seq_q in [1, LEAST_ROWS - 1, LEAST_ROWS] {
            let inputs = Case::plain(Dims::single(seq_q, 200, 64, 64), 3).inputs();
            let is_fast = isas.contains(&isa) && seq_q >= LEAST_ROWS;
            assert_eq!(self::is_fast(&inputs, isa), is_fast, "{seq_q} rows on {isa}");
            let same = result_bits(&run(&inputs, isa)) == result_bits(&inputs.run(isa));
            assert_eq!(same, !is_fast, "{seq_q} rows on {isa}");
            let close = options(&inputs, isa).measure_precision(
                inputs.query.view(),
                inputs.key.view(),
                inputs.value.view(),
            )?;
            assert_eq!(close.relative_l1 == 0.0, !is_fast, "{close:?}");
        }
        let inputs = Case::plain(Dims::single(60, 200, 64, 64), 3).inputs();
        let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
        let term = scalar(|score, _| score);
        let of = |options| attention_with(q, k, v, &term, &options);
        let (fast, full) = (of(options(&inputs, isa))?, of(inputs.options().isa(isa))?);
        assert_eq!(fast.out, full.out, "{isa}");
    }
    Ok(())
}

/// The measures of a result beside that in full precision, on random tensors.
#[test]
fn the_error_is_measured() -> Result<()> {
    for isa in fast() {
        let inputs = Case::plain(Dims::single(100, 500, 128, 128), 5).inputs();
        let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
        let close = options(&inputs, isa).measure_precision(q, k, v)?;
        let full = inputs.run(isa).out;
        let expected =
            Closeness::of(run(&inputs, isa).out.data(), full.data().iter().map(|&x| f64::from(x)));
        assert_eq!(close, expected);
        assert!((1e-3..0.02).contains(&close.relative_l1), "{close:?}");
        assert!(close.cosine > 0.9995 && close.cosine < 1.0, "{close:?}");
    }
    Ok(())
}

/// A channel that is the same in every key costs nothing, where rounding without the mean would resolve the
/// others more coarsely.
#[test]
fn the_mean_takes_outliers_of_channels_away() {
    for isa in fast() {
        let mut inputs = Case::plain(Dims::single(64, 600, 64, 64), 11).inputs();
        for j in 0..600 {
            inputs.key.set([0, 0, j, 9], 60.0 + inputs.key.get([0, 0, j, 9]));
        }
        let answer = Expected::of(&inputs).answer.out;
        let l1 = |out: &[f32]| Closeness::of(out, answer.iter().copied()).relative_l1;
        let ours = l1(run(&inputs, isa).out.data());
        let without = Expected::of(&rounded(&inputs, Smoothing::Off, false)).answer.out;
        let without: Vec<f32> = without.into_iter().map(|x| x as f32).collect();
        println!("{isa}: relative L1 {ours:.4}, without the mean {:.4}", l1(&without));
        assert!(ours < 0.02 && l1(&without) > 5.0 * ours);
    }
}

/// What hidden keys hold may change how others are rounded, but never more coarsely than each for itself.
#[test]
fn hidden_keys_do_no_harm() -> Result<()> {
    for isa in fast() {
        let dims = Dims::single(60, 400, 64, 40);
        let inputs = Case::plain(dims, 13).inputs();
        let visible: Vec<bool> = (0..400).map(|j| j % 3 == 1).collect();
        let mask = View::bhsd(&visible, [1, 1, 1, 400])?;
        let full = inputs.run_with(&inputs.options().isa(isa).mask(mask)).out;
        for with in [f32::NAN, f32::INFINITY, 3e38, -1e30, 1e4] {
            let mut poisoned = inputs.clone();
            for j in (0..400).filter(|&j| !visible[j]) {
                (0..64).for_each(|d| poisoned.key.set([0, 0, j, d], with));
                (0..40).for_each(|d| poisoned.value.set([0, 0, j, d], with));
            }
            let got = poisoned.run_with(&options(&poisoned, isa).mask(mask)).out;
            let answer = full.data().iter().map(|&x| f64::from(x));
            let close = Closeness::of(got.data(), answer);
            assert!(close.relative_l1 < 0.02, "{with} on {isa}: {close:?}");
        }
    }
    Ok(())
}

/// Threads and the cut that they bring reach no bits: whole items and rests of fewer rows than pay, of many rows of a
/// sequence.
#[test]
fn bits_are_those_of_any_number_of_threads() {
    for isa in fast() {
        for (group, seq_q, seq_kv) in [(1, 49, 300), (8, 97, 130), (1, 2700, 140), (1, 60, 2500)] {
            let dims = Dims { group, ..Dims::single(seq_q, seq_kv, 32, 16) };
            let inputs = Case::plain(dims, 43).inputs();
            let one = run(&inputs, isa);
            for threads in [2, 8] {
                let executor = Scoped(threads);
                let many = options(&inputs, isa).executor(&executor).return_lse().return_weights();
                let many = inputs.run_with(&many);
                assert_eq!(result_bits(&many), result_bits(&one), "{threads} for {dims:?}, {isa}");
            }
        }
    }
}

/// Sequences of a ragged batch are computed each as if alone, by their own numbers of rows.
#[test]
fn ragged_sequences_go_by_their_own_rows() -> Result<()> {
    let offsets = [0, 1, 48, 96, 300];
    let inputs = Case::plain(Dims::single(300, 300, 64, 32), 47).inputs();
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    let threads = Scoped(2);
    for isa in fast() {
        let plain = AttentionOptions::new().isa(isa).precision(Precision::Fast).executor(&threads);
        let all = out_of(q, [k, v], &plain.ragged(&offsets, &offsets))?;
        for cut in offsets.windows(2) {
            let [q, k, v] = [&inputs.query, &inputs.key, &inputs.value]
                .map(|tensor| tensor.narrow(2, cut[0]..cut[1]));
            let alone = out_of(q.view(), [k.view(), v.view()], &plain)?;
            assert_eq!(all[cut[0] * 32..cut[1] * 32], alone, "{cut:?} on {isa}");
        }
    }
    Ok(())
}

/// A call grows no workspace that is as large as it says.
#[test]
fn workspaces_are_large_enough() -> Result<()> {
    let inputs = Case::plain(Dims::single(60, 300, 64, 32), 53).inputs();
    let [q, k, v] = [&inputs.query, &inputs.key, &inputs.value].map(|x| x.view());
    for isa in fast() {
        let options = options(&inputs, isa);
        let expected = out_of(q, [k, v], &options)?;
        let mut out = vec![0.0; 60 * 32];
        let mut workspace = Workspace::with_bytes(options.workspace_bytes(q, k, v)?)?;
        let bytes = workspace.bytes();
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 60, 32])?);
        attention_into(q, k, v, &options, outputs, &mut workspace)?;
        assert_eq!((workspace.bytes(), &out), (bytes, &expected), "{isa}");
    }
    Ok(())
}

/// Scales of values that are negative, or not, and factors of channels.
#[test]
fn scales_of_all_kinds() -> Result<()> {
    for isa in fast() {
        let inputs = Case::plain(Dims { group: 3, ..Dims::single(1, 200, 64, 64) }, 59).inputs();
        let (_, [key, mut value]) = stored(&inputs);
        let factors: Vec<f32> = (0..64).map(|c| 0.5 + c as f32 / 32.0).collect();
        for scale in [None, Some(-0.25), Some(0.0), Some(1e-33), Some(1e20)] {
            if let Some(scale) = scale {
                let bytes = f32::to_ne_bytes(scale);
                (0..4).for_each(|n| value.set([0, 0, 70, 64 + n], Int8(bytes[n] as i8)));
            }
            let of = |options: AttentionOptions<'_>| {
                of_integers(&inputs, [&key, &value], &options.value_scales(&factors))
            };
            let (fast, full) = (of(options(&inputs, isa))?, of(inputs.options().isa(isa))?);
            let fast: Vec<f32> = fast.out.iter().map(|&x| x as f32).collect();
            let close = Closeness::of(&fast, full.out.iter().copied());
            assert!(close.relative_l1 < 0.03, "{scale:?} on {isa}: {close:?}");
        }
    }
    Ok(())
}

/// Where scores grow with the key, a reference is not foreseen from numbers that are rounded to others.
#[test]
fn scores_that_grow_and_round_to_others() -> Result<()> {
    for isa in fast() {
        for rows in [1, 60] {
            let mut inputs = Case::plain(Dims::single(rows, 400, 128, 64), 61).inputs();
            inputs.query = inputs.query.map(|_| 0.0039);
            (0..rows).for_each(|i| inputs.query.set([0, 0, i, 0], 1.0));
            inputs.key = inputs.key.map(|_| 1e4);
            let (wide, [key, value]) = stored(&inputs);
            let options = options(&wide, isa).alibi(headwise::Alibi::Standard);
            let got = of_integers(&wide, [&key, &value], &options)?;
            assert!(got.lse.iter().all(|x| x.is_finite()), "{rows} rows on {isa}");
            assert!(got.out.iter().any(|&x| x != 0.0), "{rows} rows on {isa}");
        }
    }
    Ok(())
}

/// Numbers of 64 bits know no other precision.
#[test]
fn doubles_are_computed_in_full() -> Result<()> {
    let inputs = Case::plain(Dims::single(60, 100, 64, 32), 67).inputs().map(f64::from);
    let fast = inputs.run_with(&inputs.options().precision(Precision::Fast));
    assert_eq!(fast.out, inputs.run_with(&inputs.options()).out);
    Ok(())
}

/// What is not finite makes its row's scores NaN, and with them the rows that see it.
#[test]
fn numbers_that_are_not_finite_show() {
    for isa in fast() {
        for with in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let plain = Case::plain(Dims::single(60, 200, 64, 32), 17).inputs();
            let mut inputs = plain.clone();
            inputs.causal = Some(headwise::Causal::TopLeft);
            inputs.query.set([0, 0, 20, 3], with);
            inputs.key.set([0, 0, 50, 7], with);
            let result = run(&inputs, isa);
            for (i, row) in result.out.data().chunks(32).enumerate() {
                let is_nan = i == 20 || i >= 50;
                assert!(row.iter().all(|x| x.is_nan() == is_nan), "row {i}, {with} on {isa}");
            }
            // A value's column alone.
            let mut inputs = plain.clone();
            inputs.value.set([0, 0, 50, 7], with);
            for row in run(&inputs, isa).out.data().chunks(32) {
                let finite = row.iter().enumerate().all(|(c, x)| x.is_finite() == (c != 7));
                assert!(finite, "{with} on {isa}");
            }
        }
    }
}

/// Zeros, numbers so small that they count as zeros, and others at the ends of the range.
#[test]
fn rows_at_the_ends_of_the_range() {
    for isa in fast() {
        for (of_query, of_key) in
            [(0.0, 1.0), (1.0, 0.0), (1e-38, 1.0), (1.0, 1e-32), (1e-20, 1e20), (1e30, 1e-29)]
        {
            let mut inputs = Case::plain(Dims::single(50, 140, 64, 32), 19).inputs();
            inputs.query = inputs.query.map(|x| x * of_query);
            inputs.key = inputs.key.map(|x| x * of_key);
            assert_as_rounded(&inputs, isa, &format!("{of_query:e}, {of_key:e} on {isa}"));
        }
    }
}

/// The output in `f32`, of tensors however they are stored.
fn out_of<Q: Storage<Compute = f32>, K: KvStorage<Compute = f32>>(
    query: View<'_, Q>,
    [key, value]: [View<'_, K>; 2],
    options: &AttentionOptions<'_>,
) -> Result<Vec<f32>> {
    let [batch, heads, seq_q, _] = query.shape();
    let (key, value) = (K::input(key), K::input(value));
    let shape = [batch, heads, seq_q, value.shape()[3]];
    let mut out = vec![0.0; shape.iter().product()];
    let outputs = Outputs::new(ViewMut::bhsd(&mut out, shape)?);
    attention_into(Q::input(query), key, value, options, outputs, &mut Workspace::new())?;
    Ok(out)
}

fn halves_are_floats<S: Storage<Compute = f32>>(inputs: &Inputs<f32>, isa: Isa) -> Result<()> {
    let ([q, k, v], wide) = narrowed::<S>(inputs);
    let options = options(&wide, isa);
    let got = out_of(q.view(), [k.view(), v.view()], &options)?;
    let (q, k, v) = (wide.query.view(), wide.key.view(), wide.value.view());
    assert_eq!(got, out_of(q, [k, v], &options)?, "{} on {isa}", S::NAME);
    Ok(())
}

/// However the numbers are stored: halves, integers, and in pages.
#[test]
fn bits_are_those_of_the_same_numbers_in_floats() -> Result<()> {
    let inputs = Case::plain(Dims::single(100, 300, 64, 40), 23).inputs();
    for isa in fast() {
        halves_are_floats::<bf16>(&inputs, isa)?;
        halves_are_floats::<f16>(&inputs, isa)?;
        let (q, options) = (inputs.query.view(), options(&inputs, isa));
        let [(k, wide_k), (v, wide_v)] =
            [&inputs.key, &inputs.value].map(|x| integers(x, Layout::Bshd));
        let got = out_of(q, [k.view(), v.view()], &options)?;
        assert_eq!(got, out_of(q, [wide_k.view(), wide_v.view()], &options)?, "int8 on {isa}");
        for page_size in [16, 20] {
            let shape = KvShape { kv_heads: 1, head_dim: 64, value_dim: 40 };
            let capacity =
                PagedCapacity { pages: 30, page_size, sequences: 1, pages_per_sequence: 30 };
            let mut cache = PagedCache::new(shape, capacity)?;
            let id = cache.create()?;
            let (k, v) = (inputs.key.view(), inputs.value.view());
            cache.append(&[id], &NewTokens::new(k, v))?;
            let mut tables = TableBuffer::new();
            let got = attention_cached(q, &cache.view(&[id], &mut tables)?, &options)?;
            let expected = out_of(q, [k, v], &options)?;
            assert_eq!(got.out.data(), expected, "pages of {page_size} on {isa}");
        }
    }
    Ok(())
}

/// The output, the log-sum-exp and the weights of a call on integers.
fn of_integers(
    inputs: &Inputs<f32>,
    [key, value]: [&Strided<Int8>; 2],
    options: &AttentionOptions<'_>,
) -> Result<Got> {
    let d = inputs.dims();
    let shape = |width| [d.batch, d.q_heads(), d.seq_q, width];
    let tensor = |width| vec![0.0_f32; shape(width).iter().product()];
    let (mut out, mut lse, mut weights) = (tensor(d.value_dim), tensor(1), tensor(d.seq_kv));
    let outputs = Outputs::new(ViewMut::bhsd(&mut out, shape(d.value_dim))?)
        .with_lse(ViewMut::bhsd(&mut lse, shape(1))?)
        .with_weights(ViewMut::bhsd(&mut weights, shape(d.seq_kv))?);
    let query = inputs.query.view();
    attention_into(query, key.view(), value.view(), options, outputs, &mut Workspace::new())?;
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
    Ok(Got { out: wide(out), lse: wide(lse), weights: wide(weights) })
}

/// `inputs` with keys and values that are stored in integers, and these.
fn stored(inputs: &Inputs<f32>) -> (Inputs<f32>, [Strided<Int8>; 2]) {
    let [(key, wide_key), (value, wide_value)] =
        [&inputs.key, &inputs.value].map(|tensor| integers(tensor, Layout::Bhsd));
    (Inputs { key: wide_key, value: wide_value, ..inputs.clone() }, [key, value])
}

/// The rows of values, each with its scale.
fn value_rows(value: &Strided<Int8>, wide: &Strided<f32>) -> Vec<(f64, Vec<f64>)> {
    let [.., stored] = value.shape;
    let scales = value.dense();
    let scales = scales.chunks(stored).map(|row| {
        let bytes = &row[stored - Int8::SCALE..];
        f64::from(f32::from_ne_bytes(std::array::from_fn(|i| bytes[i].0 as u8)))
    });
    let rows = wide.dense();
    let rows = rows.chunks(wide.shape[3]);
    scales.zip(rows.map(|row| row.iter().map(|&x| f64::from(x)).collect())).collect()
}

/// The most rows that multiply integers as they are stored.
fn most_rows(isa: Isa) -> usize {
    if isa == Isa::Avx2 { 4 } else { 8 }
}

/// A few rows on integers: around the edges of runs, blocks and splits.
fn few_rows() -> impl Strategy<Value = (Case, u8)> {
    let lengths = (
        select(vec![1_usize, 2, 3, 4, 8]),
        select(vec![1_usize, 3, 4, 15, 16, 17, 127, 128, 129, 300, 2070]),
    );
    let widths = (select(vec![16_usize, 32, 64, 80, 128]), select(vec![64_usize, 128, 192]));
    let data = select(vec![Data::Normal, Data::Wide, Data::Outlier, Data::Constant]);
    (masked_cases(), lengths, widths, data, any::<u8>()).prop_map(
        |(mut case, (rows, seq_kv), (head_dim, value_dim), data, which)| {
            let (group, seq_q) = if which % 2 == 0 { (rows, 1) } else { (1, rows) };
            let batch = if seq_kv > 1000 { 1 } else { case.dims.batch };
            case.dims = Dims { batch, group, seq_q, seq_kv, head_dim, value_dim, ..case.dims };
            (case.data, case.layouts) = (data, [Layout::Bhsd; 3]);
            (case, which)
        },
    )
}

#[test]
fn few_rows_are_multiplied_with_integers_as_they_are_stored() {
    let isas = fast();
    for_all(300, few_rows(), |(case, which)| {
        let mut inputs = case.inputs();
        inputs.terms = Terms::random(which, case.dims.q_heads(), &mut common::Rng(case.seed));
        let (wide, [key, value]) = stored(&inputs);
        let d = wide.dims();
        let expected = Expected::of(&rounded_query(&wide));
        let values = value_rows(&value, &wide.value);
        for &isa in isas.iter().filter(|&&isa| d.group * d.seq_q <= most_rows(isa)) {
            let what = format!("{isa}, {case:?}, {which}");
            assert_eq!(multiplies_integers(&wide, [&key, &value], isa), Ok(true), "{what}");
            let got = of_integers(&wide, [&key, &value], &options(&wide, isa));
            let mut got = got.unwrap_or_else(|error| panic!("{error}: {what}"));
            // What the rounding of the weights explains is taken away.
            for (at, x) in got.out.iter_mut().enumerate() {
                let (row, column) = (at / d.value_dim, at % d.value_dim);
                let head = row / d.seq_q;
                let of_head =
                    (head / d.q_heads() * d.kv_heads + head % d.q_heads() / d.group) * d.seq_kv;
                let weights = &expected.answer.weights[row * d.seq_kv..][..d.seq_kv];
                let values = &values[of_head..][..d.seq_kv];
                let bound = rounding_of_weights(weights, values, column);
                let exact = expected.answer.out[at];
                *x = if *x < exact { (*x + bound).min(exact) } else { (*x - bound).max(exact) };
            }
            expected.assert_explains(&got, FUSED, &what);
        }
    });
}

#[test]
fn few_rows_on_integers_are_close_and_forced() -> Result<()> {
    for isa in fast() {
        for rows in [1, 2, 5, 8, 9] {
            let dims = Dims { group: rows, ..Dims::single(1, 3000, 128, 128) };
            let (inputs, [key, value]) = stored(&Case::plain(dims, 29).inputs());
            let stored = [&key, &value];
            let few = rows <= most_rows(isa);
            assert_eq!(multiplies_integers(&inputs, stored, isa)?, few, "{rows} on {isa}");
            let fast = of_integers(&inputs, stored, &options(&inputs, isa))?;
            let full = of_integers(&inputs, stored, &inputs.options().isa(isa))?;
            assert_eq!(fast.out == full.out, !few, "{rows} on {isa}");
            let out: Vec<f32> = fast.out.iter().map(|&x| x as f32).collect();
            let close = Closeness::of(&out, full.out.iter().copied());
            assert!(close.relative_l1 < 0.02 && close.cosine > 0.9995, "{close:?}");
        }
        // Widths that the kernels do not take.
        for (head_dim, value_dim) in [(24, 64), (64, 40)] {
            let (inputs, [key, value]) =
                stored(&Case::plain(Dims::single(1, 300, head_dim, value_dim), 31).inputs());
            let of = |options| of_integers(&inputs, [&key, &value], &options);
            let (fast, full) = (of(options(&inputs, isa))?, of(inputs.options().isa(isa))?);
            assert_eq!((fast.out, fast.lse), (full.out, full.lse), "{head_dim}, {value_dim}");
        }
    }
    Ok(())
}

/// Pages that kernels read where they lie give the bits of dense tensors; others are gathered, and widened.
#[test]
fn few_rows_on_pages_of_integers() -> Result<()> {
    let inputs = Case::plain(Dims { group: 4, ..Dims::single(1, 300, 64, 64) }, 37).inputs();
    let (wide, [key, value]) = stored(&inputs);
    for isa in fast() {
        let dense = of_integers(&wide, [&key, &value], &options(&wide, isa))?;
        for page_size in [16, 64, 128, 20, 7] {
            let shape = KvShape { kv_heads: 1, head_dim: 64, value_dim: 64 };
            let capacity =
                PagedCapacity { pages: 50, page_size, sequences: 1, pages_per_sequence: 50 };
            let mut cache = PagedCache::<Int8>::with_storage(shape, capacity)?;
            let id = cache.create()?;
            cache.append(&[id], &NewTokens::new(inputs.key.view(), inputs.value.view()))?;
            let mut tables = TableBuffer::new();
            let view = cache.view(&[id], &mut tables)?;
            let got = attention_cached(wide.query.view(), &view, &options(&wide, isa))?;
            let got: Vec<f64> = got.out.data().iter().map(|&x| x.into()).collect();
            let what = format!("pages of {page_size} on {isa}");
            assert_eq!(got == dense.out, page_size >= 16 && page_size != 20, "{what}");
            let got: Vec<f32> = got.iter().map(|&x| x as f32).collect();
            let close = Closeness::of(&got, dense.out.iter().copied());
            assert!(close.relative_l1 < 0.02, "{what}: {close:?}");
            // It says of itself what it does.
            let said = options(&wide, isa).explain_cached(wide.query.view(), &view)?.to_string();
            let is_fast = page_size >= 16 && page_size != 20;
            assert_eq!(said.contains("fast: scores and values of int8"), is_fast, "{what}: {said}");
            let measured =
                options(&wide, isa).measure_precision_cached(wide.query.view(), &view)?;
            assert_eq!(measured.relative_l1 > 0.0, is_fast, "{what}: {measured:?}");
        }
    }
    Ok(())
}

/// Rows of values and of keys that are not finite: without a trace where they are hidden, and everywhere where
/// they are not.
#[test]
fn integers_that_are_not_finite() -> Result<()> {
    for isa in fast() {
        let inputs = Case::plain(Dims { group: 3, ..Dims::single(1, 200, 64, 64) }, 41).inputs();
        let mut poisoned = inputs.clone();
        poisoned.value.set([0, 0, 50, 7], f32::INFINITY);
        poisoned.key.set([0, 0, 60, 7], f32::NAN);
        let (_, [key, value]) = stored(&poisoned);
        for (hidden, is_nan) in [(vec![50, 60], false), (vec![60], true), (vec![50], true)] {
            let visible: Vec<bool> = (0..200).map(|j| !hidden.contains(&j)).collect();
            let mask = View::bhsd(&visible, [1, 1, 1, 200])?;
            let run = |options: AttentionOptions<'_>| {
                of_integers(&inputs, [&key, &value], &options.mask(mask))
            };
            let (fast, full) = (run(options(&inputs, isa))?, run(inputs.options().isa(isa))?);
            assert!(fast.out.iter().all(|x| x.is_nan() == is_nan), "{hidden:?} on {isa}");
            if !is_nan {
                let fast: Vec<f32> = fast.out.iter().map(|&x| x as f32).collect();
                let close = Closeness::of(&fast, full.out.iter().copied());
                assert!(close.relative_l1 < 0.02, "{close:?}");
            }
        }
    }
    Ok(())
}

/// Tensors of real models: at least 0.999 and at most 0.05 of SageAttention's measures.
#[cfg(feature = "safetensors")]
#[test]
fn tensors_of_real_models_come_out_close() {
    use common::capture;
    for capture in capture::ENCODERS.into_iter().chain(capture::PREFILLS) {
        let inputs = capture.inputs();
        let answer = Expected::of(&inputs).answer.out;
        for isa in fast() {
            assert!(is_fast(&inputs, isa));
            let got = inputs.run_with(&options(&inputs, isa)).out;
            let Closeness { cosine, relative_l1, rms, .. } =
                Closeness::of(got.data(), answer.iter().copied());
            let what = format!(
                "{} on {isa}: cosine {cosine:.6}, relative L1 {relative_l1:.4}, rms {rms:.2e}",
                capture.name
            );
            println!("{what}");
            assert!(cosine >= 0.999 && relative_l1 <= 0.05, "{what}");
            let pairs = isa == Isa::Avx512Bf16;
            let expected = Expected::of(&rounded(&inputs, Smoothing::On, pairs));
            let got = Got::of(&run(&inputs, isa));
            expected.assert_explains(&got, if pairs { PAIRS } else { FUSED }, &what);
        }
    }
    let inputs = capture::DECODE.inputs();
    let answer = Expected::of(&inputs).answer.out;
    let (_, [key, value]) = stored(&inputs);
    for isa in fast() {
        assert_eq!(multiplies_integers(&inputs, [&key, &value], isa), Ok(true));
        let got = of_integers(&inputs, [&key, &value], &options(&inputs, isa));
        let got: Vec<f32> = got.unwrap().out.iter().map(|&x| x as f32).collect();
        let close = Closeness::of(&got, answer.iter().copied());
        println!("{} in int8 on {isa}: {close:?}", capture::DECODE.name);
        assert!(close.cosine >= 0.999 && close.relative_l1 <= 0.05, "{close:?}");
    }
}

/// [`Strided`] of ordinary numbers keeps them.
#[test]
fn the_specification_keeps_what_needs_no_rounding() {
    let row: Vec<f32> = (0..8).map(|d| [127.0, -3.0, 0.0, 64.0][d % 4]).collect();
    let tensor = Strided::new(&row, [1, 1, 1, 8], Layout::Bhsd, 0.0);
    let mut inputs = Case::plain(Dims::single(1, 1, 8, 8), 1).inputs();
    (inputs.query, inputs.key) = (tensor.clone(), tensor);
    let wide = rounded(&inputs, Smoothing::Off, false);
    let numbers: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
    assert_eq!(wide.key.dense()[8..], numbers);
}
