// Same bits for any number of threads, whatever the order of their tasks, for an example alone or
// anywhere in a batch, fused or split, in place or not.
#include "engine.h"

#include <cstring>

namespace groupnorm::testing {
namespace {

using Bits = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Bits, ::testing::ValuesIn(targets()), target_name);

constexpr std::uint64_t kSeed = 1;

std::string place(const Case& c) {
  return c.name + ", " + to_string(c.spec.layout) + ", seed " + std::to_string(kSeed);
}

// Of every case but those that differ by nothing a schedule sees.
std::vector<Case> schedules() {
  std::vector<Case> list;
  for (const Case& c : cases()) {
    if (c.spec.activation == Activation::none || c.spec.activation == Activation::silu) {
      list.push_back(c);
    }
  }
  // Of 25 blocks a thread, a call of the kernel gets up to 20: small ones go together where they
  // are few, one by one where they are many.
  list.push_back({.name = "small blocks", .spec = group_spec({10, 100, 40}, 20)});
  return list;
}

struct Result {
  Buffer y, sum;
  std::vector<double> mean, rstd;
};

Result result(const Plan& plan, const Data& data, const Executor& executor) {
  Result result{Buffer(data.y.size()), Buffer(data.sum.size()), data.mean, data.rstd};
  Forward args = data.forward;
  args.y = result.y.data();
  if (args.sum != nullptr) args.sum = result.sum.data();
  if (args.mean != nullptr) args.mean = result.mean.data();
  if (args.rstd != nullptr) args.rstd = result.rstd.data();
  run(plan, args, executor);
  return result;
}

TEST_P(Bits, ThreadsAndOrder) {
  for (const Case& c : schedules()) {
    const Data data = make_data(c, kSeed);
    const Plan plan = make_plan(c.spec, target());
    const Result alone = result(plan, data, {});
    for (const int threads : {2, 3, 4, 5, 6, 7, 8}) {
      SCOPED_TRACE(place(c) + ", " + std::to_string(threads) + " threads");
      const Result shared = result(plan, data, backwards(threads));
      ASSERT_TRUE(same_bits(c.spec.data, shared.y, alone.y));
      ASSERT_TRUE(same_bits(c.spec.data, shared.sum, alone.sum));
      ASSERT_TRUE(same_bits(shared.mean, alone.mean));
      ASSERT_TRUE(same_bits(shared.rstd, alone.rstd));
    }
  }
}

TEST_P(Bits, InPlace) {
  for (const Case& c : schedules()) {
    const Data data = make_data(c, kSeed);
    const Plan plan = make_plan(c.spec, target());
    const Result apart = result(plan, data, {});
    for (const int threads : {1, 3}) {
      Buffer both(data.x.size());
      std::memcpy(both.data(), data.x.data(), both.size());
      Forward args = data.forward;
      args.x = args.y = both.data();
      args.mean = args.rstd = nullptr;
      run(plan, args, backwards(threads));
      ASSERT_TRUE(same_bits(c.spec.data, both, apart.y))
          << place(c) << ", " << threads << " threads";
    }
  }
}

// Each example of a batch, against the same example by itself. Of the last shape, the batch is
// large enough that its chunks would not be those of one example if it had a say in them.
TEST_P(Bits, AnExampleAloneOrInABatch) {
  constexpr Shape kShapes[] = {{5, 8, 49},    {3, 6, 4096}, {7, 32, 1},  {4, 64, 640},
                               {2, 3, 40001}, {6, 12, 5},   {9, 16, 64}, {3, 6, 250001}};
  for (const Shape& shape : kShapes) {
    const auto groups = static_cast<std::size_t>(shape.c / 2);
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      for (const int threads : {1, 4}) {
        const Case batch{.name = std::to_string(shape.n) + "x" + std::to_string(shape.c) + "x" +
                                 std::to_string(shape.s),
                         .spec = group_spec(shape, shape.c / 2, layout)};
        Data data = make_data(batch, kSeed);
        run(make_plan(batch.spec, target()), data.forward, backwards(threads));
        const Spec one = group_spec({1, shape.c, shape.s}, shape.c / 2, layout);
        const std::size_t bytes = data.x.size() / static_cast<std::size_t>(shape.n);
        for (std::int64_t n = 0; n < shape.n; ++n) {
          SCOPED_TRACE(place(batch) + ", " + std::to_string(threads) + " threads, example " +
                       std::to_string(n));
          const std::size_t at = static_cast<std::size_t>(n) * bytes;
          Buffer y(bytes);
          Forward args = data.forward;
          args.x = data.x.data() + at;
          args.y = y.data();
          std::vector<double> mean(groups), rstd(groups);
          args.mean = mean.data();
          args.rstd = rstd.data();
          run(make_plan(one, target()), args);
          const std::size_t first = static_cast<std::size_t>(n) * groups;
          ASSERT_TRUE(same_bits(DType::f32, y.data(), data.y.data() + at, bytes));
          ASSERT_TRUE(same_bits(mean, std::span(data.mean).subspan(first, groups)));
          ASSERT_TRUE(same_bits(rstd, std::span(data.rstd).subspan(first, groups)));
        }
      }
    }
  }
}

// Streaming stores are chosen by size, and never in place. Rows begin and end anywhere in a line,
// and rows of lanes at any multiple of what is stored in one go.
TEST_P(Bits, StreamingStores) {
  std::vector<Shape> shapes;
  for (const std::int64_t s : {257, 272, 285, 301, 64 * 64 + 3}) {
    shapes.push_back({(std::int64_t{1} << 16) / s + 1, 32, s});
  }
  for_each_streamed(shapes, [](const Case& c) {
    const Plan plan = make_plan(c.spec, target());
    Data large = make_data(c, kSeed);
    run(plan, large.forward, backwards(2));
    Data in_place = make_data(c, kSeed);
    in_place.forward.y = in_place.x.data();
    run(plan, in_place.forward);
    ASSERT_TRUE(same_bits(c.spec.data, in_place.x, large.y)) << place(c);
  });
}

}  // namespace
}  // namespace groupnorm::testing
