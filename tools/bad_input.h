// How a program of this project ends, and how it refuses what it was given.
#ifndef GROUPNORM_TOOLS_BAD_INPUT_H
#define GROUPNORM_TOOLS_BAD_INPUT_H

#include <groupnorm/layers.hpp>

#include <stdexcept>
#include <string>

#include "machine.h"

namespace groupnorm::tools {

// Exit statuses. A command that refuses what it was given throws; main says why and exits with 2.
inline constexpr int kOk = 0;
inline constexpr int kWrongResult = 1;
inline constexpr int kBadInput = 2;

// A command line, file or machine that cannot do what is asked, in one line.
class BadInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws BadInput with the rule and the values that broke it.
inline void require_ok(Status status, const Spec& spec) {
  if (status != Status::ok) throw BadInput(describe(status, spec));
}

// Throws BadInput where `bytes`, which `what` needs, are more than this process may take: a clear
// refusal instead of a process that the system kills.
inline void require_memory(double bytes, const std::string& what) {
  const double memory = detail::allowed_memory();
  if (bytes <= memory) return;
  throw BadInput(what + ": needs " + detail::format_bytes(bytes) +
                 " of memory, this process may have " + detail::format_bytes(memory));
}

}  // namespace groupnorm::tools

#endif
