//! Sequences of a paged cache: packed, forgotten in part, and step by step without an allocation.

use std::ptr::{null, null_mut};

use crate::attention::{headwise_attention, headwise_attention_call};
use crate::cache::{
    headwise_append_call, headwise_cache, headwise_cache_append, headwise_cache_create,
    headwise_cache_create_sequence, headwise_cache_evict, headwise_cache_extent,
    headwise_cache_free, headwise_cache_kind, headwise_cache_options, headwise_cache_unused_pages,
    headwise_sequence,
};
use crate::counting::allocations;
use crate::list::{headwise_sequences, headwise_sizes};
use crate::options::{headwise_causal, headwise_options};
use crate::same::{append_call, attend, done, floats, floats_mut, options, outputs, sizes, wave};
use crate::tensor::headwise_tensor;
use crate::workspace::{headwise_workspace, headwise_workspace_create, headwise_workspace_free};

const HEADS: usize = 4;
const SEQ: usize = 70;
const DIM: usize = 16;

/// A paged cache of 40 pages of 16 tokens, with two sequences.
struct Paged {
    cache: *mut headwise_cache,
    names: [headwise_sequence; 2],
}

impl Paged {
    fn new() -> Self {
        let room = headwise_cache_options {
            size: size_of::<headwise_cache_options>(),
            kind: headwise_cache_kind::Paged as u32,
            dtype: 0,
            kv_heads: 2,
            head_dim: DIM,
            value_dim: DIM,
            sequences: 4,
            capacity: 0,
            pages: 40,
            page_size: 16,
            pages_per_sequence: 0,
        };
        let none = headwise_sequence { place: 9, generation: 9 };
        let mut paged = Self { cache: null_mut(), names: [none; 2] };
        // SAFETY: all of it is there.
        unsafe {
            done(|error| headwise_cache_create(&room, &mut paged.cache, error));
            for name in &mut paged.names {
                done(|error| headwise_cache_create_sequence(paged.cache, name, error));
            }
        }
        paged
    }

    fn names(&self) -> headwise_sequences {
        headwise_sequences { data: self.names.as_ptr(), count: 2 }
    }

    fn append(&self, [key, value]: [&headwise_tensor; 2], offsets: headwise_sizes) {
        let sequences = self.names();
        let call = headwise_append_call { sequences, offsets, ..append_call([key, value]) };
        // SAFETY: all of it is there.
        done(|error| unsafe { headwise_cache_append(self.cache, &call, error) });
    }

    fn attend(
        &self,
        query: &headwise_tensor,
        options: &headwise_options,
        out: &headwise_tensor,
        workspace: *mut headwise_workspace,
    ) {
        let call = headwise_attention_call {
            size: size_of::<headwise_attention_call>(),
            query,
            key: null(),
            value: null(),
            cache: self.cache,
            sequences: self.names(),
            options,
            outputs: &outputs(out),
            isa: null_mut(),
        };
        // SAFETY: all of it is there.
        done(|error| unsafe { headwise_attention(&call, workspace, error) });
    }

    fn unused(&self) -> usize {
        let mut pages = 0;
        // SAFETY: all of it is there.
        done(|error| unsafe { headwise_cache_unused_pages(self.cache, &mut pages, error) });
        pages
    }

    /// The positions of the second sequence.
    fn extent(&self) -> (usize, usize) {
        let (mut start, mut end, name) = (9, 9, self.names[1]);
        // SAFETY: all of it is there.
        unsafe {
            done(|error| headwise_cache_extent(self.cache, name, &mut start, &mut end, error));
        }
        (start, end)
    }
}

impl Drop for Paged {
    fn drop(&mut self) {
        // SAFETY: a handle, which nobody uses.
        unsafe { headwise_cache_free(&mut self.cache) };
    }
}

const NO_SIZES: headwise_sizes = headwise_sizes { data: null(), count: 0 };

fn causal() -> headwise_options {
    headwise_options { causal: headwise_causal::BottomRight as u32, ..options() }
}

/// Two sequences, packed on the way in and as queries: what ragged tensors give.
#[test]
fn packed_sequences_and_evicted_ones() {
    let shape = |heads| [1, heads, SEQ, DIM];
    let q = wave(HEADS * SEQ * DIM, 0.71);
    let (k, v) = (wave(2 * SEQ * DIM, 0.37), wave(2 * SEQ * DIM, 1.3));
    let (query, key, value) =
        (floats(&q, shape(HEADS)), floats(&k, shape(2)), floats(&v, shape(2)));
    let cuts = [0, 13, SEQ];
    let mut ragged = vec![0.0; q.len()];
    let of_tensors =
        headwise_options { ragged_query: sizes(&cuts), ragged_key: sizes(&cuts), ..causal() };
    let into = floats_mut(&mut ragged, shape(HEADS));
    attend([&query, &key, &value], &of_tensors, &outputs(&into));

    let paged = Paged::new();
    assert_eq!(paged.unused(), 40);
    paged.append([&key, &value], sizes(&cuts));
    let mut packed = vec![0.0; q.len()];
    let of_cache = headwise_options { query_offsets: sizes(&cuts), ..causal() };
    paged.attend(&query, &of_cache, &floats_mut(&mut packed, shape(HEADS)), null_mut());
    assert!(packed == ragged);

    assert_eq!((paged.unused(), paged.extent()), (35, (0, 57)));
    // SAFETY: all of it is there.
    done(|error| unsafe { headwise_cache_evict(paged.cache, paged.names[1], 35, error) });
    assert_eq!((paged.unused(), paged.extent()), (37, (35, 57)));
    paged.attend(&query, &of_cache, &floats_mut(&mut packed, shape(HEADS)), null_mut());
    let rows = |all: &[f32], row: usize| all[row * DIM..][..DIM].to_vec();
    assert_eq!(rows(&packed, 12), rows(&ragged, 12), "the other sequence is as it was");
    assert_ne!(rows(&packed, SEQ - 1), rows(&ragged, SEQ - 1), "of fewer keys");
}

/// Steps behind the first, over the ends of pages.
#[test]
fn a_step_allocates_nothing() {
    let (q, kv) = (wave(2 * HEADS * DIM, 0.71), wave(2 * 2 * DIM, 0.37));
    let (query, token) = (floats(&q, [2, HEADS, 1, DIM]), floats(&kv, [2, 2, 1, DIM]));
    let mut out = vec![0.0; q.len()];
    let into = floats_mut(&mut out, [2, HEADS, 1, DIM]);
    let options = headwise_options { max_threads: 1, ..causal() };
    let paged = Paged::new();
    let mut workspace = null_mut();
    // SAFETY: all of it is there.
    unsafe { done(|error| headwise_workspace_create(null(), &mut workspace, error)) };
    let step = || {
        paged.append([&token, &token], NO_SIZES);
        paged.attend(&query, &options, &into, workspace);
    };
    step();
    assert_eq!(allocations(|| (0..100).for_each(|_| step())), 0);
    assert_eq!(paged.extent(), (0, 101));
    // SAFETY: nobody uses it.
    unsafe { headwise_workspace_free(&mut workspace) };
}
