// The threads that calls from Python run on.
#ifndef GROUPNORM_PYTHON_SRC_THREADS_H
#define GROUPNORM_PYTHON_SRC_THREADS_H

#include <groupnorm/groupnorm.hpp>

#include <optional>

#include "openmp.h"

namespace groupnorm::python {

// Where calls run: the built-in pool, or OpenMP's threads.
class Threads {
 public:
  Threads() = default;
  explicit Threads(const OpenMp& openmp) : openmp_(openmp) { watch_for_forks(); }
  // The Threads must outlive it.
  Executor executor(int threads) const {
    return openmp_ ? openmp_->executor(threads) : pool(threads);
  }

 private:
  std::optional<OpenMp> openmp_;
};

}  // namespace groupnorm::python

#endif
