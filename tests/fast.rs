//! `Precision::Fast`: scores of integers of eight bits. What is computed is what `common::quads` says, and how
//! far that is from the answer is measured on tensors of real models and on made ones.

mod common;

use common::bounds::{Expected, FUSED, Got, PAIRS};
use common::case::{Case, Data, Dims, Inputs};
use common::for_all;
use common::narrow::{integers, rounded as narrowed};
use common::quads::{Smoothing, rounded};
use common::result_bits;
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::terms::Terms;
use headwise::kv_cache::{KvShape, NewTokens, PagedCapacity, TableBuffer};
use headwise::{
    Attention, AttentionOptions, Closeness, Isa, KvStorage, Outputs, PagedCache, Precision, Result,
    Serial, Storage, View, ViewMut, Workspace, attention_cached, attention_into, attention_with,
    bf16, f16, scalar,
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
