// Least-squares fits that several types share: they find the best scale (and minimum) of a block.
//
// Sums run in order within a lane, so that each lane gets the bits of ggml's scalar code. Sources
// of the algorithms: make_qx_quants, make_qkx2_quants, make_qkx3_quants, make_qp_quants and
// make_q3_quants in ggml-quants.c.
#pragma once

#include "source/strip.h"

namespace weightcast {
namespace {

constexpr float kGroupMaxEps = 1e-15f;  // a block without a larger magnitude counts as zero

WC_INLINE I clamped(I x, int low, int high) { return greater(lesser(x, high), low); }
WC_INLINE F clamped(F x, float low, float high) { return greater(lesser(x, high), low); }

template <int n>
WC_INLINE void load_block(Strip strip, F (&x)[n]) {
  const auto rows = read<n>(strip);
  for (int i = 0; i < n; ++i) x[i] = rows[i];
}

// Compute the weights of errors: importance times sqrt(sigma2 + x * x). X is a strip or an array of F.
template <class X, int n>
WC_INLINE void importance_weights(const X& x, const float* importance, F sigma2, F (&w)[n]) {
  for (int i = 0; i < n; ++i) w[i] = importance[i] * root(sigma2 + x[i] * x[i]);
}

WC_INLINE I affine_level(F x, F iscale, F min, int nmax) {
  return clamped(nearest_int(iscale * (x - min)), 0, nmax);
}

// The level of a candidate if there is an importance: clamped, then rounded. Infinities and values
// beyond 2^22, for which nearest_int is meaningless, get the first or the last level; NaN gets 0.
WC_INLINE F affine_level_clamped(F x, F iscale, F min, F top) {
  return nearest_small(lesser(greater(iscale * (x - min), 0.0f), top));
}

// x = scale * level + min with min <= 0 and levels 0 to nmax. The levels of the best candidate were
// made with `iscale` and `base`.
struct AffineFit {
  F scale, min;
  F iscale, base;
  F sum_w;
  M flat;  // no span, or one so small that errors vanish: scale is 0 and so are the levels
};

// The level that the search gave x. `weighed`: there was an importance.
WC_INLINE I searched_level(const AffineFit& fit, F x, int nmax, bool weighed) {
  const F top = static_cast<float>(nmax);
  const I level = weighed ? truncated(affine_level_clamped(x, fit.iscale, fit.base, top))
                          : affine_level(x, fit.iscale, fit.base, nmax);
  return select(fit.flat, 0, level);
}

// The steps (start + step * i + nmax) / span, i from 0 to steps, are tried as inverse scales.
struct Candidates {
  float start, step;
  int steps;
};

// What is known of all levels of one candidate before they are clamped.
struct AffineBounds {
  bool exact;     // below 2^22, so that rounding in float gives what nearest_int does
  bool positive;  // no level needs the lower clamp: -0 counts as 0 in all sums
  bool below;     // no level needs the upper clamp
};

// Compute the levels of one candidate and their sums.
template <int n, bool weighed>
WC_INLINE void affine_levels(const F* x, const F* w, F iscale, F min, int nmax, AffineBounds bounds, F* level,
                             F& sum_l, F& sum_l2, F& sum_xl) {
  sum_l = sum_l2 = sum_xl = 0.0f;
  const auto add = [&](int i) {
    const F wl = w[i] * level[i];
    sum_l += wl;
    sum_l2 += wl * level[i];
    sum_xl += wl * x[i];
  };
  const float top = static_cast<float>(nmax);
  if constexpr (weighed) {
    for (int i = 0; i < n; ++i) {
      level[i] = bounds.below ? nearest_small(greater(iscale * (x[i] - min), 0.0f))
                              : affine_level_clamped(x[i], iscale, min, top);
      add(i);
    }
  } else if (bounds.exact && bounds.positive && bounds.below) {
    for (int i = 0; i < n; ++i) {
      level[i] = nearest_small(iscale * (x[i] - min));
      add(i);
    }
  } else if (bounds.exact && bounds.positive) {
    for (int i = 0; i < n; ++i) {
      level[i] = lesser(nearest_small(iscale * (x[i] - min)), top);
      add(i);
    }
  } else if (bounds.exact) {
    for (int i = 0; i < n; ++i) {
      level[i] = clamped(nearest_small(iscale * (x[i] - min)), 0.0f, top);
      add(i);
    }
  } else {
    for (int i = 0; i < n; ++i) {
      level[i] = floats(affine_level(x[i], iscale, min, nmax));
      add(i);
    }
  }
}

template <int n, bool absolute>
WC_INLINE F affine_error(const F* x, const F* w, const F* level, F scale, F min) {
  F error = 0.0f;
  for (int i = 0; i < n; ++i) {
    const F diff = scale * level[i] + min - x[i];
    error += w[i] * (absolute ? magnitude(diff) : diff * diff);
  }
  return error;
}

// make_qkx2_quants, or make_qkx3_quants if weights come from an importance (`weighed`). As in ggml,
// `min` changes with each better candidate, and the next candidates start from it.
//
// Releases of ggml differ in make_qkx3_quants: later ones clamp the levels of candidates before
// rounding them, which shows only beyond 2^22. This follows the later ones.
template <int n, bool weighed, bool absolute = false>
inline AffineFit fit_affine(const F* x, const F* w, int nmax, Candidates candidates) {
  F low = x[0], high = x[0];
  AffineFit fit;
  fit.sum_w = w[0];
  F sum_x = w[0] * x[0];
  for (int i = 1; i < n; ++i) {
    low = lesser(x[i], low);
    high = greater(x[i], high);
    fit.sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  const F smallest = low;
  F min = lesser(0.0f, low);
  fit.iscale = static_cast<float>(nmax) / (high - min);
  fit.flat = !(fit.iscale < of_bits(I(0x7f800000)));
  fit.scale = 1.0f / fit.iscale;
  fit.base = min;
  F level[n];
  for (int i = 0; i < n; ++i) level[i] = floats(affine_level(x[i], fit.iscale, min, nmax));
  F best = affine_error<n, absolute>(x, w, level, fit.scale, min);
  for (int step = 0; step <= candidates.steps; ++step) {
    const float inverse =
        candidates.start + candidates.step * static_cast<float>(step) + static_cast<float>(nmax);
    const F iscale = inverse / (high - min);
    // `min` may have come to lie above all values: then the smallest of them has the highest level.
    const F first = iscale * (smallest - min), last = iscale * (high - min);
    const M small = (magnitude(first) < 0x1p22f) & (magnitude(last) < 0x1p22f);
    const M positive = lesser(first, last) > -0.5f;
    const M below = greater(first, last) < static_cast<float>(nmax) + 0.5f;
    const AffineBounds bounds = {!any(!(small | fit.flat)), !any(!(positive | fit.flat)),
                                 !any(!(below | fit.flat))};
    F sum_l, sum_l2, sum_xl;
    affine_levels<n, weighed>(x, w, iscale, min, nmax, bounds, level, sum_l, sum_l2, sum_xl);
    const F det = fit.sum_w * sum_l2 - sum_l * sum_l;
    const M solvable = (det > 0.0f) & !fit.flat;
    if (!any(solvable)) continue;
    F this_scale = (fit.sum_w * sum_xl - sum_x * sum_l) / det;
    F this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
    const M above_zero = this_min > 0.0f;
    this_scale = select(above_zero, sum_xl / sum_l2, this_scale);
    this_min = select(above_zero, 0.0f, this_min);
    const F error = affine_error<n, absolute>(x, w, level, this_scale, this_min);
    const M better = solvable & (error < best);
    best = select(better, error, best);
    fit.scale = select(better, this_scale, fit.scale);
    fit.iscale = select(better, iscale, fit.iscale);
    fit.base = select(better, min, fit.base);
    min = select(better, this_min, min);
  }
  fit.scale = select(fit.flat, 0.0f, fit.scale);
  fit.min = -min;
  return fit;
}

// x = scale * (level - nmax), levels 0 to 2 * nmax - 1, which symmetric_level makes with iscale.
struct SymmetricFit {
  F scale;
  F iscale;
  M zero;  // all magnitudes are negligible: scale and levels are 0
};

WC_INLINE I symmetric_level(F x, F iscale, int nmax) {
  return clamped(nearest_int(iscale * x), -nmax, nmax - 1) + nmax;
}

// Find the value of the largest magnitude, with its sign; the first of equals. X is a strip or holds F.
template <int n, class X>
WC_INLINE F signed_maximum(const X& x, F& amax) {
  F max = 0.0f;
  amax = 0.0f;
  for (int i = 0; i < n; ++i) {
    const F a = magnitude(x[i]);
    const M larger = a > amax;
    amax = select(larger, a, amax);
    max = select(larger, x[i], max);
  }
  return max;
}

// The ends of the range beyond which the levels of a candidate can lie, so that they are clamped there.
// Levels of kUnbounded can be anything, infinities and NaN too.
enum class Beyond { kNeither, kHighest, kBoth, kUnbounded };

template <Beyond beyond>
WC_INLINE F symmetric_candidate_level(F quotient, int nmax) {
  if constexpr (beyond == Beyond::kUnbounded) {
    return floats(clamped(nearest_int(quotient), -nmax, nmax - 1));
  } else {
    F level = nearest_small(quotient);
    if constexpr (beyond != Beyond::kNeither) level = lesser(level, static_cast<float>(nmax - 1));
    if constexpr (beyond == Beyond::kBoth) level = greater(level, static_cast<float>(-nmax));
    return level;
  }
}

template <int n, Beyond beyond>
WC_INLINE void symmetric_sums(const F* x, const F* w, const F* wx, F iscale, int nmax, F& sumlx, F& suml2) {
  sumlx = suml2 = 0.0f;
  for (int i = 0; i < n; ++i) {
    const F l = symmetric_candidate_level<beyond>(iscale * x[i], nmax);
    sumlx += wx[i] * l;
    suml2 += w[i] * l * l;
  }
}

// Try -(nmax + 0.1 * is) / max as inverse scales, is from `first` to `last` without 0.
template <int n, Beyond beyond>
WC_INLINE void try_symmetric(int first, int last, const F* x, const F* w, const F* wx, F max, int nmax,
                             SymmetricFit& fit, F& best) {
  for (int is = first; is <= last; ++is) {
    if (is == 0) continue;
    const F iscale = -(static_cast<float>(nmax) + 0.1f * static_cast<float>(is)) / max;
    F sumlx, suml2;
    symmetric_sums<n, beyond>(x, w, wx, iscale, nmax, sumlx, suml2);
    const M better = (suml2 > 0.0f) & (sumlx * sumlx > best * suml2);
    if (!any(better)) continue;
    const F scale = sumlx / suml2;
    fit.scale = select(better, scale, fit.scale);
    fit.iscale = select(better, iscale, fit.iscale);
    best = select(better, scale * sumlx, best);
  }
}

// make_qx_quants with rmse_type 1; w is x * x if there is no importance. `any_size`: x can be infinite or
// NaN, as scales of super-blocks can.
template <int n, bool any_size = false>
inline SymmetricFit fit_symmetric(const F* x, const F* w, int nmax) {
  F amax;
  const F max = signed_maximum<n>(x, amax);
  SymmetricFit fit;
  fit.zero = amax < kGroupMaxEps;
  fit.iscale = static_cast<float>(-nmax) / max;
  F wx[n];
  for (int i = 0; i < n; ++i) wx[i] = w[i] * x[i];
  F sumlx, suml2;
  symmetric_sums<n, any_size ? Beyond::kUnbounded : Beyond::kHighest>(x, w, wx, fit.iscale, nmax, sumlx, suml2);
  fit.scale = select(suml2 == 0.0f, 0.0f, sumlx / suml2);
  F best = fit.scale * sumlx;
  if constexpr (any_size) {
    try_symmetric<n, Beyond::kUnbounded>(-9, 9, x, w, wx, max, nmax, fit, best);
  } else {
    // Quotients are at most nmax + 0.1 * is, with the sign of the lowest level where x is max: below
    // nmax - 0.5 they round to nmax - 1, and to -nmax below nmax + 0.5.
    try_symmetric<n, Beyond::kNeither>(-9, -6, x, w, wx, max, nmax, fit, best);
    try_symmetric<n, Beyond::kHighest>(-5, 4, x, w, wx, max, nmax, fit, best);
    try_symmetric<n, Beyond::kBoth>(5, 9, x, w, wx, max, nmax, fit, best);
  }
  fit.scale = select(fit.zero, 0.0f, fit.scale);
  return fit;
}

// make_qp_quants: x = scale * level for x >= 0, levels up to nmax (as uint8, which can wrap).
template <int n>
inline F fit_positive(const F* x, const F* w, int nmax, I* level) {
  const float top = static_cast<float>(nmax);
  F max = 0.0f;
  for (int i = 0; i < n; ++i) max = greater(max, x[i]);
  const M zero = max < kGroupMaxEps;
  F iscale = top / max;
  F best = 0.0f;
  F scale = 1.0f / iscale;
  for (int i = 0; i < n; ++i) {
    const F diff = x[i] - scale * floats(nearest_int(iscale * x[i]) & 0xff);
    best += w[i] * diff * diff;
  }
  for (int is = -4; is <= 4; ++is) {
    if (is == 0) continue;
    const F inverse = (0.1f * static_cast<float>(is) + top) / max;
    scale = 1.0f / inverse;
    F error = 0.0f;
    for (int i = 0; i < n; ++i) {
      const F diff = x[i] - scale * floats(lesser(nearest_int(inverse * x[i]), nmax));
      error += w[i] * diff * diff;
    }
    const M better = error < best;
    best = select(better, error, best);
    iscale = select(better, inverse, iscale);
  }
  F sumlx = 0.0f, suml2 = 0.0f;
  for (int i = 0; i < n; ++i) {
    const I l = lesser(nearest_int(iscale * x[i]), nmax);
    level[i] = l & 0xff;
    sumlx += w[i] * x[i] * floats(l);
    suml2 += w[i] * floats(l) * floats(l);
  }
  for (int turn = 0; turn < 5; ++turn) {
    M changed = no_lane();
    for (int i = 0; i < n; ++i) {
      const F l = floats(level[i]);
      F slx = sumlx - w[i] * x[i] * l;
      F sl2 = suml2 - w[i] * l * l;
      const I candidate = lesser(nearest_int(x[i] * sl2 / slx), nmax);
      const M worth = (slx > 0.0f) & (sl2 > 0.0f) & !(candidate == level[i]) & !zero;
      const F c = floats(candidate);
      slx += w[i] * x[i] * c;
      sl2 += w[i] * c * c;
      const M better = worth & (slx * slx * suml2 > sumlx * sumlx * sl2);
      level[i] = select(better, candidate & 0xff, level[i]);
      sumlx = select(better, slx, sumlx);
      suml2 = select(better, sl2, suml2);
      changed = changed | better;
    }
    if (!any(changed)) break;
  }
  for (int i = 0; i < n; ++i) level[i] = select(zero, 0, level[i]);
  return select(suml2 > 0.0f, select(zero, 0.0f, sumlx / suml2), 0.0f);
}

// make_q3_quants: symmetric levels (-nmax to nmax - 1) by coordinate descent; then nmax is added.
// Each step depends on the one before, so `ways` blocks descend side by side.
template <int n, int ways>
inline void fit_descent(const F (&x)[ways][n], int nmax, I (&level)[ways][n], F (&scale)[ways]) {
  F w[ways][n], sumlx[ways], suml2[ways];
  M zero[ways];
  for (int k = 0; k < ways; ++k) {
    F amax;
    const F max = signed_maximum<n>(x[k], amax);
    zero[k] = amax < kGroupMaxEps;
    const F iscale = static_cast<float>(-nmax) / max;
    sumlx[k] = suml2[k] = 0.0f;
    for (int i = 0; i < n; ++i) {
      level[k][i] = clamped(nearest_int(iscale * x[k][i]), -nmax, nmax - 1);
      const F l = floats(level[k][i]);
      w[k][i] = x[k][i] * x[k][i];
      sumlx[k] += w[k][i] * x[k][i] * l;
      suml2[k] += w[k][i] * l * l;
    }
  }
  for (int turn = 0; turn < 5; ++turn) {
    M changed = no_lane();
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < ways; ++k) {
        const F l = floats(level[k][i]), wx = w[k][i] * x[k][i];
        F slx = sumlx[k] - wx * l;
        F sl2 = suml2[k] - w[k][i] * l * l;
        const I candidate = clamped(nearest_int(x[k][i] * sl2 / slx), -nmax, nmax - 1);
        const M worth = (slx > 0.0f) & !(candidate == level[k][i]) & !zero[k];
        const F c = floats(candidate);
        slx += wx * c;
        sl2 += w[k][i] * c * c;
        const M better =
            worth & (sl2 > 0.0f) & (slx * slx * suml2[k] > sumlx[k] * sumlx[k] * sl2);
        level[k][i] = select(better, candidate, level[k][i]);
        sumlx[k] = select(better, slx, sumlx[k]);
        suml2[k] = select(better, sl2, suml2[k]);
        changed = changed | better;
      }
    }
    if (!any(changed)) break;
  }
  for (int k = 0; k < ways; ++k) {
    for (int i = 0; i < n; ++i) level[k][i] = select(zero[k], 0, level[k][i] + nmax);
    scale[k] = select((suml2[k] > 0.0f) & !zero[k], sumlx[k] / suml2[k], 0.0f);
  }
}

}  // namespace
}  // namespace weightcast
