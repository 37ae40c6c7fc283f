// Which of the compiled instruction sets this machine has, and which one runs.
#include "kernels/kernels.h"

#include <hwy/detect_targets.h>

#include <array>
#include <cstdlib>
#include <cstring>
#if HWY_ARCH_X86
#include <cpuid.h>
#endif

namespace groupnorm::detail {
namespace {

#if HWY_ARCH_X86
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// What Highway lets the compiler use in each target (hwy/ops/set_macros-inl.h), with what targets.h
// defines. The builtins also ask whether the operating system saves the registers.
bool machine_has(std::int64_t highway) {
  const bool sse4 = __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
                    __builtin_cpu_supports("sse4.2");
  const bool avx2 = sse4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd");
  switch (highway) {
    case HWY_AVX3: return avx512;
    case HWY_AVX2: return avx2;
    case HWY_SSE4: return sse4;
    default: return true;
  }
}
#else
// Elsewhere the compiler's baseline is the only set compiled in.
bool machine_has(std::int64_t) { return true; }
#endif

constexpr std::size_t kMaxTargets = 8;

// Made once, at first use.
struct Available {
  std::array<const Target*, kMaxTargets> list{};
  std::array<const char*, kMaxTargets> names{};
  std::size_t count = 0;
  const Target* active = nullptr;  // null: `active_status` says why
  Status active_status = Status::ok;

  Available() noexcept {
    for (const Target& target : compiled_targets()) {
      if (!machine_has(target.highway) || count == kMaxTargets) continue;
      names[count] = target.name;
      list[count++] = &target;
    }
    const char* const asked = std::getenv("GROUPNORM_TARGET");
    const bool named = asked != nullptr && *asked != '\0';
    active_status = choose_target(targets(), named ? asked : nullptr, &active);
  }

  std::span<const Target* const> targets() const noexcept { return {list.data(), count}; }
};

const Available& available() noexcept {
  static const Available instance;
  return instance;
}

}  // namespace

Status choose_target(std::span<const Target* const> targets, const char* name,
                     const Target** target) noexcept {
  for (const Target* const candidate : targets) {
    if (name != nullptr && std::strcmp(candidate->name, name) != 0) continue;
    *target = candidate;
    return Status::ok;
  }
  if (name == nullptr) return Status::unavailable_target;
  for (const char* const known : {"avx512", "avx2", "sse4", "neon", "scalar"}) {
    if (std::strcmp(known, name) == 0) return Status::unavailable_target;
  }
  return Status::unknown_target;
}

Status find_target(const char* name, DType dtype, const Target** target) noexcept {
  const Target* found = available().active;
  const Status status = name == nullptr ? available().active_status
                                        : choose_target(available().targets(), name, &found);
  if (status != Status::ok) return status;
  if (found->kernels[static_cast<std::size_t>(dtype)] == nullptr) return Status::not_built;
  *target = found;
  return Status::ok;
}

}  // namespace groupnorm::detail

namespace groupnorm {

std::span<const char* const> targets() noexcept {
  const auto& available = detail::available();
  return {available.names.data(), available.count};
}

const char* active_target() noexcept {
  const detail::Target* const active = detail::available().active;
  return active == nullptr ? nullptr : active->name;
}

}  // namespace groupnorm
