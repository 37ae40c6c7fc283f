#include "extreme.h"

#include "dtype.h"

#include <cmath>
#include <numbers>

namespace groupnorm::detail {
namespace {

double activate(Activation activation, double z) {
  const auto gate = [z](double u) { return z / (1 + std::exp(-u)); };
  switch (activation) {
    case Activation::relu: return z < 0 ? 0 : z;
    case Activation::silu: return gate(z);
    case Activation::gelu: {
      const double size = std::fabs(z);
      const double tail = size > 64 ? 0 : size * std::erfc(size / std::numbers::sqrt2) / 2;
      return (z < 0 ? 0 : z) - tail;
    }
    case Activation::gelu_tanh:
      return gate(2 * std::sqrt(2 / std::numbers::pi) * z * (1 + 0.044715 * z * z));
    case Activation::hard_swish: return z * (std::fmin(std::fmax(z + 3, 0), 6) / 6);
    case Activation::none: break;
  }
  return z;
}

double derivative(Activation activation, double z) {
  // Of z / (1 + exp(-u)): p + z p q u', q = 1 - p without cancellation.
  const auto gate = [z](double u, double slope) {
    const double e = std::exp(-u), p = 1 / (1 + e), q = 1 / (1 + std::exp(u));
    return p * q == 0 ? p : p + z * p * q * slope;
  };
  switch (activation) {
    case Activation::relu: return z <= 0 ? 0 : 1;
    case Activation::silu: return gate(z, 1);
    case Activation::gelu: {
      const double density = std::exp(-z * z / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      const double phi = std::erfc(-z / std::numbers::sqrt2) / 2;
      return density == 0 ? phi : phi + z * density;
    }
    case Activation::gelu_tanh: {
      const double twice = 2 * std::sqrt(2 / std::numbers::pi);
      return gate(twice * z * (1 + 0.044715 * z * z), twice * (1 + 3 * 0.044715 * z * z));
    }
    case Activation::hard_swish: return z <= -3 ? 0 : z >= 3 ? 1 : z / 3 + 0.5;
    case Activation::none: break;
  }
  return 1;
}

template <class T>
Moments moments(const T* x, std::int64_t count, std::int64_t stride) {
  const auto n = static_cast<double>(count);
  const double first = to_double(x[0]);
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += to_double(x[i * stride]) - first;
  const double mean = first + sum / n;
  double residual = 0, square = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double d = to_double(x[i * stride]) - mean;
    residual += d;
    square += d * d;
  }
  return {n, mean + residual / n, square - residual * residual / n};
}

}  // namespace

Moments extreme_moments(DType dtype, const void* x, std::int64_t count, std::int64_t stride) {
  return visit(dtype, [=](auto element) {
    return moments(static_cast<const decltype(element)*>(x), count, stride);
  });
}

GradientSums extreme_gradient_sums(const ExtremeGradient& args) {
  return visit(args.dtype, [&](auto element) {
    using T = decltype(element);
    const T* const x = static_cast<const T*>(args.x);
    const T* const dy = static_cast<const T*>(args.dy);
    GradientSums sums{0, 0};
    for (std::int64_t i = 0; i < args.count * args.stride; i += args.stride) {
      const double value = to_double(x[i]), z = args.a * (value - args.mean) + args.b;
      const double dz = to_double(dy[i]) * derivative(args.activation, z);
      sums.dz += dz;
      sums.dzx += dz * (value - args.mean_hi);
    }
    return sums;
  });
}

void extreme_gradient_apply(const ExtremeGradient& args, double shift, double slope, void* dx) {
  visit(args.dtype, [&](auto element) {
    using T = decltype(element);
    const T* const x = static_cast<const T*>(args.x);
    const T* const dy = static_cast<const T*>(args.dy);
    for (std::int64_t i = 0; i < args.count * args.stride; i += args.stride) {
      const double value = to_double(x[i]), z = args.a * (value - args.mean) + args.b;
      const double dz = to_double(dy[i]) * derivative(args.activation, z);
      from_double(args.a * dz + (slope * (value - args.mean_hi) + shift), static_cast<T*>(dx) + i);
    }
  });
}

void extreme_apply(const ExtremeApply& args) {
  visit(args.dtype, [&](auto element) {
    using T = decltype(element);
    const T* const x = static_cast<const T*>(args.x);
    T* const y = static_cast<T*>(args.y);
    for (std::int64_t i = 0; i < args.count * args.stride; i += args.stride) {
      const double z = args.a * (to_double(x[i]) - args.mean) + args.b;
      from_double(activate(args.activation, z), y + i);
    }
  });
}

}  // namespace groupnorm::detail
