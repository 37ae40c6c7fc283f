// aten::native_group_norm and native_group_norm_backward on CPUs, by the engine: torch's own
// autograd, dispatcher and functions stay, and what lies beneath them is ours.
#ifndef GROUPNORM_PYTHON_SRC_TORCH_KERNELS_H
#define GROUPNORM_PYTHON_SRC_TORCH_KERNELS_H

#include <cstdint>
#include <string>
#include <vector>

#include "threads.h"

namespace groupnorm::python {

// A function of torch's C interface, by name.
struct TorchFunction {
  std::string name;
  bool needed;  // false: of later versions alone
};

std::vector<TorchFunction> torch_functions();

// Takes the addresses of torch_functions(), in their order; 0 where one is missing and not needed.
// Once in a process, before torch_override.
void torch_link(const std::vector<std::uintptr_t>& addresses, const Threads& threads);

// Registers the kernels, or removes them; does nothing where that is so already. Calls and
// registrations must not go on at the same time as another of these.
void torch_override(bool on);

// How many calls the engine has computed, and how many went on to torch's own kernels.
struct TorchCalls {
  std::uint64_t forward;
  std::uint64_t backward;
  std::uint64_t left;
};

TorchCalls torch_calls();

// For the operators groupnorm::torch_..., which run torch's own kernels: why torch refuses the call
// that this thread is in. The call fails with these words.
void torch_refuse(const std::string& words);

}  // namespace groupnorm::python

#endif
