// Dequantizers of the K types: super-blocks of 256 with quantized scales of their sub-blocks.
// Source of the operations and their order: dequantize_row_q*_K in ggml-quants.c.
#pragma once

#include "blocks/layouts.h"
#include "dequantize/parts.h"
#include "simd/halves.h"

namespace weightcast {
namespace {

template <>
constexpr int kParts<BlockQ2_K> = 16;
inline void dequantize_part(const BlockQ2_K& block, int b, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const float dmin = f16_to_f32(block.dmin);
  const float dl = d * static_cast<float>(block.scales[b] & 15);
  const float ml = dmin * static_cast<float>(block.scales[b] >> 4);
  const uint8_t* qs = block.qs + 32 * (b / 8) + 16 * (b % 2);
  const int n = b / 2 % 4;  // bits 2 * n of half b / 8
  for (int m = 0; m < 16; ++m) {
    x[16 * b + m] = dl * static_cast<float>(qs[m] >> 2 * n & 3) - ml;
  }
}

// The 6-bit scale of sub-block b of a Q3_K block, 0 to 63.
inline int scale_q3_k(const uint8_t (&scales)[12], int b) {
  const int low = scales[b % 8] >> 4 * (b / 8) & 15;
  const int high = scales[8 + b % 4] >> 2 * (b / 4) & 3;
  return low | high << 4;
}

template <>
constexpr int kParts<BlockQ3_K> = 16;
inline void dequantize_part(const BlockQ3_K& block, int b, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const float dl = d * static_cast<float>(scale_q3_k(block.scales, b) - 32);
  const uint8_t* qs = block.qs + 32 * (b / 8) + 16 * (b % 2);
  const uint8_t* hmask = block.hmask + 16 * (b % 2);
  const int n = b / 2 % 4;
  for (int m = 0; m < 16; ++m) {
    const int q = (qs[m] >> 2 * n & 3) | (hmask[m] >> b / 2 & 1) << 2;
    x[16 * b + m] = dl * static_cast<float>(q - 4);
  }
}

// The 6-bit scale and minimum of sub-block b of a Q4_K or Q5_K block.
struct ScaleMin {
  float scale, min;
};
inline ScaleMin scale_min_k4(const uint8_t (&scales)[12], int b) {
  int scale, min;
  if (b < 4) {
    scale = scales[b] & 63;
    min = scales[b + 4] & 63;
  } else {
    scale = (scales[b + 4] & 15) | scales[b - 4] >> 6 << 4;
    min = scales[b + 4] >> 4 | scales[b] >> 6 << 4;
  }
  return {static_cast<float>(scale), static_cast<float>(min)};
}

template <>
constexpr int kParts<BlockQ4_K> = 4;
inline void dequantize_part(const BlockQ4_K& block, int pair, float* __restrict x) {
  const int b = 2 * pair;
  const float d = f16_to_f32(block.d);
  const float dmin = f16_to_f32(block.dmin);
  const ScaleMin low = scale_min_k4(block.scales, b);
  const ScaleMin high = scale_min_k4(block.scales, b + 1);
  const float dl = d * low.scale, ml = dmin * low.min;
  const float dh = d * high.scale, mh = dmin * high.min;
  const uint8_t* qs = block.qs + 16 * b;
  for (int m = 0; m < 32; ++m) {
    x[32 * b + m] = dl * static_cast<float>(qs[m] & 15) - ml;
    x[32 * b + 32 + m] = dh * static_cast<float>(qs[m] >> 4) - mh;
  }
}

template <>
constexpr int kParts<BlockQ5_K> = 8;
inline void dequantize_part(const BlockQ5_K& block, int b, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const float dmin = f16_to_f32(block.dmin);
  const ScaleMin s = scale_min_k4(block.scales, b);
  const float dl = d * s.scale;
  const float ml = dmin * s.min;
  const uint8_t* qs = block.qs + 32 * (b / 2);
  for (int m = 0; m < 32; ++m) {
    const int q = (qs[m] >> 4 * (b % 2) & 15) | (block.qh[m] >> b & 1) << 4;
    x[32 * b + m] = dl * static_cast<float>(q) - ml;
  }
}

template <>
constexpr int kParts<BlockQ6_K> = 16;
inline void dequantize_part(const BlockQ6_K& block, int b, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const float dl = d * static_cast<float>(block.scales[b]);
  const int n = b / 2 % 4;
  const uint8_t* ql = block.ql + 64 * (b / 8) + 32 * (n % 2) + 16 * (b % 2);
  const uint8_t* qh = block.qh + 32 * (b / 8) + 16 * (b % 2);
  for (int m = 0; m < 16; ++m) {
    const int q = (ql[m] >> 4 * (n / 2) & 15) | (qh[m] >> 2 * n & 3) << 4;
    x[16 * b + m] = dl * static_cast<float>(q - 32);
  }
}

}  // namespace
}  // namespace weightcast
