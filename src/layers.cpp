#include <groupnorm/layers.hpp>

#include "dtype.h"
#include "floats.h"
#include "groups.h"
#include "validate.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

namespace groupnorm {
namespace {

using detail::size_of;

constexpr std::size_t kAlignment = 64;

std::string in_words(const std::vector<std::int64_t>& shape) {
  std::string words = "[";
  for (const std::int64_t size : shape) {
    if (words.size() > 1) words += ", ";
    words += std::to_string(size);
  }
  return words + "]";
}

std::string in_words(const std::vector<std::int64_t>& shape, DType dtype, Layout layout) {
  return in_words(shape) + " " + to_string(dtype) + " " + to_string(layout);
}

std::string in_words(const Tensor& x) { return in_words(x.shape(), x.dtype(), x.layout()); }

// Whatever the locale, which streams and std::to_string(double) ask.
template <class T>
std::string in_words(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<int>(value));
  } else if constexpr (std::is_arithmetic_v<T>) {
    char text[32];
    return {text, std::to_chars(text, text + sizeof(text), value).ptr};
  } else {
    return value;
  }
}

// "name=value, name=value"
template <class T, class... Rest>
std::string values(const char* name, const T& value, const Rest&... rest) {
  std::string first = std::string(name) + '=' + in_words(value);
  if constexpr (sizeof...(rest) > 0) {
    return first + ", " + values(rest...);
  } else {
    return first;
  }
}

// What of `spec` the rule of `status` is about; empty where it is about the arguments of a call.
std::string broken_values(Status status, const Spec& spec) {
  const auto [n, c, s] = spec.shape;
  switch (status) {
    case Status::negative_size:
      return n < 0 ? values("n", n) : c < 0 ? values("c", c) : values("s", s);
    case Status::size_overflow: return values("n", n, "c", c, "s", s, "data", to_string(spec.data));
    case Status::param_overflow:
      return values("param_stride", spec.param_stride, "n", n, "c", c, "param",
                    to_string(spec.param));
    case Status::groups_do_not_divide: return values("c", c);
    case Status::batches_do_not_divide: return values("n", n);
    case Status::block_examples: return values("block.examples", spec.block.examples, "n", n);
    case Status::block_channels: return values("block.channels", spec.block.channels, "c", c);
    case Status::unknown_data: return values("data", spec.data);
    case Status::unknown_param: return values("param", spec.param);
    case Status::unknown_layout: return values("layout", spec.layout);
    case Status::unknown_activation: return values("activation", spec.activation);
    case Status::param_dtype:
      return values("data", to_string(spec.data), "param", to_string(spec.param));
    case Status::param_stride: return values("param_stride", spec.param_stride, "c", c);
    case Status::correction: return values("correction", spec.correction);
    case Status::too_few_elements:
      return values("block.examples", spec.block.examples, "block.channels", spec.block.channels,
                    "s", s);
    case Status::eps: return values("eps", spec.eps);
    default: return "";
  }
}

// Zeroed by calloc, whose fresh pages are zero already: a large tensor costs no pass of its own.
std::shared_ptr<void> allocate(std::int64_t bytes) {
  const auto size = static_cast<std::uint64_t>(bytes) + kAlignment - 1;
  if (size > std::numeric_limits<std::size_t>::max()) throw std::bad_alloc();
  const std::shared_ptr<void> block(std::calloc(1, static_cast<std::size_t>(size)), std::free);
  if (block == nullptr) throw std::bad_alloc();
  void* aligned = block.get();
  auto space = static_cast<std::size_t>(size);
  return {block, std::align(kAlignment, static_cast<std::size_t>(bytes), aligned, space)};
}

void grow(std::vector<std::byte>* memory, std::size_t bytes) {
  if (memory->size() < bytes) memory->resize(bytes);
}

// Null where there are none: the engine's word for gamma = 1, beta = 0, and for what is not asked.
template <class T>
T* data_of(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}
template <class T>
const T* data_of(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

// To the dtype that the engine takes.
void convert(const std::vector<double>& values, DType dtype, std::vector<std::byte>* out) {
  detail::visit(dtype, [&](auto element) {
    out->resize(values.size() * sizeof(element));
    void* const memory = out->data();
    auto* to = static_cast<decltype(element)*>(memory);
    for (const double value : values) detail::from_double(value, to++);
  });
}

void add(const std::vector<std::byte>& terms, DType dtype, std::vector<double>* sums) {
  for (std::size_t c = 0; c < sums->size(); ++c) {
    (*sums)[c] += detail::load_element(dtype, terms.data(), static_cast<std::int64_t>(c));
  }
}

struct Moments {
  double mean, var;
};

// The corrected two-pass algorithm (Chan, Golub & LeVeque 1983, eq. 1.7).
Moments moments(const Tensor& x) {
  const detail::StandardFloats floats;
  return detail::visit(x.dtype(), [&](auto element) {
    const auto* const first = static_cast<const decltype(element)*>(x.data());
    const std::span elements(first, static_cast<std::size_t>(x.size()));
    const auto m = static_cast<double>(x.size());
    double sum = 0;
    for (const auto& value : elements) sum += detail::to_double(value);
    const double mean = sum / m;
    double deviations = 0, squares = 0;
    for (const auto& value : elements) {
      const double d = detail::to_double(value) - mean;
      deviations += d;
      squares += d * d;
    }
    const double shift = deviations / m;
    return Moments{mean + shift, (squares - deviations * shift) / m};
  });
}

}  // namespace

inline namespace GROUPNORM_STD {

std::string describe(Status status, const Spec& spec) {
  const std::string got = broken_values(status, spec);
  const std::string rule = status_string(status);
  return got.empty() ? rule : rule + "; got " + got;
}

}  // namespace GROUPNORM_STD

Error::~Error() = default;

// ---- Tensor

Tensor::Tensor(std::vector<std::int64_t> shape, DType dtype, Layout layout,
               std::shared_ptr<void> data)
    : shape_(std::move(shape)), dtype_(dtype), layout_(layout), data_(std::move(data)) {
  if (shape_.size() < 2) {
    throw Error("shape: must be [N, C, spatial...], of rank 2 or more; got " + in_words(shape_));
  }
  std::int64_t elements = 1;
  for (const std::int64_t size : shape_) {
    if (size < 0) throw Error("shape: no size may be negative; got " + in_words(shape_));
    const std::int64_t factor = std::max<std::int64_t>(size, 1);  // an empty axis hides nothing
    if (elements > std::numeric_limits<std::int64_t>::max() / factor) {
      throw Error("shape: the elements must stay below 2^63; got " + in_words(shape_));
    }
    elements *= factor;
  }
  const Spec spec{.shape = ncs(), .block = {}, .layout = layout, .data = dtype, .param = dtype};
  const Status status = detail::check_spec(spec);
  if (status == Status::size_overflow) {
    throw Error(std::string(status_string(status)) + "; got " + in_words(shape_) + " " +
                to_string(dtype));
  }
  if (status != Status::ok) throw Error(describe(status, spec));
}

Tensor::Tensor(std::vector<std::int64_t> shape, DType dtype, Layout layout)
    : Tensor(std::move(shape), dtype, layout, nullptr) {
  data_ = allocate(size() * size_of(dtype));
}

Tensor Tensor::view(void* data, std::vector<std::int64_t> shape, DType dtype, Layout layout) {
  Tensor tensor(std::move(shape), dtype, layout,
                std::shared_ptr<void>(std::shared_ptr<void>(), data));
  if (data == nullptr && tensor.size() > 0) {
    throw Error("data: must not be null for the shape " + in_words(tensor.shape()));
  }
  if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size_of(dtype)) != 0) {
    throw Error(std::string("data: must be aligned to an element of ") + to_string(dtype) + ", " +
                std::to_string(size_of(dtype)) + " bytes");
  }
  return tensor;
}

Tensor::Tensor(const Tensor& other) : Tensor(other.shape_, other.dtype_, other.layout_) {
  const auto bytes = static_cast<std::size_t>(size() * size_of(dtype_));
  if (bytes > 0) std::memcpy(data(), other.data(), bytes);
}

Tensor& Tensor::operator=(const Tensor& other) { return *this = Tensor(other); }

Shape Tensor::ncs() const noexcept {
  std::int64_t s = 1;
  for (std::size_t axis = 2; axis < shape_.size(); ++axis) s *= shape_[axis];
  return {shape_[0], shape_[1], s};
}

std::int64_t Tensor::size() const noexcept {
  const auto [n, c, s] = ncs();
  return n * c * s;
}

void Tensor::check_element(std::size_t bytes) const {
  const auto stored = static_cast<std::size_t>(size_of(dtype_));
  if (bytes == stored) return;
  const auto type = [](std::size_t size) {
    return size == sizeof(float) ? "float" : size == sizeof(double) ? "double" : "std::uint16_t";
  };
  throw Error(std::string("data<") + type(bytes) + ">(): " + to_string(dtype_) + " is stored as " +
              type(stored));
}

double Tensor::mean() const { return moments(*this).mean; }
double Tensor::var() const { return moments(*this).var; }

// ---- Normalization

Normalization::Normalization(std::string name, BlockOf block_of, bool center)
    : name_(std::move(name)), block_of_(std::move(block_of)), center_(center) {
  check_block({.n = 1, .c = 0});
}

Normalization::Normalization(std::string name, BlockOf block_of, std::int64_t num_channels,
                             double eps, bool center)
    : name_(std::move(name)), block_of_(std::move(block_of)), center_(center) {
  if (num_channels < 1 || static_cast<std::uint64_t>(num_channels) > gamma_.max_size()) {
    refuse("num_channels: must be at least 1 and at most " + std::to_string(gamma_.max_size()) +
           "; got " + values("num_channels", num_channels));
  }
  check_block({.n = 1, .c = num_channels});
  options.eps = eps;
  gamma_.assign(static_cast<std::size_t>(num_channels), 1.0);
  for (std::vector<double>* zeros : {&beta_, &dgamma_, &dbeta_}) zeros->assign(gamma_.size(), 0.0);
}

void Normalization::check_block(const Shape& shape) const {
  const Spec spec{.shape = shape, .block = block_of_(shape)};
  const Status status = detail::check_spec(spec);
  if (status != Status::ok) refuse(describe(status, spec));
}

void Normalization::refuse(const std::string& why) const { throw Error(name_ + ": " + why); }

Tensor Normalization::forward(const Tensor& x) {
  Tensor y(x.shape(), x.dtype(), x.layout());
  forward(x, y);
  return y;
}

void Normalization::forward(const Tensor& x, Tensor& y) { normalize(x, y); }

Tensor Normalization::infer(const Tensor& x) const {
  Tensor y(x.shape(), x.dtype(), x.layout());
  infer(x, y);
  return y;
}

void Normalization::infer(const Tensor& x, Tensor& y) const { normalize_only(x, y); }

void Normalization::check_channels(const Tensor& x) const {
  if (gamma_.empty() || x.shape()[1] == static_cast<std::int64_t>(gamma_.size())) return;
  refuse("x: must have num_channels=" + std::to_string(gamma_.size()) + " channels; x is " +
         in_words(x));
}

struct Normalization::Form {
  const std::vector<std::int64_t>& shape;
  DType dtype;
  Layout layout;

  static Form of(const Tensor& x) { return {x.shape(), x.dtype(), x.layout()}; }
  static Form of(const Recorded& recorded) {
    const Spec& spec = recorded.plan->spec();
    return {recorded.shape, spec.data, spec.layout};
  }
  std::string words() const { return in_words(shape, dtype, layout); }
};

void Normalization::check_like(const Form& x, const char* name, const Tensor& other) const {
  if (other.shape() == x.shape && other.dtype() == x.dtype && other.layout() == x.layout) return;
  refuse(std::string(name) + ": must have x's shape, dtype and layout; x is " + x.words() + ", " +
         name + " is " + in_words(other));
}

void Normalization::check_call(Status status, const Spec& spec, const Form& x) const {
  if (status == Status::ok) return;
  if (status == Status::executor) {
    refuse(describe(status, spec) + "; got " + values("threads", options.executor.threads));
  }
  refuse(describe(status, spec) + "; x is " + x.words());
}

// Nothing in it counts after the call but the Plan, which is that of its Spec whoever made it.
struct Normalization::Memory {
  std::optional<Plan> plan;
  Values values;
  std::vector<std::byte> workspace;

  void make_room_in(Values* other) const {
    other->gamma.reserve(values.gamma.size());
    other->beta.reserve(values.beta.size());
    other->mean.reserve(values.mean.size());
    other->rstd.reserve(values.rstd.size());
  }
};

Normalization::Slot::~Slot() { delete memory_.load(); }

// A Memory for the length of a call: that of the last call, or a new one where there is none. Calls
// at the same time have one each, and that of the last to end stays.
class Normalization::Loan {
 public:
  explicit Loan(Slot& slot) : slot_(slot), memory_(slot.memory_.exchange(nullptr)) {
    if (memory_ == nullptr) memory_ = std::make_unique<Memory>();
  }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
  ~Loan() { memory_.reset(slot_.memory_.exchange(memory_.release())); }

  Memory* get() const { return memory_.get(); }

 private:
  Slot& slot_;
  std::unique_ptr<Memory> memory_;
};

Spec Normalization::spec_of(const Tensor& x, bool given_statistics) const {
  return {.shape = x.ncs(),
          .block = block_of_(x.ncs()),
          .layout = x.layout(),
          .data = x.dtype(),
          .param = x.dtype() == DType::f64 ? DType::f64 : DType::f32,
          .activation = options.activation,
          .center = center_,
          .given_statistics = given_statistics,
          .correction = options.correction,
          .eps = options.eps};
}

// All that a call needs but x and y; no statistics where they are to be computed.
void Normalization::prepare(const Tensor& x, const Tensor& y, const Given* given,
                            Memory* memory) const {
  const Form form = Form::of(x);
  check_channels(x);
  check_like(form, "y", y);
  const Spec spec = spec_of(x, given != nullptr);
  if (!memory->plan || memory->plan->spec() != spec) {
    Plan plan;
    check_call(Plan::make(spec, &plan), spec, form);
    memory->plan = plan;
  }
  grow(&memory->workspace, memory->plan->workspace_bytes());

  // Anew each time: anyone may have written to gamma and beta, and to find that out would take
  // about as long.
  const detail::StandardFloats floats;
  auto& [gamma, beta, mean, rstd] = memory->values;
  convert(gamma_, spec.param, &gamma);
  convert(beta_, spec.param, &beta);
  mean.clear();
  rstd.clear();
  if (given == nullptr) return;
  mean.assign(given->mean.begin(), given->mean.end());
  rstd.resize(given->var.size());
  std::ranges::transform(given->var, rstd.begin(), [&](double var) {
    const double spread = var + spec.eps;
    return spread == 0 ? 0 : 1 / std::sqrt(spread);  // as the engine does for a constant block
  });
}

void Normalization::run(const Tensor& x, Tensor& y, const Given* given, Memory* memory) const {
  auto& [gamma, beta, mean, rstd] = memory->values;
  Forward args{.x = x.data(), .y = y.data(), .gamma = data_of(gamma), .beta = data_of(beta)};
  if (given != nullptr) {
    args.given_mean = data_of(mean);
    args.given_rstd = data_of(rstd);
  } else {
    args.mean = data_of(mean);
    args.rstd = data_of(rstd);
  }
  const Plan& plan = *memory->plan;
  check_call(plan.forward(args, memory->workspace, options.executor), plan.spec(), Form::of(x));
}

void Normalization::normalize(const Tensor& x, Tensor& y, const Given* given) {
  const Loan loan(slot_);
  Memory* const memory = loan.get();
  prepare(x, y, given, memory);
  Values& values = memory->values;
  if (given == nullptr) {
    const auto blocks = static_cast<std::size_t>(memory->plan->blocks());
    values.mean.resize(blocks);
    values.rstd.resize(blocks);
  }
  // Below they change places: so the next call finds room in these, and nothing is left to fail.
  memory->make_room_in(&recorded_.values);
  recorded_.shape.reserve(x.shape().size());
  run(x, y, given, memory);

  const bool in_place = x.data() == y.data();
  std::swap(recorded_.values, values);
  recorded_.plan = memory->plan;
  recorded_.shape = x.shape();
  recorded_.x = in_place ? nullptr : x.data_;
  recorded_.differentiable = !in_place;
}

void Normalization::normalize_only(const Tensor& x, Tensor& y, const Given* given) const {
  const Loan loan(slot_);
  prepare(x, y, given, loan.get());
  run(x, y, given, loan.get());
}

Tensor Normalization::backward(const Tensor& dy) {
  Tensor dx(dy.shape(), dy.dtype(), dy.layout());
  backward(dy, dx);
  return dx;
}

void Normalization::backward(const Tensor& dy, Tensor& dx) {
  if (!recorded_.differentiable) {
    refuse("backward: must follow forward, not infer, and not in place (y == x overwrites x)");
  }
  const Form x = Form::of(recorded_);
  check_like(x, "dy", dy);
  check_like(x, "dx", dx);
  const Plan& plan = *recorded_.plan;
  const Values& values = recorded_.values;
  const Loan loan(slot_);
  Memory* const memory = loan.get();
  grow(&memory->workspace, plan.backward_workspace_bytes());

  // Written by the call: what they hold before does not matter.
  std::vector<std::byte>& dgamma = memory->values.gamma;
  std::vector<std::byte>& dbeta = memory->values.beta;
  dgamma.resize(values.gamma.size());
  dbeta.resize(values.beta.size());
  const Backward args{.x = recorded_.x.get(),
                      .dy = dy.data(),
                      .gamma = data_of(values.gamma),
                      .beta = data_of(values.beta),
                      .mean = values.mean.data(),
                      .rstd = values.rstd.data(),
                      .dx = dx.data(),
                      .dgamma = data_of(dgamma),
                      .dbeta = data_of(dbeta)};
  check_call(plan.backward(args, memory->workspace, options.executor), plan.spec(), x);
  const detail::StandardFloats floats;
  add(dgamma, plan.spec().param, &dgamma_);
  add(dbeta, plan.spec().param, &dbeta_);
}

void Normalization::zero_grad() noexcept {
  std::ranges::fill(dgamma_, 0.0);
  std::ranges::fill(dbeta_, 0.0);
}

// ---- The layers: each is a Block

namespace {

std::string group_name(std::int64_t num_groups) {
  return "GroupNormalization(num_groups=" + std::to_string(num_groups) + ")";
}

auto in_groups(std::int64_t num_groups) {
  return [num_groups](const Shape& shape) { return group_norm(shape, num_groups); };
}

}  // namespace

GroupNormalization::GroupNormalization(std::int64_t num_groups)
    : Normalization(group_name(num_groups), in_groups(num_groups)) {}

GroupNormalization::GroupNormalization(std::int64_t num_groups, std::int64_t num_channels,
                                       double eps)
    : Normalization(group_name(num_groups), in_groups(num_groups), num_channels, eps) {}

void GroupNormalization::anchor() {}

LayerNormalization::LayerNormalization() : Normalization("LayerNormalization", layer_norm) {}

LayerNormalization::LayerNormalization(std::int64_t num_channels, double eps)
    : Normalization("LayerNormalization", layer_norm, num_channels, eps) {}

void LayerNormalization::anchor() {}

InstanceNormalization::InstanceNormalization()
    : Normalization("InstanceNormalization", instance_norm) {}

InstanceNormalization::InstanceNormalization(std::int64_t num_channels, double eps)
    : Normalization("InstanceNormalization", instance_norm, num_channels, eps) {}

void InstanceNormalization::anchor() {}

RmsNormalization::RmsNormalization()
    : Normalization("RmsNormalization", layer_norm, /*center=*/false) {}

RmsNormalization::RmsNormalization(std::int64_t num_channels, double eps)
    : Normalization("RmsNormalization", layer_norm, num_channels, eps, /*center=*/false) {}

void RmsNormalization::anchor() {}

BatchNormalization::BatchNormalization(std::int64_t num_channels, double eps, double momentum)
    : Normalization("BatchNormalization", batch_norm, num_channels, eps),
      momentum_(momentum),
      running_mean_(gamma().size(), 0.0),
      running_var_(gamma().size(), 1.0) {
  if (!(momentum >= 0 && momentum <= 1)) {
    refuse("momentum: must be from 0 to 1; got " + values("momentum", momentum));
  }
}

void BatchNormalization::forward(const Tensor& x, Tensor& y) {
  if (!training_) {
    const Given running = running_statistics();
    return normalize(x, y, &running);
  }
  const auto [n, c, s] = x.ncs();
  if (c > 0 && n * s == 1) {
    refuse("x: in training each channel must have two elements or more; x is " + in_words(x));
  }
  normalize(x, y);
  if (x.size() > 0) update(static_cast<double>(n * s));
}

void BatchNormalization::infer(const Tensor& x, Tensor& y) const {
  const Given running = running_statistics();
  normalize_only(x, y, &running);
}

void BatchNormalization::update(double m) {
  const detail::StandardFloats floats;
  const double unbiased = (m - options.correction) / (m - 1);
  for (std::size_t c = 0; c < running_mean_.size(); ++c) {
    // rstd is 0 where var + eps is 0. Rounding may leave 1 / rstd^2 a hair below eps.
    const double rstd = this->rstd()[c];
    const double var = rstd == 0 ? 0 : 1 / (rstd * rstd) - options.eps;
    running_mean_[c] += momentum_ * (mean()[c] - running_mean_[c]);
    running_var_[c] += momentum_ * ((var < 0 ? 0 : var) * unbiased - running_var_[c]);
  }
}

inline namespace GROUPNORM_STD {

GroupSuggestion suggest_groups(std::int64_t channels) {
  if (channels < 1) {
    throw Error("channels: must be at least 1; got " + values("channels", channels));
  }
  return detail::nearest_groups(channels);
}

}  // namespace GROUPNORM_STD
}  // namespace groupnorm
