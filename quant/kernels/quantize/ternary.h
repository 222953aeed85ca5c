// Quantizers of the ternary types TQ1_0 and TQ2_0: d is the largest magnitude of a super-block, and
// each weight becomes -d, 0 or d. Sources: quantize_row_tq1_0_ref, quantize_row_tq2_0_ref in ggml.
#pragma once

#include "quantize/simple.h"

namespace weightcast {
namespace {

// Round to 0, 1 or 2. Infinity and NaN, from an inverse that overflowed, give 1: they convert to a
// multiple of 2^31 here and to one of 2^63 in ggml, where lroundf returns a long.
struct GgmlTrit {
  WC_INLINE I operator()(F x, F inverse) const { return (round_away(x * inverse) + 1) & 3; }
};

// The same where magnitudes may exceed d.
struct NearestTrit {
  WC_INLINE I operator()(F x, F inverse) const {
    return truncated(nearest_small(lesser(greater(x * inverse, -1.0f), 1.0f))) + 1;
  }
};

// Store `trits` digits of rows m, m + bytes, m + 2 * bytes, ... as the fraction that starts with them,
// for m from 0 to bytes - 1: ceil(q * 256 / 243), where q is the five-digit number.
template <int bytes, int trits, class Trit>
WC_INLINE void store_trits(Strip x, F inverse, Trit trit, Bytes out) {
  for (int m = 0; m < bytes; ++m) {
    I q = 0;
    for (int n = 0; n < trits; ++n) q = q + q + q + trit(x[m + n * bytes], inverse);
    for (int n = trits; n < 5; ++n) q = q + q + q;
    // 256 = 243 + 13; 4316 / 2^20 is 1 / 243 near enough for the quotients of all 243 numbers.
    store_bytes(out[m], q + (((q * 13 + 242) * 4316) >> 20));
  }
}

struct TQ10 {
  static constexpr int elements = BlockTQ1_0::elements;
  static constexpr int bytes = sizeof(BlockTQ1_0);
  static constexpr int depth = elements;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<52>;

  static void quantize(Strip x, const float*, F, Bytes out) {
    store(x, magnitude_maximum<elements>(x), GgmlTrit{}, out);
  }

  // Store d and a trit for each weight.
  template <class Trit>
  static void store(Strip x, F d, Trit trit, Bytes out) {
    const F inverse = inverse_of(d);
    store_trits<32, 5>(x, inverse, trit, out);
    store_trits<16, 5>(x + 160, inverse, trit, out + 32);
    store_trits<4, 4>(x + 240, inverse, trit, out + 48);
    store_half(out + 52, to_f16(d));
  }
};

struct TQ20 {
  static constexpr int elements = BlockTQ2_0::elements;
  static constexpr int bytes = sizeof(BlockTQ2_0);
  static constexpr int depth = elements;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<64>;

  static void quantize(Strip x, const float*, F, Bytes out) {
    store(x, magnitude_maximum<elements>(x), GgmlTrit{}, out);
  }

  // Store d and a trit for each weight.
  template <class Trit>
  static void store(Strip x, F d, Trit trit, Bytes out) {
    const F inverse = inverse_of(d);
    for (int half = 0; half < 2; ++half) {
      for (int m = 0; m < 32; ++m) {
        I byte = 0;
        for (int n = 0; n < 4; ++n) {
          byte = byte | trit(x[128 * half + 32 * n + m], inverse) << 2 * n;
        }
        store_bytes(out[32 * half + m], byte);
      }
    }
    store_half(out + 64, to_f16(d));
  }
};

}  // namespace
}  // namespace weightcast
