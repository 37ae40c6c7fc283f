// Hostile arguments for the C interface: enumerators, sizes, strides and struct sizes out of range;
// null, misaligned and overlapping pointers. Rules of its own, written from groupnorm.h, say what
// must be refused. A refused call changes no byte, an accepted one changes its outputs alone.
#include <groupnorm/groupnorm.h>

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"

namespace groupnorm::fuzz {
namespace {

using From = FuzzedDataProvider;

// Wide enough for every product here.
__extension__ using Wide = __int128;
constexpr Wide kMost = INT64_MAX;

// All memory that calls get lies in here.
constexpr std::size_t kArena = std::size_t{1} << 15;
alignas(64) std::array<std::uint8_t, kArena> arena;

// A struct of the caller's, perhaps of a later version, which has something behind it.
template <class Struct>
struct Later {
  Struct known;
  std::array<std::uint8_t, 16> more;
};

template <class Struct>
void spoil_size(From& from, Later<Struct>* later) {
  constexpr std::size_t kSizes[] = {0,       1, 8, sizeof(Struct) - 1, sizeof(Later<Struct>) + 4096,
                                    SIZE_MAX};
  later->more.fill(0);
  if (!from.ConsumeBool() || !from.ConsumeBool()) return;
  later->known.struct_size =
      from.ConsumeBool() ? from.PickValueInArray(kSizes) : sizeof(Later<Struct>);
  if (from.ConsumeBool()) later->more.back() = 1;
}

template <class Struct>
bool size_is_good(const Later<Struct>& later) {
  if (later.known.struct_size == sizeof(Struct)) return true;
  return later.known.struct_size == sizeof(later) && later.more.back() == 0;
}

std::int64_t take_size(From& from) {
  constexpr std::int64_t kHostile[] = {-1, INT64_MIN, INT64_MAX, std::int64_t{1} << 32,
                                       std::int64_t{1} << 62};
  const auto kind = from.ConsumeIntegralInRange(0, 15);
  if (kind == 0) return from.PickValueInArray(kHostile);
  if (kind == 1) return from.ConsumeIntegral<std::int64_t>();
  return from.ConsumeIntegralInRange<std::int64_t>(kind == 2 ? 0 : 1, 12);
}

std::int32_t take_enumerator(From& from, std::int32_t last) {
  if (from.ConsumeIntegralInRange(0, 15) == 0) return from.ConsumeIntegral<std::int32_t>();
  return from.ConsumeIntegralInRange<std::int32_t>(0, last);
}

gn_block take_block(From& from, const gn_shape& shape) {
  switch (from.ConsumeIntegralInRange(0, 6)) {
    case 0: return gn_group_norm(shape, take_size(from));
    case 1: return gn_layer_norm(shape);
    case 2: return gn_instance_norm(shape);
    case 3: return gn_batch_norm(shape);
    case 4: return gn_ghost_batch_norm(shape, take_size(from));
    case 5: return gn_batch_group_norm(shape, take_size(from));
    default: return {take_size(from), take_size(from)};
  }
}

Later<gn_spec> take_spec(From& from, bool neighbours) {
  constexpr double kEps[] = {0, 1e-5, -1, NAN, INFINITY, 1e300};
  Later<gn_spec> later{};
  gn_spec& spec = later.known;
  gn_spec_init(&spec);
  spec.shape = {take_size(from), take_size(from), take_size(from)};
  spec.block = take_block(from, spec.shape);
  spec.layout = take_enumerator(from, GN_LAYOUT_CHANNELS_LAST);
  spec.data = take_enumerator(from, GN_DTYPE_BF16);
  spec.param = from.ConsumeBool() ? spec.data : take_enumerator(from, GN_DTYPE_BF16);
  spec.activation = take_enumerator(from, GN_ACTIVATION_HARD_SWISH);
  spec.center = take_enumerator(from, 1);
  spec.given_statistics = from.ConsumeBool() ? 0 : take_enumerator(from, 1);
  spec.correction = take_enumerator(from, 1);
  spec.eps = from.ConsumeBool() ? 1e-5 : from.PickValueInArray(kEps);
  spec.param_stride = from.ConsumeBool() ? 0 : take_size(from);
  if (neighbours) {
    spec.sequence = from.ConsumeBool() ? from.ConsumeIntegralInRange(0, 1) : take_size(from);
    spec.shift = take_enumerator(from, 1);
    spec.scale = take_enumerator(from, 1);
    spec.lengths = take_enumerator(from, 1);
  }
  spoil_size(from, &later);
  return later;
}

// ---- The rules of groupnorm.h -------------------------------------------------------------------

std::int64_t size_of(gn_dtype dtype) {
  constexpr std::int64_t kSizes[] = {4, 8, 2, 2};
  return kSizes[dtype];
}

bool within(std::int32_t value, std::int32_t last) { return value >= 0 && value <= last; }

std::int64_t sequence_of(const gn_spec& spec) { return spec.sequence == 0 ? 1 : spec.sequence; }

// Whether a call is made of several, for which it needs workspace.
bool is_composed(const gn_spec& spec) {
  const std::int64_t sequence = sequence_of(spec);
  const bool rows = spec.param_stride != 0 || (spec.shift != 0 && sequence != spec.shape.n);
  return spec.scale != 0 || spec.lengths != 0 || (sequence != 1 && rows);
}

bool divides(std::int64_t part, std::int64_t size) {
  return size == 0 ? part >= 0 : part >= 1 && size % part == 0;
}

bool is_empty(const gn_shape& shape) { return shape.n == 0 || shape.c == 0 || shape.s == 0; }

// Whether the products of all sizes, and of any two of them, stay below 2^63 bytes.
bool fits(const gn_spec& spec) {
  const Wide n = spec.shape.n, c = spec.shape.c, s = spec.shape.s;
  if (n * c > kMost || c * s > kMost || n * s > kMost) return false;
  if (n * c * s > kMost || n * c * s * size_of(spec.data) > kMost) return false;
  return n * std::max<Wide>(spec.param_stride, c) <= kMost / size_of(spec.param);
}

bool spec_is_good(const gn_spec& spec) {
  const auto& [n, c, s] = spec.shape;
  if (n < 0 || c < 0 || s < 0) return false;
  if (!within(spec.data, GN_DTYPE_BF16) || !within(spec.param, GN_DTYPE_BF16)) return false;
  if (!within(spec.layout, GN_LAYOUT_CHANNELS_LAST)) return false;
  if (!within(spec.activation, GN_ACTIVATION_HARD_SWISH)) return false;
  const bool narrow = spec.data == GN_DTYPE_F16 || spec.data == GN_DTYPE_BF16;
  if (spec.param != spec.data && !(narrow && spec.param == GN_DTYPE_F32)) return false;
  if (spec.param_stride != 0 && spec.param_stride < c) return false;
  if (!within(spec.correction, 1) || !(spec.eps >= 0 && spec.eps < INFINITY)) return false;
  if (!fits(spec)) return false;
  if (!divides(spec.block.examples, n) || !divides(spec.block.channels, c)) return false;
  const std::int64_t sequence = sequence_of(spec), examples = spec.block.examples;
  if (sequence < 1 || n % sequence != 0) return false;
  const bool in_pieces = spec.lengths != 0 || (sequence != 1 && sequence != n);
  const bool whole =
      examples == 0 || (spec.lengths != 0 ? examples == 1 : sequence % examples == 0);
  const bool given = spec.given_statistics != 0 && examples % sequence == 0;
  if (in_pieces && !whole && !given) return false;
  const bool one = Wide{spec.block.examples} * spec.block.channels * s < 2;
  return is_empty(spec.shape) || spec.correction == 0 || spec.given_statistics != 0 || !one;
}

// ---- Memory -------------------------------------------------------------------------------------

struct Region {
  const void* start = nullptr;
  Wide bytes = 0;
  std::int64_t alignment = 1;
};

bool is_aligned(const Region& region) {
  return reinterpret_cast<std::uintptr_t>(region.start) %
             static_cast<std::uintptr_t>(region.alignment) ==
         0;
}

bool touch(const Region& a, const Region& b) {
  if (a.start == nullptr || b.start == nullptr || a.bytes == 0 || b.bytes == 0) return false;
  const auto first = reinterpret_cast<std::uintptr_t>(a.start);
  const auto second = reinterpret_cast<std::uintptr_t>(b.start);
  return Wide{first} < second + b.bytes && Wide{second} < first + a.bytes;
}

bool in_arena(const Region& region) {
  if (region.start == nullptr) return true;
  return static_cast<const std::uint8_t*>(region.start) + static_cast<std::int64_t>(region.bytes) <=
         arena.data() + kArena;
}

// What one call gets.
struct Memory {
  std::vector<Region> outputs, inputs;
  std::size_t replaceable = 1;  // so many inputs may be the first output: y == x, dx == dy

  bool is_good() const {
    for (const auto* const regions : {&outputs, &inputs}) {
      if (!std::all_of(regions->begin(), regions->end(), is_aligned)) return false;
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        if (touch(outputs[i], outputs[j])) return false;
      }
      for (std::size_t j = 0; j < inputs.size(); ++j) {
        const bool in_place = i == 0 && j < replaceable && outputs[i].start == inputs[j].start;
        if (touch(outputs[i], inputs[j]) && !in_place) return false;
      }
    }
    return true;
  }
  bool is_there() const {
    return std::all_of(outputs.begin(), outputs.end(), in_arena) &&
           std::all_of(inputs.begin(), inputs.end(), in_arena);
  }
};

// Null, or somewhere: one in four on the alignment of a byte, the others on that of a double.
template <class T>
T* take_pointer(From& from, Wide bytes) {
  if (from.ConsumeIntegralInRange(0, 7) == 0) return nullptr;
  const bool odd = from.ConsumeIntegralInRange(0, 31) == 0;
  const std::size_t room = bytes < Wide{kArena} ? kArena - static_cast<std::size_t>(bytes) : 0;
  const auto offset = from.ConsumeIntegralInRange<std::size_t>(0, room);
  return static_cast<T*>(static_cast<void*>(arena.data() + (odd ? offset : offset / 8 * 8)));
}

struct Sizes {
  explicit Sizes(const gn_spec& spec, std::int64_t blocks)
      : tensor(Wide{spec.shape.n} * spec.shape.c * spec.shape.s * size_of(spec.data)),
        params((std::max<Wide>(Wide{spec.shape.n} / sequence_of(spec) - 1, 0) * spec.param_stride +
                spec.shape.c) *
               size_of(spec.param)),
        statistics(Wide{blocks} * 8),
        sequences(Wide{spec.shape.n} / sequence_of(spec)),
        data_rows(sequences * spec.shape.c * size_of(spec.data)),
        param_rows(sequences * spec.shape.c * size_of(spec.param)) {}
  Wide tensor, params, statistics, sequences, data_rows, param_rows;
};

// What forward and backward read of what stands around the norm.
template <class Args>
void take_neighbours(From& from, const gn_spec& spec, const Sizes& sizes, Args* args) {
  // At times what the spec does not have.
  const bool wrong_way = from.ConsumeIntegralInRange(0, 15) == 0;
  args->skip = take_pointer<void>(from, sizes.tensor);
  args->residual = take_pointer<void>(from, sizes.tensor);
  if ((spec.shift != 0) != wrong_way) args->shift = take_pointer<void>(from, sizes.data_rows);
  if ((spec.scale != 0) != wrong_way) {
    args->scale = take_pointer<void>(from, sizes.param_rows);
    args->offset = take_pointer<void>(from, sizes.param_rows);
  }
  if ((spec.lengths != 0) == wrong_way) return;
  auto* const lengths = take_pointer<std::int64_t>(from, sizes.sequences * 8);
  args->lengths = lengths;
  if (lengths == nullptr || !in_arena({lengths, sizes.sequences * 8, 8})) return;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(sizes.sequences); ++i) {
    const auto length = from.ConsumeIntegralInRange<std::int64_t>(-1, 13);
    std::memcpy(reinterpret_cast<std::uint8_t*>(lengths) + 8 * i, &length, 8);
  }
}

template <class Args>
void add_neighbours(const gn_spec& spec, const Sizes& sizes, const Args& args,
                    std::vector<Region>* inputs) {
  const std::int64_t data = size_of(spec.data), param = size_of(spec.param);
  inputs->insert(inputs->end(), {{args.shift, sizes.data_rows, data},
                                 {args.scale, sizes.param_rows, param},
                                 {args.offset, sizes.param_rows, param},
                                 {args.lengths, sizes.sequences * 8, 8}});
}

// Whether the spec has them, and the lengths are such as leave more elements than the correction.
template <class Args>
bool neighbours_are_good(const gn_spec& spec, const Args& args) {
  if (args.shift != nullptr && spec.shift == 0) return false;
  if ((args.scale != nullptr || args.offset != nullptr) && spec.scale == 0) return false;
  if (args.lengths == nullptr) return true;
  if (spec.lengths == 0) return false;
  const std::int64_t sequence = sequence_of(spec);
  for (std::int64_t i = 0; i < spec.shape.n / sequence; ++i) {
    std::int64_t length = 0;
    std::memcpy(&length, reinterpret_cast<const std::uint8_t*>(args.lengths) + 8 * i, 8);
    if (length < 0 || length > (sequence == 1 ? spec.shape.s : sequence)) return false;
    const Wide elements = Wide{spec.block.channels} * (sequence == 1 ? length : spec.shape.s);
    const bool few = length > 0 && elements <= spec.correction;
    if (few && spec.given_statistics == 0) return false;
  }
  return true;
}

struct Workspace {
  void* data;
  std::size_t bytes;
};

Workspace take_workspace(From& from, std::size_t needed) {
  const std::size_t bytes = needed < kArena / 2 ? needed : 0;
  constexpr int kChanges[] = {0, 0, 0, 1, 64, -1};
  const int change = from.PickValueInArray(kChanges);
  const std::size_t given = change < 0 && bytes == 0 ? 0 : bytes + static_cast<std::size_t>(change);
  return {take_pointer<void>(from, static_cast<Wide>(given)), given};
}

// Tasks one by one, the last first.
void run_backwards(void*, std::int64_t count, gn_task task, void* arg) {
  for (std::int64_t i = count - 1; i >= 0; --i) task(arg, i);
}

gn_executor take_executor(From& from) {
  constexpr int kThreads[] = {1, 2, 3, 1024, 0, -1, 1025, INT32_MIN, INT32_MAX};
  return {from.ConsumeBool() ? run_backwards : nullptr, nullptr,
          from.ConsumeBool() ? 2 : from.PickValueInArray(kThreads)};
}

// Runs `call` where its memory exists, and holds it to what must become of it.
template <class Call>
void expect(bool good, const Memory& memory, const char* name, const Call& call) {
  if (good && !memory.is_there()) return;
  const std::vector<std::uint8_t> before(arena.begin(), arena.end());
  const gn_status status = call();
  check((status == GN_STATUS_OK) == good,
        std::string(name) + (good ? ": refused: " : ": accepted: ") + gn_status_string(status));
  for (std::size_t i = 0; i < kArena; ++i) {
    if (arena[i] == before[i]) continue;
    const Region changed{&arena[i], 1};
    const bool expected = good && std::any_of(memory.outputs.begin(), memory.outputs.end(),
                                              [&](const Region& r) { return touch(r, changed); });
    check(expected, std::string(name) + ": byte " + std::to_string(i) + " has changed");
  }
}

// ---- Calls --------------------------------------------------------------------------------------

void forward(From& from, const gn_plan& plan, const gn_spec& spec, bool neighbours) {
  const Sizes sizes(spec, gn_plan_blocks(&plan));
  Later<gn_forward_args> later{};
  gn_forward_args& args = later.known;
  gn_forward_args_init(&args);
  args.x = take_pointer<void>(from, sizes.tensor);
  args.y = from.ConsumeBool() ? const_cast<void*>(args.x) : take_pointer<void>(from, sizes.tensor);
  args.gamma = take_pointer<void>(from, sizes.params);
  args.beta = take_pointer<void>(from, sizes.params);
  const bool wrong_way = from.ConsumeIntegralInRange(0, 15) == 0;
  if ((spec.given_statistics != 0) != wrong_way) {
    args.given_mean = take_pointer<double>(from, sizes.statistics);
    args.given_rstd = take_pointer<double>(from, sizes.statistics);
  } else {
    args.mean = take_pointer<double>(from, sizes.statistics);
    args.rstd = take_pointer<double>(from, sizes.statistics);
  }
  if (neighbours) {
    take_neighbours(from, spec, sizes, &args);
    args.sum = take_pointer<void>(from, sizes.tensor);
    if (from.ConsumeBool()) args.y = const_cast<void*>(args.skip);
    if (from.ConsumeBool()) args.y = const_cast<void*>(args.residual);
  }
  spoil_size(from, &later);
  // With statistics that are given, only what is made of several calls needs one.
  const std::size_t all = gn_plan_workspace_bytes(&plan);
  const std::size_t needed = spec.given_statistics != 0 && !is_composed(spec) ? 0 : all;
  const Workspace workspace = take_workspace(from, needed);
  const gn_executor executor = take_executor(from);
  const bool alone = from.ConsumeBool();

  const std::int64_t data = size_of(spec.data), param = size_of(spec.param);
  const Region x{args.x, sizes.tensor, data}, y{args.y, sizes.tensor, data};
  Memory memory{{y,
                 {args.mean, sizes.statistics, 8},
                 {args.rstd, sizes.statistics, 8},
                 {args.sum, sizes.tensor, data},
                 {workspace.data, static_cast<Wide>(workspace.bytes), 1}},
                {x,
                 {args.skip, sizes.tensor, data},
                 {args.residual, sizes.tensor, data},
                 {args.gamma, sizes.params, param},
                 {args.beta, sizes.params, param},
                 {args.given_mean, sizes.statistics, 8},
                 {args.given_rstd, sizes.statistics, 8}},
                3};
  add_neighbours(spec, sizes, args, &memory.inputs);
  const bool given = spec.given_statistics != 0;
  const bool has_given =
      args.given_rstd != nullptr && (spec.center == 0 || args.given_mean != nullptr);
  const bool statistics = given ? has_given && args.mean == nullptr && args.rstd == nullptr
                                : args.given_mean == nullptr && args.given_rstd == nullptr;
  const bool room = workspace.bytes >= needed && (needed == 0 || workspace.data != nullptr);
  const bool threads = alone || (executor.threads >= 1 && executor.threads <= 1024);
  const bool tensors = args.x != nullptr && args.y != nullptr && statistics && room;
  if (!in_arena({args.lengths, sizes.sequences * 8, 8})) return;
  const bool arguments = tensors && neighbours_are_good(spec, args) && memory.is_good();
  const bool good = size_is_good(later) && threads && (is_empty(spec.shape) || arguments);
  const Memory nothing;
  expect(good, is_empty(spec.shape) ? nothing : memory, "gn_forward", [&] {
    return gn_forward(&plan, &args, workspace.data, workspace.bytes, alone ? nullptr : &executor);
  });
}

void backward(From& from, const gn_plan& plan, const gn_spec& spec, bool neighbours) {
  const Sizes sizes(spec, gn_plan_blocks(&plan));
  Later<gn_backward_args> later{};
  gn_backward_args& args = later.known;
  gn_backward_args_init(&args);
  args.x = take_pointer<void>(from, sizes.tensor);
  args.dy = take_pointer<void>(from, sizes.tensor);
  args.dx =
      from.ConsumeBool() ? const_cast<void*>(args.dy) : take_pointer<void>(from, sizes.tensor);
  args.gamma = take_pointer<void>(from, sizes.params);
  args.beta = take_pointer<void>(from, sizes.params);
  args.mean = take_pointer<double>(from, sizes.statistics);
  args.rstd = take_pointer<double>(from, sizes.statistics);
  args.dgamma = take_pointer<void>(from, sizes.params);
  args.dbeta = take_pointer<void>(from, sizes.params);
  args.accumulate = take_enumerator(from, 1);
  if (neighbours) {
    take_neighbours(from, spec, sizes, &args);
    args.dsum = take_pointer<void>(from, sizes.tensor);
    args.dresidual = take_pointer<void>(from, sizes.tensor);
    if (spec.shift != 0 || from.ConsumeIntegralInRange(0, 15) == 0) {
      args.dshift = take_pointer<void>(from, sizes.data_rows);
    }
    if (spec.scale != 0 || from.ConsumeIntegralInRange(0, 15) == 0) {
      args.dscale = take_pointer<void>(from, sizes.param_rows);
      args.doffset = take_pointer<void>(from, sizes.param_rows);
    }
  }
  spoil_size(from, &later);
  const std::size_t needed = gn_plan_backward_workspace_bytes(&plan);
  const Workspace workspace = take_workspace(from, needed);
  const gn_executor executor = take_executor(from);
  const bool alone = from.ConsumeBool();

  const std::int64_t data = size_of(spec.data), param = size_of(spec.param);
  const Region dy{args.dy, sizes.tensor, data}, dx{args.dx, sizes.tensor, data};
  const Region dgamma{args.dgamma, sizes.params, param}, dbeta{args.dbeta, sizes.params, param};
  const Region dshift{args.dshift, sizes.data_rows, data};
  const Region dscale{args.dscale, sizes.param_rows, param};
  const Region doffset{args.doffset, sizes.param_rows, param};
  Memory memory{{dx,
                 dgamma,
                 dbeta,
                 {args.dresidual, sizes.tensor, data},
                 dshift,
                 dscale,
                 doffset,
                 {workspace.data, static_cast<Wide>(workspace.bytes), 1}},
                {dy,
                 {args.x, sizes.tensor, data},
                 {args.skip, sizes.tensor, data},
                 {args.residual, sizes.tensor, data},
                 {args.dsum, sizes.tensor, data},
                 {args.gamma, sizes.params, param},
                 {args.beta, sizes.params, param},
                 {args.mean, sizes.statistics, 8},
                 {args.rstd, sizes.statistics, 8}}};
  add_neighbours(spec, sizes, args, &memory.inputs);
  const bool none = spec.shape.c == 0 || (spec.shape.n == 0 && spec.param_stride != 0);
  const Wide written = none ? 0 : sizes.params;
  const Memory of_nothing{
      {{args.dgamma, written, param}, {args.dbeta, written, param}, dshift, dscale, doffset}, {}};
  const bool empty = is_empty(spec.shape);
  const bool statistics = args.rstd != nullptr && (spec.center == 0 || args.mean != nullptr);
  const bool room = workspace.bytes >= needed && (needed == 0 || workspace.data != nullptr);
  const bool threads = alone || (executor.threads >= 1 && executor.threads <= 1024);
  const bool tensors = args.x != nullptr && args.dy != nullptr && statistics && room;
  if (!in_arena({args.lengths, sizes.sequences * 8, 8})) return;
  const bool has_flags = (args.dshift == nullptr || spec.shift != 0) &&
                         ((args.dscale == nullptr && args.doffset == nullptr) || spec.scale != 0);
  const bool arguments =
      empty ? of_nothing.is_good() : tensors && neighbours_are_good(spec, args) && memory.is_good();
  const bool good = size_is_good(later) && threads && has_flags && arguments;
  expect(good, empty ? of_nothing : memory, "gn_backward", [&] {
    return gn_backward(&plan, &args, workspace.data, workspace.bytes, alone ? nullptr : &executor);
  });
}

// Of an empty tensor as well; a block of all of no examples is one.
std::int64_t count_blocks(const gn_spec& spec) {
  const auto parts = [](std::int64_t size, std::int64_t part) {
    return part == 0 ? 1 : size / part;
  };
  const Wide blocks =
      Wide{parts(spec.shape.n, spec.block.examples)} * parts(spec.shape.c, spec.block.channels);
  return static_cast<std::int64_t>(std::min(blocks, kMost));
}

void reduce(From& from, const gn_plan& plan, const gn_spec& spec) {
  const std::int64_t blocks = count_blocks(spec);
  const Sizes sizes(spec, blocks);
  const void* const x = take_pointer<void>(from, sizes.tensor);
  auto* const moments = take_pointer<gn_moments>(from, Wide{blocks} * 24);
  const std::size_t needed = gn_plan_workspace_bytes(&plan);
  const Workspace workspace = take_workspace(from, needed);
  const gn_executor executor = take_executor(from);
  const bool alone = from.ConsumeBool();
  const Memory memory{
      {{moments, Wide{blocks} * 24, 8}, {workspace.data, static_cast<Wide>(workspace.bytes), 1}},
      {{}, {x, sizes.tensor, size_of(spec.data)}}};
  const bool room = workspace.bytes >= needed && (needed == 0 || workspace.data != nullptr);
  const bool threads = alone || (executor.threads >= 1 && executor.threads <= 1024);
  const bool there = (x != nullptr || sizes.tensor == 0) && (moments != nullptr || blocks == 0);
  const bool plain = spec.shift == 0 && !is_composed(spec);
  expect(plain && there && room && threads && memory.is_good(), memory, "gn_reduce", [&] {
    return gn_reduce(&plan, x, moments, workspace.data, workspace.bytes,
                     alone ? nullptr : &executor);
  });
}

void finish(From& from, const gn_plan& plan) {
  const auto blocks = from.ConsumeIntegralInRange<std::int64_t>(-1, 8);
  const Wide count = std::max<std::int64_t>(blocks, 0);
  const auto* const moments = take_pointer<gn_moments>(from, count * 24);
  auto* const mean = take_pointer<double>(from, count * 8);
  auto* const rstd = take_pointer<double>(from, count * 8);
  const Memory memory{{{mean, count * 8, 8}, {rstd, count * 8, 8}}, {{}, {moments, count * 24, 8}}};
  const bool there = moments != nullptr || blocks == 0;
  expect(blocks >= 0 && there && memory.is_good(), memory, "gn_finish",
         [&] { return gn_finish(&plan, moments, blocks, mean, rstd); });
}

gn_plan garbage() {
  gn_plan plan;
  std::memset(&plan, 0xA5, sizeof plan);
  return plan;
}

void run(From& from, bool neighbours) {
  check(gn_status_string(from.ConsumeIntegral<std::int32_t>()) != nullptr, "gn_status_string");
  const auto channels = from.ConsumeIntegral<std::int64_t>();
  const std::int64_t groups = gn_suggest_groups(channels, nullptr);
  check(channels < 1 ? groups == 0 : groups >= 1 && channels % groups == 0, "gn_suggest_groups");
  const int threads = gn_pool(from.ConsumeIntegral<int>()).threads;
  check(threads >= 1 && threads <= 1024, "gn_pool");

  const Later<gn_spec> spec = take_spec(from, neighbours);
  const bool good = size_is_good(spec) && spec_is_good(spec.known);
  gn_plan plan = garbage();
  const gn_plan before = plan;
  std::string target = from.ConsumeBool() ? from.ConsumeRandomLengthString(12) : "";
  const bool named = !target.empty();
  const gn_status status = gn_plan_make(&spec.known, named ? target.c_str() : nullptr, &plan);
  if (status != GN_STATUS_OK) {
    check(std::memcmp(&plan, &before, sizeof plan) == 0, "gn_plan_make: *plan has changed");
    check(named || !good, std::string("gn_plan_make: refused: ") + gn_status_string(status));
    return;
  }
  check(good, "gn_plan_make: accepted");
  while (from.remaining_bytes() > 0) {
    const std::vector<std::uint8_t> bytes = from.ConsumeBytes<std::uint8_t>(64);
    for (std::size_t i = 0; i < kArena; ++i) {
      arena[i] = bytes.empty() ? std::uint8_t{0} : bytes[i % bytes.size()];
    }
    switch (from.ConsumeIntegralInRange(0, 3)) {
      case 0: forward(from, plan, spec.known, neighbours); break;
      case 1: backward(from, plan, spec.known, neighbours); break;
      case 2: reduce(from, plan, spec.known); break;
      default: finish(from, plan);
    }
  }
}

}  // namespace
}  // namespace groupnorm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzedDataProvider from(data, size);
  groupnorm::fuzz::run(from, groupnorm::fuzz::is_marked(data, size));
  return 0;
}
