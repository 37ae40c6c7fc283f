#include "reference.h"

#include "dtype.h"

#include <algorithm>
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

std::size_t blocks_of(const Spec& spec) {
  return static_cast<std::size_t>(spec.shape.n / spec.block.examples *
                                  (spec.shape.c / spec.block.channels));
}

std::int64_t param_index(const Spec& spec, Index at) { return at.n * spec.param_stride + at.c; }

double param(const Spec& spec, const void* data, Index at, double missing) {
  return data == nullptr ? missing : load_element(spec.param, data, param_index(spec, at));
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

// max |activation''|: how much an error of z enlarges that of dz / dy.
double largest_curvature(Activation activation) {
  switch (activation) {
    case Activation::silu: return 0.5;  // at z = 0, as for the next two:
    case Activation::gelu:              // 2 phi(0) = sqrt(2 / pi)
    case Activation::gelu_tanh: return 0.7978845608028654;
    case Activation::hard_swish: return 1.0 / 3;  // between its kinks
    case Activation::none:
    case Activation::relu: break;
  }
  return 0;
}

// What the gradients of one element are made of. long double holds the cube of an rstd of f64's
// whole range.
struct Point {
  long double centred;  // x - mean
  long double xhat;
  long double dz, dxhat;     // dxhat = gamma dz
  long double dz_magnitude;  // what counts as the size of dz in a scale
  long double dxhat_magnitude;
};

Point point(const Spec& spec, const Backward& args, Index at) {
  const std::int64_t i = offset(spec, at), b = block_of(spec, at);
  const long double mean = spec.center ? args.mean[b] : 0;
  const long double centred = load_element(spec.data, args.x, i) - mean;
  const long double xhat = centred * args.rstd[b];
  const long double dy = load_element(spec.data, args.dy, i);
  const long double gamma = param(spec, args.gamma, at, 1);
  const long double beta = param(spec, args.beta, at, 0);
  const auto z = static_cast<double>(gamma * xhat + beta);
  const long double dz = dy * reference_derivative(spec.activation, z);
  long double magnitude = std::fabs(dz);
  if (const double curvature = largest_curvature(spec.activation); curvature > 0) {
    magnitude += curvature * (1 + std::fabs(gamma * xhat) + std::fabs(beta)) * std::fabs(dy);
  }
  return {.centred = centred,
          .xhat = xhat,
          .dz = dz,
          .dxhat = gamma * dz,
          .dz_magnitude = magnitude,
          .dxhat_magnitude = std::fabs(gamma) * magnitude};
}

// The derivatives of the loss by a block's mean and variance, by the chain rule (Ioffe & Szegedy
// 2015, section 3). The mean acts through xhat alone: d var / d mean = -2 sum (x - mean) / m = 0.
struct BlockGradient {
  long double dmean = 0, dvar = 0;
};

std::vector<BlockGradient> block_gradients(const Spec& spec, const Backward& args) {
  std::vector<BlockGradient> blocks(blocks_of(spec));
  if (spec.given_statistics) return blocks;
  for_each_element(spec.shape, [&](Index at) {
    const auto b = static_cast<std::size_t>(block_of(spec, at));
    const long double rstd = args.rstd[b];
    const Point p = point(spec, args, at);
    if (spec.center) blocks[b].dmean -= p.dxhat * rstd;              // d xhat / d mean = -rstd
    blocks[b].dvar -= p.dxhat * p.centred * rstd * rstd * rstd / 2;  // d rstd / d var = -rstd^3 / 2
  });
  return blocks;
}

void input_gradient(const Spec& spec, const Backward& args, ReferenceGradient* result) {
  const std::vector<BlockGradient> blocks = block_gradients(spec, args);
  const auto m = static_cast<long double>(spec.block.examples * spec.block.channels * spec.shape.s);
  result->dx_scale.assign(blocks.size(), 0);
  for_each_element(spec.shape, [&](Index at) {
    const auto b = static_cast<std::size_t>(block_of(spec, at));
    const long double rstd = args.rstd[b];
    const Point p = point(spec, args, at);
    const long double by_xhat = p.dxhat * rstd;
    const long double by_var = blocks[b].dvar * 2 * p.centred / (m - spec.correction);
    const long double by_mean = blocks[b].dmean / m;
    result->dx[static_cast<std::size_t>(offset(spec, at))] =
        static_cast<double>(by_xhat + by_var + by_mean);
    const long double scale =
        p.dxhat_magnitude * std::fabs(rstd) + std::fabs(by_var) + std::fabs(by_mean);
    result->dx_scale[b] = std::max(result->dx_scale[b], static_cast<double>(scale));
  });
}

// The gradient of gamma or of beta: a sum of terms and the sum of their sizes, in long double.
struct ParameterSums {
  std::vector<long double> sum, scale;
};

// What `held` holds, or zeros.
ParameterSums first_sums(const Spec& spec, const void* held) {
  const auto [n, c, s] = spec.shape;
  const std::int64_t rows = spec.param_stride == 0 ? 1 : n;
  const auto size = static_cast<std::size_t>(rows == 0 ? 0 : (rows - 1) * spec.param_stride + c);
  ParameterSums sums{std::vector<long double>(size), std::vector<long double>(size)};
  if (held == nullptr) return sums;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t channel = 0; channel < c; ++channel) {
      const std::int64_t i = param_index(spec, {row, channel, 0});
      const double value = load_element(spec.param, held, i);
      sums.sum[static_cast<std::size_t>(i)] = value;
      sums.scale[static_cast<std::size_t>(i)] = std::fabs(value);
    }
  }
  return sums;
}

void round_to_double(const std::vector<long double>& from, std::vector<double>* to) {
  to->resize(from.size());
  std::transform(from.begin(), from.end(), to->begin(),
                 [](long double value) { return static_cast<double>(value); });
}

void parameter_gradients(const Spec& spec, const Backward& args, ReferenceGradient* result) {
  ParameterSums gamma = first_sums(spec, args.accumulate ? args.dgamma : nullptr);
  ParameterSums beta = first_sums(spec, args.accumulate ? args.dbeta : nullptr);
  for_each_element(spec.shape, [&](Index at) {
    const auto i = static_cast<std::size_t>(param_index(spec, at));
    const Point p = point(spec, args, at);
    gamma.sum[i] += p.dz * p.xhat;
    gamma.scale[i] += p.dz_magnitude * std::fabs(p.xhat);
    beta.sum[i] += p.dz;
    beta.scale[i] += p.dz_magnitude;
  });
  round_to_double(gamma.sum, &result->dgamma);
  round_to_double(gamma.scale, &result->dgamma_scale);
  round_to_double(beta.sum, &result->dbeta);
  round_to_double(beta.scale, &result->dbeta_scale);
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

double reference_derivative(Activation activation, double z) {
  switch (activation) {
    case Activation::relu: return z <= 0 ? 0 : 1;
    case Activation::silu: {
      const double sigmoid = 1 / (1 + std::exp(-z));
      return sigmoid + z * sigmoid / (1 + std::exp(z));
    }
    case Activation::gelu: {
      const double density = std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi);
      return 0.5 * std::erfc(-z / std::numbers::sqrt2) + z * density;
    }
    case Activation::gelu_tanh: {
      const double root = std::sqrt(2 / std::numbers::pi);
      const double u = root * (z + 0.044715 * z * z * z);
      const double cosh = std::cosh(u);
      return 0.5 * (1 + std::tanh(u)) + 0.5 * z * root * (1 + 3 * 0.044715 * z * z) / (cosh * cosh);
    }
    case Activation::hard_swish:
      if (z <= -3) return 0;
      return z < 3 ? (2 * z + 3) / 6 : 1;
    case Activation::none: break;
  }
  return 1;
}

ReferenceResult reference_forward(const Spec& spec, const Forward& args) {
  const Shape& shape = spec.shape;
  const auto elements = static_cast<std::size_t>(shape.n * shape.c * shape.s);
  ReferenceResult result;
  if (elements == 0) return result;
  const std::size_t blocks = blocks_of(spec);
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
  for_each_element(shape, [&](Index at) {
    const auto b = static_cast<std::size_t>(block_of(spec, at));
    const auto i = static_cast<std::size_t>(offset(spec, at));
    const double x = load_element(spec.data, args.x, offset(spec, at));
    const double scaled = param(spec, args.gamma, at, 1) * ((x - result.mean[b]) * result.rstd[b]);
    const double beta = param(spec, args.beta, at, 0);
    result.y[i] = reference_activation(spec.activation, scaled + beta);
    result.scale[i] = 1 + std::fabs(scaled) + std::fabs(beta);
  });
  return result;
}

ReferenceGradient reference_backward(const Spec& spec, const Backward& args) {
  ReferenceGradient result;
  const auto [n, c, s] = spec.shape;
  result.dx.resize(static_cast<std::size_t>(n * c * s));
  parameter_gradients(spec, args, &result);
  if (!result.dx.empty()) input_gradient(spec, args, &result);
  return result;
}

}  // namespace groupnorm::detail
