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
    return saved(call.spec.center ? args.mean[block] : 0, args.rstd[block],
                 call.spec.data != DType::f64);
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

inline GradientRule gradient_rule(const Call& call) {
  const Spec& spec = call.spec;
  return {static_cast<double>(spec.block.examples * spec.block.channels * spec.shape.s),
          spec.correction, spec.center, spec.data != DType::f64};
}

inline bool sound(const GradientSums& sums) {
  return std::isfinite(sums.dz) && std::isfinite(sums.dzx);
}

// gradient_terms (fold.h) of a block of this call.
inline GradientTerms terms_of(const Call& call, const Statistics& statistics, double rstd_d,
                              double rstd_e) {
  return gradient_terms(gradient_rule(call), statistics, split_as(call, statistics.mean).lo, rstd_d,
                        rstd_e);
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
    const void* const data =
        call.param_at(call.args.gamma, span * gradient.map.span_examples, first);
    visit(spec.param, [&](auto element) {
      const auto* const gamma = static_cast<const decltype(element)*>(data);
      for (std::int64_t i = 0; i < spec.block.channels; ++i) {
        const double weight = gamma == nullptr ? 1 : to_double(gamma[i]);
        const GradientSums sums = gradient.total(span, first + i);
        d += weight * sums.dz;
        e += weight * (sums.dzx - mean_lo * sums.dz);
      }
    });
  }
  return terms_of(call, statistics, statistics.rstd * d, statistics.rstd * e);
}

}  // namespace groupnorm::detail

#endif
