// Work cut into contiguous ranges over an Executor's threads.
#ifndef GROUPNORM_SRC_PARALLEL_H
#define GROUPNORM_SRC_PARALLEL_H

#include "range.h"
#include "tuning.h"

#include <groupnorm/groupnorm.hpp>

#include <algorithm>

namespace groupnorm::detail {

// body(begin, end) over disjoint ranges that cover [0, count), at most one a thread.
template <class Body>
void parallel_for(const Executor& executor, std::int64_t count, const Body& body) {
  const std::int64_t tasks = std::min<std::int64_t>(executor.threads, count);
  if (executor.run == nullptr || tasks <= 1) return body(std::int64_t{0}, count);
  struct Job {
    const Body& body;
    std::int64_t count, tasks;
  } job{body, count, tasks};
  const Executor::Task task = [](void* arg, std::int64_t index) {
    const Job& j = *static_cast<const Job*>(arg);
    const Range range = share(index, j.tasks, j.count);
    j.body(range.begin, range.end);
  };
  executor.run(executor.context, tasks, task, &job);
}

}  // namespace groupnorm::detail

#endif
