// Dequantizers of the types whose codes index 16 values: IQ4_NL, IQ4_XS, MXFP4, NVFP4.
// Source of the operations and their order: dequantize_row_* in ggml-quants.c.
#pragma once

#include "blocks/codebooks.h"
#include "blocks/layouts.h"
#include "dequantize/parts.h"

namespace weightcast {
namespace {

// Dequantize `bytes` bytes of nibbles: first all low halves, then all high halves.
template <int bytes>
inline void dequantize_nibbles(const uint8_t* qs, const int8_t (&values)[16], float d,
                               float* __restrict x) {
  for (int j = 0; j < bytes; ++j) {
    x[j] = static_cast<float>(values[qs[j] & 15]) * d;
    x[j + bytes] = static_cast<float>(values[qs[j] >> 4]) * d;
  }
}

inline void dequantize_block(const BlockMXFP4& block, float* __restrict x) {
  dequantize_nibbles<16>(block.qs, kFp4Values, e8m0_to_f32_half(block.e), x);
}

inline void dequantize_block(const BlockNVFP4& block, float* __restrict x) {
  for (int s = 0; s < 4; ++s) {
    const float d = ue4m3_to_f32_half(block.d[s]);
    dequantize_nibbles<8>(block.qs + 8 * s, kFp4Values, d, x + 16 * s);
  }
}

inline void dequantize_block(const BlockIQ4_NL& block, float* __restrict x) {
  dequantize_nibbles<16>(block.qs, kIq4Values, f16_to_f32(block.d), x);
}

template <>
constexpr int kParts<BlockIQ4_XS> = 8;
inline void dequantize_part(const BlockIQ4_XS& block, int b, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const int low = block.scales_l[b / 2] >> 4 * (b % 2) & 15;
  const int high = block.scales_h >> 2 * b & 3;
  const float dl = d * static_cast<float>((low | high << 4) - 32);
  dequantize_nibbles<16>(block.qs + 16 * b, kIq4Values, dl, x + 32 * b);
}

}  // namespace
}  // namespace weightcast
