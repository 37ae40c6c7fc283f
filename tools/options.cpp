#include "options.h"

#include <groupnorm/layers.hpp>

#include <cstdlib>

#include "number.h"
#include "validate.h"

namespace groupnorm::tools {

void NormOptions::add_to(CLI::App& app, bool given_statistics) {
  std::vector<const testing::Norm*> offered;
  std::vector<std::string> names;
  for (const testing::Norm& norm : testing::norms()) {
    if (norm.given_statistics && !given_statistics) continue;
    offered.push_back(&norm);
    names.emplace_back(norm.name);
  }
  norm_ = offered.front();
  const auto assign = [this, offered, names](const std::string& name) {
    for (const testing::Norm* norm : offered) {
      if (name == norm->name) return void(norm_ = norm);
    }
    throw CLI::ValidationError("--norm", "'" + name + "' is not one of " + join(names));
  };
  app.add_option_function<std::string>("--norm", assign,
                                       "Which elements share one mean and one variance")
      ->type_name(join(names, "|"))
      ->default_str(norm_->name);
  add_number<std::int64_t>(app, "--groups", &groups_, {},
                           "Number of groups of channels (ghost_batch: number of virtual batches)");
  add_enum(app, "--layout", &layout_, kLayouts,
           "Order in memory: N, C, spatial... or N, spatial..., C");
  add_enum(app, "--activation", &activation_, kActivations,
           "Function applied to gamma * xhat + beta");
  add_number<double>(app, "--eps", &eps_, {.least = 0}, "Value added to the variance");
  add_number<int>(app, "--correction", &correction_, {0, 1},
                  "The variance divides by m - correction: 0 or 1");
}

std::int64_t NormOptions::groups(const Shape& shape) const {
  if (norm_->grouped) {
    if (groups_) return *groups_;
    throw BadInput(std::string("--groups: needed by --norm ") + norm_->name);
  }
  if (groups_) throw BadInput(std::string("--groups: means nothing to --norm ") + norm_->name);
  const std::int64_t channels = norm_->block(shape, 1).channels;
  return channels > 0 ? shape.c / channels : 0;
}

Spec NormOptions::spec(const Shape& shape, DType data, DType param) const {
  const std::int64_t groups = this->groups(shape);
  const Block block = norm_->block(shape, groups);
  const auto require_divides = [=](std::int64_t part, std::int64_t size, const char* what) {
    if (part != kDoesNotDivide) return;
    throw BadInput("--groups: must be at least 1 and divide the " + std::to_string(size) + what +
                   "; got " + std::to_string(groups));
  };
  require_divides(block.channels, shape.c, " channels");
  require_divides(block.examples, shape.n, " examples");
  return {.shape = shape,
          .block = block,
          .layout = layout_,
          .data = data,
          .param = param,
          .activation = activation_,
          .center = norm_->center,
          .given_statistics = norm_->given_statistics,
          .correction = correction_,
          .eps = eps_};
}

CLI::Option* TensorOptions::add_to(CLI::App& app) {
  CLI::Option* const shape =
      app.add_option("--shape", text_,
                     "Sizes N x C x spatial..., as 2x320x64x64, in this order for either layout");
  add_enum(app, "--dtype", &dtype_, kDTypes, "dtype of x and y");
  add_enum(app, "--param-dtype", &param_, kDTypes,
           "dtype of gamma and beta: that of --dtype (default), or f32");
  return shape;
}

Shape TensorOptions::shape() const {
  if (const std::optional<Shape> shape = testing::parse_shape(text_)) return *shape;
  throw BadInput("--shape: must be whole numbers as in 2x320x64x64, N and C at least; got '" +
                 text_ + "'");
}

CLI::Option* EngineOptions::add_to(CLI::App& app) {
  add_number<int>(app, "--threads", &threads_, {1, detail::kMaxThreads},
                  "Number of threads; default: GROUPNORM_NUM_THREADS, else all cores");
  return app.add_option("--target", target_,
                        "Instruction set, one of those that `groupnorm info` lists; default: "
                        "GROUPNORM_TARGET, else the best");
}

Executor EngineOptions::executor() const { return threads_ ? pool(*threads_) : default_executor(); }

Plan EngineOptions::plan(const Spec& spec) const {
  return make_plan(spec, target_.empty() ? nullptr : target_.c_str());
}

Executor default_executor() {
  constexpr const char* kName = "GROUPNORM_NUM_THREADS";
  constexpr Range<int> kRange{1, detail::kMaxThreads};
  const char* const text = std::getenv(kName);
  if (text != nullptr && *text != '\0') {
    const std::optional<int> threads = parse_number<int>(text);
    if (!threads || !kRange.holds(*threads)) {
      throw BadInput(std::string(kName) + ": " + kRange.rule() + "; got '" + text + "'");
    }
  }
  return pool();
}

Plan make_plan(const Spec& spec, const char* target) {
  Plan plan;
  const Status status = Plan::make(spec, &plan, target);
  if (targets().empty()) throw BadInput(kNoTarget);
  if (status == Status::unknown_target || status == Status::unavailable_target) {
    const char* const environment = std::getenv("GROUPNORM_TARGET");
    const std::string asked =
        target != nullptr ? std::string("--target ") + target
                          : std::string("GROUPNORM_TARGET=") + (environment ? environment : "");
    throw BadInput(asked + ": " + status_string(status) + "; available: " + join(targets()));
  }
  require_ok(status, spec);
  return plan;
}

void forward(const Plan& plan, const Forward& args, const Executor& executor) {
  std::vector<std::byte> workspace(plan.workspace_bytes());
  require_ok(plan.forward(args, workspace, executor), plan.spec());
}

void backward(const Plan& plan, const Backward& args, const Executor& executor) {
  std::vector<std::byte> workspace(plan.backward_workspace_bytes());
  require_ok(plan.backward(args, workspace, executor), plan.spec());
}

}  // namespace groupnorm::tools
