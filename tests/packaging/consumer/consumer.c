/* C11, by the C compiler, and linked the way the package says. */
#include <groupnorm/groupnorm.h>

#include <string.h>

int main(void) {
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){1, 4, 3};
  spec.block = gn_group_norm(spec.shape, 3);
  gn_plan plan = {{0}};
  if (gn_plan_make(&spec, NULL, &plan) != GN_STATUS_GROUPS_DO_NOT_DIVIDE) return 1;
  return strcmp(gn_version(), GROUPNORM_VERSION) == 0 ? 0 : 2;
}
