// Every activation over its whole range, by way of given statistics that pass x through.
#include "engine.h"

#include <cmath>
#include <limits>

namespace groupnorm::testing {
namespace {

using Activations = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Activations, ::testing::ValuesIn(targets()), target_name);

template <class T>
std::vector<T> activated(const std::vector<T>& x, Activation activation, const char* target) {
  const auto count = static_cast<std::int64_t>(x.size());
  Spec spec{.shape = {1, 1, count}, .block = {1, 1}, .activation = activation};
  spec.data = spec.param = std::is_same_v<T, double> ? DType::f64 : DType::f32;
  spec.given_statistics = true;
  const double mean = 0, rstd = 1;
  std::vector<T> y(x.size());
  run(make_plan(spec, target),
      {.x = x.data(), .y = y.data(), .given_mean = &mean, .given_rstd = &rstd});
  return y;
}

template <class T>
std::vector<T> samples() {
  std::vector<T> x;
  for (int i = -200000; i <= 200000; ++i) x.push_back(static_cast<T>(i * 1e-4));
  for (T size = T{1e-30F}; size < T{1e37F}; size *= T{1.7F}) {
    x.push_back(size);
    x.push_back(-size);
  }
  return x;
}

// In eps (1 + |z|): the arithmetic of f32 with exp and erfc to 1e-7 relative, and that of f64 with
// Highway's exp, good to one place.
template <class T>
void expect_close(Activation activation, const char* target) {
  const std::vector<T> x = samples<T>();
  const std::vector<T> y = activated(x, activation, target);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto z = static_cast<double>(x[i]);
    const double expected = detail::reference_activation(activation, z);
    const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) * (1 + std::fabs(z));
    ASSERT_LE(std::fabs(static_cast<double>(y[i]) - expected), 2 * unit)
        << to_string(activation) << "(" << z << "), element " << i << ": expected " << expected
        << ", got " << y[i];
  }
}

TEST_P(Activations, Float) {
  for (const auto& named : kActivations) expect_close<float>(named.value, target());
}

TEST_P(Activations, Double) {
  for (const auto& named : kActivations) expect_close<double>(named.value, target());
}

TEST_P(Activations, KeepNotANumber) {
  const std::vector<float> x(64, std::numeric_limits<float>::quiet_NaN());
  for (const auto& named : kActivations) {
    const std::vector<float> y = activated(x, named.value, target());
    for (std::size_t i = 0; i < y.size(); ++i) {
      ASSERT_TRUE(std::isnan(y[i])) << named.name << ", element " << i << ": " << y[i];
    }
  }
}

}  // namespace
}  // namespace groupnorm::testing
