// 32 callers at once, forward and backward, on shared Plans and on Plans of their own, by the pool
// and by themselves; every output is compared. GROUPNORM_LONG_TESTS=1: for a minute.
#include "engine.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

namespace groupnorm::testing {
namespace {

constexpr int kCallers = 32;

// One of a few calls, and what must come out of it.
class Work {
 public:
  explicit Work(const Case& c)
      : plan_(make_plan(c.spec, nullptr)),
        data_(make_data(c, 3)),
        gradient_(make_gradient_data(c, 3)) {
    EXPECT_TRUE(forward(plan_, data_.forward, {}));
    EXPECT_TRUE(backward(plan_, gradient_.backward, {}));
  }

  // Into outputs of its own; `own`: by a Plan made for this call.
  bool repeat(bool own, const Executor& executor) const {
    Plan plan = plan_;
    if (own && Plan::make(plan_.spec(), &plan) != Status::ok) return false;
    Buffer y(data_.y.size()), dx(gradient_.dx.size());
    Buffer dgamma(gradient_.dgamma.size()), dbeta(gradient_.dbeta.size());
    std::vector<double> mean(data_.mean.size()), rstd(mean.size());
    Forward forward_args = data_.forward;
    forward_args.y = y.data();
    forward_args.mean = mean.data();
    forward_args.rstd = rstd.data();
    Backward backward_args = gradient_.backward;
    backward_args.dx = dx.data();
    backward_args.dgamma = dgamma.data();
    backward_args.dbeta = dbeta.data();
    return forward(plan, forward_args, executor) && same(y, data_.y) && mean == data_.mean &&
           rstd == data_.rstd && backward(plan, backward_args, executor) &&
           same(dx, gradient_.dx) && same(dgamma, gradient_.dgamma) && same(dbeta, gradient_.dbeta);
  }

 private:
  static bool same(const Buffer& a, const Buffer& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
  }
  static bool forward(const Plan& plan, const Forward& args, const Executor& executor) {
    std::vector<std::byte> workspace(plan.workspace_bytes());
    return plan.forward(args, workspace, executor) == Status::ok;
  }
  static bool backward(const Plan& plan, const Backward& args, const Executor& executor) {
    std::vector<std::byte> workspace(plan.backward_workspace_bytes());
    return plan.backward(args, workspace, executor) == Status::ok;
  }

  Plan plan_;
  Data data_;
  GradientData gradient_;
};

TEST(Callers, ThirtyTwoAtOnce) {
  const Layout layouts[] = {Layout::channels_first, Layout::channels_last};
  std::vector<Work> works;
  for (const Layout layout : layouts) {
    works.emplace_back(Case{.name = "large", .spec = group_spec({1, 8, 9000}, 1, layout)});
    works.emplace_back(Case{.name = "small", .spec = group_spec({2, 12, 17}, 3, layout)});
  }
  const std::chrono::seconds time(long_tests() ? 60 : 1);
  const auto end = std::chrono::steady_clock::now() + time;
  std::atomic<std::int64_t> calls = 0, wrong = 0;
  std::vector<std::thread> callers;
  callers.reserve(kCallers);
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      auto i = static_cast<std::size_t>(caller);
      do {
        const Executor executor = i % 3 == 0 ? Executor() : pool(1 + caller % 4);
        if (!works[i % works.size()].repeat(i % 2 == 0, executor)) ++wrong;
        ++calls;
        ++i;
      } while (std::chrono::steady_clock::now() < end);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0) << "of " << calls.load();
  std::printf("%lld forward and backward calls by %d callers, %lld wrong\n",
              static_cast<long long>(calls.load()), kCallers, static_cast<long long>(wrong.load()));
}

}  // namespace
}  // namespace groupnorm::testing
