//! Tensors of `f16` and `bf16`: what is computed from them has the bits of what is computed from the same
//! numbers as `f32`, and is rounded once. So all that is shown of `f32` holds for them. Only where `bf16` is
//! multiplied in pairs it is not so: tests/bf16_pairs.rs.

mod common;

use std::fmt::Debug;

use common::bits;
use common::case::{Case, Dims, Inputs};
use common::everything::{Everything, Want};
use common::for_all;
use common::narrow::{named, same_from_caches};
use common::strategies::masked_cases;
use common::strided::Strided;
use common::terms::Terms;
use headwise::kv_cache::{
    ContiguousCache, Frequencies, KvShape, KvView, NewTokens, PagedCache, PagedCapacity, RingCache,
    Rope, RopeLayout, RopeScaling, SequenceId, TableBuffer,
};
use headwise::{
    Algorithm, AttentionOptions, AttentionPlan, Input, Isa, Outputs, PlanBuffer, Result, Scale,
    Settings, Stage, Storage, View, ViewMut, Workspace, attention, attention_into, bf16, f16,
};
use headwise_kernels::{Masking, Problem};
use proptest::prelude::*;
use proptest::sample::select;

/// A type that is computed in `f32`.
trait Narrow: Storage<Compute = f32> {}
impl<T: Storage<Compute = f32>> Narrow for T {}

fn rounded<S: Narrow>(tensor: &Strided<f32>) -> Strided<S> {
    tensor.map(S::round)
}

/// All outputs of tensors that are stored as `Q`, `K`, `V` and `O` against those of the same numbers as
/// `f32`.
fn check<Q: Narrow, K: Narrow, V: Narrow, O: Narrow>(
    inputs: &Inputs<f32>,
    isa: Isa,
    want: &Want<'_>,
) {
    let (query, key, value) =
        (rounded::<Q>(&inputs.query), rounded::<K>(&inputs.key), rounded::<V>(&inputs.value));
    let mut wide = inputs.map(|x| x);
    (wide.query, wide.key, wide.value) =
        (query.map(Q::widen), key.map(K::widen), value.map(V::widen));
    let options = wide.options().isa(isa);
    let expected = Everything::of(&wide, &options, want);
    let d = inputs.dims();
    let mut out = vec![O::round(7.5e8); expected.out.len()];
    let got = Everything::from(&wide, want, |_, outputs| {
        let shape = [d.batch, d.q_heads(), d.seq_q, d.value_dim];
        let (outputs, _) = outputs.redirect(O::output(ViewMut::bhsd(&mut out, shape)?));
        let (q, k, v) = (Q::input(query.view()), K::input(key.view()), V::input(value.view()));
        attention_into(q, k, v, &options, outputs, &mut Workspace::new())
    });
    let names = [Q::NAME, K::NAME, V::NAME, O::NAME];
    let widened: Vec<f32> = out.into_iter().map(O::widen).collect();
    let rounded: Vec<f32> = expected.out.iter().map(|&x| O::round(x).widen()).collect();
    assert_eq!(bits(&widened), bits(&rounded), "out of {names:?} on {isa}");
    // All but the output, which went elsewhere.
    assert_eq!(got.bits()[1..], expected.bits()[1..], "{names:?} on {isa}");
}

fn cases() -> impl Strategy<Value = (Case, u8, Stage)> {
    let lengths = (
        select(vec![1_usize, 3, 16, 17, 47, 48, 49, 97]),
        select(vec![1_usize, 7, 15, 16, 17, 127, 128, 129, 257, 2049]),
    );
    let dims = select(vec![1_usize, 5, 8, 15, 16, 17, 40, 64]);
    let stage = select(vec![Stage::Scaled, Stage::Capped, Stage::Final]);
    (masked_cases(), lengths, (dims.clone(), dims), (any::<u8>(), stage)).prop_map(
        |(mut case, (seq_q, seq_kv), (head_dim, value_dim), (which, stage))| {
            case.dims = Dims { seq_q, seq_kv, head_dim, value_dim, ..case.dims };
            if seq_kv > 1000 {
                case.dims = Dims { batch: 1, kv_heads: 1, seq_q: seq_q.min(4), ..case.dims };
            }
            (case, which, stage)
        },
    )
}

#[test]
fn as_the_same_numbers_in_f32() {
    for_all(120, cases(), |(case, which, stage)| {
        let mut inputs = case.inputs();
        inputs.terms = Terms::random(which, case.dims.q_heads(), &mut common::Rng(case.seed));
        let want = Want::all(stage, which & 1 == 0, case.dims.seq_kv.min(3));
        for isa in Isa::available() {
            if isa != Isa::Avx512Bf16 {
                check::<bf16, bf16, bf16, bf16>(&inputs, isa, &want);
            }
            check::<f16, f16, f16, f16>(&inputs, isa, &want);
            check::<f32, bf16, f16, f32>(&inputs, isa, &want);
            check::<bf16, f32, f32, f16>(&inputs, isa, &want);
        }
    });
}

/// What a result is made of is what the queries were.
#[test]
fn results_are_stored_as_queries_are() -> Result<()> {
    fn one<S: Narrow + Debug>() -> Result<()> {
        let x: Vec<S> = (0..6 * 4).map(|i| S::round((i as f32).sin())).collect();
        let x = View::bhsd(&x, [1, 1, 6, 4])?;
        let wide: Vec<f32> = x.to_vec().into_iter().map(S::widen).collect();
        let wide = View::bhsd(&wide, [1, 1, 6, 4])?;
        // What the default is does not matter, but that it has no pairs.
        let isa = Isa::available().find(|&isa| isa != Isa::Avx512Bf16);
        let options = AttentionOptions::new().causal().return_lse().return_weights();
        let options = options.isa(isa.unwrap_or(Isa::Portable));
        let (got, expected) =
            (attention(x, x, x, &options)?, attention(wide, wide, wide, &options)?);
        let rounded: Vec<S> = expected.out.data().iter().map(|&x| S::round(x)).collect();
        assert_eq!(got.out.data(), rounded);
        assert_eq!((got.lse, got.weights), (expected.lse, expected.weights));
        Ok(())
    }
    one::<f16>()?;
    one::<bf16>()
}

#[test]
fn what_has_no_kernel_is_refused() -> Result<()> {
    let (half, wide) = ([f16::from_f32(0.5); 6 * 4], [0.5_f32; 6 * 4]);
    let (x, w) = (View::bhsd(&half, [1, 1, 6, 4])?, View::bhsd(&wide, [1, 1, 6, 4])?);
    let options = AttentionOptions::new().algorithm(Algorithm::Unfused);
    let parts = ["algorithm", "Unfused", "f16", "f32 and f64"];
    named(attention(x, x, x, &options).map(|done| done.isa), &parts);
    named(attention(w, x, x, &options).map(|done| done.isa), &parts);
    let mut out = [f16::ZERO; 6 * 4];
    let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 6, 4])?);
    named(attention_into(w, w, w, &options, outputs, &mut Workspace::new()), &parts);

    Ok(())
}

#[test]
fn a_plan_is_for_the_types_that_it_was_made_of() -> Result<()> {
    let (half, wide) = ([f16::from_f32(0.5); 6 * 4], [0.5_f32; 6 * 4]);
    let (x, w) = (View::bhsd(&half, [1, 1, 6, 4])?, View::bhsd(&wide, [1, 1, 6, 4])?);
    let problem = Problem::new(x, x, w, Scale::One, &Masking::default())?;
    let (settings, mut buffer) = (Settings::default(), PlanBuffer::new());
    let plan = AttentionPlan::new(&problem, &settings, &mut buffer)?;
    let run = |query: Input<'_, f32>, key: Input<'_, f32>| {
        let mut out = [0.0; 6 * 4];
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 6, 4])?);
        plan.run(query, [key, w.into()], outputs, &mut Workspace::new())?;
        Ok(out)
    };
    assert_eq!(run(x.into(), x.into())?, [0.5; 24]);
    named(run(x.into(), w.into()).map(|_| Isa::Portable), &["key", "f32", "f16, as planned"]);
    named(run(w.into(), x.into()).map(|_| Isa::Portable), &["query", "f32", "f16, as planned"]);
    Ok(())
}

/// Tokens of three sequences in caches of `S`, and the same numbers in caches of `f32`.
struct Caches<S: Narrow> {
    contiguous: (ContiguousCache<S>, ContiguousCache),
    ring: (RingCache<S>, RingCache),
    paged: (PagedCache<S>, PagedCache),
    sequences: Vec<SequenceId>,
}

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 24, value_dim: 17 };
const LENGTHS: [usize; 3] = [1, 150, 37];

impl<S: Narrow> Caches<S> {
    fn new(page_size: usize, rope: Option<&Rope>) -> Result<Self> {
        let capacity =
            PagedCapacity { pages: 400, page_size, sequences: 3, pages_per_sequence: 200 };
        let mut this = Self {
            contiguous: (
                ContiguousCache::with_storage(SHAPE, 3, 200)?,
                ContiguousCache::new(SHAPE, 3, 200)?,
            ),
            ring: (RingCache::with_storage(SHAPE, 3, 50)?, RingCache::new(SHAPE, 3, 50)?),
            paged: (PagedCache::with_storage(SHAPE, capacity)?, PagedCache::new(SHAPE, capacity)?),
            sequences: Vec::new(),
        };
        let mut rng = common::Rng(7);
        for (sequence, length) in LENGTHS.into_iter().enumerate() {
            let id = this.paged.0.create()?;
            assert_eq!(this.paged.1.create()?, id);
            this.sequences.push(id);
            let mut tokens = |dim| -> Vec<f32> {
                (0..length * SHAPE.kv_heads * dim).map(|_| rng.normal()).collect()
            };
            let (key, value) = (tokens(SHAPE.head_dim), tokens(SHAPE.value_dim));
            // Some as halves, some as floats, which are rounded on the way.
            let narrow = |x: &[f32]| x.iter().map(|&x| S::round(x)).collect::<Vec<S>>();
            let (narrow_key, narrow_value) = (narrow(&key), narrow(&value));
            let wide = |x: &[S]| x.iter().map(|&x| x.widen()).collect::<Vec<f32>>();
            let (wide_key, wide_value) = (wide(&narrow_key), wide(&narrow_value));
            let shape = |dim| [1, SHAPE.kv_heads, length, dim];
            let shapes = (shape(SHAPE.head_dim), shape(SHAPE.value_dim));
            let exact = NewTokens::new(
                View::bshd(&wide_key, shapes.0)?,
                View::bshd(&wide_value, shapes.1)?,
            );
            let narrow = NewTokens::new(
                S::input(View::bshd(&narrow_key, shapes.0)?),
                S::input(View::bshd(&narrow_value, shapes.1)?),
            );
            let rounded =
                NewTokens::new(View::bshd(&key, shapes.0)?, View::bshd(&value, shapes.1)?);
            let of = |tokens| rope.map_or(tokens, |rope| NewTokens::rope(tokens, rope));
            let (narrow, exact) = (of(if sequence == 1 { narrow } else { rounded }), of(exact));
            // A rotation comes before the rounding: of rounded tokens in both.
            let narrow = if rope.is_some() { exact } else { narrow };
            this.contiguous.0.append_to(&[sequence], &narrow)?;
            this.contiguous.1.append_to(&[sequence], &exact)?;
            this.ring.0.append_to(&[sequence], &narrow)?;
            this.ring.1.append_to(&[sequence], &exact)?;
            this.paged.0.append(&[id], &narrow)?;
            this.paged.1.append(&[id], &exact)?;
        }
        Ok(this)
    }

    fn check(&self, test: impl Fn(KvView<'_, S>, KvView<'_>) -> Result<()>) -> Result<()> {
        test(self.contiguous.0.view(), self.contiguous.1.view())?;
        test(self.ring.0.view(), self.ring.1.view())?;
        let (mut first, mut second) = (TableBuffer::new(), TableBuffer::new());
        test(
            self.paged.0.view(&self.sequences, &mut first)?,
            self.paged.1.view(&self.sequences, &mut second)?,
        )
    }
}

/// Decoding and prefilling from caches in which all is stored in half the bytes.
fn check_caches<S: Narrow>(page_size: usize) -> Result<()> {
    let what = format!("in pages of {page_size}");
    Caches::<S>::new(page_size, None)?.check(|narrow, wide| same_from_caches(&narrow, &wide, &what))
}

#[test]
fn caches_of_halves_are_as_caches_of_their_numbers() -> Result<()> {
    for page_size in [1, 4, 16, 32, 100, 128, 200] {
        check_caches::<f16>(page_size)?;
        check_caches::<bf16>(page_size)?;
    }
    Ok(())
}

#[test]
fn keys_are_rotated_before_they_are_rounded() -> Result<()> {
    fn check<S: Narrow>() -> Result<()> {
        let frequencies = Frequencies::new(SHAPE.head_dim, 10_000.0, RopeScaling::Unscaled)?;
        let rope = Rope::new(RopeLayout::HalfSplit, &frequencies, 200)?;
        Caches::<S>::new(16, Some(&rope))?.check(|narrow, wide| {
            for (sequence, length) in LENGTHS.into_iter().enumerate() {
                for (position, head) in (0..length).flat_map(|p| [(p, 0), (p, 1)]) {
                    let at = (sequence, position, head);
                    let rounded = |row: Option<&[f32]>| {
                        row.map(|row| row.iter().map(|&x| S::round(x)).collect::<Vec<S>>())
                    };
                    let key = rounded(wide.key_row(sequence, position, head));
                    assert_eq!(narrow.key_row(sequence, position, head), key.as_deref(), "{at:?}");
                    let value = rounded(wide.value_row(sequence, position, head));
                    assert_eq!(narrow.value_row(sequence, position, head), value.as_deref());
                }
            }
            Ok(())
        })
    }
    check::<f16>()?;
    check::<bf16>()
}
