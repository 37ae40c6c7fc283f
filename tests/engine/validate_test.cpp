// Every Status but ok, each from an argument that deserves it; and nothing is written then.
#include "engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

namespace groupnorm::testing {
namespace {

constexpr std::int64_t kHuge = std::int64_t{1} << 40;
const Spec kGood = group_spec({2, 8, 3}, 4);

Spec with(void (*change)(Spec&)) {
  Spec spec = kGood;
  change(spec);
  return spec;
}

struct BadSpec {
  const char* what;
  Spec spec;
  Status status;
};

const std::vector<BadSpec>& bad_specs() {
  static const std::vector<BadSpec> list = {
      {"n < 0", with([](Spec& s) { s.shape.n = -1; }), Status::negative_size},
      {"c < 0", with([](Spec& s) { s.shape.c = -8; }), Status::negative_size},
      {"s < 0", with([](Spec& s) { s.shape.s = -3; }), Status::negative_size},
      {"n c s beyond 2^63", with([](Spec& s) {
         s.shape = {kHuge, 8, kHuge};
       }),
       Status::size_overflow},
      {"bytes beyond 2^63", with([](Spec& s) {
         s.shape = {kHuge, 8, std::int64_t{1} << 19};
       }),
       Status::size_overflow},
      {"an empty tensor that is too large", with([](Spec& s) {
         s.shape = {kHuge, kHuge, 0};
       }),
       Status::size_overflow},
      {"gamma beyond 2^63", with([](Spec& s) { s.param_stride = std::int64_t{1} << 62; }),
       Status::param_overflow},
      {"3 groups of 8 channels", with([](Spec& s) { s.block = group_norm(s.shape, 3); }),
       Status::groups_do_not_divide},
      {"0 groups", with([](Spec& s) { s.block = group_norm(s.shape, 0); }),
       Status::groups_do_not_divide},
      {"-2 groups", with([](Spec& s) { s.block = group_norm(s.shape, -2); }),
       Status::groups_do_not_divide},
      {"3 virtual batches of 2 examples",
       with([](Spec& s) { s.block = ghost_batch_norm(s.shape, 3); }),
       Status::batches_do_not_divide},
      {"0 examples a block", with([](Spec& s) { s.block.examples = 0; }), Status::block_examples},
      {"-7 examples a block", with([](Spec& s) { s.block.examples = -7; }), Status::block_examples},
      {"3 of 2 examples", with([](Spec& s) { s.block.examples = 3; }), Status::block_examples},
      {"0 channels a block", with([](Spec& s) { s.block.channels = 0; }), Status::block_channels},
      {"3 of 8 channels", with([](Spec& s) { s.block.channels = 3; }), Status::block_channels},
      {"16 of 8 channels", with([](Spec& s) { s.block.channels = 16; }), Status::block_channels},
      {"a dtype that is none", with([](Spec& s) { s.data = static_cast<DType>(4); }),
       Status::unknown_data},
      {"a param that is none", with([](Spec& s) { s.param = static_cast<DType>(255); }),
       Status::unknown_param},
      {"a layout that is none", with([](Spec& s) { s.layout = static_cast<Layout>(2); }),
       Status::unknown_layout},
      {"an activation that is none",
       with([](Spec& s) { s.activation = static_cast<Activation>(6); }),
       Status::unknown_activation},
      {"f64 with f32 parameters", with([](Spec& s) { s.data = DType::f64; }), Status::param_dtype},
      {"f32 with f16 parameters", with([](Spec& s) { s.param = DType::f16; }), Status::param_dtype},
      {"f16 with bf16 parameters", with([](Spec& s) {
         s.data = DType::f16;
         s.param = DType::bf16;
       }),
       Status::param_dtype},
      {"a stride below c", with([](Spec& s) { s.param_stride = 7; }), Status::param_stride},
      {"a negative stride", with([](Spec& s) { s.param_stride = -8; }), Status::param_stride},
      {"correction 2", with([](Spec& s) { s.correction = 2; }), Status::correction},
      {"correction -1", with([](Spec& s) { s.correction = -1; }), Status::correction},
      {"correction of one element", with([](Spec& s) {
         s.shape.s = 1;
         s.block = instance_norm(s.shape);
         s.correction = 1;
       }),
       Status::too_few_elements},
      {"eps < 0", with([](Spec& s) { s.eps = -1e-5; }), Status::eps},
      {"eps NaN", with([](Spec& s) { s.eps = std::nan(""); }), Status::eps},
      {"eps infinite", with([](Spec& s) { s.eps = std::numeric_limits<double>::infinity(); }),
       Status::eps},
      {"sequence 0", with([](Spec& s) { s.sequence = 0; }), Status::sequence},
      {"sequence -1", with([](Spec& s) { s.sequence = -1; }), Status::sequence},
      {"sequences of 2 in 3 examples", with([](Spec& s) {
         s.shape.n = 3;
         s.sequence = 2;
       }),
       Status::sequence},
      {"a block of two sequences", with([](Spec& s) {
         s.shape.n = 4;
         s.block = batch_norm(s.shape);
         s.sequence = 2;
       }),
       Status::sequence},
      {"a given block of three examples, sequences of two", with([](Spec& s) {
         s.shape.n = 6;
         s.block = {3, 8};
         s.given_statistics = true;
         s.sequence = 2;
       }),
       Status::sequence},
      {"lengths of sequences of two given blocks", with([](Spec& s) {
         s.shape.n = 4;
         s.block = {2, 8};
         s.given_statistics = s.lengths = true;
         s.sequence = 4;
       }),
       Status::sequence},
      {"lengths of the examples of a block", with([](Spec& s) {
         s.block = batch_norm(s.shape);
         s.lengths = true;
       }),
       Status::sequence},
  };
  return list;
}

TEST(Validate, Specs) {
  for (const BadSpec& bad : bad_specs()) {
    Plan plan = make_plan(kGood, nullptr);
    EXPECT_EQ(Plan::make(bad.spec, &plan), bad.status) << bad.what;
    EXPECT_EQ(plan.spec(), kGood) << bad.what << " changed the plan";
  }
  EXPECT_EQ(Plan::make(kGood, nullptr), Status::null_plan);
}

TEST(Validate, EmptyTensorsAreFine) {
  for (const Shape shape : {Shape{0, 8, 3}, Shape{2, 0, 3}, Shape{2, 8, 0}, Shape{0, 0, 0}}) {
    for (const Block block : {group_norm(shape, 4), layer_norm(shape), batch_norm(shape)}) {
      Plan plan;
      ASSERT_EQ(Plan::make({.shape = shape, .block = block}, &plan), Status::ok);
      EXPECT_EQ(plan.forward({}, {}), Status::ok);
      EXPECT_EQ(plan.blocks(), 0);
      EXPECT_EQ(plan.workspace_bytes(), 0U);
    }
  }
  EXPECT_EQ(Plan::make({.shape = {0, 8, 3}, .block = group_norm({0, 8, 3}, 3)}, nullptr),
            Status::null_plan);
  Plan plan;
  EXPECT_EQ(Plan::make({.shape = {0, 8, 3}, .block = group_norm({0, 8, 3}, 3)}, &plan),
            Status::groups_do_not_divide);
}

TEST(Validate, Targets) {
  Plan plan;
  EXPECT_EQ(Plan::make(kGood, &plan, "mmx"), Status::unknown_target);
  EXPECT_EQ(Plan::make(kGood, &plan, ""), Status::unknown_target);
  const char* const other = std::string(targets()[0]) == "neon" ? "avx2" : "neon";
  EXPECT_EQ(Plan::make(kGood, &plan, other), Status::unavailable_target);
}

// Arguments that forward accepts, to be spoilt one at a time.
class Arguments : public ::testing::Test {
 protected:
  // Split over threads, so that it needs a workspace.
  const Spec spec_ = group_spec({1, 4, 40000}, 1);
  Plan plan_ = make_plan(spec_, nullptr);
  std::vector<float> x_ = std::vector<float>(160000, 2.5F);
  std::vector<float> y_ = std::vector<float>(160001, 7.0F);
  std::array<float, 8> gamma_{}, beta_{};
  std::array<double, 4> mean_{7, 7, 7, 7}, rstd_{7, 7, 7, 7};
  std::vector<std::byte> workspace_ = std::vector<std::byte>(plan_.workspace_bytes());
  Forward args_{.x = x_.data(),
                .y = y_.data(),
                .gamma = gamma_.data(),
                .beta = beta_.data(),
                .mean = mean_.data(),
                .rstd = rstd_.data()};

  void expect(Status status, const Forward& args, const char* what) {
    expect(status, args, workspace_, {}, what);
  }
  void expect(Status status, const Forward& args, std::span<std::byte> workspace,
              const Executor& executor, const char* what) {
    const std::vector<float> x = x_;
    EXPECT_EQ(plan_.forward(args, workspace, executor), status) << what;
    EXPECT_EQ(x_, x) << what;
    EXPECT_TRUE(std::all_of(y_.begin(), y_.end(), [](float y) { return y == 7; })) << what;
    EXPECT_EQ(mean_, (std::array<double, 4>{7, 7, 7, 7})) << what;
    EXPECT_EQ(rstd_, (std::array<double, 4>{7, 7, 7, 7})) << what;
  }
  Forward with(void (*change)(Forward&)) const {
    Forward args = args_;
    change(args);
    return args;
  }
};

TEST_F(Arguments, Pointers) {
  expect(Status::null_x, with([](Forward& a) { a.x = nullptr; }), "x null");
  expect(Status::null_y, with([](Forward& a) { a.y = nullptr; }), "y null");
  Forward args = args_;
  args.x = reinterpret_cast<std::byte*>(x_.data()) + 2;
  expect(Status::misaligned_x, args, "x misaligned");
  args = args_;
  args.mean = reinterpret_cast<double*>(reinterpret_cast<std::byte*>(mean_.data()) + 4);
  expect(Status::misaligned_mean, args, "mean misaligned");
  args = args_;
  args.given_mean = mean_.data();
  expect(Status::unexpected_given_mean, args, "given mean where it is computed");
}

TEST_F(Arguments, Overlap) {
  Forward args = args_;
  args.y = x_.data() + 1;
  expect(Status::overlap_y, args, "y one element behind x");
  args = args_;
  args.x = y_.data() + 1;
  expect(Status::overlap_y, args, "y one element before x");
  args = args_;
  args.gamma = y_.data() + 100;
  expect(Status::overlap_y, args, "gamma in y");
  args = args_;
  args.mean = args.rstd = mean_.data();
  expect(Status::overlap_rstd, args, "mean is rstd");
  args = args_;
  args.mean = reinterpret_cast<double*>(y_.data());
  expect(Status::overlap_mean, args, "mean in y");
  args = args_;
  args.rstd = reinterpret_cast<double*>(x_.data());
  expect(Status::overlap_rstd, args, "rstd in x");
  expect(Status::overlap_workspace, args_, std::as_writable_bytes(std::span(x_)), {},
         "workspace is x");
  expect(Status::overlap_workspace, args_, std::as_writable_bytes(std::span(y_)), {},
         "workspace is y");
}

TEST_F(Arguments, WorkspaceAndExecutor) {
  ASSERT_GT(workspace_.size(), 0U);
  const std::span<std::byte> all(workspace_);
  expect(Status::workspace_too_small, args_, all.first(all.size() - 1), {}, "a byte too few");
  expect(Status::workspace_too_small, args_, {}, {}, "no workspace");
  expect(Status::executor, args_, workspace_, {.threads = 0}, "0 threads");
  expect(Status::executor, args_, workspace_, {.threads = -1}, "-1 threads");
  expect(Status::executor, args_, workspace_, {.threads = 1025}, "1025 threads");
  EXPECT_EQ(Plan().forward(args_, workspace_), Status::not_planned);
}

TEST_F(Arguments, GivenStatistics) {
  Spec spec = spec_;
  spec.given_statistics = true;
  plan_ = make_plan(spec, nullptr);
  const std::array<double, 4> given{1, 1, 1, 1};
  Forward args{.x = x_.data(), .y = y_.data(), .given_mean = given.data()};
  expect(Status::missing_given_rstd, args, "no rstd");
  args = {.x = x_.data(), .y = y_.data(), .given_rstd = given.data()};
  expect(Status::missing_given_mean, args, "no mean");
  args = {.x = x_.data(),
          .y = y_.data(),
          .mean = mean_.data(),
          .given_mean = given.data(),
          .given_rstd = given.data()};
  expect(Status::unexpected_mean, args, "mean asked for where it is given");
  spec.center = false;
  plan_ = make_plan(spec, nullptr);
  args = {.x = x_.data(), .y = y_.data(), .given_rstd = given.data()};
  EXPECT_EQ(plan_.forward(args, {}), Status::ok) << "not centred: no mean needed";
}

template <class T>
T* shifted(T* data, std::ptrdiff_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<std::byte*>(data) + bytes);
}

// Of a Spec without the flags; and with them.
TEST_F(Arguments, UnexpectedNeighbours) {
  const std::array<float, 4> row{};
  const std::int64_t length = 1;
  Forward args = args_;
  args.shift = row.data();
  expect(Status::unexpected_shift, args, "shift");
  args = args_;
  args.scale = row.data();
  expect(Status::unexpected_scale, args, "scale");
  args = args_;
  args.offset = row.data();
  expect(Status::unexpected_scale, args, "offset");
  args = args_;
  args.lengths = &length;
  expect(Status::unexpected_lengths, args, "lengths");
}

class NeighbourArguments : public Arguments {
 protected:
  void SetUp() override {
    Spec spec = spec_;
    spec.shift = spec.scale = spec.lengths = true;
    spec.correction = 1;
    plan_ = make_plan(spec, nullptr);
    workspace_.resize(plan_.workspace_bytes());
    args_.skip = skip_.data();
    args_.shift = shift_.data();
    args_.residual = residual_.data();
    args_.scale = scale_.data();
    args_.offset = offset_.data();
    args_.sum = sum_.data();
    args_.lengths = length_.data();
  }
  void expect(Status status, const Forward& args, const char* what) {
    Arguments::expect(status, args, what);
    EXPECT_TRUE(std::all_of(sum_.begin(), sum_.end(), [](float u) { return u == 7; })) << what;
  }
  std::vector<float> skip_ = std::vector<float>(160001, 0.5F), residual_ = skip_;
  std::vector<float> sum_ = std::vector<float>(160001, 7);
  std::array<float, 8> shift_{}, scale_{}, offset_{};
  std::array<std::int64_t, 2> length_{40000, 40000};
};

TEST_F(NeighbourArguments, AreAcceptedUnspoilt) {
  EXPECT_EQ(plan_.forward(args_, workspace_), Status::ok);
  for (void* const y : {x_.data(), skip_.data(), residual_.data()}) {
    args_.y = y;
    EXPECT_EQ(plan_.forward(args_, workspace_), Status::ok) << "in place";
  }
  args_.residual = args_.skip;
  args_.y = skip_.data();
  EXPECT_EQ(plan_.forward(args_, workspace_), Status::ok) << "y is skip and residual";
  for (const std::int64_t length : {0, 1, 39999}) {
    length_[0] = length;
    EXPECT_EQ(plan_.forward(args_, workspace_), Status::ok) << "length " << length;
  }
  EXPECT_EQ(plan_.forward({.x = x_.data(), .y = y_.data()}, workspace_), Status::ok) << "none";
}

TEST_F(NeighbourArguments, Pointers) {
  struct Pointer {
    const void* Forward::*argument;
    Status status;
  };
  for (const auto& [argument, status] : {Pointer{&Forward::skip, Status::misaligned_skip},
                                         {&Forward::shift, Status::misaligned_shift},
                                         {&Forward::residual, Status::misaligned_residual},
                                         {&Forward::scale, Status::misaligned_scale},
                                         {&Forward::offset, Status::misaligned_offset}}) {
    Forward args = args_;
    args.*argument = static_cast<const std::byte*>(args.*argument) + 2;
    expect(status, args, status_string(status));
  }
  Forward args = args_;
  args.sum = shifted(sum_.data(), 1);
  expect(Status::misaligned_sum, args, "sum misaligned");
  args = args_;
  args.lengths = shifted(length_.data(), 4);
  expect(Status::misaligned_lengths, args, "lengths misaligned");
}

TEST_F(NeighbourArguments, Overlap) {
  Forward args = args_;
  for (std::vector<float>* const tensor : {&x_, &skip_, &residual_}) {
    args.y = tensor->data() + 1;
    expect(Status::overlap_y, args, "y one element behind an input");
    args.y = y_.data();
    args.sum = tensor->data();
    expect(Status::overlap_sum, args, "sum is an input");
    args.sum = sum_.data();
  }
  args.sum = y_.data();
  expect(Status::overlap_sum, args, "sum is y");
  for (const void* Forward::*const row : {&Forward::shift, &Forward::scale, &Forward::offset}) {
    args = args_;
    args.*row = y_.data();
    expect(Status::overlap_y, args, "a row in y, where it begins");
    args.*row = sum_.data() + 8;
    expect(Status::overlap_sum, args, "a row in sum");
  }
  args = args_;
  args.mean = reinterpret_cast<double*>(length_.data());
  expect(Status::overlap_mean, args, "mean is lengths");
  for (std::vector<float>* const tensor : {&skip_, &residual_, &sum_}) {
    tensor->resize(std::max(tensor->size(), workspace_.size() / sizeof(float) + 1));
  }
  args = args_;
  args.skip = skip_.data();
  Arguments::expect(Status::overlap_workspace, args, std::as_writable_bytes(std::span(skip_)), {},
                    "the workspace is skip");
}

// Not negative, not beyond the example, and none that leaves one element to divide by 0: there are
// 4 channels in the block.
TEST_F(NeighbourArguments, Lengths) {
  for (const std::int64_t length : {std::int64_t{-1}, std::int64_t{40001}, kHuge, -kHuge}) {
    length_[0] = length;
    expect(Status::lengths, args_, "a length out of range");
  }
  Spec spec = group_spec({2, 4, 100}, 4);
  spec.lengths = true;
  spec.correction = 1;
  plan_ = make_plan(spec, nullptr);
  workspace_.resize(plan_.workspace_bytes());
  length_ = {100, 1};
  const Forward args{.x = x_.data(), .y = y_.data(), .lengths = length_.data()};
  expect(Status::lengths, args, "one element a block, divided by 0");
  length_ = {100, 101};
  expect(Status::lengths, args, "the second length");
  spec = group_spec({6, 4, 10}, 2);
  spec.lengths = true;
  spec.sequence = 3;
  plan_ = make_plan(spec, nullptr);
  length_ = {3, 4};
  expect(Status::lengths, args, "more examples than the sequence has");
}

// Pieces have none: who cuts a tensor adds and scales by itself.
TEST(Validate, PiecesHaveNoNeighbours) {
  std::vector<float> x(48, 1), dx(48, 7);
  std::vector<double> mean(4), rstd(4);
  std::vector<Moments> moments(4, {7, 7, 7});
  std::vector<BlockSums> sums(4, {7, 7});
  const Backward good{
      .x = x.data(), .dy = x.data(), .mean = mean.data(), .rstd = rstd.data(), .dx = dx.data()};
  const auto expect = [&](const Spec& spec, const Backward& args, const char* what) {
    const Plan plan = make_plan(spec, nullptr);
    std::vector<std::byte> workspace(plan.backward_workspace_bytes());
    EXPECT_EQ(plan.reduce_gradient(args, sums.data(), workspace), Status::neighbours) << what;
    EXPECT_EQ(plan.apply_gradient(args, sums.data(), 12, {}), Status::neighbours) << what;
    EXPECT_EQ(dx, std::vector<float>(48, 7)) << what;
    EXPECT_EQ(sums[0].d, 7) << what;
  };
  for (bool Spec::*const flag : {&Spec::shift, &Spec::scale, &Spec::lengths}) {
    Spec spec = group_spec({2, 8, 3}, 2);
    spec.*flag = true;
    expect(spec, good, "a flag");
    const Plan plan = make_plan(spec, nullptr);
    std::vector<std::byte> workspace(plan.workspace_bytes());
    EXPECT_EQ(plan.reduce(x.data(), moments.data(), workspace), Status::neighbours);
    EXPECT_EQ(moments[0].count, 7);
  }
  for (const void* Backward::*const input :
       {&Backward::skip, &Backward::residual, &Backward::dsum}) {
    Backward args = good;
    args.*input = x.data();
    expect(group_spec({2, 8, 3}, 2), args, "an input");
  }
  Spec rows = group_spec({2, 8, 3}, 2);
  rows.sequence = 2;
  rows.param_stride = 8;
  expect(rows, good, "a row of gamma for two examples");
}

// Arguments that backward accepts, to be spoilt one at a time.
class BackwardArguments : public ::testing::Test {
 protected:
  const Spec spec_ = group_spec({1, 4, 40000}, 1);
  Plan plan_ = make_plan(spec_, nullptr);
  std::vector<float> x_ = std::vector<float>(160001, 2.5F);
  std::vector<float> dy_ = std::vector<float>(160001, 0.5F);
  std::vector<float> dx_ = std::vector<float>(160001, 7.0F);
  std::array<float, 8> gamma_{}, beta_{}, dgamma_{}, dbeta_{};
  std::array<double, 4> mean_{}, rstd_{};
  std::vector<std::byte> workspace_ = std::vector<std::byte>(plan_.backward_workspace_bytes());
  Backward args_{.x = x_.data(),
                 .dy = dy_.data(),
                 .gamma = gamma_.data(),
                 .beta = beta_.data(),
                 .mean = mean_.data(),
                 .rstd = rstd_.data(),
                 .dx = dx_.data(),
                 .dgamma = dgamma_.data(),
                 .dbeta = dbeta_.data()};

  void SetUp() override {
    for (auto* const params : {&gamma_, &beta_, &dgamma_, &dbeta_}) params->fill(7);
    mean_.fill(7);
    rstd_.fill(7);
  }

  void expect(Status status, const Backward& args, const char* what) {
    expect(status, args, workspace_, {}, what);
  }
  void expect(Status status, const Backward& args, std::span<std::byte> workspace,
              const Executor& executor, const char* what) {
    EXPECT_EQ(plan_.backward(args, workspace, executor), status) << what;
    EXPECT_TRUE(std::all_of(x_.begin(), x_.end(), [](float x) { return x == 2.5F; })) << what;
    EXPECT_TRUE(std::all_of(dy_.begin(), dy_.end(), [](float dy) { return dy == 0.5F; })) << what;
    EXPECT_TRUE(std::all_of(dx_.begin(), dx_.end(), [](float dx) { return dx == 7; })) << what;
    for (const auto& params : {gamma_, beta_, dgamma_, dbeta_}) {
      EXPECT_EQ(params, (std::array<float, 8>{7, 7, 7, 7, 7, 7, 7, 7})) << what;
    }
    for (const auto& statistics : {mean_, rstd_}) {
      EXPECT_EQ(statistics, (std::array<double, 4>{7, 7, 7, 7})) << what;
    }
  }
  Backward with(void (*change)(Backward&)) const {
    Backward args = args_;
    change(args);
    return args;
  }
};

TEST_F(BackwardArguments, AreAcceptedUnspoilt) {
  EXPECT_EQ(plan_.backward(args_, workspace_), Status::ok);
  args_.dx = dy_.data();
  EXPECT_EQ(plan_.backward(args_, workspace_), Status::ok) << "in place";
  args_.gamma = args_.beta = args_.dx = args_.dgamma = args_.dbeta = nullptr;
  EXPECT_EQ(plan_.backward(args_, workspace_), Status::ok) << "nothing asked for";
}

TEST_F(BackwardArguments, Pointers) {
  expect(Status::null_x, with([](Backward& a) { a.x = nullptr; }), "x null");
  expect(Status::null_dy, with([](Backward& a) { a.dy = nullptr; }), "dy null");
  expect(Status::missing_mean, with([](Backward& a) { a.mean = nullptr; }), "mean null");
  expect(Status::missing_rstd, with([](Backward& a) { a.rstd = nullptr; }), "rstd null");
  Backward args = args_;
  args.x = shifted(x_.data(), 2);
  expect(Status::misaligned_x, args, "x misaligned");
  args = args_;
  args.dy = shifted(dy_.data(), 1);
  expect(Status::misaligned_dy, args, "dy misaligned");
  args = args_;
  args.dx = shifted(dx_.data(), 3);
  expect(Status::misaligned_dx, args, "dx misaligned");
  args = args_;
  args.gamma = shifted(gamma_.data(), 2);
  expect(Status::misaligned_gamma, args, "gamma misaligned");
  args = args_;
  args.beta = shifted(beta_.data(), 2);
  expect(Status::misaligned_beta, args, "beta misaligned");
  args = args_;
  args.dgamma = shifted(dgamma_.data(), 2);
  expect(Status::misaligned_dgamma, args, "dgamma misaligned");
  args = args_;
  args.dbeta = shifted(dbeta_.data(), 2);
  expect(Status::misaligned_dbeta, args, "dbeta misaligned");
  args = args_;
  args.mean = shifted(mean_.data(), 4);
  expect(Status::misaligned_mean, args, "mean misaligned");
  args = args_;
  args.rstd = shifted(rstd_.data(), 4);
  expect(Status::misaligned_rstd, args, "rstd misaligned");
}

TEST_F(BackwardArguments, Overlap) {
  Backward args = args_;
  args.dx = x_.data();
  expect(Status::overlap_dx, args, "dx is x");
  args.dx = x_.data() + 1;
  expect(Status::overlap_dx, args, "dx one element behind x");
  args.dx = dy_.data() + 1;
  expect(Status::overlap_dx, args, "dx one element behind dy");
  args = args_;
  args.dy = dx_.data() + 1;
  expect(Status::overlap_dx, args, "dx one element before dy");
  args = args_;
  args.dbeta = dgamma_.data();
  expect(Status::overlap_dbeta, args, "dgamma is dbeta");
  args.dbeta = dgamma_.data() + 3;
  expect(Status::overlap_dbeta, args, "dbeta behind the start of dgamma");
  args.dbeta = beta_.data();
  expect(Status::overlap_dbeta, args, "dbeta is beta");
  args.dbeta = dy_.data();
  expect(Status::overlap_dbeta, args, "dbeta in dy");
  args = args_;
  args.dgamma = gamma_.data();
  expect(Status::overlap_dgamma, args, "dgamma is gamma");
  args.dgamma = x_.data() + 100;
  expect(Status::overlap_dgamma, args, "dgamma in x");
  args.dgamma = dx_.data() + 100;
  expect(Status::overlap_dgamma, args, "dgamma in dx");
  args.dgamma = mean_.data();
  expect(Status::overlap_dgamma, args, "dgamma in mean");
  args = args_;
  args.rstd = reinterpret_cast<const double*>(dx_.data() + 2);
  expect(Status::overlap_dx, args, "rstd in dx");
  for (std::vector<float>* const tensor : {&x_, &dy_, &dx_}) {
    expect(Status::overlap_workspace, args_, std::as_writable_bytes(std::span(*tensor)), {},
           "the workspace is a tensor");
  }
  args = args_;
  args.dx = dy_.data();
  args.dgamma = dy_.data() + 8;
  expect(Status::overlap_dgamma, args, "dgamma in dx, in place");
}

TEST_F(BackwardArguments, WorkspaceAndExecutor) {
  ASSERT_GT(workspace_.size(), 0U);
  const std::span<std::byte> all(workspace_);
  expect(Status::backward_workspace_too_small, args_, all.first(all.size() - 1), {},
         "a byte too few");
  expect(Status::backward_workspace_too_small, args_, {}, {}, "no workspace");
  expect(Status::executor, args_, workspace_, {.threads = 0}, "0 threads");
  expect(Status::executor, args_, workspace_, {.threads = 1025}, "1025 threads");
  EXPECT_EQ(Plan().backward(args_, workspace_), Status::not_planned);
  EXPECT_EQ(Plan().backward_workspace_bytes(), 0U);
}

TEST_F(BackwardArguments, MeanIsNeededWhereItIsRead) {
  Spec spec = spec_;
  spec.given_statistics = true;
  plan_ = make_plan(spec, nullptr);
  args_.mean = nullptr;
  expect(Status::missing_mean, args_, "given statistics");
  spec.center = false;
  plan_ = make_plan(spec, nullptr);
  EXPECT_EQ(plan_.backward(args_, workspace_), Status::ok) << "not centred";
}

// What backward writes and reads beside the rest, one wrong at a time.
TEST_F(BackwardArguments, Neighbours) {
  Spec spec = spec_;
  spec.shift = spec.scale = spec.lengths = true;
  plan_ = make_plan(spec, nullptr);
  workspace_.resize(plan_.backward_workspace_bytes());
  std::vector<float> skip(160000, 1), residual(160001, 1), dsum(160001, 1), dresidual(160001, 7);
  std::array<float, 6> shift{}, scale{}, offset{}, dshift{}, dscale{}, doffset{};
  std::array<std::int64_t, 2> length{40000, 40000};
  Backward good = args_;
  good.skip = skip.data();
  good.shift = shift.data();
  good.residual = residual.data();
  good.scale = scale.data();
  good.offset = offset.data();
  good.lengths = length.data();
  good.dsum = dsum.data();
  good.dresidual = dresidual.data();
  good.dshift = dshift.data();
  good.dscale = dscale.data();
  good.doffset = doffset.data();
  struct In {
    const void* Backward::*argument;
    Status misaligned;
  };
  for (const auto& [argument, misaligned] : {In{&Backward::skip, Status::misaligned_skip},
                                             {&Backward::shift, Status::misaligned_shift},
                                             {&Backward::residual, Status::misaligned_residual},
                                             {&Backward::scale, Status::misaligned_scale},
                                             {&Backward::offset, Status::misaligned_offset},
                                             {&Backward::dsum, Status::misaligned_dsum}}) {
    Backward args = good;
    args.*argument = static_cast<const std::byte*>(args.*argument) + 2;
    expect(misaligned, args, status_string(misaligned));
    args.*argument = dx_.data() + 4;
    expect(Status::overlap_dx, args, "an input in dx");
  }
  Backward args = good;
  args.lengths = shifted(length.data(), 4);
  expect(Status::misaligned_lengths, args, "lengths misaligned");
  struct Out {
    void* Backward::*argument;
    Status misaligned, overlap;
  };
  const std::array<Out, 4> outputs{
      {{&Backward::dresidual, Status::misaligned_dresidual, Status::overlap_dresidual},
       {&Backward::dshift, Status::misaligned_dshift, Status::overlap_dshift},
       {&Backward::dscale, Status::misaligned_dscale, Status::overlap_dscale},
       {&Backward::doffset, Status::misaligned_doffset, Status::overlap_doffset}}};
  for (const auto& [argument, misaligned, overlap] : outputs) {
    args = good;
    args.*argument = static_cast<std::byte*>(args.*argument) + 2;
    expect(misaligned, args, status_string(misaligned));
    for (void* const taken : {static_cast<void*>(x_.data()), static_cast<void*>(dy_.data()),
                              static_cast<void*>(dx_.data()), static_cast<void*>(dgamma_.data()),
                              static_cast<void*>(skip.data()), static_cast<void*>(scale.data())}) {
      args.*argument = taken;
      expect(overlap, args, status_string(overlap));
    }
  }
  const std::array<std::int64_t, 1> wrong{40001};
  args = good;
  args.lengths = wrong.data();
  expect(Status::lengths, args, "a length out of range");
  EXPECT_TRUE(std::all_of(dresidual.begin(), dresidual.end(), [](float d) { return d == 7; }));
  EXPECT_EQ(dshift, (std::array<float, 6>{}));
  EXPECT_EQ(plan_.backward(good, workspace_), Status::ok);

  plan_ = make_plan(spec_, nullptr);
  const std::array<std::pair<void * Backward::*, Status>, 3> unexpected{
      {{&Backward::dshift, Status::unexpected_shift},
       {&Backward::dscale, Status::unexpected_scale},
       {&Backward::doffset, Status::unexpected_scale}}};
  dx_.assign(160001, 7);
  for (auto* const params : {&dgamma_, &dbeta_}) params->fill(7);
  for (const auto& [argument, status] : unexpected) {
    args = args_;
    args.*argument = dshift.data();
    expect(status, args, status_string(status));
  }
}

TEST(Validate, EveryStatusHasItsWords) {
  std::set<std::string> words;
  for (int i = 0; i <= static_cast<int>(Status::overlap_doffset); ++i) {
    words.insert(status_string(static_cast<Status>(i)));
  }
  EXPECT_EQ(words.size(), static_cast<std::size_t>(Status::overlap_doffset) + 1);
  EXPECT_STREQ(status_string(static_cast<Status>(200)), "unknown status");
}

// The enumerators lie in the order of their values; a name leads back to its value alone.
template <class Enum, std::size_t count>
void expect_names(const std::array<Named<Enum>, count>& names) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto value = static_cast<Enum>(i);
    EXPECT_EQ(names[i].value, value) << names[i].name;
    EXPECT_STREQ(to_string(value), names[i].name);
    EXPECT_EQ(from_string<Enum>(names[i].name), value) << names[i].name;
    EXPECT_EQ(from_string<Enum>(std::string(names[i].name) + " "), std::nullopt) << names[i].name;
  }
  EXPECT_STREQ(to_string(static_cast<Enum>(count)), "unknown");
  EXPECT_EQ(from_string<Enum>(""), std::nullopt);
  EXPECT_EQ(from_string<Enum>("unknown"), std::nullopt);
}

TEST(Validate, NamesAndValuesAreOneTable) {
  expect_names(kDTypes);
  expect_names(kLayouts);
  expect_names(kActivations);
  static_assert(from_string<Activation>("gelu_tanh") == Activation::gelu_tanh);
  EXPECT_STREQ(status_string(Status::unknown_data), "data: must be f32, f64, f16 or bf16");
  EXPECT_STREQ(status_string(Status::unknown_layout),
               "layout: must be channels_first or channels_last");
  EXPECT_STREQ(status_string(Status::unknown_activation),
               "activation: must be none, relu, silu, gelu, gelu_tanh or hard_swish");
}

}  // namespace
}  // namespace groupnorm::testing
