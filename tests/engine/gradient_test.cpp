// Plan::backward against the reference, and what forward promises as well: the same bits for any
// number of threads, finite results for finite inputs, nothing touched past an end.
#include "engine.h"

#include "dtype.h"
#include "guarded.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

namespace groupnorm::testing {
namespace {

using Gradient = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Gradient, ::testing::ValuesIn(targets()), target_name);

using detail::load_element;
using detail::reference_backward;
using detail::ReferenceGradient;
using detail::store_element;

constexpr std::uint64_t kSeed = 9;

void backward(const Plan& plan, const Backward& args, const Executor& executor = {}) {
  std::vector<std::byte> workspace(plan.backward_workspace_bytes());
  const Status status = plan.backward(args, workspace, executor);
  ASSERT_EQ(status, Status::ok) << status_string(status);
}

std::string place(const Case& c) {
  return c.name + ", " + to_string(c.spec.layout) + ", seed " + std::to_string(kSeed);
}

void expect_within_bound(const Spec& spec, const ReferenceGradient& expected,
                         const Backward& args) {
  const Comparison worst = compare_gradient(spec, expected, args);
  EXPECT_TRUE(within(worst, worst.bound));
}

// On each of some instruction sets: they take less time together than the reference.
void expect_accurate(const Case& c, std::span<const char* const> on) {
  GradientData data = make_gradient_data(c, kSeed);
  Backward args = data.backward;
  if (!c.spec.center) args.mean = nullptr;  // which is not read then
  const ReferenceGradient expected = reference_backward(c.spec, args);
  for (const char* const target : on) {
    SCOPED_TRACE(place(c) + ", " + target);
    for (const Output& output : kGradients) poison(&(data.*output.buffer));
    backward(make_plan(c.spec, target), args);
    expect_within_bound(c.spec, expected, args);
  }
}

void expect_accurate(const Case& c, const char* target) { expect_accurate(c, {&target, 1}); }

TEST(GradientCases, AgreeWithTheReference) {
  for (const Case& c : cases()) {
    expect_accurate(c, targets());
    if (HasFailure()) return;
  }
}

TEST_P(Gradient, AnyMeanAnySize) {
  struct Size {
    std::int64_t channels, positions;
  };
  constexpr Size kSizes[] = {{1, 1},   {2, 1},    {1, 7},    {3, 5},     {16, 1},   {4, 64},
                             {10, 49}, {4, 4096}, {3, 9999}, {1, 65537}, {600, 300}};
  for (const Size& size : kSizes) {
    for (const double mean : {0.0, 1e2, 1e4, 1e5}) {
      for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
        for (const Activation activation : {Activation::none, Activation::gelu}) {
          Case c{.name = std::to_string(size.channels) + " channels x " +
                         std::to_string(size.positions) + " positions, mean " +
                         std::to_string(mean) + ", " + to_string(activation),
                 .spec = group_spec({1, 2 * size.channels, size.positions}, 2, layout),
                 .mean = mean};
          c.spec.activation = activation;
          expect_accurate(c, target());
        }
      }
    }
  }
}

// Rows shorter than a vector, or a few of them.
TEST_P(Gradient, ShortRows) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    for (const std::int64_t length : {2, 3, 4, 5, 7, 8, 9, 15, 17, 31, 49, 127}) {
      Case c{.name = "9 rows of " + std::to_string(length) + ", " + to_string(dtype),
             .spec = group_spec({2, 18, length}, 2),
             .mean = 10};
      c.spec.data = c.spec.param = dtype;
      c.spec.activation = Activation::silu;
      expect_accurate(c, target());
    }
  }
}

// s = 1: several tiles of a span, more groups than a tile holds, and runs longer than kMaxLanes.
TEST_P(Gradient, RunsInTiles) {
  struct Size {
    Shape shape;
    std::int64_t groups;
  };
  constexpr Size kSizes[] = {{{70, 1024, 1}, 64},
                             {{3, 8320, 1}, 520},
                             {{5, 1301, 1}, 1},
                             {{150, 768, 1}, 1},
                             {{5, 129, 1}, 1}};
  for (const auto& [shape, groups] : kSizes) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const Activation activation : {Activation::silu, Activation::gelu}) {
        Case c{.name = std::to_string(shape.n) + "x" + std::to_string(shape.c) + ", " +
                       std::to_string(groups) + " groups, " + to_string(dtype),
               .spec = group_spec(shape, groups),
               .mean = 1e2};
        c.spec.data = dtype;
        c.spec.activation = activation;
        expect_accurate(c, target());
      }
    }
  }
}

// ---- The same bits ------------------------------------------------------------------------------

Buffer copy(const Buffer& from) {
  Buffer to(from.size());
  std::copy_n(from.data(), from.size(), to.data());
  return to;
}

using Gradients = std::array<Buffer, std::size(kGradients)>;

// What lies between the rows of dgamma stays as it is.
void clear(GradientData* data) {
  for (const Output& output : kGradients) {
    Buffer& buffer = data->*output.buffer;
    std::fill_n(buffer.data(), buffer.size(), std::byte{0x5A});
  }
}

Gradients copy(const GradientData& data) {
  Gradients gradients;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    gradients[i] = copy(data.*kGradients[i].buffer);
  }
  return gradients;
}

void expect_same_bits(const Spec& spec, const Gradients& actual, const Gradients& expected) {
  for (std::size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(same_bits(spec.*kGradients[i].dtype, actual[i], expected[i])) << kGradients[i].name;
  }
}

Gradients gradients(const Plan& plan, GradientData* data, const Executor& executor) {
  clear(data);
  backward(plan, data->backward, executor);
  return copy(*data);
}

// Of every case but those that differ by nothing a schedule sees.
std::vector<Case> schedules() {
  std::vector<Case> list = cases();
  std::erase_if(list, [](const Case& c) {
    const Activation activation = c.spec.activation;
    return c.mean > 1 || (activation != Activation::none && activation != Activation::silu);
  });
  return list;
}

// Those of the models, which take most of the time.
bool is_large(const Shape& shape) { return shape.n * shape.c * shape.s > 100'000; }

TEST_P(Gradient, ThreadsAndOrder) {
  for (const Case& c : schedules()) {
    GradientData data = make_gradient_data(c, kSeed);
    const bool large = is_large(c.spec.shape);
    const Plan plan = make_plan(c.spec, target());
    const Gradients alone = gradients(plan, &data, {});
    for (int threads = 2; threads <= 8; threads += large ? 3 : 1) {
      SCOPED_TRACE(place(c) + ", " + std::to_string(threads) + " threads");
      expect_same_bits(c.spec, gradients(plan, &data, backwards(threads)), alone);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Gradient, InPlace) {
  for (const Case& c : schedules()) {
    GradientData data = make_gradient_data(c, kSeed);
    const Plan plan = make_plan(c.spec, target());
    const Gradients apart = gradients(plan, &data, {});
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(place(c) + ", " + std::to_string(threads) + " threads");
      Buffer both = copy(data.dy);
      Backward args = data.backward;
      args.dy = args.dx = both.data();
      clear(&data);
      backward(plan, args, backwards(threads));
      Gradients in_place = copy(data);
      in_place[0] = std::move(both);
      expect_same_bits(c.spec, in_place, apart);
      if (HasFailure()) return;
    }
  }
}

// Each alone, and all but it.
TEST_P(Gradient, WhatIsAskedForDoesNotMatter) {
  for (const Case& c : schedules()) {
    if (is_large(c.spec.shape)) continue;
    GradientData data = make_gradient_data(c, kSeed);
    const Plan plan = make_plan(c.spec, target());
    const Gradients all = gradients(plan, &data, {});
    clear(&data);
    const Gradients untouched = copy(data);
    for (std::size_t chosen = 0; chosen < all.size(); ++chosen) {
      if (all[chosen].size() == 0) continue;
      for (const bool alone : {false, true}) {
        SCOPED_TRACE(place(c) + ", " + kGradients[chosen].name + (alone ? " alone" : " not"));
        clear(&data);
        Backward args = data.backward;
        for (std::size_t i = 0; i < all.size(); ++i) {
          if ((i == chosen) != alone) args.*kGradients[i].pointer = nullptr;
        }
        backward(plan, args, backwards(2));
        const Gradients some = copy(data);
        for (std::size_t i = 0; i < all.size(); ++i) {
          const Buffer& expected = (i == chosen) == alone ? all[i] : untouched[i];
          ASSERT_TRUE(same_bits(c.spec.*kGradients[i].dtype, some[i], expected))
              << kGradients[i].name;
        }
      }
    }
  }
}

// dx of each example of a batch, against the same example by itself.
TEST_P(Gradient, AnExampleAloneOrInABatch) {
  constexpr Shape kShapes[] = {{5, 8, 49}, {3, 6, 4096}, {7, 32, 1}, {2, 3, 40001}, {9, 16, 64}};
  for (const Shape& shape : kShapes) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      Case batch{.name = std::to_string(shape.n) + "x" + std::to_string(shape.c) + "x" +
                         std::to_string(shape.s),
                 .spec = group_spec(shape, shape.c, layout)};
      GradientData data = make_gradient_data(batch, kSeed);
      backward(make_plan(batch.spec, target()), data.backward, backwards(4));
      const Plan one = make_plan(group_spec({1, shape.c, shape.s}, shape.c, layout), target());
      const std::size_t bytes = data.x.size() / static_cast<std::size_t>(shape.n);
      for (std::int64_t n = 0; n < shape.n; ++n) {
        const std::size_t at = static_cast<std::size_t>(n) * bytes;
        Buffer dx(bytes);
        Backward args = data.backward;
        args.x = data.x.data() + at;
        args.dy = data.dy.data() + at;
        args.dx = dx.data();
        args.mean += n * shape.c;
        args.rstd += n * shape.c;
        args.dgamma = args.dbeta = nullptr;
        backward(one, args);
        ASSERT_TRUE(same_bits(DType::f32, dx.data(), data.dx.data() + at, bytes))
            << place(batch) << ", example " << n;
      }
    }
  }
}

// Streaming stores are chosen by size, and never in place.
TEST_P(Gradient, StreamingStores) {
  for_each_streamed({{16, 32, 64 * 64 + 3}}, [](const Case& c) {
    GradientData data = make_gradient_data(c, kSeed);
    const Plan plan = make_plan(c.spec, target());
    backward(plan, data.backward, backwards(2));
    Buffer both = copy(data.dy);
    Backward args = data.backward;
    args.dy = args.dx = both.data();
    backward(plan, args);
    ASSERT_TRUE(same_bits(c.spec.data, both, data.dx)) << place(c);
  });
}

// ---- Parameters ---------------------------------------------------------------------------------

Spec typed(Shape shape, std::int64_t groups, Layout layout, DType dtype) {
  Spec spec = group_spec(shape, groups, layout);
  spec.data = spec.param = dtype;
  return spec;
}

// dgamma and dbeta start as gamma and beta. Between their rows nothing is written.
TEST_P(Gradient, Accumulates) {
  for (const auto& dtype : kDTypes) {
    for (const auto& layout : kLayouts) {
      for (const std::int64_t stride : {0, 12, 17}) {
        Case c{.name = std::string(dtype.name) + ", stride " + std::to_string(stride),
               .spec = typed({3, 12, 35}, 4, layout.value, dtype.value)};
        SCOPED_TRACE(place(c));
        c.spec.param_stride = stride;
        GradientData data = make_gradient_data(c, kSeed);
        data.backward.accumulate = true;
        std::memcpy(data.dgamma.data(), data.gamma.data(), data.gamma.size());
        std::memcpy(data.dbeta.data(), data.beta.data(), data.beta.size());
        const ReferenceGradient expected = reference_backward(c.spec, data.backward);
        backward(make_plan(c.spec, target()), data.backward);
        expect_within_bound(c.spec, expected, data.backward);
        for (std::int64_t i = 0; i < 3 * stride; ++i) {
          if (i % stride < 12) continue;
          ASSERT_EQ(load_element(dtype.value, data.dgamma.data(), i),
                    load_element(dtype.value, data.gamma.data(), i))
              << "dgamma[" << i << "]";
          ASSERT_EQ(load_element(dtype.value, data.dbeta.data(), i),
                    load_element(dtype.value, data.beta.data(), i))
              << "dbeta[" << i << "]";
        }
      }
    }
  }
}

TEST(Gradient, OfAnEmptyTensorIsZero) {
  for (const Shape& shape : {Shape{0, 3, 2}, Shape{2, 3, 0}, Shape{2, 0, 3}}) {
    for (const std::int64_t stride : {0, 4}) {
      Spec spec = group_spec(shape, 1);
      spec.param_stride = stride;
      const Plan plan = make_plan(spec, nullptr);
      const std::vector<float> old(8, 7);
      std::vector<float> dgamma = old, dbeta = old;
      Backward args{.dgamma = dgamma.data(), .dbeta = dbeta.data(), .accumulate = true};
      EXPECT_EQ(plan.backward_workspace_bytes(), 0U);
      EXPECT_EQ(plan.backward(args, {}), Status::ok);
      EXPECT_EQ(dgamma, old);
      EXPECT_EQ(dbeta, old);
      args.accumulate = false;
      EXPECT_EQ(plan.backward(args, {}), Status::ok);
      std::vector<float> expected = old;
      for (std::int64_t row = 0; row < (stride == 0 ? 1 : shape.n); ++row) {
        for (std::int64_t c = 0; c < shape.c; ++c) {
          expected[static_cast<std::size_t>(row * stride + c)] = 0;
        }
      }
      EXPECT_EQ(dgamma, expected);
      EXPECT_EQ(dbeta, expected);
      EXPECT_EQ(plan.backward({}, {}), Status::ok);
      args.dgamma = reinterpret_cast<std::byte*>(dgamma.data()) + 1;
      EXPECT_EQ(plan.backward(args, {}), Status::misaligned_dgamma);
      args.dgamma = args.dbeta;
      const bool none = shape.c == 0 || (shape.n == 0 && stride != 0);
      EXPECT_EQ(plan.backward(args, {}), none ? Status::ok : Status::overlap_dbeta);
      EXPECT_EQ(dbeta, expected);
    }
  }
}

// ---- What holds of any gradient -----------------------------------------------------------------

// y does not change where x is shifted, nor where it is scaled if eps is 0: dx is orthogonal to 1
// and to xhat. Each of m errors is within the bound of its element.
TEST_P(Gradient, IsOrthogonalToShiftAndScale) {
  constexpr std::int64_t kBlock = 2000;  // elements
  for (const double mean : {0.0, 1e4}) {
    Case c{.name = "orthogonal, mean " + std::to_string(mean),
           .spec = group_spec({2, 8, 500}, 2),
           .mean = mean};
    c.spec.eps = 0;
    GradientData data = make_gradient_data(c, kSeed);
    const ReferenceGradient expected = reference_backward(c.spec, data.backward);
    const auto* const x = reinterpret_cast<const float*>(data.x.data());
    const auto* const dx = reinterpret_cast<const float*>(data.dx.data());
    backward(make_plan(c.spec, target()), data.backward);
    for (std::size_t block = 0; block < 4; ++block) {
      double sum = 0, by_xhat = 0, sizes = 0;
      for (std::int64_t i = static_cast<std::int64_t>(block) * kBlock, end = i + kBlock; i < end;
           ++i) {
        const auto gradient = static_cast<double>(dx[i]);
        const double xhat = (static_cast<double>(x[i]) - data.mean[block]) * data.rstd[block];
        sum += gradient;
        by_xhat += gradient * xhat;
        sizes += std::fabs(xhat);
      }
      const double error = gradient_bound(DType::f32) * 0x1p-23 * expected.dx_scale[block];
      EXPECT_LE(std::fabs(sum), error * kBlock) << place(c) << ", block " << block;
      EXPECT_LE(std::fabs(by_xhat), error * sizes) << place(c) << ", block " << block;
    }
  }
}

// x = 1 in every element: z is beta, and eps = 0 gives rstd = 0.
TEST_P(Gradient, ConstantBlock) {
  for (const auto& layout : kLayouts) {
    for (const auto& activation : kActivations) {
      for (const double eps : {1e-5, 0.0}) {
        Case c{.name = std::string(activation.name) + ", eps " + std::to_string(eps),
               .spec = group_spec({2, 4, 21}, 2, layout.value),
               .mean = 1,
               .deviation = 0};
        c.spec.activation = activation.value;
        c.spec.eps = eps;
        GradientData data = make_gradient_data(c, kSeed);
        // Where the derivatives of relu and hard_swish jump: what they are there is defined.
        const std::vector<float> dy(168, 1), beta = {0, -0.0F, 3, -3};
        Backward args = data.backward;
        args.dy = dy.data();
        args.beta = beta.data();
        const ReferenceGradient expected = reference_backward(c.spec, args);
        SCOPED_TRACE(place(c));
        backward(make_plan(c.spec, target()), args);
        expect_within_bound(c.spec, expected, args);
        for (std::int64_t i = 0; i < 4; ++i) {
          ASSERT_EQ(load_element(DType::f32, args.dgamma, i), 0) << "dgamma[" << i << "]";
        }
        for (std::int64_t i = 0; eps == 0 && i < 168; ++i) {
          ASSERT_EQ(load_element(DType::f32, args.dx, i), 0) << "dx[" << i << "]";
        }
      }
    }
  }
}

// ---- Extremes -----------------------------------------------------------------------------------

struct Sizes {
  DType dtype;
  double x, dy;  // largest
};
// The dtypes from the one end to the other, as long as dy (x - mean) is no subnormal.
constexpr Sizes kSizes[] = {
    {DType::f32, 3e38, 1},       {DType::f32, 3e38, 3e38},    {DType::f32, 1, 3e38},
    {DType::f32, 1e-3, 3e38},    {DType::f32, 1e30, 1e-5},    {DType::f32, 0x1p57, 1e20},
    {DType::f32, 0x1p57, 1e-10}, {DType::f32, 0x1p20, 1e-30}, {DType::f32, 1, 1e-36},
    {DType::f32, 1e-30, 1e10},   {DType::f32, 1e-44, 1e20},   {DType::bf16, 3e38, 3e38},
    {DType::bf16, 1, 3e38},      {DType::bf16, 3e38, 1},      {DType::f16, 65504, 65504},
    {DType::f16, 1, 65504},      {DType::f16, 65504, 1},      {DType::f64, 1e150, 1},
    {DType::f64, 1e150, 1e100},  {DType::f64, 1, 1e150},      {DType::f64, 1e-100, 1}};

// mean and rstd of the x that is there.
void take_statistics(const Spec& spec, GradientData* data) {
  const auto forward = detail::reference_forward(spec, {.x = data->x.data()});
  std::copy(forward.mean.begin(), forward.mean.end(), data->mean.begin());
  std::copy(forward.rstd.begin(), forward.rstd.end(), data->rstd.begin());
}

// `data` with x and dy uniform within +- the sizes, and the statistics of that x.
void fill(const Spec& spec, const Sizes& sizes, GradientData* data) {
  std::mt19937_64 generator(kSeed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  const std::int64_t elements = spec.shape.n * spec.shape.c * spec.shape.s;
  for (std::int64_t i = 0; i < elements; ++i) {
    store_element(spec.data, data->x.data(), i, sizes.x * uniform(generator));
    store_element(spec.data, data->dy.data(), i, sizes.dy * uniform(generator));
  }
  store_element(spec.data, data->x.data(), 0, sizes.x);
  store_element(spec.data, data->dy.data(), 0, sizes.dy);
  take_statistics(spec, data);
}

TEST_P(Gradient, ExtremeInputs) {
  constexpr Shape kShapes[] = {{2, 8, 300}, {1, 4, 7}, {3, 16, 1}, {2, 70, 40}};
  for (const Sizes& sizes : kSizes) {
    for (const Shape& shape : kShapes) {
      for (const auto& layout : kLayouts) {
        for (const Activation activation : {Activation::none, Activation::silu}) {
          for (const double eps : {1e-5, 0.0}) {
            Case c{.name = std::string(to_string(sizes.dtype)) + ", x " +
                           std::to_string(std::log2(sizes.x)) + ", dy " +
                           std::to_string(std::log2(sizes.dy)) + " (log2), c " +
                           std::to_string(shape.c) + ", " + to_string(activation) + ", eps " +
                           std::to_string(eps),
                   .spec = typed(shape, 2, layout.value, sizes.dtype)};
            c.spec.activation = activation;
            c.spec.eps = eps;
            GradientData data = make_gradient_data(c, kSeed);
            fill(c.spec, sizes, &data);
            const ReferenceGradient expected = reference_backward(c.spec, data.backward);
            SCOPED_TRACE(place(c));
            backward(make_plan(c.spec, target()), data.backward);
            expect_within_bound(c.spec, expected, data.backward);
          }
        }
      }
    }
  }
}

enum class Poisoned { x, dy };

void expect_finite_where(const std::vector<double>& expected, DType dtype, const void* actual,
                         const char* name) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = load_element(dtype, actual, static_cast<std::int64_t>(i));
    ASSERT_EQ(std::isfinite(value), std::isfinite(expected[i]))
        << name << "[" << i << "] " << value;
  }
}

// One NaN or infinity in group 0 of example 1. Of dx it reaches this block, all of it and nothing
// else; of dgamma and dbeta what the reference says, and no other channels than the block's.
void expect_contained(const Spec& spec, Poisoned tensor, double poison, const char* target) {
  const Case c{.name = std::string(to_string(spec.data)) + ", " +
                       (tensor == Poisoned::x ? "x " : "dy ") + std::to_string(poison),
               .spec = spec};
  SCOPED_TRACE(place(c));
  GradientData data = make_gradient_data(c, kSeed);
  const auto [n, channels, s] = spec.shape;
  const std::int64_t elements = n * channels * s;
  Buffer& poisoned = tensor == Poisoned::x ? data.x : data.dy;
  store_element(spec.data, poisoned.data(), elements / 2 + 3, poison);
  take_statistics(spec, &data);
  const ReferenceGradient expected = reference_backward(spec, data.backward);
  backward(make_plan(spec, target), data.backward);
  expect_finite_where(expected.dx, spec.data, data.dx.data(), "dx");
  expect_finite_where(expected.dgamma, spec.param, data.dgamma.data(), "dgamma");
  expect_finite_where(expected.dbeta, spec.param, data.dbeta.data(), "dbeta");
  for (std::int64_t i = 0; i < elements; ++i) {
    const std::int64_t in_example = i % (elements / 2);
    const bool first = spec.layout == Layout::channels_first;
    const std::int64_t channel = first ? in_example / s : in_example % channels;
    const bool inside = i >= elements / 2 && channel < spec.block.channels;
    ASSERT_EQ(std::isfinite(expected.dx[static_cast<std::size_t>(i)]), !inside) << i;
  }
  for (std::int64_t i = spec.block.channels; i < channels; ++i) {
    ASSERT_TRUE(std::isfinite(expected.dgamma[static_cast<std::size_t>(i)])) << i;
    ASSERT_TRUE(std::isfinite(expected.dbeta[static_cast<std::size_t>(i)])) << i;
  }
}

TEST_P(Gradient, NotANumberStaysInItsBlock) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const auto& dtype : kDTypes) {
    for (const auto& layout : kLayouts) {
      for (const double poison : {std::nan(""), kInfinity, -kInfinity}) {
        for (const Poisoned tensor : {Poisoned::x, Poisoned::dy}) {
          expect_contained(typed({2, 16, 80}, 4, layout.value, dtype.value), tensor, poison,
                           target());
        }
      }
    }
  }
}

// ---- Ends ---------------------------------------------------------------------------------------

// Every array against a page that must not be touched.
void expect_inside(const Case& c, const char* target, Side side) {
  SCOPED_TRACE(place(c) + (side == Side::behind ? ", behind" : ", before"));
  GradientData plain = make_gradient_data(c, kSeed);
  const Plan plan = make_plan(c.spec, target);
  const Gradients expected = gradients(plan, &plain, {});

  GuardedCopies guarded(side);
  Backward args = plain.backward;
  for (const auto& input : kInputs<Backward>) {
    guarded.copy(&(args.*input.pointer), (plain.*input.buffer).size());
  }
  for (const Output& output : kGradients) {
    guarded.copy(&(args.*output.pointer), (plain.*output.buffer).size());
  }
  guarded.copy(&args.dy, plain.dy.size());
  guarded.copy(&args.dsum, plain.dsum.size());
  guarded.copy(&args.mean, plain.mean.size() * sizeof(double));
  guarded.copy(&args.rstd, plain.rstd.size() * sizeof(double));
  guarded.copy(&args.lengths, plain.lengths.size() * sizeof(std::int64_t));
  const Guarded workspace(plan.backward_workspace_bytes(), side);
  const std::span<std::byte> room{workspace.data(), plan.backward_workspace_bytes()};
  ASSERT_EQ(plan.backward(args, room, backwards(3)), Status::ok);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const Output& output = kGradients[i];
    ASSERT_TRUE(same_bits(c.spec.*output.dtype, args.*output.pointer, expected[i].data(),
                          expected[i].size()))
        << output.name;
  }
}

void expect_inside(const Spec& spec, const char* target, Side side) {
  expect_inside(
      {.name = "guarded " + std::to_string(spec.shape.n) + "x" + std::to_string(spec.shape.c) +
               "x" + std::to_string(spec.shape.s) + ", " + to_string(spec.data),
       .spec = spec},
      target, side);
}

TEST_P(Gradient, NothingPastAnEnd) {
  for (const auto& dtype : kDTypes) {
    for (const auto& layout : kLayouts) {
      for (const Side side : {Side::behind, Side::before}) {
        for (const std::int64_t length : {1, 2, 3, 5, 7, 9, 15, 17, 31, 33, 63, 65}) {
          Spec spec = typed({1, 2, length}, 2, layout.value, dtype.value);
          expect_inside(spec, target(), side);
          spec = typed({2, length, 3}, 1, layout.value, dtype.value);
          spec.activation = Activation::silu;
          expect_inside(spec, target(), side);
          expect_inside(typed({3, length, 11}, length, layout.value, dtype.value), target(), side);
          expect_inside(typed({3, length, 1}, 1, layout.value, dtype.value), target(), side);
        }
        expect_inside(typed({1, 4, 33001}, 2, layout.value, dtype.value), target(), side);
        expect_inside(typed({2, 515, 131}, 1, layout.value, dtype.value), target(), side);
      }
    }
  }
}

TEST_P(Gradient, NothingPastAnEndOfNeighbours) {
  for (const Case& c : cases()) {
    if (!has_neighbours(c) || is_large(c.spec.shape)) continue;
    for (const Side side : {Side::behind, Side::before}) expect_inside(c, target(), side);
  }
}

}  // namespace
}  // namespace groupnorm::testing
