// Calls that are made of ordinary ones: what is the same for a sequence is one row of gamma and
// beta, made of others where there is a scale; and where sequences differ in their rows or in their
// lengths, each is a call of its own. Its bits are those of the same call on the sequence alone.
#include "call.h"
#include "dtype.h"
#include "parallel.h"
#include "passes.h"
#include "plan.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace groupnorm::detail {
namespace {

// Room for arrays in a workspace, one behind the other, and how much they take in all.
class Room {
 public:
  static constexpr std::int64_t kAlign = 64;

  explicit Room(std::span<std::byte> workspace) : at_(workspace.data()), left_(workspace.size()) {}

  static std::size_t bytes(std::int64_t size) { return static_cast<std::size_t>(size + kAlign); }
  void* take(std::int64_t size) {
    void* result = at_;
    std::align(kAlign, static_cast<std::size_t>(size), result, left_);
    at_ = static_cast<std::byte*>(result) + size;
    left_ -= static_cast<std::size_t>(size);
    return result;
  }
  std::span<std::byte> rest() const { return {static_cast<std::byte*>(at_), left_}; }

 private:
  void* at_;
  std::size_t left_;
};

// How a call is made of others.
class Composition {
 public:
  // `backward`: each call's dgamma and dbeta are to be added up, so they are in the compute type.
  Composition(const Spec& spec, const Target& target, bool backward)
      : spec_(spec),
        target_(target),
        makes_(spec.scale || (backward && loops() && spec.param != compute())) {}

  // Whether a call's gamma and beta are made, in the compute type.
  bool makes() const { return makes_; }

  // Whether each sequence is a call; else all of them are one.
  bool loops() const { return spec_.lengths || spec_.sequence != 1; }
  std::int64_t sequences() const { return spec_.shape.n / spec_.sequence; }
  std::int64_t calls() const { return loops() ? sequences() : 1; }
  std::int64_t rows() const { return loops() ? 1 : sequences(); }  // of gamma and beta in a call
  // What a length counts.
  bool of_positions() const { return spec_.sequence == 1; }
  std::int64_t whole() const { return of_positions() ? spec_.shape.s : spec_.sequence; }
  // Whether the positions of a shorter example lie in pieces.
  bool scatters() const {
    return spec_.lengths && of_positions() && spec_.layout == Layout::channels_first &&
           spec_.shape.c > 1;
  }

  DType compute() const { return spec_.data == DType::f64 ? DType::f64 : DType::f32; }
  std::int64_t element() const { return size_of(spec_.data); }
  // Of a sequence in a tensor; of one that is copied.
  std::int64_t bytes() const { return spec_.sequence * spec_.shape.c * spec_.shape.s * element(); }
  std::int64_t params() const { return rows() * spec_.shape.c; }  // gammas of a call

  Spec spec(std::int64_t length) const {
    Spec one = spec_;
    one.scale = one.lengths = false;
    if (loops()) {
      one.shape.n = of_positions() ? 1 : length;
      one.shape.s = of_positions() ? length : spec_.shape.s;
      one.sequence = one.shape.n;
      one.param_stride = 0;
      one.block.examples = std::min(one.block.examples, one.shape.n);
    }
    if (makes()) {
      one.param = compute();
      one.param_stride = loops() ? 0 : spec_.shape.c;
    }
    return one;
  }
  Schedule schedule(const Spec& one) const {
    return make_schedule(one, target_.of(spec_.data).lanes);
  }

  // The most that `needs` says of the calls. Where a length counts positions, a shorter one may
  // have more chunks, but not thrice as many as one that is up to twice as long.
  template <class Needs>
  std::size_t most(const Needs& needs) const {
    std::size_t result = 0;
    for (std::int64_t length = whole(); length > 0; length = spec_.lengths ? length / 2 : 0) {
      const Spec one = spec(length);
      result = std::max(result, needs(one, schedule(one)));
    }
    return of_positions() && spec_.lengths ? 3 * result + kSpare : result;
  }

  // The first block of a sequence.
  std::int64_t block(std::int64_t row) const {
    const std::int64_t examples = row * spec_.sequence;
    return examples / spec_.block.examples * (spec_.shape.c / spec_.block.channels);
  }
  std::int64_t blocks() const {  // of a sequence
    return std::max<std::int64_t>(1, spec_.sequence / spec_.block.examples) *
           (spec_.shape.c / spec_.block.channels);
  }

  // Entry `channel` of row `row` of gamma or beta, and of scale or offset.
  double param(const void* data, std::int64_t row, std::int64_t channel, double missing) const {
    return data == nullptr ? missing
                           : load_element(spec_.param, data, row * spec_.param_stride + channel);
  }
  double modulation(const void* data, std::int64_t row, std::int64_t channel) const {
    return data == nullptr ? 0 : load_element(spec_.param, data, row * spec_.shape.c + channel);
  }

  // gamma (1 + scale) and beta (1 + scale) + offset of rows [row, row + rows()).
  template <class Args>
  void modulate(const Args& args, std::int64_t row, void* gamma, void* beta) const {
    for (std::int64_t i = 0; i < params(); ++i) {
      const std::int64_t at = row + i / spec_.shape.c, channel = i % spec_.shape.c;
      const double by = 1 + modulation(args.scale, at, channel);
      const double plus = modulation(args.offset, at, channel);
      store_element(compute(), gamma, i, param(args.gamma, at, channel, 1) * by);
      store_element(compute(), beta, i, param(args.beta, at, channel, 0) * by + plus);
    }
  }

  // The arguments of call `row`, with its rows of gamma, beta and shift. Its tensors are still to
  // be cut: see Piece.
  template <class Args>
  Args call_of(const Args& args, std::int64_t row, Room* room) const {
    Args one = args;
    one.lengths = nullptr;
    one.scale = one.offset = nullptr;
    if (loops()) {
      const std::int64_t bytes = row * spec_.param_stride * size_of(spec_.param);
      one.gamma = offset(args.gamma, bytes);
      one.beta = offset(args.beta, bytes);
      one.shift = offset(args.shift, row * spec_.shape.c * element());
    }
    if (makes()) {
      const std::int64_t bytes = params() * size_of(compute());
      void* const gamma = room->take(bytes);
      void* const beta = room->take(bytes);
      modulate(args, row, gamma, beta);
      one.gamma = gamma;
      one.beta = beta;
    }
    return one;
  }

  // Copies the first `length` positions of each channel of a sequence, from rows of `from`
  // positions to rows of `to`.
  void copy(const void* data, std::int64_t from, void* out, std::int64_t to,
            std::int64_t length) const {
    for (std::int64_t c = 0; c < spec_.shape.c; ++c) {
      std::memcpy(static_cast<std::byte*>(out) + c * to * element(),
                  offset(data, c * from * element()), static_cast<std::size_t>(length * element()));
    }
  }

  // What lies behind the length of sequence `row`, to 0.
  void clear(void* tensor, std::int64_t row, std::int64_t length) const {
    if (tensor == nullptr || length == whole()) return;
    auto* const first = static_cast<std::byte*>(tensor) + row * bytes();
    if (!scatters()) {
      const std::int64_t used = bytes() / whole() * length;
      std::memset(first + used, 0, static_cast<std::size_t>(bytes() - used));
      return;
    }
    for (std::int64_t c = 0; c < spec_.shape.c; ++c) {
      std::memset(first + (c * whole() + length) * element(), 0,
                  static_cast<std::size_t>((whole() - length) * element()));
    }
  }

 private:
  static constexpr std::size_t kSpare = 4096;

  const Spec& spec_;
  const Target& target_;
  bool makes_;
};

// The part of a tensor that a call takes: where it lies; or, where it is scattered, a copy, which
// goes back behind the call if it was written.
class Piece {
 public:
  Piece(const Composition& composition, std::int64_t row, std::int64_t length, Room* room)
      : composition_(composition),
        row_(row),
        length_(length),
        copies_(composition.scatters() && length != composition.whole()),
        room_(room) {}

  const void* in(const void* tensor) const {
    if (tensor == nullptr) return nullptr;
    const void* const first = offset(tensor, row_ * composition_.bytes());
    if (!copies_) return first;
    void* const copy = room_->take(composition_.bytes());
    composition_.copy(first, composition_.whole(), copy, length_, length_);
    return copy;
  }
  void* out(void* tensor) const {
    if (tensor == nullptr) return nullptr;
    if (copies_) return room_->take(composition_.bytes());
    return static_cast<std::byte*>(tensor) + row_ * composition_.bytes();
  }
  // What forward and backward both read.
  template <class Args>
  void take_inputs(const Args& args, Args* one) const {
    one->x = in(args.x);
    one->skip = in(args.skip);
    one->residual = in(args.residual);
  }

  // What out() gave, behind the call.
  void finish(const void* written, void* tensor) const {
    if (tensor == nullptr) return;
    if (copies_) {
      auto* const first = static_cast<std::byte*>(tensor) + row_ * composition_.bytes();
      composition_.copy(written, length_, first, composition_.whole(), length_);
    }
    composition_.clear(tensor, row_, length_);
  }

 private:
  const Composition& composition_;
  std::int64_t row_, length_;
  bool copies_;
  Room* room_;
};

constexpr std::int64_t kForwardTensors = 5;   // x, skip, residual, y, sum
constexpr std::int64_t kBackwardTensors = 7;  // x, skip, residual, dy, dsum, dx, dresidual

// Of the arrays of a call: gamma and beta; and copies of tensors.
std::size_t arrays(const Composition& composition, std::int64_t params, std::int64_t tensors) {
  const std::int64_t own = composition.params() * static_cast<std::int64_t>(sizeof(double));
  const std::int64_t copies = composition.scatters() ? tensors : 0;
  return static_cast<std::size_t>(params) * Room::bytes(own) +
         static_cast<std::size_t>(copies) * Room::bytes(composition.bytes());
}

std::int64_t length_of(const Composition& composition, const std::int64_t* lengths,
                       std::int64_t row) {
  return lengths == nullptr ? composition.whole() : lengths[row];
}

}  // namespace

std::size_t composed_workspace(const Spec& spec, const Target& target) noexcept {
  const Composition composition(spec, target, false);
  return arrays(composition, 2, kForwardTensors) +
         composition.most(
             [](const Spec&, const Schedule& schedule) { return forward_workspace(schedule); });
}

Status composed_forward(const Spec& spec, const Target& target, const Forward& args,
                        std::span<std::byte> workspace, const Executor& executor) noexcept {
  const Composition composition(spec, target, false);
  for (std::int64_t row = 0; row < composition.calls(); ++row) {
    const std::int64_t length = length_of(composition, args.lengths, row);
    const std::int64_t block = composition.block(row);
    const auto statistics = [block](auto* data) { return data == nullptr ? data : data + block; };
    Room room(workspace);
    Forward one = composition.call_of(args, row, &room);
    one.mean = statistics(args.mean);
    one.rstd = statistics(args.rstd);
    one.given_mean = statistics(args.given_mean);
    one.given_rstd = statistics(args.given_rstd);
    if (composition.loops()) {
      // Of a shorter sequence, blocks of what is left out are there, too.
      for (double* const data : {one.mean, one.rstd}) {
        if (data != nullptr) std::fill_n(data, composition.blocks(), 0.0);
      }
    }
    const Piece piece(composition, row, length, &room);
    piece.take_inputs(args, &one);
    one.y = piece.out(args.y);
    one.sum = piece.out(args.sum);
    if (length > 0) {
      const Spec own = composition.spec(length);
      const Status status =
          forward(own, composition.schedule(own), target, one, room.rest(), executor);
      if (status != Status::ok) return status;
    }
    piece.finish(one.y, args.y);
    piece.finish(one.sum, args.sum);
  }
  return Status::ok;
}

namespace {

// dgamma and dbeta of the rows of gamma and beta that calls had, folded into all gradients of
// parameters: with gamma' = gamma (1 + scale) and beta' = beta (1 + scale) + offset,
//
//   dgamma = dgamma' (1 + scale),   dbeta = dbeta' (1 + scale)
//   dscale = dgamma' gamma + dbeta' beta,   doffset = dbeta'
class ParamGradients {
 public:
  ParamGradients(const Spec& spec, const Composition& composition, const Backward& args, Room* room)
      : spec_(spec),
        composition_(composition),
        args_(args),
        param_(composition.spec(composition.whole()).param) {
    const std::int64_t bytes = composition.params() * static_cast<std::int64_t>(sizeof(double));
    gamma_ = room->take(bytes);
    beta_ = room->take(bytes);
    const std::int64_t channels = spec.shape.c * static_cast<std::int64_t>(sizeof(double));
    dgamma_ = static_cast<double*>(room->take(channels));
    dbeta_ = static_cast<double*>(room->take(channels));
    if (shared()) start(0);
  }

  // Where a call writes its own; null: not wanted.
  void* dgamma() const {
    return args_.dgamma != nullptr || args_.dscale != nullptr ? gamma_ : nullptr;
  }
  void* dbeta() const {
    const bool wanted =
        args_.dbeta != nullptr || args_.doffset != nullptr || args_.dscale != nullptr;
    return wanted ? beta_ : nullptr;
  }

  // What a call wrote, from row `row` on; nothing, if it was `empty`.
  void take(std::int64_t row, bool empty) {
    for (std::int64_t i = 0; i < composition_.params(); ++i) {
      const std::int64_t at = row + i / spec_.shape.c, channel = i % spec_.shape.c;
      if (!shared() && channel == 0) start(at);
      const double dgamma = empty || !this->dgamma() ? 0 : load_element(param_, gamma_, i);
      const double dbeta = empty || !this->dbeta() ? 0 : load_element(param_, beta_, i);
      const double by = 1 + composition_.modulation(args_.scale, at, channel);
      const double dscale = empty ? 0
                                  : dgamma * composition_.param(args_.gamma, at, channel, 1) +
                                        dbeta * composition_.param(args_.beta, at, channel, 0);
      dgamma_[channel] += dgamma * by;
      dbeta_[channel] += dbeta * by;
      write(args_.dscale, at * spec_.shape.c + channel, dscale);
      write(args_.doffset, at * spec_.shape.c + channel, dbeta);
      if (!shared() && channel == spec_.shape.c - 1) finish(at);
    }
  }

  // Behind all calls.
  void finish() {
    if (shared()) finish(0);
  }

 private:
  bool shared() const { return spec_.param_stride == 0; }

  void write(void* data, std::int64_t index, double value) const {
    if (data != nullptr) store_element(spec_.param, data, index, value);
  }

  // The sums of row `row` of gamma.
  void start(std::int64_t row) {
    const auto held = [&](const void* data, std::int64_t channel) {
      return args_.accumulate ? composition_.param(data, row, channel, 0) : 0;
    };
    for (std::int64_t c = 0; c < spec_.shape.c; ++c) {
      dgamma_[c] = held(args_.dgamma, c);
      dbeta_[c] = held(args_.dbeta, c);
    }
  }
  void finish(std::int64_t row) const {
    for (std::int64_t c = 0; c < spec_.shape.c; ++c) {
      write(args_.dgamma, row * spec_.param_stride + c, dgamma_[c]);
      write(args_.dbeta, row * spec_.param_stride + c, dbeta_[c]);
    }
  }

  const Spec& spec_;
  const Composition& composition_;
  const Backward& args_;
  DType param_;  // of a call's gamma
  void* gamma_;
  void* beta_;
  double* dgamma_;
  double* dbeta_;
};

}  // namespace

std::size_t composed_backward_workspace(const Spec& spec, const Target& target) noexcept {
  const Composition composition(spec, target, true);
  return arrays(composition, 6, kBackwardTensors) + composition.most(backward_workspace);
}

Status composed_backward(const Spec& spec, const Target& target, const Backward& args,
                         std::span<std::byte> workspace, const Executor& executor) noexcept {
  const Composition composition(spec, target, true);
  Room all(workspace);
  ParamGradients params(spec, composition, args, &all);
  for (std::int64_t row = 0; row < composition.calls(); ++row) {
    const std::int64_t length = length_of(composition, args.lengths, row);
    const std::int64_t block = composition.block(row), channels = row * spec.shape.c;
    Room room = all;
    Backward one = composition.call_of(args, row, &room);
    one.mean = args.mean == nullptr ? nullptr : args.mean + block;
    one.rstd = args.rstd + block;
    one.dgamma = params.dgamma();
    one.dbeta = params.dbeta();
    one.accumulate = false;
    one.dscale = one.doffset = nullptr;
    if (composition.loops() && args.dshift != nullptr) {
      one.dshift = static_cast<std::byte*>(args.dshift) + channels * composition.element();
    }
    const Piece piece(composition, row, length, &room);
    piece.take_inputs(args, &one);
    one.dy = piece.in(args.dy);
    one.dsum = piece.in(args.dsum);
    one.dx = piece.out(args.dx);
    one.dresidual = piece.out(args.dresidual);
    if (length > 0) {
      const Spec own = composition.spec(length);
      const Status status =
          backward(own, composition.schedule(own), target, one, room.rest(), executor);
      if (status != Status::ok) return status;
    } else if (args.dshift != nullptr) {
      std::memset(one.dshift, 0, static_cast<std::size_t>(spec.shape.c * composition.element()));
    }
    params.take(row, length == 0);
    piece.finish(one.dx, args.dx);
    piece.finish(one.dresidual, args.dresidual);
  }
  params.finish();
  return Status::ok;
}

}  // namespace groupnorm::detail
