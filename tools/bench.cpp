// groupnorm bench: checks one call, then times it against copies of the same bytes.

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "command.h"
#include "copy.h"
#include "dtype.h"
#include "json.h"
#include "machine.h"
#include "options.h"
#include "verify.h"

namespace groupnorm::tools {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  bool json = false, hot = false, in_place = false;
  double seconds = 2;
  TensorOptions tensor;
  NormOptions norm;
  EngineOptions engine;
};

// Pairs of x and y to go round, so that a pair has left the caches when its turn comes again.
class Ring {
 public:
  // `pairs` copies of `x`. Every page of y is written, so that none is met for the first time
  // later.
  Ring(const testing::Buffer& x, std::size_t pairs)
      : pairs_(pairs),
        stride_((x.size() + kLine - 1) / kLine * kLine),
        x_(pairs * stride_),
        y_(pairs * stride_) {
    for (std::size_t i = 0; i < pairs; ++i) {
      std::memcpy(x_.data() + i * stride_, x.data(), x.size());
      std::memcpy(y_.data() + i * stride_, x.data(), x.size());
    }
  }

  struct Pair {
    std::byte *x, *y;
  };
  Pair next() {
    const std::size_t at = std::exchange(next_, next_ + 1 == pairs_ ? 0 : next_ + 1) * stride_;
    return {x_.data() + at, y_.data() + at};
  }
  std::size_t pairs() const { return pairs_; }

 private:
  static constexpr std::size_t kLine = 64;
  std::size_t pairs_, stride_;
  testing::Buffer x_, y_;
  std::size_t next_ = 0;
};

// So many pairs that together they are 4 times the last cache, and 256 MB. A tensor too large for
// two such pairs in half the memory has left the caches by itself.
std::size_t pairs_of(std::size_t bytes, bool hot) {
  if (hot) return 1;
  const std::size_t pair = 2 * bytes;
  const std::size_t wanted = std::max(4 * caches().last_level(), std::size_t{256} << 20);
  const std::size_t memory = physical_memory();
  if (memory != 0 && 2 * pair > memory / 2) return 1;
  return std::max<std::size_t>(2, (wanted + pair - 1) / pair);
}

struct Quantiles {
  double p50, p99;
};

// One of the things timed in turns.
class Contestant {
 public:
  Contestant(std::string name, std::function<void(Ring::Pair)> call)
      : name_(std::move(name)), call_(std::move(call)) {}

  // Warms up, and finds how many calls take long enough (20 us) for the clock not to matter.
  void prepare(Ring& ring) {
    constexpr double kLongEnough = 20;
    call_(ring.next());
    for (;; calls_ *= 2) {
      if (time(ring) * static_cast<double>(calls_) >= kLongEnough) return;
    }
  }
  // One buffer is resident only after a call of its own: a streaming copy has thrown y out.
  void play(Ring& ring) {
    if (ring.pairs() == 1) call_(ring.next());
    microseconds_.push_back(time(ring));
  }

  const std::string& name() const { return name_; }
  // Of the means of `calls` calls.
  Quantiles quantiles() {
    std::sort(microseconds_.begin(), microseconds_.end());
    const std::size_t count = microseconds_.size();
    return {microseconds_[count / 2], microseconds_[count * 99 / 100]};
  }

 private:
  // Microseconds a call.
  double time(Ring& ring) {
    const auto start = Clock::now();
    for (std::size_t i = 0; i < calls_; ++i) call_(ring.next());
    const std::chrono::duration<double, std::micro> time = Clock::now() - start;
    return time.count() / static_cast<double>(calls_);
  }

  std::string name_;
  std::function<void(Ring::Pair)> call_;
  std::size_t calls_ = 1;
  std::vector<double> microseconds_;
};

// Everyone once a round, so that all meet the same state of the machine.
void play_rounds(std::vector<Contestant>& contestants, Ring& ring, double seconds) {
  constexpr int kFewestRounds = 5;
  for (Contestant& contestant : contestants) contestant.prepare(ring);
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (int round = 0; round < kFewestRounds || Clock::now() < end; ++round) {
    for (Contestant& contestant : contestants) contestant.play(ring);
  }
}

struct NamedCopy {
  const char* name;
  Copy copy;
};
constexpr NamedCopy kCopies[] = {{"memcpy", plain_copy}, {"streaming copy", streaming_copy}};

// Each copy on the threads of the call.
void add_copies(std::size_t bytes, const Executor& executor, std::vector<Contestant>* contestants) {
  for (const NamedCopy& named : kCopies) {
    const Copy copy = named.copy;
    contestants->emplace_back(
        named.name, [=](Ring::Pair pair) { parallel_copy(copy, pair.y, pair.x, bytes, executor); });
  }
}

struct Result {
  Spec spec;
  testing::Comparison comparison{};
  std::string target;
  int threads = 1;
  std::size_t pairs = 1;
  std::size_t bytes = 0;  // read and written
  Quantiles call{}, copy{};
  std::string copy_name{};

  double gb_per_s(const Quantiles& time) const {
    return static_cast<double>(bytes) / time.p50 * 1e-3;
  }
  double copy_ratio() const { return call.p50 / copy.p50; }
};

Result measure(const Options& options) {
  const Shape shape = options.tensor.shape();
  const testing::Case asked{
      .name = options.tensor.text(),
      .spec = options.norm.spec(shape, options.tensor.dtype(), options.tensor.param_dtype())};
  const Spec& spec = asked.spec;
  const Plan plan = options.engine.plan(spec);
  if (plan.blocks() == 0) throw BadInput("--shape: an empty tensor cannot be timed");
  const Executor executor = options.engine.executor();

  Result result{.spec = spec, .target = plan.target(), .threads = executor.threads};
  const std::size_t tensor = static_cast<std::size_t>(shape.n * shape.c * shape.s) *
                             static_cast<std::size_t>(detail::size_of(spec.data));
  result.bytes = 2 * tensor;
  result.pairs = pairs_of(tensor, options.hot);
  require_memory(memory_needed(spec) + static_cast<double>(result.pairs * result.bytes),
                 "--shape " + options.tensor.text());

  testing::Data data = testing::make_data(asked, /*seed=*/1);
  Ring ring(data.x, result.pairs);
  std::vector<std::byte> workspace(plan.workspace_bytes());
  Forward args = data.forward;
  args.mean = args.rstd = nullptr;  // as at inference
  const auto call = [&](Ring::Pair pair) {
    args.x = pair.x;
    args.y = options.in_place ? pair.x : pair.y;
    require_ok(plan.forward(args, workspace, executor), spec);
  };

  const Ring::Pair checked = ring.next();
  call(checked);
  Forward checked_args = data.forward;
  checked_args.y = const_cast<void*>(static_cast<const void*>(args.y));
  result.comparison = verify(spec, checked_args);
  if (!result.comparison.within_bound()) return result;

  std::vector<Contestant> contestants;
  contestants.emplace_back("forward", call);
  add_copies(tensor, executor, &contestants);
  play_rounds(contestants, ring, options.seconds);

  result.call = contestants.front().quantiles();
  for (std::size_t i = 1; i < contestants.size(); ++i) {
    const Quantiles copy = contestants[i].quantiles();
    if (i > 1 && copy.p50 >= result.copy.p50) continue;
    result.copy = copy;
    result.copy_name = contestants[i].name();
  }
  return result;
}

void print_json(const Options& options, const Result& result) {
  const Spec& spec = result.spec;
  JsonObject object;
  object.add("norm", options.norm.norm().name)
      .add("shape", options.tensor.text().c_str())
      .add("groups", options.norm.groups(spec.shape))
      .add("dtype", detail::name_of(spec.data))
      .add("param_dtype", detail::name_of(spec.param))
      .add("layout", testing::name_of(testing::kLayouts, spec.layout))
      .add("activation", testing::name_of(testing::kActivations, spec.activation))
      .add("direction", "forward")
      .add("threads", result.threads)
      .add("target", result.target.c_str())
      .add("hot", options.hot)
      .add("in_place", options.in_place)
      .add("p50_us", result.call.p50)
      .add("p99_us", result.call.p99)
      .add("gb_per_s", result.gb_per_s(result.call))
      .add("copy", result.copy_name.c_str())
      .add("copy_p50_us", result.copy.p50)
      .add("copy_ratio", result.copy_ratio())
      .add("max_error_eps", result.comparison.error);
  std::printf("%s\n", object.text().c_str());
}

void print_text(const Options& options, const Result& result) {
  const Spec& spec = result.spec;
  std::printf("forward  %s norm, %s, %lld groups, %s, %s, activation %s%s\n",
              options.norm.norm().name, options.tensor.text().c_str(),
              static_cast<long long>(options.norm.groups(spec.shape)), detail::name_of(spec.data),
              testing::name_of(testing::kLayouts, spec.layout),
              testing::name_of(testing::kActivations, spec.activation),
              options.in_place ? ", in place" : "");
  std::printf("on       %s, %d threads, %zu buffers of 2 x %s in turns\n", result.target.c_str(),
              result.threads, result.pairs,
              format_bytes(static_cast<double>(result.bytes) / 2).c_str());
  std::printf("error    %.3f of %.4g\n", result.comparison.error, result.comparison.bound);
  std::printf("time     p50 %.2f us, p99 %.2f us, %.1f GB/s\n", result.call.p50, result.call.p99,
              result.gb_per_s(result.call));
  std::printf("copy     p50 %.2f us, p99 %.2f us, %.1f GB/s (%s)\n", result.copy.p50,
              result.copy.p99, result.gb_per_s(result.copy), result.copy_name.c_str());
  std::printf("ratio    %.2f copies\n", result.copy_ratio());
}

int run(const Options& options) {
  const Result result = measure(options);
  const testing::Comparison& comparison = result.comparison;
  if (!comparison.within_bound()) {
    std::fprintf(stderr,
                 "groupnorm: the result is wrong, so it was not timed: y[%lld] is %.17g, exactly "
                 "%.17g, error %.3f of %.4g (%s, %d threads)\n",
                 static_cast<long long>(comparison.index), comparison.actual, comparison.expected,
                 comparison.error, comparison.bound, result.target.c_str(), result.threads);
    return kWrongResult;
  }
  options.json ? print_json(options, result) : print_text(options, result);
  return kOk;
}

}  // namespace

Command add_bench(CLI::App& app) {
  CLI::App* const bench = app.add_subcommand(
      "bench",
      "Check one shape against the reference, then time it in turns with copies of the same bytes "
      "(memcpy and a streaming copy, the faster counts) on random data. Buffers rotate through 4 "
      "times the last-level cache, 256 MB at least");
  const auto options = std::make_shared<Options>();
  options->tensor.add_to(*bench)->required();
  options->norm.add_to(*bench, /*given_statistics=*/true);
  options->engine.add_to(*bench);
  bench->add_flag("--hot", options->hot, "One buffer that stays where it is, instead of rotating");
  bench->add_flag("--in-place", options->in_place, "y == x");
  bench->add_option("--seconds", options->seconds, "Time to spend, after check and warm-up")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  bench->add_flag("--json", options->json,
                  "One object on one line: norm shape groups dtype param_dtype layout activation "
                  "direction threads target hot in_place p50_us p99_us gb_per_s copy copy_p50_us "
                  "copy_ratio max_error_eps");
  return {bench, [options] { return run(*options); }};
}

}  // namespace groupnorm::tools
