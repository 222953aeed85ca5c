// The kernels for a device, built for the host: thread after thread, from barrier to barrier.
//
// Each is exported under its name, with the arguments of a launch; stand_in/ is the driver that calls
// them. Compiled twice, since WC_IN_REGISTERS holds for all quantizers of a unit: each time with those
// types of types.inc for which it is right.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#define WC_DEVICE

static unsigned long long atomicMax(unsigned long long* at, unsigned long long value) {
  const unsigned long long before = *at;
  *at = std::max(before, value);
  return before;
}
static unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  const unsigned long long before = *at;
  *at += value;
  return before;
}

static unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}

#include "device/blocks.h"
#include "device/checks.h"
#include "device/errors.h"
#include "device/search.h"
#include "device/types.h"
#if WC_IN_REGISTERS
#include "device/groups.h"
#endif

namespace weightcast {
namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "wrong launch: %s\n", what);
  std::abort();
}

// All kernels that read a source have its description first.
void require_source(int32_t type, void** parameters) {
  require(static_cast<const QuantizeArguments*>(parameters[0])->source_type == type, "type of source");
}

// Shared memory of just the size that a launch asked for, not cleared.
struct Shared {
  uint8_t* bytes;

  explicit Shared(size_t size) : bytes(static_cast<uint8_t*>(std::aligned_alloc(16, (size + 15) / 16 * 16))) {
    std::memset(bytes, 0x5a, size);
  }
  ~Shared() { std::free(bytes); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
};

template <class Tile>
void quantize(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes, void** parameters) {
  const auto& a = *static_cast<const QuantizeArguments*>(parameters[0]);
  require(block[0] == Tile::threads && block[1] == 1 && block[2] == 1, "threads");
  require(grid[1] == 1 && grid[2] == 1, "grid");
  require(Tile::threads >> a.column_bits > 0, "columns");
  require((a.n_out + (1 << a.column_bits) - 1) >> a.column_bits == a.out_tiles, "tiles");
  for (uint32_t n = 0; n < grid[0]; ++n) {
    const Tile tile(a, n);
    require(static_cast<uint32_t>(tile.pitch) << a.column_bits == shared_bytes, "shared memory");
    require(tile.out0 < a.n_out && tile.block0 * Tile::elements < a.n_in, "a tile beyond the source");
    const Shared staged(shared_bytes);
    for (int thread = 0; thread < Tile::threads; ++thread) tile.make(thread, staged.bytes);
    for (int thread = 0; thread < Tile::threads; ++thread) tile.store(thread, staged.bytes);
  }
}

template <class Type, bool weighed>
void quantize_by(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes, void** parameters) {
  quantize<QuantizeTile<Type, ByRule<Type, weighed>>>(grid, block, shared_bytes, parameters);
}

template <class Type>
struct Searched {
  static void quantize(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes, void** parameters) {
    const int effort = static_cast<const QuantizeArguments*>(parameters[0])->effort;
    require(effort >= 1 && effort <= kEfforts, "effort");
    weightcast::quantize<QuantizeTile<Type, BySearch<Type>>>(grid, block, shared_bytes, parameters);
  }
};
// Plain floats have nothing to search.
template <class Emit>
struct Searched<FloatRows<Emit>> {
  static void quantize(const uint32_t*, const uint32_t*, uint32_t, void**) { require(false, "search"); }
};

template <class Tile>
void dequantize(const uint32_t* grid, const uint32_t* block, uint32_t, void** parameters) {
  const auto& a = *static_cast<const DequantizeArguments*>(parameters[0]);
  require(block[0] == Tile::threads && block[1] == 1 && block[2] == 1, "threads");
  require(grid[1] == 1 && grid[2] == 1, "grid");
  const auto staged = std::make_unique<typename Tile::Staged>();
  for (uint32_t n = 0; n < grid[0]; ++n) {
    const Tile tile(a, n);
    require(tile.count > 0, "a tile beyond the blocks");
    std::memset(static_cast<void*>(staged.get()), 0x5a, sizeof *staged);
    for (int thread = 0; thread < Tile::threads; ++thread) tile.load(thread, *staged);
    for (int thread = 0; thread < Tile::threads; ++thread) tile.make(thread, *staged);
    for (int thread = 0; thread < Tile::threads; ++thread) tile.store(thread, *staged);
  }
}

template <class Step>
void each_thread(const uint32_t* grid, const uint32_t* block, Step step) {
  for (uint32_t n = 0; n < grid[0]; ++n) {
    for (uint32_t thread = 0; thread < block[0]; ++thread) step(int64_t{n} * block[0] + thread);
  }
}

template <class Block>
void measure(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes, void** parameters) {
  const auto& a = *static_cast<const QuantizeArguments*>(parameters[0]);
  const bool rounded = *static_cast<const int32_t*>(parameters[1]) != 0;
  auto* parts = *static_cast<weightcast_moments**>(parameters[2]);
  require(block[0] == 128 && shared_bytes == 0, "threads");
  each_thread(grid, block, [&](int64_t n) { measure_chunk<Block>(a, rounded, parts, n); });
}

#if WC_IN_REGISTERS
template <bool weighed>
void make_groups(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes, void** parameters) {
  const auto& a = *static_cast<const GroupArguments*>(parameters[0]);
  const int64_t n_groups = a.source.n_out * a.groups;
  require(block[0] == kGroupThreads && shared_bytes == 0, "threads");
  require((n_groups + kGroupThreads - 1) / kGroupThreads == grid[0], "grid");
  require(a.group_size * a.groups == a.source.n_in && a.source.dst_stride % 16 == 0, "groups");
  each_thread(grid, block, [&](int64_t n) { DeviceGroup<weighed>(a, n).make(); });
}
#endif

}  // namespace
}  // namespace weightcast

#define WC_KERNEL extern "C" __attribute__((visibility("default"))) void
#define WC_LAUNCH const uint32_t *grid, const uint32_t *block, uint32_t shared_bytes, void **parameters

// A device has a kernel for each type of source; here one form serves them all, under four names.
#define WC_FROM_SOURCE(source, name, ...)                                                   \
  WC_KERNEL name##_from_##source(WC_LAUNCH) {                                               \
    weightcast::require_source(WEIGHTCAST_##source, parameters);                            \
    __VA_ARGS__(grid, block, shared_bytes, parameters);                                     \
  }
#define WC_FROM_SOURCES(name, ...)                                                          \
  WC_FROM_SOURCE(F32, name, __VA_ARGS__)                                                    \
  WC_FROM_SOURCE(F16, name, __VA_ARGS__)                                                    \
  WC_FROM_SOURCE(BF16, name, __VA_ARGS__)                                                   \
  WC_FROM_SOURCE(I8, name, __VA_ARGS__)
#define WC_QUANTIZER(name)                                                                  \
  WC_FROM_SOURCES(weightcast_quantize_##name,                                               \
                  weightcast::quantize_by<weightcast::Quantizer_##name, false>)
#define WC_WEIGHED_QUANTIZER(name)                                                          \
  WC_FROM_SOURCES(weightcast_quantize_weighed_##name,                                       \
                  weightcast::quantize_by<weightcast::Quantizer_##name, true>)
#define WC_SEARCHER(name)                                                                   \
  WC_FROM_SOURCES(weightcast_search_##name, weightcast::Searched<weightcast::Quantizer_##name>::quantize)
#define WC_GROUPS(name, weighed) WC_FROM_SOURCES(name, weightcast::make_groups<weighed>)
#define WC_DEQUANTIZER(name)                                                                \
  WC_KERNEL weightcast_dequantize_##name(WC_LAUNCH) {                                       \
    using Tile = weightcast::DequantizeTile<weightcast::Block##name>;                       \
    weightcast::dequantize<Tile>(grid, block, shared_bytes, parameters);                    \
  }

#define WC_MEASURER(name)                                                                   \
  WC_FROM_SOURCES(weightcast_measure_##name, weightcast::measure<weightcast::Block##name>)

// The quantizers of a type by what types.inc says of importance.
#define WC_IGNORED(name) WC_QUANTIZER(name) WC_SEARCHER(name)
#define WC_OPTIONAL(name) WC_QUANTIZER(name) WC_WEIGHED_QUANTIZER(name) WC_SEARCHER(name)
#define WC_REQUIRED(name) WC_WEIGHED_QUANTIZER(name) WC_SEARCHER(name)
#if WC_IN_REGISTERS
#define WC_REGISTERS(quantizers) quantizers
#define WC_MEMORY(quantizers)
#else
#define WC_REGISTERS(quantizers)
#define WC_MEMORY(quantizers) quantizers
#endif
#define WC_TYPE(name, number, elements, bytes, quantizer, importance, rows) WC_##rows(WC_##importance(name))
#include "types.inc"

#if WC_IN_REGISTERS

WC_GROUPS(weightcast_make_groups, false)
WC_GROUPS(weightcast_make_weighed_groups, true)

#else

#define WC_TYPE(name, ...) WC_DEQUANTIZER(name) WC_MEASURER(name)
#include "types.inc"

// A device has the variable once for each module; here one serves them all.
static std::map<const void*, const void*> tables_of_modules;
static const void* entered;

extern "C" __attribute__((visibility("default"))) void enter_module(const void* module) {
  entered = module;
  const auto found = tables_of_modules.find(module);
  weightcast::device_tables = found == tables_of_modules.end() ? nullptr : found->second;
}

WC_KERNEL weightcast_set_tables(const uint32_t*, const uint32_t*, uint32_t, void** parameters) {
  tables_of_modules[entered] = *static_cast<const void**>(parameters[0]);
}

WC_KERNEL weightcast_check_scales(const uint32_t* grid, const uint32_t* block, uint32_t, void** parameters) {
  const auto& a = *static_cast<const weightcast::CheckArguments*>(parameters[0]);
  weightcast::require(block[0] == weightcast::kCheckThreads, "threads");
  for (uint32_t n = 0; n < grid[0]; ++n) {
    weightcast::ScaleCounts counts{};
    for (uint32_t thread = 0; thread < block[0]; ++thread) {
      weightcast::check_scale(a, int64_t{n} * block[0] + thread, counts);
    }
    weightcast::add_counts(a, counts);
  }
}

WC_KERNEL weightcast_check_importance(const uint32_t* grid, const uint32_t* block, uint32_t,
                                      void** parameters) {
  const auto& a = *static_cast<const weightcast::CheckArguments*>(parameters[0]);
  weightcast::each_thread(grid, block, [&](int64_t n) { weightcast::check_importance(a, n); });
}

WC_KERNEL weightcast_row_means(const uint32_t* grid, const uint32_t* block, uint32_t, void** parameters) {
  const auto& a = *static_cast<const weightcast::QuantizeArguments*>(parameters[0]);
  auto* means = *static_cast<float**>(parameters[1]);
  weightcast::each_thread(grid, block, [&](int64_t n) { weightcast::row_mean(a, means, n); });
}

WC_KERNEL weightcast_add_chunks(const uint32_t* grid, const uint32_t* block, uint32_t, void** parameters) {
  auto* parts = *static_cast<weightcast_moments**>(parameters[0]);
  const int64_t n_out = *static_cast<int64_t*>(parameters[1]);
  const int64_t chunks = *static_cast<int64_t*>(parameters[2]);
  weightcast::each_thread(grid, block, [&](int64_t n) { weightcast::add_chunks(parts, n_out, chunks, n); });
}

#endif
