// The search for the least error in Q2_K, Q4_K and Q5_K.
//
// First each sub-block is fitted by itself, y = scale * q - min with min >= 0, from ggml's fit and from
// candidates that cut its range. Then the small scales, which are rounded, are chosen by the errors that they
// and their neighbours give, and d and dmin by least squares for the codes that follow, in turns.
#pragma once

#include "quantize/least_error.h"

namespace weightcast {
namespace {

// The parts of a range that are cut off in search of a better one: all pairs of `grid` parts from `least`,
// which widens the range, to `most`, then `one_sided` parts up to the deepest at either end.
struct Cuts {
  int grid;
  float least, most;
  int one_sided;
};
constexpr float kDeepestCut = 0.42f;

// How often d and dmin are fitted, and how far from the rounded ones small scales and minima are tried.
struct AffineEffort {
  Cuts cuts;
  int rounds, reach;
};
constexpr AffineEffort kAffineEfforts[kEfforts] = {
    {{3, -0.02f, 0.10f, 2}, 1, 1}, {{5, -0.03f, 0.14f, 3}, 2, 1}, {{9, -0.03f, 0.14f, 6}, 4, 3}};
// The codes of Q5_K depend more on how scales are rounded, and less on ranges.
constexpr AffineEffort kAffineEffortsQ5K[kEfforts] = {
    {{3, -0.02f, 0.10f, 2}, 1, 1}, {{3, -0.02f, 0.10f, 2}, 2, 2}, {{9, -0.03f, 0.14f, 6}, 4, 3}};

// y = scale * q - min.
struct Affine {
  F scale, min;
};

template <int nmax>
WC_INLINE F affine_code(F x, F inverse, F min) {
  return nearest_small(lesser(greater(inverse * (x + min), 0.0f), static_cast<float>(nmax)));
}

// Sums over a sub-block for a scale and a minimum, with r = y - x and codes q.
template <int n, int nmax>
struct AffineSums {
  F rq, r, q, qq;

  WC_INLINE AffineSums(Strip x, const float* w, F scale, F min) {
    const F inverse = inverse_of(scale);
    rq = r = q = qq = 0.0f;
    for (int i = 0; i < n; ++i) {
      const F xi = x[i];
      const F code = affine_code<nmax>(xi, inverse, min);
      const F diff = scale * code - min - xi;
      const F wr = w[i] * diff, wq = w[i] * code;
      r += wr;
      rq += wr * code;
      q += wq;
      qq += wq * code;
    }
  }
};

// The best fit of n weights so far. Errors leave out the sum of w * x * x. `bounded`: min is not negative.
template <int n, int nmax, bool bounded>
struct AffineSearch {
  Strip x;
  const float* w;
  float sum_w;
  F sum_x, low, high;
  F best;
  Affine found;

  WC_INLINE AffineSearch(Strip from, const float* weights) : x(from), w(weights) {
    sum_w = 0.0f;
    sum_x = 0.0f;
    low = high = x[0];
    for (int i = 0; i < n; ++i) {
      const F xi = x[i];
      low = lesser(xi, low);
      high = greater(xi, high);
      sum_w += w[i];
      sum_x += w[i] * xi;
    }
    best = infinity();
    found = {0.0f, 0.0f};
  }

  // Take codes by 1 / inverse and min, and the scale and the minimum that fit them best.
  WC_INLINE void attempt(F inverse, F min) {
    F q = 0.0f, qq = 0.0f, xq = 0.0f;
    for (int i = 0; i < n; ++i) {
      const F xi = x[i];
      const F code = affine_code<nmax>(xi, inverse, min);
      const F wq = w[i] * code;
      q += wq;
      qq += wq * code;
      xq += wq * xi;
    }
    const F det = sum_w * qq - q * q;
    F scale = (sum_w * xq - sum_x * q) / det;
    F new_min = (q * xq - qq * sum_x) / det;
    if constexpr (bounded) {
      const M negative = new_min < 0.0f;
      scale = select(negative, xq / qq, scale);
      new_min = select(negative, 0.0f, new_min);
    }
    const F error = scale * scale * qq + new_min * new_min * sum_w -
                    2.0f * (scale * new_min * q + scale * xq - new_min * sum_x);
    const M better = (det > 0.0f) & (error < best);
    best = select(better, error, best);
    found.scale = select(better, scale, found.scale);
    found.min = select(better, new_min, found.min);
  }

  // Try the ranges that are left when parts of this one are cut off below and above.
  WC_INLINE void try_cuts(const Cuts& cuts) {
    const auto part = [&](int k, int last, float least, float most) {
      return least + (most - least) * static_cast<float>(k) / static_cast<float>(last);
    };
    for (int below = 0; below < cuts.grid; ++below) {
      for (int above = 0; above < cuts.grid; ++above) {
        try_cut(part(below, cuts.grid - 1, cuts.least, cuts.most),
                part(above, cuts.grid - 1, cuts.least, cuts.most));
      }
    }
    for (int k = 1; k <= cuts.one_sided; ++k) {
      const float deep = part(k, cuts.one_sided, cuts.most, kDeepestCut);
      try_cut(0.0f, deep);
      try_cut(deep, 0.0f);
    }
  }

  WC_INLINE void try_cut(float below, float above) {
    F bottom = low, top = high;
    if constexpr (bounded) {
      bottom = lesser(low, 0.0f);
      top = greater(high, bottom);
    }
    const F span = top - bottom;
    F begin = bottom + span * below;
    if constexpr (bounded) begin = lesser(begin, 0.0f);
    attempt(static_cast<float>(nmax) / (top - span * above - begin), -begin);
  }
};

// Q2_K, Q4_K and Q5_K: `blocks` sub-blocks of n codes up to nmax, scales and minima up to top.
template <int n, int blocks, int nmax, int top>
struct AffineSuper {
  Strip x;
  const float* w;
  float sum_w[blocks];
  F d, dmin;
  F s[blocks], m[blocks];  // the small scales and minima

  WC_INLINE AffineSuper(Strip from, const float* weights) : x(from), w(weights) {}

  void search(const F (&start_scale)[blocks], const F (&start_min)[blocks], const AffineEffort& effort) {
    fit(start_scale, start_min, effort.cuts);
    refine(effort.rounds, effort.reach);
  }

  // Fit each sub-block by itself, from ggml's scales on, and choose d and dmin by the largest.
  WC_OUT_OF_LINE void fit(const F (&start_scale)[blocks], const F (&start_min)[blocks], const Cuts& cuts) {
    F scale[blocks], min[blocks];
    F largest = 0.0f, largest_min = 0.0f;
    for (int b = 0; b < blocks; ++b) {
      AffineSearch<n, nmax, true> search(x + n * b, w + n * b);
      sum_w[b] = search.sum_w;
      search.attempt(inverse_of(start_scale[b]), start_min[b]);
      search.try_cuts(cuts);
      scale[b] = search.found.scale;
      min[b] = search.found.min;
      largest = greater(scale[b], largest);
      largest_min = greater(min[b], largest_min);
    }
    d = from_f16(to_f16(largest / static_cast<float>(top)));
    dmin = from_f16(to_f16(largest_min / static_cast<float>(top)));
    const F inverse = inverse_of(d), inverse_min = inverse_of(dmin);
    for (int b = 0; b < blocks; ++b) {
      s[b] = small(scale[b] * inverse);
      m[b] = small(min[b] * inverse_min);
    }
  }

  // Choose each small scale and minimum among those next to the present ones by the errors that they give.
  // Returns the sum of the least errors.
  F choose(int reach) {
    F sum = 0.0f;
    for (int b = 0; b < blocks; ++b) {
      F best = infinity(), best_s = s[b], best_m = m[b];
      for (int i = -reach; i <= reach; ++i) {
        const F next_s = small(s[b] + static_cast<float>(i));
        const F scale = d * next_s, inverse = inverse_of(scale);
        for (int j = -reach; j <= reach; ++j) {
          const F next_m = small(m[b] + static_cast<float>(j));
          const F min = dmin * next_m;
          F error = 0.0f;
          for (int k = 0; k < n; ++k) {
            const F xi = x[n * b + k];
            const F diff = scale * affine_code<nmax>(xi, inverse, min) - min - xi;
            error += w[n * b + k] * diff * diff;
          }
          const M better = error < best;
          best = select(better, error, best);
          best_s = select(better, next_s, best_s);
          best_m = select(better, next_m, best_m);
        }
      }
      s[b] = best_s;
      m[b] = best_m;
      sum += best;
    }
    return sum;
  }

  WC_INLINE static F small(F value) {
    return nearest_small(lesser(greater(value, 0.0f), static_cast<float>(top)));
  }

  // Choose the small scales, then d and dmin for the codes that follow, in turns; keep the best.
  WC_OUT_OF_LINE void refine(int rounds, int reach) {
    F best = infinity(), best_d = d, best_dmin = dmin;
    F best_s[blocks], best_m[blocks];
    for (int b = 0; b < blocks; ++b) best_s[b] = best_m[b] = 0.0f;
    for (int round = 0;; ++round) {
      const F error = choose(reach);
      const M better = error < best;
      best = select(better, error, best);
      best_d = select(better, d, best_d);
      best_dmin = select(better, dmin, best_dmin);
      for (int b = 0; b < blocks; ++b) {
        best_s[b] = select(better, s[b], best_s[b]);
        best_m[b] = select(better, m[b], best_m[b]);
      }
      if (round == rounds) break;
      fit_factors();
    }
    d = best_d;
    dmin = best_dmin;
    for (int b = 0; b < blocks; ++b) {
      s[b] = best_s[b];
      m[b] = best_m[b];
    }
  }

  // Change d and dmin to what fits the codes at hand best: with r = y - x, changes by u and v minimize the
  // sum of w * (r + u * s * q - v * m)^2.
  void fit_factors() {
    F ss = 0.0f, sm = 0.0f, mm = 0.0f, rs = 0.0f, rm = 0.0f;
    for (int b = 0; b < blocks; ++b) {
      const AffineSums<n, nmax> sums(x + n * b, w + n * b, d * s[b], dmin * m[b]);
      ss += s[b] * s[b] * sums.qq;
      sm += s[b] * m[b] * sums.q;
      mm += m[b] * m[b] * sum_w[b];
      rs += s[b] * sums.rq;
      rm += m[b] * sums.r;
    }
    const F det = ss * mm - sm * sm;
    const M both = det > ss * mm * 1e-6f;  // else they depend on each other: there is one code, or no minimum
    const F u = select(both, (rm * sm - rs * mm) / det, select(ss > 0.0f, -rs / ss, 0.0f));
    const F v = select(both, (rm * ss - rs * sm) / det, 0.0f);
    const M valid = (d + u > 0.0f) & (dmin + v >= 0.0f);
    d = from_f16(to_f16(select(valid, d + u, d)));
    dmin = from_f16(to_f16(select(valid, dmin + v, dmin)));
  }

  void store_levels(Levels& levels) const {
    for (int b = 0; b < blocks; ++b) {
      const F scale = d * s[b], min = dmin * m[b], inverse = inverse_of(scale);
      for (int i = 0; i < n; ++i) {
        store_bytes(levels.row(n * b + i), truncated(affine_code<nmax>(x[n * b + i], inverse, min)));
      }
    }
  }
};

// Q4_K and Q5_K, up to the codes.
template <int nmax, const AffineEffort (&efforts)[kEfforts]>
struct LeastAffineK {
  static void quantize_levels(Strip x, const float* w, Effort effort, Bytes start, Levels& levels, Bytes out) {
    AffineSuper<32, 8, nmax, 63> super(x, w);
    const F d = read_half(start), dmin = read_half(start + 2);
    SubScales<8> small;
    read_scales_k4(start + 4, small);
    F scale[8], min[8];
    for (int b = 0; b < 8; ++b) {
      scale[b] = d * floats(small.scale[b]);
      min[b] = dmin * floats(small.min[b]);
    }
    super.search(scale, min, efforts[effort.level]);
    store_half(out, to_f16(super.d));
    store_half(out + 2, to_f16(super.dmin));
    I ls[8], lm[8];
    for (int b = 0; b < 8; ++b) {
      ls[b] = truncated(super.s[b]);
      lm[b] = truncated(super.m[b]);
    }
    store_scales_k4(ls, lm, out + 4);
    super.store_levels(levels);
  }
};

template <>
struct LeastError<Q4K> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    Levels levels;
    LeastAffineK<15, kAffineEfforts>::quantize_levels(x, w, effort, start, levels, out);
    pack_nibbles(levels, out + 16);
  }
};

template <>
struct LeastError<Q5K> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    Levels levels;
    LeastAffineK<31, kAffineEffortsQ5K>::quantize_levels(x, w, effort, start, levels, out);
    Q5K::pack(levels, out);
  }
};

template <>
struct LeastError<Q2K> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    AffineSuper<16, 16, 3, 15> super(x, w);
    const F d = read_half(start + 80), dmin = read_half(start + 82);
    F scale[16], min[16];
    for (int b = 0; b < 16; ++b) {
      const I both = load_bytes(start[b]);
      scale[b] = d * floats(both & 15);
      min[b] = dmin * floats(both >> 4);
    }
    super.search(scale, min, kAffineEfforts[effort.level]);
    store_half(out + 80, to_f16(super.d));
    store_half(out + 82, to_f16(super.dmin));
    for (int b = 0; b < 16; ++b) {
      store_bytes(out[b], truncated(super.s[b]) | truncated(super.m[b]) << 4);
    }
    Levels levels;
    super.store_levels(levels);
    pack_two_bits(levels, out + 16);
  }
};

constexpr Cuts kAffineBlockCuts[kEfforts] = {
    {3, -0.02f, 0.10f, 2}, {8, -0.04f, 0.16f, 4}, {16, -0.05f, 0.20f, 12}};

// Q4_1 and Q5_1: one range, whose ends are stored as they are. Returns d, and m in `min`.
template <int nmax>
WC_INLINE F least_affine(Strip x, const float* w, Effort effort, Bytes start, I (&level)[32], F& min) {
  AffineSearch<32, nmax, false> search(x, w);
  search.attempt(inverse_of(read_half(start)), -read_half(start + 2));
  search.try_cuts(kAffineBlockCuts[effort.level]);
  search.attempt(inverse_of(search.found.scale), search.found.min);
  const F d = from_f16(to_f16(search.found.scale));
  min = from_f16(to_f16(-search.found.min));
  const F inverse = inverse_of(d);
  for (int i = 0; i < 32; ++i) level[i] = truncated(affine_code<nmax>(x[i], inverse, -min));
  return d;
}

template <>
struct LeastError<Q41> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    I level[32];
    F min;
    store_half(out, to_f16(least_affine<15>(x, w, effort, start, level, min)));
    store_half(out + 2, to_f16(min));
    store_nibbles(level, out + 4);
  }
};

template <>
struct LeastError<Q51> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    I level[32];
    F min;
    store_half(out, to_f16(least_affine<31>(x, w, effort, start, level, min)));
    store_half(out + 2, to_f16(min));
    store_fifth_bits(level, out + 4);
    store_nibbles(level, out + 8);
  }
};

}  // namespace
}  // namespace weightcast
