// What the edge build does not have: threads of its own, and backward.
#include <groupnorm/groupnorm.hpp>

namespace groupnorm {

Executor pool(int) noexcept { return {}; }  // the calling thread

std::size_t Plan::backward_workspace_bytes() const noexcept { return 0; }

Status Plan::backward(const Backward&, std::span<std::byte>, const Executor&) const noexcept {
  return target_ == nullptr ? Status::not_planned : Status::not_built;
}

}  // namespace groupnorm
