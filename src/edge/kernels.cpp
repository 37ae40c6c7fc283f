// What the edge build has in place of kernels/*.cpp: forward on f32, by the instruction set that
// the compiler was given. Nothing is detected and no environment is read. A linker keeps all that a
// table names, so what is not named here costs nothing.
#include "kernels/targets.h"
// Highway reads it.
#include "kernels/apply-inl.h"
#include "kernels/finish-inl.h"
#include "kernels/normalize-inl.h"
#include "kernels/reduce-inl.h"

#include <hwy/highway.h>

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {
namespace {

constexpr const char* kName = HWY_TARGET == HWY_NEON ? "neon" : "scalar";

constexpr Kernels kFloat{kName,
                         static_cast<std::int64_t>(hn::MaxLanes(hn::ScalableTag<float>())),
                         ReduceRuns<float>,
                         ReduceColumns<float>,
                         Finish<float>,
                         Coefficients<float>,
                         ApplyBlocks<float>,
                         NormalizeBlocks<float>,
                         ApplyLanes<float>,
                         Flush,
                         nullptr};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

namespace groupnorm {
namespace {

constexpr const detail::Kernels& kKernels = detail::HWY_NAMESPACE::kFloat;

}  // namespace

namespace detail {

Status find_kernels(const char* target, DType dtype, const Kernels** kernels) noexcept {
  if (dtype != DType::f32) return Status::not_built;
  if (target != nullptr && std::strcmp(target, kKernels.target) != 0) {
    return Status::unavailable_target;
  }
  *kernels = &kKernels;
  return Status::ok;
}

}  // namespace detail

std::span<const char* const> targets() noexcept { return {&kKernels.target, 1}; }

const char* active_target() noexcept { return kKernels.target; }

}  // namespace groupnorm
