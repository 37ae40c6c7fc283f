// What the C++ examples compare with: the definition in plain loops, in double.
#ifndef GROUPNORM_EXAMPLES_PLAIN_H
#define GROUPNORM_EXAMPLES_PLAIN_H

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <span>
#include <vector>

template <class Element>
void fill_normal(std::span<Element> x, double mean, double deviation) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal(mean, deviation);
  for (Element& value : x) value = static_cast<Element>(normal(random));
}

// xhat of x [n, c, s]: every block has its own mean and its own variance, divided by m -
// correction.
template <class Elements>
std::vector<double> plain_xhat(const Elements& x, groupnorm::Shape shape, groupnorm::Block block,
                               int correction, double eps) {
  std::vector<double> xhat(x.size());
  const auto for_block = [&](std::int64_t first_n, std::int64_t first_c, auto&& f) {
    for (std::int64_t n = first_n; n < first_n + block.examples; ++n) {
      for (std::int64_t c = first_c; c < first_c + block.channels; ++c) {
        for (std::int64_t s = 0; s < shape.s; ++s) {
          f(static_cast<std::size_t>((n * shape.c + c) * shape.s + s));
        }
      }
    }
  };
  const auto m = static_cast<double>(block.examples * block.channels * shape.s);
  for (std::int64_t n = 0; n < shape.n; n += block.examples) {
    for (std::int64_t c = 0; c < shape.c; c += block.channels) {
      double mean = 0, var = 0;
      for_block(n, c, [&](std::size_t i) { mean += x[i] / m; });
      for_block(n, c, [&](std::size_t i) { var += (x[i] - mean) * (x[i] - mean); });
      var /= m - correction;
      for_block(n, c, [&](std::size_t i) { xhat[i] = (x[i] - mean) / std::sqrt(var + eps); });
    }
  }
  return xhat;
}

// Prints the largest difference, in steps of y's type (its epsilon times 1 + |expected|). What an
// example returns: 0 up to `steps`, else 1.
template <class Elements>
int compare(const char* what, const Elements& y, const std::vector<double>& expected,
            double steps) {
  using T = typename Elements::value_type;
  double largest = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double step = std::numeric_limits<T>::epsilon() * (1 + std::fabs(expected[i]));
    const double error = std::fabs(y[i] - expected[i]) / step;
    largest = error <= largest ? largest : error;  // NaN stays
  }
  const bool ok = largest <= steps && y.size() == expected.size();
  std::printf("%s: off by %.2f steps of the type at most (%.0f allowed): %s\n", what, largest,
              steps, ok ? "ok" : "WRONG");
  return ok ? 0 : 1;
}

#endif
