// Element functions on vectors of the compute type: z = gamma * xhat + beta -> y, and dy times the
// derivative at z. f32 errors are stated in ulp of the result and tested over the whole range.
//
// Clamp and Swish are part of the loops that write y, Derivative of those of backward. The others
// are made of a tile of z in L1, or written to one (tile-inl.h).
#if defined(GROUPNORM_SRC_KERNELS_ACTIVATION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_ACTIVATION_INL_H
#undef GROUPNORM_SRC_KERNELS_ACTIVATION_INL_H
#else
#define GROUPNORM_SRC_KERNELS_ACTIVATION_INL_H
#endif

#include "kernels/simd-inl.h"

#include <hwy/contrib/math/math-inl.h>

#include <cmath>
#include <iterator>
#include <numbers>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// v, but NaN where z is: for what has been clamped.
template <class D, class V>
HWY_INLINE V KeepNaN(D, V z, V v) {
  return hn::IfThenElse(hn::IsNaN(z), z, v);
}

// max(low, z), and NaN where z is. Highway's Max promises nothing there: on x86 it is z as well, on
// Arm low.
template <class V>
HWY_INLINE V AtLeast(V low, V z) {
#if HWY_TARGET == GROUPNORM_NEON
  if constexpr (sizeof(hn::TFromV<V>) == 8)
    return V(vmaxq_f64(low.raw, z.raw));
  else
    return V(vmaxq_f32(low.raw, z.raw));
#elif HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  return hn::IfThenElse(hn::Lt(z, low), low, z);
#else
  return hn::Max(low, z);
#endif
}

// Whether Clamp makes it, of those that are fused.
HWY_INLINE bool IsClamp(Activation activation) {
  return activation == Activation::none || activation == Activation::relu;
}

// Relu, and no activation at all: a bound from below, 0 or -infinity. Keeps NaN.
template <class C>
class Clamp {
 public:
  static constexpr bool kJoins = false;

  HWY_INLINE explicit Clamp(Activation activation)
      : low_(hn::Set(Tag<C>(),
                     activation == Activation::relu ? C{0} : -std::numeric_limits<C>::infinity())) {
  }

  HWY_INLINE Vector<C> operator()(Vector<C> z) const { return AtLeast(low_, z); }

 private:
  Vector<C> low_;
};

struct Relu {
  template <class D, class V>
  static HWY_INLINE V Apply(D d, V z) {
    return hn::IfThenZeroElse(hn::Lt(z, hn::Zero(d)), z);  // keeps NaN
  }
  template <class D, class V>
  static HWY_INLINE V Gradient(D d, V z, V dy) {
    return hn::IfThenZeroElse(hn::Le(z, hn::Zero(d)), dy);
  }
};

// exp(-u). f32: with a relative error of 1e-7 + 1e-8 |u| for u in [-88, 87]; outside, that of the
// nearer end. -u log2(e) = n + f: adding the magic number leaves n in the low bits, f in
// [-1/2, 1/2]; 2^f is a minimax fit. f64 by Highway, which takes arguments up to 706.
template <class D, class V>
HWY_INLINE V ExpOfMinus(D d, V u) {
  if constexpr (sizeof(hn::TFromD<D>) == 8) {
    return hn::Exp(d, hn::Min(hn::Neg(u), hn::Set(d, 706.0)));
  } else {
    constexpr float kFit[] = {0.00132764711F, 0.00967554133F, 0.0555071328F,
                              0.240221197F,   0.693146967F,   1.00000007F};
    const hn::RebindToSigned<D> di;
    const auto magic = hn::Set(d, 0x1.8p23F);
    const auto log2e = hn::Set(d, std::numbers::log2e_v<float>);
    const auto bounded = hn::Max(hn::Min(u, hn::Set(d, 87.0F)), hn::Set(d, -88.0F));
    const auto shifted = hn::NegMulAdd(bounded, log2e, magic);
    const auto f = hn::NegMulSub(bounded, log2e, hn::Sub(shifted, magic));
    auto p = hn::Set(d, kFit[0]);
    for (std::size_t i = 1; i < std::size(kFit); ++i) p = hn::MulAdd(p, f, hn::Set(d, kFit[i]));
    const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
    return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  }
}

// z / (1 + exp(-u)), where u = z is SiLU.
template <class D, class V>
HWY_INLINE V Gate(D d, V z, V u) {
  return hn::Div(z, hn::Add(hn::Set(d, hn::TFromD<D>{1}), ExpOfMinus(d, u)));
}

// dy times the derivative of z / (1 + exp(-u)): p + z p q u', with p = 1 / (1 + exp(-u)) and
// q = 1 - p, which is taken as p exp(-u), without cancellation. `slope` is u'.
template <class D, class V>
HWY_INLINE V GateGradient(D d, V z, V u, V slope, V dy) {
  const auto one = hn::Set(d, hn::TFromD<D>{1});
  const auto e = ExpOfMinus(d, u);
  const auto p = hn::Div(one, hn::Add(one, e));
  const auto q = hn::Mul(p, e);
  return hn::Mul(dy, hn::MulAdd(hn::Mul(hn::Mul(p, q), slope), z, p));
}

struct Silu {
  template <class D, class V>
  static HWY_INLINE V Apply(D d, V z) {
    return Gate(d, z, z);
  }
  template <class D, class V>
  static HWY_INLINE V Gradient(D d, V z, V dy) {
    return GateGradient(d, z, z, hn::Set(d, hn::TFromD<D>{1}), dy);
  }
};

// 0.5 z (1 + tanh(u)) = z / (1 + exp(-2u)), u = sqrt(2 / pi) (z + 0.044715 z^3).
struct GeluTanh {
  template <class D, class V>
  static HWY_INLINE V Apply(D d, V z) {
    using C = hn::TFromD<D>;
    const auto linear = hn::Set(d, static_cast<C>(1.5957691216057307117597842397375));
    const auto cubic = hn::Set(d, static_cast<C>(0.0713548162726009));  // linear * 0.044715
    return Gate(d, z, hn::Mul(z, hn::MulAdd(hn::Mul(z, z), cubic, linear)));
  }
  template <class D, class V>
  static HWY_INLINE V Gradient(D d, V z, V dy) {
    using C = hn::TFromD<D>;
    const auto linear = hn::Set(d, static_cast<C>(1.5957691216057307117597842397375));
    const auto cubic = hn::Set(d, static_cast<C>(0.0713548162726009));
    const auto three_cubic = hn::Set(d, static_cast<C>(0.2140644488178027));
    // Beyond 16 the derivative is 0 or 1, and z^3 would overflow.
    const auto near = hn::Max(hn::Min(z, hn::Set(d, C{16})), hn::Set(d, C{-16}));
    const auto square = hn::Mul(near, near);
    const auto u = hn::Mul(near, hn::MulAdd(square, cubic, linear));
    const auto slope = hn::MulAdd(square, three_cubic, linear);
    return KeepNaN(d, z, GateGradient(d, near, u, slope, dy));
  }
};

struct HardSwish {
  template <class D, class V>
  static HWY_INLINE V Apply(D d, V z) {
    using C = hn::TFromD<D>;
    const auto three = hn::Set(d, C{3});
    const auto six = hn::Set(d, C{6});
    const auto ramp = hn::Min(hn::Max(hn::Add(z, three), hn::Zero(d)), six);
    return hn::Mul(z, hn::Mul(ramp, hn::Set(d, C{1} / C{6})));
  }
  // 0 up to -3, z / 3 + 1 / 2 between, 1 from 3 on.
  template <class D, class V>
  static HWY_INLINE V Gradient(D d, V z, V dy) {
    using C = hn::TFromD<D>;
    const auto line = hn::MulAdd(z, hn::Set(d, C{1} / C{3}), hn::Set(d, C{0.5}));
    const auto above = hn::Ge(z, hn::Set(d, C{3}));
    const auto below = hn::Le(z, hn::Set(d, C{-3}));
    return hn::IfThenZeroElse(below, hn::IfThenElse(above, dy, hn::Mul(dy, line)));
  }
};

// SiLU and hard-swish: which of them is asked for each vector costs less than code for either.
template <class C>
class Swish {
 public:
  static constexpr bool kJoins = false;

  HWY_INLINE explicit Swish(Activation activation) : hard_(activation == Activation::hard_swish) {}

  HWY_INLINE Vector<C> operator()(Vector<C> z) const {
    const Tag<C> d;
    return hard_ ? HardSwish::Apply(d, z) : Silu::Apply(d, z);
  }

 private:
  bool hard_;
};

// z * Phi(z) = max(z, 0) - |z| erfc(|z| / sqrt 2) / 2: no cancellation on either side of 0.
// erfc(v) = exp(-v^2) t P(t), t = 1 / (1 + k v). P is a fit to erfcx: of degree 8 with a relative
// error of 2.1e-8 (minimax), and for double of degree 22 with 1.0e-16 (in Chebyshev nodes).
// Beyond kMost, erfc is nothing beside 1; further out, exp(-v^2) would be slow to compute with.
template <class C>
struct ErfcFit {
  static constexpr C kMost = 12;
  static constexpr C kSlope = 0.3F;
  static constexpr C kTerms[] = {-0.129252907F, 0.484300328F,   -0.509769722F,
                                 0.544964162F,  -0.0928242874F, 0.214180741F,
                                 0.148521414F,  0.170690908F,   0.169189355F};
};
template <>
struct ErfcFit<double> {
  static constexpr double kMost = 16;
  static constexpr double kSlope = 0.25;
  static constexpr double kTerms[] = {
      0.0013129946006413976, -0.014581728920814828, 0.07321369985307051, -0.2194561723898449,
      0.4391791438278521,    -0.6273580392868899,   0.6735976698733551,  -0.561251533380839,
      0.3644666217981319,    -0.1915148169161168,   0.08088631635837551, -0.01880271960196086,
      0.023466422629598332,  0.027703658474373272,  0.04499412724624629, 0.06246760914814695,
      0.08106780368879161,   0.09903604300177225,   0.11501424112269375, 0.1278242023313705,
      0.13663966476818412,   0.14104739588692372,   0.1410473958869391};
};

struct Gelu {
  template <class D, class V>
  static HWY_INLINE V Apply(D d, V z) {
    using C = hn::TFromD<D>;
    const auto size = hn::Min(hn::Abs(z), hn::Set(d, ErfcFit<C>::kMost));
    return hn::Sub(Relu::Apply(d, z), hn::Mul(size, HalfErfc(d, size)));
  }
  // Phi(z) + z phi(z)
  template <class D, class V>
  static HWY_INLINE V Gradient(D d, V z, V dy) {
    using C = hn::TFromD<D>;
    const auto most = hn::Set(d, ErfcFit<C>::kMost);
    const auto near = hn::Max(hn::Min(z, most), hn::Neg(most));
    const auto tail = HalfErfc(d, hn::Abs(near));
    const auto one = hn::Set(d, C{1});
    const auto phi_of_z = hn::IfThenElse(hn::Lt(z, hn::Zero(d)), tail, hn::Sub(one, tail));
    const auto half_square = hn::Mul(hn::Mul(near, near), hn::Set(d, C{0.5}));
    const auto density = hn::Mul(ExpOfMinus(d, half_square),
                                 hn::Set(d, static_cast<C>(0.3989422804014327)));  // 1 / sqrt(2 pi)
    return KeepNaN(d, z, hn::Mul(dy, hn::MulAdd(near, density, phi_of_z)));
  }

 private:
  // erfc(size / sqrt 2) / 2
  template <class D, class V>
  static HWY_INLINE V HalfErfc(D d, V size) {
    using C = hn::TFromD<D>;
    using Fit = ErfcFit<C>;
    const auto slope = hn::Set(d, static_cast<C>(Fit::kSlope * (std::numbers::sqrt2 / 2)));
    const auto one = hn::Set(d, C{1}), half = hn::Set(d, C{0.5});
    const auto t = hn::Div(one, hn::MulAdd(size, slope, one));
    auto p = hn::Set(d, Fit::kTerms[0]);
    for (std::size_t i = 1; i < std::size(Fit::kTerms); ++i) {
      p = hn::MulAdd(p, t, hn::Set(d, Fit::kTerms[i]));
    }
    const auto decay = ExpOfMinus(d, hn::Mul(hn::Mul(size, size), half));
    return hn::Mul(hn::Mul(decay, half), hn::Mul(p, t));
  }
};

// What the backward pass makes of x, dy and z, vector by vector; x is a place in the tensor. kFew:
// whether a loop should have these functions but once. kJoins: whether there may be a GradientJoin;
// Joined: the same where there may. Its shift is added by the terms (terms-inl.h).

// dz = dy, where there is no activation.
template <class T>
struct Same {
  using V = Vector<Compute<T>>;
  using Joined = Same;
  static constexpr bool kFew = false, kJoins = false;

  template <class Args>
  HWY_INLINE explicit Same(const Args&) {}

  HWY_INLINE const Same& Plain() const { return *this; }
  HWY_INLINE V Load(const T* x) const { return LoadAs(Tag<Compute<T>>(), x); }
  template <class Z>
  HWY_INLINE V Dz(V dy, const Z&, const T*) const {
    return dy;
  }
  HWY_INLINE void Keep(V, const T*) const {}
  HWY_INLINE V Dx(V dx, const T*) const { return dx; }
};

// dz = dy times the derivative of relu, SiLU or hard_swish, or of nothing, at z(). Which of them,
// and what is joined, is asked for each vector, as in Swish: beside the derivative of SiLU that
// costs next to nothing.
template <class T, bool kJoinsAny>
class Derivative {
  using C = Compute<T>;
  using V = Vector<C>;

 public:
  using Joined = Derivative<T, true>;
  static constexpr bool kFew = true, kJoins = kJoinsAny;

  template <class Args>
  HWY_INLINE explicit Derivative(const Args& args)
      : Derivative(args.activation, static_cast<const T*>(args.x)) {
    if constexpr (kJoins) {
      if (args.join == nullptr) return;
      skip_ = static_cast<const T*>(args.join->skip);
      shift_ = static_cast<const T*>(args.join->shift);
      residual_ = static_cast<const T*>(args.join->residual);
      dsum_ = static_cast<const T*>(args.join->dsum);
      dresidual_ = static_cast<T*>(args.join->dresidual);
    }
  }

  // The same of a call that joins nothing.
  HWY_INLINE Derivative<T, false> Plain() const { return {activation_, x_}; }

  HWY_INLINE const T* shift() const { return shift_; }
  // With skip, where that is given.
  HWY_INLINE V Load(const T* x) const {
    const V v = LoadAs(Tag<C>(), x);
    if (!kJoins || skip_ == nullptr) return v;
    return hn::Add(v, LoadAs(Tag<C>(), skip_ + (x - x_)));
  }
  template <class Z>
  HWY_INLINE V Dz(V dy, const Z& z, const T* x) const {
    const Tag<C> d;
    if (kJoins && activation_ == Activation::none) return dy;
    V of_z = z();
    if (kJoins && residual_ != nullptr) of_z = hn::Add(of_z, LoadAs(d, residual_ + (x - x_)));
    if (activation_ == Activation::relu) return Relu::Gradient(d, of_z, dy);
    return activation_ == Activation::silu ? Silu::Gradient(d, of_z, dy)
                                           : HardSwish::Gradient(d, of_z, dy);
  }
  // dz to dresidual, where that is asked for.
  HWY_INLINE void Keep(V dz, const T* x) const {
    const Tag<C> d;
    if (!kJoins || dresidual_ == nullptr) return;
    StoreAs(d, CleanNaN<T>(d, dz), dresidual_ + (x - x_), Store::cached);
  }
  // With dsum, where that is given.
  HWY_INLINE V Dx(V dx, const T* x) const {
    if (!kJoins || dsum_ == nullptr) return dx;
    return hn::Add(dx, LoadAs(Tag<C>(), dsum_ + (x - x_)));
  }

 private:
  template <class, bool>
  friend class Derivative;

  HWY_INLINE Derivative(Activation activation, const T* x) : activation_(activation), x_(x) {}

  Activation activation_;
  const T* x_;
  const T* skip_ = nullptr;
  const T* shift_ = nullptr;
  const T* residual_ = nullptr;
  const T* dsum_ = nullptr;
  T* dresidual_ = nullptr;
};

// Whether the functions of Same are all that a call needs.
template <class Args>
HWY_INLINE bool IsSame(const Args& args) {
  if constexpr (requires { args.join; }) {
    if (args.join != nullptr) return false;
  }
  return args.activation == Activation::none;
}

// dy times the derivative of any activation at z. Which it is, is asked for each vector, as in
// Swish.
template <class V>
HWY_INLINE V Dz(Activation activation, V z, V dy) {
  const hn::DFromV<V> d;
  switch (activation) {
    case Activation::relu: return Relu::Gradient(d, z, dy);
    case Activation::silu: return Silu::Gradient(d, z, dy);
    case Activation::gelu: return Gelu::Gradient(d, z, dy);
    case Activation::gelu_tanh: return GeluTanh::Gradient(d, z, dy);
    case Activation::hard_swish: return HardSwish::Gradient(d, z, dy);
    case Activation::none: break;
  }
  return dy;
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
