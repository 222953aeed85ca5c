// Quantizers of Q2_K, Q4_K and Q5_K: blocks of 16 or 32 with a scale and a minimum of a few bits each.
// Sources of layouts and rules: block_q2_K, block_q4_K, block_q5_K in ggml-common.h,
// quantize_row_q*_K_ref (no importance) and quantize_row_q*_K_impl (with importance) in
// ggml-quants.c.
#pragma once

#include "quantize/super_blocks.h"

namespace weightcast {
namespace {

// Compute the weights of errors without importance, for Q4_K and Q5_K: root mean square plus |x|.
template <int n>
WC_INLINE void magnitude_weights(const F (&x)[n], F (&w)[n]) {
  F sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  const F average = root(sum / static_cast<float>(n));
  for (int i = 0; i < n; ++i) w[i] = average + magnitude(x[i]);
}

// Compute the levels from the scales as stored. Where a block's scale is stored as zero, which is rare,
// the levels of the search remain: `searched` returns them.
template <int n, class Searched>
WC_INLINE void affine_levels_stored(Strip x, F d, F dmin, int nmax, Searched searched,
                                    Bytes q) {
  const M none = d == 0.0f;
  const bool rare = any(none);
  const auto rows = read<n>(x);
WC_UNROLL
  for (int i = 0; i < n; ++i) {
    I level = clamped(nearest_int((rows[i] + dmin) / d), 0, nmax);
    if (rare) level = select(none, searched(rows[i]), level);
    store_bytes(q[i], level);
  }
}

// Store the scales and minima of eight blocks in twelve bytes: six bits each, those of the last four
// split. Changes ls and lm to what a reader finds, which differs where ggml lets a byte overflow.
inline void store_scales_k4(I (&ls)[8], I (&lm)[8], Bytes out) {
  I q[12];
  for (int j = 0; j < 4; ++j) {
    q[j] = ls[j] | ((ls[j + 4] >> 4) & 3) << 6;
    q[j + 4] = lm[j] | ((lm[j + 4] >> 4) & 3) << 6;
    q[j + 8] = (ls[j + 4] & 15) | (lm[j + 4] & 15) << 4;
  }
  for (int j = 0; j < 12; ++j) {
    q[j] = q[j] & 0xff;
    store_bytes(out[j], q[j]);
  }
  for (int j = 0; j < 4; ++j) {
    ls[j] = q[j] & 63;
    lm[j] = q[j + 4] & 63;
    ls[j + 4] = (q[j + 8] & 15) | (q[j] >> 6) << 4;
    lm[j + 4] = (q[j + 8] >> 4) | (q[j + 4] >> 6) << 4;
  }
}

// Q4_K and Q5_K: x = d * scale * q - dmin * min, scale and min of six bits for each 32.
template <int nmax>
struct AffineK {
  static constexpr int elements = kSuper;
  static constexpr int depth = kSuper;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0, 2>;

  static void fit(Strip strip, const float* importance, AffineFit (&fits)[8]) {
    const F sigma2 = importance != nullptr ? super_sigma2(strip, 2.0f) : F(0.0f);
    for (int j = 0; j < 8; ++j) {
      F x[32], w[32];
      load_block(strip + 32 * j, x);
      if (importance != nullptr) {
        importance_weights(x, importance + 32 * j, sigma2, w);
        fits[j] = fit_affine<32, true>(x, w, nmax, {-0.9f, 0.05f, 36});
      } else {
        magnitude_weights(x, w);
        fits[j] = fit_affine<32, false>(
            x, w, nmax, nmax == 15 ? Candidates{-1.0f, 0.1f, 20} : Candidates{-0.5f, 0.1f, 15});
      }
    }
  }

  // Choose scales and minima of six bits, and d and dmin, which they are multiples of.
  static void scales_by_maximum(const AffineFit (&fits)[8], I (&ls)[8], I (&lm)[8], F& d, F& dmin) {
    F max_scale = 0.0f, max_min = 0.0f;
    for (const AffineFit& fit : fits) {
      max_scale = greater(fit.scale, max_scale);
      max_min = greater(fit.min, max_min);
    }
    const F inv_scale = select(max_scale > 0.0f, 63.0f / max_scale, 0.0f);
    const F inv_min = select(max_min > 0.0f, 63.0f / max_min, 0.0f);
    for (int j = 0; j < 8; ++j) {
      ls[j] = lesser(nearest_int(inv_scale * fits[j].scale) & 0xff, 63);
      lm[j] = lesser(nearest_int(inv_min * fits[j].min) & 0xff, 63);
    }
    d = max_scale / 63.0f;
    dmin = max_min / 63.0f;
  }

  static void scales_by_fit(const AffineFit (&fits)[8], I (&ls)[8], I (&lm)[8], F& d, F& dmin) {
    F scales[8], mins[8], weights[8];
    for (int j = 0; j < 8; ++j) {
      scales[j] = fits[j].scale;
      mins[j] = fits[j].min;
      weights[j] = fits[j].sum_w;
    }
    d = fit_positive<8>(scales, weights, 63, ls);
    dmin = fit_positive<8>(mins, weights, 63, lm);
    if constexpr (nmax == 31) {
      for (int j = 0; j < 8; ++j) {
        ls[j] = lesser(ls[j], 63);
        lm[j] = lesser(lm[j], 63);
      }
    }
  }

  // Fill the first 16 bytes of the block and the levels.
  static void quantize_levels(Strip x, const float* importance, Levels& levels, Bytes out) {
    AffineFit fits[8];
    fit(x, importance, fits);
    I ls[8], lm[8];
    F d, dmin;
    if (importance != nullptr) {
      scales_by_fit(fits, ls, lm, d, dmin);
    } else {
      scales_by_maximum(fits, ls, lm, d, dmin);
    }
    const I half = to_f16(d), half_min = to_f16(dmin);
    store_half(out, half);
    store_half(out + 2, half_min);
    store_scales_k4(ls, lm, out + 4);
    d = from_f16(half);
    dmin = from_f16(half_min);
    for (int j = 0; j < 8; ++j) {
      const auto searched = [&](F value) {
        return searched_level(fits[j], value, nmax, importance != nullptr);
      };
      affine_levels_stored<32>(x + 32 * j, d * floats(ls[j]), dmin * floats(lm[j]), nmax, searched,
                               levels.rows(32 * j));
    }
  }
};

// Q4_K: d, dmin, scales[12], qs[128]; effectively 4.5 bits per weight.
struct Q4K : AffineK<15> {
  static constexpr int bytes = sizeof(BlockQ4_K);

  static void quantize(Strip x, const float* importance, F, Bytes out) {
    Levels levels;
    quantize_levels(x, importance, levels, out);
    pack_nibbles(levels, out + 16);
  }
};

// Q5_K: d, dmin, scales[12], qh[32], qs[128]; effectively 5.5 bits per weight. Bit j of qh[l] is
// the fifth bit of row 32 * j + l.
struct Q5K : AffineK<31> {
  static constexpr int bytes = sizeof(BlockQ5_K);

  static void quantize(Strip x, const float* importance, F, Bytes out) {
    Levels levels;
    quantize_levels(x, importance, levels, out);
    pack(levels, out);
  }

  static void pack(const Levels& levels, Bytes out) {
    for (int i = 0; i < 32 * kLanes; ++i) {
      int high = 0;
      for (int j = 0; j < 8; ++j) high |= (levels.row(32 * j)[i] >> 4) << j;
      out[16][i] = static_cast<uint8_t>(high);
    }
    pack_nibbles(levels, out + 48);
  }
};

// Q2_K: scales[16], qs[64], d, dmin; x = d * scale * q - dmin * min, scale and min of four bits for
// each 16; effectively 2.625 bits per weight.
struct Q2K {
  static constexpr int elements = kSuper;
  static constexpr int depth = kSuper;
  static constexpr int bytes = sizeof(BlockQ2_K);
  static constexpr bool uses_row_sum = false;
  using halves = Halves<80, 82>;

  static void fit(Strip strip, const float* importance, AffineFit (&fits)[16]) {
    const F sigma2 = importance != nullptr ? super_sigma2(strip, 1.0f) : F(0.0f);
    for (int j = 0; j < 16; ++j) {
      F x[16], w[16];
      load_block(strip + 16 * j, x);
      if (importance != nullptr) {
        importance_weights(x, importance + 16 * j, sigma2, w);
        fits[j] = fit_affine<16, true>(x, w, 3, {-0.9f, 0.05f, 36});
      } else {
        for (int i = 0; i < 16; ++i) w[i] = magnitude(x[i]);
        fits[j] = fit_affine<16, false, true>(x, w, 3, {-0.5f, 0.1f, 15});
      }
    }
  }

  // Choose scales (or minima) of four bits. Returns their unit: the largest over 15, or the best fit.
  static F scales(const F (&values)[16], const F* weights, I (&level)[16]) {
    if (weights != nullptr) return fit_positive<16>(values, weights, 15, level);
    F max = 0.0f;
    for (const F& value : values) max = greater(value, max);
    const F inverse = 15.0f / max;
    for (int j = 0; j < 16; ++j) {
      level[j] = select(max > 0.0f, nearest_int(inverse * values[j]), 0);
    }
    return select(max > 0.0f, max / 15.0f, 0.0f);
  }

  static void quantize(Strip x, const float* importance, F, Bytes out) {
    AffineFit fits[16];
    fit(x, importance, fits);
    F values[16], mins[16], weights[16];
    for (int j = 0; j < 16; ++j) {
      values[j] = fits[j].scale;
      mins[j] = fits[j].min;
      weights[j] = fits[j].sum_w;
    }
    I ls[16], lm[16];
    const F* fitted = importance != nullptr ? weights : nullptr;
    const I half = to_f16(scales(values, fitted, ls));
    const I half_min = to_f16(scales(mins, fitted, lm));
    store_half(out + 80, half);
    store_half(out + 82, half_min);
    const F d = from_f16(half), dmin = from_f16(half_min);
    Levels levels;
    for (int j = 0; j < 16; ++j) {
      const I both = (ls[j] | (lm[j] & 15) << 4) & 0xff;
      store_bytes(out[j], both);
      const auto searched = [&](F value) {
        return searched_level(fits[j], value, 3, importance != nullptr);
      };
      affine_levels_stored<16>(x + 16 * j, d * floats(both & 15), dmin * floats(both >> 4), 3,
                               searched, levels.rows(16 * j));
    }
    pack_two_bits(levels, out + 16);
  }
};

}  // namespace
}  // namespace weightcast
