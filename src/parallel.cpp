// The built-in pool: a few threads that share the tasks of one call at a time.
#include "parallel.h"

#include "cgroup.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <thread>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#include <csignal>
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

// ---- What a thread takes over from the one that starts it, and should not

// Signals are the program's, to be taken by its own threads: while there is one of these, a thread
// that is started blocks them, but for those that tell of a fault of its own.
class SignalsBlocked {
#if defined(__unix__) || defined(__APPLE__)
 public:
  SignalsBlocked() {
    sigset_t signals;
    sigfillset(&signals);
    for (const int fault : {SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP}) {
      sigdelset(&signals, fault);
    }
    pthread_sigmask(SIG_SETMASK, &signals, &callers_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &callers_, nullptr); }

 private:
  sigset_t callers_{};
#endif
};

// The cores, the scheduling policy and the priority are those of the process, that is, of its main
// thread: the first caller may have pinned itself to one core, or be the one that has to hurry.
class LikeTheProcess {
#if defined(__linux__)
 public:
  LikeTheProcess() {
    const pid_t process = getpid();
    sched_param param{};
    const int policy = sched_getscheduler(process);
    if (policy >= 0 && sched_getparam(process, &param) == 0) sched_setscheduler(0, policy, &param);
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, static_cast<id_t>(process)));
    pthread_setname_np(pthread_self(), "groupnorm");
  }

  // Its cores may change.
  void follow() {
    cpu_set_t cores;
    if (sched_getaffinity(getpid(), sizeof(cores), &cores) != 0) return;
    if (CPU_EQUAL(&cores, &cores_)) return;
    cores_ = cores;
    sched_setaffinity(0, sizeof(cores), &cores);
  }

 private:
  cpu_set_t cores_{};
#else
 public:
  void follow() {}
#endif
};

// ---- The pool

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
    if (threads_.size() >= threads) return;
    const SignalsBlocked blocked;
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
    LikeTheProcess like_the_process;
    like_the_process.follow();
    while (!stop_.load(std::memory_order_relaxed)) {
      while (claim()) {
      }
      std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
      for (int i = 0; i < kSpins && ticket % kJob == 0; ++i) {
        pause();
        ticket = ticket_.load(std::memory_order_acquire);
      }
      if (ticket % kJob == 0 && !stop_.load(std::memory_order_relaxed)) {
        ticket_.wait(ticket);
        like_the_process.follow();
      }
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

  // Ends the threads; the pool stays busy, so that later calls run where they are. In the middle of
  // a call, exit() is what ends the process, perhaps from a task that could not be waited for: the
  // threads are left to it.
  void close() {
    if (!busy_.test_and_set(std::memory_order_acquire)) delete std::exchange(crew_, nullptr);
  }

  // A forked child has the parent's handles but none of its threads, which can be neither used nor
  // joined; and nobody in it is in the middle of another thread's call.
  void forget() {
    crew_ = nullptr;
    busy_.clear();
  }

 private:
  bool prepare(std::int64_t count) {
    if (crew_ == nullptr) crew_ = new (std::nothrow) Crew;
    if (crew_ == nullptr) return false;
    const std::int64_t most = most_.load(std::memory_order_relaxed);
    crew_->grow(static_cast<std::size_t>(std::min(count, most) - 1));
    return true;
  }

  std::atomic_flag busy_;
  std::atomic<int> most_{1};
  Crew* crew_ = nullptr;
};

// There before and after all that the program constructs: calls may come from there.
constinit Pool the_pool;

// From loading the library to unloading it, or to the end of the process.
const struct Lifetime {
  Lifetime() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { the_pool.forget(); });
#endif
  }
  Lifetime(const Lifetime&) = delete;
  Lifetime& operator=(const Lifetime&) = delete;
  ~Lifetime() { the_pool.close(); }
} lifetime;

// Those that the process may run on: its main thread, whatever the calling one is pinned to.
int cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(getpid(), sizeof(set), &set) == 0) return CPU_COUNT(&set);
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
  const double quota = std::ceil(cgroup_cores());
  return static_cast<int>(std::clamp<double>(std::min<double>(cores(), quota), 1, kMaxThreads));
}

}  // namespace

bool hand_out(const Executor& executor, std::int64_t count, Executor::Task task,
              void* arg) noexcept {
  try {
    executor.run(executor.context, count, task, arg);
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace detail

Executor pool(int threads) noexcept {
  static const int by_default = detail::default_threads();
  const int asked = threads > 0 ? std::min(threads, detail::kMaxThreads) : by_default;
  detail::the_pool.allow(asked);
  const auto run = [](void* context, std::int64_t count, Executor::Task task, void* arg) {
    static_cast<detail::Pool*>(context)->run(count, task, arg);
  };
  return {run, &detail::the_pool, asked};
}

}  // namespace groupnorm
