// Whatever the floating-point environment of the threads that a call meets: the same bits, and the
// environment is left as it was.
#include "engine.h"

#include <groupnorm/layers.hpp>

#include <cfenv>
#include <cstring>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace groupnorm::testing {
namespace {

void flush_subnormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // FTZ, DAZ
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" : : "r"(std::uint64_t{1} << 24));  // FZ
#endif
}

struct Mode {
  const char* name;
  void (*set)();
};
constexpr Mode kModes[] = {
    {"upward", [] { std::fesetround(FE_UPWARD); }},
    {"downward", [] { std::fesetround(FE_DOWNWARD); }},
    {"toward zero", [] { std::fesetround(FE_TOWARDZERO); }},
    {"subnormals flushed", flush_subnormals},
    {"upward, subnormals flushed",
     [] {
       std::fesetround(FE_UPWARD);
       flush_subnormals();
     }},
    {"traps",
     [] {
       std::feclearexcept(FE_ALL_EXCEPT);  // what has happened before would be trapped now
       feenableexcept(FE_ALL_EXCEPT);
     }},
};

// Of the thread, for as long as this lives.
class InMode {
 public:
  explicit InMode(const Mode& mode) {
    std::fegetenv(&before_);
    mode.set();
  }
  InMode(const InMode&) = delete;
  InMode& operator=(const InMode&) = delete;
  ~InMode() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_{};
};

// What may be set, without what has happened.
struct Settings {
  int rounding = std::fegetround(), traps = fegetexcept();
#if defined(__x86_64__)
  unsigned control = _mm_getcsr() & ~0x3FU;
#endif
  bool operator==(const Settings&) const = default;
};

// Threads of the caller's own, each in another mode.
void run_on_threads(void*, std::int64_t count, Executor::Task task, void* arg) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    threads.emplace_back([=] {
      const InMode mode(kModes[static_cast<std::size_t>(i) % std::size(kModes)]);
      task(arg, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<Case> float_cases() {
  std::vector<Case> list;
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
      for (const Activation activation : {Activation::silu, Activation::gelu}) {
        Spec spec = group_spec({3, 8, 9000}, 2, layout);
        spec.data = spec.param = dtype;
        spec.activation = activation;
        list.push_back({.name = "modes", .spec = spec});
      }
    }
  }
  return list;
}

// Every other group of channels_first f32 is made of subnormal numbers.
void make_subnormal(const Spec& spec, Buffer* x) {
  if (spec.data != DType::f32 || spec.layout != Layout::channels_first) return;
  auto* const elements = reinterpret_cast<float*>(x->data());
  const auto m = static_cast<std::size_t>(spec.block.channels * spec.shape.s);
  for (std::size_t i = 0; i < x->size() / sizeof(float); ++i) {
    if (i / m % 2 == 1) elements[i] *= 1e-40F;
  }
}

using Floats = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Floats, ::testing::ValuesIn(targets()), target_name);

TEST_P(Floats, SameBitsInEveryMode) {
  constexpr std::uint64_t kSeed = 5;
  const Executor executors[] = {{}, pool(2), {run_on_threads, nullptr, 7}};
  for (const Case& c : float_cases()) {
    const Plan plan = make_plan(c.spec, target());
    Data expected = make_data(c, kSeed), data = make_data(c, kSeed);
    make_subnormal(c.spec, &expected.x);
    make_subnormal(c.spec, &data.x);
    GradientData expected_gradient = make_gradient_data(c, kSeed);
    GradientData gradient = make_gradient_data(c, kSeed);
    std::vector<std::byte> workspace(
        std::max(plan.workspace_bytes(), plan.backward_workspace_bytes()));
    ASSERT_EQ(plan.forward(expected.forward, workspace, pool(2)), Status::ok);  // starts it
    ASSERT_EQ(plan.backward(expected_gradient.backward, workspace, pool(2)), Status::ok);
    for (const Mode& mode : kModes) {
      for (std::size_t e = 0; e < std::size(executors); ++e) {
        const std::string place = c.name + " " + to_string(c.spec.layout) + " dtype " +
                                  std::to_string(static_cast<int>(c.spec.data)) + ", seed " +
                                  std::to_string(kSeed) + ", " + mode.name + ", executor " +
                                  std::to_string(e);
        Status forward{}, backward{};
        bool kept = false;
        {
          const InMode in_mode(mode);
          const Settings before;
          forward = plan.forward(data.forward, workspace, executors[e]);
          backward = plan.backward(gradient.backward, workspace, executors[e]);
          kept = Settings() == before;
        }
        ASSERT_EQ(forward, Status::ok) << place;
        ASSERT_EQ(backward, Status::ok) << place;
        EXPECT_TRUE(kept) << place;
        ASSERT_TRUE(same_bits(c.spec.data, data.y, expected.y)) << place << ": y";
        ASSERT_TRUE(same_bits(data.mean, expected.mean)) << place << ": mean";
        ASSERT_TRUE(same_bits(data.rstd, expected.rstd)) << place << ": rstd";
        ASSERT_TRUE(same_bits(c.spec.data, gradient.dx, expected_gradient.dx)) << place << ": dx";
        ASSERT_TRUE(same_bits(c.spec.param, gradient.dgamma, expected_gradient.dgamma)) << place;
        ASSERT_TRUE(same_bits(c.spec.param, gradient.dbeta, expected_gradient.dbeta)) << place;
      }
    }
  }
}

// A layer also converts gamma, adds to dgamma and moves running statistics.
TEST(FloatsOfLayers, SameBitsInEveryMode) {
  struct Result {
    std::vector<double> numbers;
    Result() {
      Tensor x({4, 6, 50}), dy({4, 6, 50});
      for (std::size_t i = 0; i < x.data<float>().size(); ++i) {
        x.data<float>()[i] = static_cast<float>(i * 37 % 101) / 8 - 5;
        dy.data<float>()[i] = static_cast<float>(i * 53 % 97) / 4 - 10;
      }
      BatchNormalization layer(6);
      for (double& gamma : layer.gamma()) gamma = 1.0 / 3;
      const Tensor y = layer.forward(x), dx = layer.backward(dy);
      numbers = {y.mean(), y.var()};
      for (const Tensor* tensor : {&y, &dx}) {
        for (const float number : tensor->data<float>()) numbers.push_back(number);
      }
      for (const auto values : {layer.dgamma(), layer.dbeta(), layer.running_mean(),
                                layer.running_var(), layer.gamma()}) {
        numbers.insert(numbers.end(), values.begin(), values.end());
      }
    }
  };
  const Result expected;
  for (const Mode& mode : kModes) {
    Result found = expected;
    {
      // Of the test's own arithmetic all but the last division is exact; 1.0 / 3 is a constant.
      const InMode in_mode(mode);
      found = Result();
    }
    EXPECT_TRUE(same_bits(found.numbers, expected.numbers)) << mode.name;
  }
}

}  // namespace
}  // namespace groupnorm::testing
