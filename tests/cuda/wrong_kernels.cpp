// Kernels that are wrong in one bit, for the test that they are not used: they call the right ones,
// which RIGHT_KERNELS names, and spoil what these made.
#include <dlfcn.h>

#include <cstdint>

#define WC_DEVICE
unsigned long long atomicMax(unsigned long long*, unsigned long long);
unsigned long long atomicAdd(unsigned long long*, unsigned long long);
unsigned atomicAdd(unsigned*, unsigned);

#include "device/blocks.h"
#include "device/tile.h"

using Kernel = void (*)(const uint32_t*, const uint32_t*, uint32_t, void**);

static void right(const char* name, const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes,
                  void** parameters) {
  static void* library = dlopen(RIGHT_KERNELS, RTLD_NOW | RTLD_LOCAL);
  reinterpret_cast<Kernel>(dlsym(library, name))(grid, block, shared_bytes, parameters);
}

#define WRONG(name) \
  extern "C" void name(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes, void** parameters)

// The last bit of the last row.
WRONG(weightcast_quantize_Q4_0_from_F32) {
  right("weightcast_quantize_Q4_0_from_F32", grid, block, shared_bytes, parameters);
  const auto& a = *static_cast<const weightcast::QuantizeArguments*>(parameters[0]);
  a.dst[(a.n_out - 1) * a.dst_stride + a.row_bytes - 1] ^= 0x80;
}

// The last bit of the last value.
WRONG(weightcast_dequantize_Q4_0) {
  right("weightcast_dequantize_Q4_0", grid, block, shared_bytes, parameters);
  const auto& a = *static_cast<const weightcast::DequantizeArguments*>(parameters[0]);
  reinterpret_cast<uint8_t*>(a.dst)[a.n_blocks * 32 * 4 - 4] ^= 1;
}
