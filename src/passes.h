// Forward and backward of one ordinary call, of arguments that are checked and a tensor that is not
// empty; and calls that are made of several of those (composed.cpp).
#ifndef GROUPNORM_SRC_PASSES_H
#define GROUPNORM_SRC_PASSES_H

#include <groupnorm/groupnorm.hpp>

#include <cstddef>
#include <span>

namespace groupnorm::detail {

struct Target;

std::size_t forward_workspace(const Schedule& schedule) noexcept;
Status forward(const Spec& spec, const Schedule& schedule, const Target& target,
               const Forward& args, std::span<std::byte> workspace,
               const Executor& executor) noexcept;

std::size_t backward_workspace(const Spec& spec, const Schedule& schedule) noexcept;
Status backward(const Spec& spec, const Schedule& schedule, const Target& target,
                const Backward& args, std::span<std::byte> workspace,
                const Executor& executor) noexcept;

std::size_t composed_workspace(const Spec& spec, const Target& target) noexcept;
Status composed_forward(const Spec& spec, const Target& target, const Forward& args,
                        std::span<std::byte> workspace, const Executor& executor) noexcept;

std::size_t composed_backward_workspace(const Spec& spec, const Target& target) noexcept;
Status composed_backward(const Spec& spec, const Target& target, const Backward& args,
                         std::span<std::byte> workspace, const Executor& executor) noexcept;

}  // namespace groupnorm::detail

#endif
