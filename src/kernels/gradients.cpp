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
  // f64 data takes f64 parameters alone (validate.cpp).
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
  return {ReduceGradientRows<T, T>,
          ReduceGradientRows<T, Wide>,
          ReduceGradientLanes<T>,
          DxRows<T, T>,
          DxRows<T, Wide>,
          DxLanes<T>,
          ReduceGradientRuns<T, T>,
          ReduceGradientRuns<T, Wide>,
          DxRuns<T, T>,
          DxRuns<T, Wide>};
}

extern const GradientKernels kGradientTables[4];  // kernels.cpp reads them
const GradientKernels kGradientTables[4] = {GradientTable<float>(), GradientTable<double>(),
                                            GradientTable<F16>(), GradientTable<BF16>()};

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();
