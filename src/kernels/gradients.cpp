// The kernels of the backward pass, one table per dtype and instruction set: as kernels.cpp, and
// apart from it so that both compile at once.
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gradients.cpp"
#include <hwy/foreach_target.h>
// Highway asks for foreach_target.h first.
#include "kernels/gradient-inl.h"

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

template <class T>
constexpr GradientKernels GradientTable() {
  return {ReduceGradientRows<T>,
          ReduceGradientLanes<T>,
          DxRows<T>,
          DifferentiateBlocks<T>,
          DxLanes<T>,
          ReduceGradientRuns<T>,
          DxRuns<T>};
}

extern const GradientKernels kGradientTables[4];  // kernels.cpp reads them
const GradientKernels kGradientTables[4] = {GradientTable<float>(), GradientTable<double>(),
                                            GradientTable<F16>(), GradientTable<BF16>()};

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();
