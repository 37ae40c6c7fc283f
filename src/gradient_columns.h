// The backward walk of channels_last, and of s = 1.
#ifndef GROUPNORM_SRC_GRADIENT_COLUMNS_H
#define GROUPNORM_SRC_GRADIENT_COLUMNS_H

#include "columns.h"
#include "gradient.h"

namespace groupnorm::detail {

class GradientColumns {
 public:
  static constexpr std::int64_t kMaxBlocks = kMaxLanes;

  explicit GradientColumns(const GradientCall& gradient)
      : gradient_(gradient),
        call_(gradient.call),
        tiles_(gradient.call.spec, gradient.call.schedule),
        spans_(gradient.call.spec.block.examples / gradient.map.span_examples) {}

  // A chunk is one piece of one span.
  std::int64_t chunks() const { return spans_ * gradient_.map.pieces; }
  std::int64_t blocks(std::int64_t unit) const { return tiles_.blocks(unit); }
  std::int64_t first_block(std::int64_t unit) const { return tiles_.first_block(unit); }

  bool whole() const { return false; }

  void reduce(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    const Chunk at = locate(unit, chunk);
    for_each_part(unit, at, statistics, [&](Range tile, Range part, Coefficients& coefficients) {
      reduce_part(at, tile, part, statistics, &coefficients);
    });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics,
             const GradientTerms* terms) const {
    const Chunk at = locate(unit, chunk);
    for_each_part(unit, at, statistics, [&](Range tile, Range part, Coefficients& coefficients) {
      apply_part(at, tile, part, statistics, terms, &coefficients);
    });
  }

 private:
  struct Chunk {
    std::int64_t span, piece;
    std::int64_t example;  // the first of its span
    Range rows;            // of the whole tensor, which has n * s
  };

  Chunk locate(std::int64_t unit, std::int64_t chunk) const {
    const SumsMap& map = gradient_.map;
    const std::int64_t span = tiles_.block_row(unit) * spans_ + chunk / map.pieces;
    const std::int64_t length = map.span_examples * call_.spec.shape.s;
    const std::int64_t number = chunk % map.pieces;
    const Range part = piece(number, call_.schedule.chunk, length);
    return {span,
            number,
            span * map.span_examples,
            {span * length + part.begin, span * length + part.end}};
  }

  // f(tile, part of it, coefficients), at most kMaxLanes lanes at a time.
  template <class F>
  void for_each_part(std::int64_t unit, const Chunk& at, const Statistics* statistics,
                     F&& f) const {
    const Range tile = tiles_.lanes(unit);
    Coefficients coefficients(call_);
    for (std::int64_t lane = tile.begin; lane < tile.end; lane += kMaxLanes) {
      const Range part{lane, std::min(lane + kMaxLanes, tile.end)};
      tiles_.make_coefficients(tile, part, at.example, statistics, &coefficients);
      f(tile, part, coefficients);
    }
  }

  std::int64_t width() const { return call_.spec.shape.c; }
  std::int64_t index(std::int64_t row, Range part) const { return row * width() + part.begin; }

  // f(rows taken as one, rows), first the merged rows, then what is left of them: see plan.h. Only
  // what the kernels take.
  template <class F>
  bool for_each_merge(Range rows, std::int64_t lanes, Coefficients* coefficients, F&& f) const {
    const std::int64_t most = rows.size() >= call_.schedule.merged ? call_.schedule.merged : 1;
    if (lanes * most < call_.kernels.lanes) return false;
    const std::int64_t whole = rows.size() / most * most;
    const Range rest{rows.begin + whole, rows.end};
    if (rest.size() > 0 && lanes < call_.kernels.lanes) return false;
    coefficients->repeat(lanes, most);
    f(most, Range{rows.begin, rows.begin + whole});
    if (rest.size() > 0) f(std::int64_t{1}, rest);
    return true;
  }

  void reduce_part(const Chunk& at, Range tile, Range part, const Statistics* statistics,
                   Coefficients* coefficients) const {
    const std::int64_t lanes = part.size();
    GradientSums total[kMaxLanes];
    std::fill_n(total, lanes, GradientSums{0, 0});
    const bool kernel =
        !tiles_.any_extreme(tile, part, statistics) &&
        for_each_merge(at.rows, lanes, coefficients, [&](std::int64_t merged, Range rows) {
          GradientSums sums[kMaxLanes];
          const std::int64_t first = index(rows.begin, part);
          call_.kernels.gradients->reduce_lanes(
              {call_.x(first), gradient_.dy(first), rows.size() / merged, width() * merged,
               lanes * merged, coefficients->mean(), coefficients->a(), coefficients->b(),
               call_.spec.activation, sums});
          for (std::int64_t copy = 0; copy < merged; ++copy) {
            for (std::int64_t i = 0; i < lanes; ++i) {
              total[i].dz += sums[copy * lanes + i].dz;
              total[i].dzx += sums[copy * lanes + i].dzx;
            }
          }
        });
    tiles_.for_each_block(tile, part, [&](std::int64_t block, Range own) {
      for (std::int64_t i = own.begin; i < own.end; ++i) {
        const std::int64_t channel = part.begin + i;
        GradientSums* const sums = gradient_.sums + gradient_.map.index(at.span, channel, at.piece);
        *sums = kernel && sound(total[i])
                    ? total[i]
                    : extreme_gradient_sums(column(at, channel, statistics[block]));
      }
    });
  }

  void apply_part(const Chunk& at, Range tile, Range part, const Statistics* statistics,
                  const GradientTerms* terms, Coefficients* coefficients) const {
    const std::int64_t lanes = part.size();
    LaneArray shift(call_), slope(call_);
    tiles_.for_each_block(tile, part, [&](std::int64_t block, Range own) {
      shift.fill(own.begin, own.size(), terms[block].shift);
      slope.fill(own.begin, own.size(), terms[block].slope);
    });
    const bool kernel =
        !tiles_.any_extreme(tile, part, terms) &&
        for_each_merge(at.rows, lanes, coefficients, [&](std::int64_t merged, Range rows) {
          shift.repeat(lanes, merged);
          slope.repeat(lanes, merged);
          const std::int64_t first = index(rows.begin, part);
          call_.kernels.gradients->apply_lanes(
              {call_.x(first), gradient_.dy(first), gradient_.dx(first), rows.size() / merged,
               width() * merged, lanes * merged, coefficients->mean(), coefficients->a(),
               coefficients->b(), shift.data(), slope.data(), call_.spec.activation, call_.store});
        });
    if (kernel) return;
    tiles_.for_each_block(tile, part, [&](std::int64_t block, Range own) {
      for (std::int64_t i = own.begin; i < own.end; ++i) {
        const std::int64_t channel = part.begin + i;
        extreme_gradient_apply(column(at, channel, statistics[block]), terms[block].shift,
                               terms[block].slope, gradient_.dx(at.rows.begin * width() + channel));
      }
    });
  }

  ExtremeGradient column(const Chunk& at, std::int64_t channel,
                         const Statistics& statistics) const {
    return gradient_.extreme(at.rows.begin * width() + channel, at.rows.size(), width(), at.example,
                             channel, statistics);
  }

  const GradientCall& gradient_;
  const Call& call_;
  ColumnTiles tiles_;
  std::int64_t spans_;  // of a block
};

}  // namespace groupnorm::detail

#endif
