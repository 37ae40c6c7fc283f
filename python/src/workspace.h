// Scratch memory of one call of the engine.
#ifndef GROUPNORM_PYTHON_SRC_WORKSPACE_H
#define GROUPNORM_PYTHON_SRC_WORKSPACE_H

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace groupnorm::python {

// What is small stays with the thread for its next call.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) {
    if (bytes > kSmall) {
      large_.reset(new std::byte[bytes]);
      span_ = {large_.get(), bytes};
      return;
    }
    thread_local std::vector<std::byte> small;
    if (small.size() < bytes) small.resize(bytes);
    span_ = small;
  }
  std::span<std::byte> span() const { return span_; }

 private:
  static constexpr std::size_t kSmall = std::size_t{1} << 18;
  std::unique_ptr<std::byte[]> large_;
  std::span<std::byte> span_;
};

}  // namespace groupnorm::python

#endif
