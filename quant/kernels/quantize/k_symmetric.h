// Quantizers of Q3_K and Q6_K: blocks of 16 with a scale of a few bits each.
// Sources of layouts and rules: block_q3_K and block_q6_K in ggml-common.h, quantize_row_q*_K_ref
// (no importance) and quantize_row_q*_K_impl (with importance) in ggml-quants.c.
#pragma once

#include "quantize/super_blocks.h"

namespace weightcast {
namespace {

// Compute a symmetric block's levels from its scale as stored; where that is zero, the search's remain.
template <int n, class Searched>
WC_INLINE void symmetric_levels_stored(Strip x, F d, int nmax, Searched searched,
                                       Bytes q) {
  const M none = d == 0.0f;
  const bool rare = any(none);
  const auto rows = read<n>(x);
WC_UNROLL
  for (int i = 0; i < n; ++i) {
    I level = clamped(nearest_int(rows[i] / d), -nmax, nmax - 1) + nmax;
    if (rare) level = select(none, searched(i, rows[i]), level);
    store_bytes(q[i], level);
  }
}

// Blocks that descend side by side, to hide the latency of each. On a device other threads hide it, and
// the registers of a second block would cost more. Measurements compare both.
#ifndef WC_DESCENT_WAYS
#ifdef WC_DEVICE
#define WC_DESCENT_WAYS 1
#else
#define WC_DESCENT_WAYS 2
#endif
#endif

// Q3_K: hmask[32], qs[64], scales[12], d; x = d * (scale - 32) * (q - 4), scales of six bits for
// each 16; effectively 3.4375 bits per weight.
struct Q3K {
  static constexpr int elements = kSuper;
  static constexpr int depth = kSuper;
  static constexpr int bytes = sizeof(BlockQ3_K);
  static constexpr bool uses_row_sum = false;
  using halves = Halves<108>;

  // Choose scales from 0 to 63 and return d; the levels of the search go to `levels`.
  static F by_descent(Strip strip, I (&ls)[16], Levels& levels) {
    constexpr int ways = WC_DESCENT_WAYS;
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

  // Store sixteen scales of six bits in twelve bytes.
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
    pack(levels, out);
  }

  static void pack(const Levels& levels, Bytes out) {
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
  static constexpr int bytes = sizeof(BlockQ6_K);
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
