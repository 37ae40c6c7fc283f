#include "reference.h"

#include "dtype.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace groupnorm::detail {
namespace {

struct Index {
  std::int64_t n, c, s;
  std::int64_t row;   // of gamma (with param_stride), shift, scale and offset
  std::size_t block;  // whose statistics it takes
};

std::int64_t tensor_index(const Spec& spec, Index at) {
  const Shape& shape = spec.shape;
  return spec.layout == Layout::channels_first ? (at.n * shape.c + at.c) * shape.s + at.s
                                               : (at.n * shape.s + at.s) * shape.c + at.c;
}

std::size_t blocks_of(const Spec& spec) {
  return static_cast<std::size_t>(spec.shape.n / spec.block.examples *
                                  (spec.shape.c / spec.block.channels));
}

std::int64_t param_index(const Spec& spec, Index at) { return at.row * spec.param_stride + at.c; }

std::int64_t row_index(const Spec& spec, Index at) { return at.row * spec.shape.c + at.c; }

double load_or(double missing, DType dtype, const void* data, std::int64_t index) {
  return data == nullptr ? missing : load_element(dtype, data, index);
}

// The elements that are normalized: none behind their example's length.
template <class F>
void for_each_element(const Spec& spec, const std::int64_t* lengths, F&& f) {
  if (spec.shape.c == 0) return;
  const std::int64_t groups = spec.shape.c / spec.block.channels;
  for (std::int64_t n = 0; n < spec.shape.n; ++n) {
    const std::int64_t row = n / spec.sequence;
    const std::int64_t first_block = n / spec.block.examples * groups;
    std::int64_t positions = spec.shape.s;
    if (lengths != nullptr) {
      if (spec.sequence == 1) positions = lengths[n];
      if (spec.sequence != 1 && n % spec.sequence >= lengths[row]) positions = 0;
    }
    for (std::int64_t c = 0; c < spec.shape.c; ++c) {
      Index at{n, c, 0, row, static_cast<std::size_t>(first_block + c / spec.block.channels)};
      for (; at.s < positions; ++at.s) f(at);
    }
  }
}

// m of each block.
std::vector<double> elements_of_blocks(const Spec& spec, const std::int64_t* lengths) {
  if (lengths == nullptr) {
    const std::int64_t elements = spec.block.examples * spec.block.channels * spec.shape.s;
    return std::vector<double>(blocks_of(spec), static_cast<double>(elements));
  }
  std::vector<double> elements(blocks_of(spec));
  for_each_element(spec, lengths, [&](Index at) { elements[at.block] += 1; });
  return elements;
}

// u = (x + skip) + shift, each sum rounded in the compute type, of a Forward or a Backward.
template <class Args>
double input(const Spec& spec, const Args& args, Index at) {
  const auto add = [&](double a, double b) {
    if (spec.data == DType::f64) return a + b;
    return static_cast<double>(static_cast<float>(a) + static_cast<float>(b));
  };
  const std::int64_t i = tensor_index(spec, at);
  double u = load_element(spec.data, args.x, i);
  if (args.skip != nullptr) u = add(u, load_element(spec.data, args.skip, i));
  if (args.shift != nullptr) {
    u = add(u, load_element(spec.data, args.shift, row_index(spec, at)));
  }
  return u;
}

// What z of one element is made of. long double holds the cube of an rstd of f64's whole range.
struct Element {
  long double centred;  // u - mean
  long double xhat;
  long double gamma, beta, stretch;  // stretch = 1 + scale
  long double z;
  long double magnitude;  // what counts as the size of z in a scale
};

template <class Args>
Element element(const Spec& spec, const Args& args, double mean, double rstd, Index at) {
  Element e{};
  e.centred = static_cast<long double>(input(spec, args, at)) - mean;
  e.xhat = e.centred * rstd;
  e.gamma = load_or(1, spec.param, args.gamma, param_index(spec, at));
  e.beta = load_or(0, spec.param, args.beta, param_index(spec, at));
  e.stretch = 1 + static_cast<long double>(load_or(0, spec.param, args.scale, row_index(spec, at)));
  const long double scaled = e.gamma * e.stretch * e.xhat;
  const long double beta = e.beta * e.stretch;
  const long double offset = load_or(0, spec.param, args.offset, row_index(spec, at));
  const long double residual = load_or(0, spec.data, args.residual, tensor_index(spec, at));
  e.z = scaled + (beta + offset) + residual;
  e.magnitude = 1 + std::fabs(scaled) + std::fabs(beta) + std::fabs(offset) + std::fabs(residual);
  return e;
}

// The corrected two-pass algorithm (Chan, Golub & LeVeque 1983, eq. 1.7): a first mean, then the
// sums of the deviations from it, whose own mean repairs both the mean and the variance.
void statistics(const Spec& spec, const Forward& args, ReferenceResult* result) {
  const std::size_t blocks = result->mean.size();
  const std::vector<double> elements = elements_of_blocks(spec, args.lengths);
  // long double, so that the sums of 1e8 elements are exact to the last place of double.
  std::vector<long double> first(blocks), sum(blocks), square(blocks);

  if (spec.center) {
    for_each_element(spec, args.lengths, [&](Index at) {
      first[at.block] += input(spec, args, at) / elements[at.block];
    });
  }
  for_each_element(spec, args.lengths, [&](Index at) {
    const long double d = input(spec, args, at) - first[at.block];
    sum[at.block] += d;
    square[at.block] += d * d;
  });
  for (std::size_t b = 0; b < blocks; ++b) {
    const double m = elements[b];
    if (m == 0) continue;
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

// What the gradients of one element are made of.
struct Point : Element {
  long double dz, dxhat;     // dxhat = gamma (1 + scale) dz
  long double dz_magnitude;  // what counts as the size of dz in a scale
  long double dxhat_magnitude;
};

Point point(const Spec& spec, const Backward& args, Index at) {
  const double mean = spec.center ? args.mean[at.block] : 0;
  Point p{element(spec, args, mean, args.rstd[at.block], at), 0, 0, 0, 0};
  const long double dy = load_element(spec.data, args.dy, tensor_index(spec, at));
  p.dz = dy * reference_derivative(spec.activation, static_cast<double>(p.z));
  p.dz_magnitude = std::fabs(p.dz);
  if (const double curvature = largest_curvature(spec.activation); curvature > 0) {
    p.dz_magnitude += curvature * p.magnitude * std::fabs(dy);
  }
  p.dxhat = p.gamma * p.stretch * p.dz;
  p.dxhat_magnitude = std::fabs(p.gamma * p.stretch) * p.dz_magnitude;
  return p;
}

// The derivatives of the loss by a block's mean and variance, by the chain rule (Ioffe & Szegedy
// 2015, section 3). The mean acts through xhat alone: d var / d mean = -2 sum (x - mean) / m = 0.
// And the sums of their absolute terms.
struct BlockGradient {
  long double dmean = 0, dvar = 0;
  long double dmean_magnitude = 0, dvar_magnitude = 0;
};

std::vector<BlockGradient> block_gradients(const Spec& spec, const Backward& args) {
  std::vector<BlockGradient> blocks(blocks_of(spec));
  if (spec.given_statistics) return blocks;
  for_each_element(spec, args.lengths, [&](Index at) {
    BlockGradient& block = blocks[at.block];
    const long double rstd = args.rstd[at.block];
    const Point p = point(spec, args, at);
    const long double by_var = p.centred * rstd * rstd * rstd / 2;  // d rstd / d var = -rstd^3 / 2
    block.dvar -= p.dxhat * by_var;
    block.dvar_magnitude += p.dxhat_magnitude * std::fabs(by_var);
    if (!spec.center) return;
    block.dmean -= p.dxhat * rstd;  // d xhat / d mean = -rstd
    block.dmean_magnitude += p.dxhat_magnitude * std::fabs(rstd);
  });
  return blocks;
}

// A sum of terms and the sum of their sizes, of each of many numbers.
struct Sums {
  explicit Sums(std::size_t size) : sum(size), scale(size) {}
  std::vector<long double> sum, scale;
};

void round_to_double(const std::vector<long double>& from, std::vector<double>* to) {
  to->resize(from.size());
  std::transform(from.begin(), from.end(), to->begin(),
                 [](long double value) { return static_cast<double>(value); });
}

// How many numbers [n / sequence, c] are.
std::size_t size_of_rows(const Spec& spec) {
  return static_cast<std::size_t>(spec.shape.n / spec.sequence * spec.shape.c);
}

// dx, dresidual and dshift.
void input_gradients(const Spec& spec, const Backward& args, ReferenceGradient* result) {
  const std::vector<BlockGradient> blocks = block_gradients(spec, args);
  const std::vector<double> elements = elements_of_blocks(spec, args.lengths);
  result->dx_scale.assign(blocks.size(), 0);
  Sums shift(size_of_rows(spec));
  for_each_element(spec, args.lengths, [&](Index at) {
    const auto i = static_cast<std::size_t>(tensor_index(spec, at));
    const std::size_t b = at.block;
    const auto row = static_cast<std::size_t>(row_index(spec, at));
    const long double rstd = args.rstd[b];
    const Point p = point(spec, args, at);
    const double m = elements[b];
    // Given statistics depend on no x, and m may be the correction.
    const long double dvar_by_x = spec.given_statistics ? 0 : 2 * p.centred / (m - spec.correction);
    const long double by_xhat = p.dxhat * rstd;
    const long double by_var = blocks[b].dvar * dvar_by_x;
    const long double by_mean = blocks[b].dmean / m;
    const long double dsum = load_or(0, spec.data, args.dsum, tensor_index(spec, at));
    const long double dx = by_xhat + by_var + by_mean + dsum;
    const long double size = p.dxhat_magnitude * std::fabs(rstd) + std::fabs(dsum);
    const long double scale = size + std::fabs(by_var) + std::fabs(by_mean);
    result->dx[i] = static_cast<double>(dx);
    result->dx_scale[b] = std::max(result->dx_scale[b], static_cast<double>(scale));
    if (args.dresidual != nullptr) {
      result->dresidual[i] = static_cast<double>(p.dz);
      result->dresidual_scale[i] = static_cast<double>(p.dz_magnitude);
    }
    shift.sum[row] += dx;
    shift.scale[row] +=
        size + blocks[b].dvar_magnitude * std::fabs(dvar_by_x) + blocks[b].dmean_magnitude / m;
  });
  round_to_double(shift.sum, &result->dshift);
  round_to_double(shift.scale, &result->dshift_scale);
}

// Of dgamma or dbeta: what `held` holds, or zeros.
Sums first_sums(const Spec& spec, const void* held) {
  const auto [n, c, s] = spec.shape;
  const std::int64_t rows = spec.param_stride == 0 ? 1 : n / spec.sequence;
  Sums sums(static_cast<std::size_t>(rows == 0 ? 0 : (rows - 1) * spec.param_stride + c));
  if (held == nullptr) return sums;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t channel = 0; channel < c; ++channel) {
      const std::int64_t i = row * spec.param_stride + channel;
      const double value = load_element(spec.param, held, i);
      sums.sum[static_cast<std::size_t>(i)] = value;
      sums.scale[static_cast<std::size_t>(i)] = std::fabs(value);
    }
  }
  return sums;
}

void parameter_gradients(const Spec& spec, const Backward& args, ReferenceGradient* result) {
  Sums gamma = first_sums(spec, args.accumulate ? args.dgamma : nullptr);
  Sums beta = first_sums(spec, args.accumulate ? args.dbeta : nullptr);
  Sums scale(size_of_rows(spec)), offset(size_of_rows(spec));
  for_each_element(spec, args.lengths, [&](Index at) {
    const auto i = static_cast<std::size_t>(param_index(spec, at));
    const auto row = static_cast<std::size_t>(row_index(spec, at));
    const Point p = point(spec, args, at);
    gamma.sum[i] += p.dz * p.stretch * p.xhat;
    gamma.scale[i] += p.dz_magnitude * std::fabs(p.stretch * p.xhat);
    beta.sum[i] += p.dz * p.stretch;
    beta.scale[i] += p.dz_magnitude * std::fabs(p.stretch);
    scale.sum[row] += p.dz * (p.gamma * p.xhat + p.beta);
    scale.scale[row] += p.dz_magnitude * (std::fabs(p.gamma * p.xhat) + std::fabs(p.beta));
    offset.sum[row] += p.dz;
    offset.scale[row] += p.dz_magnitude;
  });
  round_to_double(gamma.sum, &result->dgamma);
  round_to_double(gamma.scale, &result->dgamma_scale);
  round_to_double(beta.sum, &result->dbeta);
  round_to_double(beta.scale, &result->dbeta_scale);
  round_to_double(scale.sum, &result->dscale);
  round_to_double(scale.scale, &result->dscale_scale);
  round_to_double(offset.sum, &result->doffset);
  round_to_double(offset.scale, &result->doffset_scale);
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
  result.y.assign(elements, 0);
  result.scale.assign(elements, 1);
  if (args.sum != nullptr) result.sum.assign(elements, 0);
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
  for_each_element(spec, args.lengths, [&](Index at) {
    const std::size_t b = at.block;
    const auto i = static_cast<std::size_t>(tensor_index(spec, at));
    const Element e = element(spec, args, result.mean[b], result.rstd[b], at);
    result.y[i] = reference_activation(spec.activation, static_cast<double>(e.z));
    result.scale[i] = static_cast<double>(e.magnitude);
    if (args.sum != nullptr) result.sum[i] = input(spec, args, at);
  });
  return result;
}

ReferenceGradient reference_backward(const Spec& spec, const Backward& args) {
  ReferenceGradient result;
  const auto [n, c, s] = spec.shape;
  const auto elements = static_cast<std::size_t>(n * c * s);
  result.dx.assign(elements, 0);
  if (args.dresidual != nullptr) {
    result.dresidual.assign(elements, 0);
    result.dresidual_scale.assign(elements, 0);
  }
  result.dshift.assign(size_of_rows(spec), 0);
  result.dshift_scale.assign(size_of_rows(spec), 0);
  parameter_gradients(spec, args, &result);
  if (elements != 0) input_gradients(spec, args, &result);
  return result;
}

}  // namespace groupnorm::detail
