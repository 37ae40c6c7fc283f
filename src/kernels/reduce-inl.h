// reduce: x -> moments. One pass of sums of deviations from a pilot, a value close to the mean:
//
//   d = x - pilot,  s1 = sum d,  s2 = sum d^2,  mean = pilot + s1 / n,  m2 = s2 - s1^2 / n
//
// No digit is lost to a large mean, as d holds none of it. f32 sums run over some 32 terms before
// they are folded into double. The pilot is the first element plus the mean distance of a
// few samples, spread over the input, from it, rounded: a constant input gives exactly itself and
// 0. Where it turns out further than two deviations from the mean (or a sum overflows, or there is
// a NaN), m2 comes back as NaN.
#if defined(GROUPNORM_SRC_KERNELS_REDUCE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_REDUCE_INL_H
#undef GROUPNORM_SRC_KERNELS_REDUCE_INL_H
#else
#define GROUPNORM_SRC_KERNELS_REDUCE_INL_H
#endif

#include "kernels/kernels.h"
#include "kernels/simd-inl.h"

#include <algorithm>
#include <cmath>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// Longer chains of f32 additions cost digits (at 128 terms the sum of squares is visibly biased).
inline constexpr std::int64_t kChain = 32;
// Elements from which on a run is read in several places at a time, some pages apart.
inline constexpr std::int64_t kLongRun = 4096;
// Runs that are reduced side by side where they are short.
inline constexpr std::int64_t kShortRuns = 16;
// Elements that make a pilot: 32 lie within a quarter of a deviation of the mean, 8 (a column's)
// within half of one.
inline constexpr std::int64_t kRunSamples = 32;
inline constexpr std::int64_t kColumnSamples = 8;

// m2, or NaN where the pilot was poor, which the comparison says of NaN, too, or where the sums
// overflowed. shift = s1 / n.
template <class DD, class V>
HWY_INLINE V TrustedM2(DD dd, V s1, V s2, V n, V shift) {
  const V m2 = hn::NegMulAdd(s1, shift, s2);
  const auto near = hn::Le(hn::Mul(s1, s1), hn::Mul(hn::Mul(hn::Set(dd, 4.0), n), m2));
  // Squares may overflow where their deviations' sum does not.
  const auto trusted = hn::And(near, hn::IsFinite(m2));
  return hn::IfThenElse(trusted, m2, hn::Set(dd, std::numeric_limits<double>::quiet_NaN()));
}

template <class DD, class V>
HWY_INLINE hn::Vec<DD> PromoteToDouble(DD dd, V v) {
  if constexpr (std::is_same_v<V, hn::Vec<DD>>) {
    return v;
  } else {
    return hn::PromoteTo(dd, v);
  }
}

struct Plus {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};
struct Larger {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

// Op over the lanes of v, neighbours first, in all lanes. These functions of Highway are found by
// their arguments, where they are used: targets of few lanes lack some.
template <class Op, class D, class V>
HWY_INLINE V FoldLanes(D d, V v) {
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  if constexpr (kLanes >= 2) v = Op()(v, Reverse2(d, v));
  if constexpr (kLanes >= 4) v = Op()(v, Reverse4(d, v));
  if constexpr (kLanes >= 8) v = Op()(v, Reverse8(d, v));
  if constexpr (kLanes >= 16) v = Op()(v, Reverse(d, v));
  static_assert(kLanes <= 16);
  return v;
}

// FoldLanes of as many rows [kRows, lanes] as a vector has lanes, one a lane, with the same bits:
// the rows share the steps, which makes three operations a row of three a step.
template <class Op, class D, std::size_t kRows = hn::MaxLanes(D())>
HWY_INLINE hn::Vec<D> FoldRows(D d, const hn::TFromD<D>* rows) {
  if constexpr (kRows == 1) {
    return hn::Load(d, rows);
  } else {
    constexpr std::size_t kHalf = kRows / 2;
    const auto low = FoldRows<Op, D, kHalf>(d, rows);
    const auto high = FoldRows<Op, D, kHalf>(d, rows + kHalf * hn::MaxLanes(d));
    return Op()(ConcatEven(d, high, low), ConcatOdd(d, high, low));
  }
}

// The rows behind `rows` that FoldRows reads with them.
template <class D>
HWY_INLINE void ClearRows(D d, std::int64_t rows, hn::TFromD<D>* data) {
  constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(d));
  for (; rows % kLanes != 0; ++rows) hn::Store(hn::Zero(d), d, data + rows * kLanes);
}

template <class D>
HWY_INLINE double SumLanes(D d, hn::Vec<D> v) {
  return static_cast<double>(hn::GetLane(FoldLanes<Plus>(d, v)));
}

// `mean` on a grid of about `spread` / 16. A pilot with finer digits than the data (pixels, bf16)
// would leave the same digits in every d, and every addition to a long sum would round them the
// same way. Spread 0 leaves `mean` as it is.
template <class D, class V>
HWY_INLINE V Coarse(D d, V mean, V spread) {
  using C = hn::TFromD<D>;
  const auto magic = hn::Mul(spread, hn::Set(d, static_cast<C>(sizeof(C) == 4 ? 0x1p20 : 0x1p49)));
  return hn::Sub(hn::Add(mean, magic), magic);
}

// The pilots of runs of `count` elements.
template <class T>
class RunPilots {
  using C = Compute<T>;
  using D = hn::ScalableTag<C>;
  using V = hn::Vec<D>;
  static constexpr std::int64_t kLanes = hn::MaxLanes(D());

 public:
  HWY_INLINE explicit RunPilots(std::int64_t count)
      : count_(count),
        samples_(std::min(std::max<std::int64_t>(4, kRunSamples / kLanes), count / kLanes)),
        step_(samples_ > 1 ? (count - kLanes) / (samples_ - 1) : 0),
        share_(C{1} / static_cast<C>(samples_ * kLanes)) {}

  // Of one run, in all lanes.
  HWY_INLINE V Of(const T* x) const {
    const D d;
    const Samples samples = Take(x);
    return Pilot(samples.first, FoldLanes<Plus>(d, samples.distance),
                 FoldLanes<Larger>(d, samples.spread));
  }

  // Of `runs` of them, one behind the other, at most kShortRuns.
  HWY_INLINE void Of(const T* x, std::int64_t runs, C* pilots) const {
    const D d;
    HWY_ALIGN C first[kShortRuns] = {};
    HWY_ALIGN C distance[kShortRuns * kLanes], spread[kShortRuns * kLanes];
    ClearRows(d, runs, distance);
    ClearRows(d, runs, spread);
    for (std::int64_t r = 0; r < runs; ++r) {
      const Samples samples = Take(x + r * count_);
      first[r] = hn::GetLane(samples.first);
      hn::Store(samples.distance, d, distance + r * kLanes);
      hn::Store(samples.spread, d, spread + r * kLanes);
    }
    for (std::int64_t r = 0; r < runs; r += kLanes) {
      hn::Store(Pilot(hn::Load(d, first + r), FoldRows<Plus>(d, distance + r * kLanes),
                      FoldRows<Larger>(d, spread + r * kLanes)),
                d, pilots + r);
    }
  }

 private:
  // The first element, in all lanes, and how far samples lie from it: their sum and the most.
  struct Samples {
    V first, distance, spread;
  };

  HWY_INLINE Samples Take(const T* x) const {
    const D d;
    const auto first = hn::Set(d, static_cast<C>(to_double(x[0])));
    auto sum = hn::Zero(d), spread = hn::Zero(d);
    for (std::int64_t i = 0; i < samples_; ++i) {
      const auto distance = hn::Sub(LoadAs(d, x + i * step_), first);
      // The next run's, if there is one: it would wait for memory first thing.
      hwy::Prefetch(x + count_ + i * step_);
      sum = hn::Add(sum, distance);
      spread = hn::Max(spread, hn::Abs(distance));
    }
    return {first, sum, spread};
  }

  HWY_INLINE V Pilot(V first, V distance, V spread) const {
    const D d;
    return Coarse(d, hn::Add(first, hn::Mul(distance, hn::Set(d, share_))), spread);
  }

  std::int64_t count_;
  std::int64_t samples_, step_;  // vectors, elements
  C share_;
};

// The sums of one run, taken in steps of eight vectors, so that another loop may carry them along.
// A step takes two from each quarter of a long run: a core that reads in four places has more of
// its requests to memory under way than one that reads in one.
template <class T>
class RunSums {
  using C = Compute<T>;
  using D = hn::ScalableTag<C>;
  using V = hn::Vec<D>;
  static constexpr std::int64_t kLanes = hn::MaxLanes(D());
  static constexpr std::int64_t kStep = 8 * kLanes;

 public:
  // Of a run of at most this many elements, all sums are one chain.
  static constexpr std::int64_t kOneChain = kChain / 2 * kStep;

  HWY_INLINE RunSums(const T* x, std::int64_t count)
      : RunSums(x, count, RunPilots<T>(count).Of(x)) {}

  HWY_INLINE RunSums(const T* x, std::int64_t count, V pilot)
      : x_(x),
        end_(x + count),
        steps_(count / kStep),
        apart_(count < kLongRun ? kStep / 4 : steps_ * (kStep / 4)),
        count_(count),
        pilot_(pilot) {
    StartChain();
  }

  // False where no whole step is left.
  HWY_INLINE bool Step() {
    if (steps_ == 0) return false;
    AddPair(x_, a0_, q0_);
    AddPair(x_ + apart_, a1_, q1_);
    AddPair(x_ + 2 * apart_, a2_, q2_);
    AddPair(x_ + 3 * apart_, a3_, q3_);
    x_ += count_ < kLongRun ? kStep : kStep / 4;
    --steps_;
    if (--left_ == 0) FoldChain();
    return true;
  }

  HWY_INLINE Moments Finish() {
    AddRest();
    FoldChain();
    const auto n = static_cast<double>(count_);
    const double shift = s1_ / n;
    const hn::CappedTag<double, 1> dd;
    const auto m2 =
        TrustedM2(dd, hn::Set(dd, s1_), hn::Set(dd, s2_), hn::Set(dd, n), hn::Set(dd, shift));
    return {n, static_cast<double>(hn::GetLane(pilot_)) + shift, hn::GetLane(m2)};
  }

  // The rest of the steps, and what fills none.
  HWY_INLINE void AddRest() {
    const D d;
    while (Step()) {
    }
    const T* x = end_ - count_ % kStep;
    for (; end_ - x >= 2 * kLanes; x += 2 * kLanes) AddPair(x, a0_, q0_);
    if (end_ - x >= kLanes) {
      Add(hn::Sub(LoadAs(d, x), pilot_), a1_, q1_);
      x += kLanes;
    }
    if (x != end_) {
      // A vector that ends with the run, the lanes already counted left out.
      const auto counted = hn::FirstN(d, static_cast<std::size_t>(kLanes - (end_ - x)));
      Add(hn::IfThenZeroElse(counted, hn::Sub(LoadAs(d, end_ - kLanes), pilot_)), a2_, q2_);
    }
  }

  // The chain's sums of deviations and of their squares, one a lane.
  HWY_INLINE V Deviations() const { return hn::Add(hn::Add(a0_, a1_), hn::Add(a2_, a3_)); }
  HWY_INLINE V Squares() const { return hn::Add(hn::Add(q0_, q1_), hn::Add(q2_, q3_)); }

 private:
  static HWY_INLINE void Add(V deviation, V& a, V& q) {
    a = hn::Add(a, deviation);
    q = hn::MulAdd(deviation, deviation, q);
  }

  HWY_INLINE void AddPair(const T* x, V& a, V& q) const {
    const auto pair = LoadPair(D(), x);
    Add(hn::Sub(pair.v0, pilot_), a, q);
    Add(hn::Sub(pair.v1, pilot_), a, q);
  }

  HWY_INLINE void StartChain() {
    left_ = kChain / 2;
    a0_ = a1_ = a2_ = a3_ = q0_ = q1_ = q2_ = q3_ = hn::Zero(D());
  }

  HWY_INLINE void FoldChain() {
    s1_ += SumLanes(D(), Deviations());
    s2_ += SumLanes(D(), Squares());
    StartChain();
  }

  const T* x_;
  const T* end_;
  std::int64_t steps_;  // still to do
  std::int64_t apart_;  // elements between the pairs of a step
  std::int64_t count_;
  V pilot_;
  V a0_, a1_, a2_, a3_;    // sum of deviations, one a quarter
  V q0_, q1_, q2_, q3_;    // sum of their squares
  std::int64_t left_ = 0;  // steps of the chain
  double s1_ = 0, s2_ = 0;
};

// At most kShortRuns runs of one chain each, stage by stage, with the bits of RunSums: the runs
// share the steps of their horizontal sums, and their latencies and divisions hide behind each
// other.
template <class T>
HWY_INLINE void ReduceShortRuns(const T* x, std::int64_t runs, std::int64_t count,
                                Moments* moments) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(d));
  HWY_ALIGN C pilot[kShortRuns], s1[kShortRuns], s2[kShortRuns];
  HWY_ALIGN C a[kShortRuns * kLanes], q[kShortRuns * kLanes];
  HWY_ALIGN double mean[kShortRuns], m2[kShortRuns];
  RunPilots<T>(count).Of(x, runs, pilot);
  ClearRows(d, runs, a);
  ClearRows(d, runs, q);
  for (std::int64_t r = 0; r < runs; ++r) {
    RunSums<T> sums(x + r * count, count, hn::Set(d, pilot[r]));
    sums.AddRest();
    hn::Store(sums.Deviations(), d, a + r * kLanes);
    hn::Store(sums.Squares(), d, q + r * kLanes);
  }
  for (std::int64_t r = 0; r < runs; r += kLanes) {
    hn::Store(FoldRows<Plus>(d, a + r * kLanes), d, s1 + r);
    hn::Store(FoldRows<Plus>(d, q + r * kLanes), d, s2 + r);
  }
  const hn::CappedTag<double, kShortRuns> dd;
  const hn::Rebind<C, decltype(dd)> dc;
  const auto n = hn::Set(dd, static_cast<double>(count));
  for (std::int64_t r = 0; r < runs; r += static_cast<std::int64_t>(hn::Lanes(dd))) {
    const auto v1 = PromoteToDouble(dd, hn::Load(dc, s1 + r));
    const auto v2 = PromoteToDouble(dd, hn::Load(dc, s2 + r));
    const auto shift = hn::Div(v1, n);
    const auto near = PromoteToDouble(dd, hn::Load(dc, pilot + r));
    hn::Store(hn::Add(near, shift), dd, mean + r);
    hn::Store(TrustedM2(dd, v1, v2, n, shift), dd, m2 + r);
  }
  for (std::int64_t r = 0; r < runs; ++r) {
    moments[r] = {static_cast<double>(count), mean[r], m2[r]};
  }
}

template <class T>
void ReduceRuns(const Kernels::Runs& args) {
  const T* const x = static_cast<const T*>(args.x);
  if (args.runs > 1 && args.count < RunSums<T>::kOneChain) {
    for (std::int64_t r = 0; r < args.runs; r += kShortRuns) {
      ReduceShortRuns<T>(x + r * args.count, std::min(kShortRuns, args.runs - r), args.count,
                         args.moments + r);
    }
    return;
  }
  for (std::int64_t r = 0; r < args.runs; ++r) {
    args.moments[r] = RunSums<T>(x + r * args.count, args.count).Finish();
  }
}

// Sums of one tile of columns: entry i is of column ColumnOf(i).
template <class C>
struct ColumnSums {
  HWY_ALIGN C pilot[kMaxLanes + 64 / sizeof(C)];
  HWY_ALIGN C a[kMaxLanes + 64 / sizeof(C)];  // of one chain
  HWY_ALIGN C q[kMaxLanes + 64 / sizeof(C)];
  HWY_ALIGN double s1[kMaxLanes + 64 / sizeof(C)];
  HWY_ALIGN double s2[kMaxLanes + 64 / sizeof(C)];

  HWY_INLINE void Clear(std::int64_t count) {
    std::fill_n(a, count, C{0});
    std::fill_n(q, count, C{0});
    std::fill_n(s1, count, 0.0);
    std::fill_n(s2, count, 0.0);
  }

  // To the chains of the vector at i.
  template <class V>
  HWY_INLINE void Add(std::int64_t i, V more_a, V more_q) {
    const hn::ScalableTag<C> d;
    hn::Store(hn::Add(hn::Load(d, a + i), more_a), d, a + i);
    hn::Store(hn::Add(hn::Load(d, q + i), more_q), d, q + i);
  }
};

template <class T>
HWY_INLINE void ColumnPilots(const T* x, std::int64_t rows, std::int64_t stride, std::int64_t width,
                             ColumnSums<Compute<T>>* sums) {
  const hn::ScalableTag<Compute<T>> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t samples = std::min(kColumnSamples, rows);
  const std::int64_t step = samples > 1 ? (rows - 1) / (samples - 1) : 0;
  const auto share = hn::Set(d, Compute<T>{1} / static_cast<Compute<T>>(samples));
  ForEntries(d, width, [&](std::int64_t i, auto vectors) HWY_ATTR {
    const T* const column = x + std::min(i, width - lanes);
    V base[vectors], value[vectors], sum[vectors], spread[vectors];
    LoadEntries<vectors>(d, column, base);
    for (int v = 0; v < vectors; ++v) sum[v] = spread[v] = hn::Zero(d);
    for (std::int64_t r = 1; r < samples; ++r) {
      LoadEntries<vectors>(d, column + r * step * stride, value);
      for (int v = 0; v < vectors; ++v) {
        const auto distance = hn::Sub(value[v], base[v]);
        sum[v] = hn::Add(sum[v], distance);
        spread[v] = hn::Max(spread[v], hn::Abs(distance));
      }
    }
    for (int v = 0; v < vectors; ++v) {
      const auto near = hn::Add(base[v], hn::Mul(sum[v], share));
      hn::Store(Coarse(d, near, spread[v]), d, sums->pilot + i + v * lanes);
    }
  });
}

// chain -> double sums; empties the chain.
template <class C>
HWY_INLINE void FoldChains(std::int64_t width, ColumnSums<C>* sums) {
  const hn::ScalableTag<double> dd;
  const hn::Rebind<C, decltype(dd)> dc;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(dd));
  const auto fold = [&](C* chain, double* total, std::int64_t i) HWY_ATTR {
    const auto value = PromoteToDouble(dd, hn::Load(dc, chain + i));
    hn::Store(hn::Add(hn::Load(dd, total + i), value), dd, total + i);
    hn::Store(hn::Zero(dc), dc, chain + i);
  };
  for (std::int64_t i = 0; i < width; i += lanes) {
    fold(sums->a, sums->s1, i);
    fold(sums->q, sums->s2, i);
  }
}

// Adds all rows.
template <class C, class Bands>
HWY_INLINE void SumBands(const Bands& bands, std::int64_t rows, std::int64_t padded,
                         ColumnSums<C>* sums) {
  std::int64_t links = 0;
  ForBands<Bands::kBand>(rows, [&](auto band, std::int64_t row, std::int64_t apart) HWY_ATTR {
    bands.template Add<band>(row, apart, sums);
    if (++links < kChain / 2) return;
    FoldChains(padded, sums);
    links = 0;
  });
  FoldChains(padded, sums);
}

// Rows of columns, as reduce_columns has them.
template <class T>
struct ColumnBands {
  static constexpr std::int64_t kBand = 8;
  const T* x;
  std::int64_t stride, width;

  // Adds the deviations of kRows rows, `apart` rows apart, to the chains; the rows' own sum comes
  // first, which makes the chains eight times shorter.
  template <std::int64_t kRows>
  HWY_INLINE void Add(std::int64_t row, std::int64_t apart, ColumnSums<Compute<T>>* sums) const {
    const hn::ScalableTag<Compute<T>> d;
    using V = hn::Vec<decltype(d)>;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const T* const first = x + row * stride;
    ForEntries(d, width, [&](std::int64_t i, auto vectors) HWY_ATTR {
      const T* const column = first + std::min(i, width - lanes);
      V a[vectors], q[vectors], value[vectors];
      for (int v = 0; v < vectors; ++v) a[v] = q[v] = hn::Zero(d);
      for (std::int64_t r = 0; r < kRows; ++r) {
        LoadEntries<vectors>(d, column + r * apart * stride, value);
        for (int v = 0; v < vectors; ++v) {
          const auto dr = hn::Sub(value[v], hn::Load(d, sums->pilot + i + v * lanes));
          a[v] = hn::Add(a[v], dr);
          q[v] = hn::MulAdd(dr, dr, q[v]);
        }
      }
      for (int v = 0; v < vectors; ++v) sums->Add(i + v * lanes, a[v], q[v]);
    });
  }
};

template <class T>
void ReduceColumns(const void* data, std::int64_t rows, std::int64_t stride, std::int64_t width,
                   double* mean, double* m2) {
  const T* const x = static_cast<const T*>(data);
  const hn::ScalableTag<Compute<T>> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t padded = (width + lanes - 1) / lanes * lanes;
  ColumnSums<Compute<T>> sums;
  sums.Clear(padded);
  ColumnPilots(x, rows, stride, width, &sums);
  SumBands(ColumnBands<T>{x, stride, width}, rows, padded, &sums);

  const hn::ScalableTag<double> dd;
  const hn::Rebind<Compute<T>, decltype(dd)> dc;
  const auto n = hn::Set(dd, static_cast<double>(rows));
  for (std::int64_t i = 0; i < padded; i += static_cast<std::int64_t>(hn::Lanes(dd))) {
    const auto s1 = hn::Load(dd, sums.s1 + i), s2 = hn::Load(dd, sums.s2 + i);
    const auto pilot = PromoteToDouble(dd, hn::Load(dc, sums.pilot + i));
    const auto shift = hn::Div(s1, n);
    const std::int64_t column = i < padded - lanes ? i : width - padded + i;
    hn::StoreU(hn::Add(pilot, shift), dd, (kEvenOdd<T, decltype(d)> ? sums.s1 + i : mean + column));
    hn::StoreU(TrustedM2(dd, s1, s2, n, shift), dd,
               (kEvenOdd<T, decltype(d)> ? sums.s2 + i : m2 + column));
  }
  for (std::int64_t i = 0; kEvenOdd<T, decltype(d)> && i < padded; ++i) {
    const std::int64_t column = ColumnOf<T>(d, i, width);
    mean[column] = sums.s1[i];
    m2[column] = sums.s2[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
