// What the fuzzers share.
#ifndef GROUPNORM_FUZZ_CHECK_H
#define GROUPNORM_FUZZ_CHECK_H

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

}  // namespace groupnorm::fuzz

#endif
