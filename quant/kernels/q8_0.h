// Q8_0: 32 int8 codes and one float16 scale, x = d * q, effectively 8.5 bits per weight.
// Source of the layout and of the rule: block_q8_0 and quantize_row_q8_0_ref in ggml.
#pragma once

#include "source.h"

namespace weightcast {
namespace {

constexpr int kQ8Elements = 32;

struct BlockQ8_0 {
  uint16_t d;  // float16
  int8_t qs[kQ8Elements];
};
static_assert(sizeof(BlockQ8_0) == 34, "Q8_0 is 34 bytes per 32 weights");

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
    inverse[c] = d != 0.0f ? 1.0f / d : 0.0f;
    out.d[c] = f32_to_f16(d);
  }
  for (int i = 0; i < kQ8Elements; ++i) {
    for (int c = 0; c < kWidth; ++c) {
      out.q[i][c] = static_cast<int8_t>(away(tile.x[i][c] * inverse[c]));
    }
  }
}

inline void dequantize_block_q8_0(const BlockQ8_0& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < kQ8Elements; ++i) x[i] = static_cast<float>(block.qs[i]) * d;
}

}  // namespace
}  // namespace weightcast
