#include "verify.h"

#include <algorithm>

#include "dtype.h"
#include "reference.h"

namespace groupnorm::tools {
namespace {

std::int64_t elements_of(const Shape& shape) { return shape.n * shape.c * shape.s; }

// As elements_of, of a shape that may be too large for it.
double count_of(const Shape& shape) {
  return static_cast<double>(shape.n) * static_cast<double>(shape.c) * static_cast<double>(shape.s);
}

testing::Comparison verify_blocks(const Spec& spec, const Forward& args) {
  const Block& block = spec.block;
  const std::int64_t m = block.examples * block.channels * spec.shape.s;
  const std::int64_t blocks = elements_of(spec.shape) / m;
  const std::int64_t taken = std::clamp(kMostVerified / m, std::int64_t{1}, blocks);
  testing::Comparison worst{.error = -1};
  for (std::int64_t i = 0; i < taken; ++i) {
    // The first and the last among them.
    const std::int64_t b = taken == 1 ? 0 : i * ((blocks - 1) / (taken - 1));
    const testing::Extract part =
        testing::extract_block(spec, args, i + 1 == taken ? blocks - 1 : b);
    testing::Comparison comparison = testing::compare(
        part.spec, detail::reference_forward(part.spec, part.data.forward), part.data.y.data());
    comparison.index = part.index_in_whole(comparison.index);
    if (comparison.error > worst.error) worst = comparison;
  }
  return worst;
}

}  // namespace

testing::Comparison verify(const Spec& spec, const Forward& args) {
  if (elements_of(spec.shape) > kMostVerified) return verify_blocks(spec, args);
  return testing::compare(spec, detail::reference_forward(spec, args), args.y);
}

double memory_needed(const Spec& spec) {
  const double elements = count_of(spec.shape);
  const double block = static_cast<double>(spec.block.examples) *
                       static_cast<double>(spec.block.channels) * static_cast<double>(spec.shape.s);
  const double verified = std::min(elements, std::max(block, static_cast<double>(kMostVerified)));
  const auto element = static_cast<double>(detail::size_of(spec.data));
  return 2 * elements * element + verified * 2 * sizeof(double);
}

double gradient_memory_needed(const Spec& spec) {
  // x, y, dy and dx; the reference's z and its scale.
  const auto element = static_cast<double>(detail::size_of(spec.data));
  return count_of(spec.shape) * (4 * element + 2 * sizeof(double));
}

}  // namespace groupnorm::tools
