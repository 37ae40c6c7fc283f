// The storage types of the dtypes: sizes and exact scalar conversions. The SIMD conversions stand
// in kernels/simd-inl.h; tests hold the two against each other over every f16 and bf16.
#ifndef GROUPNORM_SRC_DTYPE_H
#define GROUPNORM_SRC_DTYPE_H

#include <groupnorm/groupnorm.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

// cmake/settings.cmake switches this off in the compilers that it knows.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(_M_FP_FAST)
#error "groupnorm needs IEEE 754 arithmetic: compile its sources without -ffast-math or the like"
#endif
static_assert(sizeof 0.1 == sizeof(double),
              "groupnorm needs constants in double: -fsingle-precision-constant");

namespace groupnorm::detail {

struct F16 {
  std::uint16_t bits;
};
struct BF16 {
  std::uint16_t bits;
};

inline float to_float(F16 h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h.bits & 0x8000U) << 16;
  const std::uint32_t exponent = (h.bits >> 10) & 0x1FU;
  const std::uint32_t fraction = h.bits & 0x3FFU;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | (fraction << 13));
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  }
  const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

inline float to_float(BF16 h) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(h.bits) << 16);
}

// `v` as a float, rounded towards zero and then, where that changed it, to an odd last bit: rounded
// again, to fewer digits, it gives what v itself would (Boldo & Melquiond, "Emulation of FMA and
// correctly rounded sums: proved algorithms using rounding to odd", 2008).
inline std::uint32_t odd_bits(double v) {
  const auto f = static_cast<float>(v);
  const auto bits = std::bit_cast<std::uint32_t>(f);
  if (static_cast<double>(f) == v) return bits;
  const bool away = std::fabs(static_cast<double>(f)) > std::fabs(v);
  return (away ? bits - 1 : bits) | 1U;
}

// To nearest, ties to even, as to_bf16.
inline F16 to_f16(double v) {
  const auto sign = std::signbit(v) ? 0x8000U : 0U;
  const auto signed_bits = [sign](std::uint32_t bits) {
    return F16{static_cast<std::uint16_t>(sign | bits)};
  };
  if (std::isnan(v)) return signed_bits(0x7E00U);
  const std::uint32_t bits = odd_bits(v) & 0x7FFFFFFFU;
  if (bits >= std::bit_cast<std::uint32_t>(0x1p16F)) return signed_bits(0x7C00U);
  if (bits < std::bit_cast<std::uint32_t>(0x1p-14F)) {
    // The last place of a sum from 0.5 on is the smallest step of an f16.
    const float sum = std::bit_cast<float>(bits) + 0.5F;
    return signed_bits(std::bit_cast<std::uint32_t>(sum) - std::bit_cast<std::uint32_t>(0.5F));
  }
  return signed_bits((bits + 0xFFFU + ((bits >> 13) & 1U) - (112U << 23)) >> 13);
}

inline BF16 to_bf16(double v) {
  if (std::isnan(v)) return BF16{static_cast<std::uint16_t>(std::signbit(v) ? 0xFFC0U : 0x7FC0U)};
  const std::uint32_t bits = odd_bits(v);
  return BF16{static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16)};
}

inline double to_double(float v) { return static_cast<double>(v); }
inline double to_double(double v) { return v; }
inline double to_double(F16 v) { return static_cast<double>(to_float(v)); }
inline double to_double(BF16 v) { return static_cast<double>(to_float(v)); }

inline void from_double(double v, float* out) { *out = static_cast<float>(v); }
inline void from_double(double v, double* out) { *out = v; }
inline void from_double(double v, F16* out) { *out = to_f16(v); }
inline void from_double(double v, BF16* out) { *out = to_bf16(v); }

// Calls f with a value-initialized element of the storage type of `dtype`.
template <class F>
constexpr auto visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::f16: return f(F16{});
    case DType::bf16: return f(BF16{});
    case DType::f32: break;
  }
  return f(float{});
}

constexpr std::int64_t size_of(DType dtype) {
  return visit(dtype, [](auto element) { return static_cast<std::int64_t>(sizeof(element)); });
}

inline double load_element(DType dtype, const void* data, std::int64_t index) {
  return visit(dtype, [=](auto element) {
    return to_double(static_cast<const decltype(element)*>(data)[index]);
  });
}

inline void store_element(DType dtype, void* data, std::int64_t index, double value) {
  visit(dtype,
        [=](auto element) { from_double(value, static_cast<decltype(element)*>(data) + index); });
}

}  // namespace groupnorm::detail

#endif
