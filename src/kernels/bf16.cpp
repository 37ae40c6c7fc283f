// The kernels of bf16: Highway includes this file again for each instruction set.
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/bf16.cpp"
#include <hwy/foreach_target.h>
// Highway asks for foreach_target.h first.
#include "kernels/table-inl.h"

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

static constexpr GradientKernels kGradientsBF16 = MakeGradientKernels<BF16>();
extern const Kernels kBF16;  // targets.cpp lists it
const Kernels kBF16 = MakeKernels<BF16>(&kGradientsBF16);

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();
