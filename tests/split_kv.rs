//! Threads that share a head's keys: the bits of one thread, whatever is asked of few queries of many
//! keys.

mod common;

use common::case::{Case, Data, DenseMask, Dims, Inputs, Masks};
use common::executors::{Eager, Never, Scoped};
use common::strided::Layout;
use common::structure::{Kinds, Packing};
use common::terms::Terms;
use common::{Rng, poison, result_bits};
use headwise::{AttentionOptions, Causal, Executor, Isa, Serial};

const EXECUTORS: [&dyn Executor; 4] = [&Eager(2), &Eager(3), &Eager(7), &Never];

fn bits(inputs: &Inputs<f32>, options: AttentionOptions<'_>) -> [Vec<u64>; 3] {
    result_bits(&inputs.run_with(&options.return_lse()))
}

/// Compares every executor with one thread, on every Isa.
fn check(inputs: &Inputs<f32>, options: &AttentionOptions<'_>, what: &str) {
    for isa in Isa::available() {
        let options = options.isa(isa);
        let expected = bits(inputs, options.executor(&Serial));
        for executor in EXECUTORS {
            let got = bits(inputs, options.executor(executor));
            assert!(expected == got, "{} threads on {isa}, {what}", executor.threads());
        }
    }
}

/// Lengths around the splits of 2,048 keys, and rows around a tile of 48.
fn all_dims() -> Vec<Dims> {
    let lengths = [2047, 2048, 2049, 4096, 4100, 8300];
    let mut all: Vec<_> = lengths.map(|n| Dims { group: 4, ..Dims::single(1, n, 8, 9) }).into();
    all.push(Dims { kv_heads: 3, group: 2, ..Dims::single(1, 6200, 16, 16) });
    all.push(Dims { batch: 2, ..Dims::single(3, 9000, 8, 9) });
    all.extend([47, 48, 49, 120].map(|rows| Dims::single(rows, 6200, 8, 9)));
    all
}

#[test]
fn the_bits_of_one_thread() {
    let causal = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
    let dense = |axes| Some(DenseMask { axes, layout: Layout::Bhsd });
    let masks = [
        Masks::default(),
        causal,
        // All keys seen lie in one split, or in the last two.
        Masks { left: Some(100), ..causal },
        Masks { left: Some(3000), right: Some(5), ..Masks::default() },
        Masks { key_lengths: true, boolean: dense([true, false, true]), ..causal },
        Masks { bias: dense([false, true, true]), ..Masks::default() },
        Masks {
            kinds: Kinds { documents: Some(Packing::Shuffled), ..Kinds::default() },
            ..Masks::default()
        },
        Masks { kinds: Kinds { blocks: Some((16, 512)), ..Kinds::default() }, ..causal },
    ];
    for (n, dims) in all_dims().into_iter().enumerate() {
        // Half of the masks with each of the sizes.
        for (m, masks) in masks.iter().enumerate().filter(|(m, _)| (n + m).is_multiple_of(2)) {
            let data = [Data::Normal, Data::Wide, Data::Growing, Data::Outlier][(n + m) % 4];
            let case = Case { data, masks: *masks, ..Case::plain(dims, 31 + n as u64) };
            let mut inputs = case.inputs();
            let heads = dims.q_heads();
            inputs.terms = Terms::random([0, 0, 2, 8, 1][(n + m) % 5], heads, &mut Rng(5));
            check(&inputs, &inputs.options(), &format!("{case:?}"));
        }
    }
}

/// Poison in hidden keys, values whose products overflow, and NaN: the careful passes.
#[test]
fn what_is_not_finite() {
    let boolean = Some(DenseMask { axes: [false, false, false], layout: Layout::Bhsd });
    let dims = Dims { group: 3, ..Dims::single(2, 5000, 8, 9) };
    let clean = Case { masks: Masks { boolean, ..Masks::default() }, ..Case::plain(dims, 41) };
    let clean = clean.inputs();
    let mut rng = Rng(42);
    let mut dirty = clean.clone();
    for j in (0..5000).filter(|&j| !clean.sees([0, 0, 0, j])) {
        (0..8).for_each(|c| dirty.key.set([0, 0, j, c], poison(&mut rng)));
        (0..9).for_each(|c| dirty.value.set([0, 0, j, c], poison(&mut rng)));
    }
    check(&dirty, &dirty.options(), "poison");
    let poisoned = bits(&dirty, dirty.options().executor(&Eager(3)));
    assert!(poisoned == bits(&clean, clean.options().executor(&Serial)), "poison was read");

    let mut huge = Case::plain(dims, 43).inputs();
    huge.value = huge.value.map(|x| x * 1e38);
    check(&huge, &huge.options(), "huge values");
    let mut special = huge.clone();
    special.value.set([0, 0, 2500, 4], f32::NAN);
    special.query.set([0, 1, 1, 0], f32::INFINITY);
    check(&special, &special.options(), "NaN in a value, infinity in a query");
}

/// A batch that one long sequence outweighs, in places and lengths of all kinds.
#[test]
fn a_heavy_sequence_among_light_ones() {
    for (n, place) in [0, 7, 19].into_iter().enumerate() {
        let keys = |s: usize| if s == place { 7000 } else { 20 + 7 * s };
        let key: Vec<usize> = (0..=20).map(|s| (0..s).map(keys).sum()).collect();
        let query: Vec<usize> = (0..=20).map(|s| if s > place { s + 4 } else { s }).collect();
        let dims = Dims { kv_heads: 2, group: 2, ..Dims::single(24, key[20], 8, 9) };
        let inputs = Case::plain(dims, 51 + n as u64).inputs();
        let options = inputs.options().causal().ragged(&query, &key);
        check(&inputs, &options, &format!("long sequence {place}"));
    }
}

/// The sums in memory are as many as the threads need, not as many as there are splits.
#[test]
fn memory_does_not_grow_with_the_keys() {
    let bytes = |keys| {
        let key = common::strided::Strided::filled([1, 1, keys, 8], Layout::SharedRow, 0.0_f32);
        let query = common::strided::Strided::filled([1, 1, 5, 8], Layout::SharedRow, 0.0_f32);
        let options = AttentionOptions::new().executor(&Scoped(4));
        options.workspace_bytes(query.view(), key.view(), key.view())
    };
    let [some, many] = [1 << 20, 1 << 30].map(|keys| bytes(keys).unwrap_or(0));
    assert!(some > 0 && some == many, "{some} and {many} bytes");
}
