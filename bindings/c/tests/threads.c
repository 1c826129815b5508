// An engine of the kind of ggml: its own threads run a graph, all of them through every node, and meet
// at barriers; its own allocator; a term of its own; a child process. Each gives the bits of a plain
// call.

#define _POSIX_C_SOURCE 200809L

#include <headwise.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HEADS = 4, SEQ = 160, DIM = 64, COUNT = HEADS * SEQ * DIM, THREADS = 3 };

static float query[COUNT], key[COUNT], value[COUNT], expected[COUNT], out[COUNT];
static int failed = 0;

static void require(int holds, const char *what) {
  if (!holds) {
    fprintf(stderr, "failed: %s\n", what);
    failed++;
  }
}

static headwise_tensor dense(float *data) {
  return (headwise_tensor){.data = data, .shape = {1, HEADS, SEQ, DIM},
                           .strides = {COUNT, SEQ * DIM, DIM, 1}, .dtype = HEADWISE_DTYPE_F32};
}

static void attend(float *to, const headwise_options *options, headwise_workspace *workspace) {
  headwise_error error = {.size = sizeof error};
  headwise_tensor q = dense(query), k = dense(key), v = dense(value), o = dense(to);
  headwise_outputs outputs = {.size = sizeof outputs, .out = &o};
  headwise_attention_call call = {.size = sizeof call, .query = &q, .key = &k, .value = &v,
                                  .options = options, .outputs = &outputs};
  memset(to, 0, sizeof out);
  require(headwise_attention(&call, workspace, &error) == HEADWISE_STATUS_OK, error.message);
}

// The same keys and values in pages, with as much scratch memory as the library asks for.
static void attend_cached(float *to, const headwise_options *options) {
  headwise_error error = {.size = sizeof error};
  headwise_cache_options room = {.size = sizeof room, .kind = HEADWISE_CACHE_KIND_PAGED, .kv_heads = HEADS,
                                 .head_dim = DIM, .value_dim = DIM, .sequences = 1, .pages = 10, .page_size = 16};
  headwise_cache *cache = NULL;
  headwise_sequence name;
  require(headwise_cache_create(&room, &cache, &error) == HEADWISE_STATUS_OK, error.message);
  require(headwise_cache_create_sequence(cache, &name, &error) == HEADWISE_STATUS_OK, error.message);
  headwise_tensor q = dense(query), k = dense(key), v = dense(value), o = dense(to);
  headwise_append_call tokens = {.size = sizeof tokens, .sequences = {&name, 1}, .key = &k, .value = &v};
  require(headwise_cache_append(cache, &tokens, &error) == HEADWISE_STATUS_OK, error.message);
  headwise_outputs outputs = {.size = sizeof outputs, .out = &o};
  headwise_attention_call call = {.size = sizeof call, .query = &q, .cache = cache, .sequences = {&name, 1},
                                  .options = options, .outputs = &outputs};
  headwise_workspace_options block = {.size = sizeof block};
  require(headwise_workspace_bytes(&call, &block.block_bytes, &error) == HEADWISE_STATUS_OK, error.message);
  block.block_bytes += 64 - block.block_bytes % 64;
  block.block = aligned_alloc(64, block.block_bytes);
  headwise_workspace *workspace = NULL;
  require(headwise_workspace_create(&block, &workspace, &error) == HEADWISE_STATUS_OK, error.message);
  memset(to, 0, sizeof out);
  require(headwise_attention(&call, workspace, &error) == HEADWISE_STATUS_OK, error.message);
  headwise_workspace_free(&workspace);
  free(block.block);
  headwise_cache_free(&cache);
}

// The engine's threads, and the node that they are at.
static struct {
  pthread_barrier_t begin, end;
  headwise_task task;
  void *data;
  size_t wanted;
  atomic_int runs, calls;
} engine;

// What each of the other threads does at a node of attention; the graph ends without a task.
static void *worker(void *argument) {
  size_t nth = (size_t)(uintptr_t)argument;
  for (;;) {
    pthread_barrier_wait(&engine.begin);
    if (!engine.task) return NULL;
    if (nth < engine.wanted) {
      engine.task(engine.data);
      engine.runs++;
    }
    pthread_barrier_wait(&engine.end);
  }
}

// The first thread calls the library, which hands the work to all of them.
static void run(void *context, size_t threads, headwise_task task, void *data) {
  require(context == &engine, "the context comes back");
  engine.task = task;
  engine.data = data;
  engine.wanted = threads;
  engine.calls++;
  pthread_barrier_wait(&engine.begin);
  task(data);
  pthread_barrier_wait(&engine.end);
}

// One query over many keys of one head: their splits are computed some at a time, a run for each.
enum { LONG = 1 << 16, WIDTH = 16 };
static float keys[LONG * WIDTH], long_expected[WIDTH], long_out[WIDTH];

static void decode(float *to, const headwise_options *options) {
  headwise_error error = {.size = sizeof error};
  headwise_tensor q = {.data = query, .shape = {1, 1, 1, WIDTH}, .strides = {WIDTH, WIDTH, WIDTH, 1},
                       .dtype = HEADWISE_DTYPE_F32};
  headwise_tensor k = {.data = keys, .shape = {1, 1, LONG, WIDTH},
                       .strides = {LONG * WIDTH, LONG * WIDTH, WIDTH, 1}, .dtype = HEADWISE_DTYPE_F32};
  headwise_tensor o = q;
  o.data = to;
  headwise_outputs outputs = {.size = sizeof outputs, .out = &o};
  headwise_attention_call call = {.size = sizeof call, .query = &q, .key = &k, .value = &k,
                                  .options = options, .outputs = &outputs};
  require(headwise_attention(&call, NULL, &error) == HEADWISE_STATUS_OK, error.message);
}

static void own_threads(void) {
  pthread_t threads[THREADS];
  pthread_barrier_init(&engine.begin, NULL, THREADS);
  pthread_barrier_init(&engine.end, NULL, THREADS);
  for (size_t n = 1; n < THREADS; n++)
    pthread_create(&threads[n], NULL, worker, (void *)(uintptr_t)n);
  headwise_executor executor = {.size = sizeof executor, .context = &engine, .threads = THREADS,
                                .run = run, .least_parallel_work = 1};
  headwise_options options = {.size = sizeof options, .executor = &executor};
  attend(out, &options, NULL);
  require(!memcmp(out, expected, sizeof out), "the engine's threads give the same bits");
  require(engine.runs == THREADS - 1, "they took part");
  engine.calls = 0;
  decode(long_out, &options);
  require(engine.calls > 2, "a call may run many tasks, one after the other");
  require(!memcmp(long_out, long_expected, sizeof long_out), "splits give the same bits");
  engine.task = NULL;
  pthread_barrier_wait(&engine.begin);
  for (size_t n = 1; n < THREADS; n++) pthread_join(threads[n], NULL);
}

static size_t held = 0, allocations = 0;

static void *allocate(void *context, size_t size, size_t align) {
  require(context == &held, "the allocator's context comes back");
  held += size;
  allocations++;
  return aligned_alloc(align, size);
}

static void release(void *context, void *data, size_t size, size_t align) {
  (void)context, (void)align;
  held -= size;
  free(data);
}

static void *none(void *context, size_t size, size_t align) {
  (void)context, (void)size, (void)align;
  return NULL;
}

static void own_allocator(const headwise_options *serial) {
  headwise_error error = {.size = sizeof error};
  headwise_workspace_options from = {.size = sizeof from, .allocate = allocate, .release = release, .context = &held};
  headwise_workspace *workspace = NULL;
  require(headwise_workspace_create(&from, &workspace, &error) == HEADWISE_STATUS_OK, error.message);
  attend(out, serial, workspace);
  require(!memcmp(out, expected, sizeof out), "in memory of the allocator's");
  require(held > 64 && allocations == 2, "it grew once");
  attend(out, serial, workspace);
  require(allocations == 2, "and is kept");
  headwise_workspace_free(&workspace);
  require(held == 0 && !workspace, "all of it is given back");

  from.allocate = none;
  headwise_status status = headwise_workspace_create(&from, &workspace, &error);
  require(status == HEADWISE_STATUS_OVERFLOW && !workspace, "no memory is a status");
}

// Keys beyond 100 are hidden, and the scores doubled.
static void half_the_keys(void *context, const headwise_score_tile *tile) {
  for (size_t k = 0; k < tile->key_count; k++) {
    for (size_t r = 0; r < tile->row_count; r++) {
      float *score = &tile->scores[k * tile->pitch + r];
      *score = tile->first_key + k < 100 ? *score * 2 : -HUGE_VALF;
      if (tile->rows[r].head >= HEADS || tile->rows[r].position != (int64_t)tile->rows[r].query)
        *(atomic_int *)context = 1;
    }
  }
}

static void own_term(const headwise_options *serial) {
  atomic_int wrong = 0;
  headwise_options options = *serial;
  options.term = half_the_keys;
  options.term_context = &wrong;
  attend(out, &options, NULL);
  require(!wrong, "a tile's rows are those of the call");
  static float other[COUNT];
  attend_cached(other, &options);
  require(!wrong && !memcmp(out, other, sizeof out), "a term in a call to a cache gives the same bits");
  options = *serial;
  options.scale = HEADWISE_SCALE_VALUE;
  options.scale_value = 2.0f / 8;
  size_t lengths[] = {100};
  options.key_lengths = (headwise_sizes){lengths, 1};
  attend(other, &options, NULL);
  for (size_t i = 0; i < COUNT; i++)
    if (out[i] - other[i] > 1e-5f || other[i] - out[i] > 1e-5f) {
      require(0, "a term is as good as the option");
      break;
    }
}

// The default pool's threads stay in the parent.
static void forked(void) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    attend(out, NULL, NULL);
    _exit(failed || memcmp(out, expected, sizeof out));
  }
  int status = 0;
  require(waitpid(child, &status, 0) == child && status == 0, "a forked child computes the same");
}

int main(void) {
  for (size_t i = 0; i < COUNT; i++) {
    query[i] = (float)((i * 2654435761u) >> 8 & 0xffff) / 32768 - 1;
    key[i] = (float)((i * 2246822519u) >> 8 & 0xffff) / 32768 - 1;
    value[i] = (float)((i * 3266489917u) >> 8 & 0xffff) / 32768 - 1;
  }
  headwise_options serial = {.size = sizeof serial, .max_threads = 1};
  for (size_t i = 0; i < LONG * WIDTH; i++)
    keys[i] = (float)((i * 2654435761u) >> 8 & 0xffff) / 32768 - 1;
  decode(long_expected, &serial);
  attend(expected, NULL, NULL);
  attend(out, &serial, NULL);
  require(!memcmp(out, expected, sizeof out), "one thread gives the same bits");
  own_threads();
  own_allocator(&serial);
  own_term(&serial);
  forked();
  printf("threads: %d failed\n", failed);
  return failed > 0;
}
