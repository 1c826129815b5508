//! Queries, keys and values that are all `bf16`, where they are multiplied in pairs and probabilities are
//! rounded: within the bound of `common::bounds`, and to the same bits however they are stored or cut.

mod common;

use common::bounds::{Expected, FUSED, Got, PAIRS};
use common::case::{Case, Data, Dims, Inputs};
use common::for_all;
use common::narrow::rounded;
use common::result_bits;
use common::strategies::masked_cases;
use common::strided::Strided;
use common::terms::Terms;
use headwise::kv_cache::{
    ContiguousCache, KvShape, KvView, NewTokens, PagedCache, PagedCapacity, TableBuffer,
};
use headwise::{
    Attention, AttentionOptions, Causal, Isa, Outputs, Result, Scale, Serial, View, ViewMut,
    Workspace, attention, attention_cached, attention_into, bf16,
};
use proptest::prelude::*;
use proptest::sample::select;

const PAIRED: Isa = Isa::Avx512Bf16;

/// The output as floats, with log-sum-exp and weights.
fn compute([q, k, v]: &[Strided<bf16>; 3], inputs: &Inputs<f32>, isa: Isa) -> Got {
    let d = inputs.dims();
    let tensor = |width| vec![0.0_f32; d.batch * d.q_heads() * d.seq_q * width];
    let (mut out, mut lse, mut weights) = (tensor(d.value_dim), tensor(1), tensor(d.seq_kv));
    let shape = |width| [d.batch, d.q_heads(), d.seq_q, width];
    let mut run = || -> Result<Isa> {
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, shape(d.value_dim))?)
            .with_lse(ViewMut::bhsd(&mut lse, shape(1))?)
            .with_weights(ViewMut::bhsd(&mut weights, shape(d.seq_kv))?);
        let options = inputs.options().isa(isa);
        attention_into(q.view(), k.view(), v.view(), &options, outputs, &mut Workspace::new())
    };
    assert_eq!(run(), Ok(isa));
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
    Got { out: wide(out), lse: wide(lse), weights: wide(weights) }
}

/// Around the edges of pairs, runs, vectors, tiles, blocks and splits.
fn cases() -> impl Strategy<Value = (Case, u8)> {
    let lengths = (
        select(vec![1_usize, 2, 8, 9, 16, 17, 48, 49, 97]),
        select(vec![1_usize, 2, 15, 16, 17, 33, 127, 128, 129, 255, 2049]),
    );
    let widths = (
        select(vec![2_usize, 6, 8, 16, 30, 31, 40, 64, 128]),
        select(vec![1_usize, 8, 9, 16, 31, 32, 40, 64, 128]),
    );
    let data = select(vec![Data::Normal, Data::Wide, Data::Outlier, Data::Constant]);
    (masked_cases(), lengths, widths, data, any::<u8>()).prop_map(
        |(mut case, (seq_q, seq_kv), (head_dim, value_dim), data, which)| {
            case.dims = Dims { seq_q, seq_kv, head_dim, value_dim, ..case.dims };
            case.data = data;
            if seq_kv > 1000 {
                case.dims = Dims { batch: 1, kv_heads: 1, seq_q: seq_q.min(4), ..case.dims };
            }
            (case, which)
        },
    )
}

#[test]
fn within_the_bound_on_every_instruction_set() {
    for_all(400, cases(), |(case, which)| {
        let mut inputs = case.inputs();
        inputs.terms = Terms::random(which, case.dims.q_heads(), &mut common::Rng(case.seed));
        let (narrow, wide) = rounded::<bf16>(&inputs);
        let expected = Expected::of(&wide);
        for isa in Isa::available() {
            let arithmetic = if isa == PAIRED { PAIRS } else { FUSED };
            let got = compute(&narrow, &wide, isa);
            expected.assert_explains(
                &got,
                arithmetic,
                &format!("bf16 on {isa}, {case:?}, {which}"),
            );
        }
    });
}

fn bits(result: &Attention<bf16>) -> Vec<u16> {
    result.out.data().iter().map(|x| x.to_bits()).collect()
}

/// A tensor of numbers as likely as any.
fn tensor(shape: [usize; 4], seed: u64) -> Vec<bf16> {
    let mut rng = common::Rng(seed);
    (0..shape.iter().product()).map(|_| bf16::from_f32(rng.normal())).collect()
}

/// The instruction set is asked for, and there.
fn paired<'a>() -> Option<AttentionOptions<'a>> {
    PAIRED.is_available().then(|| AttentionOptions::new().isa(PAIRED))
}

#[test]
fn a_forced_instruction_set_multiplies_pairs() -> Result<()> {
    let Some(options) = paired() else { return Ok(()) };
    let shape = [1, 2, 60, 64];
    let x = tensor(shape, 1);
    let x = View::bhsd(&x, shape)?;
    let pairs = attention(x, x, x, &options)?;
    let floats = attention(x, x, x, &options.isa(Isa::Avx512))?;
    assert_eq!((pairs.isa, floats.isa), (PAIRED, Isa::Avx512));
    assert!(bits(&pairs) != bits(&floats));
    // An odd width has no pairs, and floats have none.
    let x = View::bhsd(&tensor([1, 2, 60, 63], 1), [1, 2, 60, 63])?.to_vec();
    let x = View::bhsd(&x, [1, 2, 60, 63])?;
    let of = |isa| attention(x, x, x, &options.isa(isa));
    assert_eq!(bits(&of(PAIRED)?), bits(&of(Isa::Avx512)?));
    let inputs = Case::plain(Dims::single(33, 100, 64, 40), 31).inputs();
    assert_eq!(result_bits(&inputs.run(PAIRED)), result_bits(&inputs.run(Isa::Avx512)));
    Ok(())
}

/// Weights add up to 1 though probabilities are rounded, and the log-sum-exp knows nothing of that.
#[test]
fn constant_values_stay_what_they_are() -> Result<()> {
    let Some(options) = paired() else { return Ok(()) };
    let shape = [1, 1, 40, 64];
    let (x, ones) = (tensor(shape, 2), vec![bf16::ONE; 40 * 64]);
    let (x, ones) = (View::bhsd(&x, shape)?, View::bhsd(&ones, shape)?);
    let mut out = vec![0.0_f32; 40 * 64];
    let outputs = Outputs::new(ViewMut::bhsd(&mut out, shape)?);
    attention_into(x, x, ones, &options.return_lse(), outputs, &mut Workspace::new())?;
    assert!(out.iter().all(|x| (x - 1.0).abs() <= 1e-5));
    let lse = |isa| Ok(attention(x, x, ones, &options.isa(isa).return_lse())?.lse);
    let (Some(got), Some(expected)) = (lse(PAIRED)?, lse(Isa::Avx512)?) else { panic!("no lse") };
    let pairs = got.data().iter().zip(expected.data());
    assert!(pairs.clone().all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()), "{pairs:?}");
    Ok(())
}

/// All queries at once, one by one, and on one thread.
#[test]
fn bits_are_those_of_any_cut() -> Result<()> {
    let Some(options) = paired() else { return Ok(()) };
    for (q_heads, seq_q, seq_kv, dim) in [(4, 70, 300, 64), (2, 20, 2500, 40), (8, 9, 129, 6)] {
        let shapes = [[1, q_heads, seq_q, dim], [1, 2, seq_kv, dim]];
        let (q, k, v) = (tensor(shapes[0], 3), tensor(shapes[1], 4), tensor(shapes[1], 5));
        let (q, k) = (View::bhsd(&q, shapes[0])?, View::bhsd(&k, shapes[1])?);
        let v = View::bhsd(&v, shapes[1])?;
        let options = options.causal();
        let whole = attention(q, k, v, &options)?;
        assert_eq!(bits(&whole), bits(&attention(q, k, v, &options.executor(&Serial))?));
        for i in 0..seq_q {
            let row: Vec<bf16> = (0..q_heads)
                .flat_map(|h| (0..dim).map(move |d| [0, h, i, d]))
                .filter_map(|at| q.get(at).copied())
                .collect();
            let row = View::bhsd(&row, [1, q_heads, 1, dim])?;
            let offset = Causal::Offset((seq_kv - seq_q + i) as i64);
            let got = attention(row, k, v, &options.causal_with(offset))?;
            for h in 0..q_heads {
                let at = (h * seq_q + i) * dim;
                assert_eq!(
                    got.out.data()[h * dim..][..dim],
                    whole.out.data()[at..][..dim],
                    "{h}, {i}"
                );
            }
        }
    }
    Ok(())
}

/// Tokens in one piece, and in pages of which some have an odd number of rows.
#[test]
fn bits_are_those_of_any_cache() -> Result<()> {
    let Some(options) = paired() else { return Ok(()) };
    let shape = KvShape { kv_heads: 2, head_dim: 24, value_dim: 17 };
    let length = 273;
    let (key, value) = ([1, 2, length, 24], [1, 2, length, 17]);
    let (k, v) = (tensor(key, 6), tensor(value, 7));
    let tokens = NewTokens::new(View::bhsd(&k, key)?, View::bhsd(&v, value)?);
    let mut contiguous = ContiguousCache::<bf16>::with_storage(shape, 1, length)?;
    contiguous.append(&tokens)?;
    let dense = |heads, seq_q| {
        let q = tensor([1, heads, seq_q, 24], 8);
        let q = View::bhsd(&q, [1, heads, seq_q, 24])?;
        attention(q, View::bhsd(&k, key)?, View::bhsd(&v, value)?, &options.causal())
    };
    let check = |view: KvView<'_, bf16>, what: &str| -> Result<()> {
        for (heads, seq_q) in [(2, 1), (8, 1), (16, 1), (4, 5), (2, 60)] {
            let q = tensor([1, heads, seq_q, 24], 8);
            let q = View::bhsd(&q, [1, heads, seq_q, 24])?;
            let got = attention_cached(q, &view, &options.causal())?;
            assert_eq!(bits(&got), bits(&dense(heads, seq_q)?), "{what}, {heads} by {seq_q}");
        }
        Ok(())
    };
    check(contiguous.view(), "contiguous")?;
    for page_size in [1, 3, 5, 16, 20, 128] {
        let capacity =
            PagedCapacity { pages: 400, page_size, sequences: 1, pages_per_sequence: 300 };
        let mut paged = PagedCache::<bf16>::with_storage(shape, capacity)?;
        let id = paged.create()?;
        paged.append(&[id], &tokens)?;
        check(paged.view(&[id], &mut TableBuffer::new())?, &format!("pages of {page_size}"))?;
    }
    Ok(())
}

/// What a hidden key and value hold leaves no trace, beside a pair's other key either.
#[test]
fn hidden_rows_leave_no_trace() -> Result<()> {
    let Some(options) = paired() else { return Ok(()) };
    for (seq_q, seq_kv) in [(1, 64), (5, 131), (60, 200)] {
        let shape = [1, 1, seq_kv, 32];
        let (q, k, v) = (tensor([1, 1, seq_q, 32], 9), tensor(shape, 10), tensor(shape, 11));
        let q = View::bhsd(&q, [1, 1, seq_q, 32])?;
        let visible: Vec<bool> = (0..seq_kv).map(|j| j % 3 != 1 && j + 2 != seq_kv).collect();
        let mask = View::bhsd(&visible, [1, 1, 1, seq_kv])?;
        let options = options.scale(Scale::Value(0.3)).mask(mask);
        let poisoned = |x: &[bf16], with: f32| -> Vec<bf16> {
            let hidden = |at: usize| !visible[at / 32];
            let one = |(at, &x)| if hidden(at) { bf16::from_f32(with) } else { x };
            x.iter().enumerate().map(one).collect()
        };
        let run = |with| {
            let (k, v) = (poisoned(&k, with), poisoned(&v, with));
            attention(q, View::bhsd(&k, shape)?, View::bhsd(&v, shape)?, &options)
        };
        let clean = bits(&run(0.0)?);
        for with in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -0.0] {
            assert_eq!(bits(&run(with)?), clean, "{with} in {seq_kv} keys for {seq_q} queries");
        }
    }
    Ok(())
}
