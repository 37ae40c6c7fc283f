/* Answers that need IEEE arithmetic. Linked by the C compiler, without the flags of the C++ files.
 */
#include <groupnorm/groupnorm.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { kElements = 3 * 1365 };

/* 0 where the normalized x[kElements] is `want` up to `bound`, and NaN where that is NaN; else 1.
 */
static int check(const char* name, const float* x, const float* want, double bound) {
  static float y[kElements];
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){1, 1, kElements};
  spec.block = gn_instance_norm(spec.shape);
  spec.eps = 0;
  gn_plan plan = {{0}};
  gn_status status = gn_plan_make(&spec, NULL, &plan);
  const size_t bytes = gn_plan_workspace_bytes(&plan);
  void* workspace = malloc(bytes + 1);
  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = x;
  args.y = y;
  if (status == GN_STATUS_OK) status = gn_forward(&plan, &args, workspace, bytes, NULL);
  free(workspace);
  if (status != GN_STATUS_OK) {
    printf("%s: %s\n", name, gn_status_string(status));
    return 1;
  }
  for (int i = 0; i < kElements; ++i) {
    const int right = isnan(want[i]) ? isnan(y[i]) : fabs((double)y[i] - (double)want[i]) <= bound;
    if (right) continue;
    printf("%s: y[%d] = %g, must be %g\n", name, i, (double)y[i], (double)want[i]);
    return 1;
  }
  return 0;
}

int main(void) {
  static float x[kElements], want[kElements];
  int wrong = 0;

  volatile double smallest = 0x1p-1022;
  if (smallest / 2 == 0) {
    printf("denormals are flushed: something was linked with -ffast-math\n");
    wrong = 1;
  }
  /* One number in three is above the others: xhat is sqrt(2), -sqrt(1/2), -sqrt(1/2), ... */
  const struct {
    const char* name;
    double least, spread;
  } rows[] = {{"plain", 0, 1}, {"far mean", 1e5, 1}, {"large", 0, 3e38}, {"tiny", 0, 0x1p-140}};
  const double bound = 3 * 0x1p-23 * (1 + sqrt(2)); /* docs/numerics.md */
  for (size_t row = 0; row < sizeof rows / sizeof *rows; ++row) {
    for (int i = 0; i < kElements; ++i) {
      x[i] = (float)(rows[row].least + (i % 3 == 0 ? rows[row].spread : 0));
      want[i] = (float)(i % 3 == 0 ? sqrt(2) : -sqrt(0.5));
    }
    wrong += check(rows[row].name, x, want, bound);
  }
  for (int i = 0; i < kElements; ++i) x[i] = 7, want[i] = 0;
  wrong += check("constant", x, want, 0);
  x[1234] = NAN;
  for (int i = 0; i < kElements; ++i) want[i] = NAN;
  wrong += check("NaN", x, want, 0);
  x[1234] = INFINITY;
  wrong += check("infinity", x, want, 0);
  return wrong;
}
