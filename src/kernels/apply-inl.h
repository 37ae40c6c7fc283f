// apply: y = activation(a * (x - mean) + b), with one store of every y.
//
// mean is the part of the mean that the compute type holds; the rest is in b. x - mean is then
// small and a * (x - mean) as exact as x is. Ends that fill no vector are read and written by a
// vector that ends with the data; it is loaded before anything near it is stored, since y may be x.
#if defined(GROUPNORM_SRC_KERNELS_APPLY_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_APPLY_INL_H
#undef GROUPNORM_SRC_KERNELS_APPLY_INL_H
#else
#define GROUPNORM_SRC_KERNELS_APPLY_INL_H
#endif

#include "kernels/activation-inl.h"
#include "kernels/kernels.h"
#include "kernels/reduce-inl.h"
#include "kernels/simd-inl.h"

#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// One vector's worth of coefficients.
template <class Act, class D, class V>
HWY_INLINE V Normalize(D d, V x, V mean, V a, V b) {
  return Act::Apply(d, hn::MulAdd(hn::Sub(x, mean), a, b));
}

template <class Act, class D, class V>
HWY_INLINE Pair<V> Normalize(D d, const Pair<V>& x, V mean, V a, V b) {
  return {Normalize<Act>(d, x.v0, mean, a, b), Normalize<Act>(d, x.v1, mean, a, b)};
}

// Elements from p to the next address that a whole vector may be streamed to.
template <class D, class T>
HWY_INLINE std::int64_t ToAligned(D d, const T* p) {
  const std::size_t bytes = hn::Lanes(d) * sizeof(hn::TFromD<D>);
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(p) % bytes;
  return past == 0 ? 0 : static_cast<std::int64_t>((bytes - past) / sizeof(T));
}

// Stands in for RunSums where there is nothing to reduce beside an apply.
struct NoSums {
  HWY_INLINE bool Step() { return false; }
};

template <class T, class Act, Store kStore, class D, class V, class Sums>
HWY_INLINE void ApplyRow(D d, const T* x, T* y, std::int64_t count, V mean, V a, V b, Sums& sums) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto four = [&](std::int64_t i) HWY_ATTR {
    const auto near = LoadPair(d, x + i), far = LoadPair(d, x + i + 2 * lanes);
    StorePair<kStore>(d, Normalize<Act>(d, near, mean, a, b), y + i);
    StorePair<kStore>(d, Normalize<Act>(d, far, mean, a, b), y + i + 2 * lanes);
    sums.Step();
  };
  if constexpr (kStore == Store::streaming) {
    const auto cached = [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
      if (begin == end) return;
      ApplyRow<T, Act, Store::cached>(d, x + begin, y + begin, end - begin, mean, a, b, sums);
    };
    const Range lines = StreamedLines(y, count, lanes, 4 * lanes);
    cached(0, lines.begin);
    for (std::int64_t i = lines.begin; i < lines.end; i += 4 * lanes) four(i);
    return cached(lines.end, count);
  }
  const auto last = LoadAs(d, x + count - lanes);
  std::int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) four(i);
  for (; i + lanes <= count; i += lanes) {
    StoreAs<Store::cached>(d, Normalize<Act>(d, LoadAs(d, x + i), mean, a, b), y + i);
  }
  if (i < count) StoreAs<Store::cached>(d, Normalize<Act>(d, last, mean, a, b), y + count - lanes);
}

template <class T>
struct RowsOf {
  template <class Act, Store kStore>
  static void Run(const Kernels::ApplyRows& args) {
    if (args.next.x == nullptr) {
      NoSums none;
      return Apply<Act, kStore>(args, none);
    }
    RunSums<T> sums(static_cast<const T*>(args.next.x), args.next.count);
    Apply<Act, kStore>(args, sums);
    *args.next.moments = sums.Finish();
  }

 private:
  template <class Act, Store kStore, class Sums>
  static HWY_INLINE void Apply(const Kernels::ApplyRows& args, Sums& sums) {
    using C = Compute<T>;
    const hn::ScalableTag<C> d;
    const auto mean = hn::Set(d, static_cast<C>(args.mean));
    const C* const a = static_cast<const C*>(args.a);
    const C* const b = static_cast<const C*>(args.b);
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const std::int64_t at = r * args.length;
      ApplyRow<T, Act, kStore>(d, static_cast<const T*>(args.x) + at, static_cast<T*>(args.y) + at,
                               args.length, mean, hn::Set(d, a[r]), hn::Set(d, b[r]), sums);
    }
  }
};

// kRows rows of [width] lanes, each coefficient loaded once for all of them.
template <class T, class Act, Store kStore, std::int64_t kRows>
HWY_INLINE void ApplyBand(const Kernels::ApplyLanes& args, const T* x, T* y) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const C* const mean = static_cast<const C*>(args.mean);
  const C* const a = static_cast<const C*>(args.a);
  const C* const b = static_cast<const C*>(args.b);
  const std::int64_t last = args.width - lanes;
  const std::int64_t stride = args.stride;
  HWY_ALIGN C ends[static_cast<std::size_t>(kRows) * hn::MaxLanes(d)];
  const bool partial = args.width % lanes != 0;
  for (std::int64_t r = 0; partial && r < kRows; ++r) {
    hn::Store(LoadAs(d, x + r * stride + last), d, ends + r * lanes);
  }
  constexpr std::int64_t kLines = kRows * hn::MaxLanes(d) * sizeof(T) / 64;
  auto ahead = Ahead<T>::template Of<kRows>(x, stride, args.width);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= args.width; i += 2 * lanes) {
    ahead.template Fetch<2 * kLines>();
    const auto vm = LoadForPair<T>(d, mean + i);
    const auto va = LoadForPair<T>(d, a + i);
    const auto vb = LoadForPair<T>(d, b + i);
    for (std::int64_t r = 0; r < kRows; ++r) {
      const std::int64_t at = r * stride + i;
      const auto [v0, v1] = LoadPair(d, x + at);
      const Pair<decltype(v0)> both{Normalize<Act>(d, v0, vm.v0, va.v0, vb.v0),
                                    Normalize<Act>(d, v1, vm.v1, va.v1, vb.v1)};
      StorePair<kStore>(d, both, y + at);
    }
  }
  for (; i <= last; i += lanes) {
    const auto vm = hn::LoadU(d, mean + i);
    const auto va = hn::LoadU(d, a + i);
    const auto vb = hn::LoadU(d, b + i);
    for (std::int64_t r = 0; r < kRows; ++r) {
      const std::int64_t at = r * stride + i;
      StoreAs<Store::cached>(d, Normalize<Act>(d, LoadAs(d, x + at), vm, va, vb), y + at);
    }
  }
  for (std::int64_t r = 0; partial && r < kRows; ++r) {
    const auto end = Normalize<Act>(d, hn::Load(d, ends + r * lanes), hn::LoadU(d, mean + last),
                                    hn::LoadU(d, a + last), hn::LoadU(d, b + last));
    StoreAs<Store::cached>(d, end, y + r * stride + last);
  }
}

template <class T>
struct LanesOf {
  template <class Act, Store kStore>
  static void Run(const Kernels::ApplyLanes& args) {
    constexpr std::int64_t kBand = 4;
    const T* const x = static_cast<const T*>(args.x);
    T* const y = static_cast<T*>(args.y);
    std::int64_t row = 0;
    for (; row + kBand <= args.rows; row += kBand) {
      ApplyBand<T, Act, kStore, kBand>(args, x + row * args.stride, y + row * args.stride);
    }
    for (; row < args.rows; ++row) {
      ApplyBand<T, Act, kStore, 1>(args, x + row * args.stride, y + row * args.stride);
    }
  }
};

// One instance of F::Run for each activation and store.
template <class F, Store kStore, class Args>
void DispatchActivation(const Args& args) {
  switch (args.activation) {
    case Activation::none: return F::template Run<None, kStore>(args);
    case Activation::relu: return F::template Run<Relu, kStore>(args);
    case Activation::silu: return F::template Run<Silu, kStore>(args);
    case Activation::gelu: return F::template Run<Gelu, kStore>(args);
    case Activation::gelu_tanh: return F::template Run<GeluTanh, kStore>(args);
    case Activation::hard_swish: return F::template Run<HardSwish, kStore>(args);
  }
}

template <class T>
void ApplyRows(const Kernels::ApplyRows& args) {
  if (args.store == Store::streaming) {
    DispatchActivation<RowsOf<T>, Store::streaming>(args);
    hwy::FlushStream();  // before another thread may be told that y is written
  } else {
    DispatchActivation<RowsOf<T>, Store::cached>(args);
  }
}

template <class T>
void ApplyLanes(const Kernels::ApplyLanes& args) {
  // Every row begins on a vector where the first two do.
  const hn::ScalableTag<Compute<T>> d;
  T* const y = static_cast<T*>(args.y);
  const bool aligned = ToAligned(d, y) == 0 && ToAligned(d, y + args.stride) == 0;
  if (args.store == Store::streaming && aligned) {
    DispatchActivation<LanesOf<T>, Store::streaming>(args);
    hwy::FlushStream();
  } else {
    DispatchActivation<LanesOf<T>, Store::cached>(args);
  }
}

template <class C, class DD, class DC>
HWY_INLINE hn::Vec<DD> ToDouble(DD dd, DC, hn::Vec<DC> v) {
  if constexpr (std::is_same_v<C, double>) {
    return v;
  } else {
    return hn::PromoteTo(dd, v);
  }
}

template <class C, class DD, class DC>
HWY_INLINE hn::Vec<DC> FromDouble(DD, DC dc, hn::Vec<DD> v) {
  if constexpr (std::is_same_v<C, double>) {
    return v;
  } else {
    return hn::DemoteTo(dc, v);
  }
}

// v, with a NaN that rounds to a NaN of T (see RoundBF16).
template <class T, class D, class V>
HWY_INLINE V Clean(D d, V v) {
  if constexpr (!std::is_same_v<T, BF16>) return v;
  return hn::IfThenElse(hn::IsNaN(v), hn::Set(d, std::numeric_limits<float>::quiet_NaN()), v);
}

// T: the data's storage dtype, which sets the compute type; P: that of gamma and beta.
template <class T, class P>
void Coefficients(const Kernels::Coefficients& args) {
  using C = Compute<T>;
  const hn::ScalableTag<double> dd;
  const hn::Rebind<C, decltype(dd)> dc;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(dd));
  const auto rstd = hn::Set(dd, args.rstd);
  const auto mean_lo = hn::Set(dd, args.mean_lo);
  for (std::int64_t i = 0; i < args.count; i += lanes) {
    const std::int64_t readable = std::min(lanes, args.readable - i);
    const auto param = [&](const void* data, C missing) HWY_ATTR {
      if (data == nullptr) return hn::Set(dd, static_cast<double>(missing));
      const P* const p = static_cast<const P*>(data) + i;
      if (readable == lanes) return ToDouble<C>(dd, dc, LoadAs(dc, p));
      P buffer[hn::MaxLanes(dd)] = {};
      std::memcpy(buffer, p, static_cast<std::size_t>(readable) * sizeof(P));
      return ToDouble<C>(dd, dc, LoadAs(dc, buffer));
    };
    const auto a = Clean<T>(dc, FromDouble<C>(dd, dc, hn::Mul(rstd, param(args.gamma, C{1}))));
    const auto shift = hn::Mul(mean_lo, ToDouble<C>(dd, dc, a));
    const auto b = Clean<T>(dc, FromDouble<C>(dd, dc, hn::Sub(param(args.beta, C{0}), shift)));
    hn::StoreU(a, dc, static_cast<C*>(args.a) + i);
    hn::StoreU(b, dc, static_cast<C*>(args.b) + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
