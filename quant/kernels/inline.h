// Functions that must be inlined: vectors are passed in registers then.
#pragma once

#include <cstdint>
#include <cstring>

#define WC_INLINE inline __attribute__((always_inline))
