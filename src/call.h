// One forward call as its parts see it: addresses, coefficients, and the moments of one run.
#ifndef GROUPNORM_SRC_CALL_H
#define GROUPNORM_SRC_CALL_H

#include "dtype.h"
#include "extreme.h"
#include "fold.h"
#include "kernels/kernels.h"
#include "parallel.h"

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace groupnorm::detail {

// What every part of a call needs to know.
struct Call {
  const Spec& spec;
  const Schedule& schedule;
  const Kernels& kernels;
  const Forward& args;
  Store store;
  std::int64_t element = size_of(spec.data);
  std::int64_t param = size_of(spec.param);
  std::int64_t compute = spec.data == DType::f64 ? 8 : 4;  // bytes of the compute type

  const void* x(std::int64_t index) const {
    return static_cast<const std::byte*>(args.x) + index * element;
  }
  void* y(std::int64_t index) const { return static_cast<std::byte*>(args.y) + index * element; }

  // gamma or beta from `channel` of `example` on; null stays null.
  const void* param_at(const void* data, std::int64_t example, std::int64_t channel) const {
    if (data == nullptr) return nullptr;
    const std::int64_t index = example * spec.param_stride + channel;
    return static_cast<const std::byte*>(data) + index * param;
  }
  Parameters params(std::int64_t example, std::int64_t channel) const {
    return {param_at(args.gamma, example, channel), param_at(args.beta, example, channel),
            spec.param != spec.data};
  }
  double param_value(const void* data, std::int64_t example, std::int64_t channel,
                     double missing) const {
    return data == nullptr ? missing
                           : load_element(spec.param, param_at(data, example, channel), 0);
  }
};

// parallel_for, with what the threads have streamed there for all to see.
template <class Body>
void parallel_for(const Call& call, const Executor& executor, std::int64_t count,
                  const Body& body) {
  parallel_for(executor, count, [&](std::int64_t begin, std::int64_t end) {
    body(begin, end);
    if (call.store == Store::streaming) call.kernels.flush();
  });
}

// A kernel's m2 can be used from here on, and not where it is NaN: its sums were sound, and no
// squares underflowed in f32 that an eps as good as 0 would not hide.
inline double trusted_m2(const Call& call, double count) {
  const bool hidden = call.spec.data == DType::f64 || call.spec.eps >= 0x1p-100;
  return hidden ? -std::numeric_limits<double>::infinity() : count * 0x1p-100;
}

inline Moments trusted(const Call& call, std::int64_t index, std::int64_t count,
                       const Moments& moments) {
  if (moments.m2 >= trusted_m2(call, moments.count)) return moments;
  return extreme_moments(call.spec.data, call.x(index), count, 1);
}

// Of `runs` runs of `count` elements, one behind the other.
inline void run_moments(const Call& call, std::int64_t index, std::int64_t runs, std::int64_t count,
                        Moments* moments) {
  const bool kernel = count >= call.kernels.lanes;
  if (kernel) call.kernels.reduce_runs({call.x(index), runs, count, moments});
  for (std::int64_t r = 0; r < runs; ++r) {
    const std::int64_t at = index + r * count;
    moments[r] = kernel ? trusted(call, at, count, moments[r])
                        : extreme_moments(call.spec.data, call.x(at), count, 1);
  }
}

inline Moments run_moments(const Call& call, std::int64_t index, std::int64_t count) {
  Moments moments;
  run_moments(call, index, 1, count, &moments);
  return moments;
}

inline Split split_as(const Call& call, double value) {
  return call.compute == 8 ? split_as<double>(value) : split_as<float>(value);
}

// Up to kMaxLanes numbers of the compute type, with room for a vector behind the last.
class LaneArray {
 public:
  explicit LaneArray(const Call& call) : size_(call.compute) {}

  const void* data() const { return bytes_; }
  void* data() { return bytes_; }

  void fill(std::int64_t at, std::int64_t count, double value) {
    if (size_ == 8) {
      std::fill_n(reinterpret_cast<double*>(bytes_) + at, count, value);
    } else {
      std::fill_n(reinterpret_cast<float*>(bytes_) + at, count, static_cast<float>(value));
    }
  }

  // Entries [0, count) again behind themselves, until there are `copies` of them.
  void repeat(std::int64_t count, std::int64_t copies) {
    const std::int64_t bytes = count * size_;
    for (std::int64_t i = 1; i < copies; ++i) std::copy_n(bytes_, bytes, bytes_ + i * bytes);
  }

 private:
  std::int64_t size_;
  alignas(64) std::byte bytes_[(kMaxLanes + 16) * sizeof(double)];
};

// mean, a and b of up to kMaxLanes lanes or rows.
class Coefficients {
 public:
  explicit Coefficients(const Call& call) : call_(call), mean_(call), a_(call), b_(call) {}

  const void* mean() const { return mean_.data(); }
  const void* a() const { return a_.data(); }
  const void* b() const { return b_.data(); }

  // Of `example`, from `channel` on: `blocks` times `channels`, with statistics [blocks].
  void make(std::int64_t example, std::int64_t channel, std::int64_t blocks, std::int64_t channels,
            const Statistics* statistics) {
    call_.kernels.coefficients({call_.params(example, channel), call_.spec.shape.c - channel,
                                statistics, blocks, channels, mean_.data(), a_.data(), b_.data()});
  }

  void repeat(std::int64_t count, std::int64_t copies) {
    for (LaneArray* const array : {&mean_, &a_, &b_}) array->repeat(count, copies);
  }

 private:
  const Call& call_;
  LaneArray mean_, a_, b_;
};

// Blocks [blocks, channels, length] of one example, one behind the other: the tensor's index of
// the first element, its example and its channel.
struct BlockRange {
  std::int64_t index, example, channel;
  std::int64_t blocks, channels, length;
};

// None of them extreme, and at least a vector each. `next` as in Kernels::ApplyBlocks.
inline void apply_blocks(const Call& call, const BlockRange& range, const Statistics* statistics,
                         const Kernels::Runs& next = {}) {
  call.kernels.apply_blocks({call.x(range.index), call.y(range.index), range.blocks, range.channels,
                             range.length, call.params(range.example, range.channel), statistics,
                             call.spec.activation, call.store, next});
}

// `count` elements of one channel, `stride` elements apart, by the scalar double path.
inline void apply_channel(const Call& call, std::int64_t index, std::int64_t count,
                          std::int64_t stride, std::int64_t example, std::int64_t channel,
                          const Statistics& statistics) {
  const double gamma = call.param_value(call.args.gamma, example, channel, 1);
  const double beta = call.param_value(call.args.beta, example, channel, 0);
  extreme_apply({call.spec.data, call.x(index), call.y(index), count, stride, statistics.mean,
                 gamma * statistics.rstd, beta, call.spec.activation});
}

}  // namespace groupnorm::detail

#endif
