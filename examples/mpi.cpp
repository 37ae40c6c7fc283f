// One tensor on several machines: each rank of MPI has a slab of its positions, and all get the
// group norm of the whole and its gradient. Run as
//
//   mpirun -n 3 build/release/examples/mpi
//
// What the ranks exchange are moments, 24 bytes a block and rank, and 16 bytes a block for the
// gradient; and, as ever with data in parallel, dgamma and dbeta. Ranks merge in rank order, so
// that all have the same bits.
#include <groupnorm/groupnorm.hpp>

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using groupnorm::Backward;
using groupnorm::BlockSums;
using groupnorm::Moments;
using groupnorm::Plan;
using groupnorm::Shape;
using groupnorm::Spec;
using groupnorm::Status;

constexpr Shape kWhole{2, 12, 5000};  // far from 0, as intensities are
constexpr std::int64_t kGroups = 3;

void require(Status status) {
  if (status == Status::ok) return;
  std::fprintf(stderr, "%s\n", groupnorm::status_string(status));
  MPI_Abort(MPI_COMM_WORLD, 1);
}

Plan plan_of(Shape shape, bool given_statistics) {
  const Spec spec{.shape = shape,
                  .block = groupnorm::group_norm(shape, kGroups),
                  .activation = groupnorm::Activation::silu,
                  .given_statistics = given_statistics};
  Plan plan;
  require(Plan::make(spec, &plan));
  return plan;
}

// Element i of x, and of dy.
float x_at(std::int64_t i) { return 1000 + static_cast<float>(i * 7919 % 1013) / 64; }
float dy_at(std::int64_t i) { return static_cast<float>(i * 104729 % 997) / 512 - 1; }

struct Tensors {
  std::vector<float> x, dy, y, dx;
  explicit Tensors(Shape shape) {
    for (auto* const tensor : {&x, &dy, &y, &dx}) {
      tensor->resize(static_cast<std::size_t>(shape.n * shape.c * shape.s));
    }
  }
};

// Positions [begin, begin + shape.s) of the whole.
Tensors slab(Shape shape, std::int64_t begin) {
  Tensors slab(shape);
  for (std::int64_t row = 0; row < shape.n * shape.c; ++row) {
    for (std::int64_t s = 0; s < shape.s; ++s) {
      const auto i = static_cast<std::size_t>(row * shape.s + s);
      slab.x[i] = x_at(row * kWhole.s + begin + s);
      slab.dy[i] = dy_at(row * kWhole.s + begin + s);
    }
  }
  return slab;
}

// What every rank has of `own`, in rank order.
template <class T>
std::vector<T> gather(const std::vector<T>& own, int ranks) {
  std::vector<T> all(own.size() * static_cast<std::size_t>(ranks));
  const auto bytes = static_cast<int>(own.size() * sizeof(T));
  MPI_Allgather(own.data(), bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, MPI_COMM_WORLD);
  return all;
}

struct Gradients {
  std::vector<float> gamma, beta, dgamma, dbeta;
  Gradients() : gamma(kWhole.c, 1.5F), beta(kWhole.c, 0.25F), dgamma(kWhole.c), dbeta(kWhole.c) {}
};

// y, dx, and the dgamma and dbeta of all ranks.
void normalize(const Plan& plan, int ranks, Tensors* own, Gradients* params) {
  const std::int64_t blocks = kWhole.n * kGroups;
  std::vector<std::byte> workspace(
      std::max(plan.workspace_bytes(), plan.backward_workspace_bytes()));
  std::vector<Moments> moments(static_cast<std::size_t>(blocks)), total(moments.size());
  require(plan.reduce(own->x.data(), moments.data(), workspace, groupnorm::pool()));
  const std::vector<Moments> all = gather(moments, ranks);
  for (std::size_t i = 0; i < all.size(); i += moments.size()) {
    merge(&all[i], blocks, total.data());
  }

  std::vector<double> mean(total.size()), rstd(total.size());
  require(plan.finish(total.data(), blocks, mean.data(), rstd.data()));
  require(plan.forward({.x = own->x.data(),
                        .y = own->y.data(),
                        .gamma = params->gamma.data(),
                        .beta = params->beta.data(),
                        .given_mean = mean.data(),
                        .given_rstd = rstd.data()},
                       workspace, groupnorm::pool()));

  const Backward backward{.x = own->x.data(),
                          .dy = own->dy.data(),
                          .gamma = params->gamma.data(),
                          .beta = params->beta.data(),
                          .mean = mean.data(),
                          .rstd = rstd.data(),
                          .dx = own->dx.data(),
                          .dgamma = params->dgamma.data(),
                          .dbeta = params->dbeta.data()};
  std::vector<BlockSums> sums(total.size()), whole(total.size());
  require(plan.reduce_gradient(backward, sums.data(), workspace, groupnorm::pool()));
  const std::vector<BlockSums> all_sums = gather(sums, ranks);
  for (std::size_t i = 0; i < all_sums.size(); ++i) {
    whole[i % whole.size()].d += all_sums[i].d;
    whole[i % whole.size()].e += all_sums[i].e;
  }
  require(plan.apply_gradient(backward, whole.data(), total[0].count, groupnorm::pool()));
  for (std::vector<float>* const gradient : {&params->dgamma, &params->dbeta}) {
    MPI_Allreduce(MPI_IN_PLACE, gradient->data(), static_cast<int>(gradient->size()), MPI_FLOAT,
                  MPI_SUM, MPI_COMM_WORLD);
  }
}

// The largest difference between a slab and its place in the whole.
double difference(const std::vector<float>& part, std::int64_t length, std::int64_t begin,
                  const std::vector<float>& whole) {
  double most = 0;
  for (std::size_t i = 0; i < part.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / length,
               s = static_cast<std::int64_t>(i) % length;
    const auto at = static_cast<std::size_t>(row * kWhole.s + begin + s);
    most = std::max(most, std::fabs(static_cast<double>(part[i]) - whole[at]));
  }
  return most;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);

  // Slabs of different sizes: rank r has r + 1 parts.
  const auto bound = [&](std::int64_t i) {
    return kWhole.s * i * (i + 1) / (std::int64_t{ranks} * (ranks + 1));
  };
  const std::int64_t begin = bound(rank), length = bound(rank + 1) - begin;
  const Shape shape{kWhole.n, kWhole.c, length};
  Tensors own = slab(shape, begin);
  Gradients params;
  normalize(plan_of(shape, true), ranks, &own, &params);

  // The whole, which an example can afford to have on each rank.
  Tensors whole = slab(kWhole, 0);
  Gradients expected;
  const Plan plan = plan_of(kWhole, false);
  const auto blocks = static_cast<std::size_t>(plan.blocks());
  std::vector<double> mean(blocks), rstd(blocks);
  std::vector<std::byte> workspace(
      std::max(plan.workspace_bytes(), plan.backward_workspace_bytes()));
  require(plan.forward({.x = whole.x.data(),
                        .y = whole.y.data(),
                        .gamma = expected.gamma.data(),
                        .beta = expected.beta.data(),
                        .mean = mean.data(),
                        .rstd = rstd.data()},
                       workspace));
  require(plan.backward({.x = whole.x.data(),
                         .dy = whole.dy.data(),
                         .gamma = expected.gamma.data(),
                         .beta = expected.beta.data(),
                         .mean = mean.data(),
                         .rstd = rstd.data(),
                         .dx = whole.dx.data(),
                         .dgamma = expected.dgamma.data(),
                         .dbeta = expected.dbeta.data()},
                        workspace));

  double worst = std::max(difference(own.y, length, begin, whole.y),
                          difference(own.dx, length, begin, whole.dx));
  for (std::size_t c = 0; c < params.dgamma.size(); ++c) {
    // Sums of 10000 terms of up to 5.
    worst = std::max({worst, std::fabs(params.dgamma[c] - expected.dgamma[c]) / 5e4,
                      std::fabs(params.dbeta[c] - expected.dbeta[c]) / 5e4});
  }
  MPI_Allreduce(MPI_IN_PLACE, &worst, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  if (rank == 0) {
    std::printf("%d ranks, %zu bytes each to exchange: largest difference from the whole %.2g\n",
                ranks, blocks * sizeof(Moments), worst);
  }
  MPI_Finalize();
  return worst < 2e-6 ? EXIT_SUCCESS : EXIT_FAILURE;
}
