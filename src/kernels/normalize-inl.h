// normalize: reduce -> finish -> apply of blocks of rows, with nothing of a block in memory but its
// x and y wherever that can be.
//
// While the stores of one y wait for memory, a core reads the next x only if no other store stands
// between: its queue of stores is short, and full of y. What a chain of kernels keeps in memory
// (arguments, moments, coefficients) costs more time there than its instructions do.
#if defined(GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H
#undef GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H
#else
#define GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H
#endif

#include "kernels/activation-inl.h"
#include "kernels/finish-inl.h"
#include "kernels/loop-inl.h"
#include "kernels/moments-inl.h"
#include "kernels/terms-inl.h"
#include "tuning.h"

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// y = act(a (x - mean) + b), by terms X.
template <class T, class X, class Act>
requires Terms<X, Compute<T>>
class NormalizeStage {
  using C = Compute<T>;

 public:
  using Loaded = Vector<C>;
  static constexpr bool kFast = HWY_NAMESPACE::kFast<T>;
  static constexpr std::int64_t kStored = HWY_NAMESPACE::kStored<T>;

  HWY_INLINE NormalizeStage(const T* x, T* y, const X& terms, const Act& act)
      : x_(x), y_(y), terms_(terms), act_(act) {}

  HWY_INLINE Loaded Load(std::int64_t i) const { return LoadAs(Tag<C>(), x_ + i); }
  template <class Own>
  HWY_INLINE void Write(std::int64_t i, Loaded vx, const Own& own, Store store) const {
    StoreAs(Tag<C>(), Y(vx, own), y_ + i, store);
  }
  template <class Own>
  HWY_INLINE void WriteTwo(std::int64_t i, const Own& own, const Own& next, Store store) const {
    const auto two = LoadTwo<X::kOrder>(Tag<C>(), x_ + i);
    StoreTwo<X::kOrder>(Tag<C>(), Two<Loaded>{Y(two.v0, own), Y(two.v1, next)}, y_ + i, store);
  }

 private:
  template <class Own>
  HWY_INLINE Loaded Y(Loaded vx, const Own& own) const {
    return act_(terms_.Z(terms_.Deviation(vx, own), own));
  }

  const T* x_;
  T* y_;
  const X& terms_;
  const Act& act_;
};

// A fused activation with a Join around it, for x and y that are parts of tensors from `x` on.
template <class T>
struct Joined {
  static constexpr bool kJoins = true;
  using C = Compute<T>;

  template <class Args>
  HWY_INLINE explicit Joined(const Args& args)
      : clamps(IsClamp(args.activation)),
        clamp(args.activation),
        swish(args.activation),
        x(static_cast<const T*>(args.x)),
        skip(static_cast<const T*>(args.join->skip)),
        first_shift(static_cast<const T*>(args.join->shift)),
        residual(static_cast<const T*>(args.join->residual)),
        sum(static_cast<T*>(args.join->sum)) {}

  HWY_INLINE Vector<C> operator()(Vector<C> z) const { return clamps ? clamp(z) : swish(z); }
  HWY_INLINE const T* shift() const { return first_shift; }

  bool clamps;
  Clamp<C> clamp;
  Swish<C> swish;
  const T* x;
  const T* skip;
  const T* first_shift;
  const T* residual;
  T* sum;
};

// y = act(a (u - mean) + b + residual), u = x + skip + shift; the terms add the shift. What else is
// there is asked for each vector: the branches cost next to nothing, instances for each would be
// eight times as many.
template <class T, class X>
requires Terms<X, Compute<T>>
class NormalizeStage<T, X, Joined<T>> {
  using C = Compute<T>;
  using V = Vector<C>;

 public:
  struct Loaded {
    HWY_INLINE Loaded() : Loaded(hn::Zero(Tag<C>()), hn::Zero(Tag<C>())) {}
    HWY_INLINE Loaded(V of_v, V of_residual) : v(of_v), residual(of_residual) {}
    V v, residual;  // v = x + skip
  };
  static constexpr bool kFast = HWY_NAMESPACE::kFast<T>;
  static constexpr std::int64_t kStored = HWY_NAMESPACE::kStored<T>;

  HWY_INLINE NormalizeStage(const T* x, T* y, const X& terms, const Joined<T>& act)
      : x_(x), y_(y), at_(x - act.x), terms_(terms), act_(act) {}

  HWY_INLINE Loaded Load(std::int64_t i) const {
    const Tag<C> d;
    auto v = LoadAs(d, x_ + i), residual = hn::Zero(d);
    if (act_.skip != nullptr) v = hn::Add(v, LoadAs(d, act_.skip + at_ + i));
    if (act_.residual != nullptr) residual = LoadAs(d, act_.residual + at_ + i);
    return {v, residual};
  }
  template <class Own>
  HWY_INLINE void Write(std::int64_t i, const Loaded& in, const Own& own, Store store) const {
    const Tag<C> d;
    if (act_.sum != nullptr) {
      StoreAs(d, CleanNaN<T>(d, terms_.U(in.v, own)), act_.sum + at_ + i, Store::cached);
    }
    StoreAs(d, Y(in, own), y_ + i, store);
  }
  template <class Own>
  HWY_INLINE void WriteTwo(std::int64_t i, const Own& own, const Own& next, Store store) const {
    const Tag<C> d;
    auto v = LoadTwo<X::kOrder>(d, x_ + i);
    Two<V> residual{hn::Zero(d), hn::Zero(d)};
    if (act_.skip != nullptr) {
      const auto skip = LoadTwo<X::kOrder>(d, act_.skip + at_ + i);
      v = {hn::Add(v.v0, skip.v0), hn::Add(v.v1, skip.v1)};
    }
    if (act_.residual != nullptr) residual = LoadTwo<X::kOrder>(d, act_.residual + at_ + i);
    if (act_.sum != nullptr) {
      const Two<V> sum{CleanNaN<T>(d, terms_.U(v.v0, own)), CleanNaN<T>(d, terms_.U(v.v1, next))};
      StoreTwo<X::kOrder>(d, sum, act_.sum + at_ + i, Store::cached);
    }
    const Two<V> y{Y({v.v0, residual.v0}, own), Y({v.v1, residual.v1}, next)};
    StoreTwo<X::kOrder>(d, y, y_ + i, store);
  }

 private:
  template <class Own>
  HWY_INLINE V Y(const Loaded& in, const Own& own) const {
    const V z = terms_.Z(terms_.Deviation(in.v, own), own);
    // z + 0 would lose the sign of a zero.
    return act_(act_.residual != nullptr ? hn::Add(z, in.residual) : z);
  }

  const T* x_;
  T* y_;
  std::int64_t at_;  // of x_ in the tensors
  const X& terms_;
  const Joined<T>& act_;
};

template <class Act, class Args>
HWY_INLINE Act ActOf(const Args& args) {
  if constexpr (Act::kJoins) {
    return Act(args);
  } else {
    return Act(args.activation);
  }
}

// How the rows of a block are written. Each kind has a course of its own: together, their numbers
// would not stay in registers.

// Of one element, which has a gamma and a beta.
template <class T, class Act>
struct ElementRows {
  template <class Sums>
  static HWY_INLINE void Apply(const Kernels::Normalize& args, const T* x, T* y, std::int64_t rows,
                               std::int64_t, std::int64_t first, double mean, double rstd,
                               const Act& act, Sums&) {
    NoSums none;
    ElementTerms<T> terms(args.params, first, mean, rstd);
    const NormalizeStage<T, ElementTerms<T>, Act> stage(x, y, terms, act);
    if (args.store == Store::cached) {
      return Write<Compute<T>, 1>(stage, terms, Stretch{0, rows}, none);
    }
    const RowStretches<T, 1> stretches(y, rows, args.store);
    for (int i = stretches.first(); i <= stretches.last(); ++i) {
      Write<Compute<T>, 1>(stage, terms, stretches[i], none);
    }
  }
};

// Of less than kShortRow vectors.
template <class T, class Act>
struct ShortRows {
  template <class Sums>
  static HWY_INLINE void Apply(const Kernels::Normalize& args, const T* x, T* y, std::int64_t rows,
                               std::int64_t length, std::int64_t first, double mean, double rstd,
                               const Act& act, Sums&) {
    NoSums none;
    const PerRow<T> of_rows(args.params, first, mean, rstd);
    if (length % kLanes<Compute<T>> == 0) {
      for (std::int64_t r = 0; r < rows; ++r, x += length, y += length) {
        RowTerms<Compute<T>> terms(of_rows.mean(), of_rows(r));
        Write<Compute<T>, 1>(NormalizeStage<T, RowTerms<Compute<T>>, Act>{x, y, terms, act}, terms,
                             Stretch{0, length}, none);
      }
      return;
    }
    ShortRowsTerms<T> terms(of_rows, length);
    Write<Compute<T>, 1>(NormalizeStage<T, ShortRowsTerms<T>, Act>{x, y, terms, act}, terms,
                         Stretch{0, rows * length}, none);
  }
};

template <class T, class Act>
struct LongRows {
  template <class Sums>
  static HWY_INLINE void Apply(const Kernels::Normalize& args, const T* x, T* y, std::int64_t rows,
                               std::int64_t length, std::int64_t first, double mean, double rstd,
                               const Act& act, Sums& sums) {
    const PerRow<T> of_rows(args.params, first, mean, rstd);
    for (std::int64_t r = 0; r < rows; ++r, x += length, y += length) {
      auto terms = TermsOfRow<T>(of_rows, act, r);
      const RowStretches<T, kApplyPlaces> stretches(y, length, args.store);
      for (int i = stretches.first(); i <= stretches.last(); ++i) {
        Write<Compute<T>, kApplyPlaces>(NormalizeStage<T, decltype(terms), Act>{x, y, terms, act},
                                        terms, stretches[i], sums);
      }
    }
  }
};

HWY_INLINE FinishRule RuleOf(const Kernels::Normalize& args, double count) {
  return {count, args.correction, args.eps, args.center};
}

// The index of the first parameter of a block, block by block.
class FirstParam {
 public:
  HWY_INLINE explicit FirstParam(const Kernels::Normalize& args)
      : args_(args),
        group_(args.first % args.groups),
        index_(args.first / args.groups * args.param_stride + group_ * args.channels) {}

  HWY_INLINE std::int64_t index() const { return index_; }
  HWY_INLINE void Next() {
    index_ += args_.channels;
    if (++group_ < args_.groups) return;
    index_ += args_.param_stride - args_.groups * args_.channels;
    group_ = 0;
  }

 private:
  const Kernels::Normalize& args_;
  std::int64_t group_, index_;
};

HWY_INLINE void WriteStatistics(const Kernels::Normalize& args, std::int64_t b, double mean,
                                double rstd) {
  if (args.mean != nullptr) args.mean[b] = mean;
  if (args.rstd != nullptr) args.rstd[b] = rstd;
}

// Block b, which is extreme, and those behind it are for who called. `known`: blocks whose
// statistics are.
HWY_INLINE std::int64_t Leave(const Kernels::Normalize& args, std::int64_t b,
                              const Statistics* statistics, std::int64_t known) {
  std::int64_t i = 0;
  for (; i < known && statistics[i].extreme; ++i) {
    WriteStatistics(args, b + i, statistics[i].mean, statistics[i].rstd);
    args.extreme[i] = statistics[i];
  }
  *args.extremes = i;
  return b;
}

// Blocks whose statistics are given; or small ones, kBatch at a time.
template <class T, class Act, template <class, class> class Rows>
HWY_NOINLINE std::int64_t NormalizeSome(const Kernels::Normalize& args) {
  const Act act = ActOf<Act>(args);
  const std::int64_t size = args.channels * args.length;
  const bool given = !kFast<T> || args.statistics != nullptr;
  FirstParam param(args);
  Moments moments[kBatch];
  Statistics batch[kBatch];
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  for (std::int64_t first = 0; first < args.blocks; first += kBatch) {
    const std::int64_t blocks = std::min(kBatch, args.blocks - first);
    std::int64_t sound = blocks;
    if (!given) {
      ReduceShortRuns<T>(x, blocks, size, args.trust, moments);
      FinishSome<Compute<T>>(RuleOf(args, static_cast<double>(size)), moments, blocks, batch);
      for (sound = 0; sound < blocks && !batch[sound].extreme; ++sound) {
        WriteStatistics(args, first + sound, batch[sound].mean, batch[sound].rstd);
      }
    }
    const Statistics* const own = given ? args.statistics + first : batch;
    for (std::int64_t b = 0; b < sound; ++b, x += size, y += size, param.Next()) {
      NoSums none;
      Rows<T, Act>::Apply(args, x, y, args.channels, args.length, param.index(), own[b].mean,
                          own[b].rstd, act, none);
    }
    if (sound < blocks) return Leave(args, first + sound, batch + sound, blocks - sound);
  }
  return args.blocks;
}

template <class T>
HWY_INLINE RunSums<T> SumsOf(RunPilots<T>& pilots, const T* x, std::int64_t count, bool carried) {
  if (count != pilots.count()) pilots = RunPilots<T>(count);
  return RunSums<T>(x, count, pilots.Of(x), carried);
}

// Blocks one by one, each one run: it is reduced while the one before it is applied, or where it is
// not that long at least its pilot is made before.
template <class T, class Act, template <class, class> class Rows>
HWY_NOINLINE std::int64_t NormalizeRuns(const Kernels::Normalize& args) {
  const Act act = ActOf<Act>(args);
  const std::int64_t size = args.channels * args.length;
  const FinishRule rule = RuleOf(args, static_cast<double>(size));
  const RunPilots<T> pilots(size);
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  FirstParam param(args);
  Moments ahead{};
  // The first turn applies nothing.
  for (std::int64_t b = -1; b < args.blocks; ++b) {
    const bool applies = b >= 0, reduces = b + 1 < args.blocks;
    Statistics own{};
    if (applies) {
      own = FinishOne<Compute<T>>(rule, ahead);
      if (own.extreme) return Leave(args, b, &own, 1);
      WriteStatistics(args, b, own.mean, own.rstd);
    }
    RunSums<T> sums;
    if (reduces) {
      const T* const next = applies ? x + size : x;
      sums = RunSums<T>(next, size, pilots.Of(next), size >= kCarriedBlock);
    }
    if (applies) {
      Rows<T, Act>::Apply(args, x, y, args.channels, args.length, param.index(), own.mean, own.rstd,
                          act, sums);
      x += size;
      y += size;
      param.Next();
    }
    if (reduces) ahead = sums.Finish(args.trust);
  }
  return args.blocks;
}

// The same of blocks in parts, of long rows: each part is reduced while that of the block before it
// is applied.
template <class T, class Act>
HWY_NOINLINE std::int64_t NormalizeParts(const Kernels::Normalize& args) {
  const Act act = ActOf<Act>(args);
  const RowParts& parts = *args.parts;
  RunPilots<T> pilots(parts.longest());
  Moments ahead{};
  // The first turn applies nothing.
  for (std::int64_t b = -1; b < args.blocks; ++b) {
    const bool applies = b >= 0, reduces = b + 1 < args.blocks;
    Statistics own{};
    if (applies) {
      own = FinishOne<Compute<T>>(RuleOf(args, ahead.count), ahead);
      if (own.extreme) return Leave(args, b, &own, 1);
      WriteStatistics(args, b, own.mean, own.rstd);
    }
    ahead = Moments{};
    for (std::int64_t chunk = 0; chunk < parts.chunks(); ++chunk) {
      Moments of_chunk{};
      for (std::int64_t p = 0; p < parts.parts(chunk); ++p) {
        const RowPart next = parts.at(args.first + b + 1, chunk, p);
        RunSums<T> sums;
        if (reduces) {
          sums = SumsOf(pilots, static_cast<const T*>(args.x) + next.index, next.size(), true);
        }
        if (applies) {
          const RowPart part = parts.at(args.first + b, chunk, p);
          LongRows<T, Act>::Apply(args, static_cast<const T*>(args.x) + part.index,
                                  static_cast<T*>(args.y) + part.index, part.rows, part.length,
                                  part.example * args.param_stride + part.channel, own.mean,
                                  own.rstd, act, sums);
        }
        if (reduces) of_chunk = merge(of_chunk, sums.Finish(args.trust));
      }
      ahead = merge(ahead, of_chunk);
    }
  }
  return args.blocks;
}

template <class T, class Act, template <class, class> class Rows>
HWY_INLINE std::int64_t NormalizeRows(const Kernels::Normalize& args) {
  if constexpr (!kFast<T>) return NormalizeSome<T, Act, Rows>(args);
  const std::int64_t size = args.channels * args.length;
  const std::int64_t small = args.blocks <= kBatch ? kSmallBlockOfFew : kSmallBlock;
  const bool batches = size <= small && size < RunSums<T>::kOneChain;
  if (args.statistics != nullptr || batches) return NormalizeSome<T, Act, Rows>(args);
  return NormalizeRuns<T, Act, Rows>(args);
}

template <class T, class Act>
HWY_INLINE std::int64_t NormalizeBy(const Kernels::Normalize& args) {
  if constexpr (kFast<T>) {
    if (args.parts != nullptr) return NormalizeParts<T, Act>(args);
  } else {
    if (args.statistics == nullptr) return 0;
  }
  if (args.length == 1) return NormalizeRows<T, Act, ElementRows>(args);
  if (IsShortRow<T>(args.length)) return NormalizeRows<T, Act, ShortRows>(args);
  return NormalizeRows<T, Act, LongRows>(args);
}

template <class T>
std::int64_t Normalize(const Kernels::Normalize& args) {
  using C = Compute<T>;
  if (args.join != nullptr) return NormalizeSome<T, Joined<T>, LongRows>(args);
  return IsClamp(args.activation) ? NormalizeBy<T, Clamp<C>>(args) : NormalizeBy<T, Swish<C>>(args);
}

// y = act(a (x - mean) + b) for x, y [rows, width].
template <class T, class Act>
HWY_INLINE void ApplyColumnsBy(const Kernels::ApplyColumns& args, Store store) {
  using C = Compute<T>;
  const Act act = ActOf<Act>(args);
  auto terms = TermsOfLanes<T>(args.coefficients, act);
  ForBands(args.rows, kFast<T> ? kApplyPlaces : 1,
           [&](std::int64_t row, std::int64_t places, std::int64_t apart) HWY_ATTR {
             const std::int64_t at = row * args.stride;
             const NormalizeStage<T, decltype(terms), Act> stage{
                 static_cast<const T*>(args.x) + at, static_cast<T*>(args.y) + at, terms, act};
             NoSums none;
             Write<C, kApplyPlaces>(
                 stage, terms, Stretch{0, args.width, places, apart * args.stride, store}, none);
           });
}

// Rows of lanes stream where each begins with what is stored in one go, and ends with a whole
// vector.
template <class T>
HWY_INLINE Store StoreOfLanes(Store store, const T* first, std::int64_t stride,
                              std::int64_t width) {
  constexpr std::int64_t kStep = kStored<T> * kLanes<Compute<T>>;
  constexpr auto kBytes = static_cast<std::uintptr_t>(kStep * sizeof(T));
  const bool aligned = reinterpret_cast<std::uintptr_t>(first) % kBytes == 0 &&
                       stride % kStep == 0 && width % kLanes<Compute<T>> == 0;
  return aligned ? store : Store::cached;
}

template <class T>
void ApplyColumns(const Kernels::ApplyColumns& args) {
  using C = Compute<T>;
  const Store store =
      StoreOfLanes(args.store, static_cast<const T*>(args.y), args.stride, args.width);
  if (args.join != nullptr) return ApplyColumnsBy<T, Joined<T>>(args, store);
  return IsClamp(args.activation) ? ApplyColumnsBy<T, Clamp<C>>(args, store)
                                  : ApplyColumnsBy<T, Swish<C>>(args, store);
}

// What Kernels::flush says.
inline void Flush() {
  if constexpr (kStreams) hwy::FlushStream();
}

// mean, a and b of lanes. gamma and beta are copied where their last vector is not whole.
template <class T>
void Coefficients(const Kernels::Coefficients& args) {
  using C = Compute<T>;
  const Tag<C> d;
  C* const mean = static_cast<C*>(args.mean);
  C* const a = static_cast<C*>(args.a);
  C* const b = static_cast<C*>(args.b);
  const Param<T> gamma(args.params.gamma, args.params.dtype, 0, C{1});
  const Param<T> beta(args.params.beta, args.params.dtype, 0, C{0});
  const std::int64_t whole = args.readable - kLanes<C>;  // the last entry of a whole vector
  const auto at = [&](const Param<T>& param, std::int64_t i) HWY_ATTR {
    if (i <= whole || param.constant()) return param.At(i);
    HWY_ALIGN C end[kLanes<C>] = {};
    for (std::int64_t k = i; k < std::min(i + kLanes<C>, args.readable); ++k) {
      end[k - i] = param.One(k);
    }
    return CleanNaN<T>(d, hn::Load(d, end));
  };
  for (std::int64_t block = 0; block < args.blocks; ++block) {
    const BlockTerms<C> terms(args.statistics[block].mean, args.statistics[block].rstd);
    const std::int64_t end = (block + 1) * args.channels;
    for (std::int64_t i = end - args.channels; i < end; i += kLanes<C>) {
      const Line<C> line = terms.Of(at(gamma, i), at(beta, i));
      hn::StoreU(terms.mean(), d, mean + i);
      hn::StoreU(line.a, d, a + i);
      hn::StoreU(line.b, d, b + i);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
