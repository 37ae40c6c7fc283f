/* The engine of groupnorm.hpp for C (C11): group normalization and its family, on plain memory.
 *
 * Every tensor is seen as [n examples, c channels, s positions]; a normalization is a gn_block: how
 * many examples and how many channels share one mean and one variance, always over all positions.
 *
 *   xhat = (x - mean) * rstd,   rstd = 1 / sqrt(var + eps),   y = activation(gamma * xhat + beta)
 *
 * Nothing here allocates, throws, prints, aborts or keeps state between calls. A call that answers
 * anything but GN_STATUS_OK has written nothing, unless it is GN_STATUS_EXECUTOR_FAILED, which
 * comes when the work has been given away.
 *
 * A call computes in the standard floating-point environment, whatever is set in the threads that
 * it meets: it rounds to nearest, keeps subnormal numbers and traps nothing. It leaves the
 * environment as it was. A call takes up to 60 KB of stack forward and 80 KB backward, of
 * the thread that makes it and of each that runs a task.
 *
 *   gn_spec spec;
 *   gn_spec_init(&spec);
 *   spec.shape = (gn_shape){16, 32, 64 * 64};
 *   spec.block = gn_group_norm(spec.shape, 8);
 *   gn_plan plan = {0};
 *   gn_status status = gn_plan_make(&spec, NULL, &plan);
 *
 * Compatibility. gn_spec, gn_forward_args and gn_backward_args begin with struct_size: the sizeof
 * that the caller was compiled with, set by the _init functions. Later versions only append fields,
 * for which 0 means what this version does. So a caller built for an older header gets 0 for the
 * fields that it does not know, and a caller built for a newer one is accepted while the fields
 * that this library does not know are 0. Every other struct_size (0 too) is GN_STATUS_STRUCT_SIZE.
 * All other structs stay as they are until gn_abi_version() changes; enumerators keep their values
 * for good.
 */
#ifndef GROUPNORM_GROUPNORM_H
#define GROUPNORM_GROUPNORM_H

#include <groupnorm/api.h>
#include <groupnorm/version.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GROUPNORM_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

/* Enumerations are passed as int32_t, so that any number that C can pass is answered by a status.
 */

typedef int32_t gn_dtype;
enum { GN_DTYPE_F32, GN_DTYPE_F64, GN_DTYPE_F16, GN_DTYPE_BF16 };

/* How [n, c, s] lies in memory: N,C,S or N,S,C; the last runs fastest. */
typedef int32_t gn_layout;
enum { GN_LAYOUT_CHANNELS_FIRST, GN_LAYOUT_CHANNELS_LAST };

/* Applied to gamma * xhat + beta before the one store of y. GELU is the exact form, with erf. */
typedef int32_t gn_activation;
enum {
  GN_ACTIVATION_NONE,
  GN_ACTIVATION_RELU,
  GN_ACTIVATION_SILU,
  GN_ACTIVATION_GELU,
  GN_ACTIVATION_GELU_TANH,
  GN_ACTIVATION_HARD_SWISH
};

/* The name of a value, as "bf16", "channels_last" or "silu"; null for every other number, so that a
 * loop from 0 to null meets all names. */
GROUPNORM_API const char* gn_dtype_name(gn_dtype value);
GROUPNORM_API const char* gn_layout_name(gn_layout value);
GROUPNORM_API const char* gn_activation_name(gn_activation value);

/* Writes the value that has this name to `*value` and returns 1. Returns 0 and writes nothing where
 * none has it, or where a pointer is null. */
GROUPNORM_API int gn_dtype_from_name(const char* name, gn_dtype* value);
GROUPNORM_API int gn_layout_from_name(const char* name, gn_layout* value);
GROUPNORM_API int gn_activation_from_name(const char* name, gn_activation* value);

/* Why a call was refused: the rule, and the one argument that broke it. gn_status_string() says it
 * in words. */
typedef int32_t gn_status;
enum {
  GN_STATUS_OK,
  GN_STATUS_NEGATIVE_SIZE,
  GN_STATUS_SIZE_OVERFLOW,
  GN_STATUS_PARAM_OVERFLOW,
  GN_STATUS_GROUPS_DO_NOT_DIVIDE,
  GN_STATUS_BATCHES_DO_NOT_DIVIDE,
  GN_STATUS_BLOCK_EXAMPLES,
  GN_STATUS_BLOCK_CHANNELS,
  GN_STATUS_UNKNOWN_DATA,
  GN_STATUS_UNKNOWN_PARAM,
  GN_STATUS_UNKNOWN_LAYOUT,
  GN_STATUS_UNKNOWN_ACTIVATION,
  GN_STATUS_PARAM_DTYPE,
  GN_STATUS_PARAM_STRIDE,
  GN_STATUS_CORRECTION,
  GN_STATUS_TOO_FEW_ELEMENTS,
  GN_STATUS_EPS,
  GN_STATUS_UNKNOWN_TARGET,
  GN_STATUS_UNAVAILABLE_TARGET,
  GN_STATUS_NULL_SPEC,
  GN_STATUS_NULL_PLAN,
  GN_STATUS_NULL_ARGS,
  GN_STATUS_NULL_X,
  GN_STATUS_NULL_Y,
  GN_STATUS_NULL_DY,
  GN_STATUS_MISSING_MEAN,
  GN_STATUS_MISSING_RSTD,
  GN_STATUS_MISSING_GIVEN_MEAN,
  GN_STATUS_MISSING_GIVEN_RSTD,
  GN_STATUS_UNEXPECTED_MEAN,
  GN_STATUS_UNEXPECTED_RSTD,
  GN_STATUS_UNEXPECTED_GIVEN_MEAN,
  GN_STATUS_UNEXPECTED_GIVEN_RSTD,
  GN_STATUS_MISALIGNED_X,
  GN_STATUS_MISALIGNED_Y,
  GN_STATUS_MISALIGNED_GAMMA,
  GN_STATUS_MISALIGNED_BETA,
  GN_STATUS_MISALIGNED_MEAN,
  GN_STATUS_MISALIGNED_RSTD,
  GN_STATUS_MISALIGNED_GIVEN_MEAN,
  GN_STATUS_MISALIGNED_GIVEN_RSTD,
  GN_STATUS_MISALIGNED_DY,
  GN_STATUS_MISALIGNED_DX,
  GN_STATUS_MISALIGNED_DGAMMA,
  GN_STATUS_MISALIGNED_DBETA,
  GN_STATUS_OVERLAP_Y,
  GN_STATUS_OVERLAP_MEAN,
  GN_STATUS_OVERLAP_RSTD,
  GN_STATUS_OVERLAP_DX,
  GN_STATUS_OVERLAP_DGAMMA,
  GN_STATUS_OVERLAP_DBETA,
  GN_STATUS_OVERLAP_WORKSPACE,
  GN_STATUS_WORKSPACE_TOO_SMALL,
  GN_STATUS_BACKWARD_WORKSPACE_TOO_SMALL,
  GN_STATUS_EXECUTOR,
  GN_STATUS_NOT_PLANNED,
  GN_STATUS_NOT_BUILT,
  GN_STATUS_EXECUTOR_FAILED, /* of an executor whose run left tasks out or ran them twice */
  GN_STATUS_NULL_MOMENTS,
  GN_STATUS_NULL_SUMS,
  GN_STATUS_MISALIGNED_MOMENTS,
  GN_STATUS_MISALIGNED_SUMS,
  GN_STATUS_OVERLAP_MOMENTS,
  GN_STATUS_OVERLAP_SUMS,
  GN_STATUS_COUNT,
  GN_STATUS_SEQUENCE,
  GN_STATUS_LENGTHS,
  GN_STATUS_UNEXPECTED_SHIFT,
  GN_STATUS_UNEXPECTED_SCALE,
  GN_STATUS_UNEXPECTED_LENGTHS,
  GN_STATUS_NEIGHBOURS,
  GN_STATUS_MISALIGNED_SKIP,
  GN_STATUS_MISALIGNED_SHIFT,
  GN_STATUS_MISALIGNED_RESIDUAL,
  GN_STATUS_MISALIGNED_SCALE,
  GN_STATUS_MISALIGNED_OFFSET,
  GN_STATUS_MISALIGNED_LENGTHS,
  GN_STATUS_MISALIGNED_SUM,
  GN_STATUS_MISALIGNED_DSUM,
  GN_STATUS_MISALIGNED_DRESIDUAL,
  GN_STATUS_MISALIGNED_DSHIFT,
  GN_STATUS_MISALIGNED_DSCALE,
  GN_STATUS_MISALIGNED_DOFFSET,
  GN_STATUS_OVERLAP_SUM,
  GN_STATUS_OVERLAP_DRESIDUAL,
  GN_STATUS_OVERLAP_DSHIFT,
  GN_STATUS_OVERLAP_DSCALE,
  GN_STATUS_OVERLAP_DOFFSET,
  GN_STATUS_STRUCT_SIZE = 1000 /* of this interface only */
};

/* The rule that was broken, in one sentence; never null, also for a number that is no status. */
GROUPNORM_API const char* gn_status_string(gn_status status);

GROUPNORM_API const char* gn_version(void); /* of the library that runs: GROUPNORM_VERSION */
GROUPNORM_API int32_t gn_abi_version(void); /* of the library that runs: GROUPNORM_ABI_VERSION */

typedef struct gn_shape {
  int64_t n; /* examples */
  int64_t c; /* channels */
  int64_t s; /* positions: the product of the spatial sizes; 1 for [N, C] */
} gn_shape;

/* The examples and the channels that share one mean and one variance. */
typedef struct gn_block {
  int64_t examples; /* divides n */
  int64_t channels; /* divides c */
} gn_block;

/* A number of groups or batches that does not divide its size makes a block which gn_plan_make
 * answers with GN_STATUS_GROUPS_DO_NOT_DIVIDE or GN_STATUS_BATCHES_DO_NOT_DIVIDE. */
GROUPNORM_API gn_block gn_group_norm(gn_shape shape, int64_t groups);
GROUPNORM_API gn_block gn_layer_norm(gn_shape shape);
GROUPNORM_API gn_block gn_instance_norm(gn_shape shape);
GROUPNORM_API gn_block gn_batch_norm(gn_shape shape);
GROUPNORM_API gn_block gn_ghost_batch_norm(gn_shape shape, int64_t batches);
GROUPNORM_API gn_block gn_batch_group_norm(gn_shape shape, int64_t groups);

/* The number of groups that arXiv:1803.08494 would take: 32 where that divides the channels, else
 * the one that gives nearest to 16 channels a group. 0 for channels < 1. `reason` may be null; it
 * is otherwise pointed at one sentence. */
GROUPNORM_API int64_t gn_suggest_groups(int64_t channels, const char** reason);

/* What to compute. */
typedef struct gn_spec {
  size_t struct_size;
  gn_shape shape;
  gn_block block;
  gn_layout layout;
  gn_dtype data;  /* of x and y */
  gn_dtype param; /* of gamma and beta: as data, or f32 for f16 and bf16 */
  gn_activation activation;
  int32_t center;           /* 0: RMS normalization, mean taken as 0 */
  int32_t given_statistics; /* not 0: mean and rstd are given (batch norm at inference) */
  int32_t correction;       /* var divides by m - correction: 0 or 1 */
  double eps;
  int64_t param_stride; /* 0: gamma, beta are [c]. Else (>= c) elements from one example's gamma to
                           the next: [n, c] */
  int64_t sequence;     /* examples that share a row of gamma (with param_stride), shift, scale and
                           offset, and one of lengths; 0 stands for 1 */
  int32_t shift;        /* not 0: calls may have a shift, */
  int32_t scale;        /* a scale and an offset, */
  int32_t lengths;      /* lengths */
  int32_t reserved;     /* 0 */
} gn_spec;

/* struct_size; channels_first, f32, no activation, center 1, eps 1e-5. Then set shape and block.
 * (Compiled into the caller: it knows the size of the struct that the caller has.) */
static inline void gn_spec_init(gn_spec* spec) {
  memset(spec, 0, sizeof *spec);
  spec->struct_size = sizeof *spec;
  spec->shape.s = 1;
  spec->block.examples = spec->block.channels = 1;
  spec->center = 1;
  spec->eps = 1e-5;
}

/* The arguments of one forward call. Elements are contiguous in the spec's layout and aligned to
 * their size. y == x is allowed (in place); no other output may overlap anything. */
typedef struct gn_forward_args {
  size_t struct_size;
  const void* x;     /* [n, c, s] */
  void* y;           /* [n, c, s] */
  const void* gamma; /* [c] or [n, c]; null: 1 */
  const void* beta;  /* [c] or [n, c]; null: 0 */
  double* mean;      /* [n / block.examples, c / block.channels]; written where not null */
  double* rstd;
  const double* given_mean; /* the same shape; read where the spec says given_statistics */
  const double* given_rstd;
  /* What models compute around a norm, in the same pass; null: not there:
   *
   *   u = x + skip + shift                                         normalized in the place of x
   *   y = activation((gamma uhat + beta) (1 + scale) + offset + residual)
   *
   * y == skip and y == residual are allowed, as y == x is. */
  const void* skip;       /* [n, c, s], in the dtype of x */
  const void* shift;      /* [n / sequence, c], in the dtype of x */
  const void* residual;   /* [n, c, s], in the dtype of x */
  const void* scale;      /* [n / sequence, c], in the dtype of gamma */
  const void* offset;     /* as scale */
  void* sum;              /* u [n, c, s], rounded once; written where not null */
  const int64_t* lengths; /* [n / sequence], from 0 to s: each example is normalized over its first
                             so many positions alone. Where sequence is not 1: from 0 to sequence,
                             and so many examples of each are normalized. y and sum are 0 behind */
} gn_forward_args;

/* struct_size; all pointers null. */
static inline void gn_forward_args_init(gn_forward_args* args) {
  memset(args, 0, sizeof *args);
  args->struct_size = sizeof *args;
}

/* The arguments of one backward call, which differentiates a forward call of the same spec. With L
 * the loss, dy = dL/dy, and
 *
 *   dz = dy * activation'(z),   z = gamma * xhat + beta, made again from x
 *   dbeta = sum dz,   dgamma = sum dz * xhat          over all that share the parameter
 *   dx = rstd * (gamma * dz - D / m - xhat * E / (m - correction))
 *   D = sum gamma * dz,   E = sum gamma * dz * xhat   over the block
 *
 * Not centred: no D. Statistics given: neither D nor E.
 *
 * Elements lie as in gn_forward_args. dx == dy is allowed (in place); no other output may overlap
 * anything. */
typedef struct gn_backward_args {
  size_t struct_size;
  const void* x;      /* [n, c, s], of forward */
  const void* dy;     /* [n, c, s], in the dtype of x */
  const void* gamma;  /* of forward; null: 1 */
  const void* beta;   /* of forward; null: 0; read only where there is an activation */
  const double* mean; /* what forward wrote, or was given; may be null where center is 0 */
  const double* rstd;
  int32_t accumulate; /* not 0: add to what dgamma and dbeta hold; else overwrite it */
  void* dx;     /* [n, c, s], in the dtype of x; written where not null, as are the next two */
  void* dgamma; /* [c], or [n, c] with the spec's param_stride; in the dtype of gamma */
  void* dbeta;  /* as dgamma */
  /* Of forward, where it had them. dx is the gradient of skip as well. */
  const void* skip;
  const void* shift;
  const void* residual; /* read only where there is an activation, as is offset */
  const void* scale;
  const void* offset;
  const int64_t* lengths;
  const void* dsum; /* dL/dsum [n, c, s], which dx has on top; null: 0 */
  void* dresidual;  /* dz [n, c, s], in the dtype of x; written where not null, as are the next */
  void* dshift;     /* sums of dx, [n / sequence, c], in the dtype of x */
  void* dscale;     /* [n / sequence, c], in the dtype of gamma */
  void* doffset;    /* as dscale */
} gn_backward_args;

/* struct_size; all pointers null; accumulate 0. */
static inline void gn_backward_args_init(gn_backward_args* args) {
  memset(args, 0, sizeof *args);
  args->struct_size = sizeof *args;
}

/* Runs task(arg, i) once for each i in [0, count), in any order, and returns when all are done.
 * `threads` (1 to 1024) says how finely to cut the work; the bits of the result do not depend on
 * it. Without `run` the calling thread does everything.
 *
 * Where `run` returns before each task has been done, runs one twice (the second time does nothing)
 * or makes up an index, or where it is C++ and throws, the call answers GN_STATUS_EXECUTOR_FAILED.
 * What is trusted: that no task is run, and none still running, after `run` has returned, because
 * `arg` is gone by then. */
typedef void (*gn_task)(void* arg, int64_t index);
typedef struct gn_executor {
  void (*run)(void* context, int64_t count, gn_task task, void* arg);
  void* context;
  int threads;
} gn_executor;

/* The built-in pool, shared by the process: groupnorm.hpp says more. threads = 0:
 * GROUPNORM_NUM_THREADS, else as many as the affinity of the process's main thread and the quotas
 * of its control groups allow. */
GROUPNORM_API gn_executor gn_pool(int threads);

/* A checked spec with its schedule, in the caller's memory: begin with {0}, copy it freely, nothing
 * is to be released. Threads may share it. Until gn_plan_make fills it, calls answer
 * GN_STATUS_NOT_PLANNED. */
typedef struct gn_plan {
  uint64_t opaque[64];
} gn_plan;

/* Checks `spec` and writes `*plan`, or says why not and leaves it alone. `target` names the
 * instruction set (one of gn_targets); null: GROUPNORM_TARGET if set, else the best of the machine.
 */
GROUPNORM_API gn_status gn_plan_make(const gn_spec* spec, const char* target, gn_plan* plan);

/* Of a null plan, or one that is not made: 0, 0, 0, 0, "". */
GROUPNORM_API int64_t gn_plan_blocks(const gn_plan* plan);         /* means and rstds */
GROUPNORM_API int64_t gn_plan_block_elements(const gn_plan* plan); /* m */
GROUPNORM_API size_t gn_plan_workspace_bytes(const gn_plan* plan); /* for any number of threads */
GROUPNORM_API size_t gn_plan_backward_workspace_bytes(const gn_plan* plan); /* of gn_backward */
GROUPNORM_API const char* gn_plan_target(const gn_plan* plan);

/* Any number of times, from any thread; concurrent calls need a workspace each, of any alignment.
 * `executor` null: the calling thread. An empty tensor (n, c or s = 0) is ok and writes nothing. */
GROUPNORM_API gn_status gn_forward(const gn_plan* plan, const gn_forward_args* args,
                                   void* workspace, size_t workspace_bytes,
                                   const gn_executor* executor);

/* As gn_forward, with gn_plan_backward_workspace_bytes. An empty tensor gives dgamma and dbeta of
 * 0.
 */
GROUPNORM_API gn_status gn_backward(const gn_plan* plan, const gn_backward_args* args,
                                    void* workspace, size_t workspace_bytes,
                                    const gn_executor* executor);

/* ---- Blocks in pieces: of a tensor that is cut into several, on one machine or on many
 *
 * Each piece has a plan of its own, whose shape is that of the piece, cut between examples,
 * channels or positions; given_statistics lets a piece be of one element. Per piece:
 *
 *   gn_reduce -> moments        gn_merge those of all pieces of a block, in one order everywhere
 *   gn_finish -> mean, rstd     then gn_forward with given_mean and given_rstd
 *   gn_reduce_gradient -> sums  add up those of all pieces of a block; and dgamma, dbeta
 *   gn_apply_gradient -> dx     with the elements of the whole block
 */

/* What a piece of a block is for the whole: of `count` numbers, their mean and m2 = sum (x -
 * mean)^2. 24 bytes without padding: to be stored or sent as they are, between machines of one byte
 * order. Of nothing: zeros. Of numbers of which one is NaN or infinite, or whose squares' sum
 * double does not hold, mean, m2 or both are not finite; merged with any others they still say so.
 */
typedef struct gn_moments {
  double count;
  double mean;
  double m2;
} gn_moments;

/* What a piece of a block is for the gradient of the whole: rstd D and E (see gn_backward_args), of
 * the piece. 16 bytes. Those of several pieces are added up: d + d, e + e. */
typedef struct gn_block_sums {
  double d;
  double e;
} gn_block_sums;

/* total[i] becomes the moments of what total[i] and more[i] are of, for i < blocks. Neither may be
 * null. The result depends on the order in the last bits: where several processes need the same
 * bits, each merges in the same order. */
GROUPNORM_API void gn_merge(const gn_moments* more, int64_t blocks, gn_moments* total);

/* Moments of the blocks of x [n, c, s]: [n / block.examples, c / block.channels]. Those of an empty
 * tensor are zeros. Needs gn_plan_workspace_bytes. */
GROUPNORM_API gn_status gn_reduce(const gn_plan* plan, const void* x, gn_moments* moments,
                                  void* workspace, size_t workspace_bytes,
                                  const gn_executor* executor);

/* mean and rstd [blocks] of whole blocks, by the spec's correction, eps and center; of any number
 * of blocks, also where this plan's own piece is empty. Either may be null. NaN where count is not
 * above correction. */
GROUPNORM_API gn_status gn_finish(const gn_plan* plan, const gn_moments* moments, int64_t blocks,
                                  double* mean, double* rstd);

/* Of this piece: sums [blocks], and dgamma and dbeta where they are not null, as in gn_backward,
 * which is to be done with all that share them. Takes the mean and rstd of the whole; dx is not
 * looked at. Needs gn_plan_backward_workspace_bytes. */
GROUPNORM_API gn_status gn_reduce_gradient(const gn_plan* plan, const gn_backward_args* args,
                                           gn_block_sums* sums, void* workspace,
                                           size_t workspace_bytes, const gn_executor* executor);

/* dx of this piece, from the sums [blocks] of whole blocks, of `count` elements each: at least
 * those of the piece, and more than the spec's correction. dgamma and dbeta are not looked at. */
GROUPNORM_API gn_status gn_apply_gradient(const gn_plan* plan, const gn_backward_args* args,
                                          const gn_block_sums* sums, double count,
                                          const gn_executor* executor);

/* The instruction sets of this build and machine, best first; `count` (may be null) says how many.
 */
GROUPNORM_API const char* const* gn_targets(size_t* count);

/* What a plan made now would run; null where GROUPNORM_TARGET names no available target. */
GROUPNORM_API const char* gn_active_target(void);

#ifdef __cplusplus
}
#endif

#endif
