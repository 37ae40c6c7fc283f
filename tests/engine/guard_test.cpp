// No read and no write past an end: every array lies against a page that must not be touched, first
// the page behind it, then the page before it.
#include "engine.h"

#include "guarded.h"
#include "kernels/kernels.h"

#include <cstdint>
#include <cstring>

namespace groupnorm::testing {
namespace {

using Guard = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Guard, ::testing::ValuesIn(targets()), target_name);

constexpr std::uint64_t kSeed = 1;

// Runs the case on guarded arrays and compares what it writes with the result of ordinary ones.
void expect_inside(const Case& c, const char* target, Side side) {
  const Spec& spec = c.spec;
  const Plan plan = make_plan(spec, target);
  Data plain = make_data(c, kSeed);
  run(plan, plain.forward);

  GuardedCopies guarded(side);
  Forward args = plain.forward;
  for (const auto& input : kInputs<Forward>) {
    guarded.copy(&(args.*input.pointer), (plain.*input.buffer).size());
  }
  guarded.copy(&args.y, plain.y.size());
  guarded.copy(&args.sum, plain.sum.size());
  for (double* Forward::*const statistics : {&Forward::mean, &Forward::rstd}) {
    guarded.copy(&(args.*statistics), plain.mean.size() * sizeof(double));
  }
  for (const double* Forward::*const given : {&Forward::given_mean, &Forward::given_rstd}) {
    guarded.copy(&(args.*given), plain.mean.size() * sizeof(double));
  }
  guarded.copy(&args.lengths, plain.lengths.size() * sizeof(std::int64_t));
  const Guarded workspace(plan.workspace_bytes(), side);
  const std::span<std::byte> room{workspace.data(), plan.workspace_bytes()};
  ASSERT_EQ(plan.forward(args, room, backwards(3)), Status::ok);
  const char* const where =
      side == Side::behind ? "against the page behind" : "against the page before";
  ASSERT_TRUE(same_bits(spec.data, args.y, plain.y.data(), plain.y.size())) << where;
  ASSERT_TRUE(same_bits(spec.data, args.sum, plain.sum.data(), plain.sum.size())) << where;
}

void expect_inside_both(const Case& c, const char* target) {
  SCOPED_TRACE(c.name + ", " + to_string(c.spec.layout) + ", seed " + std::to_string(kSeed));
  expect_inside(c, target, Side::behind);
  expect_inside(c, target, Side::before);
}

void expect_inside_both(const Spec& spec, const char* target) {
  expect_inside_both(
      {.name = std::string(to_string(spec.data)) + ", n " + std::to_string(spec.shape.n) + ", c " +
               std::to_string(spec.shape.c) + ", s " + std::to_string(spec.shape.s),
       .spec = spec},
      target);
}

Spec typed(Shape shape, std::int64_t groups, Layout layout, DType dtype) {
  Spec spec = group_spec(shape, groups, layout);
  spec.data = spec.param = dtype;
  return spec;
}

// Rows, runs and lanes of every length from one element to four vectors and one.
TEST_P(Guard, EveryLength) {
  for (const auto& dtype : kDTypes) {
    const detail::Target* found = nullptr;
    ASSERT_EQ(detail::find_target(target(), dtype.value, &found), Status::ok);
    for (std::int64_t length = 1; length <= 4 * found->of(dtype.value).lanes + 1; ++length) {
      for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
        expect_inside_both(typed({1, 2, length}, 2, layout, dtype.value), target());
        expect_inside_both(typed({2, length, 3}, 1, layout, dtype.value), target());
        expect_inside_both(typed({3, length, 11}, length, layout, dtype.value), target());
      }
      expect_inside_both(typed({3, length, 1}, 1, Layout::channels_first, dtype.value), target());
    }
  }
}

// Blocks that go one by one, each looking ahead to the next.
TEST_P(Guard, BlocksOneByOne) {
  for (const auto& dtype : kDTypes) {
    expect_inside_both(typed({1, 4, 401}, 2, Layout::channels_first, dtype.value), target());
    expect_inside_both(typed({2, 1203, 1}, 1, Layout::channels_first, dtype.value), target());
  }
}

TEST_P(Guard, ManyChunks) {
  for (const auto& dtype : kDTypes) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      expect_inside_both(typed({1, 4, 33001}, 2, layout, dtype.value), target());
      expect_inside_both(typed({2, 515, 131}, 1, layout, dtype.value), target());
    }
  }
}

TEST_P(Guard, Neighbours) {
  for (const Case& c : cases()) {
    if (has_neighbours(c)) expect_inside_both(c, target());
  }
}

// Arrays aligned to their elements and to nothing more.
TEST_P(Guard, Misaligned) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    const Spec spec = group_spec({2, 32, 40000}, 4, layout);  // large enough to stream
    const Case c{.name = "misaligned", .spec = spec};
    const Plan plan = make_plan(spec, target());
    Data aligned = make_data(c, kSeed);
    run(plan, aligned.forward);
    for (const std::size_t shift : {1U, 3U, 5U}) {
      SCOPED_TRACE(std::string(to_string(layout)) + ", by " + std::to_string(shift) +
                   " elements, seed " + std::to_string(kSeed));
      const std::size_t bytes = aligned.x.size(), offset = shift * sizeof(float);
      Buffer x(bytes + 64), y(bytes + 64);
      std::memcpy(x.data() + offset, aligned.x.data(), bytes);
      std::memset(y.data(), 0x5A, y.size());
      Forward args = aligned.forward;
      args.x = x.data() + offset;
      args.y = y.data() + offset;
      run(plan, args);
      ASSERT_TRUE(same_bits(spec.data, y.data() + offset, aligned.y.data(), bytes));
      for (std::size_t i = 0; i < y.size(); ++i) {
        if (i == offset) i += bytes;  // behind y
        ASSERT_EQ(y.data()[i], std::byte{0x5A}) << "byte " << i << ", y from " << offset;
      }
    }
  }
}

}  // namespace
}  // namespace groupnorm::testing
