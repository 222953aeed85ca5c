// Q8_0: 32 int8 codes and one float16 scale, x = d * q, effectively 8.5 bits per weight.
// Source of the rule: quantize_row_q8_0_ref in ggml.
#pragma once

#include "blocks.h"
#include "source.h"

namespace weightcast {
namespace {

constexpr int kQ8Elements = BlockQ8_0::elements;

// The codes and scales of one tile, a block per column.
struct alignas(64) TileQ8_0 {
  int8_t q[kQ8Elements][kWidth];
  uint16_t d[kWidth];
};

// round_away, one value.
inline int32_t away(float x) {
  const float half = bits_float((float_bits(x) & 0x80000000u) | 0x3effffffu);
  return static_cast<int32_t>(x + half);
}

// ggml's rule, one block per lane: d = max |x| / 127, q = round(x / d).
inline void quantize_tile_q8_0(const Tile& tile, TileQ8_0& out) {
  alignas(64) float amax[kWidth] = {};
  for (int i = 0; i < kQ8Elements; ++i) {
    for (int c = 0; c < kWidth; ++c) {
      const float a = bits_float(float_bits(tile.x[i][c]) & 0x7fffffffu);
      amax[c] = amax[c] > a ? amax[c] : a;
    }
  }
  alignas(64) float inverse[kWidth];
  for (int c = 0; c < kWidth; ++c) {
    const float d = amax[c] / 127.0f;
    // At 2^-128 and below 1 / d is infinite: ggml's codes are then the low byte of x86's answer to
    // a float beyond int32, which is 0. (C++ leaves that conversion undefined.)
    inverse[c] = d > 0x1p-128f ? 1.0f / d : 0.0f;
    out.d[c] = f32_to_f16(d);
  }
  for (int i = 0; i < kQ8Elements; ++i) {
    for (int c = 0; c < kWidth; ++c) {
      out.q[i][c] = static_cast<int8_t>(away(tile.x[i][c] * inverse[c]));
    }
  }
}

}  // namespace
}  // namespace weightcast
