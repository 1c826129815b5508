/* headwise: fused attention on the CPU. Guide: docs/c.md. Generated from bindings/c/src. */
/* SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef HEADWISE_H
#define HEADWISE_H

#include <stddef.h>
#include <stdint.h>

// `window_sides`: `window_left` counts.
#define HEADWISE_WINDOW_LEFT 1

// `window_sides`: `window_right` counts.
#define HEADWISE_WINDOW_RIGHT 2

// The index in `top_k_keys` where a row sees fewer keys than are asked for.
#define HEADWISE_NO_KEY 4294967295

// Bytes of a message, its end included.
#define HEADWISE_MESSAGE_SIZE 496

// The most rows of a tile.
#define HEADWISE_TILE_ROWS 48

// The version of the interface that this header describes. The same number: what was built with an
// older header of it runs with a newer library.
#define HEADWISE_ABI_VERSION 1

// How a call ended. Numbers keep their meanings; later versions may add some.
enum headwise_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It was done.
  HEADWISE_STATUS_OK = 0,
  // A null or misaligned pointer, a struct's size, or a number that names nothing.
  HEADWISE_STATUS_ARGUMENT = 1,
  // A tensor's shape does not fit the others.
  HEADWISE_STATUS_SHAPE = 2,
  // A tensor's strides cannot be used.
  HEADWISE_STATUS_STRIDE = 3,
  // A size does not fit the machine, or there is not as much memory.
  HEADWISE_STATUS_OVERFLOW = 4,
  // A number is outside its domain.
  HEADWISE_STATUS_VALUE = 5,
  // A cache or a workspace has no room; it is as it was.
  HEADWISE_STATUS_EXHAUSTED = 6,
  // The instruction set is not there.
  HEADWISE_STATUS_ISA = 7,
  // This library does not do that, or not yet.
  HEADWISE_STATUS_UNSUPPORTED = 8,
  // Another thread is using the cache or the workspace.
  HEADWISE_STATUS_BUSY = 9,
  // A mistake in the library. A cache that the call was changing refuses all that follows; outputs
  // may be half written.
  HEADWISE_STATUS_INTERNAL = 10,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_status headwise_status;
#else
typedef uint32_t headwise_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a tensor's elements are.
enum headwise_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // `float`.
  HEADWISE_DTYPE_F32 = 1,
  // `double`; computed without the fused kernels.
  HEADWISE_DTYPE_F64 = 2,
  // IEEE half precision: widened as it is read, computed in `float`, rounded once.
  HEADWISE_DTYPE_F16 = 3,
  // bfloat16, likewise.
  HEADWISE_DTYPE_BF16 = 4,
  // A byte that is 0 or 1: of masks.
  HEADWISE_DTYPE_BOOL = 5,
  // A byte: of masks in bits.
  HEADWISE_DTYPE_U8 = 6,
  // `uint32_t`: of the indices of the largest keys.
  HEADWISE_DTYPE_U32 = 7,
  // A signed byte: of caches, whose rows have a scale each.
  HEADWISE_DTYPE_I8 = 8,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_dtype headwise_dtype;
#else
typedef uint32_t headwise_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The factor on the scores.
enum headwise_scale
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // 1 / sqrt(head_dim).
  HEADWISE_SCALE_INV_SQRT_HEAD_DIM = 0,
  // None.
  HEADWISE_SCALE_ONE = 1,
  // `scale_value`.
  HEADWISE_SCALE_VALUE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_scale headwise_scale;
#else
typedef uint32_t headwise_scale;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where the causal diagonal lies: query `i` sees key `j` if `j <= i + offset`.
enum headwise_causal
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // No causal mask.
  HEADWISE_CAUSAL_NONE = 0,
  // The last query sees the last key: an offset of `seq_kv - seq_q`.
  HEADWISE_CAUSAL_BOTTOM_RIGHT = 1,
  // The first query sees the first key: an offset of 0.
  HEADWISE_CAUSAL_TOP_LEFT = 2,
  // `causal_offset`.
  HEADWISE_CAUSAL_OFFSET = 3,
  // The last query sees the last key that exists: `key_lengths[b] - seq_q`.
  HEADWISE_CAUSAL_AT_LENGTH = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_causal headwise_causal;
#else
typedef uint32_t headwise_causal;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Attention with linear biases.
enum headwise_alibi
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // None.
  HEADWISE_ALIBI_NONE = 0,
  // The slopes of the paper.
  HEADWISE_ALIBI_STANDARD = 1,
  // `alibi_slopes`, one for each query head.
  HEADWISE_ALIBI_SLOPES = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_alibi headwise_alibi;
#else
typedef uint32_t headwise_alibi;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How attention is computed.
enum headwise_algorithm
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The best there is for the element type.
  HEADWISE_ALGORITHM_AUTO = 0,
  // Scores in memory and two products, to compare.
  HEADWISE_ALGORITHM_UNFUSED = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_algorithm headwise_algorithm;
#else
typedef uint32_t headwise_algorithm;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How exact products are.
enum headwise_precision
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // As exact as the types of the tensors allow.
  HEADWISE_PRECISION_FULL = 0,
  // Where there are instructions for it and rows enough to pay, scores of queries and keys rounded to eight
  // bits, at a relative error of about 1 %: docs/numerics.md. As `Full` with `term`, with
  // `HEADWISE_ALGORITHM_UNFUSED` and of F64.
  HEADWISE_PRECISION_FAST = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_precision headwise_precision;
#else
typedef uint32_t headwise_precision;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// An instruction set.
enum headwise_isa
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The one that the environment variable `HEADWISE_ISA` names, or else the widest.
  HEADWISE_ISA_DEFAULT = 0,
  // AVX-512 F, BW, DQ, VL.
  HEADWISE_ISA_AVX512 = 1,
  // AVX2 and FMA.
  HEADWISE_ISA_AVX2 = 2,
  // NEON of aarch64.
  HEADWISE_ISA_NEON = 3,
  // What every machine of the target has.
  HEADWISE_ISA_PORTABLE = 4,
  // AVX-512 with its dot products of `bf16`: queries, keys and values that are all `bf16` are multiplied
  // in pairs, and probabilities rounded.
  HEADWISE_ISA_AVX512_BF16 = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_isa headwise_isa;
#else
typedef uint32_t headwise_isa;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How far a score has come when it is taken.
enum headwise_stage
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Behind all biases and terms: what the softmax sees.
  HEADWISE_STAGE_FINAL = 0,
  // `scale * q . k`.
  HEADWISE_STAGE_SCALED = 1,
  // Behind the softcap.
  HEADWISE_STAGE_CAPPED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_stage headwise_stage;
#else
typedef uint32_t headwise_stage;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How query heads, or queries, are picked.
enum headwise_pick_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // All.
  HEADWISE_PICK_KIND_ALL = 0,
  // From `begin` to before `end`.
  HEADWISE_PICK_KIND_RANGE = 1,
  // Those of `list`, ascending.
  HEADWISE_PICK_KIND_LIST = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_pick_kind headwise_pick_kind;
#else
typedef uint32_t headwise_pick_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What holds the tokens of a sequence.
enum headwise_cache_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // `sequences` sequences of at most `capacity` tokens.
  HEADWISE_CACHE_KIND_CONTIGUOUS = 0,
  // `sequences` sequences, of each the last `capacity` tokens.
  HEADWISE_CACHE_KIND_RING = 1,
  // Sequences that come and go, in pages that they share.
  HEADWISE_CACHE_KIND_PAGED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_cache_kind headwise_cache_kind;
#else
typedef uint32_t headwise_cache_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a table of biases is.
enum headwise_relative_bias_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // `[heads, distances]`, the first column of distance `low`.
  HEADWISE_RELATIVE_BIAS_KIND_BY_DISTANCE = 0,
  // T5's embedding, `[buckets, heads]`, keys before the query alone.
  HEADWISE_RELATIVE_BIAS_KIND_T5 = 1,
  // T5's embedding of an encoder, half of whose buckets are for keys behind the query.
  HEADWISE_RELATIVE_BIAS_KIND_T5_BIDIRECTIONAL = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_relative_bias_kind headwise_relative_bias_kind;
#else
typedef uint32_t headwise_relative_bias_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Which dimensions turn together, of the first `rotary_dim`.
enum headwise_rope_layout
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // `i` and `i + rotary_dim / 2`: GPT-NeoX, Llama as Hugging Face stores it.
  HEADWISE_ROPE_LAYOUT_HALF_SPLIT = 0,
  // `2 i` and `2 i + 1`: GPT-J, Llama as Meta stores it.
  HEADWISE_ROPE_LAYOUT_INTERLEAVED = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_rope_layout headwise_rope_layout;
#else
typedef uint32_t headwise_rope_layout;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How frequencies are stretched to contexts longer than a model was trained on; docs/kv-cache.md has
// the formulas.
enum headwise_rope_scaling
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Not at all.
  HEADWISE_ROPE_SCALING_NONE = 0,
  // By `factor`.
  HEADWISE_ROPE_SCALING_LINEAR = 1,
  // NTK-aware, by `factor`.
  HEADWISE_ROPE_SCALING_NTK = 2,
  // The same of a sequence of `seq_len` tokens, by `factor` and `original_positions`.
  HEADWISE_ROPE_SCALING_DYNAMIC_NTK = 3,
  // By `factor`, `original_positions`, `beta_fast`, `beta_slow`, `attention_factor`, `fractional`.
  HEADWISE_ROPE_SCALING_YARN = 4,
  // By `factor`, `original_positions`, `low_freq_factor`, `high_freq_factor`.
  HEADWISE_ROPE_SCALING_LLAMA3 = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum headwise_rope_scaling headwise_rope_scaling;
#else
typedef uint32_t headwise_rope_scaling;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Keys and values of past tokens. Several threads may attend to a cache at a time; what changes it
// must be alone, and is refused (HEADWISE_STATUS_BUSY) where it is not.
typedef struct headwise_cache headwise_cache;

// A norm of rows, made once and used in every call.
typedef struct headwise_qk_norm headwise_qk_norm;

// A bias for each query head and distance, made once and used in every call.
typedef struct headwise_relative_bias headwise_relative_bias;

// Cosines and sines of every position, made once and used in every call.
typedef struct headwise_rope headwise_rope;

// Scratch memory for one call at a time, kept from call to call.
typedef struct headwise_workspace headwise_workspace;

// A tensor of four axes, always `[batch, heads, seq, dim]`, whatever their order in memory: strides
// say where things lie. Its memory is the caller's.
typedef struct headwise_tensor {
  // The element at index 0, on a boundary of its type. Inputs are not written to.
  void *data;
  // The extents.
  size_t shape[4];
  // From an element to the next along each axis, in elements. The last axis must be contiguous
  // (1). An input's may be 0 (every index the same element) or negative.
  ptrdiff_t strides[4];
  // A `headwise_dtype`.
  uint32_t dtype;
  // Zero.
  uint32_t reserved;
} headwise_tensor;

// A sequence of a cache. Of a contiguous cache or a ring `place` counts from 0, and `generation` is
// 0; they are always there. Of a paged cache both are what the cache gave, and caches that were told
// the same give the same.
typedef struct headwise_sequence {
  // Which one.
  uint64_t place;
  // How many had its place before.
  uint64_t generation;
} headwise_sequence;

// Sequences of a cache. NULL and 0: none are named.
typedef struct headwise_sequences {
  // As many as `count`.
  const struct headwise_sequence *data;
  // How many.
  size_t count;
} headwise_sequences;

// Sizes, lengths, offsets or indices. NULL and 0: none are given.
typedef struct headwise_sizes {
  // As many as `count`.
  const size_t *data;
  // How many.
  size_t count;
} headwise_sizes;

// Numbers of documents. NULL and 0: none are given.
typedef struct headwise_ids {
  // As many as `count`.
  const int32_t *data;
  // How many.
  size_t count;
} headwise_ids;

// Words of bits. NULL and 0: none are given.
typedef struct headwise_words {
  // As many as `count`.
  const uint64_t *data;
  // How many.
  size_t count;
} headwise_words;

// Floats. NULL and 0: none are given.
typedef struct headwise_floats {
  // As many as `count`.
  const float *data;
  // How many.
  size_t count;
} headwise_floats;

// A query row of a tile.
typedef struct headwise_row {
  // The batch entry, or the sequence of a ragged batch or a cache.
  size_t batch;
  // The query head.
  size_t head;
  // The query, counted from the first of the call, or of the sequence.
  size_t query;
  // Where the query stands among the keys: its own key has this index.
  int64_t position;
} headwise_row;

// Scores of some rows against some keys, behind scale, softcap and biases and before the masks: to
// be changed in place. A score that becomes -INFINITY hides its key.
typedef struct headwise_score_tile {
  // The bytes of this struct, as the library has it.
  size_t size;
  // The score of row `r` and key `first_key + k` is `scores[k * pitch + r]`.
  float *scores;
  // From a key's scores to the next key's.
  size_t pitch;
  // The rows, in no order that may be relied on.
  const struct headwise_row *rows;
  // How many rows: at most `HEADWISE_TILE_ROWS`.
  size_t row_count;
  // The first key.
  size_t first_key;
  // How many keys.
  size_t key_count;
} headwise_score_tile;

// Changes scores in place, each by itself and its place alone. Called by several threads at a time,
// perhaps more than once for a score; must return (no `longjmp`, no exception).
typedef void (*headwise_tile_function)(void *context, const struct headwise_score_tile *tile);

// What each thread calls, with the data that came with it. Both are dead once the `headwise_run` that
// they were handed to has returned: no thread may call the task after that.
typedef void (*headwise_task)(void *data);

// Calls `task(data)` once on each of up to `threads` threads, the calling one among them and
// starting at once, and returns when all these calls have. Calling it less often costs speed alone;
// calling it, or still running it, after `run` has returned is a use of memory that is gone: a thread
// that comes too late must find nothing to call. One call of the library may run any number of tasks,
// one after the other, or none.
typedef void (*headwise_run)(void *context, size_t threads, headwise_task task, void *data);

// Who does the work, instead of a pool that the library starts on first use.
typedef struct headwise_executor {
  // `sizeof(headwise_executor)`.
  size_t size;
  // Handed to `run`.
  void *context;
  // The threads worth using, the caller's own included.
  size_t threads;
  // Runs a task on threads; called by the thread that called the library.
  headwise_run run;
  // The multiply-adds that a call must have before it is worth starting other threads: 50,000 are
  // about 1 us of work on one core. 0: 2,500,000, which fits threads that must be woken.
  uint64_t least_parallel_work;
} headwise_executor;

// What to compute beyond the plain case, and how to run it. All zero but for `size` asks for
// nothing; docs/semantics.md has the meaning of each. "For each sequence" means for each batch entry,
// or for each sequence of a ragged batch or a cache.
typedef struct headwise_options {
  // `sizeof(headwise_options)`.
  size_t size;
  // A `headwise_scale`.
  uint32_t scale;
  // Any finite factor, for `HEADWISE_SCALE_VALUE`.
  float scale_value;
  // A `headwise_causal`.
  uint32_t causal;
  // Which limits of the window count: `HEADWISE_WINDOW_LEFT`, `HEADWISE_WINDOW_RIGHT`, both or 0.
  uint32_t window_sides;
  // For `HEADWISE_CAUSAL_OFFSET`.
  int64_t causal_offset;
  // Keys before a query's own that it sees.
  size_t window_left;
  // Keys behind it.
  size_t window_right;
  // For each sequence, or for all: the first keys that are visible in spite of a causal mask.
  struct headwise_sizes prefix;
  // For each sequence: the keys that exist (padding on the right).
  struct headwise_sizes key_lengths;
  // For each sequence: the first key that exists (padding on the left).
  struct headwise_sizes key_starts;
  // A ragged batch: the first query of each sequence, and the length of the tensor.
  struct headwise_sizes ragged_query;
  // The same of the keys.
  struct headwise_sizes ragged_key;
  // With a cache: queries are packed, the first of each sequence and the length of the tensor.
  struct headwise_sizes query_offsets;
  // Packed documents: the number of each query's.
  struct headwise_ids document_query;
  // The number of each key's.
  struct headwise_ids document_key;
  // Or where each document's queries begin, and the length of the tensor.
  struct headwise_sizes document_query_offsets;
  // The same of the keys.
  struct headwise_sizes document_key_offsets;
  // A tree of draft tokens over so many last keys; 0 for none.
  size_t tree_nodes;
  // For each node the nodes that it sees, a row of `(tree_nodes + 63) / 64` words.
  struct headwise_words tree_bits;
  // A block-sparse pattern: which blocks of keys blocks of queries see, bytes of 0 or 1.
  const struct headwise_tensor *blocks;
  // Queries in a block.
  size_t block_q;
  // Keys in a block.
  size_t block_kv;
  // `[batch, q_heads, seq_q, seq_kv]`, the first three perhaps 1: bytes, 1 sees and 0 hides.
  const struct headwise_tensor *mask;
  // The same in bits, eight keys to a byte, the lowest first: `[.., (seq_kv + 7) / 8]` of U8.
  const struct headwise_tensor *packed_mask;
  // Added to the scores, shaped as `mask`; exactly -INFINITY hides. Of the type that is
  // computed in, and beside F32 also of F16 or BF16.
  const struct headwise_tensor *bias;
  // `softcap * tanh(score / softcap)`; 0 for none.
  float softcap;
  // A `headwise_alibi`.
  uint32_t alibi;
  // For `HEADWISE_ALIBI_SLOPES`.
  struct headwise_floats alibi_slopes;
  // For each query head the logit of a sink.
  struct headwise_floats sinks;
  // A bias by distance.
  const struct headwise_relative_bias *relative_bias;
  // A term of the caller's, behind all others and before the masks.
  headwise_tile_function term;
  // Handed to `term`.
  void *term_context;
  // Who does the work; NULL for the library's own pool.
  const struct headwise_executor *executor;
  // At most so many threads; 0 for as many as there are, 1 for the caller's alone.
  size_t max_threads;
  // A `headwise_isa`.
  uint32_t isa;
  // A `headwise_algorithm`.
  uint32_t algorithm;
  // Values are stored divided by these, `[kv_heads, value_dim]` of positive, finite factors: the
  // output is multiplied by them. `headwise_append_call` divides what goes into a cache.
  struct headwise_floats value_scales;
  // A `headwise_precision`.
  uint32_t precision;
  // 0.
  uint32_t reserved;
} headwise_options;

// Which query heads, or queries, an output has rows of. All zero picks all.
typedef struct headwise_pick {
  // A `headwise_pick_kind`.
  uint32_t kind;
  // Zero.
  uint32_t reserved;
  // For `HEADWISE_PICK_KIND_RANGE`.
  size_t begin;
  // For `HEADWISE_PICK_KIND_RANGE`.
  size_t end;
  // For `HEADWISE_PICK_KIND_LIST`.
  struct headwise_sizes list;
} headwise_pick;

// Where the results go, each in memory that no other tensor of the call has, written and never read
// (it may be uninitialised). NULL for what is not wanted; `out` must be there.
typedef struct headwise_outputs {
  // `sizeof(headwise_outputs)`.
  size_t size;
  // `[batch, q_heads, seq_q, value_dim]`, of F32, F16 or BF16, or of F64 like all of the call. The
  // others are of F32, or F64.
  const struct headwise_tensor *out;
  // The log-sum-exp of each row, natural logarithm, `[batch, q_heads, seq_q, 1]`.
  const struct headwise_tensor *lse;
  // The weights, `[batch, heads picked, queries picked, seq_kv]`.
  const struct headwise_tensor *weights;
  // Of which heads.
  struct headwise_pick weights_heads;
  // Of which queries.
  struct headwise_pick weights_queries;
  // The scores, shaped as the weights; -INFINITY where a key is hidden.
  const struct headwise_tensor *scores;
  // Of which heads.
  struct headwise_pick scores_heads;
  // Of which queries.
  struct headwise_pick scores_queries;
  // At which stage: a `headwise_stage`.
  uint32_t scores_stage;
  // Zero.
  uint32_t reserved;
  // The sum of each key's weights, `[batch, q_heads or kv_heads, 1, seq_kv]`.
  const struct headwise_tensor *column_sums;
  // The keys of the k largest weights of each row, largest first, `[batch, q_heads, seq_q, k]` of
  // U32.
  const struct headwise_tensor *top_k_keys;
  // Their weights, the same shape; both or neither.
  const struct headwise_tensor *top_k_weights;
} headwise_outputs;

// A call: `softmax(scale * query key^T + bias, masked) value`.
typedef struct headwise_attention_call {
  // `sizeof(headwise_attention_call)`.
  size_t size;
  // `[batch, q_heads, seq_q, head_dim]`. Of a cache: `[sequences, q_heads, seq_q, head_dim]`, the
  // last `seq_q` tokens of each.
  const struct headwise_tensor *query;
  // `[batch, kv_heads, seq_kv, head_dim]`; `kv_heads` divides `q_heads`. NULL with a cache.
  const struct headwise_tensor *key;
  // `[batch, kv_heads, seq_kv, value_dim]`. NULL with a cache.
  const struct headwise_tensor *value;
  // Keys and values of past tokens, those of this step appended before.
  const struct headwise_cache *cache;
  // Of a paged cache the sequences, one for each batch entry of the queries. Of others none.
  struct headwise_sequences sequences;
  // NULL: all zero.
  const struct headwise_options *options;
  // Where the results go.
  const struct headwise_outputs *outputs;
  // If not NULL, where the `headwise_isa` that ran goes.
  uint32_t *isa;
} headwise_attention_call;

// Where a call says what was wrong: memory of the caller's, such as `headwise_error error = {.size =
// sizeof error};`. Every call takes NULL for it. There is no other place, and no state.
typedef struct headwise_error {
  // `sizeof(headwise_error)`.
  size_t size;
  // What the call returned.
  headwise_status status;
  // Zero.
  uint32_t reserved;
  // In UTF-8, ends with a zero: the argument, what came and what was expected. Empty behind
  // success, cut short where it is longer than the room.
  char message[HEADWISE_MESSAGE_SIZE];
} headwise_error;

// How much a cache can hold; all of it is allocated when it is made.
typedef struct headwise_cache_options {
  // `sizeof(headwise_cache_options)`.
  size_t size;
  // A `headwise_cache_kind`.
  uint32_t kind;
  // What keys and values are stored in, whatever tokens come in: `HEADWISE_DTYPE_F32`, `F16`, `BF16`
  // or `I8`, each row of which has a scale of its own, or 0 for F32.
  uint32_t dtype;
  // Heads of keys and of values.
  size_t kv_heads;
  // Elements of a head's key.
  size_t head_dim;
  // Elements of a head's value.
  size_t value_dim;
  // Sequences at a time.
  size_t sequences;
  // Contiguous and ring: tokens of a sequence.
  size_t capacity;
  // Paged: pages in all.
  size_t pages;
  // Paged: tokens in a page, 1 to 1024; powers of two from 16 on are fastest.
  size_t page_size;
  // Paged: the most pages of a sequence; 0 for all. The tables take `4 * sequences *
  // pages_per_sequence` bytes, so with 0 the product of all sequences and all pages.
  size_t pages_per_sequence;
} headwise_cache_options;

// Keys and values of new tokens, which are copied.
typedef struct headwise_append_call {
  // `sizeof(headwise_append_call)`.
  size_t size;
  // The sequences, each once, in the order of the tokens. NULL and 0: all of a contiguous cache or
  // a ring.
  struct headwise_sequences sequences;
  // `[sequences, kv_heads, new_tokens, head_dim]`, any strides.
  const struct headwise_tensor *key;
  // `[sequences, kv_heads, new_tokens, value_dim]`, any strides.
  const struct headwise_tensor *value;
  // If given, the tokens lie one behind the other, `[1, kv_heads, tokens, dim]`: the first of each
  // sequence, and how many there are.
  struct headwise_sizes offsets;
  // If given, values are divided by these before they are stored, `[kv_heads, value_dim]` of
  // positive, finite factors: those of `headwise_options`, which multiplies by them again.
  struct headwise_floats value_scales;
  // Keys are normalised; NULL: not.
  const struct headwise_qk_norm *norm;
  // Keys are rotated, behind the norm; NULL: not.
  const struct headwise_rope *rope;
  // If given, the positions to rotate by, one for each token, sequence by sequence, where they are
  // not those at which the tokens go into the cache: drafts of a tree stand at their depth.
  struct headwise_sizes positions;
} headwise_append_call;

// `x / sqrt(mean(x^2) + eps) * weight` over the elements of a row.
typedef struct headwise_qk_norm_options {
  // `sizeof(headwise_qk_norm_options)`.
  size_t size;
  // One for each of `head_dim`, which are copied. Of models that store them less 1 (Gemma's) with
  // 1 added.
  struct headwise_floats weight;
  // Added to the mean, such as 1e-6.
  float eps;
  // Zero.
  uint32_t reserved;
} headwise_qk_norm_options;

// A table of biases.
typedef struct headwise_relative_bias_options {
  // `sizeof(headwise_relative_bias_options)`.
  size_t size;
  // A `headwise_relative_bias_kind`.
  uint32_t kind;
  // Zero.
  uint32_t reserved;
  // The numbers, which are copied.
  struct headwise_floats table;
  // The query heads.
  size_t heads;
  // `ByDistance`: key minus query of the first column.
  int64_t low;
  // T5: the distance from which on all share a bucket.
  size_t max_distance;
} headwise_relative_bias_options;

// A rotary embedding: by a model's numbers, or by tables of the caller's, beside which nothing but
// `layout` counts.
typedef struct headwise_rope_options {
  // `sizeof(headwise_rope_options)`.
  size_t size;
  // A `headwise_rope_layout`.
  uint32_t layout;
  // A `headwise_rope_scaling`.
  uint32_t scaling;
  // The dimensions that are rotated, the first of a row; the others stay.
  size_t rotary_dim;
  // How many positions the table has, from 0 on.
  size_t positions;
  // Pair `i` turns by `base^(-2 i / rotary_dim)` from one position to the next; 0 for 10000.
  double base;
  // How many times as long the context is.
  double factor;
  // The positions that the model was trained on.
  size_t original_positions;
  // Dynamic NTK: the tokens that there are.
  size_t seq_len;
  // YaRN: pairs that turn as often in the original context keep their frequency; 0 for 32.
  double beta_fast;
  // YaRN: pairs that turn no more often are stretched in full; 0 for 1.
  double beta_slow;
  // YaRN: a factor on cosines and sines; 0 for `0.1 ln(factor) + 1`.
  double attention_factor;
  // Llama 3.
  double low_freq_factor;
  // Llama 3.
  double high_freq_factor;
  // Or the cosines, `[1, 1, positions, rotary_dim / 2]` of F32, which are copied.
  const struct headwise_tensor *cos;
  // And the sines, the same shape.
  const struct headwise_tensor *sin;
  // YaRN: 1 if the ends of the ramp stay between dimensions, where models have `truncate: false`; 0 if
  // they are rounded outwards, as published.
  uint32_t fractional;
  // 0.
  uint32_t reserved;
} headwise_rope_options;

// What attention over some keys gives: its output, and how much those keys weigh.
typedef struct headwise_state {
  // `[batch, heads, seq, value_dim]` of F32.
  const struct headwise_tensor *out;
  // The log-sum-exp of each row, `[batch, heads, seq, 1]`; -INFINITY: of no keys.
  const struct headwise_tensor *lse;
} headwise_state;

// States of the same queries over different keys, and where the state over all of them goes.
typedef struct headwise_merge_call {
  // `sizeof(headwise_merge_call)`.
  size_t size;
  // The states.
  const struct headwise_state *states;
  // How many.
  size_t count;
  // Where the merged state goes, in memory of its own.
  struct headwise_state into;
  // NULL, or who does the work: of these `executor`, `max_threads` and `isa` count.
  const struct headwise_options *options;
  // If not NULL, where the `headwise_isa` that ran goes.
  uint32_t *isa;
} headwise_merge_call;

// Rows that are normalised and then rotated, each where it is asked for.
typedef struct headwise_transform_call {
  // `sizeof(headwise_transform_call)`.
  size_t size;
  // Queries or keys, `[batch, heads, seq, head_dim]` of F32, F16 or BF16. NULL: those in `out`,
  // which are changed where they lie.
  const struct headwise_tensor *rows;
  // Where they go, of F32, the same shape.
  const struct headwise_tensor *out;
  // NULL: not normalised.
  const struct headwise_qk_norm *norm;
  // NULL: not rotated.
  const struct headwise_rope *rope;
  // The position of each batch entry's first row.
  size_t start;
  // Or one for each batch entry.
  struct headwise_sizes starts;
  // Or one for each row, batch entry by batch entry: `[batch, seq]`.
  struct headwise_sizes positions;
} headwise_transform_call;

// Gives `size` bytes on a boundary of `align`, or NULL. Must return.
typedef void *(*headwise_allocate)(void *context, size_t size, size_t align);

// Takes back what `headwise_allocate` gave for this size and boundary. Must return.
typedef void (*headwise_release)(void *context, void *data, size_t size, size_t align);

// Where a workspace's memory comes from. With all of it zero from the library's own allocator, as
// calls need it. Either a block or an allocator.
//
// Whatever is given here, these come from the library's own allocator: a workspace's page tables, at
// its first call to a paged cache, and again if the sequences of a call, pages that they share counted
// for each, have more pages than the cache; the packed operands of `HEADWISE_DTYPE_F64` and
// `HEADWISE_ALGORITHM_UNFUSED`; the list of states of `headwise_merge_states`; messages of refusals;
// and the threads of the library's pool.
typedef struct headwise_workspace_options {
  // `sizeof(headwise_workspace_options)`.
  size_t size;
  // Bytes to have from the beginning: see `headwise_workspace_bytes`. Of no account with a block.
  size_t bytes;
  // A block of the caller's, to outlive the workspace, which no tensor of a call may share. It never
  // grows: a call that needs more is refused. On a boundary of 64 bytes nothing of it is lost.
  void *block;
  // Its bytes.
  size_t block_bytes;
  // An allocator of the caller's; both functions or none. Called by the thread that calls the
  // library.
  headwise_allocate allocate;
  // Its other half.
  headwise_release release;
  // Handed to both.
  void *context;
} headwise_workspace_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Computes attention. A call that is refused has written to no output. Without a workspace (NULL)
// the call makes one of its own.
headwise_status headwise_attention(const struct headwise_attention_call *call,
                                   struct headwise_workspace *workspace,
                                   struct headwise_error *error);

// The bytes of workspace with which a call of these shapes and options allocates nothing, but for
// what `headwise_workspace_options` names. Outputs are not looked at.
headwise_status headwise_workspace_bytes(const struct headwise_attention_call *call,
                                         size_t *bytes,
                                         struct headwise_error *error);

// Makes a cache.
headwise_status headwise_cache_create(const struct headwise_cache_options *options,
                                      struct headwise_cache **cache,
                                      struct headwise_error *error);

// Frees a cache that no call uses, and makes the handle NULL.
void headwise_cache_free(struct headwise_cache **cache);

// Appends tokens. A call that is refused leaves the cache as it was.
headwise_status headwise_cache_append(struct headwise_cache *cache,
                                      const struct headwise_append_call *call,
                                      struct headwise_error *error);

// Makes an empty sequence of a paged cache.
headwise_status headwise_cache_create_sequence(struct headwise_cache *cache,
                                               struct headwise_sequence *sequence,
                                               struct headwise_error *error);

// Makes a sequence of a paged cache that begins as another is: the same pages, nothing copied.
headwise_status headwise_cache_fork_sequence(struct headwise_cache *cache,
                                             struct headwise_sequence sequence,
                                             struct headwise_sequence *forked,
                                             struct headwise_error *error);

// Forgets the tokens of a sequence from position `length` on, such as rejected drafts.
headwise_status headwise_cache_truncate(struct headwise_cache *cache,
                                        struct headwise_sequence sequence,
                                        size_t length,
                                        struct headwise_error *error);

// Forgets the tokens of a sequence of a paged cache before position `before`, and gives back the
// pages that held nothing else; positions count on.
headwise_status headwise_cache_evict(struct headwise_cache *cache,
                                     struct headwise_sequence sequence,
                                     size_t before,
                                     struct headwise_error *error);

// Forgets a sequence. Of a paged cache its name means nothing any more; of others it is empty.
headwise_status headwise_cache_release_sequence(struct headwise_cache *cache,
                                                struct headwise_sequence sequence,
                                                struct headwise_error *error);

// The positions of a sequence that exist: from `start` to before `length`. Both may be NULL.
headwise_status headwise_cache_extent(const struct headwise_cache *cache,
                                      struct headwise_sequence sequence,
                                      size_t *start,
                                      size_t *length,
                                      struct headwise_error *error);

// The pages of a paged cache that no sequence holds.
headwise_status headwise_cache_unused_pages(const struct headwise_cache *cache,
                                            size_t *pages,
                                            struct headwise_error *error);

// Makes a norm.
headwise_status headwise_qk_norm_create(const struct headwise_qk_norm_options *options,
                                        struct headwise_qk_norm **norm,
                                        struct headwise_error *error);

// Frees a norm that no call uses, and makes the handle NULL.
void headwise_qk_norm_free(struct headwise_qk_norm **norm);

// Makes a bias.
headwise_status headwise_relative_bias_create(const struct headwise_relative_bias_options *options,
                                              struct headwise_relative_bias **bias,
                                              struct headwise_error *error);

// Frees a bias that no call uses, and makes the handle NULL.
void headwise_relative_bias_free(struct headwise_relative_bias **bias);

// Makes a rotary embedding. A pair `(x, y)` at position `p` becomes `(x cos - y sin, x sin + y cos)`.
headwise_status headwise_rope_create(const struct headwise_rope_options *options,
                                     struct headwise_rope **rope,
                                     struct headwise_error *error);

// Frees a rotary embedding that no call uses, and makes the handle NULL.
void headwise_rope_free(struct headwise_rope **rope);

// Merges states. A row of no keys is the exact identity; of no states the result is 0 and -INFINITY.
headwise_status headwise_merge_states(const struct headwise_merge_call *call,
                                      struct headwise_error *error);

// The name of a status, such as "shape"; "unknown" for a number that is none. The text is constant.
const char *headwise_status_name(uint32_t status);

// Normalises and rotates rows, in one pass. A call that is refused has written nothing.
headwise_status headwise_transform(const struct headwise_transform_call *call,
                                   struct headwise_error *error);

// The library's version, such as "0.1.0". The text is constant.
const char *headwise_version(void);

// The library's `HEADWISE_ABI_VERSION`, to compare with the header's.
uint32_t headwise_abi_version(void);

// The name of a `headwise_isa`, as `HEADWISE_ISA` spells it; "unknown" for a number that is none. The
// text is constant.
const char *headwise_isa_name(uint32_t isa);

// Whether this machine can run a `headwise_isa`; 0 for a number that is none.
int32_t headwise_isa_is_available(uint32_t isa);

// The `headwise_isa` that a call runs in which names none: a status if `HEADWISE_ISA` names nothing
// that this machine can run.
headwise_status headwise_isa_default(uint32_t *isa,
                                     struct headwise_error *error);

// Makes a workspace; NULL options are all zero.
headwise_status headwise_workspace_create(const struct headwise_workspace_options *options,
                                          struct headwise_workspace **workspace,
                                          struct headwise_error *error);

// Frees a workspace that no call uses, and makes the handle NULL.
void headwise_workspace_free(struct headwise_workspace **workspace);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HEADWISE_H */
