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
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace groupnorm::executorch {
namespace {

using ::executorch::aten::ArrayRef;
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

constexpr int kMaxRank = 6;
constexpr int kMaxRowRank = 3;  // of the parameters of a layer norm

Engine engine{nullptr, nullptr, nullptr, nullptr};

std::int64_t product(ArrayRef<SizesType> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>());
}

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

// ---- a call

// Of either operator, as the engine sees it.
struct Call {
  const Tensor& x;
  std::optional<Tensor> weight, bias;
  double eps;
  Tensor &y, &mean, &rstd;
  gn_shape shape;
  gn_block block;
  gn_layout layout;
};

// The runtime's threads.
void run(void*, std::int64_t count, gn_task task, void* arg) {
  ::executorch::extension::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) task(arg, i);
  });
}

gn_spec spec_of(const Call& call) {
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = call.shape;
  spec.block = call.block;
  spec.layout = call.layout;
  spec.data = dtype_of(call.x.scalar_type());
  const std::optional<Tensor>& param = call.weight ? call.weight : call.bias;
  spec.param = param ? dtype_of(param->scalar_type()) : spec.data;
  spec.eps = call.eps;
  return spec;
}

// `sizes` are those of mean and rstd.
void normalize(KernelRuntimeContext& context, Call& call, ArrayRef<SizesType> sizes) {
  ET_KERNEL_CHECK(context, resize_tensor(call.y, call.x.sizes()) == Error::Ok, InvalidArgument, );
  ET_KERNEL_CHECK(context, resize_tensor(call.mean, sizes) == Error::Ok, InvalidArgument, );
  ET_KERNEL_CHECK(context, resize_tensor(call.rstd, sizes) == Error::Ok, InvalidArgument, );
  if (call.x.numel() == 0) {  // as the portable kernels have it
    store(call.mean, [](std::int64_t) { return 0.0; });
    store(call.rstd, [](std::int64_t) { return std::numeric_limits<double>::quiet_NaN(); });
    return;
  }

  const gn_spec spec = spec_of(call);
  gn_plan plan;
  gn_status status = engine.plan_make(&spec, nullptr, &plan);
  ET_KERNEL_CHECK_MSG(context, status == GN_STATUS_OK, InvalidArgument, , "groupnorm: %s",
                      engine.status_string(status));
  const std::size_t workspace = engine.workspace_bytes(&plan);
  const auto blocks = static_cast<std::size_t>(call.mean.numel());
  const std::size_t bytes = 2 * blocks * sizeof(double) + workspace;
  const auto memory = context.allocate_temp(bytes, alignof(double));
  ET_KERNEL_CHECK_MSG(context, memory.ok(), MemoryAllocationFailed, ,
                      "groupnorm: the temp allocator must give %zu bytes", bytes);
  auto* const mean = static_cast<double*>(memory.get());
  auto* const rstd = mean + blocks;

  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = call.x.const_data_ptr();
  args.y = call.y.mutable_data_ptr();
  args.gamma = call.weight ? call.weight->const_data_ptr() : nullptr;
  args.beta = call.bias ? call.bias->const_data_ptr() : nullptr;
  args.mean = mean;
  args.rstd = rstd;
  const std::int64_t threads = ::executorch::extension::get_thread_count();
  const gn_executor executor = {run, nullptr,
                                static_cast<int>(std::clamp<std::int64_t>(threads, 1, 1024))};
  status = engine.forward(&plan, &args, rstd + blocks, workspace, &executor);
  ET_KERNEL_CHECK_MSG(context, status == GN_STATUS_OK, InvalidArgument, , "groupnorm: %s",
                      engine.status_string(status));
  store(call.mean, [&](std::int64_t i) { return mean[i]; });
  store(call.rstd, [&](std::int64_t i) { return rstd[i]; });
}

// ---- the operators
//
// Their keys have matched: dtypes and dim orders are some of those below. What the engine does not
// take is left to the portable kernel: it computes with an eps below 0, and has words for sizes
// that do not fit.

bool takes_eps(double eps) { return std::isfinite(eps) && eps >= 0; }

// Whether a parameter, if there is one, has these sizes.
bool has_sizes(const std::optional<Tensor>& param, ArrayRef<std::int64_t> sizes) {
  return !param ||
         std::equal(sizes.begin(), sizes.end(), param->sizes().begin(), param->sizes().end());
}

void leave_to_portable(const char* name, KernelRuntimeContext& context, Span<EValue*> values) {
  for (const Kernel& kernel : ::executorch::runtime::get_registered_kernels()) {
    if (kernel.kernel_key_.is_fallback() && std::strcmp(kernel.name_, name) == 0) {
      kernel.op_(context, values);
      return;
    }
  }
  ET_KERNEL_CHECK_MSG(context, false, InvalidArgument, ,
                      "groupnorm: needs the portable %s for an eps that is below 0 or not finite, "
                      "or sizes that do not fit",
                      name);
}

// native_group_norm.out(Tensor input, Tensor? weight, Tensor? bias, SymInt N, SymInt C, SymInt HxW,
//                       int group, float eps, *, Tensor(a!) out0, Tensor(b!) out1, Tensor(c!) out2)
constexpr const char* kGroupNorm = "aten::native_group_norm.out";

void group_norm(KernelRuntimeContext& context, Span<EValue*> values) {
  const Tensor& x = values[0]->toTensor();
  const std::int64_t n = values[3]->toInt(), c = values[4]->toInt(), s = values[5]->toInt();
  const std::int64_t groups = values[6]->toInt();
  const bool last = x.dim() > 2 && x.dim_order()[1] != 1;
  Call call{.x = x,
            .weight = values[1]->toOptional<Tensor>(),
            .bias = values[2]->toOptional<Tensor>(),
            .eps = values[7]->toDouble(),
            .y = values[8]->toTensor(),
            .mean = values[9]->toTensor(),
            .rstd = values[10]->toTensor(),
            .shape = {n, c, s},
            .block = {1, groups > 0 ? c / groups : 0},
            .layout = last ? GN_LAYOUT_CHANNELS_LAST : GN_LAYOUT_CHANNELS_FIRST};
  const auto positions = product(x.sizes().slice(2, static_cast<std::size_t>(x.dim() - 2)));
  const bool fits = x.size(0) == n && x.size(1) == c && positions == s && groups > 0 &&
                    c % groups == 0 && has_sizes(call.weight, {&c, 1}) &&
                    has_sizes(call.bias, {&c, 1});
  if (!fits || !takes_eps(call.eps)) return leave_to_portable(kGroupNorm, context, values);
  const std::array sizes = {static_cast<SizesType>(n), static_cast<SizesType>(groups)};
  normalize(context, call, {sizes.data(), sizes.size()});
}

// native_layer_norm.out(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias,
//                       float eps, *, Tensor(a!) out0, Tensor(b!) out1, Tensor(c!) out2)
constexpr const char* kLayerNorm = "aten::native_layer_norm.out";

void layer_norm(KernelRuntimeContext& context, Span<EValue*> values) {
  const Tensor& x = values[0]->toTensor();
  const ArrayRef<std::int64_t> row = values[1]->toIntList();
  Call call{.x = x,
            .weight = values[2]->toOptional<Tensor>(),
            .bias = values[3]->toOptional<Tensor>(),
            .eps = values[4]->toDouble(),
            .y = values[5]->toTensor(),
            .mean = values[6]->toTensor(),
            .rstd = values[7]->toTensor(),
            .shape = {},
            .block = {},
            .layout = GN_LAYOUT_CHANNELS_FIRST};
  const auto rank = static_cast<std::size_t>(x.dim());
  const std::size_t rows = rank - std::min(rank, row.size());  // how many dimensions they have
  const bool fits = !row.empty() && rows + row.size() == rank &&
                    std::equal(row.begin(), row.end(), x.sizes().begin() + rows) &&
                    has_sizes(call.weight, row) && has_sizes(call.bias, row);
  if (!fits || !takes_eps(call.eps)) return leave_to_portable(kLayerNorm, context, values);
  call.shape = {product(x.sizes().slice(0, rows)), product(x.sizes().slice(rows, row.size())), 1};
  call.block = {1, call.shape.c};
  std::array<SizesType, kMaxRank> sizes{};
  std::fill(std::copy_n(x.sizes().begin(), rows, sizes.begin()), sizes.end(), 1);
  normalize(context, call, {sizes.data(), rank});
}

// ---- registration

// The dimensions of a tensor as they lie in memory, the outermost first: "0,1,2,3", or "0,2,3,1"
// channels last.
std::string dim_order(int rank, bool last = false) {
  std::string order = "0";
  for (int i = last ? 2 : 1; i < rank; ++i) order += "," + std::to_string(i);
  return last ? order + ",1" : order;
}

// The key of a call (operator_registry.h): the dtype and the dim order of each tensor that there
// is, as "v1/6;0,1,2,3|6;0|6;0|6;0,1,2,3|6;0,1|6;0,1" of x, two parameters, y, mean and rstd.
std::string key(Types types, const std::string& x, int params, const std::string& param,
                const std::string& statistics) {
  const auto meta = [](ScalarType type, const std::string& order) {
    return std::to_string(static_cast<int>(type)) + ";" + order;
  };
  std::string text = "v1/" + meta(types.data, x);
  for (int i = 0; i < params; ++i) text += "|" + meta(types.param, param);
  for (const std::string& order : {x, statistics, statistics})
    text += "|" + meta(types.data, order);
  return text;
}

// A kernel for each kind of call that it takes; the registry keeps the addresses of the keys.
struct Kind {
  const char* name;
  void (*kernel)(KernelRuntimeContext&, Span<EValue*>);
  std::string key;
};

std::vector<Kind> make_kinds() {
  std::vector<Kind> kinds;
  for (const Types types : kTypes) {
    for (int params = types.data == types.param ? 0 : 1; params <= 2; ++params) {
      for (int rank = 2; rank <= kMaxRank; ++rank) {
        for (const bool last : {false, true}) {
          if (last && rank != 4 && rank != 5) continue;
          kinds.push_back({kGroupNorm, group_norm,
                           key(types, dim_order(rank, last), params, dim_order(1), dim_order(2))});
        }
      }
      // The exporter refuses other types.
      for (int rank = 1; rank <= kMaxRank && types.data == types.param; ++rank) {
        for (int row = 1; row <= std::min(rank, params == 0 ? 1 : kMaxRowRank); ++row) {
          const std::string x = dim_order(rank);
          kinds.push_back({kLayerNorm, layer_norm, key(types, x, params, dim_order(row), x)});
        }
      }
    }
  }
  return kinds;
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
  static const std::vector<Kind> kinds = make_kinds();
  for (const Kind& kind : kinds) {
    const Kernel kernel(kind.name, kind.key.c_str(), kind.kernel);
    // A key that is there already, of another copy of this file, would end the process.
    if (!is_registered(kernel)) (void)::executorch::runtime::register_kernel(kernel);
  }
}

}  // namespace groupnorm::executorch
