//! Every option and output by way of the C structs gives the bits that the library gives by its own.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use headwise::{
    Alibi, AttentionOptions, BlockPattern, Documents, Int8, Isa, Offsets, Outputs, Precision,
    RelativeBias, Scale, Stage, Tree, View, ViewMut, Workspace, attention_into, bf16, f16,
};

use crate::attention::{headwise_attention, headwise_attention_call};
use crate::cache::{
    headwise_append_call, headwise_cache_append, headwise_cache_create,
    headwise_cache_create_sequence, headwise_cache_extent, headwise_cache_fork_sequence,
    headwise_cache_free, headwise_cache_kind, headwise_cache_options,
    headwise_cache_release_sequence, headwise_cache_truncate, headwise_sequence,
};
use crate::counting::allocations;
use crate::dtype::headwise_dtype;
use crate::list::{
    headwise_floats, headwise_ids, headwise_sequences, headwise_sizes, headwise_words,
};
use crate::options::{
    HEADWISE_WINDOW_LEFT, HEADWISE_WINDOW_RIGHT, headwise_algorithm, headwise_alibi,
    headwise_causal, headwise_options, headwise_precision, headwise_scale,
};
use crate::outputs::{headwise_outputs, headwise_pick, headwise_pick_kind, headwise_stage};
use crate::relative_bias::{
    headwise_relative_bias_create, headwise_relative_bias_free, headwise_relative_bias_kind,
    headwise_relative_bias_options,
};
use crate::state::{headwise_merge_call, headwise_merge_states, headwise_state};
use crate::status::{HEADWISE_MESSAGE_SIZE, headwise_error, headwise_status};
use crate::tensor::headwise_tensor;
use crate::version::number_of;
use crate::workspace::{headwise_workspace_create, headwise_workspace_free};

const HEADS: usize = 4;
const SEQ: usize = 70;
const DIM: usize = 16;
const SHAPE: [usize; 4] = [2, HEADS, SEQ, DIM];
const KV: [usize; 4] = [2, 2, SEQ, DIM];

pub(crate) fn wave(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step).sin() * 2.0).collect()
}

/// Queries, keys and values.
fn inputs() -> [Vec<f32>; 3] {
    let kv = KV.iter().product();
    [wave(SHAPE.iter().product(), 0.71), wave(kv, 0.37), wave(kv, 1.3)]
}

pub(crate) fn tensor<T>(
    data: *const T,
    shape: [usize; 4],
    dtype: headwise_dtype,
) -> headwise_tensor {
    let dims = shape.map(|len| len as isize);
    let strides = [dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1];
    let data = data.cast_mut().cast();
    headwise_tensor { data, shape, strides, dtype: dtype as u32, reserved: 0 }
}

pub(crate) fn floats(data: &[f32], shape: [usize; 4]) -> headwise_tensor {
    tensor(data.as_ptr(), shape, headwise_dtype::F32)
}

/// To be written to.
pub(crate) fn floats_mut(data: &mut [f32], shape: [usize; 4]) -> headwise_tensor {
    tensor(data.as_mut_ptr(), shape, headwise_dtype::F32)
}

pub(crate) fn options() -> headwise_options {
    // SAFETY: of numbers and pointers, for all of which zeros are a value.
    headwise_options { size: size_of::<headwise_options>(), ..unsafe { std::mem::zeroed() } }
}

pub(crate) fn outputs(out: &headwise_tensor) -> headwise_outputs {
    // SAFETY: as above.
    let zero: headwise_outputs = unsafe { std::mem::zeroed() };
    headwise_outputs { size: size_of::<headwise_outputs>(), out, ..zero }
}

pub(crate) fn append_call([key, value]: [*const headwise_tensor; 2]) -> headwise_append_call {
    // SAFETY: as above.
    let zero: headwise_append_call = unsafe { std::mem::zeroed() };
    headwise_append_call { size: size_of::<headwise_append_call>(), key, value, ..zero }
}

pub(crate) fn sizes(list: &[usize]) -> headwise_sizes {
    headwise_sizes { data: list.as_ptr(), count: list.len() }
}

/// Calls, and panics with the message of what is refused.
pub(crate) fn done(call: impl FnOnce(*mut headwise_error) -> headwise_status) {
    let mut error = headwise_error {
        size: size_of::<headwise_error>(),
        status: headwise_status::Ok,
        reserved: 0,
        message: [0; HEADWISE_MESSAGE_SIZE],
    };
    let status = call(&mut error);
    // SAFETY: the message ends with a zero.
    let message = unsafe { std::ffi::CStr::from_ptr(error.message.as_ptr()) };
    assert_eq!(status, headwise_status::Ok, "{}", message.to_string_lossy());
}

pub(crate) fn attend(
    [query, key, value]: [&headwise_tensor; 3],
    options: &headwise_options,
    outputs: &headwise_outputs,
) {
    let call = headwise_attention_call {
        size: size_of::<headwise_attention_call>(),
        query,
        key,
        value,
        cache: null(),
        sequences: headwise_sequences { data: null(), count: 0 },
        options,
        outputs,
        isa: null_mut(),
    };
    // SAFETY: all of it is there.
    done(|error| unsafe { headwise_attention(&call, null_mut(), error) });
}

/// The output by way of C.
fn by_c(options: &headwise_options) -> Vec<f32> {
    let [q, k, v] = inputs();
    let mut out = vec![0.0; q.len()];
    let [q, k, v] = [floats(&q, SHAPE), floats(&k, KV), floats(&v, KV)];
    attend([&q, &k, &v], options, &outputs(&floats_mut(&mut out, SHAPE)));
    out
}

/// The library's own.
fn by_rust(options: &AttentionOptions<'_>) -> Vec<f32> {
    let [q, k, v] = inputs();
    let mut out = vec![0.0; q.len()];
    let mut run = || -> headwise::Result<()> {
        let [q, k, v] = [View::bhsd(&q, SHAPE)?, View::bhsd(&k, KV)?, View::bhsd(&v, KV)?];
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, SHAPE)?);
        attention_into(q, k, v, options, outputs, &mut Workspace::new()).map(|_| ())
    };
    run().unwrap_or_else(|error| panic!("{error}"));
    out
}

/// Sets an option of C's.
type Set<'a> = &'a dyn Fn(&mut headwise_options);

/// What both give.
fn same(name: &str, set: Set<'_>, rust: AttentionOptions<'_>) -> Vec<f32> {
    let mut c = options();
    set(&mut c);
    let (got, expected) = (by_c(&c), by_rust(&rust));
    assert!(got == expected, "{name}");
    expected
}

fn check(name: &str, set: Set<'_>, rust: AttentionOptions<'_>) {
    let expected = same(name, set, rust);
    // Not by both doing nothing.
    let plain = by_rust(&AttentionOptions::new());
    assert!(name == "nothing" || expected != plain, "{name} changes nothing");
}

#[test]
fn numbers_and_lists() {
    let rust = AttentionOptions::new;
    check("nothing", &|_| (), rust());
    check("scale", &|c| c.scale = headwise_scale::One as u32, rust().scale(Scale::One));
    let set = |c: &mut headwise_options| {
        (c.scale, c.scale_value) = (headwise_scale::Value as u32, 0.4);
    };
    check("scale value", &set, rust().scale(Scale::Value(0.4)));
    let causal = |causal: headwise_causal| move |c: &mut headwise_options| c.causal = causal as u32;
    check("causal", &causal(headwise_causal::BottomRight), rust().causal());
    check("top left", &causal(headwise_causal::TopLeft), rust().causal_top_left());
    let set = |c: &mut headwise_options| {
        (c.causal, c.causal_offset) = (headwise_causal::Offset as u32, -3);
    };
    check("offset", &set, rust().causal_offset(-3));
    let set = |c: &mut headwise_options| {
        c.causal = headwise_causal::AtLength as u32;
        c.key_lengths = sizes(&[60, 66]);
    };
    let at_length = rust().causal_with(headwise::Causal::AtLength);
    check("at length", &set, at_length.key_lengths(&[60, 66]));
    let set = |c: &mut headwise_options| {
        (c.window_sides, c.window_left) = (HEADWISE_WINDOW_LEFT, 7);
    };
    check("window left", &set, rust().window(Some(7), None));
    let set = |c: &mut headwise_options| {
        c.window_sides = HEADWISE_WINDOW_LEFT | HEADWISE_WINDOW_RIGHT;
        (c.window_left, c.window_right) = (7, 5);
    };
    check("window", &set, rust().window(Some(7), Some(5)));
    let set = |c: &mut headwise_options| {
        c.causal = headwise_causal::BottomRight as u32;
        c.prefix = sizes(&[9, 30]);
    };
    check("prefix", &set, rust().causal().prefix(&[9, 30]));
    check("key starts", &|c| c.key_starts = sizes(&[3, 0]), rust().key_starts(&[3, 0]));
    check("softcap", &|c| c.softcap = 1.5, rust().softcap(1.5));
    let set = |c: &mut headwise_options| c.algorithm = headwise_algorithm::Unfused as u32;
    check("unfused", &set, rust().algorithm(headwise::Algorithm::Unfused));
}

#[test]
fn precisions() {
    for isa in Isa::available() {
        let of = |c: headwise_precision, rust| {
            let set = |to: &mut headwise_options| {
                (to.precision, to.isa) = (c as u32, number_of(isa));
            };
            same(isa.name(), &set, AttentionOptions::new().precision(rust).isa(isa))
        };
        let full = of(headwise_precision::Full, Precision::Full);
        let fast = of(headwise_precision::Fast, Precision::Fast);
        // All processors with this one have dot products of integers, and some of those with AVX-512 or AVX2.
        assert!(fast != full || isa != Isa::Avx512Bf16);
        assert!(fast == full || !matches!(isa, Isa::Neon | Isa::Portable), "{isa}");
    }
}

#[test]
fn documents_trees_and_blocks() {
    let rust = AttentionOptions::new;
    let ids: Vec<i32> = (0..SEQ as i32).map(|i| i / 30).collect();
    let list = headwise_ids { data: ids.as_ptr(), count: ids.len() };
    let set = |c: &mut headwise_options| (c.document_query, c.document_key) = (list, list);
    check("ids", &set, rust().documents(Documents::Ids { query: &ids, key: &ids }));
    let cuts = [0, 31, SEQ];
    let set = |c: &mut headwise_options| {
        (c.document_query_offsets, c.document_key_offsets) = (sizes(&cuts), sizes(&cuts));
    };
    let offsets = Offsets { query: &cuts, key: &cuts };
    check("offsets", &set, rust().documents(Documents::Offsets(offsets)));
    let bits = [0b001_u64, 0b011, 0b101];
    let set = |c: &mut headwise_options| {
        c.tree_nodes = 3;
        c.tree_bits = headwise_words { data: bits.as_ptr(), count: 3 };
    };
    check("tree", &set, rust().tree(Tree::of_bits(3, &bits)));
    let seen = [true, false, false, true, true, false, false, true, true];
    let blocks = tensor(seen.as_ptr(), [1, 1, 3, 3], headwise_dtype::Bool);
    let set = |c: &mut headwise_options| {
        (c.blocks, c.block_q, c.block_kv) = (&blocks, 32, 32);
    };
    let Ok(visible) = View::bhsd(&seen, [1, 1, 3, 3]) else { unreachable!() };
    let pattern = BlockPattern { block_q: 32, block_kv: 32, visible };
    check("blocks", &set, rust().blocks(pattern));
}

#[test]
fn masks_and_biases() {
    let rust = AttentionOptions::new;
    let shape = [1, HEADS, SEQ, SEQ];
    let seen: Vec<bool> = (0..HEADS * SEQ * SEQ).map(|i| i % 3 != 1).collect();
    let mask = tensor(seen.as_ptr(), shape, headwise_dtype::Bool);
    let Ok(view) = View::bhsd(&seen, shape) else { unreachable!() };
    check("mask", &|c| c.mask = &mask, rust().mask(view));
    let packed: Vec<u8> = (0..9).map(|i| 0x5a ^ i).collect();
    let mask = tensor(packed.as_ptr(), [1, 1, 1, 9], headwise_dtype::U8);
    let Ok(view) = View::bhsd(&packed, [1, 1, 1, 9]) else { unreachable!() };
    check("packed mask", &|c| c.packed_mask = &mask, rust().packed_mask(view));
    let numbers = wave(HEADS * SEQ * SEQ, 0.9);
    let bias = floats(&numbers, shape);
    let Ok(view) = View::bhsd(&numbers, shape) else { unreachable!() };
    check("bias", &|c| c.bias = &bias, rust().bias(view));
    // Ones of bfloat16 and of half precision, every other.
    for (dtype, one) in [(headwise_dtype::Bf16, 0x3f80_u16), (headwise_dtype::F16, 0x3c00)] {
        let halves: Vec<u16> = (0..SEQ).map(|i| if i % 2 == 0 { one } else { 0 }).collect();
        let numbers: Vec<f32> = (0..SEQ).map(|i| if i % 2 == 0 { 1.0 } else { 0.0 }).collect();
        let bias = tensor(halves.as_ptr(), [1, 1, 1, SEQ], dtype);
        let Ok(view) = View::bhsd(&numbers, [1, 1, 1, SEQ]) else { unreachable!() };
        check("bias of halves", &|c| c.bias = &bias, rust().bias(view));
    }
}

#[test]
fn score_terms() {
    let rust = AttentionOptions::new;
    let set = |c: &mut headwise_options| c.alibi = headwise_alibi::Standard as u32;
    check("alibi", &set, rust().alibi(Alibi::Standard));
    let four = [0.5_f32, 0.1, -0.2, 1.0];
    let list = headwise_floats { data: four.as_ptr(), count: 4 };
    let set = |c: &mut headwise_options| {
        (c.alibi, c.alibi_slopes) = (headwise_alibi::Slopes as u32, list);
    };
    check("slopes", &set, rust().alibi(Alibi::Slopes(&four)));
    check("sinks", &|c| c.sinks = list, rust().sinks(&four));
    let scales: Vec<f32> = (1..=2 * DIM).map(|n| n as f32 / 5.0).collect();
    let list = headwise_floats { data: scales.as_ptr(), count: scales.len() };
    check("value scales", &|c| c.value_scales = list, rust().value_scales(&scales));

    let table = wave(HEADS * 32, 0.7);
    let kinds = [
        (headwise_relative_bias_kind::ByDistance, RelativeBias::by_distance(&table, HEADS, -9)),
        (headwise_relative_bias_kind::T5, RelativeBias::t5(&table, HEADS, 64, false)),
        (headwise_relative_bias_kind::T5Bidirectional, RelativeBias::t5(&table, HEADS, 64, true)),
    ];
    for (kind, own) in kinds {
        let options = headwise_relative_bias_options {
            size: size_of::<headwise_relative_bias_options>(),
            kind: kind as u32,
            reserved: 0,
            table: headwise_floats { data: table.as_ptr(), count: table.len() },
            heads: HEADS,
            low: -9,
            max_distance: 64,
        };
        let mut bias = null_mut();
        // SAFETY: all of it is there.
        done(|error| unsafe { headwise_relative_bias_create(&options, &mut bias, error) });
        let Ok(own) = own else { unreachable!() };
        check("relative bias", &|c| c.relative_bias = bias, rust().relative_bias(&own));
        // SAFETY: a handle, which nobody uses.
        unsafe { headwise_relative_bias_free(&mut bias) };
        assert!(bias.is_null());
    }
}

#[test]
fn ragged_batches() {
    let [q, k, v] = inputs();
    let shape = |heads| [1, heads, SEQ, DIM];
    let (cuts, mut out) = ([0, 13, SEQ], vec![0.0; HEADS * SEQ * DIM]);
    let mut c = options();
    (c.ragged_query, c.ragged_key) = (sizes(&cuts), sizes(&cuts));
    let views = [floats(&q, shape(HEADS)), floats(&k, shape(2)), floats(&v, shape(2))];
    attend([&views[0], &views[1], &views[2]], &c, &outputs(&floats_mut(&mut out, shape(HEADS))));
    let view = |data, heads| View::bhsd(data, shape(heads));
    let own = || {
        let options = AttentionOptions::new().ragged(&cuts, &cuts);
        headwise::attention(view(&q, HEADS)?, view(&k, 2)?, view(&v, 2)?, &options)
    };
    assert!(own().is_ok_and(|own| own.out.data() == out));
}

#[test]
fn every_output() {
    let [q, k, v] = inputs();
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 2 * HEADS * SEQ]);
    let (mut weights, mut scores) = (vec![0.0; 2 * 2 * 3 * SEQ], vec![0.0; 2 * HEADS * SEQ]);
    let mut sums = vec![0.0; 2 * 2 * SEQ];
    let (mut keys, mut best) = (vec![0_u32; 2 * HEADS * SEQ * 5], vec![0.0; 2 * HEADS * SEQ * 5]);
    let (heads, top) = ([1, 3], [2, HEADS, SEQ, 5]);
    {
        let into = floats_mut(&mut out, SHAPE);
        let lse = floats_mut(&mut lse, [2, HEADS, SEQ, 1]);
        let weights = floats_mut(&mut weights, [2, 2, 3, SEQ]);
        let scores = floats_mut(&mut scores, [2, HEADS, 1, SEQ]);
        let sums = floats_mut(&mut sums, [2, 2, 1, SEQ]);
        let keys = tensor(keys.as_mut_ptr(), top, headwise_dtype::U32);
        let best = floats_mut(&mut best, top);
        let pick = |kind: headwise_pick_kind| headwise_pick {
            kind: kind as u32,
            ..outputs(&into).weights_heads
        };
        let range = |begin, end| headwise_pick { begin, end, ..pick(headwise_pick_kind::Range) };
        let into = headwise_outputs {
            lse: &lse,
            weights: &weights,
            weights_heads: headwise_pick { list: sizes(&heads), ..pick(headwise_pick_kind::List) },
            weights_queries: range(10, 13),
            scores: &scores,
            scores_queries: range(69, 70),
            scores_stage: headwise_stage::Scaled as u32,
            column_sums: &sums,
            top_k_keys: &keys,
            top_k_weights: &best,
            ..outputs(&into)
        };
        let (q, k, v) = (floats(&q, SHAPE), floats(&k, KV), floats(&v, KV));
        attend([&q, &k, &v], &headwise_options { softcap: 2.0, ..options() }, &into);
    }
    let got = (out, lse, weights, scores, sums, keys, best);
    let mut own = got.clone();
    own.0.fill(0.0);
    let mut run = || {
        let outputs = Outputs::new(ViewMut::bhsd(&mut own.0, SHAPE)?)
            .with_lse(ViewMut::bhsd(&mut own.1, [2, HEADS, SEQ, 1])?)
            .with_weights_of(&heads[..], 10..13, ViewMut::bhsd(&mut own.2, [2, 2, 3, SEQ])?)
            .with_scores_of(
                Stage::Scaled,
                ..,
                69..70,
                ViewMut::bhsd(&mut own.3, [2, HEADS, 1, SEQ])?,
            )
            .with_column_sums(ViewMut::bhsd(&mut own.4, [2, 2, 1, SEQ])?)
            .with_top_k(ViewMut::bhsd(&mut own.5, top)?, ViewMut::bhsd(&mut own.6, top)?);
        let [q, k, v] = [View::bhsd(&q, SHAPE)?, View::bhsd(&k, KV)?, View::bhsd(&v, KV)?];
        let options = AttentionOptions::new().softcap(2.0);
        attention_into(q, k, v, &options, outputs, &mut Workspace::new())
    };
    assert!(run().is_ok());
    assert!(got == own);
}

/// Every tensor in a type of its own, as from Rust.
#[test]
fn half_precision() {
    let [q, k, v] = inputs();
    let halves: Vec<f16> = q.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = k.iter().map(|&x| bf16::from_f32(x)).collect();
    let (mut out, mut own) = (vec![f16::ZERO; q.len()], vec![f16::ZERO; q.len()]);
    let q = tensor(halves.as_ptr(), SHAPE, headwise_dtype::F16);
    let k = tensor(brains.as_ptr(), KV, headwise_dtype::Bf16);
    let into = tensor(out.as_mut_ptr(), SHAPE, headwise_dtype::F16);
    attend([&q, &k, &floats(&v, KV)], &options(), &outputs(&into));
    let mut run = || {
        let outputs = Outputs::new(ViewMut::bhsd(&mut own, SHAPE)?);
        let (q, k, v) =
            (View::bhsd(&halves, SHAPE)?, View::bhsd(&brains, KV)?, View::bhsd(&v, KV)?);
        attention_into(q, k, v, &AttentionOptions::new(), outputs, &mut Workspace::new())
    };
    let done = run().is_ok();
    assert!(done && own == out && out[0] != f16::ZERO);
}

#[test]
fn doubles() {
    let [q, k, v] = inputs().map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let mut out = vec![0.0_f64; q.len()];
    let of = |data: &[f64], shape| tensor(data.as_ptr(), shape, headwise_dtype::F64);
    let into = tensor(out.as_mut_ptr(), SHAPE, headwise_dtype::F64);
    attend([&of(&q, SHAPE), &of(&k, KV), &of(&v, KV)], &options(), &outputs(&into));
    for (x, y) in out.iter().zip(by_rust(&AttentionOptions::new())) {
        assert!((x - f64::from(y)).abs() < 1e-5);
    }
}

/// A second call in the same workspace, on the caller's thread.
#[test]
fn a_call_allocates_nothing() {
    let [q, k, v] = inputs();
    let (mut out, seen) = (vec![0.0; q.len()], vec![true; SEQ]);
    let mask = tensor(seen.as_ptr(), [1, 1, 1, SEQ], headwise_dtype::Bool);
    let lengths = [SEQ, 60];
    let options =
        headwise_options { max_threads: 1, mask: &mask, key_lengths: sizes(&lengths), ..options() };
    let (q, k, v) = (&floats(&q, SHAPE), &floats(&k, KV), &floats(&v, KV));
    let into = floats_mut(&mut out, SHAPE);
    let into = outputs(&into);
    let mut workspace = null_mut();
    let none = headwise_sequences { data: null(), count: 0 };
    let call = headwise_attention_call {
        size: size_of::<headwise_attention_call>(),
        query: q,
        key: k,
        value: v,
        cache: null(),
        sequences: none,
        options: &options,
        outputs: &into,
        isa: null_mut(),
    };
    // SAFETY: all of it is there; nobody uses the workspace when it is freed.
    unsafe {
        done(|error| headwise_workspace_create(null(), &mut workspace, error));
        done(|error| headwise_attention(&call, workspace, error));
        let count = allocations(|| done(|error| headwise_attention(&call, workspace, error)));
        assert_eq!(count, 0);
        headwise_workspace_free(&mut workspace);
    }
}

/// Two halves of the keys, merged.
#[test]
fn states() {
    let [q, k, v] = inputs();
    let mut parts = [(); 2].map(|()| (vec![0.0; q.len()], vec![0.0; 2 * HEADS * SEQ]));
    let rows = [2, HEADS, SEQ, 1];
    for (n, (out, lse)) in parts.iter_mut().enumerate() {
        let (q, mut k, mut v) = (floats(&q, SHAPE), floats(&k, KV), floats(&v, KV));
        for part in [&mut k, &mut v] {
            part.shape[2] = SEQ / 2;
            part.data = part.data.cast::<f32>().wrapping_add(n * SEQ / 2 * DIM).cast();
        }
        let (out, lse) = (floats_mut(out, SHAPE), floats_mut(lse, rows));
        attend([&q, &k, &v], &options(), &headwise_outputs { lse: &lse, ..outputs(&out) });
    }
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 2 * HEADS * SEQ]);
    let of = |(out, lse): &(Vec<f32>, Vec<f32>)| [floats(out, SHAPE), floats(lse, rows)];
    let tensors =
        [of(&parts[0]), of(&parts[1]), [floats_mut(&mut out, SHAPE), floats_mut(&mut lse, rows)]];
    let state = |n: usize| headwise_state { out: &tensors[n][0], lse: &tensors[n][1] };
    let states = [state(0), state(1)];
    let call = headwise_merge_call {
        size: size_of::<headwise_merge_call>(),
        states: states.as_ptr(),
        count: 2,
        into: state(2),
        options: null(),
        isa: null_mut(),
    };
    // SAFETY: all of it is there.
    done(|error| unsafe { headwise_merge_states(&call, error) });
    for (x, y) in out.iter().zip(by_rust(&AttentionOptions::new())) {
        assert!((x - y).abs() < 1e-5);
    }
}

/// The last query of two sequences, causal, on each kind of cache: what dense keys give, rounded to what
/// the cache stores.
#[test]
fn caches() {
    in_caches(0, |_| ());
    in_caches(headwise_dtype::F16 as u32, |row| {
        row.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
    });
    in_caches(headwise_dtype::Bf16 as u32, |row| {
        row.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    });
    in_caches(headwise_dtype::I8 as u32, |row| {
        let mut stored = [Int8::default(); DIM + Int8::SCALE];
        let there = Int8::quantize(row, &mut stored);
        assert_eq!(there.and_then(|()| Int8::dequantize(&stored, row)), Ok(()));
    });
}

fn in_caches(dtype: u32, round: impl Fn(&mut [f32])) {
    let [q, k, v] = inputs();
    let [mut rounded_k, mut rounded_v] = [k.clone(), v.clone()];
    for rows in [&mut rounded_k, &mut rounded_v] {
        rows.chunks_mut(DIM).for_each(&round);
    }
    let last = |data: &[f32], heads: usize| -> headwise_tensor {
        let all = floats(data, [2, heads, SEQ, DIM]);
        let data = all.data.cast::<f32>().wrapping_add((SEQ - 1) * DIM).cast();
        headwise_tensor { data, shape: [2, heads, 1, DIM], ..all }
    };
    let mut whole = vec![0.0; q.len()];
    let causal = headwise_options { causal: headwise_causal::BottomRight as u32, ..options() };
    let dense = [&floats(&q, SHAPE), &floats(&rounded_k, KV), &floats(&rounded_v, KV)];
    attend(dense, &causal, &outputs(&floats_mut(&mut whole, SHAPE)));
    for kind in
        [headwise_cache_kind::Contiguous, headwise_cache_kind::Ring, headwise_cache_kind::Paged]
    {
        let mut out = vec![0.0; 2 * HEADS * DIM];
        cached((kind, dtype), [&last(&q, HEADS), &floats(&k, KV), &floats(&v, KV)], &mut out);
        for (row, got) in out.chunks(DIM).enumerate() {
            assert!(
                whole[(row * SEQ + SEQ - 1) * DIM..][..DIM] == *got,
                "{kind:?} {dtype}, row {row}"
            );
        }
    }
}

/// Appends, goes back to two thirds and appends the rest again, in a fork where there are forks;
/// attends.
fn cached(
    (kind, dtype): (headwise_cache_kind, u32),
    [q, k, v]: [&headwise_tensor; 3],
    out: &mut [f32],
) {
    let room = headwise_cache_options {
        size: size_of::<headwise_cache_options>(),
        kind: kind as u32,
        dtype,
        kv_heads: 2,
        head_dim: DIM,
        value_dim: DIM,
        sequences: 4,
        capacity: SEQ,
        pages: 40,
        page_size: 16,
        pages_per_sequence: 0,
    };
    let is_paged = kind == headwise_cache_kind::Paged;
    let room = headwise_cache_options { sequences: if is_paged { 4 } else { 2 }, ..room };
    let mut cache = null_mut();
    let mut names = [0, 1].map(|place| headwise_sequence { place, generation: 0 });
    // SAFETY: all of it is there, here and in what follows.
    unsafe {
        done(|error| headwise_cache_create(&room, &mut cache, error));
        if is_paged {
            for name in &mut names {
                done(|error| headwise_cache_create_sequence(cache, name, error));
            }
        }
        append(cache, &names, [k, v], 0);
        for name in &mut names {
            done(|error| headwise_cache_truncate(cache, *name, SEQ * 2 / 3, error));
            if is_paged {
                let parent = *name;
                done(|error| headwise_cache_fork_sequence(cache, parent, name, error));
                done(|error| headwise_cache_release_sequence(cache, parent, error));
            }
        }
        append(cache, &names, [k, v], SEQ * 2 / 3);
        let (mut start, mut length) = (9, 9);
        done(|error| headwise_cache_extent(cache, names[1], &mut start, &mut length, error));
        assert_eq!((start, length), (0, SEQ));
    }
    let none = headwise_sequences { data: null(), count: 0 };
    let all = headwise_sequences { data: names.as_ptr(), count: 2 };
    let into = floats_mut(out, [2, HEADS, 1, DIM]);
    let call = headwise_attention_call {
        size: size_of::<headwise_attention_call>(),
        query: q,
        key: null(),
        value: null(),
        cache,
        sequences: if is_paged { all } else { none },
        options: &headwise_options { causal: headwise_causal::BottomRight as u32, ..options() },
        outputs: &outputs(&into),
        isa: null_mut(),
    };
    // SAFETY: as above; nobody uses the cache behind the call.
    unsafe {
        done(|error| headwise_attention(&call, null_mut(), error));
        headwise_cache_free(&mut cache);
    }
}

/// The tokens from `first` on.
///
/// # Safety
/// A cache, whose the names are.
unsafe fn append(
    cache: *mut crate::cache::headwise_cache,
    names: &[headwise_sequence],
    [k, v]: [&headwise_tensor; 2],
    first: usize,
) {
    let rest = |all: &headwise_tensor| {
        let data = all.data.cast::<f32>().wrapping_add(first * DIM).cast::<c_void>();
        headwise_tensor { data, shape: [2, 2, SEQ - first, DIM], ..*all }
    };
    let (key, value) = (&rest(k), &rest(v));
    let call = headwise_append_call {
        sequences: headwise_sequences { data: names.as_ptr(), count: names.len() },
        ..append_call([key, value])
    };
    // SAFETY: the caller's promise; the tensors are there.
    done(|error| unsafe { headwise_cache_append(cache, &call, error) });
}
