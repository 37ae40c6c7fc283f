// The walk of blocks that are one run each, every element with its own gamma and beta: layer norm
// of [rows, features].
#ifndef GROUPNORM_SRC_RUNS_H
#define GROUPNORM_SRC_RUNS_H

#include "call.h"
#include "plan.h"

namespace groupnorm::detail {

// See plan.h: a unit is one block, and one chunk.
class Runs {
 public:
  static constexpr std::int64_t kMaxBlocks = 1;
  static constexpr bool kCarries = false;

  explicit Runs(const Call& call)
      : call_(call), channels_(call.spec.block.channels), groups_(call.spec.shape.c / channels_) {}

  std::int64_t units() const { return call_.spec.shape.n * groups_; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  bool whole() const { return true; }

  void reduce(std::int64_t unit, std::int64_t, Moments* moments) const {
    *moments = run_moments(call_, unit * channels_, channels_);
  }

  void apply(std::int64_t unit, std::int64_t, const Statistics* statistics) const {
    const std::int64_t example = unit / groups_, channel = unit % groups_ * channels_;
    const std::int64_t index = unit * channels_;
    if (!statistics->extreme) {
      return apply_blocks(call_, {index, example, channel, 1, channels_, 1}, statistics);
    }
    for (std::int64_t i = 0; i < channels_; ++i) {
      apply_channel(call_, index + i, 1, 1, example, channel + i, *statistics);
    }
  }

 private:
  const Call& call_;
  std::int64_t channels_, groups_;
};

}  // namespace groupnorm::detail

#endif
