// reduce, down the columns of rows of lanes, against a pilot for each column (moments-inl.h); and
// of any numbers exactly, in double.
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

template <class T>
HWY_INLINE void ColumnPilots(const T* x, std::int64_t rows, std::int64_t stride, std::int64_t width,
                             ColumnSums<Compute<T>>* sums) {
  using C = Compute<T>;
  const Tag<C> d;
  const std::int64_t samples = std::min(kColumnSamples, rows);
  const std::int64_t step = samples > 1 ? (rows - 1) / (samples - 1) * stride : 0;
  const auto share = hn::Set(d, C{1} / static_cast<C>(samples));
  for (std::int64_t i = 0; i < sums->size; i += kLanes<C>) {
    const T* const column = x + sums->Column(i, width);
    const auto base = LoadAs(d, column);
    auto sum = hn::Zero(d), spread = hn::Zero(d);
    for (std::int64_t r = 1; r < samples; ++r) {
      const auto distance = hn::Sub(LoadAs(d, column + r * step), base);
      sum = hn::Add(sum, distance);
      spread = hn::Max(spread, hn::Abs(distance));
    }
    hn::Store(Coarse(d, hn::Add(base, hn::Mul(sum, share)), spread), d, sums->pilot + i);
  }
}

// kRows rows join the chains, `apart` rows apart: their own sum comes first, which makes the chains
// eight times shorter. Unrolled for the reason that Write is (loop-inl.h).
template <std::int64_t kRows, class T>
HWY_INLINE void SumColumnBand(const Kernels::Columns& args, std::int64_t row, std::int64_t apart,
                              ColumnSums<Compute<T>>* sums) {
  using C = Compute<T>;
  const Tag<C> d;
  const T* const x = static_cast<const T*>(args.x) + row * args.stride;
  for (std::int64_t i = 0; i < sums->size; i += kLanes<C>) {
    const T* const column = x + sums->Column(i, args.width);
    const auto pilot = hn::Load(d, sums->pilot + i);
    auto a = hn::Zero(d), q = hn::Zero(d);
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < kRows; ++r) {
      const auto deviation = hn::Sub(LoadAs(d, column + r * apart * args.stride), pilot);
      a = hn::Add(a, deviation);
      q = hn::MulAdd(deviation, deviation, q);
    }
    sums->Add(i, a, q);
  }
  sums->Link();
}

template <class T>
void ReduceColumns(const Kernels::Columns& args) {
  using C = Compute<T>;
  ColumnSums<C> sums(args.width);
  ColumnPilots(static_cast<const T*>(args.x), args.rows, args.stride, args.width, &sums);
  constexpr std::int64_t kBand = kFast<T> ? kSumBand : 1;
  ForBands(args.rows, kBand,
           [&](std::int64_t row, std::int64_t places, std::int64_t apart) HWY_ATTR {
             if (kBand > 1 && places == kBand) {
               SumColumnBand<kBand, T>(args, row, apart, &sums);
             } else {
               SumColumnBand<1, T>(args, row, 1, &sums);
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
    const std::int64_t column = sums.Column(i, args.width);
    hn::StoreU(hn::Add(pilot, shift), dd, args.mean + column);
    hn::StoreU(TrustedM2(dd, s1, s2, n, shift), dd, args.m2 + column);
  }
}

struct DeviationSums {
  double s1, s2;  // of deviations, and of their squares
};

// Of x [rows, width] from a value, in double.
template <class T>
HWY_INLINE DeviationSums DoubleSums(const Kernels::Numbers& args, double from) {
  const Tag<double> dd;
  auto a = hn::Zero(dd), q = hn::Zero(dd);
  const auto all_from = hn::Set(dd, from);
  DeviationSums rest{0, 0};
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const T* const x = static_cast<const T*>(args.x) + r * args.stride;
    std::int64_t i = 0;
    for (; i + kLanes<double> <= args.width; i += kLanes<double>) {
      const auto deviation = hn::Sub(LoadAs(dd, x + i), all_from);
      a = hn::Add(a, deviation);
      q = hn::MulAdd(deviation, deviation, q);
    }
    for (; i < args.width; ++i) {
      const double deviation = to_double(x[i]) - from;
      rest.s1 += deviation;
      rest.s2 += deviation * deviation;
    }
  }
  return {rest.s1 + SumLanes(dd, a), rest.s2 + SumLanes(dd, q)};
}

// By two passes: right for every finite f32, f16 and bf16, and for f64 while the sum of squares is
// finite (|x| up to about 1e150).
template <class T>
Moments ExactMoments(const Kernels::Numbers& args) {
  const auto n = static_cast<double>(args.rows * args.width);
  const double first = to_double(*static_cast<const T*>(args.x));
  const double mean = first + DoubleSums<T>(args, first).s1 / n;
  const DeviationSums sums = DoubleSums<T>(args, mean);
  return {n, mean + sums.s1 / n, sums.s2 - sums.s1 * sums.s1 / n};
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
