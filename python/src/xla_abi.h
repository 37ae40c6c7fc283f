// The part of XLA's foreign function interface (FFI) that the handlers need. It is C, and of one
// layout in all versions of a major number: so one binary serves every jaxlib that accepts the
// version, and builds without its headers. Where those are to be had, check_xla_abi.cpp compares.
// https://github.com/openxla/xla/blob/main/xla/ffi/api/c_api.h
#ifndef GROUPNORM_PYTHON_SRC_XLA_ABI_H
#define GROUPNORM_PYTHON_SRC_XLA_ABI_H

#include <cstddef>
#include <cstdint>

namespace groupnorm::python::xla {

struct Error;             // owned by XLA once it is returned; null means ok
struct ExecutionContext;  // of one call

enum class ErrorCode : int { invalid_argument = 3, resource_exhausted = 8 };
enum class DataType : int { pred = 1, s64 = 5, u32 = 8, f16 = 10, f32 = 11, f64 = 12, bf16 = 16 };
enum class AttributeType : int { scalar = 3, string = 4 };
enum class Stage : int { execute = 3 };

enum class ExtensionType : int { metadata = 1 };
struct Extension {
  std::size_t size;
  ExtensionType type;
  Extension* next;
};

struct Version {
  std::size_t size;
  Extension* extensions;
  int major, minor;
};

// What a handler says of itself, when it is registered.
struct Metadata {
  std::size_t size;
  Version version;
  std::uint32_t traits;
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct CreateError {
  std::size_t size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};
struct DestroyError {
  std::size_t size;
  Extension* extensions;
  Error* error;
};

// The threads that run the program's other parts as well.
struct Schedule {
  std::size_t size;
  Extension* extensions;
  ExecutionContext* context;
  void (*task)(void* data);
  void* data;
};
struct CountThreads {
  std::size_t size;
  Extension* extensions;
  ExecutionContext* context;
  std::int64_t* threads;
};

struct Api {
  using Unused = void (*)();
  std::size_t size;
  Extension* extensions;
  Version version;
  void* internal;
  Error* (*create_error)(CreateError*);
  Unused error_message;
  void (*destroy_error)(DestroyError*);
  Unused register_handler, stream, register_type, context_get, set_state, get_state, allocate, free;
  Error* (*schedule)(Schedule*);
  Error* (*count_threads)(CountThreads*);
};

struct Buffer {
  std::size_t size;
  Extension* extensions;
  DataType type;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};

// The operands of a call, or its results.
struct Buffers {
  std::size_t size;
  Extension* extensions;
  std::int64_t count;
  int* types;  // a Buffer each: the only type there is
  Buffer** buffers;
};

struct Bytes {
  const char* data;
  std::size_t size;
};
struct Scalar {
  DataType type;
  void* value;
};
struct Attributes {
  std::size_t size;
  Extension* extensions;
  std::int64_t count;
  AttributeType* types;
  Bytes** names;  // sorted
  void** values;  // a Scalar each, or Bytes
};

struct CallFrame {
  std::size_t size;
  Extension* extensions;
  const Api* api;
  ExecutionContext* context;
  Stage stage;
  Buffers operands, results;
  Attributes attributes;
};

}  // namespace groupnorm::python::xla

#endif
