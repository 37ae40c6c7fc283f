// Forward: reduce -> fold -> apply, by the walk and the schedule that the plan chose (plan.h).
#include "call.h"
#include "columns.h"
#include "fold.h"
#include "passes.h"
#include "plan.h"
#include "rows.h"
#include "validate.h"

#include <algorithm>
#include <limits>
#include <memory>

namespace groupnorm {
namespace detail {
namespace {

template <class Walk>
class Pass {
 public:
  Pass(const Call& call, Moments* partial, const Executor& executor)
      : call_(call), walk_(call), partial_(partial), executor_(executor) {}

  // False where the executor did not do its part, as of `reduce`.
  bool run() const {
    const Schedule& schedule = call_.schedule;
    const std::int64_t units = walk_.units(), pieces = units * schedule.chunks;
    if (call_.spec.given_statistics) {
      return parallel_for(call_, executor_, pieces, [&](std::int64_t begin, std::int64_t end) {
        apply(begin, end, [&](std::int64_t unit, Statistics* statistics) {
          const std::int64_t first = walk_.first_block(unit);
          for (std::int64_t b = 0; b < walk_.blocks(unit); ++b) {
            statistics[b] = given(call_.spec, call_.args, first + b);
          }
        });
      });
    }
    if (!splits(schedule, executor_.threads)) {
      return parallel_for(call_, executor_, units,
                          [&](std::int64_t begin, std::int64_t end) { fused(begin, end); });
    }
    return reduce_chunks() &&
           parallel_for(call_, executor_, pieces, [&](std::int64_t begin, std::int64_t end) {
             apply(begin, end, [&](std::int64_t unit, Statistics* statistics) {
               fold(unit, statistics, begin <= unit * schedule.chunks);
             });
           });
  }

  // The moments of all blocks.
  bool reduce(Moments* moments) const {
    const bool split = splits(call_.schedule, executor_.threads);
    if (split && !reduce_chunks()) return false;
    return parallel_for(call_, executor_, walk_.units(), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t unit = begin; unit < end; ++unit) {
        Moments* const total = moments + walk_.first_block(unit);
        split ? merge_chunks(unit, total) : reduce_unit(unit, total);
      }
    });
  }

 private:
  // The chunks of all units, to the workspace. This and the next two are inlined so that forward is
  // no larger for those who never call `reduce`.
  [[gnu::always_inline]] bool reduce_chunks() const {
    const std::int64_t chunks = call_.schedule.chunks;
    return parallel_for(call_, executor_, walk_.units() * chunks,
                        [&](std::int64_t begin, std::int64_t end) {
                          for (std::int64_t i = begin; i < end; ++i) {
                            walk_.reduce(i / chunks, i % chunks, partial_ + i * stride());
                          }
                        });
  }

  std::int64_t stride() const { return call_.schedule.blocks_per_unit; }

  void add(std::int64_t unit, const Moments* chunk, Moments* total) const {
    for (std::int64_t b = 0; b < walk_.blocks(unit); ++b) total[b] = merge(total[b], chunk[b]);
  }

  // From the moments of chunks in the workspace.
  [[gnu::always_inline]] void merge_chunks(std::int64_t unit, Moments* total) const {
    const Moments* const first = partial_ + unit * call_.schedule.chunks * stride();
    std::copy_n(first, walk_.blocks(unit), total);
    for (std::int64_t chunk = 1; chunk < call_.schedule.chunks; ++chunk) {
      add(unit, first + chunk * stride(), total);
    }
  }

  // Where a unit has several chunks, each goes through the workspace.
  [[gnu::always_inline]] void reduce_unit(std::int64_t unit, Moments* total) const {
    walk_.reduce(unit, 0, total);
    for (std::int64_t chunk = 1; chunk < call_.schedule.chunks; ++chunk) {
      Moments* const part = partial_ + unit * call_.schedule.chunks * stride();
      walk_.reduce(unit, chunk, part);
      add(unit, part, total);
    }
  }

  // This and `find` are not inlined, so that moments have left the stack when the unit is applied.
  [[gnu::noinline]] void fold(std::int64_t unit, Statistics* statistics, bool writes) const {
    Moments total[Walk::kMaxBlocks];
    merge_chunks(unit, total);
    finish_unit(unit, total, statistics, writes);
  }

  [[gnu::noinline]] void find(std::int64_t unit, Statistics* statistics) const {
    Moments total[Walk::kMaxBlocks];
    reduce_unit(unit, total);
    finish_unit(unit, total, statistics, true);
  }

  void finish_unit(std::int64_t unit, const Moments* total, Statistics* statistics,
                   bool writes) const {
    const Spec& spec = call_.spec;
    const std::int64_t first = walk_.first_block(unit), blocks = walk_.blocks(unit);
    call_.kernels.finish({total, blocks, spec.correction, spec.eps, spec.center, statistics});
    for (std::int64_t b = 0; writes && b < blocks; ++b) {
      if (call_.args.mean != nullptr) call_.args.mean[first + b] = statistics[b].mean;
      if (call_.args.rstd != nullptr) call_.args.rstd[first + b] = statistics[b].rstd;
    }
  }

  // Units [begin, end), each reduced and applied: by the kernels that do both, as far as they go.
  void fused(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      unit += walk_.normalize(unit, end);
      if (unit < end) one(unit);
    }
  }

  void one(std::int64_t unit) const {
    Statistics statistics[Walk::kMaxBlocks];
    find(unit, statistics);
    for (std::int64_t chunk = 0; chunk < call_.schedule.chunks; ++chunk) {
      walk_.apply(unit, chunk, statistics);
    }
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

// Runs `body` on the Pass of a call by its walk; false where the executor did not do its part.
template <class Body>
bool run_pass(const Call& call, std::span<std::byte> workspace, const Executor& executor,
              const Body& body) {
  const Executor alone;
  const Executor& used = runs_alone(call) || executor.run == nullptr ? alone : executor;
  void* aligned = workspace.data();
  std::size_t room = workspace.size();
  auto* const partial =
      static_cast<Moments*>(std::align(alignof(Moments), sizeof(Moments), aligned, room));
  return call.schedule.columns ? body(Pass<Columns>(call, partial, used))
                               : body(Pass<Rows>(call, partial, used));
}

}  // namespace
}  // namespace detail

void merge(const Moments* more, std::int64_t blocks, Moments* total) noexcept {
  for (std::int64_t i = 0; i < blocks; ++i) {
    if (more[i].count != 0) total[i] = detail::merge(total[i], more[i]);
  }
}

std::size_t detail::forward_workspace(const Schedule& schedule) noexcept {
  // Only a split schedule keeps moments, one of each block and chunk; and only where there is more
  // than one chunk is there anything to split.
  if (schedule.chunks == 1) return 0;
  const std::int64_t moments = schedule.units * schedule.chunks * schedule.blocks_per_unit;
  return static_cast<std::size_t>(moments) * sizeof(Moments) + alignof(Moments) - 1;
}

Status detail::forward(const Spec& spec, const Schedule& schedule, const Target& target,
                       const Forward& args, std::span<std::byte> workspace,
                       const Executor& executor) noexcept {
  const bool in_place = args.y == args.x || args.y == args.skip || args.y == args.residual;
  const auto store = schedule.streaming && !in_place ? Store::streaming : Store::cached;
  const Call call{spec, schedule, target, args, store};
  const bool done =
      run_pass(call, workspace, executor, [](const auto& pass) { return pass.run(); });
  return done ? Status::ok : Status::executor_failed;
}

Status Plan::reduce(const void* x, Moments* moments, std::span<std::byte> workspace,
                    const Executor& executor) const noexcept {
  if (target_ == nullptr) return Status::not_planned;
  if (const Status status = detail::check_executor(executor); status != Status::ok) return status;
  if (detail::has_neighbours(spec_, {})) return Status::neighbours;
  const std::int64_t blocks = detail::blocks_of(spec_);
  const Status status =
      detail::check_reduce(spec_, blocks, x, moments, workspace, workspace_bytes());
  if (status != Status::ok) return status;
  if (detail::is_empty(spec_.shape)) {
    std::fill_n(moments, blocks, Moments{});
    return Status::ok;
  }
  const Forward args{.x = x};
  const detail::Call call{spec_, schedule_, *target_, args, detail::Store::cached};
  const bool done = detail::run_pass(call, workspace, executor,
                                     [&](const auto& pass) { return pass.reduce(moments); });
  return done ? Status::ok : Status::executor_failed;
}

Status Plan::finish(const Moments* moments, std::int64_t blocks, double* mean,
                    double* rstd) const noexcept {
  if (target_ == nullptr) return Status::not_planned;
  const Status status = detail::check_finish(moments, blocks, mean, rstd);
  if (status != Status::ok) return status;
  for (std::int64_t b = 0; b < blocks; ++b) {
    detail::Statistics statistics{std::numeric_limits<double>::quiet_NaN(),
                                  std::numeric_limits<double>::quiet_NaN(), false};
    if (moments[b].count > spec_.correction) {
      target_->of(spec_.data)
          .finish({moments + b, 1, spec_.correction, spec_.eps, spec_.center, &statistics});
    }
    if (mean != nullptr) mean[b] = statistics.mean;
    if (rstd != nullptr) rstd[b] = statistics.rstd;
  }
  return Status::ok;
}

Status Plan::forward(const Forward& args, std::span<std::byte> workspace,
                     const Executor& executor) const noexcept {
  if (target_ == nullptr) return Status::not_planned;
  if (const Status status = detail::check_executor(executor); status != Status::ok) return status;
  if (detail::is_empty(spec_.shape)) return Status::ok;
  const bool joins = args.skip != nullptr || args.residual != nullptr || args.sum != nullptr;
  if (detail::kEdge && joins) return Status::not_built;
  const bool needs_none = spec_.given_statistics && !detail::is_composed(spec_);
  const std::size_t needed = needs_none ? 0 : workspace_bytes();
  const Status status = detail::check_forward(spec_, blocks(), args, workspace, needed);
  if (status != Status::ok) return status;
  if (!detail::kEdge && detail::is_composed(spec_)) {
    return detail::composed_forward(spec_, *target_, args, workspace, executor);
  }
  return detail::forward(spec_, schedule_, *target_, args, workspace, executor);
}

}  // namespace groupnorm
