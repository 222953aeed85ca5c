// AVX2 vectors of 8 lanes.
#pragma once

#include <immintrin.h>

#include "simd/inline.h"

namespace weightcast {
namespace {

constexpr int kVector = 8;
using VF = __m256;
typedef int32_t VI __attribute__((vector_size(32), may_alias));
using VM = VI;      // all ones or all zeros
using VTable = VF;  // eight floats
#define WC_I(x) ((__m256i)(x))
WC_INLINE VF vec_load(const float* p) { return _mm256_loadu_ps(p); }
WC_INLINE VF vec_splat(float x) { return _mm256_set1_ps(x); }
WC_INLINE VI vec_splat(int32_t x) { return (VI)_mm256_set1_epi32(x); }
WC_INLINE VF vec_lesser(VF a, VF b) { return _mm256_min_ps(a, b); }
WC_INLINE VF vec_greater(VF a, VF b) { return _mm256_max_ps(a, b); }
WC_INLINE VF vec_nearest(VF a) { return _mm256_round_ps(a, 8); }
WC_INLINE VF vec_root(VF a) { return _mm256_sqrt_ps(a); }
WC_INLINE VI vec_truncated(VF a) { return (VI)_mm256_cvttps_epi32(a); }
WC_INLINE VF vec_floats(VI a) { return _mm256_cvtepi32_ps(WC_I(a)); }
WC_INLINE VI vec_lesser(VI a, VI b) { return (VI)_mm256_min_epi32(WC_I(a), WC_I(b)); }
WC_INLINE VI vec_greater(VI a, VI b) { return (VI)_mm256_max_epi32(WC_I(a), WC_I(b)); }
WC_INLINE VM vec_lt(VF a, VF b) { return (VM)_mm256_cmp_ps(a, b, _CMP_LT_OQ); }
WC_INLINE VM vec_le(VF a, VF b) { return (VM)_mm256_cmp_ps(a, b, _CMP_LE_OQ); }
WC_INLINE VM vec_eq(VF a, VF b) { return (VM)_mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
WC_INLINE VM vec_lt(VI a, VI b) { return (VM)_mm256_cmpgt_epi32(WC_I(b), WC_I(a)); }
WC_INLINE VM vec_eq(VI a, VI b) { return (VM)_mm256_cmpeq_epi32(WC_I(a), WC_I(b)); }
WC_INLINE VF vec_select(VM m, VF a, VF b) { return _mm256_blendv_ps(b, a, (__m256)m); }
WC_INLINE VTable vec_table(const float* p) { return vec_load(p); }
WC_INLINE VF vec_lookup(VTable table, VI i) { return _mm256_permutevar8x32_ps(table, WC_I(i)); }
WC_INLINE VI vec_select(VM m, VI a, VI b) {
  return (VI)_mm256_blendv_epi8(WC_I(b), WC_I(a), WC_I(m));
}
WC_INLINE VM vec_and(VM a, VM b) { return a & b; }
WC_INLINE VM vec_or(VM a, VM b) { return a | b; }
WC_INLINE VM vec_not(VM a) { return ~a; }
WC_INLINE bool vec_any(VM a) { return _mm256_movemask_ps((__m256)a) != 0; }
WC_INLINE void vec_store_bytes(uint8_t* p, VI a, VI b) {
  const __m256i byte = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_packus_epi32(WC_I(a) & byte, WC_I(b) & byte);  // a0-3 b0-3 a4-7 b4-7
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_shuffle_epi32(bytes, 0xd8));
}
// Store two rows of values that fit int8, one after the other.
WC_INLINE void vec_store_two(uint8_t* p, VI a_lo, VI a_hi, VI b_lo, VI b_hi) {
  // Packing works within 128 bits: each has four values of a_lo, a_hi, b_lo and b_hi.
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(WC_I(a_lo), WC_I(a_hi)),
                                           _mm256_packs_epi32(WC_I(b_lo), WC_I(b_hi)));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
}

// Load four values from each of two runs.
WC_INLINE VF vec_gathered(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}

// Widen half a vector of floats to doubles.
typedef double VD __attribute__((vector_size(32), may_alias));
WC_INLINE VD vec_doubles(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
WC_INLINE VD vec_lesser(VD a, VD b) { return _mm256_min_pd(a, b); }
WC_INLINE VD vec_greater(VD a, VD b) { return _mm256_max_pd(a, b); }
// True if any lane of a mask is set; its lanes are all ones or all zeros.
WC_INLINE bool vec_any(VD a) { return _mm256_movemask_pd(a) != 0; }

// Transpose four values from each of kVector runs to four rows, every 128 bits by themselves.
WC_INLINE void vec_transpose(const float* src, int64_t stride, float* dst, int64_t dst_stride) {
  VF a[4];
  for (int j = 0; j < 4; ++j) a[j] = vec_gathered(src + j * stride, 4 * stride);
  const VF low01 = _mm256_unpacklo_ps(a[0], a[1]), high01 = _mm256_unpackhi_ps(a[0], a[1]);
  const VF low23 = _mm256_unpacklo_ps(a[2], a[3]), high23 = _mm256_unpackhi_ps(a[2], a[3]);
  _mm256_storeu_ps(dst, _mm256_shuffle_ps(low01, low23, 0x44));
  _mm256_storeu_ps(dst + dst_stride, _mm256_shuffle_ps(low01, low23, 0xee));
  _mm256_storeu_ps(dst + 2 * dst_stride, _mm256_shuffle_ps(high01, high23, 0x44));
  _mm256_storeu_ps(dst + 3 * dst_stride, _mm256_shuffle_ps(high01, high23, 0xee));
}

// Widen bytes to int32.
WC_INLINE VI vec_load_bytes(const uint8_t* p) {
  return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace
}  // namespace weightcast
