// Every constant that was chosen by measuring or by counting roundings: what it does, what it
// gained where that is known, and whether it changes the bits of a result. docs/performance.md has
// the measurements, docs/numerics.md the roundings.
#ifndef GROUPNORM_SRC_TUNING_H
#define GROUPNORM_SRC_TUNING_H

#include <cstdint>

namespace groupnorm::detail {

// --- Sums (kernels/moments-inl.h, kernels/gradient-inl.h). All of these change bits.

// Terms of one chain of f32 additions before it is folded into double. At 128 the sum of squares is
// visibly biased.
inline constexpr std::int64_t kChain = 32;
// Samples that make a pilot: of a run, 32 lie within a quarter of a deviation of the mean; of a
// column, 8 lie within half of one.
inline constexpr std::int64_t kRunSamples = 32;
inline constexpr std::int64_t kColumnSamples = 8;
// Elements from which on a run is read in four places at a time, some pages apart: memory serves
// them side by side.
inline constexpr std::int64_t kLongRun = 4096;
// Rows that are summed in registers before they join a chain of their columns. Of layer norm's
// backward, whose sums along the rows take registers too: 4.
inline constexpr std::int64_t kSumBand = 8;
inline constexpr std::int64_t kRunBand = 4;

// --- What is written (kernels/loop-inl.h). None of these changes bits.

// Places of a long row, or rows of lanes, that are written side by side. A backward has three
// tensors: more rows of lanes would not fit one set of the cache, and parts of a row gain nothing.
inline constexpr std::int64_t kApplyPlaces = 4;
inline constexpr std::int64_t kGradientPlaces = 2;
// Vectors. Shorter rows are written as one: rows of 49 take three vectors of 16 and not four.
inline constexpr std::int64_t kShortRow = 8;
// Bytes from which on a row is written in four places at a time. With less than most of a page for
// each, its prefetcher comes too late.
inline constexpr std::int64_t kQuarteredRow = 20000;

// --- Blocks (kernels/normalize-inl.h). None of these changes bits.

// Blocks that are reduced and finished together where they are small: their horizontal sums,
// divisions and roots would take longer than all else.
inline constexpr std::int64_t kBatch = 16;
// Elements of a small block: where all there is to do are kBatch blocks, before any y is stored, it
// pays for larger ones as well.
inline constexpr std::int64_t kSmallBlock = 128;
inline constexpr std::int64_t kSmallBlockOfFew = 512;
// Elements from which on a block is reduced while the one before it is applied: its reads hide
// behind those writes. Smaller ones gain nothing.
inline constexpr std::int64_t kCarriedBlock = 4096;

// Positions of a row from which on blocks in several parts are reduced that way, too.
inline constexpr std::int64_t kRowInParts = 128;

// --- Tiles (tiles.h). Does not change bits.

// A tile: three of them stay in L1 beside what they are made of.
inline constexpr std::int64_t kTileBytes = 8192;

// --- The schedule (plan.cpp, columns.h, layer_gradient.h). All but kStreaming... and
// kParallelBytes change bits.

// The most lanes that are reduced at once and that coefficients are made for: their accumulators
// (28 bytes a lane, 40 for f64) and coefficients (12 to 24) stay in L1.
inline constexpr std::int64_t kMaxLanes = 512;
// Elements of a chunk, at least: large enough that its pilot, which waits for memory, and merging
// its moments cost little (some 100 ns against 5 us), small enough to share one block between many
// threads.
inline constexpr std::int64_t kRowsChunk = 32768;
inline constexpr std::int64_t kColumnsChunk = 65536;
// Large blocks have larger chunks, as long as there are so many to share: a kernel reads and writes
// a chunk in several places, and memory serves them faster the further they lie apart (4 to 12 %).
inline constexpr std::int64_t kChunksToShare = 16;
inline constexpr std::int64_t kLargestChunk = std::int64_t{1} << 20;
// Rows of a columns chunk come in multiples of what is summed before a fold into double.
inline constexpr std::int64_t kRowsAtLeast = 128;
// With fewer channels than this, rows are merged until that many lanes are busy.
inline constexpr std::int64_t kFewLanes = 64;
inline constexpr std::int64_t kMergedLanes = 256;
// Below this many rows, sums down the columns would not pay for folding each lane.
inline constexpr std::int64_t kFewRows = 8;
// Elements of x (with dy, some 512 KB) whose sums for dgamma and dbeta a thread of layer norm's
// backward makes at a time, and the most blocks of them that are on the stack.
inline constexpr std::int64_t kSpanElements = 65536;
inline constexpr std::int64_t kBlocksAtOnce = 256;

// y of at least this many bytes is not expected to be in the cache when it is read: its stores pass
// the cache by.
inline constexpr std::int64_t kStreamingBytes = std::int64_t{4} << 20;
// Bytes. Shorter rows are stored through the cache all the same: most of their few lines hold an
// end of a row, and those cannot stream.
inline constexpr std::int64_t kStreamingRow = 512;
// Calls on smaller tensors are over before a second thread is awake.
inline constexpr std::int64_t kParallelBytes = std::int64_t{128} << 10;

}  // namespace groupnorm::detail

#endif
