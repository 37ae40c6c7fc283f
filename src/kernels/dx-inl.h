// apply, backward: dx = a dz + (slope (x - mean) + intercept), and the course of whole blocks.
#if defined(GROUPNORM_SRC_KERNELS_DX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_DX_INL_H
#undef GROUPNORM_SRC_KERNELS_DX_INL_H
#else
#define GROUPNORM_SRC_KERNELS_DX_INL_H
#endif

#include "kernels/activation-inl.h"
#include "kernels/gradient-inl.h"
#include "kernels/loop-inl.h"
#include "kernels/normalize-inl.h"
#include "kernels/terms-inl.h"
#include "tuning.h"

#include <cmath>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// Terms with intercept and slope of their block.
template <class C, class X>
class Sloped : public X {
 public:
  HWY_INLINE Sloped(const X& terms, Vector<C> intercept, Vector<C> slope)
      : X(terms), intercept_(intercept), slope_(slope) {}

  template <class Own>
  HWY_INLINE Vector<C> Plus(Vector<C> deviation, const Own&) const {
    return hn::MulAdd(slope_, deviation, intercept_);
  }

 private:
  Vector<C> intercept_, slope_;
};

// The same of lanes, from arrays.
template <class C, class X>
class SlopedLanes {
  using V = Vector<C>;

 public:
  static constexpr Order kOrder = Order::kept;
  struct Own {
    typename X::Own lanes;
    V intercept, slope;
  };

  HWY_INLINE SlopedLanes(const X& lanes, const GradientKernels::ApplyColumns& args)
      : lanes_(lanes),
        intercept_(static_cast<const C*>(args.intercept)),
        slope_(static_cast<const C*>(args.slope)) {}

  HWY_INLINE Own At(std::int64_t i) const {
    const Tag<C> d;
    return {lanes_.At(i), hn::LoadU(d, intercept_ + i), hn::LoadU(d, slope_ + i)};
  }
  HWY_INLINE Own Last(std::int64_t i) const { return At(i); }
  HWY_INLINE V Deviation(V x, const Own& own) const { return lanes_.Deviation(x, own.lanes); }
  HWY_INLINE V Z(V d, const Own& own) const { return lanes_.Z(d, own.lanes); }
  HWY_INLINE V Times(V dz, V plus, const Own& own) const {
    return lanes_.Times(dz, plus, own.lanes);
  }
  HWY_INLINE V Plus(V deviation, const Own& own) const {
    return hn::MulAdd(own.slope, deviation, own.intercept);
  }

 private:
  X lanes_;
  const C* intercept_;
  const C* slope_;
};

// dx, by terms X.
template <class T, class X, class Act>
requires Terms<X, Compute<T>>
class GradientStage {
  using C = Compute<T>;

 public:
  using Loaded = LoadedTwo<C>;
  static constexpr bool kFast = HWY_NAMESPACE::kFast<T>;
  static constexpr std::int64_t kStored = Act::kFew ? 1 : HWY_NAMESPACE::kStored<T>;

  HWY_INLINE GradientStage(const T* x, const T* dy, T* dx, const X& terms, const Act& act)
      : x_(x), dy_(dy), dx_(dx), terms_(terms), act_(act) {}

  HWY_INLINE Loaded Load(std::int64_t i) const {
    return {act_.Load(x_ + i), LoadAs(Tag<C>(), dy_ + i)};
  }
  template <class Own>
  HWY_INLINE void Write(std::int64_t i, const Loaded& in, const Own& own, Store store) const {
    StoreAs(Tag<C>(), Dx(in, own, x_ + i), dx_ + i, store);
  }
  template <class Own>
  HWY_INLINE void WriteTwo(std::int64_t i, const Own& own, const Own& next, Store store) const {
    const auto x = LoadTwo<X::kOrder>(Tag<C>(), x_ + i), dy = LoadTwo<X::kOrder>(Tag<C>(), dy_ + i);
    const Two<Vector<C>> dx{Dx({x.v0, dy.v0}, own, x_ + i), Dx({x.v1, dy.v1}, next, x_ + i)};
    StoreTwo<X::kOrder>(Tag<C>(), dx, dx_ + i, store);
  }

 private:
  template <class Own>
  HWY_INLINE Vector<C> Dx(const Loaded& in, const Own& own, const T* x) const {
    const auto deviation = terms_.Deviation(in.x, own);
    const auto dz = act_.Dz(
        in.dy, [&] HWY_ATTR { return terms_.Z(deviation, own); }, x);
    return act_.Dx(terms_.Times(dz, terms_.Plus(deviation, own), own), x);
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
      : args_(args), size_(args.channels * args.length), act_(args), joined_(args) {}

  // Between two blocks only the sums of rows are stored: see normalize-inl.h.
  HWY_INLINE std::int64_t Run() const {
    for (std::int64_t b = 0; b < args_.blocks; ++b) {
      const Statistics own =
          saved(args_.mean == nullptr ? 0 : args_.mean[b], args_.rstd[b], args_.rule.f32);
      // Numbers, not GradientTerms: copied as a whole, one just stored in parts waits for all of
      // dx.
      double intercept = 0, slope = 0;
      if (args_.terms != nullptr) {
        intercept = args_.terms[b].intercept;
        slope = args_.terms[b].slope;
      } else {
        const GradientTerms terms = Fold(b, own);
        if (terms.extreme) return b;
        intercept = terms.intercept;
        slope = terms.slope;
      }
      Apply(b, own.mean, own.rstd, hn::Set(Tag<C>(), static_cast<C>(intercept)),
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
  // (Those of a block that has no statistics are NaN, and hold.)
  HWY_INLINE GradientTerms Fold(std::int64_t b, const Statistics& own) const {
    if (own.extreme) return {0, 0, true};
    const double mean_lo = split_as<C>(own.mean).lo;
    const PerRow<T> rows(args_.params, b * args_.channels, own.mean, own.rstd);
    double sum_d = 0, sum_e = 0;
    for (std::int64_t r = 0; r < args_.channels; ++r) {
      const GradientSums sums =
          SumOfRow<T, Act>(rows, act_, x(b), dy(b), args_.channels, args_.length, r);
      args_.sums[b * args_.channels + r].dz = sums.dz;  // by numbers: see Run
      args_.sums[b * args_.channels + r].dzx = sums.dzx;
      const double gamma = rows.Gamma(r);
      sum_d += gamma * sums.dz;
      sum_e += gamma * (sums.dzx - mean_lo * sums.dz);
    }
    GradientTerms terms =
        gradient_terms(args_.rule, own, mean_lo, own.rstd * sum_d, own.rstd * sum_e);
    const bool holds = (std::isfinite(sum_d) && std::isfinite(sum_e)) || std::isnan(own.rstd);
    terms.extreme = terms.extreme || !holds;
    return terms;
  }

  HWY_INLINE void Apply(std::int64_t b, double mean, double rstd, Vector<C> intercept,
                        Vector<C> slope) const {
    T* const dx = static_cast<T*>(args_.dx) + b * size_;
    const std::int64_t first = b * args_.channels;
    if (args_.length == 1) {
      Sloped<C, ElementTerms<T>> terms(ElementTerms<T>(args_.params, first, mean, rstd), intercept,
                                       slope);
      const RowStretches<T, 1> stretches(dx, args_.channels, args_.store);
      for (int i = stretches.first(); i <= stretches.last(); ++i)
        WriteBy(b, 0, dx, terms, joined_, stretches[i]);
      return;
    }
    const PerRow<T> rows(args_.params, first, mean, rstd);
    if (IsShortRow<T>(args_.length)) {
      Sloped<C, ShortRowsTerms<T>> terms(ShortRowsTerms<T>(rows, args_.length), intercept, slope);
      WriteBy(b, 0, dx, terms, act_, Stretch{0, size_});
      return;
    }
    for (std::int64_t r = 0; r < args_.channels; ++r) {
      const std::int64_t at = r * args_.length;
      auto own = TermsOfRow<T>(rows, joined_, r);
      Sloped<C, decltype(own)> terms(own, intercept, slope);
      const RowStretches<T, 1> stretches(dx + at, args_.length, args_.store);
      for (int i = stretches.first(); i <= stretches.last(); ++i) {
        WriteBy(b, at, dx + at, terms, joined_, stretches[i]);
      }
    }
  }

  template <class X, class A>
  HWY_INLINE void WriteBy(std::int64_t b, std::int64_t at, T* dx, X& terms, const A& act,
                          const Stretch& to) const {
    NoSums none;
    Write<C, 1>(GradientStage<T, X, A>(x(b) + at, dy(b) + at, dx, terms, act), terms, to, none);
  }

  const GradientKernels::Differentiate& args_;
  std::int64_t size_;  // of a block
  Act act_;
  typename Act::Joined joined_;  // of all but short rows, where terms are given
};

template <class T>
std::int64_t Differentiate(const GradientKernels::Differentiate& args) {
  return IsSame(args) ? Differentiator<T, Same<T>>(args).Run()
                      : Differentiator<T, Derivative<T, false>>(args).Run();
}

template <class T, class Act>
HWY_INLINE void ApplyGradientColumnsBy(const GradientKernels::ApplyColumns& args) {
  using C = Compute<T>;
  constexpr std::int64_t kBand = !kFast<T> || Act::kFew ? 1 : kGradientPlaces;
  const Act act(args);
  auto lanes = TermsOfLanes<T>(args.coefficients, act);
  SlopedLanes<C, decltype(lanes)> terms(lanes, args);
  const Store store =
      StoreOfLanes(args.store, static_cast<const T*>(args.dx), args.stride, args.width);
  ForBands(args.rows, args.dy_stride == args.stride ? kBand : 1,
           [&](std::int64_t row, std::int64_t places, std::int64_t apart) HWY_ATTR {
             const std::int64_t at = row * args.stride;
             const GradientStage<T, decltype(terms), Act> stage(
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
  return IsSame(args) ? ApplyGradientColumnsBy<T, Same<T>>(args)
                      : ApplyGradientColumnsBy<T, Derivative<T, true>>(args);
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
