// Group normalization on threads of the caller's own: the same bits as on one thread.
#include <groupnorm/layers.hpp>

#include <atomic>
#include <cstring>
#include <thread>

#include "plain.h"

namespace {

// What a program with a thread pool would hand to it. Here: threads that live for one call.
struct Threads {
  std::atomic<int> calls = 0;

  static void run(void* context, std::int64_t count, groupnorm::Executor::Task task, void* arg) {
    ++static_cast<Threads*>(context)->calls;
    std::atomic<std::int64_t> next = 0;
    const auto work = [&] {
      for (std::int64_t i = next++; i < count; i = next++) task(arg, i);
    };
    const std::jthread helper(work);
    work();
  }
};

}  // namespace

int main() {
  groupnorm::Tensor x({2, 64, 128, 128});
  fill_normal(x.data<float>(), /*mean=*/10, /*deviation=*/1);

  groupnorm::GroupNormalization gn(/*num_groups=*/32);
  gn.options.executor = {};  // the calling thread
  const groupnorm::Tensor alone = gn.forward(x);

  Threads threads;
  gn.options.executor = {.run = Threads::run, .context = &threads, .threads = 2};
  const groupnorm::Tensor y = gn.forward(x);

  const auto bytes = y.data<float>().size_bytes();
  const bool same_bits = std::memcmp(y.data(), alone.data(), bytes) == 0;
  std::printf(
      "%d calls to the executor; %s\n", threads.calls.load(),
      same_bits ? "the same bits as on one thread" : "WRONG: other bits than on one thread");

  const groupnorm::Shape shape = x.ncs();
  const int wrong = compare("two threads", y.data<float>(),
                            plain_xhat(x.data<float>(), shape, groupnorm::group_norm(shape, 32),
                                       /*correction=*/0, gn.options.eps),
                            3);
  return wrong + (same_bits ? 0 : 1);
}
