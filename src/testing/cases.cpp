#include "cases.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "dtype.h"

namespace groupnorm::testing {
namespace {

using detail::BF16;
using detail::F16;

// ---- The list -----------------------------------------------------------------------------------

// To add a norm, add a row: the list, `groupnorm check`, `run` and `bench` all read this table.
constexpr Norm kNorms[] = {
    {.name = "group", .block = group_norm, .grouped = true},
    {.name = "layer", .block = [](Shape shape, std::int64_t) { return layer_norm(shape); }},
    {.name = "instance", .block = [](Shape shape, std::int64_t) { return instance_norm(shape); }},
    {.name = "batch", .block = [](Shape shape, std::int64_t) { return batch_norm(shape); }},
    {.name = "ghost_batch", .block = ghost_batch_norm, .grouped = true},
    {.name = "batch_group", .block = batch_group_norm, .grouped = true},
    {.name = "rms",
     .block = [](Shape shape, std::int64_t) { return layer_norm(shape); },
     .center = false},
    {.name = "group_rms", .block = group_norm, .grouped = true, .center = false},
    {.name = "batch_given",
     .block = [](Shape shape, std::int64_t) { return batch_norm(shape); },
     .given_statistics = true},
    {.name = "group_given", .block = group_norm, .grouped = true, .given_statistics = true},
};

struct Size {
  const char* shape;
  std::int64_t groups;  // of channels; for ghost_batch, of examples
};

// Small, so that everything can be crossed with them: one position, one element, vectors and their
// tails, c = 3, one group, c groups, volumes.
constexpr Size kSmallSizes[] = {
    {"1x1x1", 1},    {"6x6", 3},          {"2x3x5", 1},     {"3x3x7x7", 3},
    {"8x32x7x7", 8}, {"4x12x1x17", 4},    {"2x8x3x4x5", 2}, {"2x40x129", 5},
    {"1x64x2", 1},   {"2x2x2x3x3x11", 2}, {"2x512", 32},    {"3x72", 3},
};
// Long enough for many chains of sums, and odd.
constexpr Size kLongSize{"2x16x41x43", 2};
constexpr Size kActivationSize{"4x16x9x9", 4};
// Layers of models in use: the paper's, ResNet-50's, Stable Diffusion's, and a small volume.
constexpr Size kModelSizes[] = {
    {"16x32x64x64", 8}, {"2x320x64x64", 32}, {"2x64x56x56", 32},   {"2x2048x7x7", 32},
    {"1x32x8x8", 8},    {"8x512", 32},       {"1x16x40x40x40", 8},
};

struct Types {
  DType data, param;
};
constexpr Types kTypes[] = {{DType::f32, DType::f32},   {DType::f64, DType::f64},
                            {DType::f16, DType::f16},   {DType::f16, DType::f32},
                            {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}};

// What parameters a case has. `padding`: elements between one example's gamma and the next.
struct Params {
  bool gamma = true, beta = true;
  bool adaptive = false;
  std::int64_t padding = 0;
};
constexpr Params kShared{};
constexpr Params kOtherParams[] = {{.gamma = false},
                                   {.beta = false},
                                   {.gamma = false, .beta = false},
                                   {.adaptive = true},
                                   {.adaptive = true, .padding = 5}};

// What stands around the norm: see Case.
struct Neighbours {
  bool skip = false, shift = false, residual = false, scale = false, offset = false, sum = false,
       lengths = false;
  std::int64_t sequence = 1;
};

// A row of the list before it is a Case: one value of every axis.
struct Row {
  Norm norm = kNorms[0];
  Size size;
  Layout layout;
  Types types = kTypes[0];
  Activation activation = Activation::none;
  int correction = 0;
  Params params = kShared;
  double mean = 0;
  Neighbours neighbours{};
};

std::string name_of(const Row& row) {
  std::string name = row.norm.name;
  const auto add = [&name](auto... parts) { (name.append("/"), ..., name.append(parts)); };
  add(to_string(row.types.data));
  // The part of "channels_first" that tells it from the other.
  add(std::strchr(to_string(row.layout), '_') + 1);
  add(row.size.shape);
  if (row.norm.grouped) add("g", std::to_string(row.size.groups));
  if (row.types.param != row.types.data) add("params_", to_string(row.types.param));
  if (row.activation != Activation::none) add(to_string(row.activation));
  if (row.correction != 0) add("unbiased");
  if (!row.params.gamma) add("no_gamma");
  if (!row.params.beta) add("no_beta");
  if (row.params.adaptive) add("adaptive");
  if (row.params.padding != 0) add("padded", std::to_string(row.params.padding));
  if (row.mean != 0) add("mean", std::to_string(static_cast<std::int64_t>(row.mean)));
  const Neighbours& neighbours = row.neighbours;
  if (neighbours.skip) add("skip");
  if (neighbours.shift) add("shift");
  if (neighbours.residual) add("residual");
  if (neighbours.scale) add("scale");
  if (neighbours.offset) add("offset");
  if (neighbours.sum) add("sum");
  if (neighbours.lengths) add("lengths");
  if (neighbours.sequence != 1) add("sequence", std::to_string(neighbours.sequence));
  return name;
}

// Adds the row, unless its norm has no meaning there: groups that do not divide, one element
// divided by m - 1, or sequences that hold no whole blocks.
bool add(const Row& row, std::vector<Case>* list) {
  const std::optional<Shape> shape = parse_shape(row.size.shape);
  assert(shape.has_value());
  const Block block = row.norm.block(*shape, row.size.groups);
  const Neighbours& neighbours = row.neighbours;
  if (block.examples == kDoesNotDivide || block.channels == kDoesNotDivide) return false;
  if (row.correction == 1 && block.examples * block.channels * shape->s < 2) return false;
  const std::int64_t sequence = neighbours.sequence;
  if (shape->n % sequence != 0) return false;
  const bool one_call = !neighbours.lengths && (sequence == 1 || sequence == shape->n);
  const bool whole = neighbours.lengths ? block.examples == 1 : sequence % block.examples == 0;
  const bool given = row.norm.given_statistics && block.examples % sequence == 0;
  if (!one_call && !whole && !given) return false;
  const Spec spec{.shape = *shape,
                  .block = block,
                  .layout = row.layout,
                  .data = row.types.data,
                  .param = row.types.param,
                  .activation = row.activation,
                  .center = row.norm.center,
                  .given_statistics = row.norm.given_statistics,
                  .correction = row.correction,
                  .param_stride = row.params.adaptive ? shape->c + row.params.padding : 0,
                  .sequence = neighbours.sequence,
                  .shift = neighbours.shift,
                  .scale = neighbours.scale || neighbours.offset,
                  .lengths = neighbours.lengths};
  list->push_back({.name = name_of(row),
                   .spec = spec,
                   .mean = row.mean,
                   .gamma = row.params.gamma,
                   .beta = row.params.beta,
                   .skip = neighbours.skip,
                   .residual = neighbours.residual,
                   .scale = neighbours.scale,
                   .offset = neighbours.offset,
                   .sum = neighbours.sum});
  return true;
}

// The largest |mean| / deviation of a dtype: beyond it, its numbers near the mean are too far apart
// to say anything (and f16 ends at 65504).
double largest_mean(DType dtype) { return dtype == DType::f32 || dtype == DType::f64 ? 1e5 : 1e2; }

void add_norms(Layout layout, std::vector<Case>* list) {
  for (const Norm& norm : kNorms) {
    for (const Types& types : kTypes) {
      for (const Size& size : kSmallSizes) {
        add({.norm = norm, .size = size, .layout = layout, .types = types}, list);
      }
      for (const double mean : {1.0, 1e2, 1e3, 1e4, 1e5}) {
        if (types.param != types.data || mean > largest_mean(types.data)) continue;
        add({.norm = norm, .size = kLongSize, .layout = layout, .types = types, .mean = mean},
            list);
      }
    }
    for (const Size& size : {kActivationSize, kLongSize}) {
      add({.norm = norm, .size = size, .layout = layout, .correction = 1}, list);
    }
    for (const Params& params : kOtherParams) {
      add({.norm = norm, .size = kActivationSize, .layout = layout, .params = params}, list);
    }
  }
}

void add_activations(Layout layout, std::vector<Case>* list) {
  for (const Types& types : kTypes) {
    for (const auto& activation : kActivations) {
      if (activation.value == Activation::none) continue;
      for (const Params& params : {kShared, kOtherParams[2], kOtherParams[3]}) {
        add({.size = kActivationSize,
             .layout = layout,
             .types = types,
             .activation = activation.value,
             .params = params},
            list);
      }
    }
    for (const Params& params : kOtherParams) {
      if (types.data == DType::f32) continue;  // add_norms has them
      add({.size = kActivationSize, .layout = layout, .types = types, .params = params}, list);
    }
  }
}

void add_models(Layout layout, std::vector<Case>* list) {
  for (const Size& size : kModelSizes) {
    for (const Types& types : {kTypes[0], kTypes[5]}) {
      add({.size = size, .layout = layout, .types = types}, list);
    }
    add({.size = size, .layout = layout, .activation = Activation::silu, .mean = 10}, list);
  }
}

// SplitMix64's finalizer (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
// 2014).
constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

// Any one of them, by the next digits of `*random`.
const auto& pick(const auto& values, std::uint64_t* random) {
  const std::uint64_t size = std::size(values), digit = *random % size;
  *random /= size;
  return values[digit];
}

// Every combination of neighbours, each with some value of every other axis: of norms and sizes
// that take them.
void add_neighbours(Layout layout, std::vector<Case>* list) {
  constexpr Size kSizes[] = {{"6x8x5x7", 2},   {"4x12x1x17", 4}, {"6x6", 3},   {"4x20x65", 5},
                             {"2x512", 32},    {"4x64x2", 4},    {"12x39", 3}, {"2x4x41x43", 2},
                             {"2x30x17x9", 3}, {"6x3x101", 3},   {"2x2x3", 1}, {"4x1x8", 1}};
  constexpr Params kParams[] = {kShared,         kShared,         kOtherParams[0], kOtherParams[1],
                                kOtherParams[2], kOtherParams[3], kOtherParams[4]};
  constexpr double kMeans[] = {0, 1, 1e2, 1e4};
  constexpr std::int64_t kSequences[] = {1, 1, 1, 2, 4, 6};
  for (std::uint64_t combination = 1; combination < 128; ++combination) {
    const auto has = [&](unsigned bit) { return (combination >> bit & 1U) != 0; };
    for (std::uint64_t attempt = 0;; ++attempt) {
      std::uint64_t random = mix(combination + 128 * (2 * attempt + static_cast<unsigned>(layout)));
      Row row{.norm = pick(kNorms, &random),
              .size = pick(kSizes, &random),
              .layout = layout,
              .types = pick(kTypes, &random),
              .activation = pick(kActivations, &random).value,
              .correction = static_cast<int>(pick(std::array{0, 0, 1}, &random)),
              .params = pick(kParams, &random),
              .mean = pick(kMeans, &random),
              .neighbours = {.skip = has(0),
                             .shift = has(1),
                             .residual = has(2),
                             .scale = has(3),
                             .offset = has(4),
                             .sum = has(5),
                             .lengths = has(6),
                             .sequence = pick(kSequences, &random)}};
      row.mean = std::min(row.mean, largest_mean(row.types.data));
      if (add(row, list)) break;
    }
  }
  // Large enough to be shared between threads.
  for (const Size& size : {Size{"1x4x100x400", 2}, Size{"3x16x61x67", 4}}) {
    Row row{.size = size, .layout = layout, .activation = Activation::silu, .mean = 10};
    row.neighbours = {.skip = true, .shift = true, .residual = true, .scale = true, .offset = true};
    add(row, list);
    row.neighbours.sum = row.neighbours.lengths = true;
    add(row, list);
  }
}

// ---- Data ---------------------------------------------------------------------------------------

// Random numbers by position: integers until the end, so that every machine has the same bits.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) : start_(mix(seed) + mix(~stream)) {}

  // Nearly N(0, 1): the sum of 12 uniform numbers less 6, a multiple of 2^-32 within +-6.
  double normal(std::int64_t index) const {
    constexpr std::uint64_t kLow = 0xFFFFFFFFU;
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < 6; ++i) {
      const auto position = static_cast<std::uint64_t>(index) * 6 + i;
      const std::uint64_t bits = mix(start_ + position * 0x9E3779B97F4A7C15U);
      sum += (bits & kLow) + (bits >> 32);
    }
    return static_cast<double>(sum) * 0x1p-32 - 6;
  }

 private:
  std::uint64_t start_;
};

// What each tensor's numbers are drawn from.
enum Stream : std::uint64_t {
  kX,
  kGamma,
  kBeta,
  kMean,
  kRstd,
  kDy,
  kSkip,
  kShift,
  kResidual,
  kScale,
  kOffset,
  kLengths,
  kDsum
};

std::size_t bytes_of(DType dtype, std::int64_t count) {
  return static_cast<std::size_t>(count * detail::size_of(dtype));
}

// A deviation of few bits makes the product exact, so that a fused multiply-add changes nothing.
Buffer normal_buffer(DType dtype, std::int64_t count, const Random& random, double mean,
                     double deviation) {
  Buffer buffer(bytes_of(dtype, count));
  detail::visit(dtype, [&](auto element) {
    using T = decltype(element);
    T* const out = reinterpret_cast<T*>(buffer.data());
    for (std::int64_t i = 0; i < count; ++i) {
      detail::from_double(mean + deviation * random.normal(i), out + i);
    }
  });
  return buffer;
}

// Rows of gamma (with param_stride), shift, scale and offset.
std::int64_t rows_of(const Spec& spec) { return spec.shape.n / spec.sequence; }

// Elements of gamma, with what lies between its rows.
std::int64_t params_of(const Spec& spec) {
  return spec.param_stride == 0 ? spec.shape.c : rows_of(spec) * spec.param_stride;
}

std::int64_t blocks_of(const Spec& spec) {
  const auto [n, c, s] = spec.shape;
  if (n == 0 || c == 0 || s == 0) return 0;
  return n / spec.block.examples * (c / spec.block.channels);
}

// None so short that correction leaves nothing to divide by.
std::vector<std::int64_t> make_lengths(const Spec& spec, std::uint64_t seed) {
  const std::int64_t all = spec.sequence == 1 ? spec.shape.s : spec.sequence;
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(rows_of(spec)));
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const double part = std::fabs(Random(seed, kLengths).normal(static_cast<std::int64_t>(i))) / 3;
    const auto some = static_cast<std::int64_t>(part * static_cast<double>(all));
    lengths[i] = i % 4 == 1 ? 0 : all;
    if (i % 2 == 0) lengths[i] = std::clamp(some, std::min<std::int64_t>(2, all), all);
  }
  return lengths;
}

// Where activation' jumps.
std::span<const double> jumps(Activation activation) {
  static constexpr double kRelu[] = {0}, kHardSwish[] = {-3, 3};
  if (activation == Activation::relu) return kRelu;
  if (activation == Activation::hard_swish) return kHardSwish;
  return {};
}

// Points a Forward or a Backward at what data holds for both.
template <class Args>
void connect_inputs(const Inputs& data, Args* args) {
  for (const auto& input : kInputs<Args>) args->*input.pointer = (data.*input.buffer).data();
  args->lengths = data.lengths.empty() ? nullptr : data.lengths.data();
}

// Points data->forward at what data holds.
void connect(const Spec& spec, Data* data) {
  Forward& forward = data->forward;
  connect_inputs(*data, &forward);
  forward.y = data->y.data();
  forward.sum = data->sum.data();
  if (spec.given_statistics) {
    forward.given_mean = data->mean.data();
    forward.given_rstd = data->rstd.data();
  } else {
    forward.mean = data->mean.data();
    forward.rstd = data->rstd.data();
  }
}

void connect(GradientData* data) {
  Backward& backward = data->backward;
  connect_inputs(*data, &backward);
  for (const Output& output : kGradients) {
    backward.*output.pointer = (data->*output.buffer).data();
  }
  backward.dy = data->dy.data();
  backward.dsum = data->dsum.data();
  backward.mean = data->mean.data();
  backward.rstd = data->rstd.data();
}

// Of the size of `buffer`, or none.
Buffer like(const Buffer& buffer) {
  return buffer.data() == nullptr ? Buffer() : Buffer(buffer.size());
}

// `rows` runs of `run` elements, `stride` elements from one start to the next.
struct Runs {
  std::int64_t start, rows, run, stride;
};

Buffer gather(DType dtype, const void* from, const Runs& runs) {
  if (from == nullptr) return {};
  Buffer buffer(bytes_of(dtype, runs.rows * runs.run));
  const std::size_t bytes = bytes_of(dtype, runs.run);
  const std::byte* source = static_cast<const std::byte*>(from) + bytes_of(dtype, runs.start);
  for (std::int64_t row = 0; row < runs.rows; ++row) {
    std::memcpy(buffer.data() + static_cast<std::size_t>(row) * bytes,
                source + bytes_of(dtype, row * runs.stride), bytes);
  }
  return buffer;
}

// ---- Comparison ---------------------------------------------------------------------------------

constexpr double kEps32 = 0x1p-23;
constexpr double kEps64 = 0x1p-52;

// How much an activation enlarges an error in its argument: the maximum of |act'|.
double largest_slope(Activation activation) {
  switch (activation) {
    case Activation::silu: return 1.09984;     // at z = 2.3994
    case Activation::gelu: return 1.12891;     // at z = sqrt(2)
    case Activation::gelu_tanh: return 1.129;  // at z = 1.4185
    case Activation::hard_swish: return 1.5;   // at z = 3
    case Activation::none:
    case Activation::relu: break;
  }
  return 1;
}

// f32: the engine's promise of 3; docs/numerics.md derives it.
double f32_bound(const Spec& spec) { return 3 * largest_slope(spec.activation); }

// f64: the same 3, and one more because the mean is held as one double, by the engine and by the
// reference: half an eps of |mean| * rstd each, which is why the unit grows with it.
double f64_bound(const Spec& spec) { return 4 * largest_slope(spec.activation); }

// Gradients, f32 and f64: docs/numerics.md derives it.
constexpr double kGradientUnits = 4;

// The place of a 16-bit number among all of its format, in order; both zeros are 0.
template <class T>
int ordinal(T value) {
  const int magnitude = value.bits & 0x7FFF;
  return (value.bits & 0x8000) != 0 ? -magnitude : magnitude;
}

template <class T>
double value_at(int ordinal) {
  const auto sign = static_cast<std::uint16_t>(ordinal < 0 ? 0x8000 : 0);
  const auto magnitude = static_cast<std::uint16_t>(std::abs(ordinal));
  return detail::to_double(T{static_cast<std::uint16_t>(sign | magnitude)});
}

// What one element is held against.
struct Exact {
  double value, scale;
  double mean_over_deviation;  // |mean| * rstd of its block
};

double error_of(float actual, const Exact& exact, double) {
  return std::fabs(static_cast<double>(actual) - exact.value) / (kEps32 * exact.scale);
}

double error_of(double actual, const Exact& exact, double) {
  return std::fabs(actual - exact.value) / (kEps64 * (exact.scale + exact.mean_over_deviation));
}

template <class T>
double error_of(T actual, const Exact& exact, double f32_units) {
  T rounded;
  detail::from_double(exact.value, &rounded);
  const int nearest = ordinal(rounded);
  const int steps = std::abs(ordinal(actual) - nearest);
  if (steps <= 1) return steps;
  const double step = value_at<T>(std::abs(nearest) + 1) - value_at<T>(std::abs(nearest));
  const double allowed = f32_units * kEps32 * exact.scale + step / 2;
  return std::fabs(detail::to_double(actual) - exact.value) <= allowed ? 1 : steps;
}

template <class T>
double error_or_infinite(T actual, const Exact& exact, double f32_units) {
  T rounded;
  detail::from_double(exact.value, &rounded);
  const double expected = detail::to_double(rounded), got = detail::to_double(actual);
  if (std::isfinite(expected) && std::isfinite(got)) return error_of(actual, exact, f32_units);
  const bool same = std::isnan(expected) ? std::isnan(got) : expected == got;
  return same ? 0 : std::numeric_limits<double>::infinity();
}

// What a tensor is held against: element i, of `count`, is at exact_at(i).index and should be
// exact_at(i).exact; `f32_units` is what f32 may be off.
struct Place {
  std::int64_t index;
  Exact exact;
};

template <class ExactAt>
Comparison worst_of(DType dtype, const void* tensor, std::int64_t count, double f32_units,
                    const ExactAt& exact_at) {
  Comparison worst{.error = -1};
  detail::visit(dtype, [&](auto element) {
    using T = decltype(element);
    const T* const actual = static_cast<const T*>(tensor);
    for (std::int64_t i = 0; i < count; ++i) {
      const Place place = exact_at(i);
      const double error = error_or_infinite(actual[place.index], place.exact, f32_units);
      if (error <= worst.error) continue;
      worst.error = error;
      worst.index = place.index;
      worst.expected = place.exact.value;
      worst.actual = detail::to_double(actual[place.index]);
    }
  });
  worst.error = std::max(worst.error, 0.0);
  return worst;
}

// One eps of it is the smallest number of the dtype that computes.
double least_scale(DType dtype) {
  return dtype == DType::f64 ? std::numeric_limits<double>::min()
                             : static_cast<double>(std::numeric_limits<float>::min());
}

Comparison worst_gradient(DType dtype, const char* name, const void* tensor, std::int64_t count,
                          const auto& place) {
  Comparison worst = worst_of(dtype, tensor, count, kGradientUnits, [&](std::int64_t i) {
    Place at = place(i);
    at.exact.scale = std::max(least_scale(dtype), at.exact.scale);
    return at;
  });
  worst.bound = gradient_bound(dtype);
  worst.tensor = name;
  worst.dtype = dtype;
  return worst;
}

std::int64_t block_of(const Spec& spec, std::int64_t index) {
  const auto [n, c, s] = spec.shape;
  const std::int64_t example = index / (c * s);
  const std::int64_t channel = spec.layout == Layout::channels_first ? index / s % c : index % c;
  return example / spec.block.examples * (c / spec.block.channels) + channel / spec.block.channels;
}

template <class T>
auto bits_of(T element) {
  if constexpr (sizeof(T) == 8) {
    return std::bit_cast<std::uint64_t>(element);
  } else if constexpr (sizeof(T) == 4) {
    return std::bit_cast<std::uint32_t>(element);
  } else {
    return std::bit_cast<std::uint16_t>(element);
  }
}

template <class T>
std::string bits_and_value(T element) {
  char text[64];
  std::snprintf(text, sizeof(text), "0x%0*llx (%.17g)", static_cast<int>(2 * sizeof(T)),
                static_cast<unsigned long long>(bits_of(element)), detail::to_double(element));
  return text;
}

}  // namespace

std::span<const Norm> norms() { return kNorms; }

bool has_neighbours(const Case& c) {
  const Spec& spec = c.spec;
  return c.skip || c.residual || c.sum || spec.shift || spec.scale || spec.lengths ||
         spec.sequence != 1;
}

std::optional<Shape> parse_shape(std::string_view text) {
  Shape shape{.n = 0, .c = 0, .s = 1};
  const char* at = text.data();
  const char* const end = at + text.size();
  int rank = 0;
  for (;; ++at, ++rank) {
    std::int64_t size = 0;
    const auto [next, error] = std::from_chars(at, end, size);
    if (error != std::errc{} || size < 0) return std::nullopt;
    if (rank == 0) {
      shape.n = size;
    } else if (rank == 1) {
      shape.c = size;
    } else if (size != 0 && shape.s > std::numeric_limits<std::int64_t>::max() / size) {
      return std::nullopt;
    } else {
      shape.s *= size;
    }
    at = next;
    if (at == end) break;
    if (*at != 'x') return std::nullopt;
  }
  return rank >= 1 ? std::optional(shape) : std::nullopt;
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const auto& layout : kLayouts) {
    add_norms(layout.value, &list);
    add_activations(layout.value, &list);
    add_models(layout.value, &list);
    add_neighbours(layout.value, &list);
  }
  return list;
}

Data make_data(const Case& c, std::uint64_t seed) {
  const Spec& spec = c.spec;
  const auto [n, channels, s] = spec.shape;
  const std::int64_t elements = n * channels * s, params = params_of(spec);
  const std::int64_t in_rows = rows_of(spec) * channels;
  const auto normal = [&](Stream stream, DType dtype, std::int64_t count, double mean,
                          double deviation) {
    return normal_buffer(dtype, count, Random(seed, stream), mean, deviation);
  };
  Data data;
  data.x = normal(kX, spec.data, elements, c.mean, c.deviation);
  data.y = Buffer(data.x.size());
  if (c.gamma) data.gamma = normal(kGamma, spec.param, params, 1, 0.5);
  if (c.beta) data.beta = normal(kBeta, spec.param, params, 0, 0.5);
  if (c.skip) data.skip = normal(kSkip, spec.data, elements, -c.mean, c.deviation);
  if (spec.shift) data.shift = normal(kShift, spec.data, in_rows, 0, c.deviation);
  if (c.residual) data.residual = normal(kResidual, spec.data, elements, 0, 1);
  if (c.scale) data.scale = normal(kScale, spec.param, in_rows, 0, 0.25);
  if (c.offset) data.offset = normal(kOffset, spec.param, in_rows, 0, 0.5);
  if (c.sum) data.sum = Buffer(data.x.size());
  if (spec.lengths) data.lengths = make_lengths(spec, seed);
  const std::int64_t blocks = blocks_of(spec);
  data.mean.resize(static_cast<std::size_t>(blocks));
  data.rstd.resize(data.mean.size());
  if (spec.given_statistics) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const auto i = static_cast<std::size_t>(b);
      const double shift = Random(seed, kMean).normal(b) / 8;
      const double spread = 1 + Random(seed, kRstd).normal(b) / 16;
      data.mean[i] = (c.skip ? 0 : c.mean) + c.deviation * shift;
      data.rstd[i] = 1 / (c.deviation * spread);
    }
  }
  connect(spec, &data);
  return data;
}

GradientData make_gradient_data(const Case& c, std::uint64_t seed) {
  return make_gradient_data(c, make_data(c, seed), seed);
}

GradientData make_gradient_data(const Case& c, Data data, std::uint64_t seed) {
  const Spec& spec = c.spec;
  const std::int64_t elements = spec.shape.n * spec.shape.c * spec.shape.s;
  GradientData gradient;
  gradient.dy = normal_buffer(spec.data, elements, Random(seed, kDy), 0, 1);
  if (c.sum) gradient.dsum = normal_buffer(spec.data, elements, Random(seed, kDsum), 0, 1);

  Spec linear = spec;  // whose y is z
  linear.activation = Activation::none;
  const detail::ReferenceResult z = detail::reference_forward(linear, data.forward);
  const double nearness = 8 * (spec.data == DType::f64 ? kEps64 : kEps32);
  for (const double jump : jumps(spec.activation)) {
    for (std::size_t i = 0; i < z.y.size(); ++i) {
      if (std::fabs(z.y[i] - jump) > nearness * z.scale[i]) continue;
      detail::store_element(spec.data, gradient.dy.data(), static_cast<std::int64_t>(i), 0);
    }
  }

  static_cast<Inputs&>(gradient) = std::move(data);
  gradient.mean = z.mean;
  gradient.rstd = z.rstd;
  const std::size_t params = bytes_of(spec.param, params_of(spec));
  gradient.dx = like(gradient.x);
  gradient.dgamma = Buffer(params);
  gradient.dbeta = Buffer(params);
  gradient.dresidual = like(gradient.residual);
  gradient.dshift = like(gradient.shift);
  gradient.dscale = like(gradient.scale);
  gradient.doffset = like(gradient.offset);
  connect(&gradient);
  return gradient;
}

Extract extract_block(const Spec& spec, const Forward& forward, std::int64_t block) {
  const auto [n, c, s] = spec.shape;
  const auto [examples, channels] = spec.block;
  const std::int64_t first_example = block / (c / channels) * examples;
  const std::int64_t first_channel = block % (c / channels) * channels;
  const bool channels_first = spec.layout == Layout::channels_first;
  const Runs elements =
      channels_first ? Runs{(first_example * c + first_channel) * s, examples, channels * s, c * s}
                     : Runs{first_example * s * c + first_channel, examples * s, channels, c};
  const Runs params{first_example * spec.param_stride + first_channel,
                    spec.param_stride == 0 ? 1 : examples, channels, spec.param_stride};
  Extract extract{.spec = spec,
                  .data = {},
                  .start = elements.start,
                  .run = elements.run,
                  .stride = elements.stride};
  extract.spec.shape = {examples, channels, s};
  extract.spec.param_stride = spec.param_stride == 0 ? 0 : channels;
  Data& data = extract.data;
  data.x = gather(spec.data, forward.x, elements);
  data.y = gather(spec.data, forward.y, elements);
  data.gamma = gather(spec.param, forward.gamma, params);
  data.beta = gather(spec.param, forward.beta, params);
  if (forward.given_mean != nullptr) data.mean = {forward.given_mean[block]};
  if (forward.given_rstd != nullptr) data.rstd = {forward.given_rstd[block]};
  connect(extract.spec, &data);
  return extract;
}

double error_bound(const Spec& spec) {
  switch (spec.data) {
    case DType::f64: return f64_bound(spec);
    case DType::f16:
    case DType::bf16: return 1;
    case DType::f32: break;
  }
  return f32_bound(spec);
}

Comparison compare(const Spec& spec, const detail::ReferenceResult& reference, const void* y) {
  const auto place = [&](std::int64_t index) {
    const auto i = static_cast<std::size_t>(index);
    Place at{index, {reference.y[i], reference.scale[i], 0}};
    if (spec.data == DType::f64) {
      const auto block = static_cast<std::size_t>(block_of(spec, index));
      at.exact.mean_over_deviation = std::fabs(reference.mean[block]) * reference.rstd[block];
    }
    return at;
  };
  const auto count = static_cast<std::int64_t>(reference.y.size());
  Comparison worst = worst_of(spec.data, y, count, f32_bound(spec), place);
  worst.bound = error_bound(spec);
  worst.dtype = spec.data;
  return worst;
}

double gradient_bound(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 ? kGradientUnits : 1;
}

Comparison compare_gradient(const Spec& spec, const detail::ReferenceGradient& reference,
                            const Backward& args) {
  const auto dx = [&](std::int64_t i) {
    const auto block = static_cast<std::size_t>(block_of(spec, i));
    return Place{i, {reference.dx[static_cast<std::size_t>(i)], reference.dx_scale[block], 0}};
  };
  // Rows of c numbers, `stride` apart.
  const auto rows = [&](std::int64_t stride, const std::vector<double>& values,
                        const std::vector<double>& scales) {
    return [&, stride](std::int64_t i) {
      const std::int64_t c = spec.shape.c;
      const std::int64_t index = i / c * stride + i % c;
      const auto at = static_cast<std::size_t>(index);
      return Place{index, {values[at], scales[at], 0}};
    };
  };
  Comparison worst{.error = -1, .bound = 1};
  const auto take = [&](DType dtype, const char* name, const void* tensor, std::int64_t count,
                        const auto& place) {
    if (tensor == nullptr) return;
    const Comparison next = worst_gradient(dtype, name, tensor, count, place);
    if (next.error / next.bound > worst.error / worst.bound) worst = next;
  };
  const auto elements = static_cast<std::int64_t>(reference.dx.size());
  const std::int64_t c = spec.shape.c, stride = spec.param_stride;
  const std::int64_t in_rows = rows_of(spec) * c, params = stride == 0 ? c : in_rows;
  take(spec.data, "dx", args.dx, elements, dx);
  take(spec.param, "dgamma", args.dgamma, params,
       rows(stride, reference.dgamma, reference.dgamma_scale));
  take(spec.param, "dbeta", args.dbeta, params,
       rows(stride, reference.dbeta, reference.dbeta_scale));
  take(spec.data, "dresidual", args.dresidual, elements,
       rows(c, reference.dresidual, reference.dresidual_scale));
  take(spec.data, "dshift", args.dshift, in_rows,
       rows(c, reference.dshift, reference.dshift_scale));
  take(spec.param, "dscale", args.dscale, in_rows,
       rows(c, reference.dscale, reference.dscale_scale));
  take(spec.param, "doffset", args.doffset, in_rows,
       rows(c, reference.doffset, reference.doffset_scale));
  worst.error = std::max(worst.error, 0.0);
  return worst;
}

std::string difference(DType dtype, const void* actual, const void* expected, std::size_t bytes) {
  return detail::visit(dtype, [&](auto element) -> std::string {
    using T = decltype(element);
    const auto* const a = static_cast<const T*>(actual);
    const auto* const b = static_cast<const T*>(expected);
    for (std::size_t i = 0; i < bytes / sizeof(T); ++i) {
      if (bits_of(a[i]) == bits_of(b[i])) continue;
      return "at " + std::to_string(i) + ": " + bits_and_value(a[i]) + ", not " +
             bits_and_value(b[i]);
    }
    return {};
  });
}

}  // namespace groupnorm::testing
