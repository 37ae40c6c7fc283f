// Blocks in pieces: reduce, merge, finish and forward with given statistics; reduce_gradient and
// apply_gradient. Of one piece they have the bits of forward and backward; of any cut, their
// bounds.
#include "engine.h"

#include "dtype.h"
#include "kernels/kernels.h"
#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace groupnorm::testing {
namespace {

using Pieces = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Pieces, ::testing::ValuesIn(targets()), target_name);

constexpr std::uint64_t kSeed = 5;
using detail::size_of;

constexpr double kEps64 = std::numeric_limits<double>::epsilon();

std::string place(const Case& c) {
  return c.name + ", " + to_string(c.spec.layout) + ", seed " + std::to_string(kSeed);
}

Spec given(Spec spec) {
  spec.given_statistics = true;
  return spec;
}

std::vector<Moments> reduce(const Plan& plan, const void* x, std::int64_t blocks,
                            const Executor& executor = {}) {
  std::vector<Moments> moments(static_cast<std::size_t>(blocks), {7, 7, 7});
  std::vector<std::byte> workspace(plan.workspace_bytes());
  EXPECT_EQ(plan.reduce(x, moments.data(), workspace, executor), Status::ok);
  return moments;
}

// mean and rstd, one behind the other.
std::vector<double> finish(const Plan& plan, const std::vector<Moments>& moments) {
  std::vector<double> statistics(2 * moments.size());
  const auto blocks = static_cast<std::int64_t>(moments.size());
  EXPECT_EQ(plan.finish(moments.data(), blocks, statistics.data(), statistics.data() + blocks),
            Status::ok);
  return statistics;
}

std::vector<BlockSums> reduce_gradient(const Plan& plan, const Backward& args, std::int64_t blocks,
                                       const Executor& executor = {}) {
  std::vector<BlockSums> sums(static_cast<std::size_t>(blocks), {7, 7});
  std::vector<std::byte> workspace(plan.backward_workspace_bytes());
  EXPECT_EQ(plan.reduce_gradient(args, sums.data(), workspace, executor), Status::ok);
  return sums;
}

// Where forward goes by tiles of float, it sums those and not the 16 bits that they are of, in
// another order.
bool reduces_tiles(const Spec& spec) {
  return !detail::is_fused(spec.activation) && size_of(spec.data) == 2;
}

TEST_P(Pieces, OnePieceHasTheBitsOfForward) {
  for (const Case& c : cases()) {
    if (c.spec.given_statistics || reduces_tiles(c.spec) || has_neighbours(c)) continue;
    const Data data = make_data(c, kSeed);
    const Plan plan = make_plan(c.spec, target());
    Data whole = make_data(c, kSeed);
    run(plan, whole.forward);
    const Plan piece = make_plan(given(c.spec), target());
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(place(c) + ", " + std::to_string(threads) + " threads");
      const auto moments = reduce(plan, data.x.data(), plan.blocks(), backwards(threads));
      const std::vector<double> statistics = finish(piece, moments);
      Forward args = data.forward;
      args.mean = args.rstd = nullptr;
      args.given_mean = statistics.data();
      args.given_rstd = statistics.data() + plan.blocks();
      run(piece, args);
      ASSERT_TRUE(same_bits(c.spec.data, data.y, whole.y));
      std::vector<double> expected = whole.mean;
      expected.insert(expected.end(), whole.rstd.begin(), whole.rstd.end());
      ASSERT_TRUE(same_bits(statistics, expected));
    }
  }
}

TEST_P(Pieces, OnePieceHasTheBitsOfBackward) {
  for (const Case& c : cases()) {
    if (c.spec.given_statistics || has_neighbours(c)) continue;
    const GradientData whole = make_gradient_data(c, kSeed), cut = make_gradient_data(c, kSeed);
    const Plan plan = make_plan(c.spec, target()), piece = make_plan(given(c.spec), target());
    std::vector<std::byte> workspace(plan.backward_workspace_bytes());
    ASSERT_EQ(plan.backward(whole.backward, workspace), Status::ok);
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(place(c) + ", " + std::to_string(threads) + " threads");
      const Executor executor = backwards(threads);
      const auto sums = reduce_gradient(piece, cut.backward, plan.blocks(), executor);
      const auto count = static_cast<double>(plan.block_elements());
      ASSERT_EQ(piece.apply_gradient(cut.backward, sums.data(), count, executor), Status::ok);
      ASSERT_TRUE(same_bits(c.spec.data, cut.dx, whole.dx));
      // What lies between the rows of [n, c] is nobody's.
      const std::int64_t size = size_of(c.spec.param), stride = c.spec.param_stride;
      for (std::int64_t row = 0; row < (stride == 0 ? 1 : c.spec.shape.n); ++row) {
        const std::int64_t at = row * stride * size;
        const auto bytes = static_cast<std::size_t>(c.spec.shape.c * size);
        if (cut.dgamma.size() == 0) continue;
        ASSERT_TRUE(
            same_bits(c.spec.param, cut.dgamma.data() + at, whole.dgamma.data() + at, bytes));
        ASSERT_TRUE(same_bits(c.spec.param, cut.dbeta.data() + at, whole.dbeta.data() + at, bytes));
      }
    }
  }
}

// Positions [begin, end) of a tensor [n, c, s].
struct Cut {
  const Spec& spec;
  std::int64_t begin, end;

  template <class Copy>
  void for_each(const Copy& copy) const {
    const auto [n, c, s] = spec.shape;
    const bool last = spec.layout == Layout::channels_last;
    const std::int64_t rows = last ? n : n * c, width = last ? c : 1;
    for (std::int64_t row = 0; row < rows; ++row) {
      copy((row * s + begin) * width, row * (end - begin) * width, (end - begin) * width);
    }
  }
};

// The piece of `spec` there, with given statistics.
Spec spec_of(const Spec& spec, const Cut& cut) {
  Spec piece = given(spec);
  piece.shape.s = cut.end - cut.begin;
  return piece;
}

Buffer take(const Cut& cut, const Buffer& whole) {
  const std::int64_t size = size_of(cut.spec.data);
  Buffer piece(
      static_cast<std::size_t>(cut.spec.shape.n * cut.spec.shape.c * (cut.end - cut.begin) * size));
  cut.for_each([&](std::int64_t from, std::int64_t to, std::int64_t count) {
    std::copy_n(whole.data() + from * size, count * size, piece.data() + to * size);
  });
  return piece;
}

void put(const Cut& cut, const Buffer& piece, Buffer* whole) {
  const std::int64_t size = size_of(cut.spec.data);
  cut.for_each([&](std::int64_t to, std::int64_t from, std::int64_t count) {
    std::copy_n(piece.data() + from * size, count * size, whole->data() + to * size);
  });
}

// Pieces of none, one, and many positions.
std::vector<Cut> cuts(const Spec& spec) {
  std::vector<Cut> list;
  const std::int64_t s = spec.shape.s;
  std::int64_t begin = 0;
  for (const std::int64_t size : {std::int64_t{0}, std::int64_t{1}, s / 3, std::int64_t{0}, s}) {
    const std::int64_t end = std::min(s, begin + size);
    list.push_back({spec, begin, end});
    begin = end;
  }
  return list;
}

// Every norm, layout and dtype, beside means that f32 sums of squares would drown in.
std::vector<Case> cut_cases() {
  std::vector<Case> list;
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      for (const double mean : {0.0, 100.0, 1e5}) {
        if (dtype == DType::f16 && mean > 1000) continue;
        for (const bool batch : {false, true}) {
          for (const std::int64_t s : {2, 35, 9000}) {
            const Shape shape{2, 24, s};
            Case c{.name = std::string(to_string(dtype)) + ", " + (batch ? "batch" : "group") +
                           ", s " + std::to_string(s) + ", mean " + std::to_string(mean),
                   .spec = {.shape = shape,
                            .block = batch ? batch_group_norm(shape, 8) : group_norm(shape, 8),
                            .layout = layout,
                            .data = dtype,
                            .param = dtype == DType::f64 ? DType::f64 : DType::f32,
                            .activation = Activation::silu,
                            .correction = s == 35 ? 1 : 0},
                   .mean = mean};
            list.push_back(c);
          }
        }
      }
    }
  }
  return list;
}

std::vector<Moments> moments_of(const Spec& spec, const Buffer& x, const char* target) {
  const std::int64_t blocks = make_plan(spec, target).blocks();
  std::vector<Moments> total(static_cast<std::size_t>(blocks));
  for (const Cut& cut : cuts(spec)) {
    const Buffer piece = take(cut, x);
    const auto more = reduce(make_plan(spec_of(spec, cut), target), piece.data(), blocks);
    if (cut.begin == cut.end) {
      EXPECT_TRUE(std::all_of(more.begin(), more.end(), [](const Moments& m) {
        return m.count == 0 && m.mean == 0 && m.m2 == 0;
      }));
    }
    merge(more.data(), blocks, total.data());
  }
  return total;
}

void expect_any_cut(const Case& c, const detail::ReferenceResult& expected, Data* data,
                    const char* target) {
  SCOPED_TRACE(place(c) + ", " + target);
  poison(&data->y);
  const std::vector<Moments> whole = moments_of(c.spec, data->x, target);
  const std::vector<double> statistics = finish(make_plan(given(c.spec), target), whole);
  for (const Cut& cut : cuts(c.spec)) {
    const Buffer x = take(cut, data->x);
    Buffer y(x.size());
    run(make_plan(spec_of(c.spec, cut), target), {.x = x.data(),
                                                  .y = y.data(),
                                                  .gamma = data->forward.gamma,
                                                  .beta = data->forward.beta,
                                                  .given_mean = statistics.data(),
                                                  .given_rstd = statistics.data() + whole.size()});
    put(cut, y, &data->y);
  }
  ASSERT_TRUE(within(compare(c.spec, expected, data->y.data()), error_bound(c.spec)));
  if (c.spec.data != DType::f64) return;
  // Of what double can tell: x - mean carries an eps of the mean.
  for (std::size_t b = 0; b < whole.size(); ++b) {
    const double shift = std::fabs(c.mean) * expected.rstd[b];
    EXPECT_NEAR(whole[b].mean, expected.mean[b], 4 * kEps64 * (std::fabs(c.mean) + 1)) << b;
    EXPECT_NEAR(statistics[whole.size() + b] / expected.rstd[b], 1, 4 * kEps64 * (1 + shift)) << b;
  }
}

// All instruction sets take less time together than the reference.
TEST(AnyCut, IsWithinTheBoundOfForward) {
  for (const Case& c : cut_cases()) {
    Data data = make_data(c, kSeed);
    const detail::ReferenceResult expected = detail::reference_forward(c.spec, data.forward);
    for (const char* const target : targets()) {
      expect_any_cut(c, expected, &data, target);
      if (HasFailure()) return;
    }
  }
}

void expect_any_cut(const Case& c, const detail::ReferenceGradient& expected, GradientData* data,
                    const char* target) {
  SCOPED_TRACE(place(c) + ", " + target);
  for (const Output& output : kGradients) poison(&(data->*output.buffer));
  std::vector<BlockSums> total(data->rstd.size(), {0, 0});
  // dgamma and dbeta of the first piece, then added to by the others.
  bool first = true;
  const auto args_of = [&](const Buffer& x, const Buffer& dy) {
    Backward args = data->backward;
    args.x = x.data();
    args.dy = dy.data();
    args.accumulate = !first;
    return args;
  };
  const auto blocks = static_cast<std::int64_t>(total.size());
  for (const Cut& cut : cuts(c.spec)) {
    const Buffer x = take(cut, data->x), dy = take(cut, data->dy);
    const auto sums =
        reduce_gradient(make_plan(spec_of(c.spec, cut), target), args_of(x, dy), blocks);
    for (std::size_t b = 0; b < total.size(); ++b) {
      total[b].d += sums[b].d;
      total[b].e += sums[b].e;
    }
    first = false;
  }
  const auto count = static_cast<double>(make_plan(c.spec, target).block_elements());
  for (const Cut& cut : cuts(c.spec)) {
    const Buffer x = take(cut, data->x), dy = take(cut, data->dy);
    Buffer dx(x.size());
    Backward args = args_of(x, dy);
    args.dx = dx.data();
    const Plan plan = make_plan(spec_of(c.spec, cut), target);
    ASSERT_EQ(plan.apply_gradient(args, total.data(), count), Status::ok);
    put(cut, dx, &data->dx);
  }
  const Comparison worst = compare_gradient(c.spec, expected, data->backward);
  ASSERT_TRUE(within(worst, worst.bound));
}

TEST(AnyCut, IsWithinTheBoundOfBackward) {
  for (const Case& c : cut_cases()) {
    GradientData data = make_gradient_data(c, kSeed);
    const detail::ReferenceGradient expected = detail::reference_backward(c.spec, data.backward);
    for (const char* const target : targets()) {
      expect_any_cut(c, expected, &data, target);
      if (HasFailure()) return;
    }
  }
}

// Infinities and NaN of one piece reach the whole.
TEST_P(Pieces, WhatIsNotFiniteReachesTheWhole) {
  const Spec spec = given(group_spec({1, 4, 16}, 1));
  const Plan plan = make_plan(spec, target());
  std::vector<float> x(64, 1.5F);
  const std::vector<Moments> good = reduce(plan, x.data(), 1);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    x[17] = bad;
    for (const bool before : {false, true}) {
      std::vector<Moments> total = before ? good : reduce(plan, x.data(), 1);
      const std::vector<Moments> more = before ? reduce(plan, x.data(), 1) : good;
      merge(more.data(), 1, total.data());
      const std::vector<double> statistics = finish(plan, total);
      EXPECT_EQ(total[0].count, 128);
      EXPECT_FALSE(std::isfinite(total[0].m2) && std::isfinite(total[0].mean)) << bad;
      EXPECT_FALSE(statistics[1] > 0) << bad;
    }
  }
}

TEST_P(Pieces, NothingMergesWithAnything) {
  const Moments far{3, 1e300, 2};
  Moments total{0, 0, 0};
  const Moments nothing{0, 0, 0};
  merge(&nothing, 1, &total);
  EXPECT_EQ(total.count, 0);
  merge(&far, 1, &total);
  merge(&nothing, 1, &total);
  EXPECT_TRUE(total.count == far.count && total.mean == far.mean && total.m2 == far.m2);
  const Plan plan = make_plan(given(group_spec({0, 4, 16}, 2)), target());
  EXPECT_TRUE(std::isnan(finish(plan, {nothing})[0]));
  EXPECT_TRUE(std::isnan(finish(plan, {nothing})[1]));
  // A batch of no examples has its blocks all the same.
  const Shape empty{0, 3, 5};
  Spec batch = given({.shape = empty, .block = batch_norm(empty)});
  for (const Moments& m : reduce(make_plan(batch, target()), nullptr, 3)) EXPECT_EQ(m.count, 0);
}

TEST(PiecesArguments, AreRefused) {
  const Spec spec = given(group_spec({2, 4, 8}, 2));
  const Plan plan = make_plan(spec, nullptr);
  std::vector<float> x(64, 1), dx(64);
  std::vector<double> memory(64, 1);
  auto* const moments = reinterpret_cast<Moments*>(memory.data());
  auto* const sums = reinterpret_cast<BlockSums*>(memory.data() + 32);
  double* const mean = memory.data() + 16;
  double* const rstd = memory.data() + 24;
  const auto odd = [](auto* data) {
    return reinterpret_cast<decltype(data)>(reinterpret_cast<std::byte*>(data) + 1);
  };
  EXPECT_EQ(Plan().reduce(x.data(), moments, {}), Status::not_planned);
  EXPECT_EQ(plan.reduce(nullptr, moments, {}), Status::null_x);
  EXPECT_EQ(plan.reduce(x.data(), nullptr, {}), Status::null_moments);
  EXPECT_EQ(plan.reduce(odd(x.data()), moments, {}), Status::misaligned_x);
  EXPECT_EQ(plan.reduce(x.data(), odd(moments), {}), Status::misaligned_moments);
  EXPECT_EQ(plan.reduce(x.data(), reinterpret_cast<Moments*>(x.data()), {}),
            Status::overlap_moments);
  EXPECT_EQ(plan.reduce(x.data(), moments, {}, {.threads = 0}), Status::executor);
  EXPECT_EQ(Plan().finish(moments, 4, mean, rstd), Status::not_planned);
  EXPECT_EQ(plan.finish(nullptr, 4, mean, rstd), Status::null_moments);
  EXPECT_EQ(plan.finish(moments, -1, mean, rstd), Status::negative_size);
  EXPECT_EQ(plan.finish(moments, std::int64_t{1} << 60, mean, rstd), Status::size_overflow);
  EXPECT_EQ(plan.finish(moments, 4, memory.data(), rstd), Status::overlap_mean);
  EXPECT_EQ(plan.finish(moments, 4, mean, mean), Status::overlap_rstd);
  EXPECT_EQ(plan.finish(moments, 4, odd(mean), rstd), Status::misaligned_mean);

  Backward args{.x = x.data(), .dy = x.data(), .mean = mean, .rstd = rstd, .dx = dx.data()};
  std::vector<std::byte> workspace(plan.backward_workspace_bytes());
  EXPECT_EQ(Plan().reduce_gradient(args, sums, workspace), Status::not_planned);
  EXPECT_EQ(plan.reduce_gradient(args, nullptr, workspace), Status::null_sums);
  EXPECT_EQ(plan.reduce_gradient(args, odd(sums), workspace), Status::misaligned_sums);
  EXPECT_EQ(plan.reduce_gradient(args, reinterpret_cast<BlockSums*>(mean), workspace),
            Status::overlap_sums);
  EXPECT_EQ(plan.reduce_gradient(args, sums, {}), Status::backward_workspace_too_small);
  EXPECT_EQ(Plan().apply_gradient(args, sums, 16), Status::not_planned);
  EXPECT_EQ(plan.apply_gradient(args, nullptr, 16), Status::null_sums);
  for (const double count : {15.0, 0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_EQ(plan.apply_gradient(args, sums, count), Status::count) << count;
  }
  EXPECT_EQ(plan.apply_gradient(args, reinterpret_cast<BlockSums*>(dx.data()), 16),
            Status::overlap_dx);
  EXPECT_TRUE(std::all_of(dx.begin(), dx.end(), [](float value) { return value == 0; }));
  EXPECT_TRUE(std::all_of(memory.begin(), memory.end(), [](double value) { return value == 1; }));
  EXPECT_EQ(plan.reduce_gradient(args, sums, workspace), Status::ok);
  EXPECT_EQ(plan.apply_gradient(args, sums, 1e15), Status::ok);
}

}  // namespace
}  // namespace groupnorm::testing
