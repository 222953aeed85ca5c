// What block quantizers read: in-rows of neighbouring output columns, x[i] being row i.
#pragma once

#ifdef WC_DEVICE
#include "device/strip.h"
#else

#include "simd/lanes.h"

namespace weightcast {
namespace {

constexpr int kWidth = 64;  // out-columns of a tile: one cache line of int8
static_assert(kWidth % kLanes == 0, "a tile is whole strips");

// One strip of a tile: kLanes columns.
struct Strip {
  const float* first;

  WC_INLINE F operator[](int i) const { return load(first + i * kWidth); }
  WC_INLINE Strip operator+(int rows) const { return {first + rows * kWidth}; }
};

}  // namespace
}  // namespace weightcast
#endif
