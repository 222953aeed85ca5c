// AVX-512 vectors of 16 lanes, with truth values in mask registers.
#pragma once

#include <immintrin.h>

#include "simd/inline.h"

namespace weightcast {
namespace {

constexpr int kVector = 16;
using VF = __m512;
typedef int32_t VI __attribute__((vector_size(64), may_alias));
using VM = __mmask16;
using VTable = VF;  // eight floats, twice
#define WC_I(x) ((__m512i)(x))
WC_INLINE VF vec_load(const float* p) { return _mm512_loadu_ps(p); }
WC_INLINE VF vec_splat(float x) { return _mm512_set1_ps(x); }
WC_INLINE VI vec_splat(int32_t x) { return (VI)_mm512_set1_epi32(x); }
WC_INLINE VF vec_lesser(VF a, VF b) { return _mm512_min_ps(a, b); }
WC_INLINE VF vec_greater(VF a, VF b) { return _mm512_max_ps(a, b); }
WC_INLINE VF vec_nearest(VF a) { return _mm512_roundscale_ps(a, 8); }
WC_INLINE VF vec_root(VF a) { return _mm512_sqrt_ps(a); }
WC_INLINE VI vec_truncated(VF a) { return (VI)_mm512_cvttps_epi32(a); }
WC_INLINE VF vec_floats(VI a) { return _mm512_cvtepi32_ps(WC_I(a)); }
WC_INLINE VI vec_lesser(VI a, VI b) { return (VI)_mm512_min_epi32(WC_I(a), WC_I(b)); }
WC_INLINE VI vec_greater(VI a, VI b) { return (VI)_mm512_max_epi32(WC_I(a), WC_I(b)); }
WC_INLINE VM vec_lt(VF a, VF b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
WC_INLINE VM vec_le(VF a, VF b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
WC_INLINE VM vec_eq(VF a, VF b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
WC_INLINE VM vec_lt(VI a, VI b) { return _mm512_cmplt_epi32_mask(WC_I(a), WC_I(b)); }
WC_INLINE VM vec_eq(VI a, VI b) { return _mm512_cmpeq_epi32_mask(WC_I(a), WC_I(b)); }
WC_INLINE VF vec_select(VM m, VF a, VF b) { return _mm512_mask_blend_ps(m, b, a); }
WC_INLINE VTable vec_table(const float* p) {
  return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
}
WC_INLINE VF vec_lookup(VTable table, VI i) {
  return _mm512_permutexvar_ps(WC_I(i), table);
}
WC_INLINE VI vec_select(VM m, VI a, VI b) {
  return (VI)_mm512_mask_blend_epi32(m, WC_I(b), WC_I(a));
}
WC_INLINE VM vec_and(VM a, VM b) { return static_cast<VM>(a & b); }
WC_INLINE VM vec_or(VM a, VM b) { return static_cast<VM>(a | b); }
WC_INLINE VM vec_not(VM a) { return static_cast<VM>(~a); }
WC_INLINE bool vec_any(VM a) { return a != 0; }
WC_INLINE void vec_store_bytes(uint8_t* p, VI a, VI b) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(WC_I(a)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm512_cvtepi32_epi8(WC_I(b)));
}
// Store two rows of values that fit int8, one after the other.
WC_INLINE void vec_store_two(uint8_t* p, VI a_lo, VI a_hi, VI b_lo, VI b_hi) {
  // Packing works within 128 bits: each has four values of a_lo, a_hi, b_lo and b_hi.
  const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(WC_I(a_lo), WC_I(a_hi)),
                                           _mm512_packs_epi32(WC_I(b_lo), WC_I(b_hi)));
  const __m512i order =
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}

// Widen half a vector of floats to doubles.
typedef double VD __attribute__((vector_size(64), may_alias));
WC_INLINE VD vec_doubles(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
WC_INLINE VD vec_lesser(VD a, VD b) { return _mm512_min_pd(a, b); }
WC_INLINE VD vec_greater(VD a, VD b) { return _mm512_max_pd(a, b); }
// True if any lane of a mask is set; its lanes are all ones or all zeros.
WC_INLINE bool vec_any(VD a) {
  return _mm512_test_epi64_mask(WC_I(a), WC_I(a)) != 0;
}

// Load four values from each of four runs.
WC_INLINE VF vec_gathered(const float* p, int64_t stride) {
  VF v = _mm512_castps128_ps512(_mm_loadu_ps(p));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + stride), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * stride), 2);
  return _mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * stride), 3);
}

// Transpose four values from each of kVector runs to four rows, every 128 bits by themselves.
WC_INLINE void vec_transpose(const float* src, int64_t stride, float* dst, int64_t dst_stride) {
  VF a[4];
  for (int j = 0; j < 4; ++j) a[j] = vec_gathered(src + j * stride, 4 * stride);
  const VF low01 = _mm512_unpacklo_ps(a[0], a[1]), high01 = _mm512_unpackhi_ps(a[0], a[1]);
  const VF low23 = _mm512_unpacklo_ps(a[2], a[3]), high23 = _mm512_unpackhi_ps(a[2], a[3]);
  _mm512_storeu_ps(dst, _mm512_shuffle_ps(low01, low23, 0x44));
  _mm512_storeu_ps(dst + dst_stride, _mm512_shuffle_ps(low01, low23, 0xee));
  _mm512_storeu_ps(dst + 2 * dst_stride, _mm512_shuffle_ps(high01, high23, 0x44));
  _mm512_storeu_ps(dst + 3 * dst_stride, _mm512_shuffle_ps(high01, high23, 0xee));
}

// Widen bytes to int32.
WC_INLINE VI vec_load_bytes(const uint8_t* p) {
  return (VI)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace
}  // namespace weightcast
