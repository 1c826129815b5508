// The ways in which ggml, llama.cpp's tensor library, computes attention on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

// Of a row of `headwise bench --list --json`.
struct Shape {
    int64_t batch, q_heads, kv_heads, seq_q, seq_kv, head_dim, value_dim;
    // Of keys and values; queries and results are floats.
    ggml_type type = GGML_TYPE_F32;
};

// Arrays of [batch, heads, sequence, dim].
struct Inputs {
    std::vector<float> query, key, value;
};

// The processor and the threads on it.
class Engine {
public:
    explicit Engine(int threads);

    ggml_backend_t backend() const { return backend_.get(); }

private:
    // Outlives the backend that uses it.
    std::unique_ptr<ggml_threadpool, decltype(&ggml_threadpool_free)> pool_;
    ggml_backend_ptr backend_;
};

// The names of the ways.
const std::vector<std::string> & ways();

// A graph and its tensors, laid out as a way likes them.
class Attention {
public:
    Attention(const Engine & engine, const Shape & shape, const std::string & way,
              const Inputs & inputs);

    void run();

    // [batch, q_heads, seq_q, value_dim] of the last run.
    std::vector<float> result() const;

private:
    ggml_backend_t backend_;
    ggml_context_ptr context_;
    ggml_backend_buffer_ptr buffer_;
    ggml_cgraph * graph_;
    ggml_tensor * out_;
};
