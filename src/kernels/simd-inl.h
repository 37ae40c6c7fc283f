// Loads and stores: storage dtype <-> vectors of the compute type.
#if defined(GROUPNORM_SRC_KERNELS_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_SIMD_INL_H
#undef GROUPNORM_SRC_KERNELS_SIMD_INL_H
#else
#define GROUPNORM_SRC_KERNELS_SIMD_INL_H
#endif

#include "dtype.h"
#include "kernels/kernels.h"
#include "range.h"

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What the parameters are of where they are wide. (f64 data takes f64 parameters alone:
// validate.cpp.)
template <class T>
using Wide = Compute<T>;

// f(P()), P being the type of the parameters.
template <class T, class F>
HWY_INLINE auto WithParameters(const Parameters& params, const F& f) {
  if constexpr (!std::is_same_v<T, Wide<T>>) {
    if (params.wide) return f(Wide<T>());
  }
  return f(T());
}

template <class D>
using VecU16 = hn::Vec<hn::Rebind<std::uint16_t, D>>;

// Where the hardware converts f16 as IEEE 754 says; elsewhere Highway's emulation turns infinities
// and NaN into numbers, so the conversion stands here.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64
inline constexpr bool kNativeF16 = true;
#else
inline constexpr bool kNativeF16 = false;
#endif

template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadAs(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadAs(D d, const double* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> LoadU16(D, const void* p) {
  const hn::Rebind<std::uint16_t, D> du16;
  return hn::PromoteTo(hn::RebindToUnsigned<D>(),
                       hn::LoadU(du16, static_cast<const std::uint16_t*>(p)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadAs(D d, const BF16* p) {
  return hn::BitCast(d, hn::ShiftLeft<16>(LoadU16(d, p)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadAs(D d, const F16* p) {
  if constexpr (kNativeF16) {
    const hn::Rebind<hwy::float16_t, D> df16;
    return hn::PromoteTo(d, hn::LoadU(df16, reinterpret_cast<const hwy::float16_t*>(p)));
  } else {
    const hn::RebindToUnsigned<D> du;
    const hn::RebindToSigned<D> di;
    const auto bits = LoadU16(d, p);
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFU));
    const auto sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
    const auto rebias = hn::Set(du, 112U << 23);
    const auto normal = hn::Add(hn::ShiftLeft<13>(magnitude), rebias);
    const auto special = hn::Add(normal, rebias);  // exponent 31 -> 255
    const auto tiny = hn::BitCast(
        du, hn::Mul(hn::ConvertTo(d, hn::BitCast(di, magnitude)), hn::Set(d, 0x1p-24F)));
    const auto finite = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x400U)), tiny, normal);
    const auto any = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x7BFFU)), special, finite);
    return hn::BitCast(d, hn::Or(any, sign));
  }
}

// One element.
template <class T>
HWY_INLINE Compute<T> LoadOne(const T* p) {
  if constexpr (kNativeF16 && std::is_same_v<T, F16>) {
    return hn::GetLane(LoadAs(hn::CappedTag<float, 1>(), p));
  } else {
    return static_cast<Compute<T>>(to_double(*p));
  }
}

// The low 16 bits of each lane.
template <class D>
HWY_INLINE VecU16<D> NarrowU16(D, hn::Vec<hn::RebindToUnsigned<D>> bits) {
  return hn::DemoteTo(hn::Rebind<std::uint16_t, D>(), hn::BitCast(hn::RebindToSigned<D>(), bits));
}

// The upper 16 bits of each lane hold v rounded to nearest even. (Highway 1.0 truncates.) A NaN
// must have no bits in the lower 16, or it may become a number: those of bf16 data have none, and
// the coefficients' are made so.
template <class D, class V>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> RoundBF16(D, V v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1U));
  return hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFU)), odd);
}
template <class D, class V>
HWY_INLINE VecU16<D> ToBF16(D d, V v) {
  return NarrowU16(d, hn::ShiftRight<16>(RoundBF16(d, v)));
}

// Round to nearest even, infinities and NaN kept.
template <class D, class V>
HWY_INLINE VecU16<D> ToF16(D d, V v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFU));
  const auto sign = hn::Xor(bits, magnitude);
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1U));
  const auto rounded = hn::Add(magnitude, hn::Add(odd, hn::Set(du, 0xFFFU)));
  const auto normal = hn::Sub(hn::ShiftRight<13>(rounded), hn::Set(du, 112U << 10));
  // Adding 0.5, whose last place is 2^-24, rounds to the subnormal grid.
  const auto half = hn::Set(d, 0.5F);
  const auto tiny =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), half)), hn::BitCast(du, half));
  const auto least_normal = hn::Set(du, 113U << 23);
  const auto finite = hn::IfThenElse(hn::Lt(magnitude, least_normal), tiny, normal);
  const auto infinity = hn::Set(du, 0x7C00U);
  const auto overflow = hn::Set(du, 0x477FEFFFU);  // the last float that rounds to 65504
  const auto number = hn::IfThenElse(hn::Gt(magnitude, overflow), infinity, finite);
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(v));
  const auto any = hn::IfThenElse(is_nan, hn::Set(du, 0x7E00U), number);
  return NarrowU16(d, hn::Or(any, hn::ShiftRight<16>(sign)));
}

// Elsewhere a streaming store is a store.
inline constexpr bool kStreams = HWY_ARCH_X86 != 0;

template <Store kStore, class D, class T, class V>
HWY_INLINE void StoreVector(D d, V v, T* p) {
  // Highway streams 16 bytes at least, even of a vector of 8.
  if constexpr (kStore == Store::streaming && hn::MaxLanes(d) * sizeof(T) >= 16) {
    hn::Stream(v, d, p);
  } else {
    hn::StoreU(v, d, p);
  }
}

// p is aligned to the vector of T where kStore is streaming.
template <Store kStore, class D, class V, class T>
HWY_INLINE void StoreAs(D d, V v, T* p) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    StoreVector<kStore>(d, v, p);
  } else if constexpr (std::is_same_v<T, BF16>) {
    StoreVector<kStore>(hn::Rebind<std::uint16_t, D>(), ToBF16(d, v),
                        reinterpret_cast<std::uint16_t*>(p));
  } else if constexpr (kNativeF16) {
    const hn::Rebind<hwy::float16_t, D> df16;
    const hn::Rebind<std::uint16_t, D> du16;
    StoreVector<kStore>(du16, hn::BitCast(du16, hn::DemoteTo(df16, v)),
                        reinterpret_cast<std::uint16_t*>(p));
  } else {
    StoreVector<kStore>(hn::Rebind<std::uint16_t, D>(), ToF16(d, v),
                        reinterpret_cast<std::uint16_t*>(p));
  }
}

// Two vectors: 2 * Lanes(d) consecutive elements. Those of bf16 come apart where both halves of 32
// bits become numbers without a shuffle: elements 0, 2, 4, ... and 1, 3, 5, ...
template <class T, class D>
inline constexpr bool kEvenOdd = std::is_same_v<T, BF16>&& hn::MaxLanes(D()) > 1;

template <class V>
struct Pair {
  V v0, v1;
};

template <class D, class T>
HWY_INLINE Pair<hn::Vec<D>> LoadPair(D d, const T* p) {
  if constexpr (kEvenOdd<T, D>) {
    const hn::RebindToUnsigned<D> du;
    const auto* const u16 = reinterpret_cast<const std::uint16_t*>(p);
    const auto both = hn::BitCast(du, hn::LoadU(hn::Repartition<std::uint16_t, D>(), u16));
    const auto upper = hn::And(both, hn::Set(du, 0xFFFF0000U));
    return {hn::BitCast(d, hn::ShiftLeft<16>(both)), hn::BitCast(d, upper)};
  } else {
    return {LoadAs(d, p), LoadAs(d, p + hn::Lanes(d))};
  }
}

// The entries of columns or lanes go in pairs of vectors, each in the order of LoadPair, and then
// one by one; where the lanes divide no width, the last vector ends with it. The column of entry i:
template <class T, class D>
HWY_INLINE std::int64_t ColumnOf(D d, std::int64_t i, std::int64_t width) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t in_pair = i % (2 * lanes), pair = i - in_pair;
  if (kEvenOdd<T, D> && pair + 2 * lanes <= width) {
    return pair + (in_pair < lanes ? 2 * in_pair : 2 * (in_pair - lanes) + 1);
  }
  const std::int64_t vector = i / lanes * lanes;
  return vector + lanes <= width ? i : width - lanes + i - vector;
}

// Vectors of entries from p on: a pair, or one.
template <int kVectors, class D, class T>
HWY_INLINE void LoadEntries(D d, const T* p, hn::Vec<D>* v) {
  if constexpr (kVectors == 1) {
    v[0] = LoadAs(d, p);
  } else {
    const auto pair = LoadPair(d, p);
    v[0] = pair.v0;
    v[1] = pair.v1;
  }
}

// f(i, kVectors) for all entries of `width` columns: their first entry and how many vectors.
template <class D, class F>
HWY_INLINE void ForEntries(D d, std::int64_t width, const F& f) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + 2 * lanes <= width; i += 2 * lanes) f(i, std::integral_constant<int, 2>());
  for (; i < width; i += lanes) f(i, std::integral_constant<int, 1>());
}

// What belongs to the elements of a pair of T, from p in the compute type.
template <class T, class D>
HWY_INLINE Pair<hn::Vec<D>> LoadForPair(D d, const Compute<T>* p) {
  Pair<hn::Vec<D>> pair{hn::LoadU(d, p), hn::LoadU(d, p + hn::Lanes(d))};
  if constexpr (kEvenOdd<T, D>) hn::LoadInterleaved2(d, p, pair.v0, pair.v1);
  return pair;
}

template <class T, int kVectors, class D>
HWY_INLINE void LoadCoefficients(D d, const Compute<T>* p, hn::Vec<D>* v) {
  if constexpr (kVectors == 1) {
    v[0] = hn::LoadU(d, p);
  } else {
    const auto pair = LoadForPair<T>(d, p);
    v[0] = pair.v0;
    v[1] = pair.v1;
  }
}

// p is aligned to a vector where kStore is streaming.
template <Store kStore, class D, class V, class T>
HWY_INLINE void StorePair(D d, const Pair<V>& pair, T* p) {
  if constexpr (kEvenOdd<T, D>) {
    const hn::RebindToUnsigned<D> du;
    const hn::Repartition<std::uint16_t, D> du16;
    const auto upper = hn::And(RoundBF16(d, pair.v1), hn::Set(du, 0xFFFF0000U));
    const auto both = hn::Or(hn::ShiftRight<16>(RoundBF16(d, pair.v0)), upper);
    StoreVector<kStore>(du16, hn::BitCast(du16, both), reinterpret_cast<std::uint16_t*>(p));
  } else {
    StoreAs<kStore>(d, pair.v0, p);
    StoreAs<kStore>(d, pair.v1, p + hn::Lanes(d));
  }
}

// Elements of a cache line. No variable template: g++ exports one that std::max refers to, as a
// unique symbol, and never unloads a library that has such a symbol.
template <class T>
HWY_INLINE constexpr std::int64_t LineOf() {
  return static_cast<std::int64_t>(64 / sizeof(T));
}

// What of y [count] streams: whole cache lines, `step` elements at a time. A line that is streamed
// in parts, or streamed and stored to, waits for memory; so before and behind the range there is
// nothing, or room for vectors that reach no line of it.
template <class T>
HWY_INLINE Range StreamedLines(const T* y, std::int64_t count, std::int64_t lanes,
                               std::int64_t step) {
  step = std::max(step, LineOf<T>());
  const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(y) % 64 / sizeof(T));
  std::int64_t begin = past == 0 ? 0 : LineOf<T>() - past;
  while (begin > 0 && begin < lanes) begin += LineOf<T>();
  if (begin >= count) return {0, 0};
  std::int64_t end = begin + (count - begin) / step * step;
  if (end != count && count - end < lanes) end = std::max(begin, end - step);
  return {begin, end};
}

// A part of `count` elements or rows that are cut into `parts` to be walked side by side, since
// memory serves several places faster than one: a multiple of `step`. Odd where it can be, so that
// the places do not all meet in one set of the cache.
HWY_INLINE std::int64_t PartOf(std::int64_t count, std::int64_t parts, std::int64_t step) {
  const std::int64_t steps = count / (parts * step);
  return (steps < 2 ? steps : (steps - 1) | 1) * step;
}

// f(kRows, row, apart) for all rows, kBand at a time: first one from each of as many parts, so many
// rows apart; then neighbours, then one by one.
template <std::int64_t kBand, class F>
HWY_INLINE void ForBands(std::int64_t rows, const F& f) {
  constexpr std::integral_constant<std::int64_t, kBand> kAll;
  constexpr std::integral_constant<std::int64_t, 1> kOne;
  const std::int64_t part = PartOf(rows, kBand, 1);
  std::int64_t row = 0;
  for (; row < part; ++row) f(kAll, row, part);
  for (row = kBand * part; row + kBand <= rows; row += kBand) f(kAll, row, 1);
  for (; row < rows; ++row) f(kOne, row, 1);
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
