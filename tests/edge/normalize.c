/* What an edge program is: f32, channels first, C, memory of its own. Exit status 0: every group of
 * y has mean 0. */
#include <groupnorm/groupnorm.h>

enum { kN = 1, kC = 32, kS = 64, kGroups = 8, kGroup = kC / kGroups * kS, kSize = kN * kC * kS };

static float x[kSize], y[kSize];
static char workspace[1024];

int main(void) {
  for (int i = 0; i < kSize; ++i) x[i] = (float)(i * i % 11);

  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){kN, kC, kS};
  spec.block = gn_group_norm(spec.shape, kGroups);
  gn_plan plan = {0};
  if (gn_plan_make(&spec, NULL, &plan) != GN_STATUS_OK) return 1;

  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = x;
  args.y = y;
  if (gn_forward(&plan, &args, workspace, sizeof workspace, NULL) != GN_STATUS_OK) return 2;

  for (int first = 0; first < kSize; first += kGroup) {
    double sum = 0;
    for (int i = first; i < first + kGroup; ++i) sum += y[i];
    if (!(sum > -1e-4 && sum < 1e-4)) return 3;
  }
  return 0;
}
