// How a program of this project ends, and how it refuses what it was given.
#ifndef GROUPNORM_TOOLS_BAD_INPUT_H
#define GROUPNORM_TOOLS_BAD_INPUT_H

#include <groupnorm/layers.hpp>

#include <stdexcept>

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

}  // namespace groupnorm::tools

#endif
