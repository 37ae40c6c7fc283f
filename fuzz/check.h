// What the fuzzers share.
#ifndef GROUPNORM_FUZZ_CHECK_H
#define GROUPNORM_FUZZ_CHECK_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace groupnorm::fuzz {

// libFuzzer keeps the input of a process that aborts.
inline void check(bool right, const std::string& what) {
  if (right) return;
  std::fprintf(stderr, "WRONG: %s\n", what.c_str());
  std::abort();
}

// Whether the input has neighbours of the norm: those that do begin with this byte.
inline bool is_marked(const std::uint8_t* data, std::size_t size) {
  return size > 0 && data[0] == 0xB7;
}

}  // namespace groupnorm::fuzz

#endif
