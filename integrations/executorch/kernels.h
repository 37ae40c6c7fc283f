// ExecuTorch's group and layer normalization by the engine: aten::native_group_norm.out and
// aten::native_layer_norm.out on CPUs, for every model, as it was exported.
#ifndef GROUPNORM_INTEGRATIONS_EXECUTORCH_KERNELS_H
#define GROUPNORM_INTEGRATIONS_EXECUTORCH_KERNELS_H

#include <groupnorm/groupnorm.h>

namespace groupnorm::executorch {

// What the kernels call. By default the engine that the program links; the library for Python is
// given that of the Python package.
struct Engine {
  decltype(&gn_plan_make) plan_make = gn_plan_make;
  decltype(&gn_plan_workspace_bytes) workspace_bytes = gn_plan_workspace_bytes;
  decltype(&gn_forward) forward = gn_forward;
  decltype(&gn_status_string) status_string = gn_status_string;
};

// Registers the kernels with the runtime that the process holds: methods that are loaded from now
// on call them. They have keys of dtypes and dim orders, which the runtime prefers to the portable
// kernels, registered before or after. A key that is registered already stays as it is, so a second
// call does nothing. As with every registration, no other thread may register or load meanwhile.
extern "C" __attribute__((visibility("default"))) void groupnorm_register_executorch_kernels(
    const Engine& given = {});

}  // namespace groupnorm::executorch

#endif
