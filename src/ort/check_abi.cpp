// abi.h beside the runtime's own header: compiled where that is installed, and empty.
#include "abi.h"

#include <onnxruntime_c_api.h>

#include <cstddef>

namespace groupnorm::ort {
namespace {

constexpr bool is_at(Slot slot, std::size_t offset) {
  return offset == static_cast<std::size_t>(slot) * sizeof(void*);
}

static_assert(is_at(Slot::create_status, offsetof(OrtApi, CreateStatus)));
static_assert(is_at(Slot::error_message, offsetof(OrtApi, GetErrorMessage)));
static_assert(is_at(Slot::create_domain, offsetof(OrtApi, CreateCustomOpDomain)));
static_assert(is_at(Slot::domain_add, offsetof(OrtApi, CustomOpDomain_Add)));
static_assert(is_at(Slot::add_domain, offsetof(OrtApi, AddCustomOpDomain)));
static_assert(is_at(Slot::tensor_data, offsetof(OrtApi, GetTensorMutableData)));
static_assert(is_at(Slot::dimensions_count, offsetof(OrtApi, GetDimensionsCount)));
static_assert(is_at(Slot::dimensions, offsetof(OrtApi, GetDimensions)));
static_assert(is_at(Slot::element_count, offsetof(OrtApi, GetTensorShapeElementCount)));
static_assert(is_at(Slot::tensor_info, offsetof(OrtApi, GetTensorTypeAndShape)));
static_assert(is_at(Slot::attribute_float, offsetof(OrtApi, KernelInfoGetAttribute_float)));
static_assert(is_at(Slot::attribute_int64, offsetof(OrtApi, KernelInfoGetAttribute_int64)));
static_assert(is_at(Slot::input, offsetof(OrtApi, KernelContext_GetInput)));
static_assert(is_at(Slot::output, offsetof(OrtApi, KernelContext_GetOutput)));
static_assert(is_at(Slot::release_status, offsetof(OrtApi, ReleaseStatus)));
static_assert(is_at(Slot::release_tensor_info, offsetof(OrtApi, ReleaseTensorTypeAndShapeInfo)));
static_assert(is_at(Slot::release_domain, offsetof(OrtApi, ReleaseCustomOpDomain)));
static_assert(is_at(Slot::has_config_entry, offsetof(OrtApi, HasSessionConfigEntry)));
static_assert(is_at(Slot::config_entry, offsetof(OrtApi, GetSessionConfigEntry)));
static_assert(is_at(Slot::input_shape, offsetof(OrtApi, ShapeInferContext_GetInputTypeShape)));
static_assert(is_at(Slot::set_output_shape,
                    offsetof(OrtApi, ShapeInferContext_SetOutputTypeShape)));
static_assert(is_at(Slot::parallel_for, offsetof(OrtApi, KernelContext_ParallelFor)));

static_assert(ORT_FAIL == static_cast<int>(ErrorCode::fail));
static_assert(ORT_INVALID_ARGUMENT == static_cast<int>(ErrorCode::invalid_argument));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == static_cast<int>(ElementType::f32));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == static_cast<int>(ElementType::f16));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE == static_cast<int>(ElementType::f64));
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 == static_cast<int>(ElementType::bf16));
static_assert(INPUT_OUTPUT_REQUIRED == 0 && OrtMemTypeDefault == 0);

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ApiBase, get_api));
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ApiBase, version));
static_assert(offsetof(OrtCustomOp, version) == offsetof(CustomOp, version));
static_assert(offsetof(OrtCustomOp, GetName) == offsetof(CustomOp, name));
static_assert(offsetof(OrtCustomOp, GetExecutionProviderType) == offsetof(CustomOp, provider));
static_assert(offsetof(OrtCustomOp, GetInputType) == offsetof(CustomOp, input_type));
static_assert(offsetof(OrtCustomOp, GetInputTypeCount) == offsetof(CustomOp, inputs));
static_assert(offsetof(OrtCustomOp, GetOutputType) == offsetof(CustomOp, output_type));
static_assert(offsetof(OrtCustomOp, GetOutputTypeCount) == offsetof(CustomOp, outputs));
static_assert(offsetof(OrtCustomOp, KernelDestroy) == offsetof(CustomOp, destroy));
static_assert(offsetof(OrtCustomOp, GetInputCharacteristic) == offsetof(CustomOp, input_kind));
static_assert(offsetof(OrtCustomOp, GetOutputCharacteristic) == offsetof(CustomOp, output_kind));
static_assert(offsetof(OrtCustomOp, GetInputMemoryType) == offsetof(CustomOp, input_memory));
static_assert(offsetof(OrtCustomOp, GetVariadicInputMinArity) ==
              offsetof(CustomOp, variadic_inputs));
static_assert(offsetof(OrtCustomOp, GetVariadicInputHomogeneity) ==
              offsetof(CustomOp, variadic_inputs_alike));
static_assert(offsetof(OrtCustomOp, GetVariadicOutputMinArity) ==
              offsetof(CustomOp, variadic_outputs));
static_assert(offsetof(OrtCustomOp, GetVariadicOutputHomogeneity) ==
              offsetof(CustomOp, variadic_outputs_alike));
static_assert(offsetof(OrtCustomOp, CreateKernelV2) == offsetof(CustomOp, create_kernel));
static_assert(offsetof(OrtCustomOp, KernelComputeV2) == offsetof(CustomOp, compute));
static_assert(offsetof(OrtCustomOp, InferOutputShapeFn) == offsetof(CustomOp, infer_shape));
static_assert(offsetof(OrtCustomOp, GetStartVersion) == offsetof(CustomOp, first_version));
static_assert(offsetof(OrtCustomOp, GetEndVersion) == offsetof(CustomOp, last_version));
static_assert(offsetof(OrtCustomOp, GetMayInplace) == offsetof(CustomOp, may_share));
static_assert(offsetof(OrtCustomOp, ReleaseMayInplace) == offsetof(CustomOp, release_may_share));
static_assert(offsetof(OrtCustomOp, GetAliasMap) == offsetof(CustomOp, must_share));

}  // namespace
}  // namespace groupnorm::ort
