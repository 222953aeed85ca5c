// K-quants: super-blocks of 256, whose blocks of 16 or 32 have scales (and minima) of few bits.
// Sources of layouts and rules: block_q2_K to block_q6_K in ggml-common.h, quantize_row_q*_K_ref
// (no importance) and quantize_row_q*_K_impl (with importance) in ggml-quants.c.
#pragma once

#include "blocks.h"
#include "fits.h"

namespace weightcast {
namespace {

// The levels of a super-block, a byte each, kLanes columns side by side.
struct alignas(64) Levels {
  uint8_t q[kSuper * kLanes];

  WC_INLINE uint8_t* row(int i) { return q + i * kLanes; }
  WC_INLINE const uint8_t* row(int i) const { return q + i * kLanes; }
  WC_INLINE Bytes rows(int i) { return {row(i)}; }
};

// The mean of x * x, or twice that, over a super-block; sums run in order.
inline F super_sigma2(Strip x, float factor) {
  F sum = 0.0f;
  for (int i = 0; i < kSuper; ++i) sum += x[i] * x[i];
  return factor * sum / static_cast<float>(kSuper);
}

// Weights without importance for Q4_K and Q5_K: root mean square of the block plus |x|.
template <int n>
WC_INLINE void magnitude_weights(const F (&x)[n], F (&w)[n]) {
  F sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  const F average = root(sum / static_cast<float>(n));
  for (int i = 0; i < n; ++i) w[i] = average + magnitude(x[i]);
}

// Pack levels of 0 to 3: byte l of each half holds those of rows l, l + 32, l + 64 and l + 96.
inline void pack_two_bits(const Levels& levels, Bytes out) {
  for (int half = 0; half < 2; ++half) {
    const uint8_t* q = levels.row(128 * half);
    uint8_t* to = out[32 * half];
    for (int i = 0; i < 32 * kLanes; ++i) {
      to[i] = static_cast<uint8_t>((q[i] & 3) | (q[i + 32 * kLanes] & 3) << 2 |
                                   (q[i + 64 * kLanes] & 3) << 4 | (q[i + 96 * kLanes] & 3) << 6);
    }
  }
}

// Pack the low four bits: rows l and l + 32 of each 64 share a byte.
inline void pack_nibbles(const Levels& levels, Bytes out) {
  for (int j = 0; j < kSuper / 64; ++j) {
    const uint8_t* q = levels.row(64 * j);
    uint8_t* to = out[32 * j];
    for (int i = 0; i < 32 * kLanes; ++i) {
      to[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 32 * kLanes] << 4);
    }
  }
}

// Levels from the scales as stored. Where a block's scale is stored as zero, the levels of the
// search stay, which `searched` gives; that is rare.
template <int n, class Searched>
WC_INLINE void affine_levels_stored(Strip x, F d, F dmin, int nmax, Searched searched,
                                    Bytes q) {
  const M none = d == 0.0f;
  const bool rare = any(none);
  for (int i = 0; i < n; ++i) {
    I level = clamped(nearest_int((x[i] + dmin) / d), 0, nmax);
    if (rare) level = select(none, searched(x[i]), level);
    store_bytes(q[i], level);
  }
}

// The scales and minima of eight blocks as twelve bytes: six bits each, those of the last four
// split. Gives back what a reader finds there, which differs where ggml lets a byte overflow.
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
        fits[j] = fit_affine<32, false>(x, w, nmax, {-0.9f, 0.05f, 36});
      } else {
        magnitude_weights(x, w);
        fits[j] = fit_affine<32, false>(
            x, w, nmax, nmax == 15 ? Candidates{-1.0f, 0.1f, 20} : Candidates{-0.5f, 0.1f, 15});
      }
    }
  }

  // Six-bit scales and minima, and what they are multiples of.
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
      const auto searched = [&](F value) { return searched_level(fits[j], value, nmax); };
      affine_levels_stored<32>(x + 32 * j, d * floats(ls[j]), dmin * floats(lm[j]), nmax, searched,
                               levels.rows(32 * j));
    }
  }
};

// Q4_K: d, dmin, scales[12], qs[128]; effectively 4.5 bits per weight.
struct Q4K : AffineK<15> {
  static constexpr int bytes = 144;

  static void quantize(Strip x, const float* importance, F, Bytes out) {
    Levels levels;
    quantize_levels(x, importance, levels, out);
    pack_nibbles(levels, out + 16);
  }
};

// Q5_K: d, dmin, scales[12], qh[32], qs[128]; effectively 5.5 bits per weight. Bit j of qh[l] is
// the fifth bit of row 32 * j + l.
struct Q5K : AffineK<31> {
  static constexpr int bytes = 176;

  static void quantize(Strip x, const float* importance, F, Bytes out) {
    Levels levels;
    quantize_levels(x, importance, levels, out);
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
  static constexpr int bytes = 84;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<80, 82>;

  static void fit(Strip strip, const float* importance, AffineFit (&fits)[16]) {
    const F sigma2 = importance != nullptr ? super_sigma2(strip, 1.0f) : F(0.0f);
    for (int j = 0; j < 16; ++j) {
      F x[16], w[16];
      load_block(strip + 16 * j, x);
      if (importance != nullptr) {
        importance_weights(x, importance + 16 * j, sigma2, w);
        fits[j] = fit_affine<16, false>(x, w, 3, {-0.9f, 0.05f, 36});
      } else {
        for (int i = 0; i < 16; ++i) w[i] = magnitude(x[i]);
        fits[j] = fit_affine<16, true>(x, w, 3, {-0.5f, 0.1f, 15});
      }
    }
  }

  // Four-bit scales (or minima): multiples of the largest over 15, or of the best fit.
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
      const auto searched = [&](F value) { return searched_level(fits[j], value, 3); };
      affine_levels_stored<16>(x + 16 * j, d * floats(both & 15), dmin * floats(both >> 4), 3,
                               searched, levels.rows(16 * j));
    }
    pack_two_bits(levels, out + 16);
  }
};

// Levels of a symmetric block from its scale as stored; where that is zero, those of the search.
template <int n, class Searched>
WC_INLINE void symmetric_levels_stored(Strip x, F d, int nmax, Searched searched,
                                       Bytes q) {
  const M none = d == 0.0f;
  const bool rare = any(none);
  for (int i = 0; i < n; ++i) {
    I level = clamped(nearest_int(x[i] / d), -nmax, nmax - 1) + nmax;
    if (rare) level = select(none, searched(i, x[i]), level);
    store_bytes(q[i], level);
  }
}

// Q3_K: hmask[32], qs[64], scales[12], d; x = d * (scale - 32) * (q - 4), scales of six bits for
// each 16; effectively 3.4375 bits per weight.
struct Q3K {
  static constexpr int elements = kSuper;
  static constexpr int depth = kSuper;
  static constexpr int bytes = 110;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<108>;

  // Scales 0 to 63 and d; the levels of the search go to `levels`.
  static F by_descent(Strip strip, I (&ls)[16], Levels& levels) {
    constexpr int ways = 2;
    F scales[16];
    for (int j = 0; j < 16; j += ways) {
      F x[ways][16], scale[ways];
      I level[ways][16];
      for (int k = 0; k < ways; ++k) load_block(strip + 16 * (j + k), x[k]);
      fit_descent<16, ways>(x, 4, level, scale);
      for (int k = 0; k < ways; ++k) {
        scales[j + k] = scale[k];
        for (int i = 0; i < 16; ++i) store_bytes(levels.row(16 * (j + k) + i), level[k][i]);
      }
    }
    F amax;
    const F max = signed_maximum<16>(scales, amax);
    const M zero = max == 0.0f;
    const F iscale = -32.0f / max;
    for (int j = 0; j < 16; ++j) {
      const I l = as_int8(nearest_int(iscale * scales[j]));  // as ggml keeps it
      ls[j] = select(zero, 0, clamped(l, -32, 31) + 32);
    }
    return select(zero, 0.0f, 1.0f / iscale);
  }

  static F by_fit(Strip strip, const float* importance, I (&ls)[16], Levels& levels) {
    F scales[16], sums[16];
    const F sigma2 = super_sigma2(strip, 2.0f);
    for (int j = 0; j < 16; ++j) {
      F x[16], w[16];
      load_block(strip + 16 * j, x);
      importance_weights(x, importance + 16 * j, sigma2, w);
      sums[j] = 0.0f;
      for (int i = 0; i < 16; ++i) sums[j] += w[i];
      const SymmetricFit fit = fit_symmetric<16>(x, w, 4);
      scales[j] = fit.scale;
      for (int i = 0; i < 16; ++i) {
        store_bytes(levels.row(16 * j + i),
                    select(fit.zero, 0, symmetric_level(x[i], fit.iscale, 4)));
      }
    }
    const SymmetricFit fit = fit_symmetric<16, true>(scales, sums, 32);
    for (int j = 0; j < 16; ++j) {
      ls[j] = select(fit.zero, 0, symmetric_level(scales[j], fit.iscale, 32));
    }
    return fit.scale;
  }

  // Sixteen scales of six bits as twelve bytes.
  static void store_scales(const I (&ls)[16], Bytes out) {
    for (int j = 0; j < 8; ++j) store_bytes(out[j], (ls[j] & 15) | (ls[j + 8] & 15) << 4);
    for (int j = 0; j < 4; ++j) {
      store_bytes(out[j + 8], (ls[j] >> 4) | (ls[j + 4] >> 4) << 2 | (ls[j + 8] >> 4) << 4 |
                                  (ls[j + 12] >> 4) << 6);
    }
  }

  static void quantize(Strip x, const float* importance, F, Bytes out) {
    Levels levels;
    I ls[16];
    const F fitted = importance != nullptr ? by_fit(x, importance, ls, levels)
                                           : by_descent(x, ls, levels);
    const I half = to_f16(fitted);
    store_half(out + 108, half);
    store_scales(ls, out + 96);
    const F d = from_f16(half);
    for (int j = 0; j < 16; ++j) {
      const Bytes q = levels.rows(16 * j);
      const auto searched = [&](int i, F) { return load_bytes(q[i]); };
      symmetric_levels_stored<16>(x + 16 * j, d * floats(ls[j] - 32), 4, searched, q);
    }
    for (int i = 0; i < 32 * kLanes; ++i) {
      int high = 0;
      for (int j = 0; j < 8; ++j) high |= (levels.row(32 * j)[i] >> 2) << j;
      out[0][i] = static_cast<uint8_t>(high);
    }
    pack_two_bits(levels, out + 32);
  }
};

// Q6_K: ql[128], qh[64], scales[16] (int8), d; x = d * scale * (q - 32); effectively 6.5625 bits
// per weight.
struct Q6K {
  static constexpr int elements = kSuper;
  static constexpr int depth = kSuper;
  static constexpr int bytes = 210;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<208>;

  static void pack(const Levels& levels, Bytes out) {
    for (int half = 0; half < 2; ++half) {
      const uint8_t* q = levels.row(128 * half);
      uint8_t* low = out[64 * half];
      uint8_t* high = out[128 + 32 * half];
      for (int i = 0; i < 64 * kLanes; ++i) {
        low[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 64 * kLanes] << 4);
      }
      for (int i = 0; i < 32 * kLanes; ++i) {
        high[i] = static_cast<uint8_t>(q[i] >> 4 | (q[i + 32 * kLanes] >> 4) << 2 |
                                       (q[i + 64 * kLanes] >> 4) << 4 |
                                       (q[i + 96 * kLanes] >> 4) << 6);
      }
    }
  }

  static void quantize(Strip strip, const float* importance, F, Bytes out) {
    SymmetricFit fits[16];
    F scales[16];
    for (int j = 0; j < 16; ++j) {
      F x[16], w[16];
      load_block(strip + 16 * j, x);
      for (int i = 0; i < 16; ++i) {
        w[i] = importance != nullptr ? F(importance[16 * j + i]) : x[i] * x[i];
      }
      fits[j] = fit_symmetric<16>(x, w, 32);
      scales[j] = fits[j].scale;
    }
    F amax;
    const F max = signed_maximum<16>(scales, amax);
    const M zero = amax < kGroupMaxEps;
    const F iscale = -128.0f / max;
    const I half = select(zero, 0, to_f16(1.0f / iscale));
    store_half(out + 208, half);
    const F d = from_f16(half);
    Levels levels;
    for (int j = 0; j < 16; ++j) {
      // ggml keeps the low byte as an int8.
      const I scale = as_int8(lesser(nearest_int(iscale * scales[j]), 127));
      store_bytes(out[192 + j], select(zero, 0, scale));
      const auto searched = [&](int, F value) {
        return select(fits[j].zero | zero, 0, symmetric_level(value, fits[j].iscale, 32));
      };
      symmetric_levels_stored<16>(strip + 16 * j, d * floats(scale), 32, searched,
                                  levels.rows(16 * j));
    }
    pack(levels, out);
  }
};

}  // namespace
}  // namespace weightcast
