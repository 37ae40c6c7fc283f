// The backward walk of blocks that are one run each: s = 1, one example a block (see
// SumsMap::runs). Every element has its own gamma: one kernel makes the sums of blocks, along their
// runs, and those of dgamma and dbeta, down the columns of a span of examples. dx follows while
// these lie in the cache.
#ifndef GROUPNORM_SRC_GRADIENT_RUNS_H
#define GROUPNORM_SRC_GRADIENT_RUNS_H

#include "gradient.h"
#include "parallel.h"
#include "range.h"

#include <algorithm>
#include <cmath>

namespace groupnorm::detail {

class GradientRuns {
 public:
  explicit GradientRuns(const GradientCall& gradient)
      : gradient_(gradient),
        call_(gradient.call),
        kernels_(*gradient.call.kernels.gradients),
        channels_(gradient.call.spec.block.channels),
        groups_(gradient.call.spec.shape.c / channels_) {}

  void run(const Executor& executor) const {
    parallel_for(call_, executor, gradient_.map.spans, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t span = begin; span < end; ++span) {
        GradientSums* const sums = gradient_.sums + gradient_.map.index(span, 0, 0);
        std::fill_n(sums, call_.spec.shape.c, GradientSums{0, 0});
        const Range examples = piece(span, gradient_.map.span_examples, call_.spec.shape.n);
        const std::int64_t at_once = std::max<std::int64_t>(1, kMost / groups_);
        for (std::int64_t example = examples.begin; example < examples.end; example += at_once) {
          for (std::int64_t group = 0; group < groups_; group += kMost) {
            Tile tile({example, std::min(example + at_once, examples.end)},
                      {group, std::min(group + kMost, groups_)});
            take(&tile, sums);
          }
        }
      }
    });
  }

 private:
  static constexpr std::int64_t kMost = 512;  // blocks at a time, on the stack

  // Blocks of some examples and groups.
  struct Tile {
    Range examples, groups;
    Statistics statistics[kMost];
    GradientSums sums[kMost];  // along the runs, of a dz

    Tile(Range some_examples, Range some_groups) : examples(some_examples), groups(some_groups) {}

    std::int64_t at(std::int64_t example, std::int64_t group) const {
      return (example - examples.begin) * groups.size() + group - groups.begin;
    }
  };

  // dx, and what the tile adds to the sums of its channels. Those come first, for dx may be dy.
  void take(Tile* tile, GradientSums* sums) const {
    find_statistics(tile);
    const bool params = gradient_.args.dgamma != nullptr || gradient_.args.dbeta != nullptr;
    if (params || !call_.spec.given_statistics) {
      for (std::int64_t g = tile->groups.begin; g < tile->groups.end; ++g) reduce(g, tile, sums);
    }
    if (gradient_.args.dx == nullptr) return;
    for (std::int64_t e = tile->examples.begin; e < tile->examples.end; ++e) write_dx(e, *tile);
  }

  std::int64_t index(std::int64_t example, std::int64_t channel) const {
    return example * call_.spec.shape.c + channel;
  }
  // By the scalar double path.
  ExtremeGradient extreme(std::int64_t example, std::int64_t channel,
                          const Statistics& statistics) const {
    return gradient_.extreme(index(example, channel), 1, 1, example, channel, statistics);
  }

  // Extreme are here also those where the rest of the mean, times rstd, is a number that f32 holds
  // with few digits.
  void find_statistics(Tile* tile) const {
    Statistics* next = tile->statistics;
    for (std::int64_t e = tile->examples.begin; e < tile->examples.end; ++e) {
      for (std::int64_t g = tile->groups.begin; g < tile->groups.end; ++g) {
        *next = gradient_.statistics(e * groups_ + g);
        const double shift = split_as(call_, next->mean).lo * next->rstd;
        const bool few_digits = shift != 0 && std::fabs(shift) < 0x1p-100;
        next->extreme = next->extreme || needs_extreme(call_.spec, few_digits);
        ++next;
      }
    }
  }

  // Both kinds of sums of the blocks of one group. An extreme block takes its columns along to the
  // scalar double path, but no other block.
  void reduce(std::int64_t group, Tile* tile, GradientSums* sums) const {
    const Range examples = tile->examples;
    const std::int64_t first = tile->at(examples.begin, group), step = tile->groups.size();
    bool any_extreme = false;
    for (std::int64_t e = examples.begin; e < examples.end; ++e) {
      tile->sums[tile->at(e, group)] = {0, 0};
      any_extreme = any_extreme || tile->statistics[tile->at(e, group)].extreme;
    }
    const std::int64_t pieces = ceil_div(channels_, kMaxLanes);
    for (std::int64_t p = 0; p < pieces; ++p) {
      const Range part = share(p, pieces, channels_);
      const std::int64_t channel = group * channels_ + part.begin,
                         at = index(examples.begin, channel);
      GradientSums columns[kMaxLanes];
      kernels_.reduce_runs({call_.x(at), gradient_.dy(at), call_.params(0, channel),
                            examples.size(), call_.spec.shape.c, part.size(),
                            tile->statistics + first, step, call_.spec.activation, columns,
                            tile->sums + first});
      for (std::int64_t i = 0; i < part.size(); ++i) {
        if (any_extreme || !sound(columns[i])) columns[i] = extreme_column(channel + i, *tile);
        sums[channel + i].dz += columns[i].dz;
        sums[channel + i].dzx += columns[i].dzx;
      }
    }
    for (std::int64_t e = examples.begin; e < examples.end; ++e) {
      const std::int64_t block = tile->at(e, group);
      if (!tile->statistics[block].extreme && sound(tile->sums[block])) continue;
      tile->sums[block] = extreme_sums(e, group * channels_, tile->statistics[block]);
    }
  }

  void write_dx(std::int64_t example, const Tile& tile) const {
    const std::int64_t blocks = tile.groups.size(), channel = tile.groups.begin * channels_;
    const std::int64_t at = index(example, channel), first = tile.at(example, tile.groups.begin);
    const Statistics* const statistics = tile.statistics + first;
    GradientTerms terms[kMost];
    if (!find_terms(statistics, tile.sums + first, blocks, terms)) {
      kernels_.apply_runs({call_.x(at), gradient_.dy(at), gradient_.dx(at),
                           call_.params(0, channel), blocks, channels_, statistics, terms,
                           call_.spec.activation, call_.store});
      return;
    }
    for (std::int64_t i = 0; i < blocks * channels_; ++i) {
      const std::int64_t b = i / channels_;
      extreme_gradient_apply(extreme(example, channel + i, statistics[b]), terms[b].shift,
                             terms[b].slope, gradient_.dx(at + i));
    }
  }

  // Whether any is extreme.
  bool find_terms(const Statistics* statistics, const GradientSums* sums, std::int64_t blocks,
                  GradientTerms* terms) const {
    bool any_extreme = false;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const double mean_lo = split_as(call_, statistics[b].mean).lo;
      terms[b] = call_.spec.given_statistics ? GradientTerms{0, 0, statistics[b].extreme}
                                             : terms_of(call_, statistics[b], sums[b].dz,
                                                        sums[b].dzx - mean_lo * sums[b].dz);
      any_extreme = any_extreme || terms[b].extreme;
    }
    return any_extreme;
  }

  GradientSums extreme_sums(std::int64_t example, std::int64_t channel,
                            const Statistics& statistics) const {
    GradientSums total{0, 0};
    for (std::int64_t c = channel; c < channel + channels_; ++c) {
      const ExtremeGradient element = extreme(example, c, statistics);
      const GradientSums sums = extreme_gradient_sums(element);
      total.dz += element.a * sums.dz;
      total.dzx += element.a * sums.dzx;
    }
    return total;
  }

  GradientSums extreme_column(std::int64_t channel, const Tile& tile) const {
    GradientSums total{0, 0};
    for (std::int64_t e = tile.examples.begin; e < tile.examples.end; ++e) {
      const Statistics& own = tile.statistics[tile.at(e, channel / channels_)];
      const GradientSums sums = extreme_gradient_sums(extreme(e, channel, own));
      total.dz += sums.dz;
      total.dzx += own.rstd * (sums.dzx - split_as(call_, own.mean).lo * sums.dz);
    }
    return total;
  }

  const GradientCall& gradient_;
  const Call& call_;
  const GradientKernels& kernels_;
  std::int64_t channels_, groups_;
};

}  // namespace groupnorm::detail

#endif
