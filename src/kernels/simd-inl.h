// Loads and stores: storage dtype <-> vectors of a compute type. Nothing else knows f16 or bf16.
#if defined(GROUPNORM_SRC_KERNELS_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_SIMD_INL_H
#undef GROUPNORM_SRC_KERNELS_SIMD_INL_H
#else
#define GROUPNORM_SRC_KERNELS_SIMD_INL_H
#endif

#include "dtype.h"
#include "kernels/kernels.h"

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>
#include <limits>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The type that T is computed in, a vector of it, and how many of them that holds.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class C>
using Tag = hn::ScalableTag<C>;
template <class C>
using Vector = hn::Vec<Tag<C>>;
template <class C>
inline constexpr std::int64_t kLanes = hn::MaxLanes(Tag<C>());

template <class D>
using VecU16 = hn::Vec<hn::Rebind<std::uint16_t, D>>;

// Where the hardware converts f16 as IEEE 754 says; elsewhere Highway's emulation turns infinities
// and NaN into numbers, so the conversion stands here.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == GROUPNORM_NEON
inline constexpr bool kNativeF16 = true;
#else
inline constexpr bool kNativeF16 = false;
#endif

template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> LoadU16(D, const void* p) {
  const hn::Rebind<std::uint16_t, D> du16;
  return hn::PromoteTo(hn::RebindToUnsigned<D>(),
                       hn::LoadU(du16, static_cast<const std::uint16_t*>(p)));
}

template <class D>
HWY_INLINE hn::Vec<D> LoadFloats(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadFloats(D d, const BF16* p) {
  return hn::BitCast(d, hn::ShiftLeft<16>(LoadU16(d, p)));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadFloats(D d, const F16* p) {
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

// A vector of float or double from elements of T: exact, except from double to float, which no
// caller asks for.
template <class D, class T>
HWY_INLINE hn::Vec<D> LoadAs(D d, const T* p) {
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    return LoadFloats(d, p);
  } else if constexpr (std::is_same_v<T, double>) {
    return hn::LoadU(d, p);
  } else {
    return hn::PromoteTo(d, LoadFloats(hn::Rebind<float, D>(), p));
  }
}

// Two vectors of 2 * Lanes(d) consecutive elements, as they come; or in an order of their own,
// where all lanes are treated alike: the halves of 32 bits of bf16 become numbers without a
// shuffle.
enum class Order : bool { kept, any };

template <class V>
struct Two {
  V v0, v1;
};

template <Order kOrder, class D, class T>
HWY_INLINE Two<hn::Vec<D>> LoadTwo(D d, const T* p) {
  if constexpr (kOrder == Order::any && std::is_same_v<T, BF16> && hn::MaxLanes(d) > 1) {
    const hn::RebindToUnsigned<D> du;
    const auto* const u16 = reinterpret_cast<const std::uint16_t*>(p);
    const auto both = hn::BitCast(du, hn::LoadU(hn::Repartition<std::uint16_t, D>(), u16));
    const auto upper = hn::And(both, hn::Set(du, 0xFFFF0000U));
    return {hn::BitCast(d, hn::ShiftLeft<16>(both)), hn::BitCast(d, upper)};
  } else {
    return {LoadAs(d, p), LoadAs(d, p + hn::Lanes(d))};
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

// v + kNothing is v: 0 would take the sign of a zero.
template <class C>
inline constexpr C kNothing = -C{0};

// Element i of numbers that are added; null: kNothing.
template <class T>
HWY_INLINE Compute<T> AddendAt(const T* data, std::int64_t i) {
  return data == nullptr ? kNothing<Compute<T>> : LoadOne(data + i);
}

// The low 16 bits of each lane.
template <class D>
HWY_INLINE VecU16<D> NarrowU16(D, hn::Vec<hn::RebindToUnsigned<D>> bits) {
  return hn::DemoteTo(hn::Rebind<std::uint16_t, D>(), hn::BitCast(hn::RebindToSigned<D>(), bits));
}

// The upper 16 bits of each lane hold v rounded to nearest even. (Highway 1.0 truncates.) A NaN
// must have no bits in the lower 16, or it may become a number: those of bf16 data have none, and
// the parameters' are made so (CleanNaN).
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

template <class D, class T, class V>
HWY_INLINE void StoreVector(D d, V v, T* p, Store store) {
  // Highway streams 16 bytes at least, even of a vector of 8.
  if constexpr (kStreams && hn::MaxLanes(d) * sizeof(T) >= 16) {
    if (store == Store::streaming) return hn::Stream(v, d, p);
  }
  hn::StoreU(v, d, p);
}

// v, of the compute type of T, rounded once. p is aligned to the vector of T where `store` is
// streaming.
template <class D, class V, class T>
HWY_INLINE void StoreAs(D d, V v, T* p, Store store) {
  if constexpr (std::is_same_v<T, hn::TFromD<D>>) {
    StoreVector(d, v, p, store);
  } else {
    const hn::Rebind<std::uint16_t, D> du16;
    auto* const to = reinterpret_cast<std::uint16_t*>(p);
    if constexpr (std::is_same_v<T, BF16>) {
      StoreVector(du16, ToBF16(d, v), to, store);
    } else if constexpr (kNativeF16) {
      const hn::Rebind<hwy::float16_t, D> df16;
      StoreVector(du16, hn::BitCast(du16, hn::DemoteTo(df16, v)), to, store);
    } else {
      StoreVector(du16, ToF16(d, v), to, store);
    }
  }
}

// How many vectors are stored in one go: narrowed together, those of bf16 cost a shuffle at most,
// and not four operations each.
template <class T>
inline constexpr std::int64_t kStored = std::is_same_v<T, BF16>&& kLanes<Compute<T>> > 1 ? 2 : 1;

// What LoadTwo of this order has loaded, or what was made of it.
template <Order kOrder, class D, class V>
HWY_INLINE void StoreTwo(D d, const Two<V>& two, BF16* p, Store store) {
  const hn::Repartition<std::uint16_t, D> du16;
  const auto low = RoundBF16(d, two.v0), high = RoundBF16(d, two.v1);
  auto* const to = reinterpret_cast<std::uint16_t*>(p);
  if constexpr (kOrder == Order::any) {
    const auto upper = hn::And(high, hn::Set(hn::RebindToUnsigned<D>(), 0xFFFF0000U));
    StoreVector(du16, hn::BitCast(du16, hn::Or(hn::ShiftRight<16>(low), upper)), to, store);
  } else {
    StoreVector(du16, ConcatOdd(du16, hn::BitCast(du16, high), hn::BitCast(du16, low)), to, store);
  }
}

// v without digits that round a NaN of T to a number (see ToBF16).
template <class T, class D, class V>
HWY_INLINE V CleanNaN(D d, V v) {
  if constexpr (!std::is_same_v<T, BF16>) return v;
  return hn::IfThenElse(hn::IsNaN(v), hn::Set(d, std::numeric_limits<hn::TFromD<D>>::quiet_NaN()),
                        v);
}

// gamma or beta from `first` on, as T's compute type: the one place that reads them. Null stands
// for `missing`. Their dtype is looked at for each vector: the branch costs next to nothing, a
// template parameter would double the kernels.
template <class T>
class Param {
  using C = Compute<T>;

 public:
  HWY_INLINE Param(const void* data, DType dtype, std::int64_t first, C missing)
      : data_(data == nullptr ? nullptr
                              : static_cast<const std::byte*>(data) + first * size_of(dtype)),
        dtype_(dtype),
        missing_(missing) {}

  HWY_INLINE bool constant() const { return data_ == nullptr; }

  // Entries [i, i + lanes).
  HWY_INLINE Vector<C> At(std::int64_t i) const {
    const Tag<C> d;
    if (data_ == nullptr) return hn::Set(d, missing_);
    if constexpr (sizeof(C) == 8) {
      if (dtype() == DType::f64) return hn::LoadU(d, static_cast<const double*>(data_) + i);
    }
    switch (dtype()) {
      case DType::f16: return LoadAs(d, static_cast<const F16*>(data_) + i);
      case DType::bf16: return LoadAs(d, static_cast<const BF16*>(data_) + i);
      default: return CleanNaN<T>(d, LoadAs(d, static_cast<const float*>(data_) + i));
    }
  }

  // Entry i.
  HWY_INLINE C One(std::int64_t i) const {
    if (data_ == nullptr) return missing_;
    switch (dtype()) {
      case DType::f64: return static_cast<C>(static_cast<const double*>(data_)[i]);
      case DType::f16: return static_cast<C>(LoadOne(static_cast<const F16*>(data_) + i));
      case DType::bf16: return static_cast<C>(LoadOne(static_cast<const BF16*>(data_) + i));
      default: return static_cast<C>(static_cast<const float*>(data_)[i]);
    }
  }

 private:
  HWY_INLINE DType dtype() const { return kEdge ? DType::f32 : dtype_; }

  const void* data_;
  DType dtype_;
  C missing_;
};

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
