// With type information, beside a file that has none.
#include <groupnorm/layers.hpp>

#include <memory>

groupnorm::Normalization* make_copy();

int main() {
  const std::unique_ptr<groupnorm::Normalization> layer(make_copy());
  return dynamic_cast<groupnorm::GroupNormalization*>(layer.get()) == nullptr ? 1 : 0;
}
