// xla_abi.h beside XLA's own header: compiled where jaxlib is installed.
#include "xla_abi.h"

#include <xla/ffi/api/c_api.h>

#include <cstddef>

namespace groupnorm::python::xla {
namespace {

static_assert(XLA_FFI_Error_Code_INVALID_ARGUMENT == static_cast<int>(ErrorCode::invalid_argument));
static_assert(XLA_FFI_Error_Code_RESOURCE_EXHAUSTED ==
              static_cast<int>(ErrorCode::resource_exhausted));
static_assert(XLA_FFI_DataType_PRED == static_cast<int>(DataType::pred));
static_assert(XLA_FFI_DataType_S64 == static_cast<int>(DataType::s64));
static_assert(XLA_FFI_DataType_U32 == static_cast<int>(DataType::u32));
static_assert(XLA_FFI_DataType_F16 == static_cast<int>(DataType::f16));
static_assert(XLA_FFI_DataType_F32 == static_cast<int>(DataType::f32));
static_assert(XLA_FFI_DataType_F64 == static_cast<int>(DataType::f64));
static_assert(XLA_FFI_DataType_BF16 == static_cast<int>(DataType::bf16));
static_assert(XLA_FFI_AttrType_SCALAR == static_cast<int>(AttributeType::scalar));
static_assert(XLA_FFI_AttrType_STRING == static_cast<int>(AttributeType::string));
static_assert(XLA_FFI_ExecutionStage_EXECUTE == static_cast<int>(Stage::execute));
static_assert(XLA_FFI_Extension_Metadata == static_cast<int>(ExtensionType::metadata));
static_assert(sizeof(XLA_FFI_DataType) == sizeof(DataType));

static_assert(offsetof(XLA_FFI_Extension_Base, type) == offsetof(Extension, type));
static_assert(offsetof(XLA_FFI_Extension_Base, next) == offsetof(Extension, next));
static_assert(offsetof(XLA_FFI_Api_Version, major_version) == offsetof(Version, major));
static_assert(offsetof(XLA_FFI_Api_Version, minor_version) == offsetof(Version, minor));
static_assert(sizeof(XLA_FFI_Api_Version) == sizeof(Version));
static_assert(offsetof(XLA_FFI_Metadata, api_version) == offsetof(Metadata, version));
static_assert(offsetof(XLA_FFI_Metadata, traits) == offsetof(Metadata, traits));
static_assert(offsetof(XLA_FFI_Metadata_Extension, metadata) ==
              offsetof(MetadataExtension, metadata));

static_assert(offsetof(XLA_FFI_Error_Create_Args, message) == offsetof(CreateError, message));
static_assert(offsetof(XLA_FFI_Error_Create_Args, errc) == offsetof(CreateError, code));
static_assert(offsetof(XLA_FFI_Error_Destroy_Args, error) == offsetof(DestroyError, error));
static_assert(offsetof(XLA_FFI_ThreadPool_Schedule_Args, ctx) == offsetof(Schedule, context));
static_assert(offsetof(XLA_FFI_ThreadPool_Schedule_Args, task) == offsetof(Schedule, task));
static_assert(offsetof(XLA_FFI_ThreadPool_Schedule_Args, data) == offsetof(Schedule, data));
static_assert(offsetof(XLA_FFI_ThreadPool_NumThreads_Args, ctx) == offsetof(CountThreads, context));
static_assert(offsetof(XLA_FFI_ThreadPool_NumThreads_Args, num_threads) ==
              offsetof(CountThreads, threads));

static_assert(offsetof(XLA_FFI_Api, api_version) == offsetof(Api, version));
static_assert(offsetof(XLA_FFI_Api, XLA_FFI_Error_Create) == offsetof(Api, create_error));
static_assert(offsetof(XLA_FFI_Api, XLA_FFI_Error_Destroy) == offsetof(Api, destroy_error));
static_assert(offsetof(XLA_FFI_Api, XLA_FFI_ThreadPool_Schedule) == offsetof(Api, schedule));
static_assert(offsetof(XLA_FFI_Api, XLA_FFI_ThreadPool_NumThreads) == offsetof(Api, count_threads));

static_assert(offsetof(XLA_FFI_Buffer, dtype) == offsetof(Buffer, type));
static_assert(offsetof(XLA_FFI_Buffer, data) == offsetof(Buffer, data));
static_assert(offsetof(XLA_FFI_Buffer, rank) == offsetof(Buffer, rank));
static_assert(offsetof(XLA_FFI_Buffer, dims) == offsetof(Buffer, dims));
static_assert(offsetof(XLA_FFI_Args, size) == offsetof(Buffers, count));
static_assert(offsetof(XLA_FFI_Args, types) == offsetof(Buffers, types));
static_assert(offsetof(XLA_FFI_Args, args) == offsetof(Buffers, buffers));
static_assert(offsetof(XLA_FFI_Rets, size) == offsetof(Buffers, count));
static_assert(offsetof(XLA_FFI_Rets, rets) == offsetof(Buffers, buffers));
static_assert(sizeof(XLA_FFI_Args) == sizeof(Buffers) && sizeof(XLA_FFI_Rets) == sizeof(Buffers));
static_assert(offsetof(XLA_FFI_ByteSpan, ptr) == offsetof(Bytes, data));
static_assert(offsetof(XLA_FFI_ByteSpan, len) == offsetof(Bytes, size));
static_assert(offsetof(XLA_FFI_Scalar, dtype) == offsetof(Scalar, type));
static_assert(offsetof(XLA_FFI_Scalar, value) == offsetof(Scalar, value));
static_assert(offsetof(XLA_FFI_Attrs, size) == offsetof(Attributes, count));
static_assert(offsetof(XLA_FFI_Attrs, types) == offsetof(Attributes, types));
static_assert(offsetof(XLA_FFI_Attrs, names) == offsetof(Attributes, names));
static_assert(offsetof(XLA_FFI_Attrs, attrs) == offsetof(Attributes, values));
static_assert(sizeof(XLA_FFI_Attrs) == sizeof(Attributes));

static_assert(offsetof(XLA_FFI_CallFrame, extension_start) == offsetof(CallFrame, extensions));
static_assert(offsetof(XLA_FFI_CallFrame, api) == offsetof(CallFrame, api));
static_assert(offsetof(XLA_FFI_CallFrame, ctx) == offsetof(CallFrame, context));
static_assert(offsetof(XLA_FFI_CallFrame, stage) == offsetof(CallFrame, stage));
static_assert(offsetof(XLA_FFI_CallFrame, args) == offsetof(CallFrame, operands));
static_assert(offsetof(XLA_FFI_CallFrame, rets) == offsetof(CallFrame, results));
static_assert(offsetof(XLA_FFI_CallFrame, attrs) == offsetof(CallFrame, attributes));

}  // namespace
}  // namespace groupnorm::python::xla
