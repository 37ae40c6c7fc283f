// The backward pass, with dz = dy * activation'(z) and z = a (x - mean) + b:
//
//   reduce:  sum dz, sum dz (x - mean)         centred, so that no digit is lost to a large mean
//   apply:   dx = a dz + (slope (x - mean) + shift)
//
// Sums run in f32 as in reduce-inl.h: some 32 terms, then double. Ends that fill no vector go as in
// apply-inl.h.
#if defined(GROUPNORM_SRC_KERNELS_GRADIENT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#undef GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#else
#define GROUPNORM_SRC_KERNELS_GRADIENT_INL_H
#endif

#include "kernels/apply-inl.h"
#include "kernels/kernels.h"
#include "kernels/reduce-inl.h"
#include "kernels/simd-inl.h"

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

template <class Act, class D, class V, class Terms>
HWY_INLINE V Dx(D d, V x, V dy, const Terms& terms, const typename Terms::Params& params, V shift,
                V slope) {
  const V d_mean = hn::Sub(x, terms.mean);
  const V dz = Act::Gradient(d, terms.Z(d_mean, params), dy);
  return terms.Times(dz, hn::MulAdd(slope, d_mean, shift), params);
}

// The sums of one row, in four chains each.
template <class D>
class RowGradient {
  using V = hn::Vec<D>;

 public:
  // Not defaulted: a compiler makes that one without the target's instructions.
  HWY_INLINE RowGradient() {}  // NOLINT(modernize-use-equals-default)

  template <int kChainOf>
  HWY_INLINE void Add(V dz, V d_mean) {
    dz_[kChainOf] = hn::Add(dz_[kChainOf], dz);
    dzx_[kChainOf] = hn::MulAdd(dz, d_mean, dzx_[kChainOf]);
  }

  // After every four vectors.
  HWY_INLINE void Count() {
    if (--left_ == 0) Fold();
  }

  HWY_INLINE void Fold() {
    const D d;
    total_.dz += SumLanes(d, hn::Add(hn::Add(dz_[0], dz_[1]), hn::Add(dz_[2], dz_[3])));
    total_.dzx += SumLanes(d, hn::Add(hn::Add(dzx_[0], dzx_[1]), hn::Add(dzx_[2], dzx_[3])));
    Start();
  }

  HWY_INLINE const GradientSums& total() const { return total_; }

 private:
  HWY_INLINE void Start() {
    left_ = kChain;
    for (int i = 0; i < 4; ++i) dz_[i] = dzx_[i] = hn::Zero(D());
  }

  V dz_[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
  V dzx_[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
  std::int64_t left_ = kChain;
  GradientSums total_{0, 0};
};

// The sums of a row of less than four vectors, as SumRow would add them: one chain, and the end.
template <class T, class Act, class D>
HWY_INLINE GradientSums SumFewVectors(D d, const T* x, const T* dy, std::int64_t count,
                                      const Affine<hn::Vec<D>>& terms) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum_dz = hn::Zero(d), sum_dzx = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto d_mean = hn::Sub(LoadAs(d, x + i), terms.mean);
    const auto dz = Act::Gradient(d, terms.Z(d_mean, {}), LoadAs(d, dy + i));
    sum_dz = hn::Add(sum_dz, dz);
    sum_dzx = hn::MulAdd(dz, d_mean, sum_dzx);
  }
  if (i < count) {
    const auto counted = hn::FirstN(d, static_cast<std::size_t>(lanes - (count - i)));
    const auto d_mean =
        hn::IfThenZeroElse(counted, hn::Sub(LoadAs(d, x + count - lanes), terms.mean));
    const auto all_dz = Act::Gradient(d, terms.Z(d_mean, {}), LoadAs(d, dy + count - lanes));
    const auto dz = hn::IfThenZeroElse(counted, all_dz);
    sum_dz = hn::Add(sum_dz, dz);
    sum_dzx = hn::Add(sum_dzx, hn::Mul(dz, d_mean));
  }
  return {SumLanes(d, sum_dz), SumLanes(d, sum_dzx)};
}

template <class T, class Act, class D>
HWY_INLINE GradientSums SumRow(D d, const T* x, const T* dy, std::int64_t count,
                               const Affine<hn::Vec<D>>& terms) {
  using V = hn::Vec<D>;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  if (count < 4 * lanes) return SumFewVectors<T, Act>(d, x, dy, count, terms);
  RowGradient<D> sums;
  const auto dz_of = [&](V d_mean, V g)
                         HWY_ATTR { return Act::Gradient(d, terms.Z(d_mean, {}), g); };
  // The halves of a long row go side by side: see RunSums.
  const std::int64_t steps = count / (4 * lanes);
  const bool halves = count >= 2 * kLongRun;
  const std::int64_t step = halves ? 2 * lanes : 4 * lanes;
  const std::int64_t apart = halves ? steps * step : 2 * lanes;
  for (std::int64_t s = 0; s < steps; ++s) {
    const std::int64_t i0 = s * step, i1 = i0 + apart;
    const auto x0 = LoadPair(d, x + i0), x1 = LoadPair(d, x + i1);
    const auto g0 = LoadPair(d, dy + i0), g1 = LoadPair(d, dy + i1);
    const V d0 = hn::Sub(x0.v0, terms.mean), d1 = hn::Sub(x0.v1, terms.mean);
    const V d2 = hn::Sub(x1.v0, terms.mean), d3 = hn::Sub(x1.v1, terms.mean);
    sums.template Add<0>(dz_of(d0, g0.v0), d0);
    sums.template Add<1>(dz_of(d1, g0.v1), d1);
    sums.template Add<2>(dz_of(d2, g1.v0), d2);
    sums.template Add<3>(dz_of(d3, g1.v1), d3);
    sums.Count();
  }
  std::int64_t i = steps * 4 * lanes;
  for (; i + lanes <= count; i += lanes) {
    const V d0 = hn::Sub(LoadAs(d, x + i), terms.mean);
    sums.template Add<0>(dz_of(d0, LoadAs(d, dy + i)), d0);
  }
  if (i < count) {
    // A vector that ends with the row, the lanes already counted left out.
    const auto counted = hn::FirstN(d, static_cast<std::size_t>(lanes - (count - i)));
    const V d0 = hn::IfThenZeroElse(counted, hn::Sub(LoadAs(d, x + count - lanes), terms.mean));
    const V dz = dz_of(d0, LoadAs(d, dy + count - lanes));
    sums.template Add<1>(hn::IfThenZeroElse(counted, dz), d0);
  }
  sums.Fold();
  return sums.total();
}

// The sums of a row that fills no vector, of elements [at, at + count) among [total]: what a vector
// has of other rows is left out.
template <class T, class Act, class D>
HWY_INLINE GradientSums SumShortRow(D d, const T* x, const T* dy, std::int64_t at,
                                    std::int64_t count, std::int64_t total,
                                    const Affine<hn::Vec<D>>& terms) {
  const std::int64_t first = std::min(at, total - static_cast<std::int64_t>(hn::Lanes(d)));
  const auto before = hn::FirstN(d, static_cast<std::size_t>(at - first));
  const auto until = hn::FirstN(d, static_cast<std::size_t>(at - first + count));
  const auto own = hn::AndNot(before, until);
  const auto d_mean = hn::IfThenElseZero(own, hn::Sub(LoadAs(d, x + first), terms.mean));
  const auto all_dz = Act::Gradient(d, terms.Z(d_mean, {}), LoadAs(d, dy + first));
  const auto dz = hn::IfThenElseZero(own, all_dz);
  return {SumLanes(d, dz), SumLanes(d, hn::Mul(dz, d_mean))};
}

// The sums of row r of x, dy [rows, length].
template <class T, class Act, class V>
HWY_INLINE GradientSums SumOfRow(const T* x, const T* dy, std::int64_t rows, std::int64_t length,
                                 std::int64_t r, const Affine<V>& terms) {
  const hn::ScalableTag<Compute<T>> d;
  const std::int64_t at = r * length;
  return length >= static_cast<std::int64_t>(hn::Lanes(d))
             ? SumRow<T, Act>(d, x + at, dy + at, length, terms)
             : SumShortRow<T, Act>(d, x, dy, at, length, rows * length, terms);
}

template <class T>
struct ReduceRowsOf {
  template <class Act, Store>
  static void Run(const GradientKernels::ReduceRows& args) {
    const T* const x = static_cast<const T*>(args.x);
    const T* const dy = static_cast<const T*>(args.dy);
    const PerRow<T> terms_of(args.params, 0, args.statistics);
    for (std::int64_t r = 0; r < args.rows; ++r) {
      args.sums[r] = SumOfRow<T, Act>(x, dy, args.rows, args.length, r, terms_of(r));
    }
  }
};

// Rows of lanes, as ReduceLanes has them.
template <class T, class Act>
struct LaneBands {
  using C = Compute<T>;
  using V = hn::Vec<hn::ScalableTag<C>>;
  static constexpr std::int64_t kBand = 8;
  const GradientKernels::ReduceLanes& args;

  // Adds kRows rows, `apart` rows apart, to the chains of dz and dz (x - mean).
  template <std::int64_t kRows>
  HWY_INLINE void Add(std::int64_t row, std::int64_t apart, ColumnSums<C>* sums) const {
    const hn::ScalableTag<C> d;
    const std::int64_t stride = apart * args.stride;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const T* const x = static_cast<const T*>(args.x) + row * args.stride;
    const T* const dy = static_cast<const T*>(args.dy) + row * args.stride;
    ForEntries(d, args.width, [&](std::int64_t i, auto vectors) HWY_ATTR {
      const std::int64_t at = std::min(i, args.width - lanes);
      V mean[vectors], a[vectors], b[vectors], vx[vectors], vdy[vectors];
      V band_dz[vectors], band_dzx[vectors];
      LoadCoefficients<T, vectors>(d, static_cast<const C*>(args.mean) + at, mean);
      LoadCoefficients<T, vectors>(d, static_cast<const C*>(args.a) + at, a);
      LoadCoefficients<T, vectors>(d, static_cast<const C*>(args.b) + at, b);
      for (int v = 0; v < vectors; ++v) band_dz[v] = band_dzx[v] = hn::Zero(d);
      for (std::int64_t r = 0; r < kRows; ++r) {
        LoadEntries<vectors>(d, x + r * stride + at, vx);
        LoadEntries<vectors>(d, dy + r * stride + at, vdy);
        for (int v = 0; v < vectors; ++v) {
          const auto d_mean = hn::Sub(vx[v], mean[v]);
          const auto dz = Act::Gradient(d, hn::MulAdd(d_mean, a[v], b[v]), vdy[v]);
          band_dz[v] = hn::Add(band_dz[v], dz);
          band_dzx[v] = hn::MulAdd(dz, d_mean, band_dzx[v]);
        }
      }
      for (int v = 0; v < vectors; ++v) sums->Add(i + v * lanes, band_dz[v], band_dzx[v]);
    });
  }
};

// Runs that have a mean and a rstd each, as ReduceRuns has them: sums down the columns, of dz and
// dz xhat, and along the runs.
template <class T, class P, class Act>
struct RunBands {
  using C = Compute<T>;
  using D = hn::ScalableTag<C>;
  using V = hn::Vec<D>;
  static constexpr std::int64_t kBand = 4;  // their sums along the runs fill the registers
  const GradientKernels::ReduceRuns& args;

  // Adds kRows runs, `apart` runs apart, to the chains of dz and dz xhat, and to the runs' own
  // sums.
  template <std::int64_t kRows>
  HWY_INLINE void Add(std::int64_t row, std::int64_t apart, ColumnSums<C>* sums) const {
    const D d;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const std::int64_t stride = apart * args.stride;
    const T* const x = static_cast<const T*>(args.x) + row * args.stride;
    const T* const dy = static_cast<const T*>(args.dy) + row * args.stride;
    // xhat = (x - mean) rstd + shift, each in all lanes
    constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(D()));
    HWY_ALIGN C mean[kRows * kLanes], rstd[kRows * kLanes], shift[kRows * kLanes];
    for (std::int64_t r = 0; r < kRows; ++r) {
      const Statistics& own = args.statistics[(row + r * apart) * args.step];
      const Split split = split_as<C>(own.mean);
      hn::Store(hn::Set(d, static_cast<C>(split.hi)), d, mean + r * lanes);
      hn::Store(hn::Set(d, static_cast<C>(own.rstd)), d, rstd + r * lanes);
      hn::Store(hn::Set(d, static_cast<C>(-split.lo * own.rstd)), d, shift + r * lanes);
    }
    V run_dz[kRows], run_dzx[kRows];
    const auto start = [&] HWY_ATTR {
      for (std::int64_t r = 0; r < kRows; ++r) run_dz[r] = run_dzx[r] = hn::Zero(d);
    };
    const auto fold = [&] HWY_ATTR {
      for (std::int64_t r = 0; r < kRows; ++r) {
        GradientSums& run = args.run_sums[(row + r * apart) * args.step];
        run.dz += SumLanes(d, run_dz[r]);
        run.dzx += SumLanes(d, run_dzx[r]);
      }
    };
    // The vector at `at`, whose column sums are entry i. `fresh` leaves out of the runs' own sums
    // what they have already.
    const auto add = [&](std::int64_t i, std::int64_t at, const auto& fresh) HWY_ATTR {
      const auto gamma = LoadParam<P>(d, args.params.gamma, at, C{1});
      const auto beta = LoadParam<P>(d, args.params.beta, at, C{0});
      auto band_dz = hn::Zero(d), band_dzx = hn::Zero(d);
      for (std::int64_t r = 0; r < kRows; ++r) {
        const auto d_mean = hn::Sub(LoadAs(d, x + r * stride + at), hn::Load(d, mean + r * lanes));
        const auto by_rstd = hn::Load(d, rstd + r * lanes), plus = hn::Load(d, shift + r * lanes);
        const auto z = hn::MulAdd(hn::MulAdd(d_mean, by_rstd, plus), gamma, beta);
        const auto dz = Act::Gradient(d, z, LoadAs(d, dy + r * stride + at));
        // Not dz * xhat: where eps is all there is of a deviation, xhat has few digits.
        const auto scaled = hn::Mul(dz, by_rstd);
        band_dz = hn::Add(band_dz, dz);
        band_dzx = hn::MulAdd(scaled, d_mean, hn::MulAdd(dz, plus, band_dzx));
        const auto of_run = fresh(hn::Mul(scaled, gamma));
        run_dz[r] = hn::Add(run_dz[r], of_run);
        run_dzx[r] = hn::MulAdd(of_run, d_mean, run_dzx[r]);
      }
      sums->Add(i, band_dz, band_dzx);
    };
    const auto all = [](V v) HWY_ATTR { return v; };
    const std::int64_t whole = args.width / lanes * lanes;
    for (std::int64_t i = 0; i < whole;) {
      start();
      const std::int64_t end = std::min(whole, i + kChain * lanes);
      for (; i < end; i += lanes) add(i, i, all);
      fold();
    }
    if (whole == args.width) return;
    // A vector that ends with the run, the lanes already counted left out of the run's sums.
    const auto counted = hn::FirstN(d, static_cast<std::size_t>(lanes - (args.width - whole)));
    start();
    add(whole, args.width - lanes, [&](V v) HWY_ATTR { return hn::IfThenZeroElse(counted, v); });
    fold();
  }
};

// The sums of each column over all rows of the bands.
template <class T, class Bands>
HWY_INLINE void ReduceBands(const Bands& bands, std::int64_t rows, std::int64_t width,
                            GradientSums* result) {
  const hn::ScalableTag<Compute<T>> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t padded = (width + lanes - 1) / lanes * lanes;
  ColumnSums<Compute<T>> sums;
  sums.Clear(padded);
  SumBands(bands, rows, padded, &sums);
  for (std::int64_t i = 0; i < padded; ++i) {
    result[ColumnOf<T>(d, i, width)] = {sums.s1[i], sums.s2[i]};
  }
}

template <class T>
struct ReduceLanesOf {
  template <class Act, Store>
  static void Run(const GradientKernels::ReduceLanes& args) {
    ReduceBands<T>(LaneBands<T, Act>{args}, args.rows, args.width, args.sums);
  }
};

template <class T, class P>
struct ReduceGradientRunsOf {
  template <class Act, Store>
  static void Run(const GradientKernels::ReduceRuns& args) {
    ReduceBands<Compute<T>>(RunBands<T, P, Act>{args}, args.runs, args.width, args.column_sums);
  }
};

template <Store kStore, class Act, class T, class D, class V, class Terms>
HWY_INLINE void DxPair(D d, const T* x, const T* dy, T* dx, std::int64_t i, const Terms& terms,
                       V shift, V slope) {
  const auto vx = LoadPair(d, x + i), vdy = LoadPair(d, dy + i);
  const auto by = terms.PairAt(i);
  const Pair<V> both{Dx<Act>(d, vx.v0, vdy.v0, terms, by.v0, shift, slope),
                     Dx<Act>(d, vx.v1, vdy.v1, terms, by.v1, shift, slope)};
  StorePair<kStore>(d, both, dx + i);
}

template <class T, class Act, class D, class V, class Terms>
HWY_INLINE void DxCachedRow(D d, const T* x, const T* dy, T* dx, std::int64_t count,
                            const Terms& terms, V shift, V slope) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const V last_x = LoadAs(d, x + count - lanes), last_dy = LoadAs(d, dy + count - lanes);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    DxPair<Store::cached, Act>(d, x, dy, dx, i, terms, shift, slope);
  }
  for (; i < count; i += lanes) {
    const bool whole = i + lanes <= count;
    const std::int64_t at = whole ? i : count - lanes;
    const V vx = whole ? LoadAs(d, x + i) : last_x, vdy = whole ? LoadAs(d, dy + i) : last_dy;
    StoreAs<Store::cached>(d, Dx<Act>(d, vx, vdy, terms, terms.At(at), shift, slope), dx + at);
  }
}

// As ApplyEnd.
template <class T, class Act, class V, class Terms>
HWY_NOINLINE void DxEnd(const T* x, const T* dy, T* dx, std::int64_t count, const Terms& terms,
                        const V& shift, const V& slope) {
  DxCachedRow<T, Act>(hn::ScalableTag<Compute<T>>(), x, dy, dx, count, terms, shift, slope);
}

template <class T, class Act, Store kStore, class D, class V, class Terms>
HWY_INLINE void DxRow(D d, const T* x, const T* dy, T* dx, std::int64_t count, const Terms& terms,
                      V shift, V slope) {
  if constexpr (kStore == Store::cached) {
    DxCachedRow<T, Act>(d, x, dy, dx, count, terms, shift, slope);
  } else {
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const auto [begin, end] = StreamedLines(dx, count, lanes, 2 * lanes);
    if (begin > 0) DxEnd<T, Act>(x, dy, dx, begin, terms, shift, slope);
    for (std::int64_t i = begin; i < end; i += 2 * lanes) {
      DxPair<kStore, Act>(d, x, dy, dx, i, terms, shift, slope);
    }
    if (end == count) return;
    DxEnd<T, Act>(x + end, dy + end, dx + end, count - end, terms.From(end), shift, slope);
  }
}

// dx of [rows, length].
template <class T, class Act, Store kStore>
HWY_INLINE void DxBlock(const T* x, const T* dy, T* dx, std::int64_t rows, std::int64_t length,
                        const PerRow<T>& terms_of, const GradientTerms& terms) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  using V = hn::Vec<decltype(d)>;
  const auto shift = hn::Set(d, static_cast<C>(terms.shift));
  const auto slope = hn::Set(d, static_cast<C>(terms.slope));
  if (!AreShortRows(d, length)) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at = r * length;
      DxRow<T, Act, kStore>(d, x + at, dy + at, dx + at, length, terms_of(r), shift, slope);
    }
    return;
  }
  const std::int64_t end = rows * length - static_cast<std::int64_t>(hn::Lanes(d));
  const V last_x = LoadAs(d, x + end), last_dy = LoadAs(d, dy + end);
  const auto apply = [&](std::int64_t i, auto vectors, const Affine<V>& by) HWY_ATTR {
    if constexpr (vectors == 2) {
      DxPair<Store::cached, Act>(d, x, dy, dx, i, by, shift, slope);
    } else {
      const bool whole = i <= end;
      const V vx = whole ? LoadAs(d, x + i) : last_x, vdy = whole ? LoadAs(d, dy + i) : last_dy;
      StoreAs<Store::cached>(d, Dx<Act>(d, vx, vdy, by, {}, shift, slope), dx + std::min(i, end));
    }
  };
  ForShortRows(d, rows, length, terms_of, apply);
}

template <class T>
struct DxRowsOf {
  template <class Act, Store kStore>
  static void Run(const GradientKernels::ApplyRows& args) {
    DxBlock<T, Act, kStore>(static_cast<const T*>(args.x), static_cast<const T*>(args.dy),
                            static_cast<T*>(args.dx), args.rows, args.length,
                            {args.params, 0, args.statistics}, args.terms);
  }
};

// Between two blocks only the sums of rows are stored: see normalize-inl.h.
template <class T>
struct DifferentiateOf {
  template <class Act, Store kStore>
  static std::int64_t Run(const GradientKernels::DifferentiateBlocks& args) {
    const std::int64_t size = args.channels * args.length;
    for (std::int64_t b = 0; b < args.blocks; ++b) {
      const T* const x = static_cast<const T*>(args.x) + b * size;
      const T* const dy = static_cast<const T*>(args.dy) + b * size;
      const Statistics own =
          saved(args.mean == nullptr ? 0 : args.mean[b], args.rstd[b], args.rule.f32);
      const PerRow<T> terms_of(args.params, b * args.channels, own);
      const double mean_lo = split_as<Compute<T>>(own.mean).lo;
      double sum_d = 0, sum_e = 0;
      for (std::int64_t r = 0; r < args.channels; ++r) {
        const GradientSums sums =
            SumOfRow<T, Act>(x, dy, args.channels, args.length, r, terms_of(r));
        args.sums[b * args.channels + r] = sums;
        const double gamma = terms_of.Gamma(r);
        sum_d += gamma * sums.dz;
        sum_e += gamma * (sums.dzx - mean_lo * sums.dz);
      }
      const GradientTerms terms =
          gradient_terms(args.rule, own, mean_lo, own.rstd * sum_d, own.rstd * sum_e);
      if (terms.extreme || !std::isfinite(sum_d) || !std::isfinite(sum_e)) return b;
      DxBlock<T, Act, kStore>(x, dy, static_cast<T*>(args.dx) + b * size, args.channels,
                              args.length, terms_of, terms);
    }
    return args.blocks;
  }
};

template <class T, class P>
struct DxRunsOf {
  template <class Act, Store kStore>
  static void Run(const GradientKernels::ApplyRuns& args) {
    using C = Compute<T>;
    const hn::ScalableTag<C> d;
    for (std::int64_t r = 0; r < args.runs; ++r) {
      const std::int64_t at = r * args.count;
      const PerElement<T, P> terms(args.params, at, args.statistics[r]);
      DxRow<T, Act, kStore>(d, static_cast<const T*>(args.x) + at,
                            static_cast<const T*>(args.dy) + at, static_cast<T*>(args.dx) + at,
                            args.count, terms, hn::Set(d, static_cast<C>(args.terms[r].shift)),
                            hn::Set(d, static_cast<C>(args.terms[r].slope)));
    }
  }
};

template <class T, class Act, Store kStore, std::int64_t kRows>
HWY_INLINE void DxBand(const GradientKernels::ApplyLanes& args, std::int64_t row,
                       std::int64_t apart) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t stride = apart * args.stride, last = args.width - lanes;
  const T* const x = static_cast<const T*>(args.x) + row * args.stride;
  const T* const dy = static_cast<const T*>(args.dy) + row * args.stride;
  T* const dx = static_cast<T*>(args.dx) + row * args.stride;
  const auto load = [&](const void* p, std::int64_t i)
                        HWY_ATTR { return hn::LoadU(d, static_cast<const C*>(p) + i); };
  const auto affine_at = [&](std::int64_t i) HWY_ATTR {
    return Affine<V>{load(args.mean, i), load(args.a, i), load(args.b, i)};
  };
  const auto at = [&](std::int64_t r, std::int64_t i, const Affine<V>& by, V shift, V slope)
                      HWY_ATTR {
                        return Dx<Act>(d, LoadAs(d, x + r * stride + i),
                                       LoadAs(d, dy + r * stride + i), by, {}, shift, slope);
                      };
  // The end that fills no vector comes first: what it reads twice may be written below.
  const bool partial = args.width % lanes != 0;
  HWY_ALIGN C ends[static_cast<std::size_t>(kRows) * hn::MaxLanes(d)];
  if (partial) {
    const auto by = affine_at(last);
    const V shift = load(args.shift, last), slope = load(args.slope, last);
    for (std::int64_t r = 0; r < kRows; ++r) {
      hn::Store(at(r, last, by, shift, slope), d, ends + r * lanes);
    }
  }
  std::int64_t i = 0;
  for (; i + 2 * lanes <= args.width; i += 2 * lanes) {
    const auto pair_of = [&](const void* p)
                             HWY_ATTR { return LoadForPair<T>(d, static_cast<const C*>(p) + i); };
    const Pair<V> mean = pair_of(args.mean), a = pair_of(args.a), b = pair_of(args.b);
    const Pair<V> shift = pair_of(args.shift), slope = pair_of(args.slope);
    const Affine<V> by0{mean.v0, a.v0, b.v0}, by1{mean.v1, a.v1, b.v1};
    for (std::int64_t r = 0; r < kRows; ++r) {
      const auto vx = LoadPair(d, x + r * stride + i), vdy = LoadPair(d, dy + r * stride + i);
      const Pair<V> both{Dx<Act>(d, vx.v0, vdy.v0, by0, {}, shift.v0, slope.v0),
                         Dx<Act>(d, vx.v1, vdy.v1, by1, {}, shift.v1, slope.v1)};
      StorePair<kStore>(d, both, dx + r * stride + i);
    }
  }
  for (; i <= last; i += lanes) {
    const auto by = affine_at(i);
    const V shift = load(args.shift, i), slope = load(args.slope, i);
    for (std::int64_t r = 0; r < kRows; ++r) {
      StoreAs<Store::cached>(d, at(r, i, by, shift, slope), dx + r * stride + i);
    }
  }
  for (std::int64_t r = 0; partial && r < kRows; ++r) {
    StoreAs<Store::cached>(d, hn::Load(d, ends + r * lanes), dx + r * stride + last);
  }
}

template <class T>
struct DxLanesOf {
  template <class Act, Store kStore>
  static void Run(const GradientKernels::ApplyLanes& args) {
    // Of three tensors: more rows would not fit one set of the cache.
    ForBands<2>(args.rows, [&](auto rows, std::int64_t row, std::int64_t apart)
                               HWY_ATTR { DxBand<T, Act, kStore, rows>(args, row, apart); });
  }
};

template <class T>
void ReduceGradientRows(const GradientKernels::ReduceRows& args) {
  DispatchActivation<ReduceRowsOf<T>, Store::cached>(args);
}

template <class T>
void ReduceGradientRuns(const GradientKernels::ReduceRuns& args) {
  WithParameters<T>(args.params, [&](auto element) {
    DispatchActivation<ReduceGradientRunsOf<T, decltype(element)>, Store::cached>(args);
  });
}

template <class T>
void ReduceGradientLanes(const GradientKernels::ReduceLanes& args) {
  DispatchActivation<ReduceLanesOf<T>, Store::cached>(args);
}

template <class T>
void DxRows(const GradientKernels::ApplyRows& args) {
  DispatchStore<DxRowsOf<T>>(args, args.store);
}

template <class T>
std::int64_t DifferentiateBlocks(const GradientKernels::DifferentiateBlocks& args) {
  return DispatchStore<DifferentiateOf<T>>(args, args.store);
}

template <class T>
void DxRuns(const GradientKernels::ApplyRuns& args) {
  WithParameters<T>(args.params, [&](auto element) {
    DispatchStore<DxRunsOf<T, decltype(element)>>(args, args.store);
  });
}

template <class T>
void DxLanes(const GradientKernels::ApplyLanes& args) {
  DispatchStore<DxLanesOf<T>>(args, StoreOfLanes<T>(args.store, args.dx, args.stride));
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
