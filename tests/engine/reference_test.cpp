// The oracle itself, against closed forms. (tests/cli/test_reference.py holds it against PyTorch.)
#include "engine.h"

#include <cmath>
#include <numbers>
#include <numeric>

namespace groupnorm::testing {
namespace {

using detail::reference_activation;
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

}  // namespace
}  // namespace groupnorm::testing
