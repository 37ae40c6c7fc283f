// How many groups: what the layers and the C interface suggest.
#ifndef GROUPNORM_SRC_GROUPS_H
#define GROUPNORM_SRC_GROUPS_H

#include <groupnorm/layers.hpp>

namespace groupnorm::detail {

// Of at least one channel: suggest_groups without its exception.
inline GroupSuggestion nearest_groups(std::int64_t channels) {
  if (channels % 32 == 0) return {32, channels / 32, "32 groups, the default of arXiv:1803.08494"};
  // 1 divides everything, so the search ends at a distance of 15.
  std::int64_t near = 16;
  for (std::int64_t distance = 1; channels % near != 0; ++distance) {
    near = channels % (16 + distance) == 0 ? 16 + distance : 16 - distance;
  }
  return {channels / near, near,
          "32 does not divide the channels: the divisor nearest to 16 channels a group"};
}

}  // namespace groupnorm::detail

#endif
