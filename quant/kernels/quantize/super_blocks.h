// Levels of a super-block of 256, and the packing of their bits, for all K types.
#pragma once

#include "blocks/layouts.h"
#include "quantize/fits.h"

namespace weightcast {
namespace {

// The levels of a super-block, a byte each, kLanes columns side by side.
struct alignas(64) Levels {
  uint8_t q[kSuper * kLanes];

  WC_INLINE uint8_t* row(int i) { return q + i * kLanes; }
  WC_INLINE const uint8_t* row(int i) const { return q + i * kLanes; }
  WC_INLINE Bytes rows(int i) { return {row(i)}; }
};

// The mean of x * x over a super-block, summed in order, times `factor`: ggml's sigma2.
inline F super_sigma2(Strip x, float factor) {
  constexpr int run = 32;
  F sum = 0.0f;
  for (int first = 0; first < kSuper; first += run) {
    const auto rows = read<run>(x + first);
WC_UNROLL
    for (int i = 0; i < run; ++i) sum += rows[i] * rows[i];
  }
  return factor * sum / static_cast<float>(kSuper);
}

// Pack levels of 0 to 3: byte l of each half holds those of rows l, l + 32, l + 64 and l + 96.
inline void pack_two_bits(const Levels& levels, Bytes out) {
  for (int half = 0; half < 2; ++half) {
    const uint8_t* q = levels.row(128 * half);
    uint8_t* to = out[32 * half];
    for (int i = 0; i < 32 * kLanes; ++i) {
      to[i] = static_cast<uint8_t>((q[i] & 3) | (q[i + 32 * kLanes] & 3) << 2 |
                                   (q[i + 64 * kLanes] & 3) << 4 | (q[i + 96 * kLanes] & 3) << 6);
    }
  }
}

// Pack the low four bits: rows l and l + 32 of each 64 share a byte.
inline void pack_nibbles(const Levels& levels, Bytes out) {
  for (int j = 0; j < kSuper / 64; ++j) {
    const uint8_t* q = levels.row(64 * j);
    uint8_t* to = out[32 * j];
    for (int i = 0; i < 32 * kLanes; ++i) {
      to[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 32 * kLanes] << 4);
    }
  }
}

}  // namespace
}  // namespace weightcast
