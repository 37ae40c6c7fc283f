// Operators for ONNX Runtime: group normalization with an activation, in domain ai.groupnorm; and
// on request the standard GroupNormalization and InstanceNormalization, in place of the runtime's.
#include "abi.h"

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <thread>
#include <vector>

// Of libstdc++: frees the memory that it sets aside for exceptions when it is loaded, and keeps for
// ever otherwise. Ours is linked statically, so each time a runtime loads this library anew.
namespace __gnu_cxx {  // NOLINT(bugprone-reserved-identifier): its name there
#if defined(__ELF__)
__attribute__((weak)) void __freeres();  // NOLINT(bugprone-reserved-identifier)
#endif
}  // namespace __gnu_cxx

namespace groupnorm::ort {
namespace {

#if defined(__ELF__)
const struct AtUnload {
  ~AtUnload() {
    if (__gnu_cxx::__freeres != nullptr) __gnu_cxx::__freeres();
  }
} at_unload;
#endif

enum class Groups : std::uint8_t { by_attribute, of_one_channel };

// An operator: a row of a table below, for one combination of dtypes.
struct Form {
  const char* name;
  Activation activation = Activation::none;
  Groups groups = Groups::by_attribute;
  int first_version = 1;
};

constexpr Form kOwn[] = {
    {"GroupNorm"},
    {"GroupNormRelu", Activation::relu},
    {"GroupNormSilu", Activation::silu},
    {"GroupNormGelu", Activation::gelu},
    {"GroupNormGeluTanh", Activation::gelu_tanh},
    {"GroupNormHardSwish", Activation::hard_swish},
};
// GroupNormalization-18 has a scale for each group, and stays the runtime's.
constexpr Form kStandard[] = {
    {"GroupNormalization", Activation::none, Groups::by_attribute, 21},
    {"InstanceNormalization", Activation::none, Groups::of_one_channel, 6},
};

struct Types {
  DType data, param;
};
constexpr Types kTypes[] = {
    {DType::f32, DType::f32},   {DType::f64, DType::f64}, {DType::f16, DType::f16},
    {DType::bf16, DType::bf16}, {DType::f16, DType::f32}, {DType::bf16, DType::f32},
};
// The standard operators have one type for x, scale and bias. A type that they name and nobody
// offers would make a model that has it invalid.
constexpr std::size_t kTypesOfStandard = 4;

constexpr ElementType element_type(DType type) {
  switch (type) {
    case DType::f64: return ElementType::f64;
    case DType::f16: return ElementType::f16;
    case DType::bf16: return ElementType::bf16;
    case DType::f32: break;
  }
  return ElementType::f32;
}

constexpr std::size_t size_of(DType type) {
  return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2;
}

template <class... Args>
Status* refuse(const Api& api, const char* format, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, format, args...);
  return api.create_status(ErrorCode::invalid_argument, text);
}

Status* no_memory(const Api& api) {
  return api.create_status(ErrorCode::fail, "groupnorm: out of memory");
}

struct Op : CustomOp {
  Op(const Api& runtime, const Form& its_form, Types its_types);

  const Api& api;
  Form form;
  Types types;
};

const Op& from(const CustomOp* op) { return *static_cast<const Op*>(op); }

// A node of a model.
struct Kernel {
  const Op& op;
  std::int64_t groups;  // not of a Groups::of_one_channel
  double eps;
  int threads;
};

// *value is left alone where the node has no such attribute. The runtime tells that from one of
// another type by its words alone.
template <class T>
Status* read_attribute(const Op& op, const KernelInfo* info, const char* name, const char* type,
                       bool required, T* value) {
  T read{};
  Status* const status = op.api.attribute(info, name, &read);
  if (status == nullptr) {
    *value = read;
    return nullptr;
  }
  const bool absent = std::strstr(op.api.error_message(status), "No attribute") != nullptr;
  op.api.release(status);
  if (absent && !required) return nullptr;
  return refuse(op.api, "%s: attribute %s %s %s", op.form.name, name,
                absent ? "is missing; it must be" : "must be", type);
}

Status* create(const CustomOp* self, const Api*, const KernelInfo* info, void** kernel) {
  const Op& op = from(self);
  std::int64_t groups = 0;
  if (op.form.groups == Groups::by_attribute) {
    if (Status* const status =
            read_attribute(op, info, "num_groups", "an int", /*required=*/true, &groups)) {
      return status;
    }
    if (groups < 1) {
      return refuse(op.api, "%s: num_groups = %" PRId64 " must be at least 1", op.form.name,
                    groups);
    }
  }
  float eps = 1e-5F;
  if (Status* const status =
          read_attribute(op, info, "epsilon", "a float", /*required=*/false, &eps)) {
    return status;
  }
  if (!(eps >= 0) || std::isinf(eps)) {
    return refuse(op.api, "%s: epsilon = %g must be finite and not negative", op.form.name,
                  static_cast<double>(eps));
  }
  // How many threads the session has is not to be asked; by default, one a core. What the engine
  // cuts finer than that costs little, and the bits do not depend on it.
  const int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 1024U));
  *kernel = new (std::nothrow) Kernel{op, groups, eps, threads};
  return *kernel == nullptr ? no_memory(op.api) : nullptr;
}

struct Tensor {
  std::vector<std::int64_t> dims;
  std::size_t count = 0;  // of elements
  void* data = nullptr;
};

Status* read_info(const Api& api, const TensorInfo* info, Tensor* tensor) {
  std::size_t rank = 0;
  if (Status* const status = api.rank(info, &rank)) return status;
  tensor->dims.resize(rank);
  if (Status* const status = api.dims(info, tensor->dims.data(), rank)) return status;
  return api.element_count(info, &tensor->count);
}

Status* read(const Api& api, const KernelContext* context, std::size_t index, Tensor* tensor) {
  const Value* value = nullptr;
  if (Status* const status = api.input(context, index, &value)) return status;
  if (Status* const status = api.data(value, &tensor->data)) return status;
  TensorInfo* info = nullptr;
  if (Status* const status = api.tensor_info(value, &info)) return status;
  const auto release = [&](TensorInfo* held) { api.release(held); };
  const std::unique_ptr<TensorInfo, decltype(release)> hold(info, release);
  return read_info(api, info, tensor);
}

// The session's threads.
struct Threads {
  const Api& api;
  const KernelContext* context;
  Status* status = nullptr;

  static void run(void* self, std::int64_t count, Executor::Task task, void* arg) {
    Threads& threads = *static_cast<Threads*>(self);
    if (threads.status != nullptr) return;
    struct Job {
      Executor::Task task;
      void* arg;
    } job{task, arg};
    threads.status = threads.api.parallel_for(
        threads.context,
        [](void* data, std::size_t index) {
          const Job& j = *static_cast<const Job*>(data);
          j.task(j.arg, static_cast<std::int64_t>(index));
        },
        static_cast<std::size_t>(count), 0, &job);
  }
};

// Memory of a call: most need no more than the stack has.
class Memory {
 public:
  explicit Memory(std::size_t size) : size_(size) {
    if (size > sizeof near_) far_.reset(new (std::nothrow) std::byte[size]);
  }
  std::span<std::byte> get() {
    if (size_ <= sizeof near_) return {near_, size_};
    return {far_.get(), far_ == nullptr ? 0 : size_};
  }

 private:
  std::size_t size_;
  alignas(8) std::byte near_[4096];
  std::unique_ptr<std::byte[]> far_;
};

bool is_aligned(const void* pointer, std::size_t size) {
  return reinterpret_cast<std::uintptr_t>(pointer) % size == 0;
}

Status* compute(const Kernel& kernel, KernelContext* context) {
  const Op& op = kernel.op;
  const Api& api = op.api;
  const char* const name = op.form.name;
  Tensor x;
  std::array<Tensor, 2> params;
  if (Status* const status = read(api, context, 0, &x)) return status;
  for (std::size_t i = 0; i < params.size(); ++i) {
    if (Status* const status = read(api, context, i + 1, &params[i])) return status;
  }

  if (x.dims.size() < 2) {
    return refuse(api, "%s: X has rank %zu; it must be [N, C, ...], of rank 2 or more", name,
                  x.dims.size());
  }
  Spec spec{.shape = {x.dims[0], x.dims[1], 0},
            .block = {1, 1},
            .data = op.types.data,
            .param = op.types.param,
            .activation = op.form.activation,
            .eps = kernel.eps};
  const std::int64_t c = spec.shape.c;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Tensor& param = params[i];
    if (param.dims.size() != 1 || param.dims[0] != c) {
      return refuse(api, "%s: %s has rank %zu and %zu elements; it must be [C], here [%" PRId64 "]",
                    name, i == 0 ? "scale" : "bias", param.dims.size(), param.count, c);
    }
  }
  if (op.form.groups == Groups::by_attribute) {
    spec.block = group_norm(spec.shape, kernel.groups);
    if (spec.block.channels == kDoesNotDivide) {
      return refuse(api, "%s: num_groups = %" PRId64 " must divide the %" PRId64 " channels of X",
                    name, kernel.groups, c);
    }
  }

  Value* out = nullptr;
  void* y = nullptr;
  if (Status* const status = api.output(context, 0, x.dims.data(), x.dims.size(), &out)) {
    return status;
  }
  if (Status* const status = api.data(out, &y)) return status;
  if (x.count == 0) return nullptr;
  spec.shape.s = static_cast<std::int64_t>(x.count) / spec.shape.n / c;

  Plan plan;
  const auto planned = Plan::make(spec, &plan);
  if (planned != groupnorm::Status::ok) {
    return refuse(api, "%s: %s", name, status_string(planned));
  }
  // Initializers that a file holds, and what a caller binds, may lie at any address.
  const std::size_t param_bytes = params[0].count * size_of(spec.param);
  std::size_t copied = 0;
  for (const Tensor& param : params) {
    if (!is_aligned(param.data, size_of(spec.param))) copied += param_bytes;
  }
  Memory memory(copied + plan.workspace_bytes());
  std::span<std::byte> workspace = memory.get();
  if (workspace.size() < copied + plan.workspace_bytes()) return no_memory(api);
  for (Tensor& param : params) {
    if (is_aligned(param.data, size_of(spec.param))) continue;
    param.data = std::memcpy(workspace.data(), param.data, param_bytes);
    workspace = workspace.subspan(param_bytes);
  }
  if (!is_aligned(x.data, size_of(spec.data))) {
    x.data = std::memmove(y, x.data, x.count * size_of(spec.data));
  }

  Threads threads{api, context};
  const Forward args{.x = x.data, .y = y, .gamma = params[0].data, .beta = params[1].data};
  const auto done = plan.forward(args, workspace, {Threads::run, &threads, kernel.threads});
  if (done != groupnorm::Status::ok) return refuse(api, "%s: %s", name, status_string(done));
  return threads.status;
}

// Y is as X, symbolic dimensions and all. An X of unknown rank looks like one of rank 0.
Status* infer_shape(const CustomOp* self, ShapeContext* context) {
  const Api& api = from(self).api;
  TensorInfo* info = nullptr;
  std::size_t rank = 0;
  if (Status* const status = api.input_shape(context, 0, &info)) return status;
  if (Status* const status = api.rank(info, &rank)) return status;
  if (rank == 0) return nullptr;
  return api.set_output_shape(context, 0, info);
}

Op::Op(const Api& runtime, const Form& its_form, Types its_types)
    : api(runtime), form(its_form), types(its_types) {
  name = [](const CustomOp* op) { return from(op).form.name; };
  provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
  inputs = [](const CustomOp*) -> std::size_t { return 3; };          // X, scale, bias
  input_type = [](const CustomOp* op, std::size_t index) {
    return element_type(index == 0 ? from(op).types.data : from(op).types.param);
  };
  outputs = [](const CustomOp*) -> std::size_t { return 1; };  // Y
  output_type = [](const CustomOp* op, std::size_t) { return element_type(from(op).types.data); };
  input_kind = output_kind = input_memory = [](const CustomOp*, std::size_t) { return 0; };
  variadic_inputs = variadic_outputs = [](const CustomOp*) { return 1; };
  variadic_inputs_alike = variadic_outputs_alike = [](const CustomOp*) { return 1; };
  first_version = [](const CustomOp* op) { return from(op).form.first_version; };
  last_version = [](const CustomOp*) { return 0x7FFFFFFF; };
  create_kernel = create;
  compute = [](void* kernel, KernelContext* context) {
    const Kernel& k = *static_cast<const Kernel*>(kernel);
    try {
      return ort::compute(k, context);
    } catch (...) {  // std::bad_alloc, of dims
      return no_memory(k.op.api);
    }
  };
  destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  infer_shape = ort::infer_shape;
  may_share = [](int** from_inputs, int** to_outputs) -> std::size_t {
    static int first = 0;
    *from_inputs = *to_outputs = &first;
    return 1;
  };
  release_may_share = [](int*, int*) {};
}

// Operators in a domain of one runtime, until the library is unloaded: sessions keep the addresses.
class Domain {
 public:
  Domain(const Api& api, const char* name, std::span<const Form> forms,
         std::span<const Types> types)
      : api_(api), name_(name) {
    for (const Form& form : forms) {
      for (const Types& each : types) ops_.emplace_back(api, form, each);
    }
  }
  Domain(const Domain&) = delete;
  Domain& operator=(const Domain&) = delete;
  ~Domain() {
    if (domain_ != nullptr) api_.release(domain_);
  }

  Status* add_to(SessionOptions* options) {
    if (domain_ == nullptr) {
      if (Status* const status = api_.create_domain(name_, &domain_)) return status;
      for (const Op& op : ops_) {
        if (Status* const status = api_.add(domain_, &op)) return status;
      }
    }
    return api_.add(options, domain_);
  }

 private:
  const Api& api_;
  const char* name_;
  std::list<Op> ops_;
  CustomOpDomain* domain_ = nullptr;
};

struct Runtime {
  explicit Runtime(const Api& its_api)
      : api(its_api),
        own(its_api, "ai.groupnorm", kOwn, kTypes),
        standard(its_api, "", kStandard, std::span(kTypes).first<kTypesOfStandard>()) {}

  const Api& api;
  Domain own, standard;
};

// A process may hold several runtimes.
Runtime& runtime_of(const Api& api) {
  static std::list<Runtime> runtimes;
  const auto is_same = [&](const Runtime& runtime) { return &runtime.api == &api; };
  const auto found = std::ranges::find_if(runtimes, is_same);
  return found != runtimes.end() ? *found : runtimes.emplace_back(api);
}

Status* is_override(const Api& api, const SessionOptions* options, bool* is) {
  constexpr const char* kKey = "groupnorm.override";
  int has = 0;
  if (Status* const status = api.has_config_entry(options, kKey, &has)) return status;
  if (has == 0) return nullptr;
  char value[8] = {};
  std::size_t size = sizeof value;
  if (Status* const status = api.config_entry(options, kKey, value, &size)) return status;
  *is = std::strcmp(value, "1") == 0;
  if (*is || std::strcmp(value, "0") == 0) return nullptr;
  return refuse(api, "%s: must be 0 or 1; got %s", kKey, value);
}

Status* register_ops(const Api& api, SessionOptions* options) {
  bool override = false;
  if (Status* const status = is_override(api, options, &override)) return status;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  Runtime& runtime = runtime_of(api);
  if (Status* const status = runtime.own.add_to(options)) return status;
  return override ? runtime.standard.add_to(options) : nullptr;
}

}  // namespace
}  // namespace groupnorm::ort

// What ONNX Runtime calls, by this name, where a library is registered (RegisterCustomOpsLibrary).
extern "C" GROUPNORM_API groupnorm::ort::Status* RegisterCustomOps(
    groupnorm::ort::SessionOptions* options, const groupnorm::ort::ApiBase* base) {
  using namespace groupnorm::ort;
  const Api* const api = base->get_api(kApiVersion);
  if (api == nullptr) {
    const Api& oldest = *base->get_api(1);
    return refuse(oldest, "groupnorm: needs ONNX Runtime 1.18 or later; this is %s",
                  base->version());
  }
  try {
    return register_ops(*api, options);
  } catch (...) {  // std::bad_alloc
    return no_memory(*api);
  }
}
