// One backward call as its parts see it: addresses, where its sums stand, and what the fold makes
// of them. docs/mathematics.md derives it.
#ifndef GROUPNORM_SRC_GRADIENT_H
#define GROUPNORM_SRC_GRADIENT_H

#include "call.h"
#include "plan.h"
#include "range.h"

#include <algorithm>
#include <cmath>

namespace groupnorm::detail {

// GradientSums of each span, channel and piece. A span is a run of examples whose elements of one
// channel share mean, rstd, gamma and beta; it is cut into pieces. By runs (gradient_runs.h) it is
// as many examples as stay in the cache, and its sums are already those of dgamma and dbeta.
struct SumsMap {
  std::int64_t spans;
  std::int64_t span_examples = 1;
  std::int64_t pieces = 1;
  std::int64_t channels;
  bool columns;  // pieces before channels, as the walk writes them
  bool runs;     // one example and s = 1 make a block: one run of at least `lanes` channels

  SumsMap(const Spec& spec, const Schedule& schedule, std::int64_t lanes)
      : spans(spec.shape.n), channels(spec.shape.c), columns(schedule.columns) {
    runs = is_runs(spec, lanes) && spec.param_stride == 0;
    if (runs) {
      span_examples = std::max<std::int64_t>(8, kSpanElements / spec.shape.c);
      spans = ceil_div(spec.shape.n, span_examples);
      return;
    }
    if (columns && spec.param_stride == 0) span_examples = spec.block.examples;
    spans /= span_examples;
    const std::int64_t length = spec.shape.s * span_examples;
    if (columns || spec.shape.s > schedule.chunk) pieces = ceil_div(length, schedule.chunk);
  }

  // Of x: with dy, some 512 KB.
  static constexpr std::int64_t kSpanElements = 65536;

  std::int64_t size() const { return spans * channels * pieces; }
  std::int64_t index(std::int64_t span, std::int64_t channel, std::int64_t piece) const {
    return columns ? (span * pieces + piece) * channels + channel
                   : (span * channels + channel) * pieces + piece;
  }
};

struct GradientCall {
  const Call& call;
  const Backward& args;
  const SumsMap& map;
  GradientSums* sums;

  const void* dy(std::int64_t index) const {
    return static_cast<const std::byte*>(args.dy) + index * call.element;
  }
  void* dx(std::int64_t index) const {
    return static_cast<std::byte*>(args.dx) + index * call.element;
  }

  // Pieces are added in their order: the bits do not depend on who made them.
  GradientSums total(std::int64_t span, std::int64_t channel) const {
    GradientSums result = sums[map.index(span, channel, 0)];
    for (std::int64_t piece = 1; piece < map.pieces; ++piece) {
      const GradientSums& part = sums[map.index(span, channel, piece)];
      result.dz += part.dz;
      result.dzx += part.dzx;
    }
    return result;
  }

  // What forward saved for a block.
  Statistics statistics(std::int64_t block) const {
    const double mean = call.spec.center ? args.mean[block] : 0, rstd = args.rstd[block];
    // sqrt(m) / rstd is the most that |x - mean| can be.
    const bool out_of_range =
        std::fabs(mean) >= kExtremeMean || rstd >= kExtremeRstd || rstd <= 1 / kExtremeRstd;
    return {mean, rstd, needs_extreme(call.spec, out_of_range)};
  }

  // By the scalar double path: `count` elements of a channel, from `index` on, `stride` apart.
  ExtremeGradient extreme(std::int64_t index, std::int64_t count, std::int64_t stride,
                          std::int64_t example, std::int64_t channel,
                          const Statistics& statistics) const {
    const double gamma = call.param_value(call.args.gamma, example, channel, 1);
    const double beta = call.param_value(call.args.beta, example, channel, 0);
    return {call.spec.data,
            call.x(index),
            dy(index),
            count,
            stride,
            statistics.mean,
            split_as(call, statistics.mean).hi,
            gamma * statistics.rstd,
            beta,
            call.spec.activation};
  }
};

inline bool sound(const GradientSums& sums) {
  return std::isfinite(sums.dz) && std::isfinite(sums.dzx);
}

//   dx = rstd (gamma dz - D / m - xhat E / (m - correction)),   xhat = (x - mean_hi - mean_lo) rstd
// with D = sum gamma dz and E = rstd sum gamma dz (x - mean) over a block. rstd_d is rstd * D,
// rstd_e that sum times rstd.
inline GradientTerms terms_of(const Call& call, const Statistics& statistics, double rstd_d,
                              double rstd_e) {
  const Spec& spec = call.spec;
  const double rstd = statistics.rstd, mean_lo = split_as(call, statistics.mean).lo;
  const auto m = static_cast<double>(spec.block.examples * spec.block.channels * spec.shape.s);
  // In this order no factor leaves the range of double before the product does.
  const double slope = -rstd * (rstd * rstd_e) / (m - spec.correction);
  const double shift = (spec.center ? -rstd_d / m : 0) - slope * mean_lo;
  // A slope that f32 holds with few digits loses them all over the block.
  const bool subnormal = slope != 0 && std::fabs(slope) < 0x1p-126;
  const bool out_of_range =
      subnormal || std::fabs(slope) >= kExtremeRstd || std::fabs(shift) >= kExtremeRstd;
  return {shift, slope, statistics.extreme || needs_extreme(spec, out_of_range)};
}

// The terms of a block from the sums of its channels, added in a fixed order.
inline GradientTerms block_terms(const GradientCall& gradient, std::int64_t block,
                                 const Statistics& statistics) {
  const Call& call = gradient.call;
  const Spec& spec = call.spec;
  if (spec.given_statistics) return {0, 0, statistics.extreme};
  const std::int64_t groups = spec.shape.c / spec.block.channels;
  const std::int64_t row = block / groups, first = block % groups * spec.block.channels;
  const std::int64_t spans = spec.block.examples / gradient.map.span_examples;
  const double mean_lo = split_as(call, statistics.mean).lo;
  double d = 0, e = 0;
  for (std::int64_t span = row * spans; span < (row + 1) * spans; ++span) {
    for (std::int64_t c = first; c < first + spec.block.channels; ++c) {
      const double gamma =
          call.param_value(call.args.gamma, span * gradient.map.span_examples, c, 1);
      const GradientSums sums = gradient.total(span, c);
      d += gamma * sums.dz;
      e += gamma * (sums.dzx - mean_lo * sums.dz);
    }
  }
  return terms_of(call, statistics, statistics.rstd * d, statistics.rstd * e);
}

}  // namespace groupnorm::detail

#endif
