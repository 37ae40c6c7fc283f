// Cutting [0, count) into ranges.
#ifndef GROUPNORM_SRC_RANGE_H
#define GROUPNORM_SRC_RANGE_H

#include <algorithm>
#include <cstdint>

namespace groupnorm::detail {

struct Range {
  std::int64_t begin, end;
  constexpr std::int64_t size() const { return end - begin; }
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The index-th range of `size`; the last one may be shorter.
constexpr Range piece(std::int64_t index, std::int64_t size, std::int64_t count) {
  return {index * size, std::min((index + 1) * size, count)};
}

// The index-th of `parts` ranges whose sizes differ by one at most.
constexpr Range share(std::int64_t index, std::int64_t parts, std::int64_t count) {
  if (parts == 1) return {0, count};  // spares small calls two divisions
  const std::int64_t size = count / parts, extra = count % parts;
  const std::int64_t begin = index * size + std::min(index, extra);
  return {begin, begin + size + (index < extra ? 1 : 0)};
}

}  // namespace groupnorm::detail

#endif
