// Bytes -> Spec, neighbours of the norm, data, misalignment and threads. On every instruction set
// of the machine, forward and backward agree with the reference within a derived bound, and have
// the same bits on any number of threads, on misaligned memory and in place.
#include <groupnorm/groupnorm.hpp>

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "dtype.h"
#include "reference.h"
#include "testing/cases.h"

namespace groupnorm::fuzz {
namespace {

using testing::Case;
using testing::Data;
using testing::GradientData;

// What x is made of.
enum class Values {
  normal,  // N(mean, deviation): the bounds of src/testing/cases.h hold as they are
  grid,    // mean + whole multiples of a step, from the input: bounds as derived below
  bits,  // any bits at all, NaN and infinities among them: forward as grid, backward its bits alone
  kMaxValue = bits
};

struct Input {
  Case c;
  std::uint64_t seed;
  Values values;
  int threads;
  std::int64_t shift;  // elements by which x, y, dy and dx lie off the alignment of their memory
  std::vector<std::uint8_t> bytes;
};

// ---- From bytes to a Spec -----------------------------------------------------------------------

std::int64_t divisor(FuzzedDataProvider& from, std::int64_t size) {
  std::vector<std::int64_t> divisors;
  for (std::int64_t d = 1; d <= size; ++d) {
    if (size % d == 0) divisors.push_back(d);
  }
  return divisors[from.ConsumeIntegralInRange<std::size_t>(0, divisors.size() - 1)];
}

// Small as a rule; at times large enough for several chunks, threads and streaming stores.
Shape take_shape(FuzzedDataProvider& from) {
  constexpr std::int64_t kElements[] = {16,  64,  64,  64,  256,  256,  256,  256,
                                        512, 512, 512, 512, 1024, 1024, 4096, 20000};
  const std::int64_t most = from.PickValueInArray(kElements);
  const auto n = from.ConsumeIntegralInRange<std::int64_t>(1, 5);
  const auto c =
      from.ConsumeIntegralInRange<std::int64_t>(1, std::min<std::int64_t>(700, most / n));
  return {n, c, from.ConsumeIntegralInRange<std::int64_t>(1, most / (n * c))};
}

Spec take_spec(FuzzedDataProvider& from) {
  constexpr double kEps[] = {1e-5, 1e-5, 1e-3, 1, 1e-12, 0};
  Spec spec;
  spec.shape = take_shape(from);
  spec.block = {divisor(from, spec.shape.n), divisor(from, spec.shape.c)};
  spec.layout = from.PickValueInArray(kLayouts).value;
  spec.data = from.PickValueInArray(kDTypes).value;
  const bool narrow = spec.data == DType::f16 || spec.data == DType::bf16;
  spec.param = narrow && from.ConsumeBool() ? DType::f32 : spec.data;
  spec.activation = from.PickValueInArray(kActivations).value;
  spec.center = from.ConsumeBool();
  spec.given_statistics = from.ConsumeBool() && from.ConsumeBool();
  const bool alone = spec.block.examples * spec.block.channels * spec.shape.s < 2;
  spec.correction = from.ConsumeBool() && !alone ? 1 : 0;
  spec.eps = from.PickValueInArray(kEps);
  if (from.ConsumeBool()) {
    spec.param_stride = spec.shape.c + from.ConsumeIntegralInRange<std::int64_t>(0, 3);
  }
  return spec;
}

// What stands around the norm.
void take_neighbours(FuzzedDataProvider& from, Case* c) {
  c->skip = from.ConsumeBool();
  c->residual = from.ConsumeBool();
  c->scale = from.ConsumeBool();
  c->offset = from.ConsumeBool();
  c->sum = from.ConsumeBool();
  Spec& spec = c->spec;
  spec.scale = c->scale || c->offset;
  spec.shift = from.ConsumeBool();
  spec.lengths = from.ConsumeBool();
  spec.sequence = divisor(from, spec.shape.n);
  Plan plan;
  if (Plan::make(spec, &plan) == Status::sequence) spec.sequence = 1;
  if (Plan::make(spec, &plan) == Status::sequence) spec.lengths = false;
}

Input take_input(const std::uint8_t* data, std::size_t size) {
  const bool neighbours = is_marked(data, size);
  FuzzedDataProvider from(data, size);
  Input input{.c = {.name = "fuzzed", .spec = take_spec(from)}};
  const bool wide = input.c.spec.data == DType::f32 || input.c.spec.data == DType::f64;
  constexpr double kMeans[] = {0, 1, 1e2, -1e3, 1e5};
  input.c.mean = from.PickValueInArray(kMeans);
  if (!wide) input.c.mean = std::clamp(input.c.mean, -1e2, 1e2);  // as in src/testing/cases.cpp
  input.c.gamma = from.ConsumeBool();
  input.c.beta = from.ConsumeBool();
  input.seed = from.ConsumeIntegral<std::uint8_t>();
  input.values = from.ConsumeEnum<Values>();
  input.threads = from.ConsumeIntegralInRange(1, 6);
  input.shift = from.ConsumeIntegralInRange<std::int64_t>(0, 5);
  if (neighbours) take_neighbours(from, &input.c);
  input.bytes = from.ConsumeRemainingBytes<std::uint8_t>();
  if (input.bytes.empty()) input.bytes.push_back(0);
  // Nothing is wider than f64: the reference's squares overflow where the engine's do.
  if (input.values == Values::bits && input.c.spec.data == DType::f64) input.values = Values::grid;
  // Statistics that do not belong to x: its distance from the mean has no bound.
  if (input.values == Values::bits && input.c.spec.given_statistics) input.values = Values::grid;
  return input;
}

std::string describe(const Input& input, const char* target) {
  const Spec& spec = input.c.spec;
  const auto text = [](std::int64_t value) { return std::to_string(value); };
  return "n " + text(spec.shape.n) + ", c " + text(spec.shape.c) + ", s " + text(spec.shape.s) +
         ", block " + text(spec.block.examples) + " x " + text(spec.block.channels) + ", " +
         to_string(spec.layout) + ", " + to_string(spec.data) + ", params " +
         to_string(spec.param) + " stride " + text(spec.param_stride) + ", " +
         to_string(spec.activation) + (spec.center ? "" : ", not centred") +
         (spec.given_statistics ? ", given" : "") + ", correction " + text(spec.correction) +
         ", eps " + std::to_string(spec.eps) + ", mean " + std::to_string(input.c.mean) +
         ", seed " + std::to_string(input.seed) + ", values " +
         text(static_cast<std::int64_t>(input.values)) + (input.c.skip ? ", skip" : "") +
         (spec.shift ? ", shift" : "") + (input.c.residual ? ", residual" : "") +
         (input.c.scale ? ", scale" : "") + (input.c.offset ? ", offset" : "") +
         (input.c.sum ? ", sum" : "") + (spec.lengths ? ", lengths" : "") + ", sequence " +
         text(spec.sequence) + ", " + text(input.threads) + " threads, shift " + text(input.shift) +
         ", " + target;
}

// ---- Data ---------------------------------------------------------------------------------------

void fill_grid(const Input& input, DType dtype, double centre, double step, testing::Buffer* out) {
  const auto count = static_cast<std::int64_t>(out->size()) / detail::size_of(dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::size_t at = static_cast<std::size_t>(i) % input.bytes.size();
    detail::store_element(dtype, out->data(), i, centre + step * (input.bytes[at] - 128));
  }
}

Data make_data(const Input& input) {
  Data data = testing::make_data(input.c, input.seed);
  const Spec& spec = input.c.spec;
  if (input.values == Values::normal) return data;
  if (input.values == Values::grid) fill_grid(input, spec.data, input.c.mean, 0x1p-6, &data.x);
  if (input.values == Values::bits) {
    for (std::size_t i = 0; i < data.x.size(); ++i) {
      data.x.data()[i] = std::byte{input.bytes[i % input.bytes.size()]};
    }
  }
  fill_grid(input, spec.param, 1, 0x1p-6, &data.gamma);  // -1 to 3
  fill_grid(input, spec.param, 0, 0x1p-6, &data.beta);   // -2 to 2
  return data;
}

// ---- Bounds for data that was made to hurt ------------------------------------------------------
//
// docs/numerics.md: a sum is at most 40 roundings in f32 long (f64: as long as the block), and a
// pilot lies within two deviations of the mean. Where all roundings have one sign, with u = eps /
// 2,
//   mean, in deviations:  41 u mean|d| <= 41 u sqrt(5)                      = 46 eps
//   rstd, relative:       (42 u * 5 + 2 * 2 * 41 u sqrt(5)) / 2             = 145 eps
// and the 3 of applying: below 5 eps for each rounding of the chain. Gradients have no pilot: a sum
// of terms is off by at most half an eps a rounding, three such sums make dx.

double chain(const Spec& spec) {
  if (spec.data != DType::f64) return 40;
  return static_cast<double>(spec.shape.n * spec.shape.c * spec.shape.s + 40);
}

double eps_of(DType dtype) { return dtype == DType::f64 ? 0x1p-52 : 0x1p-23; }

// Half a step of the dtype at `value`.
double rounding(DType dtype, double value) {
  const double size = std::fabs(value);
  switch (dtype) {
    case DType::f64: return size * 0x1p-53;
    case DType::f16: return std::max(size * 0x1p-11, 0x1p-25);
    case DType::bf16: return std::max(size * 0x1p-8, 0x1p-134);
    case DType::f32: break;
  }
  return std::max(size * 0x1p-24, 0x1p-150);
}

bool near(DType dtype, double actual, double exact, double allowed) {
  double rounded = 0;
  detail::store_element(dtype, &rounded, 0, exact);
  rounded = detail::load_element(dtype, &rounded, 0);
  if (std::isnan(rounded)) return std::isnan(actual);
  if (actual == rounded) return true;
  if (!std::isfinite(rounded)) return false;
  return std::fabs(actual - exact) <= allowed + rounding(dtype, exact);
}

std::int64_t block_of(const Spec& spec, std::int64_t index) {
  const auto [n, c, s] = spec.shape;
  const bool first = spec.layout == Layout::channels_first;
  const std::int64_t example = index / (c * s), channel = first ? index / s % c : index % c;
  return example / spec.block.examples * (c / spec.block.channels) + channel / spec.block.channels;
}

// ---- Forward ------------------------------------------------------------------------------------

void check_values(const Input& input, const detail::ReferenceResult& exact, const Data& data,
                  const std::string& where) {
  const Spec& spec = input.c.spec;
  if (input.values == Values::normal) {
    const testing::Comparison worst = testing::compare(spec, exact, data.y.data());
    check(worst.within_bound(), "y[" + std::to_string(worst.index) + "] is " +
                                    std::to_string(worst.actual) + ", not " +
                                    std::to_string(worst.expected) + ": error " +
                                    std::to_string(worst.error) + ", " + where);
    return;
  }
  const double largest_gamma = input.c.scale ? 7.5 : 3;  // 1 + scale is 2.5 at most
  constexpr double kLargestSlope = 1.5;
  const double eps = eps_of(spec.data);
  for (std::size_t i = 0; i < exact.y.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i);
    const auto block = static_cast<std::size_t>(block_of(spec, index));
    // mean_lo * a is rounded on its own; f64 has no mean_lo.
    const double lost = std::fabs(exact.mean[block]) * exact.rstd[block] *
                        (spec.data == DType::f64 ? eps : eps * eps);
    const double allowed =
        largest_gamma * kLargestSlope * (5 * chain(spec) * eps * exact.scale[i] + lost);
    const double actual = detail::load_element(spec.data, data.y.data(), index);
    check(near(spec.data, actual, exact.y[i], allowed),
          "y[" + std::to_string(i) + "] is " + std::to_string(actual) + ", not " +
              std::to_string(exact.y[i]) + " within " + std::to_string(allowed) + ", " + where);
  }
}

// `bytes` at an address that is `shift` bytes off; its end is the end of its memory.
class Shifted {
 public:
  Shifted(const testing::Buffer& from, std::int64_t shift)
      : shift_(static_cast<std::size_t>(shift)), memory_(from.size() + shift_) {
    std::copy_n(from.data(), from.size(), data());
  }
  std::byte* data() { return memory_.data() + shift_; }

 private:
  std::size_t shift_;
  std::vector<std::byte> memory_;
};

void check_bits(DType dtype, Shifted& actual, const testing::Buffer& expected,
                const std::string& what) {
  const std::string found =
      testing::difference(dtype, actual.data(), expected.data(), expected.size());
  check(found.empty(), "other bits " + found + ", of " + what);
}

void check_bits(const std::vector<double>& actual, const std::vector<double>& expected,
                const std::string& what) {
  const std::string found = testing::difference(DType::f64, actual.data(), expected.data(),
                                                expected.size() * sizeof(double));
  check(found.empty(), "other bits " + found + ", of " + what);
}

void call(const Plan& plan, const Forward& args, const Executor& executor) {
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const Status status = plan.forward(args, workspace, executor);
  check(status == Status::ok, status_string(status));
}

// Misaligned copies of what a call reads, at which `args` point from then on.
template <class Args>
class ShiftedInputs {
 public:
  ShiftedInputs(const Input& input, const testing::Inputs& data, Args* args) {
    for (const auto& tensor : testing::kInputs<Args>) {
      const testing::Buffer& buffer = data.*tensor.buffer;
      if (buffer.data() == nullptr) continue;
      const DType dtype = input.c.spec.*tensor.dtype;
      copies_.push_back(std::make_unique<Shifted>(buffer, input.shift * detail::size_of(dtype)));
      args->*tensor.pointer = copies_.back()->data();
    }
  }

 private:
  std::vector<std::unique_ptr<Shifted>> copies_;
};

void check_forward(const Input& input, const Plan& plan, Data* data,
                   const detail::ReferenceResult& exact, const std::string& where) {
  const DType dtype = input.c.spec.data;
  call(plan, data->forward, {});
  check_values(input, exact, *data, where);
  testing::Buffer sum(data->sum.size());
  for (std::size_t i = 0; i < exact.sum.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    const double u = detail::load_element(dtype, data->sum.data(), at);
    detail::store_element(dtype, sum.data(), at, exact.sum[i]);
    const double expected = detail::load_element(dtype, sum.data(), at);
    check(u == expected || (std::isnan(u) && std::isnan(expected)),
          "sum[" + std::to_string(i) + "] is " + std::to_string(u) + ", not " +
              std::to_string(expected) + ", " + where);
  }

  const Executor executor = pool(input.threads);
  const std::int64_t shift = input.shift * detail::size_of(dtype);
  Shifted y(data->y, shift), shifted_sum(sum, shift);
  std::vector<double> mean = data->mean, rstd = data->rstd;
  Forward args = data->forward;
  const ShiftedInputs inputs(input, *data, &args);
  args.y = y.data();
  if (args.mean != nullptr) args.mean = mean.data();
  if (args.rstd != nullptr) args.rstd = rstd.data();
  if (args.sum != nullptr) args.sum = shifted_sum.data();
  std::memset(y.data(), 0x5A, data->y.size());
  call(plan, args, executor);
  const std::string apart = " by threads or misaligned, " + where;
  check_bits(dtype, y, data->y, "y" + apart);
  check_bits(mean, data->mean, "mean" + apart);
  check_bits(rstd, data->rstd, "rstd" + apart);
  if (args.sum != nullptr) check_bits(dtype, shifted_sum, data->sum, "sum" + apart);

  for (const auto& tensor : testing::kInputs<Forward>) {
    const testing::Buffer& replaced = data->*tensor.buffer;
    if (replaced.size() != data->y.size() || tensor.dtype != &Spec::data) continue;
    if (tensor.buffer == &testing::Inputs::shift) continue;
    Shifted both(replaced, shift);
    Forward in_place = args;
    in_place.*tensor.pointer = in_place.y = both.data();
    call(plan, in_place, executor);
    check_bits(dtype, both, data->y, "y in place, " + where);
  }
}

// ---- Backward -----------------------------------------------------------------------------------

void check_gradient(const Input& input, const detail::ReferenceGradient& exact,
                    const GradientData& data, const std::string& where) {
  const Spec& spec = input.c.spec;
  if (input.values == Values::normal) {
    const testing::Comparison worst = testing::compare_gradient(spec, exact, data.backward);
    check(worst.within_bound(), std::string(worst.tensor) + "[" + std::to_string(worst.index) +
                                    "] is " + std::to_string(worst.actual) + ", not " +
                                    std::to_string(worst.expected) + ": error " +
                                    std::to_string(worst.error) + ", " + where);
    return;
  }
  const auto expect = [&](const char* name, DType dtype, const testing::Buffer& tensor,
                          std::int64_t i, double value, double scale) {
    const double actual = detail::load_element(dtype, tensor.data(), i);
    const double allowed = (4 + 3 * chain(spec) / 2) * eps_of(dtype) * scale;
    check(near(dtype, actual, value, allowed), std::string(name) + "[" + std::to_string(i) +
                                                   "] is " + std::to_string(actual) + ", not " +
                                                   std::to_string(value) + " within " +
                                                   std::to_string(allowed) + ", " + where);
  };
  for (std::size_t i = 0; i < exact.dx.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i);
    const auto block = static_cast<std::size_t>(block_of(spec, index));
    expect("dx", spec.data, data.dx, index, exact.dx[i], exact.dx_scale[block]);
  }
  const std::int64_t c = spec.shape.c, in_rows = spec.shape.n / spec.sequence * c;
  for (std::int64_t i = 0; i < (spec.param_stride == 0 ? c : in_rows); ++i) {
    const std::int64_t index = i / c * spec.param_stride + i % c;
    const auto at = static_cast<std::size_t>(index);
    expect("dgamma", spec.param, data.dgamma, index, exact.dgamma[at], exact.dgamma_scale[at]);
    expect("dbeta", spec.param, data.dbeta, index, exact.dbeta[at], exact.dbeta_scale[at]);
  }
  const auto expect_all = [&](const char* name, DType dtype, const testing::Buffer& tensor,
                              const std::vector<double>& values,
                              const std::vector<double>& scales) {
    if (tensor.data() == nullptr) return;
    for (std::size_t i = 0; i < values.size(); ++i) {
      expect(name, dtype, tensor, static_cast<std::int64_t>(i), values[i], scales[i]);
    }
  };
  expect_all("dresidual", spec.data, data.dresidual, exact.dresidual, exact.dresidual_scale);
  expect_all("dshift", spec.data, data.dshift, exact.dshift, exact.dshift_scale);
  expect_all("dscale", spec.param, data.dscale, exact.dscale, exact.dscale_scale);
  expect_all("doffset", spec.param, data.doffset, exact.doffset, exact.doffset_scale);
}

void call(const Plan& plan, const Backward& args, const Executor& executor) {
  std::vector<std::byte> workspace(plan.backward_workspace_bytes());
  const Status status = plan.backward(args, workspace, executor);
  check(status == Status::ok, status_string(status));
}

void check_backward(const Input& input, const Plan& plan, GradientData* data,
                    const detail::ReferenceGradient& exact, const std::string& where) {
  call(plan, data->backward, {});
  if (input.values != Values::bits) check_gradient(input, exact, *data, where);

  const Executor executor = pool(input.threads);
  const Spec& spec = input.c.spec;
  const std::int64_t shift = input.shift * detail::size_of(spec.data);
  Shifted dy(data->dy, shift), dsum(data->dsum, shift);
  Backward args = data->backward;
  const ShiftedInputs inputs(input, *data, &args);
  args.dy = dy.data();
  if (args.dsum != nullptr) args.dsum = dsum.data();
  std::vector<std::unique_ptr<Shifted>> outputs;
  for (const testing::Output& output : testing::kGradients) {
    const std::int64_t size = detail::size_of(spec.*output.dtype);
    outputs.push_back(std::make_unique<Shifted>(data->*output.buffer, input.shift * size));
    if (args.*output.pointer != nullptr) args.*output.pointer = outputs.back()->data();
  }
  std::memset(args.dx, 0x5A, data->dx.size());
  call(plan, args, executor);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const testing::Output& output = testing::kGradients[i];
    check_bits(spec.*output.dtype, *outputs[i], data->*output.buffer,
               std::string(output.name) + " by threads or misaligned, " + where);
  }

  args.dx = dy.data();
  call(plan, args, executor);
  check_bits(spec.data, dy, data->dx, "dx in place, " + where);
}

// All of the machine; of a large tensor, one.
std::span<const char* const> chosen_targets(const Input& input) {
  const auto [n, c, s] = input.c.spec.shape;
  if (n * c * s <= 1024) return targets();
  return targets().subspan(input.seed % targets().size(), 1);
}

void run(const Input& input) {
  Data data = make_data(input);
  const Spec& spec = input.c.spec;
  const detail::ReferenceResult exact = detail::reference_forward(spec, data.forward);
  std::vector<Plan> plans;
  for (const char* const target : chosen_targets(input)) {
    Plan plan;
    const Status status = Plan::make(spec, &plan, target);
    check(status == Status::ok, status_string(status));
    check_forward(input, plan, &data, exact, describe(input, target));
    plans.push_back(plan);
  }
  GradientData gradient = testing::make_gradient_data(input.c, std::move(data), input.seed);
  // What lies between the rows of dgamma stays as it is.
  for (testing::Buffer* const params : {&gradient.dgamma, &gradient.dbeta}) {
    std::memset(params->data(), 0, params->size());
  }
  const detail::ReferenceGradient exact_gradient =
      detail::reference_backward(spec, gradient.backward);
  for (const Plan& plan : plans) {
    check_backward(input, plan, &gradient, exact_gradient, describe(input, plan.target()));
  }
}

}  // namespace
}  // namespace groupnorm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  groupnorm::fuzz::run(groupnorm::fuzz::take_input(data, size));
  return 0;
}
