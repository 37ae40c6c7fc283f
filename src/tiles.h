// What the kernels of the data's dtype do not do by themselves goes in tiles, pieces that stay in
// L1 as numbers of a compute type: that type's kernels work on them, and what comes out is rounded
// where it is stored. So go
//
//   activations that are not fused (kernels.h), and short rows    in the data's own compute type
//   to which something is added on the way (Forward's neighbours)
//   what is extreme (fold.h), and what is shorter than a vector    in double
#ifndef GROUPNORM_SRC_TILES_H
#define GROUPNORM_SRC_TILES_H

#include "call.h"
#include "range.h"
#include "tuning.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace groupnorm::detail {

// A tile, with room for a vector on either side.
class Tile {
 public:
  void* data() { return bytes_ + kRoom; }
  const void* data() const { return bytes_ + kRoom; }

 private:
  static constexpr std::int64_t kRoom = 64;
  alignas(64) std::byte bytes_[kRoom + kTileBytes + kRoom];
};

// Rows of numbers of a tensor, `stride` elements apart.
struct Area {
  std::int64_t index;  // of the first, in the tensor
  std::int64_t rows, stride, width;
};

// The kernels of one compute type, and the way to and from their tiles. Rows of a tile lie one
// behind the other, or where they are narrower than a vector some way apart: `pitch` elements.
class Tiles {
 public:
  // In double where `wide`.
  Tiles(const Call& call, bool wide)
      : call_(call),
        compute_(wide ? DType::f64 : call.compute()),
        wide_(wide),
        size_(kTileBytes / size_of(compute_)),
        kernels_(call.target.of(compute_)) {}

  DType compute() const { return compute_; }
  const Kernels& kernels() const { return kernels_; }
  std::int64_t size() const { return size_; }  // elements of a tile

  static std::int64_t pitch(std::int64_t width) { return width < kNarrow ? 2 * kNarrow : width; }
  // Rows that a tile holds.
  std::int64_t rows(std::int64_t width) const {
    return std::max<std::int64_t>(1, size_ / pitch(width));
  }

  // Element i of a tile, or of an array of the compute type.
  void* at(void* tile, std::int64_t i) const {
    return static_cast<std::byte*>(tile) + i * size_of(compute_);
  }
  const void* at(const void* tile, std::int64_t i) const {
    return offset(tile, i * size_of(compute_));
  }

  // Whether the kernels take these numbers of x as they lie in the tensor. `alike`: only where all
  // of them lie one behind the other.
  bool is_direct(const Area& area, bool alike) const {
    return compute_ == call_.spec.data && area.width >= kNarrow && !call_.sums() &&
           (!alike || lies_alike(area));
  }

  // The area in the tensor, where that is direct, or copied to the tile.
  const void* view(const void* tensor, const Area& area, bool direct, void* tile) const {
    if (direct) return offset(tensor, area.index * call_.element);
    for_each_stretch(area, [&](std::int64_t from, std::int64_t i, std::int64_t count) {
      load({.x = offset(tensor, from * call_.element), .tile = at(tile, i), .count = count});
    });
    return tile;
  }

  // The same of u, which takes the place of x. Where `writes`, it is written to the call's sum.
  const void* view_u(const Area& area, bool direct, void* tile, bool writes) const {
    const Forward& args = call_.args;
    writes = writes && args.sum != nullptr;
    if (kEdge || !(writes || call_.sums())) return view(args.x, area, direct, tile);
    for_each_stretch(area, [&](std::int64_t from, std::int64_t i, std::int64_t count) {
      load_u(from, at(tile, i), count, writes);
    });
    return tile;
  }

  // y = activation(z + residual), to the tensor; a null residual is 0. z is lost unless `narrowed`
  // has room for as much.
  void activate(void* z, Activation activation, void* tensor, const Area& area,
                const void* residual = nullptr, void* narrowed = nullptr) const {
    for_each_stretch(area, [&](std::int64_t to, std::int64_t i, std::int64_t count) {
      void* const y = static_cast<std::byte*>(tensor) + to * call_.element;
      const void* own = at(z, i);
      if (compute_ != call_.compute()) {
        const bool last =
            activation == Activation::none && residual == nullptr && call_.spec.data == DType::f32;
        void* const narrow = last ? y : at(narrowed == nullptr ? z : narrowed, i);
        kernels_.tiles.narrow(own, narrow, count);
        if (last) return;
        own = narrow;
      }
      call_.kernels.tiles.activate({own, kEdge ? nullptr : offset(residual, to * call_.element), y,
                                    count, activation, call_.store});
    });
  }

  // f(element of the tensor, of the tile, count), of all rows at once or one by one.
  template <class F>
  static void for_each_stretch(const Area& area, const F& f) {
    if (lies_alike(area)) return f(area.index, std::int64_t{0}, area.rows * area.width);
    for (std::int64_t r = 0; r < area.rows; ++r) {
      f(area.index + r * area.stride, r * pitch(area.width), area.width);
    }
  }

  // Of `count` numbers of a tile, one behind the other.
  Moments moments(const void* numbers, std::int64_t count) const {
    if (count < kernels_.lanes) return kernels_.exact_moments({numbers, 1, 0, count});
    Moments result;
    kernels_.reduce_runs({numbers, 1, count, trust_of(call_.spec), &result});
    return result;
  }

  // z [blocks, channels, length], contiguous, from channel `channel` of `example` on; statistics
  // [blocks]; z == x is allowed.
  void normalize(const void* x, void* z, std::int64_t blocks, std::int64_t channels,
                 std::int64_t length, std::int64_t example, std::int64_t channel,
                 const Statistics* statistics) const {
    kernels_.normalize(apply_args(x, z, blocks, channels, length, call_.params(example, channel),
                                  statistics, Activation::none, Store::cached));
  }

  // f(rows, range of a row's positions) for pieces of a part that fill a tile at most. They are
  // about equal, so that none of many is short.
  template <class F>
  void for_each_piece(const RowPart& part, const F& f) const {
    const std::int64_t length = std::min(part.length, size_);
    const std::int64_t rows = ceil_div(part.rows, size_ / length);
    const std::int64_t positions = ceil_div(part.length, length);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t p = 0; p < positions; ++p) {
        f(share(r, rows, part.rows), share(p, positions, part.length));
      }
    }
  }

 private:
  static constexpr std::int64_t kNarrow = 16;  // elements of the longest vector

  // Whether all numbers lie one behind the other, in the tensor and in a tile.
  static bool lies_alike(const Area& area) {
    return area.rows == 1 || (area.stride == area.width && pitch(area.width) == area.width);
  }

  void load(const TileKernels::Load& args) const {
    const auto& tiles = call_.kernels.tiles;
    (wide_ ? tiles.load_wide : tiles.load)(args);
  }

  // u of elements [from, from + count).
  void load_u(std::int64_t from, void* to, std::int64_t count, bool writes) const {
    const Forward& args = call_.args;
    const auto take = [&](std::int64_t i, std::int64_t rows, std::int64_t size, const void* shift) {
      const std::int64_t bytes = (from + i) * call_.element;
      load({.x = offset(args.x, bytes),
            .skip = offset(args.skip, bytes),
            .shift = shift,
            .by_lanes = call_.by_lanes(),
            .sum = writes ? static_cast<std::byte*>(args.sum) + bytes : nullptr,
            .tile = at(to, i),
            .count = size,
            .rows = rows});
    };
    if (args.shift == nullptr) return take(0, 1, count, nullptr);
    const auto [n, c, s] = call_.spec.shape;
    if (call_.by_lanes() && from % c == 0 && count % c == 0) {
      // Whole rows of lanes: as many at once as share a shift.
      const std::int64_t alike = call_.spec.sequence * s;
      for (std::int64_t row = from / c, end = row + count / c; row < end;) {
        const std::int64_t rows = std::min(alike - row % alike, end - row);
        take(row * c - from, rows, c, call_.shift(row / s, 0));
        row += rows;
      }
      return;
    }
    call_.for_each_line(
        from, count,
        [&](std::int64_t i, std::int64_t size, std::int64_t example, std::int64_t channel,
            std::int64_t) { take(i, 1, size, call_.shift(example, channel)); });
  }

  const Call& call_;
  DType compute_;
  bool wide_;
  std::int64_t size_;
  const Kernels& kernels_;
};

// The elements of `rows`, at `positions`, of a part: whole rows, or a piece of one.
inline Area area_of(const RowPart& part, Range rows, Range positions) {
  return {part.index + rows.begin * part.length + positions.begin, 1, 0,
          rows.size() * positions.size()};
}

// The moments of u of a part of rows: those of tiles, merged in order.
[[gnu::noinline]] inline Moments moments_in_tiles(const Call& call, const RowPart& part) {
  const Tiles tiles(call, false);
  Tile tile;
  Moments total{};
  tiles.for_each_piece(part, [&](Range rows, Range positions) {
    const Area area = area_of(part, rows, positions);
    total = merge(total, tiles.moments(tiles.view_u(area, false, tile.data(), false), area.width));
  });
  return total;
}

// f(i, moments of u) for each run i of a part of rows, in order: a row, where there is a shift, as
// it has its own; else all of the part. Runs hold a vector at least.
template <class F>
void for_each_run_of_u(const Call& call, const RowPart& part, const F& f) {
  RowPart run = part;
  if (call.spec.shift) run.rows = 1;
  const std::int64_t runs = part.rows / run.rows;
  for (std::int64_t first = 0; first < runs; first += kBatch) {
    Moments moments[kBatch];
    const std::int64_t count = std::min(kBatch, runs - first);
    call.kernels.reduce_sums({call.x(run.index), count, run.size(), trust_of(call.spec), moments},
                             call.join(run.index, run.example, run.channel));
    for (std::int64_t i = 0; i < count; ++i) {
      f(first + i, std::isnan(moments[i].m2) ? moments_in_tiles(call, run) : moments[i]);
      run.channel += run.rows;
      run.index += run.size();
    }
  }
}

// y of a part of rows.
inline void apply_part_in_tiles(const Call& call, const RowPart& part,
                                const Statistics& statistics) {
  const Tiles tiles(call, statistics.extreme || part.size() < call.kernels.lanes);
  Tile tile;
  tiles.for_each_piece(part, [&](Range rows, Range positions) {
    const Area area = area_of(part, rows, positions);
    const void* const u = tiles.view_u(area, tiles.is_direct(area, true), tile.data(), true);
    tiles.normalize(u, tile.data(), 1, rows.size(), positions.size(), part.example,
                    part.channel + rows.begin, &statistics);
    tiles.activate(tile.data(), call.spec.activation, call.args.y, area, call.args.residual);
  });
}

// y of rows of lanes, with the coefficients of the tiles' compute type.
inline void apply_lanes_in_tiles(const Call& call, const Tiles& tiles, const Area& area,
                                 const LaneCoefficients& coefficients) {
  Tile tile;
  const std::int64_t pitch = Tiles::pitch(area.width), most = tiles.rows(area.width);
  for (std::int64_t row = 0; row < area.rows; row += most) {
    const std::int64_t rows = std::min(most, area.rows - row);
    const Area piece{area.index + row * area.stride, rows, area.stride, area.width};
    const void* const u = tiles.view_u(piece, tiles.is_direct(piece, true), tile.data(), true);
    tiles.kernels().apply_columns(
        {u, tile.data(), rows, pitch, area.width, coefficients, Activation::none, Store::cached});
    tiles.activate(tile.data(), call.spec.activation, call.args.y, piece, call.args.residual);
  }
}

}  // namespace groupnorm::detail

#endif
