// What the kernels of the data's dtype do not do by themselves goes in tiles, pieces that stay in
// L1 as numbers of a compute type: that type's kernels work on them, and what comes out is rounded
// where it is stored. So go
//
//   activations that are not fused (kernels.h)                     in the data's own compute type
//   what is extreme (fold.h), and what is shorter than a vector    in double
#ifndef GROUPNORM_SRC_TILES_H
#define GROUPNORM_SRC_TILES_H

#include "call.h"
#include "range.h"
#include "tuning.h"

#include <algorithm>
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

  // Whether the kernels take these numbers as they lie in the tensor. `alike`: only where all of
  // them lie one behind the other.
  bool is_direct(const Area& area, bool alike) const {
    return compute_ == call_.spec.data && area.width >= kNarrow && (!alike || lies_alike(area));
  }

  // The area in the tensor, where that is direct, or copied to the tile.
  const void* view(const void* tensor, const Area& area, bool direct, void* tile) const {
    if (direct) return offset(tensor, area.index * call_.element);
    for_each_stretch(area, [&](std::int64_t from, std::int64_t i, std::int64_t count) {
      const auto& tiles = call_.kernels.tiles;
      (wide_ ? tiles.load_wide : tiles.load)(offset(tensor, from * call_.element), at(tile, i),
                                             count);
    });
    return tile;
  }

  // y = activation(z), to the tensor. z is lost.
  void activate(void* z, Activation activation, void* tensor, const Area& area) const {
    for_each_stretch(area, [&](std::int64_t to, std::int64_t i, std::int64_t count) {
      void* const y = static_cast<std::byte*>(tensor) + to * call_.element;
      void* const own = at(z, i);
      const bool narrows = compute_ != call_.compute();
      const bool last = narrows && activation == Activation::none && call_.spec.data == DType::f32;
      if (narrows) kernels_.tiles.narrow(own, last ? y : own, count);
      if (!last) call_.kernels.tiles.activate(own, y, count, activation, call_.store);
    });
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

  // f(element of the tensor, of the tile, count), of all rows at once or one by one.
  template <class F>
  static void for_each_stretch(const Area& area, const F& f) {
    if (lies_alike(area)) return f(area.index, std::int64_t{0}, area.rows * area.width);
    for (std::int64_t r = 0; r < area.rows; ++r) {
      f(area.index + r * area.stride, r * pitch(area.width), area.width);
    }
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

// y of a part of rows.
inline void apply_part_in_tiles(const Call& call, const RowPart& part,
                                const Statistics& statistics) {
  const Tiles tiles(call, statistics.extreme || part.size() < call.kernels.lanes);
  Tile tile;
  tiles.for_each_piece(part, [&](Range rows, Range positions) {
    const Area area = area_of(part, rows, positions);
    const void* const x = tiles.view(call.args.x, area, tiles.is_direct(area, true), tile.data());
    tiles.normalize(x, tile.data(), 1, rows.size(), positions.size(), part.example,
                    part.channel + rows.begin, &statistics);
    tiles.activate(tile.data(), call.spec.activation, call.args.y, area);
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
    const void* const x = tiles.view(call.args.x, piece, tiles.is_direct(piece, true), tile.data());
    tiles.kernels().apply_columns(
        {x, tile.data(), rows, pitch, area.width, coefficients, Activation::none, Store::cached});
    tiles.activate(tile.data(), call.spec.activation, call.args.y, piece);
  }
}

}  // namespace groupnorm::detail

#endif
