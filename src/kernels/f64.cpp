// The kernels of f64: Highway includes this file again for each instruction set.
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/f64.cpp"
#include <hwy/foreach_target.h>
// Highway asks for foreach_target.h first.
#include "kernels/table-inl.h"

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

static constexpr GradientKernels kGradientsF64 = MakeGradientKernels<double>();
extern const Kernels kF64;  // targets.cpp lists it
const Kernels kF64 = MakeKernels<double>(&kGradientsF64);

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();
