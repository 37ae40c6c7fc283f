// Layers over the engine of groupnorm.hpp: they own memory, allocate, and throw groupnorm::Error.
//
//   groupnorm::Tensor x({16, 32, 64, 64});
//   groupnorm::GroupNormalization gn(/*num_groups=*/8);
//   groupnorm::Tensor y = gn.forward(x);
//   groupnorm::Tensor dx = gn.backward(dy);
//   groupnorm::Tensor z = gn.infer(x);  // where no backward follows: x is not held
#ifndef GROUPNORM_LAYERS_HPP
#define GROUPNORM_LAYERS_HPP

#include <groupnorm/groupnorm.hpp>

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

// Layers hold strings and containers, whose layout the compiler's flags choose. The layout is a
// part of the names here, so that a program does not link with a library that was compiled for
// another. (Microsoft's linker compares layouts by itself.)
#if defined(_LIBCPP_ABI_NAMESPACE)
#define GROUPNORM_STD _LIBCPP_ABI_NAMESPACE
#elif defined(_GLIBCXX_DEBUG) && _GLIBCXX_USE_CXX11_ABI
#define GROUPNORM_STD cxx11_debug
#elif defined(_GLIBCXX_DEBUG)
#define GROUPNORM_STD cxx98_debug
#elif defined(__GLIBCXX__) && !_GLIBCXX_USE_CXX11_ABI
#define GROUPNORM_STD cxx98
#else
#define GROUPNORM_STD cxx11
#endif

namespace groupnorm {
inline namespace GROUPNORM_STD {

// What every refusal of this header throws: its words name the argument, its value and the rule.
// Nothing has been written by then, unless it is the Executor that did not do its part. (Memory
// that cannot be had is std::bad_alloc.)
class GROUPNORM_API Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;
  ~Error() override;  // in the library, and so is the type that a catch looks for
};

// status_string() and the values in `spec` that broke the rule: "eps: must be ...; got eps=-1".
GROUPNORM_API std::string describe(Status status, const Spec& spec);

// The C++ types that elements are reached as: f32, f64, and the bits of f16 and bf16.
template <class T>
concept Element =
    std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, std::uint16_t>;

// A tensor [N, C, spatial...] of any rank from 2, contiguous, its own memory aligned to 64 bytes.
//
// The shape is given in this order whatever the layout. In memory the last index runs fastest:
// channels_first lies as N, C, spatial...; channels_last as N, spatial..., C.
//
// A copy has elements of its own, also the copy of a view; assigning replaces the tensor and does
// not write through a view. A moved-from tensor can only be assigned to or destroyed.
class GROUPNORM_API Tensor {
 public:
  // All elements zero. Throws Error for a rank below 2, a negative size, or 2^63 bytes and more.
  explicit Tensor(std::vector<std::int64_t> shape, DType dtype = DType::f32,
                  Layout layout = Layout::channels_first);

  // Memory that the caller owns and keeps alive, aligned to the size of an element; else Error.
  static Tensor view(void* data, std::vector<std::int64_t> shape, DType dtype,
                     Layout layout = Layout::channels_first);

  Tensor(const Tensor& other);
  Tensor& operator=(const Tensor& other);
  Tensor(Tensor&&) noexcept = default;
  Tensor& operator=(Tensor&&) noexcept = default;
  ~Tensor() = default;

  const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  DType dtype() const noexcept { return dtype_; }
  Layout layout() const noexcept { return layout_; }
  Shape ncs() const noexcept;          // the shape as the engine sees it
  std::int64_t size() const noexcept;  // elements

  void* data() noexcept { return data_.get(); }
  const void* data() const noexcept { return data_.get(); }

  // The elements in memory order. Throws Error where dtype() is not stored as T.
  template <Element T>
  std::span<T> data() {
    check_element(sizeof(T));
    return {static_cast<T*>(data()), static_cast<std::size_t>(size())};
  }
  template <Element T>
  std::span<const T> data() const {
    check_element(sizeof(T));
    return {static_cast<const T*>(data()), static_cast<std::size_t>(size())};
  }

  // Over all elements, in double by corrected two-pass sums. var divides by size(). NaN if empty.
  double mean() const;
  double var() const;

 private:
  friend class Normalization;
  Tensor(std::vector<std::int64_t> shape, DType dtype, Layout layout, std::shared_ptr<void> data);
  void check_element(std::size_t bytes) const;

  std::vector<std::int64_t> shape_;
  DType dtype_;
  Layout layout_;
  std::shared_ptr<void> data_;  // owns nothing in a view
};

// What every layer can be told; read at each forward and infer.
struct Options {
  double eps = 1e-5;
  Activation activation = Activation::none;
  int correction = 0;          // var divides by m - correction: 0, or 1 as torch.var does
  Executor executor = pool();  // pool(1), {} or the caller's own threads
};

// What the layers share. They differ in the Block that they choose.
//
// A layer keeps the Plan of its last call, and the memory of its calls for the next: forward, infer
// and backward allocate nothing but the Tensor that they return once they have been called with a
// tensor as large. A copy of a layer begins with no memory of this kind.
//
// One call at a time on a layer, but for its const functions, infer among them: several threads may
// call them at once, as long as nothing changes the layer meanwhile. Of calls of infer at the same
// time one finds the memory of the last; the others allocate.
//
// Each layer has a virtual function that is defined in the library (`anchor`, where it needs none):
// that is where compilers put its type, so that it has one also where a caller has -fno-rtti.
class GROUPNORM_API Normalization {
 public:
  virtual ~Normalization() = default;

  Options options;

  // gamma and beta, one a channel: 1 and 0 until written; empty in a layer without them. Each call
  // of forward and infer reads them: as f64 for an f64 tensor, rounded to f32 for every other
  // dtype.
  std::span<double> gamma() noexcept { return gamma_; }
  std::span<double> beta() noexcept { return beta_; }
  std::span<const double> gamma() const noexcept { return gamma_; }
  std::span<const double> beta() const noexcept { return beta_; }

  // y of the shape, dtype and layout of x. Throws Error for an x that the layer cannot take.
  Tensor forward(const Tensor& x);
  // Into a y that is there already and has x's shape, dtype and layout; y may be x (in place).
  virtual void forward(const Tensor& x, Tensor& y);

  // The y of forward, bit by bit, where no backward is to follow: holds on to no x and leaves the
  // layer as it is. So mean(), rstd() and backward remain those of the last forward.
  Tensor infer(const Tensor& x) const;
  virtual void infer(const Tensor& x, Tensor& y) const;

  // dx = dL/dx of the last forward, given dy = dL/dy of the same shape, dtype and layout as x; adds
  // dL/dgamma and dL/dbeta to dgamma() and dbeta(). gamma, beta and options count as they were at
  // forward, but for the executor.
  //
  // forward copies no x: it holds on to the memory of x until the next forward, and x must not be
  // changed before backward (nor released, where x is a view). So a forward in place cannot be
  // differentiated. Throws Error after one, before any forward, or for a dy that is not as x. Calls
  // of infer in between change nothing.
  Tensor backward(const Tensor& dy);
  // Into a dx that is there already and has x's shape, dtype and layout; dx may be dy (in place).
  void backward(const Tensor& dy, Tensor& dx);

  // The sums over all backward calls since zero_grad(), one a channel as gamma and beta. Each call
  // adds its own sum in the precision that gamma is used in.
  std::span<double> dgamma() noexcept { return dgamma_; }
  std::span<double> dbeta() noexcept { return dbeta_; }
  std::span<const double> dgamma() const noexcept { return dgamma_; }
  std::span<const double> dbeta() const noexcept { return dbeta_; }
  void zero_grad() noexcept;

  // Of the last forward: one a block, [n / block.examples, c / block.channels].
  std::span<const double> mean() const noexcept { return recorded_.values.mean; }
  std::span<const double> rstd() const noexcept { return recorded_.values.rstd; }

 protected:
  using BlockOf = std::function<Block(const Shape&)>;
  // Statistics that are given instead of computed from x: one a block.
  struct Given {
    std::span<const double> mean, var;
  };

  // Without gamma and beta: any number of channels that the Block can take.
  Normalization(std::string name, BlockOf block_of, bool center = true);
  // With gamma and beta. Throws Error for num_channels < 1, or where the Block does not divide it.
  Normalization(std::string name, BlockOf block_of, std::int64_t num_channels, double eps,
                bool center = true);

  Normalization(const Normalization&) = default;
  Normalization& operator=(const Normalization&) = default;
  Normalization(Normalization&&) = default;
  Normalization& operator=(Normalization&&) = default;

  // forward and infer with statistics computed, or given.
  void normalize(const Tensor& x, Tensor& y, const Given* given = nullptr);
  void normalize_only(const Tensor& x, Tensor& y, const Given* given = nullptr) const;
  [[noreturn]] void refuse(const std::string& why) const;

 private:
  struct Form;    // of a Tensor: shape, dtype, layout
  struct Memory;  // of a call
  class Loan;     // of a Memory

  // What the engine reads and writes beside tensors. Vectors, so that their memory stays.
  struct Values {
    std::vector<std::byte> gamma, beta;  // one a channel, in the dtype of the Plan's parameters
    std::vector<double> mean, rstd;      // one a block
  };

  // The last forward, for backward. Copies share the memory of x.
  struct Recorded {
    std::optional<Plan> plan;
    Values values;
    std::vector<std::int64_t> shape;  // of x
    std::shared_ptr<void> x;
    bool differentiable = false;  // false: none yet, or it was in place
  };

  // Where a call leaves its Memory for the next. A copy of a layer begins with none.
  class GROUPNORM_API Slot {
   public:
    Slot() noexcept = default;
    Slot(const Slot& /*other*/) noexcept {}
    Slot(Slot&& other) noexcept : memory_(other.memory_.exchange(nullptr)) {}
    Slot& operator=(const Slot& /*other*/) noexcept { return *this; }
    Slot& operator=(Slot&& other) noexcept {
      other.memory_ = memory_.exchange(other.memory_);
      return *this;
    }
    ~Slot();

   private:
    friend class Loan;
    std::atomic<Memory*> memory_ = nullptr;  // null also while a call has it
  };

  void check_block(const Shape& shape) const;
  void check_channels(const Tensor& x) const;
  void check_like(const Form& x, const char* name, const Tensor& other) const;
  void check_call(Status status, const Spec& spec, const Form& x) const;
  Spec spec_of(const Tensor& x, bool given_statistics) const;
  void prepare(const Tensor& x, const Tensor& y, const Given* given, Memory* memory) const;
  void run(const Tensor& x, Tensor& y, const Given* given, Memory* memory) const;

  std::string name_;
  BlockOf block_of_;
  bool center_;
  std::vector<double> gamma_, beta_, dgamma_, dbeta_;
  Recorded recorded_;
  mutable Slot slot_;
};

// num_groups groups of channels, each example by itself (Wu & He, arXiv:1803.08494).
class GROUPNORM_API GroupNormalization : public Normalization {
 public:
  explicit GroupNormalization(std::int64_t num_groups);
  GroupNormalization(std::int64_t num_groups, std::int64_t num_channels, double eps = 1e-5);

 private:
  virtual void anchor();
};

// All channels and positions of an example (Ba et al., arXiv:1607.06450).
class GROUPNORM_API LayerNormalization : public Normalization {
 public:
  LayerNormalization();
  explicit LayerNormalization(std::int64_t num_channels, double eps = 1e-5);

 private:
  virtual void anchor();
};

// Each channel of each example (Ulyanov et al., arXiv:1607.08022).
class GROUPNORM_API InstanceNormalization : public Normalization {
 public:
  InstanceNormalization();
  explicit InstanceNormalization(std::int64_t num_channels, double eps = 1e-5);

 private:
  virtual void anchor();
};

// As layer normalization, but not centred: x / sqrt(mean(x^2) + eps) (arXiv:1910.07467).
class GROUPNORM_API RmsNormalization : public Normalization {
 public:
  RmsNormalization();
  explicit RmsNormalization(std::int64_t num_channels, double eps = 1e-5);

 private:
  virtual void anchor();
};

// Each channel over all examples (Ioffe & Szegedy, arXiv:1502.03167).
//
// In training, which it starts in, forward uses the batch's statistics and moves the running ones:
//   running += momentum * (batch - running),   the variance divided by m - 1
// After eval() forward uses the running statistics, which may also be written. backward goes
// through the batch's statistics, but takes the running ones as constants. infer always uses the
// running statistics, in training too, and never moves them.
class GROUPNORM_API BatchNormalization : public Normalization {
 public:
  explicit BatchNormalization(std::int64_t num_channels, double eps = 1e-5, double momentum = 0.1);

  void train() noexcept { training_ = true; }
  void eval() noexcept { training_ = false; }
  bool training() const noexcept { return training_; }

  std::span<double> running_mean() noexcept { return running_mean_; }  // 0 at first
  std::span<double> running_var() noexcept { return running_var_; }    // 1 at first
  std::span<const double> running_mean() const noexcept { return running_mean_; }
  std::span<const double> running_var() const noexcept { return running_var_; }

  using Normalization::forward;
  // Throws Error also in training where a channel has only one element: it has no variance.
  void forward(const Tensor& x, Tensor& y) override;

  using Normalization::infer;
  void infer(const Tensor& x, Tensor& y) const override;

 private:
  Given running_statistics() const noexcept { return {running_mean_, running_var_}; }
  void update(double m);

  double momentum_;
  bool training_ = true;
  std::vector<double> running_mean_, running_var_;
};

struct GroupSuggestion {
  std::int64_t groups;
  std::int64_t channels_per_group;
  const char* reason;
};

// The defaults of arXiv:1803.08494: 32 groups where 32 divides the channels; else the divisor
// nearest to 16 channels a group, the larger of two equally near. Throws Error for channels < 1.
GROUPNORM_API GroupSuggestion suggest_groups(std::int64_t channels);

}  // namespace GROUPNORM_STD
}  // namespace groupnorm

#endif
