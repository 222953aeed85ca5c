// Functions that must be inlined: vectors are passed in registers then.
#pragma once

#include <cstdint>
#include <cstring>

#define WC_INLINE inline __attribute__((always_inline))

// Before a loop that must be unrolled on a device, so that arrays it indexes stay in registers.
#ifdef __CUDACC__
#define WC_UNROLL _Pragma("unroll")
#else
#define WC_UNROLL
#endif
