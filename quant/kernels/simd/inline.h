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

// Promises a condition to the compiler of a device, so that it leaves out what contradicts it.
#ifdef __CUDACC__
#define WC_ASSUME(condition) __builtin_assume(condition)
#else
#define WC_ASSUME(condition)
#endif
