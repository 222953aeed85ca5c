// Marks functions that must be inlined, so that vectors stay in registers, and loops to unroll.
#pragma once

#include <cstdint>
#include <cstring>

#define WC_INLINE inline __attribute__((always_inline))

// Goes before a loop that must be unrolled on a device, so that arrays it indexes stay in registers.
#ifdef __CUDACC__
#define WC_UNROLL _Pragma("unroll")
#else
#define WC_UNROLL
#endif
