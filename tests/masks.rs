//! Masks as descriptors: the same bits as the dense mask that says the same, no work where nothing is
//! visible, and errors for what makes no sense.

mod common;

use common::case::{Case, Data, Dims, Inputs, Masks, row};
use common::strategies::masked_cases;
use common::strided::{Layout, Strided};
use common::structure::{Kinds, OwnedBlocks, OwnedDocuments, OwnedTree, Packing, Structure};
use common::{Rng, for_all, result_bits};
use headwise::{
    AttentionOptions, BlockPattern, Causal, Documents, Error, Isa, Offsets, Pairs, Result, Tree,
    View, attention,
};
use proptest::prelude::*;
use proptest::sample::select;

/// The same problem with all that hides keys, but for the bias, in one boolean mask.
fn densely(inputs: &Inputs<f32>) -> Inputs<f32> {
    let mut dense = inputs.clone();
    dense.boolean = Some(inputs.as_boolean());
    (dense.causal, dense.left, dense.right, dense.lengths) = (None, None, None, None);
    dense.structure = Structure::default();
    dense
}

#[test]
fn descriptors_and_the_dense_mask_give_the_same_bits() {
    for_all(400, masked_cases(), |case| {
        let inputs = case.inputs();
        let dense = densely(&inputs);
        for isa in Isa::available() {
            let (expected, got) = (dense.run(isa), inputs.run(isa));
            assert_eq!(result_bits(&expected), result_bits(&got), "{case:?} on {isa}");
        }
    });
}

/// A node sees the cache, its ancestors and itself: its output is that of a call whose keys are the
/// cache and the node's path, where nothing lies between them.
#[test]
fn a_chain_is_causal() {
    for (seq_q, seq_kv) in [(70, 200), (130, 130), (5, 300)] {
        let chain: Vec<_> = (0..seq_q).map(|n: usize| n.checked_sub(1)).collect();
        let mut causal = Case::plain(Dims { group: 2, ..Dims::single(seq_q, seq_kv, 16, 8) }, 61);
        let mut tree = causal.inputs();
        causal.masks.causal = Some(Causal::BottomRight);
        let causal = causal.inputs();
        for as_bits in [false, true] {
            tree.structure.tree = Some(OwnedTree::new(seq_q, chain.clone(), as_bits));
            for isa in Isa::available() {
                assert_eq!(result_bits(&causal.run(isa)), result_bits(&tree.run(isa)), "{isa}");
            }
        }
    }
}

/// The queries of a call may be the last nodes of a larger tree, whose others are in the cache.
#[test]
fn a_tree_grows_level_by_level() {
    let mut case = Case::plain(Dims { group: 2, ..Dims::single(90, 300, 16, 8) }, 62);
    case.masks.kinds.tree = Some((90, false));
    let whole = case.inputs();
    for isa in Isa::available() {
        let expected = whole.run(isa);
        let mut level = whole.clone();
        level.query = whole.query.narrow(2, 60..90);
        let got = level.run(isa);
        for [_, h, i] in level.rows() {
            let (all, some) = (row(&expected.out, [0, h, 60 + i]), row(&got.out, [0, h, i]));
            assert_eq!(common::bits(all), common::bits(some), "{isa}");
        }
    }
}

fn counted(inputs: &Inputs<f32>, isa: Isa) -> Pairs {
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    let pairs = inputs.options().isa(isa).computed_pairs(q, k, v);
    pairs.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn visible_pairs_are_counted_and_computed() {
    for_all(300, masked_cases(), |case| {
        let mut inputs = case.inputs();
        inputs.bias = None;
        let visible = inputs.as_boolean().data.iter().filter(|&&visible| visible).count() as u64;
        for isa in Isa::available() {
            let pairs = counted(&inputs, isa);
            assert_eq!(pairs.visible, visible, "{case:?} on {isa}");
            assert!(pairs.scores >= visible && pairs.values >= visible, "{case:?} on {isa}");
            let all = (case.dims.batch * case.dims.q_heads() * case.dims.seq_kv) as u64;
            let (q, k) = (case.dims.seq_q as u64, case.dims.seq_kv as u64);
            // Vectors of rows are whole.
            assert!(pairs.scores <= all * (q + 63) + 63 * k * all && pairs.values <= all * q);
            assert!(visible > 0 || (pairs.scores, pairs.values) == (0, 0), "{case:?} on {isa}");
        }
    });
}

/// What one query sees of 128 keys by a window, in the micro-tiles of each instruction set.
#[test]
fn few_rows_compute_runs_of_keys() {
    let mut case = Case::plain(Dims::single(1, 128, 16, 16), 64);
    case.masks.causal = Some(Causal::BottomRight);
    // 17 keys lie in three groups: a run of two, and one for a whole vector of queries.
    for (left, runs) in [(127, 128), (15, 16), (31, 32), (16, 16 + 8 * 16)] {
        let mut inputs = case.inputs();
        inputs.left = Some(left);
        for isa in Isa::available() {
            let pairs = counted(&inputs, isa);
            let visible = left as u64 + 1;
            assert_eq!((pairs.visible, pairs.values), (visible, visible), "{isa}");
            let wide = matches!(isa, Isa::Avx512 | Isa::Avx512Bf16);
            let runs = if wide { runs } else { visible.next_multiple_of(8) };
            assert_eq!(pairs.scores, runs, "{left} on {isa}");
        }
    }
}

/// What descriptors save, on one head of 4,096 queries and keys.
#[test]
fn what_is_masked_is_not_computed() {
    let n = 4096;
    let case = Case::plain(Dims::single(n, n, 1, 1), 63);
    let causal =
        Case { masks: Masks { causal: Some(Causal::BottomRight), ..Masks::default() }, ..case };
    let with = |structure: Structure| Inputs { structure, ..causal.inputs() };
    let documents = |offsets: Vec<usize>| Structure {
        documents: Some(OwnedDocuments::Offsets { query: offsets.clone(), key: offsets }),
        ..Structure::default()
    };
    // The diagonal and every fourth block of 128.
    let visible: Vec<bool> = (0..32 * 32).map(|at| at % 4 == 0 || at / 32 == at % 32).collect();
    let visible = Strided::new(&visible, [1, 1, 32, 32], Layout::Bhsd, true);
    let blocks = OwnedBlocks { block_q: 128, block_kv: 128, visible };
    let mut window = causal.inputs();
    window.left = Some(511);
    let mut boolean = case.inputs();
    boolean.boolean = Some(window.as_boolean());
    // Every other query is of another document: rows of a tile see keys far apart.
    let ids: Vec<i32> = (0..n)
        .map(|j| {
            if j < 512 {
                0
            } else if j < n - 512 {
                1
            } else {
                2
            }
        })
        .collect();
    let query = (0..n).map(|i| if i % 2 == 0 { 0 } else { 2 }).collect();
    let far = Structure {
        documents: Some(OwnedDocuments::Ids { query, key: ids }),
        ..Structure::default()
    };
    let inputs = [
        ("full", causal.inputs(), 1.03),
        ("window", window, 1.15),
        ("boolean window", boolean, 1.15),
        ("documents", with(documents((0..=n).step_by(512).collect())), 1.2),
        ("blocks", with(Structure { blocks: Some(blocks), ..Structure::default() }), 1.25),
        ("far documents", Inputs { structure: far, ..case.inputs() }, 2.01),
    ];
    for (name, inputs, most) in inputs {
        for isa in Isa::available() {
            let Pairs { visible, scores, values, .. } = counted(&inputs, isa);
            for computed in [scores, values] {
                let share = computed as f64 / visible as f64;
                assert!((1.0..most).contains(&share), "{name} on {isa}: {share}");
            }
        }
    }
}

/// Masks that contradict each other leave empty rows.
#[test]
fn contradictions_are_empty_rows() {
    let dims = Dims { batch: 2, kv_heads: 2, group: 2, ..Dims::single(50, 150, 8, 17) };
    let clean = Case { data: Data::Wide, ..Case::plain(dims, 64) }.inputs();
    let key = vec![1; 2 * 150];
    let other = OwnedDocuments::Ids { query: vec![0; 2 * 50], key };
    let none = Strided::filled([1, 1, 4, 3], Layout::Bhsd, false);
    let structures = [
        ("documents", Structure { documents: Some(other), ..Structure::default() }),
        ("starts", Structure { starts: Some(vec![150, 150]), ..Structure::default() }),
        (
            "blocks",
            Structure {
                blocks: Some(OwnedBlocks { block_q: 16, block_kv: 64, visible: none }),
                ..Structure::default()
            },
        ),
        (
            "packed",
            Structure {
                packed: Some(Strided::filled([1, 1, 1, 19], Layout::Bhsd, 0)),
                ..Structure::default()
            },
        ),
    ];
    for (name, structure) in structures {
        let inputs = Inputs { structure, ..clean.clone() };
        for isa in Isa::available() {
            let result = inputs.run(isa);
            let zero = |data: &[f32]| data.iter().all(|x| x.to_bits() == 0);
            assert!(zero(result.out.data()), "{name} on {isa}");
            assert!(result.weights.as_ref().is_some_and(|w| zero(w.data())), "{name} on {isa}");
            let lse = |lse: &headwise::Tensor| lse.data().iter().all(|&x| x == f32::NEG_INFINITY);
            assert!(result.lse.as_ref().is_some_and(lse), "{name} on {isa}");
        }
    }
}

/// Attention of two batch entries, two query heads, three queries and five keys.
fn with(options: &AttentionOptions<'_>) -> Result<()> {
    let zeros = [0.0_f32; 2 * 2 * 5 * 4];
    let query = View::bhsd(&zeros, [2, 2, 3, 4])?;
    let key = View::bhsd(&zeros, [2, 1, 5, 4])?;
    attention(query, key, key, options).map(|_| ())
}

#[track_caller]
fn refused(options: AttentionOptions<'_>, parts: &[&str]) {
    let error = with(&options).err().unwrap_or_else(|| panic!("accepted: {options:?}"));
    assert!(matches!(error, Error::Value { .. } | Error::Shape { .. }), "{error:?}");
    let message = error.to_string();
    parts.iter().for_each(|part| assert!(message.contains(part), "{part:?} is not in {message:?}"));
}

#[test]
fn lengths_that_do_not_fit() {
    let options = AttentionOptions::new();
    assert_eq!(with(&options.causal().prefix(&[5]).key_starts(&[5, 0])), Ok(()));
    assert_eq!(with(&options.prefix(&[0, 5])), Ok(()));
    refused(options.prefix(&[6]), &["prefix", "6", "at most 5"]);
    refused(options.prefix(&[1, 2, 3]), &["prefix", "3 lengths", "2 sequences"]);
    refused(options.prefix(&[]), &["prefix", "0 lengths"]);
    refused(options.key_starts(&[0, 6]), &["key_starts", "6", "at most 5"]);
    refused(options.key_starts(&[0]), &["key_starts", "1 starts", "2 sequences"]);
}

#[test]
fn documents_that_do_not_fit() {
    let options = AttentionOptions::new();
    let ids = |query, key| options.documents(Documents::Ids { query, key });
    assert_eq!(with(&ids(&[0; 3], &[0; 5])), Ok(()));
    assert_eq!(with(&ids(&[0; 6], &[0; 10])), Ok(()));
    refused(ids(&[0; 4], &[0; 5]), &["query documents", "4 numbers", "[2, 3]", "[3]"]);
    refused(ids(&[0; 6], &[0; 5]), &["key documents", "5 numbers", "[2, 5]", "[5]"]);
    refused(ids(&[0; 3], &[0; 10]), &["query documents", "3 numbers"]);
    let offsets = |query, key| options.documents(Documents::Offsets(Offsets { query, key }));
    assert_eq!(with(&offsets(&[0, 2, 3], &[0, 0, 5])), Ok(()));
    refused(offsets(&[0, 2], &[0, 5]), &["query documents", "[0, 2]", "from 0 to 3"]);
    refused(offsets(&[1, 3], &[0, 5]), &["query documents", "[1, 3]", "from 0 to 3"]);
    refused(offsets(&[0, 3], &[]), &["key documents", "[]", "from 0 to 5"]);
    refused(offsets(&[0, 3], &[0, 4, 2, 5]), &["key documents", "4 before 2", "not decrease"]);
    refused(offsets(&[0, 3], &[0, 2, 5]), &["key documents", "3 offsets", "2, as many"]);
}

#[test]
fn trees_that_are_none() {
    let options = AttentionOptions::new();
    let parents = |nodes, parents| options.tree(Tree::of_parents(nodes, parents));
    assert_eq!(with(&parents(3, &[None, Some(0), None])), Ok(()));
    assert_eq!(with(&parents(2, &[None, Some(0), None, None])), Ok(()));
    assert_eq!(with(&parents(5, &[None; 5])), Ok(()));
    assert_eq!(with(&parents(0, &[])), Ok(()));
    let before = "a parent before the node";
    refused(parents(3, &[None, Some(1), None]), &["tree", "node 1 with parent 1", before]);
    refused(parents(3, &[Some(1), Some(0), None]), &["tree", "node 0 with parent 1", before]);
    refused(parents(2, &[None, None, None, Some(7)]), &["tree", "node 1 with parent 7", before]);
    refused(parents(3, &[None; 4]), &["tree", "4 parents", "3 for 3 nodes"]);
    refused(parents(6, &[None; 6]), &["tree", "6 nodes", "at most 5"]);
    refused(parents(5, &[None; 5]).key_lengths(&[5, 4]), &["tree", "5 nodes", "at most 4"]);
    let huge = usize::MAX;
    refused(parents(huge, &[None; 5]), &["tree", "nodes", "at most 5"]);
    let bits = |nodes, rows| options.tree(Tree::of_bits(nodes, rows));
    assert_eq!(with(&bits(3, &[0b001, 0b010, 0b101])), Ok(()));
    assert_eq!(with(&bits(3, &[0, 0, 0])), Ok(()));
    refused(bits(3, &[0b001, 0b110, 0b100]), &["tree", "node 1 that sees node 2"]);
    refused(bits(3, &[1 << 63, 0, 0]), &["tree", "node 0 that sees node 63"]);
    refused(bits(3, &[0, 0]), &["tree", "2 words", "3 for 3 nodes"]);
}

#[test]
fn block_patterns_and_packed_masks_that_do_not_fit() -> Result<()> {
    let options = AttentionOptions::new();
    let yes = [true; 64];
    let blocks = |block_q, block_kv, shape| -> Result<AttentionOptions<'_>> {
        let visible = View::bhsd(&yes, shape)?;
        Ok(options.blocks(BlockPattern { block_q, block_kv, visible }))
    };
    assert_eq!(with(&blocks(2, 2, [1, 1, 2, 3])?), Ok(()));
    assert_eq!(with(&blocks(2, 2, [2, 2, 1, 3])?), Ok(()));
    assert_eq!(with(&blocks(usize::MAX, usize::MAX, [1, 1, 1, 1])?), Ok(()));
    refused(blocks(0, 2, [1, 1, 2, 3])?, &["block_q", "0", "at least 1"]);
    refused(blocks(2, 0, [1, 1, 2, 3])?, &["block_kv", "0", "at least 1"]);
    refused(blocks(2, 2, [1, 1, 2, 2])?, &["blocks", "[1, 1, 2, 2]", "[2, 2, 2, 3]"]);
    refused(blocks(2, 2, [1, 1, 3, 3])?, &["blocks", "[1, 1, 3, 3]", "[2, 2, 2, 3]"]);
    refused(blocks(2, 2, [1, 3, 2, 3])?, &["blocks", "[1, 3, 2, 3]", "[2, 2, 2, 3]"]);
    let bytes = [255_u8; 64];
    let packed = |shape| -> Result<AttentionOptions<'_>> {
        Ok(options.packed_mask(View::bhsd(&bytes, shape)?))
    };
    assert_eq!(with(&packed([1, 1, 3, 1])?), Ok(()));
    refused(packed([1, 1, 3, 5])?, &["packed_mask", "[1, 1, 3, 5]", "[2, 2, 3, 1]"]);
    refused(packed([1, 1, 2, 1])?, &["packed_mask", "[1, 1, 2, 1]", "[2, 2, 3, 1]"]);
    Ok(())
}

#[test]
fn offsets_that_do_not_cover() -> Result<()> {
    let zeros = [0.0_f32; 2 * 2 * 5 * 4];
    let options = AttentionOptions::new();
    let of = |batch, query: &[usize], key: &[usize]| {
        let q = View::bhsd(&zeros, [batch, 2, 3, 4])?;
        let k = View::bhsd(&zeros, [batch, 1, 5, 4])?;
        attention(q, k, k, &options.ragged(query, key)).map(|result| result.out.shape())
    };
    assert_eq!(of(1, &[0, 2, 2, 3], &[0, 0, 4, 5]), Ok([1, 2, 3, 4]));
    let refused = |result: Result<[usize; 4]>, parts: &[&str]| {
        let message = result.err().map_or_else(String::new, |error| error.to_string());
        parts.iter().for_each(|part| assert!(message.contains(part), "{part:?}: {message:?}"));
    };
    refused(of(2, &[0, 3], &[0, 5]), &["query", "[2, 2, 3, 4]", "one batch entry"]);
    refused(of(1, &[0, 2], &[0, 5]), &["query_offsets", "[0, 2]", "from 0 to 3"]);
    refused(of(1, &[0, 3], &[0, 6]), &["key_offsets", "[0, 6]", "from 0 to 5"]);
    refused(of(1, &[], &[0, 5]), &["query_offsets", "[]"]);
    refused(of(1, &[0], &[0, 5]), &["query_offsets", "[0]"]);
    refused(of(1, &[0, 3, 1, 3], &[0, 1, 2, 5]), &["query_offsets", "3 before 1"]);
    refused(of(1, &[0, 1, 3], &[0, 5]), &["key_offsets", "2 offsets", "3, as many"]);
    let of = |options: AttentionOptions<'_>| {
        let q = View::bhsd(&zeros, [1, 2, 3, 4])?;
        let k = View::bhsd(&zeros, [1, 1, 5, 4])?;
        let options = options.ragged(&[0, 1, 3], &[0, 1, 5]);
        attention(q, k, k, &options).map(|result| result.out.shape())
    };
    assert!(of(options.key_lengths(&[1, 4])).is_ok());
    refused(of(options.key_lengths(&[2, 4])), &["key_lengths", "2", "at most 1"]);
    refused(of(options.key_lengths(&[5])), &["key_lengths", "1 lengths", "2 sequences"]);
    refused(of(options.prefix(&[2])), &["prefix", "2", "at most 1"]);
    refused(of(options.tree(Tree::of_parents(2, &[None; 2]))), &["tree", "at most 1"]);
    let five = [true; 3 * 5];
    refused(of(options.mask(View::bhsd(&five, [1, 1, 3, 5])?)), &["mask", "[1, 2, 3, 4]"]);
    Ok(())
}

/// Numbers of any kind and count: a result or an error, never a panic.
#[test]
fn descriptors_of_anything() {
    let number = select(vec![0_usize, 1, 2, 3, 4, 5, 6, 64, 65, usize::MAX]);
    let list = || prop::collection::vec(number.clone(), 0..5);
    let count = |most: usize| select(vec![0, most - 1, most, 2 * most]);
    let ids = |most| count(most).prop_flat_map(|n| prop::collection::vec(-1..3_i32, n));
    let wild = (
        [list(), list(), list(), list(), list()],
        (ids(3), ids(5)),
        (number.clone(), number.clone(), number.clone()),
        ((0..8_u8, 0..8_u8), select(vec![1_usize, 2]), any::<u64>()),
    );
    let counts = std::cell::Cell::new((0_usize, 0_usize));
    for_all(
        4000,
        wild,
        |(lists, (query, key), (nodes, block_q, block_kv), (which, batch, seed))| {
            let data = [0.5_f32; 2 * 2 * 5 * 4];
            let which = (1 << which.0) | (1_u8 << which.1);
            let mut rng = Rng(seed);
            let words: Vec<u64> = lists[0].iter().map(|_| rng.next() >> rng.below(64)).collect();
            let parents: Vec<_> = lists[0].iter().map(|n| n.checked_sub(1)).collect();
            let flags = [true, false, true, true, false, true];
            let result = (|| {
                let q = View::bhsd(&data, [batch, 2, 3, 4])?;
                let k = View::bhsd(&data, [batch, 1, 5, 4])?;
                let mut options = AttentionOptions::new().causal_with(Causal::AtLength);
                if which & 1 > 0 {
                    options = options.prefix(&lists[1]);
                }
                if which & 2 > 0 {
                    options = options.key_starts(&lists[2]).key_lengths(&lists[1]);
                }
                if which & 4 > 0 {
                    options = options.documents(Documents::Ids { query: &query, key: &key });
                }
                if which & 8 > 0 {
                    options = options.tree(Tree::of_parents(nodes, &parents));
                }
                if which & 16 > 0 {
                    options = options.tree(Tree::of_bits(nodes, &words));
                }
                if which & 32 > 0 {
                    let visible = View::bhsd(&flags, [1, 1, 2, 3])?;
                    options = options.blocks(BlockPattern { block_q, block_kv, visible });
                }
                if which & 64 > 0 {
                    options = options.ragged(&lists[3], &lists[4]);
                }
                if which & 128 > 0 {
                    let offsets = Offsets { query: &lists[3], key: &lists[4] };
                    options = options.documents(Documents::Offsets(offsets));
                }
                attention(q, k, k, &options)
            })();
            let (fine, refused) = counts.get();
            counts.set(if result.is_ok() { (fine + 1, refused) } else { (fine, refused + 1) });
        },
    );
    let (fine, refused) = counts.get();
    assert!(fine > 20 && refused > 200, "{fine} computed, {refused} refused");
}

/// Where documents are packed without gaps, every way to say it gives the same bits.
#[test]
fn ways_to_pack_documents() {
    let kinds = Kinds { documents: Some(Packing::Offsets), ..Kinds::default() };
    let masks = Masks { causal: Some(Causal::BottomRight), kinds, ..Masks::default() };
    let case = Case { masks, ..Case::plain(Dims::single(300, 300, 16, 16), 65) };
    let inputs = case.inputs();
    let Some(OwnedDocuments::Offsets { query, key }) = inputs.structure.documents.clone() else {
        unreachable!("as asked for")
    };
    let ids = |offsets: &[usize], name: fn(usize) -> i32| {
        let parts = offsets.windows(2).enumerate();
        parts.flat_map(|(n, part)| vec![name(n); part[1] - part[0]]).collect::<Vec<_>>()
    };
    for name in [(|n| n as i32) as fn(usize) -> i32, |n| -(n as i32), |n| (n as i32 * 3) % 7] {
        let mut other = inputs.clone();
        let (query, key) = (ids(&query, name), ids(&key, name));
        other.structure.documents = Some(OwnedDocuments::Ids { query, key });
        for isa in Isa::available() {
            assert_eq!(result_bits(&inputs.run(isa)), result_bits(&other.run(isa)), "{isa}");
        }
    }
}
