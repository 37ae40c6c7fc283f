#include "validate.h"

#include "dtype.h"

#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string_view>

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

// Bytes of an array; as many as there can be where there would be more.
std::int64_t bytes_of(std::int64_t count, std::int64_t element) {
  std::int64_t bytes = 0;
  return multiply(count, element, &bytes) ? bytes : kMaxSize;
}

template <NamedEnum Enum>
bool known(Enum value) {
  return row_of(value) != nullptr;
}

// "data: must be f32, f64, f16 or bf16": every name of the enumeration, in the order of its table.
// A text that is too long for the array does not compile.
template <NamedEnum Enum>
constexpr auto must_be(std::string_view argument) {
  std::array<char, 80> text{};
  std::size_t size = 0;
  const auto add = [&](std::string_view part) {
    for (const char c : part) text[size++] = c;
  };
  const auto& names = *kNames<Enum>;
  add(argument);
  add(": must be ");
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) add(i + 1 < names.size() ? ", " : " or ");
    add(names[i].name);
  }
  text[size] = '\0';
  return text;
}
constexpr auto kDataRule = must_be<DType>("data");
constexpr auto kParamRule = must_be<DType>("param");
constexpr auto kLayoutRule = must_be<Layout>("layout");
constexpr auto kActivationRule = must_be<Activation>("activation");

Status check_sizes(const Spec& spec) {
  const auto [n, c, s] = spec.shape;
  // Every partial product too: strides are n * c and c * s, and an empty axis hides nothing.
  std::int64_t nc = 0, cs = 0, ns = 0, elements = 0, bytes = 0;
  const bool x_fits = multiply(n, c, &nc) && multiply(c, s, &cs) && multiply(n, s, &ns) &&
                      multiply(nc, s, &elements) && multiply(elements, size_of(spec.data), &bytes);
  if (!x_fits) return Status::size_overflow;
  std::int64_t params = 0;
  const bool params_fit = multiply(n, std::max(spec.param_stride, c), &params) &&
                          multiply(params, size_of(spec.param), &bytes);
  return params_fit ? Status::ok : Status::param_overflow;
}

Status check_block(const Spec& spec) {
  const auto [n, c, s] = spec.shape;
  const auto [examples, channels] = spec.block;
  if (channels == kDoesNotDivide) return Status::groups_do_not_divide;
  if (examples == kDoesNotDivide) return Status::batches_do_not_divide;
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

// A sequence is a call of its own where it has lengths, or is one of several of more than one
// example: it holds whole blocks then. Or a block, whose statistics are given, holds whole
// sequences.
Status check_sequence(const Spec& spec) {
  const std::int64_t n = spec.shape.n, sequence = spec.sequence, examples = spec.block.examples;
  if (sequence < 1 || n % sequence != 0) return Status::sequence;
  const bool alone = spec.lengths || (sequence != 1 && sequence != n);
  const bool whole = examples == 0 || (spec.lengths ? examples == 1 : sequence % examples == 0);
  const bool given = spec.given_statistics && examples % sequence == 0;
  return alone && !whole && !given ? Status::sequence : Status::ok;
}

constexpr std::int64_t kDouble = sizeof(double);
constexpr std::int64_t kMoments = sizeof(Moments);
constexpr std::int64_t kBlockSums = sizeof(BlockSums);

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

// An argument that must begin at a multiple of its elements' size, and the answer where it does
// not.
struct Pointer {
  const void* data;
  std::int64_t element;  // bytes
  Status misaligned;
};

Status check_alignment(std::initializer_list<Pointer> pointers) {
  for (const auto& [data, element, misaligned] : pointers) {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    if (address % static_cast<std::uintptr_t>(element) != 0) return misaligned;
  }
  return Status::ok;
}

std::int64_t tensor_bytes(const Spec& spec) {
  return spec.shape.n * spec.shape.c * spec.shape.s * size_of(spec.data);
}

std::int64_t param_bytes(const Spec& spec) {
  const std::int64_t last_row = (spec.shape.n / spec.sequence - 1) * spec.param_stride;
  return (last_row + spec.shape.c) * size_of(spec.param);
}

// What is written, and the answer where it touches anything else.
struct Output {
  Region region;
  Status overlap;
};

// The first output may be one or more of `replaceable`, which begin where it does.
template <std::size_t kOutputs, std::size_t kInputs>
Status check_overlap(const std::array<Output, kOutputs>& outputs,
                     const std::array<Region, kInputs>& inputs,
                     std::initializer_list<Region> replaceable) {
  for (std::size_t i = 0; i < kOutputs; ++i) {
    const auto& [region, overlap] = outputs[i];
    for (const Region& input : replaceable) {
      const bool in_place = i == 0 && input.begin == region.begin;
      if (!in_place && region.touches(input)) return overlap;
    }
    for (const Region& input : inputs) {
      if (region.touches(input)) return overlap;
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (region.touches(outputs[j].region)) return overlap;
    }
  }
  return Status::ok;
}

// The arrays of sequences [n / sequence] and of rows for them [n / sequence, c].
std::int64_t sequence_bytes(const Spec& spec) {
  return bytes_of(spec.shape.n / spec.sequence, sizeof(std::int64_t));
}
std::int64_t row_bytes(const Spec& spec, DType dtype) {
  return spec.shape.n / spec.sequence * spec.shape.c * size_of(dtype);
}

// Each length must leave more elements in a block than the correction, or none.
Status check_lengths(const Spec& spec, const std::int64_t* lengths) {
  if (lengths == nullptr) return Status::ok;
  const bool of_positions = spec.sequence == 1;
  const std::int64_t most = of_positions ? spec.shape.s : spec.sequence;
  const std::int64_t each = spec.block.channels * (of_positions ? 1 : spec.shape.s);
  for (std::int64_t i = 0; i < spec.shape.n / spec.sequence; ++i) {
    if (lengths[i] < 0 || lengths[i] > most) return Status::lengths;
    const std::int64_t elements = of_positions ? each * lengths[i] : each;
    const bool few = lengths[i] > 0 && elements <= spec.correction;
    if (few && !spec.given_statistics) return Status::lengths;
  }
  return Status::ok;
}

// What forward and backward have of the neighbours. `shift` and `scale`: whether the call has
// something that its Spec must say.
template <class Args>
Status check_neighbours(const Spec& spec, const Args& args, bool shift, bool scale) {
  const std::int64_t element = size_of(spec.data), param = size_of(spec.param);
  const Status aligned = check_alignment({{args.skip, element, Status::misaligned_skip},
                                          {args.shift, element, Status::misaligned_shift},
                                          {args.residual, element, Status::misaligned_residual},
                                          {args.scale, param, Status::misaligned_scale},
                                          {args.offset, param, Status::misaligned_offset},
                                          {args.lengths, kDouble, Status::misaligned_lengths}});
  if (aligned != Status::ok) return aligned;
  if ((shift || args.shift != nullptr) && !spec.shift) return Status::unexpected_shift;
  const bool scales = scale || args.scale != nullptr || args.offset != nullptr;
  if (scales && !spec.scale) return Status::unexpected_scale;
  if (args.lengths != nullptr && !spec.lengths) return Status::unexpected_lengths;
  return check_lengths(spec, args.lengths);
}

bool too_small(std::span<std::byte> workspace, std::size_t needed) {
  return workspace.size() < needed || (needed > 0 && workspace.data() == nullptr);
}

}  // namespace

Status check_spec(const Spec& spec) noexcept {
  const auto [n, c, s] = spec.shape;
  if (n < 0 || c < 0 || s < 0) return Status::negative_size;
  if (!known(spec.data)) return Status::unknown_data;
  if (!known(spec.param)) return Status::unknown_param;
  if (!known(spec.layout)) return Status::unknown_layout;
  if (!known(spec.activation)) return Status::unknown_activation;
  const bool narrow = spec.data == DType::f16 || spec.data == DType::bf16;
  if (spec.param != spec.data && !(narrow && spec.param == DType::f32)) return Status::param_dtype;
  if (spec.param_stride != 0 && spec.param_stride < c) return Status::param_stride;
  if (const Status status = check_sizes(spec); status != Status::ok) return status;
  if (spec.correction != 0 && spec.correction != 1) return Status::correction;
  if (!std::isfinite(spec.eps) || spec.eps < 0) return Status::eps;
  if (const Status status = check_block(spec); status != Status::ok) return status;
  return check_sequence(spec);
}

Status check_executor(const Executor& executor) noexcept {
  return executor.threads < 1 || executor.threads > kMaxThreads ? Status::executor : Status::ok;
}

Status check_forward(const Spec& spec, std::int64_t blocks, const Forward& args,
                     std::span<std::byte> workspace, std::size_t needed) noexcept {
  if (args.x == nullptr) return Status::null_x;
  if (args.y == nullptr) return Status::null_y;
  if (spec.given_statistics) {
    if (args.given_rstd == nullptr) return Status::missing_given_rstd;
    if (spec.center && args.given_mean == nullptr) return Status::missing_given_mean;
    if (args.mean != nullptr) return Status::unexpected_mean;
    if (args.rstd != nullptr) return Status::unexpected_rstd;
  } else {
    if (args.given_mean != nullptr) return Status::unexpected_given_mean;
    if (args.given_rstd != nullptr) return Status::unexpected_given_rstd;
  }
  const std::int64_t element = size_of(spec.data), param = size_of(spec.param);
  const Status aligned = check_alignment({{args.x, element, Status::misaligned_x},
                                          {args.y, element, Status::misaligned_y},
                                          {args.gamma, param, Status::misaligned_gamma},
                                          {args.beta, param, Status::misaligned_beta},
                                          {args.mean, kDouble, Status::misaligned_mean},
                                          {args.rstd, kDouble, Status::misaligned_rstd},
                                          {args.given_mean, kDouble, Status::misaligned_given_mean},
                                          {args.given_rstd, kDouble, Status::misaligned_given_rstd},
                                          {args.sum, element, Status::misaligned_sum}});
  if (aligned != Status::ok) return aligned;
  const Status neighbours = check_neighbours(spec, args, false, false);
  if (neighbours != Status::ok) return neighbours;
  if (too_small(workspace, needed)) return Status::workspace_too_small;

  const std::int64_t bytes = tensor_bytes(spec), params = param_bytes(spec);
  const std::int64_t statistics = blocks * kDouble;
  const std::array outputs{
      Output{region(args.y, bytes), Status::overlap_y},
      Output{region(args.mean, statistics), Status::overlap_mean},
      Output{region(args.rstd, statistics), Status::overlap_rstd},
      Output{region(args.sum, bytes), Status::overlap_sum},
      Output{region(workspace.data(), static_cast<std::int64_t>(workspace.size())),
             Status::overlap_workspace}};
  const std::int64_t rows = row_bytes(spec, spec.param);
  const std::array inputs{region(args.gamma, params),
                          region(args.beta, params),
                          region(args.given_mean, statistics),
                          region(args.given_rstd, statistics),
                          region(args.shift, row_bytes(spec, spec.data)),
                          region(args.scale, rows),
                          region(args.offset, rows),
                          region(args.lengths, sequence_bytes(spec))};
  return check_overlap(
      outputs, inputs,
      {region(args.x, bytes), region(args.skip, bytes), region(args.residual, bytes)});
}

bool has_neighbours(const Spec& spec, const Backward& args) noexcept {
  return spec.shift || is_composed(spec) || args.skip != nullptr || args.residual != nullptr ||
         args.dsum != nullptr || args.dresidual != nullptr;
}

Status check_reduce(const Spec& spec, std::int64_t blocks, const void* x, const Moments* moments,
                    std::span<std::byte> workspace, std::size_t needed) noexcept {
  if (x == nullptr && tensor_bytes(spec) > 0) return Status::null_x;
  if (moments == nullptr && blocks > 0) return Status::null_moments;
  const Status aligned = check_alignment({{x, size_of(spec.data), Status::misaligned_x},
                                          {moments, kDouble, Status::misaligned_moments}});
  if (aligned != Status::ok) return aligned;
  if (too_small(workspace, needed)) return Status::workspace_too_small;
  const std::array outputs{
      Output{region(moments, bytes_of(blocks, kMoments)), Status::overlap_moments},
      Output{region(workspace.data(), static_cast<std::int64_t>(workspace.size())),
             Status::overlap_workspace}};
  const std::array inputs{region(x, tensor_bytes(spec))};
  return check_overlap(outputs, inputs, {});
}

Status check_finish(const Moments* moments, std::int64_t blocks, const double* mean,
                    const double* rstd) noexcept {
  std::int64_t bytes = 0;
  if (blocks < 0) return Status::negative_size;
  if (!multiply(blocks, kMoments, &bytes)) return Status::size_overflow;
  if (moments == nullptr && blocks > 0) return Status::null_moments;
  const Status aligned = check_alignment({{moments, kDouble, Status::misaligned_moments},
                                          {mean, kDouble, Status::misaligned_mean},
                                          {rstd, kDouble, Status::misaligned_rstd}});
  if (aligned != Status::ok) return aligned;
  const std::array outputs{Output{region(mean, blocks * kDouble), Status::overlap_mean},
                           Output{region(rstd, blocks * kDouble), Status::overlap_rstd}};
  const std::array inputs{region(moments, bytes)};
  return check_overlap(outputs, inputs, {});
}

Status check_backward_of_nothing(const Spec& spec, const Backward& args, std::int64_t blocks,
                                 const BlockSums* written) noexcept {
  const std::int64_t param = size_of(spec.param);
  const Status aligned =
      check_alignment({{args.dgamma, param, Status::misaligned_dgamma},
                       {args.dbeta, param, Status::misaligned_dbeta},
                       {args.dshift, size_of(spec.data), Status::misaligned_dshift},
                       {args.dscale, param, Status::misaligned_dscale},
                       {args.doffset, param, Status::misaligned_doffset},
                       {written, kDouble, Status::misaligned_sums}});
  if (aligned != Status::ok) return aligned;
  if (args.dshift != nullptr && !spec.shift) return Status::unexpected_shift;
  if ((args.dscale != nullptr || args.doffset != nullptr) && !spec.scale) {
    return Status::unexpected_scale;
  }
  const bool none = spec.shape.c == 0 || (spec.shape.n == 0 && spec.param_stride != 0);
  const std::int64_t params = none ? 0 : param_bytes(spec);
  const std::array outputs{
      Output{region(args.dgamma, params), Status::overlap_dgamma},
      Output{region(args.dbeta, params), Status::overlap_dbeta},
      Output{region(args.dshift, row_bytes(spec, spec.data)), Status::overlap_dshift},
      Output{region(args.dscale, row_bytes(spec, spec.param)), Status::overlap_dscale},
      Output{region(args.doffset, row_bytes(spec, spec.param)), Status::overlap_doffset},
      Output{region(written, bytes_of(blocks, kBlockSums)), Status::overlap_sums}};
  const std::array<Region, 0> inputs{};
  return check_overlap(outputs, inputs, {});
}

Status check_backward(const Spec& spec, std::int64_t blocks, const Backward& args,
                      const BlockSums* read, const BlockSums* written,
                      std::span<std::byte> workspace, std::size_t needed) noexcept {
  if (args.x == nullptr) return Status::null_x;
  if (args.dy == nullptr) return Status::null_dy;
  if (args.rstd == nullptr) return Status::missing_rstd;
  if (spec.center && args.mean == nullptr) return Status::missing_mean;
  const std::int64_t element = size_of(spec.data), param = size_of(spec.param);
  const Status aligned = check_alignment({{args.x, element, Status::misaligned_x},
                                          {args.dy, element, Status::misaligned_dy},
                                          {args.dx, element, Status::misaligned_dx},
                                          {args.gamma, param, Status::misaligned_gamma},
                                          {args.beta, param, Status::misaligned_beta},
                                          {args.dgamma, param, Status::misaligned_dgamma},
                                          {args.dbeta, param, Status::misaligned_dbeta},
                                          {args.mean, kDouble, Status::misaligned_mean},
                                          {args.rstd, kDouble, Status::misaligned_rstd},
                                          {read, kDouble, Status::misaligned_sums},
                                          {written, kDouble, Status::misaligned_sums},
                                          {args.dsum, element, Status::misaligned_dsum},
                                          {args.dresidual, element, Status::misaligned_dresidual},
                                          {args.dshift, element, Status::misaligned_dshift},
                                          {args.dscale, param, Status::misaligned_dscale},
                                          {args.doffset, param, Status::misaligned_doffset}});
  if (aligned != Status::ok) return aligned;
  const Status neighbours = check_neighbours(spec, args, args.dshift != nullptr,
                                             args.dscale != nullptr || args.doffset != nullptr);
  if (neighbours != Status::ok) return neighbours;
  if (too_small(workspace, needed)) return Status::backward_workspace_too_small;

  const std::int64_t bytes = tensor_bytes(spec), params = param_bytes(spec);
  const std::int64_t statistics = blocks * kDouble;
  const std::array outputs{
      Output{region(args.dx, bytes), Status::overlap_dx},
      Output{region(args.dgamma, params), Status::overlap_dgamma},
      Output{region(args.dbeta, params), Status::overlap_dbeta},
      Output{region(written, bytes_of(blocks, kBlockSums)), Status::overlap_sums},
      Output{region(args.dresidual, bytes), Status::overlap_dresidual},
      Output{region(args.dshift, row_bytes(spec, spec.data)), Status::overlap_dshift},
      Output{region(args.dscale, row_bytes(spec, spec.param)), Status::overlap_dscale},
      Output{region(args.doffset, row_bytes(spec, spec.param)), Status::overlap_doffset},
      Output{region(workspace.data(), static_cast<std::int64_t>(workspace.size())),
             Status::overlap_workspace}};
  const std::int64_t rows = row_bytes(spec, spec.param);
  const std::array inputs{
      region(args.x, bytes),         region(args.gamma, params),
      region(args.beta, params),     region(args.mean, statistics),
      region(args.rstd, statistics), region(read, bytes_of(blocks, kBlockSums)),
      region(args.skip, bytes),      region(args.shift, row_bytes(spec, spec.data)),
      region(args.residual, bytes),  region(args.scale, rows),
      region(args.offset, rows),     region(args.lengths, sequence_bytes(spec)),
      region(args.dsum, bytes)};
  return check_overlap(outputs, inputs, {region(args.dy, bytes)});
}

}  // namespace detail

const char* status_string(Status status) noexcept {
  switch (status) {
    case Status::ok: return "ok";
    case Status::negative_size: return "shape: n, c and s must not be negative";
    case Status::size_overflow: return "shape: the bytes of x must stay below 2^63";
    case Status::param_overflow:
      return "param_stride: the bytes of gamma, n times the stride, must stay below 2^63";
    case Status::groups_do_not_divide: return "groups: must be at least 1 and divide the channels";
    case Status::batches_do_not_divide:
      return "batches: must be at least 1 and divide the examples";
    case Status::block_examples: return "block.examples: must be at least 1 and divide n";
    case Status::block_channels: return "block.channels: must be at least 1 and divide c";
    case Status::unknown_data: return detail::kDataRule.data();
    case Status::unknown_param: return detail::kParamRule.data();
    case Status::unknown_layout: return detail::kLayoutRule.data();
    case Status::unknown_activation: return detail::kActivationRule.data();
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
    case Status::null_spec: return "spec: must not be null";
    case Status::null_plan: return "plan: must not be null";
    case Status::null_args: return "args: must not be null";
    case Status::null_x: return "x: must not be null";
    case Status::null_y: return "y: must not be null";
    case Status::null_dy: return "dy: must not be null";
    case Status::missing_mean: return "mean: must not be null in backward where the spec centers";
    case Status::missing_rstd: return "rstd: must not be null in backward";
    case Status::missing_given_mean:
      return "given_mean: must not be null where the spec says given_statistics and centers";
    case Status::missing_given_rstd:
      return "given_rstd: must not be null where the spec says given_statistics";
    case Status::unexpected_mean: return "mean: must be null where the spec says given_statistics";
    case Status::unexpected_rstd: return "rstd: must be null where the spec says given_statistics";
    case Status::unexpected_given_mean:
      return "given_mean: must be null unless the spec says given_statistics";
    case Status::unexpected_given_rstd:
      return "given_rstd: must be null unless the spec says given_statistics";
    case Status::misaligned_x: return "x: must be aligned to the size of its elements";
    case Status::misaligned_y: return "y: must be aligned to the size of its elements";
    case Status::misaligned_gamma: return "gamma: must be aligned to the size of its elements";
    case Status::misaligned_beta: return "beta: must be aligned to the size of its elements";
    case Status::misaligned_mean: return "mean: must be aligned to 8 bytes, the size of a double";
    case Status::misaligned_rstd: return "rstd: must be aligned to 8 bytes, the size of a double";
    case Status::misaligned_given_mean:
      return "given_mean: must be aligned to 8 bytes, the size of a double";
    case Status::misaligned_given_rstd:
      return "given_rstd: must be aligned to 8 bytes, the size of a double";
    case Status::misaligned_dy: return "dy: must be aligned to the size of its elements";
    case Status::misaligned_dx: return "dx: must be aligned to the size of its elements";
    case Status::misaligned_dgamma: return "dgamma: must be aligned to the size of its elements";
    case Status::misaligned_dbeta: return "dbeta: must be aligned to the size of its elements";
    case Status::overlap_y:
      return "y: must not overlap another argument (y == x, skip or residual is allowed)";
    case Status::overlap_mean: return "mean: must not overlap another argument";
    case Status::overlap_rstd: return "rstd: must not overlap another argument";
    case Status::overlap_dx: return "dx: must not overlap another argument (dx == dy is allowed)";
    case Status::overlap_dgamma: return "dgamma: must not overlap another argument";
    case Status::overlap_dbeta: return "dbeta: must not overlap another argument";
    case Status::overlap_workspace: return "workspace: must not overlap another argument";
    case Status::workspace_too_small: return "workspace: must hold plan.workspace_bytes() bytes";
    case Status::backward_workspace_too_small:
      return "workspace: must hold plan.backward_workspace_bytes() bytes";
    case Status::executor: return "executor: threads must be from 1 to 1024";
    case Status::not_planned: return "plan: default-constructed; make it with Plan::make";
    case Status::not_built:
      return "this build (edge) has forward on f32 alone, without neighbours of the norm";
    case Status::executor_failed:
      return "executor: run must do each of its tasks once, and all of them before it returns; "
             "what "
             "the outputs hold is of no use";
    case Status::null_moments: return "moments: must not be null";
    case Status::null_sums: return "sums: must not be null";
    case Status::misaligned_moments:
      return "moments: must be aligned to 8 bytes, the size of a double";
    case Status::misaligned_sums: return "sums: must be aligned to 8 bytes, the size of a double";
    case Status::overlap_moments: return "moments: must not overlap another argument";
    case Status::overlap_sums: return "sums: must not overlap another argument";
    case Status::count:
      return "count: must be finite, at least the elements that a block has in this piece, and "
             "more "
             "than the correction";
    case Status::sequence:
      return "sequence: must be at least 1 and divide n, and a sequence must hold whole blocks; "
             "with lengths, blocks of one example";
    case Status::lengths:
      return "lengths: each must be from 0 to s (or to sequence, if that is not 1), and with "
             "correction 1 leave no block of one element";
    case Status::unexpected_shift: return "shift: must be null unless the spec says shift";
    case Status::unexpected_scale: return "scale, offset: must be null unless the spec says scale";
    case Status::unexpected_lengths: return "lengths: must be null unless the spec says lengths";
    case Status::neighbours:
      return "pieces of blocks take no skip, shift, residual, scale, offset or lengths";
    case Status::misaligned_skip: return "skip: must be aligned to the size of its elements";
    case Status::misaligned_shift: return "shift: must be aligned to the size of its elements";
    case Status::misaligned_residual:
      return "residual: must be aligned to the size of its elements";
    case Status::misaligned_scale: return "scale: must be aligned to the size of its elements";
    case Status::misaligned_offset: return "offset: must be aligned to the size of its elements";
    case Status::misaligned_lengths: return "lengths: must be aligned to 8 bytes";
    case Status::misaligned_sum: return "sum: must be aligned to the size of its elements";
    case Status::misaligned_dsum: return "dsum: must be aligned to the size of its elements";
    case Status::misaligned_dresidual:
      return "dresidual: must be aligned to the size of its elements";
    case Status::misaligned_dshift: return "dshift: must be aligned to the size of its elements";
    case Status::misaligned_dscale: return "dscale: must be aligned to the size of its elements";
    case Status::misaligned_doffset: return "doffset: must be aligned to the size of its elements";
    case Status::overlap_sum: return "sum: must not overlap another argument";
    case Status::overlap_dresidual: return "dresidual: must not overlap another argument";
    case Status::overlap_dshift: return "dshift: must not overlap another argument";
    case Status::overlap_dscale: return "dscale: must not overlap another argument";
    case Status::overlap_doffset: return "doffset: must not overlap another argument";
  }
  return "unknown status";
}

}  // namespace groupnorm
