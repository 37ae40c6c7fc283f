// finish: moments -> statistics, the roots and divisions of several blocks in one vector.
// docs/mathematics.md derives every line.
#if defined(GROUPNORM_SRC_KERNELS_FINISH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_FINISH_INL_H
#undef GROUPNORM_SRC_KERNELS_FINISH_INL_H
#else
#define GROUPNORM_SRC_KERNELS_FINISH_INL_H
#endif

#include "kernels/kernels.h"
#include "kernels/simd-inl.h"

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// At most kAtOnce blocks, stage by stage: a vector that is loaded from numbers just stored waits
// for all that came before them, so that there is one such place and not one a vector. C: the
// compute type, whose range decides what is extreme.
inline constexpr std::int64_t kAtOnce = 16;

template <class C, class DD>
HWY_INLINE void FinishSome(DD dd, const Kernels::Finish& args, std::int64_t first,
                           std::int64_t blocks) {
  constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(dd));
  const double count = args.moments->count;
  const auto n = hn::Set(dd, count), degrees = hn::Set(dd, count - args.correction);
  HWY_ALIGN double mean[kAtOnce], m2[kAtOnce], rstd[kAtOnce];
  for (std::int64_t b = 0; b < (blocks + kLanes - 1) / kLanes * kLanes; ++b) {
    const Moments& moments = args.moments[first + std::min(b, blocks - 1)];
    mean[b] = moments.mean;
    m2[b] = moments.m2;
  }
  for (std::int64_t b = 0; b < blocks; b += kLanes) {
    auto sum = hn::Load(dd, m2 + b);
    if (!args.center) {
      const auto from_mean = hn::Load(dd, mean + b);
      sum = hn::Add(sum, hn::Mul(n, hn::Mul(from_mean, from_mean)));
      hn::Store(sum, dd, m2 + b);
      hn::Store(hn::Zero(dd), dd, mean + b);
    }
    // Not Max, which may lose a NaN.
    const auto positive = hn::IfThenZeroElse(hn::Lt(sum, hn::Zero(dd)), sum);
    const auto spread = hn::Add(hn::Div(positive, degrees), hn::Set(dd, args.eps));
    const auto inverse = hn::Div(hn::Set(dd, 1.0), hn::Sqrt(spread));
    hn::Store(hn::IfThenZeroElse(hn::Eq(spread, hn::Zero(dd)), inverse), dd, rstd + b);
  }
  for (std::int64_t b = 0; b < blocks; ++b) {
    const bool out_of_range = m2[b] >= kExtremeM2 || rstd[b] >= kExtremeRstd;
    args.statistics[first + b] = {mean[b], rstd[b], sizeof(C) == 4 && out_of_range};
  }
}

template <class C>
void Finish(const Kernels::Finish& args) {
  // The latency of a whole vector's root is twice that of one number.
  if (args.blocks == 1) return FinishSome<C>(hn::CappedTag<double, 1>(), args, 0, 1);
  for (std::int64_t first = 0; first < args.blocks; first += kAtOnce) {
    FinishSome<C>(hn::CappedTag<double, kAtOnce>(), args, first,
                  std::min(kAtOnce, args.blocks - first));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
