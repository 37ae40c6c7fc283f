// The built-in list of cases, against the reference: y, mean, rstd and sum. A case goes through all
// instruction sets by turns, since they take less time together than its reference.
#include "engine.h"

#include "dtype.h"

#include <algorithm>
#include <cmath>

namespace groupnorm::testing {
namespace {

constexpr std::uint64_t kSeed = 7;

// In units of the compute type's eps, as for y: the mean against the deviation, rstd against
// itself.
void expect_statistics(const Case& c, const Data& data, const detail::ReferenceResult& expected) {
  if (c.spec.given_statistics) return;
  const bool is_double = c.spec.data == DType::f64;
  const double eps = is_double ? 0x1p-52 : 0x1p-23;
  for (std::size_t b = 0; b < expected.mean.size(); ++b) {
    const double size = is_double ? std::fabs(expected.mean[b]) + 1 : 1;
    const double offset = (data.mean[b] - expected.mean[b]) * expected.rstd[b];
    EXPECT_LE(std::fabs(offset), 1.5 * eps * size * (1 + expected.rstd[b])) << "block " << b;
    EXPECT_LE(std::fabs(data.rstd[b] - expected.rstd[b]), 4 * eps * size * expected.rstd[b])
        << "block " << b;
  }
}

// The sum in the compute type, rounded once.
void expect_sum(const Spec& spec, const Buffer& sum, const std::vector<double>& expected) {
  Buffer rounded(sum.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    detail::store_element(spec.data, rounded.data(), static_cast<std::int64_t>(i), expected[i]);
  }
  EXPECT_TRUE(same_bits(spec.data, sum, rounded)) << "sum";
}

TEST(Cases, AgreeWithTheReference) {
  for (const Case& c : cases()) {
    Data data = make_data(c, kSeed);
    const detail::ReferenceResult expected = detail::reference_forward(c.spec, data.forward);
    for (const char* const target : targets()) {
      SCOPED_TRACE(c.name + ", seed " + std::to_string(kSeed) + ", " + target);
      poison(&data.y);
      poison(&data.sum);
      if (!c.spec.given_statistics) {
        std::fill(data.mean.begin(), data.mean.end(), std::nan(""));
        std::fill(data.rstd.begin(), data.rstd.end(), std::nan(""));
      }
      run(make_plan(c.spec, target), data.forward);
      const Comparison worst = compare(c.spec, expected, data.y.data());
      EXPECT_TRUE(within(worst, worst.bound));
      expect_statistics(c, data, expected);
      if (c.sum) expect_sum(c.spec, data.sum, expected.sum);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace groupnorm::testing
