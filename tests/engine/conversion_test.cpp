// f16 and bf16: exact when read, rounded to nearest even when written, NaN and infinities kept, in
// the scalar conversions and in every instruction set's.
#include "engine.h"

#include "dtype.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace groupnorm::testing {
namespace {

using namespace detail;

using Conversion = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Conversion, ::testing::ValuesIn(targets()), target_name);

constexpr std::int64_t kAll = 65536;
constexpr std::int64_t kRow = 4096;

// a * x + b of every 16-bit number, as a norm with given statistics.
template <class T>
std::vector<T> affine(const char* target, float a, float b) {
  std::vector<T> x(kAll), y(kAll);
  for (std::int64_t i = 0; i < kAll; ++i)
    x[static_cast<std::size_t>(i)] = T{static_cast<std::uint16_t>(i)};
  Spec spec = group_spec({1, kAll / kRow, kRow}, 1);
  spec.data = std::is_same_v<T, F16> ? DType::f16 : DType::bf16;
  spec.given_statistics = true;
  const std::vector<float> gamma(kAll / kRow, a), beta(kAll / kRow, b);
  const double mean = 0, rstd = 1;
  run(make_plan(spec, target), {.x = x.data(),
                                .y = y.data(),
                                .gamma = gamma.data(),
                                .beta = beta.data(),
                                .given_mean = &mean,
                                .given_rstd = &rstd});
  return y;
}

template <class T>
T rounded(double value) {
  T result;
  from_double(value, &result);
  return result;
}

template <class T>
void expect_rounded(const char* target, float a, float b) {
  const std::vector<T> y = affine<T>(target, a, b);
  for (std::int64_t i = 0; i < kAll; ++i) {
    const float x = to_float(T{static_cast<std::uint16_t>(i)});
    const T actual = y[static_cast<std::size_t>(i)];
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(to_float(actual))) << "bits " << i;
      continue;
    }
    // a or b is trivial in every call, so that the f32 arithmetic rounds once with FMA or without.
    ASSERT_EQ(rounded<T>(static_cast<double>(a * x + b)).bits, actual.bits)
        << (std::is_same_v<T, F16> ? "f16" : "bf16") << ", " << a << " * " << x << " + " << b
        << ", bits " << i;
  }
}

TEST_P(Conversion, EveryNumber) {
  for (const float a : {1.0F, -1.0F, 1.0009766F, 0.99902344F, 1e-3F, 1e4F, 0x1p-14F, 3.1415927F}) {
    expect_rounded<F16>(target(), a, 0);
    expect_rounded<BF16>(target(), a, 0);
  }
  for (const float b : {0x1p-25F, 1.5F * 0x1p-25F, 0x1p-12F, 1.0F / 3, 15.99F}) {
    expect_rounded<F16>(target(), 1, b);
    expect_rounded<BF16>(target(), 1, b);
  }
}

// Rounding up the bits of some NaN would carry into the sign: they must not become numbers.
TEST_P(Conversion, NotANumberWhateverItsBits) {
  const auto every_bit = std::bit_cast<float>(0x7FFFFFFFU);
  const auto every_bit_of_64 = std::bit_cast<double>(0x7FFFFFFFFFFFFFFFULL);
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    for (const int which : {0, 1, 2, 3}) {
      Spec spec = group_spec({1, 64, 40}, 1);
      spec.data = DType::bf16;
      spec.layout = layout;
      spec.given_statistics = true;
      const std::vector<BF16> x(std::size_t{64} * 40, rounded<BF16>(1));
      std::vector<BF16> y(x.size());
      const std::vector<float> gamma(64, which == 0 ? every_bit : 1);
      const std::vector<float> beta(64, which == 1 ? every_bit : 0);
      const double mean = which == 2 ? every_bit_of_64 : 0;
      const double rstd = which == 3 ? every_bit_of_64 : 1;
      run(make_plan(spec, target()), {.x = x.data(),
                                      .y = y.data(),
                                      .gamma = gamma.data(),
                                      .beta = beta.data(),
                                      .given_mean = &mean,
                                      .given_rstd = &rstd});
      for (std::size_t i = 0; i < y.size(); ++i) {
        ASSERT_TRUE(std::isnan(to_float(y[i])))
            << to_string(layout) << ", the NaN is argument " << which << ", element " << i;
      }
    }
  }
}

TEST(Conversion, ReadingIsExact) {
  for (std::uint32_t i = 0; i < kAll; ++i) {
    const F16 h{static_cast<std::uint16_t>(i)};
    const int exponent = static_cast<int>(i >> 10 & 31);
    const double fraction = i & 1023;
    const double sign = (i & 0x8000) != 0 ? -1 : 1;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(to_float(h)), fraction != 0);
      continue;
    }
    const double value =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    ASSERT_EQ(static_cast<double>(to_float(h)), sign * value) << "bits " << i;
    EXPECT_EQ(std::signbit(to_float(h)), sign < 0);
  }
}

// Halfway between two neighbours the even one, to either side the nearer.
template <class T>
void expect_nearest_even(std::uint16_t last) {
  for (std::uint16_t i = 0; i < last; ++i) {
    const double low = to_double(T{i}), high = to_double(T{static_cast<std::uint16_t>(i + 1)});
    const double middle = (low + high) / 2;
    const auto even = static_cast<std::uint16_t>(i + (i & 1));
    ASSERT_EQ(rounded<T>(low).bits, i);
    ASSERT_EQ(rounded<T>(middle).bits, even);
    ASSERT_EQ(rounded<T>(std::nextafter(middle, low)).bits, i);
    ASSERT_EQ(rounded<T>(std::nextafter(middle, high)).bits, i + 1);
    ASSERT_EQ(rounded<T>(-middle).bits, even | 0x8000);
  }
}

TEST(Conversion, WritingRoundsToNearestEven) {
  expect_nearest_even<F16>(0x7BFF);
  expect_nearest_even<BF16>(0x7F7F);
  EXPECT_EQ(to_f16(65519.99).bits, 0x7BFF);
  EXPECT_EQ(to_f16(65520).bits, 0x7C00);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7F80);
  EXPECT_TRUE(std::isnan(to_float(to_f16(std::nan("")))));
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::nan("")))));
}

}  // namespace
}  // namespace groupnorm::testing
