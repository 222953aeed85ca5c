// Vectors of doubles: D holds kDoubles of them, half as many as there are floats in a vector.
#pragma once

#include "simd/lanes.h"

namespace weightcast {
namespace {

#ifdef WC_VECTOR
constexpr int kDoubles = kVector / 2;
using D = VD;
#else
constexpr int kDoubles = 1;
using D = double;
#endif

}  // namespace
}  // namespace weightcast
