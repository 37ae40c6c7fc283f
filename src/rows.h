// The walk of channels_first, and of rows of one element that have a gamma and a beta each.
#ifndef GROUPNORM_SRC_ROWS_H
#define GROUPNORM_SRC_ROWS_H

#include "call.h"
#include "gradient.h"
#include "kernels/row_parts.h"
#include "plan.h"
#include "tiles.h"

#include <cmath>

namespace groupnorm::detail {

// See plan.h: a unit is one block, in runs of rows of s positions.
class Rows {
 public:
  static constexpr std::int64_t kMaxBlocks = 1;

  explicit Rows(const Call& call)
      : call_(call),
        parts_(call.spec, call.schedule),
        run_(call.spec.block.channels * call.spec.shape.s),
        one_run_(call.spec.block.examples == 1 && call.schedule.chunks == 1) {}

  std::int64_t units() const { return call_.schedule.units; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  // Reduces, finishes and applies blocks from `begin` on; returns how many, 0 where the kernels
  // leave the first of them.
  std::int64_t normalize(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t block = begin; block < end;) {
      Extreme extreme;
      block += normalize_by_kernel(block, end, &extreme);
      if (extreme.count == 0) return block - begin;
      apply_extreme(block, extreme);
      block += extreme.count;
    }
    return end - begin;
  }
  void reduce(std::int64_t unit, std::int64_t chunk, Moments* moments) const {
    *moments = {};
    for (std::int64_t p = 0; p < parts_.parts(chunk); ++p) {
      const RowPart part = parts_.at(unit, chunk, p);
      *moments = merge(*moments, part_moments(part));
    }
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    for (std::int64_t p = 0; p < parts_.parts(chunk); ++p) {
      apply_part(parts_.at(unit, chunk, p), *statistics);
    }
  }

 private:
  Moments part_moments(const RowPart& part) const {
    Moments run;
    if (!call_.sums()) {
      run_moments(call_, part.index, 1, part.size(), &run);
      return run;
    }
    const std::int64_t vector = call_.kernels.lanes;
    const bool fits = call_.spec.shift ? part.length >= kShortRow * vector : part.size() >= vector;
    if (!fits) return moments_in_tiles(call_, part);
    Moments total{};
    for_each_run_of_u(call_, part,
                      [&](std::int64_t, const Moments& own) { total = merge(total, own); });
    return total;
  }

  // Blocks that a kernel has left: how many, and their statistics.
  struct Extreme {
    std::int64_t count = 0;
    Statistics statistics[kBatch];
  };

  // Up to the first that is extreme.
  std::int64_t normalize_by_kernel(std::int64_t begin, std::int64_t end, Extreme* extreme) const {
    if (run_ < call_.kernels.lanes) return 0;
    if (is_fused(call_.spec.activation) && !call_.joins()) {
      if (!one_run_ && call_.spec.shape.s < kRowInParts) return 0;
      const std::int64_t first = one_run_ ? begin * run_ : 0;
      return call_.kernels.normalize(course(call_.x(first), call_.y(first), begin, end - begin,
                                            call_.spec.activation, extreme));
    }
    return one_run_ ? normalize_in_tiles(begin, end, extreme) : 0;
  }

  // Blocks that are extreme, as many at a time as fill a tile.
  void apply_extreme(std::int64_t first, const Extreme& extreme) const {
    const Spec& spec = call_.spec;
    const Tiles tiles(call_, true);
    const std::int64_t most = one_run_ ? tiles.size() / run_ : 0;
    const std::int64_t groups = spec.shape.c / spec.block.channels;
    Tile tile;
    for (std::int64_t b = 0, count = 1; b < extreme.count; b += count) {
      const Statistics* const statistics = extreme.statistics + b;
      if (most == 0) {
        for (std::int64_t chunk = 0; chunk < call_.schedule.chunks; ++chunk) {
          apply(first + b, chunk, statistics);
        }
        continue;
      }
      const std::int64_t example = (first + b) / groups, group = (first + b) % groups;
      count = std::min({most, extreme.count - b, groups - group});
      const Area area{(first + b) * run_, 1, 0, count * run_};
      tiles.normalize(tiles.view_u(area, false, tile.data(), true), tile.data(), count,
                      spec.block.channels, spec.shape.s, example, group * spec.block.channels,
                      statistics);
      tiles.activate(tile.data(), spec.activation, call_.args.y, area, call_.args.residual);
    }
  }

  // The arguments of Kernels::normalize for blocks of x and y as `first` of them lies there.
  Kernels::Normalize course(const void* x, void* y, std::int64_t first, std::int64_t blocks,
                            Activation activation, Extreme* extreme) const {
    const Spec& spec = call_.spec;
    const auto at = [first](double* statistics) {
      return statistics == nullptr ? nullptr : statistics + first;
    };
    return {.x = x,
            .y = y,
            .first = first,
            .blocks = blocks,
            .groups = spec.shape.c / spec.block.channels,
            .channels = spec.block.channels,
            .length = spec.shape.s,
            .parts = one_run_ ? nullptr : &parts_,
            .params = call_.params(0, 0),
            .param_stride = spec.param_stride,
            .activation = activation,
            .store = call_.store,
            .statistics = nullptr,
            .correction = spec.correction,
            .eps = spec.eps,
            .center = spec.center,
            .trust = trust_of(spec),
            .mean = at(call_.args.mean),
            .rstd = at(call_.args.rstd),
            .extreme = extreme->statistics,
            .extremes = &extreme->count};
  }

  // As many blocks at a time as fill a tile.
  std::int64_t normalize_in_tiles(std::int64_t begin, std::int64_t end, Extreme* extreme) const {
    const Tiles tiles(call_, false);
    const std::int64_t most = tiles.size() / run_;
    if (most == 0) return 0;
    Tile tile;
    for (std::int64_t block = begin; block < end;) {
      const std::int64_t blocks = std::min(end - block, most);
      const Area area{block * run_, 1, 0, blocks * run_};
      Kernels::Normalize args =
          course(tiles.view_u(area, tiles.is_direct(area, true), tile.data(), true), tile.data(),
                 block, blocks, Activation::none, extreme);
      args.store = Store::cached;
      const std::int64_t done = tiles.kernels().normalize(args);
      tiles.activate(tile.data(), call_.spec.activation, call_.args.y,
                     {area.index, 1, 0, done * run_}, call_.args.residual);
      block += done;
      if (done < blocks) return block - begin;
    }
    return end - begin;
  }

  void apply_part(const RowPart& part, const Statistics& statistics) const {
    const bool short_row = part.length < kShortRow * call_.kernels.lanes;
    if (statistics.extreme || part.size() < call_.kernels.lanes ||
        !is_fused(call_.spec.activation) || (call_.joins() && short_row)) {
      return apply_part_in_tiles(call_, part, statistics);
    }
    const Join join = call_.join(part.index, part.example, part.channel);
    call_.kernels.normalize(apply_args(call_.x(part.index), call_.y(part.index), 1, part.rows,
                                       part.length, call_.params(part.example, part.channel),
                                       &statistics, call_.spec.activation, call_.store,
                                       call_.joins() ? &join : nullptr));
  }

  const Call& call_;
  RowParts parts_;
  std::int64_t run_;  // elements
  bool one_run_;      // whether a block is one run and one chunk
};

// The backward pass of this walk, of rows of more than one position.
class GradientRows {
 public:
  static constexpr std::int64_t kMaxBlocks = 1;

  explicit GradientRows(const GradientCall& gradient)
      : gradient_(gradient),
        call_(gradient.call),
        parts_(call_.spec, call_.schedule),
        run_(call_.spec.block.channels * call_.spec.shape.s),
        fused_(gradient.is_fused()) {}

  std::int64_t chunks() const { return call_.schedule.chunks; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  // Sums and applies blocks from `begin` on; returns how many, 0 where the kernels leave the first
  // of them.
  std::int64_t differentiate(std::int64_t begin, std::int64_t end) const {
    const Spec& spec = call_.spec;
    const bool one_run = spec.block.examples == 1 && chunks() == 1 && run_ >= call_.kernels.lanes;
    const std::int64_t most =
        fused_ ? end - begin : std::min(kBlocksOfTile, Tiles(call_, false).size() / run_);
    if (!one_run || spec.given_statistics || most == 0) return 0;
    if (fused_ && gradient_.joins()) return 0;  // that kernel joins nothing
    const std::int64_t groups = spec.shape.c / spec.block.channels;
    for (std::int64_t block = begin; block < end;) {
      const std::int64_t blocks = std::min({end - block, groups - block % groups, most});
      const std::int64_t done =
          fused_
              ? differentiate_blocks(*call_.kernels.gradients, block, blocks, call_.x(block * run_),
                                     gradient_.dy(block * run_), gradient_.dx(block * run_),
                                     call_.spec.activation, call_.store)
              : differentiate_in_tiles(block, blocks);
      block += done;
      if (done < blocks) return block - begin;
    }
    return end - begin;
  }

  void reduce(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    for (std::int64_t p = 0; p < parts_.parts(chunk); ++p) {
      reduce_part(parts_.at(unit, chunk, p), *statistics);
    }
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics,
             const GradientTerms* terms) const {
    for (std::int64_t p = 0; p < parts_.parts(chunk); ++p) {
      apply_part(parts_.at(unit, chunk, p), *statistics, *terms);
    }
  }

 private:
  // Blocks of one example.
  std::int64_t differentiate_blocks(const GradientKernels& kernels, std::int64_t first,
                                    std::int64_t blocks, const void* x, const void* dy, void* dx,
                                    Activation activation, Store store) const {
    const Spec& spec = call_.spec;
    const std::int64_t groups = spec.shape.c / spec.block.channels;
    const std::int64_t example = first / groups, channel = first % groups * spec.block.channels;
    const Backward& args = gradient_.args;
    return kernels.differentiate({x, dy, dx, blocks, spec.block.channels, spec.shape.s,
                                  call_.params(example, channel),
                                  spec.center ? args.mean + first : nullptr, args.rstd + first,
                                  nullptr, gradient_rule(call_), activation, store,
                                  gradient_.sums + gradient_.map.index(example, channel, 0)});
  }

  std::int64_t differentiate_in_tiles(std::int64_t first, std::int64_t blocks) const {
    const Spec& spec = call_.spec;
    const std::int64_t groups = spec.shape.c / spec.block.channels;
    Statistics statistics[kBlocksOfTile];
    for (std::int64_t b = 0; b < blocks; ++b) {
      statistics[b] = gradient_.statistics(first + b);
      if (statistics[b].extreme) blocks = b;
    }
    if (blocks == 0) return 0;
    GradientTiles tiles(gradient_, false, true);
    const Area area{first * run_, 1, 0, blocks * run_};
    tiles.load(area, blocks, spec.block.channels, spec.shape.s,
               call_.params(first / groups, first % groups * spec.block.channels), statistics);
    const std::int64_t done =
        differentiate_blocks(tiles.kernels(), first, blocks, tiles.x(), tiles.dz(), tiles.dx(),
                             Activation::none, tiles.store());
    tiles.finish(done * run_);
    return done;
  }

  void reduce_part(const RowPart& part, const Statistics& statistics) const {
    // One behind the other: a row that comes in pieces comes alone.
    GradientSums* const sums =
        gradient_.sums + gradient_.map.index(part.example, part.channel, part.piece);
    const bool wide = statistics.extreme || part.size() < call_.kernels.lanes;
    if (!wide && fused_) {
      const GradientJoin join = gradient_.join(part.index, part.example, part.channel);
      call_.kernels.gradients->sum_rows({call_.x(part.index), gradient_.dy(part.index), part.rows,
                                         part.length, call_.params(part.example, part.channel),
                                         statistics.mean, statistics.rstd, call_.spec.activation,
                                         sums, gradient_.joins_sums() ? &join : nullptr});
    } else {
      reduce_in_tiles(part, statistics, wide, sums);
    }
    const auto keeps = [&](const GradientSums& row) { return sound(row, statistics); };
    if (!wide && !std::all_of(sums, sums + part.rows, keeps)) {
      reduce_in_tiles(part, statistics, true, sums);
    }
  }

  void reduce_in_tiles(const RowPart& part, const Statistics& statistics, bool wide,
                       GradientSums* sums) const {
    GradientTiles tiles(gradient_, wide, true);
    for_each_tile(part, statistics, &tiles, [&](Range rows, Range positions) {
      GradientSums cut;
      const bool whole = positions.size() == part.length;
      tiles.kernels().sum_rows({tiles.x(),
                                tiles.dz(),
                                rows.size(),
                                positions.size(),
                                {},
                                call_.split(statistics.mean).hi,
                                statistics.rstd,
                                Activation::none,
                                whole ? sums + rows.begin : &cut});
      if (whole) return;
      GradientSums& row = sums[rows.begin];
      if (positions.begin == 0) row = {0, 0};
      row.dz += cut.dz;
      row.dzx += cut.dzx;
    });
  }

  void apply_part(const RowPart& part, const Statistics& statistics,
                  const GradientTerms& terms) const {
    const bool wide = terms.extreme || part.size() < call_.kernels.lanes;
    const Parameters params = call_.params(part.example, part.channel);
    if (!wide && fused_) {
      const GradientJoin join = gradient_.join(part.index, part.example, part.channel);
      if (gradient_.args.dx != nullptr) {
        call_.kernels.gradients->differentiate(
            {call_.x(part.index), gradient_.dy(part.index), gradient_.dx(part.index), 1, part.rows,
             part.length, params, &statistics.mean, &statistics.rstd, &terms, gradient_rule(call_),
             call_.spec.activation, call_.store, nullptr, gradient_.joins() ? &join : nullptr});
      }
      if (gradient_.shifts != nullptr) sum_dx(part, params, statistics, terms);
      return;
    }
    GradientTiles tiles(gradient_, wide, false);
    const double mean = call_.split(statistics.mean).hi;
    for_each_tile(part, statistics, &tiles, [&](Range rows, Range positions) {
      tiles.kernels().differentiate(
          {tiles.x(), tiles.dz(), tiles.dx(), 1, rows.size(), positions.size(),
           call_.params(part.example, part.channel + rows.begin), &mean, &statistics.rstd, &terms,
           gradient_rule(call_), Activation::none, tiles.store(), nullptr});
      tiles.finish();
    });
  }

  // To the sums of shifts, row by row.
  void sum_dx(const RowPart& part, const Parameters& params, const Statistics& statistics,
              const GradientTerms& terms) const {
    const std::int64_t first = gradient_.map.index(part.example, part.channel, part.piece);
    for_each_run_of_u(call_, part, [&](std::int64_t row, const Moments& of_u) {
      const double gamma = gradient_.gamma(params, row);
      gradient_.shifts[first + row] = gradient_.sum_of_dx(gamma, gradient_.sums[first + row].dz,
                                                          of_u.count, of_u.mean, statistics, terms);
    });
  }

  // f(rows, positions) of each piece of the part, when it is in the tiles.
  template <class F>
  void for_each_tile(const RowPart& part, const Statistics& statistics, GradientTiles* tiles,
                     const F& f) const {
    tiles->tiles().for_each_piece(part, [&](Range rows, Range positions) {
      tiles->load(area_of(part, rows, positions), 1, rows.size(), positions.size(),
                  call_.params(part.example, part.channel + rows.begin), &statistics);
      f(rows, positions);
    });
  }

  static constexpr std::int64_t kBlocksOfTile = 128;  // their statistics are on the stack

  const GradientCall& gradient_;
  const Call& call_;
  RowParts parts_;
  std::int64_t run_;  // elements
  bool fused_;        // whether the kernels make dz
};

}  // namespace groupnorm::detail

#endif
