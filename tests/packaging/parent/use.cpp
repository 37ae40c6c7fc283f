#include <groupnorm/layers.hpp>

int parent_groups(groupnorm::Normalization* layer);

int main() {
  groupnorm::GroupNormalization layer(2);
  return parent_groups(&layer) > 0 ? 0 : 1;
}
