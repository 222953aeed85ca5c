// Element types of sources and of plain float outputs, and their conversion to and from float32.
#pragma once

#include "simd/halves.h"
#include "weightcast.h"

namespace weightcast {
namespace {

template <int type>
struct Element;
template <>
struct Element<WEIGHTCAST_F32> {
  using stored = float;
  static float value(float x) { return x; }
};
template <>
struct Element<WEIGHTCAST_F16> {
  using stored = uint16_t;
  static float value(uint16_t x) { return f16_to_f32(x); }
};
template <>
struct Element<WEIGHTCAST_BF16> {
  using stored = uint16_t;
  static float value(uint16_t x) { return bf16_to_f32(x); }
};
template <>
struct Element<WEIGHTCAST_I8> {
  using stored = int8_t;
  static float value(int8_t x) { return static_cast<float>(x); }
};

inline int element_bytes(int32_t type) {
  return type == WEIGHTCAST_F32 ? 4 : type == WEIGHTCAST_I8 ? 1 : 2;
}

// Conversion of a float to an element of a plain float output. 16-bit elements can overflow.
struct EmitF32 {
  using stored = float;
  static float convert(float x) { return x; }
  static bool overflows(float) { return false; }
};
struct EmitF16 {
  using stored = uint16_t;
  static constexpr uint16_t infinity = 0x7c00u;
  static uint16_t convert(float x) { return f32_to_f16(x); }
  static bool overflows(uint16_t x) { return (x & 0x7fffu) >= infinity; }
};
struct EmitBF16 {
  using stored = uint16_t;
  static constexpr uint16_t infinity = 0x7f80u;
  static uint16_t convert(float x) { return f32_to_bf16(x); }
  static bool overflows(uint16_t x) { return (x & 0x7fffu) >= infinity; }
};

}  // namespace
}  // namespace weightcast
