// The benchmark: one table of cases, each checked against the reference before it is timed in turns
// with copies of the same bytes. An iteration is one round; Google Benchmark's time is the mean of
// the call alone, the counters hold medians:
//
// - p50_us, p99_us: microseconds of a call
// - copy_p50_us: of the copy, the faster of memcpy and a streaming copy (the label says which)
// - copy_ratio: p50_us / copy_p50_us. A forward reads and writes one tensor; a backward reads two
//   and writes one, so that its copy is of 1.5 tensors
// - plain_ratio: with an activation, p50_us over that of the same call without it
// - max_error, error_bound: in the units of src/testing/cases.h; of a forward beyond kMostVerified
//   elements (the sweep from 1e8 on) in blocks spread over it, else of all
// - elements; set_bytes; sets: of the tensor; of all tensors of a call; how many sets rotate

#include <groupnorm/version.h>
#include <groupnorm/groupnorm.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bad_input.h"
#include "contest.h"
#include "dtype.h"
#include "machine.h"
#include "subject.h"
#include "testing/cases.h"

namespace groupnorm::bench {
namespace {

using namespace groupnorm::tools;

struct Direction {
  bool backward;
  Activation activation;
};
constexpr std::array kDirections{Direction{false, Activation::none},
                                 Direction{false, Activation::silu},
                                 Direction{true, Activation::none}};

struct Sizes {
  const char* shape;
  std::int64_t groups;
};

// In every dtype, layout and direction. bench/report.py says what must hold for them.
constexpr std::array kShapes{
    Sizes{"16x32x64x64", 8},   Sizes{"2x320x64x64", 32}, Sizes{"1x128x512x512", 32},
    Sizes{"2x64x56x56", 32},   Sizes{"2x2048x7x7", 32},  Sizes{"1x32x96x96x96", 8},
    Sizes{"1x32x96x96x96", 1}, Sizes{"1x32x8x8", 8},     Sizes{"8x512", 32},
    Sizes{"1024x768", 1},      Sizes{"32x256x56x56", 32}};

// f32, forward, y == x.
constexpr std::array kInPlace{Sizes{"32x256x56x56", 32}, Sizes{"1x128x512x512", 32}};

// f32, forward: does the cost grow linearly? First by examples, then by positions.
constexpr std::array kSweep{Sizes{"1x64x125x125", 32}, Sizes{"10x64x125x125", 32},
                            Sizes{"100x64x125x125", 32}, Sizes{"1x64x156250", 32},
                            Sizes{"1x64x1562500", 32}};
constexpr std::array kLargest{Sizes{"1000x64x125x125", 32}, Sizes{"1x64x15625000", 32}};

constexpr std::array kDTypes{DType::f32, DType::bf16, DType::f16};
constexpr std::array kThreads{1, 2};

// One line of the table.
struct Row {
  Sizes sizes;
  Spec spec;
  bool backward = false, in_place = false, hot = false;
  int threads = 1;

  // Those of one subject differ in threads and residency alone.
  std::string subject() const {
    std::string name = backward ? "backward" : "forward";
    if (spec.activation != Activation::none) {
      name += std::string("+") + to_string(spec.activation);
    }
    if (in_place) name += ",in_place";
    return name + "/" + to_string(spec.data) + "/" + to_string(spec.layout) + "/" + sizes.shape +
           "/g" + std::to_string(sizes.groups);
  }
  std::string name() const {
    return subject() + "/threads:" + std::to_string(threads) + (hot ? "/hot" : "/rotating");
  }
};

// What is being timed. Rows of one subject follow one another and share its data and reference, and
// the runs by which Google Benchmark finds its number of iterations share a contest.
struct Stage {
  std::string subject_name, row_name;
  std::unique_ptr<Subject> subject;
  std::optional<Contest> contest;
  testing::Comparison comparison;
};

constexpr const char *kCall = "call", *kPlain = "plain";

Way way_of(const Row& row, Activation activation) {
  Spec spec = row.spec;
  spec.activation = activation;
  Way way{.plan = {}, .executor = pool(row.threads), .in_place = row.in_place};
  require_ok(Plan::make(spec, &way.plan), spec);
  return way;
}

// Makes the contest of a row, and checks the call.
void set_up(const Row& row, Stage& stage) {
  stage.contest.reset();
  stage.row_name.clear();
  if (stage.subject_name != row.subject()) {
    stage.subject.reset();  // before the next one asks for memory
    stage.subject_name.clear();
    stage.subject =
        make_subject({.name = row.sizes.shape, .spec = row.spec}, row.backward, row.hot);
    stage.subject_name = row.subject();
  }
  const Subject& subject = *stage.subject;
  const Way way = way_of(row, row.spec.activation);
  const auto call = subject.call(way);
  Contest& contest = stage.contest.emplace(subject.tensors(), row.hot);
  const Set checked = contest.ring().next();
  call(checked);
  stage.comparison = stage.subject->check(checked, row.in_place);

  contest.add(kCall, call);
  if (row.spec.activation != Activation::none) {
    contest.add(kPlain, subject.call(way_of(row, Activation::none)));
  }
  contest.add_copies(way.executor);
  if (stage.comparison.within_bound()) contest.prepare();
  stage.row_name = row.name();
}

void count(const Row& row, const Stage& stage, benchmark::State& state) {
  const Contest& contest = *stage.contest;
  const Quantiles call = contest.of(kCall), copy = contest.copy().quantiles();
  auto& counters = state.counters;
  counters["p50_us"] = call.p50;
  counters["p99_us"] = call.p99;
  counters["copy_p50_us"] = copy.p50;
  counters["copy_ratio"] = call.p50 / copy.p50;
  if (row.spec.activation != Activation::none) {
    counters["plain_ratio"] = call.p50 / contest.of(kPlain).p50;
  }
  counters["max_error"] = stage.comparison.error;
  counters["error_bound"] = stage.comparison.bound;
  const Shape& shape = row.spec.shape;
  counters["elements"] = static_cast<double>(shape.n * shape.c * shape.s);
  counters["set_bytes"] =
      static_cast<double>(contest.ring().tensors() * contest.ring().tensor_bytes());
  counters["sets"] = static_cast<double>(contest.ring().sets());
  state.SetLabel(contest.copy().name());
}

bool g_wrong = false;

void run(const Row& row, Stage& stage, benchmark::State& state) {
  try {
    if (stage.row_name != row.name()) set_up(row, stage);
  } catch (const std::exception& error) {  // too little memory
    return state.SkipWithError(error.what());
  }
  const testing::Comparison& comparison = stage.comparison;
  if (!comparison.within_bound()) {
    g_wrong = true;
    const std::string why = "the result is wrong, so it was not timed: error " +
                            std::to_string(comparison.error) + " of " +
                            std::to_string(comparison.bound) + " in " + comparison.tensor;
    return state.SkipWithError(why.c_str());
  }
  Contest& contest = *stage.contest;
  contest.forget();
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(contest.play() * 1e-6);
  while (contest.rounds() < Contest::kFewestRounds) contest.play();
  count(row, stage, state);
}

// The table, in the order in which it is run.
class Table {
 public:
  void add(const Sizes& sizes, DType dtype, Layout layout, const Direction& direction,
           bool in_place = false) {
    const Shape shape = testing::parse_shape(sizes.shape).value();
    const Spec spec{.shape = shape,
                    .block = group_norm(shape, sizes.groups),
                    .layout = layout,
                    .data = dtype,
                    .param = dtype,
                    .activation = direction.activation};
    const auto elements = static_cast<std::size_t>(shape.n * shape.c * shape.s);
    const std::size_t set =
        (direction.backward ? 3 : 2) * elements * static_cast<std::size_t>(detail::size_of(dtype));
    for (const int threads : kThreads) {
      for (const bool hot : {false, true}) {
        if (hot && set > detail::caches().last_level()) continue;  // it does not stay there
        rows_.push_back({sizes, spec, direction.backward, in_place, hot, threads});
      }
    }
  }
  const std::vector<Row>& rows() const { return rows_; }

 private:
  std::vector<Row> rows_;
};

Table make_table(bool largest) {
  Table table;
  for (const Sizes& sizes : kShapes) {
    for (const DType dtype : kDTypes) {
      for (const auto& layout : kLayouts) {
        for (const Direction& direction : kDirections) {
          table.add(sizes, dtype, layout.value, direction);
        }
      }
    }
  }
  const Direction forward = kDirections.front();
  for (const auto& layout : kLayouts) {
    for (const Sizes& sizes : kInPlace) table.add(sizes, DType::f32, layout.value, forward, true);
    for (const Sizes& sizes : kSweep) table.add(sizes, DType::f32, layout.value, forward);
    if (!largest) continue;
    for (const Sizes& sizes : kLargest) table.add(sizes, DType::f32, layout.value, forward);
  }
  return table;
}

// Removes `flag` from the command line, and says whether it was there.
bool take_flag(std::string_view flag, int* argc, char** argv) {
  char** const end = argv + *argc;
  char** const kept = std::remove_if(argv + 1, end, [=](const char* arg) { return arg == flag; });
  *argc = static_cast<int>(kept - argv);
  return kept != end;
}

int run(int argc, char** argv) {
  const bool largest = take_flag("--largest", &argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return kBadInput;
  const char* const target = active_target();
  if (target == nullptr) {
    std::fprintf(stderr, "groupnorm_bench: GROUPNORM_TARGET is not available on this machine\n");
    return kBadInput;
  }
  benchmark::AddCustomContext("groupnorm", GROUPNORM_VERSION);
  benchmark::AddCustomContext("target", target);
  benchmark::AddCustomContext("processor", detail::processor());
  benchmark::AddCustomContext("last_level_cache", std::to_string(detail::caches().last_level()));

  const Table table = make_table(largest);
  Stage stage;
  for (const Row& row : table.rows()) {
    benchmark::RegisterBenchmark(row.name().c_str(),
                                 [&](benchmark::State& state) { run(row, stage, state); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  const std::size_t timed = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (timed == 0) return kBadInput;
  return g_wrong ? kWrongResult : kOk;
}

}  // namespace
}  // namespace groupnorm::bench

int main(int argc, char** argv) { return groupnorm::bench::run(argc, argv); }
