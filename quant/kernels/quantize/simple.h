// Quantizers of blocks with one scale: Q4_0, Q4_1, Q5_0, Q5_1, and Q1_0, Q2_0.
// Sources of the rules: quantize_row_*_ref (no importance) and quantize_row_*_impl (with it) in
// ggml-quants.c. Where ggml's scale is infinite or NaN, it is so here, with the same codes.
#pragma once

#include "blocks/layouts.h"
#include "quantize/fits.h"

namespace weightcast {
namespace {

constexpr int kSimpleDepth = 128;  // in-rows of a tile: the first-level cache does not hold more

// 1 / d, or 0 if d is 0.
WC_INLINE F inverse_of(F d) { return select(d == 0.0f, 0.0f, 1.0f / d); }

template <int n>
WC_INLINE F magnitude_maximum(Strip x) {
  constexpr int run = n < 32 ? n : 32;
  F amax = 0.0f;
  for (int first = 0; first < n; first += run) {
    const auto rows = read<run>(x + first);
WC_UNROLL
    for (int i = 0; i < run; ++i) amax = greater(amax, magnitude(rows[i]));
  }
  return amax;
}

// Store codes of 4 bits in pairs: byte j holds codes j and j + 16.
WC_INLINE void store_nibbles(const I (&level)[32], Bytes out) {
  for (int j = 0; j < 16; ++j) {
    store_bytes(out[j], (level[j] & 15) | (level[j + 16] & 15) << 4);
  }
}

// Store the fifth bits of 32 codes: bit j of a little-endian word belongs to code j.
WC_INLINE void store_fifth_bits(const I (&level)[32], Bytes out) {
  for (int b = 0; b < 4; ++b) {
    I byte = 0;
    for (int j = 0; j < 8; ++j) byte = byte | ((level[8 * b + j] >> 4) & 1) << j;
    store_bytes(out[b], byte);
  }
}

// Q4_0 and Q5_0: x = d * (q - nmax), q up to 2 * nmax - 1.
template <int nmax>
WC_INLINE F symmetric_block(Strip strip, const float* importance, F sigma2, I (&level)[32]) {
  if (importance != nullptr) {
    F x[32], w[32];
    load_block(strip, x);
    importance_weights(x, importance, sigma2, w);
    const SymmetricFit fit = fit_symmetric<32>(x, w, nmax);
    for (int i = 0; i < 32; ++i) {
      level[i] = select(fit.zero, 0, symmetric_level(x[i], fit.iscale, nmax));
    }
    return fit.scale;
  }
  F max = 0.0f, amax = 0.0f;
  for (int i = 0; i < 32; ++i) {
    const F x = strip[i];
    const F a = magnitude(x);
    max = select(amax < a, x, max);
    amax = greater(amax, a);
  }
  const F d = max / static_cast<float>(-nmax);
  const F inverse = inverse_of(d);
  for (int i = 0; i < 32; ++i) {
    // Infinity and NaN become the lowest int32, whose low bits are zero.
    level[i] = lesser(truncated(strip[i] * inverse + (nmax + 0.5f)), 2 * nmax - 1);
  }
  return d;
}

// Q4_1 and Q5_1: x = d * q + m, q up to nmax. Returns d, and m in `min`.
template <int nmax>
WC_INLINE F affine_block(Strip strip, const float* importance, F sigma2, I (&level)[32], F& min) {
  if (importance != nullptr) {
    F x[32], w[32];
    load_block(strip, x);
    importance_weights(x, importance, sigma2, w);
    const AffineFit fit = fit_affine<32, true>(x, w, nmax, {-0.9f, 0.05f, 36});
    for (int i = 0; i < 32; ++i) level[i] = searched_level(fit, x[i], nmax, true);
    min = -fit.min;
    return fit.scale;
  }
  min = strip[0];
  F max = min;
  for (int i = 1; i < 32; ++i) {
    min = lesser(strip[i], min);
    max = greater(strip[i], max);
  }
  const F d = (max - min) / static_cast<float>(nmax);
  const F inverse = inverse_of(d);
  for (int i = 0; i < 32; ++i) {
    level[i] = lesser(truncated((strip[i] - min) * inverse + 0.5f), nmax);
  }
  return d;
}

struct Q40 {
  static constexpr int elements = BlockQ4_0::elements;
  static constexpr int bytes = sizeof(BlockQ4_0);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = true;
  using halves = Halves<0>;

  static void quantize(Strip x, const float* importance, F sigma2, Bytes out) {
    I level[32];
    store_half(out, to_f16(symmetric_block<8>(x, importance, sigma2, level)));
    store_nibbles(level, out + 2);
  }
};

struct Q50 {
  static constexpr int elements = BlockQ5_0::elements;
  static constexpr int bytes = sizeof(BlockQ5_0);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = true;
  using halves = Halves<0>;

  static void quantize(Strip x, const float* importance, F sigma2, Bytes out) {
    I level[32];
    store_half(out, to_f16(symmetric_block<16>(x, importance, sigma2, level)));
    store_fifth_bits(level, out + 2);
    store_nibbles(level, out + 6);
  }
};

struct Q41 {
  static constexpr int elements = BlockQ4_1::elements;
  static constexpr int bytes = sizeof(BlockQ4_1);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = true;
  using halves = Halves<0, 2>;

  static void quantize(Strip x, const float* importance, F sigma2, Bytes out) {
    I level[32];
    F min;
    store_half(out, to_f16(affine_block<15>(x, importance, sigma2, level, min)));
    store_half(out + 2, to_f16(min));
    store_nibbles(level, out + 4);
  }
};

struct Q51 {
  static constexpr int elements = BlockQ5_1::elements;
  static constexpr int bytes = sizeof(BlockQ5_1);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = true;
  using halves = Halves<0, 2>;

  static void quantize(Strip x, const float* importance, F sigma2, Bytes out) {
    I level[32];
    F min;
    store_half(out, to_f16(affine_block<31>(x, importance, sigma2, level, min)));
    store_half(out + 2, to_f16(min));
    store_fifth_bits(level, out + 4);
    store_nibbles(level, out + 8);
  }
};

// Signs only; d is the mean magnitude.
struct Q10 {
  static constexpr int elements = BlockQ1_0::elements;
  static constexpr int bytes = sizeof(BlockQ1_0);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0>;

  static void quantize(Strip x, const float*, F, Bytes out) {
    F sum = 0.0f;
    for (int i = 0; i < elements; ++i) sum += magnitude(x[i]);
    store_half(out, to_f16(sum / static_cast<float>(elements)));
    for (int b = 0; b < elements / 8; ++b) {
      I byte = 0;
      for (int j = 0; j < 8; ++j) byte = byte | select(x[8 * b + j] >= 0.0f, I(1 << j), I(0));
      store_bytes(out[2 + b], byte);
    }
  }
};

// d is the largest magnitude, so codes are 0 to 2; four neighbours share a byte.
struct Q20 {
  static constexpr int elements = BlockQ2_0::elements;
  static constexpr int bytes = sizeof(BlockQ2_0);
  static constexpr int depth = kSimpleDepth;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0>;

  static void quantize(Strip x, const float*, F, Bytes out) {
    const F d = magnitude_maximum<elements>(x);
    const F inverse = inverse_of(d);
    store_half(out, to_f16(d));
    for (int b = 0; b < elements / 4; ++b) {
      I byte = 0;
      for (int j = 0; j < 4; ++j) {
        byte = byte | clamped(round_away(x[4 * b + j] * inverse) + 1, 0, 3) << 2 * j;
      }
      store_bytes(out[2 + b], byte);
    }
  }
};

}  // namespace
}  // namespace weightcast
