// The C functions of PyTorch's stable ABI that our kernels call, by address: neither a header nor a
// library of torch is needed to build them, and one binary serves each torch from 2.10 on.
// (torch/csrc/inductor/aoti_torch/c/shim.h, torch/csrc/stable/c/shim.h;
// https://docs.pytorch.org/docs/stable/notes/libtorch_stable_abi.html)
#ifndef GROUPNORM_PYTHON_SRC_TORCH_ABI_H
#define GROUPNORM_PYTHON_SRC_TORCH_ABI_H

#include <cstddef>
#include <cstdint>

namespace groupnorm::python::torch_abi {

// What the values below mean is what they meant in this version, whichever torch runs.
inline constexpr std::uint64_t kVersion = (std::uint64_t{2} << 56) | (std::uint64_t{10} << 48);

// What torch hands out by pointer. Who has a Tensor or a List gives it back.
struct Tensor;
struct List;
struct Library;

using Error = std::int32_t;  // 0: none

// One argument or result of an operator: an integer, the bits of a double, a Tensor*, a List*, or
// of an optional a Value* (0: none).
using Value = std::uint64_t;

// Takes the arguments off the stack, and leaves the results there. An exception goes to the caller
// of the operator.
using Kernel = void (*)(Value* stack, std::uint64_t arguments, std::uint64_t results);

struct Api {
  Error (*library_init_impl)(const char* name, const char* key, const char* file,
                             std::uint32_t line, Library** library);
  Error (*library_impl)(Library* library, const char* name, Kernel kernel, std::uint64_t version);
  Error (*delete_library)(Library* library);
  // Takes the arguments off the stack, and leaves the results there.
  Error (*call_dispatcher)(const char* name, const char* overload, Value* stack,
                           std::uint64_t version);

  Error (*get_dim)(Tensor* tensor, std::int64_t* rank);
  Error (*get_sizes)(Tensor* tensor, std::int64_t** sizes);      // of the tensor
  Error (*get_strides)(Tensor* tensor, std::int64_t** strides);  // of the tensor
  Error (*get_dtype)(Tensor* tensor, std::int32_t* dtype);
  Error (*get_storage_size)(Tensor* tensor, std::int64_t* bytes);
  Error (*get_storage_offset)(Tensor* tensor, std::int64_t* elements);
  Error (*get_const_data)(Tensor* tensor, const void** data);  // does not end a copy-on-write
  Error (*get_data)(Tensor* tensor, void** data);
  Error (*is_defined)(Tensor* tensor, bool* defined);

  Error (*empty_strided)(std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides,
                         std::int32_t dtype, std::int32_t device_type, std::int32_t device_index,
                         Tensor** tensor);
  // Another tensor on the same storage.
  Error (*reinterpret)(Tensor* tensor, std::int64_t rank, const std::int64_t* sizes,
                       const std::int64_t* strides, std::int64_t offset, Tensor** other);
  Error (*undefined_tensor)(Tensor** tensor);
  Error (*new_handle)(Tensor* tensor, Tensor** same);
  Error (*delete_tensor)(Tensor* tensor);

  Error (*list_item)(List* list, std::size_t index, Value* value);
  Error (*delete_list)(List* list);

  Error (*get_num_threads)(std::uint32_t* threads);
  std::int32_t (*f32)();
  std::int32_t (*f64)();
  std::int32_t (*f16)();
  std::int32_t (*bf16)();
  std::int32_t (*cpu)();
  std::int32_t (*contiguous_format)();
  std::int32_t (*channels_last)();
  std::int32_t (*channels_last_3d)();

  // Of torch 2.13 on; null before.
  Error (*delete_value)(Value* value);  // before, an optional is deleted by who has it
  const char* (*last_error)();          // before, torch tells nobody but stderr
};

// visit(name, function) for each of them, in this order.
template <class Visit>
void each_function(Api& api, Visit visit) {
  visit("aoti_torch_library_init_impl", api.library_init_impl);
  visit("torch_library_impl", api.library_impl);
  visit("aoti_torch_delete_library_object", api.delete_library);
  visit("torch_call_dispatcher", api.call_dispatcher);
  visit("aoti_torch_get_dim", api.get_dim);
  visit("aoti_torch_get_sizes", api.get_sizes);
  visit("aoti_torch_get_strides", api.get_strides);
  visit("aoti_torch_get_dtype", api.get_dtype);
  visit("aoti_torch_get_storage_size", api.get_storage_size);
  visit("aoti_torch_get_storage_offset", api.get_storage_offset);
  visit("torch_get_const_data_ptr", api.get_const_data);
  visit("torch_get_mutable_data_ptr", api.get_data);
  visit("aoti_torch_is_defined", api.is_defined);
  visit("aoti_torch_empty_strided", api.empty_strided);
  visit("aoti_torch__reinterpret_tensor", api.reinterpret);
  visit("aoti_torch_new_uninitialized_tensor", api.undefined_tensor);
  visit("aoti_torch_new_tensor_handle", api.new_handle);
  visit("aoti_torch_delete_tensor_object", api.delete_tensor);
  visit("torch_list_get_item", api.list_item);
  visit("torch_delete_list", api.delete_list);
  visit("torch_get_num_threads", api.get_num_threads);
  visit("aoti_torch_dtype_float32", api.f32);
  visit("aoti_torch_dtype_float64", api.f64);
  visit("aoti_torch_dtype_float16", api.f16);
  visit("aoti_torch_dtype_bfloat16", api.bf16);
  visit("aoti_torch_device_type_cpu", api.cpu);
  visit("aoti_torch_memory_format_contiguous_format", api.contiguous_format);
  visit("aoti_torch_memory_format_channels_last", api.channels_last);
  visit("aoti_torch_memory_format_channels_last_3d", api.channels_last_3d);
}

template <class Visit>
void each_later_function(Api& api, Visit visit) {
  visit("torch_delete_stable_ivalue", api.delete_value);
  visit("torch_exception_get_what_without_backtrace", api.last_error);
}

}  // namespace groupnorm::python::torch_abi

#endif
