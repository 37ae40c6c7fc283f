// Every allocation is made to fail once. The engine goes on without what it wanted memory for; the
// layers throw std::bad_alloc, and are afterwards as they were.
#include "engine.h"

#include <groupnorm/groupnorm.h>
#include <groupnorm/layers.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr std::int64_t kNever = -1;
std::atomic<std::int64_t> before_failure = kNever;  // allocations that still succeed
std::atomic<std::int64_t> held = 0;                 // blocks not yet given back

bool fails() {
  if (before_failure.load() == kNever) return false;
  return before_failure.fetch_sub(1) == 0;
}

void* allocate(std::size_t size, std::size_t alignment) {
  const std::size_t rounded = (std::max<std::size_t>(size, 1) + alignment - 1) / alignment;
  void* const memory = fails() ? nullptr : std::aligned_alloc(alignment, rounded * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  held.fetch_add(1);
  return memory;
}

[[gnu::noinline]] void release(void* memory) {
  if (memory == nullptr) return;
  held.fetch_sub(1);
  std::free(memory);
}

}  // namespace

// new[] and the nothrow forms end in these.
void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  try {
    return operator new(size, alignment);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }

// The linker sends calls of calloc here, and those of __real_calloc to calloc.
extern "C" void* __real_calloc(std::size_t count, std::size_t size);   // NOLINT: the linker's name
extern "C" void* __wrap_calloc(std::size_t count, std::size_t size) {  // NOLINT
  return fails() ? nullptr : __real_calloc(count, size);
}

namespace groupnorm::testing {
namespace {

// Runs `action` with the first allocation failing, then the second, until it needs no more; after
// each failure calls `failed`. Says how many there were.
template <class Action, class Failed>
std::int64_t fail_each(const Action& action, const Failed& failed) {
  for (std::int64_t i = 0;; ++i) {
    const std::int64_t held_before = held.load();
    before_failure = i;
    try {
      action();
    } catch (const std::bad_alloc&) {
      before_failure = kNever;
      EXPECT_EQ(held.load(), held_before) << "allocation " << i << " of an action leaks";
      failed();
      continue;
    }
    const bool reached = before_failure.load() < 0;
    before_failure = kNever;
    if (!reached) return i;
  }
}

Tensor ramp() {
  Tensor x({2, 8, 40, 50});
  const std::span<float> values = x.data<float>();
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * i % 1013);
  return x;
}

TEST(Allocation, FailsInALayer) {
  const Tensor x = ramp();
  GroupNormalization gn(4, 8);
  const Tensor expected = gn.forward(x);
  const std::int64_t failures =
      fail_each([&] { GroupNormalization(4, 8).forward(x); },
                [&] {
                  const Tensor y = gn.forward(x);
                  EXPECT_TRUE(same_bits(DType::f32, y.data(), expected.data(),
                                        expected.data<float>().size_bytes()));
                });
  EXPECT_GT(failures, 3);
  RecordProperty("failures", static_cast<int>(failures));
}

// A forward that fails leaves nothing of itself to mean, rstd and backward.
TEST(Allocation, FailsInALayersNextForward) {
  const Tensor x = ramp(), dy = ramp();
  const Tensor larger({2, 8, 2, 100, 200}, DType::f64);
  GroupNormalization gn(4, 8);
  gn.forward(x);
  const std::vector<double> mean(gn.mean().begin(), gn.mean().end());
  const Tensor dx = gn.backward(dy);
  std::int64_t forwards = 0;
  const std::int64_t failures = fail_each(
      [&] {
        GroupNormalization copy = gn;
        copy.gamma()[0] = 5;
        try {
          copy.forward(larger);
        } catch (const std::bad_alloc&) {
          before_failure = kNever;
          ++forwards;
          EXPECT_TRUE(std::equal(mean.begin(), mean.end(), copy.mean().begin(), copy.mean().end()));
          const Tensor again = copy.backward(dy);
          EXPECT_TRUE(same_numbers<float>(again.data<float>(), dx.data<float>()));
          throw;
        }
      },
      [] {});
  EXPECT_GT(forwards, 8);
  EXPECT_GT(failures, forwards);
}

TEST(Allocation, FailsInALayersInfer) {
  const Tensor x = ramp();
  const GroupNormalization gn(4, 8);
  const Tensor expected = gn.infer(x);
  const std::int64_t failures =
      fail_each([&] { GroupNormalization(4, 8).infer(x); },
                [&] {
                  const Tensor y = gn.infer(x);
                  EXPECT_TRUE(same_numbers<float>(y.data<float>(), expected.data<float>()));
                });
  EXPECT_GT(failures, 3);
}

// dgamma and dbeta hold what they held, or what the whole call adds: never a part of it.
TEST(Allocation, FailsInALayersBackward) {
  const Tensor x = ramp();
  GroupNormalization gn(4, 8);
  const Tensor y = gn.forward(x);
  const Tensor dx = gn.backward(y);
  const std::vector<double> once(gn.dgamma().begin(), gn.dgamma().end());
  const std::int64_t failures = fail_each(
      [&] {
        gn.zero_grad();
        gn.backward(y);
      },
      [&] {
        const auto is_zero = [](double value) { return value == 0; };
        EXPECT_TRUE(std::all_of(gn.dgamma().begin(), gn.dgamma().end(), is_zero));
      });
  EXPECT_GT(failures, 1);
  EXPECT_TRUE(std::equal(once.begin(), once.end(), gn.dgamma().begin(), gn.dgamma().end()));
}

TEST(Allocation, ThePlanAndTheCInterfaceNeedNone) {
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = {2, 8, 5};
  spec.block = gn_group_norm(spec.shape, 4);
  std::array<float, 80> x{}, y{};
  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = x.data();
  args.y = y.data();
  gn_plan plan{};
  before_failure = 0;
  const gn_status made = gn_plan_make(&spec, nullptr, &plan);
  const gn_status done = gn_forward(&plan, &args, nullptr, 0, nullptr);
  const bool untouched = before_failure.load() == 0;
  before_failure = kNever;
  EXPECT_EQ(made, GN_STATUS_OK);
  EXPECT_EQ(done, GN_STATUS_OK);
  EXPECT_TRUE(untouched);
}

// In a process of its own each time, because a pool starts its threads once.
TEST(Allocation, FailsInAPoolThatForkedProcessesStart) {
  const Case c{.name = "pool", .spec = group_spec({1, 8, 40000}, 1)};
  const Plan plan = make_plan(c.spec, nullptr);
  Data expected = make_data(c, 1);
  run(plan, expected.forward);
  enum Exit { kNotReached, kReached, kWrong };
  int failures = 0;
  for (int ended = kReached; ended == kReached; ++failures) {
    ASSERT_LT(failures, 100);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(60);
      Data data = make_data(c, 1);
      std::vector<std::byte> workspace(plan.workspace_bytes());
      before_failure = failures;
      const Status status = plan.forward(data.forward, workspace, pool(4));
      const bool reached = before_failure.load() < 0;
      before_failure = kNever;
      const bool right =
          status == Status::ok && std::memcmp(data.y.data(), expected.y.data(), data.y.size()) == 0;
      std::exit(!right ? kWrong : reached ? kReached : kNotReached);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "allocation " << failures;
    ended = WEXITSTATUS(status);
    ASSERT_NE(ended, kWrong) << "allocation " << failures;
  }
  EXPECT_GT(failures, 3);
}

}  // namespace
}  // namespace groupnorm::testing
