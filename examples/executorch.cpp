// ExecuTorch from C++: models as torch exported them, whose norms our kernels compute, at a mean of
// 1000 deviations, where the runtime's own give no digit. integrations/executorch builds it.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <kernels.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <span>
#include <vector>

#include "plain.h"

namespace {

using Sizes = std::vector<executorch::aten::SizesType>;

// The positions of a tensor: the product of its last sizes.
std::int64_t positions(const Sizes& sizes) {
  std::int64_t product = 1;
  for (std::size_t i = 2; i < sizes.size(); ++i) product *= sizes[i];
  return product;
}

// x [n, c, s] as it lies channels last, [n, s, c]; or back, with c and s the other way round.
std::vector<float> transposed(std::span<const float> x, std::int64_t c, std::int64_t s) {
  std::vector<float> moved(x.size());
  for (std::int64_t i = 0; i < std::ssize(x); ++i) {
    const std::int64_t n = i / (c * s), channel = i / s % c, position = i % s;
    moved[static_cast<std::size_t>((n * s + position) * c + channel)] =
        x[static_cast<std::size_t>(i)];
  }
  return moved;
}

// Runs a method x -> y, mean, rstd, in 4 groups without weight and bias. 0 where y is right.
int run(executorch::extension::Module& module, const char* method, const Sizes& sizes, bool last) {
  const groupnorm::Shape shape = {sizes[0], sizes[1], positions(sizes)};
  std::vector<float> x(static_cast<std::size_t>(shape.n * shape.c * shape.s));
  fill_normal(std::span(x), /*mean=*/1000, /*deviation=*/1);
  std::vector<float> input = last ? transposed(x, shape.c, shape.s) : x;
  std::vector<executorch::aten::DimOrderType> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  if (last) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  const auto results = module.execute(
      method,
      executorch::extension::for_blob(input.data(), sizes).dim_order(order).make_tensor_ptr());
  if (!results.ok()) {
    std::printf("%s: error %#x\n", method, static_cast<unsigned>(results.error()));
    return 1;
  }
  const auto& y = results->front().toTensor();
  const std::span<const float> output(y.const_data_ptr<float>(), x.size());
  return compare(method,
                 last ? transposed(output, shape.s, shape.c)
                      : std::vector<float>(output.begin(), output.end()),
                 plain_xhat(x, shape, groupnorm::group_norm(shape, 4), /*correction=*/0, 1e-5), 3);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::printf("usage: example tests/executorch/norms.pte\n");
    return 2;
  }
  // Before a method is loaded.
  groupnorm::executorch::groupnorm_register_executorch_kernels();
  executorch::extension::Module module(arguments[1]);
  return run(module, "f32_4d_none", {2, 8, 5, 7}, /*last=*/false) |
         run(module, "f32_5d_none_last", {2, 8, 3, 4, 5}, /*last=*/true);
}
