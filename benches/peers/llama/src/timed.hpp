// The samples of a call, taken as `../../worker.py` takes them.
#pragma once

#include <functional>
#include <vector>

// A call with the time of its shortest run so far. Made, it has run once.
class Timed {
public:
    explicit Timed(std::function<void()> run);

    // Seconds per run, `count` times.
    std::vector<double> samples(int count);

    double shortest() const { return shortest_; }

private:
    // Seconds per run, over so many.
    double sample(int repeats) const;

    std::function<void()> run_;
    double shortest_;
};
