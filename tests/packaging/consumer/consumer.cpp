// Normalizes through the engine, and sees an exception of the library as what it is.
#include <groupnorm/groupnorm.hpp>
#include <groupnorm/layers.hpp>

#include <array>
#include <cstddef>
#include <vector>

int main() {
  const groupnorm::Shape shape{1, 2, 2};
  const groupnorm::Spec spec{.shape = shape, .block = groupnorm::group_norm(shape, 1)};
  groupnorm::Plan plan;
  if (groupnorm::Plan::make(spec, &plan) != groupnorm::Status::ok) return 1;

  std::array x{1.0F, 3.0F, 1.0F, 3.0F};
  std::vector<std::byte> workspace(plan.workspace_bytes());
  if (plan.forward({.x = x.data(), .y = x.data()}, workspace) != groupnorm::Status::ok) return 2;
  if (x[0] > -0.999F || x[0] < -1.0F || x[1] != -x[0]) return 3;

  try {
    groupnorm::GroupNormalization(3).forward(groupnorm::Tensor({1, 2, 2}));
    return 4;
  } catch (const groupnorm::Error&) {
    return 0;
  }
}
