#include "subject.h"

#include <cstdint>
#include <optional>

#include "bad_input.h"
#include "dtype.h"
#include "reference.h"
#include "verify.h"

namespace groupnorm::tools {
namespace {

constexpr std::uint64_t kSeed = 1;

std::int64_t elements_of(const Shape& shape) { return shape.n * shape.c * shape.s; }

class ForwardSubject : public Subject {
 public:
  explicit ForwardSubject(const testing::Case& asked)
      : spec_(asked.spec), data_(testing::make_data(asked, kSeed)) {}
  const char* direction() const override { return "forward"; }
  std::vector<const testing::Buffer*> tensors() const override { return {&data_.x, &data_.x}; }
  std::function<void(Set)> call(const Way& way) const override {
    Forward args = data_.forward;
    args.mean = args.rstd = nullptr;  // as at inference
    std::vector<std::byte> workspace(way.plan.workspace_bytes());
    return [way, args, workspace](Set set) mutable {
      args.x = set.tensor(0);
      args.y = set.tensor(way.in_place ? 0 : 1);
      require_ok(way.plan.forward(args, workspace, way.executor), way.plan.spec());
    };
  }
  testing::Comparison check(Set set, bool in_place) override {
    Forward args = data_.forward;
    args.y = set.tensor(in_place ? 0 : 1);
    if (elements_of(spec_.shape) > kMostVerified) return verify(spec_, args);
    if (!reference_) reference_ = detail::reference_forward(spec_, args);
    return testing::compare(spec_, *reference_, args.y);
  }

 private:
  Spec spec_;
  testing::Data data_;
  std::optional<detail::ReferenceResult> reference_;
};

class BackwardSubject : public Subject {
 public:
  explicit BackwardSubject(const testing::Case& asked)
      : spec_(asked.spec), data_(testing::make_gradient_data(asked, kSeed)) {}
  const char* direction() const override { return "backward"; }
  std::vector<const testing::Buffer*> tensors() const override {
    return {&data_.x, &data_.dy, &data_.dy};
  }
  std::function<void(Set)> call(const Way& way) const override {
    std::vector<std::byte> workspace(way.plan.backward_workspace_bytes());
    return [way, args = data_.backward, workspace](Set set) mutable {
      args.x = set.tensor(0);
      args.dy = set.tensor(1);
      args.dx = set.tensor(way.in_place ? 1 : 2);
      require_ok(way.plan.backward(args, workspace, way.executor), way.plan.spec());
    };
  }
  testing::Comparison check(Set set, bool in_place) override {
    Backward args = data_.backward;  // with dgamma and dbeta, and dy as it was
    args.dx = set.tensor(in_place ? 1 : 2);
    if (!reference_) reference_ = detail::reference_backward(spec_, args);
    return testing::compare_gradient(spec_, *reference_, args);
  }

 private:
  Spec spec_;
  testing::GradientData data_;
  std::optional<detail::ReferenceGradient> reference_;
};

}  // namespace

std::unique_ptr<Subject> make_subject(const testing::Case& asked, bool backward, bool hot) {
  const Spec& spec = asked.spec;
  const auto tensor = static_cast<std::size_t>(elements_of(spec.shape)) *
                      static_cast<std::size_t>(detail::size_of(spec.data));
  const std::size_t set = (backward ? 3 : 2) * tensor;
  const double needed = backward ? gradient_memory_needed(spec) : memory_needed(spec);
  require_memory(needed + static_cast<double>(sets_of(set, hot) * set), "--shape " + asked.name);
  if (backward) return std::make_unique<BackwardSubject>(asked);
  return std::make_unique<ForwardSubject>(asked);
}

}  // namespace groupnorm::tools
