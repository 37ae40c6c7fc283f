// Threads that cannot be had, and signals that arrive in the middle.
#include "engine.h"

#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <fstream>
#include <thread>

namespace groupnorm::testing {
namespace {

const Case kShared{.name = "shared", .spec = group_spec({1, 8, 40000}, 1)};

bool right_on(const Executor& executor, const Plan& plan, const Data& expected) {
  Data data = make_data(kShared, 1);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  return plan.forward(data.forward, workspace, executor) == Status::ok &&
         std::memcmp(data.y.data(), expected.y.data(), data.y.size()) == 0;
}

std::size_t bytes_in_use() {
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// Starts threads that do nothing until no more can be had: also those whose stacks were kept from
// threads before.
bool exhaust_threads() {
  for (int i = 0; i < 1000; ++i) {
    try {
      std::thread([] { pause(); }).detach();
    } catch (const std::system_error&) {
      return true;
    }
  }
  return false;
}

// There is address space for the tensors of a call, but not for the stack of a thread.
TEST(Threads, CannotBeHadByAForkedProcess) {
  const Plan plan = make_plan(kShared.spec, nullptr);
  Data expected = make_data(kShared, 1);
  run(plan, expected.forward);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    const rlim_t room = bytes_in_use() + (std::size_t{6} << 20);
    const rlimit limit{room, room};
    const bool limited = setrlimit(RLIMIT_AS, &limit) == 0 && exhaust_threads();
    const bool right = right_on(pool(4), plan, expected) && right_on(pool(4), plan, expected);
    _exit(!limited ? 2 : right ? 0 : 1);  // the idle threads are not to be waited for
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_NE(WEXITSTATUS(status), 2) << "the limit did not keep a thread from starting";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

std::atomic<int> signals = 0;

// Every 200 microseconds, with interrupted system calls that are not started again.
TEST(Threads, GoOnAfterSignals) {
  const Plan plan = make_plan(kShared.spec, nullptr);
  Data expected = make_data(kShared, 1);
  run(plan, expected.forward);
  struct sigaction count {};
  struct sigaction before {};
  count.sa_handler = [](int) { signals.fetch_add(1); };
  ASSERT_EQ(sigaction(SIGALRM, &count, &before), 0);
  const itimerval often{{0, 200}, {0, 200}}, never{};
  ASSERT_EQ(setitimer(ITIMER_REAL, &often, nullptr), 0);
  int wrong = 0;
  for (int i = 0; i < 200 || signals.load() < 50; ++i) {
    if (!right_on(pool(4), plan, expected)) ++wrong;
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &before, nullptr);
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace groupnorm::testing
