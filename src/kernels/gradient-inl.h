// The backward pass, with dz = dy * activation'(z) and z = a (x - mean) + b:
//
//   sum:    sum dz, sum dz (x - mean)          centred, so that no digit is lost to a large mean
//   apply:  dx = a dz + (slope (x - mean) + shift)
//
// Sums run in f32 as in moments-inl.h: some 32 terms, then double.
#if defined(GROUPNORM_SRC_KERNELS_GRADIENT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#undef GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#else
#define GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#endif

#include "kernels/loop-inl.h"
#include "kernels/moments-inl.h"
#include "kernels/normalize-inl.h"
#include "kernels/terms-inl.h"
#include "tuning.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// The sums of a row of terms RowTerms, in four chains.
template <class T, class Act>
class RowGradientSums {
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr std::int64_t kVector = kLanes<C>;

 public:
  HWY_INLINE RowGradientSums(const RowTerms<C>& terms, const Act& act) : terms_(terms), act_(act) {
    Start();
  }

  // Of elements [at, at + count) of x and dy, which have `total`, a vector at least.
  HWY_INLINE GradientSums Of(const T* x, const T* dy, std::int64_t at, std::int64_t count,
                             std::int64_t total) {
    const Tag<C> d;
    if (count < kVector) return OfShort(x, dy, at, count, total);
    const std::int64_t end = at + count;
    std::int64_t i = Act::kFew || !kFast<T> ? at : AddFours(x, dy, at, count);
    for (; i + kVector <= end; i += kVector) {
      Add<0>(LoadAs(d, x + i), LoadAs(d, dy + i));
      if (--left_ == 0) Fold();
    }
    if (i < end) {
      // The tail: the lanes already counted left out.
      const auto counted = hn::FirstN(d, static_cast<std::size_t>(kVector - (end - i)));
      const V deviation = terms_.Deviation(LoadAs(d, x + end - kVector), {});
      const V dz = DzOf(deviation, LoadAs(d, dy + end - kVector));
      AddDz<1>(hn::IfThenZeroElse(counted, deviation), hn::IfThenZeroElse(counted, dz));
    }
    Fold();
    return total_;
  }

 private:
  // All fours of vectors; returns where those end. The halves of a long row go side by side: see
  // RunSums.
  HWY_INLINE std::int64_t AddFours(const T* x, const T* dy, std::int64_t at, std::int64_t count) {
    const Tag<C> d;
    const std::int64_t steps = count / (4 * kVector);
    const bool halves = count >= 2 * kLongRun;
    const std::int64_t step = halves ? 2 * kVector : 4 * kVector;
    const std::int64_t apart = halves ? steps * step : 2 * kVector;
    for (std::int64_t s = 0, i = at; s < steps; ++s, i += step) {
      const auto x0 = LoadTwo<Order::any>(d, x + i), x1 = LoadTwo<Order::any>(d, x + i + apart);
      const auto dy0 = LoadTwo<Order::any>(d, dy + i), dy1 = LoadTwo<Order::any>(d, dy + i + apart);
      Add<0>(x0.v0, dy0.v0);
      Add<1>(x0.v1, dy0.v1);
      Add<2>(x1.v0, dy1.v0);
      Add<3>(x1.v1, dy1.v1);
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
    const V all = terms_.Deviation(LoadAs(d, x + first), {});
    const V deviation = hn::IfThenElseZero(own, all);
    const V dz = hn::IfThenElseZero(own, DzOf(all, LoadAs(d, dy + first)));
    return {SumLanes(d, dz), SumLanes(d, hn::Mul(dz, deviation))};
  }

  HWY_INLINE V DzOf(V deviation, V dy) const {
    return act_(dy, [&] HWY_ATTR { return terms_.Z(deviation, {}); });
  }

  template <int kChainOf>
  HWY_INLINE void Add(V x, V dy) {
    const V deviation = terms_.Deviation(x, {});
    AddDz<kChainOf>(deviation, DzOf(deviation, dy));
  }
  template <int kChainOf>
  HWY_INLINE void AddDz(V deviation, V dz) {
    dz_[kChainOf] = hn::Add(dz_[kChainOf], dz);
    dzx_[kChainOf] = hn::MulAdd(dz, deviation, dzx_[kChainOf]);
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

  const RowTerms<C>& terms_;
  const Act& act_;
  V dz_[4], dzx_[4];
  std::int64_t left_ = kChain;
  GradientSums total_{0, 0};
};

template <class T, class Act>
HWY_INLINE GradientSums SumOfRow(const PerRow<T>& rows, const Act& act, const T* x, const T* dy,
                                 std::int64_t count, std::int64_t length, std::int64_t row) {
  const RowTerms<Compute<T>> terms(rows.mean(), rows(row));
  return RowGradientSums<T, Act>(terms, act).Of(x, dy, row * length, length, count * length);
}

template <class T, class Act>
HWY_INLINE void SumRowsBy(const GradientKernels::SumRows& args) {
  const Act act(args.activation);
  const PerRow<T> rows(args.params, 0, args.mean, args.rstd);
  for (std::int64_t r = 0; r < args.rows; ++r) {
    args.sums[r] = SumOfRow<T, Act>(rows, act, static_cast<const T*>(args.x),
                                    static_cast<const T*>(args.dy), args.rows, args.length, r);
  }
}

template <class T>
void SumRows(const GradientKernels::SumRows& args) {
  return args.activation == Activation::none ? SumRowsBy<T, Same>(args)
                                             : SumRowsBy<T, Derivative>(args);
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
  const LaneTerms<C> terms(args.coefficients);
  for (std::int64_t i = 0; i < sums->size; i += kLanes<C>) {
    const std::int64_t column = sums->Column(i, args.width);
    const T* const x = static_cast<const T*>(args.x) + row * args.stride + column;
    const T* const dy = static_cast<const T*>(args.dy) + row * args.dy_stride + column;
    const auto own = terms.At(column);
    auto band_dz = hn::Zero(d), band_dzx = hn::Zero(d);
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < kRows; ++r) {
      const auto deviation = terms.Deviation(LoadAs(d, x + r * apart * args.stride), own);
      const auto dz = act(LoadAs(d, dy + r * apart * args.dy_stride),
                          [&] HWY_ATTR { return terms.Z(deviation, own); });
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
  const Act act(args.activation);
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
  return args.activation == Activation::none ? SumColumnsBy<T, Same>(args)
                                             : SumColumnsBy<T, Derivative>(args);
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
        const V deviation =
            hn::Sub(LoadAs(d, x + r * stride + at), hn::Load(d, mean + r * kVector));
        const V by_rstd = hn::Load(d, rstd + r * kVector), plus = hn::Load(d, shift + r * kVector);
        const V dz = act(LoadAs(d, dy + r * dy_stride + at), [&] HWY_ATTR {
          return hn::MulAdd(hn::MulAdd(deviation, by_rstd, plus), weight, beta.At(at));
        });
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
  const Act act(args.activation);
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
  return args.activation == Activation::none ? SumRunsBy<T, Same>(args)
                                             : SumRunsBy<T, Derivative>(args);
}

// Terms with shift and slope of their block.
template <class C, class X>
class Sloped : public X {
 public:
  HWY_INLINE Sloped(const X& terms, Vector<C> shift, Vector<C> slope)
      : X(terms), shift_(shift), slope_(slope) {}

  template <class Own>
  HWY_INLINE Vector<C> Plus(Vector<C> deviation, const Own&) const {
    return hn::MulAdd(slope_, deviation, shift_);
  }

 private:
  Vector<C> shift_, slope_;
};

// Those of a row of lanes, from arrays.
template <class C>
class SlopedLanes {
  using V = Vector<C>;

 public:
  static constexpr Order kOrder = Order::kept;
  struct Own {
    typename LaneTerms<C>::Own lanes;
    V shift, slope;
  };

  HWY_INLINE explicit SlopedLanes(const GradientKernels::ApplyColumns& args)
      : lanes_(args.coefficients),
        shift_(static_cast<const C*>(args.shift)),
        slope_(static_cast<const C*>(args.slope)) {}

  HWY_INLINE Own At(std::int64_t i) const {
    const Tag<C> d;
    return {lanes_.At(i), hn::LoadU(d, shift_ + i), hn::LoadU(d, slope_ + i)};
  }
  HWY_INLINE Own Last(std::int64_t i) const { return At(i); }
  HWY_INLINE V Deviation(V x, const Own& own) const { return lanes_.Deviation(x, own.lanes); }
  HWY_INLINE V Z(V d, const Own& own) const { return lanes_.Z(d, own.lanes); }
  HWY_INLINE V Times(V dz, V plus, const Own& own) const {
    return lanes_.Times(dz, plus, own.lanes);
  }
  HWY_INLINE V Plus(V deviation, const Own& own) const {
    return hn::MulAdd(own.slope, deviation, own.shift);
  }

 private:
  LaneTerms<C> lanes_;
  const C* shift_;
  const C* slope_;
};

// dx, by terms X.
template <class T, class X, class Act>
requires Terms<X, Compute<T>>
class GradientStage {
  using C = Compute<T>;

 public:
  struct Loaded {
    Vector<C> x, dy;
  };
  static constexpr bool kFast = HWY_NAMESPACE::kFast<T>;
  static constexpr std::int64_t kStored = Act::kFew ? 1 : HWY_NAMESPACE::kStored<T>;

  HWY_INLINE GradientStage(const T* x, const T* dy, T* dx, const X& terms, const Act& act)
      : x_(x), dy_(dy), dx_(dx), terms_(terms), act_(act) {}

  HWY_INLINE Loaded Load(std::int64_t i) const {
    return {LoadAs(Tag<C>(), x_ + i), LoadAs(Tag<C>(), dy_ + i)};
  }
  template <class Own>
  HWY_INLINE void Write(std::int64_t i, const Loaded& in, const Own& own, Store store) const {
    StoreAs(Tag<C>(), Dx(in, own), dx_ + i, store);
  }
  template <class Own>
  HWY_INLINE void WriteTwo(std::int64_t i, const Own& own, const Own& next, Store store) const {
    const auto x = LoadTwo<X::kOrder>(Tag<C>(), x_ + i), dy = LoadTwo<X::kOrder>(Tag<C>(), dy_ + i);
    const Two<Vector<C>> dx{Dx({x.v0, dy.v0}, own), Dx({x.v1, dy.v1}, next)};
    StoreTwo<X::kOrder>(Tag<C>(), dx, dx_ + i, store);
  }

 private:
  template <class Own>
  HWY_INLINE Vector<C> Dx(const Loaded& in, const Own& own) const {
    const auto deviation = terms_.Deviation(in.x, own);
    const auto dz = act_(in.dy, [&] HWY_ATTR { return terms_.Z(deviation, own); });
    return terms_.Times(dz, terms_.Plus(deviation, own), own);
  }

  const T* x_;
  const T* dy_;
  T* dx_;
  const X& terms_;
  const Act& act_;
};

template <class T, class Act>
class Differentiator {
  using C = Compute<T>;

 public:
  HWY_INLINE explicit Differentiator(const GradientKernels::Differentiate& args)
      : args_(args), size_(args.channels * args.length), act_(args.activation) {}

  // Between two blocks only the sums of rows are stored: see normalize-inl.h.
  HWY_INLINE std::int64_t Run() const {
    for (std::int64_t b = 0; b < args_.blocks; ++b) {
      const Statistics own =
          saved(args_.mean == nullptr ? 0 : args_.mean[b], args_.rstd[b], args_.rule.f32);
      // Numbers, not GradientTerms: copied as a whole, one just stored in parts waits for all of
      // dx.
      double shift = 0, slope = 0;
      if (args_.terms != nullptr) {
        shift = args_.terms[b].shift;
        slope = args_.terms[b].slope;
      } else {
        const GradientTerms terms = Fold(b, own);
        if (terms.extreme) return b;
        shift = terms.shift;
        slope = terms.slope;
      }
      Apply(b, own.mean, own.rstd, hn::Set(Tag<C>(), static_cast<C>(shift)),
            hn::Set(Tag<C>(), static_cast<C>(slope)));
    }
    return args_.blocks;
  }

 private:
  HWY_INLINE const T* x(std::int64_t b) const { return static_cast<const T*>(args_.x) + b * size_; }
  HWY_INLINE const T* dy(std::int64_t b) const {
    return static_cast<const T*>(args_.dy) + b * size_;
  }

  // The sums of the block's rows, and its terms of them; extreme also where they do not hold.
  HWY_INLINE GradientTerms Fold(std::int64_t b, const Statistics& own) const {
    const double mean_lo = split_as<C>(own.mean).lo;
    const PerRow<T> rows(args_.params, b * args_.channels, own.mean, own.rstd);
    double sum_d = 0, sum_e = 0;
    for (std::int64_t r = 0; r < args_.channels; ++r) {
      const GradientSums sums =
          SumOfRow<T, Act>(rows, act_, x(b), dy(b), args_.channels, args_.length, r);
      args_.sums[b * args_.channels + r] = sums;
      const double gamma = rows.Gamma(r);
      sum_d += gamma * sums.dz;
      sum_e += gamma * (sums.dzx - mean_lo * sums.dz);
    }
    GradientTerms terms =
        gradient_terms(args_.rule, own, mean_lo, own.rstd * sum_d, own.rstd * sum_e);
    terms.extreme = terms.extreme || !std::isfinite(sum_d) || !std::isfinite(sum_e);
    return terms;
  }

  HWY_INLINE void Apply(std::int64_t b, double mean, double rstd, Vector<C> shift,
                        Vector<C> slope) const {
    T* const dx = static_cast<T*>(args_.dx) + b * size_;
    const std::int64_t first = b * args_.channels;
    if (args_.length == 1) {
      Sloped<C, ElementTerms<T>> terms(ElementTerms<T>(args_.params, first, mean, rstd), shift,
                                       slope);
      const RowStretches<T, 1> stretches(dx, args_.channels, args_.store);
      for (int i = stretches.first(); i <= stretches.last(); ++i)
        WriteBy(b, 0, dx, terms, stretches[i]);
      return;
    }
    const PerRow<T> rows(args_.params, first, mean, rstd);
    if (IsShortRow<T>(args_.length)) {
      Sloped<C, ShortRowsTerms<T>> terms(ShortRowsTerms<T>(rows, args_.length), shift, slope);
      WriteBy(b, 0, dx, terms, Stretch{0, size_});
      return;
    }
    for (std::int64_t r = 0; r < args_.channels; ++r) {
      const std::int64_t at = r * args_.length;
      Sloped<C, RowTerms<C>> terms(RowTerms<C>(rows.mean(), rows(r)), shift, slope);
      const RowStretches<T, 1> stretches(dx + at, args_.length, args_.store);
      for (int i = stretches.first(); i <= stretches.last(); ++i) {
        WriteBy(b, at, dx + at, terms, stretches[i]);
      }
    }
  }

  template <class X>
  HWY_INLINE void WriteBy(std::int64_t b, std::int64_t at, T* dx, X& terms,
                          const Stretch& to) const {
    NoSums none;
    Write<C, 1>(GradientStage<T, X, Act>(x(b) + at, dy(b) + at, dx, terms, act_), terms, to, none);
  }

  const GradientKernels::Differentiate& args_;
  std::int64_t size_;  // of a block
  Act act_;
};

template <class T>
std::int64_t Differentiate(const GradientKernels::Differentiate& args) {
  return args.activation == Activation::none ? Differentiator<T, Same>(args).Run()
                                             : Differentiator<T, Derivative>(args).Run();
}

template <class T, class Act>
HWY_INLINE void ApplyGradientColumnsBy(const GradientKernels::ApplyColumns& args) {
  using C = Compute<T>;
  constexpr std::int64_t kBand = !kFast<T> || Act::kFew ? 1 : kGradientPlaces;
  const Act act(args.activation);
  SlopedLanes<C> terms(args);
  const Store store =
      StoreOfLanes(args.store, static_cast<const T*>(args.dx), args.stride, args.width);
  ForBands(args.rows, args.dy_stride == args.stride ? kBand : 1,
           [&](std::int64_t row, std::int64_t places, std::int64_t apart) HWY_ATTR {
             const std::int64_t at = row * args.stride;
             const GradientStage<T, SlopedLanes<C>, Act> stage(
                 static_cast<const T*>(args.x) + at,
                 static_cast<const T*>(args.dy) + row * args.dy_stride,
                 static_cast<T*>(args.dx) + at, terms, act);
             NoSums none;
             Write<C, kBand>(stage, terms,
                             Stretch{0, args.width, places, apart * args.stride, store}, none);
           });
}

template <class T>
void ApplyGradientColumns(const GradientKernels::ApplyColumns& args) {
  return args.activation == Activation::none ? ApplyGradientColumnsBy<T, Same>(args)
                                             : ApplyGradientColumnsBy<T, Derivative>(args);
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
