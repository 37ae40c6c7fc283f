// The walk of channels_last, and of s = 1.
#ifndef GROUPNORM_SRC_COLUMNS_H
#define GROUPNORM_SRC_COLUMNS_H

#include "call.h"
#include "plan.h"
#include "range.h"

namespace groupnorm::detail {

// The lanes of a unit, and which of its blocks they belong to (see plan.h).
class ColumnTiles {
 public:
  ColumnTiles(const Spec& spec, const Schedule& schedule)
      : width_(spec.shape.c),
        channels_(spec.block.channels),
        tile_(schedule.tile),
        tiles_(ceil_div(width_, tile_)) {}

  // Of the row of blocks that is this unit's.
  std::int64_t block_row(std::int64_t unit) const { return unit / tiles_; }
  Range lanes(std::int64_t unit) const { return piece(unit % tiles_, tile_, width_); }
  std::int64_t blocks(std::int64_t unit) const { return lanes(unit).size() / channels_; }
  std::int64_t first_block(std::int64_t unit) const {
    return block_row(unit) * (width_ / channels_) + lanes(unit).begin / channels_;
  }

  // f(block of the tile, its lanes within part, counted from part.begin)
  template <class F>
  void for_each_block(Range tile, Range part, F&& f) const {
    std::int64_t block = (part.begin - tile.begin) / channels_;
    for (std::int64_t lane = part.begin; lane < part.end; ++block) {
      const std::int64_t end = std::min(part.end, tile.begin + (block + 1) * channels_);
      f(block, Range{lane - part.begin, end - part.begin});
      lane = end;
    }
  }

  // Whether anything of `items`, one a block of the tile, that part touches is extreme.
  template <class Item>
  bool any_extreme(Range tile, Range part, const Item* items) const {
    bool any = false;
    for_each_block(tile, part, [&](std::int64_t b, Range) { any = any || items[b].extreme; });
    return any;
  }

  // mean, a and b of the lanes of part.
  void make_coefficients(Range tile, Range part, std::int64_t example, const Statistics* statistics,
                         Coefficients* coefficients) const {
    const std::int64_t first = (part.begin - tile.begin) / channels_;
    const std::int64_t channels = std::min(channels_, part.size());
    coefficients->make(example, part.begin, part.size() / channels, channels, statistics + first);
  }

 private:
  std::int64_t width_, channels_, tile_, tiles_;
};

// See plan.h: a unit is a tile of lanes of all the rows of a block.
class Columns {
 public:
  static constexpr std::int64_t kMaxBlocks = kMaxLanes;
  static constexpr bool kCarries = false;

  explicit Columns(const Call& call) : call_(call), tiles_(call.spec, call.schedule) {}

  std::int64_t units() const { return call_.schedule.units; }
  std::int64_t blocks(std::int64_t unit) const { return tiles_.blocks(unit); }
  std::int64_t first_block(std::int64_t unit) const { return tiles_.first_block(unit); }
  bool whole() const { return false; }

  void reduce(std::int64_t unit, std::int64_t chunk, Moments* moments) const {
    const Range rows = chunk_rows(unit, chunk);
    if (call_.schedule.by_runs) return reduce_by_runs(unit, rows, moments);
    std::fill_n(moments, blocks(unit), Moments{});
    const std::int64_t merged = call_.schedule.merged;
    const std::int64_t whole = rows.size() / merged * merged;
    if (whole > 0) reduce_rows(unit, {rows.begin, rows.begin + whole}, merged, moments);
    if (whole < rows.size()) reduce_rows(unit, {rows.begin + whole, rows.end}, 1, moments);
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    const Range rows = chunk_rows(unit, chunk);
    const std::int64_t s = call_.spec.shape.s;
    if (call_.spec.param_stride == 0) return apply_rows(unit, rows, 0, statistics);
    // Each example has its own gamma and beta.
    for (std::int64_t row = rows.begin; row < rows.end;) {
      const std::int64_t end = std::min(rows.end, (row / s + 1) * s);
      apply_rows(unit, {row, end}, row / s, statistics);
      row = end;
    }
  }

 private:
  std::int64_t width() const { return call_.spec.shape.c; }
  Range lanes(std::int64_t unit) const { return tiles_.lanes(unit); }
  // Rows are counted over the whole tensor: n * s of them.
  Range chunk_rows(std::int64_t unit, std::int64_t chunk) const {
    const std::int64_t rows = call_.spec.block.examples * call_.spec.shape.s;
    const std::int64_t first = tiles_.block_row(unit) * rows;
    const Range part = piece(chunk, call_.schedule.chunk, rows);
    return {first + part.begin, first + part.end};
  }

  void reduce_by_runs(std::int64_t unit, Range rows, Moments* moments) const {
    const std::int64_t channels = call_.spec.block.channels, count = blocks(unit);
    const std::int64_t first = lanes(unit).begin;
    run_moments(call_, rows.begin * width() + first, count, channels, moments);
    Moments runs[kMaxBlocks];
    for (std::int64_t row = rows.begin + 1; row < rows.end; ++row) {
      run_moments(call_, row * width() + first, count, channels, runs);
      for (std::int64_t b = 0; b < count; ++b) moments[b] = merge(moments[b], runs[b]);
    }
  }

  // Rows [rows), taken `merged` at a time as one.
  void reduce_rows(std::int64_t unit, Range rows, std::int64_t merged, Moments* moments) const {
    const Range tile = lanes(unit);
    const std::int64_t channels = call_.spec.block.channels;
    double mean[kMaxLanes], m2[kMaxLanes];
    for (std::int64_t lane = 0; lane < tile.size(); lane += kMaxLanes) {
      const std::int64_t count = std::min(kMaxLanes, tile.size() - lane);
      const std::int64_t index = rows.begin * width() + tile.begin + lane;
      const std::int64_t column = rows.size() / merged;  // elements of one
      reduce_columns(index, column, width() * merged, count * merged, mean, m2);
      const std::int64_t part = std::min(channels, count);
      const auto column_rows = static_cast<double>(column);
      for (std::int64_t at = 0; at < count; at += part) {
        Moments& block = moments[(lane + at) / channels];
        block = merge(block, merge_columns(mean + at, m2 + at, std::min(part, count - at), merged,
                                           width(), column_rows));
      }
    }
  }

  void reduce_columns(std::int64_t index, std::int64_t rows, std::int64_t stride,
                      std::int64_t count, double* mean, double* m2) const {
    const bool fits = count >= call_.kernels.lanes;
    if (fits) call_.kernels.reduce_columns(call_.x(index), rows, stride, count, mean, m2);
    const double trusted = trusted_m2(call_, static_cast<double>(rows));
    std::int64_t sound = 0;  // counted without branches: all of them are, as a rule
    for (std::int64_t i = 0; fits && i < count; ++i) sound += m2[i] >= trusted ? 1 : 0;
    if (sound == count) return;
    for (std::int64_t i = 0; i < count; ++i) {
      if (fits && m2[i] >= trusted) continue;
      const Moments column = extreme_moments(call_.spec.data, call_.x(index + i), rows, stride);
      mean[i] = column.mean;
      m2[i] = column.m2;
    }
  }

  // By the kernel that makes its coefficients on the way: they would serve these few rows alone.
  void apply_by_runs(Range tile, Range rows, std::int64_t example,
                     const Statistics* statistics) const {
    const std::int64_t channels = call_.spec.block.channels;
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      apply_blocks(
          call_,
          {row * width() + tile.begin, example, tile.begin, tile.size() / channels, channels, 1},
          statistics);
    }
  }

  void apply_rows(std::int64_t unit, Range rows, std::int64_t example,
                  const Statistics* statistics) const {
    const Range tile = lanes(unit);
    if (call_.schedule.by_runs && call_.spec.block.channels >= call_.kernels.lanes &&
        !tiles_.any_extreme(tile, tile, statistics)) {
      return apply_by_runs(tile, rows, example, statistics);
    }
    const std::int64_t merged = rows.size() >= call_.schedule.merged ? call_.schedule.merged : 1;
    const std::int64_t whole = rows.size() / merged;
    Coefficients coefficients(call_);
    for (std::int64_t lane = 0; lane < tile.size(); lane += kMaxLanes) {
      const Range part{tile.begin + lane, std::min(tile.begin + lane + kMaxLanes, tile.end)};
      if (part.size() * merged < call_.kernels.lanes ||
          tiles_.any_extreme(tile, part, statistics)) {
        apply_scalar(tile, part, rows, example, statistics);
        continue;
      }
      tiles_.make_coefficients(tile, part, example, statistics, &coefficients);
      coefficients.repeat(part.size(), merged);
      const std::int64_t index = rows.begin * width() + part.begin;
      apply_lanes(coefficients, index, whole, merged, part.size());
      const Range rest{rows.begin + whole * merged, rows.end};
      if (rest.size() == 0) continue;
      if (part.size() < call_.kernels.lanes) {
        apply_scalar(tile, part, rest, example, statistics);
      } else {
        apply_lanes(coefficients, rest.begin * width() + part.begin, rest.size(), 1, part.size());
      }
    }
  }

  void apply_lanes(const Coefficients& coefficients, std::int64_t index, std::int64_t rows,
                   std::int64_t merged, std::int64_t lanes) const {
    call_.kernels.apply_lanes({call_.x(index), call_.y(index), rows, width() * merged,
                               lanes * merged, coefficients.mean(), coefficients.a(),
                               coefficients.b(), call_.spec.activation, call_.store});
  }

  void apply_scalar(Range tile, Range part, Range rows, std::int64_t example,
                    const Statistics* statistics) const {
    tiles_.for_each_block(tile, part, [&](std::int64_t block, Range at) {
      for (std::int64_t i = at.begin; i < at.end; ++i) {
        const std::int64_t channel = part.begin + i;
        apply_channel(call_, rows.begin * width() + channel, rows.size(), width(), example, channel,
                      statistics[block]);
      }
    });
  }

  const Call& call_;
  ColumnTiles tiles_;
};

}  // namespace groupnorm::detail

#endif
