// The list of dtypes: sizes, names and exact scalar conversions. The SIMD conversions stand in
// kernels/simd-inl.h; tests hold the two against each other over every f16 and bf16.
#ifndef GROUPNORM_SRC_DTYPE_H
#define GROUPNORM_SRC_DTYPE_H

#include <groupnorm/groupnorm.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

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

// `v` rounded to nearest even on the grid of a format with `precision` significant bits whose
// smallest step is 2^min_exponent. One rounding, so double -> f16 never rounds twice.
inline double round_to_grid(double v, int precision, int min_exponent) {
  if (v == 0 || !std::isfinite(v)) return v;
  const int exponent = std::max(std::ilogb(v) - (precision - 1), min_exponent);
  return std::ldexp(std::nearbyint(std::ldexp(v, -exponent)), exponent);
}

inline F16 to_f16(double v) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(v) ? 0x8000U : 0U);
  const auto signed_bits = [sign](std::uint32_t bits) {
    return F16{static_cast<std::uint16_t>(sign | bits)};
  };
  if (std::isnan(v)) return signed_bits(0x7E00U);
  const double r = std::fabs(round_to_grid(v, 11, -24));
  if (r > 65504) return signed_bits(0x7C00U);
  if (r < 0x1p-14) return signed_bits(static_cast<std::uint32_t>(r * 0x1p24));
  return signed_bits((std::bit_cast<std::uint32_t>(static_cast<float>(r)) >> 13) - (112U << 10));
}

inline BF16 to_bf16(double v) {
  if (std::isnan(v)) return BF16{static_cast<std::uint16_t>(std::signbit(v) ? 0xFFC0U : 0x7FC0U)};
  const auto r = static_cast<float>(round_to_grid(v, 8, -133));
  return BF16{static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(r) >> 16)};
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

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return "f64";
    case DType::f16: return "f16";
    case DType::bf16: return "bf16";
    case DType::f32: break;
  }
  return "f32";
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
