// The shared list of cases: what tests, `groupnorm check` and benchmarks run, the data they run it
// on, and how far from the reference a result may be.
#ifndef GROUPNORM_TESTING_CASES_H
#define GROUPNORM_TESTING_CASES_H

#include <groupnorm/groupnorm.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reference.h"

namespace groupnorm::testing {

// A norm of the family, by name. Those that are not `grouped` ignore `groups`.
struct Norm {
  const char* name;
  Block (*block)(Shape shape, std::int64_t groups);
  bool grouped = false;  // `groups` is the number of groups of channels, or of virtual batches
  bool center = true;
  bool given_statistics = false;
};
std::span<const Norm> norms();

// "2x320x64x64" (N x C, then any number of spatial sizes) as [n, c, s]. Nothing where a size is not
// a whole number >= 0 or s passes 2^63 - 1.
std::optional<Shape> parse_shape(std::string_view text);

// What to compute, on what: x ~ N(mean, deviation), gamma ~ N(1, 1/2), beta ~ N(0, 1/2). Where the
// Spec has them, shift ~ N(0, deviation), and lengths, of which one in four is 0 and one all.
struct Case {
  std::string name;  // "group/f32/first/16x32x64x64/g8", then all that is not the default
  Spec spec;
  double mean = 0;
  double deviation = 1;
  bool gamma = true;
  bool beta = true;
  // Neighbours of the norm. scale and offset need Spec::scale.
  bool skip = false;      // ~ N(-mean, deviation): the sum has no mean
  bool residual = false;  // ~ N(0, 1)
  bool scale = false;     // ~ N(0, 1/4)
  bool offset = false;    // ~ N(0, 1/2)
  bool sum = false;       // asked for; and dsum ~ N(0, 1)
};
bool has_neighbours(const Case& c);

// The built-in list.
std::vector<Case> cases();

// Aligned storage without a type; not initialized. Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes)
      : data_(static_cast<std::byte*>(::operator new(bytes, kAlignment))), size_(bytes) {}
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }  // bytes

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

// What both directions of a case read; empty where the case has it not.
struct Inputs {
  Buffer x, gamma, beta, skip, shift, residual, scale, offset;
  std::vector<std::int64_t> lengths;
  std::vector<double> mean, rstd;  // where forward writes them, or what is given to it
};

// The tensors of a case, and a Forward that points at them. y and sum are not initialized.
struct Data : Inputs {
  Buffer y, sum;
  Forward forward;
};

// The same bits on every machine: counter-based integer random numbers. The Spec is one that
// Plan::make accepts.
Data make_data(const Case& c, std::uint64_t seed);

// The tensors of a case's gradient, and a Backward that points at them: dy ~ N(0, 1), mean and rstd
// those of the reference (or given). What backward writes is not initialized.
struct GradientData : Inputs {
  Buffer dy, dsum;
  Buffer dx, dgamma, dbeta, dresidual, dshift, dscale, doffset;
  Backward backward;
};

// The tensors of Inputs, and where a Forward or a Backward has them.
template <class Args>
struct Input {
  Buffer Inputs::*buffer;
  const void* Args::*pointer;
  DType Spec::*dtype;
};
template <class Args>
inline constexpr Input<Args> kInputs[] = {
    {&Inputs::x, &Args::x, &Spec::data},          {&Inputs::gamma, &Args::gamma, &Spec::param},
    {&Inputs::beta, &Args::beta, &Spec::param},   {&Inputs::skip, &Args::skip, &Spec::data},
    {&Inputs::shift, &Args::shift, &Spec::data},  {&Inputs::residual, &Args::residual, &Spec::data},
    {&Inputs::scale, &Args::scale, &Spec::param}, {&Inputs::offset, &Args::offset, &Spec::param},
};

// All that backward writes.
struct Output {
  const char* name;
  Buffer GradientData::*buffer;
  void* Backward::*pointer;
  DType Spec::*dtype;
};
inline constexpr Output kGradients[] = {
    {"dx", &GradientData::dx, &Backward::dx, &Spec::data},
    {"dgamma", &GradientData::dgamma, &Backward::dgamma, &Spec::param},
    {"dbeta", &GradientData::dbeta, &Backward::dbeta, &Spec::param},
    {"dresidual", &GradientData::dresidual, &Backward::dresidual, &Spec::data},
    {"dshift", &GradientData::dshift, &Backward::dshift, &Spec::data},
    {"dscale", &GradientData::dscale, &Backward::dscale, &Spec::param},
    {"doffset", &GradientData::doffset, &Backward::doffset, &Spec::param},
};

// The inputs are those of make_data. dy is 0 where z lies so near a jump of activation' that
// rounding decides on which side. Takes 16 bytes an element more while it runs.
GradientData make_gradient_data(const Case& c, std::uint64_t seed);
// The same for inputs of one's own.
GradientData make_gradient_data(const Case& c, Data data, std::uint64_t seed);

// One block of a call as a tensor of its own, so that a tensor too large for the reference's
// doubles can be checked block by block. Takes y along; forward.mean and rstd are null.
struct Extract {
  Spec spec;
  Data data;
  std::int64_t start, run,
      stride;  // the whole tensor's elements are `run` together, `stride` apart
  std::int64_t index_in_whole(std::int64_t i) const { return start + i / run * stride + i % run; }
};
Extract extract_block(const Spec& spec, const Forward& forward, std::int64_t block);

// The worst element of a result. Its error is in units of
//   f32   eps32 * scale, eps32 = 2^-23, scale that of ReferenceResult
//   f64   eps64 * (scale + |mean| * rstd), eps64 = 2^-52
//   f16, bf16   representable numbers from the correctly rounded exact result; an element further
//         than one away, but within f32's bound and half a step of the exact result, counts as 1
struct Comparison {
  double error = 0;  // infinite where one of the two is NaN or infinite and the other is not
  double bound = 0;
  const char* tensor = "y";  // that of the worst element
  DType dtype = DType::f32;  // of that tensor
  std::int64_t index = 0;    // in it
  double expected = 0;       // there, not rounded
  double actual = 0;
  bool within_bound() const { return error <= bound; }
};

double error_bound(const Spec& spec);

// `y` as the engine wrote it, `reference` of the same x.
Comparison compare(const Spec& spec, const detail::ReferenceResult& reference, const void* y);

// 4 units for f32 and f64 gradients, 1 for f16 and bf16, in the units of compare_gradient.
double gradient_bound(DType dtype);

// The gradients that are there in `args`, as the engine wrote them; `reference` of the same
// arguments before the call. The worst is the one nearest to, or farthest beyond, its bound. The
// units are those of Comparison, with the gradient's own scale (see ReferenceGradient) and nothing
// more: for those of parameters by the dtype of gamma.
Comparison compare_gradient(const Spec& spec, const detail::ReferenceGradient& reference,
                            const Backward& args);

// Nothing where two arrays of `bytes` bytes have the same bits, else the first elements that
// differ: "at 17: 0x3f800001 (1.0000001192092896), not 0x3f800000 (1)".
std::string difference(DType dtype, const void* actual, const void* expected, std::size_t bytes);

}  // namespace groupnorm::testing

#endif
