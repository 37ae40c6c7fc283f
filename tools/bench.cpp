// groupnorm bench: checks one call, then times it against copies of the same bytes.

#include <groupnorm/groupnorm.hpp>

#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>

#include "command.h"
#include "contest.h"
#include "dtype.h"
#include "json.h"
#include "machine.h"
#include "number.h"
#include "options.h"
#include "subject.h"
#include "testing/cases.h"

namespace groupnorm::tools {
namespace {

struct Options {
  bool json = false, backward = false, hot = false, in_place = false;
  double seconds = 2;
  TensorOptions tensor;
  NormOptions norm;
  EngineOptions engine;
};

void play(Contest& contest, double seconds) {
  using Clock = std::chrono::steady_clock;
  contest.prepare();
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (contest.rounds() < Contest::kFewestRounds || Clock::now() < end) contest.play();
}

struct Result {
  Spec spec;
  std::string direction{};
  testing::Comparison comparison{};
  std::string target{};
  int threads = 1;
  std::size_t sets = 1;
  std::size_t tensors = 0;  // of a set: a call reads or writes each once
  std::size_t tensor_bytes = 0;
  Quantiles call{}, copy{};
  std::string copy_name{};

  std::size_t set_bytes() const { return tensors * tensor_bytes; }
  double gb_per_s(const Quantiles& time) const {
    return static_cast<double>(set_bytes()) / time.p50 * 1e-3;
  }
  double copy_ratio() const { return call.p50 / copy.p50; }
};

Result measure(const Options& options) {
  const Shape shape = options.tensor.shape();
  const testing::Case asked{
      .name = options.tensor.text(),
      .spec = options.norm.spec(shape, options.tensor.dtype(), options.tensor.param_dtype())};
  const Way way{options.engine.plan(asked.spec), options.engine.executor(), options.in_place};
  if (way.plan.blocks() == 0) throw BadInput("--shape: an empty tensor cannot be timed");

  const std::unique_ptr<Subject> subject = make_subject(asked, options.backward, options.hot);
  Contest contest(subject->tensors(), options.hot);
  if (!options.hot && !contest.ring().is_cold()) {
    std::fprintf(stderr,
                 "groupnorm: this process may use too little memory for buffers of 4 times the "
                 "last-level cache; some buffers stay in the caches, as with --hot\n");
  }
  Result result{.spec = asked.spec,
                .direction = subject->direction(),
                .target = way.plan.target(),
                .threads = way.executor.threads,
                .sets = contest.ring().sets(),
                .tensors = contest.ring().tensors(),
                .tensor_bytes = contest.ring().tensor_bytes()};
  const std::function<void(Set)> call = subject->call(way);
  const Set checked = contest.ring().next();
  call(checked);
  result.comparison = subject->check(checked, options.in_place);
  if (!result.comparison.within_bound()) return result;

  contest.add(result.direction, call);
  contest.add_copies(way.executor);
  play(contest, options.seconds);
  result.call = contest.of(result.direction);
  result.copy = contest.copy().quantiles();
  result.copy_name = contest.copy().name();
  return result;
}

void print_json(const Options& options, const Result& result) {
  const Spec& spec = result.spec;
  JsonObject object;
  object.add("norm", options.norm.norm().name)
      .add("shape", options.tensor.text().c_str())
      .add("groups", options.norm.groups(spec.shape))
      .add("dtype", to_string(spec.data))
      .add("param_dtype", to_string(spec.param))
      .add("layout", to_string(spec.layout))
      .add("activation", to_string(spec.activation))
      .add("direction", result.direction.c_str())
      .add("threads", result.threads)
      .add("target", result.target.c_str())
      .add("hot", options.hot)
      .add("in_place", options.in_place)
      .add("p50_us", result.call.p50)
      .add("p99_us", result.call.p99)
      .add("gb_per_s", result.gb_per_s(result.call))
      .add("copy", result.copy_name.c_str())
      .add("copy_p50_us", result.copy.p50)
      .add("copy_ratio", result.copy_ratio())
      .add("max_error_eps", result.comparison.error);
  std::printf("%s\n", object.text().c_str());
}

void print_text(const Options& options, const Result& result) {
  const Spec& spec = result.spec;
  std::printf("%-8s %s norm, %s, %lld groups, %s, %s, activation %s%s\n", result.direction.c_str(),
              options.norm.norm().name, options.tensor.text().c_str(),
              static_cast<long long>(options.norm.groups(spec.shape)), to_string(spec.data),
              to_string(spec.layout), to_string(spec.activation),
              options.in_place ? ", in place" : "");
  std::printf("on       %s, %d threads, %zu buffers of %zu x %s in turns\n", result.target.c_str(),
              result.threads, result.sets, result.tensors,
              detail::format_bytes(static_cast<double>(result.tensor_bytes)).c_str());
  std::printf("error    %.3f of %.4g\n", result.comparison.error, result.comparison.bound);
  std::printf("time     p50 %.2f us, p99 %.2f us, %.1f GB/s\n", result.call.p50, result.call.p99,
              result.gb_per_s(result.call));
  std::printf("copy     p50 %.2f us, p99 %.2f us, %.1f GB/s (%s)\n", result.copy.p50,
              result.copy.p99, result.gb_per_s(result.copy), result.copy_name.c_str());
  std::printf("ratio    %.2f copies\n", result.copy_ratio());
}

int run(const Options& options) {
  const Result result = measure(options);
  const testing::Comparison& comparison = result.comparison;
  if (!comparison.within_bound()) {
    std::fprintf(stderr,
                 "groupnorm: the result is wrong, so it was not timed: %s[%lld] is %.17g, exactly "
                 "%.17g, error %.3f of %.4g (%s, %d threads)\n",
                 comparison.tensor, static_cast<long long>(comparison.index), comparison.actual,
                 comparison.expected, comparison.error, comparison.bound, result.target.c_str(),
                 result.threads);
    return kWrongResult;
  }
  options.json ? print_json(options, result) : print_text(options, result);
  return kOk;
}

}  // namespace

Command add_bench(CLI::App& app) {
  CLI::App* const bench = app.add_subcommand(
      "bench",
      "Check one shape against the reference, then time it on random data, in turns with two "
      "copies "
      "of the same bytes: memcpy and a streaming copy, of which the faster counts. Buffers rotate "
      "through 4 times the last-level cache, at least 256 MB, at most half of the memory that the "
      "process may use");
  const auto options = std::make_shared<Options>();
  options->tensor.add_to(*bench)->required();
  options->norm.add_to(*bench, /*given_statistics=*/true);
  options->engine.add_to(*bench);
  bench->add_flag("--hot", options->hot,
                  "Use one set of buffers, which stays in the caches, instead of rotating");
  bench->add_flag("--backward", options->backward,
                  "Time dx, dgamma and dbeta from x and dy, against copies of 1.5 tensors");
  bench->add_flag("--in-place", options->in_place, "Write y over x, or dx over dy");
  add_number<double>(*bench, "--seconds", &options->seconds, {0, 3600},
                     "Seconds to measure, after the check and the warm-up");
  bench->add_flag(
      "--json", options->json,
      "Print one object on one line: norm shape groups dtype param_dtype layout activation "
      "direction threads target hot in_place p50_us p99_us gb_per_s copy copy_p50_us "
      "copy_ratio max_error_eps");
  return {bench, [options] { return run(*options); }};
}

}  // namespace groupnorm::tools
