// What stands beside x in z = a (x - mean) + b, vector by vector. mean is the part of the mean that
// the compute type holds; the rest is in b. x - mean is then small, and a (x - mean) as exact as x.
#if defined(GROUPNORM_SRC_KERNELS_TERMS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_TERMS_INL_H
#undef GROUPNORM_SRC_KERNELS_TERMS_INL_H
#else
#define GROUPNORM_SRC_KERNELS_TERMS_INL_H
#endif

#include "kernels/simd-inl.h"

#include <algorithm>
#include <concepts>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// Terms of one row, of a row of lanes, or of a block. At(i) is what the vector from element i on
// has for itself, asked for in ascending order; Last(i) that of the vector that ends with the data.
template <class X, class C>
concept Terms = requires(X terms, std::int64_t i, Vector<C> v) {
  { X::kOrder } -> std::convertible_to<Order>;  // any: all lanes are treated alike
  { terms.Last(i) } -> std::same_as<decltype(terms.At(i))>;
  { terms.Deviation(v, terms.At(i)) } -> std::same_as<Vector<C>>;  // of x: x - mean
  { terms.Z(v, terms.At(i)) } -> std::same_as<Vector<C>>;          // of a deviation: a v + b
  { terms.Times(v, v, terms.At(i)) } -> std::same_as<Vector<C>>;   // of dz and plus: a dz + plus
};

// a and b of a vector.
template <class C>
struct Line {
  Vector<C> a, b;
};

// The rstd of one block as a factor. Its products with an f32 are rounded once, but for 2^-12 ulp:
// both are cut in halves of 12 bits, whose products are exact (Dekker, "A floating-point technique
// for extending the available precision", 1971).
template <class C>
class Factor {
  using V = Vector<C>;

 public:
  HWY_INLINE explicit Factor(double value) {
    const Tag<C> d;
    const Split split = split_as<C>(value);
    upper_ = hn::Set(d, static_cast<C>(split.hi));
    if constexpr (sizeof(C) == 4) upper_ = UpperHalf(upper_);
    lower_ =
        hn::Set(d, static_cast<C>(split.hi + split.lo - static_cast<double>(hn::GetLane(upper_))));
  }

  HWY_INLINE V Times(V v) const {
    if constexpr (sizeof(C) == 8) return hn::Mul(v, upper_);
    const V upper = UpperHalf(v);
    const V rest = hn::MulAdd(hn::Sub(v, upper), upper_, hn::Mul(v, lower_));
    return hn::MulAdd(upper, upper_, rest);
  }

 private:
  static HWY_INLINE V UpperHalf(V v) {
    const Tag<C> d;
    return hn::And(v, hn::BitCast(d, hn::Set(hn::RebindToUnsigned<Tag<C>>(), 0xFFFFF000U)));
  }

  V upper_, lower_;
};

// What the statistics of one block make of gamma and beta.
template <class C>
class BlockTerms {
  using V = Vector<C>;

 public:
  HWY_INLINE BlockTerms(double mean, double rstd) : BlockTerms(split_as<C>(mean), rstd) {}

  HWY_INLINE V mean() const { return mean_; }
  HWY_INLINE Line<C> Of(V gamma, V beta) const {
    const V a = rstd_.Times(gamma);
    return {a, hn::NegMulAdd(mean_lo_, a, beta)};
  }

 private:
  HWY_INLINE BlockTerms(Split mean, double rstd)
      : mean_(hn::Set(Tag<C>(), static_cast<C>(mean.hi))),
        mean_lo_(hn::Set(Tag<C>(), static_cast<C>(mean.lo))),
        rstd_(rstd) {}

  V mean_, mean_lo_;
  Factor<C> rstd_;
};

// A gamma and a beta for each row of a block, made into its terms when its turn comes. Made
// beforehand, in memory, they would be read while the stores of the y before them still wait for
// memory, and wait with those.
template <class T>
class PerRow {
  using C = Compute<T>;

 public:
  // From entry `first` of the parameters on.
  HWY_INLINE PerRow(const Parameters& params, std::int64_t first, double mean, double rstd)
      : terms_(mean, rstd),
        gamma_(params.gamma, params.dtype, first, C{1}),
        beta_(params.beta, params.dtype, first, C{0}) {}

  HWY_INLINE Vector<C> mean() const { return terms_.mean(); }
  HWY_INLINE Line<C> operator()(std::int64_t row) const {
    const Tag<C> d;
    return terms_.Of(CleanNaN<T>(d, hn::Set(d, gamma_.One(row))),
                     CleanNaN<T>(d, hn::Set(d, beta_.One(row))));
  }
  // For sums in double.
  HWY_INLINE double Gamma(std::int64_t row) const { return static_cast<double>(gamma_.One(row)); }

 private:
  BlockTerms<C> terms_;
  Param<T> gamma_, beta_;
};

// One a and one b.
template <class C>
class RowTerms {
  using V = Vector<C>;

 public:
  static constexpr Order kOrder = Order::any;
  struct Own {};

  HWY_INLINE RowTerms(V mean, const Line<C>& line) : mean_(mean), line_(line) {}

  HWY_INLINE Own At(std::int64_t) const { return {}; }
  HWY_INLINE Own Last(std::int64_t) const { return {}; }
  HWY_INLINE V Deviation(V x, Own) const { return hn::Sub(x, mean_); }
  HWY_INLINE V Z(V d, Own) const { return hn::MulAdd(d, line_.a, line_.b); }
  HWY_INLINE V Times(V dz, V plus, Own) const { return hn::MulAdd(line_.a, dz, plus); }

 private:
  V mean_;
  Line<C> line_;
};

// The same of u = v + shift, in the place of v.
template <class C>
class ShiftedRowTerms : public RowTerms<C> {
  using V = Vector<C>;

 public:
  using typename RowTerms<C>::Own;

  HWY_INLINE ShiftedRowTerms(const RowTerms<C>& row, C shift)
      : RowTerms<C>(row), shift_(hn::Set(Tag<C>(), shift)) {}

  HWY_INLINE V U(V v, Own) const { return hn::Add(v, shift_); }
  HWY_INLINE V Deviation(V v, Own own) const { return RowTerms<C>::Deviation(U(v, own), own); }

 private:
  V shift_;
};

// Those of row `row`: with its shift, where Act joins one.
template <class T, class Act>
HWY_INLINE auto TermsOfRow(const PerRow<T>& rows, const Act& act, std::int64_t row) {
  using C = Compute<T>;
  const RowTerms<C> own(rows.mean(), rows(row));
  if constexpr (Act::kJoins) {
    return ShiftedRowTerms<C>(own, AddendAt(act.shift(), row));
  } else {
    return own;
  }
}

// Short rows of one block, written as one: a vector in which rows end has the terms of all of them.
//
//   | row 0  . . . . | row 1  . . . . | row 2  . . . . |
//   [ vector ][ vector ][ vector ][ vector ] ...
template <class T>
class ShortRowsTerms {
  using C = Compute<T>;
  using V = Vector<C>;

 public:
  static constexpr Order kOrder = Order::kept;
  HWY_INLINE ShortRowsTerms(const PerRow<T>& rows, std::int64_t length)
      : rows_(rows), length_(length), end_(length), line_(rows(0)) {}

  HWY_INLINE Line<C> At(std::int64_t i) {
    if (i + kLanes<C> <= end_) return line_;
    Line<C> mixed = line_;
    do {
      line_ = rows_(++row_);
      const auto before = hn::FirstN(Tag<C>(), static_cast<std::size_t>(end_ - i));
      mixed = {hn::IfThenElse(before, mixed.a, line_.a), hn::IfThenElse(before, mixed.b, line_.b)};
      end_ += length_;
    } while (end_ < i + kLanes<C>);
    return mixed;
  }
  // In a tile, the vector that ends with the block may begin before it.
  HWY_INLINE Line<C> Last(std::int64_t i) {
    row_ = std::max<std::int64_t>(i, 0) / length_;
    end_ = (row_ + 1) * length_;
    line_ = rows_(row_);
    return At(i);
  }
  HWY_INLINE V Deviation(V x, const Line<C>&) const { return hn::Sub(x, rows_.mean()); }
  HWY_INLINE V Z(V d, const Line<C>& own) const { return hn::MulAdd(d, own.a, own.b); }
  HWY_INLINE V Times(V dz, V plus, const Line<C>& own) const { return hn::MulAdd(own.a, dz, plus); }

 private:
  const PerRow<T>& rows_;
  std::int64_t length_;
  std::int64_t row_ = 0, end_;  // the row that has the last vector's last element, and its end
  Line<C> line_;                // of that row
};

// Layer norm's: one rstd, and a gamma and a beta for each element. rstd is the sum of two numbers
// and shift = -(the rest of the mean) * rstd: xhat is rounded once, as a is.
template <class T>
class ElementTerms {
  using C = Compute<T>;
  using V = Vector<C>;

 public:
  static constexpr Order kOrder = Order::kept;
  struct Own {
    V gamma, beta;
  };

  // From entry `first` of the parameters on.
  HWY_INLINE ElementTerms(const Parameters& params, std::int64_t first, double mean, double rstd)
      : gamma_(params.gamma, params.dtype, first, C{1}),
        beta_(params.beta, params.dtype, first, C{0}) {
    const Tag<C> d;
    const Split center = split_as<C>(mean), factor = split_as<C>(rstd);
    mean_ = hn::Set(d, static_cast<C>(center.hi));
    rstd_ = hn::Set(d, static_cast<C>(factor.hi));
    rstd_lo_ = hn::Set(d, static_cast<C>(factor.lo));
    shift_ = hn::Set(d, static_cast<C>(-center.lo * (factor.hi + factor.lo)));
  }

  HWY_INLINE Own At(std::int64_t i) const { return {gamma_.At(i), beta_.At(i)}; }
  HWY_INLINE Own Last(std::int64_t i) const { return At(i); }
  HWY_INLINE V Deviation(V x, const Own&) const { return hn::Sub(x, mean_); }
  HWY_INLINE V Z(V d, const Own& own) const {
    const V xhat = hn::MulAdd(d, rstd_, hn::MulAdd(d, rstd_lo_, shift_));
    return hn::MulAdd(xhat, own.gamma, own.beta);
  }
  HWY_INLINE V Times(V dz, V plus, const Own& own) const {
    const V weighed = hn::Mul(own.gamma, dz);
    return hn::MulAdd(rstd_, weighed, hn::MulAdd(rstd_lo_, weighed, plus));
  }

 private:
  Param<T> gamma_, beta_;
  V mean_, rstd_, rstd_lo_, shift_;
};

// Those of a row of lanes, from arrays.
template <class C>
class LaneTerms {
  using V = Vector<C>;

 public:
  static constexpr Order kOrder = Order::kept;
  struct Own {
    V mean, a, b;
  };

  HWY_INLINE explicit LaneTerms(const LaneCoefficients& arrays)
      : mean_(static_cast<const C*>(arrays.mean)),
        a_(static_cast<const C*>(arrays.a)),
        b_(static_cast<const C*>(arrays.b)) {}

  HWY_INLINE Own At(std::int64_t i) const {
    const Tag<C> d;
    return {hn::LoadU(d, mean_ + i), hn::LoadU(d, a_ + i), hn::LoadU(d, b_ + i)};
  }
  HWY_INLINE Own Last(std::int64_t i) const { return At(i); }
  HWY_INLINE V Deviation(V x, const Own& own) const { return hn::Sub(x, own.mean); }
  HWY_INLINE V Z(V d, const Own& own) const { return hn::MulAdd(d, own.a, own.b); }
  HWY_INLINE V Times(V dz, V plus, const Own& own) const { return hn::MulAdd(own.a, dz, plus); }

 private:
  const C* mean_;
  const C* a_;
  const C* b_;
};

// The same of u = v + shift, in the place of v.
template <class T>
class ShiftedLaneTerms : public LaneTerms<Compute<T>> {
  using C = Compute<T>;
  using V = Vector<C>;
  using Lanes = LaneTerms<C>;

 public:
  struct Own : Lanes::Own {
    V shift;
  };

  HWY_INLINE ShiftedLaneTerms(const Lanes& lanes, const T* shift) : Lanes(lanes), shift_(shift) {}

  HWY_INLINE Own At(std::int64_t i) const {
    const Tag<C> d;
    return {Lanes::At(i), shift_ == nullptr ? hn::Set(d, kNothing<C>) : LoadAs(d, shift_ + i)};
  }
  HWY_INLINE Own Last(std::int64_t i) const { return At(i); }
  HWY_INLINE V U(V v, const Own& own) const { return hn::Add(v, own.shift); }
  HWY_INLINE V Deviation(V v, const Own& own) const { return Lanes::Deviation(U(v, own), own); }

 private:
  const T* shift_;
};

// Those of a row of lanes: with their shifts, where Act joins them.
template <class T, class Act>
HWY_INLINE auto TermsOfLanes(const LaneCoefficients& arrays, const Act& act) {
  const LaneTerms<Compute<T>> lanes(arrays);
  if constexpr (Act::kJoins) {
    return ShiftedLaneTerms<T>(lanes, act.shift());
  } else {
    return lanes;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
