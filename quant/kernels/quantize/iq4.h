// Quantizers of the codebook types IQ4_NL and IQ4_XS: x = scale * codebook[q], with the best of sixteen
// scales by least squares. Source: quantize_row_iq4_nl_impl in ggml-quants.c.
#pragma once

#include "blocks/codebooks.h"
#include "quantize/simple.h"

namespace weightcast {
namespace {

// Half way between neighbours of the codebook. A value not below the n-th has an index beyond n.
constexpr float middle(int n) {
  return 0.5f * static_cast<float>(kIq4Values[n] + kIq4Values[n + 1]);
}

// Tables of a binary search: the third and the fourth step look up their middle by the outcomes of the
// steps before (the first step's in bit 0), and the value is looked up likewise at the end.
constexpr float kThirdMiddles[8] = {middle(1), middle(9), middle(5), middle(13),
                                    middle(1), middle(9), middle(5), middle(13)};
constexpr float kFourthMiddles[8] = {middle(0), middle(8), middle(4), middle(12),
                                     middle(2), middle(10), middle(6), middle(14)};
constexpr float codebook(int n) { return static_cast<float>(kIq4Values[n]); }
constexpr float kLowerValues[8] = {codebook(0), codebook(8),  codebook(4), codebook(12),
                                   codebook(2), codebook(10), codebook(6), codebook(14)};
constexpr float kUpperValues[8] = {codebook(1), codebook(9),  codebook(5), codebook(13),
                                   codebook(3), codebook(11), codebook(7), codebook(15)};

// Finds the codebook value nearest to x, the upper of two equally near; the last for NaN. ggml compares
// distances (best_index_int8), which are exact near the middles, so comparing with them is the same.
struct Iq4Search {
  Table third{kThirdMiddles}, fourth{kFourthMiddles};
  Table lower{kLowerValues}, upper{kUpperValues};

  WC_INLINE F value(F x) const {
    const M first = x < middle(7);
    I path = select(first, I(0), I(1));
    path = select(x < select(first, F(middle(3)), F(middle(11))), path, path + 2);
    path = select(x < third[path], path, path + 4);
    return select(x < fourth[path], lower[path], upper[path]);
  }

  WC_INLINE I index(F x) const {
    const M first = x < middle(7);
    I path = select(first, I(0), I(1));
    I found = select(first, I(0), I(8));
    const M second = x < select(first, F(middle(3)), F(middle(11)));
    path = select(second, path, path + 2);
    found = select(second, found, found + 4);
    const M fine = x < third[path];
    path = select(fine, path, path + 4);
    found = select(fine, found, found + 2);
    return select(x < fourth[path], found, found + 1);
  }
};

// Find the scale of a block of 32; 0 if all magnitudes are negligible.
WC_INLINE F iq4_scale(const Iq4Search& search, const F (&x)[32], const F (&w)[32]) {
  F amax;
  const F max = signed_maximum<32>(x, amax);
  const M zero = amax < kGroupMaxEps;
  F scale = 0.0f, best = 0.0f;
  for (int step = -8; step <= 7; ++step) {
    const bool first = step == -8;  // the largest value at the end of the codebook
    const F inverse = first ? 1.0f / (-max / static_cast<float>(kIq4Values[0]))
                            : static_cast<float>(step + kIq4Values[0]) / max;
    F sumqx = 0.0f, sumq2 = 0.0f;
    for (int i = 0; i < 32; ++i) {
      const F q = search.value(inverse * x[i]);
      const F wq = w[i] * q;
      sumqx += wq * x[i];
      sumq2 += wq * q;
    }
    const M positive = sumq2 > 0.0f;
    const F fitted = sumqx / sumq2;
    if (first) {
      scale = select(positive, fitted, 0.0f);
      best = scale * sumqx;
    } else {
      const M better = positive & (sumqx * sumqx > best * sumq2);
      scale = select(better, fitted, scale);
      best = select(better, fitted * sumqx, best);
    }
  }
  return select(zero, 0.0f, scale);
}

// Compute the weights of errors; sigma2 is twice the mean of x * x over a whole block.
WC_INLINE void iq4_weights(const F (&x)[32], const float* importance, F sigma2, F (&w)[32]) {
  if (importance != nullptr) {
    importance_weights(x, importance, sigma2, w);
  } else {
    for (int i = 0; i < 32; ++i) w[i] = x[i] * x[i];
  }
}

template <int n>
WC_INLINE F twice_mean_square(Strip x) {
  F sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum * (2.0f / static_cast<float>(n));
}

WC_INLINE void store_iq4_codes(const Iq4Search& search, Strip x, F inverse, Bytes out) {
  for (int j = 0; j < 16; ++j) {
    const I low = search.index(inverse * x[j]);
    store_bytes(out[j], low | search.index(inverse * x[j + 16]) << 4);
  }
}

struct IQ4NL {
  static constexpr int elements = BlockIQ4_NL::elements;
  static constexpr int bytes = sizeof(BlockIQ4_NL);
  static constexpr int depth = 128;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0>;

  static void quantize(Strip strip, const float* importance, F, Bytes out) {
    const Iq4Search search;
    F x[32], w[32];
    load_block(strip, x);
    iq4_weights(x, importance, twice_mean_square<32>(strip), w);
    const F scale = iq4_scale(search, x, w);
    store_half(out, to_f16(scale));
    store_iq4_codes(search, strip, inverse_of(scale), out + 2);
  }
};

struct IQ4XS {
  static constexpr int elements = BlockIQ4_XS::elements;
  static constexpr int bytes = sizeof(BlockIQ4_XS);
  static constexpr int depth = elements;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0>;

  static void quantize(Strip strip, const float* importance, F, Bytes out) {
    const Iq4Search search;
    const F sigma2 = twice_mean_square<elements>(strip);
    F scales[8];
    for (int b = 0; b < 8; ++b) {
      F x[32], w[32];
      load_block(strip + 32 * b, x);
      iq4_weights(x, importance == nullptr ? nullptr : importance + 32 * b, sigma2, w);
      scales[b] = iq4_scale(search, x, w);
    }
    F amax;
    const F d = -signed_maximum<8>(scales, amax) / 32.0f;
    const F inverse = inverse_of(d);
    store_half(out, to_f16(d));
    I ls[8];
    for (int b = 0; b < 8; ++b) {
      const I level = clamped(nearest_int(inverse * scales[b]), -32, 31);
      // As in ggml, d before it is rounded to float16.
      store_iq4_codes(search, strip + 32 * b, inverse_of(d * floats(level)), out + (8 + 16 * b));
      ls[b] = level + 32;
    }
    store_scales(ls, out + 2);
  }

  // Store eight scales of six bits: their high two, then their low four.
  static void store_scales(const I (&ls)[8], Bytes out) {
    I high = 0;
    for (int b = 0; b < 8; b += 2) {
      high = high | (ls[b] >> 4) << 2 * b | (ls[b + 1] >> 4) << (2 * b + 2);
      store_bytes(out[2 + b / 2], (ls[b] & 15) | (ls[b + 1] & 15) << 4);
    }
    store_half(out, high);
  }
};

}  // namespace
}  // namespace weightcast
