// Quantizers of 4-bit floats: MXFP4 with an exponent for every 32 weights, NVFP4 with an unsigned 8-bit
// float for every 16. Sources: quantize_row_mxfp4_ref, quantize_row_nvfp4_ref, ggml_fp32_to_ue4m3.
#pragma once

#include "blocks/codebooks.h"
#include "quantize/simple.h"

namespace weightcast {
namespace {

// The multiples of d that the codes 1 to 7 stand for.
struct Fp4Scaled {
  F value[7];

  explicit WC_INLINE Fp4Scaled(F d) {
    for (int i = 0; i < 7; ++i) value[i] = d * static_cast<float>(kFp4Values[i + 1]);
  }
};

// Find the code with the nearest value, the first of equals: ties go towards zero, and errors that do
// not differ in float32 give 0. A value of the other sign is never nearer than 0.
WC_INLINE I fp4_code(F x, const Fp4Scaled& scaled) {
  const F size = magnitude(x);
  F best = size;
  I code = 0;
  for (int i = 0; i < 7; ++i) {
    const F error = magnitude(scaled.value[i] - size);
    code = select(error < best, i + 1, code);
    best = lesser(error, best);
  }
  return code | select(code > I(0), (bits(x) >> 28) & 8, 0);
}

// floor(log2(x)) for x > 0, the logarithm being rounded to float32 first, as log2f does: values just
// below a power of two count as that power. log2(2^k - j * 2^(k - 24)) is k - j * 2^-24 / ln 2, which
// rounds to k up to j = ln 2 * 2^p, as half a step of the floats just below |k| is 2^(p - 24).
WC_INLINE I floor_log2(F x) {
  const M subnormal = x < 0x1p-126f;
  const I b = bits(select(subnormal, x * 0x1p23f, x));
  const I e = (b >> 23) - select(subnormal, I(127 + 23), I(127));
  const I step = bits(floats(e ^ (e >> 31))) & 0x7f800000;  // 2^p as a float
  const I reach = truncated(of_bits(step) * 0.6931472f);
  const I below = I(0x800000) - (b & 0x7fffff);
  return e + select(below > reach, I(0), I(1));
}

struct MXFP4 {
  static constexpr int elements = BlockMXFP4::elements;
  static constexpr int bytes = sizeof(BlockMXFP4);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<>;

  static void quantize(Strip x, const float*, F, Bytes out) {
    const F amax = magnitude_maximum<elements>(x);
    // Negative below 2^-125 and kept as its low byte, as in ggml; the codes are all 0 then.
    const I e = select(amax > 0.0f, (floor_log2(amax) + 125) & 0xff, 0);
    const I low = select(e == I(0), I(0x00200000), I(0x00400000));  // as e8m0_to_f32_half
    const Fp4Scaled scaled(of_bits(select(e < I(2), low, (greater(e, 1) - 1) << 23)));
    store_bytes(out[0], e);
    for (int j = 0; j < 16; ++j) {
      store_bytes(out[1 + j], fp4_code(x[j], scaled) | fp4_code(x[j + 16], scaled) << 4);
    }
  }
};

// Convert x >= 0 to 4 exponent bits (bias 7) and 3 fraction bits, at most 448; half a step rounds up.
WC_INLINE I to_ue4m3(F x) {
  const I small = lesser(truncated(x * 512.0f + 0.5f), 7);
  const I normal = ((bits(x) + 0x80000) >> 20) - (120 << 3);
  return select(x < 0x1p-6f, small, select(normal < I(0x78), normal, I(0x7e)));
}

struct NVFP4 {
  static constexpr int elements = BlockNVFP4::elements;
  static constexpr int bytes = sizeof(BlockNVFP4);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<>;

  static void quantize(Strip block, const float*, F, Bytes out) {
    WC_UNROLL
    for (int s = 0; s < 4; ++s) {
      const Strip x = block + 16 * s;
      const I d = to_ue4m3(magnitude_maximum<16>(x) / 6.0f);
      const Fp4Scaled scaled(of_bits(d << 20) * 0x1p119f);  // ue4m3_to_f32_half
      store_bytes(out[s], d);
      for (int j = 0; j < 8; ++j) {
        store_bytes(out[4 + 8 * s + j], fp4_code(x[j], scaled) | fp4_code(x[j + 8], scaled) << 4);
      }
    }
  }
};

}  // namespace
}  // namespace weightcast
