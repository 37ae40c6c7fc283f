// The oracle: any Spec in plain double loops over (n, c, s), sharing nothing with the engine.
// Tests, `groupnorm check`, fuzzers and benchmarks compare with it; it is itself held against
// closed forms and PyTorch in float64.
#ifndef GROUPNORM_SRC_REFERENCE_H
#define GROUPNORM_SRC_REFERENCE_H

#include <groupnorm/groupnorm.hpp>

#include <vector>

namespace groupnorm::detail {

struct ReferenceResult {
  std::vector<double> y;      // [n, c, s] in the Spec's layout, not rounded to its dtype
  std::vector<double> scale;  // of y: 1 + |gamma * xhat| + |beta|, what errors are measured against
  std::vector<double> mean;   // one a block
  std::vector<double> rstd;
};

// `args` as for Plan::forward, of a Spec that Plan::make accepts; args.y, mean and rstd are not
// used.
ReferenceResult reference_forward(const Spec& spec, const Forward& args);

double reference_activation(Activation activation, double z);

}  // namespace groupnorm::detail

#endif
