// The search for the least error in MXFP4 and NVFP4: the stored scales around ggml's, by the errors that
// they give.
#pragma once

#include "quantize/least_error.h"

namespace weightcast {
namespace {

// Round to the nearest value of a 4-bit float, in units of half its step: 0, 1, 2, 3, 4, 6, 8 or 12.
WC_INLINE F nearest_fp4(F x) {
  const F size = magnitude(x);
  F value = nearest_small(lesser(size, 4.0f));
  value = select(size > 5.0f, F(6.0f), value);
  value = select(size > 7.0f, F(8.0f), value);
  value = select(size > 10.0f, F(12.0f), value);
  return of_bits(bits(value) | (bits(x) & INT32_MIN));
}

template <int n>
WC_INLINE F fp4_error(Strip x, const float* w, F d) {
  const F inverse = inverse_of(d);
  F error = 0.0f;
  for (int i = 0; i < n; ++i) {
    const F xi = x[i];
    const F diff = d * nearest_fp4(inverse * xi) - xi;
    error += w[i] * (diff * diff);
  }
  return error;
}

// Steps below and above ggml's scale: octaves of MXFP4, eighths of one, about, of NVFP4.
struct Steps {
  int below, above;
};
constexpr Steps kMxfp4Steps[kEfforts] = {{1, 1}, {1, 1}, {2, 2}};
constexpr Steps kNvfp4Steps[kEfforts] = {{2, 5}, {4, 6}, {8, 10}};

// Choose among the codes of scales next to `base`, which value_of turns into half a scale.
template <int n, class ValueOf>
WC_INLINE I best_fp4_scale(Strip x, const float* w, I base, const Steps& steps, int least, int most,
                           ValueOf value_of) {
  F best = infinity();
  I found = base;
  for (int k = -steps.below; k <= steps.above; ++k) {
    const I code = clamped(base + k, least, most);
    const F error = fp4_error<n>(x, w, value_of(code));
    const M better = error < best;
    best = select(better, error, best);
    found = select(better, code, found);
  }
  return found;
}

template <>
struct LeastError<MXFP4> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    const auto half_of = [](I e) { return of_bits((e - 1) << 23); };
    const I e = best_fp4_scale<32>(x, w, load_bytes(start[0]), kMxfp4Steps[effort.level], 2, 254, half_of);
    const Fp4Scaled scaled(half_of(e));
    store_bytes(out[0], e);
    for (int j = 0; j < 16; ++j) {
      store_bytes(out[1 + j], fp4_code(x[j], scaled) | fp4_code(x[j + 16], scaled) << 4);
    }
  }
};

template <>
struct LeastError<NVFP4> {
  static void quantize(Strip block, const float* w, Effort effort, Bytes start, Bytes out) {
    const auto half_of = [](I d) { return of_bits(d << 20) * 0x1p119f; };
    for (int s = 0; s < 4; ++s) {
      const Strip x = block + 16 * s;
      const I first = load_bytes(start[s]);
      const I d =
          best_fp4_scale<16>(x, w + 16 * s, first, kNvfp4Steps[effort.level], 0, 0x7e, half_of);
      const Fp4Scaled scaled(half_of(d));
      store_bytes(out[s], d);
      for (int j = 0; j < 8; ++j) {
        store_bytes(out[4 + 8 * s + j], fp4_code(x[j], scaled) | fp4_code(x[j + 8], scaled) << 4);
      }
    }
  }
};

}  // namespace
}  // namespace weightcast
