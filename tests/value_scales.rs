//! Values that are stored divided by factors of their channels: the output is that of the stored values,
//! multiplied by them.

mod common;

use common::narrow::named;
use common::strategies::masked_cases;
use common::{Rng, bits, for_all};
use headwise::kv_cache::{
    ContiguousCache, KvShape, NewTokens, PagedCache, PagedCapacity, RingCache, TableBuffer,
};
use headwise::{
    Algorithm, AttentionOptions, CascadeWorkspace, Int8, Isa, KvStorage, KvView, Outputs,
    PlanBuffer, Result, StateMut, Storage, View, ViewMut, Workspace, attention, attention_cached,
    attention_cascade_into, bf16,
};

/// Factors of channels, all over the numbers.
fn factors(rng: &mut Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| (rng.normal() * 3.0).exp()).collect()
}

#[test]
fn outputs_are_multiplied_once() {
    for_all(100, masked_cases(), |case| {
        let inputs = case.inputs();
        let d = case.dims;
        let scales = factors(&mut Rng(case.seed), d.kv_heads * d.value_dim);
        let channel = |n: usize| {
            let head = n / d.value_dim / d.seq_q % d.q_heads() / d.group;
            scales[head * d.value_dim + n % d.value_dim]
        };
        let half = inputs.query.map(bf16::from_f32);
        for isa in Isa::available() {
            for algorithm in [Algorithm::Auto, Algorithm::Unfused] {
                let options = inputs.options().isa(isa).algorithm(algorithm);
                let plain = inputs.run_with(&options);
                let scaled = inputs.run_with(&options.value_scales(&scales));
                let expected: Vec<f32> =
                    plain.out.data().iter().enumerate().map(|(n, x)| x * channel(n)).collect();
                assert_eq!(bits(scaled.out.data()), bits(&expected), "{algorithm:?} on {isa}");
            }
            // Rounded to what is stored once, and last.
            let [wide, key, value] =
                [half.map(bf16::widen), inputs.key.clone(), inputs.value.clone()];
            let options = inputs.options().isa(isa).value_scales(&scales);
            let narrow = attention(half.view(), key.view(), value.view(), &options);
            let wide = attention(wide.view(), key.view(), value.view(), &options);
            let rounded =
                wide.map(|a| a.out.data().iter().map(|&x| bf16::round(x)).collect::<Vec<_>>());
            assert!(narrow.is_ok_and(|a| Ok(a.out.data()) == rounded.as_deref()), "{isa}");
        }
    });
}

/// Factors of [`SHAPE`], which change nothing but what integers can tell apart.
fn powers_of_two() -> Vec<f32> {
    let count = (SHAPE.kv_heads * SHAPE.value_dim) as i32;
    (0..count).map(|n| f32::powi(2.0, n % 7 - 3)).collect()
}

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 16, value_dim: 20 };
const TOKENS: usize = 70;

/// A query of four heads, keys and values of [`TOKENS`] tokens, of which one channel of the values is `large`.
fn tokens(large: f32) -> [Vec<f32>; 3] {
    let mut rng = Rng(3);
    let mut value = rng.normals(TOKENS * SHAPE.kv_heads * SHAPE.value_dim);
    value.iter_mut().skip(5).step_by(SHAPE.value_dim).for_each(|x| *x *= large);
    [rng.normals(4 * SHAPE.head_dim), rng.normals(TOKENS * SHAPE.kv_heads * SHAPE.head_dim), value]
}

/// What a cache of each kind gives, and a plan.
fn from_caches<S: KvStorage<Compute = f32>>(
    [query, key, value]: &[Vec<f32>; 3],
    scales: Option<&[f32]>,
) -> Result<Vec<Vec<f32>>> {
    let query = View::bhsd(query, [1, 4, 1, SHAPE.head_dim])?;
    let shape = |dim| [1, SHAPE.kv_heads, TOKENS, dim];
    let (key, value) =
        (View::bshd(key, shape(SHAPE.head_dim))?, View::bshd(value, shape(SHAPE.value_dim))?);
    let (mut new, mut options) = (NewTokens::new(key, value), AttentionOptions::new());
    if let Some(scales) = scales {
        (new, options) = (new.value_scales(scales), options.value_scales(scales));
    }
    let capacity = PagedCapacity { pages: 5, page_size: 16, sequences: 1, pages_per_sequence: 5 };
    let mut contiguous = ContiguousCache::<S>::with_storage(SHAPE, 1, TOKENS)?;
    let mut ring = RingCache::<S>::with_storage(SHAPE, 1, TOKENS)?;
    let mut paged = PagedCache::<S>::with_storage(SHAPE, capacity)?;
    contiguous.append(&new)?;
    ring.append(&new)?;
    let sequence = paged.create()?;
    paged.append(&[sequence], &new)?;
    let mut tables = TableBuffer::new();
    let views: [KvView<'_, S>; 3] =
        [contiguous.view(), ring.view(), paged.view(&[sequence], &mut tables)?];
    let mut found = Vec::new();
    for view in &views {
        found.push(attention_cached(query, view, &options)?.out.data().to_vec());
        let mut buffer = PlanBuffer::new();
        let plan = options.plan_cached(query, view, &mut buffer)?;
        let mut out = vec![0.0; 4 * SHAPE.value_dim];
        let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 4, 1, SHAPE.value_dim])?);
        let pools = [S::input(view.key()), S::input(view.value())];
        plan.run(query, pools, outputs, &mut Workspace::new())?;
        found.push(out);
    }
    Ok(found)
}

#[test]
fn caches_divide_what_outputs_are_multiplied_by() -> Result<()> {
    let scales = powers_of_two();
    let tokens = tokens(1.0);
    let plain = from_caches::<f32>(&tokens, None)?;
    let scaled = from_caches::<f32>(&tokens, Some(&scales))?;
    assert_eq!(plain.len(), 6);
    assert!(plain.iter().chain(&scaled).all(|out| bits(out) == bits(&plain[0])));
    Ok(())
}

/// Both parts of a cascade are multiplied, and so what they merge to is.
#[test]
fn a_shared_prefix_is_multiplied_as_the_rest_is() -> Result<()> {
    let scales = powers_of_two();
    let [query, key, value] = tokens(1.0);
    let cascade = |scales: Option<&[f32]>| -> Result<Vec<f32>> {
        let capacity =
            PagedCapacity { pages: 8, page_size: 16, sequences: 2, pages_per_sequence: 5 };
        let mut cache = PagedCache::new(SHAPE, capacity)?;
        let mut options = AttentionOptions::new().causal();
        if let Some(scales) = scales {
            options = options.value_scales(scales);
        }
        let new = |sequences: usize, count: usize| {
            let shape = |dim| [sequences, SHAPE.kv_heads, count, dim];
            let rows = |data, dim| View::bshd(data, shape(dim));
            let key = rows(&key[..sequences * count * 2 * SHAPE.head_dim], SHAPE.head_dim)?;
            let value = rows(&value[..sequences * count * 2 * SHAPE.value_dim], SHAPE.value_dim)?;
            let new = NewTokens::new(key, value);
            Ok(scales.map_or(new, |scales| new.value_scales(scales)))
        };
        let first = cache.create()?;
        cache.append(&[first], &new(1, 32)?)?;
        let second = cache.fork(first)?;
        cache.append(&[first, second], &new(2, 3)?)?;
        let mut tables = TableBuffer::new();
        let view = cache.view(&[first, second], &mut tables)?;
        assert_eq!(view.shared_prefix(), 32);
        let (mut out, mut lse) = (vec![0.0; 2 * 2 * SHAPE.value_dim], [0.0; 2 * 2]);
        let into = StateMut {
            out: ViewMut::bhsd(&mut out, [2, 2, 1, SHAPE.value_dim])?,
            lse: ViewMut::bhsd(&mut lse, [2, 2, 1, 1])?,
        };
        let query = View::bhsd(&query, [2, 2, 1, SHAPE.head_dim])?;
        attention_cascade_into(query, &view, &options, into, &mut CascadeWorkspace::new())?;
        Ok(out)
    };
    let (plain, scaled) = (cascade(None)?, cascade(Some(&scales))?);
    assert!(plain.iter().any(|&x| x != 0.0));
    assert_eq!(bits(&plain), bits(&scaled));
    Ok(())
}

/// The largest error of the channels but one, relative to their largest magnitude.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    let small = |n: &usize| n % SHAPE.value_dim != 5;
    let most = (0..expected.len()).filter(small).map(|n| expected[n].abs()).fold(0.0, f32::max);
    let far = |n: usize| (found[n] - expected[n]).abs();
    (0..expected.len()).filter(small).map(far).fold(0.0, f32::max) / most
}

/// One channel a thousand times as large as the others takes nine bits of what a row's scale could say of
/// these.
#[test]
fn a_large_channel_takes_nothing_from_the_others() -> Result<()> {
    let tokens = tokens(1000.0);
    let mut scales = [4.0; 40];
    scales.iter_mut().skip(5).step_by(SHAPE.value_dim).for_each(|x| *x = 4000.0);
    let exact = &from_caches::<f32>(&tokens, None)?[0];
    let by_row = from_caches::<Int8>(&tokens, None)?;
    let by_channel = from_caches::<Int8>(&tokens, Some(&scales))?;
    for (by_row, by_channel) in by_row.iter().zip(&by_channel) {
        let (by_row, by_channel) = (error(by_row, exact), error(by_channel, exact));
        assert!(by_channel < 0.03 && by_channel < 0.05 * by_row, "{by_row} {by_channel}");
    }
    Ok(())
}

#[test]
fn what_is_no_factor_is_refused() -> Result<()> {
    let x = [0.5_f32; 12];
    let x = View::bhsd(&x, [1, 2, 2, 3])?;
    let call = |scales: &[f32]| attention(x, x, x, &AttentionOptions::new().value_scales(scales));
    call(&[1.0; 6])?;
    named(call(&[1.0; 5]), &["value_scales", "[5]", "2 kv heads of 3"]);
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let text = format!("{bad:?}");
        named(call(&[1.0, bad, 1.0, 1.0, 1.0, 1.0]), &["value_scales", &text, "positive"]);
    }
    let shape = KvShape { kv_heads: 2, head_dim: 3, value_dim: 3 };
    let mut cache = ContiguousCache::new(shape, 1, 4)?;
    named(cache.append(&NewTokens::new(x, x).value_scales(&[2.0])), &["value_scales", "[1]"]);
    assert_eq!(cache.lengths(), [0]);
    Ok(())
}
