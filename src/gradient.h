// One backward call as its parts see it: addresses, where its sums stand, and what the fold makes
// of them. docs/mathematics.md derives it.
#ifndef GROUPNORM_SRC_GRADIENT_H
#define GROUPNORM_SRC_GRADIENT_H

#include "call.h"
#include "plan.h"
#include "range.h"
#include "tiles.h"
#include "tuning.h"

#include <algorithm>
#include <cmath>

namespace groupnorm::detail {

// GradientSums of each span, channel and piece. A span is a run of examples whose elements of one
// channel share mean, rstd, gamma and beta; it is cut into pieces. By elements (layer_gradient.h)
// it is as many examples as stay in the cache, and its sums are already those of dgamma and dbeta.
struct SumsMap {
  std::int64_t spans;
  std::int64_t span_examples = 1;
  std::int64_t pieces = 1;
  std::int64_t channels;
  bool columns;  // pieces before channels, as the walk writes them
  bool by_elements;

  SumsMap(const Spec& spec, const Schedule& schedule)
      : spans(spec.shape.n),
        channels(spec.shape.c),
        columns(schedule.columns),
        by_elements(!columns && spec.shape.s == 1) {
    if (by_elements) {
      if (spec.param_stride == 0) {
        span_examples = std::max<std::int64_t>(8, kSpanElements / spec.shape.c);
      }
      spans = ceil_div(spec.shape.n, span_examples);
      return;
    }
    if (columns && spec.param_stride == 0) span_examples = spec.block.examples;
    spans /= span_examples;
    const std::int64_t length = spec.shape.s * span_examples;
    if (columns || spec.shape.s > schedule.chunk) pieces = ceil_div(length, schedule.chunk);
  }

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
  GradientSums* sums;  // null where `whole` stands in for them
  // Of blocks that are cut into pieces, of which this is one: what they are in all, and `count` of
  // them are elements of a block; or where to write what this piece adds to that. Else null.
  const BlockSums* whole = nullptr;
  double count = 0;
  BlockSums* own = nullptr;

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
};

inline GradientRule gradient_rule(const Call& call) {
  const Spec& spec = call.spec;
  return {static_cast<double>(spec.block.examples * spec.block.channels * spec.shape.s),
          spec.correction, spec.center, spec.data != DType::f64};
}

// Whether sums in f32 can be kept: they did not overflow. Those of a block that has no statistics
// are NaN, and no others would be better.
inline bool sound(const GradientSums& sums, const Statistics& statistics) {
  return (std::isfinite(sums.dz) && std::isfinite(sums.dzx)) || std::isnan(statistics.rstd);
}

// gradient_terms (fold.h) of a block of this call.
inline GradientTerms terms_of(const GradientCall& gradient, const Statistics& statistics,
                              const BlockSums& sums) {
  GradientRule rule = gradient_rule(gradient.call);
  if (gradient.whole != nullptr) rule.count = gradient.count;
  return gradient_terms(rule, statistics, gradient.call.split(statistics.mean).lo, sums.d, sums.e);
}

// What a block has from the sums of its channels, added in a fixed order.
inline BlockSums block_sums(const GradientCall& gradient, std::int64_t block,
                            const Statistics& statistics) {
  const Call& call = gradient.call;
  const Spec& spec = call.spec;
  const std::int64_t groups = spec.shape.c / spec.block.channels;
  const std::int64_t row = block / groups, first = block % groups * spec.block.channels;
  const std::int64_t spans = spec.block.examples / gradient.map.span_examples;
  const double mean_lo = call.split(statistics.mean).lo;
  double d = 0, e = 0;
  for (std::int64_t span = row * spans; span < (row + 1) * spans; ++span) {
    const void* const data = call.params(span * gradient.map.span_examples, first).gamma;
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
  return {statistics.rstd * d, statistics.rstd * e};
}

inline GradientTerms block_terms(const GradientCall& gradient, std::int64_t block,
                                 const Statistics& statistics) {
  if (gradient.whole != nullptr) return terms_of(gradient, statistics, gradient.whole[block]);
  if (gradient.call.spec.given_statistics) return {0, 0, statistics.extreme};
  return terms_of(gradient, statistics, block_sums(gradient, block, statistics));
}

// dz in tiles, and x beside it, as numbers of the tiles' compute type; then dx. The kernels of that
// type, which know no activation, take them where dy stands.
class GradientTiles {
 public:
  GradientTiles(const GradientCall& gradient, bool wide)
      : gradient_(gradient), call_(gradient.call), wide_(wide), tiles_(gradient.call, wide) {}

  const GradientKernels& kernels() const { return *tiles_.kernels().gradients; }
  const Tiles& tiles() const { return tiles_; }

  // Of blocks [blocks, channels, length], contiguous, with params [blocks, channels] and statistics
  // [blocks].
  void load(const Area& area, std::int64_t blocks, std::int64_t channels, std::int64_t length,
            const Parameters& params, const Statistics* statistics) {
    view(area);
    if (is_dz()) return;
    maker().dz_rows({maker_x(), maker_dy(), dz_.data(), blocks, channels, length, params,
                     statistics, call_.spec.activation});
  }

  // Of rows of lanes, with coefficients of the tiles' compute type, which is the data's unless
  // wide.
  void load(const Area& area, const LaneCoefficients& coefficients) {
    view(area);
    if (is_dz()) return;
    const std::int64_t stride = copies_dy() ? Tiles::pitch(area.width) : area.stride;
    maker().dz_columns({maker_x(), maker_dy(), dz_.data(), area.rows, stride,
                        Tiles::pitch(area.width), area.width, coefficients, call_.spec.activation});
  }

  // Of runs whose elements have their own parameters each, and which have statistics `step` apart.
  void load_runs(const Area& area, const Parameters& params, const Statistics* statistics,
                 std::int64_t step) {
    view(area);
    if (is_dz()) return;
    const std::int64_t pitch = Tiles::pitch(area.width);
    const std::int64_t stride = copies_dy() ? pitch : area.stride;
    const DType from = wide_ ? tiles_.compute() : call_.spec.data;
    for (std::int64_t r = 0; r < area.rows; ++r) {
      const std::int64_t bytes = r * stride * size_of(from);
      maker().dz_rows({offset(maker_x(), bytes), offset(maker_dy(), bytes),
                       tiles_.at(dz_.data(), r * pitch), 1, area.width, 1, params,
                       statistics + r * step, call_.spec.activation});
    }
  }

  // x, and how far apart its rows are; those of dx are as far.
  const void* x() const { return x_; }
  std::int64_t stride() const { return direct_ ? area_.stride : Tiles::pitch(area_.width); }
  const void* dz() { return dz_.data(); }

  // Where the kernels write dx, and how: to the tensor, or over dz.
  void* dx() { return direct_ ? gradient_.dx(area_.index) : dz_.data(); }
  Store store() const { return direct_ ? call_.store : Store::cached; }
  // Takes dx to the tensor, unless it is there: all of it, or `count` elements.
  void finish() {
    if (!direct_) tiles_.activate(dz_.data(), Activation::none, gradient_.args.dx, area_);
  }
  void finish(std::int64_t count) {
    area_.width = count;
    finish();
  }

 private:
  // In double, dy is copied as x is; else dz is made of the tensors themselves.
  bool copies_dy() const { return wide_; }
  bool is_dz() const { return copies_dy() && call_.spec.activation == Activation::none; }
  const TileKernels& maker() const { return (wide_ ? tiles_.kernels() : call_.kernels).tiles; }
  const void* maker_x() const { return wide_ ? x_ : call_.x(area_.index); }
  const void* maker_dy() { return wide_ ? dz_.data() : gradient_.dy(area_.index); }

  void view(const Area& area) {
    area_ = area;
    direct_ = !wide_ && tiles_.is_direct(area, false);
    x_ = tiles_.view(gradient_.args.x, area, direct_, x_tile_.data());
    if (copies_dy()) tiles_.view(gradient_.args.dy, area, false, dz_.data());
  }

  const GradientCall& gradient_;
  const Call& call_;
  bool wide_;
  Tiles tiles_;
  Area area_{};
  bool direct_ = false;
  const void* x_ = nullptr;
  Tile x_tile_, dz_;
};

}  // namespace groupnorm::detail

#endif
