// NumPy's files of f32 numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Reads an array, and fails unless it has that many numbers.
std::vector<float> read_npy(const std::string & path, size_t count);

void write_npy(const std::string & path, const std::vector<int64_t> & sizes,
               const std::vector<float> & values);
