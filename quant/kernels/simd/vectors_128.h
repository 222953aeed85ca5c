// 128-bit vectors of 4 lanes, for NEON and SSE2, in the compiler's own vector types.
#pragma once

#include "simd/inline.h"
#include "simd/transpose.h"

namespace weightcast {
namespace {

constexpr int kVector = 4;
typedef float VF __attribute__((vector_size(16), may_alias));
typedef int32_t VI __attribute__((vector_size(16), may_alias));
using VM = VI;  // all ones or all zeros

struct VTable {
  float of[8];
};

template <class V>
WC_INLINE V vec_loaded(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

WC_INLINE VF vec_load(const float* p) { return vec_loaded<VF>(p); }
WC_INLINE VF vec_splat(float x) { return VF{x, x, x, x}; }
WC_INLINE VI vec_splat(int32_t x) { return VI{x, x, x, x}; }
WC_INLINE VM vec_lt(VF a, VF b) { return (VM)(a < b); }
WC_INLINE VM vec_le(VF a, VF b) { return (VM)(a <= b); }
WC_INLINE VM vec_eq(VF a, VF b) { return (VM)(a == b); }
WC_INLINE VM vec_lt(VI a, VI b) { return (VM)(a < b); }
WC_INLINE VM vec_eq(VI a, VI b) { return (VM)(a == b); }
WC_INLINE VI vec_select(VM m, VI a, VI b) { return (m & a) | (~m & b); }
WC_INLINE VF vec_select(VM m, VF a, VF b) { return (VF)vec_select(m, (VI)a, (VI)b); }
WC_INLINE VF vec_lesser(VF a, VF b) { return vec_select(vec_lt(a, b), a, b); }
WC_INLINE VF vec_greater(VF a, VF b) { return vec_select(vec_lt(b, a), a, b); }
WC_INLINE VI vec_lesser(VI a, VI b) { return vec_select(vec_lt(a, b), a, b); }
WC_INLINE VI vec_greater(VI a, VI b) { return vec_select(vec_lt(b, a), a, b); }
WC_INLINE VF vec_nearest(VF a) { return (a + 12582912.0f) - 12582912.0f; }
WC_INLINE VF vec_root(VF a) {
  for (int i = 0; i < kVector; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
// Out of range gives the lowest int32, as x86 does.
WC_INLINE VI vec_truncated(VF a) {
  const VM fits = vec_le(vec_splat(-0x1p31f), a) & vec_lt(a, vec_splat(0x1p31f));
  const VF inside = vec_select(fits, a, vec_splat(0.0f));
  return vec_select(fits, __builtin_convertvector(inside, VI), vec_splat(INT32_MIN));
}
WC_INLINE VF vec_floats(VI a) { return __builtin_convertvector(a, VF); }
WC_INLINE VM vec_and(VM a, VM b) { return a & b; }
WC_INLINE VM vec_or(VM a, VM b) { return a | b; }
WC_INLINE VM vec_not(VM a) { return ~a; }
WC_INLINE bool vec_any(VM a) { return (a[0] | a[1] | a[2] | a[3]) != 0; }
WC_INLINE VTable vec_table(const float* p) { return vec_loaded<VTable>(p); }
WC_INLINE VF vec_lookup(const VTable& table, VI i) {
  return VF{table.of[i[0] & 7], table.of[i[1] & 7], table.of[i[2] & 7], table.of[i[3] & 7]};
}
// Widen half a vector of floats to doubles.
typedef double VD __attribute__((vector_size(16), may_alias));
WC_INLINE VD vec_doubles(const float* p) {
  return VD{static_cast<double>(p[0]), static_cast<double>(p[1])};
}
WC_INLINE VD vec_lesser(VD a, VD b) { return a < b ? a : b; }
WC_INLINE VD vec_greater(VD a, VD b) { return a > b ? a : b; }
// True if any lane of a mask is set; its lanes are all ones or all zeros.
WC_INLINE bool vec_any(VD a) { return vec_any((VM)a); }
WC_INLINE void vec_store_bytes(uint8_t* p, VI a, VI b) {
  for (int i = 0; i < kVector; ++i) p[i] = static_cast<uint8_t>(a[i]);
  for (int i = 0; i < kVector; ++i) p[kVector + i] = static_cast<uint8_t>(b[i]);
}
WC_INLINE void vec_transpose(const float* src, int64_t stride, float* dst, int64_t dst_stride) {
  transpose_square(src, stride, dst, dst_stride);
}
// Store two rows of values that fit int8, one after the other.
WC_INLINE void vec_store_two(uint8_t* p, VI a_lo, VI a_hi, VI b_lo, VI b_hi) {
  vec_store_bytes(p, a_lo, a_hi);
  vec_store_bytes(p + 2 * kVector, b_lo, b_hi);
}
WC_INLINE VI vec_load_bytes(const uint8_t* p) { return VI{p[0], p[1], p[2], p[3]}; }

}  // namespace
}  // namespace weightcast
