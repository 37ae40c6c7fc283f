// groupnorm check: the engine against the reference.

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "command.h"
#include "dtype.h"
#include "number.h"
#include "options.h"
#include "output.h"
#include "reference.h"
#include "testing/cases.h"
#include "verify.h"

namespace groupnorm::tools {
namespace {

struct Options {
  std::vector<std::string> patterns;
  bool list = false, backward = false;
  std::uint64_t seed = 1;
  double mean = 0, deviation = 1;
  CLI::Option* shape = nullptr;
  TensorOptions tensor;
  NormOptions norm;
  EngineOptions engine;
};

// Whether the parts of `pattern` between its stars occur in `name`, in this order.
bool matches(std::string_view name, std::string_view pattern) {
  std::size_t from = 0;
  for (;;) {
    const std::size_t star = std::min(pattern.find('*'), pattern.size());
    const std::size_t found = name.find(pattern.substr(0, star), from);
    if (found == name.npos) return false;
    if (star == pattern.size()) return true;
    from = found + star;
    pattern.remove_prefix(star + 1);
  }
}

testing::Case asked_case(const Options& options) {
  return {.name = std::string(options.norm.norm().name) + "/" + options.tensor.text(),
          .spec = options.norm.spec(options.tensor.shape(), options.tensor.dtype(),
                                    options.tensor.param_dtype()),
          .mean = options.mean,
          .deviation = options.deviation};
}

std::vector<testing::Case> chosen_cases(const Options& options) {
  if (options.shape->count() > 0) return {asked_case(options)};
  std::vector<testing::Case> list = testing::cases();
  if (options.patterns.empty()) return list;
  for (const std::string& pattern : options.patterns) {
    const auto fits = [&](const testing::Case& c) { return matches(c.name, pattern); };
    if (std::none_of(list.begin(), list.end(), fits)) {
      throw BadInput("no case matches '" + pattern + "'; `groupnorm check --list` names them all");
    }
  }
  std::erase_if(list, [&](const testing::Case& c) {
    return std::none_of(options.patterns.begin(), options.patterns.end(),
                        [&](const std::string& pattern) { return matches(c.name, pattern); });
  });
  return list;
}

testing::Comparison check_forward(const testing::Case& c, const Options& options,
                                  const Executor& executor) {
  const Plan plan = options.engine.plan(c.spec);
  require_memory(memory_needed(c.spec), c.name);
  const testing::Data data = testing::make_data(c, options.seed);
  forward(plan, data.forward, executor);
  return verify(c.spec, data.forward);
}

testing::Comparison check_backward(const testing::Case& c, const Options& options,
                                   const Executor& executor) {
  const Plan plan = options.engine.plan(c.spec);
  require_memory(gradient_memory_needed(c.spec), c.name);
  const testing::GradientData data = testing::make_gradient_data(c, options.seed);
  const detail::ReferenceGradient expected = detail::reference_backward(c.spec, data.backward);
  backward(plan, data.backward, executor);
  return testing::compare_gradient(c.spec, expected, data.backward);
}

void print(const testing::Case& c, const testing::Comparison& result) {
  std::printf("%s %7.3f of %-7.4g %s\n", result.within_bound() ? "ok    " : "FAILED", result.error,
              result.bound, c.name.c_str());
  flush_output();  // so that after a crash it is plain which case is next
  if (result.within_bound()) return;
  std::printf("       %s[%lld] is %.17g, exactly %.17g\n", result.tensor,
              static_cast<long long>(result.index), result.actual, result.expected);
}

int run(const Options& options) {
  const std::vector<testing::Case> list = chosen_cases(options);
  if (options.list) {
    for (const testing::Case& c : list) std::printf("%s\n", c.name.c_str());
    return kOk;
  }
  const Executor executor = options.engine.executor();
  const std::string target = options.engine.plan(list.front().spec).target();
  const auto check_case = options.backward ? check_backward : check_forward;
  std::size_t failed = 0;
  std::map<DType, double> worst;
  for (const testing::Case& c : list) {
    const testing::Comparison result = check_case(c, options, executor);
    print(c, result);
    if (!result.within_bound()) ++failed;
    double& worst_error = worst[result.dtype];
    worst_error = std::max(worst_error, result.error);
  }
  std::printf("%zu of %zu cases within bound (%s, %d threads, seed %llu); worst errors:",
              list.size() - failed, list.size(), target.c_str(), executor.threads,
              static_cast<unsigned long long>(options.seed));
  for (const auto& [dtype, error] : worst) std::printf(" %s %.3f", to_string(dtype), error);
  std::printf("\n");
  return failed == 0 ? kOk : kWrongResult;
}

}  // namespace

Command add_check(CLI::App& app) {
  CLI::App* const check = app.add_subcommand(
      "check",
      "Compare the engine with the double-precision reference, on the built-in cases or a given "
      "shape. Prints one line per case: its worst error and the bound. f32: in units of 2^-23 (1 + "
      "|gamma xhat| "
      "+ |beta|); f64: of 2^-52 times the same + |mean| rstd; f16, bf16: steps from the exact "
      "result rounded. Gradients: of 2^-23 and 2^-52 times the sum of the absolute terms");
  const auto options = std::make_shared<Options>();
  CLI::Option* const patterns =
      check->add_option("cases", options->patterns,
                        "Parts of case names, where * matches anything; default: all cases");
  check->add_flag("--list", options->list, "Print the names of the cases and exit");
  check->add_flag("--backward", options->backward, "Check dx, dgamma and dbeta instead of y");
  add_number<std::uint64_t>(*check, "--seed", &options->seed, {}, "Seed of the random data");
  CLI::App* const given = check->add_option_group("A shape instead of the built-in cases");
  options->shape = options->tensor.add_to(*given)->excludes(patterns);
  options->norm.add_to(*given, /*given_statistics=*/true);
  add_number<double>(*given, "--mean", &options->mean, {}, "Mean of the data");
  add_number<double>(*given, "--deviation", &options->deviation, {.least = 0},
                     "Standard deviation of the data");
  given->needs(options->shape);
  options->engine.add_to(*check);
  return {check, [options] { return run(*options); }};
}

}  // namespace groupnorm::tools
