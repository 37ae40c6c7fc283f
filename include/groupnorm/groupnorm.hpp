// The engine: group normalization and its family, on plain memory.
//
// Every tensor is seen as [n examples, c channels, s positions]. A normalization is a Block: how
// many examples and how many channels share one mean and one variance, always over all positions.
//
//   xhat = (x - mean) * rstd,   rstd = 1 / sqrt(var + eps),   y = activation(gamma * xhat + beta)
//
// (Wu & He, "Group Normalization", 2018, eq. 1-7; var divides by m, the elements of a block, or by
// m - 1.)
//
// Nothing here throws, prints, aborts or allocates. A call that is refused has written nothing;
// executor_failed alone is no refusal, for it comes when the work has been given away.
//
// A call computes in the standard floating-point environment, whatever is set in the threads that
// it meets: it rounds to nearest, keeps subnormal numbers and traps nothing. It leaves the
// environment as it was. (Modes of the x87 are not looked at: nothing here uses it.)
//
// A call takes up to 60 KB of stack forward and 80 KB backward, of the thread that makes it
// and of each that runs a task. Threads with smaller stacks than that and what their own code needs
// must not call it: it would overrun them, into a guard page if there is one.
#ifndef GROUPNORM_GROUPNORM_HPP
#define GROUPNORM_GROUPNORM_HPP

#include <groupnorm/api.h>
#include <groupnorm/version.h>
#include <groupnorm/enums.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace groupnorm {

// Why a call was refused: the rule, and the one argument that broke it. status_string() says it in
// words.
enum class Status : std::uint8_t {
  ok,
  negative_size,
  size_overflow,
  param_overflow,
  groups_do_not_divide,
  batches_do_not_divide,
  block_examples,
  block_channels,
  unknown_data,
  unknown_param,
  unknown_layout,
  unknown_activation,
  param_dtype,
  param_stride,
  correction,
  too_few_elements,
  eps,
  unknown_target,
  unavailable_target,
  null_spec,
  null_plan,
  null_args,
  null_x,
  null_y,
  null_dy,
  missing_mean,
  missing_rstd,
  missing_given_mean,
  missing_given_rstd,
  unexpected_mean,
  unexpected_rstd,
  unexpected_given_mean,
  unexpected_given_rstd,
  misaligned_x,
  misaligned_y,
  misaligned_gamma,
  misaligned_beta,
  misaligned_mean,
  misaligned_rstd,
  misaligned_given_mean,
  misaligned_given_rstd,
  misaligned_dy,
  misaligned_dx,
  misaligned_dgamma,
  misaligned_dbeta,
  overlap_y,
  overlap_mean,
  overlap_rstd,
  overlap_dx,
  overlap_dgamma,
  overlap_dbeta,
  overlap_workspace,
  workspace_too_small,
  backward_workspace_too_small,
  executor,
  not_planned,
  not_built,        // by the edge build alone
  executor_failed,  // run left tasks out, ran them twice, or threw: outputs hold nothing of use
  null_moments,
  null_sums,
  misaligned_moments,
  misaligned_sums,
  overlap_moments,
  overlap_sums,
  count,
  sequence,
  lengths,
  unexpected_shift,
  unexpected_scale,
  unexpected_lengths,
  neighbours,
  misaligned_skip,
  misaligned_shift,
  misaligned_residual,
  misaligned_scale,
  misaligned_offset,
  misaligned_lengths,
  misaligned_sum,
  misaligned_dsum,
  misaligned_dresidual,
  misaligned_dshift,
  misaligned_dscale,
  misaligned_doffset,
  overlap_sum,
  overlap_dresidual,
  overlap_dshift,
  overlap_dscale,
  overlap_doffset,
};

// The rule that was broken, in one sentence; never null.
GROUPNORM_API const char* status_string(Status status) noexcept;

struct Shape {
  std::int64_t n = 0;  // examples
  std::int64_t c = 0;  // channels
  std::int64_t s = 1;  // positions: the product of the spatial sizes; 1 for [N, C]
  bool operator==(const Shape&) const = default;
};

// The whole difference between the norms of the family: the examples and the channels that share
// one mean and one variance. `examples` divides n, `channels` divides c.
struct Block {
  std::int64_t examples = 1;
  std::int64_t channels = 1;
  bool operator==(const Block&) const = default;
};

// Stands in Block::channels (or examples) where the asked number of groups does not divide the
// size. Plan::make then answers groups_do_not_divide (or batches_do_not_divide).
inline constexpr std::int64_t kDoesNotDivide = -1;

namespace detail {
constexpr std::int64_t divide(std::int64_t size, std::int64_t parts) {
  return parts > 0 && size % parts == 0 ? size / parts : kDoesNotDivide;
}
}  // namespace detail

// `groups` groups of c / groups channels, each example by itself (arXiv:1803.08494).
constexpr Block group_norm(Shape shape, std::int64_t groups) {
  return {1, detail::divide(shape.c, groups)};
}
// All channels and positions of an example (arXiv:1607.06450).
constexpr Block layer_norm(Shape shape) { return {1, shape.c}; }
// Each channel of each example (arXiv:1607.08022).
constexpr Block instance_norm(Shape) { return {1, 1}; }
// Each channel over all examples (arXiv:1502.03167).
constexpr Block batch_norm(Shape shape) { return {shape.n, 1}; }
// Batch normalization of `batches` virtual batches of n / batches examples (arXiv:1705.08741).
constexpr Block ghost_batch_norm(Shape shape, std::int64_t batches) {
  return {detail::divide(shape.n, batches), 1};
}
// Groups of channels over all examples ("groups of examples"; arXiv:2012.02782).
constexpr Block batch_group_norm(Shape shape, std::int64_t groups) {
  return {shape.n, detail::divide(shape.c, groups)};
}

// What to compute: a value, to copy, compare or put in a table.
struct Spec {
  Shape shape;
  Block block;
  Layout layout = Layout::channels_first;
  DType data = DType::f32;   // of x and y
  DType param = DType::f32;  // of gamma and beta: as data, or f32 for f16 and bf16 (f64 for f64)
  Activation activation = Activation::none;
  bool center = true;             // false: RMS normalization, mean taken as 0 (arXiv:1910.07467)
  bool given_statistics = false;  // true: mean and rstd are given (batch norm at inference)
  int correction = 0;             // var divides by m - correction: 0, or 1 as torch.var does
  double eps = 1e-5;
  std::int64_t param_stride = 0;  // 0: gamma, beta are [c]. Else (>= c) the elements from one
                                  // example's gamma to the next: [n, c], adaptive normalization

  // The neighbours of a norm (see Forward). Those that cost workspace are said here.
  std::int64_t sequence = 1;  // examples (layer norm: rows) that share a row of gamma (with
                              // param_stride), shift, scale and offset, and one of lengths
  bool shift = false;         // calls may have a shift,
  bool scale = false;         // a scale and an offset,
  bool lengths = false;       // lengths
  bool operator==(const Spec&) const = default;
};

// Runs task(arg, i) once for each i in [0, count), in any order, and returns when all are done.
// `threads` says how finely the engine cuts its work (the bits of the result do not depend on it).
// Without `run` the calling thread does everything, and `threads` is 1.
//
// The engine counts its tasks: where `run` returns before each of them has been done, runs one
// twice (the second time does nothing), makes up an index or throws, the call answers
// executor_failed. What it must trust: that no task is run, and none still running, after `run` has
// returned or thrown, because `arg` is gone by then. A task never throws; it takes as much stack as
// a call.
struct Executor {
  using Task = void (*)(void* arg, std::int64_t index);
  void (*run)(void* context, std::int64_t count, Task task, void* arg) = nullptr;
  void* context = nullptr;
  int threads = 1;
};

// The built-in pool, shared by the process; its threads start at first use and sleep between calls.
// threads = 0: GROUPNORM_NUM_THREADS if that is set to a whole number from 1 to 1024, else one per
// core this process may run on: as many as its main thread's affinity has, and its control groups'
// quota of processor time (Linux, cgroup v1 and v2) allows, rounded up. Both are asked once.
//
// A call that finds the pool busy runs on its own thread: another thread's call, or one from within
// a task. So do calls after static destructors have ended the pool. A forked child starts threads
// of its own, also where the parent forks in the middle of another thread's call.
//
// The threads take no signal but for faults of their own, and whatever thread made the first call,
// they have the cores, the scheduling policy and the priority of the process's main thread (Linux).
// exit() within a task or a signal handler leaves them be; unloading the library ends them.
GROUPNORM_API Executor pool(int threads = 0) noexcept;

// The arguments of one forward call. Elements are contiguous in the Spec's layout and aligned to
// their size. y == x is allowed (in place); no other output may overlap anything.
struct Forward {
  const void* x = nullptr;      // [n, c, s]
  void* y = nullptr;            // [n, c, s]
  const void* gamma = nullptr;  // [c] or [n, c]; null: 1
  const void* beta = nullptr;   // [c] or [n, c]; null: 0
  // One double a block, [n / block.examples, c / block.channels]. Written on request: either may be
  // null. mean is 0 where the Spec does not center; rstd is 0 where var + eps is 0.
  double* mean = nullptr;
  double* rstd = nullptr;
  // Read instead where the Spec says given_statistics; both are needed then, unless it does not
  // center (mean is not read). mean and rstd above stay null.
  const double* given_mean = nullptr;
  const double* given_rstd = nullptr;

  // What models compute around a norm, in the same pass:
  //
  //   u = x + skip + shift                                         normalized in the place of x
  //   y = activation((gamma uhat + beta) (1 + scale) + offset + residual)
  //
  // u is formed in the compute type: f32, or f64 for f64. Each may be null: not there. y == skip
  // and y == residual are allowed, as y == x is.
  const void* skip = nullptr;      // [n, c, s], in the dtype of x
  const void* shift = nullptr;     // [n / sequence, c], in the dtype of x
  const void* residual = nullptr;  // [n, c, s], in the dtype of x
  const void* scale = nullptr;     // [n / sequence, c], in the dtype of gamma
  const void* offset = nullptr;    // as scale
  void* sum = nullptr;             // u [n, c, s], rounded once; written on request
  // [n / sequence], from 0 to s: each example is normalized over its first so many positions alone.
  // Where sequence is not 1: from 0 to sequence, and so many examples of each are normalized.
  // Behind them nothing is read, and y and sum are 0.
  const std::int64_t* lengths = nullptr;
};

// The arguments of one backward call, which differentiates a forward call of the same Spec. With L
// the loss, dy = dL/dy, and
//
//   dz = dy * activation'(z),   z = gamma * xhat + beta, made again from x
//   dbeta = sum dz,   dgamma = sum dz * xhat          over all that share the parameter
//   dx = rstd * (gamma * dz - D / m - xhat * E / (m - correction))
//   D = sum gamma * dz,   E = sum gamma * dz * xhat   over the block
//
// Not centred: no D. Statistics given: neither D nor E. (docs/mathematics.md derives it.)
//
// Elements lie as in Forward. dx == dy is allowed (in place); no other output may overlap anything.
struct Backward {
  const void* x = nullptr;      // [n, c, s], of forward
  const void* dy = nullptr;     // [n, c, s], in the dtype of x
  const void* gamma = nullptr;  // of forward; null: 1
  const void* beta = nullptr;   // of forward; null: 0; read only where there is an activation
  // What forward wrote, or was given: one double a block. mean may be null where the Spec does not
  // center.
  const double* mean = nullptr;
  const double* rstd = nullptr;
  // Written on request: each may be null.
  void* dx = nullptr;       // [n, c, s], in the dtype of x
  void* dgamma = nullptr;   // [c], or [n, c] with the Spec's param_stride; in the dtype of gamma
  void* dbeta = nullptr;    // as dgamma
  bool accumulate = false;  // add to what dgamma and dbeta hold; else overwrite it

  // Of forward, where it had them. dx is the gradient of skip as well; behind `lengths` it is 0.
  const void* skip = nullptr;
  const void* shift = nullptr;
  const void* residual = nullptr;  // read only where there is an activation
  const void* scale = nullptr;
  const void* offset = nullptr;  // read only where there is an activation
  const std::int64_t* lengths = nullptr;
  const void* dsum = nullptr;  // dL/dsum [n, c, s], which dx has on top; null: 0
  // Written on request, as dx.
  void* dresidual = nullptr;  // dz [n, c, s], in the dtype of x
  void* dshift = nullptr;     // sums of dx, [n / sequence, c], in the dtype of x
  void* dscale = nullptr;     // [n / sequence, c], in the dtype of gamma
  void* doffset = nullptr;    // as dscale
};

// What a piece of a block is for the whole: of `count` numbers, their mean and m2 = sum (x -
// mean)^2. 24 bytes without padding: to be stored or sent as they are, between machines of one byte
// order. Of nothing: zeros. Of numbers of which one is NaN or infinite, or whose squares' sum
// double does not hold, mean, m2 or both are not finite; merged with any others they still say so.
struct Moments {
  double count;
  double mean;
  double m2;
};

// total[i] becomes the moments of what total[i] and more[i] are of, for i < blocks (Chan, Golub &
// LeVeque, 1983, eq. 2.1). The result depends on the order in the last bits: where several
// processes need the same bits, each merges in the same order.
GROUPNORM_API void merge(const Moments* more, std::int64_t blocks, Moments* total) noexcept;

// What a piece of a block is for the gradient of the whole: rstd D and E (see Backward), of the
// piece. 16 bytes. Those of several pieces are added up: d + d, e + e.
struct BlockSums {
  double d;
  double e;
};

namespace detail {
struct Target;

// How a Plan walks its tensor: src/plan.h explains it.
struct Schedule {
  std::int64_t units = 0;
  std::int64_t blocks_per_unit = 1;
  std::int64_t chunks = 1;
  std::int64_t chunk = 1;
  std::int64_t runs_per_chunk = 1;
  std::int64_t tile = 1;
  std::int64_t merged = 1;
  bool columns = false;
  bool by_runs = false;
  bool streaming = false;
};
}  // namespace detail

// A checked Spec with its schedule: immutable, cheap to copy, shared between threads.
class GROUPNORM_API Plan {
 public:
  Plan() noexcept = default;  // holds nothing: every call answers not_planned

  // Checks `spec` and writes `*plan`, or says why not and leaves it alone. `target` names the
  // instruction set (one of targets()); null: GROUPNORM_TARGET if set, else the best of the
  // machine.
  static Status make(const Spec& spec, Plan* plan, const char* target = nullptr) noexcept;

  const Spec& spec() const noexcept { return spec_; }
  std::int64_t blocks() const noexcept;          // how many means and rstds there are
  std::int64_t block_elements() const noexcept;  // m
  const char* target() const noexcept;           // the instruction set that runs
  // Of forward and reduce, of any alignment, and for any number of threads. (forward with given
  // statistics needs none.)
  std::size_t workspace_bytes() const noexcept;

  // Any number of times, from any thread; concurrent calls need a workspace each.
  // An empty tensor (n, c or s = 0) is ok and writes nothing.
  Status forward(const Forward& args, std::span<std::byte> workspace,
                 const Executor& executor = {}) const noexcept;

  // As forward, with backward_workspace_bytes(). An empty tensor gives dgamma and dbeta of 0.
  Status backward(const Backward& args, std::span<std::byte> workspace,
                  const Executor& executor = {}) const noexcept;
  std::size_t backward_workspace_bytes() const noexcept;

  // ---- Blocks in pieces: of a tensor that is cut into several, on one machine or on many
  //
  // Each piece has a Plan of its own, whose shape is that of the piece, cut between examples,
  // channels or positions; given_statistics lets a piece be of one element. Per piece:
  //
  //   reduce -> moments        merge those of all pieces of a block, in one order everywhere
  //   finish -> mean, rstd     then forward with given_mean and given_rstd
  //   reduce_gradient -> sums  add up those of all pieces of a block; and dgamma, dbeta
  //   apply_gradient -> dx     with the elements of the whole block
  //
  // On a tensor that is one piece, they give the bits of forward and backward, which do the same in
  // one; or results as near (16-bit data with gelu, blocks whose numbers f32 cannot hold).

  // Moments of the blocks of x [n, c, s], one each: moments [n / block.examples, c /
  // block.channels]. Those of an empty tensor are zeros. Needs workspace_bytes().
  Status reduce(const void* x, Moments* moments, std::span<std::byte> workspace,
                const Executor& executor = {}) const noexcept;

  // mean and rstd [blocks] of whole blocks, by the Spec's correction, eps and center; of any number
  // of blocks, also where this Plan's own piece is empty. Either may be null. NaN where count is
  // not above correction.
  Status finish(const Moments* moments, std::int64_t blocks, double* mean,
                double* rstd) const noexcept;

  // Of this piece: sums [blocks], and dgamma and dbeta where they are not null, as in backward,
  // which is to be done with all that share them. Takes the mean and rstd of the whole; dx is not
  // looked at. Needs backward_workspace_bytes().
  Status reduce_gradient(const Backward& args, BlockSums* sums, std::span<std::byte> workspace,
                         const Executor& executor = {}) const noexcept;

  // dx of this piece, from the sums [blocks] of whole blocks, of `count` elements each: at least
  // those of the piece, and more than the Spec's correction. dgamma and dbeta are not looked at.
  Status apply_gradient(const Backward& args, const BlockSums* sums, double count,
                        const Executor& executor = {}) const noexcept;

 private:
  Spec spec_;
  detail::Schedule schedule_;
  const detail::Target* target_ = nullptr;
};

// The instruction sets compiled in that this machine has, best first; the last is what the compiler
// may use anyway: "scalar" on x86, "neon" on 64-bit Arm.
GROUPNORM_API std::span<const char* const> targets() noexcept;

// What a Plan made now would run: GROUPNORM_TARGET, read once, or targets()[0].
// Null where GROUPNORM_TARGET names no available target, or targets() is empty: this machine has
// none.
GROUPNORM_API const char* active_target() noexcept;

}  // namespace groupnorm

#endif
