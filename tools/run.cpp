// groupnorm run: normalizes the array of a .npy file.

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "command.h"
#include "dtype.h"
#include "npy.h"
#include "options.h"
#include "reference.h"
#include "report.h"
#include "testing/cases.h"
#include "verify.h"

namespace groupnorm::tools {
namespace {

struct Options {
  std::string x, gamma, beta, y, stats;
  NormOptions norm;
  EngineOptions engine;
  bool reference = false, report = false;
};

Shape view(const Options& options, const Npy& x) {
  if (x.shape.size() < 2) {
    throw BadInput("'" + options.x + "': has shape " + format_shape(x.shape) +
                   "; at least two axes, N and C, are needed");
  }
  const bool channels_last = options.norm.layout() == Layout::channels_last;
  const std::size_t channel_axis = channels_last ? x.shape.size() - 1 : 1;
  Shape shape{.n = x.shape.front(), .c = x.shape[channel_axis], .s = 1};
  for (std::size_t axis = 1; axis < x.shape.size(); ++axis) {
    if (axis == channel_axis) continue;
    shape.s *= x.shape[axis];  // the reader has checked the product
  }
  return shape;
}

// gamma and beta as they were read, and what the Spec says of them.
struct Params {
  std::optional<Npy> gamma, beta;
  DType dtype = DType::f32;
  std::int64_t stride = 0;
};

std::optional<Npy> read_param(const std::string& path, const Shape& shape) {
  if (path.empty()) return std::nullopt;
  Npy param = read_npy(path);
  const std::vector<std::int64_t> shared{shape.c}, adaptive{shape.n, shape.c};
  if (param.shape == shared || param.shape == adaptive) return param;
  throw BadInput("'" + path + "': has shape " + format_shape(param.shape) + "; must be " +
                 format_shape(shared) + ", one a channel, or " + format_shape(adaptive) +
                 ", one a channel and example");
}

Params read_params(const Options& options, const Shape& shape, DType data) {
  Params params{.gamma = read_param(options.gamma, shape),
                .beta = read_param(options.beta, shape),
                .dtype = data};
  const auto& [gamma, beta, dtype, stride] = params;
  if (gamma && beta && (gamma->dtype != beta->dtype || gamma->shape != beta->shape)) {
    throw BadInput("--gamma and --beta: must be of the same dtype and shape");
  }
  if (gamma || beta) {
    const Npy& either = gamma ? *gamma : *beta;
    params.dtype = either.dtype;
    params.stride = either.shape.size() == 2 ? shape.c : 0;
  }
  return params;
}

// mean, then rstd: one a block each.
struct Statistics {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};

Statistics make_statistics(const Plan& plan) {
  const auto [n, c, s] = plan.spec().shape;
  const auto [examples, channels] = plan.spec().block;
  const bool empty = plan.blocks() == 0;
  return {.shape = {2, empty ? 0 : n / examples, empty ? 0 : c / channels},
          .values = std::vector<double>(static_cast<std::size_t>(2 * plan.blocks()))};
}

void reference_in_place(const Spec& spec, const Forward& args) {
  const detail::ReferenceResult result = detail::reference_forward(spec, args);
  for (std::size_t i = 0; i < result.y.size(); ++i) {
    detail::store_element(spec.data, args.y, static_cast<std::int64_t>(i), result.y[i]);
  }
  std::copy(result.mean.begin(), result.mean.end(), args.mean);
  std::copy(result.rstd.begin(), result.rstd.end(), args.rstd);
}

void print(const Options& options, const Npy& x, const Plan& plan, const Executor& executor,
           double seconds) {
  const Spec& spec = plan.spec();
  std::printf("x        %s %s, seen as n %lld, c %lld, s %lld, %s\n", to_string(x.dtype),
              format_shape(x.shape).c_str(), static_cast<long long>(spec.shape.n),
              static_cast<long long>(spec.shape.c), static_cast<long long>(spec.shape.s),
              to_string(spec.layout));
  std::printf("norm     %s: %lld blocks of m = %lld elements\n", options.norm.norm().name,
              static_cast<long long>(plan.blocks()), static_cast<long long>(plan.block_elements()));
  if (options.reference) {
    std::printf("target   none: the reference in double, 1 thread\n");
  } else {
    std::printf("target   %s, %d threads\n", plan.target(), executor.threads);
  }
  std::printf("time     %.3f ms, %.2f GB/s\n", seconds * 1e3,
              2 * static_cast<double>(x.data.size()) / seconds * 1e-9);
  std::printf("wrote    %s\n", options.y.c_str());
}

// y may take the place of x: x has been read by then. Nothing else that is named may be lost.
void require_own_files(const Options& options) {
  const auto require_two = [](const char* a, const std::string& path_a, const char* b,
                              const std::string& path_b) {
    if (path_a.empty() || path_b.empty() || !same_file(path_a, path_b)) return;
    throw BadInput(std::string(a) + " and " + b + ": must be two files; got '" + path_a +
                   "' and '" + path_b + "'");
  };
  require_two("--stats", options.stats, "-o", options.y);
  require_two("--stats", options.stats, "x", options.x);
  for (const auto& [name, path] : {std::pair("--gamma", options.gamma), {"--beta", options.beta}}) {
    require_two("--stats", options.stats, name, path);
    require_two("-o", options.y, name, path);
  }
}

int run(const Options& options) {
  require_own_files(options);
  Npy x = read_npy(options.x);
  const Shape shape = view(options, x);
  const Params params = read_params(options, shape, x.dtype);
  Spec spec = options.norm.spec(shape, x.dtype, params.dtype);
  spec.param_stride = params.stride;
  // The reference has no instruction set; a plan is only made for its checks.
  const Plan plan = options.reference && !targets().empty() ? make_plan(spec, targets().back())
                                                            : options.engine.plan(spec);
  if (options.reference) require_memory(memory_needed(spec), "'" + options.x + "'");
  const Executor executor = options.engine.executor();
  Statistics statistics = make_statistics(plan);
  testing::Buffer before;
  if (options.report) {
    require_memory(memory_needed(spec), "--report");
    before = testing::Buffer(x.data.size());
    std::copy_n(x.data.data(), x.data.size(), before.data());
  }
  // In place: half the memory.
  const Forward args{.x = x.data.data(),
                     .y = x.data.data(),
                     .gamma = params.gamma ? params.gamma->data.data() : nullptr,
                     .beta = params.beta ? params.beta->data.data() : nullptr,
                     .mean = statistics.values.data(),
                     .rstd = statistics.values.data() + plan.blocks()};
  const auto start = std::chrono::steady_clock::now();
  if (options.reference) {
    reference_in_place(spec, args);
  } else {
    forward(plan, args, executor);
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;

  PendingFile y(options.y);
  write_npy(y, x.dtype, x.shape, {x.data.data(), x.data.size()});
  if (!options.stats.empty()) {
    PendingFile stats(options.stats);
    write_npy(stats, DType::f64, statistics.shape, std::as_bytes(std::span(statistics.values)));
    stats.commit();
  }
  y.commit();
  print(options, x, plan, executor, time.count());
  if (!options.report) return kOk;
  Forward call = args;
  call.x = before.data();
  return report(spec, call) ? kOk : kWrongResult;
}

}  // namespace

Command add_run(CLI::App& app) {
  CLI::App* const command = app.add_subcommand(
      "run",
      "Normalize the array of a .npy file: float16, float32 or float64, little-endian, C order, "
      "shape N, C, spatial... (or N, spatial..., C with --layout channels_last). Bytes after the "
      "array are ignored, as by numpy.load");
  const auto options = std::make_shared<Options>();
  command->add_option("x", options->x, "The .npy file to read")->required();
  command->add_option("-o,--output", options->y, "The .npy file to write; may be x")->required();
  options->norm.add_to(*command, /*given_statistics=*/false);
  command->add_option(
      "--gamma", options->gamma,
      ".npy file of shape [C] or [N, C], in the dtype of x, or float32 if x is float16");
  command->add_option("--beta", options->beta, "As --gamma, with the same dtype and shape");
  command->add_option(
      "--stats", options->stats,
      "Write mean and rstd to this .npy file, float64 [2, N / block.examples, C / block.channels]: "
      "[2, N, G] for groups, [2, N, 1] for layer, [2, N, C] for instance, "
      "[2, 1, C] for batch");
  CLI::Option* const target = options->engine.add_to(*command);
  command
      ->add_flag("--reference", options->reference,
                 "Compute y with the plain double-precision reference: slow, for comparison")
      ->excludes(target);
  command->add_flag("--report", options->report,
                    "Print each block's mean and standard deviation before and after, and the "
                    "worst error against the reference");
  return {command, [options] { return run(*options); }};
}

}  // namespace groupnorm::tools
