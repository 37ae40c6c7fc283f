// Executors of the caller's that do not keep their contract are found out, and a task is never done
// twice.
#include "engine.h"

#include <groupnorm/groupnorm.h>
#include <groupnorm/layers.hpp>

#include <stdexcept>
#include <thread>

namespace groupnorm::testing {
namespace {

using Run = decltype(Executor::run);

void run_all(std::int64_t count, Executor::Task task, void* arg) {
  for (std::int64_t i = 0; i < count; ++i) task(arg, i);
}

struct Broken {
  const char* name;
  Run run;
};
constexpr Broken kBroken[] = {
    {"runs none", [](void*, std::int64_t, Executor::Task, void*) {}},
    {"leaves out the last", [](void*, std::int64_t count, Executor::Task task,
                               void* arg) { run_all(count - 1, task, arg); }},
    {"runs the first twice instead of the last",
     [](void*, std::int64_t count, Executor::Task task, void* arg) {
       run_all(count - 1, task, arg);
       task(arg, 0);
     }},
    {"makes up an index",
     [](void*, std::int64_t count, Executor::Task task, void* arg) {
       run_all(count, task, arg);
       task(arg, count);
     }},
    {"makes up a negative index",
     [](void*, std::int64_t count, Executor::Task task, void* arg) {
       run_all(count - 1, task, arg);
       task(arg, -1);
     }},
    {"throws before the last",
     [](void*, std::int64_t count, Executor::Task task, void* arg) {
       run_all(count - 1, task, arg);
       throw std::runtime_error("no more threads");
     }},
};

std::vector<Case> executor_cases() {
  std::vector<Case> list;
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    list.push_back({.name = "fused", .spec = group_spec({8, 8, 1000}, 2, layout)});
    list.push_back({.name = "split", .spec = group_spec({1, 8, 40000}, 1, layout)});
  }
  list.push_back({.name = "elements", .spec = group_spec({100, 512, 1}, 1)});
  return list;
}

TEST(Executors, ThatBreakTheirContractAreFoundOut) {
  for (const Case& c : executor_cases()) {
    const Plan plan = make_plan(c.spec, nullptr);
    const Data data = make_data(c, 1);
    const GradientData gradient = make_gradient_data(c, 1);
    std::vector<std::byte> forward(plan.workspace_bytes());
    std::vector<std::byte> backward(plan.backward_workspace_bytes());
    for (const Broken& broken : kBroken) {
      const Executor executor{broken.run, nullptr, 3};
      EXPECT_EQ(plan.forward(data.forward, forward, executor), Status::executor_failed)
          << c.name << ": " << broken.name;
      EXPECT_EQ(plan.backward(gradient.backward, backward, executor), Status::executor_failed)
          << c.name << ": " << broken.name;
    }
  }
}

// In place, the second time would normalize what is normalized.
TEST(Executors, ThatRunATaskTwiceDoNotDoItTwice) {
  const auto run = [](void*, std::int64_t count, Executor::Task task, void* arg) {
    std::thread other([=] { run_all(count, task, arg); });
    run_all(count, task, arg);
    other.join();
  };
  for (const Case& c : executor_cases()) {
    const Plan plan = make_plan(c.spec, nullptr);
    Data expected = make_data(c, 1), data = make_data(c, 1);
    testing::run(plan, expected.forward);
    data.forward.y = data.x.data();
    std::vector<std::byte> workspace(plan.workspace_bytes());
    EXPECT_EQ(plan.forward(data.forward, workspace, {run, nullptr, 3}), Status::executor_failed);
    // A split call stops after the first of its two steps.
    EXPECT_TRUE(c.name == "split" || same_bits(c.spec.data, data.x, expected.y)) << c.name;
  }
}

TEST(Executors, OfLayersAndOfCAreFoundOutToo) {
  const Tensor x({1, 8, 40000});
  GroupNormalization layer(2);
  layer.options.executor = {kBroken[1].run, nullptr, 3};
  try {
    layer.forward(x);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("executor"), std::string::npos) << error.what();
  }

  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = {1, 8, 40000};
  spec.block = {1, 4};
  gn_plan plan{};
  ASSERT_EQ(gn_plan_make(&spec, nullptr, &plan), GN_STATUS_OK);
  gn_forward_args args;
  gn_forward_args_init(&args);
  std::vector<float> y(static_cast<std::size_t>(x.size()));
  args.x = x.data();
  args.y = y.data();
  std::vector<std::byte> workspace(gn_plan_workspace_bytes(&plan));
  for (const Broken& broken : kBroken) {
    const gn_executor executor{broken.run, nullptr, 3};
    EXPECT_EQ(gn_forward(&plan, &args, workspace.data(), workspace.size(), &executor),
              GN_STATUS_EXECUTOR_FAILED)
        << broken.name;
  }
}

}  // namespace
}  // namespace groupnorm::testing
