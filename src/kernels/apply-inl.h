// apply: y = activation(a * (x - mean) + b), with one store of every y.
//
// mean is the part of the mean that the compute type holds; the rest is in b. x - mean is then
// small and a * (x - mean) as exact as x is. Ends that fill no vector are read and written by a
// vector that ends with the data; it is loaded before anything near it is stored, since y may be x.
#if defined(GROUPNORM_SRC_KERNELS_APPLY_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_APPLY_INL_H
#undef GROUPNORM_SRC_KERNELS_APPLY_INL_H
#else
#define GROUPNORM_SRC_KERNELS_APPLY_INL_H
#endif

#include "kernels/activation-inl.h"
#include "kernels/kernels.h"
#include "kernels/reduce-inl.h"
#include "kernels/simd-inl.h"

#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// What stands beside x is the same for a whole row, or differs from element to element. Both kinds
// of terms have
//   mean              as the compute type holds it, in all lanes
//   At(i), PairAt(i)  the parameters of the vector, or pair, from element i on
//   Z                 of d = x - mean and its parameters
//   Times             a dz + plus, a being the factor of d in z
//   From(i)           the terms of the row from element i on
// Nothing of the row is in what At and PairAt return: a compiler would copy it through memory.

// One a and one b. Also what one vector of lanes needs.
template <class V>
struct Affine {
  struct Params {};

  V mean, a, b;

  HWY_INLINE Params At(std::int64_t) const { return {}; }
  HWY_INLINE Pair<Params> PairAt(std::int64_t) const { return {}; }
  HWY_INLINE const Affine& From(std::int64_t) const { return *this; }
  HWY_INLINE V Z(V d, Params) const { return hn::MulAdd(d, a, b); }
  HWY_INLINE V Times(V dz, V plus, Params) const { return hn::MulAdd(a, dz, plus); }

  // These in the first `count` lanes, `next` in the others.
  HWY_INLINE Affine Until(std::int64_t count, const Affine& next) const {
    const auto own = hn::FirstN(hn::DFromV<V>(), static_cast<std::size_t>(count));
    return {hn::IfThenElse(own, mean, next.mean), hn::IfThenElse(own, a, next.a),
            hn::IfThenElse(own, b, next.b)};
  }
};

// Vectors. Rows shorter than this, with an end that fills none, are taken as one.
inline constexpr std::int64_t kShortRow = 8;

template <class D>
HWY_INLINE bool AreShortRows(D, std::int64_t length) {
  constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(D()));
  return length < kShortRow * kLanes && length % kLanes != 0;
}

// f(i, kVectors, terms) for one or two vectors from element i on of [rows, length], at least a
// vector in all; the last may reach beyond the end, and then stands for the one that ends there. A
// vector in which rows end has the terms of all of them: so rows of 49 take three vectors of 16 and
// not four, and those stay aligned.
template <class D, class TermsOf, class F>
HWY_INLINE void ForShortRows(D, std::int64_t rows, std::int64_t length, const TermsOf& terms_of,
                             const F& f) {
  constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(D()));
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  const std::int64_t count = rows * length;
  std::int64_t row = 0, end = length, i = 0;
  auto terms = terms_of(0);
  // Of the vector at `first`, as `row` has what lies before it; then `row` has its last element.
  const auto mixed = [&](std::int64_t first) HWY_ATTR {
    auto mix = terms;
    while (end < first + kLanes) {
      terms = terms_of(++row);
      mix = mix.Until(end - first, terms);
      end += length;
    }
    return mix;
  };
  for (; i + kLanes <= count; i += kLanes) {
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) f(i, kTwo, terms);
    if (i + kLanes > count) break;
    f(i, kOne, mixed(i));
  }
  if (i == count) return;
  row = (count - kLanes) / length;
  end = (row + 1) * length;
  terms = terms_of(row);
  f(i, kOne, mixed(count - kLanes));
}

template <class Act, class D, class V, class Terms>
HWY_INLINE V Normalize(D d, V x, const Terms& terms, const typename Terms::Params& params) {
  return Act::Apply(d, terms.Z(hn::Sub(x, terms.mean), params));
}

// Elements from p to the next address that a whole vector may be streamed to.
template <class D, class T>
HWY_INLINE std::int64_t ToAligned(D d, const T* p) {
  const std::size_t bytes = hn::Lanes(d) * sizeof(hn::TFromD<D>);
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(p) % bytes;
  return past == 0 ? 0 : static_cast<std::int64_t>((bytes - past) / sizeof(T));
}

// v, with a NaN that rounds to a NaN of T (see RoundBF16).
template <class T, class D, class V>
HWY_INLINE V Clean(D d, V v) {
  if constexpr (!std::is_same_v<T, BF16>) return v;
  return hn::IfThenElse(hn::IsNaN(v), hn::Set(d, std::numeric_limits<float>::quiet_NaN()), v);
}

// gamma or beta from entry i on; null stands for `missing`.
template <class P, class D>
HWY_INLINE hn::Vec<D> LoadParam(D d, const void* param, std::int64_t i, hn::TFromD<D> missing) {
  return param == nullptr ? hn::Set(d, missing) : LoadAs(d, static_cast<const P*>(param) + i);
}

// Without digits of a NaN that T has not got.
template <class T, class P, class D, class V>
HWY_INLINE V CleanParam(D d, V param) {
  if constexpr (std::is_same_v<P, T>) return param;
  return Clean<T>(d, param);
}

// The rstd of one block as a factor. Its products with an f32 are rounded once, but for 2^-12 ulp:
// both are cut in halves of 12 bits, whose products are exact (Dekker, "A floating-point technique
// for extending the available precision", 1971).
template <class D>
class Factor {
  using C = hn::TFromD<D>;
  using V = hn::Vec<D>;

 public:
  HWY_INLINE Factor(D d, double value) {
    const Split split = split_as<C>(value);
    upper_ = hn::Set(d, static_cast<C>(split.hi));
    if constexpr (sizeof(C) == 4) upper_ = UpperHalf(d, upper_);
    lower_ =
        hn::Set(d, static_cast<C>(split.hi + split.lo - static_cast<double>(hn::GetLane(upper_))));
  }

  HWY_INLINE V Times(D d, V v) const {
    if constexpr (sizeof(C) == 8) return hn::Mul(v, upper_);
    const V upper = UpperHalf(d, v);
    const V rest = hn::MulAdd(hn::Sub(v, upper), upper_, hn::Mul(v, lower_));
    return hn::MulAdd(upper, upper_, rest);
  }

 private:
  static HWY_INLINE V UpperHalf(D d, V v) {
    return hn::And(v, hn::BitCast(d, hn::Set(hn::RebindToUnsigned<D>(), 0xFFFFF000U)));
  }

  V upper_, lower_;
};

// What the statistics of one block make of gamma and beta.
template <class T>
class BlockTerms {
  using C = Compute<T>;
  using D = hn::ScalableTag<C>;
  using V = hn::Vec<D>;

 public:
  HWY_INLINE explicit BlockTerms(const Statistics& statistics)
      : BlockTerms(split_as<C>(statistics.mean), statistics.rstd) {}

  // Clean parameters -> clean terms.
  HWY_INLINE Affine<V> Of(V gamma, V beta) const {
    const D d;
    const V a = rstd_.Times(d, gamma);
    return {mean_, a, hn::NegMulAdd(mean_lo_, a, beta)};
  }

 private:
  HWY_INLINE BlockTerms(Split mean, double rstd)
      : mean_(hn::Set(D(), static_cast<C>(mean.hi))),
        mean_lo_(hn::Set(D(), static_cast<C>(mean.lo))),
        rstd_(D(), rstd) {}

  V mean_, mean_lo_;
  Factor<D> rstd_;
};

// A gamma and a beta for each row, made into its terms when its turn comes. Made beforehand, in
// memory, they would be read while the stores of the y before them still wait for memory, and wait
// with those.
template <class T>
class PerRow {
  using C = Compute<T>;
  using D = hn::ScalableTag<C>;
  using V = hn::Vec<D>;

 public:
  // From entry `first` on.
  HWY_INLINE PerRow(const Parameters& params, std::int64_t first, const Statistics& statistics)
      : terms_(statistics), params_(params), first_(first) {}

  HWY_INLINE Affine<V> operator()(std::int64_t row) const {
    return terms_.Of(OfRow(params_.gamma, first_ + row, C{1}),
                     OfRow(params_.beta, first_ + row, C{0}));
  }

  // For sums in double.
  HWY_INLINE double Gamma(std::int64_t row) const {
    if (params_.gamma == nullptr) return 1;
    return WithParameters<T>(params_, [&](auto element) HWY_ATTR {
      using P = decltype(element);
      return static_cast<double>(LoadOne(static_cast<const P*>(params_.gamma) + first_ + row));
    });
  }

 private:
  HWY_INLINE V OfRow(const void* param, std::int64_t i, C missing) const {
    if (param == nullptr) return hn::Set(D(), missing);
    return WithParameters<T>(params_, [&](auto element) HWY_ATTR {
      using P = decltype(element);
      return CleanParam<T, P>(D(), hn::Set(D(), LoadOne(static_cast<const P*>(param) + i)));
    });
  }

  BlockTerms<T> terms_;
  Parameters params_;
  std::int64_t first_;
};

// One rstd, and a gamma and a beta for each element. rstd is the sum of two numbers and shift =
// -(the rest of the mean) * rstd: xhat is rounded once, as a is.
template <class T, class P>
class PerElement {
  using C = Compute<T>;
  using D = hn::ScalableTag<C>;
  using V = hn::Vec<D>;

 public:
  struct Params {
    V gamma, beta;
  };

  V mean;

  // From entry `first` on.
  HWY_INLINE PerElement(const Parameters& params, std::int64_t first, const Statistics& statistics)
      : gamma_(From(params.gamma, first)), beta_(From(params.beta, first)) {
    const D d;
    const Split mean_of = split_as<C>(statistics.mean), rstd = split_as<C>(statistics.rstd);
    mean = hn::Set(d, static_cast<C>(mean_of.hi));
    rstd_ = hn::Set(d, static_cast<C>(rstd.hi));
    rstd_lo_ = hn::Set(d, static_cast<C>(rstd.lo));
    shift_ = hn::Set(d, static_cast<C>(-mean_of.lo * (rstd.hi + rstd.lo)));
  }

  HWY_INLINE Params At(std::int64_t i) const {
    const D d;
    return {CleanParam<T, P>(d, LoadParam<P>(d, gamma_, i, C{1})),
            CleanParam<T, P>(d, LoadParam<P>(d, beta_, i, C{0}))};
  }
  HWY_INLINE Pair<Params> PairAt(std::int64_t i) const {
    const Pair<V> gamma = ParamPair(gamma_, i, C{1}), beta = ParamPair(beta_, i, C{0});
    return {{CleanParam<T, P>(D(), gamma.v0), CleanParam<T, P>(D(), beta.v0)},
            {CleanParam<T, P>(D(), gamma.v1), CleanParam<T, P>(D(), beta.v1)}};
  }
  HWY_INLINE PerElement From(std::int64_t i) const {
    PerElement from = *this;
    from.gamma_ = From(gamma_, i);
    from.beta_ = From(beta_, i);
    return from;
  }

  HWY_INLINE V Z(V d, const Params& by) const {
    const V xhat = hn::MulAdd(d, rstd_, hn::MulAdd(d, rstd_lo_, shift_));
    return hn::MulAdd(xhat, by.gamma, by.beta);
  }
  HWY_INLINE V Times(V dz, V plus, const Params& by) const {
    const V weighed = hn::Mul(by.gamma, dz);
    return hn::MulAdd(rstd_, weighed, hn::MulAdd(rstd_lo_, weighed, plus));
  }

 private:
  static HWY_INLINE const P* From(const void* param, std::int64_t i) {
    return param == nullptr ? nullptr : static_cast<const P*>(param) + i;
  }

  static HWY_INLINE Pair<V> ParamPair(const P* param, std::int64_t i, C missing) {
    const D d;
    if (param == nullptr) return {hn::Set(d, missing), hn::Set(d, missing)};
    if constexpr (std::is_same_v<P, T>) return LoadPair(d, param + i);
    if constexpr (!std::is_same_v<P, T>) return LoadForPair<T>(d, param + i);
  }

  const P* gamma_;
  const P* beta_;
  V rstd_, rstd_lo_, shift_;
};

// Stands in for RunSums where there is nothing to reduce beside an apply.
struct NoSums {
  HWY_INLINE bool Step() { return false; }
};

template <class Act, class D, class V, class Terms>
HWY_INLINE Pair<V> NormalizePair(D d, const Pair<V>& x, const Terms& terms, std::int64_t i) {
  const auto params = terms.PairAt(i);
  return {Normalize<Act>(d, x.v0, terms, params.v0), Normalize<Act>(d, x.v1, terms, params.v1)};
}

// Bytes of a row from which on it is written by its quarters: where each has less than most of a
// page, its prefetcher comes too late.
inline constexpr std::int64_t kQuarteredRow = 12288;

// As much of elements [begin, end) as its quarters have in common: memory serves several places
// faster than one, if each is left with whole cache lines. Returns where they end.
template <Store kStore, class Act, class T, class D, class Terms, class Sums>
HWY_INLINE std::int64_t ApplyQuarters(D d, const T* x, T* y, std::int64_t begin, std::int64_t end,
                                      const Terms& terms, Sums& sums) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t turn = std::max(2 * lanes, LineOf<T>());
  const std::int64_t quarter = PartOf(end - begin, 4, turn);
  for (std::int64_t i = begin; i < begin + quarter; i += turn) {
    // First, as loads wait behind streaming stores.
    for (std::int64_t v = 0; v < turn; v += 2 * lanes) sums.Step();
    for (std::int64_t q = 0; q < 4; ++q) {
      for (std::int64_t v = 0; v < turn; v += 2 * lanes) {
        const std::int64_t at = i + q * quarter + v;
        StorePair<kStore>(d, NormalizePair<Act>(d, LoadPair(d, x + at), terms, at), y + at);
      }
    }
  }
  return begin + 4 * quarter;
}

// Elements [begin, end) as far as they come in fours of vectors; returns where those end.
template <Store kStore, class Act, class T, class D, class Terms, class Sums>
HWY_INLINE std::int64_t ApplyFours(D d, const T* x, T* y, std::int64_t begin, std::int64_t end,
                                   const Terms& terms, Sums& sums) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  if ((end - begin) * static_cast<std::int64_t>(sizeof(T)) >= kQuarteredRow) {
    begin = ApplyQuarters<kStore, Act>(d, x, y, begin, end, terms, sums);
  }
  std::int64_t i = begin;
  for (; i + 4 * lanes <= end; i += 4 * lanes) {
    // A step is twice as long.
    if (((i - begin) & (4 * lanes)) == 0) sums.Step();
    const std::int64_t j = i + 2 * lanes;
    const auto near = LoadPair(d, x + i), far = LoadPair(d, x + j);
    StorePair<kStore>(d, NormalizePair<Act>(d, near, terms, i), y + i);
    StorePair<kStore>(d, NormalizePair<Act>(d, far, terms, j), y + j);
  }
  return i;
}

template <class T, class Act, class D, class Terms, class Sums>
HWY_INLINE void ApplyCachedRow(D d, const T* x, T* y, std::int64_t count, const Terms& terms,
                               Sums& sums) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  // The vector that ends with the row, from before anything of it is stored.
  const auto last = LoadAs(d, x + count - lanes);
  for (std::int64_t i = ApplyFours<Store::cached, Act>(d, x, y, 0, count, terms, sums); i < count;
       i += lanes) {
    const bool whole = i + lanes <= count;
    const std::int64_t at = whole ? i : count - lanes;
    const auto vx = whole ? LoadAs(d, x + i) : last;
    StoreAs<Store::cached>(d, Normalize<Act>(d, vx, terms, terms.At(at)), y + at);
  }
}

// An end of a row that else streams; by itself, as few rows have one.
template <class T, class Act, class Terms>
HWY_NOINLINE void ApplyEnd(const T* x, T* y, std::int64_t count, const Terms& terms) {
  NoSums none;
  ApplyCachedRow<T, Act>(hn::ScalableTag<Compute<T>>(), x, y, count, terms, none);
}

template <class T, class Act, Store kStore, class D, class Terms, class Sums>
HWY_INLINE void ApplyRow(D d, const T* x, T* y, std::int64_t count, const Terms& terms,
                         Sums& sums) {
  if constexpr (kStore == Store::cached) {
    ApplyCachedRow<T, Act>(d, x, y, count, terms, sums);
  } else {
    const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
    const auto [begin, end] = StreamedLines(y, count, lanes, 4 * lanes);
    if (begin > 0) ApplyEnd<T, Act>(x, y, begin, terms);
    ApplyFours<kStore, Act>(d, x, y, begin, end, terms, sums);
    if (end < count) ApplyEnd<T, Act>(x + end, y + end, count - end, terms.From(end));
  }
}

template <class Act, class T, class TermsOf>
HWY_INLINE void ApplyShortRows(const T* x, T* y, std::int64_t rows, std::int64_t length,
                               const TermsOf& terms_of) {
  const hn::ScalableTag<Compute<T>> d;
  using Terms = Affine<hn::Vec<decltype(d)>>;
  const std::int64_t end = rows * length - static_cast<std::int64_t>(hn::Lanes(d));
  const auto last = LoadAs(d, x + end);
  ForShortRows(
      d, rows, length, terms_of, [&](std::int64_t i, auto vectors, const Terms& terms) HWY_ATTR {
        if constexpr (vectors == 2) {
          StorePair<Store::cached>(d, NormalizePair<Act>(d, LoadPair(d, x + i), terms, i), y + i);
        } else {
          const auto vx = i <= end ? LoadAs(d, x + i) : last;
          StoreAs<Store::cached>(d, Normalize<Act>(d, vx, terms, {}), y + std::min(i, end));
        }
      });
}

template <class Act, Store kStore, class T, class TermsOf, class Sums>
HWY_INLINE void ApplyLongRows(const T* x, T* y, std::int64_t rows, std::int64_t length,
                              const TermsOf& terms_of, Sums& sums) {
  const hn::ScalableTag<Compute<T>> d;
  for (std::int64_t r = 0; r < rows; ++r) {
    ApplyRow<T, Act, kStore>(d, x + r * length, y + r * length, length, terms_of(r), sums);
  }
}

// Blocks x, y [blocks, channels, length], as ApplyBlocks and NormalizeBlocks have them.
template <class T, class Args>
class Blocks {
 public:
  HWY_INLINE explicit Blocks(const Args& args) : args_(args), size_(args.channels * args.length) {}

  HWY_INLINE std::int64_t size() const { return size_; }
  HWY_INLINE const T* x(std::int64_t block) const {
    return static_cast<const T*>(args_.x) + block * size_;
  }

  // Whether another loop can be carried along: rows are long enough to be taken one by one.
  HWY_INLINE bool can_carry() const {
    return args_.length > 1 && !AreShortRows(hn::ScalableTag<Compute<T>>(), args_.length);
  }

  template <class Act, Store kStore>
  HWY_INLINE void Apply(std::int64_t block, const Statistics& statistics) const {
    const hn::ScalableTag<Compute<T>> d;
    NoSums none;
    if (args_.length == 1) {
      return WithParameters<T>(args_.params, [&](auto element) HWY_ATTR {
        const PerElement<T, decltype(element)> terms(args_.params, block * size_, statistics);
        ApplyRow<T, Act, kStore>(d, x(block), y(block), size_, terms, none);
      });
    }
    if (can_carry()) return Apply<Act, kStore>(block, statistics, none);
    ApplyShortRows<Act>(x(block), y(block), args_.channels, args_.length,
                        TermsOf(block, statistics));
  }

  // With `sums` carried along, where can_carry() says so.
  template <class Act, Store kStore, class Sums>
  HWY_INLINE void Apply(std::int64_t block, const Statistics& statistics, Sums& sums) const {
    ApplyLongRows<Act, kStore>(x(block), y(block), args_.channels, args_.length,
                               TermsOf(block, statistics), sums);
  }

 private:
  HWY_INLINE T* y(std::int64_t block) const { return static_cast<T*>(args_.y) + block * size_; }
  HWY_INLINE PerRow<T> TermsOf(std::int64_t block, const Statistics& statistics) const {
    return {args_.params, block * args_.channels, statistics};
  }

  const Args& args_;
  std::int64_t size_;  // of a block
};

template <class T>
struct BlocksOf {
  template <class Act, Store kStore>
  static void Run(const Kernels::ApplyBlocks& args) {
    const Blocks<T, Kernels::ApplyBlocks> blocks(args);
    if (args.next.x != nullptr && args.blocks == 1 && blocks.can_carry()) {
      return Carry<Act, kStore>(args, blocks);
    }
    for (std::int64_t b = 0; b < args.blocks; ++b) {
      blocks.template Apply<Act, kStore>(b, args.statistics[b]);
    }
    if (args.next.x != nullptr) ReduceRuns<T>(args.next);
  }

 private:
  // By itself: with other loops around, a compiler keeps the sums in memory.
  template <class Act, Store kStore>
  static HWY_NOINLINE void Carry(const Kernels::ApplyBlocks& args,
                                 const Blocks<T, Kernels::ApplyBlocks>& blocks) {
    RunSums<T> sums(static_cast<const T*>(args.next.x), args.next.count);
    blocks.template Apply<Act, kStore>(0, args.statistics[0], sums);
    *args.next.moments = sums.Finish();
  }
};

// kRows rows of [width] lanes, `apart` rows apart: each coefficient is loaded once for all of them.
template <class T, class Act, Store kStore, std::int64_t kRows>
HWY_INLINE void ApplyBand(const Kernels::ApplyLanes& args, std::int64_t row, std::int64_t apart) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const C* const mean = static_cast<const C*>(args.mean);
  const C* const a = static_cast<const C*>(args.a);
  const C* const b = static_cast<const C*>(args.b);
  const std::int64_t last = args.width - lanes;
  const std::int64_t stride = apart * args.stride;
  const T* const x = static_cast<const T*>(args.x) + row * args.stride;
  T* const y = static_cast<T*>(args.y) + row * args.stride;
  HWY_ALIGN C ends[static_cast<std::size_t>(kRows) * hn::MaxLanes(d)];
  const bool partial = args.width % lanes != 0;
  for (std::int64_t r = 0; partial && r < kRows; ++r) {
    hn::Store(LoadAs(d, x + r * stride + last), d, ends + r * lanes);
  }
  std::int64_t i = 0;
  for (; i + 2 * lanes <= args.width; i += 2 * lanes) {
    const auto vm = LoadForPair<T>(d, mean + i);
    const auto va = LoadForPair<T>(d, a + i);
    const auto vb = LoadForPair<T>(d, b + i);
    const Affine<V> by0{vm.v0, va.v0, vb.v0}, by1{vm.v1, va.v1, vb.v1};
    for (std::int64_t r = 0; r < kRows; ++r) {
      const std::int64_t at = r * stride + i;
      const auto pair = LoadPair(d, x + at);
      const Pair<V> both{Normalize<Act>(d, pair.v0, by0, {}), Normalize<Act>(d, pair.v1, by1, {})};
      StorePair<kStore>(d, both, y + at);
    }
  }
  const auto at_lane = [&](std::int64_t lane) HWY_ATTR {
    return Affine<V>{hn::LoadU(d, mean + lane), hn::LoadU(d, a + lane), hn::LoadU(d, b + lane)};
  };
  for (; i <= last; i += lanes) {
    const auto by = at_lane(i);
    for (std::int64_t r = 0; r < kRows; ++r) {
      const std::int64_t at = r * stride + i;
      StoreAs<Store::cached>(d, Normalize<Act>(d, LoadAs(d, x + at), by, {}), y + at);
    }
  }
  for (std::int64_t r = 0; partial && r < kRows; ++r) {
    const auto end = Normalize<Act>(d, hn::Load(d, ends + r * lanes), at_lane(last), {});
    StoreAs<Store::cached>(d, end, y + r * stride + last);
  }
}

template <class T>
struct LanesOf {
  template <class Act, Store kStore>
  static void Run(const Kernels::ApplyLanes& args) {
    ForBands<4>(args.rows, [&](auto rows, std::int64_t row, std::int64_t apart)
                               HWY_ATTR { ApplyBand<T, Act, kStore, rows>(args, row, apart); });
  }
};

// One instance of F::Run for each activation and store.
template <class F, Store kStore, class Args>
auto DispatchActivation(const Args& args) {
  switch (args.activation) {
    case Activation::none: break;
    case Activation::relu: return F::template Run<Relu, kStore>(args);
    case Activation::silu: return F::template Run<Silu, kStore>(args);
    case Activation::gelu: return F::template Run<Gelu, kStore>(args);
    case Activation::gelu_tanh: return F::template Run<GeluTanh, kStore>(args);
    case Activation::hard_swish: return F::template Run<HardSwish, kStore>(args);
  }
  return F::template Run<None, kStore>(args);
}

// What Kernels::flush says.
inline void Flush() {
  if constexpr (kStreams) hwy::FlushStream();
}

template <class F, class Args>
auto DispatchStore(const Args& args, Store store) {
  if constexpr (kStreams) {
    if (store == Store::streaming) return DispatchActivation<F, Store::streaming>(args);
  }
  return DispatchActivation<F, Store::cached>(args);
}

// Every row begins on a vector where the first two do; else none of them streams.
template <class T>
HWY_INLINE Store StoreOfLanes(Store store, const void* first, std::int64_t stride) {
  const hn::ScalableTag<Compute<T>> d;
  const T* const p = static_cast<const T*>(first);
  return ToAligned(d, p) == 0 && ToAligned(d, p + stride) == 0 ? store : Store::cached;
}

template <class T>
void ApplyBlocks(const Kernels::ApplyBlocks& args) {
  DispatchStore<BlocksOf<T>>(args, args.store);
}

template <class T>
void ApplyLanes(const Kernels::ApplyLanes& args) {
  DispatchStore<LanesOf<T>>(args, StoreOfLanes<T>(args.store, args.y, args.stride));
}

// gamma or beta for vectors that begin at entries [0, end): what of them lies behind the last of
// `readable` entries is 0, and not read. Null stays null.
template <class P, std::int64_t kLanes>
class Param {
 public:
  HWY_INLINE Param(const void* data, std::int64_t readable, std::int64_t end)
      : data_(static_cast<const P*>(data)),
        whole_(std::max<std::int64_t>(0, readable - kLanes + 1)) {
    if (data == nullptr || end <= whole_) return;
    std::copy_n(data_ + whole_, readable - whole_, end_);
  }

  HWY_INLINE const P* From(std::int64_t i) const {
    if (data_ == nullptr) return nullptr;
    return i < whole_ ? data_ + i : end_ + (i - whole_);
  }

 private:
  const P* data_;
  std::int64_t whole_;  // vectors that begin below this entry are whole
  P end_[2 * kLanes] = {};
};

// T: the data's storage dtype, which sets the compute type; P: that of gamma and beta.
template <class T, class P>
void MakeCoefficients(const Kernels::Coefficients& args) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(d));
  C* const to_mean = static_cast<C*>(args.mean);
  C* const to_a = static_cast<C*>(args.a);
  C* const to_b = static_cast<C*>(args.b);
  const std::int64_t channels = args.channels, count = args.blocks * channels;
  const Param<P, kLanes> gamma(args.params.gamma, args.readable, count);
  const Param<P, kLanes> beta(args.params.beta, args.readable, count);
  for (std::int64_t block = 0; block < args.blocks; ++block) {
    const BlockTerms<T> terms(args.statistics[block]);
    const std::int64_t end = (block + 1) * channels;
    for (std::int64_t i = end - channels; i < end; i += kLanes) {
      const auto of = terms.Of(CleanParam<T, P>(d, LoadParam<P>(d, gamma.From(i), 0, C{1})),
                               CleanParam<T, P>(d, LoadParam<P>(d, beta.From(i), 0, C{0})));
      hn::StoreU(of.mean, d, to_mean + i);
      hn::StoreU(of.a, d, to_a + i);
      hn::StoreU(of.b, d, to_b + i);
    }
  }
}

template <class T>
void Coefficients(const Kernels::Coefficients& args) {
  WithParameters<T>(args.params,
                    [&](auto element) { MakeCoefficients<T, decltype(element)>(args); });
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
