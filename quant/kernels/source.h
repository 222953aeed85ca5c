// Tile loader: a [depth, width] piece of any source as float32, columns of the matrix side by side.
//
// Lanes are output columns: sixteen neighbouring `out` are sixteen SIMD lanes, and blocks run down
// `in`. A JAX source is contiguous along `out`, so loading, dequantizing and transposing are one pass.
#pragma once

#include "halves.h"
#include "weightcast.h"

namespace weightcast {
namespace {

constexpr int kDepth = 32;  // in-rows of a tile: one block of the simple types
constexpr int kWidth = 64;  // out-columns of a tile: one cache line of int8

struct alignas(64) Tile {
  float x[kDepth][kWidth];
};

inline int64_t group_rows(const weightcast_source& s) { return s.n_in / s.groups; }

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

// Load in-rows [in0, in0 + depth) of columns [out0, out0 + width); the rest of the tile is zero.
template <int type>
void load_typed(const weightcast_source& s, int64_t out0, int width, int64_t in0, int depth,
                Tile& tile) {
  using E = Element<type>;
  const auto* data = static_cast<const typename E::stored*>(s.data);
  if (width < kWidth || depth < kDepth) std::memset(&tile, 0, sizeof tile);
  if (s.stride_out == 1) {
    for (int i = 0; i < depth; ++i) {
      const auto* row = data + (in0 + i) * s.stride_in + out0;
      if (width == kWidth) {
        for (int c = 0; c < kWidth; ++c) tile.x[i][c] = E::value(row[c]);
      } else {
        for (int c = 0; c < width; ++c) tile.x[i][c] = E::value(row[c]);
      }
    }
  } else {
    for (int c = 0; c < width; ++c) {
      const auto* column = data + (out0 + c) * s.stride_out + in0 * s.stride_in;
      for (int i = 0; i < depth; ++i) tile.x[i][c] = E::value(column[i * s.stride_in]);
    }
  }
  if constexpr (type == WEIGHTCAST_I8) {
    int64_t group = in0 / group_rows(s);
    for (int i = 0; i < depth;) {
      const int64_t group_end = (group + 1) * group_rows(s) - in0;
      const float* scales = s.scales + group * s.scale_stride + out0;
      for (; i < depth && i < group_end; ++i) {
        if (width == kWidth) {
          for (int c = 0; c < kWidth; ++c) tile.x[i][c] *= scales[c];
        } else {
          for (int c = 0; c < width; ++c) tile.x[i][c] *= scales[c];
        }
      }
      ++group;
    }
  }
}

inline void load_tile(const weightcast_source& s, int64_t out0, int width, int64_t in0, int depth,
                      Tile& tile) {
  switch (s.type) {
    case WEIGHTCAST_F32: return load_typed<WEIGHTCAST_F32>(s, out0, width, in0, depth, tile);
    case WEIGHTCAST_F16: return load_typed<WEIGHTCAST_F16>(s, out0, width, in0, depth, tile);
    case WEIGHTCAST_BF16: return load_typed<WEIGHTCAST_BF16>(s, out0, width, in0, depth, tile);
    default: return load_typed<WEIGHTCAST_I8>(s, out0, width, in0, depth, tile);
  }
}

// False, with the first offender in `result`, if the tile holds a NaN or an infinity. (Products of
// codes and scales cannot: the scales were checked before.)
inline bool tile_is_finite(const weightcast_source& s, const Tile& tile, int64_t out0, int64_t in0,
                           weightcast_result& result) {
  if (s.type == WEIGHTCAST_I8) return true;
  uint32_t worst = 0;
  for (int i = 0; i < kDepth; ++i) {
    for (int c = 0; c < kWidth; ++c) {
      const uint32_t exponent = float_bits(tile.x[i][c]) & 0x7f800000u;
      worst = worst > exponent ? worst : exponent;
    }
  }
  if (worst != 0x7f800000u) return true;
  for (int c = 0; c < kWidth; ++c) {
    for (int i = 0; i < kDepth; ++i) {
      if (!is_finite(tile.x[i][c])) {
        result.bad_out = out0 + c;
        result.bad_in = in0 + i;
        return false;
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace weightcast
