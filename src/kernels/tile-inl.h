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

// z of row `row`, by terms X. The last vector ends with the row, and may begin before it.
template <class C, class X, class Args>
HWY_INLINE void WriteZ(const Args& args, std::int64_t row, const X& terms) {
  const Tag<C> d;
  const C* const x = static_cast<const C*>(args.x) + row * args.stride;
  C* const z = static_cast<C*>(args.z) + row * args.z_stride;
  for (std::int64_t i = 0; i < args.width; i += kLanes<C>) {
    const std::int64_t at = std::min(i, args.width - kLanes<C>);
    const auto own = terms.At(at);
    hn::StoreU(terms.Z(terms.Deviation(hn::LoadU(d, x + at), own), own), d, z + at);
  }
}

template <class C>
void ZColumns(const TileKernels::ZColumns& args) {
  const LaneTerms<C> terms(args.coefficients);
  for (std::int64_t r = 0; r < args.rows; ++r) WriteZ<C>(args, r, terms);
}

template <class C>
void ZRuns(const TileKernels::ZRuns& args) {
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const Statistics& own = args.statistics[r * args.step];
    WriteZ<C>(args, r, ElementTerms<C>(args.params, 0, own.mean, own.rstd));
  }
}

// T -> C. The end of a row that fills no vector is copied to one, so that the activations stand
// here once.
template <class T, class C>
HWY_NOINLINE void DzOfTile(const TileKernels::Dz& args) {
  const Tag<C> d;
  Tail<C> last;
  Tail<T> last_residual, last_dy;
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const C* z = static_cast<const C*>(args.z) + r * args.z_stride;
    C* dz = static_cast<C*>(args.dz) + r * args.z_stride;
    const T* dy = static_cast<const T*>(args.dy) + r * args.stride;
    const T* residual = static_cast<const T*>(args.residual);
    if (residual != nullptr) residual += r * args.stride;
    for (std::int64_t rest = args.width; rest > 0; rest -= kLanes<C>) {
      C* const to = dz;
      if (rest < kLanes<C>) {
        std::copy_n(z, rest, last.data);
        std::copy_n(dy, rest, last_dy.data);
        if (residual != nullptr) std::copy_n(residual, rest, last_residual.data);
        z = dz = last.data;
        dy = last_dy.data;
        if (residual != nullptr) residual = last_residual.data;
      }
      auto of_z = hn::LoadU(d, z);
      if (residual != nullptr) of_z = hn::Add(of_z, LoadAs(d, residual));
      hn::StoreU(Dz(args.activation, of_z, LoadAs(d, dy)), d, dz);
      if (rest < kLanes<C>) std::copy_n(last.data, rest, to);
      z += kLanes<C>;
      dz += kLanes<C>;
      dy += kLanes<C>;
      if (residual != nullptr) residual += kLanes<C>;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
