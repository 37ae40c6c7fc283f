// Memory between two pages that must not be touched.
#ifndef GROUPNORM_TESTS_ENGINE_GUARDED_H
#define GROUPNORM_TESTS_ENGINE_GUARDED_H

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

namespace groupnorm::testing {

enum class Side { before, behind };

// `bytes` bytes between two pages that cannot be touched, against one of them.
class Guarded {
 public:
  Guarded(std::size_t bytes, Side side) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inside = (bytes + page - 1) / page * page;
    size_ = inside + 2 * page;
    void* const all = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::runtime_error("mmap");
    start_ = static_cast<std::byte*>(all);
    mprotect(start_ + page, inside, PROT_READ | PROT_WRITE);
    data_ = start_ + page + (side == Side::behind ? inside - bytes : 0);
  }
  ~Guarded() { munmap(start_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* start_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Arrays of a call, each moved to a Guarded of its own.
class GuardedCopies {
 public:
  explicit GuardedCopies(Side side) : side_(side) {}

  // *pointer becomes that of the copy; a null one stays.
  template <class T>
  void copy(T** pointer, std::size_t bytes) {
    if (*pointer == nullptr) return;
    copies_.push_back(std::make_unique<Guarded>(bytes, side_));
    std::byte* const data = copies_.back()->data();
    std::memcpy(data, *pointer, bytes);
    *pointer = static_cast<T*>(static_cast<void*>(data));
  }

 private:
  Side side_;
  std::vector<std::unique_ptr<Guarded>> copies_;
};

}  // namespace groupnorm::testing

#endif
