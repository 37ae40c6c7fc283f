// 512 numbers from [0, 32), a matrix of 16 rows and 32 columns, are normalized in 8 groups of 4
// columns, each by the mean and the variance over all its rows and columns, the variance divided by
// m.
//
// (The Clojure program of softwarepatternslexicon.com, "Group Normalization"; here on the engine
// itself, in place, with the statistics of each group.)
#include <groupnorm/groupnorm.hpp>

#include "plain.h"

int main() {
  const groupnorm::Shape shape{.n = 16, .c = 32};
  groupnorm::Spec spec;
  spec.shape = shape;
  spec.block = groupnorm::batch_group_norm(shape, /*groups=*/8);
  spec.data = spec.param = groupnorm::DType::f64;

  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(0, 32);
  std::vector<double> x(512);
  std::ranges::generate(x, [&] { return uniform(random); });
  const std::vector<double> expected = plain_xhat(x, shape, spec.block, spec.correction, spec.eps);

  groupnorm::Plan plan;
  groupnorm::Status status = groupnorm::Plan::make(spec, &plan);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  std::vector<double> mean(8), rstd(8);
  if (status == groupnorm::Status::ok) {
    status = plan.forward({.x = x.data(), .y = x.data(), .mean = mean.data(), .rstd = rstd.data()},
                          workspace);
  }
  if (status != groupnorm::Status::ok) {
    std::printf("%s\n", groupnorm::status_string(status));
    return 1;
  }
  for (std::size_t g = 0; g < 8; ++g) {
    std::printf("group %zu: mean %6.3f, standard deviation %6.3f\n", g, mean[g], 1 / rstd[g]);
  }
  return compare("groups of columns over all rows, m", x, expected, 10);
}
