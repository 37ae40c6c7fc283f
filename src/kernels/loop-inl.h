// The one loop that writes: load -> terms -> element function -> store, forward and backward alike.
// It owns unrolling, several places at a time, streamed lines and the tail.
#if defined(GROUPNORM_SRC_KERNELS_LOOP_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_LOOP_INL_H
#undef GROUPNORM_SRC_KERNELS_LOOP_INL_H
#else
#define GROUPNORM_SRC_KERNELS_LOOP_INL_H
#endif

#include "kernels/simd-inl.h"
#include "kernels/terms-inl.h"
#include "tuning.h"

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// Whether T has the variants that are there for speed alone. The portable code of x86, which hardly
// any machine runs, and the edge build have to be right and small; and where f16 is converted by
// hand, that takes all the time.
#if defined(__OPTIMIZE_SIZE__) || (HWY_ARCH_X86 && HWY_TARGET == HWY_SCALAR)
template <class T>
inline constexpr bool kFast = false;
#else
template <class T>
inline constexpr bool kFast = !std::is_same_v<T, F16> || kNativeF16;
#endif

// Elements [begin, begin + count), and those `apart` elements further, in `places` places: at least
// a vector in each, unless it is a tile's (see Kernels).
struct Stretch {
  std::int64_t begin, count;
  std::int64_t places = 1, apart = 0;
  Store store = Store::cached;
};

// Stands in for RunSums where nothing is reduced on the way.
struct NoSums {
  HWY_INLINE void Advance(std::int64_t, std::int64_t) {}
};

// What a Stage of backward loads.
template <class C>
struct LoadedTwo {
  // Not defaulted: a compiler makes that one without the target's instructions.
  HWY_INLINE LoadedTwo() : LoadedTwo(hn::Zero(Tag<C>()), hn::Zero(Tag<C>())) {}
  HWY_INLINE LoadedTwo(Vector<C> of_x, Vector<C> of_dy) : x(of_x), dy(of_dy) {}
  Vector<C> x, dy;
};

// The tail: where vectors do not divide the elements, the last vector ends with them,
//
//   [ vector ][ vector ][ vector ]
//   . . . . . . . . . . . . . . . . . . .|
//                       [ vector ]  <- again, what lies under both is written twice, alike
//
// and is loaded before anything is stored, since y may be x. Sums leave out the lanes already
// counted (moments-inl.h). Nothing is read or written past an end.
//
// A Stage has kFast, a Loaded, Load(i), Write(i, loaded, own terms, store) and, where kStored is 2,
// WriteTwo of two vectors and their terms. `sums` is reduced along the way. A stretch has one
// place, or kPlaces. These are unrolled, since processors follow the loads of each instruction to
// guess the next: one for all places would go unguessed (1.7 times the time from memory).
template <class C, std::int64_t kPlaces, class Stage, class X, class Sums>
HWY_INLINE void Write(const Stage& stage, X& terms, const Stretch& to, Sums& sums) {
  constexpr std::int64_t kStep = Stage::kStored * kLanes<C>;
  if (to.count == 0) return;
  const std::int64_t end = to.begin + to.count, last = end - kLanes<C>;
  typename Stage::Loaded last_loaded[kPlaces];
  const bool tail = to.count % kLanes<C> != 0;
  const std::int64_t from = tail ? last : to.begin, apart = to.places > 1 ? to.apart : 0;
  for (std::int64_t p = 0; p < kPlaces; ++p) last_loaded[p] = stage.Load(from + p * apart);
  std::int64_t begin = to.begin;
  if constexpr (Stage::kFast && kPlaces > 1) {
    for (; to.places > 1 && begin + kStep <= end; begin += kStep) {
      sums.Advance(begin - to.begin, kPlaces);  // first: loads wait behind streaming stores
      const auto own = terms.At(begin);
      const auto next = terms.At(begin + kStep - kLanes<C>);
#pragma GCC unroll 4
      for (std::int64_t p = 0; p < kPlaces; ++p) {
        const std::int64_t at = begin + p * to.apart;
        if constexpr (Stage::kStored == 2) {
          stage.WriteTwo(at, own, next, to.store);
        } else {
          stage.Write(at, stage.Load(at), own, to.store);
        }
      }
    }
  }
  if (begin == end) return;
  // One place; or what is left of each.
  for (std::int64_t p = 0; p < to.places; ++p) {
    const std::int64_t shift = p * to.apart;
    std::int64_t i = begin;
    if constexpr (Stage::kStored == 2) {
      for (; i + kStep <= end; i += kStep) {
        sums.Advance(i - to.begin, 1);
        const auto own = terms.At(i);
        stage.WriteTwo(i + shift, own, terms.At(i + kLanes<C>), to.store);
      }
    }
    for (; i <= last; i += kLanes<C>) {
      sums.Advance(i - to.begin, 1);
      stage.Write(i + shift, stage.Load(i + shift), terms.At(i), to.store);
    }
    if (tail) stage.Write(last + shift, last_loaded[p], terms.Last(last), to.store);
  }
}

template <class T>
HWY_INLINE bool IsShortRow(std::int64_t length) {
  return length < kShortRow * kLanes<Compute<T>>;
}

// A part of `count` elements or rows that are cut into `parts` to be walked side by side, since
// memory serves several places faster than one: a multiple of `step`. Odd where it can be, so that
// the places do not all meet in one set of the cache.
HWY_INLINE std::int64_t PartOf(std::int64_t count, std::int64_t parts, std::int64_t step) {
  const std::int64_t steps = count / (parts * step);
  return (steps < 2 ? steps : (steps - 1) | 1) * step;
}

// A row as stretches, in order: what lies before its first whole cache line, its kPlaces parts
// where it is long, the rest of the whole lines, and what lies behind them. A line that is streamed
// in parts, or streamed and stored to, waits for memory. Nothing of this stands in memory, where it
// would wait, too (see normalize-inl.h).
template <class T, std::int64_t kPlaces>
class RowStretches {
  static constexpr std::int64_t kVector = kLanes<Compute<T>>;
  static constexpr auto kLine = static_cast<std::int64_t>(64 / sizeof(T));
  static constexpr auto kLongest = static_cast<std::int64_t>(kQuarteredRow / sizeof(T));

 public:
  // Of `count` elements to be written to y.
  HWY_INLINE RowStretches(const T* y, std::int64_t count, Store store)
      : count_(count), end_(count), store_(store) {
    if (kStreams && store == Store::streaming) KeepWholeLines(y);
    const std::int64_t turn = std::max(2 * kVector, kLine), middle = end_ - begin_;
    if (kFast<T> && kPlaces > 1 && middle >= kLongest)
      part_ = PartOf(middle - kVector, kPlaces, turn);
  }

  // From one to the other; those between may be empty.
  HWY_INLINE int first() const { return begin_ > 0 ? 0 : part_ > 0 ? 1 : 2; }
  HWY_INLINE int last() const { return end_ == count_ ? 2 : 3; }
  HWY_INLINE Stretch operator[](int i) const {
    const std::int64_t rest = begin_ + kPlaces * part_;
    switch (i) {
      case 0: return {0, begin_};
      case 1: return {begin_, part_, kPlaces, part_, store_};
      case 2: return {rest, end_ - rest, 1, 0, store_};
      default: return {end_, count_ - end_};
    }
  }

 private:
  // Between an end of the row and the lines there is nothing, or a vector at least.
  HWY_INLINE void KeepWholeLines(const T* y) {
    const auto past =
        static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(y) % 64 / sizeof(T));
    std::int64_t begin = past == 0 ? 0 : kLine - past;
    if (begin > 0) begin += begin < kVector ? kLine : 0;
    std::int64_t end = begin + (count_ - begin) / kLine * kLine;
    if (end != count_ && count_ - end < kVector) end -= kLine;
    if (end <= begin) begin = end = count_;  // none is whole
    begin_ = begin;
    end_ = end;
  }

  std::int64_t count_;
  std::int64_t begin_ = 0, end_;  // of the whole lines
  std::int64_t part_ = 0;         // elements of one of the places
  Store store_;
};

// f(row, places, apart) for all rows: `band` at a time, first one from each of as many parts, so
// many rows apart, then neighbours; the rest one by one.
template <class F>
HWY_INLINE void ForBands(std::int64_t rows, std::int64_t band, const F& f) {
  const std::int64_t part = PartOf(rows, band, 1);
  for (std::int64_t row = 0; row < rows;) {
    const bool far = row < part;
    const std::int64_t places = row + band <= rows ? band : 1;
    f(row, places, far ? part : std::int64_t{1});
    row += far ? 1 : places;
    if (row == part) row = band * part;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
