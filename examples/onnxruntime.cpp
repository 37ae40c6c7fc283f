// ONNX Runtime from C++: a model as torch exported it, whose norms our library computes, at a mean
// of 1000 deviations, where the runtime's own give no digit.
#include <onnxruntime_c_api.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

#include "plain.h"

namespace {

const OrtApi& api = *OrtGetApiBase()->GetApi(ORT_API_VERSION);

void require(OrtStatus* status) {
  if (status == nullptr) return;
  std::printf("ONNX Runtime: %s\n", api.GetErrorMessage(status));
  std::exit(1);
}

}  // namespace

// onnxruntime LIBRARY MODEL: x [2, 8, 6, 6] -> y, in 4 groups, without scale and bias.
int main(int count, char** arguments) {
  if (count != 3) {
    std::printf("usage: onnxruntime libgroupnorm_ort.so dynamo-21-none-plain.onnx\n");
    return 2;
  }
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  require(api.CreateEnv(ORT_LOGGING_LEVEL_WARNING, "example", &env));
  require(api.CreateSessionOptions(&options));
  // The model has no operator of ours: take over the standard ones. Before the registration.
  require(api.AddSessionConfigEntry(options, "groupnorm.override", "1"));
  require(api.RegisterCustomOpsLibrary_V2(options, arguments[1]));
  require(api.CreateSession(env, arguments[2], options, &session));

  const std::array<std::int64_t, 4> dims = {2, 8, 6, 6};
  const groupnorm::Shape shape = {2, 8, 36};
  std::vector<float> x(576);
  std::vector<float> y(576);
  fill_normal(std::span(x), /*mean=*/1000, /*deviation=*/1);

  OrtMemoryInfo* memory = nullptr;
  require(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  const auto tensor = [&](std::vector<float>& data) {
    OrtValue* value = nullptr;
    require(api.CreateTensorWithDataAsOrtValue(memory, data.data(), data.size() * sizeof(float),
                                               dims.data(), dims.size(),
                                               ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    return value;
  };
  OrtValue* const in = tensor(x);
  OrtValue* out = tensor(y);
  const char* const in_name = "x";
  const char* const out_name = "y";
  require(api.Run(session, nullptr, &in_name, &in, 1, &out_name, 1, &out));

  api.ReleaseValue(in);
  api.ReleaseValue(out);
  api.ReleaseMemoryInfo(memory);
  api.ReleaseSession(session);
  api.ReleaseSessionOptions(options);
  api.ReleaseEnv(env);
  return compare("by ONNX Runtime", y,
                 plain_xhat(x, shape, groupnorm::group_norm(shape, 4),
                            /*correction=*/0, /*eps=*/1e-5F),
                 3);
}
