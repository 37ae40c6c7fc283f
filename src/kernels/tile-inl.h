// Tiles: what stays in L1 between a tensor and the kernels of another compute type, and the
// activations that are made there.
#if defined(GROUPNORM_SRC_KERNELS_TILE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_TILE_INL_H
#undef GROUPNORM_SRC_KERNELS_TILE_INL_H
#else
#define GROUPNORM_SRC_KERNELS_TILE_INL_H
#endif

#include "kernels/activation-inl.h"
#include "kernels/loop-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/terms-inl.h"

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// Elements of a row that fill no vector go through one of these.
template <class T>
struct Tail {
  HWY_ALIGN T data[64 / sizeof(T)] = {};
};

// T -> C, where u is formed in T's compute type: row `row`.
template <class T, class C>
HWY_NOINLINE void LoadRow(const TileKernels::Load& args, std::int64_t row) {
  const Tag<C> d;
  const hn::Rebind<Compute<T>, Tag<C>> du;
  const T* const shift = static_cast<const T*>(args.shift);
  const auto uniform =
      hn::Set(du, shift == nullptr || args.by_lanes ? Compute<T>{0} : LoadOne(shift));
  const auto load = [&](const T* x, const T* skip, const T* lanes, T* sum, C* to) HWY_ATTR {
    auto u = LoadAs(du, x);
    if (!kEdge && skip != nullptr) u = hn::Add(u, LoadAs(du, skip));
    if (!kEdge && shift != nullptr) u = hn::Add(u, lanes != nullptr ? LoadAs(du, lanes) : uniform);
    if (!kEdge && sum != nullptr) StoreAs(du, CleanNaN<T>(du, u), sum, Store::cached);
    if constexpr (std::is_same_v<Compute<T>, C>) {
      hn::StoreU(u, d, to);
    } else {
      hn::StoreU(hn::PromoteTo(d, u), d, to);
    }
  };
  const auto at = [](auto* data, std::int64_t i) { return data == nullptr ? data : data + i; };
  const std::int64_t first = row * args.count;
  const T* const x = static_cast<const T*>(args.x) + first;
  const T* const skip = at(static_cast<const T*>(args.skip), first);
  const T* const lanes = args.by_lanes ? shift : nullptr;
  T* const sum = at(static_cast<T*>(args.sum), first);
  C* const to = static_cast<C*>(args.tile) + first;
  std::int64_t i = 0;
  for (; i + kLanes<C> <= args.count; i += kLanes<C>) {
    load(x + i, at(skip, i), at(lanes, i), at(sum, i), to + i);
  }
  const std::int64_t rest = args.count - i;
  if (rest == 0) return;
  Tail<T> tails[4];
  const auto tail = [&](const T* data, Tail<T>& copy) -> const T* {
    if (data == nullptr) return nullptr;
    std::copy_n(data + i, rest, copy.data);
    return copy.data;
  };
  load(tail(x, tails[0]), tail(skip, tails[1]), tail(lanes, tails[2]),
       sum == nullptr ? nullptr : tails[3].data, to + i);
  if (sum != nullptr) std::copy_n(tails[3].data, rest, sum + i);
}

template <class T, class C>
void LoadTile(const TileKernels::Load& args) {
  for (std::int64_t row = 0; row < args.rows; ++row) LoadRow<T, C>(args, row);
}

// Rounded to nearest. (Highway's portable targets turn what is too large into a number.)
template <class D, class V>
HWY_INLINE hn::Vec<hn::Rebind<float, D>> ToFloat([[maybe_unused]] D d, V v) {
  const hn::Rebind<float, D> df;
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  HWY_ALIGN double from[hn::MaxLanes(d)];
  HWY_ALIGN float to[hn::MaxLanes(d)];
  hn::Store(v, d, from);
  for (std::size_t i = 0; i < hn::MaxLanes(d); ++i) to[i] = static_cast<float>(from[i]);
  return hn::Load(df, to);
#else
  return hn::DemoteTo(df, v);
#endif
}

// double -> float. In order, so that to == from is allowed.
HWY_INLINE void Narrow(const void* from, void* to, std::int64_t count) {
  const Tag<double> d;
  const hn::Rebind<float, Tag<double>> df;
  const auto* const wide = static_cast<const double*>(from);
  auto* const narrow = static_cast<float*>(to);
  std::int64_t i = 0;
  for (; i + kLanes<double> <= count; i += kLanes<double>) {
    hn::StoreU(ToFloat(d, hn::LoadU(d, wide + i)), df, narrow + i);
  }
  for (; i < count; ++i) narrow[i] = static_cast<float>(wide[i]);
}

template <class C>
HWY_NOINLINE void AddRows(const TileKernels::AddRows& args) {
  const Tag<double> d;
  const C* const numbers = static_cast<const C*>(args.numbers);
  std::int64_t i = 0;
  for (; i + kLanes<double> <= args.width; i += kLanes<double>) {
    auto total = hn::LoadU(d, args.sums + i);
    for (std::int64_t r = 0; r < args.rows; ++r) {
      total = hn::Add(total, LoadAs(d, numbers + r * args.stride + i));
    }
    hn::StoreU(total, d, args.sums + i);
  }
  for (; i < args.width; ++i) {
    for (std::int64_t r = 0; r < args.rows; ++r) args.sums[i] += numbers[r * args.stride + i];
  }
}

struct Identity {
  template <class D, class V>
  static HWY_INLINE V Apply(D, V z) {
    return z;
  }
};

// Through Act.
template <class T, class Act>
HWY_NOINLINE void StoreBy(const TileKernels::Activate& args) {
  using C = Compute<T>;
  const Tag<C> d;
  const C* const z = static_cast<const C*>(args.z);
  const T* const residual = static_cast<const T*>(args.residual);
  T* const y = static_cast<T*>(args.y);
  const auto bytes = static_cast<std::uintptr_t>(kLanes<C> * sizeof(T));
  const bool aligned = reinterpret_cast<std::uintptr_t>(y) % bytes == 0;
  const auto store = [&](const C* from, const T* plus, T* to, Store how) HWY_ATTR {
    auto v = hn::LoadU(d, from);
    if (!kEdge && plus != nullptr) v = hn::Add(v, LoadAs(d, plus));
    StoreAs(d, CleanNaN<T>(d, Act::Apply(d, v)), to, how);
  };
  std::int64_t i = 0;
  for (; i + kLanes<C> <= args.count; i += kLanes<C>) {
    store(z + i, residual == nullptr ? nullptr : residual + i, y + i,
          aligned ? args.store : Store::cached);
  }
  const std::int64_t rest = args.count - i;
  if (rest == 0) return;
  Tail<T> tail;
  if (residual != nullptr) std::copy_n(residual + i, rest, tail.data);
  store(z + i, residual == nullptr ? nullptr : tail.data, tail.data, Store::cached);
  std::copy_n(tail.data, rest, y + i);
}

template <class T>
void Activate(const TileKernels::Activate& args) {
  switch (args.activation) {
    case Activation::none: return StoreBy<T, Identity>(args);
    case Activation::relu: return StoreBy<T, Relu>(args);
    case Activation::silu: return StoreBy<T, Silu>(args);
    case Activation::gelu: return StoreBy<T, Gelu>(args);
    case Activation::gelu_tanh: return StoreBy<T, GeluTanh>(args);
    case Activation::hard_swish: return StoreBy<T, HardSwish>(args);
  }
}

// dz, to a tile, by terms X.
template <class T, class X>
requires Terms<X, Compute<T>>
class DzStage {
  using C = Compute<T>;

 public:
  using Loaded = LoadedTwo<C>;
  static constexpr bool kFast = HWY_NAMESPACE::kFast<T>;
  static constexpr std::int64_t kStored = 1;

  HWY_INLINE DzStage(const T* x, const T* residual, const T* dy, C* dz, const X& terms,
                     Activation activation)
      : x_(x), residual_(residual), dy_(dy), dz_(dz), terms_(terms), activation_(activation) {}

  HWY_INLINE Loaded Load(std::int64_t i) const {
    return {LoadAs(Tag<C>(), x_ + i), LoadAs(Tag<C>(), dy_ + i)};
  }
  template <class Own>
  HWY_INLINE void Write(std::int64_t i, const Loaded& in, const Own& own, Store) const {
    auto z = terms_.Z(terms_.Deviation(in.x, own), own);
    if (residual_ != nullptr) z = hn::Add(z, LoadAs(Tag<C>(), residual_ + i));
    hn::StoreU(Dz(activation_, z, in.dy), Tag<C>(), dz_ + i);
  }

 private:
  const T* x_;
  const T* residual_;
  const T* dy_;
  C* dz_;
  const X& terms_;
  Activation activation_;
};

// Of `count` elements from `at` on, to dz.
template <class T, class Args, class X>
HWY_INLINE void WriteDz(const Args& args, std::int64_t at, void* dz, X& terms, std::int64_t count) {
  using C = Compute<T>;
  NoSums none;
  const auto from = [at](const void* data) {
    return data == nullptr ? nullptr : static_cast<const T*>(data) + at;
  };
  const DzStage<T, X> stage(from(args.x), from(args.residual), from(args.dy), static_cast<C*>(dz),
                            terms, args.activation);
  Write<C, 1>(stage, terms, Stretch{0, count}, none);
}

template <class T>
void DzRows(const TileKernels::DzRows& args) {
  using C = Compute<T>;
  const auto dz = [&](std::int64_t at) { return static_cast<C*>(args.dz) + at; };
  const std::int64_t size = args.channels * args.length;
  for (std::int64_t b = 0; b < args.blocks; ++b) {
    const Statistics& own = args.statistics[b];
    const std::int64_t first = b * args.channels, at = b * size;
    if (args.length == 1) {
      ElementTerms<T> terms(args.params, first, own.mean, own.rstd);
      WriteDz<T>(args, at, dz(at), terms, size);
      continue;
    }
    const PerRow<T> rows(args.params, first, own.mean, own.rstd);
    if (IsShortRow<T>(args.length)) {
      ShortRowsTerms<T> terms(rows, args.length);
      WriteDz<T>(args, at, dz(at), terms, size);
      continue;
    }
    for (std::int64_t r = 0; r < args.channels; ++r) {
      RowTerms<C> terms(rows.mean(), rows(r));
      const std::int64_t row = at + r * args.length;
      WriteDz<T>(args, row, dz(row), terms, args.length);
    }
  }
}

template <class T>
void DzColumns(const TileKernels::DzColumns& args) {
  using C = Compute<T>;
  LaneTerms<C> terms(args.coefficients);
  for (std::int64_t r = 0; r < args.rows; ++r) {
    WriteDz<T>(args, r * args.stride, static_cast<C*>(args.dz) + r * args.dz_stride, terms,
               args.width);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
