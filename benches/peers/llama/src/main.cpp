// Runs the attention of llama.cpp's tensor library for `run.py`: requests on standard input,
// answers on standard output, one JSON object a line; `../../README.md` has the protocol. The
// argument is the number of threads.

#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

#include "attention.hpp"
#include "nlohmann/json.hpp"
#include "npy.hpp"
#include "timed.hpp"

using nlohmann::json;

static ggml_type read_type(const std::string & name) {
    static const std::map<std::string, ggml_type> types = {
        {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"int8", GGML_TYPE_Q8_0}};
    return types.at(name);
}

static Shape read_shape(const json & row) {
    if (row.at("causal") || !row.at("window_left").is_null() || !row.at("document").is_null()) {
        throw std::runtime_error("measured without a mask");
    }
    return {row.at("batch"), row.at("q_heads"), row.at("kv_heads"), row.at("seq_q"),
            row.at("seq_kv"), row.at("head_dim"), row.at("value_dim"),
            read_type(row.value("dtype", "f32"))};
}

static Inputs read_inputs(const Shape & s, const std::string & directory) {
    const auto read = [&](const char * name, int64_t numbers) {
        return read_npy(directory + "/" + name + ".npy", size_t(numbers));
    };
    return {read("query", s.batch * s.q_heads * s.seq_q * s.head_dim),
            read("key", s.batch * s.kv_heads * s.seq_kv * s.head_dim),
            read("value", s.batch * s.kv_heads * s.seq_kv * s.value_dim)};
}

class Worker {
public:
    explicit Worker(int threads) : engine_(threads) {}

    json answer(const json & request) {
        const std::string what = request.at("do");
        if (what == "hello") {
            const json versions = {{"llama-cpp-python", PACKAGE_VERSION}, {"ggml", ggml_version()}};
            return {{"name", "llama.cpp"}, {"versions", versions}};
        }
        if (what == "ways") {
            return {{"ways", ways()}};
        }
        const Key key = {request.at("shape").at("shape"), request.at("way")};
        if (what == "prepare") {
            return prepare(key, request);
        }
        if (what == "sample") {
            return {{"seconds", calls_.at(key).samples(request.at("samples"))}};
        }
        if (what == "drop") {
            calls_.erase(key);
            return json::object();
        }
        throw std::runtime_error("no request " + what);
    }

private:
    // The name of a shape and a way.
    using Key = std::pair<std::string, std::string>;

    json prepare(const Key & key, const json & request) {
        const Shape shape = read_shape(request.at("shape"));
        const std::string directory = request.at("directory");
        const auto attention = std::make_shared<Attention>(
            engine_, shape, key.second, read_inputs(shape, directory));
        Timed timed([attention] { attention->run(); });
        write_npy(directory + "/out.npy",
                  {shape.batch, shape.q_heads, shape.seq_q, shape.value_dim}, attention->result());
        const double seconds = timed.shortest();
        calls_.insert_or_assign(key, std::move(timed));
        return {{"seconds", seconds}};
    }

    Engine engine_;
    std::map<Key, Timed> calls_;
};

int main(int count, char ** arguments) {
    if (count != 2) {
        std::cerr << "usage: " << arguments[0] << " THREADS\n";
        return 2;
    }
    Worker worker(std::stoi(arguments[1]));
    for (std::string line; std::getline(std::cin, line);) {
        json answer;
        try {
            answer = worker.answer(json::parse(line));
        } catch (const std::exception & error) {
            answer = {{"error", error.what()}};
        }
        std::cout << answer.dump() << std::endl;
    }
}
