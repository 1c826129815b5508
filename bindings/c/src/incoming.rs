//! What is done to tokens on their way into a cache gives the bits that the library gives by its own.

use std::ptr::null_mut;

use headwise::kv_cache::{
    ContiguousCache, Frequencies, KvShape, Llama3, Rope, RopeLayout, RopeScaling, Yarn,
};
use headwise::{AttentionOptions, Int8, KvStorage, NewTokens, View, attention_cached};

use crate::attention::{headwise_attention, headwise_attention_call};
use crate::cache::{
    headwise_append_call, headwise_cache_append, headwise_cache_create, headwise_cache_free,
    headwise_cache_kind, headwise_cache_options,
};
use crate::dtype::headwise_dtype;
use crate::list::headwise_floats;
use crate::options::headwise_options;
use crate::rope::{
    headwise_rope_create, headwise_rope_free, headwise_rope_layout, headwise_rope_options,
    headwise_rope_scaling,
};
use crate::same::{append_call, done, floats, floats_mut, options, outputs, wave};

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 16, value_dim: 20 };
const SEQ: usize = 37;
const QUERY: [usize; 4] = [1, 4, 3, SHAPE.head_dim];
const KEY: [usize; 4] = [1, SHAPE.kv_heads, SEQ, SHAPE.head_dim];
const VALUE: [usize; 4] = [1, SHAPE.kv_heads, SEQ, SHAPE.value_dim];
const OUT: [usize; 4] = [1, 4, 3, SHAPE.value_dim];

/// Queries, keys and values.
fn inputs() -> [Vec<f32>; 3] {
    let of = |shape: [usize; 4], step| wave(shape.iter().product(), step);
    [of(QUERY, 0.71), of(KEY, 0.37), of(VALUE, 1.3)]
}

/// Attention by way of C to a cache, whose tokens `set` says more of.
fn by_c(
    dtype: headwise_dtype,
    set: impl Fn(&mut headwise_append_call),
    options: &headwise_options,
) -> Vec<f32> {
    let [q, k, v] = inputs();
    let (q, k, v) = (floats(&q, QUERY), floats(&k, KEY), floats(&v, VALUE));
    // SAFETY: of numbers, for all of which zeros are a value.
    let zero: headwise_cache_options = unsafe { std::mem::zeroed() };
    let room = headwise_cache_options {
        size: size_of::<headwise_cache_options>(),
        kind: headwise_cache_kind::Contiguous as u32,
        dtype: dtype as u32,
        kv_heads: SHAPE.kv_heads,
        head_dim: SHAPE.head_dim,
        value_dim: SHAPE.value_dim,
        sequences: 1,
        capacity: SEQ,
        ..zero
    };
    let mut tokens = append_call([&k, &v]);
    set(&mut tokens);
    let mut out = vec![0.0; OUT.iter().product()];
    let into = floats_mut(&mut out, OUT);
    let mut cache = null_mut();
    // SAFETY: all of it is there, and nobody uses the cache when it is freed; of the call zeros are
    // a value, too.
    unsafe {
        done(|error| headwise_cache_create(&room, &mut cache, error));
        done(|error| headwise_cache_append(cache, &tokens, error));
        let zero: headwise_attention_call = std::mem::zeroed();
        let size = size_of::<headwise_attention_call>();
        let outputs = outputs(&into);
        let call =
            headwise_attention_call { size, query: &q, cache, options, outputs: &outputs, ..zero };
        done(|error| headwise_attention(&call, null_mut(), error));
        headwise_cache_free(&mut cache);
    }
    out
}

/// The library's own.
fn by_rust<'a, S: KvStorage<Compute = f32>>(
    [q, k, v]: &'a [Vec<f32>; 3],
    set: impl FnOnce(NewTokens<'a>) -> NewTokens<'a>,
    options: &AttentionOptions<'_>,
) -> headwise::Result<Vec<f32>> {
    let mut cache = ContiguousCache::<S>::with_storage(SHAPE, 1, SEQ)?;
    cache.append(&set(NewTokens::new(View::bhsd(k, KEY)?, View::bhsd(v, VALUE)?)))?;
    let query = View::bhsd(q, QUERY)?;
    Ok(attention_cached(query, &cache.view(), options)?.out.data().to_vec())
}

#[test]
fn values_divided_by_factors() -> headwise::Result<()> {
    let inputs = inputs();
    let scales: Vec<f32> = (1..=40).map(|n| n as f32 / 5.0).collect();
    let list = headwise_floats { data: scales.as_ptr(), count: scales.len() };
    let c = headwise_options { value_scales: list, ..options() };
    let rust = AttentionOptions::new().value_scales(&scales);
    let whole = by_c(headwise_dtype::F32, |tokens| tokens.value_scales = list, &c);
    assert!(whole == by_rust::<f32>(&inputs, |tokens| tokens.value_scales(&scales), &rust)?);
    let rounded = by_c(headwise_dtype::I8, |tokens| tokens.value_scales = list, &c);
    assert!(rounded == by_rust::<Int8>(&inputs, |tokens| tokens.value_scales(&scales), &rust)?);
    assert!(rounded != by_c(headwise_dtype::I8, |_| (), &options()));
    Ok(())
}

fn rope_options(set: impl Fn(&mut headwise_rope_options)) -> headwise_rope_options {
    // SAFETY: of numbers, for all of which zeros are a value.
    let zero: headwise_rope_options = unsafe { std::mem::zeroed() };
    let size = size_of::<headwise_rope_options>();
    let mut options = headwise_rope_options {
        size,
        rotary_dim: 12,
        positions: 100,
        factor: 4.0,
        original_positions: 32,
        ..zero
    };
    set(&mut options);
    options
}

/// Every kind of embedding: options of C's, and the library's layout, base and scaling.
fn ropes() -> Vec<(headwise_rope_options, RopeLayout, f64, RopeScaling)> {
    let of = |scaling: headwise_rope_scaling| rope_options(|c| c.scaling = scaling as u32);
    let (half, factor) = (RopeLayout::HalfSplit, 4.0);
    let (original_positions, seq_len) = (32, 70);
    let yarn = Yarn::new(factor, original_positions);
    let sharp = Yarn { beta_fast: 8.0, beta_slow: 2.0, attention_factor: Some(1.5), ..yarn };
    let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
    let llama3 = Llama3 { factor, low_freq_factor, high_freq_factor, original_positions };
    let dynamic = RopeScaling::DynamicNtk { factor, original_positions, seq_len };
    let interleaved = rope_options(|c| {
        (c.layout, c.base) = (headwise_rope_layout::Interleaved as u32, 500.0);
    });
    let of_sharp = headwise_rope_options {
        beta_fast: 8.0,
        beta_slow: 2.0,
        attention_factor: 1.5,
        ..of(headwise_rope_scaling::Yarn)
    };
    let of_llama3 = headwise_rope_options {
        low_freq_factor,
        high_freq_factor,
        ..of(headwise_rope_scaling::Llama3)
    };
    let of_dynamic = headwise_rope_options { seq_len, ..of(headwise_rope_scaling::DynamicNtk) };
    let of_fractional = headwise_rope_options { fractional: 1, ..of(headwise_rope_scaling::Yarn) };
    let fractional = Yarn { truncate: false, ..yarn };
    vec![
        (of(headwise_rope_scaling::None), half, 1e4, RopeScaling::Unscaled),
        (interleaved, RopeLayout::Interleaved, 500.0, RopeScaling::Unscaled),
        (of(headwise_rope_scaling::Linear), half, 1e4, RopeScaling::Linear { factor }),
        (of(headwise_rope_scaling::Ntk), half, 1e4, RopeScaling::NtkAware { factor }),
        (of_dynamic, half, 1e4, dynamic),
        (of(headwise_rope_scaling::Yarn), half, 1e4, RopeScaling::Yarn(yarn)),
        (of_sharp, half, 1e4, RopeScaling::Yarn(sharp)),
        (of_fractional, half, 1e4, RopeScaling::Yarn(fractional)),
        (of_llama3, half, 1e4, RopeScaling::Llama3(llama3)),
    ]
}

#[test]
fn keys_rotated_by_every_embedding() -> headwise::Result<()> {
    let inputs = inputs();
    let plain = by_c(headwise_dtype::F32, |_| (), &options());
    let mut seen = vec![plain];
    for (of, layout, base, scaling) in ropes() {
        let mut rope = null_mut();
        // SAFETY: all of it is there.
        done(|error| unsafe { headwise_rope_create(&of, &mut rope, error) });
        let got = by_c(headwise_dtype::F32, |tokens| tokens.rope = rope, &options());
        // SAFETY: a handle, which nobody uses.
        unsafe { headwise_rope_free(&mut rope) };
        let own = Rope::new(layout, &Frequencies::new(12, base, scaling)?, 100)?;
        let expected =
            by_rust::<f32>(&inputs, |tokens| tokens.rope(&own), &AttentionOptions::new())?;
        assert!(got == expected, "{layout:?} {scaling:?}");
        assert!(!seen.contains(&got), "{layout:?} {scaling:?} is as another");
        seen.push(got);
    }
    Ok(())
}
