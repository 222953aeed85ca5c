// Marks functions that must be inlined, so that vectors stay in registers, or must not, and loops to unroll.
#pragma once

#include <cstdint>
#include <cstring>

#define WC_INLINE inline __attribute__((always_inline))
// For functions that several places call, to keep compilation short, or that should leave their stack to others.
#define WC_OUT_OF_LINE __attribute__((noinline))

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
