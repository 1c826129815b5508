//! The same bits, whatever does not belong to a row: threads, executors, batch entries, other
//! heads, the way queries are split into calls, unseen keys behind, memory layout. Always on each
//! instruction set, with log-sum-exp and weights, with data that make references trip.

mod common;

use std::ops::Range;

use common::case::{Case, Data, DenseMask, Dims, Inputs, Masks};
use common::executors::{Boastful, Never, Scoped, TooOften};
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::structure::{Kinds, Packing};
use common::{Rng, for_all, poison, result_bits, row_bits};
use headwise::{
    AttentionOptions, Causal, Executor, Isa, Outputs, Rayon, Scale, Serial, Workspace,
    attention_into,
};
use proptest::prelude::*;
use proptest::sample::select;

/// Problems large enough to be worth threads.
fn large_cases() -> Vec<Case> {
    let grouped = Dims { batch: 2, kv_heads: 2, group: 3, ..Dims::single(150, 150, 32, 40) };
    let long = Dims { group: 2, ..Dims::single(60, 4200, 8, 9) };
    let dense = |axes| Some(DenseMask { axes, layout: Layout::Bhsd });
    let causal = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
    let mixed = Masks {
        left: Some(100),
        right: Some(20),
        key_lengths: true,
        boolean: dense([false, true, true]),
        bias: dense([true, false, true]),
        ..Masks::default()
    };
    let packed = Kinds {
        prefix: true,
        documents: Some(Packing::Shuffled),
        blocks: Some((16, 64)),
        ..Kinds::default()
    };
    let drafted = Kinds { starts: true, tree: Some((70, true)), ..Kinds::default() };
    let case = |dims, data, masks| Case { data, masks, ..Case::plain(dims, 21) };
    vec![
        case(grouped, Data::Normal, Masks::default()),
        case(grouped, Data::Wide, causal),
        case(grouped, Data::Growing, mixed),
        case(long, Data::Wide, causal),
        case(long, Data::Normal, Masks { causal: None, left: None, right: None, ..mixed }),
        case(grouped, Data::Wide, Masks { kinds: packed, ..causal }),
        case(long, Data::Normal, Masks { kinds: drafted, ..causal }),
    ]
}

fn run(inputs: &Inputs<f32>, options: &AttentionOptions<'_>) -> [Vec<u64>; 3] {
    result_bits(&inputs.run_with(&options.return_lse().return_weights()))
}

#[test]
fn any_number_of_threads_and_any_executor() {
    let pools = [1, 2, 3, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap_or_else(|error| panic!("{error}"))
    });
    let executors: [(&str, &dyn Executor); 7] = [
        ("one scoped", &Scoped(1)),
        ("two scoped", &Scoped(2)),
        ("three scoped", &Scoped(3)),
        ("five scoped", &Scoped(5)),
        ("never", &Never),
        ("too often", &TooOften),
        ("boastful", &Boastful),
    ];
    for case in large_cases() {
        assert!(case.dims.work() > 5_000_000, "too little work for threads: {case:?}");
        let inputs = case.inputs();
        for isa in Isa::available() {
            let options = inputs.options().isa(isa);
            let expected = run(&inputs, &options.executor(&Serial));
            let same = |name: &str, got: [Vec<u64>; 3]| {
                assert!(expected == got, "{name} on {isa}, {case:?}");
            };
            for (name, executor) in executors {
                same(name, run(&inputs, &options.executor(executor)));
            }
            for pool in &pools {
                let name = format!("rayon with {}", pool.current_num_threads());
                same(&name, pool.install(|| run(&inputs, &options.executor(&Rayon))));
            }
            same("the default", run(&inputs, &options));
            same("at most two", run(&inputs, &options.executor(&Scoped(5)).max_threads(2)));
            same("at most none", run(&inputs, &options.executor(&Scoped(5)).max_threads(0)));
        }
    }
}

/// The part of a mask that belongs to `range` of axis `axis`; an axis of extent 1 belongs to all.
fn part_of<T: Copy>(mask: &Strided<T>, axis: usize, range: Range<usize>) -> Strided<T> {
    if mask.shape[axis] == 1 { mask.clone() } else { mask.narrow(axis, range) }
}

impl Inputs<f32> {
    fn masks_of(&self, axis: usize, range: Range<usize>) -> Self {
        let mut part = self.clone();
        part.boolean = self.boolean.as_ref().map(|mask| part_of(mask, axis, range.clone()));
        part.bias = self.bias.as_ref().map(|bias| part_of(bias, axis, range.clone()));
        part
    }

    fn batch_entry(&self, b: usize) -> Self {
        let mut part = self.masks_of(0, b..b + 1);
        part.query = self.query.narrow(0, b..b + 1);
        part.key = self.key.narrow(0, b..b + 1);
        part.value = self.value.narrow(0, b..b + 1);
        part.lengths = self.lengths.as_ref().map(|lengths| vec![lengths[b]]);
        part.structure = self.structure.batch_entry(b, self.dims());
        part
    }

    fn head(&self, h: usize) -> Self {
        let kv_head = h / self.dims().group;
        let mut part = self.masks_of(1, h..h + 1);
        part.query = self.query.narrow(1, h..h + 1);
        part.key = self.key.narrow(1, kv_head..kv_head + 1);
        part.value = self.value.narrow(1, kv_head..kv_head + 1);
        part.structure = self.structure.head(h);
        part
    }

    /// Some of the queries, each where it stood.
    fn queries(&self, range: Range<usize>) -> Self {
        let mut part = self.masks_of(2, range.clone());
        part.query = self.query.narrow(2, range.clone());
        if self.causal.is_some() {
            part.causal = Some(self.offset(range.start));
        }
        let (structure, left_out) = self.structure.queries(range, self.dims());
        part.structure = structure;
        if left_out > 0 {
            let lengths = (0..self.dims().batch).map(|b| self.existing(b) - left_out);
            part.lengths = Some(lengths.collect());
        }
        part
    }

    /// The diagonal as an offset, for a call that begins with query `first`.
    fn offset(&self, first: usize) -> Causal {
        let offset = self.diagonal(0) + first as i128;
        Causal::Offset(i64::try_from(offset).unwrap_or_else(|error| panic!("{error}")))
    }

    /// More keys, values and masks of any content behind those there are; nobody sees them.
    fn with_unseen_keys(&self, count: usize, rng: &mut Rng) -> Self {
        let d = self.dims();
        let mut longer = self.clone();
        longer.key = lengthened(&self.key, 2, count, || poison(rng));
        longer.value = lengthened(&self.value, 2, count, || poison(rng));
        longer.boolean =
            self.boolean.as_ref().map(|mask| lengthened(mask, 3, count, || rng.one_in(2)));
        longer.bias = self.bias.as_ref().map(|bias| lengthened(bias, 3, count, || poison(rng)));
        longer.lengths = Some(self.lengths.clone().unwrap_or_else(|| vec![d.seq_kv; d.batch]));
        longer.structure = self.structure.with_more_keys(count, d, rng);
        if self.causal.is_some() && self.causal != Some(Causal::AtLength) {
            longer.causal = Some(self.offset(0));
        }
        longer
    }
}

/// A contiguous copy, longer by `count` along `axis`.
fn lengthened<T: Copy>(
    tensor: &Strided<T>,
    axis: usize,
    count: usize,
    mut filler: impl FnMut() -> T,
) -> Strided<T> {
    let mut shape = tensor.shape;
    shape[axis] += count;
    let first = filler();
    let mut longer = Strided::filled(shape, Layout::Bhsd, first);
    longer.data.iter_mut().for_each(|x| *x = filler());
    let inside = longer.narrow(axis, 0..tensor.shape[axis]).indices();
    inside.into_iter().zip(tensor.dense()).for_each(|(at, x)| longer.data[at] = x);
    longer
}

#[test]
fn batch_entries_and_heads_alone() {
    for_all(300, masked_cases(), |case| {
        let whole = case.inputs();
        for isa in Isa::available() {
            let expected = whole.run(isa);
            let batch: Vec<_> =
                (0..case.dims.batch).map(|b| whole.batch_entry(b).run(isa)).collect();
            let heads: Vec<_> = (0..case.dims.q_heads()).map(|h| whole.head(h).run(isa)).collect();
            for at in whole.rows() {
                let [b, h, i] = at;
                let expected = row_bits(&expected, at);
                let what = format!("row {at:?}, {case:?} on {isa}");
                assert_eq!(expected, row_bits(&batch[b], [0, h, i]), "batch entry alone, {what}");
                assert_eq!(expected, row_bits(&heads[h], [b, 0, i]), "head alone, {what}");
            }
        }
    });
}

/// Without a causal mask a window stands at the end of the keys and would move with the split.
fn splittable(mut case: Case) -> Case {
    if case.masks.causal.is_none() {
        (case.masks.left, case.masks.right) = (None, None);
    }
    // This diagonal is not the same in every batch entry.
    if case.masks.causal == Some(Causal::AtLength) {
        case.masks.causal = Some(Causal::BottomRight);
    }
    case
}

fn check_split(case: &Case, starts: &[usize]) {
    let whole = case.inputs();
    for isa in Isa::available() {
        let expected = whole.run(isa);
        for (n, &start) in starts.iter().enumerate() {
            let end = starts.get(n + 1).copied().unwrap_or(case.dims.seq_q);
            let part = whole.queries(start..end);
            let result = part.run(isa);
            for [b, h, i] in part.rows() {
                let at = [b, h, start + i];
                assert_eq!(
                    row_bits(&expected, at),
                    row_bits(&result, [b, h, i]),
                    "row {at:?} of queries {start}..{end}, {case:?} on {isa}"
                );
            }
        }
    }
}

#[test]
fn queries_split_into_calls_anywhere() {
    let split = prop::collection::btree_set(1..97_usize, 0..6);
    for_all(300, (masked_cases(), split), |(case, mut starts)| {
        starts.retain(|&start| start < case.dims.seq_q);
        starts.insert(0);
        let starts: Vec<usize> = starts.into_iter().collect();
        check_split(&splittable(case), &starts);
    });
}

#[test]
fn token_by_token() {
    for_all(60, masked_cases(), |case| {
        let starts: Vec<usize> = (0..case.dims.seq_q).collect();
        check_split(&splittable(case), &starts);
    });
}

/// As a decoder does: each call sees the keys that exist so far.
#[test]
fn token_by_token_with_a_growing_cache() {
    for (data, seq) in [(Data::Normal, 140_usize), (Data::Wide, 140), (Data::Growing, 2060)] {
        let dims = Dims { kv_heads: 2, group: 2, ..Dims::single(seq, seq, 16, 16) };
        let dims = if seq > 1000 { Dims { seq_q: 20, kv_heads: 1, ..dims } } else { dims };
        let masks = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
        let case = Case { data, masks, ..Case::plain(dims, 22) };
        let whole = case.inputs();
        for isa in Isa::available() {
            let expected = whole.run(isa);
            for i in 0..dims.seq_q {
                let mut step = whole.queries(i..i + 1);
                let keys = dims.seq_kv - dims.seq_q + i + 1;
                step.key = whole.key.narrow(2, 0..keys);
                step.value = whole.value.narrow(2, 0..keys);
                step.causal = Some(Causal::BottomRight);
                let result = step.run(isa);
                for h in 0..dims.q_heads() {
                    let (all, one) = (row_bits(&expected, [0, h, i]), row_bits(&result, [0, h, 0]));
                    let what = format!("head {h}, query {i}, {case:?} on {isa}");
                    assert_eq!(all[..2], one[..2], "{what}");
                    assert_eq!(all[2][..keys], one[2], "weights, {what}");
                }
            }
        }
    }
}

#[test]
fn unseen_keys_behind() {
    let counts = select(vec![1_usize, 7, 64, 2047, 2050, 4200]);
    for_all(150, (masked_cases(), counts), |(case, count)| {
        let inputs = match case.masks.causal {
            None => splittable(case),
            Some(_) => case,
        };
        let inputs = inputs.inputs();
        let longer = inputs.with_unseen_keys(count, &mut Rng(case.seed ^ 3));
        for isa in Isa::available() {
            let (expected, got) = (inputs.run(isa), longer.run(isa));
            for at in inputs.rows() {
                let (expected, got) = (row_bits(&expected, at), row_bits(&got, at));
                let what = format!("row {at:?} before {count} keys, {case:?} on {isa}");
                assert_eq!(expected[..2], got[..2], "{what}");
                let (seen, unseen) = got[2].split_at(case.dims.seq_kv);
                assert_eq!(expected[2], seen, "weights, {what}");
                assert!(unseen.iter().all(|&bits| bits == 0), "weights of unseen keys, {what}");
            }
        }
    });
}

#[test]
fn any_memory_layout() {
    let layouts = prop::array::uniform3(select(Layout::INPUTS.to_vec()));
    let output = select(Layout::OUTPUTS.to_vec());
    for_all(200, (masked_cases(), layouts, output), |(case, layouts, output)| {
        let case = Case { layouts, output, ..case };
        let strided = case.inputs();
        let mut dense = strided.clone();
        dense.query = strided.query.laid_out(Layout::Bhsd, 0.0);
        dense.key = strided.key.laid_out(Layout::Bhsd, 0.0);
        dense.value = strided.value.laid_out(Layout::Bhsd, 0.0);
        let mut copied = strided.clone();
        copied.boolean = strided.boolean.as_ref().map(|mask| mask.laid_out(Layout::Reversed, true));
        copied.bias = strided.bias.as_ref().map(|bias| bias.laid_out(Layout::Padded, 0.0));
        for isa in Isa::available() {
            let expected = result_bits(&dense.run(isa));
            let what = format!("{case:?} on {isa}");
            assert_eq!(expected, result_bits(&strided.run(isa)), "inputs, {what}");
            assert_eq!(expected, result_bits(&copied.run(isa)), "masks, {what}");
            assert_eq!(expected, run_into(&dense, isa, output), "outputs, {what}");
        }
    });
}

/// The bits of outputs written in layout `layout`.
fn run_into(inputs: &Inputs<f32>, isa: Isa, layout: Layout) -> [Vec<u64>; 3] {
    let d = inputs.dims();
    let tensor = |width| Strided::filled([d.batch, d.q_heads(), d.seq_q, width], layout, 0.5);
    let (mut out, mut lse, mut weights) = (tensor(d.value_dim), tensor(1), tensor(d.seq_kv));
    let outputs =
        Outputs::new(out.view_mut()).with_lse(lse.view_mut()).with_weights(weights.view_mut());
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    attention_into(q, k, v, &inputs.options().isa(isa), outputs, &mut Workspace::new())
        .unwrap_or_else(|error| panic!("{error}"));
    [out, lse, weights].map(|tensor| common::bits(&tensor.dense()))
}

/// A workspace that other problems used before, and outputs alone or together.
#[test]
fn a_used_workspace_and_fewer_outputs() {
    let mut workspace = Workspace::new();
    for case in large_cases() {
        let inputs = case.inputs();
        let d = case.dims;
        for isa in Isa::available() {
            let expected = common::bits(inputs.run(isa).out.data());
            let mut out = vec![f32::NAN; d.batch * d.q_heads() * d.seq_q * d.value_dim];
            let shape = [d.batch, d.q_heads(), d.seq_q, d.value_dim];
            let view = headwise::ViewMut::bhsd(&mut out, shape);
            let outputs = Outputs::new(view.unwrap_or_else(|error| panic!("{error}")));
            let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
            attention_into(q, k, v, &inputs.options().isa(isa), outputs, &mut workspace)
                .unwrap_or_else(|error| panic!("{error}"));
            assert!(expected == common::bits(&out), "{case:?} on {isa}");
        }
    }
}

/// A scale of one half and queries of half the size: powers of two change no bit.
#[test]
fn a_scale_of_a_power_of_two_may_stand_in_the_queries() {
    let mut inputs = Case::plain(Dims::single(50, 100, 16, 16), 23).inputs();
    inputs.scale = Scale::Value(0.25);
    let mut smaller = inputs.map(|x| x);
    smaller.query = smaller.query.map(|x| 0.25 * x);
    smaller.scale = Scale::One;
    for isa in Isa::available() {
        let (a, b) = (inputs.run(isa), smaller.run(isa));
        assert_eq!(result_bits(&a), result_bits(&b), "{isa}");
    }
}
