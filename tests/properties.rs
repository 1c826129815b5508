//! Random problems against the naive f64 computation, within the error bound derived in
//! `common::bounds`: fused attention on every instruction set, and the unfused path in f32 and
//! f64.

mod common;

use common::bounds::{Arithmetic, Expected, F32, F64, FUSED, Got};
use common::case::{Case, Data, DenseMask, Dims, GAP, Inputs, Masks};
use common::for_all;
use common::strategies::kinds;
use common::strided::{Layout, Strided};
use common::structure::Kinds;
use headwise::{
    Algorithm, AttentionOptions, Causal, Element, Isa, Outputs, Scale, Workspace, attention_into,
};
use proptest::prelude::*;
use proptest::sample::select;

/// Around the edges of vectors, groups, query tiles and key blocks.
const LENGTHS: [usize; 32] = [
    0, 1, 1, 2, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 24, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127,
    128, 129, 144, 200, 255, 256, 257,
];
const WIDTHS: [usize; 20] =
    [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 64, 80, 127, 128, 129];

/// Multiply-adds that the naive computation may take.
const WORK: usize = 6_000_000;

fn dims() -> impl Strategy<Value = Dims> {
    let counts = (select(vec![0_usize, 1, 1, 2, 3]), 1..4_usize, select(vec![1_usize, 2, 3, 4, 8]));
    let lengths = (select(LENGTHS.to_vec()), select(LENGTHS.to_vec()));
    let widths = (select(WIDTHS.to_vec()), select(WIDTHS.to_vec()));
    (counts, lengths, widths).prop_map(|((batch, kv_heads, group), (seq_q, seq_kv), widths)| {
        let (head_dim, value_dim) = widths;
        let mut d = Dims { batch, kv_heads, group, seq_q, seq_kv, head_dim, value_dim };
        // The largest of what matters least shrinks first.
        while d.work() > WORK {
            match d {
                Dims { batch: 2.., .. } => d.batch -= 1,
                Dims { kv_heads: 2.., .. } => d.kv_heads -= 1,
                Dims { group: 2.., .. } => d.group -= 1,
                _ => d.head_dim = d.head_dim.min(40),
            }
            if d.batch <= 1 && d.q_heads() == 1 {
                break;
            }
        }
        d
    })
}

fn causal() -> impl Strategy<Value = Option<Causal>> {
    prop_oneof![
        3 => Just(None),
        2 => Just(Some(Causal::BottomRight)),
        1 => Just(Some(Causal::TopLeft)),
        1 => Just(Some(Causal::AtLength)),
        2 => (-70..210_i64).prop_map(|offset| Some(Causal::Offset(offset))),
        1 => select(vec![i64::MIN, i64::MAX, -1 << 40]).prop_map(|x| Some(Causal::Offset(x))),
    ]
}

fn reach() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![
        4 => Just(None),
        2 => (0..80_usize).prop_map(Some),
        1 => Just(Some(usize::MAX)),
    ]
}

fn dense_mask() -> impl Strategy<Value = Option<DenseMask>> {
    let layout = select(Layout::INPUTS.to_vec());
    let mask =
        (any::<[bool; 3]>(), layout).prop_map(|(axes, layout)| Some(DenseMask { axes, layout }));
    prop_oneof![2 => Just(None), 1 => mask]
}

fn masks() -> impl Strategy<Value = Masks> {
    let dense = (dense_mask(), dense_mask());
    let kinds = prop_oneof![Just(Kinds::default()), kinds()];
    let parts = (causal(), reach(), reach(), any::<bool>(), dense, kinds);
    parts.prop_map(|(causal, left, right, key_lengths, (boolean, bias), kinds)| Masks {
        causal,
        left,
        right,
        key_lengths,
        boolean,
        bias,
        kinds,
    })
}

fn scale() -> impl Strategy<Value = Scale> {
    prop_oneof![
        6 => Just(Scale::InvSqrtHeadDim),
        1 => Just(Scale::One),
        2 => select(vec![0.0, -0.3, 1e-6, 3.0]).prop_map(Scale::Value),
    ]
}

fn data() -> impl Strategy<Value = Data> {
    use Data::*;
    select(vec![Normal, Normal, Normal, Wide, Wide, Growing, Outlier, Tiny, Constant])
}

fn cases() -> impl Strategy<Value = Case> {
    let layouts = prop::array::uniform3(select(Layout::INPUTS.to_vec()));
    let output = select(Layout::OUTPUTS.to_vec());
    (dims(), data(), scale(), masks(), layouts, output, any::<u64>()).prop_map(
        |(dims, data, scale, masks, layouts, output, seed)| Case {
            dims,
            data,
            scale,
            masks,
            layouts,
            output,
            seed,
        },
    )
}

/// Computes into outputs of layout `layout`, of which it checks that nothing else was written.
fn compute<T: Element>(
    inputs: &Inputs<T>,
    layout: Layout,
    options: &AttentionOptions<'_, T>,
) -> Got {
    let d = inputs.dims();
    let gap = T::from_f64(GAP.into());
    let tensor = |width| Strided::filled([d.batch, d.q_heads(), d.seq_q, width], layout, gap);
    let (mut out, mut lse, mut weights) = (tensor(d.value_dim), tensor(1), tensor(d.seq_kv));
    let outputs =
        Outputs::new(out.view_mut()).with_lse(lse.view_mut()).with_weights(weights.view_mut());
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    attention_into(q, k, v, options, outputs, &mut Workspace::new())
        .unwrap_or_else(|error| panic!("{error}"));
    let dense = |tensor: Strided<T>| {
        assert!(tensor.gaps().iter().all(|x| x.to_f64() == gap.to_f64()), "gaps were written");
        tensor.dense().into_iter().map(T::to_f64).collect()
    };
    Got { out: dense(out), lse: dense(lse), weights: dense(weights) }
}

fn check(case: &Case) {
    let inputs = case.inputs();
    let expected = Expected::of(&inputs);
    // Ordinary data must come out better than the worst case.
    let moderate = case.data == Data::Normal
        && case.scale == Scale::InvSqrtHeadDim
        && case.masks.bias.is_none();
    let assert = |got: &Got, arithmetic: Arithmetic, what: &str| {
        let what = format!("{what}, {case:?}");
        expected.assert_explains(got, arithmetic, &what);
        let error = expected.largest_error(got);
        assert!(!moderate || error < 1e-5, "error {error:e}, {what}");
    };
    for isa in Isa::available() {
        for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
            let options = inputs.options().isa(isa).algorithm(algorithm);
            let got = compute(&inputs, case.output, &options);
            let arithmetic = if algorithm == Algorithm::Auto { FUSED } else { F32 };
            assert(&got, arithmetic, &format!("f32, {algorithm:?} on {isa}"));
        }
    }
    let wide = inputs.map(f64::from);
    assert(&compute(&wide, case.output, &wide.options()), F64, "f64");
}

#[test]
fn random_problems() {
    for_all(1500, cases(), |case| check(&case));
}

/// The same on one head with seq_kv around the boundaries of splits.
#[test]
fn across_splits() {
    let lengths = (select(vec![1_usize, 2, 5, 49]), select(vec![2047_usize, 2048, 2049, 4100]));
    let split = (lengths, 1..9_usize, 1..9_usize, cases()).prop_map(
        |((seq_q, seq_kv), head_dim, value_dim, case)| {
            let dims = Dims {
                group: 1 + head_dim % 3,
                ..Dims::single(seq_q, seq_kv, head_dim, value_dim)
            };
            // Offsets and windows that matter at this length.
            let mut masks = case.masks;
            masks.left = masks.left.map(|left| left.saturating_mul(40));
            if let Some(Causal::Offset(offset)) = masks.causal {
                masks.causal = Some(Causal::Offset(offset.saturating_mul(20)));
            }
            Case { dims, masks, ..case }
        },
    );
    for_all(100, split, |case| check(&case));
}

/// The widest heads there may be.
#[test]
fn wide_heads() {
    let widths = select(vec![1_usize, 65, 255, 256, 257, 511, 512]);
    let wide = (widths.clone(), widths, 1..30_usize, 1..80_usize, cases()).prop_map(
        |(head_dim, value_dim, seq_q, seq_kv, case)| {
            let dims =
                Dims { group: 1 + seq_q % 2, ..Dims::single(seq_q, seq_kv, head_dim, value_dim) };
            Case { dims, ..case }
        },
    );
    for_all(100, wide, |case| check(&case));
}
