#include "kernels.h"

#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace groupnorm::executorch {
namespace {

using ::executorch::aten::BFloat16;
using ::executorch::aten::Half;
using ::executorch::aten::ScalarType;
using ::executorch::aten::SizesType;
using ::executorch::aten::Tensor;
using ::executorch::runtime::Error;
using ::executorch::runtime::EValue;
using ::executorch::runtime::Kernel;
using ::executorch::runtime::KernelRuntimeContext;
using ::executorch::runtime::resize_tensor;
using ::executorch::runtime::Span;

constexpr const char* kName = "aten::native_group_norm.out";

Engine engine{nullptr, nullptr, nullptr, nullptr};

// ---- dtypes

struct Types {
  ScalarType data, param;
};
constexpr Types kTypes[] = {
    {ScalarType::Float, ScalarType::Float}, {ScalarType::Double, ScalarType::Double},
    {ScalarType::Half, ScalarType::Half},   {ScalarType::BFloat16, ScalarType::BFloat16},
    {ScalarType::Half, ScalarType::Float},  {ScalarType::BFloat16, ScalarType::Float},
};

gn_dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return GN_DTYPE_F64;
    case ScalarType::Half: return GN_DTYPE_F16;
    case ScalarType::BFloat16: return GN_DTYPE_BF16;
    default: return GN_DTYPE_F32;
  }
}

// mean or rstd, of any dtype: at(i) of block i.
template <class At>
void store(Tensor& to, const At& at) {
  const auto fill = [&](auto* values) {
    using Element = std::decay_t<decltype(*values)>;
    using Wide = std::conditional_t<std::is_same_v<Element, double>, double, float>;
    for (std::int64_t i = 0; i < to.numel(); ++i) {
      values[i] = static_cast<Element>(static_cast<Wide>(at(i)));
    }
  };
  switch (to.scalar_type()) {
    case ScalarType::Double: return fill(to.mutable_data_ptr<double>());
    case ScalarType::Half: return fill(to.mutable_data_ptr<Half>());
    case ScalarType::BFloat16: return fill(to.mutable_data_ptr<BFloat16>());
    default: return fill(to.mutable_data_ptr<float>());
  }
}

// ---- the kernel

// native_group_norm.out(Tensor input, Tensor? weight, Tensor? bias, SymInt N, SymInt C, SymInt HxW,
//                       int group, float eps, *, Tensor(a!) out0, Tensor(b!) out1, Tensor(c!) out2)
// Its key has matched: dtypes and dim orders are some of those below.
struct Arguments {
  explicit Arguments(Span<EValue*> values)
      : x(values[0]->toTensor()),
        weight(values[1]->toOptional<Tensor>()),
        bias(values[2]->toOptional<Tensor>()),
        n(values[3]->toInt()),
        c(values[4]->toInt()),
        s(values[5]->toInt()),
        groups(values[6]->toInt()),
        eps(values[7]->toDouble()),
        y(values[8]->toTensor()),
        mean(values[9]->toTensor()),
        rstd(values[10]->toTensor()) {}

  const Tensor& x;
  std::optional<Tensor> weight, bias;
  std::int64_t n, c, s, groups;
  double eps;
  Tensor &y, &mean, &rstd;
};

gn_layout layout_of(const Tensor& tensor) {
  const bool last = tensor.dim() > 2 && tensor.dim_order()[1] != 1;
  return last ? GN_LAYOUT_CHANNELS_LAST : GN_LAYOUT_CHANNELS_FIRST;
}

bool is_param(const std::optional<Tensor>& param, std::int64_t c) {
  return !param || (param->dim() == 1 && param->size(0) == c);
}

// Whether the engine does it, rather than the portable kernel, which takes an eps below 0 and has
// words for what nobody can do.
bool takes(const Arguments& a) {
  std::int64_t positions = 1;
  for (int i = 2; i < a.x.dim(); ++i) positions *= a.x.size(i);
  return a.x.size(0) == a.n && a.x.size(1) == a.c && positions == a.s && a.groups > 0 &&
         a.c % a.groups == 0 && is_param(a.weight, a.c) && is_param(a.bias, a.c) &&
         std::isfinite(a.eps) && a.eps >= 0;
}

void leave_to_portable(KernelRuntimeContext& context, Span<EValue*> values) {
  for (const Kernel& kernel : ::executorch::runtime::get_registered_kernels()) {
    if (kernel.kernel_key_.is_fallback() && std::strcmp(kernel.name_, kName) == 0) {
      kernel.op_(context, values);
      return;
    }
  }
  ET_KERNEL_CHECK_MSG(context, false, InvalidArgument, ,
                      "groupnorm: needs the portable %s for sizes that are not those of input, "
                      "groups that do not divide C, or an eps that is not finite or below 0",
                      kName);
}

// The runtime's threads.
void run(void*, std::int64_t count, gn_task task, void* arg) {
  ::executorch::extension::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) task(arg, i);
  });
}

gn_spec spec_of(const Arguments& a) {
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = {a.n, a.c, a.s};
  spec.block = {1, a.c / a.groups};
  spec.layout = layout_of(a.x);
  spec.data = dtype_of(a.x.scalar_type());
  const std::optional<Tensor>& param = a.weight ? a.weight : a.bias;
  spec.param = param ? dtype_of(param->scalar_type()) : spec.data;
  spec.eps = a.eps;
  return spec;
}

void group_norm(KernelRuntimeContext& context, Span<EValue*> values) {
  Arguments a(values);
  if (!takes(a)) return leave_to_portable(context, values);
  const std::array<SizesType, 2> sizes = {static_cast<SizesType>(a.n),
                                          static_cast<SizesType>(a.groups)};
  ET_KERNEL_CHECK(context, resize_tensor(a.y, a.x.sizes()) == Error::Ok, InvalidArgument, );
  for (Tensor* const each : {&a.mean, &a.rstd}) {
    ET_KERNEL_CHECK(context, resize_tensor(*each, {sizes.data(), sizes.size()}) == Error::Ok,
                    InvalidArgument, );
  }
  if (a.x.numel() == 0) {  // as the portable kernel has it
    store(a.mean, [](std::int64_t) { return 0.0; });
    store(a.rstd, [](std::int64_t) { return std::numeric_limits<double>::quiet_NaN(); });
    return;
  }

  const gn_spec spec = spec_of(a);
  gn_plan plan;
  gn_status status = engine.plan_make(&spec, nullptr, &plan);
  ET_KERNEL_CHECK_MSG(context, status == GN_STATUS_OK, InvalidArgument, , "groupnorm: %s",
                      engine.status_string(status));
  const std::size_t workspace = engine.workspace_bytes(&plan);
  const auto blocks = static_cast<std::size_t>(a.n * a.groups);
  const std::size_t bytes = 2 * blocks * sizeof(double) + workspace;
  const auto memory = context.allocate_temp(bytes, alignof(double));
  ET_KERNEL_CHECK_MSG(context, memory.ok(), MemoryAllocationFailed, ,
                      "groupnorm: the temp allocator must give %zu bytes", bytes);
  auto* const mean = static_cast<double*>(memory.get());
  auto* const rstd = mean + blocks;

  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = a.x.const_data_ptr();
  args.y = a.y.mutable_data_ptr();
  args.gamma = a.weight ? a.weight->const_data_ptr() : nullptr;
  args.beta = a.bias ? a.bias->const_data_ptr() : nullptr;
  args.mean = mean;
  args.rstd = rstd;
  const std::int64_t threads = ::executorch::extension::get_thread_count();
  const gn_executor executor = {run, nullptr,
                                static_cast<int>(std::clamp<std::int64_t>(threads, 1, 1024))};
  status = engine.forward(&plan, &args, rstd + blocks, workspace, &executor);
  ET_KERNEL_CHECK_MSG(context, status == GN_STATUS_OK, InvalidArgument, , "groupnorm: %s",
                      engine.status_string(status));
  store(a.mean, [&](std::int64_t i) { return mean[i]; });
  store(a.rstd, [&](std::int64_t i) { return rstd[i]; });
}

// ---- registration

// The dimensions of a tensor as they lie in memory, the outermost first: "0,2,3,1".
std::string dim_order(int rank, gn_layout layout) {
  std::string order = "0";
  if (layout == GN_LAYOUT_CHANNELS_FIRST && rank > 1) order += ",1";
  for (int i = 2; i < rank; ++i) order += "," + std::to_string(i);
  if (layout == GN_LAYOUT_CHANNELS_LAST) order += ",1";
  return order;
}

// The key of calls with so many parameters (operator_registry.h): the dtype and the dim order of
// each tensor that there is, as "v1/6;0,1,2,3|6;0|6;0|6;0,1,2,3|6;0,1|6;0,1".
std::string key(Types types, int params, int rank, gn_layout layout) {
  const auto meta = [](ScalarType type, const std::string& order) {
    return std::to_string(static_cast<int>(type)) + ";" + order;
  };
  const std::string x = meta(types.data, dim_order(rank, layout));
  const std::string statistics = meta(types.data, dim_order(2, GN_LAYOUT_CHANNELS_FIRST));
  std::string text = "v1/" + x;
  for (int i = 0; i < params; ++i) text += "|" + meta(types.param, dim_order(1, {}));
  return text + "|" + x + "|" + statistics + "|" + statistics;
}

// Of all calls that the kernel takes.
std::vector<std::string> make_keys() {
  std::vector<std::string> keys;
  for (const Types types : kTypes) {
    for (int params = types.data == types.param ? 0 : 1; params <= 2; ++params) {
      for (int rank = 2; rank <= 6; ++rank) {
        keys.push_back(key(types, params, rank, GN_LAYOUT_CHANNELS_FIRST));
        if (rank == 4 || rank == 5) {
          keys.push_back(key(types, params, rank, GN_LAYOUT_CHANNELS_LAST));
        }
      }
    }
  }
  return keys;
}

bool is_registered(const Kernel& kernel) {
  const auto registered = ::executorch::runtime::get_registered_kernels();
  return std::any_of(registered.begin(), registered.end(), [&](const Kernel& each) {
    return std::strcmp(each.name_, kernel.name_) == 0 && each.kernel_key_ == kernel.kernel_key_;
  });
}

}  // namespace

extern "C" void groupnorm_register_executorch_kernels(const Engine& given) {
  if (engine.forward != nullptr) return;
  engine = given;
  static const std::vector<std::string> keys = make_keys();  // the registry keeps the addresses
  for (const std::string& each : keys) {
    const Kernel kernel(kName, each.c_str(), group_norm);
    // A key that is there already, of another copy of this file, would end the process.
    if (!is_registered(kernel)) (void)::executorch::runtime::register_kernel(kernel);
  }
}

}  // namespace groupnorm::executorch
