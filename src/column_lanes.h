// Which lanes the columns walk takes together.
#ifndef GROUPNORM_SRC_COLUMN_LANES_H
#define GROUPNORM_SRC_COLUMN_LANES_H

#include "call.h"
#include "range.h"
#include "tuning.h"

#include <algorithm>
#include <cstdint>

namespace groupnorm::detail {

// The lanes of a unit, and which of its blocks they belong to (see plan.h).
class ColumnLanes {
 public:
  ColumnLanes(const Spec& spec, const Schedule& schedule)
      : width_(spec.shape.c),
        channels_(spec.block.channels),
        tile_(schedule.tile),
        tiles_(ceil_div(width_, tile_)) {}

  // Which examples' blocks: 0 for the first block.examples of them, and so on.
  std::int64_t block_row(std::int64_t unit) const { return unit / tiles_; }
  Range lanes(std::int64_t unit) const { return piece(unit % tiles_, tile_, width_); }
  std::int64_t blocks(std::int64_t unit) const { return lanes(unit).size() / channels_; }
  std::int64_t first_block(std::int64_t unit) const {
    return block_row(unit) * (width_ / channels_) + lanes(unit).begin / channels_;
  }

  // f(block of the unit, its lanes within `part`, counted from part.begin)
  template <class F>
  void for_each_block(Range unit, Range part, const F& f) const {
    std::int64_t block = (part.begin - unit.begin) / channels_;
    for (std::int64_t lane = part.begin; lane < part.end; ++block) {
      const std::int64_t end = std::min(part.end, unit.begin + (block + 1) * channels_);
      f(block, Range{lane - part.begin, end - part.begin});
      lane = end;
    }
  }

  // f(part of the unit's lanes, extreme): at most kMaxLanes. `items`: one a block, with a field
  // that says whether it is extreme. Neighbours go along with an extreme block, up to kFewLanes:
  // the kernels need lanes enough.
  template <class Item, class F>
  void for_each_part(Range unit, const Item* items, const F& f) const {
    for (std::int64_t lane = unit.begin; lane < unit.end;) {
      const bool extreme = is_extreme(unit, lane, items);
      const std::int64_t most = std::min(lane + kMaxLanes, unit.end);
      std::int64_t end = lane;
      while (end < most && is_extreme(unit, end, items) == extreme) {
        end = std::min(most, end + together() - (end - unit.begin) % together());
      }
      f(Range{lane, end}, extreme);
      lane = end;
    }
  }

  // mean, a and b of the lanes of part.
  void make_coefficients(Range unit, Range part, std::int64_t example, const Statistics* statistics,
                         Coefficients* coefficients) const {
    const std::int64_t first = (part.begin - unit.begin) / channels_;
    const std::int64_t channels = std::min(channels_, part.size());
    coefficients->make(example, part.begin, part.size() / channels, channels, statistics + first);
  }

 private:
  // Lanes of whole blocks that go together.
  std::int64_t together() const {
    return std::max<std::int64_t>(1, kFewLanes / channels_) * channels_;
  }
  // Whether any of those that go together with `lane` is.
  template <class Item>
  bool is_extreme(Range unit, std::int64_t lane, const Item* items) const {
    const std::int64_t first = (lane - unit.begin) / together() * together();
    const std::int64_t last = std::min(first + together(), unit.size());
    return std::any_of(items + first / channels_, items + ceil_div(last, channels_),
                       [](const Item& item) { return item.extreme; });
  }

  std::int64_t width_, channels_, tile_, tiles_;
};

}  // namespace groupnorm::detail

#endif
