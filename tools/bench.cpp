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
#include "reference.h"
#include "verify.h"

namespace groupnorm::tools {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  bool json = false, backward = false, hot = false, in_place = false;
  double seconds = 2;
  TensorOptions tensor;
  NormOptions norm;
  EngineOptions engine;
};

// The tensors of one call, one after another: x, y, or x, dy, dx.
struct Set {
  std::byte* begin;
  std::size_t stride;
  std::byte* tensor(std::size_t i) const { return begin + i * stride; }
};

// Sets to go round, so that a set has left the caches when its turn comes again.
class Ring {
 public:
  // `sets` copies of `tensors`. Every page is written, so that none is met for the first time
  // later. `tensors` must stay.
  Ring(std::vector<const testing::Buffer*> tensors, std::size_t sets)
      : tensors_(std::move(tensors)),
        sets_(sets),
        stride_((tensors_.front()->size() + kLine - 1) / kLine * kLine),
        memory_(sets * tensors_.size() * stride_) {
    for (std::size_t i = 0; i < sets; ++i) renew(at(i));
  }

  Set next() {
    ++turns_;
    return at(std::exchange(next_, next_ + 1 == sets_ ? 0 : next_ + 1));
  }
  // To be called between the calls that are timed. A dy that one backward after another replaces by
  // its dx vanishes or overflows, channel by channel: it is filled again before that matters.
  void renew_if_worn() {
    constexpr std::size_t kRounds = 16;
    if (turns_ < kRounds * sets_) return;
    turns_ = 0;
    for (std::size_t i = 0; i < sets_; ++i) renew(at((next_ + i) % sets_));
  }
  std::size_t sets() const { return sets_; }

 private:
  static constexpr std::size_t kLine = 64;

  Set at(std::size_t set) { return {memory_.data() + set * tensors_.size() * stride_, stride_}; }
  void renew(Set set) const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      std::memcpy(set.tensor(i), tensors_[i]->data(), tensors_[i]->size());
    }
  }

  std::vector<const testing::Buffer*> tensors_;
  std::size_t sets_, stride_;
  testing::Buffer memory_;
  std::size_t next_ = 0, turns_ = 0;
};

// So many sets that together they are 4 times the last cache, and 256 MB. A tensor too large for
// two such sets in half the memory has left the caches by itself.
std::size_t sets_of(std::size_t set_bytes, bool hot) {
  if (hot) return 1;
  const std::size_t wanted = std::max(4 * caches().last_level(), std::size_t{256} << 20);
  const std::size_t memory = physical_memory();
  if (memory != 0 && 2 * set_bytes > memory / 2) return 1;
  return std::max<std::size_t>(2, (wanted + set_bytes - 1) / set_bytes);
}

// What is timed: calls of one direction.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual const char* direction() const = 0;
  // What a set holds before its first call.
  virtual std::vector<const testing::Buffer*> tensors() const = 0;
  virtual void call(Set set) = 0;
  // What call wrote to `set`, the first that it was given.
  virtual testing::Comparison check(Set set) const = 0;
};

struct Call {
  testing::Case asked;
  Plan plan;
  Executor executor;
  bool in_place;
};
constexpr std::uint64_t kSeed = 1;

class ForwardSubject : public Subject {
 public:
  explicit ForwardSubject(const Call& call)
      : call_(call),
        data_(testing::make_data(call.asked, kSeed)),
        workspace_(call.plan.workspace_bytes()),
        args_(data_.forward) {
    args_.mean = args_.rstd = nullptr;  // as at inference
  }
  const char* direction() const override { return "forward"; }
  std::vector<const testing::Buffer*> tensors() const override { return {&data_.x, &data_.x}; }
  void call(Set set) override {
    args_.x = set.tensor(0);
    args_.y = set.tensor(call_.in_place ? 0 : 1);
    require_ok(call_.plan.forward(args_, workspace_, call_.executor), call_.asked.spec);
  }
  testing::Comparison check(Set set) const override {
    Forward args = data_.forward;
    args.y = set.tensor(call_.in_place ? 0 : 1);
    return verify(call_.asked.spec, args);
  }

 private:
  Call call_;
  testing::Data data_;
  std::vector<std::byte> workspace_;
  Forward args_;
};

class BackwardSubject : public Subject {
 public:
  explicit BackwardSubject(const Call& call)
      : call_(call),
        data_(testing::make_gradient_data(call.asked, kSeed)),
        workspace_(call.plan.backward_workspace_bytes()),
        args_(data_.backward) {}
  const char* direction() const override { return "backward"; }
  std::vector<const testing::Buffer*> tensors() const override {
    return {&data_.x, &data_.dy, &data_.dy};
  }
  void call(Set set) override {
    args_.x = set.tensor(0);
    args_.dy = set.tensor(1);
    args_.dx = set.tensor(call_.in_place ? 1 : 2);
    require_ok(call_.plan.backward(args_, workspace_, call_.executor), call_.asked.spec);
  }
  testing::Comparison check(Set set) const override {
    Backward args = data_.backward;  // with dgamma and dbeta, and dy as it was
    args.dx = set.tensor(call_.in_place ? 1 : 2);
    const Spec& spec = call_.asked.spec;
    return testing::compare_gradient(spec, detail::reference_backward(spec, args), args);
  }

 private:
  Call call_;
  testing::GradientData data_;
  std::vector<std::byte> workspace_;
  Backward args_;
};

std::unique_ptr<Subject> make_subject(const Call& call, bool backward) {
  if (backward) return std::make_unique<BackwardSubject>(call);
  return std::make_unique<ForwardSubject>(call);
}

struct Quantiles {
  double p50, p99;
};

// One of the things timed in turns.
class Contestant {
 public:
  Contestant(std::string name, std::function<void(Set)> call)
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
    ring.renew_if_worn();
    if (ring.sets() == 1) call_(ring.next());
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
  std::function<void(Set)> call_;
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

// Each copy on the threads of the call, from the first half of a set to the second: as many bytes
// are read and written as by a call, which reads and writes each tensor of a set once.
void add_copies(std::size_t set_bytes, const Executor& executor,
                std::vector<Contestant>* contestants) {
  const std::size_t half = set_bytes / 2;
  for (const NamedCopy& named : kCopies) {
    const Copy copy = named.copy;
    contestants->emplace_back(named.name, [=](Set set) {
      parallel_copy(copy, set.begin + half, set.begin, half, executor);
    });
  }
}

struct Result {
  Spec spec;
  std::string direction{};
  testing::Comparison comparison{};
  std::string target{};
  int threads = 1;
  std::size_t sets = 1;
  std::size_t tensors = 0;  // of a set: a call reads or writes each once
  std::size_t tensor_bytes = 0;
  Quantiles call{}, copy{};
  std::string copy_name{};

  std::size_t set_bytes() const { return tensors * tensor_bytes; }
  double gb_per_s(const Quantiles& time) const {
    return static_cast<double>(set_bytes()) / time.p50 * 1e-3;
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
  result.tensors = options.backward ? 3 : 2;
  result.tensor_bytes = static_cast<std::size_t>(shape.n * shape.c * shape.s) *
                        static_cast<std::size_t>(detail::size_of(spec.data));
  result.sets = sets_of(result.set_bytes(), options.hot);
  const double needed = options.backward ? gradient_memory_needed(spec) : memory_needed(spec);
  require_memory(needed + static_cast<double>(result.sets * result.set_bytes()),
                 "--shape " + options.tensor.text());

  const std::unique_ptr<Subject> subject =
      make_subject({asked, plan, executor, options.in_place}, options.backward);
  result.direction = subject->direction();
  Ring ring(subject->tensors(), result.sets);
  const Set checked = ring.next();
  subject->call(checked);
  result.comparison = subject->check(checked);
  if (!result.comparison.within_bound()) return result;

  std::vector<Contestant> contestants;
  contestants.emplace_back(result.direction, [&](Set set) { subject->call(set); });
  add_copies(result.set_bytes(), executor, &contestants);
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
      .add("direction", result.direction.c_str())
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
  std::printf("%-8s %s norm, %s, %lld groups, %s, %s, activation %s%s\n", result.direction.c_str(),
              options.norm.norm().name, options.tensor.text().c_str(),
              static_cast<long long>(options.norm.groups(spec.shape)), detail::name_of(spec.data),
              testing::name_of(testing::kLayouts, spec.layout),
              testing::name_of(testing::kActivations, spec.activation),
              options.in_place ? ", in place" : "");
  std::printf("on       %s, %d threads, %zu buffers of %zu x %s in turns\n", result.target.c_str(),
              result.threads, result.sets, result.tensors,
              format_bytes(static_cast<double>(result.tensor_bytes)).c_str());
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
                 "groupnorm: the result is wrong, so it was not timed: %s[%lld] is %.17g, exactly "
                 "%.17g, error %.3f of %.4g (%s, %d threads)\n",
                 comparison.tensor, static_cast<long long>(comparison.index), comparison.actual,
                 comparison.expected, comparison.error, comparison.bound, result.target.c_str(),
                 result.threads);
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
  bench->add_flag("--backward", options->backward,
                  "dx, dgamma and dbeta from x and dy, against copies of 1.5 tensors");
  bench->add_flag("--in-place", options->in_place, "y == x, or dx == dy");
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
