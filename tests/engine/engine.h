// What the engine's tests share: one test a target, to run a Spec on it, and to say what is wrong.
#ifndef GROUPNORM_TESTS_ENGINE_ENGINE_H
#define GROUPNORM_TESTS_ENGINE_ENGINE_H

#include <groupnorm/groupnorm.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "testing/cases.h"

namespace groupnorm::testing {

// GROUPNORM_LONG_TESTS=1 adds what needs minutes or gigabytes.
inline bool long_tests() {
  const char* const asked = std::getenv("GROUPNORM_LONG_TESTS");
  return asked != nullptr && *asked == '1';
}

// A suite whose tests each instruction set of the machine takes by itself,
// Targets/Bits.InPlace/avx2:
//   using Bits = EachTarget;
//   INSTANTIATE_TEST_SUITE_P(Targets, Bits, ::testing::ValuesIn(targets()), target_name);
//   TEST_P(Bits, InPlace) { ... target() ... }
class EachTarget : public ::testing::TestWithParam<const char*> {
 protected:
  static const char* target() { return GetParam(); }
};
inline std::string target_name(const ::testing::TestParamInfo<const char*>& info) {
  return info.param;
}

// Fills what a call is to write with bits that none writes.
inline void poison(Buffer* buffer) {
  if (buffer->size() > 0) std::memset(buffer->data(), 0xFF, buffer->size());
}

inline Plan make_plan(const Spec& spec, const char* target) {
  Plan plan;
  const Status status = Plan::make(spec, &plan, target);
  EXPECT_EQ(status, Status::ok) << status_string(status);
  return plan;
}

inline void run(const Plan& plan, const Forward& args, const Executor& executor = {}) {
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const Status status = plan.forward(args, workspace, executor);
  ASSERT_EQ(status, Status::ok) << status_string(status);
}

// An executor of `threads` that runs its tasks one by one, the last first.
inline Executor backwards(int threads) {
  return {[](void*, std::int64_t count, Executor::Task task, void* arg) {
            for (std::int64_t i = count - 1; i >= 0; --i) task(arg, i);
          },
          nullptr, threads};
}

// A group norm of f32 without parameters.
inline Spec group_spec(Shape shape, std::int64_t groups, Layout layout = Layout::channels_first) {
  return {.shape = shape, .block = group_norm(shape, groups), .layout = layout};
}

// y of `spec` on `x`, without parameters.
inline std::vector<float> normalized(const Spec& spec, std::span<const float> x,
                                     const char* target) {
  std::vector<float> y(x.size());
  run(make_plan(spec, target), {.x = x.data(), .y = y.data()});
  return y;
}

// The worst element is off by no more than `bound`, in the units of Comparison.
inline ::testing::AssertionResult within(const Comparison& worst, double bound) {
  if (worst.error <= bound) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "error " << worst.error << " of " << bound << " at " << worst.tensor << "["
         << worst.index << "]: expected " << worst.expected << ", got " << worst.actual;
}

// Not compared as numbers: 0 is not -0, and a NaN is itself.
inline ::testing::AssertionResult same_bits(DType dtype, const void* actual, const void* expected,
                                            std::size_t bytes) {
  const std::string found = difference(dtype, actual, expected, bytes);
  return found.empty() ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << found;
}

inline ::testing::AssertionResult same_bits(DType dtype, const Buffer& actual,
                                            const Buffer& expected) {
  if (actual.size() != expected.size()) {
    return ::testing::AssertionFailure() << actual.size() << " bytes, not " << expected.size();
  }
  return same_bits(dtype, actual.data(), expected.data(), expected.size());
}

// Of float or double.
template <class T>
::testing::AssertionResult same_numbers(std::span<const T> actual, std::span<const T> expected) {
  if (actual.size() != expected.size()) {
    return ::testing::AssertionFailure() << actual.size() << " numbers, not " << expected.size();
  }
  return same_bits(sizeof(T) == sizeof(double) ? DType::f64 : DType::f32, actual.data(),
                   expected.data(), expected.size_bytes());
}
inline ::testing::AssertionResult same_bits(std::span<const double> actual,
                                            std::span<const double> expected) {
  return same_numbers(actual, expected);
}

// f(case) for tensors whose results are stored by streaming, `more` among them, in each layout and
// dtype. Rows of lanes begin at any multiple of 4, 8 and 16 elements.
template <class F>
void for_each_streamed(std::vector<Shape> more, const F& f) {
  more.insert(more.end(), {{1, 268, 8000}, {1, 264, 8000}, {1, 272, 8000}});
  for (const Shape shape : more) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        Case c{.name = std::string("large, ") + to_string(dtype),
               .spec = group_spec(shape, 4, layout)};
        c.spec.data = dtype;
        f(c);
      }
    }
  }
}

}  // namespace groupnorm::testing

#endif
