// The CPU driver: walks a source tile by tile. Compiled once per instruction set (WC_ISA names it);
// all arithmetic is in the block headers.
#include "cpu.h"

#include "blocks_driver.h"
#include "dequantize.h"
#include "q8_0.h"
#include "quantize_k.h"

namespace weightcast {
namespace {

constexpr int kDepth = 32;  // in-rows of a tile of plain floats
static_assert(kDepth == kQ8Elements, "and one block of Q8_0");

// How one float of a tile becomes an element of the output; 16-bit types can overflow.
struct EmitF32 {
  using stored = float;
  static float convert(float x) { return x; }
};
struct EmitF16 {
  using stored = uint16_t;
  static constexpr uint16_t infinity = 0x7c00u;
  static uint16_t convert(float x) { return f32_to_f16(x); }
};
struct EmitBF16 {
  using stored = uint16_t;
  static constexpr uint16_t infinity = 0x7f80u;
  static uint16_t convert(float x) { return f32_to_bf16(x); }
};

// Convert a finite tile; false, with the first offender in `result`, if a value overflows.
template <class Emit>
bool convert_tile(const Tile& tile, int depth, typename Emit::stored (&out)[kDepth][kWidth],
                  int64_t out0, int64_t in0, weightcast_result& result) {
  for (int i = 0; i < depth; ++i) {
    for (int c = 0; c < kWidth; ++c) out[i][c] = Emit::convert(tile.x[i][c]);
  }
  if constexpr (sizeof(typename Emit::stored) == 2) {
    uint16_t worst = 0;
    for (int i = 0; i < depth; ++i) {
      for (int c = 0; c < kWidth; ++c) {
        const uint16_t magnitude = out[i][c] & 0x7fffu;
        worst = worst > magnitude ? worst : magnitude;
      }
    }
    if (worst < Emit::infinity) return true;
    for (int c = 0; c < kWidth; ++c) {
      for (int i = 0; i < depth; ++i) {
        if ((out[i][c] & 0x7fffu) >= Emit::infinity) {
          result.bad_out = out0 + c;
          result.bad_in = in0 + i;
          return false;
        }
      }
    }
  }
  return true;
}

template <class Emit>
int32_t quantize_floats(const weightcast_source& s, uint8_t* dst, int64_t dst_stride,
                        weightcast_result& result) {
  using stored = typename Emit::stored;
  Tile tile;
  alignas(64) stored out[kDepth][kWidth] = {};
  alignas(64) stored columns[kWidth][kDepth];
  for (int64_t out0 = 0; out0 < s.n_out; out0 += kWidth) {
    const int width = at_most(s.n_out - out0, kWidth);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kDepth) {
      const int depth = at_most(s.n_in - in0, kDepth);
      load_tile(s, out0, width, in0, depth, tile);
      if (!tile_is_finite(s, tile, out0, in0, depth, result)) return WEIGHTCAST_NOT_FINITE;
      if (!convert_tile<Emit>(tile, depth, out, out0, in0, result)) return WEIGHTCAST_OVERFLOW;
      transpose_tile(out, columns);
      uint8_t* row = dst + out0 * dst_stride + in0 * static_cast<int64_t>(sizeof(stored));
      for (int c = 0; c < width; ++c, row += dst_stride) {
        if (depth == kDepth) {
          std::memcpy(row, columns[c], sizeof columns[c]);
        } else {
          std::memcpy(row, columns[c], static_cast<size_t>(depth) * sizeof(stored));
        }
      }
    }
  }
  return WEIGHTCAST_OK;
}

// Note the first block of a tile whose scale overflowed float16 to infinity.
inline void note_overflow(const TileQ8_0& tile, int width, int64_t out0, int64_t in0,
                          weightcast_result& result, bool& overflow) {
  for (int c = 0; c < width && !overflow; ++c) {
    if ((tile.d[c] & 0x7fffu) >= 0x7c00u) {
      overflow = true;
      result.bad_out = out0 + c;
      result.bad_in = in0;
    }
  }
}

inline uint8_t* block_at(uint8_t* dst, int64_t dst_stride, int64_t out, int64_t in0) {
  return dst + out * dst_stride + in0 / kQ8Elements * static_cast<int64_t>(sizeof(BlockQ8_0));
}

inline void store_tile_q8_0(const TileQ8_0& tile, int width, uint8_t* dst, int64_t dst_stride,
                            int64_t out0, int64_t in0) {
  alignas(64) int8_t columns[kWidth][kQ8Elements];
  transpose_tile(tile.q, columns);
  for (int c = 0; c < width; ++c) {
    uint8_t* block = block_at(dst, dst_stride, out0 + c, in0);
    std::memcpy(block, &tile.d[c], 2);
    std::memcpy(block + 2, columns[c], kQ8Elements);
  }
}

// Scales of one group for the columns of a tile as float16; which of them are exact.
struct ScalesF16 {
  int64_t group = -1;
  uint16_t d[kWidth];
  bool exact[kWidth];
  bool all_exact = false;

  void load(const weightcast_source& s, int64_t out0, int width, int64_t g) {
    group = g;
    all_exact = true;
    const float* scales = s.scales + g * s.scale_stride + out0;
    for (int c = 0; c < kWidth; ++c) {
      const float scale = c < width ? scales[c] : 0.0f;
      d[c] = f32_to_f16(scale);
      exact[c] = f16_to_f32(d[c]) == scale;
      all_exact &= exact[c];
    }
  }
};

// The source's own codes of one block row, for the columns of a tile.
inline void load_codes(const weightcast_source& s, int64_t out0, int width, int64_t in0,
                       TileQ8_0& tile) {
  const auto* data = static_cast<const int8_t*>(s.data) + in0 * s.stride_in + out0 * s.stride_out;
  if (width < kWidth) std::memset(tile.q, 0, sizeof tile.q);
  if (s.stride_out == 1) {
    for (int i = 0; i < kQ8Elements; ++i) {
      if (width == kWidth) {
        std::memcpy(tile.q[i], data + i * s.stride_in, kWidth);
      } else {
        std::memcpy(tile.q[i], data + i * s.stride_in, static_cast<size_t>(width));
      }
    }
  } else {
    for (int c = 0; c < width; ++c) {
      for (int i = 0; i < kQ8Elements; ++i) {
        tile.q[i][c] = data[c * s.stride_out + i * s.stride_in];
      }
    }
  }
}

// Q8_0 from int8 codes: unchanged (d = scale, q = code) where the block lies in one group and the
// scale is exact in float16, by ggml's rule elsewhere.
int32_t quantize_codes_q8_0(const weightcast_source& s, uint8_t* dst, int64_t dst_stride,
                            weightcast_result& result) {
  const int64_t rows = group_rows(s);
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t out = 0; out < s.n_out; ++out) {
      const float scale = s.scales[g * s.scale_stride + out];
      result.inexact_scales += f16_to_f32(f32_to_f16(scale)) != scale;
    }
  }
  bool overflow = false;
  Tile floats;
  TileQ8_0 kept, made;
  for (int64_t out0 = 0; out0 < s.n_out; out0 += kWidth) {
    const int width = at_most(s.n_out - out0, kWidth);
    ScalesF16 scales;
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kQ8Elements) {
      const int64_t group = in0 / rows;
      const bool one_group = group == (in0 + kQ8Elements - 1) / rows;
      if (group != scales.group) scales.load(s, out0, width, group);
      if (one_group) load_codes(s, out0, width, in0, kept);
      if (one_group && scales.all_exact) {
        std::memcpy(kept.d, scales.d, sizeof kept.d);
        result.exact_blocks += width;
        store_tile_q8_0(kept, width, dst, dst_stride, out0, in0);
        continue;
      }
      load_tile(s, out0, width, in0, kQ8Elements, floats);
      quantize_tile_q8_0(floats, made);
      for (int c = 0; c < width; ++c) {
        if (one_group && scales.exact[c]) {
          made.d[c] = scales.d[c];
          for (int i = 0; i < kQ8Elements; ++i) made.q[i][c] = kept.q[i][c];
          ++result.exact_blocks;
        } else {
          ++result.requantized_blocks;
        }
      }
      note_overflow(made, width, out0, in0, result, overflow);
      store_tile_q8_0(made, width, dst, dst_stride, out0, in0);
    }
  }
  return overflow ? WEIGHTCAST_OVERFLOW : WEIGHTCAST_OK;
}

int32_t quantize_floats_q8_0(const weightcast_source& s, uint8_t* dst, int64_t dst_stride,
                             weightcast_result& result) {
  bool overflow = false;
  Tile tile;
  TileQ8_0 made;
  for (int64_t out0 = 0; out0 < s.n_out; out0 += kWidth) {
    const int width = at_most(s.n_out - out0, kWidth);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kQ8Elements) {
      load_tile(s, out0, width, in0, kQ8Elements, tile);
      if (!tile_is_finite(s, tile, out0, in0, kDepth, result)) return WEIGHTCAST_NOT_FINITE;
      quantize_tile_q8_0(tile, made);
      note_overflow(made, width, out0, in0, result, overflow);
      store_tile_q8_0(made, width, dst, dst_stride, out0, in0);
      result.requantized_blocks += width;
    }
  }
  return overflow ? WEIGHTCAST_OVERFLOW : WEIGHTCAST_OK;
}

int32_t quantize(const weightcast_source& s, const float* importance, int32_t type, void* dst,
                 int64_t dst_stride, weightcast_result& result) {
  auto* bytes = static_cast<uint8_t*>(dst);
  switch (type) {
    case WEIGHTCAST_F32: return quantize_floats<EmitF32>(s, bytes, dst_stride, result);
    case WEIGHTCAST_F16: return quantize_floats<EmitF16>(s, bytes, dst_stride, result);
    case WEIGHTCAST_BF16: return quantize_floats<EmitBF16>(s, bytes, dst_stride, result);
    case WEIGHTCAST_Q8_0:
      if (s.n_in % kQ8Elements != 0) return WEIGHTCAST_BAD_SHAPE;
      return s.type == WEIGHTCAST_I8 ? quantize_codes_q8_0(s, bytes, dst_stride, result)
                                     : quantize_floats_q8_0(s, bytes, dst_stride, result);
    case WEIGHTCAST_Q2_K: return quantize_blocks<Q2K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q3_K: return quantize_blocks<Q3K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q4_K: return quantize_blocks<Q4K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q5_K: return quantize_blocks<Q5K>(s, importance, bytes, dst_stride, result);
    case WEIGHTCAST_Q6_K: return quantize_blocks<Q6K>(s, importance, bytes, dst_stride, result);
    default: return WEIGHTCAST_BAD_TYPE;
  }
}

}  // namespace

#define WC_TABLE_OF(isa) kernels_##isa
#define WC_TABLE(isa) WC_TABLE_OF(isa)
#define WC_NAME_OF(isa) #isa
#define WC_NAME(isa) WC_NAME_OF(isa)
extern const Kernels WC_TABLE(WC_ISA) = {WC_NAME(WC_ISA), quantize, dequantize};

}  // namespace weightcast
