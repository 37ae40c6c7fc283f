// A library of the parent, and its part of the layers' interface.
#include <groupnorm/groupnorm.hpp>
#include <groupnorm/layers.hpp>

int parent_groups(groupnorm::Normalization* layer);
int parent_groups(groupnorm::Normalization* layer) {
  return layer->gamma().empty() ? static_cast<int>(groupnorm::targets().size()) : 0;
}
