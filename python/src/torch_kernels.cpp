#include "torch_kernels.h"

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>

#include "dtype.h"
#include "torch_abi.h"
#include "workspace.h"

namespace groupnorm::python {
namespace {

using torch_abi::Error;
using torch_abi::kVersion;
using torch_abi::Tensor;
using torch_abi::Value;

// What torch_link has found. It stays: a thread may be in a call when the kernels are removed.
struct Torch {
  torch_abi::Api api;
  std::array<std::int32_t, 4> dtypes;  // torch's number of each DType, in their order
  std::int32_t cpu;
  std::int32_t contiguous, channels_last, channels_last_3d;
  Threads threads;
};
Torch torch;

struct {
  std::atomic<std::uint64_t> forward, backward, left;
} calls;

void count(std::atomic<std::uint64_t>& number) { number.fetch_add(1, std::memory_order_relaxed); }

thread_local std::string refusal;

void require(Error error) {
  if (error == 0) return;
  const char* const words = torch.api.last_error == nullptr ? nullptr : torch.api.last_error();
  throw std::runtime_error(words == nullptr ? "groupnorm: torch could not make or copy a tensor"
                                            : words);
}

// ---- tensors

Tensor* as_tensor(Value value) {
  return reinterpret_cast<Tensor*>(value);  // NOLINT(performance-no-int-to-ptr): of torch
}
Value as_value(const void* pointer) { return reinterpret_cast<Value>(pointer); }

struct DeleteTensor {
  void operator()(Tensor* tensor) const { torch.api.delete_tensor(tensor); }
};
using Owned = std::unique_ptr<Tensor, DeleteTensor>;

// What an optional holds; null where that is nothing, or an undefined tensor.
Tensor* optional_tensor(Value value) {
  if (value == 0) return nullptr;
  Tensor* const tensor =
      as_tensor(*reinterpret_cast<Value*>(value));  // NOLINT(performance-no-int-to-ptr)
  bool defined = false;
  require(torch.api.is_defined(tensor, &defined));
  return defined ? tensor : nullptr;
}

constexpr std::int64_t kMaxRank = 64;  // of a tensor of torch

// What a tensor says of itself. Sizes and strides are the tensor's.
struct View {
  Tensor* tensor = nullptr;
  std::int64_t rank = 0;
  std::int64_t* sizes = nullptr;
  std::int64_t* strides = nullptr;
  std::optional<DType> dtype;  // none: one that the engine does not know

  View() = default;
  explicit View(Tensor* of) : tensor(of) {
    std::int32_t number = 0;
    require(torch.api.get_dim(tensor, &rank));
    require(torch.api.get_sizes(tensor, &sizes));
    require(torch.api.get_strides(tensor, &strides));
    require(torch.api.get_dtype(tensor, &number));
    for (std::size_t i = 0; i < torch.dtypes.size(); ++i) {
      if (torch.dtypes[i] == number) dtype = static_cast<DType>(i);
    }
  }

  const void* data() const {
    const void* address = nullptr;
    require(torch.api.get_const_data(tensor, &address));
    return address;
  }
  bool has_shape_of(const View& other) const {
    return rank == other.rank && std::equal(sizes, sizes + rank, other.sizes);
  }
};

// The axis that comes i-th, where the first is the one whose elements are next to each other.
std::int64_t axis_at(std::int64_t i, std::int64_t rank, Layout layout) {
  if (layout == Layout::channels_first) return rank - 1 - i;
  if (i == 0) return 1;
  return i == rank - 1 ? 0 : rank - i;
}

// Whether a tensor without holes lies so. The stride of an axis of size 1 may be any.
bool lies_in(const View& x, Layout layout) {
  std::int64_t expected = 1;
  for (std::int64_t i = 0; i < x.rank; ++i) {
    const std::int64_t axis = axis_at(i, x.rank, layout);
    if (x.sizes[axis] != 1 && x.strides[axis] != expected) return false;
    expected *= x.sizes[axis];
  }
  return true;
}

// The layout that torch gives to a result of x, which is not empty: a guess from its strides, with
// NCHW where they say both (Tensor::suggest_memory_format, c10/core/MemoryFormat.h).
Layout suggested_layout(const View& x) {
  if ((x.rank != 4 && x.rank != 5) || x.strides[1] == 0) return Layout::channels_first;
  std::int64_t least = 0;
  for (std::int64_t i = 0; i < x.rank; ++i) {
    const std::int64_t axis = axis_at(i, x.rank, Layout::channels_last);
    const std::int64_t stride = x.strides[axis];
    if (stride < least || (axis == 0 && least == x.strides[1])) return Layout::channels_first;
    least = x.sizes[axis] > 1 ? stride * x.sizes[axis] : stride;
  }
  return Layout::channels_last;
}

// A tensor that the engine can read: itself, or a copy that lies as asked.
class Dense {
 public:
  Dense() = default;
  Dense(const View& of, Layout layout) : view_(of) {
    if (lies_in(of, layout)) return;
    Tensor* same = nullptr;
    require(torch.api.new_handle(of.tensor, &same));
    const std::int32_t format = layout == Layout::channels_first ? torch.contiguous
                                : of.rank == 4                   ? torch.channels_last
                                                                 : torch.channels_last_3d;
    std::array<Value, 2> stack{as_value(same), static_cast<Value>(format)};
    require(torch.api.call_dispatcher("aten::contiguous", "", stack.data(), kVersion));
    copy_.reset(as_tensor(stack[0]));
    view_ = View(copy_.get());
  }
  const View& view() const { return view_; }
  const void* data() const { return view_.tensor == nullptr ? nullptr : view_.data(); }

 private:
  View view_;
  Owned copy_;
};

struct NewTensor {
  Owned tensor;
  void* data = nullptr;
};

NewTensor empty(std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides,
                DType dtype) {
  NewTensor made;
  Tensor* tensor = nullptr;
  require(torch.api.empty_strided(
      rank, sizes, strides, torch.dtypes[static_cast<std::size_t>(dtype)], torch.cpu, 0, &tensor));
  made.tensor.reset(tensor);
  require(torch.api.get_data(tensor, &made.data));
  return made;
}

// Of the shape and dtype of x, in that layout.
NewTensor empty_like(const View& x, Layout layout) {
  std::array<std::int64_t, kMaxRank> strides;  // NOLINT(*-member-init): the first of them are
  std::int64_t stride = 1;
  for (std::int64_t i = 0; i < x.rank; ++i) {
    const auto axis = static_cast<std::size_t>(axis_at(i, x.rank, layout));
    strides[axis] = stride;
    stride *= x.sizes[axis];
  }
  return empty(x.rank, x.sizes, strides.data(), *x.dtype);
}

NewTensor empty_vector(std::int64_t size, DType dtype) {
  const std::int64_t stride = 1;
  return empty(1, &size, &stride, dtype);
}

Owned undefined() {
  Tensor* tensor = nullptr;
  require(torch.api.undefined_tensor(&tensor));
  return Owned(tensor);
}

// ---- mean and rstd, from forward to backward

// torch has them in the dtype of the parameters, in which a large mean has lost the digits that
// backward needs. So the storage of mean is longer than the tensor: what both were rounded from
// lies behind it, and a mark that says so. Whoever copies the tensor alone loses them.
struct Hidden {
  Hidden(std::int64_t blocks, DType dtype)
      : mean((blocks * detail::size_of(dtype) + 7) / 8 * 8),
        rstd(mean + blocks * std::int64_t{sizeof(double)}),
        mark(rstd + blocks * std::int64_t{sizeof(double)}),
        bytes(mark + std::int64_t{sizeof kMark}) {}

  static constexpr std::uint64_t kMark = 0xF36B0C9D5A2E7711;

  std::int64_t mean, rstd, mark;  // where they begin, in bytes
  std::int64_t bytes;             // of the storage
};

// [n, groups] each, of forward; and one double a block, for the engine to write.
struct Statistics {
  Owned mean, rstd;
  void *seen_mean, *seen_rstd;
  double *exact_mean, *exact_rstd;
};

Statistics make_statistics(std::int64_t n, std::int64_t groups, DType dtype) {
  const std::array<std::int64_t, 2> sizes{n, groups}, strides{groups, 1};
  NewTensor rstd = empty(2, sizes.data(), strides.data(), dtype);
  if (dtype == DType::f64) {
    NewTensor mean = empty(2, sizes.data(), strides.data(), dtype);
    auto* const exact_mean = static_cast<double*>(mean.data);
    auto* const exact_rstd = static_cast<double*>(rstd.data);
    return {std::move(mean.tensor),
            std::move(rstd.tensor),
            exact_mean,
            exact_rstd,
            exact_mean,
            exact_rstd};
  }
  const Hidden hidden(n * groups, dtype);
  const NewTensor whole = empty_vector(hidden.bytes / detail::size_of(dtype), dtype);
  auto* const memory = static_cast<std::byte*>(whole.data);
  std::memcpy(memory + hidden.mark, &Hidden::kMark, sizeof Hidden::kMark);
  Tensor* mean = nullptr;
  require(torch.api.reinterpret(whole.tensor.get(), 2, sizes.data(), strides.data(), 0, &mean));
  return {Owned(mean),
          std::move(rstd.tensor),
          memory,
          rstd.data,
          reinterpret_cast<double*>(memory + hidden.mean),
          reinterpret_cast<double*>(memory + hidden.rstd)};
}

void round_to(void* seen, const double* exact, std::int64_t count, DType dtype) {
  if (seen == exact) return;
  detail::visit(dtype, [&](auto element) {
    auto* const values = static_cast<decltype(element)*>(seen);
    for (std::int64_t i = 0; i < count; ++i) detail::from_double(exact[i], values + i);
  });
}

// Whether `seen` is what `exact` rounds to, to the bit.
bool is_rounded(const double* exact, const void* seen, std::int64_t count, DType dtype) {
  return detail::visit(dtype, [&](auto element) {
    for (std::int64_t i = 0; i < count; ++i) {
      detail::from_double(exact[i], &element);
      const auto* const there =
          static_cast<const std::byte*>(seen) + i * std::int64_t{sizeof element};
      const auto* const bytes = reinterpret_cast<const std::byte*>(&element);
      if (!std::equal(bytes, bytes + sizeof element, there)) return false;
    }
    return true;
  });
}

// What lies behind a mean that backward is given, and is dense; null where nothing does.
const std::byte* hidden_memory(const View& mean, const Hidden& hidden) {
  std::int64_t bytes = 0, offset = 0;
  require(torch.api.get_storage_size(mean.tensor, &bytes));
  require(torch.api.get_storage_offset(mean.tensor, &offset));
  if (bytes != hidden.bytes || offset != 0) return nullptr;
  const auto* const memory = static_cast<const std::byte*>(mean.data());
  std::uint64_t mark = 0;
  std::memcpy(&mark, memory + hidden.mark, sizeof mark);
  return mark == Hidden::kMark ? memory : nullptr;
}

// One double a block, of a mean or an rstd that backward is given, and is dense.
class Given {
 public:
  // `exact` may be what it was rounded from: where it is not, what the tensor has counts.
  Given(const View& view, std::int64_t count, const std::byte* exact)
      : dtype_(*view.dtype), seen_(view.data()) {
    const auto* const doubles = reinterpret_cast<const double*>(exact);
    if (dtype_ == DType::f64) {
      exact_ = static_cast<const double*>(seen_);
    } else if (doubles != nullptr && is_rounded(doubles, seen_, count, dtype_)) {
      exact_ = doubles;
    } else {
      widened_.resize(static_cast<std::size_t>(count));
      for (std::int64_t i = 0; i < count; ++i) {
        widened_[static_cast<std::size_t>(i)] = detail::load_element(dtype_, seen_, i);
      }
    }
  }
  const double* data() const { return exact_ != nullptr ? exact_ : widened_.data(); }
  bool is_exact() const { return exact_ != nullptr; }
  // Takes those that round to what the tensor has.
  void restore(std::span<const double> exact) {
    const auto* const seen = static_cast<const std::byte*>(seen_);
    const auto size = static_cast<std::size_t>(detail::size_of(dtype_));
    for (std::size_t i = 0; i < exact.size(); ++i) {
      if (is_rounded(&exact[i], seen + i * size, 1, dtype_)) widened_[i] = exact[i];
    }
  }

 private:
  DType dtype_;
  const void* seen_;
  const double* exact_ = nullptr;
  std::vector<double> widened_;
};

// ---- calls

// A Plan for each of the last kinds of calls of this thread. Null where the engine refuses.
const Plan* find_plan(const Spec& spec) {
  constexpr std::size_t kPlans = 128;  // more than the kinds of norms of most models
  thread_local const std::unique_ptr<std::array<Plan, kPlans>> plans =
      std::make_unique<std::array<Plan, kPlans>>();
  std::uint64_t hash = 0;
  for (const std::int64_t part : {spec.shape.n, spec.shape.c, spec.shape.s, spec.block.channels,
                                  std::int64_t{spec.eps != 0}}) {
    hash = (hash ^ static_cast<std::uint64_t>(part)) * 0x9E3779B97F4A7C15;
  }
  Plan& plan = (*plans)[hash >> 57];
  static_assert(kPlans == std::size_t{1} << (64 - 57));
  // An empty Plan is of an empty shape, which is never asked for.
  if (plan.spec() == spec) return &plan;
  return Plan::make(spec, &plan) == Status::ok ? &plan : nullptr;
}

Executor executor() {
  std::uint32_t count = 1;
  require(torch.api.get_num_threads(&count));
  return torch.threads.executor(static_cast<int>(count));
}

// The numbers that both operators are told beside their tensors.
struct Sizes {
  std::int64_t n, c, s, groups;

  explicit Sizes(const Value* values)
      : n(static_cast<std::int64_t>(values[0])),
        c(static_cast<std::int64_t>(values[1])),
        s(static_cast<std::int64_t>(values[2])),
        groups(static_cast<std::int64_t>(values[3])) {}

  // Whether they are those of x, and none is 0.
  bool are_of(const View& x) const {
    if (x.rank < 2 || x.rank > kMaxRank || x.sizes[0] != n || x.sizes[1] != c) return false;
    std::int64_t positions = 1;
    for (std::int64_t i = 2; i < x.rank; ++i) positions *= x.sizes[i];
    return positions == s && n > 0 && c > 0 && s > 0;
  }
};

// How the engine sees a call; none where it is torch's to compute, or to refuse.
std::optional<Spec> make_spec(const Sizes& sizes, const View& x, const View& gamma,
                              const View& beta, Layout layout, double eps) {
  if (!x.dtype || !sizes.are_of(x)) return std::nullopt;
  DType param = *x.dtype;
  const View* first = nullptr;
  for (const View* const view : {&gamma, &beta}) {
    if (view->tensor == nullptr) continue;
    if (view->rank != 1 || view->sizes[0] != sizes.c || !view->dtype) return std::nullopt;
    if (first != nullptr && *view->dtype != param) return std::nullopt;
    first = view;
    param = *view->dtype;
  }
  return Spec{.shape = {sizes.n, sizes.c, sizes.s},
              .block = group_norm({sizes.n, sizes.c, sizes.s}, sizes.groups),
              .layout = layout,
              .data = *x.dtype,
              .param = param,
              .eps = eps};
}

View view_of_optional(Value value) {
  Tensor* const tensor = optional_tensor(value);
  return tensor == nullptr ? View() : View(tensor);
}

Dense dense_of_optional(const View& view) {
  return view.tensor == nullptr ? Dense() : Dense(view, Layout::channels_first);
}

using Results = std::array<Owned, 3>;

// native_group_norm(Tensor input, Tensor? weight, Tensor? bias, SymInt N, SymInt C, SymInt HxW,
//                   int group, float eps) -> (Tensor, Tensor, Tensor)
// False where it is torch's to do.
bool forward(const Value* stack, Results& results) {
  const View input(as_tensor(stack[0]));
  const View weight = view_of_optional(stack[1]), bias = view_of_optional(stack[2]);
  const Sizes sizes(stack + 3);
  const Layout layout = suggested_layout(input);
  const std::optional<Spec> spec =
      make_spec(sizes, input, weight, bias, layout, std::bit_cast<double>(stack[7]));
  const Plan* const plan = spec ? find_plan(*spec) : nullptr;
  if (plan == nullptr) return false;

  const Dense x(input, layout), gamma = dense_of_optional(weight), beta = dense_of_optional(bias);
  NewTensor y = empty_like(x.view(), layout);
  Statistics statistics = make_statistics(sizes.n, sizes.groups, spec->param);
  const Workspace workspace(plan->workspace_bytes());
  const Status status = plan->forward({.x = x.data(),
                                       .y = y.data,
                                       .gamma = gamma.data(),
                                       .beta = beta.data(),
                                       .mean = statistics.exact_mean,
                                       .rstd = statistics.exact_rstd},
                                      workspace.span(), executor());
  if (status != Status::ok) return false;
  round_to(statistics.seen_mean, statistics.exact_mean, plan->blocks(), spec->param);
  round_to(statistics.seen_rstd, statistics.exact_rstd, plan->blocks(), spec->param);
  results = {std::move(y.tensor), std::move(statistics.mean), std::move(statistics.rstd)};
  count(calls.forward);
  return true;
}

std::array<bool, 3> mask_of(Value value) {
  auto* const list =
      reinterpret_cast<torch_abi::List*>(value);  // NOLINT(performance-no-int-to-ptr)
  std::array<bool, 3> mask{};
  for (std::size_t i = 0; i < mask.size(); ++i) {
    Value item = 0;
    require(torch.api.list_item(list, i, &item));
    mask[i] = (item & 0xFF) != 0;  // a bool is one byte
  }
  return mask;
}

// A mean that a copy has rounded, made again from x: where it rounds to what is given, it is what
// that was. rstd stays, for it has no digits to lose, and nobody says what eps was. `y` is memory
// for what forward writes.
void restore_mean(const Plan& plan, const void* x, void* y, Given& mean) {
  std::vector<double> again(static_cast<std::size_t>(plan.blocks()));
  const Workspace workspace(plan.workspace_bytes());
  const Status status =
      plan.forward({.x = x, .y = y, .mean = again.data()}, workspace.span(), executor());
  if (status == Status::ok) mean.restore(again);
}

// native_group_norm_backward(Tensor grad_out, Tensor input, Tensor mean, Tensor rstd,
//                            Tensor? weight, SymInt N, SymInt C, SymInt HxW, int group,
//                            bool[3] output_mask) -> (Tensor, Tensor, Tensor)
// False where it is torch's to do.
bool backward(const Value* stack, Results& results) {
  const View grad(as_tensor(stack[0])), input(as_tensor(stack[1]));
  const View mean(as_tensor(stack[2])), rstd(as_tensor(stack[3]));
  const View weight = view_of_optional(stack[4]);
  const Sizes sizes(stack + 5);
  const auto [need_dx, need_dgamma, need_dbeta] = mask_of(stack[9]);
  const Layout layout = suggested_layout(input);
  // Of an eps that backward does not see.
  const std::optional<Spec> spec = make_spec(sizes, input, weight, View(), layout, 0);
  const Plan* const plan = spec ? find_plan(*spec) : nullptr;
  if (plan == nullptr || grad.dtype != input.dtype || !grad.has_shape_of(input)) return false;
  const std::int64_t blocks = plan->blocks();
  for (const View* const view : {&mean, &rstd}) {
    std::int64_t elements = 1;
    for (std::int64_t i = 0; i < view->rank; ++i) elements *= view->sizes[i];
    if (!view->dtype || elements != blocks) return false;
  }

  const Dense x(input, layout), dy(grad, layout), gamma = dense_of_optional(weight);
  const Dense dense_mean(mean, Layout::channels_first), dense_rstd(rstd, Layout::channels_first);
  const Hidden hidden(blocks, *mean.dtype);
  const std::byte* const memory = hidden_memory(dense_mean.view(), hidden);
  Given means(dense_mean.view(), blocks, memory == nullptr ? nullptr : memory + hidden.mean);
  const Given rstds(dense_rstd.view(), blocks, memory == nullptr ? nullptr : memory + hidden.rstd);
  NewTensor dx, dgamma, dbeta;
  if (need_dx || !means.is_exact()) dx = empty_like(x.view(), layout);
  if (need_dgamma) dgamma = empty_vector(sizes.c, spec->param);
  if (need_dbeta) dbeta = empty_vector(sizes.c, spec->param);
  if (!means.is_exact()) restore_mean(*plan, x.data(), dx.data, means);

  const Workspace workspace(plan->backward_workspace_bytes());
  const Status status = plan->backward({.x = x.data(),
                                        .dy = dy.data(),
                                        .gamma = gamma.data(),
                                        .mean = means.data(),
                                        .rstd = rstds.data(),
                                        .dx = need_dx ? dx.data : nullptr,
                                        .dgamma = dgamma.data,
                                        .dbeta = dbeta.data},
                                       workspace.span(), executor());
  if (status != Status::ok) return false;
  results = {need_dx ? std::move(dx.tensor) : undefined(),
             need_dgamma ? std::move(dgamma.tensor) : undefined(),
             need_dbeta ? std::move(dbeta.tensor) : undefined()};
  count(calls.backward);
  return true;
}

// ---- kernels

// An operator whose arguments are tensors, one optional tensor or more, numbers and, where `list`
// says its place, a list.
struct Operator {
  const char* name;    // in aten
  const char* torchs;  // the operator of the same schema that is torch's own kernel
  bool (*compute)(const Value* stack, Results& results);
  std::size_t tensors, optionals, list;
};

void give_back(const Operator& op, const Value* stack) {
  std::size_t i = 0;
  for (; i < op.tensors; ++i) torch.api.delete_tensor(as_tensor(stack[i]));
  for (; i < op.tensors + op.optionals; ++i) {
    if (stack[i] == 0) continue;
    auto* const value = reinterpret_cast<Value*>(stack[i]);  // NOLINT(performance-no-int-to-ptr)
    torch.api.delete_tensor(as_tensor(*value));
    if (torch.api.delete_value != nullptr) {
      torch.api.delete_value(value);
    } else {
      delete value;
    }
  }
  if (op.list != 0) {
    torch.api.delete_list(
        reinterpret_cast<torch_abi::List*>(stack[op.list]));  // NOLINT(performance-no-int-to-ptr)
  }
}

void leave_to_torch(const Operator& op, Value* stack) {
  count(calls.left);
  refusal.clear();
  require(torch.api.call_dispatcher(op.torchs, "", stack, kVersion));
  if (refusal.empty()) return;
  for (std::size_t i = 0; i < std::tuple_size_v<Results>; ++i) {
    torch.api.delete_tensor(as_tensor(stack[i]));
  }
  throw std::runtime_error(refusal);
}

void run(const Operator& op, Value* stack) {
  Results results;
  bool done = false;
  try {
    done = op.compute(stack, results);
  } catch (...) {
    give_back(op, stack);
    throw;
  }
  if (!done) {
    leave_to_torch(op, stack);
    return;
  }
  give_back(op, stack);
  for (std::size_t i = 0; i < results.size(); ++i) stack[i] = as_value(results[i].release());
}

constexpr Operator kForward{.name = "native_group_norm",
                            .torchs = "groupnorm::torch_native_group_norm",
                            .compute = forward,
                            .tensors = 1,
                            .optionals = 2,
                            .list = 0};
constexpr Operator kBackward{.name = "native_group_norm_backward",
                             .torchs = "groupnorm::torch_native_group_norm_backward",
                             .compute = backward,
                             .tensors = 4,
                             .optionals = 1,
                             .list = 9};

template <const Operator& op>
void kernel(Value* stack, std::uint64_t /*arguments*/, std::uint64_t /*results*/) {
  run(op, stack);
}

}  // namespace

std::vector<TorchFunction> torch_functions() {
  std::vector<TorchFunction> found;
  torch_abi::Api api{};
  each_function(api, [&](const char* name, auto&) { found.push_back({name, true}); });
  each_later_function(api, [&](const char* name, auto&) { found.push_back({name, false}); });
  return found;
}

void torch_link(const std::vector<std::uintptr_t>& addresses, const Threads& threads) {
  auto next = addresses.begin();
  const auto take = [&](const char*, auto& function) {
    using Function = std::remove_reference_t<decltype(function)>;
    function = reinterpret_cast<Function>(*next++);  // NOLINT(performance-no-int-to-ptr)
  };
  each_function(torch.api, take);
  each_later_function(torch.api, take);
  torch.dtypes = {torch.api.f32(), torch.api.f64(), torch.api.f16(), torch.api.bf16()};
  torch.cpu = torch.api.cpu();
  torch.contiguous = torch.api.contiguous_format();
  torch.channels_last = torch.api.channels_last();
  torch.channels_last_3d = torch.api.channels_last_3d();
  torch.threads = threads;
}

void torch_override(bool on) {
  static torch_abi::Library* registered = nullptr;
  if (on == (registered != nullptr)) return;
  if (!on) {
    require(torch.api.delete_library(std::exchange(registered, nullptr)));
    return;
  }
  torch_abi::Library* library = nullptr;
  require(torch.api.library_init_impl("aten", "CPU", __FILE__, __LINE__, &library));
  try {
    require(torch.api.library_impl(library, kForward.name, kernel<kForward>, kVersion));
    require(torch.api.library_impl(library, kBackward.name, kernel<kBackward>, kVersion));
  } catch (...) {
    torch.api.delete_library(library);
    throw;
  }
  registered = library;
}

TorchCalls torch_calls() { return {calls.forward, calls.backward, calls.left}; }

void torch_refuse(const std::string& words) { refusal = words; }

}  // namespace groupnorm::python
