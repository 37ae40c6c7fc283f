// The backward pass, with dz = dy * activation'(z) and z = a (x - mean) + b:
//
//   sum:    sum dz, sum dz (x - mean)          centred, so that no digit is lost to a large mean
//   apply:  dx = a dz + (slope (x - mean) + intercept), in dx-inl.h
//
// Sums run in f32 as in moments-inl.h: some 32 terms, then double.
#if defined(GROUPNORM_SRC_KERNELS_GRADIENT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#undef GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#else
#define GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#endif

#include "kernels/activation-inl.h"
#include "kernels/columns-inl.h"
#include "kernels/loop-inl.h"
#include "kernels/moments-inl.h"
#include "kernels/terms-inl.h"
#include "tuning.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// The sums of a row of terms X, in four chains.
template <class T, class X, class Act>
class RowGradientSums {
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr std::int64_t kVector = kLanes<C>;

 public:
  HWY_INLINE RowGradientSums(const X& terms, const Act& act) : terms_(terms), act_(act) { Start(); }

  // Of elements [at, at + count) of x and dy, which have `total`, a vector at least.
  HWY_INLINE GradientSums Of(const T* x, const T* dy, std::int64_t at, std::int64_t count,
                             std::int64_t total) {
    const Tag<C> d;
    if (count < kVector) return OfShort(x, dy, at, count, total);
    const std::int64_t end = at + count;
    std::int64_t i = at;
    if constexpr (!Act::kFew && kFast<T>) i = AddFours(x, dy, at, count);
    for (; i + kVector <= end; i += kVector) {
      const Pair own = PairAt(act_, x + i, dy + i);
      act_.Keep(own.dz, x + i);
      Add<0>(own);
      if (--left_ == 0) Fold();
    }
    if (i < end) {
      // The tail: the lanes already counted left out.
      const auto counted = hn::FirstN(d, static_cast<std::size_t>(kVector - (end - i)));
      const Pair own = PairAt(act_, x + end - kVector, dy + end - kVector);
      act_.Keep(own.dz, x + end - kVector);
      dz_[1] = hn::Add(dz_[1], hn::IfThenZeroElse(counted, own.dz));
      dzx_[1] = hn::Add(dzx_[1], hn::IfThenZeroElse(counted, hn::Mul(own.dz, own.deviation)));
    }
    Fold();
    return total_;
  }

 private:
  struct Pair {
    V deviation, dz;
  };

  template <class A>
  HWY_INLINE Pair PairAt(const A& act, const T* x, const T* dy) const {
    const V deviation = terms_.Deviation(act.Load(x), {});
    const auto z = [&] HWY_ATTR { return terms_.Z(deviation, {}); };
    return {deviation, act.Dz(LoadAs(Tag<C>(), dy), z, x)};
  }

  // All fours of vectors, dz = dy; returns where those end. The halves of a long row go side by
  // side: see RunSums.
  HWY_INLINE std::int64_t AddFours(const T* x, const T* dy, std::int64_t at, std::int64_t count) {
    const Tag<C> d;
    const std::int64_t steps = count / (4 * kVector);
    const bool halves = count >= 2 * kLongRun;
    const std::int64_t step = halves ? 2 * kVector : 4 * kVector;
    const std::int64_t apart = halves ? steps * step : 2 * kVector;
    for (std::int64_t s = 0, i = at; s < steps; ++s, i += step) {
      const auto x0 = LoadTwo<Order::any>(d, x + i), x1 = LoadTwo<Order::any>(d, x + i + apart);
      const auto dy0 = LoadTwo<Order::any>(d, dy + i), dy1 = LoadTwo<Order::any>(d, dy + i + apart);
      Add<0>({terms_.Deviation(x0.v0, {}), dy0.v0});
      Add<1>({terms_.Deviation(x0.v1, {}), dy0.v1});
      Add<2>({terms_.Deviation(x1.v0, {}), dy1.v0});
      Add<3>({terms_.Deviation(x1.v1, {}), dy1.v1});
      if (--left_ == 0) Fold();
    }
    return at + steps * 4 * kVector;
  }

  // Of a row that fills no vector: what one has of other rows is left out.
  HWY_INLINE GradientSums OfShort(const T* x, const T* dy, std::int64_t at, std::int64_t count,
                                  std::int64_t total) const {
    const Tag<C> d;
    const std::int64_t first = std::min(at, total - kVector);
    const auto before = hn::FirstN(d, static_cast<std::size_t>(at - first));
    const auto until = hn::FirstN(d, static_cast<std::size_t>(at - first + count));
    const auto own = hn::AndNot(before, until);
    // Left out of the products, not of what is loaded: loads under a mask are not guessed ahead.
    const Pair all = PairAt(act_.Plain(), x + first, dy + first);
    return {SumLanes(d, hn::IfThenElseZero(own, all.dz)),
            SumLanes(d, hn::IfThenElseZero(own, hn::Mul(all.dz, all.deviation)))};
  }

  template <int kChainOf>
  HWY_INLINE void Add(const Pair& own) {
    dz_[kChainOf] = hn::Add(dz_[kChainOf], own.dz);
    dzx_[kChainOf] = hn::MulAdd(own.dz, own.deviation, dzx_[kChainOf]);
  }

  HWY_INLINE void Fold() {
    const Tag<C> d;
    total_.dz += SumLanes(d, hn::Add(hn::Add(dz_[0], dz_[1]), hn::Add(dz_[2], dz_[3])));
    total_.dzx += SumLanes(d, hn::Add(hn::Add(dzx_[0], dzx_[1]), hn::Add(dzx_[2], dzx_[3])));
    Start();
  }

  HWY_INLINE void Start() {
    left_ = kChain;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) dz_[i] = dzx_[i] = hn::Zero(Tag<C>());
  }

  const X& terms_;
  const Act& act_;
  V dz_[4], dzx_[4];
  std::int64_t left_ = kChain;
  GradientSums total_{0, 0};
};

template <class T, class Act>
HWY_INLINE GradientSums SumOfRow(const PerRow<T>& rows, const Act& act, const T* x, const T* dy,
                                 std::int64_t count, std::int64_t length, std::int64_t row) {
  auto terms = TermsOfRow<T>(rows, act, row);
  return RowGradientSums<T, decltype(terms), Act>(terms, act)
      .Of(x, dy, row * length, length, count * length);
}

template <class T, class Act>
HWY_INLINE void SumRowsBy(const GradientKernels::SumRows& args) {
  const Act act(args);
  const PerRow<T> rows(args.params, 0, args.mean, args.rstd);
  for (std::int64_t r = 0; r < args.rows; ++r) {
    args.sums[r] = SumOfRow<T, Act>(rows, act, static_cast<const T*>(args.x),
                                    static_cast<const T*>(args.dy), args.rows, args.length, r);
  }
}

template <class T>
void SumRows(const GradientKernels::SumRows& args) {
  return IsSame(args) ? SumRowsBy<T, Same<T>>(args) : SumRowsBy<T, Derivative<T, true>>(args);
}

template <class C>
HWY_INLINE void WriteColumnSums(const ColumnSums<C>& sums, std::int64_t width,
                                GradientSums* result) {
  for (std::int64_t i = 0; i < sums.size; ++i) {
    const std::int64_t vector = i / kLanes<C> * kLanes<C>;
    result[sums.Column(vector, width) + i - vector] = {sums.s1[i], sums.s2[i]};
  }
}

// As SumColumnBand, of dz and dz (x - mean).
template <std::int64_t kRows, class T, class Act>
HWY_INLINE void SumGradientBand(const GradientKernels::SumColumns& args, const Act& act,
                                std::int64_t row, std::int64_t apart,
                                ColumnSums<Compute<T>>* sums) {
  using C = Compute<T>;
  const Tag<C> d;
  const auto terms = TermsOfLanes<T>(args.coefficients, act);
  for (std::int64_t i = 0; i < sums->size; i += kLanes<C>) {
    const std::int64_t column = sums->Column(i, args.width);
    const T* const x = static_cast<const T*>(args.x) + row * args.stride + column;
    const T* const dy = static_cast<const T*>(args.dy) + row * args.dy_stride + column;
    const auto own = terms.At(column);
    auto band_dz = hn::Zero(d), band_dzx = hn::Zero(d);
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < kRows; ++r) {
      const T* const place = x + r * apart * args.stride;
      const auto deviation = terms.Deviation(act.Load(place), own);
      const auto dz = act.Dz(
          LoadAs(d, dy + r * apart * args.dy_stride),
          [&] HWY_ATTR { return terms.Z(deviation, own); }, place);
      act.Keep(dz, place);
      band_dz = hn::Add(band_dz, dz);
      band_dzx = hn::MulAdd(dz, deviation, band_dzx);
    }
    sums->Add(i, band_dz, band_dzx);
  }
  sums->Link();
}

template <class T, class Act>
HWY_INLINE void SumColumnsBy(const GradientKernels::SumColumns& args) {
  constexpr std::int64_t kBand = !kFast<T> ? 1 : Act::kFew ? 2 : kSumBand;
  const Act act(args);
  ColumnSums<Compute<T>> sums(args.width);
  ForBands(args.rows, kBand,
           [&](std::int64_t row, std::int64_t places, std::int64_t apart) HWY_ATTR {
             if (kBand > 1 && places == kBand) {
               SumGradientBand<kBand, T>(args, act, row, apart, &sums);
             } else {
               SumGradientBand<1, T>(args, act, row, 1, &sums);
             }
           });
  sums.Fold();
  WriteColumnSums(sums, args.width, args.sums);
}

template <class T>
void SumColumns(const GradientKernels::SumColumns& args) {
  return IsSame(args) ? SumColumnsBy<T, Same<T>>(args) : SumColumnsBy<T, Derivative<T, true>>(args);
}

// Runs that have a mean and a rstd each, and a gamma for each element: kRows of them, `apart` runs
// apart, join the sums of dz and dz xhat down the columns, and add to their own along the runs.
template <std::int64_t kRows, class T, class Act>
HWY_INLINE void SumRunBand(const GradientKernels::SumRuns& args, const Act& act,
                           const Param<T>& gamma, const Param<T>& beta, std::int64_t run,
                           std::int64_t apart, ColumnSums<Compute<T>>* sums) {
  using C = Compute<T>;
  using V = Vector<C>;
  const Tag<C> d;
  constexpr std::int64_t kVector = kLanes<C>;
  const std::int64_t stride = apart * args.stride, dy_stride = apart * args.dy_stride;
  const T* const x = static_cast<const T*>(args.x) + run * args.stride;
  const T* const dy = static_cast<const T*>(args.dy) + run * args.dy_stride;
  // xhat = (x - mean) rstd + shift, each in all lanes
  HWY_ALIGN C mean[kRows * kVector], rstd[kRows * kVector], shift[kRows * kVector];
  for (std::int64_t r = 0; r < kRows; ++r) {
    const Statistics& own = args.statistics[(run + r * apart) * args.step];
    const Split split = split_as<C>(own.mean);
    hn::Store(hn::Set(d, static_cast<C>(split.hi)), d, mean + r * kVector);
    hn::Store(hn::Set(d, static_cast<C>(own.rstd)), d, rstd + r * kVector);
    hn::Store(hn::Set(d, static_cast<C>(-split.lo * own.rstd)), d, shift + r * kVector);
  }
  // The tail: the runs' own sums leave out the lanes already counted.
  const std::int64_t last = args.width - kVector;
  const auto counted = hn::FirstN(d, static_cast<std::size_t>(sums->size - args.width));
  for (std::int64_t i = 0; i < sums->size;) {
    V run_dz[kRows], run_dzx[kRows];
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < kRows; ++r) run_dz[r] = run_dzx[r] = hn::Zero(d);
    const std::int64_t end = std::min(sums->size, i + kChain * kVector);
    for (; i < end; i += kVector) {
      const std::int64_t at = std::min(i, last);
      const V weight = gamma.At(at);
      V band_dz = hn::Zero(d), band_dzx = hn::Zero(d);
#pragma GCC unroll 4
      for (std::int64_t r = 0; r < kRows; ++r) {
        const T* const place = x + r * stride + at;
        const V deviation = hn::Sub(act.Load(place), hn::Load(d, mean + r * kVector));
        const V by_rstd = hn::Load(d, rstd + r * kVector), plus = hn::Load(d, shift + r * kVector);
        const auto z = [&] HWY_ATTR {
          return hn::MulAdd(hn::MulAdd(deviation, by_rstd, plus), weight, beta.At(at));
        };
        const V dz = act.Dz(LoadAs(d, dy + r * dy_stride + at), z, place);
        act.Keep(dz, place);
        // Not dz * xhat: where eps is all there is of a deviation, xhat has few digits.
        const V scaled = hn::Mul(dz, by_rstd);
        band_dz = hn::Add(band_dz, dz);
        band_dzx = hn::MulAdd(scaled, deviation, hn::MulAdd(dz, plus, band_dzx));
        V of_run = hn::Mul(scaled, weight);
        if (at != i) of_run = hn::IfThenZeroElse(counted, of_run);
        run_dz[r] = hn::Add(run_dz[r], of_run);
        run_dzx[r] = hn::MulAdd(of_run, deviation, run_dzx[r]);
      }
      sums->Add(i, band_dz, band_dzx);
    }
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < kRows; ++r) {
      GradientSums& own = args.run_sums[run + r * apart];
      own.dz += SumLanes(d, run_dz[r]);
      own.dzx += SumLanes(d, run_dzx[r]);
    }
  }
  sums->Link();
}

template <class T, class Act>
HWY_INLINE void SumRunsBy(const GradientKernels::SumRuns& args) {
  using C = Compute<T>;
  constexpr std::int64_t kBand = !kFast<T> || Act::kFew ? 1 : kRunBand;
  const Act act(args);
  ColumnSums<C> sums(args.width);
  const Param<T> gamma(args.params.gamma, args.params.dtype, 0, C{1});
  const Param<T> beta(args.params.beta, args.params.dtype, 0, C{0});
  ForBands(args.runs, kBand,
           [&](std::int64_t run, std::int64_t places, std::int64_t apart) HWY_ATTR {
             if (kBand > 1 && places == kBand) {
               SumRunBand<kBand>(args, act, gamma, beta, run, apart, &sums);
             } else {
               SumRunBand<1>(args, act, gamma, beta, run, 1, &sums);
             }
           });
  sums.Fold();
  WriteColumnSums(sums, args.width, args.column_sums);
}

template <class T>
void SumRuns(const GradientKernels::SumRuns& args) {
  return IsSame(args) ? SumRunsBy<T, Same<T>>(args) : SumRunsBy<T, Derivative<T, true>>(args);
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
