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

// dz of one vector; d_mean is x - mean.
template <class Act, class D, class V>
HWY_INLINE V Dz(D d, V d_mean, V dy, V a, V b) {
  return Act::Gradient(d, hn::MulAdd(d_mean, a, b), dy);
}

template <class Act, class D, class V>
HWY_INLINE V Dx(D d, V d_mean, V dy, V a, V b, V shift, V slope) {
  return hn::MulAdd(a, Dz<Act>(d, d_mean, dy, a, b), hn::MulAdd(slope, d_mean, shift));
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

template <class T>
struct ReduceRowsOf {
  template <class Act, Store>
  static void Run(const GradientKernels::ReduceRows& args) {
    using C = Compute<T>;
    const hn::ScalableTag<C> d;
    const auto mean = hn::Set(d, static_cast<C>(args.mean));
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const T* const x = static_cast<const T*>(args.x) + r * args.length;
      const T* const dy = static_cast<const T*>(args.dy) + r * args.length;
      const auto a = hn::Set(d, static_cast<const C*>(args.a)[r]);
      const auto b = hn::Set(d, static_cast<const C*>(args.b)[r]);
      args.sums[r] = Row<Act>(d, x, dy, args.length, mean, a, b);
    }
  }

 private:
  template <class Act, class D, class V>
  static HWY_INLINE GradientSums Row(D d, const T* x, const T* dy, std::int64_t count, V mean, V a,
                                     V b) {
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    RowGradient<D> sums;
    std::int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
      const auto x0 = LoadPair(d, x + i), x1 = LoadPair(d, x + i + 2 * lanes);
      const auto g0 = LoadPair(d, dy + i), g1 = LoadPair(d, dy + i + 2 * lanes);
      const auto d0 = hn::Sub(x0.v0, mean), d1 = hn::Sub(x0.v1, mean);
      const auto d2 = hn::Sub(x1.v0, mean), d3 = hn::Sub(x1.v1, mean);
      sums.template Add<0>(Dz<Act>(d, d0, g0.v0, a, b), d0);
      sums.template Add<1>(Dz<Act>(d, d1, g0.v1, a, b), d1);
      sums.template Add<2>(Dz<Act>(d, d2, g1.v0, a, b), d2);
      sums.template Add<3>(Dz<Act>(d, d3, g1.v1, a, b), d3);
      sums.Count();
    }
    for (; i + lanes <= count; i += lanes) {
      const auto d0 = hn::Sub(LoadAs(d, x + i), mean);
      sums.template Add<0>(Dz<Act>(d, d0, LoadAs(d, dy + i), a, b), d0);
    }
    if (i < count) {
      // A vector that ends with the row, the lanes already counted left out.
      const auto counted = hn::FirstN(d, static_cast<std::size_t>(lanes - (count - i)));
      const auto d0 = hn::IfThenZeroElse(counted, hn::Sub(LoadAs(d, x + count - lanes), mean));
      const auto dz = Dz<Act>(d, d0, LoadAs(d, dy + count - lanes), a, b);
      sums.template Add<1>(hn::IfThenZeroElse(counted, dz), d0);
    }
    sums.Fold();
    return sums.total();
  }
};

// Adds kRows rows to the chains, whose means stand in `pilot`.
template <std::int64_t kRows, class T, class Act>
HWY_INLINE void AddGradientBand(const GradientKernels::ReduceLanes& args, std::int64_t row,
                                ColumnSums<Compute<T>>* sums) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  constexpr std::int64_t kLines = kRows * hn::MaxLanes(d) * sizeof(T) / 64;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const T* const x = static_cast<const T*>(args.x) + row * args.stride;
  const T* const dy = static_cast<const T*>(args.dy) + row * args.stride;
  auto ahead_x = Ahead<T>::template Of<kRows>(x, args.stride, args.width);
  auto ahead_dy = Ahead<T>::template Of<kRows>(dy, args.stride, args.width);
  for (std::int64_t i = 0; i < args.width; i += lanes) {
    ahead_x.template Fetch<kLines>();
    ahead_dy.template Fetch<kLines>();
    const std::int64_t at = std::min(i, args.width - lanes);
    const auto mean = hn::LoadU(d, static_cast<const C*>(args.mean) + at);
    const auto a = hn::LoadU(d, static_cast<const C*>(args.a) + at);
    const auto b = hn::LoadU(d, static_cast<const C*>(args.b) + at);
    auto dz = hn::Load(d, sums->a + i), dzx = hn::Load(d, sums->q + i);
    auto band_dz = hn::Zero(d), band_dzx = hn::Zero(d);
    for (std::int64_t r = 0; r < kRows; ++r) {
      const auto d_mean = hn::Sub(LoadAs(d, x + r * args.stride + at), mean);
      const auto v = Dz<Act>(d, d_mean, LoadAs(d, dy + r * args.stride + at), a, b);
      band_dz = hn::Add(band_dz, v);
      band_dzx = hn::MulAdd(v, d_mean, band_dzx);
    }
    hn::Store(hn::Add(dz, band_dz), d, sums->a + i);
    hn::Store(hn::Add(dzx, band_dzx), d, sums->q + i);
  }
}

template <class T>
struct ReduceLanesOf {
  template <class Act, Store>
  static void Run(const GradientKernels::ReduceLanes& args) {
    constexpr std::int64_t kBand = 8;
    using C = Compute<T>;
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<C>()));
    const std::int64_t padded = (args.width + lanes - 1) / lanes * lanes;
    ColumnSums<C> sums;
    std::fill_n(sums.a, padded, C{0});
    std::fill_n(sums.q, padded, C{0});
    std::fill_n(sums.s1, padded, 0.0);
    std::fill_n(sums.s2, padded, 0.0);
    std::int64_t row = 0, links = 0;
    for (; row + kBand <= args.rows; row += kBand) {
      AddGradientBand<kBand, T, Act>(args, row, &sums);
      if (++links < kChain / 2) continue;
      FoldChains(padded, &sums);
      links = 0;
    }
    for (; row < args.rows; ++row) AddGradientBand<1, T, Act>(args, row, &sums);
    FoldChains(padded, &sums);
    for (std::int64_t i = 0; i < padded; ++i) {
      const bool last = i >= padded - lanes;
      args.sums[last ? args.width - padded + i : i] = {sums.s1[i], sums.s2[i]};
    }
  }
};

// What dx needs beside x and dy: one vector of each.
template <class V>
struct DxTerms {
  V mean, a, b, shift, slope;
};

template <class Act, class D, class V>
HWY_INLINE V Dx(D d, V x, V dy, const DxTerms<V>& t) {
  return Dx<Act>(d, hn::Sub(x, t.mean), dy, t.a, t.b, t.shift, t.slope);
}

template <class T, class Act, Store kStore, class D, class V>
HWY_INLINE void DxRow(D d, const T* x, const T* dy, T* dx, std::int64_t count,
                      const DxTerms<V>& terms) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto pair = [&](std::int64_t i) HWY_ATTR {
    const auto vx = LoadPair(d, x + i), vdy = LoadPair(d, dy + i);
    const Pair<V> both{Dx<Act>(d, vx.v0, vdy.v0, terms), Dx<Act>(d, vx.v1, vdy.v1, terms)};
    StorePair<kStore>(d, both, dx + i);
  };
  if constexpr (kStore == Store::streaming) {
    const auto cached = [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
      if (begin == end) return;
      DxRow<T, Act, Store::cached>(d, x + begin, dy + begin, dx + begin, end - begin, terms);
    };
    const Range lines = StreamedLines(dx, count, lanes, 2 * lanes);
    cached(0, lines.begin);
    for (std::int64_t i = lines.begin; i < lines.end; i += 2 * lanes) pair(i);
    return cached(lines.end, count);
  }
  const auto last_x = LoadAs(d, x + count - lanes), last_dy = LoadAs(d, dy + count - lanes);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) pair(i);
  for (; i + lanes <= count; i += lanes) {
    StoreAs<Store::cached>(d, Dx<Act>(d, LoadAs(d, x + i), LoadAs(d, dy + i), terms), dx + i);
  }
  if (i == count) return;
  StoreAs<Store::cached>(d, Dx<Act>(d, last_x, last_dy, terms), dx + count - lanes);
}

template <class T>
struct DxRowsOf {
  template <class Act, Store kStore>
  static void Run(const GradientKernels::ApplyRows& args) {
    using C = Compute<T>;
    const hn::ScalableTag<C> d;
    const auto mean = hn::Set(d, static_cast<C>(args.mean));
    const auto shift = hn::Set(d, static_cast<C>(args.shift));
    const auto slope = hn::Set(d, static_cast<C>(args.slope));
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const std::int64_t at = r * args.length;
      const DxTerms<hn::Vec<decltype(d)>> terms{mean, hn::Set(d, static_cast<const C*>(args.a)[r]),
                                                hn::Set(d, static_cast<const C*>(args.b)[r]), shift,
                                                slope};
      DxRow<T, Act, kStore>(d, static_cast<const T*>(args.x) + at,
                            static_cast<const T*>(args.dy) + at, static_cast<T*>(args.dx) + at,
                            args.length, terms);
    }
  }
};

template <class T, class Act, Store kStore, std::int64_t kRows>
HWY_INLINE void DxBand(const GradientKernels::ApplyLanes& args, std::int64_t row) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr std::int64_t kLines = kRows * hn::MaxLanes(d) * sizeof(T) / 64;
  const std::int64_t stride = args.stride, last = args.width - lanes;
  const T* const x = static_cast<const T*>(args.x) + row * stride;
  const T* const dy = static_cast<const T*>(args.dy) + row * stride;
  T* const dx = static_cast<T*>(args.dx) + row * stride;
  const auto terms_at = [&](std::int64_t i) HWY_ATTR {
    const auto load = [&](const void* p)
                          HWY_ATTR { return hn::LoadU(d, static_cast<const C*>(p) + i); };
    return DxTerms<V>{load(args.mean), load(args.a), load(args.b), load(args.shift),
                      load(args.slope)};
  };
  const auto at = [&](std::int64_t r, std::int64_t i, const DxTerms<V>& terms) HWY_ATTR {
    return Dx<Act>(d, LoadAs(d, x + r * stride + i), LoadAs(d, dy + r * stride + i), terms);
  };
  // The end that fills no vector comes first: what it reads twice may be written below.
  const bool partial = args.width % lanes != 0;
  HWY_ALIGN C ends[static_cast<std::size_t>(kRows) * hn::MaxLanes(d)];
  if (partial) {
    const DxTerms<V> terms = terms_at(last);
    for (std::int64_t r = 0; r < kRows; ++r) hn::Store(at(r, last, terms), d, ends + r * lanes);
  }
  auto ahead_x = Ahead<T>::template Of<kRows>(x, stride, args.width);
  auto ahead_dy = Ahead<T>::template Of<kRows>(dy, stride, args.width);
  for (std::int64_t i = 0; i <= last; i += lanes) {
    ahead_x.template Fetch<kLines>();
    ahead_dy.template Fetch<kLines>();
    const DxTerms<V> terms = terms_at(i);
    for (std::int64_t r = 0; r < kRows; ++r) {
      StoreAs<kStore>(d, at(r, i, terms), dx + r * stride + i);
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
    constexpr std::int64_t kBand = 4;
    std::int64_t row = 0;
    for (; row + kBand <= args.rows; row += kBand) DxBand<T, Act, kStore, kBand>(args, row);
    for (; row < args.rows; ++row) DxBand<T, Act, kStore, 1>(args, row);
  }
};

template <class T>
void ReduceGradientRows(const GradientKernels::ReduceRows& args) {
  DispatchActivation<ReduceRowsOf<T>, Store::cached>(args);
}

template <class T>
void ReduceGradientLanes(const GradientKernels::ReduceLanes& args) {
  DispatchActivation<ReduceLanesOf<T>, Store::cached>(args);
}

template <class T>
void DxRows(const GradientKernels::ApplyRows& args) {
  if (args.store == Store::cached) return DispatchActivation<DxRowsOf<T>, Store::cached>(args);
  DispatchActivation<DxRowsOf<T>, Store::streaming>(args);
  hwy::FlushStream();  // before another thread may be told that dx is written
}

template <class T>
void DxLanes(const GradientKernels::ApplyLanes& args) {
  // Every row begins on a vector where the first two do.
  const hn::ScalableTag<Compute<T>> d;
  const T* const dx = static_cast<const T*>(args.dx);
  const bool aligned = ToAligned(d, dx) == 0 && ToAligned(d, dx + args.stride) == 0;
  if (args.store == Store::cached || !aligned) {
    return DispatchActivation<DxLanesOf<T>, Store::cached>(args);
  }
  DispatchActivation<DxLanesOf<T>, Store::streaming>(args);
  hwy::FlushStream();
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
