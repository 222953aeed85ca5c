// Search among the neighbours of a point, for one column. Lanes are neighbours here, not columns.
//
// A weight's error depends on its level alone, so the errors of all levels are computed once, in one
// small table per weight. The error of a neighbour is a sum of table entries: its levels are the
// indices of vector permutations. The sums are ggml's, in its order: ((t0 + t1) + t2) + ...
// Source of the rule: iq2_find_best_neighbour, iq3_find_best_neighbour, iq1_find_best_neighbour2.
#pragma once

#include <cfloat>

#include "quantize/iq_neighbours.h"
#include "simd/lanes.h"

#if defined(WC_VECTOR) && !defined(WC_VECTORS_128)
#define WC_PERMUTES 1  // a vector can serve as a table, indexed by another one
#endif

namespace weightcast {
namespace {

// The values that the levels stand for, repeated to fill a vector.
#ifdef WC_PERMUTES
using LevelValues = VF;
#else
struct LevelValues {
  float of[8];
};
#endif

template <int bits>
WC_INLINE LevelValues level_values(const float (&values)[1 << bits]) {
  LevelValues repeated;
  for (size_t i = 0; i < sizeof repeated / sizeof(float); ++i) {
    std::memcpy(reinterpret_cast<char*>(&repeated) + i * sizeof(float), &values[i % (1 << bits)],
                sizeof(float));
  }
  return repeated;
}

#ifdef WC_PERMUTES

WC_INLINE float vec_least(__m256 a) {
  __m128 least = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  least = _mm_min_ps(least, _mm_movehl_ps(least, least));
  return _mm_cvtss_f32(_mm_min_ss(least, _mm_movehdup_ps(least)));
}

#ifdef __AVX512BW__
WC_INLINE VI vec_load_words(const uint16_t* p) {
  const __m256i words = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  return (VI)_mm512_maskz_cvtepu16_epi32(0xffff, words);
}
WC_INLINE float vec_least(VF a) {
  const __m256 low = _mm512_maskz_extractf32x8_ps(0xff, a, 0);
  return vec_least(_mm256_min_ps(low, _mm512_maskz_extractf32x8_ps(0xff, a, 1)));
}
WC_INLINE unsigned vec_mask(VM m) { return m; }
#else
WC_INLINE VI vec_load_words(const uint16_t* p) {
  return (VI)_mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
WC_INLINE unsigned vec_mask(VM m) {
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)m));
}
#endif

// Find the member of a list with the least sum of w * (scale * value - x)^2: the first of equals, or the
// first of all if no sum is below FLT_MAX. Elements of x and w are one column's, kLanes floats apart.
template <class Grid>
WC_INLINE int best_neighbour(NeighbourList list, const float* x, const float* w, float scale,
                             LevelValues values) {
  constexpr int n = Grid::elements, bits = Grid::level_bits;
  VF errors[n];
  const VF scaled = vec_splat(scale) * values;
  for (int i = 0; i < n; ++i) {
    const VF diff = scaled - vec_splat(x[i * kLanes]);
    errors[i] = vec_splat(w[i * kLanes]) * diff * diff;
  }
  const auto sums = [&](const uint16_t* members) {
    const VI codes = vec_load_words(members);
    VF sum = vec_lookup(errors[0], codes);
    for (int i = 1; i < n; ++i) sum += vec_lookup(errors[i], codes >> bits * i);
    return vec_lesser(sum, vec_splat(FLT_MAX));  // NaN becomes FLT_MAX
  };
  VF best = sums(list.first);
  if (list.count <= kVector) {
    const unsigned winners = vec_mask(vec_eq(best, vec_splat(vec_least(best))));
    return list.first[__builtin_ctz(winners)];
  }
  VI position = vec_splat(0);
  for (int start = kVector; start < list.count; start += kVector) {
    const VF sum = sums(list.first + start);
    const VM better = vec_lt(sum, best);
    best = vec_select(better, sum, best);
    position = vec_select(better, vec_splat(start), position);
  }
  unsigned winners = vec_mask(vec_eq(best, vec_splat(vec_least(best))));
  int32_t starts[kVector];
  std::memcpy(starts, &position, sizeof starts);
  int winner = INT32_MAX;
  for (; winners != 0; winners &= winners - 1) {
    const int lane = __builtin_ctz(winners);
    winner = starts[lane] + lane < winner ? starts[lane] + lane : winner;
  }
  return list.first[winner];
}

#else

template <class Grid>
WC_INLINE int best_neighbour(NeighbourList list, const float* x, const float* w, float scale,
                             LevelValues values) {
  constexpr int n = Grid::elements, bits = Grid::level_bits;
  float errors[n][1 << bits];
  for (int level = 0; level <= Grid::max_level; ++level) {
    const float scaled = scale * values.of[level];
    for (int i = 0; i < n; ++i) {
      const float diff = scaled - x[i * kLanes];
      errors[i][level] = w[i * kLanes] * diff * diff;
    }
  }
  float best = FLT_MAX;
  int winner = list.first[0];
  for (int j = 0; j < list.count; ++j) {
    const int code = list.first[j];
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) sum += errors[i][code >> bits * i & ((1 << bits) - 1)];
    if (sum < best) {
      best = sum;
      winner = code;
    }
  }
  return winner;
}

#endif

// View an array of F as floats: row i of a column is kLanes floats after row i - 1.
WC_INLINE const float* rows(const F* x) {
#ifdef WC_VECTOR
  return reinterpret_cast<const float*>(x);
#else
  return x;
#endif
}

}  // namespace
}  // namespace weightcast
