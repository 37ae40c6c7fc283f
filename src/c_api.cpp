#include "groups.h"

#include <groupnorm/groupnorm.h>
#include <groupnorm/groupnorm.hpp>
#include <groupnorm/layers.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

namespace groupnorm {
namespace {

// ---- The two interfaces name the same numbers

template <class Enum>
constexpr bool same(std::int32_t c, Enum cpp) {
  return c == static_cast<std::int32_t>(cpp);
}

static_assert(same(GN_DTYPE_F32, DType::f32));
static_assert(same(GN_DTYPE_F64, DType::f64));
static_assert(same(GN_DTYPE_F16, DType::f16));
static_assert(same(GN_DTYPE_BF16, DType::bf16));

static_assert(same(GN_LAYOUT_CHANNELS_FIRST, Layout::channels_first));
static_assert(same(GN_LAYOUT_CHANNELS_LAST, Layout::channels_last));

static_assert(same(GN_ACTIVATION_NONE, Activation::none));
static_assert(same(GN_ACTIVATION_RELU, Activation::relu));
static_assert(same(GN_ACTIVATION_SILU, Activation::silu));
static_assert(same(GN_ACTIVATION_GELU, Activation::gelu));
static_assert(same(GN_ACTIVATION_GELU_TANH, Activation::gelu_tanh));
static_assert(same(GN_ACTIVATION_HARD_SWISH, Activation::hard_swish));

static_assert(same(GN_STATUS_OK, Status::ok));
static_assert(same(GN_STATUS_NEGATIVE_SIZE, Status::negative_size));
static_assert(same(GN_STATUS_SIZE_OVERFLOW, Status::size_overflow));
static_assert(same(GN_STATUS_PARAM_OVERFLOW, Status::param_overflow));
static_assert(same(GN_STATUS_GROUPS_DO_NOT_DIVIDE, Status::groups_do_not_divide));
static_assert(same(GN_STATUS_BATCHES_DO_NOT_DIVIDE, Status::batches_do_not_divide));
static_assert(same(GN_STATUS_BLOCK_EXAMPLES, Status::block_examples));
static_assert(same(GN_STATUS_BLOCK_CHANNELS, Status::block_channels));
static_assert(same(GN_STATUS_UNKNOWN_DATA, Status::unknown_data));
static_assert(same(GN_STATUS_UNKNOWN_PARAM, Status::unknown_param));
static_assert(same(GN_STATUS_UNKNOWN_LAYOUT, Status::unknown_layout));
static_assert(same(GN_STATUS_UNKNOWN_ACTIVATION, Status::unknown_activation));
static_assert(same(GN_STATUS_PARAM_DTYPE, Status::param_dtype));
static_assert(same(GN_STATUS_PARAM_STRIDE, Status::param_stride));
static_assert(same(GN_STATUS_CORRECTION, Status::correction));
static_assert(same(GN_STATUS_TOO_FEW_ELEMENTS, Status::too_few_elements));
static_assert(same(GN_STATUS_EPS, Status::eps));
static_assert(same(GN_STATUS_UNKNOWN_TARGET, Status::unknown_target));
static_assert(same(GN_STATUS_UNAVAILABLE_TARGET, Status::unavailable_target));
static_assert(same(GN_STATUS_NULL_SPEC, Status::null_spec));
static_assert(same(GN_STATUS_NULL_PLAN, Status::null_plan));
static_assert(same(GN_STATUS_NULL_ARGS, Status::null_args));
static_assert(same(GN_STATUS_NULL_X, Status::null_x));
static_assert(same(GN_STATUS_NULL_Y, Status::null_y));
static_assert(same(GN_STATUS_NULL_DY, Status::null_dy));
static_assert(same(GN_STATUS_MISSING_MEAN, Status::missing_mean));
static_assert(same(GN_STATUS_MISSING_RSTD, Status::missing_rstd));
static_assert(same(GN_STATUS_MISSING_GIVEN_MEAN, Status::missing_given_mean));
static_assert(same(GN_STATUS_MISSING_GIVEN_RSTD, Status::missing_given_rstd));
static_assert(same(GN_STATUS_UNEXPECTED_MEAN, Status::unexpected_mean));
static_assert(same(GN_STATUS_UNEXPECTED_RSTD, Status::unexpected_rstd));
static_assert(same(GN_STATUS_UNEXPECTED_GIVEN_MEAN, Status::unexpected_given_mean));
static_assert(same(GN_STATUS_UNEXPECTED_GIVEN_RSTD, Status::unexpected_given_rstd));
static_assert(same(GN_STATUS_MISALIGNED_X, Status::misaligned_x));
static_assert(same(GN_STATUS_MISALIGNED_Y, Status::misaligned_y));
static_assert(same(GN_STATUS_MISALIGNED_GAMMA, Status::misaligned_gamma));
static_assert(same(GN_STATUS_MISALIGNED_BETA, Status::misaligned_beta));
static_assert(same(GN_STATUS_MISALIGNED_MEAN, Status::misaligned_mean));
static_assert(same(GN_STATUS_MISALIGNED_RSTD, Status::misaligned_rstd));
static_assert(same(GN_STATUS_MISALIGNED_GIVEN_MEAN, Status::misaligned_given_mean));
static_assert(same(GN_STATUS_MISALIGNED_GIVEN_RSTD, Status::misaligned_given_rstd));
static_assert(same(GN_STATUS_MISALIGNED_DY, Status::misaligned_dy));
static_assert(same(GN_STATUS_MISALIGNED_DX, Status::misaligned_dx));
static_assert(same(GN_STATUS_MISALIGNED_DGAMMA, Status::misaligned_dgamma));
static_assert(same(GN_STATUS_MISALIGNED_DBETA, Status::misaligned_dbeta));
static_assert(same(GN_STATUS_OVERLAP_Y, Status::overlap_y));
static_assert(same(GN_STATUS_OVERLAP_MEAN, Status::overlap_mean));
static_assert(same(GN_STATUS_OVERLAP_RSTD, Status::overlap_rstd));
static_assert(same(GN_STATUS_OVERLAP_DX, Status::overlap_dx));
static_assert(same(GN_STATUS_OVERLAP_DGAMMA, Status::overlap_dgamma));
static_assert(same(GN_STATUS_OVERLAP_DBETA, Status::overlap_dbeta));
static_assert(same(GN_STATUS_OVERLAP_WORKSPACE, Status::overlap_workspace));
static_assert(same(GN_STATUS_WORKSPACE_TOO_SMALL, Status::workspace_too_small));
static_assert(same(GN_STATUS_BACKWARD_WORKSPACE_TOO_SMALL, Status::backward_workspace_too_small));
static_assert(same(GN_STATUS_EXECUTOR, Status::executor));
static_assert(same(GN_STATUS_NOT_PLANNED, Status::not_planned));
static_assert(same(GN_STATUS_NOT_BUILT, Status::not_built));
static_assert(same(GN_STATUS_EXECUTOR_FAILED, Status::executor_failed));
static_assert(same(GN_STATUS_NULL_MOMENTS, Status::null_moments));
static_assert(same(GN_STATUS_NULL_SUMS, Status::null_sums));
static_assert(same(GN_STATUS_MISALIGNED_MOMENTS, Status::misaligned_moments));
static_assert(same(GN_STATUS_MISALIGNED_SUMS, Status::misaligned_sums));
static_assert(same(GN_STATUS_OVERLAP_MOMENTS, Status::overlap_moments));
static_assert(same(GN_STATUS_OVERLAP_SUMS, Status::overlap_sums));
static_assert(same(GN_STATUS_COUNT, Status::count));
static_assert(same(GN_STATUS_SEQUENCE, Status::sequence));
static_assert(same(GN_STATUS_LENGTHS, Status::lengths));
static_assert(same(GN_STATUS_UNEXPECTED_SHIFT, Status::unexpected_shift));
static_assert(same(GN_STATUS_UNEXPECTED_SCALE, Status::unexpected_scale));
static_assert(same(GN_STATUS_UNEXPECTED_LENGTHS, Status::unexpected_lengths));
static_assert(same(GN_STATUS_NEIGHBOURS, Status::neighbours));
static_assert(same(GN_STATUS_MISALIGNED_SKIP, Status::misaligned_skip));
static_assert(same(GN_STATUS_MISALIGNED_SHIFT, Status::misaligned_shift));
static_assert(same(GN_STATUS_MISALIGNED_RESIDUAL, Status::misaligned_residual));
static_assert(same(GN_STATUS_MISALIGNED_SCALE, Status::misaligned_scale));
static_assert(same(GN_STATUS_MISALIGNED_OFFSET, Status::misaligned_offset));
static_assert(same(GN_STATUS_MISALIGNED_LENGTHS, Status::misaligned_lengths));
static_assert(same(GN_STATUS_MISALIGNED_SUM, Status::misaligned_sum));
static_assert(same(GN_STATUS_MISALIGNED_DSUM, Status::misaligned_dsum));
static_assert(same(GN_STATUS_MISALIGNED_DRESIDUAL, Status::misaligned_dresidual));
static_assert(same(GN_STATUS_MISALIGNED_DSHIFT, Status::misaligned_dshift));
static_assert(same(GN_STATUS_MISALIGNED_DSCALE, Status::misaligned_dscale));
static_assert(same(GN_STATUS_MISALIGNED_DOFFSET, Status::misaligned_doffset));
static_assert(same(GN_STATUS_OVERLAP_SUM, Status::overlap_sum));
static_assert(same(GN_STATUS_OVERLAP_DRESIDUAL, Status::overlap_dresidual));
static_assert(same(GN_STATUS_OVERLAP_DSHIFT, Status::overlap_dshift));
static_assert(same(GN_STATUS_OVERLAP_DSCALE, Status::overlap_dscale));
static_assert(same(GN_STATUS_OVERLAP_DOFFSET, Status::overlap_doffset));

// A number from C as an enumerator. What does not fit becomes 255, which no enumeration has and
// which the engine refuses; a plain cast would wrap round to a number that it accepts.
template <class Enum>
Enum enumerator(std::int32_t value) {
  static_assert(std::is_same_v<std::underlying_type_t<Enum>, std::uint8_t>);
  return static_cast<Enum>(value >= 0 && value < 255 ? value : 255);
}

template <NamedEnum Enum>
const char* name_or_null(std::int32_t value) {
  const Named<Enum>* const row = detail::row_of(enumerator<Enum>(value));
  return row != nullptr ? row->name : nullptr;
}

// The value that has this name, into *value; false where there is none.
template <NamedEnum Enum>
bool find_name(const char* name, std::int32_t* value) {
  if (name == nullptr || value == nullptr) return false;
  const std::optional<Enum> found = from_string<Enum>(name);
  if (found) *value = static_cast<std::int32_t>(*found);
  return found.has_value();
}

gn_status to_c(Status status) { return static_cast<gn_status>(status); }
gn_block to_c(const Block& block) { return {block.examples, block.channels}; }
Shape from_c(const gn_shape& shape) { return {shape.n, shape.c, shape.s}; }
Block from_c(const gn_block& block) { return {block.examples, block.channels}; }

// ---- Structs with a struct_size: the rule stands at the top of groupnorm.h

// Far above any version of a struct: what is larger was never initialized.
constexpr std::size_t kMaxStructSize = 4096;
// What callers of the first version have: it ended with these fields.
constexpr std::size_t kFirstSpecSize = offsetof(gn_spec, param_stride) + sizeof(std::int64_t);
constexpr std::size_t kFirstForwardArgsSize =
    offsetof(gn_forward_args, given_rstd) + sizeof(const double*);
constexpr std::size_t kFirstBackwardArgsSize = offsetof(gn_backward_args, dbeta) + sizeof(void*);

// Reads what the caller's version of `in` and ours share; the rest of `*out` is 0. False for a size
// that no version has, or where a field that we do not know is set.
template <class Struct>
bool read(const Struct* in, std::size_t first_size, Struct* out) {
  const std::size_t size = in->struct_size;
  if ((size != first_size && size < sizeof(Struct)) || size > kMaxStructSize) return false;
  const std::size_t shared = std::min(size, sizeof(Struct));
  *out = {};
  std::memcpy(out, in, shared);
  const auto* const bytes = reinterpret_cast<const unsigned char*>(in);
  return std::all_of(bytes + shared, bytes + size, [](unsigned char byte) { return byte == 0; });
}

Spec from_c(const gn_spec& spec) {
  return {.shape = from_c(spec.shape),
          .block = from_c(spec.block),
          .layout = enumerator<Layout>(spec.layout),
          .data = enumerator<DType>(spec.data),
          .param = enumerator<DType>(spec.param),
          .activation = enumerator<Activation>(spec.activation),
          .center = spec.center != 0,
          .given_statistics = spec.given_statistics != 0,
          .correction = spec.correction,
          .eps = spec.eps,
          .param_stride = spec.param_stride,
          .sequence = spec.sequence == 0 ? 1 : spec.sequence,
          .shift = spec.shift != 0,
          .scale = spec.scale != 0,
          .lengths = spec.lengths != 0};
}

Forward from_c(const gn_forward_args& args) {
  return {.x = args.x,
          .y = args.y,
          .gamma = args.gamma,
          .beta = args.beta,
          .mean = args.mean,
          .rstd = args.rstd,
          .given_mean = args.given_mean,
          .given_rstd = args.given_rstd,
          .skip = args.skip,
          .shift = args.shift,
          .residual = args.residual,
          .scale = args.scale,
          .offset = args.offset,
          .sum = args.sum,
          .lengths = args.lengths};
}

Backward from_c(const gn_backward_args& args) {
  return {.x = args.x,
          .dy = args.dy,
          .gamma = args.gamma,
          .beta = args.beta,
          .mean = args.mean,
          .rstd = args.rstd,
          .dx = args.dx,
          .dgamma = args.dgamma,
          .dbeta = args.dbeta,
          .accumulate = args.accumulate != 0,
          .skip = args.skip,
          .shift = args.shift,
          .residual = args.residual,
          .scale = args.scale,
          .offset = args.offset,
          .lengths = args.lengths,
          .dsum = args.dsum,
          .dresidual = args.dresidual,
          .dshift = args.dshift,
          .dscale = args.dscale,
          .doffset = args.doffset};
}

// Null: the calling thread.
Executor from_c(const gn_executor* executor) {
  if (executor == nullptr) return {};
  return {executor->run, executor->context, executor->threads};
}

// Structs of the same doubles: their arrays are handed on as they are.
static_assert(sizeof(gn_moments) == sizeof(Moments) &&
              offsetof(gn_moments, mean) == offsetof(Moments, mean) &&
              offsetof(gn_moments, m2) == offsetof(Moments, m2));
static_assert(sizeof(gn_block_sums) == sizeof(BlockSums) &&
              offsetof(gn_block_sums, e) == offsetof(BlockSums, e));
Moments* from_c(gn_moments* moments) { return reinterpret_cast<Moments*>(moments); }
const Moments* from_c(const gn_moments* moments) {
  return reinterpret_cast<const Moments*>(moments);
}
BlockSums* from_c(gn_block_sums* sums) { return reinterpret_cast<BlockSums*>(sums); }
const BlockSums* from_c(const gn_block_sums* sums) {
  return reinterpret_cast<const BlockSums*>(sums);
}

std::span<std::byte> bytes_of(void* workspace, std::size_t bytes) {
  return {static_cast<std::byte*>(workspace), bytes};
}

// ---- A Plan in the caller's memory, as bytes; zeros are a Plan that holds nothing

static_assert(std::is_trivially_copyable_v<Plan> && sizeof(Plan) <= sizeof(gn_plan));

Plan from_c(const gn_plan* plan) {
  static constexpr gn_plan not_made{};
  Plan result;
  std::memcpy(static_cast<void*>(&result), plan == nullptr ? &not_made : plan, sizeof result);
  return result;
}

}  // namespace
}  // namespace groupnorm

using namespace groupnorm;

const char* gn_status_string(gn_status status) {
  if (status == GN_STATUS_STRUCT_SIZE) {
    return "struct_size: must be the size of the struct, as the _init function sets it, and every "
           "field that this version does not know must be 0";
  }
  return status_string(enumerator<Status>(status));
}

const char* gn_dtype_name(gn_dtype value) { return name_or_null<DType>(value); }
const char* gn_layout_name(gn_layout value) { return name_or_null<Layout>(value); }
const char* gn_activation_name(gn_activation value) { return name_or_null<Activation>(value); }

int gn_dtype_from_name(const char* name, gn_dtype* value) { return find_name<DType>(name, value); }
int gn_layout_from_name(const char* name, gn_layout* value) {
  return find_name<Layout>(name, value);
}
int gn_activation_from_name(const char* name, gn_activation* value) {
  return find_name<Activation>(name, value);
}

const char* gn_version(void) { return GROUPNORM_VERSION; }
int32_t gn_abi_version(void) { return GROUPNORM_ABI_VERSION; }

gn_block gn_group_norm(gn_shape shape, int64_t groups) {
  return to_c(group_norm(from_c(shape), groups));
}
gn_block gn_layer_norm(gn_shape shape) { return to_c(layer_norm(from_c(shape))); }
gn_block gn_instance_norm(gn_shape shape) { return to_c(instance_norm(from_c(shape))); }
gn_block gn_batch_norm(gn_shape shape) { return to_c(batch_norm(from_c(shape))); }
gn_block gn_ghost_batch_norm(gn_shape shape, int64_t batches) {
  return to_c(ghost_batch_norm(from_c(shape), batches));
}
gn_block gn_batch_group_norm(gn_shape shape, int64_t groups) {
  return to_c(batch_group_norm(from_c(shape), groups));
}

int64_t gn_suggest_groups(int64_t channels, const char** reason) {
  if (channels < 1) return 0;
  const GroupSuggestion suggestion = detail::nearest_groups(channels);
  if (reason != nullptr) *reason = suggestion.reason;
  return suggestion.groups;
}

gn_executor gn_pool(int threads) {
  const Executor executor = pool(threads);
  return {executor.run, executor.context, executor.threads};
}

gn_status gn_plan_make(const gn_spec* spec, const char* target, gn_plan* plan) {
  if (spec == nullptr) return GN_STATUS_NULL_SPEC;
  if (plan == nullptr) return GN_STATUS_NULL_PLAN;
  gn_spec known;
  if (!read(spec, kFirstSpecSize, &known)) return GN_STATUS_STRUCT_SIZE;
  Plan made;
  const Status status = Plan::make(from_c(known), &made, target);
  if (status != Status::ok) return to_c(status);
  std::memcpy(plan, &made, sizeof made);
  return GN_STATUS_OK;
}

int64_t gn_plan_blocks(const gn_plan* plan) { return from_c(plan).blocks(); }
int64_t gn_plan_block_elements(const gn_plan* plan) { return from_c(plan).block_elements(); }
size_t gn_plan_workspace_bytes(const gn_plan* plan) { return from_c(plan).workspace_bytes(); }
size_t gn_plan_backward_workspace_bytes(const gn_plan* plan) {
  return from_c(plan).backward_workspace_bytes();
}
const char* gn_plan_target(const gn_plan* plan) { return from_c(plan).target(); }

gn_status gn_forward(const gn_plan* plan, const gn_forward_args* args, void* workspace,
                     size_t workspace_bytes, const gn_executor* executor) {
  if (args == nullptr) return GN_STATUS_NULL_ARGS;
  gn_forward_args known;
  if (!read(args, kFirstForwardArgsSize, &known)) return GN_STATUS_STRUCT_SIZE;
  return to_c(
      from_c(plan).forward(from_c(known), bytes_of(workspace, workspace_bytes), from_c(executor)));
}

gn_status gn_backward(const gn_plan* plan, const gn_backward_args* args, void* workspace,
                      size_t workspace_bytes, const gn_executor* executor) {
  if (args == nullptr) return GN_STATUS_NULL_ARGS;
  gn_backward_args known;
  if (!read(args, kFirstBackwardArgsSize, &known)) return GN_STATUS_STRUCT_SIZE;
  return to_c(
      from_c(plan).backward(from_c(known), bytes_of(workspace, workspace_bytes), from_c(executor)));
}

void gn_merge(const gn_moments* more, int64_t blocks, gn_moments* total) {
  merge(from_c(more), blocks, from_c(total));
}

gn_status gn_reduce(const gn_plan* plan, const void* x, gn_moments* moments, void* workspace,
                    size_t workspace_bytes, const gn_executor* executor) {
  return to_c(from_c(plan).reduce(x, from_c(moments), bytes_of(workspace, workspace_bytes),
                                  from_c(executor)));
}

gn_status gn_finish(const gn_plan* plan, const gn_moments* moments, int64_t blocks, double* mean,
                    double* rstd) {
  return to_c(from_c(plan).finish(from_c(moments), blocks, mean, rstd));
}

gn_status gn_reduce_gradient(const gn_plan* plan, const gn_backward_args* args, gn_block_sums* sums,
                             void* workspace, size_t workspace_bytes, const gn_executor* executor) {
  if (args == nullptr) return GN_STATUS_NULL_ARGS;
  gn_backward_args known;
  if (!read(args, kFirstBackwardArgsSize, &known)) return GN_STATUS_STRUCT_SIZE;
  return to_c(from_c(plan).reduce_gradient(from_c(known), from_c(sums),
                                           bytes_of(workspace, workspace_bytes), from_c(executor)));
}

gn_status gn_apply_gradient(const gn_plan* plan, const gn_backward_args* args,
                            const gn_block_sums* sums, double count, const gn_executor* executor) {
  if (args == nullptr) return GN_STATUS_NULL_ARGS;
  gn_backward_args known;
  if (!read(args, kFirstBackwardArgsSize, &known)) return GN_STATUS_STRUCT_SIZE;
  return to_c(from_c(plan).apply_gradient(from_c(known), from_c(sums), count, from_c(executor)));
}

const char* const* gn_targets(size_t* count) {
  const std::span<const char* const> names = targets();
  if (count != nullptr) *count = names.size();
  return names.data();
}

const char* gn_active_target(void) { return active_target(); }
