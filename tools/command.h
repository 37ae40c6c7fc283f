// The subcommands of `groupnorm`, one file each.
#ifndef GROUPNORM_TOOLS_COMMAND_H
#define GROUPNORM_TOOLS_COMMAND_H

#include <CLI/CLI.hpp>
#include <functional>
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

// `run` does what the parsed options say and returns the exit status.
struct Command {
  CLI::App* app;
  std::function<int()> run;
};

Command add_info(CLI::App& app);
Command add_run(CLI::App& app);
Command add_check(CLI::App& app);
Command add_bench(CLI::App& app);
Command add_groups(CLI::App& app);

}  // namespace groupnorm::tools

#endif
