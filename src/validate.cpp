#include "validate.h"

#include "dtype.h"

#include <array>
#include <cmath>
#include <limits>

namespace groupnorm {
namespace detail {
namespace {

constexpr std::int64_t kMaxSize = std::numeric_limits<std::int64_t>::max();

// a * b of sizes that are not negative; false where it passes 2^63 - 1.
bool multiply(std::int64_t a, std::int64_t b, std::int64_t* product) {
  if (a != 0 && b > kMaxSize / a) return false;
  *product = a * b;
  return true;
}

template <class Enum>
bool known(Enum value, Enum last) {
  return value <= last;
}

bool fits(const Spec& spec) {
  const auto [n, c, s] = spec.shape;
  // Every partial product too: strides are n * c and c * s, and an empty axis hides nothing.
  std::int64_t nc = 0, cs = 0, ns = 0, elements = 0, bytes = 0;
  if (!multiply(n, c, &nc) || !multiply(c, s, &cs) || !multiply(n, s, &ns)) return false;
  if (!multiply(nc, s, &elements)) return false;
  if (!multiply(elements, size_of(spec.data), &bytes)) return false;
  std::int64_t params = 0;
  return multiply(n, std::max(spec.param_stride, c), &params) &&
         multiply(params, size_of(spec.param), &bytes);
}

Status check_block(const Spec& spec) {
  const auto [n, c, s] = spec.shape;
  const auto [examples, channels] = spec.block;
  if (examples == kDoesNotDivide || channels == kDoesNotDivide) {
    return Status::groups_do_not_divide;
  }
  // A block of an empty tensor may be empty with it.
  if (examples < (n == 0 ? 0 : 1) || (examples > 0 && n % examples != 0)) {
    return Status::block_examples;
  }
  if (channels < (c == 0 ? 0 : 1) || (channels > 0 && c % channels != 0)) {
    return Status::block_channels;
  }
  const bool empty = n == 0 || c == 0 || s == 0;
  const bool one_element = examples * channels * s < 2;
  if (!empty && spec.correction == 1 && !spec.given_statistics && one_element) {
    return Status::too_few_elements;
  }
  return Status::ok;
}

struct Region {
  std::uintptr_t begin;
  std::uintptr_t bytes;
  bool touches(const Region& other) const {
    if (bytes == 0 || other.bytes == 0) return false;
    return begin < other.begin ? other.begin - begin < bytes : begin - other.begin < other.bytes;
  }
};

Region region(const void* data, std::int64_t bytes) {
  // A null pointer is an argument that was left out: it occupies nothing.
  return {reinterpret_cast<std::uintptr_t>(data),
          data == nullptr ? 0 : static_cast<std::uintptr_t>(bytes)};
}

bool misaligned(const void* data, std::int64_t size) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size) != 0;
}

std::int64_t tensor_bytes(const Spec& spec) {
  return spec.shape.n * spec.shape.c * spec.shape.s * size_of(spec.data);
}

std::int64_t param_bytes(const Spec& spec) {
  const std::int64_t last_example = (spec.shape.n - 1) * spec.param_stride;
  return (last_example + spec.shape.c) * size_of(spec.param);
}

// Whether an output touches an input or another output.
template <std::size_t kOutputs, std::size_t kInputs>
bool overlap(const std::array<Region, kOutputs>& outputs,
             const std::array<Region, kInputs>& inputs) {
  for (std::size_t i = 0; i < kOutputs; ++i) {
    for (const Region& input : inputs) {
      if (outputs[i].touches(input)) return true;
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (outputs[i].touches(outputs[j])) return true;
    }
  }
  return false;
}

}  // namespace

Status check_spec(const Spec& spec) noexcept {
  const auto [n, c, s] = spec.shape;
  if (n < 0 || c < 0 || s < 0) return Status::negative_size;
  if (!known(spec.data, DType::bf16) || !known(spec.param, DType::bf16)) {
    return Status::unknown_dtype;
  }
  if (!known(spec.layout, Layout::channels_last)) return Status::unknown_layout;
  if (!known(spec.activation, Activation::hard_swish)) return Status::unknown_activation;
  const bool narrow = spec.data == DType::f16 || spec.data == DType::bf16;
  if (spec.param != spec.data && !(narrow && spec.param == DType::f32)) return Status::param_dtype;
  if (spec.param_stride != 0 && spec.param_stride < c) return Status::param_stride;
  if (!fits(spec)) return Status::size_overflow;
  if (spec.correction != 0 && spec.correction != 1) return Status::correction;
  if (!std::isfinite(spec.eps) || spec.eps < 0) return Status::eps;
  return check_block(spec);
}

Status check_executor(const Executor& executor) noexcept {
  return executor.threads < 1 || executor.threads > kMaxThreads ? Status::executor : Status::ok;
}

Status check_forward(const Spec& spec, std::int64_t blocks, const Forward& args,
                     std::span<std::byte> workspace, std::size_t needed) noexcept {
  if (args.x == nullptr || args.y == nullptr) return Status::null_pointer;
  if (spec.given_statistics) {
    const bool missing = args.given_rstd == nullptr || (spec.center && args.given_mean == nullptr);
    if (missing) return Status::missing_statistics;
    if (args.mean != nullptr || args.rstd != nullptr) return Status::unexpected_statistics;
  } else if (args.given_mean != nullptr || args.given_rstd != nullptr) {
    return Status::unexpected_statistics;
  }
  const std::int64_t element = size_of(spec.data), param = size_of(spec.param);
  if (misaligned(args.x, element) || misaligned(args.y, element) || misaligned(args.gamma, param) ||
      misaligned(args.beta, param)) {
    return Status::misaligned_pointer;
  }
  for (const double* statistics :
       {static_cast<const double*>(args.mean), static_cast<const double*>(args.rstd),
        args.given_mean, args.given_rstd}) {
    if (misaligned(statistics, sizeof(double))) return Status::misaligned_pointer;
  }
  if (workspace.size() < needed || (needed > 0 && workspace.data() == nullptr)) {
    return Status::workspace_too_small;
  }

  const std::int64_t bytes = tensor_bytes(spec), params = param_bytes(spec);
  const std::int64_t statistics_bytes = blocks * static_cast<std::int64_t>(sizeof(double));
  const Region x = region(args.x, bytes), y = region(args.y, bytes);
  const std::array outputs{y, region(args.mean, statistics_bytes),
                           region(args.rstd, statistics_bytes),
                           region(workspace.data(), static_cast<std::int64_t>(workspace.size()))};
  const std::array inputs{region(args.gamma, params), region(args.beta, params),
                          region(args.given_mean, statistics_bytes),
                          region(args.given_rstd, statistics_bytes)};
  if (args.x != args.y && x.touches(y)) return Status::overlap;
  for (std::size_t i = 1; i < outputs.size(); ++i) {
    if (outputs[i].touches(x)) return Status::overlap;
  }
  return overlap(outputs, inputs) ? Status::overlap : Status::ok;
}

Status check_backward_of_nothing(const Spec& spec, const Backward& args) noexcept {
  const std::int64_t param = size_of(spec.param);
  if (misaligned(args.dgamma, param) || misaligned(args.dbeta, param)) {
    return Status::misaligned_pointer;
  }
  const bool none = spec.shape.c == 0 || (spec.shape.n == 0 && spec.param_stride != 0);
  const std::int64_t params = none ? 0 : param_bytes(spec);
  const bool touch = region(args.dgamma, params).touches(region(args.dbeta, params));
  return touch ? Status::overlap : Status::ok;
}

Status check_backward(const Spec& spec, std::int64_t blocks, const Backward& args,
                      std::span<std::byte> workspace, std::size_t needed) noexcept {
  if (args.x == nullptr || args.dy == nullptr) return Status::null_pointer;
  if (args.rstd == nullptr || (spec.center && args.mean == nullptr)) {
    return Status::missing_statistics;
  }
  const std::int64_t element = size_of(spec.data), param = size_of(spec.param);
  for (const void* tensor : {args.x, args.dy, static_cast<const void*>(args.dx)}) {
    if (misaligned(tensor, element)) return Status::misaligned_pointer;
  }
  for (const void* params : {args.gamma, args.beta, static_cast<const void*>(args.dgamma),
                             static_cast<const void*>(args.dbeta)}) {
    if (misaligned(params, param)) return Status::misaligned_pointer;
  }
  for (const double* statistics : {args.mean, args.rstd}) {
    if (misaligned(statistics, sizeof(double))) return Status::misaligned_pointer;
  }
  if (workspace.size() < needed || (needed > 0 && workspace.data() == nullptr)) {
    return Status::workspace_too_small;
  }

  const std::int64_t bytes = tensor_bytes(spec), params = param_bytes(spec);
  const std::int64_t statistics = blocks * static_cast<std::int64_t>(sizeof(double));
  const Region dx = region(args.dx, bytes), dy = region(args.dy, bytes);
  const std::array outputs{dx, region(args.dgamma, params), region(args.dbeta, params),
                           region(workspace.data(), static_cast<std::int64_t>(workspace.size()))};
  const std::array inputs{region(args.x, bytes), region(args.gamma, params),
                          region(args.beta, params), region(args.mean, statistics),
                          region(args.rstd, statistics)};
  if (args.dx != args.dy && dx.touches(dy)) return Status::overlap;
  for (std::size_t i = 1; i < outputs.size(); ++i) {
    if (outputs[i].touches(dy)) return Status::overlap;
  }
  return overlap(outputs, inputs) ? Status::overlap : Status::ok;
}

}  // namespace detail

const char* status_string(Status status) noexcept {
  switch (status) {
    case Status::ok: return "ok";
    case Status::negative_size: return "shape: n, c and s must not be negative";
    case Status::size_overflow:
      return "shape: the bytes of x, or of gamma with its stride, must stay below 2^63";
    case Status::groups_do_not_divide:
      return "groups: must be at least 1 and divide the channels (virtual batches: the examples)";
    case Status::block_examples: return "block.examples: must be at least 1 and divide n";
    case Status::block_channels: return "block.channels: must be at least 1 and divide c";
    case Status::unknown_dtype: return "data, param: must be f32, f64, f16 or bf16";
    case Status::unknown_layout: return "layout: must be channels_first or channels_last";
    case Status::unknown_activation:
      return "activation: must be none, relu, silu, gelu, gelu_tanh or hard_swish";
    case Status::param_dtype:
      return "param: gamma and beta must be of the data's dtype, or f32 beside f16 and bf16";
    case Status::param_stride: return "param_stride: must be 0, or at least c";
    case Status::correction: return "correction: must be 0 (divide by m) or 1 (divide by m - 1)";
    case Status::too_few_elements:
      return "correction: 1 divides by m - 1 and needs two elements a block";
    case Status::eps: return "eps: must be finite and not negative";
    case Status::unknown_target: return "target: no instruction set of this library has that name";
    case Status::unavailable_target:
      return "target: this machine or this build does not have that instruction set";
    case Status::null_pointer: return "x, y, dy (and spec, plan, args): must not be null";
    case Status::missing_statistics:
      return "given_mean, given_rstd (backward: mean, rstd): must be passed where they are read";
    case Status::unexpected_statistics:
      return "mean, rstd: written where statistics are computed, given_* read where they are given";
    case Status::misaligned_pointer: return "every pointer must be aligned to its element's size";
    case Status::overlap:
      return "outputs and workspace must not overlap other arguments (y == x and dx == dy are "
             "allowed)";
    case Status::workspace_too_small: return "workspace: must hold plan.workspace_bytes() bytes";
    case Status::executor: return "executor: threads must be from 1 to 1024";
    case Status::not_planned: return "plan: default-constructed; make it with Plan::make";
    case Status::not_built: return "this build (edge) has forward on f32 alone";
  }
  return "unknown status";
}

}  // namespace groupnorm
