#include "reference.h"

#include "dtype.h"

#include <cmath>
#include <numbers>

namespace groupnorm::detail {
namespace {

struct Index {
  std::int64_t n, c, s;
};

std::int64_t offset(const Spec& spec, Index at) {
  const Shape& shape = spec.shape;
  return spec.layout == Layout::channels_first ? (at.n * shape.c + at.c) * shape.s + at.s
                                               : (at.n * shape.s + at.s) * shape.c + at.c;
}

std::int64_t block_of(const Spec& spec, Index at) {
  return at.n / spec.block.examples * (spec.shape.c / spec.block.channels) +
         at.c / spec.block.channels;
}

template <class F>
void for_each_element(const Shape& shape, F&& f) {
  for (std::int64_t n = 0; n < shape.n; ++n) {
    for (std::int64_t c = 0; c < shape.c; ++c) {
      for (std::int64_t s = 0; s < shape.s; ++s) f(Index{n, c, s});
    }
  }
}

// The corrected two-pass algorithm (Chan, Golub & LeVeque 1983, eq. 1.7): a first mean, then the
// sums of the deviations from it, whose own mean repairs both the mean and the variance.
void statistics(const Spec& spec, const Forward& args, ReferenceResult* result) {
  const std::size_t blocks = result->mean.size();
  const auto m = static_cast<double>(spec.block.examples * spec.block.channels * spec.shape.s);
  // long double, so that the sums of 1e8 elements are exact to the last place of double.
  std::vector<long double> first(blocks), sum(blocks), square(blocks);
  const auto x = [&](Index at) { return load_element(spec.data, args.x, offset(spec, at)); };
  const auto block = [&](Index at) { return static_cast<std::size_t>(block_of(spec, at)); };

  if (spec.center) {
    for_each_element(spec.shape, [&](Index at) { first[block(at)] += x(at) / m; });
  }
  for_each_element(spec.shape, [&](Index at) {
    const long double d = x(at) - first[block(at)];
    sum[block(at)] += d;
    square[block(at)] += d * d;
  });
  for (std::size_t b = 0; b < blocks; ++b) {
    const long double shift = spec.center ? sum[b] / m : 0;
    const auto m2 = static_cast<double>(spec.center ? square[b] - sum[b] * shift : square[b]);
    const double spread = (m2 < 0 ? 0 : m2) / (m - spec.correction) + spec.eps;
    result->mean[b] = static_cast<double>(first[b] + shift);
    result->rstd[b] = spread == 0 ? 0 : 1 / std::sqrt(spread);
  }
}

}  // namespace

double reference_activation(Activation activation, double z) {
  switch (activation) {
    case Activation::relu: return z < 0 ? 0 : z;
    case Activation::silu: return z / (1 + std::exp(-z));
    case Activation::gelu: return 0.5 * z * std::erfc(-z / std::numbers::sqrt2);
    case Activation::gelu_tanh: {
      const double u = std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z);
      return 0.5 * z * (1 + std::tanh(u));
    }
    case Activation::hard_swish: return z * std::fmin(std::fmax(z + 3, 0), 6) / 6;
    case Activation::none: break;
  }
  return z;
}

ReferenceResult reference_forward(const Spec& spec, const Forward& args) {
  const Shape& shape = spec.shape;
  const auto elements = static_cast<std::size_t>(shape.n * shape.c * shape.s);
  ReferenceResult result;
  if (elements == 0) return result;
  const auto blocks =
      static_cast<std::size_t>(shape.n / spec.block.examples * (shape.c / spec.block.channels));
  result.y.resize(elements);
  result.scale.resize(elements);
  result.mean.assign(blocks, 0);
  result.rstd.assign(blocks, 0);
  if (spec.given_statistics) {
    for (std::size_t b = 0; b < blocks; ++b) {
      result.mean[b] = spec.center ? args.given_mean[b] : 0;
      result.rstd[b] = args.given_rstd[b];
    }
  } else {
    statistics(spec, args, &result);
  }
  const auto param = [&](const void* data, Index at, double missing) {
    return data == nullptr ? missing
                           : load_element(spec.param, data, at.n * spec.param_stride + at.c);
  };
  for_each_element(shape, [&](Index at) {
    const auto b = static_cast<std::size_t>(block_of(spec, at));
    const auto i = static_cast<std::size_t>(offset(spec, at));
    const double x = load_element(spec.data, args.x, offset(spec, at));
    const double scaled = param(args.gamma, at, 1) * ((x - result.mean[b]) * result.rstd[b]);
    const double beta = param(args.beta, at, 0);
    result.y[i] = reference_activation(spec.activation, scaled + beta);
    result.scale[i] = 1 + std::fabs(scaled) + std::fabs(beta);
  });
  return result;
}

}  // namespace groupnorm::detail
