// Conversions between float32 and float16 or bfloat16, on bit patterns, rounding to nearest even.
// They have no branches, so that loops vectorize; devices use the same code.
#pragma once

#include <cstdint>
#include <cstring>

namespace weightcast {
namespace {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

// Overflow gives infinity, NaN a quiet NaN.
inline uint16_t f32_to_f16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // From 2^-14 on: rebias the exponent, rounding the 13 dropped bits to even; a carry moves up.
  const uint32_t normal = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Below: adding 0.5, whose last place is 2^-24, lets the adder do the rounding.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
}

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t shifted = (h & 0x7fffu) << 13;
  // The multiplication rebiases the exponent and normalizes subnormals, both exactly.
  const uint32_t finite = float_bits(bits_float(shifted) * 0x1p112f);
  const uint32_t special = shifted | 0x7f800000u;
  return bits_float(sign | (shifted >= 0x0f800000u ? special : finite));
}

inline uint16_t f32_to_bf16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 64u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

inline float bf16_to_f32(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

}  // namespace
}  // namespace weightcast
