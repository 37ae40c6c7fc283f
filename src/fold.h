// The mathematics between the two passes over memory, scalar and in double: moments of parts -> of
// a block; statistics that are given or saved; the terms of dx. kernels/finish-inl.h makes
// statistics of moments. docs/mathematics.md derives every line.
#ifndef GROUPNORM_SRC_FOLD_H
#define GROUPNORM_SRC_FOLD_H

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace groupnorm::detail {

// Which sums of deviations from a pilot hold (kernels/moments-inl.h); the others are made again in
// double. Both are variances.
struct Trust {
  double least;       // below it, f32 squares may have underflowed
  double negligible;  // up to it, eps hides the deviations from the pilot; -1: it hides none
};

inline Trust trust_of(const Spec& spec) {
  // f32 squares lose up to 2^-150 each: beside such an eps that is nothing.
  const bool hidden = spec.data == DType::f64 || spec.eps >= 0x1p-100;
  if (!hidden) return {0x1p-100, -1};
  return {-std::numeric_limits<double>::infinity(), spec.eps * 0x1p-24};
}

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

// The moments of `copies` x `lanes` columns, by the deviations of their means from `from`.
inline Moments merge_columns(const double* mean, const double* m2, std::int64_t lanes,
                             std::int64_t copies, std::int64_t stride, double rows, double from) {
  const auto columns = static_cast<double>(lanes * copies);
  double sum = 0, within = 0, square = 0;
  for (std::int64_t i = 0; i < copies; ++i) {
    for (std::int64_t l = 0; l < lanes; ++l) {
      const double delta = mean[i * stride + l] - from;
      sum += delta;
      square += delta * delta;
      within += m2[i * stride + l];
    }
  }
  const double shift = sum / columns;
  // Cancels where `from` lies far from the means; in double that costs at most log2(columns) bits
  // of 53 where it is one of them.
  const double between = std::max(square - sum * shift, 0.0);
  return {rows * columns, from + shift, within + rows * between};
}

// The moments of `copies` x `lanes` columns of `rows` elements each; the copies of a lane lie
// `stride` apart. A sum of deviations from the first mean, so that equal means stay exactly equal;
// of f64 once more from the mean found so, for it has no digits to lose where the first lies far
// from the others.
inline Moments merge_columns(const double* mean, const double* m2, std::int64_t lanes,
                             std::int64_t copies, std::int64_t stride, double rows, DType dtype) {
  const auto merged = [=](double from) {
    return merge_columns(mean, m2, lanes, copies, stride, rows, from);
  };
  const Moments once = merged(mean[0]);
  return dtype == DType::f64 ? merged(once.mean) : once;
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
  // f32 arithmetic on (x - mean) * rstd could overflow: it goes in double (tiles.h).
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
  const double size = std::fabs(rstd);
  // f32 holds few digits of so small an rstd, or none.
  const bool tiny = size != 0 && size <= 1 / kExtremeMean;
  const bool out_of_range = std::fabs(mean) >= kExtremeMean || size >= kExtremeRstd || tiny;
  return {mean, rstd, needs_extreme(spec, out_of_range)};
}

// What forward saved for a block. `f32`: the compute type is.
inline Statistics saved(double mean, double rstd, bool f32) {
  // sqrt(m) / rstd is the most that |x - mean| can be.
  const bool out_of_range =
      std::fabs(mean) >= kExtremeMean || rstd >= kExtremeRstd || rstd <= 1 / kExtremeRstd;
  return {mean, rstd, f32 && out_of_range};
}

// A part of a backward call: sum dz, and sum dz * (x - mean) with the mean as the compute type
// holds it. dz = dy * activation'(a (x - mean) + b).
struct GradientSums {
  double dz, dzx;
};

// dx = a * dz + (slope * (x - mean_hi) + intercept): the line that a whole block has.
struct GradientTerms {
  double intercept, slope;
  bool extreme;  // f32 arithmetic could overflow
};

// What all blocks of a backward call have in common.
struct GradientRule {
  double count;  // m, elements
  int correction;
  bool center;
  bool f32;  // the compute type is
};

//   dx = rstd (gamma dz - D / m - xhat E / (m - correction)),   xhat = (x - mean_hi - mean_lo) rstd
// with D = sum gamma dz and E = rstd sum gamma dz (x - mean) over a block. rstd_d is rstd * D,
// rstd_e that sum times rstd.
inline GradientTerms gradient_terms(const GradientRule& rule, const Statistics& statistics,
                                    double mean_lo, double rstd_d, double rstd_e) {
  const double rstd = statistics.rstd;
  // In this order no factor leaves the range of double before the product does.
  const double slope = -rstd * (rstd * rstd_e) / (rule.count - rule.correction);
  const double intercept = (rule.center ? -rstd_d / rule.count : 0) - slope * mean_lo;
  // A slope that f32 holds with few digits loses them all over the block.
  const bool subnormal = slope != 0 && std::fabs(slope) < 0x1p-126;
  const bool out_of_range =
      subnormal || std::fabs(slope) >= kExtremeRstd || std::fabs(intercept) >= kExtremeRstd;
  return {intercept, slope, statistics.extreme || (rule.f32 && out_of_range)};
}

}  // namespace groupnorm::detail

#endif
