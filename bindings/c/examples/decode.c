// Attention over a prompt, then decoding with a cache, token by token; both are checked against a
// naive loop. Build: cc -std=c11 decode.c $(pkg-config --cflags --libs headwise) -lm

#include <headwise.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { Q_HEADS = 8, KV_HEADS = 2, TOKENS = 40, PROMPT = 33, DIM = 64 };

// As an engine's projections leave them: token by token, in each token head by head.
static float query[TOKENS][Q_HEADS][DIM], key[TOKENS][KV_HEADS][DIM], value[TOKENS][KV_HEADS][DIM];
static float out[TOKENS][Q_HEADS][DIM];

// A tensor of some tokens of such an array. The axes are [batch, heads, seq, dim]; the strides say
// that in memory tokens come before heads.
static headwise_tensor rows(float *data, size_t heads, size_t first, size_t tokens) {
  ptrdiff_t of_token = (ptrdiff_t)(heads * DIM);
  return (headwise_tensor){
      .data = data + first * heads * DIM,
      .shape = {1, heads, tokens, DIM},
      .strides = {of_token * (ptrdiff_t)tokens, DIM, of_token, 1},
      .dtype = HEADWISE_DTYPE_F32,
  };
}

static void check(headwise_status status, const headwise_error *error) {
  if (status != HEADWISE_STATUS_OK) {
    fprintf(stderr, "%s: %s\n", headwise_status_name(status), error->message);
    exit(1);
  }
}

// The farthest that the outputs from token `first` on are from causal attention in double precision.
static double farthest(size_t first, size_t end) {
  double far = 0;
  for (size_t t = first; t < end; t++) {
    for (size_t h = 0; h < Q_HEADS; h++) {
      size_t kv = h / (Q_HEADS / KV_HEADS);
      double sum = 0, exact[DIM] = {0};
      for (size_t j = 0; j <= t; j++) {
        double score = 0;
        for (size_t d = 0; d < DIM; d++) score += (double)query[t][h][d] * key[j][kv][d];
        double weight = exp(score / sqrt(DIM));
        sum += weight;
        for (size_t d = 0; d < DIM; d++) exact[d] += weight * value[j][kv][d];
      }
      for (size_t d = 0; d < DIM; d++) far = fmax(far, fabs(exact[d] / sum - out[t][h][d]));
    }
  }
  return far;
}

static void fill(float *x, size_t count, unsigned seed) {
  for (size_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(seed >> 8) / (1 << 23) - 1.0f;
  }
}

int main(void) {
  fill(&query[0][0][0], TOKENS * Q_HEADS * DIM, 1);
  fill(&key[0][0][0], TOKENS * KV_HEADS * DIM, 2);
  fill(&value[0][0][0], TOKENS * KV_HEADS * DIM, 3);

  headwise_error error = {.size = sizeof error};
  headwise_workspace *workspace = NULL;
  check(headwise_workspace_create(NULL, &workspace, &error), &error);
  headwise_options options = {.size = sizeof options, .causal = HEADWISE_CAUSAL_BOTTOM_RIGHT};
  headwise_tensor q = rows(&query[0][0][0], Q_HEADS, 0, PROMPT);
  headwise_tensor k = rows(&key[0][0][0], KV_HEADS, 0, PROMPT);
  headwise_tensor v = rows(&value[0][0][0], KV_HEADS, 0, PROMPT);
  headwise_tensor o = rows(&out[0][0][0], Q_HEADS, 0, PROMPT);
  headwise_outputs outputs = {.size = sizeof outputs, .out = &o};
  uint32_t isa = 0;

  // The prompt, its keys and values where they lie.
  headwise_attention_call prompt = {.size = sizeof prompt, .query = &q, .key = &k, .value = &v,
                                    .options = &options, .outputs = &outputs, .isa = &isa};
  check(headwise_attention(&prompt, workspace, &error), &error);
  double far = farthest(0, PROMPT);
  printf("headwise %s on %s\nprompt: off by %.1e\n", headwise_version(), headwise_isa_name(isa), far);

  // A paged cache of one sequence takes the prompt, then a token at a time.
  headwise_cache_options room = {.size = sizeof room, .kind = HEADWISE_CACHE_KIND_PAGED,
                                 .kv_heads = KV_HEADS, .head_dim = DIM, .value_dim = DIM,
                                 .sequences = 1, .pages = 4, .page_size = 16};
  headwise_cache *cache = NULL;
  headwise_sequence sequence;
  check(headwise_cache_create(&room, &cache, &error), &error);
  check(headwise_cache_create_sequence(cache, &sequence, &error), &error);
  headwise_append_call tokens = {.size = sizeof tokens, .sequences = {&sequence, 1}, .key = &k, .value = &v};
  check(headwise_cache_append(cache, &tokens, &error), &error);
  headwise_attention_call step = {.size = sizeof step, .query = &q, .cache = cache,
                                  .sequences = {&sequence, 1}, .options = &options,
                                  .outputs = &outputs};
  for (size_t t = PROMPT; t < TOKENS; t++) {
    q = rows(&query[0][0][0], Q_HEADS, t, 1);
    k = rows(&key[0][0][0], KV_HEADS, t, 1);
    v = rows(&value[0][0][0], KV_HEADS, t, 1);
    o = rows(&out[0][0][0], Q_HEADS, t, 1);
    check(headwise_cache_append(cache, &tokens, &error), &error);
    check(headwise_attention(&step, workspace, &error), &error);
  }
  double far_decoded = farthest(PROMPT, TOKENS);
  printf("decoded: off by %.1e\n", far_decoded);

  headwise_cache_free(&cache);
  headwise_workspace_free(&workspace);
  return far < 1e-5 && far_decoded < 1e-5 ? 0 : 1;
}
