// What the pool's threads are to the process that they live in: its signals, forks, cores and end.
#include "engine.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

namespace groupnorm::testing {
namespace {

using Clock = std::chrono::steady_clock;

// In a process of its own, whose pool has no thread yet. `body` says whether all is well.
void in_a_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    _exit(body() && !::testing::Test::HasFailure() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_FALSE(WIFSIGNALED(status)) << "signal " << WTERMSIG(status);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

bool within_10_seconds(const std::function<bool()>& holds) {
  const auto end = Clock::now() + std::chrono::seconds(10);
  while (!holds()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// Whether two tasks are under way at the same time.
bool two_meet() {
  struct Meeting {
    std::atomic<int> there = 0;
    std::atomic<bool> met = true;
  } meeting;
  const Executor executor = pool(2);
  const Executor::Task task = [](void* arg, std::int64_t) {
    Meeting& m = *static_cast<Meeting*>(arg);
    m.there.fetch_add(1);
    if (!within_10_seconds([&] { return m.there.load() == 2; })) m.met = false;
  };
  executor.run(executor.context, 2, task, &meeting);
  return meeting.met;
}

std::vector<pid_t> pool_threads() {
  std::vector<pid_t> threads;
  DIR* const tasks = opendir("/proc/self/task");
  while (const dirent* const task = readdir(tasks)) {
    std::string name;
    std::ifstream(std::string("/proc/self/task/") + task->d_name + "/comm") >> name;
    if (name == "groupnorm") threads.push_back(std::atoi(task->d_name));
  }
  closedir(tasks);
  return threads;
}

cpu_set_t cores_of(pid_t thread) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  EXPECT_EQ(sched_getaffinity(thread, sizeof(cores), &cores), 0);
  return cores;
}

bool have(const std::vector<pid_t>& threads, const cpu_set_t& cores) {
  for (const pid_t thread : threads) {
    const cpu_set_t own = cores_of(thread);
    if (!CPU_EQUAL(&own, &cores)) return false;
  }
  return !threads.empty();
}

// The calling thread to the first core that it has.
void pin() {
  const cpu_set_t cores = cores_of(0);
  int first = 0;
  while (!CPU_ISSET(first, &cores)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
}

TEST(Process, ThreadsHaveItsCoresNotThoseOfThePinnedThreadThatCallsFirst) {
  in_a_child([] {
    const cpu_set_t cores = cores_of(getpid());
    if (CPU_COUNT(&cores) < 2) std::printf("one core: a thread cannot be pinned to fewer\n");
    int threads = 0;
    std::thread([&] {
      pin();
      threads = pool().threads;
      EXPECT_TRUE(two_meet());
    }).join();
    if (std::getenv("GROUPNORM_NUM_THREADS") == nullptr) {
      EXPECT_EQ(threads, pool().threads);
      EXPECT_TRUE(threads > 1 || CPU_COUNT(&cores) == 1) << "or a quota of one core";
    }
    return within_10_seconds([&] { return have(pool_threads(), cores); });
  });
}

TEST(Process, ThreadsFollowItsCores) {
  in_a_child([] {
    const cpu_set_t all = cores_of(0);
    pin();
    const cpu_set_t one = cores_of(0);
    EXPECT_TRUE(two_meet());
    EXPECT_TRUE(within_10_seconds([&] { return have(pool_threads(), one); }));
    EXPECT_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
    return within_10_seconds([&] { return two_meet() && have(pool_threads(), all); });
  });
}

TEST(Process, ThreadsHaveItsSchedulingPolicy) {
  in_a_child([] {
    const int policy = sched_getscheduler(getpid());
    std::thread([] {
      const sched_param param{};
      EXPECT_EQ(sched_setscheduler(0, SCHED_BATCH, &param), 0);
      EXPECT_TRUE(two_meet());
    }).join();
    const std::vector<pid_t> threads = pool_threads();
    for (const pid_t thread : threads) EXPECT_EQ(sched_getscheduler(thread), policy);
    return !threads.empty();
  });
}

// As a server does that reads its signals from a descriptor.
TEST(Process, ThreadsLeaveItItsSignals) {
  in_a_child([] {
    EXPECT_TRUE(two_meet());
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, nullptr, &now);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGCHLD, SIGALRM, SIGRTMIN}) {
      EXPECT_EQ(sigismember(&now, signal), 0) << "the caller's mask has signal " << signal;
    }
    sigset_t wanted;
    sigemptyset(&wanted);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGRTMIN}) sigaddset(&wanted, signal);
    pthread_sigmask(SIG_BLOCK, &wanted, nullptr);
    const int descriptor = signalfd(-1, &wanted, 0);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) {
      kill(getpid(), signal);
      signalfd_siginfo info{};
      EXPECT_EQ(read(descriptor, &info, sizeof(info)), static_cast<ssize_t>(sizeof(info)));
      EXPECT_EQ(static_cast<int>(info.ssi_signo), signal);
    }
    return true;
  });
}

// While another thread is in the middle of a call, whose tasks do not end before the fork.
TEST(Process, ForksInTheMiddleOfACall) {
  std::atomic<int> begun = 0;
  std::atomic<bool> ends = false;
  struct Arg {
    std::atomic<int>& begun;
    std::atomic<bool>& ends;
  } arg{begun, ends};
  std::thread caller([&] {
    const Executor executor = pool(2);
    const Executor::Task task = [](void* to, std::int64_t) {
      const Arg& a = *static_cast<Arg*>(to);
      a.begun.fetch_add(1);
      while (!a.ends.load()) std::this_thread::yield();
    };
    executor.run(executor.context, 2, task, &arg);
  });
  while (begun.load() == 0) std::this_thread::yield();
  in_a_child([] {
    const bool first = two_meet();
    return first && two_meet();
  });
  ends = true;
  caller.join();
  EXPECT_TRUE(two_meet());
}

// exit() in the middle: by the thread that calls, or by one of the pool.
TEST(Process, EndsFromATask) {
  for (int time = 0; time < 40; ++time) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(60);
      struct Who {
        std::thread::id caller = std::this_thread::get_id();
        bool caller_ends;
      } who{.caller_ends = time % 2 == 0};
      const Executor executor = pool(2);
      const Executor::Task task = [](void* arg, std::int64_t) {
        const Who& w = *static_cast<Who*>(arg);
        if ((std::this_thread::get_id() == w.caller) == w.caller_ends) std::exit(7);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      };
      for (;;) executor.run(executor.context, 2, task, &who);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "time " << time << ", signal " << WTERMSIG(status);
    ASSERT_EQ(WEXITSTATUS(status), 7) << "time " << time;
  }
}

// While another thread is in the middle of a call.
TEST(Process, EndsBesideACall) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    static std::atomic<bool> begun = false;
    std::thread([] {
      const Executor executor = pool(2);
      const Executor::Task task = [](void*, std::int64_t) {
        begun = true;
        for (;;) pause();
      };
      executor.run(executor.context, 2, task, nullptr);
    }).detach();
    while (!begun.load()) std::this_thread::yield();
    std::exit(7);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
}

std::atomic<bool> calls_at_the_end = false;
void count_task(void* arg, std::int64_t) { static_cast<std::atomic<int>*>(arg)->fetch_add(1); }
bool pool_runs() {
  std::atomic<int> tasks = 0;
  const Executor executor = pool(2);
  executor.run(executor.context, 5, count_task, &tasks);
  return tasks.load() == 5;
}

// Behind the destructors of all static objects.
[[gnu::destructor]] void at_the_end() {
  if (calls_at_the_end.load()) _exit(pool_runs() && pool_threads().empty() ? 7 : 1);
}

TEST(Process, CallsAfterStaticDestructors) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    EXPECT_TRUE(two_meet());
    calls_at_the_end = true;
    std::exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
}

}  // namespace
}  // namespace groupnorm::testing
