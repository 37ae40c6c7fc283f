// groupnorm info: what this machine runs.

#include <groupnorm/groupnorm.hpp>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "command.h"
#include "json.h"
#include "machine.h"
#include "options.h"

namespace groupnorm::tools {
namespace {

void print_json(const detail::Caches& found, int threads) {
  JsonObject object;
  object.add("version", GROUPNORM_VERSION).add("targets", targets());
  if (const char* target = active_target()) {
    object.add("target", target);
  } else {
    object.add("target", nullptr);
  }
  object.add("threads", threads)
      .add("caches", JsonObject().add("l1d", found.l1d).add("l2", found.l2).add("l3", found.l3));
  std::printf("%s\n", object.text().c_str());
}

void print_text(const detail::Caches& found, int threads) {
  std::printf("version  %s\n", GROUPNORM_VERSION);
  std::printf("targets  %s\n", join(targets()).c_str());
  if (const char* target = active_target()) {
    std::printf("target   %s\n", target);
  } else if (targets().empty()) {
    std::printf("target   none: %s\n", kNoTarget);
  } else {
    const char* const asked = std::getenv("GROUPNORM_TARGET");
    std::printf("target   none: GROUPNORM_TARGET=%s is not available here\n", asked ? asked : "");
  }
  std::printf("threads  %d\n", threads);
  std::printf("caches   L1d %s, L2 %s, L3 %s\n",
              detail::format_bytes(static_cast<double>(found.l1d)).c_str(),
              detail::format_bytes(static_cast<double>(found.l2)).c_str(),
              detail::format_bytes(static_cast<double>(found.l3)).c_str());
}

}  // namespace

Command add_info(CLI::App& app) {
  CLI::App* const info = app.add_subcommand(
      "info",
      "Print the version, the instruction sets (targets) that this machine supports and the one in "
      "use, the number of threads and the cache sizes");
  const auto as_json = std::make_shared<bool>(false);
  info->add_flag(
      "--json", *as_json,
      "Print one object: version targets target (null: GROUPNORM_TARGET is not available) "
      "threads caches (bytes)");
  return {info, [as_json] {
            const int threads = default_executor().threads;
            *as_json ? print_json(detail::caches(), threads)
                     : print_text(detail::caches(), threads);
            return kOk;
          }};
}

}  // namespace groupnorm::tools
