// Where f32 arithmetic would overflow, or a kernel's sums cannot be trusted, and for pieces shorter
// than a vector: the same results in scalar double, slow, correct for every finite f32, f16 and
// bf16 and for f64 while the sum of squares is finite (|x| up to about 1e150).
#ifndef GROUPNORM_SRC_EXTREME_H
#define GROUPNORM_SRC_EXTREME_H

#include "fold.h"
#include "kernels/kernels.h"

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

// The backward pass of `count` elements of one channel, in double. mean_hi: the mean that the sums
// and `shift` refer to (see kernels.h); z = a * (x - mean) + b.
struct ExtremeGradient {
  DType dtype;
  const void* x;
  const void* dy;
  std::int64_t count, stride;
  double mean, mean_hi, a, b;
  Activation activation;
};
GradientSums extreme_gradient_sums(const ExtremeGradient& args);
// dx = a * dz + (slope * (x - mean_hi) + shift); dx == dy is allowed.
void extreme_gradient_apply(const ExtremeGradient& args, double shift, double slope, void* dx);

}  // namespace groupnorm::detail

#endif
