// What a call costs by the values that it meets, as JSON for bench/report.py: the median time of a
// call over that of the same call on ordinary values. The calls go in turns, one of each value a
// round, hot, by one thread; each is checked against the reference before it is timed.
//
//   groupnorm_values [DTYPE]      f32 (the default), f64, f16, bf16
#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "dtype.h"
#include "testing/cases.h"

namespace groupnorm::bench {
namespace {

struct Kind {
  const char* name;
  double scale;   // of values from N(0, 1)
  double seldom;  // what every 1000th value is instead, unless 0
};
constexpr std::array kKinds{Kind{"ordinary", 1, 0},
                            Kind{"1e-40", 1e-40, 0},
                            Kind{"1e-25", 1e-25, 0},
                            Kind{"0", 0, 0},
                            Kind{"1e18", 1e18, 0},
                            Kind{"1e20", 1e20, 0},
                            Kind{"1e30", 1e30, 0},
                            Kind{"3e37", 3e37, 0},
                            Kind{"NaN", std::numeric_limits<double>::quiet_NaN(), 0},
                            Kind{"some infinite", 1, std::numeric_limits<double>::infinity()},
                            Kind{"some 1e30", 1, 1e30}};

struct Sizes {
  const char* shape;
  std::int64_t groups;
};
constexpr std::array kShapes{Sizes{"4x64x64x64", 32}, Sizes{"2x2048x7x7", 32}, Sizes{"1x32x8x8", 8},
                             Sizes{"8x512", 32}};
constexpr int kRounds = 101;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// One object: false where a result is wrong.
bool print_row(const Sizes& sizes, DType dtype, Layout layout) {
  const Shape shape = testing::parse_shape(sizes.shape).value();
  const Spec spec{.shape = shape,
                  .block = group_norm(shape, sizes.groups),
                  .layout = layout,
                  .data = dtype,
                  .param = dtype};
  Plan plan;
  if (Plan::make(spec, &plan) != Status::ok) return false;
  const std::int64_t count = shape.n * shape.c * shape.s;
  const auto bytes = static_cast<std::size_t>(count * detail::size_of(dtype));
  std::vector<std::byte> workspace(plan.workspace_bytes()), y(bytes);
  std::array<std::vector<std::byte>, kKinds.size()> x;
  std::array<std::vector<double>, kKinds.size()> microseconds;
  for (std::size_t k = 0; k < kKinds.size(); ++k) {
    x[k].resize(bytes);
    std::mt19937_64 generator(7);
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < count; ++i) {
      const bool seldom = kKinds[k].seldom != 0 && i % 1000 == 777;
      const double value = seldom ? kKinds[k].seldom : kKinds[k].scale * normal(generator);
      detail::store_element(dtype, x[k].data(), i, value);
    }
    if (plan.forward({.x = x[k].data(), .y = y.data()}, workspace) != Status::ok) return false;
    const auto expected = detail::reference_forward(spec, {.x = x[k].data()});
    const testing::Comparison worst = testing::compare(spec, expected, y.data());
    if (!worst.within_bound()) {
      std::fprintf(stderr, "%s, %s, seed 7: error %g of %g at y[%lld]\n", sizes.shape,
                   kKinds[k].name, worst.error, worst.bound, static_cast<long long>(worst.index));
      return false;
    }
  }
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t k = 0; k < kKinds.size(); ++k) {
      const Forward args{.x = x[k].data(), .y = y.data()};
      (void)plan.forward(args, workspace);  // y, x and the branches of these values are hot then
      const auto begin = std::chrono::steady_clock::now();
      (void)plan.forward(args, workspace);
      const std::chrono::duration<double, std::micro> taken =
          std::chrono::steady_clock::now() - begin;
      microseconds[k].push_back(taken.count());
    }
  }
  const double ordinary = median(microseconds[0]);
  std::printf(R"( {"shape": "%s", "groups": %lld, "dtype": "%s", "layout": "%s", "us": %.3f, )",
              sizes.shape, static_cast<long long>(sizes.groups), to_string(dtype),
              to_string(layout), ordinary);
  std::printf("\"ratios\": {");
  for (std::size_t k = 1; k < kKinds.size(); ++k) {
    const double ratio = median(microseconds[k]) / ordinary;
    std::printf("%s\"%s\": %.3f", k == 1 ? "" : ", ", kKinds[k].name, ratio);
  }
  std::printf("}}");
  return true;
}

int run(std::string_view dtype) {
  const std::optional<DType> data = from_string<DType>(dtype);
  if (!data) {
    std::fprintf(stderr, "groupnorm_values: the dtype must be f32, f64, f16 or bf16; got '%s'\n",
                 std::string(dtype).c_str());
    return 2;
  }
  const char* separator = "{\"values\": [\n";
  for (const Sizes& sizes : kShapes) {
    for (const auto& layout : kLayouts) {
      const bool flat = testing::parse_shape(sizes.shape).value().s == 1;
      if (flat && layout.value == Layout::channels_last) continue;
      std::printf("%s", separator);
      separator = ",\n";
      if (!print_row(sizes, *data, layout.value)) return 1;
    }
  }
  std::printf("\n]}\n");
  return 0;
}

}  // namespace
}  // namespace groupnorm::bench

int main(int argc, char** argv) { return groupnorm::bench::run(argc > 1 ? argv[1] : "f32"); }
