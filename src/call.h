// One call as its parts see it: addresses, parameters, coefficients, and moments of runs.
#ifndef GROUPNORM_SRC_CALL_H
#define GROUPNORM_SRC_CALL_H

#include "dtype.h"
#include "fold.h"
#include "kernels/kernels.h"
#include "parallel.h"
#include "tuning.h"

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace groupnorm::detail {

inline const void* offset(const void* data, std::int64_t bytes) {
  return data == nullptr ? nullptr : static_cast<const std::byte*>(data) + bytes;
}

// What every part of a call needs to know.
struct Call {
  const Spec& spec;
  const Schedule& schedule;
  const Target& target;
  const Forward& args;
  Store store;
  const Kernels& kernels = target.of(spec.data);
  std::int64_t element = size_of(spec.data);

  const void* x(std::int64_t index) const { return offset(args.x, index * element); }

  // Whether u = x + skip + shift is normalized in the place of x, and stands in no tensor.
  bool sums() const { return !kEdge && (args.skip != nullptr || args.shift != nullptr); }
  // Whether what is loaded or stored takes more than x and y.
  bool joins() const {
    return !kEdge && (sums() || args.residual != nullptr || args.sum != nullptr);
  }
  // Of element `index` on, which is of `channel` of `example`.
  Join join(std::int64_t index, std::int64_t example, std::int64_t channel) const {
    const std::int64_t bytes = index * element;
    void* const sum = args.sum == nullptr ? nullptr : static_cast<std::byte*>(args.sum) + bytes;
    return {offset(args.skip, bytes), shift(example, channel), offset(args.residual, bytes), sum};
  }
  // Of `example`, from `channel` on.
  const void* shift(std::int64_t example, std::int64_t channel) const {
    return offset(args.shift, (example / spec.sequence * spec.shape.c + channel) * element);
  }
  void* y(std::int64_t index) const { return static_cast<std::byte*>(args.y) + index * element; }

  // From `channel` of `example` on.
  Parameters params(std::int64_t example, std::int64_t channel) const {
    const std::int64_t bytes = (example * spec.param_stride + channel) * size_of(spec.param);
    return {offset(args.gamma, bytes), offset(args.beta, bytes), spec.param};
  }

  // Whether neighbours in memory are of different channels.
  bool by_lanes() const { return spec.layout == Layout::channels_last || spec.shape.s == 1; }

  // f(i, count, example, channel, position) for elements [from + i, from + i + count) of the
  // tensor, the first of which is at that place: of one channel or, by lanes, of one position.
  template <class F>
  void for_each_line(std::int64_t from, std::int64_t count, const F& f) const {
    const auto [n, c, s] = spec.shape;
    const std::int64_t line = by_lanes() ? c : s;
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t index = (from + i) / line, in_line = (from + i) % line;
      const std::int64_t size = std::min(count - i, line - in_line);
      if (by_lanes()) {
        f(i, size, index / s, in_line, index % s);
      } else {
        f(i, size, index / c, index % c, in_line);
      }
      i += size;
    }
  }

  DType compute() const { return spec.data == DType::f64 ? DType::f64 : DType::f32; }
  // The part of a mean that the compute type holds, and the rest.
  Split split(double mean) const {
    return compute() == DType::f64 ? split_as<double>(mean) : split_as<float>(mean);
  }
};

// Whether it is over before a second thread is awake.
inline bool runs_alone(const Call& call) {
  const Shape& shape = call.spec.shape;
  return shape.n * shape.c * shape.s * call.element < kParallelBytes;
}

// parallel_for, with what the threads have streamed there for all to see.
template <class Body>
[[nodiscard]] bool parallel_for(const Call& call, const Executor& executor, std::int64_t count,
                                const Body& body) {
  return parallel_for(executor, count, [&](std::int64_t begin, std::int64_t end) {
    body(begin, end);
    if (call.store == Store::streaming) call.kernels.flush();
  });
}

// Of `runs` runs of `count` elements, one behind the other.
inline void run_moments(const Call& call, std::int64_t index, std::int64_t runs, std::int64_t count,
                        Moments* moments) {
  if (count >= call.kernels.lanes) {
    call.kernels.reduce_runs({call.x(index), runs, count, trust_of(call.spec), moments});
    return;
  }
  for (std::int64_t r = 0; r < runs; ++r) {
    moments[r] = call.kernels.exact_moments({call.x(index + r * count), 1, 0, count});
  }
}

// The arguments of Kernels::normalize that apply statistics [blocks], none extreme, to x, y
// [blocks, channels, length].
inline Kernels::Normalize apply_args(const void* x, void* y, std::int64_t blocks,
                                     std::int64_t channels, std::int64_t length,
                                     const Parameters& params, const Statistics* statistics,
                                     Activation activation, Store store,
                                     const Join* join = nullptr) {
  return {.x = x,
          .y = y,
          .first = 0,
          .blocks = blocks,
          .groups = blocks,
          .channels = channels,
          .length = length,
          .parts = nullptr,
          .params = params,
          .param_stride = 0,
          .activation = activation,
          .store = store,
          .statistics = statistics,
          .correction = 0,
          .eps = 0,
          .center = true,
          .trust = {},
          .mean = nullptr,
          .rstd = nullptr,
          .extreme = nullptr,
          .extremes = nullptr,
          .join = join};
}

// Up to kMaxLanes numbers of a compute type, with room for a vector on either side.
class LaneArray {
 public:
  explicit LaneArray(DType compute) : compute_(compute) {}

  const void* data() const { return bytes_ + kRoom; }
  void* data() { return bytes_ + kRoom; }

  void fill(std::int64_t at, std::int64_t count, double value) {
    if (compute_ == DType::f64) {
      std::fill_n(static_cast<double*>(data()) + at, count, value);
    } else {
      std::fill_n(static_cast<float*>(data()) + at, count, static_cast<float>(value));
    }
  }

  // Entries [0, count) again behind themselves, until there are `copies` of them.
  void repeat(std::int64_t count, std::int64_t copies) {
    const std::int64_t bytes = count * size_of(compute_);
    std::byte* const from = bytes_ + kRoom;
    for (std::int64_t i = 1; i < copies; ++i) std::copy_n(from, bytes, from + i * bytes);
  }

 private:
  static constexpr std::int64_t kRoom = 64;  // bytes of a vector

  DType compute_;
  alignas(64) std::byte bytes_[kRoom + kMaxLanes * sizeof(double) + kRoom];
};

// mean, a and b of up to kMaxLanes lanes, for the kernels of `compute`.
class Coefficients {
 public:
  Coefficients(const Call& call, DType compute)
      : call_(call), compute_(compute), mean_(compute), a_(compute), b_(compute) {}

  LaneCoefficients arrays() const { return {mean_.data(), a_.data(), b_.data()}; }

  // Of `example`, from `channel` on: `blocks` times `channels`, with statistics [blocks].
  void make(std::int64_t example, std::int64_t channel, std::int64_t blocks, std::int64_t channels,
            const Statistics* statistics) {
    const Kernels& kernels =
        compute_ == call_.compute() ? call_.kernels : call_.target.of(compute_);
    kernels.coefficients({call_.params(example, channel), call_.spec.shape.c - channel, statistics,
                          blocks, channels, mean_.data(), a_.data(), b_.data()});
  }

  void repeat(std::int64_t count, std::int64_t copies) {
    for (LaneArray* const array : {&mean_, &a_, &b_}) array->repeat(count, copies);
  }

 private:
  const Call& call_;
  DType compute_;
  LaneArray mean_, a_, b_;
};

}  // namespace groupnorm::detail

#endif
