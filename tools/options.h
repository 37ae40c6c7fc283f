// The options that subcommands share, and the way from them to a Spec and a Plan.
#ifndef GROUPNORM_TOOLS_OPTIONS_H
#define GROUPNORM_TOOLS_OPTIONS_H

#include <groupnorm/groupnorm.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "command.h"
#include "testing/cases.h"

namespace groupnorm::tools {

// An option whose value is a name of `Enum`; `value` may be a std::optional.
template <class Value, class Enum, std::size_t count>
CLI::Option* add_enum(CLI::App& app, const std::string& flag, Value* value,
                      const std::array<Named<Enum>, count>& names, const std::string& help) {
  std::string choices;
  for (const auto& named : names) choices += (choices.empty() ? "" : "|") + std::string(named.name);
  const auto assign = [=](const std::string& text) {
    const std::optional<Enum> found = from_string<Enum>(text);
    if (!found) throw CLI::ValidationError(flag, "'" + text + "' is not one of " + choices);
    *value = *found;
  };
  CLI::Option* const option =
      app.add_option_function<std::string>(flag, assign, help)->type_name(choices);
  if constexpr (std::is_same_v<Value, Enum>) {
    option->default_str(to_string(*value));
  }
  return option;
}

// What to compute on a tensor that is known: --norm, --groups, --layout, --activation, --eps,
// --correction.
class NormOptions {
 public:
  // `given_statistics`: offer the norms whose statistics are given, too.
  void add_to(CLI::App& app, bool given_statistics);
  Layout layout() const { return layout_; }
  const testing::Norm& norm() const { return *norm_; }
  // The number of groups of a grouped norm as asked for; else how many share out the channels.
  std::int64_t groups(const Shape& shape) const;
  Spec spec(const Shape& shape, DType data, DType param) const;

 private:
  const testing::Norm* norm_ = nullptr;
  std::optional<std::int64_t> groups_;
  Layout layout_ = Layout::channels_first;
  Activation activation_ = Activation::none;
  double eps_ = 1e-5;
  int correction_ = 0;
};

// A tensor to be made up: --shape, --dtype, --param-dtype.
class TensorOptions {
 public:
  // Returns the option --shape.
  CLI::Option* add_to(CLI::App& app);
  const std::string& text() const { return text_; }
  Shape shape() const;
  DType dtype() const { return dtype_; }
  DType param_dtype() const { return param_.value_or(dtype_); }

 private:
  std::string text_;
  DType dtype_ = DType::f32;
  std::optional<DType> param_;
};

// How to run it: --target, --threads.
class EngineOptions {
 public:
  // Returns the option --target.
  CLI::Option* add_to(CLI::App& app);
  Executor executor() const;
  Plan plan(const Spec& spec) const;  // as make_plan

 private:
  std::string target_;  // empty: GROUPNORM_TARGET, or the best
  std::optional<int> threads_;
};

// pool(), of as many threads as GROUPNORM_NUM_THREADS says. Throws BadInput where that is no number
// of threads, which the library passes over in silence.
Executor default_executor();

// Throws BadInput for a Spec or a target that the engine refuses. A null target: GROUPNORM_TARGET,
// or the best.
Plan make_plan(const Spec& spec, const char* target);

// Where targets() is empty.
inline constexpr const char* kNoTarget = "this machine supports no instruction set of this build";

// Plan::forward and Plan::backward with a workspace made for it.
void forward(const Plan& plan, const Forward& args, const Executor& executor);
void backward(const Plan& plan, const Backward& args, const Executor& executor);

// "a, b, c"
template <class Names>
std::string join(const Names& names, const char* between = ", ") {
  std::string text;
  for (const auto& name : names) {
    if (!text.empty()) text += between;
    text += name;
  }
  return text;
}

}  // namespace groupnorm::tools

#endif
