// Finite and correct for every finite input; a constant block is exactly beta; what is not finite
// stays in its block.
#include "engine.h"

#include "dtype.h"

#include <cmath>
#include <limits>
#include <random>

namespace groupnorm::testing {
namespace {

using Extreme = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Extreme, ::testing::ValuesIn(targets()), target_name);

using detail::load_element;
using detail::size_of;
using detail::store_element;

struct Format {
  DType dtype;
  double largest;  // |x| of the test
};
constexpr Format kFormats[] = {
    {DType::f32, 3e38}, {DType::bf16, 3e38}, {DType::f16, 65504}, {DType::f64, 1e150}};
constexpr Layout kBothLayouts[] = {Layout::channels_first, Layout::channels_last};

struct Tensor {
  explicit Tensor(const Spec& spec)
      : dtype(spec.data),
        count(spec.shape.n * spec.shape.c * spec.shape.s),
        bytes(static_cast<std::size_t>(count * size_of(dtype))) {}
  double at(std::int64_t i) const { return load_element(dtype, bytes.data(), i); }
  void set(std::int64_t i, double value) { store_element(dtype, bytes.data(), i, value); }
  DType dtype;
  std::int64_t count;
  std::vector<std::byte> bytes;
};

Spec spec_of(DType dtype, Shape shape, std::int64_t groups, Layout layout) {
  Spec spec = group_spec(shape, groups, layout);
  spec.data = spec.param = dtype;
  return spec;
}

TEST_P(Extreme, LargestFiniteInputs) {
  constexpr Shape kShapes[] = {{2, 8, 300}, {1, 4, 7}, {3, 16, 1}, {2, 70, 40}};
  for (const Format& format : kFormats) {
    for (const Shape& shape : kShapes) {
      for (const Layout layout : kBothLayouts) {
        const Spec spec = spec_of(format.dtype, shape, 2, layout);
        SCOPED_TRACE(std::string(to_string(format.dtype)) + ", " + to_string(layout) + ", c " +
                     std::to_string(shape.c) + ", seed 5");
        Tensor x(spec), y(spec);
        std::mt19937_64 generator(5);
        std::uniform_real_distribution<double> uniform(-1, 1);
        for (std::int64_t i = 0; i < x.count; ++i) x.set(i, format.largest * uniform(generator));
        x.set(0, format.largest);
        x.set(1, -format.largest);
        run(make_plan(spec, target()), {.x = x.bytes.data(), .y = y.bytes.data()});
        const auto expected = detail::reference_forward(spec, {.x = x.bytes.data()});
        const Comparison worst = compare(spec, expected, y.bytes.data());
        EXPECT_TRUE(within(worst, worst.bound));
        // In place: what a kernel can't do must be there for who can.
        run(make_plan(spec, target()), {.x = x.bytes.data(), .y = x.bytes.data()});
        EXPECT_TRUE(same_bits(spec.data, x.bytes.data(), y.bytes.data(), y.bytes.size()));
      }
    }
  }
}

TEST_P(Extreme, SmallestInputs) {
  for (const Layout layout : kBothLayouts) {
    Spec spec = group_spec({2, 8, 100}, 2, layout);
    spec.eps = 0;
    std::vector<float> x(1600);
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<float>(i * 37 % 101) * std::numeric_limits<float>::denorm_min();
    }
    const std::vector<float> y = normalized(spec, x, target());
    const auto expected = detail::reference_forward(spec, {.x = x.data()});
    EXPECT_TRUE(within(compare(spec, expected, y.data()), 3)) << to_string(layout);
  }
}

// Of every size that f32 has, beside an eps that hides it and beside one that does not: what is too
// small or too large for f32 sums, for their squares, or for the difference of two elements.
TEST_P(Extreme, EveryMagnitude) {
  constexpr double kSizes[] = {1e-42, 1e-38, 1e-30, 1e-25, 1e-21, 1e-15,
                               1e15,  1e18,  1e21,  1e30,  2e37};
  constexpr Shape kShapes[] = {{1, 32, 64}, {2, 8, 300}, {3, 48, 1}, {2, 6, 7}, {1, 4, 2000}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Layout layout : kBothLayouts) {
      for (const Shape& shape : kShapes) {
        for (const double eps : {1e-5, 1e-33, 0.0}) {
          for (const double size : kSizes) {
            Spec spec = spec_of(dtype, shape, 2, layout);
            spec.eps = eps;
            spec.activation = Activation::gelu;
            SCOPED_TRACE(std::string(to_string(dtype)) + ", " + to_string(layout) + ", c " +
                         std::to_string(shape.c) + ", s " + std::to_string(shape.s) + ", eps " +
                         std::to_string(eps) + ", size " + std::to_string(size) + ", seed 7");
            Tensor x(spec), y(spec);
            Spec of_param = spec;
            of_param.shape = {1, shape.c, 1};
            Tensor gamma(of_param), beta(of_param);
            std::mt19937_64 generator(7);
            std::normal_distribution<double> normal;
            // One group of each example is of ordinary size.
            for (std::int64_t i = 0; i < x.count; ++i) {
              const bool first = layout == Layout::channels_first;
              const std::int64_t channel = first ? i / shape.s % shape.c : i % shape.c;
              x.set(i, normal(generator) * (channel < shape.c / 2 ? 1 : size));
            }
            for (std::int64_t c = 0; c < shape.c; ++c) {
              gamma.set(c, 1 + normal(generator) / 2);
              beta.set(c, normal(generator));
            }
            const Forward args{.x = x.bytes.data(),
                               .y = y.bytes.data(),
                               .gamma = gamma.bytes.data(),
                               .beta = beta.bytes.data()};
            run(make_plan(spec, target()), args);
            const auto expected = detail::reference_forward(spec, args);
            const Comparison worst = compare(spec, expected, y.bytes.data());
            EXPECT_TRUE(within(worst, worst.bound));
          }
        }
      }
    }
  }
}

// f64 whose samples lie far from all the rest: there is nothing wider to sum it in, so it is summed
// from the mean.
TEST_P(Extreme, PoorPilotOfDouble) {
  const Spec spec = spec_of(DType::f64, {1, 1, 4096}, 1, Layout::channels_first);
  Tensor x(spec), y(spec);
  std::mt19937_64 generator(11);
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < x.count; ++i) x.set(i, normal(generator));
  for (std::int64_t from : {0, 1355, 2715, 4080}) {
    for (std::int64_t i = from; i < from + 16; ++i) x.set(i, 1e6);
  }
  run(make_plan(spec, target()), {.x = x.bytes.data(), .y = y.bytes.data()});
  const auto expected = detail::reference_forward(spec, {.x = x.bytes.data()});
  const Comparison worst = compare(spec, expected, y.bytes.data());
  EXPECT_TRUE(within(worst, worst.bound)) << "seed 11";
}

TEST_P(Extreme, ConstantBlockIsExactlyBeta) {
  for (const Format& format : kFormats) {
    for (const Layout layout : kBothLayouts) {
      for (const double eps : {1e-5, 0.0}) {
        for (const double value : {0.0, 0.1, -12345.678, format.largest}) {
          SCOPED_TRACE(std::string(to_string(format.dtype)) + ", " + to_string(layout) +
                       ", value " + std::to_string(value) + ", eps " + std::to_string(eps));
          Spec spec = spec_of(format.dtype, {2, 6, 1001}, 2, layout);
          spec.eps = eps;
          Tensor x(spec), y(spec);
          std::vector<std::byte> beta(6 * sizeof(double));
          for (std::int64_t i = 0; i < x.count; ++i) x.set(i, value);
          for (std::int64_t c = 0; c < 6; ++c) {
            store_element(format.dtype, beta.data(), c, 0.3 * static_cast<double>(c) - 1);
          }
          std::vector<double> mean(4), rstd(4);
          run(make_plan(spec, target()), {.x = x.bytes.data(),
                                          .y = y.bytes.data(),
                                          .beta = beta.data(),
                                          .mean = mean.data(),
                                          .rstd = rstd.data()});
          for (std::int64_t i = 0; i < y.count; ++i) {
            const std::int64_t channel = layout == Layout::channels_first ? i / 1001 % 6 : i % 6;
            ASSERT_EQ(y.at(i), load_element(format.dtype, beta.data(), channel)) << "element " << i;
          }
          EXPECT_EQ(mean[3], x.at(0));
          EXPECT_EQ(rstd[3], eps == 0 ? 0 : 1 / std::sqrt(eps));
        }
      }
    }
  }
}

// Block 4, group 0 of example 1, has one number that is none, or is infinite.
void expect_poisoned_alone(const char* target, const Spec& spec, double poison) {
  const auto [n, c, s] = spec.shape;
  Tensor x(spec), y(spec);
  std::mt19937_64 generator(6);
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < x.count; ++i) x.set(i, normal(generator));
  const std::int64_t at = x.count / 2 + 3;
  x.set(at, poison);
  // Beside an infinite root mean square, every finite number is 0.
  const bool alone = !spec.center && std::isinf(poison);
  std::vector<double> mean(8), rstd(8);
  run(make_plan(spec, target),
      {.x = x.bytes.data(), .y = y.bytes.data(), .mean = mean.data(), .rstd = rstd.data()});
  const std::string where = std::string(to_string(spec.data)) + ", " + to_string(spec.layout) +
                            ", s " + std::to_string(s) + (spec.center ? "" : ", rms") +
                            ", seed 6, poison " + std::to_string(poison);
  for (std::int64_t i = 0; i < y.count; ++i) {
    const std::int64_t in_example = i % (c * s);
    const std::int64_t channel =
        spec.layout == Layout::channels_first ? in_example / s : in_example % c;
    const bool inside = i >= y.count / 2 && channel < 4;
    const bool poisoned = inside && (!alone || i == at);
    ASSERT_EQ(std::isnan(y.at(i)), poisoned) << where << ", element " << i << ": " << y.at(i);
    if (inside && !poisoned) {
      ASSERT_EQ(y.at(i), 0) << where << ", element " << i;
    }
  }
  for (std::size_t b = 0; b < 8; ++b) {
    ASSERT_EQ(std::isnan(mean[b]), spec.center && b == 4) << where << ", block " << b;
    ASSERT_EQ(std::isnan(rstd[b]), !alone && b == 4) << where << ", block " << b;
    ASSERT_EQ(rstd[b] == 0, alone && b == 4) << where << ", block " << b;
  }
}

TEST_P(Extreme, NotANumberStaysInItsBlock) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // Blocks that go together, one by one, and each along with the next.
  for (const std::int64_t positions : {2, 7, 150, 1100}) {
    for (const double poison : {std::nan(""), kInfinity}) {
      const Shape shape{2, 16, positions};
      expect_poisoned_alone(target(), spec_of(DType::f32, shape, 4, kBothLayouts[0]), poison);
    }
  }
  for (const Format& format : kFormats) {
    for (const Layout layout : kBothLayouts) {
      for (const bool center : {true, false}) {
        Spec spec = spec_of(format.dtype, {2, 16, 80}, 4, layout);
        spec.center = center;
        for (const double poison : {std::nan(""), kInfinity, -kInfinity}) {
          expect_poisoned_alone(target(), spec, poison);
        }
      }
    }
  }
}

}  // namespace
}  // namespace groupnorm::testing
