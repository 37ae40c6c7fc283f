// The walk of blocks that are one run each, every element with its own gamma and beta: layer norm
// of [rows, features].
#ifndef GROUPNORM_SRC_RUNS_H
#define GROUPNORM_SRC_RUNS_H

#include "call.h"
#include "plan.h"

#include <algorithm>

namespace groupnorm::detail {

// See plan.h: a unit is one block, and one chunk.
class Runs {
 public:
  static constexpr std::int64_t kMaxBlocks = 1;
  static constexpr bool kCarries = false;
  static constexpr bool kTakesUnits = true;

  explicit Runs(const Call& call)
      : call_(call),
        channels_(call.spec.block.channels),
        groups_(call.spec.shape.c / channels_),
        apply_runs_(call.spec.param == call.spec.data ? call.kernels.apply_runs_same
                                                      : call.kernels.apply_runs_f32) {}

  std::int64_t units() const { return call_.spec.shape.n * groups_; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  void reduce(std::int64_t unit, std::int64_t, Moments* moments) const {
    reduce_units(unit, 1, moments);
  }

  void apply(std::int64_t unit, std::int64_t, const Statistics* statistics) const {
    const std::int64_t example = unit / groups_, channel = unit % groups_ * channels_;
    if (!statistics->extreme) return apply_runs(unit, 1, example, channel, statistics);
    for (std::int64_t i = 0; i < channels_; ++i) {
      apply_channel(call_, unit * channels_ + i, 1, 1, example, channel + i, *statistics);
    }
  }

  void reduce_units(std::int64_t first, std::int64_t count, Moments* moments) const {
    run_moments(call_, first * channels_, count, channels_, moments);
  }

  void apply_units(std::int64_t first, std::int64_t count, const Statistics* statistics) const {
    if (any_extreme(statistics, count)) {
      for (std::int64_t i = 0; i < count; ++i) apply(first + i, 0, statistics + i);
      return;
    }
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t example = (first + i) / groups_, group = (first + i) % groups_;
      const std::int64_t some = std::min(count - i, groups_ - group);
      apply_runs(first + i, some, example, group * channels_, statistics + i);
      i += some;
    }
  }

 private:
  // Of one example, from `channel` on.
  void apply_runs(std::int64_t unit, std::int64_t runs, std::int64_t example, std::int64_t channel,
                  const Statistics* statistics) const {
    const std::int64_t index = unit * channels_;
    apply_runs_({call_.x(index), call_.y(index), call_.param_at(call_.args.gamma, example, channel),
                 call_.param_at(call_.args.beta, example, channel), runs, channels_, statistics,
                 call_.spec.activation, call_.store});
  }

  const Call& call_;
  std::int64_t channels_, groups_;
  void (*apply_runs_)(const Kernels::ApplyRuns&);
};

}  // namespace groupnorm::detail

#endif
