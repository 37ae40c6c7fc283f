// How much stack a call takes: with the workspace, all the memory there is to it (a call allocates
// nothing: Allocation.NoneInACall).
#include "engine.h"

#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <functional>

namespace groupnorm::testing {
namespace {

constexpr std::size_t kStack = std::size_t{1} << 18;
constexpr std::byte kUntouched{0xA5};

// Bytes of a fresh stack that `action` wrote to.
std::size_t stack_of(const std::function<void()>& action) {
  Buffer stack(kStack);
  std::fill_n(stack.data(), kStack, kUntouched);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack.data(), kStack);
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
  const std::byte* const end = stack.data() + kStack;
  return static_cast<std::size_t>(end -
                                  std::find_if(stack.data(), stack.data() + kStack,
                                               [](std::byte byte) { return byte != kUntouched; }));
}

// Threads of musl have 128 KB of stack: a call leaves some to who calls it.
TEST(Stack, IsSmall) {
  constexpr std::size_t kMost = std::size_t{80} << 10;
  constexpr std::int64_t kMostElements =
      30000;  // beyond them a call has more chunks, not more stack
  const std::size_t idle = stack_of([] {});
  std::size_t forward = 0, backward = 0;
  for (const Case& c : cases()) {
    const auto [n, channels, s] = c.spec.shape;
    if (n * channels * s > kMostElements) continue;
    const Plan plan = make_plan(c.spec, nullptr);
    const Data data = make_data(c, 1);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    forward = std::max(forward, stack_of([&] { plan.forward(data.forward, workspace); }));

    const GradientData gradient = make_gradient_data(c, 1);
    std::vector<std::byte> sums(plan.backward_workspace_bytes());
    backward = std::max(backward, stack_of([&] { plan.backward(gradient.backward, sums); }));
  }
  EXPECT_LE(forward - idle, kMost);
  EXPECT_LE(backward - idle, kMost);
  std::printf("stack of a call, bytes at most: forward %zu, backward %zu\n", forward - idle,
              backward - idle);
}

}  // namespace
}  // namespace groupnorm::testing
