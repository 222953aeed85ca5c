// Dequantizers of the types with one scale a block: Q4_0 to Q8_0, Q1_0, Q2_0 and the ternary ones.
//
// Each writes Block::elements floats. The operations and their order are those of ggml's
// dequantize_row_*, so the floats are the same bit for bit. Loops have no branches and vectorize.
#pragma once

#include "blocks/layouts.h"
#include "dequantize/parts.h"
#include "simd/halves.h"

namespace weightcast {
namespace {

inline void dequantize_block(const BlockF32& block, float* __restrict x) { x[0] = block.x; }
inline void dequantize_block(const BlockF16& block, float* __restrict x) {
  x[0] = f16_to_f32(block.x);
}
inline void dequantize_block(const BlockBF16& block, float* __restrict x) {
  x[0] = bf16_to_f32(block.x);
}

inline void dequantize_block(const BlockQ4_0& block, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < 16; ++j) {
    x[j] = static_cast<float>((block.qs[j] & 15) - 8) * d;
    x[j + 16] = static_cast<float>((block.qs[j] >> 4) - 8) * d;
  }
}

inline void dequantize_block(const BlockQ4_1& block, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const float m = f16_to_f32(block.m);
  for (int j = 0; j < 16; ++j) {
    x[j] = static_cast<float>(block.qs[j] & 15) * d + m;
    x[j + 16] = static_cast<float>(block.qs[j] >> 4) * d + m;
  }
}

// Four bytes of bit fields, the first byte lowest.
inline uint32_t word_of(const uint8_t* bytes) {
  return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16 |
         static_cast<uint32_t>(bytes[3]) << 24;
}

// Unpack the 5-bit codes of Q5_0 and Q5_1.
inline void unpack_q5(const uint8_t (&qs)[16], const uint8_t (&qh)[4], int (&q)[32]) {
  const uint32_t fifth = word_of(qh);
  for (int j = 0; j < 16; ++j) {
    q[j] = (qs[j] & 15) | static_cast<int>(fifth >> j & 1u) << 4;
    q[j + 16] = (qs[j] >> 4) | static_cast<int>(fifth >> (j + 16) & 1u) << 4;
  }
}

inline void dequantize_block(const BlockQ5_0& block, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  int q[32];
  unpack_q5(block.qs, block.qh, q);
  for (int j = 0; j < 32; ++j) x[j] = static_cast<float>(q[j] - 16) * d;
}

inline void dequantize_block(const BlockQ5_1& block, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const float m = f16_to_f32(block.m);
  int q[32];
  unpack_q5(block.qs, block.qh, q);
  for (int j = 0; j < 32; ++j) x[j] = static_cast<float>(q[j]) * d + m;
}

inline void dequantize_block(const BlockQ8_0& block, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < 32; ++j) x[j] = static_cast<float>(block.qs[j]) * d;
}

template <>
constexpr int kParts<BlockQ1_0> = 4;
inline void dequantize_part(const BlockQ1_0& block, int b, float* __restrict x) {
  const uint32_t d = float_bits(f16_to_f32(block.d));
  const uint32_t minus = ~word_of(block.qs + 4 * b);
  for (int j = 0; j < 32; ++j) x[32 * b + j] = bits_float(d ^ minus >> j << 31);
}

inline void dequantize_block(const BlockQ2_0& block, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  for (int b = 0; b < 4; ++b) {
    const uint32_t codes = word_of(block.qs + 4 * b);
    for (int j = 0; j < 16; ++j) {
      x[16 * b + j] = static_cast<float>(static_cast<int>(codes >> 2 * j & 3u) - 1) * d;
    }
  }
}

// Unpack the first `digits` base-3 digits of `bytes` fractions, digit by digit, minus one, times d.
template <int bytes, int digits>
inline void dequantize_trits(const uint8_t* qs, float d, float* __restrict x) {
  uint32_t power = 1;
  for (int n = 0; n < digits; ++n, power *= 3) {
    for (int m = 0; m < bytes; ++m) {
      const uint32_t fraction = qs[m] * power & 0xffu;  // shifted left by n digits
      x[n * bytes + m] = static_cast<float>(static_cast<int>(fraction * 3 >> 8) - 1) * d;
    }
  }
}

inline void dequantize_block(const BlockTQ1_0& block, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  dequantize_trits<32, 5>(block.qs, d, x);
  dequantize_trits<16, 5>(block.qs + 32, d, x + 160);
  dequantize_trits<4, 4>(block.qh, d, x + 240);
}

template <>
constexpr int kParts<BlockTQ2_0> = 8;
inline void dequantize_part(const BlockTQ2_0& block, int b, float* __restrict x) {
  const float d = f16_to_f32(block.d);
  const uint8_t* qs = block.qs + 32 * (b / 4);
  for (int m = 0; m < 32; ++m) {
    x[32 * b + m] = static_cast<float>((qs[m] >> 2 * (b % 4) & 3) - 1) * d;
  }
}

}  // namespace
}  // namespace weightcast
