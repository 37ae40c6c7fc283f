// groupnorm._core: the engine on addresses, for the Python packages above it. They have checked
// shapes, dtypes and strides, and hold the arrays that the addresses belong to.
#include <groupnorm/groupnorm.hpp>
#include <groupnorm/layers.hpp>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "integrations/executorch/kernels.h"
#include "machine.h"
#include "openmp.h"
#include "threads.h"
#include "torch_kernels.h"
#include "workspace.h"
#include "xla.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace groupnorm::python {
namespace {

// The enumerator called `name`; else ValueError with the rule.
template <class Enum>
Enum find(const std::string& name, Status rule) {
  if (const std::optional<Enum> value = from_string<Enum>(name)) return *value;
  throw nb::value_error((std::string(status_string(rule)) + "; got '" + name + "'").c_str());
}

// The names of an enumeration, as a tuple.
template <class Enum, std::size_t count>
nb::tuple names(const std::array<Named<Enum>, count>& rows) {
  return std::apply([](const auto&... row) { return nb::make_tuple(row.name...); }, rows);
}

[[noreturn]] void refuse(Status status, const Spec& spec) {
  throw nb::value_error(describe(status, spec).c_str());
}

void require(Status status, const Spec& spec) {
  if (status != Status::ok) refuse(status, spec);
}

// A NumPy array as its C ABI lays it out, which has not changed since 1.7 (PyArrayObject_fields):
// a call on a small array has no time for attributes.
// https://numpy.org/doc/stable/reference/c-api/types-and-structures.html
struct ArrayFields {
  PyObject head;
  void* data;
  int rank;
  Py_intptr_t* shape;
  Py_intptr_t* strides;
  PyObject* base;
  PyObject* dtype;
  int flags;
};

const ArrayFields& fields(nb::handle array) {
  static const nb::handle type =
      nb::object(nb::module_::import_("numpy").attr("ndarray")).release();
  const bool is_array =
      PyObject_TypeCheck(array.ptr(), reinterpret_cast<PyTypeObject*>(type.ptr())) != 0;
  if (!is_array) throw nb::type_error("must be a numpy.ndarray");
  return *reinterpret_cast<const ArrayFields*>(array.ptr());
}

// An array of bfloat16 that speaks DLPack, as 16-bit words on its memory; None for any other.
nb::object bfloat16_words(nb::handle value) {
  nb::ndarray<nb::device::cpu> array;
  if (!nb::try_cast(value, array)) return nb::none();
  const nb::dlpack::dtype dtype = array.dtype();
  const bool is_bfloat16 =
      dtype.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && dtype.bits == 16;
  if (!is_bfloat16 || dtype.lanes != 1) return nb::none();
  std::vector<std::size_t> shape(array.ndim());
  std::vector<std::int64_t> strides(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) {
    shape[i] = array.shape(i);
    strides[i] = array.stride(i);
  }
  return nb::cast(nb::ndarray<nb::numpy, std::uint16_t>(array.data(), shape.size(), shape.data(),
                                                        value, strides.data()),
                  nb::rv_policy::reference);
}

// Where the elements of an array begin; 0, which stands for null, for None.
std::uintptr_t address(nb::handle array) {
  return array.is_none() ? 0 : reinterpret_cast<std::uintptr_t>(fields(array).data);
}

// Whether the engine can take the elements of an array, in C order, where they lie.
bool in_c_order(nb::handle array) {
  constexpr int kCContiguous = 0x1, kAligned = 0x100;
  constexpr int kBoth = kCContiguous | kAligned;
  return (fields(array).flags & kBoth) == kBoth;
}

template <class Function>
Function function_at(std::uintptr_t address) {
  if (address == 0) throw nb::value_error("openmp: an address is 0");
  return reinterpret_cast<Function>(address);  // NOLINT(performance-no-int-to-ptr): of Python
}

// mean and rstd of one forward call, for its backward. An object of Python's array libraries takes
// longer to make than a small call.
class Saved {
 public:
  explicit Saved(const Plan& plan)
      : blocks_(plan.blocks()),
        values_(std::make_unique_for_overwrite<double[]>(static_cast<std::size_t>(2 * blocks_))) {}
  std::uintptr_t mean() const { return reinterpret_cast<std::uintptr_t>(values_.get()); }
  std::uintptr_t rstd() const { return reinterpret_cast<std::uintptr_t>(values_.get() + blocks_); }

 private:
  std::int64_t blocks_;
  std::unique_ptr<double[]> values_;
};

// Calls on fewer elements hold the GIL: to let it go and take it back would cost as much.
constexpr std::int64_t kReleaseElements = 1 << 14;

template <class Call>
Status call_engine(const Plan& plan, const Call& call) {
  const Shape& shape = plan.spec().shape;
  if (shape.n * shape.c * shape.s < kReleaseElements) return call();
  const nb::gil_scoped_release released;
  return call();
}

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): of Python
}

Plan make_plan(std::int64_t n, std::int64_t c, std::int64_t s, std::int64_t examples,
               std::int64_t channels, const std::string& layout, const std::string& data,
               const std::string& param, const std::string& activation, double eps, int correction,
               bool center, bool given_statistics, std::int64_t param_stride, std::int64_t sequence,
               bool shift, bool scale, bool lengths) {
  const Spec spec{.shape = {n, c, s},
                  .block = {examples, channels},
                  .layout = find<Layout>(layout, Status::unknown_layout),
                  .data = find<DType>(data, Status::unknown_data),
                  .param = find<DType>(param, Status::unknown_param),
                  .activation = find<Activation>(activation, Status::unknown_activation),
                  .center = center,
                  .given_statistics = given_statistics,
                  .correction = correction,
                  .eps = eps,
                  .param_stride = param_stride,
                  .sequence = sequence,
                  .shift = shift,
                  .scale = scale,
                  .lengths = lengths};
  Plan plan;
  require(Plan::make(spec, &plan), spec);
  return plan;
}

Forward forward_args(const Plan& plan, std::uintptr_t x, std::uintptr_t y, std::uintptr_t gamma,
                     std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd) {
  Forward args{.x = at<const void>(x),
               .y = at<void>(y),
               .gamma = at<const void>(gamma),
               .beta = at<const void>(beta)};
  if (plan.spec().given_statistics) {
    args.given_mean = at<const double>(mean);
    args.given_rstd = at<const double>(rstd);
  } else {
    args.mean = at<double>(mean);
    args.rstd = at<double>(rstd);
  }
  return args;
}

void run(const Plan& plan, const Forward& args, const Threads& threads, int count) {
  const Workspace workspace(plan.workspace_bytes());
  require(call_engine(
              plan, [&] { return plan.forward(args, workspace.span(), threads.executor(count)); }),
          plan.spec());
}

void forward(const Plan& plan, std::uintptr_t x, std::uintptr_t y, std::uintptr_t gamma,
             std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd, const Threads& threads,
             int count) {
  run(plan, forward_args(plan, x, y, gamma, beta, mean, rstd), threads, count);
}

// Addresses of skip, shift, residual, scale, offset and lengths: the neighbours that a call reads.
using Neighbours = std::array<std::uintptr_t, 6>;

template <class Args>
void set_neighbours(const Neighbours& neighbours, Args* args) {
  const auto [skip, shift, residual, scale, offset, lengths] = neighbours;
  args->skip = at<const void>(skip);
  args->shift = at<const void>(shift);
  args->residual = at<const void>(residual);
  args->scale = at<const void>(scale);
  args->offset = at<const void>(offset);
  args->lengths = at<const std::int64_t>(lengths);
}

void forward_with(const Plan& plan, std::uintptr_t x, std::uintptr_t y, std::uintptr_t gamma,
                  std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd,
                  const Neighbours& neighbours, std::uintptr_t sum, const Threads& threads,
                  int count) {
  Forward args = forward_args(plan, x, y, gamma, beta, mean, rstd);
  set_neighbours(neighbours, &args);
  args.sum = at<void>(sum);
  run(plan, args, threads, count);
}

Backward backward_args(std::uintptr_t x, std::uintptr_t dy, std::uintptr_t gamma,
                       std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd,
                       std::uintptr_t dx, std::uintptr_t dgamma, std::uintptr_t dbeta) {
  return {.x = at<const void>(x),
          .dy = at<const void>(dy),
          .gamma = at<const void>(gamma),
          .beta = at<const void>(beta),
          .mean = at<const double>(mean),
          .rstd = at<const double>(rstd),
          .dx = at<void>(dx),
          .dgamma = at<void>(dgamma),
          .dbeta = at<void>(dbeta)};
}

void run(const Plan& plan, const Backward& args, const Threads& threads, int count) {
  const Workspace workspace(plan.backward_workspace_bytes());
  require(call_engine(
              plan, [&] { return plan.backward(args, workspace.span(), threads.executor(count)); }),
          plan.spec());
}

void backward(const Plan& plan, std::uintptr_t x, std::uintptr_t dy, std::uintptr_t gamma,
              std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd, std::uintptr_t dx,
              std::uintptr_t dgamma, std::uintptr_t dbeta, const Threads& threads, int count) {
  run(plan, backward_args(x, dy, gamma, beta, mean, rstd, dx, dgamma, dbeta), threads, count);
}

// `gradients`: addresses of dx, dgamma, dbeta, dshift, dresidual, dscale and doffset.
void backward_with(const Plan& plan, std::uintptr_t x, std::uintptr_t dy, std::uintptr_t gamma,
                   std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd,
                   const Neighbours& neighbours, std::uintptr_t dsum,
                   const std::array<std::uintptr_t, 7>& gradients, const Threads& threads,
                   int count) {
  const auto [dx, dgamma, dbeta, dshift, dresidual, dscale, doffset] = gradients;
  Backward args = backward_args(x, dy, gamma, beta, mean, rstd, dx, dgamma, dbeta);
  set_neighbours(neighbours, &args);
  args.dsum = at<const void>(dsum);
  args.dshift = at<void>(dshift);
  args.dresidual = at<void>(dresidual);
  args.dscale = at<void>(dscale);
  args.doffset = at<void>(doffset);
  run(plan, args, threads, count);
}

void reduce(const Plan& plan, std::uintptr_t x, std::uintptr_t moments, const Threads& threads,
            int count) {
  const Workspace workspace(plan.workspace_bytes());
  require(call_engine(plan,
                      [&] {
                        return plan.reduce(at<const void>(x), at<Moments>(moments),
                                           workspace.span(), threads.executor(count));
                      }),
          plan.spec());
}

void finish(const Plan& plan, std::uintptr_t moments, std::int64_t blocks, std::uintptr_t mean,
            std::uintptr_t rstd) {
  require(plan.finish(at<const Moments>(moments), blocks, at<double>(mean), at<double>(rstd)),
          plan.spec());
}

void reduce_gradient(const Plan& plan, std::uintptr_t x, std::uintptr_t dy, std::uintptr_t gamma,
                     std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd,
                     std::uintptr_t sums, std::uintptr_t dgamma, std::uintptr_t dbeta,
                     const Threads& threads, int count) {
  const Backward args{.x = at<const void>(x),
                      .dy = at<const void>(dy),
                      .gamma = at<const void>(gamma),
                      .beta = at<const void>(beta),
                      .mean = at<const double>(mean),
                      .rstd = at<const double>(rstd),
                      .dgamma = at<void>(dgamma),
                      .dbeta = at<void>(dbeta)};
  const Workspace workspace(plan.backward_workspace_bytes());
  require(call_engine(plan,
                      [&] {
                        return plan.reduce_gradient(args, at<BlockSums>(sums), workspace.span(),
                                                    threads.executor(count));
                      }),
          plan.spec());
}

void apply_gradient(const Plan& plan, std::uintptr_t x, std::uintptr_t dy, std::uintptr_t gamma,
                    std::uintptr_t beta, std::uintptr_t mean, std::uintptr_t rstd,
                    std::uintptr_t sums, double elements, std::uintptr_t dx, const Threads& threads,
                    int count) {
  const Backward args{.x = at<const void>(x),
                      .dy = at<const void>(dy),
                      .gamma = at<const void>(gamma),
                      .beta = at<const void>(beta),
                      .mean = at<const double>(mean),
                      .rstd = at<const double>(rstd),
                      .dx = at<void>(dx)};
  require(call_engine(plan,
                      [&] {
                        return plan.apply_gradient(args, at<const BlockSums>(sums), elements,
                                                   threads.executor(count));
                      }),
          plan.spec());
}

// forward, of arrays.
void normalize(const Plan& plan, nb::handle x, nb::handle y, nb::handle gamma, nb::handle beta,
               nb::handle mean, nb::handle rstd, const Threads& threads, int count) {
  forward(plan, address(x), address(y), address(gamma), address(beta), address(mean), address(rstd),
          threads, count);
}

}  // namespace
}  // namespace groupnorm::python

NB_MODULE(_core, module) {
  // OpenVINO never lets go of an operator that is written in Python, nor of what it refers to.
  nanobind::set_leak_warnings(false);

  namespace gp = groupnorm::python;
  using groupnorm::Plan;
  module.doc() = "The engine on addresses. Private: use groupnorm and groupnorm.torch.";

  nb::class_<gp::Threads>(module, "Threads", "Where calls run: the built-in pool, or OpenMP.")
      .def_static(
          "pool", [] { return gp::Threads(); },
          "The pool of the process. A count of 0 takes GROUPNORM_NUM_THREADS, or all cores.")
      .def_static(
          "openmp",
          [](std::uintptr_t parallel, std::uintptr_t get_thread_num, std::uintptr_t get_num_threads,
             std::uintptr_t in_parallel) {
            using gp::function_at;
            using gp::OpenMp;
            return gp::Threads(
                OpenMp{function_at<decltype(OpenMp::parallel)>(parallel),
                       function_at<decltype(OpenMp::get_thread_num)>(get_thread_num),
                       function_at<decltype(OpenMp::get_num_threads)>(get_num_threads),
                       function_at<decltype(OpenMp::in_parallel)>(in_parallel)});
          },
          "parallel"_a, "get_thread_num"_a, "get_num_threads"_a, "in_parallel"_a,
          "Threads of a runtime that is loaded already: addresses of its GOMP_parallel and omp_*.")
      .def(
          "count", [](const gp::Threads& self) { return self.executor(0).threads; },
          "What a count of 0 stands for.");

  nb::class_<Plan>(module, "Plan", "A checked Spec with its schedule: immutable, see C++.")
      .def(
          "__init__",
          [](Plan* self, std::int64_t n, std::int64_t c, std::int64_t s, std::int64_t examples,
             std::int64_t channels, const std::string& layout, const std::string& data,
             const std::string& param, const std::string& activation, double eps, int correction,
             bool center, bool given_statistics, std::int64_t param_stride, std::int64_t sequence,
             bool shift, bool scale, bool lengths) {
            new (self) Plan(gp::make_plan(n, c, s, examples, channels, layout, data, param,
                                          activation, eps, correction, center, given_statistics,
                                          param_stride, sequence, shift, scale, lengths));
          },
          "n"_a, "c"_a, "s"_a, "examples"_a, "channels"_a, "layout"_a, "data"_a, "param"_a,
          "activation"_a = "none", "eps"_a = 1e-5, "correction"_a = 0, "center"_a = true,
          "given_statistics"_a = false, "param_stride"_a = 0, "sequence"_a = 1, "shift"_a = false,
          "scale"_a = false, "lengths"_a = false,
          "Of [n, c, s] with blocks of examples x channels. ValueError names the broken rule.")
      .def_prop_ro("blocks", &Plan::blocks, "How many means and rstds there are.")
      .def_prop_ro("block_elements", &Plan::block_elements, "m, the elements of a block.")
      .def_prop_ro("target", &Plan::target, "The instruction set that runs.")
      .def("forward", &gp::forward, "x"_a, "y"_a, "gamma"_a, "beta"_a, "mean"_a, "rstd"_a,
           "threads"_a, "count"_a,
           "Addresses; 0 stands for null. mean and rstd are float64, one a block: written, or read "
           "where the statistics are given. y may be x.")
      .def("forward_with", &gp::forward_with, "x"_a, "y"_a, "gamma"_a, "beta"_a, "mean"_a, "rstd"_a,
           "neighbours"_a, "sum"_a, "threads"_a, "count"_a,
           "forward, with the addresses of skip, shift, residual, scale, offset, lengths, and sum.")
      .def("normalize", &gp::normalize, "x"_a, "y"_a, "gamma"_a.none(), "beta"_a.none(),
           "mean"_a.none(), "rstd"_a.none(), "threads"_a, "count"_a,
           "forward of NumPy arrays, which lie as the engine takes them; None stands for null.")
      .def("backward", &gp::backward, "x"_a, "dy"_a, "gamma"_a, "beta"_a, "mean"_a, "rstd"_a,
           "dx"_a, "dgamma"_a, "dbeta"_a, "threads"_a, "count"_a,
           "Addresses; 0 stands for null. dgamma and dbeta are overwritten. dx may be dy.")
      .def("backward_with", &gp::backward_with, "x"_a, "dy"_a, "gamma"_a, "beta"_a, "mean"_a,
           "rstd"_a, "neighbours"_a, "dsum"_a, "gradients"_a, "threads"_a, "count"_a,
           "backward, with the addresses of the neighbours as in forward_with, of dsum, and of dx, "
           "dgamma, dbeta, dshift, dresidual, dscale, doffset.")
      .def("reduce", &gp::reduce, "x"_a, "moments"_a, "threads"_a, "count"_a,
           "Addresses. moments: count, mean and m2 of each block, float64; zeros of an empty x.")
      .def("finish", &gp::finish, "moments"_a, "blocks"_a, "mean"_a, "rstd"_a,
           "Addresses; 0 stands for null. Of any number of whole blocks.")
      .def("reduce_gradient", &gp::reduce_gradient, "x"_a, "dy"_a, "gamma"_a, "beta"_a, "mean"_a,
           "rstd"_a, "sums"_a, "dgamma"_a, "dbeta"_a, "threads"_a, "count"_a,
           "Addresses; 0 stands for null. sums: d and e of each block, float64, of this piece.")
      .def("apply_gradient", &gp::apply_gradient, "x"_a, "dy"_a, "gamma"_a, "beta"_a, "mean"_a,
           "rstd"_a, "sums"_a, "elements"_a, "dx"_a, "threads"_a, "count"_a,
           "Addresses; 0 stands for null. sums and elements are those of whole blocks.");

  nb::class_<gp::Saved>(module, "Saved", "mean and rstd of a forward call, one a block.")
      .def(nb::init<const Plan&>(), "plan"_a)
      .def_prop_ro("mean", &gp::Saved::mean, "Their address.")
      .def_prop_ro("rstd", &gp::Saved::rstd, "Their address.");

  module.def(
      "merge",
      [](std::uintptr_t more, std::int64_t blocks, std::uintptr_t total) {
        groupnorm::merge(gp::at<const groupnorm::Moments>(more), blocks,
                         gp::at<groupnorm::Moments>(total));
      },
      "more"_a, "blocks"_a, "total"_a, "Addresses of moments; total becomes those of both.");
  module.def("address", &gp::address, "array"_a.none(),
             "Where the elements of a NumPy array begin; 0, which stands for null, without one.");
  module.def("bfloat16_words", &gp::bfloat16_words, "array"_a,
             "An array of bfloat16 that speaks DLPack, as 16-bit words on its memory; else None.");
  module.def("in_c_order", &gp::in_c_order, "array"_a,
             "Whether the engine can take the elements of a NumPy array, in C order, where they "
             "lie.");
  module.def(
      "torch_functions",
      [] {
        std::vector<std::tuple<std::string, bool>> found;
        for (const auto& [name, needed] : gp::torch_functions()) found.emplace_back(name, needed);
        return found;
      },
      "(name, whether it is needed) of the functions of libtorch that torch_link takes.");
  module.def("torch_link", &gp::torch_link, "addresses"_a, "threads"_a,
             "Takes the addresses of torch_functions(), in their order; 0 where there is none.");
  module.def("torch_override", &gp::torch_override, "on"_a,
             "Registers the kernels of aten's group normalization on CPUs, or removes them.");
  module.def(
      "torch_calls",
      [] {
        const gp::TorchCalls calls = gp::torch_calls();
        return std::tuple(calls.forward, calls.backward, calls.left);
      },
      "How many calls (forward, backward) they have computed, and how many they left to torch's.");
  module.def("torch_refuse", &gp::torch_refuse, "words"_a,
             "Of torch's own kernel, which a call was left to: why it refuses.");
  module.def(
      "suggest_groups",
      [](std::int64_t channels) {
        const auto suggestion = groupnorm::suggest_groups(channels);
        return std::tuple(suggestion.groups, suggestion.channels_per_group, suggestion.reason);
      },
      "channels"_a, "(groups, channels per group, reason) of arXiv:1803.08494.");
  module.def(
      "targets",
      [] {
        const auto targets = groupnorm::targets();
        return std::vector<std::string>(targets.begin(), targets.end());
      },
      "The instruction sets of this machine, best first.");
  module.def(
      "active_target",
      []() -> std::optional<std::string> {
        const char* const target = groupnorm::active_target();
        return target == nullptr ? std::nullopt : std::optional<std::string>(target);
      },
      "What runs; None where GROUPNORM_TARGET names no available target.");
  module.def(
      "caches",
      [] {
        const auto found = groupnorm::detail::caches();
        return std::map<std::string, std::size_t>{
            {"l1d", found.l1d}, {"l2", found.l2}, {"l3", found.l3}};
      },
      "Bytes of the data caches of a core: l1d, l2, l3; 0 where they are not known.");
  module.def("allowed_memory", &groupnorm::detail::allowed_memory,
             "Bytes that this process may still take; infinity where the system does not say.");
  module.def("rotating_sets", &groupnorm::detail::rotating_sets, "set_bytes"_a, "memory"_a,
             "How many sets of buffers to go round, so that each has left the caches at its turn.");
  module.def("format_bytes", &groupnorm::detail::format_bytes, "bytes"_a,
             R"(As "512 KB" or "1.6 GB", in powers of 1024.)");
  module.def("processor", &groupnorm::detail::processor, R"(Its model, or "unknown".)");
  module.attr("DTYPES") = gp::names(groupnorm::kDTypes);
  module.attr("LAYOUTS") = gp::names(groupnorm::kLayouts);
  module.attr("ACTIVATIONS") = gp::names(groupnorm::kActivations);
  module.def(
      "executorch_engine",
      [] {
        static const groupnorm::executorch::Engine engine;
        return reinterpret_cast<std::uintptr_t>(&engine);
      },
      "The address of what the kernels for ExecuTorch call (integrations/executorch).");
  module.def(
      "xla_handlers",
      [] {
        const auto capsule = [](gp::xla::Handler* handler) {
          return nb::capsule(reinterpret_cast<const void*>(handler));
        };
        return std::tuple(capsule(gp::xla::forward), capsule(gp::xla::backward));
      },
      "The capsules that XLA knows forward and backward by (XLA FFI, of a JAX on the CPU).");
  module.def(
      "version", [] { return std::string(GROUPNORM_VERSION); }, "Of this package.");
}
