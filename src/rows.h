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

// Whether every unit of this walk is one run of one chunk, which kernels take as a whole.
inline bool is_whole(const Call& call) {
  const auto& block = call.spec.block;
  return block.examples == 1 && call.schedule.chunks == 1 &&
         block.channels * call.spec.shape.s >= call.kernels.lanes;
}

// See plan.h: a unit is one block, in runs of rows of s positions.
class Rows {
  using Part = RowParts::Part;

 public:
  static constexpr std::int64_t kMaxBlocks = 1;
  static constexpr bool kCarries = true;  // has apply_and_reduce

  explicit Rows(const Call& call) : call_(call), parts_(call.spec, call.schedule) {}

  std::int64_t units() const { return call_.schedule.units; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }
  bool whole() const { return is_whole(call_); }

  void reduce(std::int64_t unit, std::int64_t chunk, Moments* moments) const {
    *moments = {};
    parts_.for_each(unit, chunk, [&](const Part& part) {
      *moments = merge(*moments, run_moments(call_, part.index, part.size()));
    });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    parts_.for_each(unit, chunk, [&](const Part& part) { apply_part(part, *statistics, {}); });
  }

  // Applies a chunk while it reduces the same chunk of unit `next`.
  void apply_and_reduce(std::int64_t unit, std::int64_t chunk, const Statistics* statistics,
                        std::int64_t next, Moments* moments) const {
    const std::int64_t ahead = parts_.first_index(next) - parts_.first_index(unit);
    *moments = {};
    parts_.for_each(unit, chunk, [&](const Part& part) {
      const std::int64_t index = part.index + ahead;
      const bool carried = by_kernel(part, *statistics);
      Moments run;
      apply_part(part, *statistics,
                 carried ? Kernels::Runs{call_.x(index), 1, part.size(), &run} : Kernels::Runs{});
      run = carried ? trusted(call_, index, part.size(), run)
                    : run_moments(call_, index, part.size());
      *moments = merge(*moments, run);
    });
  }

 private:
  // Whether the kernel takes the part.
  bool by_kernel(const Part& part, const Statistics& statistics) const {
    return !statistics.extreme && part.size() >= call_.kernels.lanes;
  }

  // Reduces `next` too where by_kernel says so.
  void apply_part(const Part& part, const Statistics& statistics, Kernels::Runs next) const {
    if (by_kernel(part, statistics)) {
      return apply_blocks(call_,
                          {part.index, part.example, part.channel, 1, part.rows, part.length},
                          &statistics, next);
    }
    for (std::int64_t r = 0; r < part.rows; ++r) {
      apply_channel(call_, part.index + r * part.length, part.length, 1, part.example,
                    part.channel + r, statistics);
    }
  }

  const Call& call_;
  RowParts parts_;
};

}  // namespace groupnorm::detail

#endif
