// Strip: what a block quantizer reads. x[i] is in-row i of kLanes neighbouring output columns of a tile
// or, on a device, of one column (device/strip.h).
#pragma once

#ifdef WC_DEVICE
#include "device/strip.h"
#else

#include "simd/lanes.h"

namespace weightcast {
namespace {

constexpr int kWidth = 64;  // out-columns of a tile: one cache line of int8
static_assert(kWidth % kLanes == 0, "a tile is whole strips");

// kLanes columns of a tile, from some in-row on.
struct Strip {
  const float* first;

  WC_INLINE F operator[](int i) const { return load(first + i * kWidth); }
  WC_INLINE Strip operator+(int rows) const { return {first + rows * kWidth}; }
};

// Read the first n rows of a strip, which takes effect on a device: here a tile is in the cache.
template <int n>
WC_INLINE Strip read(Strip strip) {
  return strip;
}

}  // namespace
}  // namespace weightcast
#endif
