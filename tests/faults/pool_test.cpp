// The built-in pool and the caller's executor.
#include "engine.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

namespace groupnorm::testing {
namespace {

struct Counts {
  std::vector<std::atomic<int>> of;
  explicit Counts(std::int64_t count) : of(static_cast<std::size_t>(count)) {}
  static void add(void* arg, std::int64_t index) {
    static_cast<Counts*>(arg)->of[static_cast<std::size_t>(index)].fetch_add(1);
  }
};

void expect_once_each(const Executor& executor, std::int64_t count) {
  Counts counts(count);
  executor.run(executor.context, count, Counts::add, &counts);
  for (const std::atomic<int>& times : counts.of) EXPECT_EQ(times.load(), 1);
}

TEST(Pool, EveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    const Executor executor = pool(threads);
    EXPECT_EQ(executor.threads, threads);
    for (const std::int64_t count : {0, 1, 2, 3, 7, 100}) {
      for (int again = 0; again < 50; ++again) expect_once_each(executor, count);
    }
  }
}

TEST(Pool, Sizes) {
  EXPECT_GE(pool().threads, 1);
  EXPECT_EQ(pool(5).threads, 5);
  EXPECT_EQ(pool(100000).threads, 1024);
}

// A task that runs tasks, and callers at once: whoever finds the pool busy works alone.
TEST(Pool, NestedAndConcurrent) {
  const Executor executor = pool(4);
  const Executor::Task nested = [](void* arg, std::int64_t) {
    const Executor inner = pool(4);
    Counts counts(5);
    inner.run(inner.context, 5, Counts::add, &counts);
    for (const std::atomic<int>& times : counts.of) {
      static_cast<std::atomic<int>*>(arg)->fetch_add(times.load());
    }
  };
  std::atomic<int> total = 0;
  executor.run(executor.context, 20, nested, &total);
  EXPECT_EQ(total.load(), 100);

  std::vector<std::thread> callers;
  callers.reserve(6);
  for (int i = 0; i < 6; ++i) {
    callers.emplace_back([&] {
      for (int again = 0; again < 200; ++again) expect_once_each(executor, 9);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// One Plan, many threads, each with its own tensors and workspace; all on the pool.
TEST(Pool, OnePlanManyCallers) {
  const Case c{.name = "shared", .spec = group_spec({2, 8, 40000}, 1)};
  const Plan plan = make_plan(c.spec, nullptr);
  Data expected = make_data(c, 1);
  run(plan, expected.forward);
  std::vector<std::thread> callers;
  callers.reserve(4);
  std::atomic<int> wrong = 0;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      Data data = make_data(c, 1);
      std::vector<std::byte> workspace(plan.workspace_bytes());
      for (int again = 0; again < 10; ++again) {
        if (plan.forward(data.forward, workspace, pool(3)) != Status::ok) ++wrong;
        if (std::memcmp(data.y.data(), expected.y.data(), expected.y.size()) != 0) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

// The child of a fork has no pool threads: its calls still finish, and so does it.
TEST(Pool, WorksAfterFork) {
  expect_once_each(pool(3), 10);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    Counts counts(10);
    for (int again = 0; again < 3; ++again) pool(3).run(pool(3).context, 10, Counts::add, &counts);
    const bool right = counts.of[9].load() == 3;
    std::exit(right && !HasFailure() ? 0 : 1);  // not _exit: the pool's own end is part of it
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  expect_once_each(pool(3), 10);
}

}  // namespace
}  // namespace groupnorm::testing
