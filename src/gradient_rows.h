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
        parts_(gradient.call.spec, gradient.call.schedule) {}

  std::int64_t chunks() const { return call_.schedule.chunks; }
  std::int64_t blocks(std::int64_t) const { return 1; }
  std::int64_t first_block(std::int64_t unit) const { return unit; }

  void reduce(std::int64_t unit, std::int64_t chunk, const Statistics* statistics) const {
    parts_.for_each(unit, chunk, [&](const Part& part) {
      for_each_piece(part, *statistics, [&](const Part& rows, const Coefficients& coefficients) {
        reduce_rows(rows, *statistics, coefficients);
      });
    });
  }

  void apply(std::int64_t unit, std::int64_t chunk, const Statistics* statistics,
             const GradientTerms* terms) const {
    parts_.for_each(unit, chunk, [&](const Part& part) {
      for_each_piece(part, *statistics, [&](const Part& rows, const Coefficients& coefficients) {
        apply_rows(rows, *statistics, *terms, coefficients);
      });
    });
  }

 private:
  // f(rows of the part, their coefficients), at most kMaxLanes rows at a time.
  template <class F>
  void for_each_piece(const Part& part, const Statistics& statistics, F&& f) const {
    Coefficients coefficients(call_);
    for (std::int64_t first = 0; first < part.rows; first += kMaxLanes) {
      Part rows = part;
      rows.rows = std::min(kMaxLanes, part.rows - first);
      rows.channel += first;
      rows.index += first * part.length;
      coefficients.make(rows.example, rows.channel, 1, rows.rows, &statistics);
      f(rows, coefficients);
    }
  }

  bool by_kernel(const Part& rows, bool extreme) const {
    return !extreme && rows.length >= call_.kernels.lanes;
  }

  ExtremeGradient row(const Part& rows, std::int64_t r, const Statistics& statistics) const {
    return gradient_.extreme(rows.index + r * rows.length, rows.length, 1, rows.example,
                             rows.channel + r, statistics);
  }

  void reduce_rows(const Part& rows, const Statistics& statistics,
                   const Coefficients& coefficients) const {
    const bool kernel = by_kernel(rows, statistics.extreme);
    // One behind the other: a row that comes in pieces comes alone.
    GradientSums* const sums =
        gradient_.sums + gradient_.map.index(rows.example, rows.channel, rows.piece);
    if (kernel) {
      call_.kernels.gradients->reduce_rows({call_.x(rows.index), gradient_.dy(rows.index),
                                            rows.rows, rows.length,
                                            split_as(call_, statistics.mean).hi, coefficients.a(),
                                            coefficients.b(), call_.spec.activation, sums});
    }
    for (std::int64_t r = 0; r < rows.rows; ++r) {
      if (!kernel || !sound(sums[r])) sums[r] = extreme_gradient_sums(row(rows, r, statistics));
    }
  }

  void apply_rows(const Part& rows, const Statistics& statistics, const GradientTerms& terms,
                  const Coefficients& coefficients) const {
    if (by_kernel(rows, terms.extreme)) {
      call_.kernels.gradients->apply_rows(
          {call_.x(rows.index), gradient_.dy(rows.index), gradient_.dx(rows.index), rows.rows,
           rows.length, split_as(call_, statistics.mean).hi, coefficients.a(), coefficients.b(),
           terms.shift, terms.slope, call_.spec.activation, call_.store});
      return;
    }
    for (std::int64_t r = 0; r < rows.rows; ++r) {
      extreme_gradient_apply(row(rows, r, statistics), terms.shift, terms.slope,
                             gradient_.dx(rows.index + r * rows.length));
    }
  }

  const GradientCall& gradient_;
  const Call& call_;
  RowParts parts_;
};

}  // namespace groupnorm::detail

#endif
