// The edge build against the reference, on every case that it takes; the others it refuses in
// words.
#include <groupnorm/groupnorm.hpp>

#include <cstdio>
#include <cstring>
#include <vector>

#include "cases.h"

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

int run() {
  constexpr std::int64_t kMostElements = std::int64_t{1} << 18;  // an emulator takes its time
  int checked = 0, refused = 0;
  for (const Case& c : cases()) {
    const auto [n, channels, s] = c.spec.shape;
    if (n * channels * s > kMostElements) continue;
    if (c.spec.data == DType::f32) {
      expect_within_bound(c);
      ++checked;
      continue;
    }
    Plan plan;
    expect(Plan::make(c.spec, &plan) == Status::not_built, "the dtype is refused", c.name);
    ++refused;
  }
  expect(targets().size() == 1 && std::strcmp(targets()[0], active_target()) == 0, "targets", "");
  std::printf("%d f32 cases checked on %s, %d of other dtypes refused, %d failures\n", checked,
              active_target(), refused, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace groupnorm::testing

int main() { return groupnorm::testing::run(); }
