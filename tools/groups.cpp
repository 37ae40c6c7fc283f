// groupnorm groups: which numbers of groups a number of channels can have.

#include <groupnorm/layers.hpp>

#include <cstdio>
#include <memory>
#include <optional>

#include "command.h"
#include "number.h"

namespace groupnorm::tools {
namespace {

// Enough for any model; keeps the search for divisors short.
constexpr std::int64_t kMostChannels = 10'000'000;

void print(std::int64_t channels) {
  const GroupSuggestion suggested = suggest_groups(channels);
  std::printf("%10s %20s\n", "groups", "channels per group");
  for (std::int64_t groups = 1; groups <= channels; ++groups) {
    if (channels % groups != 0) continue;
    const bool chosen = groups == suggested.groups;
    std::printf("%10lld %20lld%s%s\n", static_cast<long long>(groups),
                static_cast<long long>(channels / groups), chosen ? "  suggested: " : "",
                chosen ? suggested.reason : "");
  }
}

}  // namespace

Command add_groups(CLI::App& app) {
  CLI::App* const groups = app.add_subcommand(
      "groups", "List the valid group counts of a number of channels, and the suggested one");
  const auto channels = std::make_shared<std::optional<std::int64_t>>();
  add_number<std::int64_t>(*groups, "channels", channels.get(), {1, kMostChannels},
                           "Number of channels")
      ->required();
  return {groups, [channels] {
            print(channels->value());
            return kOk;
          }};
}

}  // namespace groupnorm::tools
