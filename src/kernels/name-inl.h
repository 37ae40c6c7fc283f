// The names of instruction sets.
#if defined(GROUPNORM_SRC_KERNELS_NAME_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_NAME_INL_H
#undef GROUPNORM_SRC_KERNELS_NAME_INL_H
#else
#define GROUPNORM_SRC_KERNELS_NAME_INL_H
#endif

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
#elif HWY_TARGET == GROUPNORM_NEON
inline constexpr const char* kName = "neon";
#elif HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
inline constexpr const char* kName = "scalar";
#endif

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
