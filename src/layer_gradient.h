// The backward walk of blocks whose elements have a gamma each: s = 1, one example a block (see
// SumsMap::by_elements). One kernel makes the sums of blocks, along their runs, and those of dgamma
// and dbeta, down the columns of a span of examples. dx follows while these lie in the cache.
#ifndef GROUPNORM_SRC_LAYER_GRADIENT_H
#define GROUPNORM_SRC_LAYER_GRADIENT_H

#include "gradient.h"
#include "parallel.h"
#include "range.h"
#include "tuning.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace groupnorm::detail {

class LayerGradient {
 public:
  explicit LayerGradient(const GradientCall& gradient)
      : gradient_(gradient),
        call_(gradient.call),
        channels_(call_.spec.block.channels),
        groups_(call_.spec.shape.c / channels_),
        fused_(gradient.is_fused()) {}

  // False where the executor did not do its part.
  bool run(const Executor& executor) const {
    const auto take_spans = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t span = begin; span < end; ++span) {
        GradientSums* const sums =
            gradient_.sums == nullptr ? nullptr : gradient_.sums + gradient_.map.index(span, 0, 0);
        if (sums != nullptr) std::fill_n(sums, call_.spec.shape.c, GradientSums{0, 0});
        const Range examples = piece(span, gradient_.map.span_examples, call_.spec.shape.n);
        const std::int64_t at_once = std::max<std::int64_t>(1, kBlocksAtOnce / groups_);
        for (std::int64_t example = examples.begin; example < examples.end; example += at_once) {
          for (std::int64_t group = 0; group < groups_; group += kBlocksAtOnce) {
            Blocks blocks({example, std::min(example + at_once, examples.end)},
                          {group, std::min(group + kBlocksAtOnce, groups_)});
            take(&blocks, sums);
          }
        }
      }
    };
    return parallel_for(call_, executor, gradient_.map.spans, take_spans);
  }

 private:
  // So many, that a tile has some rows of them.
  static constexpr std::int64_t kTileLanes = 128;

  // Blocks of some examples and groups.
  struct Blocks {
    Range examples, groups;
    Statistics statistics[kBlocksAtOnce];
    GradientSums sums[kBlocksAtOnce];  // along the runs, of a dz

    Blocks(Range some_examples, Range some_groups) : examples(some_examples), groups(some_groups) {}

    std::int64_t at(std::int64_t example, std::int64_t group) const {
      return (example - examples.begin) * groups.size() + group - groups.begin;
    }
  };

  // dx, and what the blocks add to the sums of their channels. Those come first, for dx may be dy.
  void take(Blocks* blocks, GradientSums* sums) const {
    find_statistics(blocks);
    const Backward& args = gradient_.args;
    const bool params =
        args.dgamma != nullptr || args.dbeta != nullptr || args.dresidual != nullptr;
    const bool dx = gradient_.makes_dx();
    const bool terms = dx && gradient_.whole == nullptr && !call_.spec.given_statistics;
    if (params || terms || gradient_.own != nullptr) {
      for (std::int64_t g = blocks->groups.begin; g < blocks->groups.end; ++g) {
        reduce(g, blocks, sums);
      }
    }
    for (std::int64_t e = blocks->examples.begin; e < blocks->examples.end; ++e) {
      for (std::int64_t g = blocks->groups.begin;
           gradient_.own != nullptr && g < blocks->groups.end; ++g) {
        gradient_.own[e * groups_ + g] = block_sums_of(*blocks, blocks->at(e, g));
      }
      if (dx) write_dx(e, *blocks);
    }
  }

  BlockSums block_sums_of(const Blocks& blocks, std::int64_t at) const {
    const GradientSums& sums = blocks.sums[at];
    return {sums.dz, sums.dzx - call_.split(blocks.statistics[at].mean).lo * sums.dz};
  }

  GradientTerms terms_at(std::int64_t example, const Blocks& blocks, std::int64_t group) const {
    const std::int64_t at = blocks.at(example, group);
    const Statistics& statistics = blocks.statistics[at];
    if (gradient_.whole != nullptr) {
      return terms_of(gradient_, statistics, gradient_.whole[example * groups_ + group]);
    }
    if (call_.spec.given_statistics) return {0, 0, statistics.extreme};
    return terms_of(gradient_, statistics, block_sums_of(blocks, at));
  }

  std::int64_t index(std::int64_t example, std::int64_t channel) const {
    return example * call_.spec.shape.c + channel;
  }

  // Extreme are here also those where the rest of the mean, times rstd, is a number that f32 holds
  // with few digits.
  void find_statistics(Blocks* blocks) const {
    Statistics* next = blocks->statistics;
    for (std::int64_t e = blocks->examples.begin; e < blocks->examples.end; ++e) {
      for (std::int64_t g = blocks->groups.begin; g < blocks->groups.end; ++g) {
        *next = gradient_.statistics(e * groups_ + g);
        const double shift = call_.split(next->mean).lo * next->rstd;
        const bool few_digits = shift != 0 && std::fabs(shift) < 0x1p-126;
        next->extreme = next->extreme || needs_extreme(call_.spec, few_digits);
        ++next;
      }
    }
  }

  // Both kinds of sums of the blocks of one group. An extreme block takes those of the same columns
  // along to double.
  void reduce(std::int64_t group, Blocks* blocks, GradientSums* sums) const {
    bool any_extreme = false;
    for (std::int64_t e = blocks->examples.begin; e < blocks->examples.end; ++e) {
      const std::int64_t at = blocks->at(e, group);
      blocks->sums[at] = {0, 0};
      any_extreme = any_extreme || blocks->statistics[at].extreme;
    }
    const std::int64_t pieces = ceil_div(channels_, kMaxLanes);
    for (std::int64_t p = 0; p < pieces; ++p) {
      const Range part = share(p, pieces, channels_);
      const Range channels{group * channels_ + part.begin, group * channels_ + part.end};
      GradientSums columns[kMaxLanes];
      GradientSums runs[kBlocksAtOnce];
      if (!any_extreme && fused_) {
        sum_runs(*blocks, group, channels, columns, runs);
      } else {
        sum_in_tiles(*blocks, group, channels, any_extreme, columns, runs);
      }
      if (!any_extreme && !sound_all(*blocks, group, {columns, columns + part.size()}, runs)) {
        sum_in_tiles(*blocks, group, channels, true, columns, runs);
      }
      for (std::int64_t i = 0; i < part.size(); ++i) add(columns[i], sums + channels.begin + i);
      for (std::int64_t e = 0; e < blocks->examples.size(); ++e) {
        add(runs[e], blocks->sums + blocks->at(blocks->examples.begin + e, group));
      }
    }
  }

  // A block that has no statistics is part of every column.
  static bool sound_all(const Blocks& blocks, std::int64_t group,
                        std::span<const GradientSums> columns, const GradientSums* runs) {
    Statistics any{0, 0, false};
    bool all = true;
    for (std::int64_t e = 0; e < blocks.examples.size(); ++e) {
      const Statistics& own = blocks.statistics[blocks.at(blocks.examples.begin + e, group)];
      all = all && sound(runs[e], own);
      if (std::isnan(own.rstd)) any = own;
    }
    return all && std::all_of(columns.begin(), columns.end(),
                              [&](const GradientSums& column) { return sound(column, any); });
  }

  static void add(const GradientSums& more, GradientSums* sums) {
    sums->dz += more.dz;
    sums->dzx += more.dzx;
  }

  // By the kernel of the data's dtype: columns [channels], runs [examples].
  void sum_runs(const Blocks& blocks, std::int64_t group, Range channels, GradientSums* columns,
                GradientSums* runs) const {
    const std::int64_t count = blocks.examples.size(), step = blocks.groups.size();
    const std::int64_t first = blocks.at(blocks.examples.begin, group);
    const std::int64_t at = index(blocks.examples.begin, channels.begin);
    std::fill_n(runs, count, GradientSums{0, 0});
    const GradientJoin join = gradient_.join(at, blocks.examples.begin, channels.begin);
    call_.kernels.gradients->sum_runs(
        {call_.x(at), gradient_.dy(at), call_.params(blocks.examples.begin, channels.begin), count,
         call_.spec.shape.c, call_.spec.shape.c, channels.size(), blocks.statistics + first, step,
         call_.spec.activation, columns, runs, gradient_.joins_sums() ? &join : nullptr});
  }

  void sum_in_tiles(const Blocks& blocks, std::int64_t group, Range channels, bool wide,
                    GradientSums* columns, GradientSums* runs) const {
    GradientTiles tiles(gradient_, wide, true);
    const Range examples = blocks.examples;
    std::fill_n(columns, channels.size(), GradientSums{0, 0});
    std::fill_n(runs, examples.size(), GradientSums{0, 0});
    const std::int64_t pieces = ceil_div(channels.size(), kTileLanes);
    for (std::int64_t p = 0; p < pieces; ++p) {
      const Range part = share(p, pieces, channels.size());
      const std::int64_t width = part.size(), channel = channels.begin + part.begin;
      const std::int64_t most = tiles.tiles().rows(width);
      for (std::int64_t e = examples.begin; e < examples.end; e += most) {
        const std::int64_t count = std::min(most, examples.end - e);
        const Statistics* const statistics = blocks.statistics + blocks.at(e, group);
        const Parameters params = call_.params(e, channel);
        tiles.load_runs({index(e, channel), count, call_.spec.shape.c, width}, params, statistics,
                        blocks.groups.size());
        GradientSums of_tile[kTileLanes];
        tiles.kernels().sum_runs({tiles.x(), tiles.dz(), params, count, tiles.stride(),
                                  Tiles::pitch(width), width, statistics, blocks.groups.size(),
                                  Activation::none, of_tile, runs + (e - examples.begin)});
        for (std::int64_t i = 0; i < width; ++i) add(of_tile[i], columns + part.begin + i);
      }
    }
    for (std::int64_t e = 0; wide && e < examples.size(); ++e) {
      // In double the kernel holds all of the mean: give back what the compute type does not.
      const double mean = blocks.statistics[blocks.at(examples.begin + e, group)].mean;
      runs[e].dzx += call_.split(mean).lo * runs[e].dz;
    }
  }

  void write_dx(std::int64_t example, const Blocks& blocks) const {
    const std::int64_t first = blocks.at(example, blocks.groups.begin);
    const Statistics* const statistics = blocks.statistics + first;
    GradientTerms terms[kBlocksAtOnce];
    double mean[kBlocksAtOnce], rstd[kBlocksAtOnce];
    bool any_extreme = false;
    for (std::int64_t b = 0; b < blocks.groups.size(); ++b) {
      terms[b] = terms_at(example, blocks, blocks.groups.begin + b);
      mean[b] = statistics[b].mean;
      rstd[b] = statistics[b].rstd;
      any_extreme = any_extreme || terms[b].extreme;
    }
    const std::int64_t channel = blocks.groups.begin * channels_, at = index(example, channel);
    if (fused_ && !any_extreme) {
      const GradientJoin join = gradient_.join(at, example, channel);
      call_.kernels.gradients->differentiate(
          {call_.x(at), gradient_.dy(at), gradient_.dx(at), blocks.groups.size(), channels_, 1,
           call_.params(example, channel), mean, rstd, terms, gradient_rule(call_),
           call_.spec.activation, call_.store, nullptr, gradient_.joins() ? &join : nullptr});
      return;
    }
    for (std::int64_t b = 0; b < blocks.groups.size(); ++b) {
      write_in_tiles(example, channel + b * channels_, statistics[b], terms[b]);
    }
  }

  // dx of the block from `channel` on.
  void write_in_tiles(std::int64_t example, std::int64_t channel, const Statistics& statistics,
                      const GradientTerms& terms) const {
    GradientTiles tiles(gradient_, terms.extreme, false);
    const double mean = call_.split(statistics.mean).hi;  // what the terms refer to
    const std::int64_t pieces = ceil_div(channels_, tiles.tiles().size());
    for (std::int64_t p = 0; p < pieces; ++p) {
      const Range part = share(p, pieces, channels_);
      const std::int64_t first = channel + part.begin, count = part.size();
      const Area area{index(example, first), 1, call_.spec.shape.c, count};
      tiles.load_runs(area, call_.params(example, first), &statistics, 0);
      tiles.kernels().differentiate({tiles.x(), tiles.dz(), tiles.dx(), 1, count, 1,
                                     call_.params(example, first), &mean, &statistics.rstd, &terms,
                                     gradient_rule(call_), Activation::none, tiles.store(),
                                     nullptr});
      tiles.finish();
    }
  }

  const GradientCall& gradient_;
  const Call& call_;
  std::int64_t channels_, groups_;  // of a block, of an example
  bool fused_;                      // whether the kernels make dz
};

}  // namespace groupnorm::detail

#endif
