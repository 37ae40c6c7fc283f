/* C11: the 4 channels of each of 2 examples, x [2, 4, 3], are normalized in 2 groups, with SiLU
 * fused, in memory that the program owns. */
#include <groupnorm/groupnorm.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { kN = 2, kC = 4, kS = 3, kGroups = 2, kGroup = kC / kGroups * kS, kSize = kN * kC * kS };

static double silu(double z) { return z / (1 + exp(-z)); }

/* The largest |y - expected|, from the definition. A group's channels lie side by side. */
static double largest_error(const float* x, const float* y, double eps) {
  double largest = 0;
  for (int first = 0; first < kSize; first += kGroup) {
    double mean = 0, var = 0;
    for (int i = first; i < first + kGroup; ++i) mean += x[i] / (double)kGroup;
    for (int i = first; i < first + kGroup; ++i) var += (x[i] - mean) * (x[i] - mean) / kGroup;
    for (int i = first; i < first + kGroup; ++i) {
      largest = fmax(largest, fabs(y[i] - silu((x[i] - mean) / sqrt(var + eps))));
    }
  }
  return largest;
}

int main(void) {
  float x[kSize], y[kSize];
  for (int i = 0; i < kSize; ++i) x[i] = (float)(i * i % 11);

  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){kN, kC, kS};
  spec.block = gn_group_norm(spec.shape, kGroups);
  spec.activation = GN_ACTIVATION_SILU;

  gn_plan plan = {0};
  gn_status status = gn_plan_make(&spec, NULL, &plan);
  if (status != GN_STATUS_OK) {
    fprintf(stderr, "plan: %s\n", gn_status_string(status));
    return 1;
  }
  const size_t bytes = gn_plan_workspace_bytes(&plan);
  void* workspace = malloc(bytes + 1); /* malloc(0) may be null */
  if (workspace == NULL) return 1;

  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = x;
  args.y = y;
  const gn_executor threads = gn_pool(0);
  status = gn_forward(&plan, &args, workspace, bytes, &threads);
  free(workspace);
  if (status != GN_STATUS_OK) {
    fprintf(stderr, "forward: %s\n", gn_status_string(status));
    return 1;
  }

  const double error = largest_error(x, y, spec.eps);
  const int ok = error < 1e-6;
  printf("groupnorm %s on %s: off by %.1e at most: %s\n", gn_version(), gn_plan_target(&plan),
         error, ok ? "ok" : "WRONG");
  return ok ? 0 : 1;
}
