// The edge build against the reference, on every case that it takes; the others it refuses in
// words.
#include <groupnorm/groupnorm.hpp>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "testing/cases.h"

namespace groupnorm::testing {
namespace {

int failures = 0;

void expect(bool right, const char* what, const std::string& where) {
  if (right) return;
  std::printf("FAILED %s: %s\n", what, where.c_str());
  ++failures;
}

void expect_within_bound(const Case& c) {
  constexpr std::uint64_t kSeed = 7;
  const Data data = make_data(c, kSeed);
  const detail::ReferenceResult exact = detail::reference_forward(c.spec, data.forward);
  Plan plan;
  expect(Plan::make(c.spec, &plan) == Status::ok, "Plan::make", c.name);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  expect(plan.forward(data.forward, workspace, pool()) == Status::ok, "forward", c.name);
  expect(compare(c.spec, exact, data.y.data()).within_bound(), "the bound, seed 7", c.name);
  expect(plan.backward({}, {}) == Status::not_built, "backward is refused", c.name);
}

// By Plan::make or, where the Spec says nothing of them, by forward.
void expect_neighbours_refused(const Case& c) {
  const Data data = make_data(c, 7);
  Plan plan;
  const Status made = Plan::make(c.spec, &plan);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const Status status = made == Status::ok ? plan.forward(data.forward, workspace) : made;
  expect(status == Status::not_built, "neighbours are refused", c.name);
}

// A NaN makes its block NaN, whatever the activation, and no other block.
void expect_nan_kept(Activation activation) {
  Spec spec{.shape = {2, 4, 37}, .block = Block{1, 2}, .activation = activation};
  std::vector<float> x(2 * 4 * 37), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 11);
  x[90] = std::numeric_limits<float>::quiet_NaN();  // of block 1
  Plan plan;
  expect(Plan::make(spec, &plan) == Status::ok, "Plan::make", "NaN");
  std::vector<std::byte> workspace(plan.workspace_bytes());
  const Forward args{.x = x.data(), .y = y.data()};
  expect(plan.forward(args, workspace) == Status::ok, "forward", "NaN");
  for (std::size_t i = 0; i < y.size(); ++i) {
    if (std::isnan(y[i]) == (i / (2 * 37) == 1)) continue;
    const auto number = std::to_string(static_cast<int>(activation));
    return expect(
        false, "NaN is kept",
        "activation " + number + ", element " + std::to_string(i) + ": " + std::to_string(y[i]));
  }
}

int run() {
  constexpr std::int64_t kMostElements = std::int64_t{1} << 18;  // an emulator takes its time
  int checked = 0, refused = 0;
  for (const Case& c : cases()) {
    const auto [n, channels, s] = c.spec.shape;
    if (n * channels * s > kMostElements) continue;
    if (c.spec.data == DType::f32 && has_neighbours(c)) {
      expect_neighbours_refused(c);
      ++refused;
      continue;
    }
    if (c.spec.data == DType::f32) {
      expect_within_bound(c);
      ++checked;
      continue;
    }
    Plan plan;
    expect(Plan::make(c.spec, &plan) == Status::not_built, "the dtype is refused", c.name);
    ++refused;
  }
  for (const Activation activation :
       {Activation::none, Activation::relu, Activation::silu, Activation::gelu,
        Activation::gelu_tanh, Activation::hard_swish}) {
    expect_nan_kept(activation);
  }
  expect(targets().size() == 1 && std::strcmp(targets()[0], active_target()) == 0, "targets", "");
  std::printf("%d f32 cases checked on %s, %d of other dtypes or neighbours refused, %d failures\n",
              checked, active_target(), refused, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace groupnorm::testing

int main() { return groupnorm::testing::run(); }
