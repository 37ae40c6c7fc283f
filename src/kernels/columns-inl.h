// reduce, down the columns of rows of lanes, against a pilot for each column (moments-inl.h).
#if defined(GROUPNORM_SRC_KERNELS_COLUMNS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_COLUMNS_INL_H
#undef GROUPNORM_SRC_KERNELS_COLUMNS_INL_H
#else
#define GROUPNORM_SRC_KERNELS_COLUMNS_INL_H
#endif

#include "kernels/loop-inl.h"
#include "kernels/moments-inl.h"
#include "kernels/simd-inl.h"
#include "tuning.h"

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// Sums of one tile of columns. The entries of the tail lie behind those of the whole vectors.
template <class C>
struct ColumnSums {
  HWY_ALIGN C pilot[kMaxLanes + 64 / sizeof(C)];
  HWY_ALIGN C a[kMaxLanes + 64 / sizeof(C)];  // of one chain
  HWY_ALIGN C q[kMaxLanes + 64 / sizeof(C)];
  HWY_ALIGN double s1[kMaxLanes + 64 / sizeof(C)];
  HWY_ALIGN double s2[kMaxLanes + 64 / sizeof(C)];
  std::int64_t size;  // entries, whole vectors
  std::int64_t links = 0;

  HWY_INLINE explicit ColumnSums(std::int64_t width)
      : size((width + kLanes<C> - 1) / kLanes<C> * kLanes<C>) {
    std::fill_n(a, size, C{0});
    std::fill_n(q, size, C{0});
    std::fill_n(s1, size, 0.0);
    std::fill_n(s2, size, 0.0);
  }

  // The column of entry i, or of the vector at i.
  HWY_INLINE std::int64_t Column(std::int64_t i, std::int64_t width) const {
    return i < size - kLanes<C> ? i : i - size + width;
  }

  // To the chains of the vector at i.
  HWY_INLINE void Add(std::int64_t i, Vector<C> more_a, Vector<C> more_q) {
    const Tag<C> d;
    hn::Store(hn::Add(hn::Load(d, a + i), more_a), d, a + i);
    hn::Store(hn::Add(hn::Load(d, q + i), more_q), d, q + i);
  }

  // After each band.
  HWY_INLINE void Link() {
    if (++links == kChain / 2) Fold();
  }

  // chain -> double sums; empties the chain.
  HWY_INLINE void Fold() {
    for (std::int64_t i = 0; i < size; i += kLanes<double>) {
      FoldOne(a + i, s1 + i);
      FoldOne(q + i, s2 + i);
    }
    links = 0;
  }

 private:
  static HWY_INLINE void FoldOne(C* chain, double* total) {
    const Tag<double> dd;
    const hn::Rebind<C, Tag<double>> dc;
    const auto value = PromoteToDouble(dd, hn::Load(dc, chain));
    hn::Store(hn::Add(hn::Load(dd, total), value), dd, total);
    hn::Store(hn::Zero(dc), dc, chain);
  }
};

// Vectors of x; or of u = x + skip + shift, formed in the compute type.
template <class T, bool kJoins>
class ColumnSource {
  using C = Compute<T>;

 public:
  HWY_INLINE explicit ColumnSource(const Kernels::Columns& args)
      : x_(static_cast<const T*>(args.x)),
        skip_(static_cast<const T*>(args.skip)),
        shift_(static_cast<const T*>(args.shift)) {}

  // From element `index` of x on, which is in column `column`. D: of the compute type.
  template <class D>
  HWY_INLINE hn::Vec<D> At(D d, std::int64_t index, std::int64_t column) const {
    auto u = LoadAs(d, x_ + index);
    if constexpr (kJoins) {
      if (skip_ != nullptr) u = hn::Add(u, LoadAs(d, skip_ + index));
      if (shift_ != nullptr) u = hn::Add(u, LoadAs(d, shift_ + column));
    }
    return u;
  }

 private:
  const T* x_;
  const T* skip_;
  const T* shift_;
};

template <class T, class Source>
HWY_INLINE void ColumnPilots(const Source& source, std::int64_t rows, std::int64_t stride,
                             std::int64_t width, ColumnSums<Compute<T>>* sums) {
  using C = Compute<T>;
  const Tag<C> d;
  const std::int64_t samples = std::min(kColumnSamples, rows);
  const std::int64_t step = samples > 1 ? (rows - 1) / (samples - 1) * stride : 0;
  const auto share = hn::Set(d, C{1} / static_cast<C>(samples));
  for (std::int64_t i = 0; i < sums->size; i += kLanes<C>) {
    const std::int64_t column = sums->Column(i, width);
    const auto base = source.At(d, column, column);
    auto sum = hn::Zero(d), spread = hn::Zero(d);
    for (std::int64_t r = 1; r < samples; ++r) {
      const auto distance = hn::Sub(source.At(d, column + r * step, column), base);
      sum = hn::Add(sum, distance);
      spread = hn::Max(spread, hn::Abs(distance));
    }
    hn::Store(Coarse(d, hn::Add(base, hn::Mul(sum, share)), spread), d, sums->pilot + i);
  }
}

// kRows rows join the chains, `apart` rows apart: their own sum comes first, which makes the chains
// eight times shorter. Unrolled for the reason that Write is (loop-inl.h).
template <std::int64_t kRows, class T, class Source>
HWY_INLINE void SumColumnBand(const Kernels::Columns& args, const Source& source, std::int64_t row,
                              std::int64_t apart, ColumnSums<Compute<T>>* sums) {
  using C = Compute<T>;
  const Tag<C> d;
  for (std::int64_t i = 0; i < sums->size; i += kLanes<C>) {
    const std::int64_t column = sums->Column(i, args.width);
    const std::int64_t first = row * args.stride + column;
    const auto pilot = hn::Load(d, sums->pilot + i);
    auto a = hn::Zero(d), q = hn::Zero(d);
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < kRows; ++r) {
      const auto deviation = hn::Sub(source.At(d, first + r * apart * args.stride, column), pilot);
      a = hn::Add(a, deviation);
      q = hn::MulAdd(deviation, deviation, q);
    }
    sums->Add(i, a, q);
  }
  sums->Link();
}

// One a lane.
struct ColumnMoments {
  Vector<double> mean, m2;
};

// As ExactMoments, of the vector of columns from `column` on.
template <class T>
HWY_NOINLINE ColumnMoments ExactColumns(const Kernels::Columns& args, std::int64_t column) {
  const ColumnSource<T, !kEdge> source(args);  // slow, so one for both
  const Tag<double> dd;
  const hn::Rebind<Compute<T>, Tag<double>> dc;
  const T* const base = static_cast<const T*>(args.x);
  const T* const x = base + column;
  const auto load = [&](const T* p)
                        HWY_ATTR { return PromoteToDouble(dd, source.At(dc, p - base, column)); };
  const auto n = hn::Set(dd, static_cast<double>(args.rows));
  const auto first = load(x);
  DoubleSums sums = SumInDouble(load, x, args.rows, args.stride, first);
  auto shift = hn::Div(sums.s1, n);
  auto mean = hn::Add(first, shift), m2 = hn::NegMulAdd(sums.s1, shift, sums.s2);
  const auto reach = hn::Mul(hn::Mul(hn::Set(dd, kDoubleReach<T>), n), m2);
  const auto near = hn::Le(hn::Mul(sums.s1, sums.s1), reach);
  if (!hn::AllTrue(dd, hn::Or(near, hn::Not(hn::IsFinite(sums.s1))))) {
    sums = SumInDouble(load, x, args.rows, args.stride, mean);
    shift = hn::Div(sums.s1, n);
    mean = hn::IfThenElse(near, mean, hn::Add(mean, shift));
    m2 = hn::IfThenElse(near, m2, hn::NegMulAdd(sums.s1, shift, sums.s2));
  }
  const auto finite = hn::IsFinite(m2);
  if (hn::AllTrue(dd, finite)) return {mean, m2};
  sums = SumInDouble(load, x, args.rows, args.stride, hn::Zero(dd));
  return {hn::IfThenElseZero(finite, mean),
          hn::IfThenElse(finite, m2, hn::Add(sums.s2, hn::Inf(dd)))};
}

// Not inlined: a caller of two would have the sums of both on its stack.
template <class T, class Source>
HWY_NOINLINE void ReduceColumnsOf(const Kernels::Columns& args) {
  using C = Compute<T>;
  const Source source(args);
  ColumnSums<C> sums(args.width);
  ColumnPilots<T>(source, args.rows, args.stride, args.width, &sums);
  constexpr std::int64_t kBand = kFast<T> ? kSumBand : 1;
  ForBands(args.rows, kBand,
           [&](std::int64_t row, std::int64_t places, std::int64_t apart) HWY_ATTR {
             if (kBand > 1 && places == kBand) {
               SumColumnBand<kBand, T>(args, source, row, apart, &sums);
             } else {
               SumColumnBand<1, T>(args, source, row, 1, &sums);
             }
           });
  sums.Fold();

  const Tag<double> dd;
  const hn::Rebind<C, Tag<double>> dc;
  const auto n = hn::Set(dd, static_cast<double>(args.rows));
  for (std::int64_t i = 0; i < sums.size; i += kLanes<double>) {
    const auto s1 = hn::Load(dd, sums.s1 + i), s2 = hn::Load(dd, sums.s2 + i);
    const auto pilot = PromoteToDouble(dd, hn::Load(dc, sums.pilot + i));
    const auto shift = hn::Div(s1, n);
    auto mean = hn::Add(pilot, shift), m2 = TrustedM2(dd, args.trust, s1, s2, n, shift);
    const std::int64_t column = sums.Column(i, args.width);
    const auto poor = hn::IsNaN(m2);
    if (!hn::AllFalse(dd, poor)) {
      const ColumnMoments exact = ExactColumns<T>(args, column);
      mean = hn::IfThenElse(poor, exact.mean, mean);
      m2 = hn::IfThenElse(poor, exact.m2, m2);
    }
    hn::StoreU(mean, dd, args.mean + column);
    hn::StoreU(m2, dd, args.m2 + column);
  }
}

template <class T>
void ReduceColumns(const Kernels::Columns& args) {
  if (!kEdge && (args.skip != nullptr || args.shift != nullptr)) {
    return ReduceColumnsOf<T, ColumnSource<T, true>>(args);
  }
  return ReduceColumnsOf<T, ColumnSource<T, false>>(args);
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
