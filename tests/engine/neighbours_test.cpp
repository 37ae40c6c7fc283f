// What models compute around a norm (skip, shift, residual, scale and offset, sum, lengths): what
// holds beyond the list of cases, which the other tests run with neighbours and without.
#include "engine.h"

#include "dtype.h"
#include "guarded.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace groupnorm::testing {
namespace {

using Neighbours = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Neighbours, ::testing::ValuesIn(targets()), target_name);

using detail::load_element;
using detail::reference_backward;
using detail::reference_forward;
using detail::size_of;
using detail::store_element;

constexpr std::uint64_t kSeed = 13;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Gradients = std::array<Buffer, std::size(kGradients)>;

std::string place(const Case& c) {
  return c.name + ", " + to_string(c.spec.layout) + ", seed " + std::to_string(kSeed);
}

void backward(const Plan& plan, const Backward& args, const Executor& executor = {}) {
  std::vector<std::byte> workspace(plan.backward_workspace_bytes());
  const Status status = plan.backward(args, workspace, executor);
  ASSERT_EQ(status, Status::ok) << status_string(status);
}

Buffer copy(const Buffer& from) {
  if (from.data() == nullptr) return {};
  Buffer to(from.size());
  std::copy_n(from.data(), from.size(), to.data());
  return to;
}

// A case with all of them, and no lengths.
Case surrounded(std::string name, Spec spec, double mean = 0) {
  spec.shift = spec.scale = true;
  return {.name = std::move(name),
          .spec = spec,
          .mean = mean,
          .skip = true,
          .residual = true,
          .scale = true,
          .offset = true,
          .sum = true};
}

void expect_accurate(const Case& c, const char* target) {
  SCOPED_TRACE(place(c));
  const Plan plan = make_plan(c.spec, target);
  const Data data = make_data(c, kSeed);
  const auto expected = reference_forward(c.spec, data.forward);
  run(plan, data.forward);
  const Comparison worst = compare(c.spec, expected, data.y.data());
  EXPECT_TRUE(within(worst, worst.bound));
  const GradientData gradient = make_gradient_data(c, kSeed);
  const auto expected_gradient = reference_backward(c.spec, gradient.backward);
  backward(plan, gradient.backward);
  const Comparison worst_gradient = compare_gradient(c.spec, expected_gradient, gradient.backward);
  EXPECT_TRUE(within(worst_gradient, worst_gradient.bound));
}

// x and skip have this mean and its negative: what is normalized has none.
TEST_P(Neighbours, MeansThatCancel) {
  struct Size {
    std::int64_t channels, positions;
  };
  constexpr Size kSizes[] = {{1, 1}, {1, 7}, {3, 5}, {16, 1}, {4, 64}, {10, 49}, {3, 9999}};
  for (const Size& size : kSizes) {
    for (const double mean : {1e2, 1e4, 1e5}) {
      for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
        const Spec spec = group_spec({1, 2 * size.channels, size.positions}, 2, layout);
        expect_accurate(surrounded(std::to_string(size.channels) + " channels x " +
                                       std::to_string(size.positions) + " positions, mean " +
                                       std::to_string(mean),
                                   spec, mean),
                        target());
      }
    }
  }
}

// ---- In place -----------------------------------------------------------------------------------

// y may be any of the three tensors that are read at the place where it is written.
TEST_P(Neighbours, InPlace) {
  for (const Case& c : cases()) {
    if (!has_neighbours(c)) continue;
    const Plan plan = make_plan(c.spec, target());
    const Data apart = make_data(c, kSeed);
    run(plan, apart.forward);
    for (Buffer Inputs::*const read : {&Inputs::x, &Inputs::skip, &Inputs::residual}) {
      if ((apart.*read).data() == nullptr) continue;
      for (const int threads : {1, 3}) {
        Data data = make_data(c, kSeed);
        data.forward.y = (data.*read).data();
        run(plan, data.forward, backwards(threads));
        ASSERT_TRUE(same_bits(c.spec.data, data.*read, apart.y))
            << place(c) << ", " << threads << " threads, y is "
            << (read == &Inputs::x      ? "x"
                : read == &Inputs::skip ? "skip"
                                        : "residual");
        ASSERT_TRUE(same_bits(c.spec.data, data.sum, apart.sum)) << place(c);
      }
    }
  }
}

// Streaming stores are chosen by size, and never in place.
TEST_P(Neighbours, StreamingStores) {
  for_each_streamed({{16, 32, 64 * 64 + 3}}, [](const Case& plain) {
    Case c = surrounded(plain.name, plain.spec);
    c.spec.shift = c.spec.data == DType::f32;  // in tiles
    c.spec.activation = Activation::silu;
    const Plan plan = make_plan(c.spec, target());
    Data apart = make_data(c, kSeed);
    run(plan, apart.forward, backwards(2));
    apart.forward.y = apart.x.data();
    run(plan, apart.forward);
    ASSERT_TRUE(same_bits(c.spec.data, apart.x, apart.y)) << place(c);
  });
}

// ---- Each example by itself ---------------------------------------------------------------------

// What one length and one row of shift, scale and offset belong to, without what is behind the
// length: a call of its own.
struct Part {
  std::int64_t first;  // example
  Spec spec;
};

std::vector<Part> parts_of(const Case& c, const std::vector<std::int64_t>& lengths) {
  std::vector<Part> parts;
  for (std::int64_t i = 0; i < c.spec.shape.n / c.spec.sequence; ++i) {
    Spec spec = c.spec;
    spec.lengths = false;
    spec.shape.n = spec.sequence;
    if (!lengths.empty()) {
      const std::int64_t length = lengths[static_cast<std::size_t>(i)];
      (spec.sequence == 1 ? spec.shape.s : spec.shape.n) = length;
    }
    spec.sequence = std::max<std::int64_t>(1, spec.shape.n);
    parts.push_back({i * c.spec.sequence, spec});
  }
  return parts;
}

std::int64_t index_of(const Spec& spec, std::int64_t n, std::int64_t c, std::int64_t s) {
  return spec.layout == Layout::channels_first ? (n * spec.shape.c + c) * spec.shape.s + s
                                               : (n * spec.shape.s + s) * spec.shape.c + c;
}

// f(element of the whole, of the part) for all that are in the part.
template <class F>
void for_each_element(const Spec& whole, const Part& part, const F& f) {
  for (std::int64_t n = 0; n < part.spec.shape.n; ++n) {
    for (std::int64_t c = 0; c < part.spec.shape.c; ++c) {
      for (std::int64_t s = 0; s < part.spec.shape.s; ++s) {
        f(index_of(whole, part.first + n, c, s), index_of(part.spec, n, c, s));
      }
    }
  }
}

// The part's elements of a tensor [n, c, s].
Buffer cut(const Spec& whole, const Part& part, const Buffer& tensor) {
  if (tensor.data() == nullptr) return {};
  const auto [n, c, s] = part.spec.shape;
  const std::int64_t size = size_of(whole.data);
  Buffer own(static_cast<std::size_t>(n * c * s * size));
  for_each_element(whole, part, [&](std::int64_t from, std::int64_t to) {
    std::copy_n(tensor.data() + from * size, size, own.data() + to * size);
  });
  return own;
}

// Overwrites what no part has.
void poison(const Spec& whole, const std::vector<Part>& parts, Buffer* tensor) {
  if (tensor->data() == nullptr) return;
  const Buffer before = copy(*tensor);
  const std::int64_t size = size_of(whole.data);
  const auto count = static_cast<std::int64_t>(tensor->size()) / size;
  for (std::int64_t i = 0; i < count; ++i) store_element(whole.data, tensor->data(), i, kNaN);
  for (const Part& part : parts) {
    for_each_element(whole, part, [&](std::int64_t i, std::int64_t) {
      std::copy_n(before.data() + i * size, size, tensor->data() + i * size);
    });
  }
}

// All bits of what no part has are 0.
void expect_zeros_behind(const Spec& whole, const std::vector<Part>& parts, const Buffer& tensor) {
  if (tensor.data() == nullptr) return;
  Buffer rest = copy(tensor);
  for (const Part& part : parts) {
    for_each_element(whole, part, [&](std::int64_t i, std::int64_t) {
      store_element(whole.data, rest.data(), i, 0);
    });
  }
  const auto* const end = rest.data() + rest.size();
  const auto* const found = std::find_if(rest.data(), rest.data() + rest.size(),
                                         [](std::byte byte) { return byte != std::byte{0}; });
  ASSERT_EQ(found, end) << "byte " << found - rest.data() << " behind the lengths";
}

// The rows of [n / sequence, c] that a part has, from its first on.
const std::byte* row_of(const Case& c, const Part& part, DType dtype, const Buffer& rows) {
  if (rows.data() == nullptr) return nullptr;
  return rows.data() + part.first / c.spec.sequence * c.spec.shape.c * size_of(dtype);
}

template <class Args>
void point_to_rows(const Case& c, const Part& part, const Inputs& data, Args* args) {
  const std::int64_t row = part.first / c.spec.sequence * c.spec.param_stride;
  const auto gamma_of = [&](const Buffer& gamma) -> const std::byte* {
    return gamma.data() == nullptr ? nullptr : gamma.data() + row * size_of(c.spec.param);
  };
  args->gamma = gamma_of(data.gamma);
  args->beta = gamma_of(data.beta);
  args->shift = row_of(c, part, c.spec.data, data.shift);
  args->scale = row_of(c, part, c.spec.param, data.scale);
  args->offset = row_of(c, part, c.spec.param, data.offset);
}

std::size_t first_block(const Case& c, const Part& part) {
  const auto [examples, channels] = c.spec.block;
  return static_cast<std::size_t>(part.first / examples * (c.spec.shape.c / channels));
}

void expect_forward_by_itself(const Case& c, const char* target) {
  const Plan plan = make_plan(c.spec, target);
  Data whole = make_data(c, kSeed);
  const std::vector<Part> parts = parts_of(c, whole.lengths);
  for (Buffer Inputs::*const tensor : {&Inputs::x, &Inputs::skip, &Inputs::residual}) {
    poison(c.spec, parts, &(whole.*tensor));
  }
  run(plan, whole.forward, backwards(3));
  expect_zeros_behind(c.spec, parts, whole.y);
  expect_zeros_behind(c.spec, parts, whole.sum);
  for (const Part& part : parts) {
    const Plan own = make_plan(part.spec, target);
    const Buffer x = cut(c.spec, part, whole.x), skip = cut(c.spec, part, whole.skip),
                 residual = cut(c.spec, part, whole.residual);
    Buffer y(x.size()), sum(x.size());
    const auto blocks = static_cast<std::size_t>(own.blocks());
    std::vector<double> mean(blocks), rstd(blocks);
    Forward args{.x = x.data(), .y = y.data(), .skip = skip.data(), .residual = residual.data()};
    if (c.sum) args.sum = sum.data();
    point_to_rows(c, part, whole, &args);
    const std::size_t first = first_block(c, part);
    if (c.spec.given_statistics) {
      args.given_mean = whole.mean.data() + first;
      args.given_rstd = whole.rstd.data() + first;
    } else {
      args.mean = mean.data();
      args.rstd = rstd.data();
    }
    SCOPED_TRACE("from example " + std::to_string(part.first) + ", " +
                 std::to_string(part.spec.shape.n) + " of " + std::to_string(part.spec.shape.s) +
                 " positions");
    run(own, args);
    ASSERT_TRUE(same_bits(c.spec.data, cut(c.spec, part, whole.y), y));
    if (c.sum) {
      ASSERT_TRUE(same_bits(c.spec.data, cut(c.spec, part, whole.sum), sum));
    }
    if (c.spec.given_statistics) continue;
    // Of what is behind the lengths, and of nothing: 0.
    const auto all = static_cast<std::size_t>(c.spec.sequence / c.spec.block.examples *
                                              (c.spec.shape.c / c.spec.block.channels));
    mean.resize(all);
    rstd.resize(all);
    ASSERT_TRUE(same_bits(mean, std::span(whole.mean).subspan(first, all)));
    ASSERT_TRUE(same_bits(rstd, std::span(whole.rstd).subspan(first, all)));
  }
}

// Rows of a gradient that the part's own call has written.
void expect_rows(const Part& part, const Case& c, DType dtype, std::int64_t stride,
                 const Buffer& whole, const Buffer& own, const char* name) {
  if (whole.data() == nullptr) return;
  const std::int64_t row = part.first / c.spec.sequence * stride;
  const auto bytes = static_cast<std::size_t>(c.spec.shape.c * size_of(dtype));
  ASSERT_TRUE(same_bits(dtype, whole.data() + row * size_of(dtype), own.data(), bytes)) << name;
}

void expect_backward_by_itself(const Case& c, const char* target) {
  const Plan plan = make_plan(c.spec, target);
  GradientData whole = make_gradient_data(c, kSeed);
  const std::vector<Part> parts = parts_of(c, whole.lengths);
  backward(plan, whole.backward);
  Gradients clean;
  for (std::size_t i = 0; i < clean.size(); ++i) clean[i] = copy(whole.*kGradients[i].buffer);
  for (Buffer Inputs::*const tensor : {&Inputs::x, &Inputs::skip, &Inputs::residual}) {
    poison(c.spec, parts, &(whole.*tensor));
  }
  poison(c.spec, parts, &whole.dy);
  poison(c.spec, parts, &whole.dsum);
  backward(plan, whole.backward, backwards(3));
  for (std::size_t i = 0; i < clean.size(); ++i) {
    ASSERT_TRUE(same_bits(c.spec.*kGradients[i].dtype, whole.*kGradients[i].buffer, clean[i]))
        << kGradients[i].name << " has what is behind the lengths in it";
  }
  expect_zeros_behind(c.spec, parts, whole.dx);
  expect_zeros_behind(c.spec, parts, whole.dresidual);
  for (const Part& part : parts) {
    SCOPED_TRACE("from example " + std::to_string(part.first) + ", " +
                 std::to_string(part.spec.shape.n) + " of " + std::to_string(part.spec.shape.s) +
                 " positions");
    const Buffer x = cut(c.spec, part, whole.x), skip = cut(c.spec, part, whole.skip),
                 residual = cut(c.spec, part, whole.residual), dy = cut(c.spec, part, whole.dy),
                 dsum = cut(c.spec, part, whole.dsum);
    Gradients own;
    // An empty part has no rows, and writes none.
    for (std::size_t i = 0; i < own.size(); ++i) {
      own[i] = Buffer(clean[i].size());
      std::fill_n(own[i].data(), own[i].size(), std::byte{0});
    }
    Backward args{.x = x.data(),
                  .dy = dy.data(),
                  .mean = whole.mean.data() + first_block(c, part),
                  .rstd = whole.rstd.data() + first_block(c, part),
                  .skip = skip.data(),
                  .residual = residual.data(),
                  .dsum = dsum.data()};
    point_to_rows(c, part, whole, &args);
    for (std::size_t i = 0; i < own.size(); ++i) {
      if (clean[i].data() != nullptr) args.*kGradients[i].pointer = own[i].data();
    }
    backward(make_plan(part.spec, target), args);
    const auto bytes = x.size();
    ASSERT_TRUE(same_bits(c.spec.data, cut(c.spec, part, whole.dx).data(), own[0].data(), bytes));
    if (whole.dresidual.data() != nullptr) {
      ASSERT_TRUE(
          same_bits(c.spec.data, cut(c.spec, part, whole.dresidual).data(), own[3].data(), bytes));
    }
    if (const std::int64_t stride = c.spec.param_stride; stride != 0) {
      expect_rows(part, c, c.spec.param, stride, whole.dgamma, own[1], "dgamma");
      expect_rows(part, c, c.spec.param, stride, whole.dbeta, own[2], "dbeta");
    }
    const std::int64_t channels = c.spec.shape.c;
    expect_rows(part, c, c.spec.data, channels, whole.dshift, own[4], "dshift");
    expect_rows(part, c, c.spec.param, channels, whole.dscale, own[5], "dscale");
    expect_rows(part, c, c.spec.param, channels, whole.doffset, own[6], "doffset");
  }
}

// With lengths: each cut to its length. Without: each example or sequence of the batch. What is
// behind a length is NaN.
TEST_P(Neighbours, EachExampleAsByItself) {
  for (const Case& c : cases()) {
    // Each holds whole blocks.
    const std::int64_t examples = c.spec.block.examples;
    const bool whole = c.spec.lengths ? examples == 1 : c.spec.sequence % examples == 0;
    if (!has_neighbours(c) || !whole) continue;
    SCOPED_TRACE(place(c));
    expect_forward_by_itself(c, target());
    expect_backward_by_itself(c, target());
    if (HasFailure()) return;
  }
}

// ---- Lengths ------------------------------------------------------------------------------------

// Nothing but padding: zeros, and gradients of zero.
TEST_P(Neighbours, LengthsOfZero) {
  for (const auto& layout : kLayouts) {
    for (const std::int64_t sequence : {1, 3}) {
      Case c = surrounded("empty examples", group_spec({6, 8, 5}, 2, layout.value));
      c.spec.sequence = sequence;
      c.spec.lengths = true;
      SCOPED_TRACE(place(c) + ", sequence " + std::to_string(sequence));
      const std::vector<std::int64_t> none(6, 0);
      const Plan plan = make_plan(c.spec, target());
      Data data = make_data(c, kSeed);
      data.forward.lengths = none.data();
      run(plan, data.forward);
      expect_zeros_behind(c.spec, {}, data.y);
      expect_zeros_behind(c.spec, {}, data.sum);
      ASSERT_EQ(data.mean, std::vector<double>(12, 0));
      ASSERT_EQ(data.rstd, std::vector<double>(12, 0));
      GradientData gradient = make_gradient_data(c, kSeed);
      gradient.backward.lengths = none.data();
      backward(plan, gradient.backward);
      for (const Output& output : kGradients) {
        const Buffer& written = gradient.*output.buffer;
        for (std::int64_t i = 0; i < static_cast<std::int64_t>(written.size()) / 4; ++i) {
          ASSERT_EQ(load_element(DType::f32, written.data(), i), 0) << output.name;
        }
      }
      std::fill_n(reinterpret_cast<float*>(gradient.dgamma.data()), 8, 7.0F);
      gradient.backward.accumulate = true;
      backward(plan, gradient.backward);
      ASSERT_EQ(load_element(DType::f32, gradient.dgamma.data(), 3), 7);
    }
  }
}

// A shorter example is another schedule, with other chunks: workspace_bytes() holds them all.
TEST_P(Neighbours, AnyLengthFitsTheWorkspace) {
  for (const Shape& shape : {Shape{1, 2, 70001}, Shape{1, 300, 400}, Shape{9000, 24, 1}}) {
    for (const auto& layout : kLayouts) {
      Case c = surrounded("any length", group_spec(shape, 2, layout.value));
      c.spec.lengths = true;
      c.spec.sequence = shape.n;
      const std::int64_t all = shape.n == 1 ? shape.s : shape.n;
      const Plan plan = make_plan(c.spec, target());
      Data data = make_data(c, kSeed);
      GradientData gradient = make_gradient_data(c, kSeed);
      const Guarded room(plan.workspace_bytes(), Side::behind);
      const Guarded sums(plan.backward_workspace_bytes(), Side::behind);
      for (std::int64_t length = 1; length < all; length += 1 + length / 4) {
        data.forward.lengths = gradient.backward.lengths = &length;
        for (const int threads : {1, 4}) {
          SCOPED_TRACE(place(c) + ", length " + std::to_string(length) + " of " +
                       std::to_string(all) + ", " + std::to_string(threads) + " threads");
          const Executor executor = backwards(threads);
          ASSERT_EQ(plan.forward(data.forward, {room.data(), plan.workspace_bytes()}, executor),
                    Status::ok);
          ASSERT_EQ(plan.backward(gradient.backward, {sums.data(), plan.backward_workspace_bytes()},
                                  executor),
                    Status::ok);
        }
      }
    }
  }
}

// Gradients of an empty tensor: sums of nothing, in so many rows as there are.
TEST(Neighbours, OfAnEmptyTensor) {
  for (const Shape& shape : {Shape{0, 3, 2}, Shape{6, 3, 0}, Shape{6, 0, 3}}) {
    for (const std::int64_t sequence : {1, 3}) {
      Case c = surrounded("empty", group_spec(shape, 1));
      c.spec.lengths = true;
      c.spec.sequence = sequence;
      c.spec.param_stride = shape.c;
      SCOPED_TRACE("n " + std::to_string(shape.n) + ", c " + std::to_string(shape.c) + ", s " +
                   std::to_string(shape.s) + ", sequence " + std::to_string(sequence));
      const Plan plan = make_plan(c.spec, nullptr);
      EXPECT_EQ(plan.forward({}, {}), Status::ok);
      EXPECT_EQ(plan.backward({}, {}), Status::ok);
      std::vector<float> rows(20, 7), expected = rows;
      std::fill_n(expected.begin(), shape.n / sequence * shape.c, 0.0F);
      for (const Output& output : kGradients) {
        if (output.buffer == &GradientData::dx || output.buffer == &GradientData::dresidual) {
          continue;
        }
        Backward args;
        args.*output.pointer = rows.data();
        EXPECT_EQ(plan.backward(args, {}), Status::ok) << output.name;
        EXPECT_EQ(rows, expected) << output.name;
        rows.assign(20, 7);
      }
    }
  }
}

// ---- Extremes -----------------------------------------------------------------------------------

// Numbers too large and too small for sums in f32, on both sides of the addition.
TEST_P(Neighbours, EveryMagnitude) {
  constexpr Shape kShapes[] = {{2, 8, 300}, {1, 4, 7}, {3, 16, 1}, {2, 70, 40}};
  struct Format {
    DType dtype;
    double size;
  };
  constexpr Format kFormats[] = {{DType::f32, 1e30},  {DType::f32, 1e37},  {DType::f32, 1e-30},
                                 {DType::bf16, 1e30}, {DType::bf16, 1e37}, {DType::bf16, 1e-30},
                                 {DType::f16, 1e4},   {DType::f64, 1e148}, {DType::f64, 1e-100}};
  for (const Format& format : kFormats) {
    for (const Shape& shape : kShapes) {
      for (const auto& layout : kLayouts) {
        for (const double eps : {1e-5, 0.0}) {
          Case c =
              surrounded(std::string(to_string(format.dtype)) + ", c " + std::to_string(shape.c) +
                             ", size 2^" + std::to_string(std::log2(format.size)) + ", eps " +
                             std::to_string(eps),
                         group_spec(shape, 2, layout.value));
          c.spec.data = c.spec.param = format.dtype;
          c.spec.eps = eps;
          c.spec.activation = Activation::silu;
          c.deviation = format.size;
          c.sum = false;  // dsum beside the rest
          expect_accurate(c, target());
          if (HasFailure()) return;
        }
      }
    }
  }
}

// One number that is none, or is infinite, in each tensor in turn.
TEST_P(Neighbours, NotANumberGoesNoFurtherThanTheReferenceSays) {
  for (const auto& dtype : kDTypes) {
    for (const auto& layout : kLayouts) {
      for (const Shape& shape : {Shape{2, 16, 80}, Shape{4, 16, 1}}) {
        for (const double poison : {kNaN, kInfinity}) {
          for (const auto& input : kInputs<Forward>) {
            Case c = surrounded(std::string(to_string(dtype.value)) + ", s " +
                                    std::to_string(shape.s) + ", poison " + std::to_string(poison),
                                group_spec(shape, 4, layout.value));
            c.spec.data = c.spec.param = dtype.value;
            Data data = make_data(c, kSeed);
            Buffer& poisoned = data.*input.buffer;
            const auto count = static_cast<std::int64_t>(poisoned.size()) / size_of(dtype.value);
            store_element(dtype.value, poisoned.data(), count / 2, poison);
            const auto expected = reference_forward(c.spec, data.forward);
            run(make_plan(c.spec, target()), data.forward);
            for (std::size_t i = 0; i < expected.y.size(); ++i) {
              const auto at = static_cast<std::int64_t>(i);
              const double y = load_element(dtype.value, data.y.data(), at);
              ASSERT_EQ(std::isfinite(y), std::isfinite(expected.y[i]))
                  << place(c) << ", in input " << &input - kInputs<Forward> << ", y[" << i << "] "
                  << y;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace groupnorm::testing
