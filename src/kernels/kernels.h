// Every SIMD kernel's contract. A kernel sees runs, rows and lanes of numbers; it never hears of
// groups, batches or layouts. Elements are of the table's storage dtype; arithmetic and
// coefficients are in its compute type: float, or double for f64.
#ifndef GROUPNORM_SRC_KERNELS_KERNELS_H
#define GROUPNORM_SRC_KERNELS_KERNELS_H

#include "fold.h"

#include <groupnorm/groupnorm.hpp>

#include <cstdint>
#include <span>

namespace groupnorm::detail {

// The most lanes that reduce_columns takes and that coefficients are made for at once: their
// accumulators (28 bytes a lane, 40 for f64) and coefficients (12 to 24) stay in L1.
inline constexpr std::int64_t kMaxLanes = 512;

// What is stored by streaming can be seen by another thread after Kernels::flush.
enum class Store : bool { cached, streaming };

// gamma and beta, of the storage dtype, or float where `wide`. Null stands for 1 and 0.
struct Parameters {
  const void* gamma;
  const void* beta;
  bool wide;
};

struct GradientKernels {
  // x, dy [rows, length], contiguous, rows * length >= lanes -> sums [rows]. params [rows] are
  // read where there is an activation.
  struct ReduceRows {
    const void* x;
    const void* dy;
    std::int64_t rows, length;
    Parameters params;
    const Statistics& statistics;
    Activation activation;
    GradientSums* sums;
  };
  void (*reduce_rows)(const ReduceRows&);

  // x, dy [rows, width], rows `stride` elements apart, lanes <= width <= kMaxLanes -> sums [width],
  // one a column. mean, a, b [width].
  struct ReduceLanes {
    const void* x;
    const void* dy;
    std::int64_t rows, stride, width;
    const void* mean;
    const void* a;
    const void* b;
    Activation activation;
    GradientSums* sums;
  };
  void (*reduce_lanes)(const ReduceLanes&);

  // dx = gamma rstd dz + (slope (x - mean) + shift), shapes as in reduce_rows. dx == dy is allowed
  // with Store::cached.
  struct ApplyRows {
    const void* x;
    const void* dy;
    void* dx;
    std::int64_t rows, length;
    Parameters params;
    const Statistics& statistics;
    const GradientTerms& terms;
    Activation activation;
    Store store;
  };
  void (*apply_rows)(const ApplyRows&);

  // reduce_rows, gradient_terms and apply_rows in one, with their bits, for x, dy, dx [blocks,
  // channels, length]; params [blocks, channels]; mean (null: 0) and rstd [blocks] -> also sums
  // [blocks, channels]. Returns how many blocks it has done, from the first on. The next one's dx
  // is untouched: it is extreme, or its sums are not sound.
  struct DifferentiateBlocks {
    const void* x;
    const void* dy;
    void* dx;
    std::int64_t blocks, channels, length;
    Parameters params;
    const double* mean;
    const double* rstd;
    GradientRule rule;
    Activation activation;
    Store store;
    GradientSums* sums;
  };
  std::int64_t (*differentiate_blocks)(const DifferentiateBlocks&);

  // dx = a dz + (slope (x - mean) + shift) down the lanes, shapes as in reduce_lanes; shift, slope
  // [width].
  struct ApplyLanes {
    const void* x;
    const void* dy;
    void* dx;
    std::int64_t rows, stride, width;
    const void* mean;
    const void* a;
    const void* b;
    const void* shift;
    const void* slope;
    Activation activation;
    Store store;
  };
  void (*apply_lanes)(const ApplyLanes&);

  // Runs whose elements have their own gamma and beta each (blocks of length 1), or parts of
  // them: x, dy [runs, width], runs `stride` elements apart, lanes <= width <= kMaxLanes; params
  // [width]; statistics [runs], `step` apart. Writes column_sums [width], of dz and dz * xhat
  // down the columns, and adds to run_sums [runs], `step` apart, those of a dz in the place of dz:
  // a = gamma times rstd as the compute type holds it.
  struct ReduceRuns {
    const void* x;
    const void* dy;
    Parameters params;
    std::int64_t runs, stride, width;
    const Statistics* statistics;
    std::int64_t step;
    Activation activation;
    GradientSums* column_sums;
    GradientSums* run_sums;
  };
  void (*reduce_runs)(const ReduceRuns&);

  // dx = gamma rstd dz + (slope (x - mean) + shift), terms [runs]. dx == dy is allowed with
  // Store::cached.
  struct ApplyRuns {
    const void* x;
    const void* dy;
    void* dx;
    Parameters params;
    std::int64_t runs, count;
    const Statistics* statistics;
    const GradientTerms* terms;
    Activation activation;
    Store store;
  };
  void (*apply_runs)(const ApplyRuns&);
};

struct Kernels {
  const char* target;  // the name in targets()
  std::int64_t lanes;  // of a vector in the compute type

  // x [runs, count], contiguous, count >= lanes -> moments [runs], one a run. m2 is NaN where the
  // sums overflowed, met a NaN or an infinity, or where the deviations were taken from a poor pilot
  // (see reduce-inl.h).
  struct Runs {
    const void* x;
    std::int64_t runs, count;
    Moments* moments;
  };
  void (*reduce_runs)(const Runs&);

  // x [rows, width], rows `stride` elements apart, lanes <= width <= kMaxLanes -> mean [width] and
  // m2 [width] of each column; m2 as above, column by column.
  void (*reduce_columns)(const void* x, std::int64_t rows, std::int64_t stride, std::int64_t width,
                         double* mean, double* m2);

  // moments [blocks], all of one count -> statistics [blocks], in double:
  //   rstd = 1 / sqrt(m2 / (count - correction) + eps), and 0 where that root is 0.
  // Not centred, squares are counted from 0 and the mean is 0.
  struct Finish {
    const Moments* moments;
    std::int64_t blocks;
    int correction;
    double eps;
    bool center;
    Statistics* statistics;
  };
  void (*finish)(const Finish&);

  // mean as the compute type holds it, a = rstd * gamma and b = beta - (the rest of mean) * a, for
  // statistics [blocks] of `channels` lanes each. mean, a, b [blocks, channels] have room for a
  // vector behind their end; params [blocks, channels]. Each element's bits depend on its own
  // inputs alone.
  struct Coefficients {
    Parameters params;
    std::int64_t readable;  // of params: at least blocks * channels
    const Statistics* statistics;
    std::int64_t blocks, channels;
    void* mean;
    void* a;
    void* b;
  };
  void (*coefficients)(const Coefficients&);

  // y = activation(gamma (x - mean) rstd + beta) for x, y [blocks, channels, length], contiguous,
  // channels * length >= lanes, params [blocks, channels] and statistics [blocks], none extreme. y
  // == x is allowed with Store::cached. Where next.x is not null, also reduces those runs (at most
  // one), with the bits of reduce_runs: its reads hide behind the writes of y. It must not overlap
  // y.
  struct ApplyBlocks {
    const void* x;
    void* y;
    std::int64_t blocks, channels, length;
    Parameters params;
    const Statistics* statistics;
    Activation activation;
    Store store;
    Runs next;
  };
  void (*apply_blocks)(const ApplyBlocks&);

  // reduce_runs, finish and apply_blocks in one, with their bits: x, y and params as in
  // apply_blocks, mean and rstd [blocks], each of them may be null. Returns how many blocks it has
  // done, from the first on. The next is untouched: its m2 is NaN or below least_m2, or its
  // statistics are extreme.
  struct NormalizeBlocks {
    const void* x;
    void* y;
    std::int64_t blocks, channels, length;
    Parameters params;
    int correction;
    double eps;
    bool center;
    double least_m2;
    Activation activation;
    Store store;
    double* mean;
    double* rstd;
  };
  std::int64_t (*normalize_blocks)(const NormalizeBlocks&);

  // y = activation(a[l] * (x - mean[l]) + b[l]) for x, y [rows, width], rows `stride` elements
  // apart, width >= lanes. y == x is allowed with Store::cached.
  struct ApplyLanes {
    const void* x;
    void* y;
    std::int64_t rows, stride, width;
    const void* mean;
    const void* a;
    const void* b;
    Activation activation;
    Store store;
  };
  void (*apply_lanes)(const ApplyLanes&);

  // Once behind the last streaming store of a thread: each takes until memory has all of them.
  void (*flush)();

  const GradientKernels* gradients;
};

// One compiled instruction set: a table for each dtype, in the order of the enum.
struct Target {
  const char* name;
  std::int64_t highway;  // its HWY_TARGET bit
  const Kernels* tables;
};

// All that are compiled in, best first (kernels.cpp).
std::span<const Target> compiled_targets() noexcept;

// The table of `target` (null: GROUPNORM_TARGET, or the best of this machine) for `dtype`; says why
// not where there is none (dispatch.cpp).
Status find_kernels(const char* target, DType dtype, const Kernels** kernels) noexcept;

}  // namespace groupnorm::detail

#endif
