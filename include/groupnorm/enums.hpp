// The enumerations of the engine and the names of their values, which C++, C, Python, the command
// lines and error messages share. An enumerator is accepted if it has a row here.
#ifndef GROUPNORM_ENUMS_HPP
#define GROUPNORM_ENUMS_HPP

#if __cplusplus < 202002L && (!defined(_MSVC_LANG) || _MSVC_LANG < 202002L)
#error "groupnorm needs C++20 or later: compile with -std=c++20 (MSVC: /std:c++20)"
#include "stop here"  // compilers go on after an #error, but not without a file
#endif

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace groupnorm {

// A value of an enumeration and its name.
template <class Enum>
struct Named {
  const char* name;
  Enum value;
};
template <class Enum>
Named(const char*, Enum) -> Named<Enum>;  // clang before 17 does not find it by itself

enum class DType : std::uint8_t { f32, f64, f16, bf16 };

inline constexpr std::array kDTypes{Named{"f32", DType::f32}, Named{"f64", DType::f64},
                                    Named{"f16", DType::f16}, Named{"bf16", DType::bf16}};

// How [n, c, s] lies in memory: N,C,S (as PyTorch's contiguous) or N,S,C (as PyTorch's
// channels_last).
enum class Layout : std::uint8_t { channels_first, channels_last };

inline constexpr std::array kLayouts{Named{"channels_first", Layout::channels_first},
                                     Named{"channels_last", Layout::channels_last}};

// Applied to gamma * xhat + beta before the one store of y. gelu is the exact form, with erf.
enum class Activation : std::uint8_t { none, relu, silu, gelu, gelu_tanh, hard_swish };

inline constexpr std::array kActivations{
    Named{"none", Activation::none},           Named{"relu", Activation::relu},
    Named{"silu", Activation::silu},           Named{"gelu", Activation::gelu},
    Named{"gelu_tanh", Activation::gelu_tanh}, Named{"hard_swish", Activation::hard_swish}};

namespace detail {

template <class Enum>
inline constexpr const void* kNames = nullptr;
template <>
inline constexpr const auto* kNames<DType> = &kDTypes;
template <>
inline constexpr const auto* kNames<Layout> = &kLayouts;
template <>
inline constexpr const auto* kNames<Activation> = &kActivations;

template <class Enum>
constexpr const Named<Enum>* row_of(Enum value) noexcept {
  for (const Named<Enum>& named : *kNames<Enum>) {
    if (named.value == value) return &named;
  }
  return nullptr;
}

}  // namespace detail

// DType, Layout or Activation.
template <class Enum>
concept NamedEnum = requires {
  detail::kNames<Enum>->size();
};

// The name of a value: "bf16". "unknown" for a number that is not a value of the enumeration.
template <NamedEnum Enum>
constexpr const char* to_string(Enum value) noexcept {
  const Named<Enum>* const row = detail::row_of(value);
  return row != nullptr ? row->name : "unknown";
}

// The value that has this name: from_string<DType>("bf16"). Names are compared exactly.
template <NamedEnum Enum>
constexpr std::optional<Enum> from_string(std::string_view name) noexcept {
  for (const Named<Enum>& named : *detail::kNames<Enum>) {
    if (named.name == name) return named.value;
  }
  return std::nullopt;
}

}  // namespace groupnorm

#endif
