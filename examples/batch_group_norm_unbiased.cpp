// The matrix x [16, 32] of doubles is normalized in 8 groups of 4 columns, each by the mean and the
// variance over all its rows and columns (m = 16 * 4), the variance divided by m - 1.
//
// (The Scala program of softwarepatternslexicon.com, "Group Normalization"; here on the engine
// itself, with memory of the caller's.)
#include <groupnorm/groupnorm.hpp>

#include "plain.h"

int main() {
  const groupnorm::Shape shape{.n = 16, .c = 32};
  groupnorm::Spec spec;
  spec.shape = shape;
  spec.block = groupnorm::batch_group_norm(shape, /*groups=*/8);
  spec.data = spec.param = groupnorm::DType::f64;
  spec.correction = 1;

  std::vector<double> x(512), y(x.size());
  fill_normal(std::span(x), /*mean=*/0.5, /*deviation=*/0.3);

  groupnorm::Plan plan;
  groupnorm::Status status = groupnorm::Plan::make(spec, &plan);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  if (status == groupnorm::Status::ok) {
    status = plan.forward({.x = x.data(), .y = y.data()}, workspace);
  }
  if (status != groupnorm::Status::ok) {
    std::printf("%s\n", groupnorm::status_string(status));
    return 1;
  }
  return compare("groups of columns over all rows, m - 1", y,
                 plain_xhat(x, shape, spec.block, spec.correction, spec.eps), 10);
}
