//! Ragged batches: each sequence as if it were alone, bit for bit, whatever the others hold.

mod common;

use common::bounds::{Arithmetic, Expected, F32, F64, Got};
use common::case::{Case, Data, Dims, Inputs, Masks, row};
use common::executors::Scoped;
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::structure::{OwnedBlocks, OwnedDocuments, OwnedTree, Structure, get};
use common::{Rng, bits, for_all, poison, result_bits};
use headwise::{Algorithm, Attention, Element, Executor, Isa, Serial};
use proptest::prelude::*;
use proptest::sample::select;

/// Sequences, each alone and all in one.
struct Batch {
    alone: Vec<Inputs<f32>>,
    packed: Inputs<f32>,
    query: Vec<usize>,
    key: Vec<usize>,
}

impl Batch {
    /// Sequences of these lengths, otherwise as `case` says.
    fn new(case: &Case, lengths: &[(usize, usize)]) -> Self {
        let tree = case.masks.kinds.tree;
        let mut masks = case.masks;
        masks.kinds.tree = None;
        let of = |(n, &(seq_q, seq_kv)): (usize, &(usize, usize))| {
            let dims = Dims { batch: 1, seq_q, seq_kv, ..case.dims };
            let layouts = [Layout::Bhsd; 3];
            Case { dims, masks, layouts, seed: case.seed ^ n as u64, ..*case }.inputs()
        };
        let mut alone: Vec<_> = lengths.iter().enumerate().map(of).collect();
        let nodes = alone.iter().map(|inputs| inputs.existing(0)).min().unwrap_or(0);
        if let Some((most, as_bits)) = tree {
            let mut rng = Rng(case.seed ^ 77);
            for inputs in &mut alone {
                let tree = OwnedTree::random(most.min(nodes), 1, as_bits, &mut rng);
                inputs.structure.tree = Some(tree);
            }
        }
        let offsets = |length: fn(&(usize, usize)) -> usize| {
            let mut offsets = vec![0];
            for lengths in lengths {
                offsets.push(offsets[offsets.len() - 1] + length(lengths));
            }
            offsets
        };
        let (query, key) = (offsets(|l| l.0), offsets(|l| l.1));
        let packed = packed(&alone, (&query, &key));
        Self { alone, packed, query, key }
    }

    fn run_by(&self, isa: Isa, executor: &dyn Executor) -> Attention {
        let options = self.packed.options().isa(isa).executor(executor);
        let options = options.ragged(&self.query, &self.key);
        self.packed.run_with(&options.return_lse().return_weights())
    }
}

/// The sequences one behind the other.
fn packed(alone: &[Inputs<f32>], (query, key): (&[usize], &[usize])) -> Inputs<f32> {
    let first = &alone[0];
    let d = first.dims();
    let longest = alone.iter().map(|inputs| inputs.dims().seq_kv).max().unwrap_or(0);
    let parts = |part: fn(&Inputs<f32>) -> &Strided<f32>| {
        joined(&alone.iter().map(part).collect::<Vec<_>>())
    };
    let shape = [1, d.q_heads(), query[alone.len()], longest];
    // Rows of dense masks, from each sequence's own, and anything behind its keys.
    fn rows<T: Copy>(
        (alone, query, shape): (&[Inputs<f32>], &[usize], [usize; 4]),
        fill: T,
        of: impl Fn(&Inputs<f32>, [usize; 4]) -> Option<T>,
    ) -> Option<Strided<T>> {
        let mut whole = Strided::filled(shape, Layout::Bhsd, fill);
        for (inputs, start) in alone.iter().zip(query) {
            for [_, h, i] in inputs.rows() {
                for j in 0..inputs.dims().seq_kv {
                    whole.set([0, h, start + i, j], of(inputs, [0, h, i, j])?);
                }
            }
        }
        Some(whole)
    }
    let dense = (alone, query, shape);
    let boolean = first.boolean.as_ref().and_then(|_| {
        rows(dense, true, |inputs, at| inputs.boolean.as_ref().map(|mask| get(mask, at)))
    });
    let bias = first.bias.as_ref().and_then(|_| {
        rows(dense, f32::NAN, |inputs, at| inputs.bias.as_ref().map(|bias| get(bias, at)))
    });
    let numbers = |of: fn(&Inputs<f32>) -> Option<&Vec<usize>>| {
        alone
            .iter()
            .map(|inputs| of(inputs).cloned())
            .collect::<Option<Vec<_>>>()
            .map(|n| n.concat())
    };
    let documents = first.structure.documents.as_ref().map(|_| {
        let (mut ids, mut offsets) = ((vec![], vec![]), (vec![0], vec![0]));
        for (n, inputs) in alone.iter().enumerate() {
            match &inputs.structure.documents {
                Some(OwnedDocuments::Ids { query, key }) => {
                    ids.0.extend(query);
                    ids.1.extend(key);
                }
                Some(OwnedDocuments::Offsets { query: q, key: k }) => {
                    offsets.0.extend(q[1..].iter().map(|o| query[n] + o));
                    offsets.1.extend(k[1..].iter().map(|o| key[n] + o));
                }
                None => {}
            }
        }
        if ids.0.is_empty() && ids.1.is_empty() {
            OwnedDocuments::Offsets { query: offsets.0, key: offsets.1 }
        } else {
            OwnedDocuments::Ids { query: ids.0, key: ids.1 }
        }
    });
    let tree = first.structure.tree.as_ref().map(|tree| {
        let parents = alone.iter().flat_map(|inputs| {
            inputs.structure.tree.as_ref().map_or_else(Vec::new, |tree| tree.parents.clone())
        });
        OwnedTree::new(tree.nodes, parents.collect(), tree.bits.is_some())
    });
    let blocks = first.structure.blocks.as_ref().map(|blocks| {
        let most = alone.iter().map(|inputs| inputs.dims().seq_q).max().unwrap_or(0);
        let OwnedBlocks { block_q, block_kv, .. } = *blocks;
        let counts = [most.div_ceil(block_q), longest.div_ceil(block_kv)];
        let shape = [alone.len(), d.q_heads(), counts[0], counts[1]];
        let mut visible = Strided::filled(shape, Layout::Bhsd, true);
        for (n, inputs) in alone.iter().enumerate() {
            let own = inputs.dims();
            let Some(blocks) = &inputs.structure.blocks else { continue };
            for h in 0..d.q_heads() {
                for i in 0..own.seq_q.div_ceil(block_q) {
                    for j in 0..own.seq_kv.div_ceil(block_kv) {
                        visible.set([n, h, i, j], get(&blocks.visible, [0, h, i, j]));
                    }
                }
            }
        }
        OwnedBlocks { block_q, block_kv, visible }
    });
    let packed = first.structure.packed.as_ref().and_then(|_| {
        let bytes = [shape[0], shape[1], shape[2], longest.div_ceil(8)];
        let of = |inputs: &Inputs<f32>, [b, h, i, j]: [usize; 4]| {
            let packed = inputs.structure.packed.as_ref();
            packed.map(|packed| get(packed, [b, h, i, j / 8]))
        };
        let flat = rows(dense, 0, of)?;
        let mut whole = Strided::filled(bytes, Layout::Bhsd, 0xaa);
        for h in 0..shape[1] {
            for i in 0..shape[2] {
                (0..bytes[3]).for_each(|n| whole.set([0, h, i, n], flat.get([0, h, i, 8 * n])));
            }
        }
        Some(whole)
    });
    Inputs {
        query: parts(|inputs| &inputs.query),
        key: parts(|inputs| &inputs.key),
        value: parts(|inputs| &inputs.value),
        boolean,
        bias,
        lengths: numbers(|inputs| inputs.lengths.as_ref()),
        structure: Structure {
            prefix: numbers(|inputs| inputs.structure.prefix.as_ref()),
            starts: numbers(|inputs| inputs.structure.starts.as_ref()),
            documents,
            tree,
            blocks,
            packed,
        },
        ..first.clone()
    }
}

/// One behind the other along the sequence, in memory order seq, heads, dim.
fn joined(parts: &[&Strided<f32>]) -> Strided<f32> {
    let [_, heads, _, width] = parts[0].shape;
    let total = parts.iter().map(|part| part.shape[2]).sum();
    let mut whole = Strided::filled([1, heads, total, width], Layout::Bshd, 0.0);
    let mut start = 0;
    for part in parts {
        for h in 0..heads {
            for s in 0..part.shape[2] {
                for c in 0..width {
                    whole.set([0, h, start + s, c], part.get([0, h, s, c]));
                }
            }
        }
        start += part.shape[2];
    }
    whole
}

/// The rows of a sequence, of a result of all, as a result of its own: output, log-sum-exp, weights.
fn part<T: Element>(all: &Attention<T>, inputs: &Inputs<f32>, start: usize) -> [Vec<T>; 3] {
    let seq_kv = inputs.dims().seq_kv;
    let mut parts = [vec![], vec![], vec![]];
    for [_, h, i] in inputs.rows() {
        let at = [0, h, start + i];
        parts[0].extend(row(&all.out, at));
        parts[1].extend(all.lse.iter().flat_map(|lse| row(lse, at)));
        let weights = all.weights.as_ref().map_or(&[][..], |weights| row(weights, at));
        parts[2].extend(&weights[..seq_kv]);
        assert!(weights[seq_kv..].iter().all(|w| w.to_f64().to_bits() == 0), "weight of no key");
    }
    parts
}

fn batches() -> impl Strategy<Value = (Case, Vec<(usize, usize)>)> {
    let seq_q = select(vec![0_usize, 1, 1, 3, 15, 16, 47, 48, 49, 97]);
    let seq_kv = select(vec![0_usize, 1, 7, 8, 9, 64, 127, 128, 129, 257]);
    let lengths = prop::collection::vec((seq_q, seq_kv), 1..5);
    let long = (prop::bool::weighted(0.1), select(vec![2047_usize, 2048, 2100]));
    (masked_cases(), lengths, long).prop_map(|(case, mut lengths, (is_long, length))| {
        if is_long {
            lengths[0] = (lengths[0].0.min(16), length);
        }
        (case, lengths)
    })
}

#[test]
fn each_sequence_as_if_alone() {
    for_all(300, batches(), |(case, lengths)| {
        let batch = Batch::new(&case, &lengths);
        for isa in Isa::available() {
            let all = batch.run_by(isa, &Serial);
            for (n, inputs) in batch.alone.iter().enumerate() {
                let expected = result_bits(&inputs.run(isa));
                let got = part(&all, inputs, batch.query[n]).map(|part| bits(&part));
                assert_eq!(expected, got, "sequence {n} of {lengths:?}, {case:?} on {isa}");
            }
        }
    });
}

/// The unfused path promises the numbers.
#[test]
fn unfused_numbers() {
    fn check<T: Element>(batch: &Batch, all: &Attention<T>, arithmetic: Arithmetic, what: &str) {
        for (n, inputs) in batch.alone.iter().enumerate() {
            let [out, lse, weights] = part(all, inputs, batch.query[n])
                .map(|part| part.into_iter().map(T::to_f64).collect());
            let got = Got { out, lse, weights };
            Expected::of(inputs).assert_explains(&got, arithmetic, &format!("{n}, {what}"));
        }
    }
    for_all(100, batches(), |(case, lengths)| {
        let batch = Batch::new(&case, &lengths);
        let what = format!("{lengths:?}, {case:?}");
        let options = batch.packed.options().algorithm(Algorithm::Unfused);
        let options = options.ragged(&batch.query, &batch.key).return_lse().return_weights();
        check(&batch, &batch.packed.run_with(&options), F32, &what);
        let wide = batch.packed.map(f64::from);
        let options = wide.options().ragged(&batch.query, &batch.key);
        check(&batch, &wide.run_with(&options.return_lse().return_weights()), F64, &what);
    });
}

/// Whatever a sequence holds, the others keep their bits.
#[test]
fn poison_stays_in_its_sequence() {
    for_all(100, batches(), |(case, lengths)| {
        let clean = Batch::new(&case, &lengths);
        let mut rng = Rng(case.seed ^ 5);
        let victim = rng.below(lengths.len());
        let mut dirty = Batch::new(&case, &lengths);
        for (tensor, offsets) in [
            (&mut dirty.packed.query, &dirty.query),
            (&mut dirty.packed.key, &dirty.key),
            (&mut dirty.packed.value, &dirty.key),
        ] {
            let rows = tensor.narrow(2, offsets[victim]..offsets[victim + 1]).indices();
            rows.into_iter().for_each(|at| tensor.data[at] = poison(&mut rng));
        }
        for isa in Isa::available() {
            let (expected, got) = (clean.run_by(isa, &Serial), dirty.run_by(isa, &Serial));
            for (n, inputs) in clean.alone.iter().enumerate().filter(|&(n, _)| n != victim) {
                let of = |all| part(all, inputs, clean.query[n]).map(|part| bits(&part));
                assert_eq!(of(&expected), of(&got), "{n} of {lengths:?}, {case:?} on {isa}");
            }
        }
    });
}

/// Large enough for threads, and with every descriptor.
#[test]
fn any_number_of_threads() {
    let dims = Dims { kv_heads: 2, group: 2, ..Dims::single(1, 1, 32, 24) };
    let lengths = [(200, 300), (1, 2100), (0, 5), (97, 97), (333, 333), (3, 0)];
    let causal = Masks { causal: Some(headwise::Causal::BottomRight), ..Masks::default() };
    for masks in [Masks::default(), causal, Masks { left: Some(100), key_lengths: true, ..causal }]
    {
        let case = Case { masks, data: Data::Wide, ..Case::plain(dims, 71) };
        let batch = Batch::new(&case, &lengths);
        for isa in Isa::available() {
            let expected = result_bits(&batch.run_by(isa, &Serial));
            for threads in [2, 3, 5] {
                let got = result_bits(&batch.run_by(isa, &Scoped(threads)));
                assert_eq!(expected, got, "{threads} threads, {case:?} on {isa}");
            }
        }
    }
}

/// A batch of equal lengths in the ragged form.
#[test]
fn a_batch_is_a_ragged_batch() {
    let dims = Dims { kv_heads: 2, group: 2, ..Dims::single(1, 1, 16, 16) };
    let case = Case { data: Data::Growing, ..Case::plain(dims, 72) };
    let batch = Batch::new(&case, &[(50, 130); 3]);
    let mut dense = batch.packed.clone();
    for tensor in [&mut dense.query, &mut dense.key, &mut dense.value] {
        let [_, heads, total, width] = tensor.shape;
        tensor.shape = [3, heads, total / 3, width];
        tensor.strides[0] = (total / 3 * heads * width) as isize;
    }
    for isa in Isa::available() {
        let (all, dense) = (batch.run_by(isa, &Serial), dense.run(isa));
        for [b, h, i] in (0..3 * 4 * 50).map(|n| [n / 200, n / 50 % 4, n % 50]) {
            let (packed, plain) = (row(&all.out, [0, h, b * 50 + i]), row(&dense.out, [b, h, i]));
            assert_eq!(bits(packed), bits(plain), "{isa}");
        }
    }
}
