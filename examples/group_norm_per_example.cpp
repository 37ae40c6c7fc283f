// Each example of x [N, C, H] is normalized by itself, in groups of C / num_groups channels over
// all H, by the variance divided by m; there is no gamma and no beta.
//
// (The Java program of softwarepatternslexicon.com, "Group Normalization".)
#include <groupnorm/layers.hpp>

#include "plain.h"

int main() {
  groupnorm::Tensor x({4, 12, 50});
  fill_normal(x.data<float>(), /*mean=*/-1, /*deviation=*/5);

  groupnorm::GroupNormalization gn(/*num_groups=*/3);
  const groupnorm::Tensor y = gn.forward(x);

  const groupnorm::Shape shape = x.ncs();
  return compare("each example by itself", y.data<float>(),
                 plain_xhat(x.data<float>(), shape, groupnorm::group_norm(shape, 3),
                            /*correction=*/0, gn.options.eps),
                 3);
}
