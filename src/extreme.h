// Where f32 arithmetic would overflow, or a kernel's sums cannot be trusted, and for pieces shorter
// than a vector: the same results in scalar double, slow, correct for every finite f32, f16 and
// bf16 and for f64 while the sum of squares is finite (|x| up to about 1e150).
#ifndef GROUPNORM_SRC_EXTREME_H
#define GROUPNORM_SRC_EXTREME_H

#include "fold.h"

#include <groupnorm/groupnorm.hpp>

namespace groupnorm::detail {

// `count` elements, `stride` elements apart, by two passes.
Moments extreme_moments(DType dtype, const void* x, std::int64_t count, std::int64_t stride);

// y = activation(a * (x - mean) + b) in double, rounded once; y == x is allowed.
struct ExtremeApply {
  DType dtype;
  const void* x;
  void* y;
  std::int64_t count, stride;
  double mean, a, b;
  Activation activation;
};
void extreme_apply(const ExtremeApply& args);

}  // namespace groupnorm::detail

#endif
