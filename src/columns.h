// The walk of channels_last, and of s = 1.
#ifndef GROUPNORM_SRC_COLUMNS_H
#define GROUPNORM_SRC_COLUMNS_H

#include "call.h"
#include "column_lanes.h"
#include "gradient.h"
#include "plan.h"
#include "range.h"
#include "tiles.h"

namespace groupnorm::detail {

// See plan.h: a unit is a tile of lanes of all the rows of a block.
class Columns {
 public:
  static constexpr std::int64_t kMaxBlocks = kMaxLanes;

  explicit Columns(const Call& call) : call_(call), lanes_(call.spec, call.schedule) {}

  std::int64_t units() const { return call_.schedule.units; }
  std::int64_t blocks(std::int64_t unit) const { return lanes_.blocks(unit); }
  std::int64_t first_block(std::int64_t unit) const { return lanes_.first_block(unit); }

  // No kernel reduces and applies lanes in one.
  std::int64_t normalize(std::int64_t, std::int64_t) const { return 0; }

  void reduce(std::int64_t unit, std::int64_t chunk, Moments* moments) const {
    const Range rows = chunk_rows(unit, chunk);
    if (call_.schedule.by_runs && !call_.sums()) return reduce_by_runs(unit, rows, moments);
    std::fill_n(moments, blocks(unit), Moments{});
    const std::int64_t merged = call_.schedule.merged;
    for_each_example(rows, call_.args.shift != nullptr, [&](Range own, std::int64_t) {
      const std::int64_t whole = own.size() / merged * merged;
      if (whole > 0) reduce_rows(unit, {own.begin, own.begin + whole}, merged, moments);
      if (whole < own.size()) reduce_rows(unit, {own.begin + whole, own.end}, 1, moments);
    });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    const Range rows = chunk_rows(unit, chunk), lanes = lanes_.lanes(unit);
    // Where each example has its own gamma and beta, or its own shift, it goes by itself.
    const bool apart = call_.spec.param_stride != 0 || call_.args.shift != nullptr;
    for_each_example(rows, apart, [&](Range own, std::int64_t example) {
      lanes_.for_each_part(lanes, statistics, [&](Range part, bool extreme) {
        apply_part(lanes, part, own, example, statistics, extreme);
      });
    });
  }

 private:
  std::int64_t width() const { return call_.spec.shape.c; }
  // Rows are counted over the whole tensor: n * s of them.
  Range chunk_rows(std::int64_t unit, std::int64_t chunk) const {
    const std::int64_t rows = call_.spec.block.examples * call_.spec.shape.s;
    const std::int64_t first = lanes_.block_row(unit) * rows;
    const Range part = piece(chunk, call_.schedule.chunk, rows);
    return {first + part.begin, first + part.end};
  }

  // f(rows, example) for the rows of each example, if they are to go `apart`; else for all of them.
  template <class F>
  void for_each_example(Range rows, bool apart, const F& f) const {
    const std::int64_t s = call_.spec.shape.s;
    for (std::int64_t row = rows.begin; row < rows.end;) {
      const std::int64_t end = apart ? std::min(rows.end, (row / s + 1) * s) : rows.end;
      f(Range{row, end}, apart ? row / s : 0);  // the one call: f has large arrays
      row = end;
    }
  }

  void reduce_by_runs(std::int64_t unit, Range rows, Moments* moments) const {
    const std::int64_t channels = call_.spec.block.channels, count = blocks(unit);
    const std::int64_t first = lanes_.lanes(unit).begin;
    run_moments(call_, rows.begin * width() + first, count, channels, moments);
    Moments runs[kMaxBlocks];
    for (std::int64_t row = rows.begin + 1; row < rows.end; ++row) {
      run_moments(call_, row * width() + first, count, channels, runs);
      for (std::int64_t b = 0; b < count; ++b) moments[b] = merge(moments[b], runs[b]);
    }
  }

  // Rows [rows), taken `merged` at a time as one.
  void reduce_rows(std::int64_t unit, Range rows, std::int64_t merged, Moments* moments) const {
    const Range lanes = lanes_.lanes(unit);
    const bool fits = ((lanes.size() - 1) % kMaxLanes + 1) * merged >= call_.kernels.lanes;
    // The kernels take u only where its columns fit them.
    if (call_.sums() && (!fits || repeats_shift(merged)))
      return reduce_in_tiles(lanes, rows, merged, moments);
    reduce_directly(lanes, rows, merged, moments);
  }

  // This and the next are not inlined, so that the arrays of one are on the stack alone.
  [[gnu::noinline]] void reduce_directly(Range lanes, Range rows, std::int64_t merged,
                                         Moments* moments) const {
    const std::int64_t example = rows.begin / call_.spec.shape.s;
    const std::int64_t channels = call_.spec.block.channels;
    double mean[kMaxLanes], m2[kMaxLanes];
    for (std::int64_t lane = 0; lane < lanes.size(); lane += kMaxLanes) {
      const std::int64_t count = std::min(kMaxLanes, lanes.size() - lane);
      const std::int64_t index = rows.begin * width() + lanes.begin + lane;
      const std::int64_t column = rows.size() / merged;  // elements of one
      const bool fits = count * merged >= call_.kernels.lanes;
      if (fits) {
        const Join join = call_.join(index, example, lanes.begin + lane);
        call_.kernels.reduce_columns({call_.x(index), column, width() * merged, count * merged,
                                      trust_of(call_.spec), mean, m2, join.skip, join.shift});
      }
      const std::int64_t part = std::min(channels, count);
      for (std::int64_t at = 0; at < count; at += part) {
        const std::int64_t size = std::min(part, count - at);
        Moments& block = moments[(lane + at) / channels];
        block = merge(block, fits ? merge_columns(mean + at, m2 + at, size, merged, width(),
                                                  static_cast<double>(column), call_.spec.data)
                                  : call_.kernels.exact_moments(
                                        {call_.x(index + at), rows.size(), width(), size}));
      }
    }
  }

  // The same of u, tile by tile.
  [[gnu::noinline]] void reduce_in_tiles(Range lanes, Range rows, std::int64_t merged,
                                         Moments* moments) const {
    const Tiles tiles(call_, false);
    constexpr std::int64_t kMost = std::max(kTileLanes, kMergedLanes);
    double mean[kMost], m2[kMost];
    Tile tile;
    for (std::int64_t lane = lanes.begin; lane < lanes.end; lane += kTileLanes) {
      const Range part{lane, std::min(lane + kTileLanes, lanes.end)};
      const bool fits = part.size() * merged >= call_.kernels.lanes;
      const std::int64_t at_once = fits ? merged : 1, count = part.size() * at_once;
      const std::int64_t pitch = Tiles::pitch(count), most = tiles.rows(count) * at_once;
      for (std::int64_t row = rows.begin; row < rows.end; row += most) {
        const std::int64_t column = std::min(most, rows.end - row) / at_once;
        const Area area{row * width() + lane, column, width() * at_once, count};
        const void* const u = tiles.view_u(area, false, tile.data(), false);
        if (fits) {
          tiles.kernels().reduce_columns({u, column, pitch, count, trust_of(call_.spec), mean, m2});
        }
        lanes_.for_each_block(lanes, part, [&](std::int64_t block, Range own) {
          const Moments of_tile =
              fits ? merge_columns(mean + own.begin, m2 + own.begin, own.size(), at_once, width(),
                                   static_cast<double>(column), call_.spec.data)
                   : tiles.kernels().exact_moments(
                         {tiles.at(u, own.begin), column, pitch, own.size()});
          moments[block] = merge(moments[block], of_tile);
        });
      }
    }
  }

  void apply_part(Range lanes, Range part, Range rows, std::int64_t example,
                  const Statistics* statistics, bool extreme) const {
    const Spec& spec = call_.spec;
    const std::int64_t vector = call_.kernels.lanes;
    if (call_.schedule.by_runs && spec.block.channels >= vector && part.size() >= vector &&
        !extreme && is_fused(spec.activation) && !call_.joins()) {
      return apply_by_runs(lanes, part, rows, example, statistics);
    }
    const std::int64_t merged =
        part.size() == width() && rows.size() >= call_.schedule.merged ? call_.schedule.merged : 1;
    const Range whole{rows.begin, rows.begin + rows.size() / merged * merged};
    apply_lanes(lanes, part, whole, merged, example, statistics, extreme);
    if (whole.end == rows.end) return;
    apply_lanes(lanes, part, {whole.end, rows.end}, 1, example, statistics, extreme);
  }

  // Rows taken `merged` at a time as one.
  void apply_lanes(Range lanes, Range part, Range rows, std::int64_t merged, std::int64_t example,
                   const Statistics* statistics, bool extreme) const {
    const Activation activation = call_.spec.activation;
    const std::int64_t at = index(rows, part), count = rows.size() / merged;
    const std::int64_t stride = width() * merged, size = part.size() * merged;
    const bool wide = extreme || size < call_.kernels.lanes;
    Coefficients coefficients(call_, wide ? DType::f64 : call_.compute());
    lanes_.make_coefficients(lanes, part, example, statistics, &coefficients);
    coefficients.repeat(part.size(), merged);
    if (wide || !is_fused(activation) || repeats_shift(merged)) {
      return apply_lanes_in_tiles(call_, Tiles(call_, wide), {at, count, stride, size},
                                  coefficients.arrays());
    }
    const Join join = call_.join(at, example, part.begin);
    call_.kernels.apply_columns({call_.x(at), call_.y(at), count, stride, size,
                                 coefficients.arrays(), activation, call_.store,
                                 call_.joins() ? &join : nullptr});
  }

  std::int64_t index(Range rows, Range part) const { return rows.begin * width() + part.begin; }

  // Whether a row of shifts would be needed for each of the rows taken as one: by tiles.
  bool repeats_shift(std::int64_t merged) const {
    return call_.args.shift != nullptr && merged > 1;
  }

  // By the kernel that makes its coefficients on the way: they would serve these few rows alone.
  // `part` is whole blocks, or part of one that is wider than kMaxLanes.
  void apply_by_runs(Range lanes, Range part, Range rows, std::int64_t example,
                     const Statistics* statistics) const {
    const std::int64_t channels = std::min(call_.spec.block.channels, part.size());
    const std::int64_t first = (part.begin - lanes.begin) / call_.spec.block.channels;
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const std::int64_t at = row * width() + part.begin;
      call_.kernels.normalize(apply_args(call_.x(at), call_.y(at), part.size() / channels, channels,
                                         1, call_.params(example, part.begin), statistics + first,
                                         call_.spec.activation, call_.store));
    }
  }

  // So many, that a tile has some rows of them.
  static constexpr std::int64_t kTileLanes = 64;

  const Call& call_;
  ColumnLanes lanes_;
};

// The backward pass of this walk.
class GradientColumns {
 public:
  static constexpr std::int64_t kMaxBlocks = kMaxLanes;

  explicit GradientColumns(const GradientCall& gradient)
      : gradient_(gradient),
        call_(gradient.call),
        lanes_(call_.spec, call_.schedule),
        spans_(call_.spec.block.examples / gradient.map.span_examples),
        fused_(gradient.is_fused()) {}

  // A chunk is one piece of one span.
  std::int64_t chunks() const { return spans_ * gradient_.map.pieces; }
  std::int64_t blocks(std::int64_t unit) const { return lanes_.blocks(unit); }
  std::int64_t first_block(std::int64_t unit) const { return lanes_.first_block(unit); }

  // No kernel sums and applies lanes in one.
  std::int64_t differentiate(std::int64_t, std::int64_t) const { return 0; }

  void reduce(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    const Range lanes = lanes_.lanes(unit);
    lanes_.for_each_part(lanes, statistics, [&](Range part, bool extreme) {
      reduce_part({locate(unit, chunk), lanes, part, statistics}, extreme);
    });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics,
             const GradientTerms* terms) const {
    const Range lanes = lanes_.lanes(unit);
    lanes_.for_each_part(lanes, terms, [&](Range part, bool extreme) {
      apply_part({locate(unit, chunk), lanes, part, statistics}, terms, extreme);
    });
  }

 private:
  struct Chunk {
    std::int64_t span, piece;
    std::int64_t example;  // the first of its span
    Range rows;            // of the whole tensor, which has n * s
  };

  // A part of a unit's lanes, in one chunk; statistics of the unit's blocks.
  struct Part {
    Chunk at;
    Range lanes, part;
    const Statistics* statistics;
  };

  Chunk locate(std::int64_t unit, std::int64_t chunk) const {
    const SumsMap& map = gradient_.map;
    const std::int64_t span = lanes_.block_row(unit) * spans_ + chunk / map.pieces;
    const std::int64_t length = map.span_examples * call_.spec.shape.s;
    const std::int64_t number = chunk % map.pieces;
    const Range part = piece(number, call_.schedule.chunk, length);
    return {span,
            number,
            span * map.span_examples,
            {span * length + part.begin, span * length + part.end}};
  }

  std::int64_t width() const { return call_.spec.shape.c; }
  std::int64_t index(std::int64_t row, Range part) const { return row * width() + part.begin; }

  // f(rows taken as one, rows), first the merged rows, then what is left of them: see plan.h. False
  // where the kernels of the data's dtype do not take them.
  template <class F>
  bool for_each_merge(const Part& part, Coefficients* coefficients, const F& f) const {
    const Range rows = part.at.rows;
    const std::int64_t lanes = part.part.size(), schedule = call_.schedule.merged;
    const std::int64_t most = lanes == width() && rows.size() >= schedule ? schedule : 1;
    const std::int64_t whole = rows.size() / most * most;
    const Range rest{rows.begin + whole, rows.end};
    if (lanes * most < call_.kernels.lanes) return false;
    if (rest.size() > 0 && lanes < call_.kernels.lanes) return false;
    coefficients->repeat(lanes, most);
    f(most, Range{rows.begin, rows.begin + whole});
    if (rest.size() > 0) f(std::int64_t{1}, rest);
    return true;
  }

  void reduce_part(const Part& part, bool extreme) const {
    const std::int64_t lanes = part.part.size();
    GradientSums* const total =
        gradient_.sums + gradient_.map.index(part.at.span, part.part.begin, part.at.piece);
    const bool done = !extreme && fused_ && reduce_lanes(part, total);
    const bool wide = extreme || lanes < call_.kernels.lanes;
    if (!done) reduce_in_tiles(part, wide, total);
    bool keeps = true;
    lanes_.for_each_block(part.lanes, part.part, [&](std::int64_t block, Range own) {
      for (std::int64_t i = own.begin; i < own.end; ++i) {
        keeps = keeps && sound(total[i], part.statistics[block]);
      }
    });
    if (!keeps && !wide) reduce_in_tiles(part, true, total);
  }

  static void add(const GradientSums* sums, std::int64_t lanes, GradientSums* total) {
    for (std::int64_t i = 0; i < lanes; ++i) {
      total[i].dz += sums[i].dz;
      total[i].dzx += sums[i].dzx;
    }
  }

  // This and its like are not inlined, so that the arrays of one are on the stack alone.
  [[gnu::noinline]] bool reduce_lanes(const Part& part, GradientSums* total) const {
    const std::int64_t lanes = part.part.size();
    std::fill_n(total, lanes, GradientSums{0, 0});
    Coefficients coefficients(call_, call_.compute());
    make_coefficients(part, &coefficients);
    return for_each_merge(part, &coefficients, [&](std::int64_t merged, Range rows) {
      GradientSums sums[kMaxLanes];
      const std::int64_t first = index(rows.begin, part.part);
      const GradientJoin join = gradient_.join(first, part.at.example, part.part.begin);
      call_.kernels.gradients->sum_columns(
          {call_.x(first), gradient_.dy(first), rows.size() / merged, width() * merged,
           width() * merged, lanes * merged, coefficients.arrays(), call_.spec.activation, sums,
           gradient_.joins_sums() ? &join : nullptr});
      for (std::int64_t copy = 0; copy < merged; ++copy) add(sums + copy * lanes, lanes, total);
    });
  }

  void make_coefficients(const Part& part, Coefficients* coefficients) const {
    lanes_.make_coefficients(part.lanes, part.part, part.at.example, part.statistics, coefficients);
  }

  [[gnu::noinline]] void reduce_in_tiles(const Part& part, bool wide, GradientSums* total) const {
    std::fill_n(total, part.part.size(), GradientSums{0, 0});
    for_each_tile(
        part, wide, true,
        [&](GradientTiles& tiles, const Area& area, std::int64_t lane,
            const LaneCoefficients& coefficients) {
          GradientSums
              sums[kRoom + kTileLanes];  // what is narrower than a vector begins before them
          tiles.kernels().sum_columns({tiles.x(), tiles.dz(), area.rows, tiles.stride(),
                                       Tiles::pitch(area.width), area.width, coefficients,
                                       Activation::none, sums + kRoom});
          add(sums + kRoom, area.width, total + lane);
        });
  }

  void apply_part(const Part& part, const GradientTerms* terms, bool extreme) const {
    const std::int64_t lanes = part.part.size();
    const bool wide = extreme || lanes < call_.kernels.lanes;
    if (fused_ && !extreme && apply_lanes(part, terms)) {
      if (gradient_.shifts != nullptr) sum_dx(part, terms);
      return;
    }
    LaneArray intercept(wide ? DType::f64 : call_.compute()), slope = intercept;
    fill(part, terms, &intercept, &slope);
    for_each_tile(part, wide, false,
                  [&](GradientTiles& tiles, const Area& area, std::int64_t lane,
                      const LaneCoefficients& coefficients) {
                    tiles.kernels().apply_columns(
                        {tiles.x(), tiles.dz(), tiles.dx(), area.rows, tiles.stride(),
                         Tiles::pitch(area.width), area.width, coefficients,
                         tiles.tiles().at(intercept.data(), lane),
                         tiles.tiles().at(slope.data(), lane), Activation::none, tiles.store()});
                    tiles.finish();
                  });
  }

  [[gnu::noinline]] bool apply_lanes(const Part& part, const GradientTerms* terms) const {
    const std::int64_t lanes = part.part.size();
    Coefficients coefficients(call_, call_.compute());
    make_coefficients(part, &coefficients);
    LaneArray intercept(call_.compute()), slope(call_.compute());
    fill(part, terms, &intercept, &slope);
    return for_each_merge(part, &coefficients, [&](std::int64_t merged, Range rows) {
      if (gradient_.args.dx == nullptr) return;
      intercept.repeat(lanes, merged);
      slope.repeat(lanes, merged);
      const std::int64_t first = index(rows.begin, part.part);
      const GradientJoin join = gradient_.join(first, part.at.example, part.part.begin);
      call_.kernels.gradients->apply_columns(
          {call_.x(first), gradient_.dy(first), gradient_.dx(first), rows.size() / merged,
           width() * merged, width() * merged, lanes * merged, coefficients.arrays(),
           intercept.data(), slope.data(), call_.spec.activation, call_.store,
           gradient_.joins() ? &join : nullptr});
    });
  }

  // To the sums of shifts, lane by lane.
  [[gnu::noinline]] void sum_dx(const Part& part, const GradientTerms* terms) const {
    const Range rows = part.at.rows;
    const std::int64_t at = index(rows.begin, part.part), example = part.at.example;
    const GradientJoin join = gradient_.join(at, example, part.part.begin);
    double mean[kMaxLanes], m2[kMaxLanes];
    call_.kernels.reduce_columns({call_.x(at), rows.size(), width(), part.part.size(),
                                  trust_of(call_.spec), mean, m2, join.skip, join.shift});
    const std::int64_t first = gradient_.map.index(part.at.span, part.part.begin, part.at.piece);
    const Parameters params = call_.params(example, part.part.begin);
    lanes_.for_each_block(part.lanes, part.part, [&](std::int64_t block, Range own) {
      for (std::int64_t i = own.begin; i < own.end; ++i) {
        gradient_.shifts[first + i] = gradient_.sum_of_dx(
            gradient_.gamma(params, i), gradient_.sums[first + i].dz,
            static_cast<double>(rows.size()), mean[i], part.statistics[block], terms[block]);
      }
    });
  }

  // Of the blocks of part's lanes.
  void fill(const Part& part, const GradientTerms* terms, LaneArray* intercept,
            LaneArray* slope) const {
    lanes_.for_each_block(part.lanes, part.part, [&](std::int64_t block, Range own) {
      intercept->fill(own.begin, own.size(), terms[block].intercept);
      slope->fill(own.begin, own.size(), terms[block].slope);
    });
  }

  // f(tiles, what of the tensor is in them, its first lane in part, coefficients) for all of part;
  // the mean of the coefficients is what sums, intercept and slope refer to.
  template <class F>
  void for_each_tile(const Part& part, bool wide, bool reduces, const F& f) const {
    GradientTiles tiles(gradient_, wide, reduces);
    const DType compute = tiles.tiles().compute();
    Coefficients coefficients(call_, compute);
    make_coefficients(part, &coefficients);
    LaneArray hi(compute);
    lanes_.for_each_block(part.lanes, part.part, [&](std::int64_t block, Range own) {
      hi.fill(own.begin, own.size(), call_.split(part.statistics[block].mean).hi);
    });
    const auto from = [&](const void* array, std::int64_t lane) {
      return tiles.tiles().at(array, lane);
    };
    const auto [mean, a, b] = coefficients.arrays();
    const Range rows = part.at.rows;
    const std::int64_t most = tiles.tiles().rows(std::min(kTileLanes, part.part.size()));
    for (std::int64_t row = rows.begin; row < rows.end; row += most) {
      for (std::int64_t lane = 0; lane < part.part.size(); lane += kTileLanes) {
        const Area area{index(row, part.part) + lane, std::min(most, rows.end - row), width(),
                        std::min(kTileLanes, part.part.size() - lane)};
        tiles.load(area, {from(mean, lane), from(a, lane), from(b, lane)});
        f(tiles, area, lane, {from(hi.data(), lane), from(a, lane), from(b, lane)});
      }
    }
  }

  // So many, that a tile has some rows of them, and most tensors' rows are whole: 64 lanes, some
  // rows apart, took 1.3 times as long from memory.
  static constexpr std::int64_t kTileLanes = 320;
  static constexpr std::int64_t kRoom = 16;  // elements of the longest vector

  const GradientCall& gradient_;
  const Call& call_;
  ColumnLanes lanes_;
  std::int64_t spans_;  // of a block
  bool fused_;          // whether the kernels make dz
};

}  // namespace groupnorm::detail

#endif
