// The mathematics between the two passes over memory, scalar and in double: moments of parts -> of
// a block; statistics that are given. kernels/finish-inl.h makes statistics of moments.
// docs/mathematics.md derives every line.
#ifndef GROUPNORM_SRC_FOLD_H
#define GROUPNORM_SRC_FOLD_H

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace groupnorm::detail {

// Of `count` elements: their mean, and m2 = sum (x - mean)^2. m2 is NaN where a kernel's sums
// cannot be trusted (see kernels/kernels.h); extreme.h then takes over.
struct Moments {
  double count;
  double mean;
  double m2;
};

// Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1. Equal means
// stay exactly equal. Not associative in floating point: merges run in an order that the shape
// alone decides.
inline Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  const double count = a.count + b.count;
  const double delta = b.mean - a.mean;
  const double share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

// The moments of `copies` x `lanes` columns of `rows` elements each; the copies of a lane lie
// `stride` apart. A sum of deviations from the first mean, so that equal means stay exactly equal.
inline Moments merge_columns(const double* mean, const double* m2, std::int64_t lanes,
                             std::int64_t copies, std::int64_t stride, double rows) {
  const double first = mean[0];
  const auto columns = static_cast<double>(lanes * copies);
  double sum = 0, within = 0, square = 0;
  for (std::int64_t i = 0; i < copies; ++i) {
    for (std::int64_t l = 0; l < lanes; ++l) {
      const double delta = mean[i * stride + l] - first;
      sum += delta;
      square += delta * delta;
      within += m2[i * stride + l];
    }
  }
  const double shift = sum / columns;
  // Cancels where one column's mean lies far from all the others'; in double that costs at most
  // log2(columns) bits of 53.
  const double between = std::max(square - sum * shift, 0.0);
  return {rows * columns, first + shift, within + rows * between};
}

// A number as the compute type C holds it, and what is left.
struct Split {
  double hi, lo;
};
template <class C>
Split split_as(double value) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();  // see RoundBF16 in simd-inl.h
  if (std::isnan(value)) return {kNan, kNan};
  const auto hi = static_cast<double>(static_cast<C>(value));
  return {hi, value - hi};
}

struct Statistics {
  double mean;
  double rstd;
  // f32 arithmetic on (x - mean) * rstd could overflow: use extreme.h.
  bool extreme;
};

// |x - mean| <= sqrt(m2), so below this bound no f32 difference of elements overflows; and with
// rstd below 2^60, gamma * rstd overflows for |gamma| above 2^67 alone.
inline constexpr double kExtremeM2 = 0x1p200;
inline constexpr double kExtremeMean = 0x1p100;
inline constexpr double kExtremeRstd = 0x1p60;

inline bool needs_extreme(const Spec& spec, bool out_of_range) {
  return out_of_range && spec.data != DType::f64;
}

inline Statistics given(const Spec& spec, const Forward& args, std::int64_t block) {
  const double mean = spec.center ? args.given_mean[block] : 0;
  const double rstd = args.given_rstd[block];
  const bool out_of_range = std::fabs(mean) >= kExtremeMean || std::fabs(rstd) >= kExtremeRstd;
  return {mean, rstd, needs_extreme(spec, out_of_range)};
}

}  // namespace groupnorm::detail

#endif
