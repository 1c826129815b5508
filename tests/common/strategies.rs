//! Random problems that more than one test file draws.

use headwise::Causal;
use proptest::prelude::*;
use proptest::sample::select;

use super::case::{Case, Data, DenseMask, Dims, Masks};
use super::strided::Layout;
use super::structure::{Kinds, Packing};

fn dense_mask() -> impl Strategy<Value = Option<DenseMask>> {
    let mask = any::<[bool; 3]>();
    prop_oneof![Just(None), mask.prop_map(|axes| Some(DenseMask { axes, layout: Layout::Bhsd }))]
}

/// Descriptors, mostly a few of them.
pub fn kinds() -> impl Strategy<Value = Kinds> {
    let packing = || {
        use Packing::*;
        select(vec![Sorted, Shuffled, Scattered, Offsets])
    };
    let tree = (select(vec![1_usize, 2, 9, 63, 64, 65, 140]), any::<bool>());
    let block = || select(vec![1_usize, 3, 16, 64, 128, 200]);
    let rarely = prop::bool::weighted(0.2);
    (
        (rarely, rarely, rarely),
        prop::option::weighted(0.25, packing()),
        prop::option::weighted(0.25, tree),
        prop::option::weighted(0.25, (block(), block())),
    )
        .prop_map(|((prefix, starts, packed), documents, tree, blocks)| Kinds {
            prefix,
            starts,
            documents,
            tree,
            blocks,
            packed,
        })
}

/// Problems under some mask.
pub fn masked_cases() -> impl Strategy<Value = Case> {
    let causal = select(vec![
        None,
        Some(Causal::BottomRight),
        Some(Causal::TopLeft),
        Some(Causal::Offset(20)),
        Some(Causal::Offset(-5)),
        Some(Causal::AtLength),
    ]);
    let reach = || select(vec![None, None, Some(0), Some(3), Some(70)]);
    let dense = (dense_mask(), dense_mask());
    let masks = (causal, reach(), reach(), any::<bool>(), dense, kinds());
    let masks = masks.prop_map(|(causal, left, right, key_lengths, (boolean, bias), kinds)| {
        Masks { causal, left, right, key_lengths, boolean, bias, kinds }
    });
    let counts = (1..3_usize, 1..3_usize, 1..4_usize);
    let lengths = (select(vec![1, 7, 16, 50, 97]), select(vec![1, 9, 64, 65, 130, 2100]));
    let widths = (select(vec![1, 8, 17, 33]), select(vec![1, 15, 16, 40]));
    let data = select(vec![Data::Normal, Data::Wide, Data::Growing]);
    (counts, lengths, widths, masks, data, any::<u64>()).prop_map(
        |((batch, kv_heads, group), (seq_q, seq_kv), (head_dim, value_dim), masks, data, seed)| {
            let mut dims = Dims { batch, kv_heads, group, seq_q, seq_kv, head_dim, value_dim };
            if seq_kv > 1000 {
                dims = Dims { batch: 1, kv_heads: 1, seq_q: seq_q.min(16), ..dims };
            }
            Case { masks, data, ..Case::plain(dims, seed) }
        },
    )
}
