// Backward: reduce -> fold -> apply, by the walk and the schedule that the plan chose (plan.h).
#include "call.h"
#include "columns.h"
#include "gradient.h"
#include "layer_gradient.h"
#include "parallel.h"
#include "passes.h"
#include "plan.h"
#include "rows.h"
#include "validate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

namespace groupnorm {
namespace detail {
namespace {

template <class Walk>
class GradientPass {
 public:
  GradientPass(const GradientCall& gradient, const Executor& executor)
      : gradient_(gradient), walk_(gradient), executor_(executor) {}

  // False where the executor did not do its part.
  bool run() const {
    const Backward& args = gradient_.args;
    const Schedule& schedule = gradient_.call.schedule;
    const bool wants_dx = gradient_.makes_dx();
    const bool wants_terms =
        wants_dx && gradient_.whole == nullptr && !gradient_.call.spec.given_statistics;
    const bool wants_sums = args.dgamma != nullptr || args.dbeta != nullptr || wants_terms ||
                            args.dresidual != nullptr || gradient_.own != nullptr ||
                            gradient_.shifts != nullptr;
    const std::int64_t pieces = schedule.units * walk_.chunks();
    if (wants_dx && wants_sums && !splits(schedule, executor_.threads)) {
      // A thread reduces and then applies one unit after another, while it lies in its cache.
      return parallel_for(gradient_.call, executor_, schedule.units,
                          [&](std::int64_t begin, std::int64_t end) { fused(begin, end); });
    }
    const auto share = [&](const auto& body) {
      return parallel_for(gradient_.call, executor_, pieces, body);
    };
    return (!wants_sums ||
            share([&](std::int64_t begin, std::int64_t end) { reduce(begin, end); })) &&
           (!wants_dx || share([&](std::int64_t begin, std::int64_t end) { apply(begin, end); })) &&
           (gradient_.own == nullptr || write_own());
  }

 private:
  bool write_own() const {
    const std::int64_t blocks = blocks_of(gradient_.call.spec);
    return parallel_for(executor_, blocks, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) {
        gradient_.own[b] = block_sums(gradient_, b, gradient_.statistics(b));
      }
    });
  }

  void find_statistics(std::int64_t unit, Statistics* statistics) const {
    for (std::int64_t b = 0; b < walk_.blocks(unit); ++b) {
      statistics[b] = gradient_.statistics(walk_.first_block(unit) + b);
    }
  }

  // Units [begin, end), each summed and applied: by the kernels that do both, as far as they go.
  void fused(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      unit += walk_.differentiate(unit, end);
      if (unit == end) return;
      reduce(unit * walk_.chunks(), (unit + 1) * walk_.chunks());
      apply(unit * walk_.chunks(), (unit + 1) * walk_.chunks());
    }
  }

  // Chunks [begin, end) counted over all units.
  void reduce(std::int64_t begin, std::int64_t end) const {
    const std::int64_t chunks = walk_.chunks();
    Statistics statistics[Walk::kMaxBlocks];
    for (std::int64_t i = begin; i < end; ++i) {
      if (i == begin || i % chunks == 0) find_statistics(i / chunks, statistics);
      walk_.reduce(i / chunks, i % chunks, statistics);
    }
  }

  void apply(std::int64_t begin, std::int64_t end) const {
    const std::int64_t chunks = walk_.chunks();
    Statistics statistics[Walk::kMaxBlocks];
    GradientTerms terms[Walk::kMaxBlocks];
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t unit = i / chunks;
      if (i == begin || i % chunks == 0) {
        find_statistics(unit, statistics);
        for (std::int64_t b = 0; b < walk_.blocks(unit); ++b) {
          terms[b] = block_terms(gradient_, walk_.first_block(unit) + b, statistics[b]);
        }
      }
      walk_.apply(unit, i % chunks, statistics, terms);
    }
  }

  const GradientCall& gradient_;
  Walk walk_;
  const Executor& executor_;
};

// dbeta = sum dz, dgamma = sum dz xhat, over the spans that share a parameter, in their order.
class Params {
 public:
  explicit Params(const GradientCall& gradient)
      : gradient_(gradient),
        spec_(gradient.call.spec),
        strided_(spec_.param_stride != 0),
        sharing_(strided_ ? 1 : gradient.map.spans) {}

  // False where the executor did not do its part.
  bool run(const Executor& executor) const {
    const std::int64_t rows = strided_ ? spec_.shape.n : 1;
    return parallel_for(executor, rows * tiles(), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        write(i / tiles(), piece(i % tiles(), kTile, spec_.shape.c));
      }
    });
  }

 private:
  static constexpr std::int64_t kTile = 64;  // channels: their sums stay in L1

  std::int64_t tiles() const { return ceil_div(spec_.shape.c, kTile); }

  // Channels [tile) of row `row` of dgamma and dbeta.
  void write(std::int64_t row, Range tile) const {
    GradientSums total[kTile] = {};  // dz and dz * xhat
    for (std::int64_t span = row * sharing_; span < (row + 1) * sharing_; ++span) {
      add(span, tile, total);
    }
    const std::int64_t index = row * spec_.param_stride + tile.begin;
    store(total, &GradientSums::dz, tile.size(), index, gradient_.args.dbeta);
    store(total, &GradientSums::dzx, tile.size(), index, gradient_.args.dgamma);
  }

  void add(std::int64_t span, Range tile, GradientSums* total) const {
    if (gradient_.map.by_elements) {
      const GradientSums* const sums = gradient_.sums + gradient_.map.index(span, tile.begin, 0);
      for (std::int64_t i = 0; i < tile.size(); ++i) {
        total[i].dz += sums[i].dz;
        total[i].dzx += sums[i].dzx;
      }
      return;
    }
    const std::int64_t channels = spec_.block.channels, groups = spec_.shape.c / channels;
    const std::int64_t row = span * gradient_.map.span_examples / spec_.block.examples;
    for (std::int64_t c = tile.begin; c < tile.end;) {
      const std::int64_t group = c / channels, end = std::min(tile.end, (group + 1) * channels);
      const Statistics own = gradient_.statistics(row * groups + group);
      const double mean_lo = gradient_.call.split(own.mean).lo;
      for (; c < end; ++c) {
        const GradientSums sums = gradient_.total(span, c);
        total[c - tile.begin].dz += sums.dz;
        total[c - tile.begin].dzx += own.rstd * (sums.dzx - mean_lo * sums.dz);
      }
    }
  }

  // `which` of `count` sums, from `index` on.
  void store(const GradientSums* sums, double GradientSums::*which, std::int64_t count,
             std::int64_t index, void* data) const {
    if (data == nullptr) return;
    const bool adds = gradient_.args.accumulate;
    visit(spec_.param, [=](auto element) {
      auto* const to = static_cast<decltype(element)*>(data) + index;
      for (std::int64_t i = 0; i < count; ++i) {
        from_double((adds ? to_double(to[i]) : 0) + sums[i].*which, to + i);
      }
    });
  }

  const GradientCall& gradient_;
  const Spec& spec_;
  bool strided_;
  std::int64_t sharing_;  // spans
};

// dshift, over the spans and pieces of a sequence, in their order.
void write_shifts(const GradientCall& gradient) {
  const Call& call = gradient.call;
  const auto [n, c, s] = call.spec.shape;
  const std::int64_t sequences = n / call.spec.sequence, spans = gradient.map.spans / sequences;
  for (std::int64_t i = 0; i < sequences * c; ++i) {
    double total = 0;
    for (std::int64_t span = i / c * spans; span < (i / c + 1) * spans; ++span) {
      for (std::int64_t piece = 0; piece < gradient.map.pieces; ++piece) {
        total += gradient.shifts[gradient.map.index(span, i % c, piece)];
      }
    }
    store_element(call.spec.data, gradient.args.dshift, i, total);
  }
}

// Gradients of an empty tensor: sums of nothing.
void write_nothing(const Spec& spec, const Backward& args) {
  const std::int64_t numbers = spec.shape.n / spec.sequence * spec.shape.c;
  for (std::int64_t i = 0; i < numbers; ++i) {
    if (args.dshift != nullptr) store_element(spec.data, args.dshift, i, 0);
    if (args.dscale != nullptr) store_element(spec.param, args.dscale, i, 0);
    if (args.doffset != nullptr) store_element(spec.param, args.doffset, i, 0);
  }
  if (args.accumulate) return;
  const std::int64_t rows = spec.param_stride == 0 ? 1 : spec.shape.n / spec.sequence;
  for (void* const data : {args.dgamma, args.dbeta}) {
    for (std::int64_t row = 0; data != nullptr && row < rows; ++row) {
      for (std::int64_t c = 0; c < spec.shape.c; ++c) {
        store_element(spec.param, data, row * spec.param_stride + c, 0);
      }
    }
  }
}

// Of arguments that are checked, of a tensor that is not empty.
Status run(const Call& call, const Backward& args, std::span<std::byte> workspace,
           const Executor& executor, const BlockSums* whole, double count, BlockSums* own) {
  void* aligned = workspace.data();
  std::size_t room = workspace.size();
  auto* const sums = static_cast<GradientSums*>(
      std::align(alignof(GradientSums), sizeof(GradientSums), aligned, room));
  const SumsMap map(call.spec, call.schedule);
  double* shifts = nullptr;
  if (args.dshift != nullptr) {
    shifts = reinterpret_cast<double*>(sums + map.size());
    std::fill_n(shifts, map.size(), 0.0);
  }
  const GradientCall gradient{call, args, map, sums, whole, count, own, shifts};
  const Executor alone;
  const Executor& used = runs_alone(call) || executor.run == nullptr ? alone : executor;
  bool done = map.by_elements         ? LayerGradient(gradient).run(used)
              : call.schedule.columns ? GradientPass<GradientColumns>(gradient, used).run()
                                      : GradientPass<GradientRows>(gradient, used).run();
  if (args.dgamma != nullptr || args.dbeta != nullptr) done = done && Params(gradient).run(used);
  if (done && shifts != nullptr) write_shifts(gradient);
  return done ? Status::ok : Status::executor_failed;
}

// What of a backward call forward knows. beta and residual are read for the derivative of an
// activation alone.
Forward forward_of(const Spec& spec, const Backward& args) {
  const bool reads_z = spec.activation != Activation::none;
  return {.x = args.x,
          .gamma = args.gamma,
          .beta = reads_z ? args.beta : nullptr,
          .skip = args.skip,
          .shift = args.shift,
          .residual = reads_z ? args.residual : nullptr};
}

}  // namespace

std::size_t backward_workspace(const Spec& spec, const Schedule& schedule) noexcept {
  const SumsMap map(spec, schedule);
  const std::size_t each = sizeof(GradientSums) + (spec.shift ? sizeof(double) : 0);
  return static_cast<std::size_t>(map.size()) * each + alignof(GradientSums) - 1;
}

Status backward(const Spec& spec, const Schedule& schedule, const Target& target,
                const Backward& args, std::span<std::byte> workspace,
                const Executor& executor) noexcept {
  Backward own = args;
  // Of one position, dshift is dx.
  const bool is_dx = args.dshift != nullptr && spec.shape.s == 1 && spec.sequence == 1;
  if (is_dx) own.dshift = nullptr;
  if (is_dx && args.dx == nullptr) own.dx = args.dshift;
  const auto bytes = static_cast<std::size_t>(spec.shape.n * spec.shape.c * spec.shape.s) *
                     static_cast<std::size_t>(size_of(spec.data));
  // Without an activation, dresidual is dy; and dx may be dy.
  if (args.dresidual != nullptr && spec.activation == Activation::none) {
    std::memcpy(args.dresidual, args.dy, bytes);
    own.dresidual = nullptr;
  }
  const Forward forward = forward_of(spec, own);
  const auto store = schedule.streaming && own.dx != own.dy ? Store::streaming : Store::cached;
  const Call call{spec, schedule, target, forward, store};
  const Status status = run(call, own, workspace, executor, nullptr, 0, nullptr);
  if (is_dx && args.dx != nullptr) std::memcpy(args.dshift, args.dx, bytes);
  return status;
}

}  // namespace detail

std::size_t Plan::backward_workspace_bytes() const noexcept {
  if (schedule_.units == 0) return 0;
  if (detail::is_composed(spec_)) return detail::composed_backward_workspace(spec_, *target_);
  return detail::backward_workspace(spec_, schedule_);
}

Status Plan::backward(const Backward& args, std::span<std::byte> workspace,
                      const Executor& executor) const noexcept {
  if (target_ == nullptr) return Status::not_planned;
  if (const Status status = detail::check_executor(executor); status != Status::ok) return status;
  if (detail::is_empty(spec_.shape)) {
    const Status status = detail::check_backward_of_nothing(spec_, args, 0, nullptr);
    if (status == Status::ok) detail::write_nothing(spec_, args);
    return status;
  }
  const Status status = detail::check_backward(spec_, blocks(), args, nullptr, nullptr, workspace,
                                               backward_workspace_bytes());
  if (status != Status::ok) return status;
  if (detail::is_composed(spec_)) {
    return detail::composed_backward(spec_, *target_, args, workspace, executor);
  }
  return detail::backward(spec_, schedule_, *target_, args, workspace, executor);
}

Status Plan::reduce_gradient(const Backward& args, BlockSums* sums, std::span<std::byte> workspace,
                             const Executor& executor) const noexcept {
  if (target_ == nullptr) return Status::not_planned;
  if (const Status status = detail::check_executor(executor); status != Status::ok) return status;
  const std::int64_t blocks = detail::blocks_of(spec_);
  if (sums == nullptr && blocks > 0) return Status::null_sums;
  if (detail::has_neighbours(spec_, args)) return Status::neighbours;
  if (detail::is_empty(spec_.shape)) {
    const Status status = detail::check_backward_of_nothing(spec_, args, blocks, sums);
    if (status != Status::ok) return status;
    detail::write_nothing(spec_, args);
    std::fill_n(sums, blocks, BlockSums{});
    return Status::ok;
  }
  Backward own = args;
  own.dx = nullptr;
  const Status status = detail::check_backward(spec_, blocks, own, nullptr, sums, workspace,
                                               backward_workspace_bytes());
  if (status != Status::ok) return status;
  const Forward forward = detail::forward_of(spec_, own);
  const detail::Call call{spec_, schedule_, *target_, forward, detail::Store::cached};
  return detail::run(call, own, workspace, executor, nullptr, 0, sums);
}

Status Plan::apply_gradient(const Backward& args, const BlockSums* sums, double count,
                            const Executor& executor) const noexcept {
  if (target_ == nullptr) return Status::not_planned;
  if (const Status status = detail::check_executor(executor); status != Status::ok) return status;
  if (detail::is_empty(spec_.shape)) return Status::ok;
  if (sums == nullptr) return Status::null_sums;
  if (detail::has_neighbours(spec_, args)) return Status::neighbours;
  const auto least =
      static_cast<double>(std::max<std::int64_t>(block_elements(), spec_.correction + 1));
  if (!(count >= least && std::isfinite(count))) return Status::count;
  Backward own = args;
  own.dgamma = own.dbeta = nullptr;
  const Status status = detail::check_backward(spec_, blocks(), own, sums, nullptr, {}, 0);
  if (status != Status::ok) return status;
  const Forward forward = detail::forward_of(spec_, own);
  const auto store =
      schedule_.streaming && own.dx != own.dy ? detail::Store::streaming : detail::Store::cached;
  const detail::Call call{spec_, schedule_, *target_, forward, store};
  return detail::run(call, own, {}, executor, sums, count, nullptr);
}

}  // namespace groupnorm
