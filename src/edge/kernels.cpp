// What the edge build has in place of kernels/*.cpp: forward on f32, by the instruction set that
// the compiler was given. Nothing is detected and no environment is read. A linker keeps all that a
// table names, so what is not named here costs nothing.
#include "kernels/targets.h"
// Highway reads it.
#include "kernels/columns-inl.h"
#include "kernels/finish-inl.h"
#include "kernels/moments-inl.h"
#include "kernels/name-inl.h"
#include "kernels/normalize-inl.h"
#include "kernels/tile-inl.h"

#include <hwy/highway.h>

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {
namespace {

// By Clamp alone: the other activations go in tiles (is_fused). Lanes are not streamed: Arm has no
// such stores.
std::int64_t NormalizeF32(const Kernels::Normalize& args) {
  return NormalizeBy<float, Clamp<float>>(args);
}
template <class T>
void ApplyClampedColumns(const Kernels::ApplyColumns& args) {
  ApplyColumnsBy<T, Clamp<T>>(args, Store::cached);
}

// In double tiles, statistics are given. Rows of any length go the way of short ones.
std::int64_t NormalizeF64(const Kernels::Normalize& args) {
  return NormalizeSome<double, Clamp<double>, ShortRows>(args);
}

constexpr Kernels kF32{
    .target = kName,
    .lanes = kLanes<float>,
    .reduce_runs = ReduceRuns<float>,
    .reduce_sums = nullptr,
    .reduce_columns = ReduceColumns<float>,
    .exact_moments = ExactMoments<float>,
    .finish = Finish<float>,
    .coefficients = Coefficients<float>,
    .normalize = NormalizeF32,
    .apply_columns = ApplyClampedColumns<float>,
    .flush = Flush,
    .tiles = {.load = LoadTile<float, float>,
              .load_wide = LoadTile<float, double>,
              .narrow = nullptr,
              .activate = Activate<float>,
              .z_columns = nullptr,
              .z_runs = nullptr,
              .dz = nullptr,
              .dz_wide = nullptr},
    .gradients = nullptr,
};

// What double tiles of f32 call (tiles.h), and no more.
constexpr Kernels kF64{
    .target = kName,
    .lanes = kLanes<double>,
    .reduce_runs = nullptr,
    .reduce_sums = nullptr,
    .reduce_columns = nullptr,
    .exact_moments = nullptr,
    .finish = nullptr,
    .coefficients = Coefficients<double>,
    .normalize = NormalizeF64,
    .apply_columns = ApplyClampedColumns<double>,
    .flush = nullptr,
    .tiles = {.load = nullptr,
              .load_wide = nullptr,
              .narrow = Narrow,
              .activate = nullptr,
              .z_columns = nullptr,
              .z_runs = nullptr,
              .dz = nullptr,
              .dz_wide = nullptr},
    .gradients = nullptr,
};

constexpr Target kTarget{kName, HWY_TARGET, {&kF32, &kF64, nullptr, nullptr}};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

namespace groupnorm {
namespace {

constexpr const detail::Target& kTarget = detail::HWY_NAMESPACE::kTarget;

}  // namespace

namespace detail {

Status find_target(const char* name, DType dtype, const Target** target) noexcept {
  if (dtype != DType::f32) return Status::not_built;
  if (name != nullptr && std::strcmp(name, kTarget.name) != 0) return Status::unavailable_target;
  *target = &kTarget;
  return Status::ok;
}

}  // namespace detail

std::span<const char* const> targets() noexcept { return {&kTarget.name, 1}; }

const char* active_target() noexcept { return kTarget.name; }

}  // namespace groupnorm
