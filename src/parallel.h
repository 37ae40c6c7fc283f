// Work cut into contiguous ranges over an Executor's threads.
#ifndef GROUPNORM_SRC_PARALLEL_H
#define GROUPNORM_SRC_PARALLEL_H

#include "floats.h"
#include "range.h"
#include "tuning.h"
#include "validate.h"

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <atomic>

namespace groupnorm::detail {

// What an executor has done of its tasks. It is the caller's, so it may leave some out, and a task
// that it runs twice must not be done twice: y may be x.
class Roll {
 public:
  explicit Roll(std::int64_t tasks) : tasks_(tasks) {}

  // False for a task that is not to be done: there is no such task, or it has begun before.
  bool begin(std::int64_t index) {
    if (index >= 0 && index < tasks_) {
      const std::uint32_t bit = std::uint32_t{1} << index % 32;
      if ((begun_[index / 32].fetch_or(bit, std::memory_order_relaxed) & bit) == 0) return true;
    }
    broken_.store(true, std::memory_order_relaxed);
    return false;
  }
  void end() { done_.fetch_add(1, std::memory_order_release); }

  // Each task once, and nothing else.
  bool is_complete() const {
    return done_.load(std::memory_order_acquire) == tasks_ &&
           !broken_.load(std::memory_order_relaxed);
  }

 private:
  std::int64_t tasks_;
  std::atomic<std::int32_t> done_{0};
  std::atomic<bool> broken_{false};
  std::atomic<std::uint32_t> begun_[kMaxThreads / 32]{};  // a bit each
};

// executor.run; false where it throws.
bool hand_out(const Executor& executor, std::int64_t count, Executor::Task task,
              void* arg) noexcept;

// body(begin, end) over disjoint ranges that cover [0, count), at most one a thread, each in the
// standard floating-point environment. False where the executor did not do its part.
template <class Body>
[[nodiscard]] bool parallel_for(const Executor& executor, std::int64_t count, const Body& body) {
  const std::int64_t tasks = std::min<std::int64_t>(executor.threads, count);
  if (executor.run == nullptr || tasks <= 1) {
    const StandardFloats floats;
    body(std::int64_t{0}, count);
    return true;
  }
  struct Job {
    const Body& body;
    std::int64_t count, tasks;
    Roll roll;
  } job{body, count, tasks, Roll(tasks)};
  const Executor::Task task = [](void* arg, std::int64_t index) {
    Job& j = *static_cast<Job*>(arg);
    if (!j.roll.begin(index)) return;
    const Range range = share(index, j.tasks, j.count);
    {
      const StandardFloats floats;
      j.body(range.begin, range.end);
    }
    j.roll.end();
  };
  return hand_out(executor, tasks, task, &job) && job.roll.is_complete();
}

}  // namespace groupnorm::detail

#endif
