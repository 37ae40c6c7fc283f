// groupnorm: group normalization and its family from the command line.

#include <groupnorm/version.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include "command.h"
#include "help.h"
#include "output.h"

namespace groupnorm::tools {
namespace {

int complain(const char* why) {
  std::fprintf(stderr, "groupnorm: %s\n", why);
  return kBadInput;
}

int run(int argc, char** argv) {
  CLI::App app{"Group normalization and its family on CPUs.", "groupnorm"};
  app.formatter(wrapping_formatter());  // subcommands take it over
  app.set_version_flag("--version", GROUPNORM_VERSION);
  app.require_subcommand(0, 1);  // 1 would hide a wrong name behind "a subcommand is required"
  app.footer(
      "Exit status: 0 success, 1 a result is wrong (run --report, check, bench), 2 an invalid "
      "command "
      "line or file.");
  const Command commands[] = {add_info(app), add_run(app), add_check(app), add_bench(app),
                              add_groups(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version arrive as errors of status 0.
    return error.get_exit_code() == 0 ? app.exit(error) : complain(error.what());
  }
  for (const Command& command : commands) {
    if (command.app->parsed()) return command.run();
  }
  return complain("a subcommand is required; groupnorm --help lists them");
}

}  // namespace
}  // namespace groupnorm::tools

int main(int argc, char** argv) {
#ifdef SIGXFSZ
  // A file beyond the size limit is then an error of write(), and is told and tidied up as such.
  std::signal(SIGXFSZ, SIG_IGN);
#endif
  try {
    groupnorm::tools::occupy_standard_descriptors();
    const int status = groupnorm::tools::run(argc, argv);
    groupnorm::tools::flush_output();
    return status;
  } catch (const std::bad_alloc&) {
    return groupnorm::tools::complain("out of memory");
  } catch (const std::exception& error) {
    return groupnorm::tools::complain(error.what());
  }
}
