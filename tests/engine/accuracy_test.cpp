// The promise: f32 within 3 eps32 (1 + |gamma xhat| + |beta|) of the exact result for any mean /
// deviation up to 1e5 and any number of elements a block.
#include "engine.h"

#include <cmath>

namespace groupnorm::testing {
namespace {

using Accuracy = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Accuracy, ::testing::ValuesIn(targets()), target_name);

// m = channels * positions elements a block, two blocks.
Case block_case(std::int64_t channels, std::int64_t positions, Layout layout, double mean) {
  const Shape shape{1, 2 * channels, positions};
  return {.name = std::to_string(channels) + " channels x " + std::to_string(positions) +
                  " positions, mean " + std::to_string(mean),
          .spec = group_spec(shape, 2, layout),
          .mean = mean};
}

void expect_accurate(const Case& c, const char* target, std::uint64_t seed) {
  SCOPED_TRACE(c.name + ", " + to_string(c.spec.layout) + ", seed " + std::to_string(seed));
  Data data = make_data(c, seed);
  const detail::ReferenceResult expected = detail::reference_forward(c.spec, data.forward);
  run(make_plan(c.spec, target), data.forward, pool());
  EXPECT_TRUE(within(compare(c.spec, expected, data.y.data()), 3));
}

TEST_P(Accuracy, AnyMeanAnySize) {
  struct Size {
    std::int64_t channels, positions;
  };
  constexpr Size kSizes[] = {{1, 1},   {2, 1},    {1, 7},    {3, 5},     {16, 1},    {4, 64},
                             {10, 49}, {4, 4096}, {3, 9999}, {1, 65537}, {600, 300}, {4, 100000}};
  for (const Size& size : kSizes) {
    for (const double mean : {0.0, 1.0, 1e2, 1e3, 1e4, 1e5}) {
      for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
        expect_accurate(block_case(size.channels, size.positions, layout, mean), target(), 3);
      }
    }
  }
}

// Rows shorter than a vector, or a few of them: those in which several end, and the last ones.
TEST_P(Accuracy, ShortRows) {
  struct Types {
    DType data, param;
  };
  constexpr Types kTypes[] = {{DType::f32, DType::f32},
                              {DType::f64, DType::f64},
                              {DType::bf16, DType::f32},
                              {DType::f16, DType::f16}};
  for (const Types& types : kTypes) {
    for (const std::int64_t length : {2, 3, 4, 5, 7, 8, 9, 15, 17, 31, 49, 100, 127}) {
      for (const std::int64_t channels : {9, 70}) {  // few blocks of a batch, and one by one
        Case c{.name = std::to_string(channels) + " rows of " + std::to_string(length) + ", " +
                       to_string(types.data),
               .spec = group_spec({2, 18 * channels, length}, 18)};
        c.spec.data = types.data;
        c.spec.param = types.param;
        SCOPED_TRACE(c.name + ", seed 11");
        Data data = make_data(c, 11);
        const auto expected = detail::reference_forward(c.spec, data.forward);
        run(make_plan(c.spec, target()), data.forward);
        const Comparison worst = compare(c.spec, expected, data.y.data());
        ASSERT_TRUE(within(worst, worst.bound));
      }
    }
  }
}

// f64, whose columns are merged in nothing wider: channels of different means, so that the first
// lies far from the mean of its block.
TEST_P(Accuracy, ChannelsOfDifferentMeans) {
  for (const std::int64_t positions : {3, 8, 17, 33}) {
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE("positions " + std::to_string(positions) + ", seed " + std::to_string(seed));
      Case c{.name = "shifted", .spec = group_spec({2, 512, positions}, 4, Layout::channels_last)};
      c.spec.data = c.spec.param = DType::f64;
      c.spec.shift = c.sum = true;
      Data data = make_data(c, seed);
      const auto expected = detail::reference_forward(c.spec, data.forward);
      const Plan plan = make_plan(c.spec, target());
      run(plan, data.forward);
      ASSERT_TRUE(within(compare(c.spec, expected, data.y.data()), error_bound(c.spec)));
      Forward plain = data.forward;
      plain.x = data.sum.data();
      plain.shift = nullptr;
      plain.sum = nullptr;
      run(plan, plain);
      ASSERT_TRUE(within(compare(c.spec, expected, data.y.data()), error_bound(c.spec)));
    }
  }
}

// 1e8 elements a block, on the target of the environment: GROUPNORM_LONG_TESTS=1 (6 GB, a minute).
TEST(Accuracy, HundredMillionElements) {
  if (!long_tests()) GTEST_SKIP() << "GROUPNORM_LONG_TESTS=1 runs it";
  for (const double mean : {0.0, 1e5}) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      expect_accurate(block_case(4, 25'000'000, layout, mean), nullptr, 4);
    }
  }
}

// Whole numbers, as pixels are: every deviation has the same few digits, so that roundings of long
// sums add up unless the pilot has no finer ones.
TEST_P(Accuracy, NumbersOnAGrid) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    const Spec spec = group_spec({2, 8, 5000}, 2, layout);
    std::vector<float> x(std::size_t{2} * 8 * 5000);
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<float>((i * i * 7919 + i * 104729) % 256);
    }
    const std::vector<float> y = normalized(spec, x, target());
    const auto expected = detail::reference_forward(spec, {.x = x.data()});
    EXPECT_TRUE(within(compare(spec, expected, y.data()), 3)) << to_string(layout);
  }
}

}  // namespace
}  // namespace groupnorm::testing
