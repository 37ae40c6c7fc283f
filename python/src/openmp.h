// The threads of an OpenMP runtime that another library of this process has loaded.
//
// Beside PyTorch a second pool would start late: the runtime's workers spin on their cores for a
// while after each of its regions. So torch's own workers are given the work, by the two calls that
// compilers emit for a parallel region. Nothing here links OpenMP; addresses come from the caller.
#ifndef GROUPNORM_PYTHON_SRC_OPENMP_H
#define GROUPNORM_PYTHON_SRC_OPENMP_H

#include <groupnorm/groupnorm.hpp>

namespace groupnorm::python {

struct OpenMp {
  // libgomp's entry of a region, which LLVM's and Intel's runtimes export as well:
  // https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html
  using Region = void (*)(void* arg);
  void (*parallel)(Region region, void* arg, unsigned threads, unsigned flags);
  int (*get_thread_num)();   // OpenMP 4.5, 3.2.4
  int (*get_num_threads)();  // 3.2.2
  int (*in_parallel)();      // 3.2.6

  // Must outlive the Executor. Runs on the calling thread alone within a region of the caller's and
  // in a child process after fork, where the runtime has lost its workers.
  Executor executor(int threads) const noexcept;
};

// From now on a child process after fork is known for one; before that it would wait for workers
// that it has not.
void watch_for_forks() noexcept;

}  // namespace groupnorm::python

#endif
