// Lanes: the vector types that block quantizers are written against, one output column per lane.
//
// F holds kLanes floats, I as many int32, M as many truth values. They are pairs of vectors, of 16
// lanes with AVX-512, 8 with AVX2 and 4 with NEON or SSE2 (two interleaved vectors hide the latency
// of one chain of additions); without vectors, and on a GPU, plain float, int32_t and bool. Every
// operation is the scalar one in each lane, so all forms give the same bytes. Comparisons with NaN
// are false, and `lesser` and `greater` then return their second argument, as `a < b ? a : b` does.
#pragma once

#include "simd/halves.h"
#include "simd/inline.h"
#ifndef WC_DEVICE
#include "simd/transpose.h"
#endif

#if defined(WC_VECTORS_128)
#include "simd/vectors_128.h"
#define WC_VECTOR 1
#elif defined(__AVX512BW__)
#include "simd/vectors_avx512.h"
#define WC_VECTOR 1
#elif defined(__AVX2__)
#include "simd/vectors_avx2.h"
#define WC_VECTOR 1
#endif

namespace weightcast {
namespace {

#ifdef WC_VECTOR

constexpr int kLanes = 2 * kVector;

struct F {
  VF lo, hi;
  F() = default;
  WC_INLINE F(float x) : lo(vec_splat(x)), hi(lo) {}
  WC_INLINE F(VF a, VF b) : lo(a), hi(b) {}
};
struct I {
  VI lo, hi;
  I() = default;
  WC_INLINE I(int32_t x) : lo(vec_splat(x)), hi(lo) {}
  WC_INLINE I(VI a, VI b) : lo(a), hi(b) {}
};
struct M {
  VM lo, hi;
};

WC_INLINE F operator+(F a, F b) { return {a.lo + b.lo, a.hi + b.hi}; }
WC_INLINE F operator-(F a, F b) { return {a.lo - b.lo, a.hi - b.hi}; }
WC_INLINE F operator*(F a, F b) { return {a.lo * b.lo, a.hi * b.hi}; }
WC_INLINE F operator/(F a, F b) { return {a.lo / b.lo, a.hi / b.hi}; }
WC_INLINE F operator-(F a) { return {-a.lo, -a.hi}; }
WC_INLINE F& operator+=(F& a, F b) { return a = a + b; }
WC_INLINE I operator+(I a, I b) { return {a.lo + b.lo, a.hi + b.hi}; }
WC_INLINE I operator-(I a, I b) { return {a.lo - b.lo, a.hi - b.hi}; }
WC_INLINE I operator*(I a, I b) { return {a.lo * b.lo, a.hi * b.hi}; }
WC_INLINE I operator&(I a, I b) { return {a.lo & b.lo, a.hi & b.hi}; }
WC_INLINE I operator|(I a, I b) { return {a.lo | b.lo, a.hi | b.hi}; }
WC_INLINE I operator^(I a, I b) { return {a.lo ^ b.lo, a.hi ^ b.hi}; }
WC_INLINE I operator<<(I a, int n) { return {a.lo << n, a.hi << n}; }
WC_INLINE I operator>>(I a, int n) { return {a.lo >> n, a.hi >> n}; }  // arithmetic
WC_INLINE M operator<(F a, F b) { return {vec_lt(a.lo, b.lo), vec_lt(a.hi, b.hi)}; }
WC_INLINE M operator<=(F a, F b) { return {vec_le(a.lo, b.lo), vec_le(a.hi, b.hi)}; }
WC_INLINE M operator>(F a, F b) { return b < a; }
WC_INLINE M operator>=(F a, F b) { return b <= a; }
WC_INLINE M operator==(F a, F b) { return {vec_eq(a.lo, b.lo), vec_eq(a.hi, b.hi)}; }
WC_INLINE M operator<(I a, I b) { return {vec_lt(a.lo, b.lo), vec_lt(a.hi, b.hi)}; }
WC_INLINE M operator>(I a, I b) { return b < a; }
WC_INLINE M operator==(I a, I b) { return {vec_eq(a.lo, b.lo), vec_eq(a.hi, b.hi)}; }
WC_INLINE M operator&(M a, M b) { return {vec_and(a.lo, b.lo), vec_and(a.hi, b.hi)}; }
WC_INLINE M operator|(M a, M b) { return {vec_or(a.lo, b.lo), vec_or(a.hi, b.hi)}; }
WC_INLINE M operator!(M a) { return {vec_not(a.lo), vec_not(a.hi)}; }
WC_INLINE bool any(M a) { return vec_any(vec_or(a.lo, a.hi)); }

WC_INLINE F lesser(F a, F b) { return {vec_lesser(a.lo, b.lo), vec_lesser(a.hi, b.hi)}; }
WC_INLINE F greater(F a, F b) { return {vec_greater(a.lo, b.lo), vec_greater(a.hi, b.hi)}; }
WC_INLINE I lesser(I a, I b) { return {vec_lesser(a.lo, b.lo), vec_lesser(a.hi, b.hi)}; }
WC_INLINE I greater(I a, I b) { return {vec_greater(a.lo, b.lo), vec_greater(a.hi, b.hi)}; }
WC_INLINE F root(F a) { return {vec_root(a.lo), vec_root(a.hi)}; }
WC_INLINE F select(M m, F a, F b) {
  return {vec_select(m.lo, a.lo, b.lo), vec_select(m.hi, a.hi, b.hi)};
}
WC_INLINE I select(M m, I a, I b) {
  return {vec_select(m.lo, a.lo, b.lo), vec_select(m.hi, a.hi, b.hi)};
}
WC_INLINE I bits(F a) { return {(VI)a.lo, (VI)a.hi}; }
WC_INLINE F of_bits(I a) { return {(VF)a.lo, (VF)a.hi}; }
WC_INLINE F floats(I a) { return {vec_floats(a.lo), vec_floats(a.hi)}; }
WC_INLINE I truncated(F a) { return {vec_truncated(a.lo), vec_truncated(a.hi)}; }
// Eight floats, looked up by the low three bits of an index.
struct Table {
  VTable values;

  explicit WC_INLINE Table(const float (&eight)[8]) : values(vec_table(eight)) {}
  WC_INLINE F operator[](I i) const {
    return {vec_lookup(values, i.lo), vec_lookup(values, i.hi)};
  }
};
WC_INLINE void store_bytes(uint8_t* p, I a) { vec_store_bytes(p, a.lo, a.hi); }
// Store values from -128 to 127 as two rows: half the work of storing each row by itself.
WC_INLINE void store_two(uint8_t* p, I a, I b) { vec_store_two(p, a.lo, a.hi, b.lo, b.hi); }
WC_INLINE I load_bytes(const uint8_t* p) { return {vec_load_bytes(p), vec_load_bytes(p + kVector)}; }

// Columns that are transposed together, four rows at a time.
constexpr int kTransposed = kVector;
WC_INLINE void transpose_rows(const float* src, int64_t stride, float* dst, int64_t dst_stride) {
  vec_transpose(src, stride, dst, dst_stride);
}

WC_INLINE F load(const float* p) { return {vec_load(p), vec_load(p + kVector)}; }

#else

constexpr int kLanes = 1;
#ifndef WC_DEVICE
constexpr int kTransposed = 4;
WC_INLINE void transpose_rows(const float* src, int64_t stride, float* dst, int64_t dst_stride) {
  transpose_square(src, stride, dst, dst_stride);
}
#endif
using F = float;
using I = int32_t;
using M = bool;

WC_INLINE F load(const float* p) { return *p; }
WC_INLINE bool any(M a) { return a; }
WC_INLINE F lesser(F a, F b) { return a < b ? a : b; }
WC_INLINE F greater(F a, F b) { return a > b ? a : b; }
WC_INLINE I lesser(I a, I b) { return a < b ? a : b; }
WC_INLINE I greater(I a, I b) { return a > b ? a : b; }
#ifdef __CUDACC__
WC_INLINE F root(F a) { return __fsqrt_rn(a); }
#else
WC_INLINE F root(F a) { return __builtin_sqrtf(a); }
#endif
WC_INLINE F select(M m, F a, F b) { return m ? a : b; }
WC_INLINE I select(M m, I a, I b) { return m ? a : b; }
WC_INLINE I bits(F a) { return static_cast<int32_t>(float_bits(a)); }
WC_INLINE F of_bits(I a) { return bits_float(static_cast<uint32_t>(a)); }
WC_INLINE F floats(I a) { return static_cast<float>(a); }
// Out of range gives the lowest int32, as x86 does.
WC_INLINE I truncated(F a) {
  return a >= -0x1p31f && a < 0x1p31f ? static_cast<int32_t>(a) : INT32_MIN;
}
struct Table {
  const float* values;

  explicit WC_INLINE Table(const float (&eight)[8]) : values(eight) {}
  WC_INLINE F operator[](I i) const { return values[i & 7]; }
};
WC_INLINE void store_bytes(uint8_t* p, I a) { *p = static_cast<uint8_t>(a); }
WC_INLINE void store_two(uint8_t* p, I a, I b) {
  p[0] = static_cast<uint8_t>(a);
  p[1] = static_cast<uint8_t>(b);
}
WC_INLINE I load_bytes(const uint8_t* p) { return *p; }

#endif

WC_INLINE F magnitude(F a) { return of_bits(bits(a) & 0x7fffffff); }
WC_INLINE M not_equal(F a, F b) { return !(a == b); }
WC_INLINE M no_lane() { return F(0.0f) < F(0.0f); }

// ggml's nearest_int: correct for |x| < 2^22, and ggml's bits beyond and for infinities. NaN gives 0,
// as the NaN that x86 makes does; other processors make NaNs with other low bits.
WC_INLINE I nearest_int(F x) {
  const F shifted = x + 12582912.0f;
#ifdef WC_VECTOR
  return (bits(shifted) & 0x007fffff) - 0x00400000;
#else
  return select(shifted == shifted, (bits(shifted) & 0x007fffff) - 0x00400000, 0);
#endif
}

// The same as a float, for |x| < 2^22 only.
#ifdef WC_VECTOR
WC_INLINE F nearest_small(F x) { return {vec_nearest(x.lo), vec_nearest(x.hi)}; }
#else
WC_INLINE F nearest_small(F x) { return (x + 12582912.0f) - 12582912.0f; }
#endif

// Sign-extend the low byte.
WC_INLINE I as_int8(I x) { return ((x & 0xff) ^ 0x80) - 0x80; }

// Round half away from zero, as roundf does: 0.49999997 is the largest float below one half.
WC_INLINE I round_away(F x) {
  return truncated(x + of_bits((bits(x) & INT32_MIN) | 0x3effffff));
}

// Convert to float16 (in the low 16 bits) and back, as f32_to_f16 and f16_to_f32 do.
WC_INLINE I to_f16(F x) {
  const I size = bits(x) & 0x7fffffff;
#if defined(__CUDACC__)
  // x86 makes negative NaNs, a CUDA device positive ones.
  const I sign = select(size > 0x7f800000, 0x8000, (bits(x) >> 16) & 0x8000);
#elif defined(__aarch64__)
  // Arm makes positive NaNs, whose sign changes where x86's does.
  const I sign = ((bits(x) >> 16) & 0x8000) ^ select(size > I(0x7f800000), I(0x8000), I(0));
#else
  const I sign = (bits(x) >> 16) & 0x8000;
#endif
  const I normal = (size - 0x38000000 + 0x0fff + ((size >> 13) & 1)) >> 13;
  const I subnormal = bits(of_bits(size) + 0.5f) - 0x3f000000;
  const I finite = select(size < I(0x38800000), subnormal, normal);
  const I special = select(size > I(0x7f800000), I(0x7e00), I(0x7c00));
  return sign | select(size > I(0x477fffff), special, finite);
}

WC_INLINE F from_f16(I h) {
  const I shifted = (h & 0x7fff) << 13;
  const I finite = bits(of_bits(shifted) * 0x1p112f);
  const I special = shifted | 0x7f800000;
  return of_bits(((h & 0x8000) << 16) | select(shifted > I(0x0f7fffff), special, finite));
}

// Rows of bytes of kLanes columns side by side: a block that is being made, or its levels.
struct Bytes {
  uint8_t* first;

  WC_INLINE uint8_t* operator[](int row) const { return first + row * kLanes; }
  WC_INLINE Bytes operator+(int rows) const { return {first + rows * kLanes}; }
};

// The byte offsets of a block's float16 values.
template <int... offsets>
struct Halves {};

WC_INLINE void store_half(Bytes out, I half) {
  store_bytes(out[0], half);
  store_bytes(out[1], half >> 8);
}

}  // namespace
}  // namespace weightcast
