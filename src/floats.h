// The floating-point environment of a call: round to nearest, keep subnormal numbers, trap nothing.
// So neither what the caller has set there nor what threads it meets changes a bit, and the error
// bounds hold under directed rounding and flush-to-zero as well.
#ifndef GROUPNORM_SRC_FLOATS_H
#define GROUPNORM_SRC_FLOATS_H

#include <atomic>
#include <cstdint>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace groupnorm::detail {

#if defined(__x86_64__) || defined(_M_X64)
// MXCSR. (Nothing here computes by the x87.)
class FloatControl {
 public:
  static FloatControl current() { return FloatControl(_mm_getcsr()); }
  static FloatControl standard() { return FloatControl(0x1F80); }
  bool is_standard() const { return (word_ | kFlags) == (standard().word_ | kFlags); }
  void set() const { _mm_setcsr(word_); }

 private:
  static constexpr unsigned kFlags = 0x3F;  // of what has happened
  explicit FloatControl(unsigned word) : word_(word) {}
  unsigned word_;
};
#elif defined(__aarch64__)
// FPCR, whose flags are in another register.
class FloatControl {
 public:
  static FloatControl current() {
    std::uint64_t word = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return FloatControl(word);
  }
  static FloatControl standard() { return FloatControl(0); }
  bool is_standard() const { return word_ == 0; }
  void set() const { __asm__ volatile("msr fpcr, %0" : : "r"(word_)); }

 private:
  explicit FloatControl(std::uint64_t word) : word_(word) {}
  std::uint64_t word_;
};
#else
// What C knows of it; which of its bits are flags, it does not say.
class FloatControl {
 public:
  static FloatControl current() {
    FloatControl control;
    std::fegetenv(&control.environment_);
    return control;
  }
  static FloatControl standard() {
    FloatControl control;
    control.is_standard_ = true;
    return control;
  }
  bool is_standard() const { return is_standard_; }
  void set() const { std::fesetenv(is_standard_ ? FE_DFL_ENV : &environment_); }

 private:
  std::fenv_t environment_{};
  bool is_standard_ = false;
};
#endif

// While there is one, the thread computes in the standard environment. The fences keep the compiler
// from moving reads and writes of numbers across the change.
class StandardFloats {
 public:
  StandardFloats() {
    if (!callers_.is_standard()) FloatControl::standard().set();
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  StandardFloats(const StandardFloats&) = delete;
  StandardFloats& operator=(const StandardFloats&) = delete;
  ~StandardFloats() {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (!callers_.is_standard()) callers_.set();
  }

 private:
  const FloatControl callers_ = FloatControl::current();
};

}  // namespace groupnorm::detail

#endif
