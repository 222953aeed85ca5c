// Codebooks and 8-bit scale formats that quantizers and dequantizers share.
#pragma once

#include "simd/halves.h"

namespace weightcast {
namespace {

// The 16 values of IQ4_NL and IQ4_XS, ascending. Source: kvalues_iq4nl in ggml-common.h.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

// The 16 values of a 4-bit float (E2M1), doubled so that they are integers; scales are halved.
// The sign bit is the highest, so code 8 is a second zero.
constexpr int8_t kFp4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                   0, -1, -2, -3, -4, -6, -8, -12};

// Half the value of an E8M0 exponent: 2^(e - 128), subnormal for e of 0 and 1. 255, which is NaN in
// the specification, is 2^127 here as in ggml. Source: ggml_e8m0_to_fp32_half.
inline float e8m0_to_f32_half(uint8_t e) {
  const uint32_t exponent = e;
  return bits_float(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
}

// Half the value of an unsigned float of 4 exponent bits (bias 7) and 3 fraction bits. 127, which is
// NaN in the specification, is 0 here as in ggml; the highest bit is ignored otherwise.
// Source: ggml_ue4m3_to_fp32.
inline float ue4m3_to_f32_half(uint8_t x) {
  const uint32_t magnitude = x == 0x7fu ? 0u : x & 0x7fu;
  // As in f16_to_f32: the multiplication rebiases the exponent and normalizes subnormals, exactly.
  return bits_float(magnitude << 20) * 0x1p119f;
}

}  // namespace
}  // namespace weightcast
