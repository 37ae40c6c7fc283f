// The oracle: any Spec in plain double loops over (n, c, s), sharing nothing with the engine.
// Tests, `groupnorm check`, fuzzers and benchmarks compare with it; it is itself held against
// closed forms and PyTorch in float64.
#ifndef GROUPNORM_SRC_REFERENCE_H
#define GROUPNORM_SRC_REFERENCE_H

#include <groupnorm/groupnorm.hpp>

#include <vector>

namespace groupnorm::detail {

struct ReferenceResult {
  std::vector<double> y;  // [n, c, s] in the Spec's layout, not rounded to its dtype
  // Of y: 1 + |gamma (1 + scale) xhat| + |beta (1 + scale)| + |offset| + |residual|, what errors
  // are measured against.
  std::vector<double> scale;
  std::vector<double> sum;   // [n, c, s] where args.sum is not null: u, in the compute type
  std::vector<double> mean;  // one a block
  std::vector<double> rstd;
};

// `args` as for Plan::forward, of a Spec that Plan::make accepts; args.y, mean and rstd are not
// used.
ReferenceResult reference_forward(const Spec& spec, const Forward& args);

struct ReferenceGradient {
  std::vector<double> dx;  // [n, c, s] in the Spec's layout
  // [c], or rows of it with the Spec's param_stride (what lies between the rows is 0). Where args
  // accumulate, what dgamma and dbeta held is in it.
  std::vector<double> dgamma, dbeta;
  std::vector<double> dresidual;                // as dx, where args.dresidual is not null
  std::vector<double> dshift, dscale, doffset;  // [n / sequence, c]
  // The sums of the absolute terms, what errors are measured against. A term dz counts as
  //   |dz| + max |activation''| * (the scale of y) * |dy|,
  // for an error of z reaches it through the derivative.
  std::vector<double> dgamma_scale, dbeta_scale, dresidual_scale, dshift_scale, dscale_scale,
      doffset_scale;  // as the gradients
  // One a block, the largest in it: rstd (|gamma (1 + scale) dz| + |D/m| + |xhat E/m|) + |dsum|.
  std::vector<double> dx_scale;
};

// `args` as for Plan::backward; all gradients but dresidual are made, asked for or not. Read before
// the engine writes: dx may be dy, and dgamma and dbeta may accumulate.
ReferenceGradient reference_backward(const Spec& spec, const Backward& args);

double reference_activation(Activation activation, double z);
// Its derivative. Where that jumps, as PyTorch: 0 for relu at 0; for hard_swish 0 at -3, 1 at 3.
double reference_derivative(Activation activation, double z);

}  // namespace groupnorm::detail

#endif
