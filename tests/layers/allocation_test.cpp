// What a layer allocates: every operator new and calloc of this program is counted.
#include <groupnorm/layers.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "dtype.h"

namespace {

std::atomic<std::int64_t> allocations = 0;
std::atomic<std::int64_t> held = 0;  // blocks of operator new that were not given back

void* allocate(std::size_t size, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  held.fetch_add(1, std::memory_order_relaxed);
  const std::size_t rounded = (std::max<std::size_t>(size, 1) + alignment - 1) / alignment;
  void* const memory = std::aligned_alloc(alignment, rounded * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// Not inlined: g++ would take it for the wrong partner of operator new.
[[gnu::noinline]] void release(void* memory) {
  if (memory != nullptr) held.fetch_sub(1, std::memory_order_relaxed);
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
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __real_calloc(count, size);
}

namespace groupnorm::testing {
namespace {

template <class Action>
std::int64_t count(const Action& action) {
  const std::int64_t before = allocations.load();
  action();
  return allocations.load() - before;
}

// Of 6 channels.
std::vector<std::unique_ptr<Normalization>> layers() {
  std::vector<std::unique_ptr<Normalization>> all;
  all.push_back(std::make_unique<GroupNormalization>(3, 6));
  all.push_back(std::make_unique<GroupNormalization>(3));
  all.push_back(std::make_unique<LayerNormalization>(6));
  all.push_back(std::make_unique<InstanceNormalization>(6));
  all.push_back(std::make_unique<RmsNormalization>(6));
  all.push_back(std::make_unique<BatchNormalization>(6));
  auto evaluated = std::make_unique<BatchNormalization>(6);
  evaluated->eval();
  all.push_back(std::move(evaluated));
  return all;
}

// The last ones of x need a workspace.
std::vector<Tensor> tensors() {
  std::vector<Tensor> all;
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      for (const auto& shape : {std::vector<std::int64_t>{4, 6}, {2, 6, 5, 7}, {2, 6, 300, 300}}) {
        Tensor x(shape, dtype, layout);
        for (std::int64_t i = 0; i < x.size(); ++i) {
          detail::store_element(dtype, x.data(), i, static_cast<double>(i * i % 1013));
        }
        all.push_back(std::move(x));
      }
    }
  }
  return all;
}

void change_parameters(Normalization& layer) {
  for (double& gamma : layer.gamma()) gamma += 0.5;
  for (double& beta : layer.beta()) beta -= 0.5;
}

// Calls `use` with every layer and tensor.
template <class Use>
void for_each(const Use& use) {
  const std::vector<Tensor> xs = tensors();
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const std::vector<std::unique_ptr<Normalization>> all = layers();
    for (std::size_t layer = 0; layer < all.size(); ++layer) {
      SCOPED_TRACE("layer " + std::to_string(layer) + ", tensor " + std::to_string(i));
      use(*all[layer], xs[i]);
    }
  }
}

std::int64_t tensor_alone(const Tensor& x) {
  return count([&] { const Tensor y(x.shape(), x.dtype(), x.layout()); });
}

TEST(LayerAllocation, NoneInTheSecondForwardAndBackward) {
  for_each([](Normalization& layer, const Tensor& x) {
    Tensor y(x.shape(), x.dtype(), x.layout()), dx(x.shape(), x.dtype(), x.layout());
    const auto step = [&] {
      layer.forward(x, y);
      layer.backward(y, dx);
    };
    EXPECT_GT(count(step), 0) << "the counter counts";
    change_parameters(layer);
    EXPECT_EQ(count(step), 0);
    EXPECT_EQ(count([&] { layer.forward(x); }), tensor_alone(x));
    EXPECT_EQ(count([&] { layer.backward(y); }), tensor_alone(x));
  });
}

TEST(LayerAllocation, NoneInTheSecondInfer) {
  for_each([](const Normalization& layer, const Tensor& x) {
    Tensor y(x.shape(), x.dtype(), x.layout());
    EXPECT_GT(count([&] { layer.infer(x, y); }), 0);
    EXPECT_EQ(count([&] { layer.infer(x, y); }), 0);
    EXPECT_EQ(count([&] { layer.infer(x); }), tensor_alone(x));
  });
}

TEST(LayerAllocation, NoneBetweenCallsOfDifferentKindsAndShapes) {
  const std::vector<Tensor> xs = tensors();
  for (const auto& layer : layers()) {
    std::vector<Tensor> ys = xs;
    const auto all = [&] {
      for (std::size_t i = 0; i < xs.size(); ++i) {
        layer->forward(xs[i], ys[i]);
        layer->infer(xs[i], ys[i]);
      }
    };
    all();
    all();  // the memory of forward and that of the call before it change places
    EXPECT_EQ(count(all), 0);
  }
}

TEST(LayerAllocation, AMovedLayerTakesItsMemoryAlong) {
  const Tensor x({2, 6, 5});
  Tensor y = x;
  GroupNormalization gn(3, 6);
  gn.forward(x, y);
  GroupNormalization moved = std::move(gn);
  EXPECT_EQ(count([&] { moved.forward(x, y); }), 0);
  GroupNormalization assigned(2, 6);
  assigned = std::move(moved);
  EXPECT_EQ(count([&] { assigned.forward(x, y); }), 0);
}

// A Tensor's memory is one block of operator new as well, which those that share it hold.
TEST(LayerAllocation, InferHoldsOnToNoX) {
  for (const auto& layer : layers()) {
    const auto held_by = [&](const auto& call) {
      const std::int64_t before = held.load();
      {
        const Tensor x({2, 6, 5});
        Tensor y = x;
        call(x, y);
      }
      return held.load() - before;
    };
    const auto infer = [&](const Tensor& x, Tensor& y) { layer->infer(x, y); };
    const auto forward = [&](const Tensor& x, Tensor& y) { layer->forward(x, y); };
    const auto in_place = [&](const Tensor&, Tensor& y) { layer->forward(y, y); };
    held_by(in_place);  // from here on the layer has all it needs but an x
    EXPECT_EQ(held_by(infer), 0);
    EXPECT_EQ(held_by(forward), 1);
    EXPECT_EQ(held_by(infer), 0);
    EXPECT_EQ(held_by(forward), 0);  // in place of the x before
    EXPECT_EQ(held_by(in_place), -1);
  }
}

}  // namespace
}  // namespace groupnorm::testing
