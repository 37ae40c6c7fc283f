// The part of ONNX Runtime's C interface that custom operators need. Its table of functions,
// OrtApi, only grows at its end, and so does OrtCustomOp: a function's slot and a field's place are
// the same in every version. So one binary serves each runtime from 1.18 on, and builds without its
// headers. Where those are to be had, check_abi.cpp compares.
#ifndef GROUPNORM_SRC_ORT_ABI_H
#define GROUPNORM_SRC_ORT_ABI_H

#include <cstddef>
#include <cstdint>

namespace groupnorm::ort {

inline constexpr std::uint32_t kApiVersion = 18;

// What the runtime hands out by pointer. A Status that is null means ok.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct TensorInfo;
struct Value;

enum class ErrorCode : int { fail = 1, invalid_argument = 2 };
enum class ElementType : int { f32 = 1, f16 = 10, f64 = 11, bf16 = 16 };

enum class Slot : std::uint16_t {
  create_status = 0,
  error_message = 2,
  create_domain = 26,
  domain_add = 27,
  add_domain = 28,
  tensor_data = 51,
  dimensions_count = 61,
  dimensions = 62,
  element_count = 64,
  tensor_info = 65,
  attribute_float = 85,
  attribute_int64 = 86,
  input = 90,
  output = 91,
  release_status = 93,
  release_tensor_info = 99,
  release_domain = 101,
  has_config_entry = 237,
  config_entry = 238,
  input_shape = 268,
  set_output_shape = 270,
  parallel_for = 274,
};

// The runtime's table of functions, known by address alone.
class Api {
 public:
  // Null where there is no memory for a Status, which then means ok.
  Status* create_status(ErrorCode code, const char* text) const {
    return call<Slot::create_status, Status*>(code, text);
  }
  const char* error_message(const Status* status) const {
    return call<Slot::error_message, const char*>(status);
  }
  void release(Status* status) const { call<Slot::release_status, void>(status); }

  Status* create_domain(const char* name, CustomOpDomain** domain) const {
    return call<Slot::create_domain, Status*>(name, domain);
  }
  void release(CustomOpDomain* domain) const { call<Slot::release_domain, void>(domain); }
  // The runtime keeps the address of the operator, and of the domain below.
  Status* add(CustomOpDomain* domain, const struct CustomOp* op) const {
    return call<Slot::domain_add, Status*>(domain, op);
  }
  Status* add(SessionOptions* options, CustomOpDomain* domain) const {
    return call<Slot::add_domain, Status*>(options, domain);
  }
  Status* has_config_entry(const SessionOptions* options, const char* key, int* has) const {
    return call<Slot::has_config_entry, Status*>(options, key, has);
  }
  // `size` counts the terminating zero; a value that is longer is an error.
  Status* config_entry(const SessionOptions* options, const char* key, char* value,
                       std::size_t* size) const {
    return call<Slot::config_entry, Status*>(options, key, value, size);
  }

  Status* attribute(const KernelInfo* info, const char* name, float* value) const {
    return call<Slot::attribute_float, Status*>(info, name, value);
  }
  Status* attribute(const KernelInfo* info, const char* name, std::int64_t* value) const {
    return call<Slot::attribute_int64, Status*>(info, name, value);
  }

  Status* input(const KernelContext* context, std::size_t index, const Value** value) const {
    return call<Slot::input, Status*>(context, index, value);
  }
  Status* output(KernelContext* context, std::size_t index, const std::int64_t* dims,
                 std::size_t rank, Value** value) const {
    return call<Slot::output, Status*>(context, index, dims, rank, value);
  }
  Status* data(const Value* value, void** data) const {
    return call<Slot::tensor_data, Status*>(value, data);
  }
  Status* tensor_info(const Value* value, TensorInfo** info) const {
    return call<Slot::tensor_info, Status*>(value, info);
  }
  void release(TensorInfo* info) const { call<Slot::release_tensor_info, void>(info); }
  Status* rank(const TensorInfo* info, std::size_t* rank) const {
    return call<Slot::dimensions_count, Status*>(info, rank);
  }
  Status* dims(const TensorInfo* info, std::int64_t* dims, std::size_t rank) const {
    return call<Slot::dimensions, Status*>(info, dims, rank);
  }
  Status* element_count(const TensorInfo* info, std::size_t* count) const {
    return call<Slot::element_count, Status*>(info, count);
  }

  // The runtime owns the TensorInfo of a ShapeContext.
  Status* input_shape(const ShapeContext* context, std::size_t index, TensorInfo** info) const {
    return call<Slot::input_shape, Status*>(context, index, info);
  }
  Status* set_output_shape(const ShapeContext* context, std::size_t index,
                           const TensorInfo* info) const {
    return call<Slot::set_output_shape, Status*>(context, index, info);
  }

  // task(arg, i) for each i in [0, count), on the session's threads. batches = 0: the runtime says
  // how many of them go together.
  Status* parallel_for(const KernelContext* context, void (*task)(void* arg, std::size_t index),
                       std::size_t count, std::size_t batches, void* arg) const {
    return call<Slot::parallel_for, Status*>(context, task, count, batches, arg);
  }

 private:
  template <Slot slot, class Result, class... Args>
  Result call(Args... args) const {
    const auto* const table = reinterpret_cast<Result (*const*)(Args...)>(this);
    return table[static_cast<std::size_t>(slot)](args...);
  }
};

struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);  // null: the runtime is older
  const char* (*version)();
};

// OrtCustomOp, as version 18 has it: an operator for one combination of types. The runtime merges
// those of one name. What is null is not asked for.
struct CustomOp {
  std::uint32_t version = kApiVersion;
  void* (*create_kernel_v1)(const CustomOp*, const Api*, const KernelInfo*) = nullptr;
  const char* (*name)(const CustomOp*) = nullptr;
  const char* (*provider)(const CustomOp*) = nullptr;
  ElementType (*input_type)(const CustomOp*, std::size_t) = nullptr;
  std::size_t (*inputs)(const CustomOp*) = nullptr;
  ElementType (*output_type)(const CustomOp*, std::size_t) = nullptr;
  std::size_t (*outputs)(const CustomOp*) = nullptr;
  void (*compute_v1)(void*, KernelContext*) = nullptr;
  void (*destroy)(void* kernel) = nullptr;
  int (*input_kind)(const CustomOp*, std::size_t) = nullptr;   // 0: required
  int (*output_kind)(const CustomOp*, std::size_t) = nullptr;  // 0: required
  int (*input_memory)(const CustomOp*, std::size_t) = nullptr;
  int (*variadic_inputs)(const CustomOp*) = nullptr;
  int (*variadic_inputs_alike)(const CustomOp*) = nullptr;
  int (*variadic_outputs)(const CustomOp*) = nullptr;
  int (*variadic_outputs_alike)(const CustomOp*) = nullptr;
  Status* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*, void** kernel) = nullptr;
  Status* (*compute)(void* kernel, KernelContext*) = nullptr;
  Status* (*infer_shape)(const CustomOp*, ShapeContext*) = nullptr;
  int (*first_version)(const CustomOp*) = nullptr;
  int (*last_version)(const CustomOp*) = nullptr;
  // Which output may lie in the memory of which input: the length of both lists.
  std::size_t (*may_share)(int** inputs, int** outputs) = nullptr;
  void (*release_may_share)(int* inputs, int* outputs) = nullptr;
  std::size_t (*must_share)(int** inputs, int** outputs) = nullptr;
  void (*release_must_share)(int* inputs, int* outputs) = nullptr;
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*));

}  // namespace groupnorm::ort

#endif
