// Dequantizers of the IQ types with grids. Products are rounded in ggml's order. A part is 32 weights.
// Source of the rules: dequantize_row_iq2_xxs ... dequantize_row_iq1_m in ggml-quants.c.
#pragma once

#include "blocks/iq_grids.h"
#include "blocks/iq_layouts.h"
#include "dequantize/parts.h"
#include "simd/halves.h"

namespace weightcast {
namespace {

// Dequantize n weights of a group: levels of `bits` bits in `entry`, signs from bit 0 of `signs` on.
template <int n, int bits, class Value>
inline void dequantize_group(uint32_t entry, uint32_t signs, float scale, Value value, float* x) {
  for (int j = 0; j < n; ++j) {
    const int level = static_cast<int>(entry >> bits * j) & ((1 << bits) - 1);
    const float magnitude = scale * static_cast<float>(value(level));
    x[j] = bits_float(float_bits(magnitude) ^ (signs >> j & 1) << 31);
  }
}

template <>
constexpr int kParts<BlockIQ2_XXS> = kIQElements / 32;
inline void dequantize_part(const BlockIQ2_XXS& block, int ib, float* x) {
  const float d = f16_to_f32(block.d);
  const uint32_t indices = two_halves(block.qs[ib]), rest = two_halves(block.qs[ib] + 2);
  const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.25f;
  x += 32 * ib;
  for (int k = 0; k < 4; ++k, x += 8) {
    const uint32_t entry = kGridIQ2XXS[indices >> 8 * k & 255];
    dequantize_group<8, 2>(entry, eight_signs(rest >> 7 * k), scale, value_iq2, x);
  }
}

template <>
constexpr int kParts<BlockIQ2_XS> = kIQElements / 32;
inline void dequantize_part(const BlockIQ2_XS& block, int part, float* x) {
  const float d = f16_to_f32(block.d);
  x += 32 * part;
  for (int k = 4 * part; k < 4 * part + 4; ++k, x += 8) {
    const int s = block.scales[k / 4] >> 4 * (k / 2 % 2) & 15;
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    const uint32_t q = block.qs[k];
    dequantize_group<8, 2>(kGridIQ2XS[q & 511], eight_signs(q >> 9), scale, value_iq2, x);
  }
}

template <>
constexpr int kParts<BlockIQ2_S> = kIQElements / 32;
inline void dequantize_part(const BlockIQ2_S& block, int part, float* x) {
  const float d = f16_to_f32(block.d);
  x += 32 * part;
  for (int k = 4 * part; k < 4 * part + 4; ++k, x += 8) {
    const int s = block.scales[k / 4] >> 4 * (k / 2 % 2) & 15;
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    const int index = block.qs[k] | (block.qh[k / 4] >> 2 * (k % 4) & 3) << 8;
    dequantize_group<8, 2>(kGridIQ2S[index], block.signs[k], scale, value_iq2, x);
  }
}

template <>
constexpr int kParts<BlockIQ3_XXS> = kIQElements / 32;
inline void dequantize_part(const BlockIQ3_XXS& block, int ib, float* x) {
  const float d = f16_to_f32(block.d);
  const uint32_t rest = two_halves(block.ss[ib]);
  const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.5f;
  x += 32 * ib;
  for (int k = 0; k < 4; ++k, x += 8) {
    const uint32_t signs = eight_signs(rest >> 7 * k);
    const uint8_t* q = block.qs + 8 * ib + 2 * k;
    dequantize_group<4, 3>(kGridIQ3XXS[q[0]], signs, scale, value_iq3_xxs, x);
    dequantize_group<4, 3>(kGridIQ3XXS[q[1]], signs >> 4, scale, value_iq3_xxs, x + 4);
  }
}

template <>
constexpr int kParts<BlockIQ3_S> = kIQElements / 32;
inline void dequantize_part(const BlockIQ3_S& block, int part, float* x) {
  const float d = f16_to_f32(block.d);
  x += 32 * part;
  for (int k = 8 * part; k < 8 * part + 8; ++k, x += 4) {
    const int s = block.scales[k / 16] >> 4 * (k / 8 % 2) & 15;
    const float scale = d * static_cast<float>(1 + 2 * s);
    const int index = block.qs[k] | (block.qh[k / 8] >> k % 8 & 1) << 8;
    const uint32_t signs = static_cast<uint32_t>(block.signs[k / 2]) >> 4 * (k % 2);
    dequantize_group<4, 3>(kGridIQ3S[index], signs, scale, value_iq3_s, x);
  }
}

// Dequantize 8 weights of IQ1: x = scale * (value + delta).
inline void dequantize_group_iq1(uint32_t entry, float scale, float delta, float* x) {
  for (int j = 0; j < 8; ++j) {
    x[j] = scale * (static_cast<float>(value_iq1(static_cast<int>(entry >> 2 * j & 3))) + delta);
  }
}

template <>
constexpr int kParts<BlockIQ1_S> = kIQElements / 32;
inline void dequantize_part(const BlockIQ1_S& block, int part, float* x) {
  const float d = f16_to_f32(block.d);
  x += 32 * part;
  for (int k = 4 * part; k < 4 * part + 4; ++k, x += 8) {
    const int qh = block.qh[k / 4];
    const float scale = d * static_cast<float>(2 * (qh >> 12 & 7) + 1);
    const float delta = (qh & 0x8000) != 0 ? -kIQ1Delta : kIQ1Delta;
    const int index = block.qs[k] | (qh >> 3 * (k % 4) & 7) << 8;
    dequantize_group_iq1(kGridIQ1[index], scale, delta, x);
  }
}

template <>
constexpr int kParts<BlockIQ1_M> = kIQElements / 32;
inline void dequantize_part(const BlockIQ1_M& block, int part, float* x) {
  const uint16_t* sc = block.scales;
  const int bits = sc[0] >> 12 | (sc[1] >> 12) << 4 | (sc[2] >> 12) << 8 | (sc[3] >> 12) << 12;
  const float d = f16_to_f32(static_cast<uint16_t>(bits));
  x += 32 * part;
  for (int k = 4 * part; k < 4 * part + 4; ++k, x += 8) {
    const int s = sc[k / 8] >> 3 * (k / 2 % 4) & 7;
    const float scale = d * static_cast<float>(2 * s + 1);
    const int qh = block.qh[k / 2] >> 4 * (k % 2);
    const float delta = (qh & 8) != 0 ? -kIQ1Delta : kIQ1Delta;
    dequantize_group_iq1(kGridIQ1[block.qs[k] | (qh & 7) << 8], scale, delta, x);
  }
}

}  // namespace
}  // namespace weightcast
