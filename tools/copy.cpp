#include "copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace groupnorm::tools {

void plain_copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

#ifdef __SSE2__
// SSE2 is enough: whole cache lines leave the core in the same write-combining buffers however wide
// the stores are that fill them.
void streaming_copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  constexpr std::size_t kVectors = 16;
  constexpr std::size_t kStep = kVectors * sizeof(__m128i);
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(to) % sizeof(__m128i);
  const std::size_t head = std::min(bytes, misaligned == 0 ? 0 : sizeof(__m128i) - misaligned);
  std::memcpy(to, from, head);
  std::size_t at = head;
  for (; bytes - at >= kStep; at += kStep) {
    __m128i vectors[kVectors];
    const auto* source = reinterpret_cast<const __m128i*>(from + at);
    auto* target = reinterpret_cast<__m128i*>(to + at);
    for (std::size_t i = 0; i < kVectors; ++i) vectors[i] = _mm_loadu_si128(source + i);
    for (std::size_t i = 0; i < kVectors; ++i) _mm_stream_si128(target + i, vectors[i]);
  }
  std::memcpy(to + at, from + at, bytes - at);
  _mm_sfence();
}
#else
void streaming_copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  plain_copy(to, from, bytes);
}
#endif

void parallel_copy(Copy copy, std::byte* to, const std::byte* from, std::size_t bytes,
                   const Executor& executor) {
  if (executor.run == nullptr || executor.threads == 1) return copy(to, from, bytes);
  struct Job {
    Copy copy;
    std::byte* to;
    const std::byte* from;
    std::size_t bytes, piece;
  };
  constexpr std::size_t kLine = 64;
  const auto threads = static_cast<std::size_t>(executor.threads);
  const std::size_t piece = ((bytes + threads - 1) / threads + kLine - 1) / kLine * kLine;
  Job job{copy, to, from, bytes, piece};
  const auto task = [](void* arg, std::int64_t index) {
    const Job& part = *static_cast<const Job*>(arg);
    const std::size_t begin = std::min(static_cast<std::size_t>(index) * part.piece, part.bytes);
    const std::size_t end = std::min(begin + part.piece, part.bytes);
    part.copy(part.to + begin, part.from + begin, end - begin);
  };
  executor.run(executor.context, executor.threads, task, &job);
}

}  // namespace groupnorm::tools
