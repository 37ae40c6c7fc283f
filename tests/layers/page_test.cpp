// The four programs of softwarepatternslexicon.com, "Group Normalization": each is written out here
// loop by loop in double, and the library's call that stands for it has to give the same.
#include <groupnorm/layers.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

namespace groupnorm::testing {
namespace {

// Within `steps` x eps x (1 + |expected|).
template <class T>
void expect_near(std::span<const T> y, const std::vector<double>& expected, double steps) {
  ASSERT_EQ(y.size(), expected.size());
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double bound = steps * std::numeric_limits<T>::epsilon() * (1 + std::fabs(expected[i]));
    ASSERT_NEAR(y[i], expected[i], bound) << "element " << i;
  }
}

template <class T>
void fill_normal(std::span<T> x, double mean, double deviation) {
  std::mt19937_64 random(20240906);
  std::normal_distribution<double> normal(mean, deviation);
  for (T& value : x) value = static_cast<T>(normal(random));
}

// x.view(N, G, -1), mean(-1), var(-1): a group of an example is contiguous. weight and bias are
// [C].
std::vector<double> python_program(std::span<const float> x, std::size_t channels,
                                   std::size_t positions, std::size_t m, double divisor,
                                   std::span<const double> weight, std::span<const double> bias) {
  std::vector<double> y(x.size());
  for (std::size_t first = 0; first < x.size(); first += m) {
    double mean = 0, var = 0;
    for (std::size_t i = first; i < first + m; ++i) mean += x[i];
    mean /= static_cast<double>(m);
    for (std::size_t i = first; i < first + m; ++i) var += (x[i] - mean) * (x[i] - mean);
    var /= divisor;
    for (std::size_t i = first; i < first + m; ++i) {
      const std::size_t c = i / positions % channels;
      y[i] = (x[i] - mean) / std::sqrt(var + 1e-5) * weight[c] + bias[c];
    }
  }
  return y;
}

TEST(Page, PythonProgramDividesByOneLessThanGroupNormOfTorch) {
  Tensor x({16, 32, 64, 64});
  fill_normal(x.data<float>(), 0, 1);
  GroupNormalization gn(/*num_groups=*/8, /*num_channels=*/32);
  fill_normal(gn.gamma(), 1, 0.5);
  fill_normal(gn.beta(), 0, 0.5);
  const std::size_t m = std::size_t{4} * 64 * 64;
  const std::span<const float> elements = x.data<float>();

  const auto expected = [&](double divisor) {
    return python_program(elements, 32, std::size_t{64} * 64, m, divisor, gn.gamma(), gn.beta());
  };
  const std::vector<double> of_page = expected(m - 1), of_torch = expected(m);
  gn.options.correction = 1;
  const Tensor y_page = gn.forward(x);
  expect_near(std::as_const(y_page).data<float>(), of_page, 6);
  gn.options.correction = 0;
  const Tensor y_torch = gn.forward(x);
  expect_near(std::as_const(y_torch).data<float>(), of_torch, 6);

  // The two differ by more than any rounding, so neither passes for the other.
  double difference = 0;
  for (std::size_t i = 0; i < of_page.size(); ++i) {
    difference = std::max(difference, std::fabs(of_page[i] - of_torch[i]));
  }
  EXPECT_GT(difference, 1e-4);
}

TEST(Page, JavaProgramNormalizesEachExampleAndDividesByM) {
  const std::size_t N = 4, C = 12, H = 50, G = 3;
  Tensor x({4, 12, 50});
  fill_normal(x.data<float>(), -1, 5);
  const auto input = [&](std::size_t n, std::size_t c, std::size_t h) {
    return static_cast<double>(x.data<float>()[(n * C + c) * H + h]);
  };

  std::vector<double> output(N * C * H);
  for (std::size_t n = 0; n < N; n++) {
    for (std::size_t g = 0; g < G; g++) {
      const std::size_t start = (C / G) * g, end = (C / G) * (g + 1);
      double mean = 0, var = 0;
      for (std::size_t c = start; c < end; c++) {
        for (std::size_t h = 0; h < H; h++) mean += input(n, c, h);
      }
      mean /= static_cast<double>((end - start) * H);
      for (std::size_t c = start; c < end; c++) {
        for (std::size_t h = 0; h < H; h++) var += std::pow(input(n, c, h) - mean, 2);
      }
      var /= static_cast<double>((end - start) * H);
      for (std::size_t c = start; c < end; c++) {
        for (std::size_t h = 0; h < H; h++) {
          output[(n * C + c) * H + h] = (input(n, c, h) - mean) / std::sqrt(var + 1e-5);
        }
      }
    }
  }
  const Tensor y = GroupNormalization(/*num_groups=*/3).forward(x);
  expect_near(y.data<float>(), output, 3);
}

// group = input(all rows, start until end); mean and variance of all its numbers.
std::vector<double> columns_program(const std::vector<double>& x, std::size_t rows,
                                    std::size_t columns, std::size_t groups, double correction) {
  std::vector<double> y(x.size());
  const std::size_t size = columns / groups;
  for (std::size_t g = 0; g < groups; ++g) {
    const auto for_group = [&](auto&& f) {
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t c = g * size; c < (g + 1) * size; ++c) f(r * columns + c);
      }
    };
    const auto m = static_cast<double>(rows * size);
    double mean = 0, var = 0;
    for_group([&](std::size_t i) { mean += x[i]; });
    mean /= m;
    for_group([&](std::size_t i) { var += (x[i] - mean) * (x[i] - mean); });
    var /= m - correction;
    for_group([&](std::size_t i) { y[i] = (x[i] - mean) / std::sqrt(var + 1e-5); });
  }
  return y;
}

void expect_columns_program(double low, double high, int correction) {
  std::vector<double> x(512), y(x.size());
  std::mt19937_64 random(20240906);
  std::uniform_real_distribution<double> uniform(low, high);
  std::ranges::generate(x, [&] { return uniform(random); });

  const Shape shape{.n = 16, .c = 32};
  Spec spec;
  spec.shape = shape;
  spec.block = batch_group_norm(shape, 8);
  spec.data = spec.param = DType::f64;
  spec.correction = correction;
  Plan plan;
  ASSERT_EQ(Plan::make(spec, &plan), Status::ok);
  EXPECT_EQ(plan.blocks(), 8);
  EXPECT_EQ(plan.block_elements(), 16 * 4);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  ASSERT_EQ(plan.forward({.x = x.data(), .y = y.data()}, workspace), Status::ok);
  // The loops round too, in the same precision: 10 steps for both.
  const std::vector<double> expected = columns_program(x, 16, 32, 8, correction);
  expect_near(std::span<const double>(y), expected, 10);
}

TEST(Page, ScalaProgramNormalizesGroupsOfColumnsAndDividesByOneLess) {
  expect_columns_program(0, 1, /*correction=*/1);
}

TEST(Page, ClojureProgramNormalizesGroupsOfColumnsAndDividesByM) {
  expect_columns_program(0, 32, /*correction=*/0);
}

}  // namespace
}  // namespace groupnorm::testing
