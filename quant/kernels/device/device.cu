// Entry points of the device kernels. NVRTC compiles one unit per type and operation. A macro selects the
// unit: WC_QUANTIZE, WC_DEQUANTIZE or WC_MEASURE, each with the name of a type, WC_GROUPS or WC_CHECKS.
// WC_SOURCE, the name of the source's element type, goes with all that read weights but the checks.
// WC_WEIGHED makes quantizers and groups use an importance; WC_SEARCH makes quantizers search for the least
// error, with an importance or without. All arithmetic is in headers that the CPU library shares; the Python
// module that runs NVRTC sets the options that keep its bits.
#define WC_DEVICE __device__

// The number of a thread in its launch.
#define WC_PLACE (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x)

#define WC_JOIN_2(a, b) a##b
#define WC_JOIN(a, b) WC_JOIN_2(a, b)

#ifdef WC_SOURCE
#define WC_SOURCE_NUMBER WC_JOIN(WEIGHTCAST_, WC_SOURCE)
#define WC_FROM_SOURCE(name) WC_JOIN(WC_JOIN(name, _from_), WC_SOURCE)
#endif

#if defined(WC_QUANTIZE)
enum { MEMORY, REGISTERS };
enum {
#define WC_TYPE(name, number, elements, bytes, quantizer, importance, rows) rows_of_##name = rows,
#include "types.inc"
};
#define WC_IN_REGISTERS (WC_JOIN(rows_of_, WC_QUANTIZE) == REGISTERS)
#include "device/types.h"

using Type = weightcast::WC_JOIN(Quantizer_, WC_QUANTIZE);
#if defined(WC_SEARCH)
#include "device/search.h"
#define WC_SYMBOL WC_FROM_SOURCE(WC_JOIN(weightcast_search_, WC_QUANTIZE))
using Maker = weightcast::BySearch<Type>;
#elif defined(WC_WEIGHED)
#define WC_SYMBOL WC_FROM_SOURCE(WC_JOIN(weightcast_quantize_weighed_, WC_QUANTIZE))
using Maker = weightcast::ByRule<Type, true>;
#else
#define WC_SYMBOL WC_FROM_SOURCE(WC_JOIN(weightcast_quantize_, WC_QUANTIZE))
using Maker = weightcast::ByRule<Type, false>;
#endif
using Tile = weightcast::QuantizeTile<Type, Maker>;

// Measurements compare other numbers of thread blocks.
#if defined(WC_SEARCH) && !defined(WC_RESIDENT_BLOCKS)
#define WC_RESIDENT_BLOCKS 0
#elif !defined(WC_RESIDENT_BLOCKS)
#define WC_RESIDENT_BLOCKS weightcast::kResidentBlocks<Type>
#endif

extern "C" __global__ void __launch_bounds__(Tile::threads, WC_RESIDENT_BLOCKS)
    WC_SYMBOL(const __grid_constant__ weightcast::QuantizeArguments a) {
  extern __shared__ __align__(16) uint8_t staged[];
  const Tile tile(a, blockIdx.x);
  tile.make(static_cast<int>(threadIdx.x), staged);
  __syncthreads();
  tile.store(static_cast<int>(threadIdx.x), staged);
}

// Set the address of the tables of a grid, for the types that have one.
extern "C" __global__ void weightcast_set_tables(const void* tables) {
  weightcast::device_tables = tables;
}

#elif defined(WC_GROUPS)
#define WC_IN_REGISTERS true
#include "device/groups.h"

#ifdef WC_WEIGHED
#define WC_SYMBOL WC_FROM_SOURCE(weightcast_make_weighed_groups)
constexpr bool kWeighed = true;
#else
#define WC_SYMBOL WC_FROM_SOURCE(weightcast_make_groups)
constexpr bool kWeighed = false;
#endif

// Four thread blocks fit a multiprocessor. Without the limit the compiler takes more registers, and
// spills no less.
extern "C" __global__ void __launch_bounds__(weightcast::kGroupThreads, 4)
    WC_SYMBOL(const __grid_constant__ weightcast::GroupArguments a) {
  weightcast::DeviceGroup<kWeighed>(a, WC_PLACE).make();
}

#elif defined(WC_DEQUANTIZE)
#include "device/blocks.h"

using Tile = weightcast::DequantizeTile<weightcast::WC_JOIN(Block, WC_DEQUANTIZE)>;

extern "C" __global__ void __launch_bounds__(Tile::threads)
    WC_JOIN(weightcast_dequantize_, WC_DEQUANTIZE)(const __grid_constant__ weightcast::DequantizeArguments a) {
  __shared__ Tile::Staged staged;
  const Tile tile(a, blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  tile.load(thread, staged);
  __syncthreads();
  tile.make(thread, staged);
  __syncthreads();
  tile.store(thread, staged);
}

#elif defined(WC_MEASURE)
#include "device/errors.h"

extern "C" __global__ void __launch_bounds__(128)
    WC_FROM_SOURCE(WC_JOIN(weightcast_measure_, WC_MEASURE))(
        const __grid_constant__ weightcast::QuantizeArguments a, int32_t rounded,
        weightcast_moments* parts) {
  weightcast::measure_chunk<weightcast::WC_JOIN(Block, WC_MEASURE)>(a, rounded != 0, parts, WC_PLACE);
}

extern "C" __global__ void __launch_bounds__(128)
    weightcast_add_chunks(weightcast_moments* parts, int64_t n_out, int64_t chunks) {
  weightcast::add_chunks(parts, n_out, chunks, WC_PLACE);
}

#elif defined(WC_CHECKS)
#include "device/checks.h"

extern "C" __global__ void __launch_bounds__(weightcast::kCheckThreads)
    weightcast_check_scales(const __grid_constant__ weightcast::CheckArguments a) {
  __shared__ weightcast::ScaleCounts counts;
  if (threadIdx.x == 0) counts = {};
  __syncthreads();
  weightcast::check_scale(a, WC_PLACE, counts);
  __syncthreads();
  if (threadIdx.x == 0) weightcast::add_counts(a, counts);
}

extern "C" __global__ void __launch_bounds__(weightcast::kCheckThreads)
    weightcast_check_importance(const __grid_constant__ weightcast::CheckArguments a) {
  weightcast::check_importance(a, WC_PLACE);
}

extern "C" __global__ void __launch_bounds__(weightcast::kCheckThreads)
    weightcast_row_means(const __grid_constant__ weightcast::QuantizeArguments a, float* means) {
  weightcast::row_mean(a, means, WC_PLACE);
}
#endif
