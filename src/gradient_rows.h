// The backward walk of channels_first.
#ifndef GROUPNORM_SRC_GRADIENT_ROWS_H
#define GROUPNORM_SRC_GRADIENT_ROWS_H

#include "gradient.h"
#include "rows.h"

namespace groupnorm::detail {

class GradientRows {
  using Part = RowParts::Part;

 public:
  static constexpr std::int64_t kMaxBlocks = 1;

  explicit GradientRows(const GradientCall& gradient)
      : gradient_(gradient),
        call_(gradient.call),
        kernels_(*gradient.call.kernels.gradients),
        parts_(gradient.call.spec, gradient.call.schedule) {}

  std::int64_t chunks() const { return call_.schedule.chunks; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  // Whether every unit is one run of one chunk, for GradientKernels::differentiate_blocks.
  bool whole() const { return is_whole(call_); }

  void reduce(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    parts_.for_each(unit, chunk, [&](const Part& part) { reduce_part(part, *statistics); });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics,
             const GradientTerms* terms) const {
    parts_.for_each(unit, chunk, [&](const Part& part) { apply_part(part, *statistics, *terms); });
  }

 private:
  bool by_kernel(const Part& part, bool extreme) const {
    return !extreme && part.size() >= call_.kernels.lanes;
  }

  ExtremeGradient row(const Part& part, std::int64_t r, const Statistics& statistics) const {
    return gradient_.extreme(part.index + r * part.length, part.length, 1, part.example,
                             part.channel + r, statistics);
  }

  void reduce_part(const Part& part, const Statistics& statistics) const {
    const bool kernel = by_kernel(part, statistics.extreme);
    // One behind the other: a row that comes in pieces comes alone.
    GradientSums* const sums =
        gradient_.sums + gradient_.map.index(part.example, part.channel, part.piece);
    if (kernel) {
      kernels_.reduce_rows({call_.x(part.index), gradient_.dy(part.index), part.rows, part.length,
                            call_.params(part.example, part.channel), statistics,
                            call_.spec.activation, sums});
    }
    for (std::int64_t r = 0; r < part.rows; ++r) {
      if (!kernel || !sound(sums[r])) sums[r] = extreme_gradient_sums(row(part, r, statistics));
    }
  }

  void apply_part(const Part& part, const Statistics& statistics,
                  const GradientTerms& terms) const {
    if (by_kernel(part, terms.extreme)) {
      kernels_.apply_rows({call_.x(part.index), gradient_.dy(part.index), gradient_.dx(part.index),
                           part.rows, part.length, call_.params(part.example, part.channel),
                           statistics, terms, call_.spec.activation, call_.store});
      return;
    }
    for (std::int64_t r = 0; r < part.rows; ++r) {
      extreme_gradient_apply(row(part, r, statistics), terms.shift, terms.slope,
                             gradient_.dx(part.index + r * part.length));
    }
  }

  const GradientCall& gradient_;
  const Call& call_;
  const GradientKernels& kernels_;
  RowParts parts_;
};

}  // namespace groupnorm::detail

#endif
