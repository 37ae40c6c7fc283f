// Every SIMD kernel's contract. A kernel sees runs, rows and lanes of numbers; it never hears of
// norms or layouts. Elements are of the table's storage dtype; arithmetic and
// coefficients are in its compute type: float, or double for f64.
//
// What a kernel reads or writes holds a vector at least, each row of lanes as well; or it lies in a
// tile, which has room for a vector on either side.
#ifndef GROUPNORM_SRC_KERNELS_KERNELS_H
#define GROUPNORM_SRC_KERNELS_KERNELS_H

#include "fold.h"
#include "kernels/row_parts.h"

#include <groupnorm/groupnorm.hpp>

#include <cstdint>
#include <span>

namespace groupnorm::detail {

// Whether this is the edge build: data and parameters are of f32 alone, and size counts for more
// than speed.
#ifdef GROUPNORM_EDGE
inline constexpr bool kEdge = true;
#else
inline constexpr bool kEdge = false;
#endif

// The activations that the kernels make as they write y, and as they read dy. The others go in
// tiles (tiles.h).
constexpr bool is_fused(Activation activation) {
  const bool swish = activation == Activation::silu || activation == Activation::hard_swish;
  return activation == Activation::none || activation == Activation::relu || (swish && !kEdge);
}

// What is stored by streaming can be seen by another thread after Kernels::flush.
enum class Store : bool { cached, streaming };

// gamma and beta, of any dtype that the compute type holds. Null stands for 1 and 0.
struct Parameters {
  const void* gamma;
  const void* beta;
  DType dtype;
};

// What is added or written on the way; each may be null: u = x + skip + shift takes the place of x,
// and is written to `sum`; activation(z + residual) that of activation(z). Tensors lie as x and y
// do; shift has a number for each row, or for each lane.
struct Join {
  const void* skip;
  const void* shift;
  const void* residual;
  void* sum;
};

// The same of the backward pass: dz is that of z + residual, and the kernels that sum dz write it
// to dresidual.
struct GradientJoin {
  const void* skip;
  const void* shift;
  const void* residual;
  const void* dsum;
  void* dresidual;
};

// Of a row of lanes, in the compute type.
struct LaneCoefficients {
  const void* mean;
  const void* a;
  const void* b;
};

// The backward pass, of dz = dy * activation'(z). The activation has a fused derivative. With
// `join` (null: nothing), rows are long (kShortRow), and terms are given.
struct GradientKernels {
  // x, dy [rows, length], contiguous -> sums [rows]; params [rows].
  struct SumRows {
    const void* x;
    const void* dy;
    std::int64_t rows, length;
    Parameters params;
    double mean, rstd;
    Activation activation;
    GradientSums* sums;
    const GradientJoin* join = nullptr;
  };
  void (*sum_rows)(const SumRows&);

  // x, dy [rows, width], rows `stride` and `dy_stride` elements apart, width <= kMaxLanes -> sums
  // [width], one a column.
  struct SumColumns {
    const void* x;
    const void* dy;
    std::int64_t rows, stride, dy_stride, width;
    LaneCoefficients coefficients;
    Activation activation;
    GradientSums* sums;
    const GradientJoin* join = nullptr;
  };
  void (*sum_columns)(const SumColumns&);

  // Runs whose elements have their own gamma and beta each (blocks of length 1), or parts of them:
  // x, dy [runs, width], runs `stride` and `dy_stride` elements apart, width <= kMaxLanes; params
  // [width]; statistics [runs], `step` apart. Writes column_sums [width], of dz and dz * xhat down
  // the columns, and adds to run_sums [runs] those of a dz in the place of dz: a = gamma times rstd
  // as the compute type holds it.
  struct SumRuns {
    const void* x;
    const void* dy;
    Parameters params;
    std::int64_t runs, stride, dy_stride, width;
    const Statistics* statistics;
    std::int64_t step;
    Activation activation;
    GradientSums* column_sums;
    GradientSums* run_sums;
    const GradientJoin* join = nullptr;
  };
  void (*sum_runs)(const SumRuns&);

  // dx = gamma rstd dz + (slope (x - mean) + intercept) for x, dy, dx [blocks, channels, length];
  // params [blocks, channels]; mean (null: 0), rstd and terms [blocks]. dx == dy is allowed with
  // Store::cached. Where terms is null, they are made of sum_rows, with its bits, and sums [blocks,
  // channels] are written, too. Returns how many blocks it has done, from the first on; the next
  // one's dx is untouched: it is extreme, or its sums are not sound.
  struct Differentiate {
    const void* x;
    const void* dy;
    void* dx;
    std::int64_t blocks, channels, length;
    Parameters params;
    const double* mean;
    const double* rstd;
    const GradientTerms* terms;
    GradientRule rule;
    Activation activation;
    Store store;
    GradientSums* sums;
    const GradientJoin* join = nullptr;
  };
  std::int64_t (*differentiate)(const Differentiate&);

  // dx = a dz + (slope (x - mean) + intercept) down the lanes, shapes as in sum_columns; intercept,
  // slope [width]; dx as x.
  struct ApplyColumns {
    const void* x;
    const void* dy;
    void* dx;
    std::int64_t rows, stride, dy_stride, width;
    LaneCoefficients coefficients;
    const void* intercept;
    const void* slope;
    Activation activation;
    Store store;
    const GradientJoin* join = nullptr;
  };
  void (*apply_columns)(const ApplyColumns&);
};

// Between `count` numbers of a tensor and a tile of the compute type or, wide, of double.
struct TileKernels {
  // u = x + skip + shift, each sum rounded to the compute type, to a tile; and to `sum`, rounded to
  // the storage dtype: of `rows` rows of `count` elements, contiguous. Null: not there. shift is
  // one number or, by lanes, one for each element of a row.
  struct Load {
    const void* x;
    const void* skip = nullptr;
    const void* shift = nullptr;
    bool by_lanes = false;
    void* sum = nullptr;
    void* tile;
    std::int64_t count;
    std::int64_t rows = 1;
  };
  void (*load)(const Load&);
  void (*load_wide)(const Load&);
  // A tile of double -> float, rounded; to == from is allowed. Of f64's table alone.
  void (*narrow)(const void* from, void* to, std::int64_t count);

  // Adds numbers [rows, width] of a tile, rows `stride` elements apart, down their columns to sums
  // [width], in double.
  struct AddRows {
    const void* numbers;
    std::int64_t rows, stride, width;
    double* sums;
  };
  void (*add_rows)(const AddRows&);

  // y = activation(z + residual), z in a tile, rounded once where it is written; residual (null: 0)
  // is of y's dtype. y == z is allowed where they are of one type, and y == residual.
  struct Activate {
    const void* z;
    const void* residual;
    void* y;
    std::int64_t count;
    Activation activation;
    Store store;
  };
  void (*activate)(const Activate&);

  // z = a (x - mean) + b down the lanes of numbers of the compute type, to a tile: rows `stride`
  // and `z_stride` elements apart.
  struct ZColumns {
    const void* x;
    void* z;
    std::int64_t rows, stride, z_stride, width;
    LaneCoefficients coefficients;
  };
  void (*z_columns)(const ZColumns&);

  // The same of runs whose elements have their own gamma and beta each (blocks of length 1): params
  // [width], statistics [rows], `step` apart.
  struct ZRuns {
    const void* x;
    void* z;
    std::int64_t rows, stride, z_stride, width;
    Parameters params;
    const Statistics* statistics;
    std::int64_t step;
  };
  void (*z_runs)(const ZRuns&);

  // dz = dy * activation'(z + residual), z and dz [rows, width] in a tile, rows `z_stride` elements
  // apart, of any activation; residual (null: 0) and dy are of the storage dtype, rows `stride`
  // apart. dz == z is allowed.
  struct Dz {
    const void* z;
    const void* residual;
    const void* dy;
    void* dz;
    std::int64_t rows, stride, z_stride, width;
    Activation activation;
  };
  void (*dz)(const Dz&);
  void (*dz_wide)(const Dz&);
};

struct Kernels {
  const char* target;  // the name in targets()
  std::int64_t lanes;  // of a vector in the compute type

  // x [runs, count], contiguous -> moments [runs], one a run. m2 is NaN where x has a NaN, and
  // infinite where its sum of squares is; mean is 0 then.
  struct Runs {
    const void* x;
    std::int64_t runs, count;
    Trust trust;
    Moments* moments;
  };
  void (*reduce_runs)(const Runs&);
  // The same of u, each run a row of it. m2 is NaN also where it is not to be trusted: the moments
  // are to be made of a tile then.
  void (*reduce_sums)(const Runs&, const Join&);

  // x [rows, width], rows `stride` elements apart, width <= kMaxLanes -> mean [width] and m2
  // [width] of each column, as above; of x + skip + shift [width], where these are not null.
  struct Columns {
    const void* x;
    std::int64_t rows, stride, width;
    Trust trust;
    double* mean;
    double* m2;
    const void* skip = nullptr;
    const void* shift = nullptr;
  };
  void (*reduce_columns)(const Columns&);

  // x [rows, width], rows `stride` elements apart, of any size -> the moments of all of it, in
  // double, right for every input whose squares' sum double holds.
  struct Numbers {
    const void* x;
    std::int64_t rows, stride, width;
  };
  Moments (*exact_moments)(const Numbers&);

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

  // y = activation(gamma (x - mean) rstd + beta) for blocks [first, first + blocks): x, y [blocks,
  // channels, length]; or, where `parts` says which parts of the tensors x and y each block has, in
  // those, which are of long rows. params [groups, channels], and param_stride entries further
  // those of the next example; block b is group b % groups of example b / groups. The activation is
  // fused. y == x is allowed with Store::cached.
  //
  // statistics [blocks], none extreme; or null: they are made of reduce_runs, merged in order, and
  // finish, with their bits, and written to mean and rstd [blocks] (each may be null). Returns how
  // many blocks it has done, from the first on. The next are untouched, as their statistics are
  // extreme: extreme [kBatch] has those of *extremes of them then. A table without the fast
  // variants (kFast) makes no statistics, and returns 0 without a word.
  //
  // With `join` (null: nothing), rows are long (kShortRow), statistics are given, and there is one
  // block. y == skip and y == residual are allowed as y == x is.
  struct Normalize {
    const void* x;
    void* y;
    std::int64_t first, blocks, groups;
    std::int64_t channels, length;
    const RowParts* parts;
    Parameters params;
    std::int64_t param_stride;
    Activation activation;
    Store store;
    const Statistics* statistics;
    int correction;
    double eps;
    bool center;
    Trust trust;
    double* mean;
    double* rstd;
    Statistics* extreme;
    std::int64_t* extremes;  // 0 before the call
    const Join* join = nullptr;
  };
  std::int64_t (*normalize)(const Normalize&);

  // y = activation(a[l] * (x - mean[l]) + b[l]) for x, y [rows, width], rows `stride` elements
  // apart. Activations and aliasing as in normalize.
  struct ApplyColumns {
    const void* x;
    void* y;
    std::int64_t rows, stride, width;
    LaneCoefficients coefficients;
    Activation activation;
    Store store;
    const Join* join = nullptr;
  };
  void (*apply_columns)(const ApplyColumns&);

  // Once behind the last streaming store of a thread: each takes until memory has all of them.
  void (*flush)();

  TileKernels tiles;
  const GradientKernels* gradients;
};

// One compiled instruction set.
struct Target {
  const char* name;
  std::int64_t highway;       // its HWY_TARGET bit
  const Kernels* kernels[4];  // in the order of DType; null: not built

  const Kernels& of(DType dtype) const { return *kernels[static_cast<std::size_t>(dtype)]; }
};

// All that are compiled in, best first (targets.cpp).
std::span<const Target> compiled_targets() noexcept;

// The first of `targets` with that name, or if it is null the first of all. Says why not where
// there is none: no machine of the name, or no target at all (dispatch.cpp).
Status choose_target(std::span<const Target* const> targets, const char* name,
                     const Target** target) noexcept;

// `name`, or if it is null GROUPNORM_TARGET or the best of this machine; says why not where there
// is none, or where it was built without `dtype` (dispatch.cpp).
Status find_target(const char* name, DType dtype, const Target** target) noexcept;

}  // namespace groupnorm::detail

#endif
