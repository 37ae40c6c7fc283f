#include <groupnorm/layers.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <locale>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "dtype.h"
#include "reference.h"
#include "testing/cases.h"
#include "throws.h"

namespace groupnorm::testing {
namespace {

constexpr unsigned kSeed = 7;
constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Tensor random_tensor(std::vector<std::int64_t> shape, DType dtype = DType::f32,
                     Layout layout = Layout::channels_first, unsigned seed = kSeed) {
  Tensor x(std::move(shape), dtype, layout);
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(3, 2);
  for (std::int64_t i = 0; i < x.size(); ++i) {
    detail::store_element(dtype, x.data(), i, normal(random));
  }
  return x;
}

// Values that no f32 holds exactly.
void fill_parameters(Normalization& layer) {
  for (std::size_t c = 0; c < layer.gamma().size(); ++c) {
    layer.gamma()[c] = 1 + 0.1 * static_cast<double>(c);
    layer.beta()[c] = 0.3 - 0.1 * static_cast<double>(c);
  }
}

std::int64_t bytes_of(const Tensor& x) { return x.size() * detail::size_of(x.dtype()); }

::testing::AssertionResult same_bits(const Tensor& actual, const Tensor& expected) {
  if (actual.shape() != expected.shape() || actual.dtype() != expected.dtype() ||
      actual.layout() != expected.layout()) {
    return ::testing::AssertionFailure() << "another shape, dtype or layout";
  }
  const std::string found = difference(expected.dtype(), actual.data(), expected.data(),
                                       static_cast<std::size_t>(bytes_of(expected)));
  return found.empty() ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << found;
}

// What a layer has to compute on x: the Spec and its parameters, in the dtypes of the engine.
struct Expected {
  Spec spec;
  std::vector<float> gamma32, beta32;
  const void *gamma = nullptr, *beta = nullptr;

  Expected(const Normalization& layer, const Tensor& x, Block block, bool center)
      : spec{.shape = x.ncs(),
             .block = block,
             .layout = x.layout(),
             .data = x.dtype(),
             .param = x.dtype() == DType::f64 ? DType::f64 : DType::f32,
             .activation = layer.options.activation,
             .center = center,
             .correction = layer.options.correction,
             .eps = layer.options.eps},
        gamma32(layer.gamma().begin(), layer.gamma().end()),
        beta32(layer.beta().begin(), layer.beta().end()) {
    if (gamma32.empty()) return;
    const bool f64 = x.dtype() == DType::f64;
    gamma = f64 ? static_cast<const void*>(layer.gamma().data()) : gamma32.data();
    beta = f64 ? static_cast<const void*>(layer.beta().data()) : beta32.data();
  }
};

detail::ReferenceResult reference(const Normalization& layer, const Tensor& x, Block block,
                                  bool center) {
  const Expected expected(layer, x, block, center);
  return detail::reference_forward(expected.spec,
                                   {.x = x.data(), .gamma = expected.gamma, .beta = expected.beta});
}

// 3 steps of f32; of f64 what the reference itself may be off by; one rounding of f16 and bf16.
double tolerance(DType dtype) {
  switch (dtype) {
    case DType::f64: return 32 * std::numeric_limits<double>::epsilon();
    case DType::f16: return 0x1p-10;
    case DType::bf16: return 0x1p-7;
    case DType::f32: break;
  }
  return 3 * kEpsilon;
}

void expect_reference(const Normalization& layer, const Tensor& x, const Tensor& y, Block block,
                      bool center = true) {
  const detail::ReferenceResult expected = reference(layer, x, block, center);
  ASSERT_EQ(y.size(), static_cast<std::int64_t>(expected.y.size()));
  for (std::size_t i = 0; i < expected.y.size(); ++i) {
    ASSERT_NEAR(detail::load_element(y.dtype(), y.data(), static_cast<std::int64_t>(i)),
                expected.y[i], tolerance(y.dtype()) * expected.scale[i])
        << "element " << i << ", seed " << kSeed;
  }
  ASSERT_EQ(layer.mean().size(), expected.mean.size());
  ASSERT_EQ(layer.rstd().size(), expected.rstd.size());
  // Statistics come from short chains of f32 for every dtype but f64.
  const double step = y.dtype() == DType::f64 ? 1e-14 : kEpsilon;
  for (std::size_t b = 0; b < expected.mean.size(); ++b) {
    const double deviation = 1 / expected.rstd[b];
    EXPECT_NEAR(layer.mean()[b], expected.mean[b], step * deviation) << "block " << b;
    EXPECT_NEAR(layer.rstd()[b], expected.rstd[b], step * expected.rstd[b]) << "block " << b;
  }
}

// dx and the layer's dgamma and dbeta, after one backward call.
void expect_gradient(const Expected& expected, const Normalization& layer, const Tensor& x,
                     const Tensor& dy, Tensor dx) {
  std::vector<double> dgamma64(layer.dgamma().begin(), layer.dgamma().end());
  std::vector<double> dbeta64(layer.dbeta().begin(), layer.dbeta().end());
  std::vector<float> dgamma32(dgamma64.begin(), dgamma64.end());
  std::vector<float> dbeta32(dbeta64.begin(), dbeta64.end());
  Backward args{.x = x.data(),
                .dy = dy.data(),
                .gamma = expected.gamma,
                .beta = expected.beta,
                .mean = layer.mean().data(),
                .rstd = layer.rstd().data(),
                .dx = dx.data()};
  if (!dgamma64.empty()) {
    const bool f64 = x.dtype() == DType::f64;
    args.dgamma = f64 ? static_cast<void*>(dgamma64.data()) : dgamma32.data();
    args.dbeta = f64 ? static_cast<void*>(dbeta64.data()) : dbeta32.data();
  }
  const detail::ReferenceGradient exact = detail::reference_backward(expected.spec, args);
  const Comparison worst = compare_gradient(expected.spec, exact, args);
  EXPECT_TRUE(worst.within_bound())
      << worst.tensor << '[' << worst.index << "] is " << worst.actual << ", exactly "
      << worst.expected << ", error " << worst.error << " of " << worst.bound << ", seed " << kSeed;
}

// ---- Every layer against the reference

struct LayerCase {
  const char* name;
  std::unique_ptr<Normalization> (*make)(std::int64_t channels);
  Block (*block)(Shape shape);
  bool center = true;
};

template <class Layer>
std::unique_ptr<Normalization> make(std::int64_t channels) {
  return std::make_unique<Layer>(channels);
}
template <class Layer>
std::unique_ptr<Normalization> make_plain(std::int64_t) {
  return std::make_unique<Layer>();
}
Block in_three_groups(Shape shape) { return group_norm(shape, 3); }

const LayerCase kLayers[] = {
    {"Group",
     [](std::int64_t) -> std::unique_ptr<Normalization> {
       return std::make_unique<GroupNormalization>(3);
     },
     in_three_groups},
    {"GroupAffine",
     [](std::int64_t channels) -> std::unique_ptr<Normalization> {
       return std::make_unique<GroupNormalization>(3, channels);
     },
     in_three_groups},
    {"Layer", make_plain<LayerNormalization>, layer_norm},
    {"LayerAffine", make<LayerNormalization>, layer_norm},
    {"Instance", make_plain<InstanceNormalization>, instance_norm},
    {"InstanceAffine", make<InstanceNormalization>, instance_norm},
    {"Rms", make_plain<RmsNormalization>, layer_norm, false},
    {"RmsAffine", make<RmsNormalization>, layer_norm, false},
    {"Batch", make<BatchNormalization>, batch_norm},
};

class EveryLayer : public ::testing::TestWithParam<LayerCase> {
 protected:
  std::unique_ptr<Normalization> layer() const {
    std::unique_ptr<Normalization> made = GetParam().make(6);
    fill_parameters(*made);
    return made;
  }
  static Expected expected(const Normalization& layer, const Tensor& x) {
    return Expected(layer, x, GetParam().block(x.ncs()), GetParam().center);
  }
};

// A dy for x.
Tensor random_like(const Tensor& x) {
  return random_tensor(x.shape(), x.dtype(), x.layout(), kSeed + 1);
}

std::vector<double> values_of(std::span<const double> numbers) {
  return {numbers.begin(), numbers.end()};
}

INSTANTIATE_TEST_SUITE_P(Layers, EveryLayer, ::testing::ValuesIn(kLayers),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(EveryLayer, IsItsBlock) {
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      for (const auto& shape : {std::vector<std::int64_t>{4, 6}, {4, 6, 35}, {2, 6, 3, 4, 5}}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + ", rank " + std::to_string(shape.size()) +
                     ", layout " + std::to_string(static_cast<int>(layout)));
        const auto layer = this->layer();
        const Tensor x = random_tensor(shape, dtype, layout);
        const Tensor y = layer->forward(x);
        EXPECT_EQ(y.shape(), x.shape());
        EXPECT_EQ(y.dtype(), x.dtype());
        EXPECT_EQ(y.layout(), x.layout());
        expect_reference(*layer, x, y, GetParam().block(x.ncs()), GetParam().center);
      }
    }
  }
}

TEST_P(EveryLayer, TakesItsOptions) {
  const auto layer = this->layer();
  layer->options = {.eps = 0.25, .activation = Activation::silu, .correction = 1, .executor = {}};
  const Tensor x = random_tensor({4, 6, 35});
  expect_reference(*layer, x, layer->forward(x), GetParam().block(x.ncs()), GetParam().center);
}

TEST_P(EveryLayer, WritesIntoAGivenTensorAndInPlace) {
  const Tensor x = random_tensor({4, 6, 35});
  const Tensor expected = layer()->forward(x);

  Tensor y = random_tensor({4, 6, 35});
  const void* const memory = y.data();
  layer()->forward(x, y);
  EXPECT_EQ(y.data(), memory);
  EXPECT_TRUE(same_bits(y, expected));

  Tensor in_place = x;
  layer()->forward(in_place, in_place);
  EXPECT_TRUE(same_bits(in_place, expected));

  Tensor viewed = x;
  Tensor view = Tensor::view(viewed.data(), x.shape(), x.dtype());
  layer()->forward(viewed, view);
  EXPECT_TRUE(same_bits(viewed, expected));
}

TEST_P(EveryLayer, TakesEmptyTensors) {
  const auto layer = this->layer();
  for (const auto& shape : {std::vector<std::int64_t>{0, 6, 5}, {2, 6, 0}}) {
    EXPECT_EQ(layer->forward(Tensor(shape)).shape(), shape);
    EXPECT_TRUE(layer->mean().empty());
  }
}

TEST_P(EveryLayer, RefusesAndLeavesAllAsItWas) {
  const auto layer = this->layer();
  const Tensor x = random_tensor({4, 6, 35});
  layer->forward(x);
  const std::vector<double> mean(layer->mean().begin(), layer->mean().end());
  ASSERT_FALSE(mean.empty());

  Tensor y({4, 6, 34});
  expect_error([&] { layer->forward(x, y); },
               {GetParam().name[0] == 'R' ? "Rms" : "Normalization", "y: must have x's shape",
                "x is [4, 6, 35] f32 channels_first", "y is [4, 6, 34] f32 channels_first"});
  Tensor f64({4, 6, 35}, DType::f64);
  expect_error([&] { layer->forward(x, f64); }, {"y: must have x's", "y is [4, 6, 35] f64"});
  Tensor last({4, 6, 35}, DType::f32, Layout::channels_last);
  expect_error([&] { layer->forward(x, last); }, {"y: must have x's", "f32 channels_last"});

  // y begins one example into x.
  Tensor memory = random_tensor({5, 6, 35});
  const Tensor before = memory;
  const Tensor head = Tensor::view(memory.data(), {4, 6, 35}, DType::f32);
  Tensor tail =
      Tensor::view(memory.data<float>().data() + std::ptrdiff_t{6} * 35, {4, 6, 35}, DType::f32);
  expect_error([&] { layer->forward(head, tail); }, {"overlap", "x is [4, 6, 35]"});
  EXPECT_TRUE(same_bits(memory, before));

  layer->options.eps = -1;
  expect_error([&] { layer->forward(x); }, {"eps", "not negative", "got eps=-1"});
  layer->options.eps = 1e-5;
  layer->options.correction = 2;
  expect_error([&] { layer->forward(x); }, {"correction", "got correction=2"});
  layer->options.correction = 0;
  layer->options.activation = static_cast<Activation>(77);
  expect_error([&] { layer->forward(x); }, {"activation", "got activation=77"});
  layer->options.activation = Activation::none;
  layer->options.executor.threads = 0;
  expect_error([&] { layer->forward(x); }, {"executor", "threads"});

  EXPECT_TRUE(std::ranges::equal(layer->mean(), mean));
}

TEST_P(EveryLayer, RefusesAnotherNumberOfChannelsWhereItHasParameters) {
  const auto layer = this->layer();
  const Tensor x = random_tensor({4, 12, 5});
  if (layer->gamma().empty()) {
    EXPECT_EQ(layer->forward(x).size(), x.size());
    return;
  }
  expect_error([&] { layer->forward(x); },
               {"num_channels=6", "x is [4, 12, 5] f32 channels_first"});
  expect_error([&] { GetParam().make(0); }, {"num_channels", "at least 1", "0"});
  expect_error([&] { GetParam().make(-3); }, {"num_channels", "at least 1", "-3"});
}

TEST_P(EveryLayer, StartsWithGammaOneAndBetaZero) {
  const auto layer = GetParam().make(6);
  EXPECT_EQ(layer->options.eps, 1e-5);
  EXPECT_EQ(layer->gamma().size(), layer->beta().size());
  EXPECT_TRUE(std::ranges::all_of(layer->gamma(), [](double value) { return value == 1; }));
  EXPECT_TRUE(std::ranges::all_of(layer->beta(), [](double value) { return value == 0; }));
}

// ---- Every layer's backward

TEST_P(EveryLayer, BackwardIsItsGradient) {
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
    for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
      for (const auto& shape : {std::vector<std::int64_t>{4, 6}, {4, 6, 35}, {2, 6, 3, 4, 5}}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + ", rank " + std::to_string(shape.size()) +
                     ", layout " + std::to_string(static_cast<int>(layout)));
        const auto layer = this->layer();
        const Tensor x = random_tensor(shape, dtype, layout), dy = random_like(x);
        layer->forward(x);
        const Tensor dx = layer->backward(dy);
        EXPECT_EQ(dx.shape(), x.shape());
        EXPECT_EQ(dx.dtype(), x.dtype());
        EXPECT_EQ(dx.layout(), x.layout());
        expect_gradient(expected(*layer, x), *layer, x, dy, dx);
      }
    }
  }
}

TEST_P(EveryLayer, BackwardTakesTheOptionsOfForward) {
  const auto layer = this->layer();
  layer->options = {.eps = 0.25, .activation = Activation::silu, .correction = 1, .executor = {}};
  const Tensor x = random_tensor({4, 6, 35}), dy = random_like(x);
  const Expected expected = this->expected(*layer, x);
  layer->forward(x);
  layer->options = {};
  expect_gradient(expected, *layer, x, dy, layer->backward(dy));
}

TEST_P(EveryLayer, BackwardWritesIntoAGivenTensorAndInPlace) {
  const auto layer = this->layer();
  const Tensor x = random_tensor({4, 6, 35}), dy = random_like(x);
  layer->forward(x);
  const Tensor expected = layer->backward(dy);

  Tensor dx = random_tensor({4, 6, 35});
  const void* const memory = dx.data();
  layer->backward(dy, dx);
  EXPECT_EQ(dx.data(), memory);
  EXPECT_TRUE(same_bits(dx, expected));

  Tensor in_place = dy;
  layer->backward(in_place, in_place);
  EXPECT_TRUE(same_bits(in_place, expected));
}

TEST_P(EveryLayer, BackwardAccumulatesUntilZeroGrad) {
  const auto layer = this->layer();
  ASSERT_EQ(layer->dgamma().size(), layer->gamma().size());
  ASSERT_EQ(layer->dbeta().size(), layer->beta().size());
  const auto is_zero = [](double value) { return value == 0; };
  EXPECT_TRUE(std::ranges::all_of(layer->dgamma(), is_zero));
  EXPECT_TRUE(std::ranges::all_of(layer->dbeta(), is_zero));

  const Tensor x = random_tensor({4, 6, 35}), dy = random_like(x);
  layer->forward(x);
  layer->backward(dy);
  const std::vector<double> dgamma = values_of(layer->dgamma()), dbeta = values_of(layer->dbeta());
  layer->backward(dy);
  for (std::size_t c = 0; c < dgamma.size(); ++c) {
    EXPECT_NE(dgamma[c], 0);
    EXPECT_EQ(layer->dgamma()[c], 2 * dgamma[c]);
    EXPECT_EQ(layer->dbeta()[c], 2 * dbeta[c]);
  }
  layer->zero_grad();
  EXPECT_TRUE(std::ranges::all_of(layer->dgamma(), is_zero));
  EXPECT_TRUE(std::ranges::all_of(layer->dbeta(), is_zero));
  layer->backward(dy);
  EXPECT_EQ(values_of(layer->dgamma()), dgamma);
  EXPECT_EQ(values_of(layer->dbeta()), dbeta);
}

TEST_P(EveryLayer, BackwardDifferentiatesWhatForwardSaw) {
  const auto layer = this->layer();
  layer->options.activation = Activation::silu;  // so that beta matters
  Tensor dy({1, 1});
  {
    const Tensor x = random_tensor({4, 6, 35});
    dy = random_like(x);
    layer->forward(x);
  }  // the layer holds on to x
  const Tensor expected = layer->backward(dy);
  for (double& gamma : layer->gamma()) gamma += 1;
  for (double& beta : layer->beta()) beta += 1;
  EXPECT_TRUE(same_bits(layer->backward(dy), expected));

  // A forward that is refused changes nothing.
  Tensor wrong({4, 6, 34});
  expect_error([&] { layer->forward(random_tensor({4, 6, 35}), wrong); }, {"y: must have"});
  EXPECT_TRUE(same_bits(layer->backward(dy), expected));
}

TEST_P(EveryLayer, ForwardCopiesNoX) {
  const auto layer = this->layer();
  Tensor x = random_tensor({4, 6, 35});
  const Tensor dy = random_like(x);
  layer->forward(x);
  const Tensor dx = layer->backward(dy);
  x.data<float>()[0] += 1;
  EXPECT_FALSE(same_bits(layer->backward(dy), dx));
}

TEST_P(EveryLayer, BackwardTakesEmptyTensors) {
  const auto layer = this->layer();
  for (const auto& shape : {std::vector<std::int64_t>{0, 6, 5}, {2, 6, 0}}) {
    layer->forward(Tensor(shape));
    EXPECT_EQ(layer->backward(Tensor(shape)).shape(), shape);
    EXPECT_TRUE(std::ranges::all_of(layer->dgamma(), [](double value) { return value == 0; }));
    EXPECT_TRUE(std::ranges::all_of(layer->dbeta(), [](double value) { return value == 0; }));
  }
}

TEST_P(EveryLayer, BackwardRefusesAndLeavesAllAsItWas) {
  const auto layer = this->layer();
  Tensor x = random_tensor({4, 6, 35});
  const Tensor dy = random_like(x);
  const auto nothing_to_differentiate = [&] {
    expect_error([&] { layer->backward(dy); },
                 {"Normalization", "backward", "forward", "not in place"});
  };
  nothing_to_differentiate();
  layer->forward(x);
  Tensor in_place = x;
  layer->forward(in_place, in_place);
  nothing_to_differentiate();
  layer->forward(x);

  Tensor dx = random_tensor({4, 6, 35});
  const Tensor before = dx;
  const Tensor shape({4, 6, 34}), f64({4, 6, 35}, DType::f64);
  const Tensor last({4, 6, 35}, DType::f32, Layout::channels_last);
  expect_error([&] { layer->backward(shape, dx); },
               {"dy: must have x's shape", "x is [4, 6, 35] f32", "dy is [4, 6, 34] f32"});
  expect_error([&] { layer->backward(f64, dx); }, {"dy: must have x's", "dy is [4, 6, 35] f64"});
  expect_error([&] { layer->backward(last, dx); }, {"dy: must have x's", "f32 channels_last"});
  Tensor small({4, 6, 34});
  expect_error([&] { layer->backward(dy, small); }, {"dx: must have x's", "dx is [4, 6, 34] f32"});
  expect_error([&] { layer->backward(dy, x); }, {"overlap", "x is [4, 6, 35]"});
  layer->options.executor.threads = 0;
  expect_error([&] { layer->backward(dy, dx); }, {"executor", "threads"});
  EXPECT_TRUE(same_bits(dx, before));
  EXPECT_TRUE(std::ranges::all_of(layer->dgamma(), [](double value) { return value == 0; }));
  EXPECT_TRUE(std::ranges::all_of(layer->dbeta(), [](double value) { return value == 0; }));
}

// ---- What a layer keeps

// The layer, in the mode in which its forward is what infer gives.
Normalization& evaluated(Normalization& layer) {
  if (auto* const bn = dynamic_cast<BatchNormalization*>(&layer)) bn->eval();
  return layer;
}

// One call after another on one layer, each with something changed since the one before.
TEST_P(EveryLayer, KeepsNothingThatHasChanged) {
  const auto kept = this->layer();
  evaluated(*kept);
  int calls = 0;
  const auto expect_fresh = [&](const Tensor& x) {
    SCOPED_TRACE("call " + std::to_string(calls++));
    const auto fresh = GetParam().make(6);
    evaluated(*fresh).options = kept->options;
    std::ranges::copy(kept->gamma(), fresh->gamma().begin());
    std::ranges::copy(kept->beta(), fresh->beta().begin());
    const Tensor dy = random_like(x), y = fresh->forward(x);
    const Tensor dx = fresh->backward(dy);
    EXPECT_TRUE(same_bits(kept->infer(x), y));
    EXPECT_TRUE(same_bits(kept->forward(x), y));
    EXPECT_EQ(values_of(kept->mean()), values_of(fresh->mean()));
    EXPECT_EQ(values_of(kept->rstd()), values_of(fresh->rstd()));
    EXPECT_TRUE(same_bits(kept->infer(x), y));
    kept->zero_grad();
    EXPECT_TRUE(same_bits(kept->backward(dy), dx));
    EXPECT_EQ(values_of(kept->dgamma()), values_of(fresh->dgamma()));
    EXPECT_EQ(values_of(kept->dbeta()), values_of(fresh->dbeta()));
  };
  const Tensor x = random_tensor({4, 6, 35});
  expect_fresh(x);
  for (double& gamma : kept->gamma()) gamma *= -2;
  expect_fresh(x);
  for (double& beta : kept->beta()) beta += 0.1;
  expect_fresh(x);
  expect_fresh(random_tensor({4, 6, 35}, DType::f64));
  expect_fresh(random_tensor({4, 6, 35}, DType::bf16));
  expect_fresh(random_tensor({4, 6, 35}, DType::f16));
  expect_fresh(random_tensor({4, 6, 35}, DType::f16, Layout::channels_last));
  expect_fresh(random_tensor({4, 6, 5, 7}, DType::f16, Layout::channels_last));
  expect_fresh(random_tensor({1, 6, 40000}));  // needs a workspace
  expect_fresh(random_tensor({70, 6}));
  expect_fresh(x);
  kept->options.eps = 0.5;
  expect_fresh(x);
  kept->options.activation = Activation::gelu;
  expect_fresh(x);
  kept->options.correction = 1;
  expect_fresh(x);
  kept->options.executor = {};
  expect_fresh(x);
}

TEST_P(EveryLayer, InfersWhatForwardGives) {
  const auto layer = this->layer();
  layer->forward(random_tensor({4, 6, 35}));
  evaluated(*layer);
  const Tensor x = random_tensor({2, 6, 35}), expected = layer->forward(x);
  EXPECT_TRUE(same_bits(layer->infer(x), expected));

  Tensor y = random_like(x);
  const void* const memory = y.data();
  layer->infer(x, y);
  EXPECT_EQ(y.data(), memory);
  EXPECT_TRUE(same_bits(y, expected));

  Tensor in_place = x;
  layer->infer(in_place, in_place);
  EXPECT_TRUE(same_bits(in_place, expected));
  EXPECT_EQ(layer->infer(Tensor({0, 6, 5})).shape(), (std::vector<std::int64_t>{0, 6, 5}));
}

TEST_P(EveryLayer, BackwardAfterInferIsOfTheLastForward) {
  const auto layer = this->layer();
  const Tensor x = random_tensor({4, 6, 35}), dy = random_like(x);
  layer->infer(x);
  EXPECT_TRUE(layer->mean().empty());
  expect_error([&] { layer->backward(dy); }, {"backward", "must follow forward", "not infer"});

  layer->forward(x);
  const Tensor dx = layer->backward(dy);
  const std::vector<double> mean = values_of(layer->mean()), rstd = values_of(layer->rstd());
  const std::vector<double> dgamma = values_of(layer->dgamma());
  for (double& gamma : layer->gamma()) gamma += 1;
  layer->infer(random_like(x));
  layer->infer(random_tensor({7, 6, 50}, DType::f64, Layout::channels_last));
  Tensor in_place = random_like(x);
  layer->infer(in_place, in_place);
  EXPECT_EQ(values_of(layer->mean()), mean);
  EXPECT_EQ(values_of(layer->rstd()), rstd);
  layer->zero_grad();
  EXPECT_TRUE(same_bits(layer->backward(dy), dx));
  EXPECT_EQ(values_of(layer->dgamma()), dgamma);
}

TEST_P(EveryLayer, InferRefusesAsForwardDoes) {
  const auto layer = this->layer();
  const Tensor x = random_tensor({4, 6, 35});
  Tensor y({4, 6, 34});
  expect_error([&] { layer->infer(x, y); }, {"y: must have x's shape", "y is [4, 6, 34] f32"});
  layer->options.executor.threads = 0;
  expect_error([&] { layer->infer(x); }, {"executor", "threads"});
  layer->options = {.eps = -1};
  expect_error([&] { layer->infer(x); }, {"eps", "got eps=-1", "x is [4, 6, 35]"});
  layer->options = {};
  if (!layer->gamma().empty()) {
    expect_error([&] { layer->infer(random_tensor({4, 12, 5})); }, {"num_channels=6"});
  }
}

// Of all that a refused forward could have left behind, gamma, beta and another shape.
TEST_P(EveryLayer, BackwardForgetsARefusedForward) {
  const auto layer = this->layer();
  layer->options.activation = Activation::silu;
  const Tensor x = random_tensor({4, 6, 35}), dy = random_like(x);
  layer->forward(x);
  const Tensor dx = layer->backward(dy);
  const std::vector<double> mean = values_of(layer->mean()), rstd = values_of(layer->rstd());
  for (double& gamma : layer->gamma()) gamma += 1;
  for (double& beta : layer->beta()) beta += 1;
  layer->options.executor.threads = 0;
  expect_error([&] { layer->forward(random_like(x)); }, {"executor"});
  expect_error([&] { layer->forward(random_tensor({9, 6, 3, 4}, DType::f64)); }, {"executor"});
  layer->options.executor.threads = 1;
  EXPECT_EQ(values_of(layer->mean()), mean);
  EXPECT_EQ(values_of(layer->rstd()), rstd);
  EXPECT_TRUE(same_bits(layer->backward(dy), dx));
}

TEST_P(EveryLayer, InfersForManyThreadsAtOnce) {
  const auto made = this->layer();
  const Normalization& layer = evaluated(*made);
  const std::array<Tensor, 3> xs{random_tensor({2, 6, 35}), random_tensor({70, 6}, DType::f64),
                                 random_tensor({1, 6, 9000}, DType::bf16, Layout::channels_last)};
  std::vector<Tensor> expected;
  expected.reserve(xs.size());
  for (const Tensor& x : xs) expected.push_back(made->forward(x));
  std::atomic<int> wrong = 0;
  std::vector<std::thread> callers;
  callers.reserve(4);
  for (std::size_t caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (std::size_t i = caller; i < caller + 60; ++i) {
        if (!same_bits(layer.infer(xs[i % 3]), expected[i % 3])) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

// Its Spec is that of a default-constructed Plan, which can do nothing.
TEST(InstanceNormalization, TakesATensorWithoutExamplesOrChannels) {
  InstanceNormalization in;
  const Tensor x({0, 0});
  EXPECT_EQ(in.infer(x).size(), 0);
  EXPECT_EQ(in.forward(x).size(), 0);
  EXPECT_EQ(in.backward(x).size(), 0);
}

// ---- Group normalization

TEST(GroupNormalization, TakesAnyNumberOfChannelsThatItDivides) {
  GroupNormalization gn(8);
  for (const std::int64_t channels : {8, 32, 320}) {
    const Tensor x = random_tensor({2, channels, 9});
    expect_reference(gn, x, gn.forward(x), group_norm(x.ncs(), 8));
  }
  expect_error(
      [&] {
        gn.forward(Tensor({16, 30, 64, 64}));
      },
      {"GroupNormalization(num_groups=8)", "divide the channels; got c=30",
       "x is [16, 30, 64, 64] f32 channels_first"});
}

TEST(GroupNormalization, RefusesGroupsThatCannotBe) {
  expect_error([] { GroupNormalization(0); }, {"num_groups=0", "at least 1"});
  expect_error([] { GroupNormalization(-4); }, {"num_groups=-4", "at least 1"});
  expect_error([] { GroupNormalization(8, 30); }, {"num_groups=8", "divide", "got c=30"});
}

TEST(GroupNormalization, NamesTheThreadsThatCannotBe) {
  GroupNormalization gn(2);
  gn.options.executor = {.threads = 0};
  expect_error([&] { gn.forward(Tensor({1, 4})); }, {"executor", "from 1 to 1024", "threads=0"});
}

TEST(GroupNormalization, TakesEpsByPosition) {
  const GroupNormalization gn(8, 32, 1e-3);
  EXPECT_EQ(gn.options.eps, 1e-3);
}

TEST(GroupNormalization, RefusesACorrectionOfOneElement) {
  GroupNormalization gn(6);
  gn.options.correction = 1;
  expect_error(
      [&] {
        gn.forward(Tensor({4, 6}));
      },
      {"two elements", "block.channels=1", "s=1", "x is [4, 6]"});
}

TEST(GroupNormalization, GivesBetaForAConstantBlock) {
  GroupNormalization gn(2, 4);
  fill_parameters(gn);
  Tensor x({3, 4, 5});
  std::ranges::fill(x.data<float>(), 0.1F);
  const Tensor y = gn.forward(x);
  for (std::size_t i = 0; i < y.data<float>().size(); ++i) {
    EXPECT_EQ(y.data<float>()[i], static_cast<float>(gn.beta()[i / 5 % 4]));
  }
}

TEST(GroupNormalization, RunsOnTheCallersThreads) {
  const Tensor x = random_tensor({2, 64, 96, 96});
  GroupNormalization gn(32);
  gn.options.executor = {};
  const Tensor expected = gn.forward(x);

  std::atomic<std::int64_t> tasks = 0;
  const auto run = [](void* context, std::int64_t count, Executor::Task task, void* arg) {
    for (std::int64_t i = count; i > 0; --i) task(arg, i - 1);  // any order will do
    *static_cast<std::atomic<std::int64_t>*>(context) += count;
  };
  gn.options.executor = {.run = run, .context = &tasks, .threads = 4};
  EXPECT_TRUE(same_bits(gn.forward(x), expected));
  EXPECT_GT(tasks, 1);
  gn.options.executor = pool(3);
  EXPECT_TRUE(same_bits(gn.forward(x), expected));
}

TEST(GroupNormalization, BackwardRunsOnTheCallersThreads) {
  const Tensor x = random_tensor({2, 64, 96, 96}), dy = random_like(x);
  GroupNormalization gn(32, 64);
  gn.forward(x);
  gn.options.executor = {};
  const Tensor expected = gn.backward(dy);
  const std::vector<double> dgamma = values_of(gn.dgamma());

  std::atomic<std::int64_t> tasks = 0;
  const auto run = [](void* context, std::int64_t count, Executor::Task task, void* arg) {
    for (std::int64_t i = count; i > 0; --i) task(arg, i - 1);
    *static_cast<std::atomic<std::int64_t>*>(context) += count;
  };
  gn.options.executor = {.run = run, .context = &tasks, .threads = 4};
  gn.zero_grad();
  EXPECT_TRUE(same_bits(gn.backward(dy), expected));
  EXPECT_GT(tasks, 1);
  EXPECT_EQ(values_of(gn.dgamma()), dgamma);
}

TEST(GroupNormalization, CopiesDifferentiateTheSameForward) {
  const Tensor x = random_tensor({2, 4, 5}), dy = random_like(x);
  GroupNormalization gn(2, 4);
  gn.forward(x);
  GroupNormalization copy = gn;
  EXPECT_TRUE(same_bits(copy.backward(dy), gn.backward(dy)));
  copy.backward(dy);
  EXPECT_EQ(copy.dgamma()[0], 2 * gn.dgamma()[0]);
}

TEST(GroupNormalization, CopiesAndMovedLayersKeepTheirForward) {
  const Tensor x = random_tensor({2, 4, 5}), dy = random_like(x);
  GroupNormalization gn(2, 4);
  fill_parameters(gn);
  gn.forward(x);
  const Tensor dx = gn.backward(dy);
  GroupNormalization copy(1, 4);
  copy.forward(random_tensor({6, 4, 50}, DType::f64));
  copy = gn;
  copy.gamma()[0] = 7;
  copy.forward(random_tensor({3, 4, 9}));
  EXPECT_TRUE(same_bits(gn.backward(dy), dx));

  GroupNormalization moved = std::move(gn);
  EXPECT_TRUE(same_bits(moved.backward(dy), dx));
  copy = std::move(moved);
  EXPECT_TRUE(same_bits(copy.backward(dy), dx));
  EXPECT_TRUE(same_bits(copy.infer(x), copy.forward(x)));
}

TEST(GroupNormalization, CanBeCopiedAndMoved) {
  GroupNormalization gn(2, 4);
  gn.gamma()[0] = 5;
  GroupNormalization copy = gn;
  copy.gamma()[0] = 6;
  EXPECT_EQ(gn.gamma()[0], 5);
  const GroupNormalization moved = std::move(copy);
  EXPECT_EQ(moved.gamma()[0], 6);
  static_assert(!std::is_copy_constructible_v<Normalization>);  // would cut the layer off
}

// ---- Batch normalization

struct Channel {
  double mean = 0, unbiased = 0;  // the variance divided by m - 1
};

// Of each channel of a channels_first x, over all examples and positions.
std::vector<Channel> channels_of(const Tensor& x) {
  const Shape shape = x.ncs();
  std::vector<Channel> channels(static_cast<std::size_t>(shape.c));
  const auto m = static_cast<double>(shape.n * shape.s);
  const auto for_each = [&](auto&& f) {
    for (std::int64_t i = 0; i < x.size(); ++i) {
      f(channels[static_cast<std::size_t>(i / shape.s % shape.c)],
        detail::load_element(x.dtype(), x.data(), i));
    }
  };
  for_each([&](Channel& channel, double value) { channel.mean += value / m; });
  for_each([&](Channel& channel, double value) {
    channel.unbiased += (value - channel.mean) * (value - channel.mean) / (m - 1);
  });
  return channels;
}

TEST(BatchNormalization, StartsInTrainingWithTheStandardNormal) {
  const BatchNormalization bn(3);
  EXPECT_TRUE(bn.training());
  EXPECT_TRUE(std::ranges::equal(bn.running_mean(), std::array{0.0, 0.0, 0.0}));
  EXPECT_TRUE(std::ranges::equal(bn.running_var(), std::array{1.0, 1.0, 1.0}));
}

TEST(BatchNormalization, MovesItsRunningStatisticsByTheMomentum) {
  for (const int correction : {0, 1}) {
    for (const double momentum : {0.1, 0.5, 1.0, 0.0}) {
      SCOPED_TRACE("correction " + std::to_string(correction) + ", momentum " +
                   std::to_string(momentum));
      BatchNormalization bn(3, 1e-5, momentum);
      bn.options.correction = correction;
      const Tensor x = random_tensor({4, 3, 5});
      const std::vector<Channel> channels = channels_of(x);
      bn.forward(x);
      bn.forward(x);
      const double kept = (1 - momentum) * (1 - momentum);
      for (std::size_t c = 0; c < 3; ++c) {
        EXPECT_NEAR(bn.running_mean()[c], (1 - kept) * channels[c].mean, 4 * kEpsilon);
        EXPECT_NEAR(bn.running_var()[c], kept + (1 - kept) * channels[c].unbiased, 8 * kEpsilon);
      }
    }
  }
}

TEST(BatchNormalization, UsesItsRunningStatisticsAfterEval) {
  BatchNormalization bn(3, 1e-3);
  fill_parameters(bn);
  const Tensor x = random_tensor({4, 3, 5});
  bn.forward(x);
  bn.eval();
  EXPECT_FALSE(bn.training());
  const std::vector<double> mean(bn.running_mean().begin(), bn.running_mean().end());
  const std::vector<double> var(bn.running_var().begin(), bn.running_var().end());

  const Tensor y = bn.forward(x);
  for (std::size_t i = 0; i < y.data<float>().size(); ++i) {
    const std::size_t c = i / 5 % 3;
    const double xhat = (x.data<float>()[i] - mean[c]) / std::sqrt(var[c] + 1e-3);
    EXPECT_NEAR(y.data<float>()[i], bn.gamma()[c] * xhat + bn.beta()[c], 1e-5);
  }
  EXPECT_TRUE(std::ranges::equal(bn.mean(), mean));
  for (std::size_t c = 0; c < 3; ++c) {
    EXPECT_DOUBLE_EQ(bn.rstd()[c], 1 / std::sqrt(var[c] + 1e-3));
  }
  // They stay as they are; one element a channel is enough now; and training goes on from them.
  EXPECT_TRUE(std::ranges::equal(bn.running_mean(), mean));
  EXPECT_TRUE(std::ranges::equal(bn.running_var(), var));
  EXPECT_EQ(bn.forward(Tensor({1, 3})).size(), 3);
  bn.train();
  bn.forward(x);
  EXPECT_NE(bn.running_mean()[0], mean[0]);
}

TEST(BatchNormalization, BackwardTakesRunningStatisticsAsConstants) {
  BatchNormalization bn(3);
  fill_parameters(bn);
  const Tensor x = random_tensor({4, 3, 5}), dy = random_like(x);
  bn.forward(x);
  bn.eval();
  bn.forward(x);
  bn.train();  // it is forward that counts
  Expected expected(bn, x, batch_norm(x.ncs()), /*center=*/true);
  expected.spec.given_statistics = true;
  const Tensor dx = bn.backward(dy);
  expect_gradient(expected, bn, x, dy, dx);
  for (std::size_t i = 0; i < dx.data<float>().size(); ++i) {
    const std::size_t c = i / 5 % 3;
    const double exact = dy.data<float>()[i] * bn.gamma()[c] * bn.rstd()[c];
    EXPECT_NEAR(dx.data<float>()[i], exact, 3 * kEpsilon * std::fabs(exact));  // three roundings
  }
}

TEST(BatchNormalization, InfersByItsRunningStatisticsInTrainingToo) {
  BatchNormalization bn(3, 1e-3);
  fill_parameters(bn);
  const Tensor x = random_tensor({4, 3, 5}), dy = random_like(x);
  bn.forward(x);
  const Tensor dx = bn.backward(dy);
  const std::vector<double> running_mean = values_of(bn.running_mean());
  const std::vector<double> running_var = values_of(bn.running_var());

  const Tensor z = random_like(x), y = bn.infer(z), one = bn.infer(Tensor({1, 3}));
  EXPECT_TRUE(bn.training());
  EXPECT_EQ(values_of(bn.running_mean()), running_mean);
  EXPECT_EQ(values_of(bn.running_var()), running_var);
  EXPECT_TRUE(same_bits(bn.backward(dy), dx));
  for (std::size_t i = 0; i < y.data<float>().size(); ++i) {
    const std::size_t c = i / 5 % 3;
    const double rstd = 1 / std::sqrt(running_var[c] + 1e-3);
    const double xhat = (z.data<float>()[i] - running_mean[c]) * rstd;
    EXPECT_NEAR(y.data<float>()[i], bn.gamma()[c] * xhat + bn.beta()[c], 1e-5);
  }
  bn.eval();
  EXPECT_TRUE(same_bits(bn.forward(z), y));
  EXPECT_TRUE(same_bits(bn.forward(Tensor({1, 3})), one));

  bn.running_mean()[0] += 1;
  EXPECT_FALSE(same_bits(bn.infer(z), y));
  EXPECT_TRUE(same_bits(bn.infer(z), bn.forward(z)));
}

TEST(BatchNormalization, TakesRunningStatisticsThatWereWritten) {
  BatchNormalization bn(2, 0.0);
  bn.eval();
  bn.running_mean()[0] = 10;
  bn.running_var()[0] = 4;
  bn.running_var()[1] = 0;  // rstd 0: beta
  bn.beta()[1] = 7;
  Tensor x({1, 2, 2});
  std::ranges::copy(std::array{12.0F, 6.0F, 3.0F, -3.0F}, x.data<float>().begin());
  EXPECT_TRUE(std::ranges::equal(bn.forward(x).data<float>(), std::array{1.0F, -2.0F, 7.0F, 7.0F}));
}

TEST(BatchNormalization, KeepsAConstantChannelsVarianceAtZero) {
  // 1 / rstd^2 - eps rounds to either side of 0, by eps; seen once the 1 of the start is gone.
  for (int i = 0; i <= 100; ++i) {
    const double eps = 1e-5 * i;
    BatchNormalization bn(1, eps, /*momentum=*/1);
    Tensor x({8, 1});
    std::ranges::fill(x.data<float>(), 0.1F);
    bn.forward(x);
    bn.forward(x);
    EXPECT_GE(bn.running_var()[0], 0) << "eps " << eps;
    EXPECT_LT(bn.running_var()[0], 1e-15) << "eps " << eps;
  }
}

TEST(BatchNormalization, ShowsNaNInItsRunningStatistics) {
  BatchNormalization bn(2);
  Tensor x = random_tensor({4, 2});
  x.data<float>()[0] = static_cast<float>(kNaN);
  bn.forward(x);
  EXPECT_TRUE(std::isnan(bn.running_mean()[0]));
  EXPECT_TRUE(std::isnan(bn.running_var()[0]));
  EXPECT_FALSE(std::isnan(bn.running_mean()[1]));
  EXPECT_FALSE(std::isnan(bn.running_var()[1]));
}

TEST(BatchNormalization, LearnsNothingFromWhatItRefusesOrFromNothing) {
  BatchNormalization bn(3);
  expect_error(
      [&] {
        bn.forward(Tensor({1, 3}));
      },
      {"BatchNormalization", "in training", "two elements", "x is [1, 3]"});
  Tensor wrong({4, 3, 4});
  expect_error([&] { bn.forward(random_tensor({4, 3, 5}), wrong); }, {"y: must have x's shape"});
  bn.forward(Tensor({0, 3, 5}));
  bn.forward(Tensor({4, 3, 0}));
  EXPECT_TRUE(std::ranges::equal(bn.running_mean(), std::array{0.0, 0.0, 0.0}));
  EXPECT_TRUE(std::ranges::equal(bn.running_var(), std::array{1.0, 1.0, 1.0}));
}

TEST(BatchNormalization, RefusesAMomentumThatIsNoShare) {
  for (const double momentum : {-0.1, 1.5, kNaN}) {
    expect_error([=] { BatchNormalization(3, 1e-5, momentum); }, {"momentum", "from 0 to 1"});
  }
}

// ---- suggest_groups

TEST(SuggestGroups, GivesThePapersDefaults) {
  struct Row {
    std::int64_t channels, groups, channels_per_group;
  };
  for (const Row& row : {Row{32, 32, 1}, Row{64, 32, 2}, Row{320, 32, 10}, Row{2048, 32, 64},
                         Row{48, 3, 16}, Row{16, 1, 16}, Row{1, 1, 1}, Row{3, 1, 3}, Row{30, 2, 15},
                         Row{17, 1, 17}, Row{255, 15, 17}, Row{997, 997, 1}, Row{24, 2, 12}}) {
    const GroupSuggestion suggestion = suggest_groups(row.channels);
    EXPECT_EQ(suggestion.groups, row.groups) << row.channels;
    EXPECT_EQ(suggestion.channels_per_group, row.channels_per_group) << row.channels;
    EXPECT_NE(std::string(suggestion.reason).find(row.channels % 32 == 0 ? "default" : "nearest"),
              std::string::npos);
  }
}

TEST(SuggestGroups, FindsTheNearestOfAllDivisors) {
  for (std::int64_t channels = 1; channels <= 2000; ++channels) {
    const GroupSuggestion suggestion = suggest_groups(channels);
    ASSERT_EQ(suggestion.groups * suggestion.channels_per_group, channels);
    if (channels % 32 == 0) continue;
    const std::int64_t distance = std::abs(suggestion.channels_per_group - 16);
    for (std::int64_t divisor = 1; divisor <= channels; ++divisor) {
      if (channels % divisor != 0) continue;
      ASSERT_GE(std::abs(divisor - 16), distance) << channels << " / " << divisor;
    }
  }
}

TEST(SuggestGroups, EndsForTheLargestAndRefusesNone) {
  EXPECT_GT(suggest_groups(std::numeric_limits<std::int64_t>::max()).groups, 0);
  expect_error([] { suggest_groups(0); }, {"channels", "at least 1", "channels=0"});
  expect_error([] { suggest_groups(-32); }, {"channels=-32"});
}

// ---- describe

TEST(Describe, NamesTheValuesThatBrokeTheRule) {
  const auto spec = [](auto&& change) {
    Spec result{.shape = {4, 6, 5}, .block = {1, 2}};
    change(result);
    return result;
  };
  const auto expect = [](Spec broken, Status status, const std::string& values) {
    Plan plan;
    ASSERT_EQ(Plan::make(broken, &plan), status) << values;
    const std::string message = describe(status, broken);
    EXPECT_EQ(message, std::string(status_string(status)) + "; got " + values);
  };
  expect(spec([](Spec& s) { s.shape.c = -6; }), Status::negative_size, "c=-6");
  expect(spec([](Spec& s) { s.shape.s = std::int64_t{1} << 60; }), Status::size_overflow,
         "n=4, c=6, s=1152921504606846976, data=f32");
  expect(spec([](Spec& s) { s.param_stride = std::int64_t{1} << 61; }), Status::param_overflow,
         "param_stride=2305843009213693952, n=4, c=6, param=f32");
  expect(spec([](Spec& s) { s.block = group_norm(s.shape, 4); }), Status::groups_do_not_divide,
         "c=6");
  expect(spec([](Spec& s) { s.block = ghost_batch_norm(s.shape, 3); }),
         Status::batches_do_not_divide, "n=4");
  expect(spec([](Spec& s) { s.block.examples = 3; }), Status::block_examples,
         "block.examples=3, n=4");
  expect(spec([](Spec& s) { s.block.channels = 4; }), Status::block_channels,
         "block.channels=4, c=6");
  expect(spec([](Spec& s) { s.data = static_cast<DType>(9); }), Status::unknown_data, "data=9");
  expect(spec([](Spec& s) { s.param = static_cast<DType>(9); }), Status::unknown_param, "param=9");
  expect(spec([](Spec& s) { s.layout = static_cast<Layout>(5); }), Status::unknown_layout,
         "layout=5");
  expect(spec([](Spec& s) { s.activation = static_cast<Activation>(6); }),
         Status::unknown_activation, "activation=6");
  expect(spec([](Spec& s) { s.param = DType::f64; }), Status::param_dtype, "data=f32, param=f64");
  expect(spec([](Spec& s) { s.param_stride = 5; }), Status::param_stride, "param_stride=5, c=6");
  expect(spec([](Spec& s) { s.correction = -1; }), Status::correction, "correction=-1");
  expect(spec([](Spec& s) {
           s.block = instance_norm(s.shape);
           s.shape.s = 1;
           s.correction = 1;
         }),
         Status::too_few_elements, "block.examples=1, block.channels=1, s=1");
  expect(spec([](Spec& s) { s.eps = -0.5; }), Status::eps, "eps=-0.5");
}

// As a program for people sets it: "1.000.000" and "0,5".
class ThousandsApart : public std::numpunct<char> {
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
  char do_decimal_point() const override { return ','; }
};

TEST(Describe, WritesNumbersThatNoLocaleChanges) {
  const std::locale before = std::locale::global(std::locale({}, new ThousandsApart));
  const std::string eps =
      describe(Status::eps, {.shape = {2, 1000000, 3}, .block = {}, .eps = -0.5});
  const std::string block =
      describe(Status::block_channels, {.shape = {2, 1000000, 3}, .block = {1, 300000}});
  std::string momentum;
  try {
    BatchNormalization(1000, 1e-5, /*momentum=*/1234.5);
  } catch (const Error& error) {
    momentum = error.what();
  }
  std::locale::global(before);
  EXPECT_TRUE(eps.ends_with("; got eps=-0.5")) << eps;
  EXPECT_TRUE(block.ends_with("; got block.channels=300000, c=1000000")) << block;
  EXPECT_TRUE(momentum.ends_with("; got momentum=1234.5")) << momentum;
}

TEST(Describe, NamesOneArgument) {
  const std::pair<Status, std::string> arguments[] = {
      {Status::null_y, "y: "},
      {Status::missing_mean, "mean: "},
      {Status::unexpected_given_rstd, "given_rstd: "},
      {Status::misaligned_dgamma, "dgamma: "},
      {Status::overlap_workspace, "workspace: "},
      {Status::unknown_param, "param: "},
      {Status::batches_do_not_divide, "batches: "},
  };
  for (const auto& [status, argument] : arguments) {
    EXPECT_TRUE(std::string(status_string(status)).starts_with(argument)) << status_string(status);
  }
  // A list before the colon would be several.
  for (int i = 1; i < static_cast<int>(Status::not_built); ++i) {
    const std::string words = status_string(static_cast<Status>(i));
    const std::size_t colon = words.find(':');
    EXPECT_NE(colon, words.npos) << words;
    EXPECT_EQ(words.substr(0, colon).find_first_of(", "), words.npos) << words;
  }
}

TEST(Describe, SaysTheRuleAloneWhereTheSpecIsNotToBlame) {
  for (const Status status : {Status::ok, Status::overlap_y, Status::workspace_too_small,
                              Status::unknown_target, Status::not_planned}) {
    EXPECT_EQ(describe(status, Spec{}), status_string(status));
  }
}

}  // namespace
}  // namespace groupnorm::testing
