// NumPy's .npy files: one array of f16, f32 or f64.
//
// A reader of its own, because what it is given may be anything: it checks every byte of the header
// and compares the file's size with the shape before it allocates. (xtensor's xnpy.hpp has no f16,
// parses the header by std::regex and multiplies the shape unchecked.)
#ifndef GROUPNORM_TOOLS_NPY_H
#define GROUPNORM_TOOLS_NPY_H

#include <groupnorm/groupnorm.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "pending_file.h"
#include "testing/cases.h"

namespace groupnorm::tools {

struct Npy {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;  // in C order: the last index runs fastest
  testing::Buffer data;
};

// Format versions 1.0, 2.0 and 3.0, little-endian, C order. Bytes after the array are ignored, as
// by numpy.load. Throws BadInput for everything else, with the reason in one line.
Npy read_npy(const std::filesystem::path& path);

// "[16, 32, 64, 64]"
std::string format_shape(std::span<const std::int64_t> shape);

// The bytes that numpy.save writes. `dtype` is not bf16, which NumPy does not have.
void write_npy(PendingFile& file, DType dtype, std::span<const std::int64_t> shape,
               std::span<const std::byte> data);

}  // namespace groupnorm::tools

#endif
