// Where the numbers of a channels_first block lie: runs of rows, cut into chunks (see plan.h).
#ifndef GROUPNORM_SRC_KERNELS_ROW_PARTS_H
#define GROUPNORM_SRC_KERNELS_ROW_PARTS_H

#include "range.h"

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cstdint>

namespace groupnorm::detail {

// Contiguous elements of one run: whole rows, or a piece of one.
struct RowPart {
  std::int64_t example, channel;  // of its first row
  std::int64_t index;             // in the tensor
  std::int64_t rows, length;
  std::int64_t piece;  // which one of its row; 0 for whole rows
  std::int64_t size() const { return rows * length; }
};

class RowParts {
 public:
  RowParts(const Spec& spec, const Schedule& schedule)
      : block_(spec.block),
        s_(spec.shape.s),
        groups_(spec.shape.c / spec.block.channels),
        run_(spec.block.channels * s_),
        chunk_(schedule.chunk),
        chunks_(schedule.chunks),
        runs_per_chunk_(schedule.runs_per_chunk),
        line_(s_ > chunk_ ? s_ : run_),
        chunks_per_line_(ceil_div(line_, chunk_)) {}

  std::int64_t chunks() const { return chunks_; }
  std::int64_t longest() const { return chunk_; }  // elements of a part
  std::int64_t parts(std::int64_t chunk) const {
    return chunk_ == run_ ? piece(chunk, runs_per_chunk_, block_.examples).size() : 1;
  }

  // Part `part` of a chunk of block `block`.
  RowPart at(std::int64_t block, std::int64_t chunk, std::int64_t part) const {
    const std::int64_t group = block % groups_, channel = group * block_.channels;
    const std::int64_t first = block / groups_ * block_.examples;
    if (chunk_ == run_) {
      const std::int64_t example = first + chunk * runs_per_chunk_ + part;
      return {example, channel, (example * groups_ + group) * run_, block_.channels, s_, 0};
    }
    // A line, the whole run or one long row of it, is cut into chunks.
    const std::int64_t chunks_per_run = run_ / line_ * chunks_per_line_;
    const std::int64_t example = first + chunk / chunks_per_run, in_run = chunk % chunks_per_run;
    const std::int64_t in_line = in_run % chunks_per_line_;
    const Range range = piece(in_line, chunk_, line_);
    const std::int64_t start = in_run / chunks_per_line_ * line_ + range.begin;
    const std::int64_t length = std::min(s_, range.size());
    return {example,
            channel + start / s_,
            (example * groups_ + group) * run_ + start,
            range.size() / length,
            length,
            s_ > chunk_ ? in_line : 0};
  }

 private:
  Block block_;
  std::int64_t s_;
  std::int64_t groups_;  // of an example
  std::int64_t run_;     // elements
  std::int64_t chunk_, chunks_, runs_per_chunk_;
  std::int64_t line_;             // elements
  std::int64_t chunks_per_line_;  // where a chunk is no longer than a run
};

}  // namespace groupnorm::detail

#endif
