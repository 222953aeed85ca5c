// Quantizer of Q8_0: 32 int8 codes and one float16 scale, x = d * q.
// Source of the rule: quantize_row_q8_0_ref in ggml-quants.c.
#pragma once

#include "blocks/layouts.h"
#include "source/strip.h"

namespace weightcast {
namespace {

struct Q80 {
  static constexpr int elements = BlockQ8_0::elements;
  static constexpr int bytes = sizeof(BlockQ8_0);
  static constexpr int depth = 128;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0>;
  static constexpr float kLeast = 0x1p-128f;  // up to here, 1 / d is infinite

  // d = max |x| / 127, q = round(x / d). Where 1 / d is infinite, ggml converts infinities and NaN
  // to int8, which gives 0 on x86; an inverse of 0 gives that everywhere.
  static void quantize(Strip x, const float*, F, Bytes out) {
    F amax = 0.0f;
    for (int i = 0; i < elements; ++i) amax = greater(magnitude(x[i]), amax);
    const F d = amax / 127.0f;
    const F inverse = select(d > kLeast, 1.0f / d, 0.0f);
    store_half(out, to_f16(d));
    for (int i = 0; i < elements; i += 2) {
      store_two(out[2 + i], round_away(x[i] * inverse), round_away(x[i + 1] * inverse));
    }
  }
};

}  // namespace
}  // namespace weightcast
