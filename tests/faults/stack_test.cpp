// How much stack a call takes: with the workspace, all the memory there is to it (a call allocates
// nothing: Allocation.NoneInACall).
#include "engine.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>

namespace groupnorm::testing {
namespace {

constexpr std::size_t kStack = std::size_t{1} << 18;
constexpr std::byte kUntouched{0xA5};

// In a thread on this stack.
void run_on(std::byte* stack, std::size_t bytes, const std::function<void()>& action) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, bytes);
  pthread_t thread{};
  auto* const run = +[](void* arg) -> void* {
    (*static_cast<const std::function<void()>*>(arg))();
    return nullptr;
  };
  const int error = pthread_create(&thread, &attributes, run,
                                   const_cast<void*>(static_cast<const void*>(&action)));
  EXPECT_EQ(error, 0);
  if (error == 0) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

// Bytes of a fresh stack that `action` wrote to.
std::size_t stack_of(const std::function<void()>& action) {
  Buffer stack(kStack);
  std::fill_n(stack.data(), kStack, kUntouched);
  run_on(stack.data(), kStack, action);
  const std::byte* const end = stack.data() + kStack;
  return static_cast<std::size_t>(end -
                                  std::find_if(stack.data(), stack.data() + kStack,
                                               [](std::byte byte) { return byte != kUntouched; }));
}

constexpr std::int64_t kMostElements = 30000;  // beyond them a call has more chunks, not more stack

bool is_small(const Spec& spec) {
  return spec.shape.n * spec.shape.c * spec.shape.s <= kMostElements;
}

// As groupnorm.hpp says. (Threads of musl have 128 KB: a call leaves some to who calls it.)
TEST(Stack, IsSmall) {
  constexpr std::size_t kMostForward = std::size_t{60} << 10;
  constexpr std::size_t kMostBackward = std::size_t{80} << 10;
  const std::size_t idle = stack_of([] {});
  for (const char* const target : targets()) {
    std::size_t forward = 0, backward = 0;
    for (const Case& c : cases()) {
      if (!is_small(c.spec)) continue;
      const Plan plan = make_plan(c.spec, target);
      const Data data = make_data(c, 1);
      std::vector<std::byte> workspace(plan.workspace_bytes());
      forward = std::max(forward, stack_of([&] { plan.forward(data.forward, workspace); }));

      const GradientData gradient = make_gradient_data(c, 1);
      std::vector<std::byte> sums(plan.backward_workspace_bytes());
      backward = std::max(backward, stack_of([&] { plan.backward(gradient.backward, sums); }));
    }
    EXPECT_LE(forward - idle, kMostForward) << target;
    EXPECT_LE(backward - idle, kMostBackward) << target;
    std::printf("stack of a call, bytes at most: forward %zu, backward %zu (%s)\n", forward - idle,
                backward - idle, target);
  }
}

// A thread's stack, a guard page below it, and below that what must not be written to. All in
// memory that a child shares with its parent, who looks at it when the child is dead.
class GuardedStack {
 public:
  GuardedStack() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    void* const memory = mmap(nullptr, kBelow + page_ + kSmallStack, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    below_ = static_cast<std::byte*>(memory);
    EXPECT_EQ(mprotect(below_ + kBelow, page_, PROT_NONE), 0);
  }
  GuardedStack(const GuardedStack&) = delete;
  GuardedStack& operator=(const GuardedStack&) = delete;
  ~GuardedStack() { munmap(below_, kBelow + page_ + kSmallStack); }

  void run(const std::function<void()>& action) const {
    run_on(below_ + kBelow + page_, kSmallStack, action);
  }
  bool is_overrun() const {
    return std::any_of(below_, below_ + kBelow, [](std::byte byte) { return byte != std::byte{}; });
  }

 private:
  static constexpr std::size_t kBelow = std::size_t{1} << 17;
  static constexpr std::size_t kSmallStack = std::size_t{28} << 10;

  std::size_t page_;
  std::byte* below_ = nullptr;
};

// The call of a thread with too small a stack ends in the guard page, or has room enough.
TEST(Stack, OverrunEndsInTheGuardPage) {
  const GuardedStack stack;
  int ended = 0;
  for (const Case& c : cases()) {
    if (!is_small(c.spec)) continue;
    const Plan plan = make_plan(c.spec, nullptr);
    const GradientData gradient = make_gradient_data(c, 1);
    std::vector<std::byte> sums(plan.backward_workspace_bytes());
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      stack.run([&] { plan.backward(gradient.backward, sums); });
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_FALSE(stack.is_overrun()) << c.name;
    if (WIFSIGNALED(status)) ++ended;
  }
  EXPECT_GT(ended, 0) << "the stack was large enough for all";
}

}  // namespace
}  // namespace groupnorm::testing
