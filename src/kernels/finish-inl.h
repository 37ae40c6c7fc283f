// finish: moments -> statistics, the roots and divisions of several blocks in one vector.
// docs/mathematics.md derives every line.
#if defined(GROUPNORM_SRC_KERNELS_FINISH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_FINISH_INL_H
#undef GROUPNORM_SRC_KERNELS_FINISH_INL_H
#else
#define GROUPNORM_SRC_KERNELS_FINISH_INL_H
#endif

#include "kernels/simd-inl.h"
#include "tuning.h"

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// What all blocks of a call have in common.
struct FinishRule {
  double count;
  int correction;
  double eps;
  bool center;
};

// Of one block a lane: sum of squares that rstd is made of, mean and rstd.
template <class V>
struct Finished {
  V sum, mean, rstd;
};

template <class DD, class V = hn::Vec<DD>>
HWY_INLINE Finished<V> FinishVector(DD dd, const FinishRule& rule, V mean, V m2) {
  V sum = m2;
  if (rule.center) {
    // An infinite number has no distance from its mean.
    const V undefined = hn::Sub(m2, m2);
    sum = hn::Add(sum, undefined);
    mean = hn::Add(mean, undefined);
  } else {
    sum = hn::Add(sum, hn::Mul(hn::Set(dd, rule.count), hn::Mul(mean, mean)));
    mean = hn::Zero(dd);
  }
  // Not Max, which may lose a NaN.
  const V positive = hn::IfThenZeroElse(hn::Lt(sum, hn::Zero(dd)), sum);
  const V degrees = hn::Set(dd, rule.count - rule.correction);
  const V spread = hn::Add(hn::Div(positive, degrees), hn::Set(dd, rule.eps));
  const V inverse = hn::Div(hn::Set(dd, 1.0), hn::Sqrt(spread));
  return {sum, mean, hn::IfThenZeroElse(hn::Eq(spread, hn::Zero(dd)), inverse)};
}

// C: the compute type, whose range decides what is extreme.
template <class C>
HWY_INLINE Statistics StatisticsOf(double sum, double mean, double rstd) {
  return {mean, rstd, sizeof(C) == 4 && (sum >= kExtremeM2 || rstd >= kExtremeRstd)};
}

// The latency of a whole vector's root is twice that of one number.
template <class C>
HWY_INLINE Statistics FinishOne(const FinishRule& rule, const Moments& moments) {
  const hn::CappedTag<double, 1> dd;
  const auto one = FinishVector(dd, rule, hn::Set(dd, moments.mean), hn::Set(dd, moments.m2));
  return StatisticsOf<C>(hn::GetLane(one.sum), hn::GetLane(one.mean), hn::GetLane(one.rstd));
}

// At most kBatch blocks, stage by stage: a vector that is loaded from numbers just stored waits for
// all that came before them, so that there is one such place and not one a vector.
template <class C>
HWY_INLINE void FinishSome(const FinishRule& rule, const Moments* moments, std::int64_t blocks,
                           Statistics* statistics) {
  const hn::CappedTag<double, kBatch> dd;
  constexpr auto kVector = static_cast<std::int64_t>(hn::MaxLanes(dd));
  HWY_ALIGN double mean[kBatch], m2[kBatch], rstd[kBatch];
  for (std::int64_t b = 0; b < (blocks + kVector - 1) / kVector * kVector; ++b) {
    mean[b] = moments[std::min(b, blocks - 1)].mean;
    m2[b] = moments[std::min(b, blocks - 1)].m2;
  }
  for (std::int64_t b = 0; b < blocks; b += kVector) {
    const auto some = FinishVector(dd, rule, hn::Load(dd, mean + b), hn::Load(dd, m2 + b));
    hn::Store(some.sum, dd, m2 + b);
    hn::Store(some.mean, dd, mean + b);
    hn::Store(some.rstd, dd, rstd + b);
  }
  for (std::int64_t b = 0; b < blocks; ++b) {
    statistics[b] = StatisticsOf<C>(m2[b], mean[b], rstd[b]);
  }
}

template <class C>
void Finish(const Kernels::Finish& args) {
  const FinishRule rule{args.moments->count, args.correction, args.eps, args.center};
  if (args.blocks == 1) {
    *args.statistics = FinishOne<C>(rule, *args.moments);
    return;
  }
  for (std::int64_t first = 0; first < args.blocks; first += kBatch) {
    FinishSome<C>(rule, args.moments + first, std::min(kBatch, args.blocks - first),
                  args.statistics + first);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
