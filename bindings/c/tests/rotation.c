// Keys that a cache normalises and rotates on their way in, beside keys that were so by hand: both
// layouts, part of the dimensions, tables of the caller's own, positions of drafts, and what is refused.

#include <headwise.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 2, TOKENS = 5, DIM = 8, ROTARY = 6, PAIRS = ROTARY / 2, POSITIONS = 16 };

static float query[HEADS][1][DIM], key[HEADS][TOKENS][DIM], value[HEADS][TOKENS][DIM];
static float weight[DIM];
static int failed = 0;

static void check(int line, headwise_status status, const headwise_error *error) {
  if (status != HEADWISE_STATUS_OK) {
    fprintf(stderr, "line %d: %s: %s\n", line, headwise_status_name(status), error->message);
    exit(1);
  }
}
static headwise_error error = {.size = sizeof error};
#define CHECK(call) check(__LINE__, call, &error)

static void refused(int line, headwise_status got, headwise_status status, const char *part) {
  if (got != status || !strstr(error.message, part)) {
    fprintf(stderr, "line %d: %s: %s\n  expected %s: ..%s..\n", line, headwise_status_name(got),
            error.message, headwise_status_name(status), part);
    failed++;
  }
}
#define REFUSED(call, status, part) refused(__LINE__, call, HEADWISE_STATUS_##status, part)

static headwise_tensor dense(void *data, size_t heads, size_t seq, size_t dim) {
  ptrdiff_t of_head = (ptrdiff_t)(seq * dim);
  return (headwise_tensor){.data = data, .shape = {1, heads, seq, dim},
                           .strides = {(ptrdiff_t)heads * of_head, of_head, (ptrdiff_t)dim, 1},
                           .dtype = HEADWISE_DTYPE_F32};
}

static void fill(float *x, size_t count, unsigned seed) {
  for (size_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(seed >> 8) / (1 << 23) - 1.0f;
  }
}

// The angle of a pair at a position, stretched twice.
static double angle(size_t position, size_t pair) {
  return (double)position / 2 * pow(500.0, -2.0 * (double)pair / ROTARY);
}

// A row normalised and rotated, as the header says it.
static void by_hand(float *row, size_t position, uint32_t layout) {
  double mean = 0;
  for (size_t d = 0; d < DIM; d++) mean += (double)row[d] * row[d] / DIM;
  for (size_t d = 0; d < DIM; d++) row[d] = (float)(row[d] / sqrt(mean + 1e-5)) * weight[d];
  for (size_t i = 0; i < PAIRS; i++) {
    float *x = &row[layout == HEADWISE_ROPE_LAYOUT_INTERLEAVED ? 2 * i : i];
    float *y = &row[layout == HEADWISE_ROPE_LAYOUT_INTERLEAVED ? 2 * i + 1 : i + PAIRS];
    double c = cos(angle(position, i)), s = sin(angle(position, i)), first = *x, second = *y;
    *x = (float)(first * c - second * s);
    *y = (float)(first * s + second * c);
  }
}

// Attention of a query to the tokens that an append puts into a new cache.
static void attend(headwise_append_call *tokens, headwise_tensor *q, float *out) {
  headwise_cache_options room = {.size = sizeof room, .kv_heads = HEADS, .head_dim = DIM,
                                 .value_dim = DIM, .sequences = 1, .capacity = TOKENS};
  headwise_cache *cache = NULL;
  CHECK(headwise_cache_create(&room, &cache, &error));
  CHECK(headwise_cache_append(cache, tokens, &error));
  headwise_tensor o = dense(out, HEADS, 1, DIM);
  headwise_outputs outputs = {.size = sizeof outputs, .out = &o};
  headwise_attention_call call = {.size = sizeof call, .query = q, .cache = cache, .outputs = &outputs};
  CHECK(headwise_attention(&call, NULL, &error));
  headwise_cache_free(&cache);
}

static void compare(const char *name, const headwise_rope *rope, const headwise_qk_norm *norm,
                    uint32_t layout, const size_t *positions) {
  float rotated[HEADS][1][DIM], keys[HEADS][TOKENS][DIM], hand[HEADS][1][DIM];
  memcpy(keys, key, sizeof keys);
  memcpy(hand, query, sizeof hand);
  for (size_t h = 0; h < HEADS; h++) {
    for (size_t t = 0; t < TOKENS; t++) by_hand(keys[h][t], positions ? positions[t] : t, layout);
    by_hand(hand[h][0], 7, layout);
  }
  headwise_tensor q = dense(query, HEADS, 1, DIM), k = dense(key, HEADS, TOKENS, DIM);
  headwise_tensor v = dense(value, HEADS, TOKENS, DIM), to = dense(rotated, HEADS, 1, DIM);
  headwise_tensor own_q = dense(hand, HEADS, 1, DIM), own_k = dense(keys, HEADS, TOKENS, DIM);
  headwise_transform_call turn = {.size = sizeof turn, .rows = &q, .out = &to, .norm = norm,
                                  .rope = rope, .start = 7};
  CHECK(headwise_transform(&turn, &error));
  headwise_append_call by_cache = {.size = sizeof by_cache, .key = &k, .value = &v, .norm = norm, .rope = rope,
                                   .positions = {positions, positions ? TOKENS : 0}};
  headwise_append_call plain = {.size = sizeof plain, .key = &own_k, .value = &v};
  float got[HEADS * DIM], expected[HEADS * DIM], unrotated[HEADS * DIM];
  attend(&by_cache, &to, got);
  attend(&plain, &own_q, expected);
  plain.key = &k;
  attend(&plain, &q, unrotated);
  double far = 0, changed = 0;
  for (size_t i = 0; i < HEADS * DIM; i++) {
    far = fmax(far, fabs(got[i] - expected[i]));
    changed = fmax(changed, fabs(unrotated[i] - expected[i]));
  }
  if (far > 1e-6 || changed < 1e-2) {
    fprintf(stderr, "%s: off by %.1e, changed by %.1e\n", name, far, changed);
    failed++;
  }
  // In place, and the same bits.
  headwise_tensor place = dense(hand, HEADS, 1, DIM);
  memcpy(hand, query, sizeof hand);
  turn.rows = NULL, turn.out = &place;
  CHECK(headwise_transform(&turn, &error));
  failed += memcmp(hand, rotated, sizeof hand) != 0;
}

static void bad_input(headwise_rope *rope, headwise_qk_norm *norm) {
  headwise_rope *none = rope;
  headwise_rope_options of = {.size = sizeof of, .rotary_dim = 5, .positions = 4};
  REFUSED(headwise_rope_create(&of, NULL, &error), ARGUMENT, "rope: a null pointer");
  REFUSED(headwise_rope_create(NULL, &none, &error), ARGUMENT, "options: a null pointer");
  failed += none != NULL;
  REFUSED(headwise_rope_create(&of, &none, &error), VALUE, "options.rotary_dim: 5, expected an even number");
  of.rotary_dim = 6, of.layout = 2;
  REFUSED(headwise_rope_create(&of, &none, &error), ARGUMENT, "options.layout: 2, expected a headwise_rope_layout");
  of.layout = 0, of.scaling = 9;
  REFUSED(headwise_rope_create(&of, &none, &error), ARGUMENT, "options.scaling: 9");
  of.scaling = HEADWISE_ROPE_SCALING_LINEAR;
  REFUSED(headwise_rope_create(&of, &none, &error), VALUE, "options.factor: 0");
  of.scaling = HEADWISE_ROPE_SCALING_YARN, of.factor = 2;
  REFUSED(headwise_rope_create(&of, &none, &error), VALUE, "options.original_positions: 0");
  of.original_positions = 8, of.fractional = 2;
  REFUSED(headwise_rope_create(&of, &none, &error), ARGUMENT, "options.fractional: 2, expected 0 or 1");
  of.fractional = 0, of.reserved = 1;
  REFUSED(headwise_rope_create(&of, &none, &error), UNSUPPORTED, "options.reserved: 1");
  of.reserved = 0;
  of.scaling = 0, of.base = NAN;
  REFUSED(headwise_rope_create(&of, &none, &error), VALUE, "options.base: NaN");
  of.base = 0, of.positions = SIZE_MAX / 8;
  REFUSED(headwise_rope_create(&of, &none, &error), OVERFLOW, "options.positions: a table of");
  float table[6] = {0};
  headwise_tensor cosines = dense(table, 1, 2, 3), sines = dense(table, 1, 1, 3);
  of.cos = &cosines;
  REFUSED(headwise_rope_create(&of, &none, &error), ARGUMENT, "options.sin: a null pointer");
  of.sin = &sines;
  REFUSED(headwise_rope_create(&of, &none, &error), SHAPE, "options.sin: shape [1, 1, 1, 3], expected [1, 1, 2, 3]");
  cosines.dtype = HEADWISE_DTYPE_F16;
  REFUSED(headwise_rope_create(&of, &none, &error), ARGUMENT, "options.cos.dtype: F16, expected F32");
  headwise_rope_free(NULL);
  headwise_rope_free(&none);

  headwise_qk_norm *neither = NULL;
  headwise_qk_norm_options weights = {.size = sizeof weights};
  REFUSED(headwise_qk_norm_create(&weights, &neither, &error), VALUE, "options.weight: no element");
  weights.weight = (headwise_floats){weight, DIM}, weights.eps = -1;
  REFUSED(headwise_qk_norm_create(&weights, &neither, &error), VALUE, "options.eps: -1");
  weights.eps = 0, weights.reserved = 1;
  REFUSED(headwise_qk_norm_create(&weights, &neither, &error), UNSUPPORTED, "options.reserved: 1");
  headwise_qk_norm_free(&neither);

  // A cache of shorter rows than the table and the norm are of.
  headwise_cache_options room = {.size = sizeof room, .kv_heads = HEADS, .head_dim = 4, .value_dim = 4,
                                 .sequences = 1, .capacity = 2 * POSITIONS};
  headwise_cache *cache = NULL;
  CHECK(headwise_cache_create(&room, &cache, &error));
  headwise_tensor k = dense(key, HEADS, TOKENS, 4);
  headwise_append_call append = {.size = sizeof append, .key = &k, .value = &k, .rope = rope};
  REFUSED(headwise_cache_append(cache, &append, &error), VALUE, "rotary_dim: 6, expected at most head_dim, 4");
  append.rope = NULL, append.norm = norm;
  REFUSED(headwise_cache_append(cache, &append, &error), SHAPE, "weight of the norm: shape [8], expected [4]");
  append.norm = (headwise_qk_norm *)((char *)norm + 1);
  REFUSED(headwise_cache_append(cache, &append, &error), ARGUMENT, "norm: address");
  headwise_cache_free(&cache);
  room.head_dim = DIM;
  CHECK(headwise_cache_create(&room, &cache, &error));
  k = dense(key, HEADS, TOKENS, DIM);
  headwise_tensor v = dense(value, HEADS, TOKENS, 4);
  size_t far[TOKENS] = {0, 1, 2, 3, POSITIONS};
  append = (headwise_append_call){.size = sizeof append, .key = &k, .value = &v, .rope = rope,
                                  .positions = {far, TOKENS}};
  REFUSED(headwise_cache_append(cache, &append, &error), VALUE, "position: 16, expected below 16");
  append.positions.count = 2;
  REFUSED(headwise_cache_append(cache, &append, &error), SHAPE, "positions: shape [2], expected [5]");
  append.positions = (headwise_sizes){NULL, 1};
  REFUSED(headwise_cache_append(cache, &append, &error), ARGUMENT, "positions: a null pointer");
  size_t length = 9;
  CHECK(headwise_cache_extent(cache, (headwise_sequence){.place = 0}, NULL, &length, &error));
  failed += length != 0;
  headwise_cache_free(&cache);

  headwise_transform_call turn = {.size = sizeof turn, .rows = &k, .rope = rope};
  REFUSED(headwise_transform(&turn, &error), ARGUMENT, "out: a null pointer");
  turn.out = &k;
  REFUSED(headwise_transform(&turn, &error), VALUE, "out: memory that may be rows's too");
  turn.out = &v;
  REFUSED(headwise_transform(&turn, &error), SHAPE, "out: shape [1, 2, 5, 4], expected [1, 2, 5, 8]");
  turn.rows = NULL, turn.out = &k, turn.start = 1, turn.positions = (headwise_sizes){far, TOKENS};
  REFUSED(headwise_transform(&turn, &error), ARGUMENT, "positions: more than one of start, starts and positions");
  turn.start = 0;
  REFUSED(headwise_transform(&turn, &error), VALUE, "position: 16");
  REFUSED(headwise_transform(NULL, &error), ARGUMENT, "call: a null pointer");
}

int main(void) {
  fill(&query[0][0][0], HEADS * DIM, 1);
  fill(&key[0][0][0], HEADS * TOKENS * DIM, 2);
  fill(&value[0][0][0], HEADS * TOKENS * DIM, 3);
  fill(weight, DIM, 4);
  headwise_qk_norm *norm = NULL;
  headwise_qk_norm_options weights = {.size = sizeof weights, .weight = {weight, DIM}, .eps = 1e-5f};
  CHECK(headwise_qk_norm_create(&weights, &norm, &error));
  const size_t drafts[TOKENS] = {3, 4, 4, 5, 5};
  for (uint32_t layout = 0; layout < 2; layout++) {
    headwise_rope *rope = NULL;
    headwise_rope_options numbers = {.size = sizeof numbers, .layout = layout,
                                     .scaling = HEADWISE_ROPE_SCALING_LINEAR, .factor = 2, .base = 500,
                                     .rotary_dim = ROTARY, .positions = POSITIONS};
    CHECK(headwise_rope_create(&numbers, &rope, &error));
    compare("by numbers", rope, norm, layout, NULL);
    compare("drafts", rope, norm, layout, drafts);
    if (layout == 0) bad_input(rope, norm);
    headwise_rope_free(&rope);
    failed += rope != NULL;

    // Tables as models keep them, every number twice, of which a tensor takes half.
    static float cosines[POSITIONS][2 * PAIRS], sines[POSITIONS][2 * PAIRS];
    for (size_t p = 0; p < POSITIONS; p++) {
      for (size_t i = 0; i < 2 * PAIRS; i++) {
        cosines[p][i] = (float)cos(angle(p, i % PAIRS));
        sines[p][i] = (float)sin(angle(p, i % PAIRS));
      }
    }
    headwise_tensor c = dense(cosines, 1, POSITIONS, 2 * PAIRS), s = dense(sines, 1, POSITIONS, 2 * PAIRS);
    c.shape[3] = s.shape[3] = PAIRS;
    headwise_rope_options tables = {.size = sizeof tables, .layout = layout, .cos = &c, .sin = &s};
    CHECK(headwise_rope_create(&tables, &rope, &error));
    memset(cosines, 0, sizeof cosines);  // They were copied.
    compare("by tables", rope, norm, layout, NULL);
    headwise_rope_free(&rope);
  }
  headwise_qk_norm_free(&norm);
  printf("rotation: %d failed\n", failed);
  return failed > 0;
}
