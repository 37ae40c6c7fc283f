// Real time: frames of a camera, one by one, through a small network with group normalization.
//
//   128x128 frame -> 3 x (3x3 convolution of stride 2 -> GN, ReLU) -> a 16x16 map of 32 channels
//
// The camera has 30, 60, then 120 frames a second and does not wait: a frame that comes while the
// program is busy is dropped. Printed are the latency of the three normalizations of a frame, its
// jitter (p99 - p50), that of the whole frame, and what was dropped. The weights are random: they
// decide what the map shows, not how long it takes.
//
//   realtime [SECONDS]     of each camera; 1 by default
//
// What fits a deadline here: a batch is one frame and its result depends on no other; all memory
// and all plans are made before the first frame; a call allocates, locks and throws nothing.
#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "plain.h"

namespace {

using Clock = std::chrono::steady_clock;
using Microseconds = std::chrono::duration<double, std::micro>;
using Seconds = std::chrono::duration<double>;

constexpr std::int64_t kSide = 128;  // of a frame, in pixels
constexpr std::int64_t kGroups = 8;

// x [side, side, in] -> y [side / 2, side / 2, out]; weight [3, 3, in, out], zeros around x.
struct Convolution {
  std::int64_t side, in, out;

  std::int64_t side_out() const { return side / 2; }
  std::int64_t weights() const { return 9 * in * out; }

  void run(const float* x, const float* weight, float* y) const {
    for (std::int64_t row = 0; row < side_out(); ++row) {
      for (std::int64_t col = 0; col < side_out(); ++col, y += out) {
        std::fill_n(y, out, 0.0F);
        for (std::int64_t tap = 0; tap < 9; ++tap) {
          const std::int64_t down = 2 * row + tap / 3 - 1, right = 2 * col + tap % 3 - 1;
          if (down < 0 || right < 0 || down >= side || right >= side) continue;
          const float* const pixel = x + (down * side + right) * in;
          for (std::int64_t i = 0; i < in; ++i) {
            const float* const w = weight + (tap * in + i) * out;
            for (std::int64_t o = 0; o < out; ++o) y[o] += pixel[i] * w[o];
          }
        }
      }
    }
  }
};

class Layer {
 public:
  explicit Layer(Convolution convolution)
      : convolution_(convolution), weight_(static_cast<std::size_t>(convolution.weights())) {
    const std::int64_t side = convolution.side_out();
    const groupnorm::Shape shape{.n = 1, .c = convolution.out, .s = side * side};
    const groupnorm::Spec spec{.shape = shape,
                               .block = groupnorm::group_norm(shape, kGroups),
                               .layout = groupnorm::Layout::channels_last,
                               .activation = groupnorm::Activation::relu};
    const groupnorm::Status status = groupnorm::Plan::make(spec, &plan_);
    if (status != groupnorm::Status::ok) {
      throw std::runtime_error(groupnorm::status_string(status));
    }
    workspace_.resize(plan_.workspace_bytes());
    y_.resize(static_cast<std::size_t>(shape.c * shape.s));
    const auto inputs = static_cast<double>(9 * convolution.in);
    fill_normal(std::span(weight_), /*mean=*/0, /*deviation=*/std::sqrt(2 / inputs));
  }

  const groupnorm::Spec& spec() const { return plan_.spec(); }
  const std::vector<float>& y() const { return y_; }

  void convolve(const float* x) { convolution_.run(x, weight_.data(), y_.data()); }

  groupnorm::Status normalize() {
    return plan_.forward({.x = y_.data(), .y = y_.data()}, workspace_);
  }

 private:
  Convolution convolution_;
  std::vector<float> weight_, y_;
  groupnorm::Plan plan_;
  std::vector<std::byte> workspace_;
};

struct Network {
  std::vector<Layer> layers;

  Network() {
    layers.emplace_back(Convolution{.side = kSide, .in = 1, .out = 8});
    layers.emplace_back(Convolution{.side = kSide / 2, .in = 8, .out = 16});
    layers.emplace_back(Convolution{.side = kSide / 4, .in = 16, .out = 32});
  }

  // How long the normalizations of a frame [128, 128] took.
  Microseconds run(const float* frame) {
    Microseconds normalizing{0};
    for (Layer& layer : layers) {
      layer.convolve(frame);
      const auto start = Clock::now();
      if (layer.normalize() != groupnorm::Status::ok) throw std::runtime_error("refused");
      normalizing += Clock::now() - start;
      frame = layer.y().data();
    }
    return normalizing;
  }
};

// A bright disc that goes round in the dark.
void draw(std::int64_t number, std::span<float> frame) {
  const double angle = 0.1 * static_cast<double>(number);
  const double down = kSide * (0.5 + 0.3 * std::sin(angle));
  const double right = kSide * (0.5 + 0.3 * std::cos(angle));
  for (std::size_t i = 0; i < frame.size(); ++i) {
    const std::size_t row = i / kSide, col = i % kSide;
    const double away =
        std::hypot(static_cast<double>(row) - down, static_cast<double>(col) - right);
    frame[i] = away < kSide / 8.0 ? 1.0F : 0.0F;
  }
}

class Latencies {
 public:
  void add(Microseconds time) { times_.push_back(time.count()); }

  double quantile(double share) {
    if (times_.empty()) return std::numeric_limits<double>::quiet_NaN();
    std::ranges::sort(times_);
    return times_[static_cast<std::size_t>(share * static_cast<double>(times_.size() - 1))];
  }

 private:
  std::vector<double> times_;
};

void film(Network* network, int rate, double seconds) {
  const auto period = std::chrono::duration_cast<Clock::duration>(Seconds(1.0 / rate));
  const auto frames = std::max<std::int64_t>(1, std::llround(seconds * rate));
  std::vector<float> frame(kSide * kSide);
  Latencies normalization, whole;
  std::int64_t dropped = 0;
  const auto start = Clock::now();
  for (std::int64_t number = 0; number < frames; ++number) {
    draw(number, frame);
    const auto arrival = start + (number + 1) * period;
    if (Clock::now() > arrival) {  // it came while the one before was worked on
      ++dropped;
      continue;
    }
    std::this_thread::sleep_until(arrival);
    normalization.add(network->run(frame.data()));
    whole.add(Clock::now() - arrival);
  }
  const double p50 = normalization.quantile(0.5), p99 = normalization.quantile(0.99);
  std::printf("%4d %7lld %8lld %10.1f %8.1f %8.1f %8.1f %10.0f %8.0f %8.0f\n", rate,
              static_cast<long long>(frames), static_cast<long long>(dropped), p50, p99, p99 - p50,
              normalization.quantile(1), whole.quantile(0.5), whole.quantile(0.99), 1e6 / rate);
}

// y [s, c] as [c, s].
std::vector<float> channels_first(const std::vector<float>& y, groupnorm::Shape shape) {
  const auto c = static_cast<std::size_t>(shape.c), s = static_cast<std::size_t>(shape.s);
  std::vector<float> turned(y.size());
  for (std::size_t i = 0; i < y.size(); ++i) turned[i % c * s + i / c] = y[i];
  return turned;
}

// The normalizations of one frame against the definition.
int check(Network* network) {
  std::vector<float> frame(kSide * kSide);
  draw(0, frame);
  int wrong = 0;
  for (const float* x = frame.data(); Layer & layer : network->layers) {
    layer.convolve(x);
    const groupnorm::Spec& spec = layer.spec();
    auto expected = plain_xhat(channels_first(layer.y(), spec.shape), spec.shape, spec.block,
                               spec.correction, spec.eps);
    for (double& z : expected) z = std::max(z, 0.0);
    if (layer.normalize() != groupnorm::Status::ok) return 1;
    wrong |= compare("a frame", channels_first(layer.y(), spec.shape), expected, 3);
    x = layer.y().data();
  }
  return wrong;
}

int run(double seconds) {
  Network network;
  if (check(&network) != 0) return 1;
  std::printf("%4s %7s %8s %10s %8s %8s %8s %10s %8s %8s\n", "fps", "frames", "dropped",
              "GN us p50", "p99", "jitter", "max", "frame p50", "p99", "budget");
  for (const int rate : {30, 60, 120}) film(&network, rate, seconds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  char* end = nullptr;
  const double seconds = argc > 1 ? std::strtod(argv[1], &end) : 1;
  if (argc > 2 || (argc == 2 && (*end != '\0' || !(seconds > 0 && seconds <= 3600)))) {
    std::fprintf(stderr,
                 "SECONDS: must be a number above 0, 3600 at most; usage: realtime [SECONDS]\n");
    return 2;
  }
  try {
    return run(seconds);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
