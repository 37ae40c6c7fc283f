// The oracle itself, against closed forms and, for gradients, finite differences of its own
// forward. (tests/cli/test_reference.py and test_gradient.py hold it against PyTorch.)
#include "engine.h"

#include "dtype.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <span>

namespace groupnorm::testing {
namespace {

using detail::reference_activation;
using detail::reference_backward;
using detail::reference_derivative;
using detail::reference_forward;

Spec f64_spec(Shape shape, Block block) {
  return {.shape = shape, .block = block, .data = DType::f64, .param = DType::f64, .eps = 0};
}

// 0, 1, ..., m - 1 has mean (m - 1) / 2 and variance (m^2 - 1) / 12, or m (m + 1) / 12 unbiased.
TEST(Reference, ArithmeticProgression) {
  for (const std::int64_t m : {2, 3, 10, 1001}) {
    std::vector<double> x(static_cast<std::size_t>(m));
    std::iota(x.begin(), x.end(), 0.0);
    const auto size = static_cast<double>(m);
    for (const int correction : {0, 1}) {
      Spec spec = f64_spec({1, 1, m}, {1, 1});
      spec.correction = correction;
      const auto result = reference_forward(spec, {.x = x.data()});
      const double variance = correction == 0 ? (size * size - 1) / 12 : size * (size + 1) / 12;
      EXPECT_DOUBLE_EQ(result.mean[0], (size - 1) / 2);
      EXPECT_DOUBLE_EQ(result.rstd[0], 1 / std::sqrt(variance));
      EXPECT_DOUBLE_EQ(result.y[0], -(size - 1) / 2 / std::sqrt(variance));
    }
    Spec rms = f64_spec({1, 1, m}, {1, 1});
    rms.center = false;  // mean square (m - 1)(2m - 1) / 6
    const auto result = reference_forward(rms, {.x = x.data()});
    EXPECT_EQ(result.mean[0], 0);
    EXPECT_DOUBLE_EQ(result.rstd[0], 1 / std::sqrt((size - 1) * (2 * size - 1) / 6));
  }
}

// Blocks, by two values each: normalized they are -1 and 1, whatever the two.
TEST(Reference, BlocksAndLayouts) {
  // [n = 2, c = 4, s = 2], x = 10 * (example block) + channel-block offset +- 1 by position.
  const Shape shape{2, 4, 2};
  for (const Block block : {Block{1, 2}, Block{2, 1}, Block{2, 2}, Block{1, 4}}) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      Spec spec = f64_spec(shape, block);
      spec.layout = layout;
      std::vector<double> x(16), expected(16);
      for (std::int64_t n = 0; n < 2; ++n) {
        for (std::int64_t c = 0; c < 4; ++c) {
          for (std::int64_t s = 0; s < 2; ++s) {
            const std::int64_t i =
                layout == Layout::channels_first ? (n * 4 + c) * 2 + s : (n * 2 + s) * 4 + c;
            const std::int64_t row = n / block.examples, group = c / block.channels;
            const auto offset = static_cast<double>(100 * row + group);
            expected[static_cast<std::size_t>(i)] = s == 0 ? -1 : 1;
            x[static_cast<std::size_t>(i)] = 3 * offset + (s == 0 ? -1 : 1);
          }
        }
      }
      const auto result = reference_forward(spec, {.x = x.data()});
      EXPECT_EQ(result.mean.size(),
                static_cast<std::size_t>(2 / block.examples * (4 / block.channels)));
      for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(result.y[i], expected[i], 1e-12);
    }
  }
}

TEST(Reference, ParametersAndStrides) {
  const std::vector<double> x = {-1, 1, -1, 1};  // two examples of one channel, two positions
  const std::vector<double> gamma = {2, 0, 3}, beta = {10, 0, 20};
  Spec spec = f64_spec({2, 1, 2}, {1, 1});
  spec.param_stride = 2;
  const auto result =
      reference_forward(spec, {.x = x.data(), .gamma = gamma.data(), .beta = beta.data()});
  EXPECT_EQ(result.y, (std::vector<double>{8, 12, 17, 23}));
}

TEST(Reference, GivenStatistics) {
  const std::vector<double> x = {1, 2, 3, 4};
  const double mean = 1, rstd = 0.5;
  Spec spec = f64_spec({1, 1, 4}, {1, 1});
  spec.given_statistics = true;
  const auto result =
      reference_forward(spec, {.x = x.data(), .given_mean = &mean, .given_rstd = &rstd});
  EXPECT_EQ(result.y, (std::vector<double>{0, 0.5, 1, 1.5}));
}

// Survives a mean of 1e9 deviations, where E[x^2] - E[x]^2 keeps no digit.
TEST(Reference, LargeMean) {
  const std::vector<double> x = {1e9 - 1, 1e9 + 1, 1e9 - 1, 1e9 + 1};
  const auto result = reference_forward(f64_spec({1, 1, 4}, {1, 1}), {.x = x.data()});
  EXPECT_EQ(result.y, (std::vector<double>{-1, 1, -1, 1}));
}

TEST(Reference, Activations) {
  const double z = 1.25;
  EXPECT_EQ(reference_activation(Activation::none, z), z);
  EXPECT_EQ(reference_activation(Activation::relu, -z), 0);
  EXPECT_DOUBLE_EQ(reference_activation(Activation::silu, std::log(3)), std::log(3) * 0.75);
  // Phi(1) = 0.841344746068542948585...
  EXPECT_DOUBLE_EQ(reference_activation(Activation::gelu, 1), 0.84134474606854295);
  // tanh(u) = 3/5 for u = ln 2: there gelu_tanh(z) = 0.8 z, with u = sqrt(2/pi) (z + 0.044715 z^3).
  double root = 0.8;  // Newton's method for the z of that u
  for (int i = 0; i < 50; ++i) {
    const double scale = std::sqrt(2 / std::numbers::pi);
    const double u = scale * (root + 0.044715 * root * root * root);
    root -= (u - std::numbers::ln2) / (scale * (1 + 3 * 0.044715 * root * root));
  }
  EXPECT_NEAR(reference_activation(Activation::gelu_tanh, root), 0.8 * root, 1e-15);
  EXPECT_EQ(reference_activation(Activation::hard_swish, 1), 4.0 / 6);
  EXPECT_EQ(reference_activation(Activation::hard_swish, 4), 4);
  EXPECT_EQ(reference_activation(Activation::hard_swish, -4), 0);
}

// ---- Gradients ----------------------------------------------------------------------------------

double slope(const auto& function, double at) {
  constexpr double kStep = 0x1p-17;  // errors: step^2 f''' / 6 < 1e-10 and eps64 f / step < 1e-10
  return (function(at + kStep) - function(at - kStep)) / (2 * kStep);
}

TEST(Reference, DerivativesOfTheActivations) {
  for (const auto& activation : kActivations) {
    const auto f = [&](double z) { return reference_activation(activation.value, z); };
    for (double z = -9.995; z < 10; z += 0.01) {  // never within 0.004 of a jump
      EXPECT_NEAR(reference_derivative(activation.value, z), slope(f, z), 1e-9)
          << activation.name << " at " << z;
    }
    for (const double far : {100.0, 1e3, 1e38}) {
      EXPECT_EQ(reference_derivative(activation.value, far), 1) << activation.name;
      const double left = activation.value == Activation::none ? 1 : 0;
      EXPECT_NEAR(reference_derivative(activation.value, -far), left, 1e-15) << activation.name;
    }
  }
  EXPECT_EQ(reference_derivative(Activation::relu, 0), 0);
  EXPECT_EQ(reference_derivative(Activation::relu, 1e-300), 1);
  EXPECT_EQ(reference_derivative(Activation::hard_swish, -3), 0);
  EXPECT_EQ(reference_derivative(Activation::hard_swish, 3), 1);
}

// What a scale counts for an error of z is max |act''|: never less, and nearly reached.
TEST(Reference, ScalesHoldTheCurvature) {
  for (const auto& activation : kActivations) {
    double curvature = 0;
    for (double z = -9.995; z < 10; z += 0.01) {
      const auto f = [&](double at) { return reference_derivative(activation.value, at); };
      curvature = std::max(curvature, std::fabs(slope(f, z)));
    }
    Spec spec = f64_spec({1, 1, 1}, {1, 1});
    spec.activation = activation.value;
    const double x = 0, dy = 1, mean = 0, rstd = 1;  // z = 0
    const auto result =
        reference_backward(spec, {.x = &x, .dy = &dy, .mean = &mean, .rstd = &rstd});
    const double counted = result.dbeta_scale[0] - reference_derivative(activation.value, 0);
    EXPECT_NEAR(counted, curvature, 1e-3) << activation.name;
    EXPECT_GE(counted, curvature - 1e-9) << activation.name;
  }
}

std::span<double> doubles(Buffer& buffer) {
  return {reinterpret_cast<double*>(buffer.data()), buffer.size() / sizeof(double)};
}

// sum dy * y + sum dsum * sum
double loss(const Spec& spec, GradientData& data) {
  Forward forward;
  for (const auto& input : kInputs<Forward>) forward.*input.pointer = (data.*input.buffer).data();
  forward.lengths = data.backward.lengths;
  forward.sum = data.dsum.data();  // asked for
  if (spec.given_statistics) {
    forward.given_mean = data.mean.data();
    forward.given_rstd = data.rstd.data();
  }
  const auto result = reference_forward(spec, forward);
  const std::vector<double>&y = result.y, &u = result.sum;
  return std::inner_product(y.begin(), y.end(), doubles(data.dy).begin(), 0.0) +
         std::inner_product(u.begin(), u.end(), doubles(data.dsum).begin(), 0.0);
}

// Every derivative by the elements of `tensor` against the slope of the loss; the tolerance is
// relative to the sum of absolute terms.
void expect_slopes(const Case& c, GradientData& data, Buffer& tensor, const char* name,
                   const std::vector<double>& gradient, const auto& scale) {
  const std::span<double> values = doubles(tensor);
  for (std::size_t i = 0; i < values.size() && i < gradient.size(); ++i) {
    const double value = values[i];
    const double expected = slope(
        [&](double at) {
          values[i] = at;
          return loss(c.spec, data);
        },
        value);
    values[i] = value;
    ASSERT_NEAR(gradient[i], expected, 1e-6 * scale(i))
        << c.name << ", " << name << "[" << i << "]";
  }
}

void expect_finite_differences(const Case& c, Data inputs) {
  const std::int64_t* const lengths = inputs.forward.lengths;
  GradientData data = make_gradient_data(c, std::move(inputs), 11);
  data.backward.lengths = lengths;
  const auto result = reference_backward(c.spec, data.backward);
  const double largest = *std::max_element(result.dx_scale.begin(), result.dx_scale.end());
  expect_slopes(c, data, data.x, "dx", result.dx, [&](std::size_t) { return largest; });
  expect_slopes(c, data, data.gamma, "dgamma", result.dgamma,
                [&](std::size_t i) { return result.dgamma_scale[i]; });
  expect_slopes(c, data, data.beta, "dbeta", result.dbeta,
                [&](std::size_t i) { return result.dbeta_scale[i]; });
  expect_slopes(c, data, data.skip, "dx of skip", result.dx, [&](std::size_t) { return largest; });
  expect_slopes(c, data, data.shift, "dshift", result.dshift,
                [&](std::size_t i) { return result.dshift_scale[i]; });
  expect_slopes(c, data, data.residual, "dresidual", result.dresidual,
                [&](std::size_t i) { return 1 + result.dresidual_scale[i]; });
  expect_slopes(c, data, data.scale, "dscale", result.dscale,
                [&](std::size_t i) { return result.dscale_scale[i]; });
  expect_slopes(c, data, data.offset, "doffset", result.doffset,
                [&](std::size_t i) { return result.doffset_scale[i]; });
}

TEST(Reference, FiniteDifferences) {
  constexpr Shape kShape{4, 4, 3};
  struct Affine {
    bool gamma, beta;
    std::int64_t param_stride;
  };
  constexpr Affine kAffine[] = {
      {true, true, 0}, {true, false, 0}, {false, true, 0}, {false, false, 0}, {true, true, 6}};
  for (const Norm& norm : norms()) {
    for (const auto& layout : kLayouts) {
      for (const auto& activation : kActivations) {
        for (const int correction : {0, 1}) {
          for (const Affine& affine : kAffine) {
            const Spec spec{.shape = kShape,
                            .block = norm.block(kShape, 2),
                            .layout = layout.value,
                            .data = DType::f64,
                            .param = DType::f64,
                            .activation = activation.value,
                            .center = norm.center,
                            .given_statistics = norm.given_statistics,
                            .correction = correction,
                            .eps = 1e-3,
                            .param_stride = affine.param_stride};
            const Case c{.name = std::string(norm.name) + ", " + layout.name + ", " +
                                 activation.name + ", correction " + std::to_string(correction) +
                                 ", stride " + std::to_string(affine.param_stride),
                         .spec = spec,
                         .mean = 0.5,
                         .gamma = affine.gamma,
                         .beta = affine.beta};
            expect_finite_differences(c, make_data(c, 11));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// All that models compute around a norm at once, with lengths and without.
TEST(Reference, FiniteDifferencesOfNeighbours) {
  constexpr Shape kShape{4, 4, 3};
  constexpr std::int64_t kLengths[] = {2, 0, 3, 1}, kRows[] = {1, 2};
  for (const Norm& norm : norms()) {
    for (const auto& layout : kLayouts) {
      for (const auto& activation : kActivations) {
        for (const std::int64_t sequence : {1, 2}) {
          for (const bool lengths : {false, true}) {
            Case c{.name = std::string(norm.name) + ", " + layout.name + ", " + activation.name +
                           ", sequence " + std::to_string(sequence) + (lengths ? ", lengths" : ""),
                   .spec = {.shape = kShape,
                            .block = norm.block(kShape, 2),
                            .layout = layout.value,
                            .data = DType::f64,
                            .param = DType::f64,
                            .activation = activation.value,
                            .center = norm.center,
                            .given_statistics = norm.given_statistics,
                            .eps = 1e-3,
                            .param_stride = sequence == 1 ? 0 : 6,
                            .sequence = sequence,
                            .shift = true,
                            .scale = true},
                   .mean = 0.5,
                   .skip = true,
                   .residual = true,
                   .scale = true,
                   .offset = true,
                   .sum = true};
            Data data = make_data(c, 11);
            if (lengths) data.forward.lengths = sequence == 1 ? kLengths : kRows;
            expect_finite_differences(c, std::move(data));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// u = 1e4 + 1 and 1e4 - 1 less 1e4, in f32 and in the f32 of bf16; scale, offset and residual on
// xhat = 1 and -1.
TEST(Reference, ClosedFormsOfNeighbours) {
  const std::vector<float> x = {10001, 9999, 10001, 9999}, skip(4, -1e4F), shift = {0.25F, 3},
                           residual = {10, 20, 30, 40};
  const float gamma = 2, beta = 3;
  const std::vector<float> scale = {1, -1}, offset = {100, 200};
  Spec spec{.shape = {2, 1, 2}, .block = {1, 1}, .eps = 0};
  spec.shift = spec.scale = true;
  Forward args{.x = x.data(),
               .gamma = &gamma,
               .beta = &beta,
               .skip = skip.data(),
               .shift = shift.data(),
               .residual = residual.data(),
               .scale = scale.data(),
               .offset = offset.data()};
  std::vector<float> sum(4);
  args.sum = sum.data();
  const auto result = reference_forward(spec, args);
  EXPECT_EQ(result.sum, (std::vector<double>{1.25, -0.75, 4, 2}));
  EXPECT_EQ(result.mean, (std::vector<double>{0.25, 3}));
  EXPECT_EQ(result.y, (std::vector<double>{120, 122, 230, 240}));  // 4 + 6 + 100 + 10, ...
  EXPECT_EQ(result.scale, (std::vector<double>{121, 131, 231, 241}));

  // Rounded in f32 after each of the two sums, and not in bf16.
  const std::vector<float> one = {1}, tiny = {0x1p-24F};
  Spec rounding{.shape = {1, 1, 1}, .block = {1, 1}};
  rounding.shift = true;
  args = {.x = one.data(), .skip = tiny.data(), .shift = tiny.data(), .sum = sum.data()};
  EXPECT_EQ(reference_forward(rounding, args).sum[0], 1);
  const detail::BF16 small = detail::to_bf16(0x1p-20), unit = detail::to_bf16(1);
  rounding.data = rounding.param = DType::bf16;
  args = {.x = &unit, .skip = &small, .sum = sum.data()};
  EXPECT_EQ(reference_forward(rounding, args).sum[0], 1 + 0x1p-20);
}

// Statistics of what is valid; zeros behind it and for an example of which nothing is.
TEST(Reference, Lengths) {
  const double nan = std::nan("");
  const std::vector<double> x = {-1, 1, nan, nan, nan, nan, 3, 5, 7};
  const std::vector<std::int64_t> lengths = {2, 0, 3};
  Spec spec = f64_spec({3, 1, 3}, {1, 1});
  spec.lengths = true;
  const auto result = reference_forward(spec, {.x = x.data(), .lengths = lengths.data()});
  EXPECT_EQ(result.mean, (std::vector<double>{0, 0, 5}));
  EXPECT_EQ(result.rstd, (std::vector<double>{1, 0, 1 / std::sqrt(8.0 / 3)}));
  for (const std::size_t i : {2U, 3U, 4U, 5U}) EXPECT_EQ(result.y[i], 0);
  EXPECT_EQ(result.y[0], -1);
  EXPECT_DOUBLE_EQ(result.y[8], std::sqrt(1.5));

  // The same numbers as rows of two sequences of three, of which one is short.
  const std::vector<double> rows = {-1, 1, 3, 1, nan, nan, 2, 6, nan, nan, nan, nan};
  const std::vector<std::int64_t> counts = {2, 1};
  Spec layer = f64_spec({6, 2, 1}, {1, 2});
  layer.sequence = 3;
  layer.lengths = true;
  const auto normalized = reference_forward(layer, {.x = rows.data(), .lengths = counts.data()});
  EXPECT_EQ(normalized.mean, (std::vector<double>{0, 2, 0, 4, 0, 0}));
  EXPECT_EQ(normalized.y, (std::vector<double>{-1, 1, 1, -1, 0, 0, -1, 1, 0, 0, 0, 0}));
}

// x = -1, 1 in two examples: xhat = x (eps = 0). The second row of [n, c] lies 2 further.
TEST(Reference, GradientsOfParametersAccumulateInTheirRows) {
  const std::vector<double> x = {-1, 1, -1, 1}, dy = {1, 2, 3, 5}, mean = {0, 0}, rstd = {1, 1};
  std::vector<double> dgamma = {10, 7, 20}, dbeta = {30, 7, 40};
  Spec spec = f64_spec({2, 1, 2}, {1, 1});
  spec.param_stride = 2;
  Backward args{.x = x.data(),
                .dy = dy.data(),
                .mean = mean.data(),
                .rstd = rstd.data(),
                .dgamma = dgamma.data(),
                .dbeta = dbeta.data()};
  EXPECT_EQ(reference_backward(spec, args).dgamma, (std::vector<double>{1, 0, 2}));
  EXPECT_EQ(reference_backward(spec, args).dbeta, (std::vector<double>{3, 0, 8}));
  args.accumulate = true;
  const auto result = reference_backward(spec, args);
  EXPECT_EQ(result.dgamma, (std::vector<double>{11, 0, 22}));
  EXPECT_EQ(result.dbeta, (std::vector<double>{33, 0, 48}));
  EXPECT_EQ(result.dgamma_scale, (std::vector<double>{13, 0, 28}));
  spec.param_stride = 0;
  EXPECT_EQ(reference_backward(spec, args).dgamma, (std::vector<double>{13}));
}

// dL/dx is orthogonal to 1 and, for eps = 0, to x: y does not change where x is shifted or scaled.
TEST(Reference, GradientIsOrthogonalToShiftAndScale) {
  const std::vector<double> x = {1, 2, 4, 8, -3}, dy = {3, -1, 2, 0.5, 1};
  Spec spec = f64_spec({1, 1, 5}, {1, 1});
  const auto forward = reference_forward(spec, {.x = x.data()});
  const auto result = reference_backward(
      spec,
      {.x = x.data(), .dy = dy.data(), .mean = forward.mean.data(), .rstd = forward.rstd.data()});
  EXPECT_NEAR(std::accumulate(result.dx.begin(), result.dx.end(), 0.0), 0, 1e-15);
  EXPECT_NEAR(std::inner_product(x.begin(), x.end(), result.dx.begin(), 0.0), 0, 1e-14);
}

TEST(Reference, EmptyTensorsHaveGradientsOfZero) {
  const std::vector<double> old = {1, 2, 3};
  std::vector<double> dgamma = old;
  for (const Shape shape : {Shape{0, 3, 2}, Shape{2, 3, 0}}) {
    const Spec spec = f64_spec(shape, {1, 3});
    EXPECT_EQ(reference_backward(spec, {}).dgamma, (std::vector<double>{0, 0, 0}));
    EXPECT_EQ(reference_backward(spec, {.dgamma = dgamma.data(), .accumulate = true}).dgamma, old);
  }
  EXPECT_TRUE(reference_backward(f64_spec({2, 0, 3}, {1, 0}), {}).dbeta.empty());
}

}  // namespace
}  // namespace groupnorm::testing
