#include <cstdio>
#include <groupnorm/layers.hpp>
int main() {
  groupnorm::Tensor x({1, 4, 2, 2});
  x.data<float>()[0] = 1;
  std::printf("%.4f\n", groupnorm::GroupNormalization(2, 4).infer(x).data<float>()[0]);
}
