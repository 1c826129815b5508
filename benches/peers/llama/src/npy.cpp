#include "npy.hpp"

#include <fstream>
#include <stdexcept>

// The format's name and version, and two bytes of the length of the description that follows.
static const std::string MAGIC("\x93NUMPY\x01\x00", 8);
static constexpr size_t PREFIX = 10;

std::vector<float> read_npy(const std::string & path, size_t count) {
    std::ifstream file(path, std::ios::binary);
    std::string prefix(PREFIX, '\0');
    file.read(&prefix[0], PREFIX);
    if (!file || prefix.compare(0, MAGIC.size(), MAGIC) != 0) {
        throw std::runtime_error(path + ": expected an array of NumPy's, format 1.0");
    }
    const size_t length = uint8_t(prefix[8]) + 256 * uint8_t(prefix[9]);
    std::string description(length, '\0');
    file.read(&description[0], length);
    for (const char * wanted : {"'descr': '<f4'", "'fortran_order': False"}) {
        if (description.find(wanted) == std::string::npos) {
            throw std::runtime_error(path + ": expected " + wanted + ", got " + description);
        }
    }
    std::vector<float> values(count);
    file.read(reinterpret_cast<char *>(values.data()), count * sizeof(float));
    if (!file || file.peek() != std::ifstream::traits_type::eof()) {
        throw std::runtime_error(path + ": expected " + std::to_string(count) + " numbers");
    }
    return values;
}

void write_npy(const std::string & path, const std::vector<int64_t> & sizes,
               const std::vector<float> & values) {
    std::string description = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
    for (const int64_t size : sizes) {
        description += std::to_string(size) + ", ";
    }
    description += "), }";
    // The numbers begin at a multiple of 64 bytes, after a line break.
    description.append(63 - (PREFIX + description.size()) % 64, ' ');
    description += '\n';
    std::ofstream file(path, std::ios::binary);
    file << MAGIC << char(description.size() % 256) << char(description.size() / 256);
    file << description;
    file.write(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(float));
    file.flush();
    if (!file) {
        throw std::runtime_error(path + ": not written");
    }
}
