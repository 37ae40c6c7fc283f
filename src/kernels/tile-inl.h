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

// T -> C.
template <class T, class C>
void LoadTile(const void* tensor, void* tile, std::int64_t count) {
  const Tag<C> d;
  const T* const from = static_cast<const T*>(tensor);
  C* const to = static_cast<C*>(tile);
  std::int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) hn::StoreU(LoadAs(d, from + i), d, to + i);
  if (i == count) return;
  Tail<T> tail;
  std::copy(from + i, from + count, tail.data);
  hn::StoreU(LoadAs(d, tail.data), d, to + i);
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

struct Identity {
  template <class D, class V>
  static HWY_INLINE V Apply(D, V z) {
    return z;
  }
};

// Through Act.
template <class T, class Act>
HWY_NOINLINE void StoreBy(const Compute<T>* z, T* y, std::int64_t count, Store store) {
  using C = Compute<T>;
  const Tag<C> d;
  const auto bytes = static_cast<std::uintptr_t>(kLanes<C> * sizeof(T));
  if (reinterpret_cast<std::uintptr_t>(y) % bytes != 0) store = Store::cached;
  std::int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) {
    StoreAs(d, CleanNaN<T>(d, Act::Apply(d, hn::LoadU(d, z + i))), y + i, store);
  }
  if (i == count) return;
  Tail<T> tail;
  StoreAs(d, CleanNaN<T>(d, Act::Apply(d, hn::LoadU(d, z + i))), tail.data, Store::cached);
  std::copy(tail.data, tail.data + (count - i), y + i);
}

template <class T>
void Activate(const void* tile, void* tensor, std::int64_t count, Activation activation,
              Store store) {
  const auto* const z = static_cast<const Compute<T>*>(tile);
  T* const y = static_cast<T*>(tensor);
  switch (activation) {
    case Activation::none: return StoreBy<T, Identity>(z, y, count, store);
    case Activation::relu: return StoreBy<T, Relu>(z, y, count, store);
    case Activation::silu: return StoreBy<T, Silu>(z, y, count, store);
    case Activation::gelu: return StoreBy<T, Gelu>(z, y, count, store);
    case Activation::gelu_tanh: return StoreBy<T, GeluTanh>(z, y, count, store);
    case Activation::hard_swish: return StoreBy<T, HardSwish>(z, y, count, store);
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

  HWY_INLINE DzStage(const T* x, const T* dy, C* dz, const X& terms, Activation activation)
      : x_(x), dy_(dy), dz_(dz), terms_(terms), activation_(activation) {}

  HWY_INLINE Loaded Load(std::int64_t i) const {
    return {LoadAs(Tag<C>(), x_ + i), LoadAs(Tag<C>(), dy_ + i)};
  }
  template <class Own>
  HWY_INLINE void Write(std::int64_t i, const Loaded& in, const Own& own, Store) const {
    const auto z = terms_.Z(terms_.Deviation(in.x, own), own);
    hn::StoreU(Dz(activation_, z, in.dy), Tag<C>(), dz_ + i);
  }

 private:
  const T* x_;
  const T* dy_;
  C* dz_;
  const X& terms_;
  Activation activation_;
};

template <class T, class X>
HWY_INLINE void WriteDz(const T* x, const T* dy, void* dz, std::int64_t at, X& terms,
                        std::int64_t count, Activation activation) {
  using C = Compute<T>;
  NoSums none;
  const DzStage<T, X> stage(x + at, dy + at, static_cast<C*>(dz) + at, terms, activation);
  Write<C, 1>(stage, terms, Stretch{0, count}, none);
}

template <class T>
void DzRows(const TileKernels::DzRows& args) {
  using C = Compute<T>;
  const T* const x = static_cast<const T*>(args.x);
  const T* const dy = static_cast<const T*>(args.dy);
  const std::int64_t size = args.channels * args.length;
  for (std::int64_t b = 0; b < args.blocks; ++b) {
    const Statistics& own = args.statistics[b];
    const std::int64_t first = b * args.channels, at = b * size;
    if (args.length == 1) {
      ElementTerms<T> terms(args.params, first, own.mean, own.rstd);
      WriteDz(x, dy, args.dz, at, terms, size, args.activation);
      continue;
    }
    const PerRow<T> rows(args.params, first, own.mean, own.rstd);
    if (IsShortRow<T>(args.length)) {
      ShortRowsTerms<T> terms(rows, args.length);
      WriteDz(x, dy, args.dz, at, terms, size, args.activation);
      continue;
    }
    for (std::int64_t r = 0; r < args.channels; ++r) {
      RowTerms<C> terms(rows.mean(), rows(r));
      WriteDz(x, dy, args.dz, at + r * args.length, terms, args.length, args.activation);
    }
  }
}

template <class T>
void DzColumns(const TileKernels::DzColumns& args) {
  using C = Compute<T>;
  LaneTerms<C> terms(args.coefficients);
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const std::int64_t at = r * args.stride;
    WriteDz(static_cast<const T*>(args.x) + at, static_cast<const T*>(args.dy) + at,
            static_cast<C*>(args.dz) + r * args.dz_stride, 0, terms, args.width, args.activation);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
