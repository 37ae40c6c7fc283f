// The walk of channels_first.
#ifndef GROUPNORM_SRC_ROWS_H
#define GROUPNORM_SRC_ROWS_H

#include "call.h"
#include "plan.h"
#include "range.h"

namespace groupnorm::detail {

// Where the rows of a unit lie (see plan.h).
class RowParts {
 public:
  // Contiguous elements of one run: whole rows, or a piece of one.
  struct Part {
    std::int64_t example, channel;
    std::int64_t index;  // in the tensor
    std::int64_t rows, length;
    std::int64_t piece;  // which one of its row; 0 for whole rows
    std::int64_t size() const { return rows * length; }
  };

  RowParts(const Spec& spec, const Schedule& schedule)
      : spec_(spec),
        schedule_(schedule),
        groups_(spec.shape.c / spec.block.channels),
        run_(spec.block.channels * spec.shape.s),
        line_(spec.shape.s > schedule.chunk ? spec.shape.s : run_),
        chunks_per_line_(ceil_div(line_, schedule.chunk)) {}

  std::int64_t pieces_per_row() const {
    return spec_.shape.s > schedule_.chunk ? chunks_per_line_ : 1;
  }

  std::int64_t first_index(std::int64_t unit) const {
    const std::int64_t row = unit / groups_, group = unit % groups_;
    return row * spec_.block.examples * groups_ * run_ + group * run_;
  }

  // f(part) for the parts that a chunk is made of.
  template <class F>
  void for_each(std::int64_t unit, std::int64_t chunk, F&& f) const {
    const std::int64_t examples = spec_.block.examples, channels = spec_.block.channels;
    const std::int64_t s = spec_.shape.s, size = schedule_.chunk;
    const std::int64_t row = unit / groups_, group = unit % groups_;
    const std::int64_t example = row * examples, channel = group * channels;
    const auto index = [=, this](std::int64_t i) { return (i * groups_ + group) * run_; };
    if (size == run_) {
      const Range runs = piece(chunk, schedule_.runs_per_chunk, examples);
      for (std::int64_t i = example + runs.begin; i < example + runs.end; ++i) {
        f(Part{i, channel, index(i), channels, s, 0});
      }
      return;
    }
    // A line, the whole run or one long row of it, is cut into chunks.
    const std::int64_t chunks_per_run = run_ / line_ * chunks_per_line_;
    const std::int64_t i = example + chunk / chunks_per_run, in_run = chunk % chunks_per_run;
    const std::int64_t start = in_run / chunks_per_line_ * line_,
                       in_line = in_run % chunks_per_line_;
    const Range part = piece(in_line, size, line_);
    const std::int64_t length = std::min(s, part.size());
    f(Part{i, channel + (start + part.begin) / s, index(i) + start + part.begin,
           part.size() / length, length, s > size ? in_line : 0});
  }

 private:
  const Spec& spec_;
  const Schedule& schedule_;
  std::int64_t groups_;           // of an example
  std::int64_t run_;              // elements
  std::int64_t line_;             // elements
  std::int64_t chunks_per_line_;  // where a chunk is no longer than a run
};

// See plan.h: a unit is one block, in runs of rows of s positions.
class Rows {
  using Part = RowParts::Part;

 public:
  static constexpr std::int64_t kMaxBlocks = 1;
  static constexpr bool kCarries = true;     // has apply_and_reduce
  static constexpr bool kTakesUnits = true;  // has reduce_units, apply_units

  explicit Rows(const Call& call) : call_(call), parts_(call.spec, call.schedule) {}

  std::int64_t units() const { return call_.schedule.units; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  void reduce(std::int64_t unit, std::int64_t chunk, Moments* moments) const {
    *moments = {};
    parts_.for_each(unit, chunk, [&](const Part& part) {
      *moments = merge(*moments, run_moments(call_, part.index, part.size()));
    });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    parts_.for_each(unit, chunk, [&](const Part& part) { apply_part(part, *statistics, {}); });
  }

  // Units [first, first + count), of one chunk each.
  void reduce_units(std::int64_t first, std::int64_t count, Moments* moments) const {
    if (call_.spec.block.examples == 1) {
      const std::int64_t run = call_.spec.block.channels * call_.spec.shape.s;
      return run_moments(call_, first * run, count, run, moments);
    }
    for (std::int64_t i = 0; i < count; ++i) reduce(first + i, 0, moments + i);
  }

  void apply_units(std::int64_t first, std::int64_t count, const Statistics* statistics) const {
    const auto [examples, channels] = call_.spec.block;
    const std::int64_t s = call_.spec.shape.s, groups = call_.spec.shape.c / channels;
    if (examples > 1 || channels > kMaxLanes || channels * s < call_.kernels.lanes ||
        any_extreme(statistics, count)) {
      for (std::int64_t i = 0; i < count; ++i) apply(first + i, 0, statistics + i);
      return;
    }
    Coefficients coefficients(call_);
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t example = (first + i) / groups, group = (first + i) % groups;
      const std::int64_t some = std::min({count - i, groups - group, kMaxLanes / channels});
      coefficients.make(example, group * channels, some, channels, statistics + i);
      apply_rows(coefficients, (first + i) * channels * s, some * channels, s, {});
      i += some;
    }
  }

  // Applies a chunk while it reduces the same chunk of unit `next`.
  void apply_and_reduce(std::int64_t unit, std::int64_t chunk, const Statistics* statistics,
                        std::int64_t next, Moments* moments) const {
    const std::int64_t ahead = parts_.first_index(next) - parts_.first_index(unit);
    *moments = {};
    parts_.for_each(unit, chunk, [&](const Part& part) {
      const std::int64_t index = part.index + ahead;
      const bool carried = by_rows(part, *statistics);
      Moments run;
      apply_part(part, *statistics,
                 carried ? Kernels::Runs{call_.x(index), 1, part.size(), &run} : Kernels::Runs{});
      run = carried ? trusted(call_, index, part.size(), run)
                    : run_moments(call_, index, part.size());
      *moments = merge(*moments, run);
    });
  }

 private:
  // Whether the kernel for rows takes the part.
  bool by_rows(const Part& part, const Statistics& statistics) const {
    return !statistics.extreme && part.length >= call_.kernels.lanes;
  }

  // `next` is reduced too where by_rows says so.
  void apply_part(const Part& part, const Statistics& statistics, Kernels::Runs next) const {
    if (statistics.extreme || part.size() < call_.kernels.lanes) {
      for (std::int64_t r = 0; r < part.rows; ++r) {
        apply_channel(call_, part.index + r * part.length, part.length, 1, part.example,
                      part.channel + r, statistics);
      }
      return;
    }
    Coefficients coefficients(call_);
    const std::int64_t pieces = ceil_div(part.rows, kMaxLanes);
    for (std::int64_t p = 0; p < pieces; ++p) {
      const Range rows = share(p, pieces, part.rows);
      coefficients.make(part.example, part.channel + rows.begin, 1, rows.size(), &statistics);
      apply_rows(coefficients, part.index + rows.begin * part.length, rows.size(), part.length,
                 p == 0 ? next : Kernels::Runs{});
    }
  }

  // Rows from `index` on, at most kMaxLanes of them; `next` where they are at least a vector long.
  void apply_rows(const Coefficients& coefficients, std::int64_t index, std::int64_t rows,
                  std::int64_t length, Kernels::Runs next) const {
    if (length < call_.kernels.lanes) return apply_short_rows(coefficients, index, rows, length);
    call_.kernels.apply_rows({call_.x(index), call_.y(index), rows, length, coefficients.mean(),
                              coefficients.a(), coefficients.b(), call_.spec.activation,
                              call_.store, next});
  }

  // Rows shorter than a vector, as rows of lanes that each have their own coefficients.
  void apply_short_rows(const Coefficients& coefficients, std::int64_t index, std::int64_t rows,
                        std::int64_t length) const {
    Coefficients lanes(call_);
    const std::int64_t elements = rows * length;
    const std::int64_t pieces = ceil_div(elements, kMaxLanes);
    for (std::int64_t p = 0; p < pieces; ++p) {
      const Range some = share(p, pieces, elements);
      lanes.spread(coefficients, some.begin, some.size(), length);
      call_.kernels.apply_lanes({call_.x(index + some.begin), call_.y(index + some.begin), 1, 0,
                                 some.size(), lanes.mean(), lanes.a(), lanes.b(),
                                 call_.spec.activation, Store::cached});
    }
  }

  const Call& call_;
  RowParts parts_;
};

}  // namespace groupnorm::detail

#endif
