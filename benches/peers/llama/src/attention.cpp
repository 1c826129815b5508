#include "attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

using Four = std::array<int64_t, 4>;

// The heads of a token side by side, as llama.cpp's cache has them.
static const std::string FLASH = "flash_attn_ext";
// The tokens of a head one behind the other.
static const std::string FLASH_SPLIT = "flash_attn_ext, split heads";
// As llama.cpp computes without flash attention, values transposed in the cache.
static const std::string PRODUCTS = "mul_mat, soft_max_ext, mul_mat";

// The axes of [batch, heads, sequence, dim] in the order in which they are to lie.
static constexpr std::array<int, 4> AS_GIVEN = {0, 1, 2, 3};
static constexpr std::array<int, 4> BY_TOKEN = {0, 2, 1, 3};
static constexpr std::array<int, 4> TRANSPOSED = {0, 1, 3, 2};

// More than the few tensors and the graph of a call need.
static constexpr size_t DESCRIPTIONS = 1 << 20;

const std::vector<std::string> & ways() {
    static const std::vector<std::string> all = {FLASH, FLASH_SPLIT, PRODUCTS};
    return all;
}

Engine::Engine(int threads)
    : pool_(nullptr, ggml_threadpool_free), backend_(ggml_backend_cpu_init()) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    pool_.reset(ggml_threadpool_new(&params));
    if (!pool_ || !backend_) {
        throw std::runtime_error("ggml has no threads or no backend");
    }
    ggml_backend_cpu_set_n_threads(backend(), threads);
    ggml_backend_cpu_set_threadpool(backend(), pool_.get());
}

// A dense array with its axes in another order.
static std::vector<float> permuted(const std::vector<float> & values, const Four & sizes,
                                   const std::array<int, 4> & axes) {
    Four strides = {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
    const auto size = [&](int axis) { return sizes[axes[axis]]; };
    const auto stride = [&](int axis) { return strides[axes[axis]]; };
    std::vector<float> result;
    result.reserve(values.size());
    for (int64_t a = 0; a < size(0); a++) {
        for (int64_t b = 0; b < size(1); b++) {
            for (int64_t c = 0; c < size(2); c++) {
                const float * row = &values[a * stride(0) + b * stride(1) + c * stride(2)];
                for (int64_t d = 0; d < size(3); d++) {
                    result.push_back(row[d * stride(3)]);
                }
            }
        }
    }
    return result;
}

// An input that lies in memory with its axes in another order.
struct Input {
    const std::vector<float> & values;
    Four sizes;
    std::array<int, 4> axes;
    ggml_tensor * tensor;

    Input(ggml_context * context, const std::vector<float> & values, Four sizes,
          std::array<int, 4> axes, ggml_type type = GGML_TYPE_F32)
        : values(values), sizes(sizes), axes(axes) {
        // ggml names the innermost size first.
        const auto size = [&](int axis) { return sizes[axes[axis]]; };
        tensor = ggml_new_tensor_4d(context, type, size(3), size(2), size(1), size(0));
    }

    void fill() const {
        const std::vector<float> laid = permuted(values, sizes, axes);
        if (tensor->type == GGML_TYPE_F32) {
            ggml_backend_tensor_set(tensor, laid.data(), 0, laid.size() * sizeof(float));
            return;
        }
        std::vector<uint8_t> stored(ggml_nbytes(tensor));
        const int64_t width = tensor->ne[0];
        ggml_quantize_chunk(tensor->type, laid.data(), stored.data(), 0,
                            int64_t(laid.size()) / width, width, nullptr);
        ggml_backend_tensor_set(tensor, stored.data(), 0, stored.size());
    }
};

// The result lies as [batch, q_heads, seq_q, value_dim].
static ggml_tensor * products(ggml_context * context, ggml_tensor * query, ggml_tensor * key,
                              ggml_tensor * transposed_value, float scale) {
    ggml_tensor * scores = ggml_mul_mat(context, key, query);
    ggml_tensor * weights = ggml_soft_max_ext(context, scores, nullptr, scale, 0.0f);
    return ggml_mul_mat(context, transposed_value, weights);
}

// A tensor that lies by token, seen as if it lay by head.
static ggml_tensor * by_head(ggml_context * context, ggml_tensor * tensor) {
    return ggml_permute(context, tensor, 0, 2, 1, 3);
}

Attention::Attention(const Engine & engine, const Shape & shape, const std::string & way,
                     const Inputs & inputs)
    : backend_(engine.backend()), context_(ggml_init({DESCRIPTIONS, nullptr, true})) {
    if (std::find(ways().begin(), ways().end(), way) == ways().end()) {
        throw std::runtime_error("no way " + way);
    }
    ggml_context * context = context_.get();
    const auto lies = way == FLASH ? BY_TOKEN : AS_GIVEN;
    const Input query(context, inputs.query,
                      {shape.batch, shape.q_heads, shape.seq_q, shape.head_dim}, AS_GIVEN);
    const Input key(context, inputs.key,
                    {shape.batch, shape.kv_heads, shape.seq_kv, shape.head_dim}, lies, shape.type);
    const Input value(context, inputs.value,
                      {shape.batch, shape.kv_heads, shape.seq_kv, shape.value_dim},
                      way == PRODUCTS ? TRANSPOSED : lies, shape.type);

    const float scale = 1.0f / std::sqrt(float(shape.head_dim));
    if (way == PRODUCTS) {
        out_ = products(context, query.tensor, key.tensor, value.tensor, scale);
    } else {
        const auto seen = [&](ggml_tensor * tensor) {
            return way == FLASH ? by_head(context, tensor) : tensor;
        };
        // Every query sees every key: no mask.
        out_ = ggml_flash_attn_ext(context, query.tensor, seen(key.tensor), seen(value.tensor),
                                   nullptr, scale, 0.0f, 0.0f);
    }
    graph_ = ggml_new_graph(context);
    ggml_build_forward_expand(graph_, out_);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context, backend_));
    if (!buffer_) {
        throw std::runtime_error("ggml has no memory for the tensors");
    }
    for (const Input * input : {&query, &key, &value}) {
        input->fill();
    }
}

void Attention::run() {
    const ggml_status status = ggml_backend_graph_compute(backend_, graph_);
    if (status != GGML_STATUS_SUCCESS) {
        throw std::runtime_error(ggml_status_to_string(status));
    }
}

std::vector<float> Attention::result() const {
    std::vector<float> values(ggml_nelements(out_));
    ggml_backend_tensor_get(out_, values.data(), 0, ggml_nbytes(out_));
    if (out_->op != GGML_OP_FLASH_ATTN_EXT) {
        return values;
    }
    const int64_t * sizes = out_->ne;
    return permuted(values, {sizes[3], sizes[2], sizes[1], sizes[0]}, BY_TOKEN);
}
