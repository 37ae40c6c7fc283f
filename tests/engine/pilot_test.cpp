// Inputs whose first elements say nothing about the rest: the sums must notice and be taken again.
#include "engine.h"

#include <cmath>
#include <random>

namespace groupnorm::testing {
namespace {

using Pilot = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Pilot, ::testing::ValuesIn(targets()), target_name);

void expect_within_promise(const Spec& spec, const std::vector<float>& x, const std::string& what,
                           const char* target) {
  const std::vector<float> y = normalized(spec, x, target);
  const auto expected = detail::reference_forward(spec, {.x = x.data()});
  EXPECT_TRUE(within(compare(spec, expected, y.data()), 3))
      << what << ", " << to_string(spec.layout);
}

std::vector<float> noise(std::size_t count, double mean, double deviation) {
  std::mt19937_64 generator(11);
  std::normal_distribution<double> normal(mean, deviation);
  std::vector<float> x(count);
  for (float& value : x) value = static_cast<float>(normal(generator));
  return x;
}

TEST_P(Pilot, ZeroBorderBeforeALargeMean) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    const Spec spec = group_spec({1, 8, 20000}, 2, layout);
    std::vector<float> x = noise(std::size_t{8} * 20000, 1e4, 1);
    for (std::size_t i = 0; i < std::size_t{8} * 64; ++i) x[i] = 0;
    expect_within_promise(spec, x, "zero border, seed 11", target());
  }
}

TEST_P(Pilot, AStepInTheMiddle) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    const Spec spec = group_spec({1, 4, 30000}, 1, layout);
    std::vector<float> x = noise(std::size_t{4} * 30000, 0, 0.01);
    for (std::size_t i = x.size() / 2; i < x.size(); ++i) x[i] += 1000;
    expect_within_promise(spec, x, "step, seed 11", target());
  }
}

TEST_P(Pilot, OneOutlierWhereThePilotLooks) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    const Spec spec = group_spec({1, 4, 4096}, 2, layout);
    std::vector<float> x = noise(std::size_t{4} * 4096, 5, 1);
    x[0] = 1e6F;
    expect_within_promise(spec, x, "outlier, seed 11", target());
  }
}

// Its square overflows f32 where no sum does.
TEST_P(Pilot, OneLargestNumberAnywhere) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    const Spec spec = group_spec({1, 2, 19}, 2, layout);
    for (std::size_t i = 0; i < std::size_t{2} * 19; ++i) {
      std::vector<float> x = noise(std::size_t{2} * 19, 5, 1);
      x[i] = 3e38F;
      expect_within_promise(spec, x, "largest number at " + std::to_string(i) + ", seed 11",
                            target());
    }
  }
}

TEST_P(Pilot, ARamp) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    const Spec spec = group_spec({1, 4, 50000}, 2, layout);
    std::vector<float> x(std::size_t{4} * 50000);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) * 0.001F;
    expect_within_promise(spec, x, "ramp", target());
  }
}

}  // namespace
}  // namespace groupnorm::testing
