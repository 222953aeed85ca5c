// Detects blocks with a float16 scale that is infinite or NaN.
#pragma once

#include "simd/lanes.h"

namespace weightcast {
namespace {

template <int... halves>
bool column_overflows([[maybe_unused]] Bytes block, [[maybe_unused]] int c, Halves<halves...>) {
  return (((block[halves + 1][c] & 0x7c) == 0x7c) || ...);
}

template <int... halves>
bool has_overflow(Bytes block, Halves<halves...> list) {
  bool found = false;
  for (int c = 0; c < kLanes; ++c) found |= column_overflows(block, c, list);
  return found;
}

}  // namespace
}  // namespace weightcast
