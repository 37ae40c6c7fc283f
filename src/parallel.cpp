// The built-in pool: a few threads that share the tasks of one call at a time.
#include "parallel.h"

#include "validate.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace groupnorm {
namespace detail {
namespace {

// About 20 microseconds: calls in a row find the threads awake, an idle process does not burn a
// core.
constexpr int kSpins = 1000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

std::int64_t process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return getpid();
#else
  return 0;
#endif
}

// The threads and the job they share. A ticket holds a count of jobs (high half) and how many of
// the current job's tasks are unclaimed (low half). Who lowers the low half owns that task, and
// until it is done the job's other fields cannot change.
class Crew {
 public:
  ~Crew() {
    stop_.store(true, std::memory_order_relaxed);
    ticket_.fetch_add(kJob, std::memory_order_release);
    ticket_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void grow(std::size_t threads) {
    while (threads_.size() < threads) {
      try {
        threads_.emplace_back([this] { work(); });
      } catch (...) {
        return;  // no more threads to be had: those that are there do the work
      }
    }
  }

  void run(std::int64_t count, Executor::Task task, void* arg) {
    task_ = task;
    arg_ = arg;
    left_.store(count, std::memory_order_relaxed);
    const std::uint64_t jobs = ticket_.load(std::memory_order_relaxed) & ~(kJob - 1);
    ticket_.store(jobs + kJob + static_cast<std::uint64_t>(count), std::memory_order_release);
    ticket_.notify_all();
    while (claim()) {
    }
    for (int i = 0; i < kSpins && left_.load(std::memory_order_acquire) != 0; ++i) pause();
    for (std::int64_t left = left_.load(std::memory_order_acquire); left != 0;
         left = left_.load(std::memory_order_acquire)) {
      left_.wait(left, std::memory_order_acquire);
    }
  }

 private:
  static constexpr std::uint64_t kJob = std::uint64_t{1} << 32;

  // Does one task; false if none is left.
  bool claim() {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
      if (ticket % kJob == 0) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire));
    task_(arg_, static_cast<std::int64_t>(ticket % kJob) - 1);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
    return true;
  }

  void work() {
    while (!stop_.load(std::memory_order_relaxed)) {
      while (claim()) {
      }
      std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
      for (int i = 0; i < kSpins && ticket % kJob == 0; ++i) {
        pause();
        ticket = ticket_.load(std::memory_order_acquire);
      }
      if (ticket % kJob == 0 && !stop_.load(std::memory_order_relaxed)) ticket_.wait(ticket);
    }
  }

  std::vector<std::thread> threads_;
  Executor::Task task_ = nullptr;
  void* arg_ = nullptr;
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<std::int64_t> left_{0};
  std::atomic<bool> stop_{false};
};

class Pool {
 public:
  ~Pool() { forget_after_fork(); }

  void run(std::int64_t count, Executor::Task task, void* arg) {
    // One job at a time: another caller's, or one from within a task, runs where it is.
    const bool ours = count > 1 && !busy_.test_and_set(std::memory_order_acquire);
    const bool shared = ours && prepare(count);
    if (shared) crew_->run(count, task, arg);
    if (ours) busy_.clear(std::memory_order_release);
    for (std::int64_t i = 0; i < count && !shared; ++i) task(arg, i);
  }

  // The most threads that anybody asked for are the most that run() starts.
  void allow(int threads) {
    int most = most_.load(std::memory_order_relaxed);
    while (most < threads && !most_.compare_exchange_weak(most, threads)) {
    }
  }

 private:
  bool prepare(std::int64_t count) {
    forget_after_fork();
    try {
      if (crew_ == nullptr) crew_ = std::make_unique<Crew>();
    } catch (...) {
      return false;
    }
    owner_ = process_id();
    const std::int64_t most = most_.load(std::memory_order_relaxed);
    crew_->grow(static_cast<std::size_t>(std::min(count, most) - 1));
    return true;
  }

  // A forked child has the parent's handles but none of its threads: they can be neither used nor
  // joined, so the handles are let go.
  void forget_after_fork() {
    if (crew_ != nullptr && owner_ != process_id()) static_cast<void>(crew_.release());
  }

  std::atomic_flag busy_;
  std::atomic<int> most_{1};
  std::unique_ptr<Crew> crew_;
  std::int64_t owner_ = 0;
};

int cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int default_threads() {
  if (const char* const text = std::getenv("GROUPNORM_NUM_THREADS"); text != nullptr) {
    char* end = nullptr;
    const long asked = std::strtol(text, &end, 10);
    if (end != text && *end == '\0' && asked >= 1 && asked <= kMaxThreads) {
      return static_cast<int>(asked);
    }
  }
  return std::min(cores(), kMaxThreads);
}

}  // namespace
}  // namespace detail

Executor pool(int threads) noexcept {
  static const int by_default = detail::default_threads();
  static detail::Pool pool;
  const int asked = threads > 0 ? std::min(threads, detail::kMaxThreads) : by_default;
  pool.allow(asked);
  const auto run = [](void* context, std::int64_t count, Executor::Task task, void* arg) {
    static_cast<detail::Pool*>(context)->run(count, task, arg);
  };
  return {run, &pool, asked};
}

}  // namespace groupnorm
