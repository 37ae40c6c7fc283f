// reduce: x -> moments. One pass of sums of deviations from a pilot, a value close to the mean:
//
//   d = x - pilot,  s1 = sum d,  s2 = sum d^2,  mean = pilot + s1 / n,  m2 = s2 - s1^2 / n
//
// No digit is lost to a large mean, as d holds none of it. f32 sums run over some 32 terms before
// they are folded into double. The pilot is the first element plus the mean distance of a
// few samples, spread over the input, from it, rounded: a constant input gives exactly itself and
// 0. Where it turns out further than two deviations from the mean, or a sum overflows, the sums are
// taken again in double. `Trust` says which are too small for either to matter.
#if defined(GROUPNORM_SRC_KERNELS_MOMENTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_MOMENTS_INL_H
#undef GROUPNORM_SRC_KERNELS_MOMENTS_INL_H
#else
#define GROUPNORM_SRC_KERNELS_MOMENTS_INL_H
#endif

#include "kernels/loop-inl.h"
#include "kernels/simd-inl.h"
#include "tuning.h"

#include <algorithm>
#include <cmath>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// m2, or NaN where the pilot was poor, which the comparison says of NaN, too, or where the sums
// overflowed or underflowed. shift = s1 / n.
template <class DD, class V>
HWY_INLINE V TrustedM2(DD dd, const Trust& trust, V s1, V s2, V n, V shift) {
  const V m2 = hn::NegMulAdd(s1, shift, s2);
  const auto near = hn::Le(hn::Mul(s1, s1), hn::Mul(hn::Mul(hn::Set(dd, 4.0), n), m2));
  const auto enough = hn::Ge(m2, hn::Mul(n, hn::Set(dd, trust.least)));
  // Squares may overflow where their deviations' sum does not.
  const auto held = hn::And(hn::And(near, enough), hn::IsFinite(m2));
  const auto hidden = hn::Le(s2, hn::Mul(n, hn::Set(dd, trust.negligible)));
  return hn::IfThenElse(hn::Or(held, hidden), hn::Max(m2, hn::Zero(dd)),
                        hn::Set(dd, std::numeric_limits<double>::quiet_NaN()));
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
  constexpr std::size_t kCount = hn::MaxLanes(d);
  if constexpr (kCount >= 2) v = Op()(v, Reverse2(d, v));
  if constexpr (kCount >= 4) v = Op()(v, Reverse4(d, v));
  if constexpr (kCount >= 8) v = Op()(v, Reverse8(d, v));
  if constexpr (kCount >= 16) v = Op()(v, Reverse(d, v));
  static_assert(kCount <= 16);
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
  constexpr std::int64_t kCount = kLanes<hn::TFromD<D>>;
  for (; rows % kCount != 0; ++rows) hn::Store(hn::Zero(d), d, data + rows * kCount);
}

template <class D>
HWY_INLINE double SumLanes(D d, hn::Vec<D> v) {
  return static_cast<double>(hn::GetLane(FoldLanes<Plus>(d, v)));
}

// Vectors of x.
template <class T, bool kJoins = false>
class Source {
  using C = Compute<T>;

 public:
  HWY_INLINE Vector<C> At(const T* p) const { return LoadAs(Tag<C>(), p); }
  HWY_INLINE Two<Vector<C>> TwoAt(const T* p) const { return LoadTwo<Order::any>(Tag<C>(), p); }
};

// Those of u = x + skip + shift, formed in the compute type: skip lies as x does, and may be null;
// shift is one number.
template <class T>
class Source<T, true> {
  using C = Compute<T>;

 public:
  HWY_INLINE Source(const T* x, const T* skip, C shift) : x_(x), skip_(skip), shift_(shift) {}

  // At an address in x.
  HWY_INLINE Vector<C> At(const T* p) const {
    const Tag<C> d;
    auto u = LoadAs(d, p);
    if (skip_ != nullptr) u = hn::Add(u, LoadAs(d, skip_ + (p - x_)));
    return hn::Add(u, hn::Set(d, shift_));
  }
  HWY_INLINE Two<Vector<C>> TwoAt(const T* p) const {
    const Tag<C> d;
    auto two = LoadTwo<Order::any>(d, p);
    if (skip_ != nullptr) {
      const auto more = LoadTwo<Order::any>(d, skip_ + (p - x_));
      two = {hn::Add(two.v0, more.v0), hn::Add(two.v1, more.v1)};
    }
    const auto shift = hn::Set(d, shift_);
    return {hn::Add(two.v0, shift), hn::Add(two.v1, shift)};
  }

 private:
  const T* x_;
  const T* skip_;
  C shift_;
};

// Sums of deviations, and of their squares, one a lane.
struct DoubleSums {
  Vector<double> s1, s2;
};

// Of `count` vectors load(x) that begin `step` elements apart, from `from`. Four chains hide the
// latency of an addition.
template <class T, class Load>
HWY_INLINE DoubleSums SumInDouble(const Load& load, const T* x, std::int64_t count,
                                  std::int64_t step, Vector<double> from) {
  const Tag<double> dd;
  auto a0 = hn::Zero(dd), a1 = a0, a2 = a0, a3 = a0, q0 = a0, q1 = a0, q2 = a0, q3 = a0;
  const auto add = [&](const T* vector, Vector<double>& a, Vector<double>& q) HWY_ATTR {
    const auto deviation = hn::Sub(load(vector), from);
    a = hn::Add(a, deviation);
    q = hn::MulAdd(deviation, deviation, q);
  };
  for (; count >= 4; count -= 4, x += 4 * step) {
    add(x, a0, q0);
    add(x + step, a1, q1);
    add(x + 2 * step, a2, q2);
    add(x + 3 * step, a3, q3);
  }
  for (; count > 0; --count, x += step) add(x, a0, q0);
  return {hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(hn::Add(q0, q1), hn::Add(q2, q3))};
}

// How many deviations from the mean, squared, the value may lie that sums in double are taken
// from: m2 cancels by that factor. It leaves 33 bits, more than the sums in f32 have of theirs; f64
// has none to give.
template <class T>
inline constexpr double kDoubleReach = sizeof(Compute<T>) == 4 ? 0x1p20 : 4.0;

// x [rows, width], rows `stride` elements apart, of any size, in double, from the first element,
// and where that lies too far away once more from the mean: right for every finite f32, f16 and
// bf16, and for f64 while the sum of squares is finite (|x| up to about 1e150).
template <class T>
HWY_NOINLINE Moments ExactMoments(const Kernels::Numbers& args) {
  const Tag<double> dd;
  const auto n = static_cast<double>(args.rows * args.width);
  const std::int64_t whole = args.width / kLanes<double>;
  double s1 = 0, s2 = 0;
  const auto sum = [&](double from) HWY_ATTR {
    s1 = s2 = 0;
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const T* const x = static_cast<const T*>(args.x) + r * args.stride;
      const auto load = [=](const T* p) HWY_ATTR { return LoadAs(dd, p); };
      const DoubleSums sums = SumInDouble(load, x, whole, kLanes<double>, hn::Set(dd, from));
      s1 += SumLanes(dd, sums.s1);
      s2 += SumLanes(dd, sums.s2);
      for (std::int64_t i = whole * kLanes<double>; i < args.width; ++i) {
        const double deviation = to_double(x[i]) - from;
        s1 += deviation;
        s2 += deviation * deviation;
      }
    }
  };
  double from = to_double(*static_cast<const T*>(args.x));
  sum(from);
  double m2 = s2 - s1 * (s1 / n);
  const bool near = s1 * s1 <= kDoubleReach<T> * n * m2;
  if (!near && std::isfinite(s1)) {
    from += s1 / n;
    sum(from);
    m2 = s2 - s1 * (s1 / n);
  }
  if (std::isfinite(m2)) return {n, from + s1 / n, m2};
  sum(0);
  return {n, 0, s2 + std::numeric_limits<double>::infinity()};  // of a NaN, NaN
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
  using V = Vector<C>;
  static constexpr std::int64_t kVector = kLanes<C>;

 public:
  HWY_INLINE explicit RunPilots(std::int64_t count)
      : count_(count),
        samples_(std::min(std::max<std::int64_t>(4, kRunSamples / kVector), count / kVector)),
        step_(samples_ > 1 ? (count - kVector) / (samples_ - 1) : 0),
        share_(C{1} / static_cast<C>(std::max<std::int64_t>(1, samples_ * kVector))) {}

  HWY_INLINE std::int64_t count() const { return count_; }

  // Of one run, in all lanes.
  HWY_INLINE V Of(const T* x) const { return Of(x, Source<T>()); }
  template <bool kJoins>
  HWY_INLINE V Of(const T* x, const Source<T, kJoins>& source) const {
    const Tag<C> d;
    const Samples samples = Take(x, source);
    return Pilot(samples.first, FoldLanes<Plus>(d, samples.distance),
                 FoldLanes<Larger>(d, samples.spread));
  }

  // Of `runs` of them, one behind the other, at most kBatch.
  HWY_INLINE void Of(const T* x, std::int64_t runs, C* pilots) const {
    const Tag<C> d;
    HWY_ALIGN C first[kBatch] = {};
    HWY_ALIGN C distance[kBatch * kVector], spread[kBatch * kVector];
    ClearRows(d, runs, distance);
    ClearRows(d, runs, spread);
    for (std::int64_t r = 0; r < runs; ++r) {
      const Samples samples = Take(x + r * count_, Source<T>());
      first[r] = hn::GetLane(samples.first);
      hn::Store(samples.distance, d, distance + r * kVector);
      hn::Store(samples.spread, d, spread + r * kVector);
    }
    for (std::int64_t r = 0; r < runs; r += kVector) {
      hn::Store(Pilot(hn::Load(d, first + r), FoldRows<Plus>(d, distance + r * kVector),
                      FoldRows<Larger>(d, spread + r * kVector)),
                d, pilots + r);
    }
  }

 private:
  // The first element, in all lanes, and how far samples lie from it: their sum and the most.
  struct Samples {
    V first, distance, spread;
  };

  template <bool kJoins>
  HWY_INLINE Samples Take(const T* x, const Source<T, kJoins>& source) const {
    const Tag<C> d;
    auto first = hn::Set(d, LoadOne(x));
    if constexpr (kJoins) first = hn::Set(d, hn::GetLane(source.At(x)));
    auto sum = hn::Zero(d), spread = hn::Zero(d);
    for (std::int64_t i = 0; i < samples_; ++i) {
      const auto distance = hn::Sub(source.At(x + i * step_), first);
      // The next run's, if there is one: it would wait for memory first thing.
      hwy::Prefetch(x + count_ + i * step_);
      sum = hn::Add(sum, distance);
      spread = hn::Max(spread, hn::Abs(distance));
    }
    return {first, sum, spread};
  }

  HWY_INLINE V Pilot(V first, V distance, V spread) const {
    const Tag<C> d;
    return Coarse(d, hn::Add(first, hn::Mul(distance, hn::Set(d, share_))), spread);
  }

  std::int64_t count_;
  std::int64_t samples_, step_;  // vectors, elements
  C share_;
};

// The sums of one run, taken in steps of eight vectors, so that a loop that writes another may
// carry them along. A step takes two from each quarter of a long run: a core that reads in four
// places has more of its requests to memory under way than one that reads in one.
template <class T, bool kJoins = false>
class RunSums {
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr std::int64_t kVector = kLanes<C>;
  static constexpr std::int64_t kVectors = 8;  // of a step
  static constexpr std::int64_t kStep = kVectors * kVector;

 public:
  // Of a run of at most this many elements, all sums are one chain.
  static constexpr std::int64_t kOneChain = kChain / 2 * kStep;

  // Of nothing.
  HWY_INLINE RunSums() : RunSums(nullptr, 0, hn::Zero(Tag<C>()), false) {}

  // `carried`: whether Advance takes steps.
  HWY_INLINE RunSums(const T* x, std::int64_t count, V pilot, bool carried,
                     const Source<T, kJoins>& source = {})
      : source_(source),
        x_(x),
        end_(x + count),
        steps_(count / kStep),
        apart_(count < kLongRun ? kStep / 4 : steps_ * (kStep / 4)),
        stride_(count < kLongRun ? kStep : kStep / 4),
        count_(count),
        carried_(carried),
        pilot_(pilot) {
    StartChain();
  }

  // Keeps up with a loop that is about to write elements from `written` on in each of `places`.
  HWY_INLINE void Advance(std::int64_t written, std::int64_t places) {
    if (written * places % kStep == 0 && carried_ && steps_ > 0) Step();
  }

  HWY_INLINE Moments Finish(const Trust& trust) {
    AddRest();
    FoldChain();
    const auto n = static_cast<double>(count_);
    const double shift = s1_ / n;
    const hn::CappedTag<double, 1> dd;
    const double m2 = hn::GetLane(TrustedM2(dd, trust, hn::Set(dd, s1_), hn::Set(dd, s2_),
                                            hn::Set(dd, n), hn::Set(dd, shift)));
    if (!kJoins && std::isnan(m2)) return ExactMoments<T>({end_ - count_, 1, 0, count_});
    return {n, static_cast<double>(hn::GetLane(pilot_)) + shift, m2};
  }

  // The rest of the steps, and what fills none.
  HWY_INLINE void AddRest() {
    const Tag<C> d;
    while (steps_ > 0) Step();
    const T* x = end_ - count_ % kStep;
    for (; end_ - x >= 2 * kVector; x += 2 * kVector) AddTwo(x, a0_, q0_);
    if (end_ - x >= kVector) {
      Add(hn::Sub(source_.At(x), pilot_), a1_, q1_);
      x += kVector;
    }
    if (x != end_) {
      // The tail: the lanes already counted left out.
      const auto counted = hn::FirstN(d, static_cast<std::size_t>(kVector - (end_ - x)));
      Add(hn::IfThenZeroElse(counted, hn::Sub(source_.At(end_ - kVector), pilot_)), a2_, q2_);
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

  HWY_INLINE void AddTwo(const T* x, V& a, V& q) const {
    const auto two = source_.TwoAt(x);
    Add(hn::Sub(two.v0, pilot_), a, q);
    Add(hn::Sub(two.v1, pilot_), a, q);
  }

  HWY_INLINE void Step() {
    AddTwo(x_, a0_, q0_);
    AddTwo(x_ + apart_, a1_, q1_);
    AddTwo(x_ + 2 * apart_, a2_, q2_);
    AddTwo(x_ + 3 * apart_, a3_, q3_);
    x_ += stride_;
    // The last chain goes on with what fills no step.
    if (--steps_ % (kChain / 2) == 0 && steps_ > 0) FoldChain();
  }

  HWY_INLINE void StartChain() {
    a0_ = a1_ = a2_ = a3_ = q0_ = q1_ = q2_ = q3_ = hn::Zero(Tag<C>());
  }

  HWY_INLINE void FoldChain() {
    s1_ += SumLanes(Tag<C>(), Deviations());
    s2_ += SumLanes(Tag<C>(), Squares());
    StartChain();
  }

  Source<T, kJoins> source_;
  const T* x_;
  const T* end_;
  std::int64_t steps_;   // still to do
  std::int64_t apart_;   // elements between the places of a step
  std::int64_t stride_;  // elements from one step to the next
  std::int64_t count_;
  bool carried_;
  V pilot_;
  V a0_, a1_, a2_, a3_;  // sum of deviations, one a place
  V q0_, q1_, q2_, q3_;  // sum of their squares
  double s1_ = 0, s2_ = 0;
};

// At most kBatch runs of one chain each, stage by stage, with the bits of RunSums: the runs share
// the steps of their horizontal sums, and their latencies and divisions hide behind each other.
template <class T>
HWY_NOINLINE void ReduceShortRuns(const T* x, std::int64_t runs, std::int64_t count,
                                  const Trust& trust, Moments* moments) {
  using C = Compute<T>;
  const Tag<C> d;
  constexpr std::int64_t kVector = kLanes<C>;
  HWY_ALIGN C pilot[kBatch], s1[kBatch], s2[kBatch];
  HWY_ALIGN C a[kBatch * kVector], q[kBatch * kVector];
  HWY_ALIGN double mean[kBatch], m2[kBatch];
  RunPilots<T>(count).Of(x, runs, pilot);
  ClearRows(d, runs, a);
  ClearRows(d, runs, q);
  for (std::int64_t r = 0; r < runs; ++r) {
    RunSums<T> sums(x + r * count, count, hn::Set(d, pilot[r]), false);
    sums.AddRest();
    hn::Store(sums.Deviations(), d, a + r * kVector);
    hn::Store(sums.Squares(), d, q + r * kVector);
  }
  for (std::int64_t r = 0; r < runs; r += kVector) {
    hn::Store(FoldRows<Plus>(d, a + r * kVector), d, s1 + r);
    hn::Store(FoldRows<Plus>(d, q + r * kVector), d, s2 + r);
  }
  const hn::CappedTag<double, kBatch> dd;
  const hn::Rebind<C, decltype(dd)> dc;
  const auto n = hn::Set(dd, static_cast<double>(count));
  for (std::int64_t r = 0; r < runs; r += static_cast<std::int64_t>(hn::Lanes(dd))) {
    const auto v1 = PromoteToDouble(dd, hn::Load(dc, s1 + r));
    const auto v2 = PromoteToDouble(dd, hn::Load(dc, s2 + r));
    const auto shift = hn::Div(v1, n);
    const auto near = PromoteToDouble(dd, hn::Load(dc, pilot + r));
    hn::Store(hn::Add(near, shift), dd, mean + r);
    hn::Store(TrustedM2(dd, trust, v1, v2, n, shift), dd, m2 + r);
  }
  for (std::int64_t r = 0; r < runs; ++r) {
    moments[r] = std::isnan(m2[r]) ? ExactMoments<T>({x + r * count, 1, 0, count})
                                   : Moments{static_cast<double>(count), mean[r], m2[r]};
  }
}

template <class T>
void ReduceRuns(const Kernels::Runs& args) {
  const T* const x = static_cast<const T*>(args.x);
  if (kFast<T> && args.runs > 1 && args.count < RunSums<T>::kOneChain) {
    for (std::int64_t r = 0; r < args.runs; r += kBatch) {
      ReduceShortRuns<T>(x + r * args.count, std::min(kBatch, args.runs - r), args.count,
                         args.trust, args.moments + r);
    }
    return;
  }
  const RunPilots<T> pilots(args.count);
  for (std::int64_t r = 0; r < args.runs; ++r) {
    const T* const run = x + r * args.count;
    args.moments[r] = RunSums<T>(run, args.count, pilots.Of(run), false).Finish(args.trust);
  }
}

template <class T>
void ReduceSums(const Kernels::Runs& args, const Join& join) {
  const T* const x = static_cast<const T*>(args.x);
  const T* const skip = static_cast<const T*>(join.skip);
  const T* const shift = static_cast<const T*>(join.shift);
  const RunPilots<T> pilots(args.count);
  for (std::int64_t r = 0; r < args.runs; ++r) {
    const T* const run = x + r * args.count;
    const Source<T, true> source(run, skip == nullptr ? nullptr : skip + r * args.count,
                                 AddendAt(shift, r));
    args.moments[r] =
        RunSums<T, true>(run, args.count, pilots.Of(run, source), false, source).Finish(args.trust);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
