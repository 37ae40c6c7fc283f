// What the engine's tests share: run a Spec on a target, and say where it happened.
#ifndef GROUPNORM_TESTS_ENGINE_ENGINE_H
#define GROUPNORM_TESTS_ENGINE_ENGINE_H

#include <groupnorm/groupnorm.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <span>
#include <vector>

#include "cases.h"

namespace groupnorm::testing {

// GROUPNORM_LONG_TESTS=1 adds what needs minutes or gigabytes.
inline bool long_tests() {
  const char* const asked = std::getenv("GROUPNORM_LONG_TESTS");
  return asked != nullptr && *asked == '1';
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

}  // namespace groupnorm::testing

#endif
