//! The layouts and numbers of version 1, layouts on machines of 64 bits. What has to be changed here
//! breaks who was built with an older header.

use std::mem::offset_of;

use crate::attention::headwise_attention_call;
use crate::cache::{
    headwise_append_call, headwise_cache_kind, headwise_cache_options, headwise_sequence,
};
use crate::choice::Choice;
use crate::dtype::headwise_dtype;
use crate::executor::headwise_executor;
use crate::list::{
    headwise_floats, headwise_ids, headwise_sequences, headwise_sizes, headwise_words,
};
use crate::options::{
    HEADWISE_WINDOW_LEFT, HEADWISE_WINDOW_RIGHT, headwise_algorithm, headwise_alibi,
    headwise_causal, headwise_options, headwise_precision, headwise_scale,
};
use crate::outputs::{
    HEADWISE_NO_KEY, headwise_outputs, headwise_pick, headwise_pick_kind, headwise_stage,
};
use crate::qk_norm::headwise_qk_norm_options;
use crate::relative_bias::{headwise_relative_bias_kind, headwise_relative_bias_options};
use crate::rope::{headwise_rope_layout, headwise_rope_options, headwise_rope_scaling};
use crate::sized::Growing;
use crate::state::{headwise_merge_call, headwise_state};
use crate::status::{HEADWISE_MESSAGE_SIZE, headwise_error, headwise_status};
use crate::tensor::headwise_tensor;
use crate::term::{HEADWISE_TILE_ROWS, headwise_row, headwise_score_tile};
use crate::transform::headwise_transform_call;
use crate::version::{HEADWISE_ABI_VERSION, headwise_isa};
use crate::workspace::headwise_workspace_options;

/// Where every member of a struct lies; one that is not listed is an error of the pattern.
macro_rules! members {
    ($name:ident: $($member:ident $offset:literal),+) => {{
        let _all = |value: &$name| { let $name { $($member: _),+ } = value; };
        $(assert_eq!(offset_of!($name, $member), $offset, stringify!($name, $member));)+
    }};
}

/// The numbers of an enum, in order and all of them.
fn numbers<T: Choice>(expected: &[u32]) {
    let numbers: Vec<u32> = T::ALL.iter().map(|choice| choice.number()).collect();
    assert_eq!(numbers, expected, "{}", T::NAME);
}

#[test]
fn what_never_changes() {
    assert_eq!(size_of::<headwise_tensor>(), 80);
    members!(headwise_tensor: data 0, shape 8, strides 40, dtype 72, reserved 76);
    assert_eq!(size_of::<headwise_sizes>(), 16);
    members!(headwise_sizes: data 0, count 8);
    assert_eq!(size_of::<headwise_ids>(), 16);
    members!(headwise_ids: data 0, count 8);
    assert_eq!(size_of::<headwise_floats>(), 16);
    members!(headwise_floats: data 0, count 8);
    assert_eq!(size_of::<headwise_words>(), 16);
    members!(headwise_words: data 0, count 8);
    assert_eq!(size_of::<headwise_sequences>(), 16);
    members!(headwise_sequences: data 0, count 8);
    assert_eq!(size_of::<headwise_sequence>(), 16);
    members!(headwise_sequence: place 0, generation 8);
    assert_eq!(size_of::<headwise_pick>(), 40);
    members!(headwise_pick: kind 0, reserved 4, begin 8, end 16, list 24);
    assert_eq!(size_of::<headwise_state>(), 16);
    members!(headwise_state: out 0, lse 8);
    assert_eq!(size_of::<headwise_row>(), 32);
    members!(headwise_row: batch 0, head 8, query 16, position 24);
    assert_eq!(size_of::<headwise_error>(), 512);
    members!(headwise_error: size 0, status 8, reserved 12, message 16);
}

#[test]
fn what_may_grow_began_so() {
    assert_eq!(headwise_attention_call::LEAST, 80);
    members!(headwise_attention_call: size 0, query 8, key 16, value 24, cache 32, sequences 40,
        options 56, outputs 64, isa 72);
    assert_eq!(headwise_options::LEAST, 368);
    members!(headwise_options: size 0, scale 8, scale_value 12, causal 16, window_sides 20,
        causal_offset 24, window_left 32, window_right 40, prefix 48, key_lengths 64, key_starts 80,
        ragged_query 96, ragged_key 112, query_offsets 128, document_query 144, document_key 160,
        document_query_offsets 176, document_key_offsets 192, tree_nodes 208, tree_bits 216,
        blocks 232, block_q 240, block_kv 248, mask 256, packed_mask 264, bias 272, softcap 280,
        alibi 284, alibi_slopes 288, sinks 304, relative_bias 320, term 328, term_context 336,
        executor 344, max_threads 352, isa 360, algorithm 364, value_scales 368,
        precision 384, reserved 388);
    assert_eq!(headwise_outputs::LEAST, 232);
    members!(headwise_outputs: size 0, out 8, lse 16, weights 24, weights_heads 32,
        weights_queries 72, scores 112, scores_heads 120, scores_queries 160, scores_stage 200,
        reserved 204, column_sums 208, top_k_keys 216, top_k_weights 224);
    assert_eq!(headwise_executor::LEAST, 40);
    members!(headwise_executor: size 0, context 8, threads 16, run 24, least_parallel_work 32);
    assert_eq!(headwise_workspace_options::LEAST, 56);
    members!(headwise_workspace_options: size 0, bytes 8, block 16, block_bytes 24, allocate 32,
        release 40, context 48);
    assert_eq!(headwise_cache_options::LEAST, 80);
    members!(headwise_cache_options: size 0, kind 8, dtype 12, kv_heads 16, head_dim 24,
        value_dim 32, sequences 40, capacity 48, pages 56, page_size 64, pages_per_sequence 72);
    assert_eq!(headwise_append_call::LEAST, 56);
    members!(headwise_append_call: size 0, sequences 8, key 24, value 32, offsets 40,
        value_scales 56, norm 72, rope 80, positions 88);
    assert_eq!(headwise_merge_call::LEAST, 56);
    members!(headwise_merge_call: size 0, states 8, count 16, into 24, options 40, isa 48);
    assert_eq!(headwise_relative_bias_options::LEAST, 56);
    members!(headwise_relative_bias_options: size 0, kind 8, reserved 12, table 16, heads 32, low 40,
        max_distance 48);
    assert_eq!(headwise_rope_options::LEAST, 120);
    members!(headwise_rope_options: size 0, layout 8, scaling 12, rotary_dim 16, positions 24,
        base 32, factor 40, original_positions 48, seq_len 56, beta_fast 64, beta_slow 72,
        attention_factor 80, low_freq_factor 88, high_freq_factor 96, cos 104, sin 112,
        fractional 120, reserved 124);
    assert_eq!(headwise_qk_norm_options::LEAST, 32);
    members!(headwise_qk_norm_options: size 0, weight 8, eps 24, reserved 28);
    assert_eq!(headwise_transform_call::LEAST, 80);
    members!(headwise_transform_call: size 0, rows 8, out 16, norm 24, rope 32, start 40, starts 48,
        positions 64);
    assert!(size_of::<headwise_score_tile>() >= 56);
    members!(headwise_score_tile: size 0, scores 8, pitch 16, rows 24, row_count 32, first_key 40,
        key_count 48);
}

#[test]
fn numbers_keep_their_meanings() {
    assert_eq!(HEADWISE_ABI_VERSION, 1);
    assert_eq!((HEADWISE_WINDOW_LEFT, HEADWISE_WINDOW_RIGHT), (1, 2));
    assert_eq!((HEADWISE_NO_KEY, HEADWISE_TILE_ROWS), (u32::MAX, 48));
    assert_eq!(HEADWISE_MESSAGE_SIZE, 496);
    numbers::<headwise_dtype>(&[1, 2, 3, 4, 5, 6, 7, 8]);
    numbers::<headwise_scale>(&[0, 1, 2]);
    numbers::<headwise_causal>(&[0, 1, 2, 3, 4]);
    numbers::<headwise_alibi>(&[0, 1, 2]);
    numbers::<headwise_algorithm>(&[0, 1]);
    numbers::<headwise_precision>(&[0, 1]);
    numbers::<headwise_isa>(&[0, 1, 2, 3, 4, 5]);
    numbers::<headwise_stage>(&[0, 1, 2]);
    numbers::<headwise_pick_kind>(&[0, 1, 2]);
    numbers::<headwise_cache_kind>(&[0, 1, 2]);
    numbers::<headwise_relative_bias_kind>(&[0, 1, 2]);
    numbers::<headwise_rope_layout>(&[0, 1]);
    numbers::<headwise_rope_scaling>(&[0, 1, 2, 3, 4, 5]);
    // Which number is which: `Debug` is the variant's name.
    let names = format!("{:?} {:?}", headwise_dtype::ALL, headwise_isa::ALL);
    assert_eq!(
        names,
        "[F32, F64, F16, Bf16, Bool, U8, U32, I8] [Default, Avx512, Avx2, Neon, Portable, Avx512Bf16]"
    );
    let names = format!("{:?} {:?}", headwise_scale::ALL, headwise_causal::ALL);
    assert_eq!(
        names,
        "[InvSqrtHeadDim, One, Value] [None, BottomRight, TopLeft, Offset, AtLength]"
    );
    let names = format!("{:?} {:?}", headwise_alibi::ALL, headwise_algorithm::ALL);
    assert_eq!(names, "[None, Standard, Slopes] [Auto, Unfused]");
    let names = format!("{:?} {:?}", headwise_stage::ALL, headwise_pick_kind::ALL);
    assert_eq!(names, "[Final, Scaled, Capped] [All, Range, List]");
    assert_eq!(format!("{:?}", headwise_precision::ALL), "[Full, Fast]");
    let kinds = format!("{:?} {:?}", headwise_cache_kind::ALL, headwise_relative_bias_kind::ALL);
    assert_eq!(kinds, "[Contiguous, Ring, Paged] [ByDistance, T5, T5Bidirectional]");
    let ropes = format!("{:?} {:?}", headwise_rope_layout::ALL, headwise_rope_scaling::ALL);
    assert_eq!(ropes, "[HalfSplit, Interleaved] [None, Linear, Ntk, DynamicNtk, Yarn, Llama3]");
    use headwise_status as Status;
    let statuses = [
        Status::Ok,
        Status::Argument,
        Status::Shape,
        Status::Stride,
        Status::Overflow,
        Status::Value,
        Status::Exhausted,
        Status::Isa,
        Status::Unsupported,
        Status::Busy,
        Status::Internal,
    ];
    assert!(statuses.iter().enumerate().all(|(number, &status)| number == status as usize));
}
