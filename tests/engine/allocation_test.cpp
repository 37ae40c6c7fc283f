// A call allocates nothing: every operator new of this program is counted.
#include "engine.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::int64_t> allocations = 0;

void* allocate(std::size_t size, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// Not inlined: g++ would take it for the wrong partner of operator new.
[[gnu::noinline]] void release(void* memory) { std::free(memory); }

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

namespace groupnorm::testing {
namespace {

TEST(Allocation, NoneInACall) {
  for (const Case& c : cases()) {
    const Plan plan = make_plan(c.spec, nullptr);
    Data data = make_data(c, 1);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    const Executor executor = pool(2);
    ASSERT_EQ(plan.forward(data.forward, workspace, executor), Status::ok);  // starts the pool
    const std::int64_t before = allocations.load();
    const Status status = plan.forward(data.forward, workspace, executor);
    EXPECT_EQ(allocations.load(), before) << c.name;
    EXPECT_EQ(status, Status::ok);

    GradientData gradient = make_gradient_data(c, 1);
    std::vector<std::byte> sums(plan.backward_workspace_bytes());
    ASSERT_EQ(plan.backward(gradient.backward, sums, executor), Status::ok);
    const std::int64_t before_backward = allocations.load();
    const Status backward = plan.backward(gradient.backward, sums, executor);
    EXPECT_EQ(allocations.load(), before_backward) << c.name;
    EXPECT_EQ(backward, Status::ok);
  }
  EXPECT_GT(allocations.load(), 0) << "the counter counts";
}

}  // namespace
}  // namespace groupnorm::testing
