// What is wrong is said, and nothing is written: null pointers, sizes, numbers that name nothing,
// tensors that do not fit, calls behind a refused one.

#include <headwise.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static headwise_error error = {.size = sizeof error};
static int failed = 0, done = 0;

// A status and a part of the message.
static void expect(int line, headwise_status got, headwise_status status, const char *part) {
  done++;
  if (got != status || error.status != status || !strstr(error.message, part)) {
    fprintf(stderr, "line %d: %s: %s\n  expected %s: ..%s..\n", line, headwise_status_name(got),
            error.message, headwise_status_name(status), part);
    failed++;
  }
}
#define EXPECT(call, status, part) expect(__LINE__, call, HEADWISE_STATUS_##status, part)

static float memory[4 * 3 * 8], out[3 * 8];

static headwise_tensor dense(void *data, size_t seq, size_t dim) {
  return (headwise_tensor){.data = data, .shape = {1, 1, seq, dim},
                           .strides = {(ptrdiff_t)(seq * dim), (ptrdiff_t)(seq * dim), (ptrdiff_t)dim, 1},
                           .dtype = HEADWISE_DTYPE_F32};
}

// A call that is right; each of the following changes one thing.
static headwise_tensor q, k, v, o, mask;
static headwise_options options;
static headwise_outputs outputs;
static headwise_attention_call call;
static headwise_executor executor;

static void reset(void) {
  q = dense(memory, 3, 8);
  k = dense(memory + 24, 3, 8);
  v = dense(memory + 48, 3, 8);
  o = dense(out, 3, 8);
  options = (headwise_options){.size = sizeof options};
  outputs = (headwise_outputs){.size = sizeof outputs, .out = &o};
  call = (headwise_attention_call){.size = sizeof call, .query = &q, .key = &k, .value = &v,
                                   .options = &options, .outputs = &outputs};
}

static headwise_status attend(void) { return headwise_attention(&call, NULL, &error); }

#define WRONG(change, status, part) (reset(), (void)(change), EXPECT(attend(), status, part))

static void calls(void) {
  EXPECT(headwise_attention(NULL, NULL, &error), ARGUMENT, "call: a null pointer");
  WRONG(call.size = 0, ARGUMENT, "call.size: 0, expected sizeof(headwise_attention_call)");
  WRONG(call.size = (size_t)-1, ARGUMENT, "call.size");
  WRONG(options.size = 3, ARGUMENT, "options.size: 3");
  WRONG(outputs.size = 8, ARGUMENT, "outputs.size: 8");
  WRONG(call.query = NULL, ARGUMENT, "query: a null pointer");
  WRONG(call.value = NULL, ARGUMENT, "value: a null pointer");
  WRONG(call.outputs = NULL, ARGUMENT, "outputs: a null pointer");
  WRONG(outputs.out = NULL, ARGUMENT, "outputs.out: a null pointer");
  WRONG(call.query = (headwise_tensor *)((char *)&q + 1), ARGUMENT, "query: address");
  WRONG(q.data = NULL, ARGUMENT, "query.data: a null pointer, expected elements of shape [1, 1, 3, 8]");
  WRONG(q.data = (char *)memory + 1, ARGUMENT, "query.data: address");
  WRONG(q.dtype = 99, ARGUMENT, "query.dtype: 99, expected a headwise_dtype: 1 (F32)");
  WRONG(q.dtype = HEADWISE_DTYPE_BOOL, ARGUMENT, "query.dtype: Bool, expected F32, F16, BF16 or F64");
  WRONG(v.dtype = HEADWISE_DTYPE_U32, ARGUMENT, "value.dtype: U32, expected F32");
  WRONG((outputs.lse = &k, k.dtype = HEADWISE_DTYPE_F16), ARGUMENT, "lse.dtype: F16, expected F32");
  WRONG(k.dtype = HEADWISE_DTYPE_F64, ARGUMENT, "key.dtype: F64, expected F32");
  WRONG(k.shape[3] = 7, SHAPE, "key: shape [1, 1, 3, 7]");
  WRONG(o.shape[2] = 2, SHAPE, "out: shape [1, 1, 2, 8]");
  WRONG(o.strides[2] = 4, STRIDE, "out: strides");
  WRONG((q.shape[3] = 4, k.shape[3] = 4, q.strides[3] = 2), STRIDE, "query: strides");
  WRONG(q.strides[2] = PTRDIFF_MAX, OVERFLOW, "query:");
  WRONG(q.shape[2] = SIZE_MAX, OVERFLOW, "query:");
  WRONG(o.data = memory + 8, VALUE, "out: memory that may be query's too");
  WRONG(outputs.lse = &o, VALUE, "out: memory that may be lse's too");
  reset();
  EXPECT(attend(), OK, "");
}

static void choices(void) {
  WRONG(options.causal = 77, ARGUMENT, "options.causal: 77, expected a headwise_causal: 0 (None)");
  WRONG(options.scale = 3, ARGUMENT, "options.scale: 3");
  WRONG((options.scale = HEADWISE_SCALE_VALUE, options.scale_value = INFINITY), VALUE, "scale");
  WRONG(options.softcap = -1, VALUE, "softcap: -1");
  WRONG(options.window_sides = 4, ARGUMENT, "options.window_sides: 4");
  WRONG(options.isa = 9, ARGUMENT, "options.isa: 9");
  WRONG(options.alibi = 9, ARGUMENT, "options.alibi: 9");
  WRONG(options.algorithm = 2, ARGUMENT, "options.algorithm: 2");
  WRONG(options.precision = 2, ARGUMENT, "options.precision: 2, expected a headwise_precision: 0 (Full), 1 (Fast)");
  WRONG(options.reserved = 1, UNSUPPORTED, "options.reserved: 1");
  WRONG(options.key_lengths.count = 1, ARGUMENT, "options.key_lengths: a null pointer, expected 1 elements");
  size_t lengths[] = {4, 0};
  WRONG((options.key_lengths.data = lengths, options.key_lengths.count = 2), VALUE, "key_lengths");
  WRONG((options.ragged_key.data = lengths, options.ragged_key.count = 2), ARGUMENT, "options.ragged_query: a list");
  float slopes[] = {1, 2};
  WRONG((options.alibi = HEADWISE_ALIBI_SLOPES, options.alibi_slopes.data = slopes,
         options.alibi_slopes.count = 2), VALUE, "2 numbers");
  float factors[8] = {1, 1, 1, 1, 1, 1, 1, 0};
  WRONG(options.value_scales.count = 8, ARGUMENT, "options.value_scales: a null pointer, expected 8 elements");
  WRONG((options.value_scales = (headwise_floats){(float *)((char *)factors + 1), 7}), ARGUMENT, "options.value_scales: address");
  WRONG((options.value_scales = (headwise_floats){factors, 7}), SHAPE, "value_scales: shape [7], expected 1 kv heads of 8");
  WRONG((options.value_scales = (headwise_floats){factors, 8}), VALUE, "value_scales: 0.0, expected positive");
  factors[7] = NAN;
  WRONG((options.value_scales = (headwise_floats){factors, 8}), VALUE, "value_scales: NaN, expected positive");
  unsigned char bytes[] = {1, 1, 2};
  mask = (headwise_tensor){.data = bytes, .shape = {1, 1, 1, 3}, .strides = {0, 0, 0, 1}, .dtype = HEADWISE_DTYPE_BOOL};
  WRONG(options.mask = &mask, VALUE, "options.mask: a byte that is neither 0 nor 1, in row [0, 0, 0]");
  WRONG((options.packed_mask = &mask), ARGUMENT, "options.packed_mask.dtype: Bool, expected U8");
  executor = (headwise_executor){.size = sizeof executor, .threads = 2};
  WRONG(options.executor = &executor, ARGUMENT, "executor.run: a null pointer");
  // An older header's struct: what lies behind it is not looked at.
  reset();
  options.size = offsetof(headwise_options, value_scales);
  options.value_scales.count = 8;
  EXPECT(attend(), OK, "");
  options = (headwise_options){.size = offsetof(headwise_options, precision), .precision = 2, .reserved = 1};
  EXPECT(attend(), OK, "");
  // A newer header's struct: zeros are fine, anything else is not known here.
  struct { headwise_options known; size_t added[2]; } newer = {.added = {0}};
  reset();
  newer.known = (headwise_options){.size = sizeof newer};
  call.options = &newer.known;
  EXPECT(attend(), OK, "");
  newer.added[1] = 1;
  EXPECT(attend(), UNSUPPORTED, "options: something in byte");
}

static void handles(void) {
  headwise_cache_free(NULL);
  headwise_workspace_free(NULL);
  headwise_relative_bias_free(NULL);
  headwise_cache *cache = NULL;
  headwise_cache_free(&cache);
  headwise_workspace *workspace = NULL;
  headwise_workspace_free(&workspace);
  EXPECT(headwise_workspace_create(NULL, NULL, &error), ARGUMENT, "workspace: a null pointer");
  EXPECT(headwise_cache_create(NULL, NULL, &error), ARGUMENT, "cache: a null pointer");
  EXPECT(headwise_relative_bias_create(NULL, NULL, &error), ARGUMENT, "bias: a null pointer");
  headwise_workspace_options given = {.size = sizeof given, .bytes = SIZE_MAX / 2};
  workspace = (headwise_workspace *)memory;
  EXPECT(headwise_workspace_create(&given, &workspace, &error), OVERFLOW, "options.bytes:");
  EXPECT(workspace == NULL ? HEADWISE_STATUS_OVERFLOW : HEADWISE_STATUS_OK, OVERFLOW, "");
  given = (headwise_workspace_options){.size = sizeof given, .block_bytes = 64};
  EXPECT(headwise_workspace_create(&given, &workspace, &error), ARGUMENT, "options.block: a null pointer, expected a block of 64 bytes");
  // A block that is too small, and the same call with one that is not.
  size_t needed = 0;
  reset();
  EXPECT(headwise_workspace_bytes(&call, NULL, &error), ARGUMENT, "bytes: a null pointer");
  EXPECT(headwise_workspace_bytes(&call, &needed, &error), OK, "");
  void *block = malloc(needed + 64);
  given = (headwise_workspace_options){.size = sizeof given, .block = block, .block_bytes = needed / 2};
  EXPECT(headwise_workspace_create(&given, &workspace, &error), OK, "");
  EXPECT(headwise_attention(&call, workspace, &error), EXHAUSTED, "workspace:");
  headwise_workspace_free(&workspace);
  given.block_bytes = needed + 64;
  EXPECT(headwise_workspace_create(&given, &workspace, &error), OK, "");
  EXPECT(headwise_attention(&call, workspace, &error), OK, "");
  headwise_workspace_free(&workspace);
  free(block);

  headwise_cache_options room = {.size = sizeof room, .kind = 5, .kv_heads = 1, .head_dim = 8,
                                 .value_dim = 8, .sequences = 2, .capacity = 4, .pages = 4, .page_size = 2};
  EXPECT(headwise_cache_create(&room, &cache, &error), ARGUMENT, "options.kind: 5");
  room.kind = HEADWISE_CACHE_KIND_CONTIGUOUS;
  room.dtype = HEADWISE_DTYPE_F64;
  EXPECT(headwise_cache_create(&room, &cache, &error), UNSUPPORTED, "options.dtype: F64, expected F32, F16, BF16, I8 or 0");
  room.dtype = 0;
  room.head_dim = 0;
  EXPECT(headwise_cache_create(&room, &cache, &error), VALUE, "options.head_dim: 0, expected at least 1");
  room.head_dim = 8, room.sequences = 0;
  EXPECT(headwise_cache_create(&room, &cache, &error), VALUE, "options.sequences: 0");
  room.sequences = 2;
  room.head_dim = SIZE_MAX / 4;
  EXPECT(headwise_cache_create(&room, &cache, &error), OVERFLOW, "options.");
  // Books that there is no memory for, of pages that there is.
  headwise_cache_options books = {.size = sizeof books, .kind = HEADWISE_CACHE_KIND_PAGED, .kv_heads = 1,
                                  .head_dim = 1, .value_dim = 1, .sequences = UINT32_MAX, .pages = 1,
                                  .page_size = 1, .pages_per_sequence = SIZE_MAX / 64};
  EXPECT(headwise_cache_create(&books, &cache, &error), OVERFLOW, "options.pages_per_sequence");
  room.head_dim = 8;
  EXPECT(headwise_cache_create(&room, &cache, &error), OK, "");
  headwise_sequence first = {.place = 0}, third = {.place = 2}, made;
  EXPECT(headwise_cache_fork_sequence(cache, first, &made, &error), UNSUPPORTED, "a paged cache");
  EXPECT(headwise_cache_truncate(cache, third, 0, &error), VALUE, "sequence: place 2 of generation 0");
  EXPECT(headwise_cache_unused_pages(cache, &needed, &error), UNSUPPORTED, "a paged cache");
  EXPECT(headwise_cache_truncate(cache, first, 1, &error), VALUE, "length: 1, expected 0 to 0");
  EXPECT(headwise_cache_truncate(NULL, first, 1, &error), ARGUMENT, "cache: a null pointer");
  headwise_append_call append = {.size = sizeof append, .sequences = {&first, 1}, .key = &k, .value = &v};
  float factors[8] = {1, 1, 1, 1, 1, 1, 1, -1};
  append.value_scales.count = 8;
  EXPECT(headwise_cache_append(cache, &append, &error), ARGUMENT, "value_scales: a null pointer, expected 8 elements");
  append.value_scales = (headwise_floats){factors, 3};
  EXPECT(headwise_cache_append(cache, &append, &error), SHAPE, "value_scales: shape [3], expected 1 kv heads of 8");
  append.value_scales.count = 8;
  EXPECT(headwise_cache_append(cache, &append, &error), VALUE, "value_scales: -1.0, expected positive, finite factors");
  factors[7] = 2;
  EXPECT(headwise_cache_append(cache, &append, &error), OK, "");
  EXPECT(headwise_cache_truncate(cache, first, 0, &error), OK, "");
  append.value_scales = (headwise_floats){NULL, 0};
  EXPECT(headwise_cache_append(cache, &append, &error), OK, "");
  EXPECT(headwise_cache_append(cache, &append, &error), EXHAUSTED, "capacity: 3 needed, 1 free");
  size_t length = 0;
  EXPECT(headwise_cache_extent(cache, first, NULL, &length, &error), OK, "");
  EXPECT(length == 3 ? HEADWISE_STATUS_OK : HEADWISE_STATUS_VALUE, OK, "");
  append.sequences.data = &third;
  EXPECT(headwise_cache_append(cache, &append, &error), VALUE, "sequences[0]: place 2");
  // Results half of which have no place.
  length = 77;
  EXPECT(headwise_cache_extent(cache, first, &length, (size_t *)((char *)&needed + 1), &error), ARGUMENT, "length: address");
  EXPECT(length == 77 ? HEADWISE_STATUS_ARGUMENT : HEADWISE_STATUS_OK, ARGUMENT, "");
  // Names without a cache; a cache and keys; a batch that is not the cache's.
  WRONG((call.sequences = (headwise_sequences){&first, 1}), ARGUMENT, "sequences: names of sequences, expected none without a cache");
  reset();
  call.cache = cache;
  EXPECT(attend(), ARGUMENT, "key: keys or values and a cache");
  call.key = call.value = NULL;
  EXPECT(attend(), SHAPE, "query: shape");
  headwise_cache_free(&cache);

  room.kind = HEADWISE_CACHE_KIND_PAGED;
  EXPECT(headwise_cache_create(&room, &cache, &error), OK, "");
  append.sequences = (headwise_sequences){NULL, 0};
  EXPECT(headwise_cache_append(cache, &append, &error), ARGUMENT, "sequences: none");
  EXPECT(headwise_cache_create_sequence(cache, NULL, &error), ARGUMENT, "sequence: a null pointer");
  EXPECT(headwise_cache_create_sequence(cache, &made, &error), OK, "");
  EXPECT(headwise_cache_release_sequence(cache, made, &error), OK, "");
  EXPECT(headwise_cache_release_sequence(cache, made, &error), VALUE, "sequence: place 0 of generation 0, expected a sequence that the cache has");
  headwise_sequences gone = {&made, 1};
  reset();
  call.cache = cache, call.key = call.value = NULL, call.sequences = gone;
  EXPECT(attend(), VALUE, "sequences[0]: place 0");
  EXPECT(headwise_cache_unused_pages(cache, NULL, &error), ARGUMENT, "pages: a null pointer");
  EXPECT(headwise_cache_unused_pages(cache, &needed, &error), OK, "");
  EXPECT(needed == 4 ? HEADWISE_STATUS_OK : HEADWISE_STATUS_VALUE, OK, "");
  headwise_cache_free(&cache);
  headwise_cache_free(&cache);
}

static void tables_and_states(void) {
  float table[] = {1, 2, 3};
  headwise_relative_bias *bias = NULL;
  headwise_relative_bias_options of = {.size = sizeof of, .table = {table, 3}, .heads = 2};
  EXPECT(headwise_relative_bias_create(&of, &bias, &error), VALUE, "options.table: a table of 3 numbers");
  of.table.data = NULL;
  EXPECT(headwise_relative_bias_create(&of, &bias, &error), ARGUMENT, "options.table: a null pointer");
  reset();
  headwise_tensor lse = dense(table, 3, 1), other = dense(memory, 2, 8);
  float merged[3];
  headwise_tensor into = dense(merged, 3, 1);
  headwise_state states[] = {{&q, &lse}, {&other, &lse}};
  headwise_merge_call merge = {.size = sizeof merge, .states = states, .count = 2, .into = {&o, &into}};
  EXPECT(headwise_merge_states(&merge, &error), SHAPE, "states[1].out: shape [1, 1, 2, 8], expected [1, 1, 3, 8]");
  states[1] = (headwise_state){&q, NULL};
  EXPECT(headwise_merge_states(&merge, &error), ARGUMENT, "states[1].lse: a null pointer");
  states[1] = (headwise_state){&o, &lse};
  EXPECT(headwise_merge_states(&merge, &error), VALUE, "into.out: memory that may be states[1].out's too");
  states[1] = states[0];
  EXPECT(headwise_merge_states(&merge, &error), OK, "");
  uint32_t isa = 0;
  EXPECT(headwise_isa_default(NULL, &error), ARGUMENT, "isa: a null pointer");
  EXPECT(headwise_isa_default(&isa, &error), OK, "");
  failed += !headwise_isa_is_available(isa);
}

int main(void) {
  calls();
  choices();
  handles();
  tables_and_states();
  // A message that is cut, and none at all.
  headwise_error small = {.size = offsetof(headwise_error, message) + 6};
  reset();
  call.size = 1;
  headwise_attention(&call, NULL, &small);
  failed += strcmp(small.message, "call.") != 0;
  failed += headwise_attention(&call, NULL, NULL) != HEADWISE_STATUS_ARGUMENT;
  failed += strcmp(headwise_status_name(1234), "unknown") != 0 || headwise_isa_is_available(1234);
  failed += headwise_abi_version() != HEADWISE_ABI_VERSION;
  printf("bad input: %d calls, %d failed\n", done, failed);
  return failed > 0;
}
