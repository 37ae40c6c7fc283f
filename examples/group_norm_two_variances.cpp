// The 32 channels of each example of x [16, 32, 64, 64] are normalized in 8 groups over all their
// positions, then scaled by gamma and shifted by beta, one a channel; the variance is divided by
// m - 1, as torch's x.var() does, and by m, as torch.nn.GroupNorm does.
//
// (The Python program of softwarepatternslexicon.com, "Group Normalization".)
#include <groupnorm/layers.hpp>

#include "plain.h"

int main() {
  groupnorm::Tensor x({16, 32, 64, 64});
  fill_normal(x.data<float>(), /*mean=*/3, /*deviation=*/2);

  groupnorm::GroupNormalization gn(/*num_groups=*/8, /*num_channels=*/32, /*eps=*/1e-5);
  for (std::size_t c = 0; c < 32; ++c) {
    gn.gamma()[c] = 1 + static_cast<double>(c) / 64;
    gn.beta()[c] = static_cast<double>(c) / 64;
  }

  const auto check = [&](const char* what, const groupnorm::Tensor& y) {
    const groupnorm::Shape shape = x.ncs();
    std::vector<double> expected =
        plain_xhat(x.data<float>(), shape, groupnorm::group_norm(shape, 8), gn.options.correction,
                   gn.options.eps);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const std::size_t c = i / static_cast<std::size_t>(shape.s) % 32;
      expected[i] = gn.gamma()[c] * expected[i] + gn.beta()[c];
    }
    return compare(what, y.data<float>(), expected, 4);
  };

  gn.options.correction = 1;
  const groupnorm::Tensor unbiased = gn.forward(x);
  const int wrong_unbiased = check("variance / (m - 1)", unbiased);

  gn.options.correction = 0;
  const groupnorm::Tensor biased = gn.forward(x);
  const int wrong_biased = check("variance / m      ", biased);

  // xhat differs by the factor sqrt(1 - 1/m), m = 4 channels * 64 * 64: one part in 2 m.
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < biased.data<float>().size(); ++i) {
    const double a = unbiased.data<float>()[i], b = biased.data<float>()[i];
    difference = std::max(difference, std::fabs(a - b));
    largest = std::max(largest, std::fabs(b));
  }
  std::printf("the two differ by %.2e at most, in values up to %.1f\n", difference, largest);
  return wrong_unbiased + wrong_biased + (difference > 0 ? 0 : 1);
}
