// What the edge build does not have: threads of its own, exceptions, and backward.
#include "parallel.h"

#include <groupnorm/groupnorm.hpp>

namespace groupnorm {

bool detail::hand_out(const Executor& executor, std::int64_t count, Executor::Task task,
                      void* arg) noexcept {
  executor.run(executor.context, count, task, arg);
  return true;
}

Executor pool(int) noexcept { return {}; }  // the calling thread

std::size_t Plan::backward_workspace_bytes() const noexcept { return 0; }

Status Plan::backward(const Backward&, std::span<std::byte>, const Executor&) const noexcept {
  return target_ == nullptr ? Status::not_planned : Status::not_built;
}

Status Plan::reduce_gradient(const Backward&, BlockSums*, std::span<std::byte>,
                             const Executor&) const noexcept {
  return target_ == nullptr ? Status::not_planned : Status::not_built;
}

Status Plan::apply_gradient(const Backward&, const BlockSums*, double,
                            const Executor&) const noexcept {
  return target_ == nullptr ? Status::not_planned : Status::not_built;
}

}  // namespace groupnorm
