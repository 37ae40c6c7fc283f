// One table of kernels per dtype and instruction set: Highway includes this file again for each
// set.
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/kernels.cpp"
#include <hwy/foreach_target.h>
// Highway asks for foreach_target.h first.
#include "kernels/apply-inl.h"
#include "kernels/finish-inl.h"
#include "kernels/normalize-inl.h"
#include "kernels/reduce-inl.h"

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3
inline constexpr const char* kName = "avx512";
#elif HWY_TARGET == HWY_AVX2
inline constexpr const char* kName = "avx2";
#elif HWY_TARGET == HWY_SSE4
inline constexpr const char* kName = "sse4";
#elif HWY_TARGET == HWY_NEON
inline constexpr const char* kName = "neon";
#else
inline constexpr const char* kName = "scalar";
#endif

extern const GradientKernels kGradientTables[4];  // gradients.cpp

template <class T>
constexpr Kernels Table(const GradientKernels& gradients) {
  return {kName,
          static_cast<std::int64_t>(hn::MaxLanes(hn::ScalableTag<Compute<T>>())),
          ReduceRuns<T>,
          ReduceColumns<T>,
          Finish<Compute<T>>,
          Coefficients<T>,
          ApplyBlocks<T>,
          NormalizeBlocks<T>,
          ApplyLanes<T>,
          Flush,
          &gradients};
}

const Kernels kTables[] = {Table<float>(kGradientTables[0]), Table<double>(kGradientTables[1]),
                           Table<F16>(kGradientTables[2]), Table<BF16>(kGradientTables[3])};

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace groupnorm::detail {
namespace {

const Target kTargets[] = {
#if HWY_TARGETS & HWY_AVX3
    {N_AVX3::kName, HWY_AVX3, N_AVX3::kTables},
#endif
#if HWY_TARGETS & HWY_AVX2
    {N_AVX2::kName, HWY_AVX2, N_AVX2::kTables},
#endif
#if HWY_TARGETS & HWY_SSE4
    {N_SSE4::kName, HWY_SSE4, N_SSE4::kTables},
#endif
#if HWY_TARGETS & HWY_NEON
    {N_NEON::kName, HWY_NEON, N_NEON::kTables},
#endif
#if HWY_TARGETS & HWY_SCALAR
    {N_SCALAR::kName, HWY_SCALAR, N_SCALAR::kTables},
#elif HWY_TARGETS & HWY_EMU128
    {N_EMU128::kName, HWY_EMU128, N_EMU128::kTables},
#endif
};

}  // namespace

std::span<const Target> compiled_targets() noexcept { return kTargets; }

}  // namespace groupnorm::detail
#endif  // HWY_ONCE
