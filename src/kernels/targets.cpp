// The list of instruction sets: for each that Highway compiles, the kernels of all dtypes.
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/targets.cpp"
#include <hwy/foreach_target.h>
// Highway asks for foreach_target.h first.
#include "kernels/kernels.h"
#include "kernels/name-inl.h"

#include <hwy/highway.h>

#include <bit>
#include <cstdint>
#include <iterator>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

extern const Kernels kF32, kF64, kF16, kBF16;
static constexpr Target kTarget{kName, HWY_TARGET, {&kF32, &kF64, &kF16, &kBF16}};

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace groupnorm::detail {
namespace {

constexpr Target kTargets[] = {
#if HWY_TARGETS & HWY_AVX3
    N_AVX3::kTarget,
#endif
#if HWY_TARGETS & HWY_AVX2
    N_AVX2::kTarget,
#endif
#if HWY_TARGETS & HWY_SSE4
    N_SSE4::kTarget,
#endif
#if HWY_TARGETS & HWY_NEON_WITHOUT_AES
    N_NEON_WITHOUT_AES::kTarget,
#elif HWY_TARGETS & HWY_NEON
    N_NEON::kTarget,
#endif
#if HWY_TARGETS & HWY_SCALAR
    N_SCALAR::kTarget,
#elif HWY_TARGETS & HWY_EMU128
    N_EMU128::kTarget,
#endif
};
static_assert(std::ssize(kTargets) == std::popcount(std::uint64_t{HWY_TARGETS}),
              "an instruction set is compiled, but not listed");

}  // namespace

std::span<const Target> compiled_targets() noexcept { return kTargets; }

}  // namespace groupnorm::detail
#endif  // HWY_ONCE
