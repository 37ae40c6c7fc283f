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

struct ReferenceGradient {
  std::vector<double> dx;  // [n, c, s] in the Spec's layout
  // [c], or [n, c] with the Spec's param_stride (what lies between the rows is 0). Where args
  // accumulate, what dgamma and dbeta held is in it.
  std::vector<double> dgamma, dbeta;
  // The sums of the absolute terms, what errors are measured against. A term dz counts as
  //   |dz| + max |activation''| * (1 + |gamma * xhat| + |beta|) * |dy|,
  // for an error of z reaches it through the derivative.
  std::vector<double> dx_scale;  // one a block: its largest rstd (|gamma dz| + |D/m| + |xhat E/m|)
  std::vector<double> dgamma_scale, dbeta_scale;  // as dgamma
};

// `args` as for Plan::backward; all three gradients are made, asked for or not. Read before the
// engine writes: dx may be dy, and dgamma and dbeta may accumulate.
ReferenceGradient reference_backward(const Spec& spec, const Backward& args);

double reference_activation(Activation activation, double z);
// Its derivative. Where that jumps, as PyTorch: 0 for relu at 0; for hard_swish 0 at -3, 1 at 3.
double reference_derivative(Activation activation, double z);

}  // namespace groupnorm::detail

#endif
