#include "plan.h"

#include "dtype.h"
#include "kernels/kernels.h"
#include "passes.h"
#include "range.h"
#include "tuning.h"
#include "validate.h"

#include <algorithm>

namespace groupnorm {
namespace detail {
namespace {

// Of all the blocks that the same examples have. (n beyond those must not change a bit.)
std::int64_t chunk_elements(const Spec& spec, std::int64_t least) {
  const std::int64_t elements = spec.block.examples * spec.shape.c * spec.shape.s;
  return std::clamp(elements / kChunksToShare, least, kLargestChunk);
}

void schedule_rows(const Spec& spec, Schedule* schedule) {
  const auto [examples, channels] = spec.block;
  const std::int64_t s = spec.shape.s, run = channels * s;
  schedule->units = spec.shape.n / examples * (spec.shape.c / channels);
  if (run <= kRowsChunk) {
    schedule->chunk = run;
    schedule->runs_per_chunk = std::min(examples, std::max<std::int64_t>(1, kRowsChunk / run));
    schedule->chunks = ceil_div(examples, schedule->runs_per_chunk);
    return;
  }
  const std::int64_t most = s <= kRowsChunk ? kRowsChunk : chunk_elements(spec, kRowsChunk);
  if (s <= most) {
    schedule->chunk = std::min(run, most / s * s);
    schedule->chunks = examples * ceil_div(run, schedule->chunk);
    return;
  }
  // Equal parts of a row, on cache lines.
  const std::int64_t parts = ceil_div(s, most);
  schedule->chunk = ceil_div(ceil_div(s, parts), 64) * 64;
  schedule->chunks = examples * channels * ceil_div(s, schedule->chunk);
}

std::int64_t tile_lanes(std::int64_t c, std::int64_t channels) {
  if (channels > kMaxLanes) return channels;
  const std::int64_t tiles = ceil_div(c, kMaxLanes / channels * channels);
  return ceil_div(c / channels, tiles) * channels;
}

void schedule_columns(const Spec& spec, std::int64_t lanes, Schedule* schedule) {
  const std::int64_t c = spec.shape.c;
  const std::int64_t rows = spec.block.examples * spec.shape.s;
  schedule->columns = true;
  schedule->by_runs = rows < kFewRows;
  schedule->tile = tile_lanes(c, spec.block.channels);
  schedule->units = spec.shape.n / spec.block.examples * ceil_div(c, schedule->tile);
  schedule->blocks_per_unit = schedule->tile / spec.block.channels;
  // A row of shifts fits one row.
  const bool merges = c < kFewLanes && !(spec.shift && c >= lanes);
  if (merges && !schedule->by_runs) {
    schedule->merged = std::min(kMergedLanes / c, rows / kFewRows);
  }
  const std::int64_t at_least = kRowsAtLeast * schedule->merged;
  const std::int64_t most = chunk_elements(spec, kColumnsChunk);
  schedule->chunk = ceil_div(most / std::min(c, kMaxLanes), at_least) * at_least;
  schedule->chunks = ceil_div(rows, schedule->chunk);
}

// Blocks of one example whose elements each have a gamma and a beta: rows of one element.
void schedule_elements(const Spec& spec, Schedule* schedule) {
  schedule->units = spec.shape.n * (spec.shape.c / spec.block.channels);
  schedule->chunk = spec.block.channels;
}

}  // namespace

Schedule make_schedule(const Spec& spec, std::int64_t lanes) noexcept {
  Schedule schedule;
  const bool by_elements =
      spec.shape.s == 1 && spec.block.examples == 1 && spec.block.channels >= lanes;
  if (by_elements) {
    schedule_elements(spec, &schedule);
  } else if (spec.layout == Layout::channels_last || spec.shape.s == 1) {
    schedule_columns(spec, lanes, &schedule);
  } else {
    schedule_rows(spec, &schedule);
  }
  const std::int64_t bytes = spec.shape.n * spec.shape.c * spec.shape.s * size_of(spec.data);
  const bool short_rows =
      !schedule.columns && !by_elements && spec.shape.s * size_of(spec.data) < kStreamingRow;
  schedule.streaming = bytes >= kStreamingBytes && !short_rows;
  return schedule;
}

bool splits(const Schedule& schedule, int threads) noexcept {
  if (threads == 1 || schedule.chunks == 1) return false;
  const bool balanced =
      schedule.units % threads == 0 || schedule.units >= std::int64_t{4} * threads;
  return !balanced;
}

}  // namespace detail

Status Plan::make(const Spec& spec, Plan* plan, const char* target) noexcept {
  if (plan == nullptr) return Status::null_plan;
  if (const Status status = detail::check_spec(spec); status != Status::ok) return status;
  if (detail::kEdge && (detail::is_composed(spec) || spec.shift)) return Status::not_built;
  Plan made;
  made.spec_ = spec;
  const Status status = detail::find_target(target, spec.data, &made.target_);
  if (status != Status::ok) return status;
  if (!detail::is_empty(spec.shape)) {
    made.schedule_ = detail::make_schedule(spec, made.target_->of(spec.data).lanes);
  }
  *plan = made;
  return Status::ok;
}

std::int64_t Plan::blocks() const noexcept {
  return detail::is_empty(spec_.shape) ? 0 : detail::blocks_of(spec_);
}

std::int64_t Plan::block_elements() const noexcept {
  return spec_.block.examples * spec_.block.channels * spec_.shape.s;
}

const char* Plan::target() const noexcept { return target_ == nullptr ? "" : target_->name; }

std::size_t Plan::workspace_bytes() const noexcept {
  if (schedule_.units == 0) return 0;
  if (!detail::kEdge && detail::is_composed(spec_)) {
    return detail::composed_workspace(spec_, *target_);
  }
  return detail::forward_workspace(schedule_);
}

}  // namespace groupnorm
