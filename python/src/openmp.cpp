#include "openmp.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace groupnorm::python {
namespace {

bool forked = false;

struct Job {
  const OpenMp& openmp;
  std::int64_t count;
  Executor::Task task;
  void* arg;
};

// The team may be smaller than was asked for.
void work(void* arg) {
  const Job& job = *static_cast<const Job*>(arg);
  const int team = job.openmp.get_num_threads();
  for (std::int64_t i = job.openmp.get_thread_num(); i < job.count; i += team) {
    job.task(job.arg, i);
  }
}

void run(void* context, std::int64_t count, Executor::Task task, void* arg) {
  const OpenMp& openmp = *static_cast<const OpenMp*>(context);
  if (count == 1 || forked || openmp.in_parallel() != 0) {
    for (std::int64_t i = 0; i < count; ++i) task(arg, i);
    return;
  }
  Job job{openmp, count, task, arg};
  openmp.parallel(work, &job, static_cast<unsigned>(count), 0);
}

}  // namespace

void watch_for_forks() noexcept {
#if defined(__unix__) || defined(__APPLE__)
  static const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  static_cast<void>(watching);
#endif
}

Executor OpenMp::executor(int threads) const noexcept {
  return {run, const_cast<OpenMp*>(this), threads};
}

}  // namespace groupnorm::python
