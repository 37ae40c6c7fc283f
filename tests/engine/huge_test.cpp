// More than 2^31 elements: GROUPNORM_LONG_TESTS=1 (9 GB, a minute).
#include "engine.h"

#include "dtype.h"

#include <cmath>

namespace groupnorm::testing {
namespace {

// Two groups of constant size of 2^30 and some elements each, bf16, in place: blocks of +-1 about
// 8 and about -4, so that the mean and the result of every element are known without a reference.
TEST(Huge, MoreThanTwoToThe31) {
  if (!long_tests()) GTEST_SKIP() << "GROUPNORM_LONG_TESTS=1 runs it";
  const std::int64_t s = (std::int64_t{1} << 29) + 128;
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    Spec spec = group_spec({1, 4, s}, 2, layout);
    spec.data = spec.param = DType::bf16;
    spec.eps = 0;
    ASSERT_GT(4 * s, std::int64_t{1} << 31);
    std::vector<detail::BF16> x(static_cast<std::size_t>(4 * s));
    const auto group = [&](std::size_t i) {
      const auto index = static_cast<std::int64_t>(i);
      return (layout == Layout::channels_first ? index / s : index % 4) / 2;
    };
    const auto sign = [](std::size_t i) { return (i / 4) % 2 == 0 ? 1 : -1; };
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = detail::to_bf16((group(i) == 0 ? 8 : -4) + sign(i));
    }
    std::vector<double> mean(2), rstd(2);
    run(make_plan(spec, nullptr),
        {.x = x.data(), .y = x.data(), .mean = mean.data(), .rstd = rstd.data()}, pool());
    EXPECT_DOUBLE_EQ(mean[0], 8);
    EXPECT_DOUBLE_EQ(mean[1], -4);
    EXPECT_DOUBLE_EQ(rstd[0], 1);
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (detail::to_float(x[i]) != static_cast<float>(sign(i))) ++wrong;
    }
    EXPECT_EQ(wrong, 0) << to_string(layout);
  }
}

}  // namespace
}  // namespace groupnorm::testing
