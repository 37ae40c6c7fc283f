// How a Plan walks its tensor.
//
// The tensor is cut into units that need nothing of each other: a unit holds whole blocks. A unit
// is cut into chunks, by the shape alone; each chunk's moments are reduced by themselves and merged
// in chunk order, whoever computes them, so the bits of a result do not depend on the schedule:
//
//   fused  a thread reduces and then applies one unit after another, while it lies in its cache
//   split  all threads share the chunks of all units: first to reduce, then to apply
//
// There are two walks:
//
//   rows     channels_first: a unit is one block, that is block.examples runs of
//            block.channels * s elements. A chunk is whole rows of s positions or a part of one, of
//            one run; or several short runs. Coefficients are uniform along a row. Where s = 1 and
//            one example makes a block of at least a vector of channels, too, in whichever layout:
//            a chunk is the block, and each element has its own gamma and beta.
//   columns  channels_last, or s = 1: block.examples examples are block.examples * s rows of c
//            lanes, and a unit is a tile of those lanes. A chunk is a range of rows. Coefficients
//            differ from lane to lane.
//
// Schedule (groupnorm.hpp):
//   units            rows: blocks; columns: n / block.examples * tiles
//   blocks_per_unit  rows: 1; columns: tile / block.channels (fewer in the last tile)
//   chunks           of a unit
//   chunk            rows: elements of a run; columns: rows of lanes
//   runs_per_chunk   rows: above 1 only where a chunk is whole runs
//   tile             columns: lanes; a multiple of block.channels, at most kMaxLanes unless it is
//                    one wider block
//   merged           columns: rows that are taken as one row of c * merged lanes, where c is small
//   columns          the walk
//   by_runs          columns: few rows, so a block's moments come from each row's run of lanes
//   streaming        y is too large to be found in the cache afterwards: stores that pass it by
#ifndef GROUPNORM_SRC_PLAN_H
#define GROUPNORM_SRC_PLAN_H

#include <groupnorm/groupnorm.hpp>

namespace groupnorm::detail {

// Of a Spec that check_spec accepts and that is not empty. `lanes`: of a vector.
Schedule make_schedule(const Spec& spec, std::int64_t lanes) noexcept;

// Whether `threads` threads should share each unit rather than take whole units.
bool splits(const Schedule& schedule, int threads) noexcept;

constexpr bool is_empty(const Shape& shape) { return shape.n == 0 || shape.c == 0 || shape.s == 0; }

// How many blocks a tensor has, an empty one as well: a block of all of no examples, as batch_norm
// has it there, is one.
constexpr std::int64_t blocks_of(const Spec& spec) {
  const auto parts = [](std::int64_t size, std::int64_t part) {
    return part == 0 ? 1 : size / part;
  };
  return parts(spec.shape.n, spec.block.examples) * parts(spec.shape.c, spec.block.channels);
}

}  // namespace groupnorm::detail

#endif
