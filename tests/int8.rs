//! Keys and values in integers of eight bits: what is computed from them has the bits of what is computed
//! from the same numbers as `f32`. So all that is shown of `f32` holds for them.

mod common;

use common::bits;
use common::case::{Case, Dims, Inputs};
use common::everything::{Everything, Want};
use common::for_all;
use common::narrow::{integers, named, same_from_caches};
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::terms::Terms;
use headwise::kv_cache::{
    ContiguousCache, Frequencies, KvShape, NewTokens, PagedCache, PagedCapacity, RingCache, Rope,
    RopeLayout, RopeScaling, TableBuffer,
};
use headwise::{
    AttentionOptions, AttentionPlan, Input, Int8, Isa, Outputs, PlanBuffer, Result, Scale,
    Settings, Stage, Storage, Tensor, View, ViewMut, Workspace, attention, attention_into, bf16,
};
use headwise_kernels::{Masking, Problem};
use proptest::prelude::*;
use proptest::sample::select;

/// All outputs of keys and values that are integers against those of their numbers as `f32`; with `mixed`
/// of values in `bf16`.
fn check(inputs: &Inputs<f32>, layout: Layout, isa: Isa, want: &Want<'_>, mixed: bool) {
    let mut wide = inputs.map(|x| x);
    let (key, keys) = integers(&inputs.key, layout);
    let (value, values) = integers(&inputs.value, layout);
    let half = inputs.value.map(bf16::from_f32);
    wide.key = keys;
    wide.value = if mixed { half.map(bf16::widen) } else { values };
    let options = wide.options().isa(isa);
    let expected = Everything::of(&wide, &options, want);
    let got = Everything::from(&wide, want, |[query, ..], outputs| {
        let value: Input<'_, f32> = if mixed { half.view().into() } else { value.view().into() };
        attention_into(query, key.view(), value, &options, outputs, &mut Workspace::new())
    });
    assert_eq!(bits(&got.out), bits(&expected.out), "out on {isa}");
    assert_eq!(got.bits(), expected.bits(), "on {isa}");
}

fn cases() -> impl Strategy<Value = (Case, Layout, u8, Stage)> {
    let lengths = (
        select(vec![1_usize, 2, 3, 8, 9, 16, 17, 47, 48, 49, 97]),
        select(vec![1_usize, 7, 15, 16, 17, 127, 128, 129, 257, 2049]),
    );
    let dims = select(vec![1_usize, 5, 8, 15, 16, 17, 32, 40, 64]);
    let stage = select(vec![Stage::Scaled, Stage::Capped, Stage::Final]);
    let layout = select(Layout::INPUTS.to_vec());
    (masked_cases(), lengths, (dims.clone(), dims), (layout, any::<u8>(), stage)).prop_map(
        |(mut case, (seq_q, seq_kv), (head_dim, value_dim), (layout, which, stage))| {
            case.dims = Dims { seq_q, seq_kv, head_dim, value_dim, ..case.dims };
            if seq_kv > 1000 {
                case.dims = Dims { batch: 1, kv_heads: 1, seq_q: seq_q.min(4), ..case.dims };
            }
            (case, layout, which, stage)
        },
    )
}

#[test]
fn as_the_same_numbers_in_f32() {
    for_all(120, cases(), |(case, layout, which, stage)| {
        let mut inputs = case.inputs();
        inputs.terms = Terms::random(which, case.dims.q_heads(), &mut common::Rng(case.seed));
        let want = Want::all(stage, which & 1 == 0, case.dims.seq_kv.min(3));
        for isa in Isa::available() {
            check(&inputs, layout, isa, &want, false);
            check(&inputs, layout, isa, &want, true);
        }
    });
}

/// Rows of zeros, of the largest and the least numbers, and such as are hidden and hold what is no number.
#[test]
fn scales_of_all_kinds() -> Result<()> {
    const KEYS: usize = 40;
    let scales = [0.0, -0.0, f32::MIN_POSITIVE, f32::from_bits(1), 1e18, 1e-30, -1.0];
    let (mut key, mut value) = (Tensor::zeros([1, 1, KEYS, 20])?, Tensor::zeros([1, 1, KEYS, 20])?);
    let mut wide = [(); 2].map(|()| [0.0_f32; KEYS * 16]);
    for (tensor, wide) in [&mut key, &mut value].into_iter().zip(&mut wide) {
        let rows = tensor.data_mut().chunks_exact_mut(20);
        for ((n, row), wide) in rows.enumerate().zip(wide.chunks_exact_mut(16)) {
            let scale = if n < 30 { scales[n % 7] } else { [f32::NAN, f32::INFINITY][n % 2] };
            row[..16].iter_mut().enumerate().for_each(|(i, x)| *x = Int8((i * n) as i8));
            let bytes = row[16..].iter_mut().zip(scale.to_ne_bytes());
            bytes.for_each(|(to, byte)| *to = Int8(byte as i8));
            Int8::dequantize(row, wide)?;
        }
    }
    for rows in [1, 3, 8, 20] {
        let query: Vec<f32> = (0..rows * 16).map(|i| (i as f32).sin() * 1e-18).collect();
        let query = View::bhsd(&query, [1, 1, rows, 16])?;
        for isa in Isa::available() {
            let options = AttentionOptions::new().key_lengths(&[30]).isa(isa);
            let wide =
                [View::bhsd(&wide[0], [1, 1, KEYS, 16])?, View::bhsd(&wide[1], [1, 1, KEYS, 16])?];
            let got = attention(query, key.view(), value.view(), &options)?;
            let expected = attention(query, wide[0], wide[1], &options)?;
            assert!(got.out.data().iter().all(|x| x.is_finite()), "{isa}");
            assert_eq!(bits(got.out.data()), bits(expected.out.data()), "{rows} rows on {isa}");
            // A row that is seen and is no number.
            let seen = attention(query, key.view(), value.view(), &options.key_lengths(&[31]))?;
            assert!(seen.out.data().iter().all(|x| x.is_nan()), "{isa}");
        }
    }
    Ok(())
}

#[test]
fn what_has_no_kernel_is_refused() -> Result<()> {
    let (bytes, wide) = ([Int8(1); 6 * 8], [0.5_f32; 6 * 8]);
    let (x, w) = (View::bhsd(&bytes, [1, 1, 6, 8])?, View::bhsd(&wide, [1, 1, 6, 4])?);
    let mut out = [0.0_f32; 6 * 4];
    let options = AttentionOptions::new();
    let mut run = |query: Input<'_, f32>, key: Input<'_, f32>, value: Input<'_, f32>| {
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 6, 4])?);
        attention_into(query, key, value, &options, outputs, &mut Workspace::new())
    };
    run(w.into(), x.into(), x.into())?;
    named(
        run(x.into(), x.into(), x.into()),
        &["query", "int8", "f32, f16 or bf16", "keys and values"],
    );
    // Without room for a scale there is no number, and a scale must follow its numbers.
    let short = View::bhsd(&bytes, [1, 2, 6, 4])?;
    named(run(w.into(), short.into(), x.into()), &["key", "[1, 2, 6, 0]", "at least 1"]);
    let narrow = View::strided(&bytes, 0, [1, 1, 6, 5], [0, 0, 1, 6])?;
    let query = View::bhsd(&wide, [1, 1, 6, 1])?;
    named(
        run(query.into(), narrow.into(), x.into()),
        &["key", "[0, 0, 1, 6]", "inner stride of 1"],
    );
    Ok(())
}

/// A plan checks the tensors of each run as its own were: the scale must follow its numbers there too.
#[test]
fn a_plan_refuses_rows_that_are_none() -> Result<()> {
    let (bytes, query) = ([Int8(1); 64], [0.5_f32; 6]);
    let rows = View::bhsd(&bytes[..30], [1, 1, 6, 5])?;
    let query = View::bhsd(&query, [1, 1, 6, 1])?;
    let problem = Problem::new(query, rows, rows, Scale::One, &Masking::default())?;
    let (settings, mut buffer) = (Settings::default(), PlanBuffer::new());
    let plan = AttentionPlan::new(&problem, &settings, &mut buffer)?;
    let mut out = [0.0; 6];
    let mut run = |key: View<'_, Int8>| {
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 6, 1])?);
        plan.run(query, [key, rows].map(Input::from), outputs, &mut Workspace::new())
    };
    run(rows)?;
    let spread = View::strided(&bytes, 0, [1, 1, 6, 5], [0, 0, 10, 2])?;
    named(run(spread), &["key", "[0, 0, 10, 2]", "inner stride of 1"]);
    Ok(())
}

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 32, value_dim: 17 };
const LENGTHS: [usize; 3] = [1, 150, 37];

/// Caches of integers and of `f32` that are told the same keys, of which those of `f32` are told what
/// became of them.
fn check_caches(page_size: usize, rope: Option<&Rope>) -> Result<()> {
    let capacity = PagedCapacity { pages: 400, page_size, sequences: 3, pages_per_sequence: 200 };
    let mut contiguous = ContiguousCache::<Int8>::with_storage(SHAPE, 3, 200)?;
    let mut ring = RingCache::<Int8>::with_storage(SHAPE, 3, 50)?;
    let mut paged = PagedCache::<Int8>::with_storage(SHAPE, capacity)?;
    let (mut exact, mut rolled) =
        (ContiguousCache::new(SHAPE, 3, 200)?, RingCache::new(SHAPE, 3, 50)?);
    let mut sequences = Vec::new();
    let mut rng = common::Rng(7);
    for (sequence, length) in LENGTHS.into_iter().enumerate() {
        sequences.push(paged.create()?);
        let mut tokens = |dim| -> Vec<f32> {
            (0..length * SHAPE.kv_heads * dim).map(|_| rng.normal()).collect()
        };
        let (key, value) = (tokens(SHAPE.head_dim), tokens(SHAPE.value_dim));
        let shape = |dim| [1, SHAPE.kv_heads, length, dim];
        let (key, value) =
            (View::bshd(&key, shape(SHAPE.head_dim))?, View::bshd(&value, shape(SHAPE.value_dim))?);
        let tokens = NewTokens::new(key, value);
        let tokens = rope.map_or(tokens, |rope| tokens.rope(rope));
        contiguous.append_to(&[sequence], &tokens)?;
        ring.append_to(&[sequence], &tokens)?;
        paged.append(&[sequences[sequence]], &tokens)?;
        // Rotated first, and then rounded.
        let mut rotated = ContiguousCache::new(SHAPE, 1, 200)?;
        rotated.append(&tokens)?;
        let view = rotated.view();
        let part = |view: View<'_, f32>, dim| {
            let rows = Strided::new(&view.to_vec(), [1, 2, 200, dim], Layout::Bhsd, 0.0);
            integers(&rows.narrow(2, 0..length), Layout::Bhsd).1
        };
        let (key, value) = (part(view.key(), SHAPE.head_dim), part(view.value(), SHAPE.value_dim));
        let tokens = NewTokens::new(key.view(), value.view());
        exact.append_to(&[sequence], &tokens)?;
        rolled.append_to(&[sequence], &tokens)?;
    }
    let mut tables = TableBuffer::new();
    let what = format!("in pages of {page_size}");
    same_from_caches(&contiguous.view(), &exact.view(), &what)?;
    same_from_caches(&ring.view(), &rolled.view(), &what)?;
    same_from_caches(&paged.view(&sequences, &mut tables)?, &exact.view(), &what)
}

#[test]
fn caches_are_as_caches_of_their_numbers() -> Result<()> {
    let frequencies = Frequencies::new(SHAPE.head_dim, 10_000.0, RopeScaling::Unscaled)?;
    let rope = Rope::new(RopeLayout::HalfSplit, &frequencies, 200)?;
    for page_size in [1, 4, 16, 32, 100, 128, 200] {
        check_caches(page_size, None)?;
    }
    check_caches(16, Some(&rope))
}

/// Rows can be appended as they are stored, and forks copy their pages whole.
#[test]
fn stored_rows_go_from_cache_to_cache() -> Result<()> {
    let mut cache = ContiguousCache::<Int8>::with_storage(SHAPE, 1, 10)?;
    let row: Vec<f32> = (0..64).map(|i| (i as f32).cos()).collect();
    let (key, value) = (View::bshd(&row, [1, 2, 1, 32])?, View::bshd(&row[..34], [1, 2, 1, 17])?);
    cache.append(&NewTokens::new(key, value))?;
    let capacity = PagedCapacity { pages: 4, page_size: 4, sequences: 2, pages_per_sequence: 2 };
    let mut paged = PagedCache::<Int8>::with_storage(SHAPE, capacity)?;
    let first = paged.create()?;
    let view = cache.view();
    let token = |pool: View<'_, Int8>| {
        Strided::new(&pool.to_vec(), pool.shape(), Layout::Bhsd, Int8(0)).narrow(2, 0..1)
    };
    let (key, value) = (token(view.key()), token(view.value()));
    paged.append(&[first], &NewTokens::new(key.view(), value.view()))?;
    let second = paged.fork(first)?;
    paged.append(&[second], &NewTokens::new(key.view(), value.view()))?;
    let mut tables = TableBuffer::new();
    let pages = paged.view(&[first, second], &mut tables)?;
    for (sequence, position, head) in [(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0)] {
        // Rounded again, by at most a place in the scale's last.
        let expected = view.key_row(0, 0, head).map(|row| &row[..32]);
        assert_eq!(pages.key_row(sequence, position, head).map(|row| &row[..32]), expected);
        let expected = view.value_row(0, 0, head).map(|row| &row[..17]);
        assert_eq!(pages.value_row(sequence, position, head).map(|row| &row[..17]), expected);
    }
    Ok(())
}
