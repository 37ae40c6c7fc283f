// The only file that refuses anything: what a Spec, an Executor and the arguments of a call must
// be.
#ifndef GROUPNORM_SRC_VALIDATE_H
#define GROUPNORM_SRC_VALIDATE_H

#include <groupnorm/groupnorm.hpp>

namespace groupnorm::detail {

inline constexpr int kMaxThreads = 1024;

// Whether a call is made of several (composed.cpp): gamma and beta are made of others first, or the
// tensor is normalized sequence by sequence. (An ordinary call knows gamma and beta of one example
// or of all, and shifts of sequences of one example or of all.)
constexpr bool is_composed(const Spec& spec) {
  const bool rows_of_sequences =
      spec.param_stride != 0 || (spec.shift && spec.sequence != spec.shape.n);
  return spec.scale || spec.lengths || (spec.sequence != 1 && rows_of_sequences);
}

Status check_spec(const Spec& spec) noexcept;
Status check_executor(const Executor& executor) noexcept;

// For a tensor that is not empty. `blocks` and `needed` (bytes of workspace) come from the plan.
Status check_forward(const Spec& spec, std::int64_t blocks, const Forward& args,
                     std::span<std::byte> workspace, std::size_t needed) noexcept;

// Whether a call has what the calls on pieces of blocks do not take.
bool has_neighbours(const Spec& spec, const Backward& args) noexcept;

// `blocks` is blocks_of(spec); of an empty tensor x may be null.
Status check_reduce(const Spec& spec, std::int64_t blocks, const void* x, const Moments* moments,
                    std::span<std::byte> workspace, std::size_t needed) noexcept;
Status check_finish(const Moments* moments, std::int64_t blocks, const double* mean,
                    const double* rstd) noexcept;

// Of an empty tensor: of its arguments dgamma and dbeta alone are written, none is read.
Status check_backward_of_nothing(const Spec& spec, const Backward& args, std::int64_t blocks,
                                 const BlockSums* written) noexcept;
// `read` and `written` are sums of blocks, or null.
Status check_backward(const Spec& spec, std::int64_t blocks, const Backward& args,
                      const BlockSums* read, const BlockSums* written,
                      std::span<std::byte> workspace, std::size_t needed) noexcept;

}  // namespace groupnorm::detail

#endif
