// normalize: reduce -> finish -> apply of whole blocks that lie one behind the other; where they
// are neither small nor long, with nothing of a block in memory but its x and y.
//
// While the stores of one y wait for memory, a core reads the next x only if no other store stands
// between: its queue of stores is short, and full of y. What a chain of kernels keeps in memory
// (arguments, moments, coefficients) costs more time there than its instructions do.
#if defined(GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H
#undef GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H
#else
#define GROUPNORM_SRC_KERNELS_NORMALIZE_INL_H
#endif

#include "kernels/apply-inl.h"
#include "kernels/finish-inl.h"
#include "kernels/kernels.h"
#include "kernels/reduce-inl.h"

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace groupnorm::detail {
namespace HWY_NAMESPACE {

// Elements. Blocks of so few are reduced and finished kShortRuns at a time: their horizontal sums,
// divisions and roots would take longer than all else. Where that is all there is to do, before
// any y is stored, it pays for larger ones as well.
inline constexpr std::int64_t kSmallBlock = 128;
inline constexpr std::int64_t kSmallBlockOfFew = 512;
// Some blocks, of so many elements together, stay in L1.
inline constexpr std::int64_t kSomeElements = 8192;

// Where code is to be small, there is no kernel of blocks one by one for each activation.
#ifdef __OPTIMIZE_SIZE__
inline constexpr bool kOneByOne = false;
#else
inline constexpr bool kOneByOne = true;
#endif

template <class C>
HWY_INLINE Statistics StatisticsOf(const Kernels::NormalizeBlocks& args, const Moments& moments) {
  Statistics statistics;
  FinishSome<C>(hn::CappedTag<double, 1>(),
                {&moments, 1, args.correction, args.eps, args.center, &statistics}, 0, 1);
  return statistics;
}

// Whether the statistics of `block` hold; then writes them.
HWY_INLINE bool Take(const Kernels::NormalizeBlocks& args, std::int64_t block,
                     const Moments& moments, const Statistics& statistics) {
  if (!(moments.m2 >= args.least_m2) || statistics.extreme) return false;
  if (args.mean != nullptr) args.mean[block] = statistics.mean;
  if (args.rstd != nullptr) args.rstd[block] = statistics.rstd;
  return true;
}

// The pilot of the next block is made before the apply that hides its latency.
template <class T>
struct OneByOneOf {
  template <class Act, Store kStore>
  static std::int64_t Run(const Kernels::NormalizeBlocks& args) {
    const Blocks<T, Kernels::NormalizeBlocks> blocks(args);
    const RunPilots<T> pilots(blocks.size());
    auto pilot = pilots.Of(blocks.x(0));
    for (std::int64_t b = 0; b < args.blocks; ++b) {
      const Moments moments = RunSums<T>(blocks.x(b), blocks.size(), pilot).Finish();
      const Statistics statistics = StatisticsOf<Compute<T>>(args, moments);
      if (b + 1 < args.blocks) pilot = pilots.Of(blocks.x(b + 1));
      if (!Take(args, b, moments, statistics)) return b;
      blocks.template Apply<Act, kStore>(b, statistics);
    }
    return args.blocks;
  }
};

// Blocks [first, first + blocks), by the kernel.
template <class T>
void ApplySome(const Kernels::NormalizeBlocks& args, std::int64_t first, std::int64_t blocks,
               const Statistics* statistics, const Kernels::Runs& next) {
  const std::int64_t channel = first * args.channels, at = channel * args.length;
  const std::int64_t bytes =
      channel * static_cast<std::int64_t>(args.params.wide ? sizeof(Wide<T>) : sizeof(T));
  const auto from = [bytes](const void* param) {
    return param == nullptr ? nullptr : static_cast<const std::byte*>(param) + bytes;
  };
  ApplyBlocks<T>({static_cast<const T*>(args.x) + at,
                  static_cast<T*>(args.y) + at,
                  blocks,
                  args.channels,
                  args.length,
                  {from(args.params.gamma), from(args.params.beta), args.params.wide},
                  statistics,
                  args.activation,
                  args.store,
                  next});
}

template <class T>
std::int64_t NormalizeBySome(const Kernels::NormalizeBlocks& args, std::int64_t size) {
  Moments moments[kShortRuns];
  Statistics statistics[kShortRuns];
  const std::int64_t most = std::clamp<std::int64_t>(kSomeElements / size, 1, kShortRuns);
  for (std::int64_t first = 0; first < args.blocks; first += most) {
    const std::int64_t blocks = std::min(most, args.blocks - first);
    ReduceRuns<T>({static_cast<const T*>(args.x) + first * size, blocks, size, moments});
    Finish<Compute<T>>({moments, blocks, args.correction, args.eps, args.center, statistics});
    std::int64_t done = 0;
    while (done < blocks && Take(args, first + done, moments[done], statistics[done])) ++done;
    ApplySome<T>(args, first, done, statistics, {});
    if (done < blocks) return first + done;
  }
  return args.blocks;
}

// Each is reduced while the one before it is applied.
template <class T>
std::int64_t NormalizeCarried(const Kernels::NormalizeBlocks& args, std::int64_t size) {
  const T* const x = static_cast<const T*>(args.x);
  Moments moments;
  ReduceRuns<T>({x, 1, size, &moments});
  for (std::int64_t b = 0; b < args.blocks; ++b) {
    const Statistics statistics = StatisticsOf<Compute<T>>(args, moments);
    if (!Take(args, b, moments, statistics)) return b;
    Kernels::Runs next{};
    if (b + 1 < args.blocks) next = {x + (b + 1) * size, 1, size, &moments};
    ApplySome<T>(args, b, 1, &statistics, next);
  }
  return args.blocks;
}

template <class T>
std::int64_t NormalizeBlocks(const Kernels::NormalizeBlocks& args) {
  const Blocks<T, Kernels::NormalizeBlocks> blocks(args);
  if (blocks.size() >= kLongRun && blocks.can_carry()) {
    return NormalizeCarried<T>(args, blocks.size());
  }
  if constexpr (kOneByOne) {
    const std::int64_t small = args.blocks <= kShortRuns ? kSmallBlockOfFew : kSmallBlock;
    if (blocks.size() > small) return DispatchStore<OneByOneOf<T>>(args, args.store);
  }
  return NormalizeBySome<T>(args, blocks.size());
}

}  // namespace HWY_NAMESPACE
}  // namespace groupnorm::detail
HWY_AFTER_NAMESPACE();

#endif
