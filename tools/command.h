// The subcommands of `groupnorm`, one file each.
#ifndef GROUPNORM_TOOLS_COMMAND_H
#define GROUPNORM_TOOLS_COMMAND_H

#include <CLI/CLI.hpp>
#include <functional>

#include "bad_input.h"

namespace groupnorm::tools {

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
