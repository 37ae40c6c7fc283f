// The table of the kernels of T. Each file of a dtype makes one for every instruction set.
#if defined(GROUPNORM_SRC_KERNELS_TABLE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_TABLE_INL_H
#undef GROUPNORM_SRC_KERNELS_TABLE_INL_H
#else
#define GROUPNORM_SRC_KERNELS_TABLE_INL_H
#endif

// Compiled for size: see kFast (loop-inl.h).
#include <hwy/highway.h>
#if HWY_ARCH_X86 && HWY_TARGET == HWY_SCALAR && HWY_COMPILER_GCC_ACTUAL
#pragma GCC push_options
#pragma GCC optimize("Os")
#endif

#include "kernels/columns-inl.h"
#include "kernels/dx-inl.h"
#include "kernels/finish-inl.h"
#include "kernels/gradient-inl.h"
#include "kernels/kernels.h"
#include "kernels/moments-inl.h"
#include "kernels/name-inl.h"
#include "kernels/normalize-inl.h"
#include "kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

template <class T>
constexpr GradientKernels MakeGradientKernels() {
  return {SumRows<T>, SumColumns<T>, SumRuns<T>, Differentiate<T>, ApplyGradientColumns<T>};
}

template <class T, class C = Compute<T>>
constexpr Kernels MakeKernels(const GradientKernels* gradients) {
  return {kName,
          kLanes<C>,
          ReduceRuns<T>,
          ReduceSums<T>,
          ReduceColumns<T>,
          ExactMoments<T>,
          Finish<C>,
          Coefficients<T>,
          Normalize<T>,
          ApplyColumns<T>,
          Flush,
          {LoadTile<T, C>, LoadTile<T, double>, std::is_same_v<T, double> ? Narrow : nullptr,
           AddRows<C>, Activate<T>, ZColumns<C>, ZRuns<C>, DzOfTile<T, C>, DzOfTile<T, double>},
          gradients};
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#if HWY_ARCH_X86 && HWY_TARGET == HWY_SCALAR && HWY_COMPILER_GCC_ACTUAL
#pragma GCC pop_options
#endif

#endif
