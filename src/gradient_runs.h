// The backward walk of blocks that are one run each: s = 1, one example a block (see
// SumsMap::runs). Every element has its own gamma, so a block's two sums come from one kernel, and
// dgamma and dbeta from another, down the rows of a span of examples while these lie in the cache.
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
        same_(gradient.call.spec.param == gradient.call.spec.data),
        channels_(gradient.call.spec.block.channels),
        groups_(gradient.call.spec.shape.c / channels_) {}

  void run(const Executor& executor) const {
    const Backward& args = gradient_.args;
    parallel_for(call_, executor, gradient_.map.spans, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t span = begin; span < end; ++span) {
        const Range examples = piece(span, gradient_.map.span_examples, call_.spec.shape.n);
        // First, for dx may be dy.
        if (args.dgamma != nullptr || args.dbeta != nullptr) reduce_params(span, examples);
        if (args.dx != nullptr) write_dx(examples);
      }
    });
  }

 private:
  static constexpr std::int64_t kMost = 512;  // blocks or rows at a time, on the stack

  std::int64_t index(std::int64_t example, std::int64_t channel) const {
    return example * call_.spec.shape.c + channel;
  }
  const void* gamma(std::int64_t channel) const {
    return call_.param_at(call_.args.gamma, 0, channel);
  }
  const void* beta(std::int64_t channel) const {
    return call_.param_at(call_.args.beta, 0, channel);
  }
  // By the scalar double path.
  ExtremeGradient extreme(std::int64_t example, std::int64_t channel,
                          const Statistics& statistics) const {
    return gradient_.extreme(index(example, channel), 1, 1, example, channel, statistics);
  }

  void write_dx(Range examples) const {
    for (std::int64_t example = examples.begin; example < examples.end; ++example) {
      for (std::int64_t first = 0; first < groups_; first += kMost) {
        write_dx(example, {first, std::min(first + kMost, groups_)});
      }
    }
  }

  // Of blocks [groups) of one example.
  void write_dx(std::int64_t example, Range groups) const {
    const std::int64_t blocks = groups.size(), channel = groups.begin * channels_;
    const std::int64_t at = index(example, channel);
    Statistics statistics[kMost];
    GradientTerms terms[kMost];
    find_statistics({example * groups_ + groups.begin, example * groups_ + groups.end}, 1,
                    statistics);
    if (!find_terms(example, groups, statistics, terms)) {
      const auto kernel = same_ ? kernels_.apply_runs_same : kernels_.apply_runs_f32;
      kernel({call_.x(at), gradient_.dy(at), gradient_.dx(at), gamma(channel), beta(channel),
              blocks, channels_, statistics, terms, call_.spec.activation, call_.store});
      return;
    }
    for (std::int64_t i = 0; i < blocks * channels_; ++i) {
      const std::int64_t b = i / channels_;
      extreme_gradient_apply(extreme(example, channel + i, statistics[b]), terms[b].shift,
                             terms[b].slope, gradient_.dx(at + i));
    }
  }

  // Those of blocks [blocks), `step` apart. Whether any is extreme: here also where the rest of the
  // mean, times rstd, is a number that f32 holds with few digits.
  bool find_statistics(Range blocks, std::int64_t step, Statistics* statistics) const {
    bool any_extreme = false;
    for (std::int64_t b = blocks.begin; b < blocks.end; b += step) {
      *statistics = gradient_.statistics(b);
      const double shift = split_mean(call_, statistics->mean).lo * statistics->rstd;
      const bool few_digits = shift != 0 && std::fabs(shift) < 0x1p-100;
      statistics->extreme = statistics->extreme || needs_extreme(call_.spec, few_digits);
      any_extreme = any_extreme || statistics->extreme;
      ++statistics;
    }
    return any_extreme;
  }

  // Whether any is extreme.
  bool find_terms(std::int64_t example, Range groups, const Statistics* statistics,
                  GradientTerms* terms) const {
    const std::int64_t blocks = groups.size(), channel = groups.begin * channels_;
    bool any_extreme = false;
    if (call_.spec.given_statistics) {
      for (std::int64_t b = 0; b < blocks; ++b) {
        terms[b] = {0, 0, statistics[b].extreme};
        any_extreme = any_extreme || terms[b].extreme;
      }
      return any_extreme;
    }
    GradientSums sums[kMost];  // of a dz
    const std::int64_t at = index(example, channel);
    const auto kernel = same_ ? kernels_.reduce_runs_same : kernels_.reduce_runs_f32;
    kernel({call_.x(at), gradient_.dy(at), gamma(channel), beta(channel), blocks, channels_,
            statistics, call_.spec.activation, sums});
    for (std::int64_t b = 0; b < blocks; ++b) {
      const Statistics& own = statistics[b];
      if (own.extreme || !sound(sums[b])) {
        sums[b] = extreme_sums(example, channel + b * channels_, own);
      }
      const double mean_lo = split_mean(call_, own.mean).lo;
      terms[b] = terms_of(call_, own, sums[b].dz, sums[b].dzx - mean_lo * sums[b].dz);
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

  // sum dz and sum dz xhat of each channel over the examples of a span.
  void reduce_params(std::int64_t span, Range examples) const {
    GradientSums* const sums = gradient_.sums + gradient_.map.index(span, 0, 0);
    std::fill_n(sums, call_.spec.shape.c, GradientSums{0, 0});
    for (std::int64_t group = 0; group < groups_; ++group) {
      for (std::int64_t first = examples.begin; first < examples.end; first += kMost) {
        add_params(group, {first, std::min(first + kMost, examples.end)}, sums);
      }
    }
  }

  void add_params(std::int64_t group, Range examples, GradientSums* sums) const {
    Statistics statistics[kMost];
    const bool any_extreme = find_statistics(
        {examples.begin * groups_ + group, examples.end * groups_}, groups_, statistics);
    const std::int64_t pieces = ceil_div(channels_, kMaxLanes);
    for (std::int64_t p = 0; p < pieces; ++p) {
      const Range part = share(p, pieces, channels_);
      const std::int64_t channel = group * channels_ + part.begin,
                         at = index(examples.begin, channel);
      GradientSums some[kMaxLanes];
      const bool kernel = !any_extreme && part.size() >= call_.kernels.lanes;
      if (kernel) {
        const auto reduce = same_ ? kernels_.reduce_params_same : kernels_.reduce_params_f32;
        reduce({call_.x(at), gradient_.dy(at), gamma(channel), beta(channel), examples.size(),
                call_.spec.shape.c, part.size(), statistics, call_.spec.activation, some});
      }
      for (std::int64_t i = 0; i < part.size(); ++i) {
        if (!kernel || !sound(some[i])) {
          some[i] = extreme_params(examples, channel + i, statistics);
        }
        sums[channel + i].dz += some[i].dz;
        sums[channel + i].dzx += some[i].dzx;
      }
    }
  }

  GradientSums extreme_params(Range examples, std::int64_t channel,
                              const Statistics* statistics) const {
    GradientSums total{0, 0};
    for (std::int64_t e = examples.begin; e < examples.end; ++e) {
      const Statistics& own = statistics[e - examples.begin];
      const GradientSums sums = extreme_gradient_sums(extreme(e, channel, own));
      total.dz += sums.dz;
      total.dzx += own.rstd * (sums.dzx - split_mean(call_, own.mean).lo * sums.dz);
    }
    return total;
  }

  const GradientCall& gradient_;
  const Call& call_;
  const GradientKernels& kernels_;
  bool same_;  // gamma and beta are of the data's dtype
  std::int64_t channels_, groups_;
};

}  // namespace groupnorm::detail

#endif
