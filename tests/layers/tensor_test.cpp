#include <groupnorm/layers.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "dtype.h"
#include "throws.h"

namespace groupnorm::testing {
namespace {

using Sizes = std::vector<std::int64_t>;

TEST(Tensor, IsZeroedAlignedAndF32ByDefault) {
  const Tensor x({16, 32, 64, 64});
  EXPECT_EQ(x.shape(), (Sizes{16, 32, 64, 64}));
  EXPECT_EQ(x.dtype(), DType::f32);
  EXPECT_EQ(x.layout(), Layout::channels_first);
  EXPECT_EQ(x.size(), 16 * 32 * 64 * 64);
  EXPECT_EQ(x.data<float>().size(), 16U * 32 * 64 * 64);
  EXPECT_TRUE(std::ranges::all_of(x.data<float>(), [](float value) { return value == 0; }));
}

TEST(Tensor, IsAlignedForEveryDTypeAndSize) {
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
    for (std::int64_t c = 0; c < 70; ++c) {
      Tensor x({1, c}, dtype);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.data()) % 64, 0U) << "c=" << c;
      std::fill_n(static_cast<unsigned char*>(x.data()), c * detail::size_of(dtype), 0xFF);
    }
  }
}

TEST(Tensor, IsSeenAsExamplesChannelsPositions) {
  EXPECT_EQ(Tensor({5, 3}).ncs(), (Shape{5, 3, 1}));
  EXPECT_EQ(Tensor({5, 3, 7}).ncs(), (Shape{5, 3, 7}));
  EXPECT_EQ(Tensor({5, 3, 2, 2, 2, 2}).ncs(), (Shape{5, 3, 16}));
  EXPECT_EQ(Tensor({5, 3, 0, 2}).ncs(), (Shape{5, 3, 0}));
  EXPECT_EQ(Tensor({5, 3, 0, 2}).size(), 0);
  EXPECT_EQ(Tensor({5, 3, 7}, DType::f32, Layout::channels_last).ncs(), (Shape{5, 3, 7}));
}

TEST(Tensor, RefusesShapesThatAreNone) {
  expect_error([] { Tensor({7}); }, {"shape", "rank 2", "[7]"});
  expect_error([] { Tensor(Sizes{}); }, {"shape", "rank 2", "[]"});
  expect_error([] { Tensor({2, -3, 4}); }, {"shape", "negative", "[2, -3, 4]"});
  expect_error([] { Tensor({2, 3, -4, -4}); }, {"shape", "negative", "[2, 3, -4, -4]"});
  const std::int64_t big = std::int64_t{1} << 32;
  expect_error([=] { Tensor({big, big}); }, {"shape", "2^63"});
  expect_error([=] { Tensor({1, 1, big, big}); }, {"shape", "2^63"});
  // An empty axis hides nothing.
  expect_error([=] { Tensor({0, 1, big, big}); }, {"shape", "2^63"});
  expect_error([=] { Tensor({big, big, 0}); }, {"shape", "2^63"});
  // 2^62 elements are representable; their 2^65 bytes are not.
  expect_error([=] { Tensor({big, big / 4}, DType::f64); }, {"shape", "2^63", "f64"});
}

TEST(Tensor, RefusesUnknownEnumerators) {
  expect_error([] { Tensor({1, 1}, static_cast<DType>(9)); }, {"f32, f64", "9"});
  expect_error([] { Tensor({1, 1}, DType::f32, static_cast<Layout>(9)); }, {"layout", "9"});
}

TEST(Tensor, RefusesToBeReadAsAnotherType) {
  Tensor f32({1, 2}), f64({1, 2}, DType::f64), f16({1, 2}, DType::f16), bf16({1, 2}, DType::bf16);
  EXPECT_EQ(f64.data<double>().size(), 2U);
  EXPECT_EQ(f16.data<std::uint16_t>().size(), 2U);
  EXPECT_EQ(bf16.data<std::uint16_t>().size(), 2U);
  expect_error([&] { f32.data<double>(); }, {"data<double>()", "f32 is stored as float"});
  expect_error([&] { f64.data<float>(); }, {"data<float>()", "f64 is stored as double"});
  expect_error([&] { std::as_const(f16).data<float>(); }, {"f16 is stored as std::uint16_t"});
  expect_error([&] { f32.data<std::uint16_t>(); }, {"data<std::uint16_t>()", "float"});
}

TEST(Tensor, CopiesItsElements) {
  Tensor x({1, 3});
  std::ranges::copy(std::array{1.0F, 2.0F, 3.0F}, x.data<float>().begin());
  Tensor copy = x;
  copy.data<float>()[0] = 9;
  EXPECT_EQ(x.data<float>()[0], 1);
  EXPECT_EQ(copy.data<float>()[2], 3);

  Tensor assigned({4, 4}, DType::f64, Layout::channels_last);
  assigned = x;
  EXPECT_EQ(assigned.shape(), x.shape());
  EXPECT_EQ(assigned.dtype(), DType::f32);
  EXPECT_EQ(assigned.layout(), Layout::channels_first);
  EXPECT_EQ(assigned.data<float>()[1], 2);
  const Tensor& self = assigned;
  assigned = self;
  EXPECT_EQ(assigned.data<float>()[1], 2);

  const Tensor empty({0, 3});
  EXPECT_EQ(Tensor(empty).size(), 0);
}

TEST(Tensor, MovesItsMemory) {
  Tensor x({1, 3});
  const void* const memory = x.data();
  Tensor moved = std::move(x);
  EXPECT_EQ(moved.data(), memory);
  Tensor assigned({2, 2});
  assigned = std::move(moved);
  EXPECT_EQ(assigned.data(), memory);
  EXPECT_EQ(assigned.shape(), (Sizes{1, 3}));
}

TEST(Tensor, ViewsMemoryOfTheCaller) {
  std::array<float, 6> memory{1, 2, 3, 4, 5, 6};
  Tensor view = Tensor::view(memory.data(), {2, 3}, DType::f32);
  EXPECT_EQ(view.data(), memory.data());
  view.data<float>()[5] = 60;
  EXPECT_EQ(memory[5], 60);

  Tensor copy = view;
  copy.data<float>()[0] = 10;
  EXPECT_EQ(memory[0], 1);
  view = copy;
  EXPECT_NE(view.data(), memory.data());
  EXPECT_EQ(memory[0], 1);
}

TEST(Tensor, RefusesViewsOfNothingAndOfMisalignedMemory) {
  alignas(8) std::array<unsigned char, 32> memory{};
  expect_error([] { Tensor::view(nullptr, {2, 3}, DType::f32); }, {"data", "null", "[2, 3]"});
  expect_error(
      [&] {
        Tensor::view(memory.data() + 2, {1, 3}, DType::f32);
      },
      {"data", "aligned", "f32", "4 bytes"});
  expect_error([&] { Tensor::view(memory.data(), {3}, DType::f32); }, {"rank 2"});
  EXPECT_EQ(Tensor::view(memory.data() + 2, {1, 3}, DType::bf16).size(), 3);
  EXPECT_EQ(Tensor::view(nullptr, {0, 3}, DType::f32).size(), 0);
}

TEST(Tensor, MeanAndVarAreThoseOfTheDefinition) {
  Tensor x({2, 3});
  std::ranges::copy(std::array{1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F}, x.data<float>().begin());
  EXPECT_DOUBLE_EQ(x.mean(), 3.5);
  EXPECT_DOUBLE_EQ(x.var(), 35.0 / 12);

  for (const DType dtype : {DType::f64, DType::f16, DType::bf16}) {
    Tensor y({2, 3}, dtype);
    for (std::int64_t i = 0; i < 6; ++i) {
      detail::store_element(dtype, y.data(), i, static_cast<double>(i + 1));
    }
    EXPECT_DOUBLE_EQ(y.mean(), 3.5) << to_string(dtype);
    EXPECT_DOUBLE_EQ(y.var(), 35.0 / 12) << to_string(dtype);
  }
}

TEST(Tensor, VarSurvivesALargeMean) {
  // 0, 1, 2, ... around 1e9: E[x^2] - E[x]^2 would lose every digit.
  Tensor x({1, 1001}, DType::f64);
  std::iota(x.data<double>().begin(), x.data<double>().end(), 1e9);
  EXPECT_DOUBLE_EQ(x.mean(), 1e9 + 500);
  EXPECT_DOUBLE_EQ(x.var(), (1001.0 * 1001 - 1) / 12);

  // 0.1 is no double: a constant has the variance of its rounded sums, next to nothing.
  std::ranges::fill(x.data<double>(), 0.1);
  EXPECT_DOUBLE_EQ(x.mean(), 0.1);
  EXPECT_LT(x.var(), 1e-33);
}

TEST(Tensor, MeanOfNothingIsNaN) {
  EXPECT_TRUE(std::isnan(Tensor({0, 3}).mean()));
  EXPECT_TRUE(std::isnan(Tensor({0, 3}).var()));
}

}  // namespace
}  // namespace groupnorm::testing
