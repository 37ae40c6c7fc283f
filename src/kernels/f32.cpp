// The kernels of f32: Highway includes this file again for each instruction set.
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/f32.cpp"
#include <hwy/foreach_target.h>
// Highway asks for foreach_target.h first.
#include "kernels/table-inl.h"

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

static constexpr GradientKernels kGradientsF32 = MakeGradientKernels<float>();
extern const Kernels kF32;  // targets.cpp lists it
const Kernels kF32 = MakeKernels<float>(&kGradientsF32);

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();
