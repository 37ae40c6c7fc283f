// Copies of memory: what the speed of a normalization is measured against.
#ifndef GROUPNORM_TOOLS_COPY_H
#define GROUPNORM_TOOLS_COPY_H

#include <groupnorm/groupnorm.hpp>

#include <cstddef>

namespace groupnorm::tools {

using Copy = void (*)(std::byte* to, const std::byte* from, std::size_t bytes);

void plain_copy(std::byte* to, const std::byte* from, std::size_t bytes);  // memcpy

// With stores that go past the caches, which reads nothing of `to`; memcpy where there are none.
void streaming_copy(std::byte* to, const std::byte* from, std::size_t bytes);

// `copy` in one piece a thread of `executor`.
void parallel_copy(Copy copy, std::byte* to, const std::byte* from, std::size_t bytes,
                   const Executor& executor);

}  // namespace groupnorm::tools

#endif
