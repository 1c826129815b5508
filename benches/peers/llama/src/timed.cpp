#include "timed.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

static constexpr double LEAST_SAMPLE = 5e-3;
static constexpr double WARM_UP = 0.1;
static constexpr double NO_WARM_UP = 0.5;

static double now() {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(time).count();
}

Timed::Timed(std::function<void()> run) : run_(std::move(run)), shortest_(sample(1)) {}

std::vector<double> Timed::samples(int count) {
    const double start = now();
    while (shortest_ < NO_WARM_UP) {
        shortest_ = std::min(shortest_, sample(1));
        if (now() - start >= WARM_UP) {
            break;
        }
    }
    const int repeats = std::max(1, int(std::ceil(LEAST_SAMPLE / shortest_)));
    std::vector<double> seconds;
    for (int i = 0; i < count; i++) {
        seconds.push_back(sample(repeats));
    }
    return seconds;
}

double Timed::sample(int repeats) const {
    const double start = now();
    for (int i = 0; i < repeats; i++) {
        run_();
    }
    return (now() - start) / repeats;
}
