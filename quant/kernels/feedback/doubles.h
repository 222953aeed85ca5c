// Doubles of error feedback: rows of a weight matrix side by side, one a lane.
//
// Every operation is the scalar one in each lane and nothing is added across lanes, so results have the same
// bits with vectors of any width.
#pragma once

#include "simd/doubles.h"

namespace weightcast {
namespace {

WC_INLINE D load_doubles(const double* p) {
  D x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
WC_INLINE void store_doubles(double* p, D x) { std::memcpy(p, &x, sizeof x); }

}  // namespace
}  // namespace weightcast
