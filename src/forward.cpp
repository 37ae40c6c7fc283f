// Forward: reduce -> fold -> apply, by the walk and the schedule that the plan chose (plan.h).
#include "dtype.h"
#include "extreme.h"
#include "fold.h"
#include "kernels/kernels.h"
#include "parallel.h"
#include "plan.h"
#include "range.h"
#include "validate.h"

#include <cmath>
#include <cstdint>
#include <memory>

namespace groupnorm {
namespace detail {
namespace {

// What every part of a call needs to know.
struct Call {
  const Spec& spec;
  const Schedule& schedule;
  const Kernels& kernels;
  const Forward& args;
  Store store;
  std::int64_t element = size_of(spec.data);
  std::int64_t param = size_of(spec.param);
  std::int64_t compute = spec.data == DType::f64 ? 8 : 4;  // bytes of the compute type

  const void* x(std::int64_t index) const {
    return static_cast<const std::byte*>(args.x) + index * element;
  }
  void* y(std::int64_t index) const { return static_cast<std::byte*>(args.y) + index * element; }

  // gamma or beta from `channel` of `example` on; null stays null.
  const void* param_at(const void* data, std::int64_t example, std::int64_t channel) const {
    if (data == nullptr) return nullptr;
    const std::int64_t index = example * spec.param_stride + channel;
    return static_cast<const std::byte*>(data) + index * param;
  }
  double param_value(const void* data, std::int64_t example, std::int64_t channel,
                     double missing) const {
    return data == nullptr ? missing
                           : load_element(spec.param, param_at(data, example, channel), 0);
  }
};

// A kernel's lanes may be too few elements for it, or its sums not to be trusted.
Moments run_moments(const Call& call, std::int64_t index, std::int64_t count) {
  if (count >= call.kernels.lanes) {
    Moments moments;
    call.kernels.reduce_run(call.x(index), count, &moments);
    if (!std::isnan(moments.m2)) return moments;
  }
  return extreme_moments(call.spec.data, call.x(index), count, 1);
}

// The mean as the compute type holds it, and what is left.
struct SplitMean {
  double hi, lo;
};
SplitMean split_mean(const Call& call, double mean) {
  const double hi = call.compute == 8 ? mean : static_cast<double>(static_cast<float>(mean));
  return {hi, mean - hi};
}

// mean, a and b of up to kMaxLanes lanes or rows, in the compute type.
class Coefficients {
 public:
  explicit Coefficients(const Call& call) : call_(call) {}

  const void* mean() const { return mean_; }
  const void* a() const { return a_; }
  const void* b() const { return b_; }

  // Entries [at, at + count): channels [channel, channel + count) of `example`. May write a vector
  // past them, so calls go upwards.
  void make(std::int64_t at, std::int64_t count, std::int64_t example, std::int64_t channel,
            const Statistics& statistics) {
    const SplitMean mean = split_mean(call_, statistics.mean);
    const auto kernel = call_.spec.param == call_.spec.data ? call_.kernels.coefficients_same
                                                            : call_.kernels.coefficients_f32;
    kernel({call_.param_at(call_.args.gamma, example, channel),
            call_.param_at(call_.args.beta, example, channel), count, mean.lo, statistics.rstd,
            a_ + at * call_.compute, b_ + at * call_.compute});
  }

  void fill_mean(std::int64_t at, std::int64_t count, double mean) {
    if (call_.compute == 8) {
      std::fill_n(reinterpret_cast<double*>(mean_) + at, count, mean);
    } else {
      std::fill_n(reinterpret_cast<float*>(mean_) + at, count, static_cast<float>(mean));
    }
  }

  // Entries [0, count) again behind themselves, until there are `copies` of them.
  void repeat(std::int64_t count, std::int64_t copies) {
    const std::int64_t bytes = count * call_.compute;
    for (std::byte* const entries : {mean_, a_, b_}) {
      for (std::int64_t i = 1; i < copies; ++i) std::copy_n(entries, bytes, entries + i * bytes);
    }
  }

  // Entry i of `rows` from `from`'s entry (first + i) / length: a row's coefficients for its lanes.
  void spread(const Coefficients& from, std::int64_t first, std::int64_t count,
              std::int64_t length) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = (first + i) / length * call_.compute;
      std::copy_n(from.a_ + row, call_.compute, a_ + i * call_.compute);
      std::copy_n(from.b_ + row, call_.compute, b_ + i * call_.compute);
    }
  }

 private:
  static constexpr std::size_t kBytes = (kMaxLanes + 16) * sizeof(double);
  const Call& call_;
  alignas(64) std::byte mean_[kBytes];
  alignas(64) std::byte a_[kBytes];
  alignas(64) std::byte b_[kBytes];
};

// `count` elements of one channel, `stride` elements apart, by the scalar double path.
void apply_channel(const Call& call, std::int64_t index, std::int64_t count, std::int64_t stride,
                   std::int64_t example, std::int64_t channel, const Statistics& statistics) {
  const double gamma = call.param_value(call.args.gamma, example, channel, 1);
  const double beta = call.param_value(call.args.beta, example, channel, 0);
  extreme_apply({call.spec.data, call.x(index), call.y(index), count, stride, statistics.mean,
                 gamma * statistics.rstd, beta, call.spec.activation});
}

class Rows {
 public:
  static constexpr std::int64_t kMaxBlocks = 1;

  explicit Rows(const Call& call) : call_(call) {}

  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  void reduce(std::int64_t unit, std::int64_t chunk, Moments* moments) const {
    *moments = {};
    for_each_run(unit, chunk, [&](std::int64_t example, Range part) {
      const std::int64_t index = run_index(unit, example) + part.begin;
      *moments = merge(*moments, run_moments(call_, index, part.size()));
    });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    for_each_run(unit, chunk, [&](std::int64_t example, Range part) {
      apply_run(unit, example, part, *statistics);
    });
  }

 private:
  // f(example, the elements of that example's run) for the runs that a chunk touches.
  template <class F>
  void for_each_run(std::int64_t unit, std::int64_t chunk, F&& f) const {
    const Spec& spec = call_.spec;
    const std::int64_t examples = spec.block.examples, s = spec.shape.s;
    const std::int64_t run = spec.block.channels * s;
    const std::int64_t first = unit / groups() * examples;
    const std::int64_t size = call_.schedule.chunk;
    if (size == run) {
      const Range runs = piece(chunk, call_.schedule.runs_per_chunk, examples);
      for (std::int64_t i = runs.begin; i < runs.end; ++i) f(first + i, Range{0, run});
      return;
    }
    // A part of a run: whole rows, or a part of one row where a row is longer than a chunk.
    const std::int64_t line = s > size ? s : run;
    const std::int64_t per_line = ceil_div(line, size), per_run = run / line * per_line;
    const std::int64_t in_run = chunk % per_run;
    const std::int64_t start = in_run / per_line * line;
    const Range part = piece(in_run % per_line, size, line);
    f(first + chunk / per_run, Range{start + part.begin, start + part.end});
  }

  std::int64_t groups() const { return call_.spec.shape.c / call_.spec.block.channels; }
  std::int64_t first_channel(std::int64_t unit) const {
    return unit % groups() * call_.spec.block.channels;
  }
  std::int64_t run_index(std::int64_t unit, std::int64_t example) const {
    return (example * call_.spec.shape.c + first_channel(unit)) * call_.spec.shape.s;
  }

  // Elements [part) of a run: whole rows, or within one row.
  void apply_run(std::int64_t unit, std::int64_t example, Range part,
                 const Statistics& statistics) const {
    const std::int64_t s = call_.spec.shape.s;
    const std::int64_t channel = first_channel(unit) + part.begin / s;
    const std::int64_t index = run_index(unit, example) + part.begin;
    const std::int64_t length = std::min(s, part.size());
    const std::int64_t rows = part.size() / length;
    if (statistics.extreme || part.size() < call_.kernels.lanes ||
        (length < call_.kernels.lanes && rows == 1)) {
      for (std::int64_t r = 0; r < rows; ++r) {
        apply_channel(call_, index + r * length, length, 1, example, channel + r, statistics);
      }
      return;
    }
    Coefficients coefficients(call_);
    const std::int64_t parts = ceil_div(rows, kMaxLanes);
    for (std::int64_t p = 0; p < parts; ++p) {
      const Range some = share(p, parts, rows);
      coefficients.make(0, some.size(), example, channel + some.begin, statistics);
      apply_rows(coefficients, index + some.begin * length, some.size(), length, statistics);
    }
  }

  void apply_rows(const Coefficients& coefficients, std::int64_t index, std::int64_t rows,
                  std::int64_t length, const Statistics& statistics) const {
    if (length < call_.kernels.lanes) {
      return apply_short_rows(coefficients, index, rows, length, statistics);
    }
    call_.kernels.apply_rows({call_.x(index), call_.y(index), rows, length,
                              split_mean(call_, statistics.mean).hi, coefficients.a(),
                              coefficients.b(), call_.spec.activation, call_.store});
  }

  // Rows shorter than a vector, as one row of lanes that each have their own coefficients.
  void apply_short_rows(const Coefficients& coefficients, std::int64_t index, std::int64_t rows,
                        std::int64_t length, const Statistics& statistics) const {
    Coefficients lanes(call_);
    const std::int64_t elements = rows * length;
    const std::int64_t parts = ceil_div(elements, kMaxLanes);
    lanes.fill_mean(0, std::min(elements, kMaxLanes), split_mean(call_, statistics.mean).hi);
    for (std::int64_t p = 0; p < parts; ++p) {
      const Range part = share(p, parts, elements);
      lanes.spread(coefficients, part.begin, part.size(), length);
      call_.kernels.apply_lanes({call_.x(index + part.begin), call_.y(index + part.begin), 1, 0,
                                 part.size(), lanes.mean(), lanes.a(), lanes.b(),
                                 call_.spec.activation, Store::cached});
    }
  }

  const Call& call_;
};

class Columns {
 public:
  static constexpr std::int64_t kMaxBlocks = kMaxLanes;

  explicit Columns(const Call& call) : call_(call) {}

  std::int64_t blocks(std::int64_t unit) const {
    return lanes(unit).size() / call_.spec.block.channels;
  }
  std::int64_t first_block(std::int64_t unit) const {
    const std::int64_t channels = call_.spec.block.channels;
    return unit / tiles() * (call_.spec.shape.c / channels) + lanes(unit).begin / channels;
  }

  void reduce(std::int64_t unit, std::int64_t chunk, Moments* moments) const {
    std::fill_n(moments, blocks(unit), Moments{});
    const Range rows = chunk_rows(unit, chunk);
    if (call_.schedule.by_runs) return reduce_by_runs(unit, rows, moments);
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
  std::int64_t tiles() const { return ceil_div(width(), call_.schedule.tile); }
  Range lanes(std::int64_t unit) const {
    return piece(unit % tiles(), call_.schedule.tile, width());
  }
  // Rows are counted over the whole tensor: n * s of them.
  Range chunk_rows(std::int64_t unit, std::int64_t chunk) const {
    const std::int64_t rows = call_.spec.block.examples * call_.spec.shape.s;
    const std::int64_t first = unit / tiles() * rows;
    const Range part = piece(chunk, call_.schedule.chunk, rows);
    return {first + part.begin, first + part.end};
  }

  void reduce_by_runs(std::int64_t unit, Range rows, Moments* moments) const {
    const std::int64_t channels = call_.spec.block.channels;
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const std::int64_t index = row * width() + lanes(unit).begin;
      for (std::int64_t b = 0; b < blocks(unit); ++b) {
        moments[b] = merge(moments[b], run_moments(call_, index + b * channels, channels));
      }
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
      reduce_columns(index, rows.size() / merged, width() * merged, count * merged, mean, m2);
      const std::int64_t part = std::min(channels, count);
      const auto column_rows = static_cast<double>(rows.size() / merged);
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
    for (std::int64_t i = 0; i < count; ++i) {
      if (fits && !std::isnan(m2[i])) continue;
      const Moments column = extreme_moments(call_.spec.data, call_.x(index + i), rows, stride);
      mean[i] = column.mean;
      m2[i] = column.m2;
    }
  }

  void apply_rows(std::int64_t unit, Range rows, std::int64_t example,
                  const Statistics* statistics) const {
    const Range tile = lanes(unit);
    const std::int64_t merged = rows.size() >= call_.schedule.merged ? call_.schedule.merged : 1;
    const std::int64_t whole = rows.size() / merged;
    Coefficients coefficients(call_);
    for (std::int64_t lane = 0; lane < tile.size(); lane += kMaxLanes) {
      const Range part{tile.begin + lane, std::min(tile.begin + lane + kMaxLanes, tile.end)};
      if (part.size() * merged < call_.kernels.lanes || any_extreme(tile, part, statistics)) {
        apply_scalar(tile, part, rows, example, statistics);
        continue;
      }
      make_coefficients(tile, part, example, statistics, &coefficients);
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

  // f(block of the tile, its lanes within part, counted from part.begin)
  template <class F>
  void for_each_block(Range tile, Range part, F&& f) const {
    const std::int64_t channels = call_.spec.block.channels;
    for (std::int64_t lane = part.begin; lane < part.end;) {
      const std::int64_t block = (lane - tile.begin) / channels;
      const std::int64_t end = std::min(part.end, tile.begin + (block + 1) * channels);
      f(block, Range{lane - part.begin, end - part.begin});
      lane = end;
    }
  }

  bool any_extreme(Range tile, Range part, const Statistics* statistics) const {
    bool any = false;
    for_each_block(tile, part, [&](std::int64_t b, Range) { any = any || statistics[b].extreme; });
    return any;
  }

  void make_coefficients(Range tile, Range part, std::int64_t example, const Statistics* statistics,
                         Coefficients* coefficients) const {
    for_each_block(tile, part, [&](std::int64_t block, Range at) {
      const Statistics& own = statistics[block];
      coefficients->make(at.begin, at.size(), example, part.begin + at.begin, own);
      coefficients->fill_mean(at.begin, at.size(), split_mean(call_, own.mean).hi);
    });
  }

  void apply_scalar(Range tile, Range part, Range rows, std::int64_t example,
                    const Statistics* statistics) const {
    for_each_block(tile, part, [&](std::int64_t block, Range at) {
      for (std::int64_t i = at.begin; i < at.end; ++i) {
        const std::int64_t channel = part.begin + i;
        apply_channel(call_, rows.begin * width() + channel, rows.size(), width(), example, channel,
                      statistics[block]);
      }
    });
  }

  const Call& call_;
};

void write_statistics(const Forward& args, std::int64_t block, const Statistics& statistics) {
  if (args.mean != nullptr) args.mean[block] = statistics.mean;
  if (args.rstd != nullptr) args.rstd[block] = statistics.rstd;
}

template <class Walk>
class Pass {
 public:
  Pass(const Call& call, Moments* partial, const Executor& executor)
      : call_(call), walk_(call), partial_(partial), executor_(executor) {}

  void run() const {
    const Schedule& schedule = call_.schedule;
    const std::int64_t pieces = schedule.units * schedule.chunks;
    if (call_.spec.given_statistics) {
      parallel_for(executor_, pieces, [&](std::int64_t begin, std::int64_t end) {
        apply(begin, end, [&](std::int64_t unit, Statistics* statistics) {
          const std::int64_t first = walk_.first_block(unit);
          for (std::int64_t b = 0; b < walk_.blocks(unit); ++b) {
            statistics[b] = given(call_.spec, call_.args, first + b);
          }
        });
      });
      return;
    }
    if (!splits(schedule, executor_.threads)) {
      parallel_for(executor_, schedule.units, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) fused(unit);
      });
      return;
    }
    parallel_for(executor_, pieces, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        walk_.reduce(i / schedule.chunks, i % schedule.chunks, partial_ + i * stride());
      }
    });
    parallel_for(executor_, pieces, [&](std::int64_t begin, std::int64_t end) {
      apply(begin, end, [&](std::int64_t unit, Statistics* statistics) {
        const Moments* const first = partial_ + unit * schedule.chunks * stride();
        const bool writes = begin <= unit * schedule.chunks;
        Moments total[Walk::kMaxBlocks];
        std::copy_n(first, walk_.blocks(unit), total);
        for (std::int64_t chunk = 1; chunk < schedule.chunks; ++chunk) {
          add(unit, first + chunk * stride(), total);
        }
        finish_unit(unit, total, statistics, writes);
      });
    });
  }

 private:
  std::int64_t stride() const { return call_.schedule.blocks_per_unit; }

  void add(std::int64_t unit, const Moments* chunk, Moments* total) const {
    for (std::int64_t b = 0; b < walk_.blocks(unit); ++b) total[b] = merge(total[b], chunk[b]);
  }

  void finish_unit(std::int64_t unit, const Moments* total, Statistics* statistics,
                   bool writes) const {
    const std::int64_t first = walk_.first_block(unit);
    for (std::int64_t b = 0; b < walk_.blocks(unit); ++b) {
      statistics[b] = finish(call_.spec, total[b]);
      if (writes) write_statistics(call_.args, first + b, statistics[b]);
    }
  }

  void fused(std::int64_t unit) const {
    const std::int64_t chunks = call_.schedule.chunks;
    Moments total[Walk::kMaxBlocks], part[Walk::kMaxBlocks];
    Statistics statistics[Walk::kMaxBlocks];
    walk_.reduce(unit, 0, total);
    for (std::int64_t chunk = 1; chunk < chunks; ++chunk) {
      walk_.reduce(unit, chunk, part);
      add(unit, part, total);
    }
    finish_unit(unit, total, statistics, true);
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) walk_.apply(unit, chunk, statistics);
  }

  // Chunks [begin, end) counted over all units; `find` makes a unit's statistics, once.
  template <class Find>
  void apply(std::int64_t begin, std::int64_t end, const Find& find) const {
    const std::int64_t chunks = call_.schedule.chunks;
    Statistics statistics[Walk::kMaxBlocks];
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t unit = i / chunks;
      if (i == begin || i % chunks == 0) find(unit, statistics);
      walk_.apply(unit, i % chunks, statistics);
    }
  }

  const Call& call_;
  Walk walk_;
  Moments* partial_;
  const Executor& executor_;
};

// Smaller calls are over before a second thread is awake.
constexpr std::int64_t kParallelBytes = 128 * 1024;

}  // namespace
}  // namespace detail

Status Plan::forward(const Forward& args, std::span<std::byte> workspace,
                     const Executor& executor) const noexcept {
  if (kernels_ == nullptr) return Status::not_planned;
  if (const Status status = detail::check_executor(executor); status != Status::ok) return status;
  if (detail::is_empty(spec_.shape)) return Status::ok;
  const Status status = detail::check_forward(spec_, blocks(), args, workspace, workspace_bytes());
  if (status != Status::ok) return status;

  const auto store =
      schedule_.streaming && args.x != args.y ? detail::Store::streaming : detail::Store::cached;
  const detail::Call call{spec_, schedule_, *kernels_, args, store};
  const std::int64_t bytes = spec_.shape.n * spec_.shape.c * spec_.shape.s * call.element;
  const Executor alone;
  const Executor& used = bytes < detail::kParallelBytes ? alone : executor;
  void* aligned = workspace.data();
  std::size_t room = workspace.size();
  auto* const partial = static_cast<detail::Moments*>(
      std::align(alignof(detail::Moments), sizeof(detail::Moments), aligned, room));
  if (schedule_.columns) {
    detail::Pass<detail::Columns>(call, partial, used).run();
  } else {
    detail::Pass<detail::Rows>(call, partial, used).run();
  }
  return Status::ok;
}

}  // namespace groupnorm
