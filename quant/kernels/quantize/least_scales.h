// The search for the least error where y = scale * code: types with one scale a block, and Q3_K, Q6_K and
// IQ4_XS, whose sub-blocks have small scales of either sign.
#pragma once

#include "quantize/least_error.h"

namespace weightcast {
namespace {

// The codes from lo to hi.
template <int lo, int hi>
struct Integers {
  static constexpr float low = lo, high = hi;

  WC_INLINE F nearest(F x) const {
    return nearest_small(lesser(greater(x, low), high));
  }
};

// The codebook of IQ4_NL and IQ4_XS.
struct Iq4Codebook {
  static constexpr float low = kIq4Values[0], high = kIq4Values[15];
  Iq4Search search;

  WC_INLINE F nearest(F x) const { return search.value(x); }
};

// Compute the error of n weights at one scale.
template <int n, class Codes>
WC_INLINE F scale_error(const Codes& codes, Strip x, const float* w, F scale) {
  const F inverse = inverse_of(scale);
  F error = 0.0f;
  for (int i = 0; i < n; ++i) {
    const F xi = x[i];
    const F diff = scale * codes.nearest(inverse * xi) - xi;
    error += w[i] * (diff * diff);
  }
  return error;
}

// Compute the sums that the best scale for the codes at hand follows from.
template <int n, class Codes>
WC_INLINE void scale_sums(const Codes& codes, Strip x, const float* w, F inverse, F& xq, F& qq) {
  xq = qq = 0.0f;
  for (int i = 0; i < n; ++i) {
    const F xi = x[i];
    const F code = codes.nearest(inverse * xi);
    const F wq = w[i] * code;
    xq += wq * xi;
    qq += wq * code;
  }
}

// Scales that bring the largest value to `least` up to `most` times the end of the codes, and half as many
// beyond, up to `farthest`, where weights of errors differ.
struct Span {
  float least, most;
  int tries;
  float farthest;
};

// The best scale of n weights so far, and by how much it lowers their error.
template <int n, class Codes>
struct ScaleSearch {
  const Codes& codes;
  Strip x;
  const float* w;
  F gain, scale;

  WC_INLINE ScaleSearch(const Codes& all, Strip from, const float* weights)
      : codes(all), x(from), w(weights), gain(0.0f), scale(0.0f) {}

  // Take codes by 1 / inverse, and the scale that fits them best.
  WC_INLINE void attempt(F inverse) {
    F xq, qq;
    scale_sums<n>(codes, x, w, inverse, xq, qq);
    const M better = (qq > 0.0f) & (xq * xq > gain * qq);
    const F fitted = xq / qq;
    scale = select(better, fitted, scale);
    gain = select(better, fitted * xq, gain);
  }

  // Try scales that bring the largest value to the low end of the codes and, unless the codes are symmetric,
  // some that bring it to the high end.
  WC_INLINE void try_span(const Span& span, bool is_weighed) {
    F size;
    const F inverse = inverse_of(signed_maximum<n>(x, size));
    const auto try_ends = [&](float to, bool high) {
      attempt(inverse * (Codes::low * to));
      if (Codes::low + Codes::high != 0.0f && high) attempt(inverse * (Codes::high * to));
    };
    const auto part = [](int k, int last, float from, float to) {
      return from + (to - from) * static_cast<float>(k) / static_cast<float>(last);
    };
    for (int k = 0; k < span.tries; ++k) {
      try_ends(part(k, span.tries - 1, span.least, span.most), k % 2 == 0);
    }
    const int beyond = is_weighed ? span.tries / 2 : 0;
    for (int k = 1; k <= beyond; ++k) try_ends(part(k, beyond, span.most, span.farthest), true);
  }
};

// How many candidates small scales start from, how often d is fitted, how far from the rounded ones small
// scales are tried, and with the largest at the low end of their range alone or at either.
struct ScaleEffort {
  Span span;
  int rounds, reach, ends;
};
constexpr ScaleEffort kQ3KEfforts[kEfforts] = {
    {{0.8f, 1.1f, 6, 1.3f}, 1, 1, 1}, {{0.7f, 1.2f, 10, 2.0f}, 2, 2, 2}, {{0.6f, 1.25f, 40, 2.5f}, 3, 4, 2}};
constexpr ScaleEffort kQ6KEfforts[kEfforts] = {
    {{0.8f, 1.1f, 6, 1.3f}, 1, 1, 1}, {{0.7f, 1.2f, 16, 2.0f}, 2, 2, 1}, {{0.6f, 1.25f, 40, 2.5f}, 3, 6, 2}};
constexpr ScaleEffort kIq4XsEfforts[kEfforts] = {
    {{0.8f, 1.1f, 6, 1.3f}, 1, 1, 1}, {{0.7f, 1.2f, 12, 2.0f}, 2, 1, 2}, {{0.6f, 1.25f, 40, 2.5f}, 3, 3, 2}};

// Sub-blocks of n whose scale is d * s, with s from slo to shi.
template <class Codes, int n, int blocks, int slo, int shi>
struct ScaleSuper {
  Codes codes;
  Strip x;
  const float* w;
  F d;
  F s[blocks];

  WC_INLINE ScaleSuper(Strip from, const float* weights) : x(from), w(weights) {}

  // Fit each sub-block by itself, from ggml's scales on, then choose the small scales and d, which fits the
  // codes that follow best, in turns.
  WC_OUT_OF_LINE void search(const F (&start)[blocks], const ScaleEffort& effort, bool is_weighed) {
    F scale[blocks];
    for (int b = 0; b < blocks; ++b) {
      ScaleSearch<n, Codes> search(codes, x + n * b, w + n * b);
      search.attempt(inverse_of(start[b]));
      search.try_span(effort.span, is_weighed);
      scale[b] = search.scale;
    }
    F size;
    const F largest = signed_maximum<blocks>(scale, size);
    F best = infinity(), best_d = 0.0f, best_s[blocks];
    for (F& v : best_s) v = 0.0f;
    for (int end = 0; end < effort.ends; ++end) {
      d = from_f16(to_f16(largest / static_cast<float>(end == 0 ? slo : shi)));
      const F inverse = inverse_of(d);
      for (int b = 0; b < blocks; ++b) s[b] = small(scale[b] * inverse);
      for (int round = 0;; ++round) {
        const F error = choose(effort.reach);
        const M better = error < best;
        best = select(better, error, best);
        best_d = select(better, d, best_d);
        for (int b = 0; b < blocks; ++b) best_s[b] = select(better, s[b], best_s[b]);
        if (round == effort.rounds) break;
        fit_factor();
      }
    }
    d = best_d;
    for (int b = 0; b < blocks; ++b) s[b] = best_s[b];
  }

  WC_INLINE static F small(F value) {
    return nearest_small(lesser(greater(value, static_cast<float>(slo)), static_cast<float>(shi)));
  }

  // Choose each small scale among those next to the present one by the errors that they give. Returns the sum
  // of the least errors.
  F choose(int reach) {
    F sum = 0.0f;
    for (int b = 0; b < blocks; ++b) {
      F best = infinity(), best_s = s[b];
      for (int i = -reach; i <= reach; ++i) {
        const F next = small(s[b] + static_cast<float>(i));
        const F error = scale_error<n>(codes, x + n * b, w + n * b, d * next);
        const M better = error < best;
        best = select(better, error, best);
        best_s = select(better, next, best_s);
      }
      s[b] = best_s;
      sum += best;
    }
    return sum;
  }

  // Change d to what fits the codes at hand best.
  void fit_factor() {
    F xs = 0.0f, ss = 0.0f;
    for (int b = 0; b < blocks; ++b) {
      F xq, qq;
      scale_sums<n>(codes, x + n * b, w + n * b, inverse_of(d * s[b]), xq, qq);
      xs += s[b] * xq;
      ss += s[b] * s[b] * qq;
    }
    d = from_f16(to_f16(select(ss > 0.0f, xs / ss, d)));
  }

  void store_levels(Levels& levels, int zero) const {
    for (int b = 0; b < blocks; ++b) {
      const F inverse = inverse_of(d * s[b]);
      for (int i = 0; i < n; ++i) {
        store_bytes(levels.row(n * b + i), truncated(codes.nearest(inverse * x[n * b + i])) + zero);
      }
    }
  }
};

template <>
struct LeastError<Q6K> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    ScaleSuper<Integers<-32, 31>, 16, 16, -128, 127> super(x, w);
    const F d = read_half(start + 208);
    F scale[16];
    for (int b = 0; b < 16; ++b) scale[b] = d * floats(as_int8(load_bytes(start[192 + b])));
    super.search(scale, kQ6KEfforts[effort.level], effort.is_weighed);
    store_half(out + 208, to_f16(super.d));
    for (int b = 0; b < 16; ++b) store_bytes(out[192 + b], truncated(super.s[b]));
    Levels levels;
    super.store_levels(levels, 32);
    Q6K::pack(levels, out);
  }
};

template <>
struct LeastError<Q3K> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    ScaleSuper<Integers<-4, 3>, 16, 16, -32, 31> super(x, w);
    const F d = read_half(start + 108);
    F scale[16];
    for (int b = 0; b < 16; ++b) scale[b] = d * floats(Reader<Q3K>::scale_of(start, b) - 32);
    super.search(scale, kQ3KEfforts[effort.level], effort.is_weighed);
    store_half(out + 108, to_f16(super.d));
    I ls[16];
    for (int b = 0; b < 16; ++b) ls[b] = truncated(super.s[b]) + 32;
    Q3K::store_scales(ls, out + 96);
    Levels levels;
    super.store_levels(levels, 4);
    Q3K::pack(levels, out);
  }
};

template <>
struct LeastError<IQ4XS> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    ScaleSuper<Iq4Codebook, 32, 8, -32, 31> super(x, w);
    const F d = read_half(start);
    F scale[8];
    for (int b = 0; b < 8; ++b) scale[b] = d * floats(Reader<IQ4XS>::scale_of(start, b) - 32);
    super.search(scale, kIq4XsEfforts[effort.level], effort.is_weighed);
    store_half(out, to_f16(super.d));
    I ls[8];
    for (int b = 0; b < 8; ++b) {
      ls[b] = truncated(super.s[b]) + 32;
      store_iq4_codes(super.codes.search, x + 32 * b, inverse_of(super.d * super.s[b]), out + (8 + 16 * b));
    }
    IQ4XS::store_scales(ls, out + 2);
  }
};

constexpr Span kSpans[kEfforts] = {
    {0.7f, 1.15f, 8, 1.6f}, {0.6f, 1.25f, 20, 2.2f}, {0.6f, 1.25f, 40, 3.0f}};
// A few large values are better cut off than that all others become 0.
constexpr Span kTernarySpans[kEfforts] = {
    {0.8f, 4.0f, 6, 6.0f}, {0.8f, 4.0f, 20, 8.0f}, {0.8f, 6.0f, 40, 12.0f}};

// Types with one scale: the best scale as it is stored, from ggml's on.
template <int n, class Codes>
WC_INLINE F best_scale(const Codes& codes, Strip x, const float* w, F start, const Span& span,
                       bool is_weighed) {
  ScaleSearch<n, Codes> search(codes, x, w);
  search.attempt(inverse_of(start));
  search.try_span(span, is_weighed);
  search.attempt(inverse_of(search.scale));
  return from_f16(to_f16(search.scale));
}

template <int nmax>
WC_INLINE F least_symmetric(Strip x, const float* w, Effort effort, Bytes start, I (&level)[32]) {
  const Integers<-nmax, nmax - 1> codes;
  const F d = best_scale<32>(codes, x, w, read_half(start), kSpans[effort.level], effort.is_weighed);
  const F inverse = inverse_of(d);
  for (int i = 0; i < 32; ++i) level[i] = truncated(codes.nearest(inverse * x[i])) + nmax;
  return d;
}

template <>
struct LeastError<Q40> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    I level[32];
    store_half(out, to_f16(least_symmetric<8>(x, w, effort, start, level)));
    store_nibbles(level, out + 2);
  }
};

template <>
struct LeastError<Q50> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    I level[32];
    store_half(out, to_f16(least_symmetric<16>(x, w, effort, start, level)));
    store_fifth_bits(level, out + 2);
    store_nibbles(level, out + 6);
  }
};

template <>
struct LeastError<IQ4NL> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    const Iq4Codebook codes;
    const F d = best_scale<32>(codes, x, w, read_half(start), kSpans[effort.level], effort.is_weighed);
    store_half(out, to_f16(d));
    store_iq4_codes(codes.search, x, inverse_of(d), out + 2);
  }
};

// Q8_0: the float16 scales next to the best of a few, by the errors that they give: so many steps below and
// above. With so many levels the errors of neighbours are all but random, so that more tries always gain.
constexpr int kQ80Steps[kEfforts][2] = {{10, 8}, {20, 10}, {100, 260}};
constexpr Span kQ80Spans[kEfforts] = {{0.9f, 1.0f, 2, 1.2f}, {0.9f, 1.1f, 6, 2.0f}, {0.8f, 1.2f, 20, 3.0f}};

template <>
struct LeastError<Q80> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    const Integers<-128, 127> codes;
    I first = load_half(start);
    if (effort.is_weighed) {
      const F d = best_scale<32>(codes, x, w, from_f16(first), kQ80Spans[effort.level], true);
      first = to_f16(magnitude(d));
    }
    F best = infinity();
    I found = first;
    for (int k = -kQ80Steps[effort.level][0]; k <= kQ80Steps[effort.level][1]; ++k) {
      const I half = first + k;
      const F error = scale_error<32>(codes, x, w, from_f16(half));
      const M better = (error < best) & (half > I(0));
      best = select(better, error, best);
      found = select(better, half, found);
    }
    const F inverse = inverse_of(from_f16(found));
    store_half(out, found);
    for (int i = 0; i < 32; ++i) store_bytes(out[2 + i], truncated(codes.nearest(inverse * x[i])));
  }
};

template <>
struct LeastError<Q20> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    const Integers<-1, 2> codes;
    const Span& span = kTernarySpans[effort.level];
    const F d = best_scale<64>(codes, x, w, read_half(start), span, effort.is_weighed);
    const F inverse = inverse_of(d);
    store_half(out, to_f16(d));
    for (int b = 0; b < 16; ++b) {
      I byte = 0;
      for (int j = 0; j < 4; ++j) {
        byte = byte | (truncated(codes.nearest(inverse * x[4 * b + j])) + 1) << 2 * j;
      }
      store_bytes(out[2 + b], byte);
    }
  }
};

// Q1_0: d is the weighted mean of the magnitudes.
template <>
struct LeastError<Q10> {
  static void quantize(Strip x, const float* w, Effort, Bytes start, Bytes out) {
    F sum = 0.0f;
    float sum_w = 0.0f;
    for (int i = 0; i < Q10::elements; ++i) {
      sum += w[i] * magnitude(x[i]);
      sum_w += w[i];
    }
    store_half(out, to_f16(sum / sum_w));
    for (int b = 2; b < Q10::bytes; ++b) store_bytes(out[b], load_bytes(start[b]));
  }
};

template <>
struct LeastError<TQ20> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    const Integers<-1, 1> codes;
    const Span& span = kTernarySpans[effort.level];
    const F d = best_scale<256>(codes, x, w, read_half(start + 64), span, effort.is_weighed);
    TQ20::store(x, d, NearestTrit{}, out);
  }
};

template <>
struct LeastError<TQ10> {
  static void quantize(Strip x, const float* w, Effort effort, Bytes start, Bytes out) {
    const Integers<-1, 1> codes;
    const Span& span = kTernarySpans[effort.level];
    const F d = best_scale<256>(codes, x, w, read_half(start + 52), span, effort.is_weighed);
    TQ10::store(x, d, NearestTrit{}, out);
  }
};

}  // namespace
}  // namespace weightcast
