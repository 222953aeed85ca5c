// The device kernels' report on a source: bad values and counts.
#pragma once

#include <cstdint>

namespace weightcast {
namespace {

// Places are kept as ~place, so that 0 stands for none and the largest for the first place.
// Elements are numbered out * n_in + in, scales group * n_out + out.
struct Found {
  uint64_t not_finite;      // elements that are NaN or infinite
  uint64_t overflow;        // elements, or the first of a block, whose output overflows
  uint64_t bad_scale;       // scales that are NaN, infinite or 2^121 and more
  uint64_t bad_importance;  // columns with an importance that is negative, infinite or NaN
  uint64_t exact_blocks;    // Q8_0 from I8: blocks with a scale that float16 holds
  uint64_t inexact_scales;  // scales that it does not hold
};

WC_DEVICE inline void note(uint64_t& field, int64_t place) {
  atomicMax(reinterpret_cast<unsigned long long*>(&field), ~static_cast<unsigned long long>(place));
}

WC_DEVICE inline void count(uint64_t& field, uint64_t more) {
  atomicAdd(reinterpret_cast<unsigned long long*>(&field), static_cast<unsigned long long>(more));
}
WC_DEVICE inline void count(uint32_t& field, uint32_t more) { atomicAdd(&field, more); }

}  // namespace
}  // namespace weightcast
