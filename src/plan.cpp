#include "plan.h"

#include "dtype.h"
#include "kernels/kernels.h"
#include "range.h"
#include "validate.h"

#include <algorithm>

namespace groupnorm {
namespace detail {
namespace {

// Elements of a chunk, at least: large enough that its pilot, which waits for memory, and merging
// its moments cost little (some 100 ns against 5 us), small enough to share one block between many
// threads.
constexpr std::int64_t kRowsChunk = 32768;
constexpr std::int64_t kColumnsChunk = 65536;
// Large ones have more, as long as there are so many chunks to share: a kernel reads and writes a
// chunk in several places, and memory serves them faster the further they lie apart.
constexpr std::int64_t kChunksToShare = 16;
constexpr std::int64_t kLargestChunk = std::int64_t{1} << 20;

// Rows of a columns chunk come in multiples of what is summed before a fold into double.
constexpr std::int64_t kRowsAtLeast = 128;

// With fewer channels than this, rows are merged until that many lanes are busy.
constexpr std::int64_t kFewLanes = 64;
constexpr std::int64_t kMergedLanes = 256;

// Below this many rows, sums down the columns would not pay for folding each lane.
constexpr std::int64_t kFewRows = 8;

// y of at least this many bytes is not expected to be in the cache when it is read.
constexpr std::int64_t kStreamingBytes = std::int64_t{4} << 20;

// Bytes. Shorter rows are stored through the cache all the same: most of their few lines hold an
// end of a row, and those cannot stream.
constexpr std::int64_t kStreamingRow = 512;

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

void schedule_columns(const Spec& spec, Schedule* schedule) {
  const std::int64_t c = spec.shape.c;
  const std::int64_t rows = spec.block.examples * spec.shape.s;
  schedule->columns = true;
  schedule->by_runs = rows < kFewRows;
  schedule->tile = tile_lanes(c, spec.block.channels);
  schedule->units = spec.shape.n / spec.block.examples * ceil_div(c, schedule->tile);
  schedule->blocks_per_unit = schedule->tile / spec.block.channels;
  if (c < kFewLanes && !schedule->by_runs) {
    schedule->merged = std::min(kMergedLanes / c, rows / kFewRows);
  }
  const std::int64_t at_least = kRowsAtLeast * schedule->merged;
  const std::int64_t most = chunk_elements(spec, kColumnsChunk);
  schedule->chunk = ceil_div(most / std::min(c, kMaxLanes), at_least) * at_least;
  schedule->chunks = ceil_div(rows, schedule->chunk);
}

}  // namespace

Schedule make_schedule(const Spec& spec) noexcept {
  Schedule schedule;
  if (spec.layout == Layout::channels_last || spec.shape.s == 1) {
    schedule_columns(spec, &schedule);
  } else {
    schedule_rows(spec, &schedule);
  }
  const std::int64_t bytes = spec.shape.n * spec.shape.c * spec.shape.s * size_of(spec.data);
  const bool short_rows = !schedule.columns && spec.shape.s * size_of(spec.data) < kStreamingRow;
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
  if (plan == nullptr) return Status::null_pointer;
  if (const Status status = detail::check_spec(spec); status != Status::ok) return status;
  Plan made;
  made.spec_ = spec;
  const Status status = detail::find_kernels(target, spec.data, &made.kernels_);
  if (status != Status::ok) return status;
  if (!detail::is_empty(spec.shape)) made.schedule_ = detail::make_schedule(spec);
  *plan = made;
  return Status::ok;
}

std::int64_t Plan::blocks() const noexcept {
  if (detail::is_empty(spec_.shape)) return 0;
  return spec_.shape.n / spec_.block.examples * (spec_.shape.c / spec_.block.channels);
}

std::int64_t Plan::block_elements() const noexcept {
  return spec_.block.examples * spec_.block.channels * spec_.shape.s;
}

const char* Plan::target() const noexcept { return kernels_ == nullptr ? "" : kernels_->target; }

std::size_t Plan::workspace_bytes() const noexcept {
  // Only a split schedule keeps moments, one of each block and chunk; and only where there is more
  // than one chunk is there anything to split.
  if (schedule_.units == 0 || schedule_.chunks == 1 || spec_.given_statistics) return 0;
  const std::int64_t moments = schedule_.units * schedule_.chunks * schedule_.blocks_per_unit;
  return static_cast<std::size_t>(moments) * sizeof(detail::Moments) + alignof(detail::Moments) - 1;
}

}  // namespace groupnorm
