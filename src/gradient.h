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
    // The sums of dx for a shift are those of one example.
    if (columns && spec.param_stride == 0 && !spec.shift) span_examples = spec.block.examples;
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
  double* shifts = nullptr;  // sums of dx, as `sums` lie, where dshift is asked for

  // Whether the kernels make dz of the tensors, and dx of it; else that goes by tiles. Asking for
  // dx, dshift or the gradients of parameters does not change it, and so not the bits of the
  // others.
  bool is_fused() const {
    if (!detail::is_fused(call.spec.activation)) return false;
    if (!joins()) return true;
    if (call.spec.shift && !fuses_shift()) return false;
    const bool long_rows = call.spec.shape.s >= kShortRow * call.kernels.lanes;
    return map.columns || map.by_elements || long_rows;
  }
  // dshift is made of dx, also where that is not asked for.
  bool makes_dx() const { return args.dx != nullptr || args.dshift != nullptr; }
  bool joins() const { return joins_sums() || args.dsum != nullptr; }
  // In the pass that makes the sums, which dsum is no part of.
  bool joins_sums() const { return call.joins() || args.dresidual != nullptr || call.spec.shift; }
  // Of element `index` on, which is of `channel` of `example`.
  GradientJoin join(std::int64_t index, std::int64_t example, std::int64_t channel) const {
    const std::int64_t bytes = index * call.element;
    void* const dresidual =
        args.dresidual == nullptr ? nullptr : static_cast<std::byte*>(args.dresidual) + bytes;
    return {offset(call.args.skip, bytes), call.shift(example, channel),
            offset(call.args.residual, bytes), offset(args.dsum, bytes), dresidual};
  }

  const void* dy(std::int64_t index) const {
    return static_cast<const std::byte*>(args.dy) + index * call.element;
  }
  void* dx(std::int64_t index) const {
    return static_cast<std::byte*>(args.dx) + index * call.element;
  }

  // Adds dx of an area to the sums of shifts: numbers of a compute type, rows `stride` elements
  // apart. Of columns, an area lies in one piece of one span.
  void add_shifts(const Area& area, const void* numbers, DType type, std::int64_t stride) const {
    const Kernels& kernels = call.target.of(type);
    if (map.columns) {
      const auto [n, c, s] = call.spec.shape;
      const std::int64_t row = area.index / c;
      kernels.tiles.add_rows(
          {numbers, area.rows, stride, area.width, shift_sums(row / s, area.index % c, row % s)});
      return;
    }
    for (std::int64_t r = 0; r < area.rows; ++r) {
      call.for_each_line(area.index + r * area.stride, area.width,
                         [&](std::int64_t i, std::int64_t size, std::int64_t example,
                             std::int64_t channel, std::int64_t position) {
                           add_line(offset(numbers, (r * stride + i) * size_of(type)), size,
                                    kernels, shift_sums(example, channel, position));
                         });
    }
  }

  double gamma(const Parameters& params, std::int64_t i) const {
    return params.gamma == nullptr ? 1 : load_element(params.dtype, params.gamma, i);
  }

  // sum dx of `count` elements of a channel, of their sum dz and the mean of their u.
  double sum_of_dx(double gamma, double dz, double count, double mean_of_u,
                   const Statistics& statistics, const GradientTerms& terms) const {
    const double distance = mean_of_u - call.split(statistics.mean).hi;
    return gamma * statistics.rstd * dz + count * (terms.slope * distance + terms.intercept);
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

 private:
  // The kernels take one shift for each row or lane. Rows of blocks that fit a tile take less time
  // together, as tiles; and sum_of_dx needs means with more digits than u has.
  bool fuses_shift() const {
    const auto [examples, channels] = call.spec.block;
    const std::int64_t bytes = examples * channels * call.spec.shape.s * size_of(call.compute());
    const bool small = !map.columns && bytes <= kTileBytes;
    return !small && !map.by_elements && call.schedule.merged == 1 &&
           call.spec.data != DType::f64 && args.dsum == nullptr;
  }

  double* shift_sums(std::int64_t example, std::int64_t channel, std::int64_t position) const {
    const std::int64_t span = example / map.span_examples;
    const std::int64_t in_span =
        (example - span * map.span_examples) * call.spec.shape.s + position;
    const std::int64_t piece = map.pieces == 1 ? 0 : in_span / call.schedule.chunk;
    return shifts + map.index(span, channel, piece);
  }

  // `size` numbers of one channel to its sum or, by lanes, each to that of its own.
  void add_line(const void* numbers, std::int64_t size, const Kernels& kernels, double* to) const {
    if (call.by_lanes()) return kernels.tiles.add_rows({numbers, 1, size, size, to});
    if (size >= kernels.lanes) {
      GradientSums sums;
      kernels.gradients->sum_rows({numbers, numbers, 1, size, {}, 0, 1, Activation::none, &sums});
      if (std::isfinite(sums.dz)) {
        *to += sums.dz;
        return;
      }
    }
    kernels.tiles.add_rows({numbers, size, 1, 1, to});
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
  // `reduces`: in the pass that every element has, which writes dresidual.
  GradientTiles(const GradientCall& gradient, bool wide, bool reduces)
      : gradient_(gradient),
        call_(gradient.call),
        wide_(wide),
        reduces_(reduces),
        tiles_(gradient.call, wide) {}

  const GradientKernels& kernels() const { return *tiles_.kernels().gradients; }
  const Tiles& tiles() const { return tiles_; }

  // Of blocks [blocks, channels, length], contiguous, with params [blocks, channels] and statistics
  // [blocks].
  void load(const Area& area, std::int64_t blocks, std::int64_t channels, std::int64_t length,
            const Parameters& params, const Statistics* statistics) {
    view(area);
    if (reads_z()) {
      tiles_.kernels().normalize(apply_args(x_, dz_.data(), blocks, channels, length, params,
                                            statistics, Activation::none, Store::cached));
    }
    make_dz();
  }

  // Of rows of lanes, with coefficients of the tiles' compute type.
  void load(const Area& area, const LaneCoefficients& coefficients) {
    view(area);
    if (reads_z()) {
      tiles_.kernels().tiles.z_columns({x_, dz_.data(), area.rows, stride(),
                                        Tiles::pitch(area.width), area.width, coefficients});
    }
    make_dz();
  }

  // Of runs whose elements have their own parameters each, and which have statistics `step` apart.
  void load_runs(const Area& area, const Parameters& params, const Statistics* statistics,
                 std::int64_t step) {
    view(area);
    if (reads_z()) {
      tiles_.kernels().tiles.z_runs({x_, dz_.data(), area.rows, stride(), Tiles::pitch(area.width),
                                     area.width, params, statistics, step});
    }
    make_dz();
  }

  // x, and how far apart its rows are; those of dx are as far.
  const void* x() const { return x_; }
  std::int64_t stride() const { return direct_ ? area_.stride : Tiles::pitch(area_.width); }
  const void* dz() { return dz_.data(); }

  // Where the kernels write dx, and how: to the tensor, or over dz.
  void* dx() { return direct_ ? gradient_.dx(area_.index) : dz_.data(); }
  Store store() const { return direct_ ? call_.store : Store::cached; }
  // Takes dx to the tensor, unless it is there: all of it, or `count` elements. With dsum, and to
  // the sums of shifts.
  void finish() {
    if (direct_) return;
    const Backward& args = gradient_.args;
    if (gradient_.shifts != nullptr) add_shifts(dz_.data());
    if (gradient_.shifts != nullptr && args.dsum != nullptr) {
      add_shifts(tiles_.view(args.dsum, area_, false, x_tile_.data()));
    }
    if (args.dx == nullptr) return;
    tiles_.activate(dz_.data(), Activation::none, args.dx, area_, args.dsum);
  }
  void finish(std::int64_t count) {
    area_.width = count;
    finish();
  }

 private:
  bool reads_z() const { return call_.spec.activation != Activation::none; }

  void view(const Area& area) {
    area_ = area;
    direct_ = !wide_ && !gradient_.joins() && tiles_.is_direct(area, false);
    x_ = tiles_.view_u(area, direct_, x_tile_.data(), false);
  }

  // dz, of z in its place where that is read; and to dresidual.
  void make_dz() {
    const void* const residual = call_.args.residual;
    if (!reads_z()) {
      tiles_.view(gradient_.args.dy, area_, false, dz_.data());
    } else {
      const TileKernels& maker = call_.kernels.tiles;
      (wide_ ? maker.dz_wide
             : maker.dz)({dz_.data(), offset(residual, area_.index * call_.element),
                          gradient_.dy(area_.index), dz_.data(), area_.rows, area_.stride,
                          Tiles::pitch(area_.width), area_.width, call_.spec.activation});
    }
    if (reduces_ && gradient_.args.dresidual != nullptr) write_dresidual();
  }

  [[gnu::noinline]] void write_dresidual() {
    Tile narrowed;
    tiles_.activate(dz_.data(), Activation::none, gradient_.args.dresidual, area_, nullptr,
                    narrowed.data());
  }

  // The numbers of a tile to gradient_.shifts.
  void add_shifts(const void* tile) const {
    gradient_.add_shifts(area_, tile, tiles_.compute(), Tiles::pitch(area_.width));
  }

  const GradientCall& gradient_;
  const Call& call_;
  bool wide_, reduces_;
  Tiles tiles_;
  Area area_{};
  bool direct_ = false;
  const void* x_ = nullptr;
  Tile x_tile_, dz_;
};

}  // namespace groupnorm::detail

#endif
