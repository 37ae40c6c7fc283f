// The kernels of f16: Highway includes this file again for each instruction set.
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/f16.cpp"
#include <hwy/foreach_target.h>
// Highway asks for foreach_target.h first.
#include "kernels/table-inl.h"

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

static constexpr GradientKernels kGradientsF16 = MakeGradientKernels<F16>();
extern const Kernels kF16;  // targets.cpp lists it
const Kernels kF16 = MakeKernels<F16>(&kGradientsF16);

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();
