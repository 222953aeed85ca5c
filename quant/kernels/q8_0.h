// Q8_0: 32 int8 codes and one float16 scale, x = d * q. Made by ggml's rule (quantize_row_q8_0_ref),
// or, from int8 codes with a scale that float16 holds exactly, without any change of the weights.
#pragma once

#include "blocks.h"
#include "driver.h"

namespace weightcast {
namespace {

struct Q80 {
  static constexpr int elements = BlockQ8_0::elements;
  static constexpr int bytes = sizeof(BlockQ8_0);
  static constexpr int depth = 128;
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0>;

  // d = max |x| / 127, q = round(x / d).
  static void quantize(Strip x, const float*, F, Bytes out) {
    F amax = 0.0f;
    for (int i = 0; i < elements; ++i) amax = greater(magnitude(x[i]), amax);
    const F d = amax / 127.0f;
    const F inverse = select(d == 0.0f, 0.0f, 1.0f / d);
    store_half(out, to_f16(d));
    for (int i = 0; i < elements; ++i) store_bytes(out[2 + i], round_away(x[i] * inverse));
  }
};

// Blocks of a tile that are staged before they are written: long runs of a row at a time.
constexpr int kStagedBlocks = 16;

struct alignas(64) StagedQ8_0 {
  uint8_t rows[kWidth][kStagedBlocks * Q80::bytes];
};

// The codes of one block row, in-rows of kWidth columns.
struct alignas(64) Codes {
  int8_t q[Q80::elements][kWidth];
};

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

inline void load_codes(const weightcast_source& s, int64_t out0, int width, int64_t in0,
                       Codes& codes) {
  const auto* data = static_cast<const int8_t*>(s.data) + in0 * s.stride_in + out0 * s.stride_out;
  if (width < kWidth) std::memset(&codes, 0, sizeof codes);
  for (int i = 0; i < Q80::elements; ++i) {
    if (s.stride_out == 1 && width == kWidth) {
      std::memcpy(codes.q[i], data + i * s.stride_in, kWidth);
    } else {
      for (int c = 0; c < width; ++c) codes.q[i][c] = data[c * s.stride_out + i * s.stride_in];
    }
  }
}

// Codes and their scales as block `block` of the staged rows.
inline void stage_codes(const Codes& codes, const uint16_t (&d)[kWidth], int block,
                        StagedQ8_0& staged) {
  constexpr int n = kSquare<int8_t>;
  for (int c = 0; c < kWidth; c += n) {
    auto* first = reinterpret_cast<int8_t*>(&staged.rows[c][block * Q80::bytes + 2]);
    for (int i = 0; i < Q80::elements; i += n) {
      transpose_square(&codes.q[i][c], kWidth, first + i, sizeof staged.rows[0]);
    }
  }
  for (int c = 0; c < kWidth; ++c) std::memcpy(&staged.rows[c][block * Q80::bytes], &d[c], 2);
}

// One block row by ggml's rule where the codes cannot be kept; counts which it was.
inline void stage_mixed(const weightcast_source& s, int64_t out0, int width, int64_t in0,
                        const bool* keep, int block, Tile& tile, StagedQ8_0& staged,
                        weightcast_result& result, bool& overflow) {
  load_tile(s, out0, width, in0, Q80::elements, tile);
  for (int c0 = 0; c0 < width; c0 += kLanes) {
    alignas(64) uint8_t made[(Q80::bytes + 15) / 16 * 16 * kLanes] = {};
    alignas(64) uint8_t rows[kLanes][Q80::bytes];
    Q80::quantize(Strip{&tile.x[0][c0]}, nullptr, 0.0f, Bytes{made});
    store_columns(made, Q80::bytes, kLanes, rows[0], Q80::bytes);
    for (int c = 0; c < kLanes && c0 + c < width; ++c) {
      if (keep[c0 + c]) continue;
      std::memcpy(&staged.rows[c0 + c][block * Q80::bytes], rows[c], Q80::bytes);
      if (!overflow && (rows[c][1] & 0x7c) == 0x7c) {
        overflow = true;
        result.bad_out = out0 + c0 + c;
        result.bad_in = in0;
      }
    }
  }
  for (int c = 0; c < width; ++c) ++(keep[c] ? result.exact_blocks : result.requantized_blocks);
}

inline void count_inexact_scales(const weightcast_source& s, weightcast_result& result) {
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t out = 0; out < s.n_out; ++out) {
      const float scale = s.scales[g * s.scale_stride + out];
      result.inexact_scales += f16_to_f32(f32_to_f16(scale)) != scale;
    }
  }
}

// Q8_0 from int8 codes: unchanged (d = scale, q = code) where the block lies in one group and the
// scale is exact in float16, by ggml's rule elsewhere.
inline int32_t quantize_codes_q8_0(const weightcast_source& s, uint8_t* dst, int64_t dst_stride,
                                   weightcast_result& result) {
  if (s.n_in % Q80::elements != 0) return WEIGHTCAST_BAD_SHAPE;
  count_inexact_scales(s, result);
  const int64_t rows = group_rows(s), blocks = s.n_in / Q80::elements;
  constexpr bool nothing[kWidth] = {};
  bool overflow = false;
  Tile tile;
  Codes codes;
  StagedQ8_0 staged;
  for (int64_t out0 = 0; out0 < s.n_out; out0 += kWidth) {
    const int width = at_most(s.n_out - out0, kWidth);
    ScalesF16 scales;
    for (int64_t block0 = 0; block0 < blocks; block0 += kStagedBlocks) {
      const int count = at_most(blocks - block0, kStagedBlocks);
      for (int block = 0; block < count; ++block) {
        const int64_t in0 = (block0 + block) * Q80::elements;
        const int64_t group = in0 / rows;
        const bool one_group = group == (in0 + Q80::elements - 1) / rows;
        if (group != scales.group) scales.load(s, out0, width, group);
        if (one_group) {
          load_codes(s, out0, width, in0, codes);
          stage_codes(codes, scales.d, block, staged);
        }
        if (one_group && scales.all_exact) {
          result.exact_blocks += width;
        } else {
          stage_mixed(s, out0, width, in0, one_group ? scales.exact : nothing, block, tile, staged,
                      result, overflow);
        }
      }
      for (int c = 0; c < width; ++c) {
        std::memcpy(dst + (out0 + c) * dst_stride + block0 * Q80::bytes, staged.rows[c],
                    static_cast<size_t>(count) * Q80::bytes);
      }
    }
  }
  return overflow ? WEIGHTCAST_OVERFLOW : WEIGHTCAST_OK;
}

inline int32_t quantize_q8_0(const weightcast_source& s, uint8_t* dst, int64_t dst_stride,
                             weightcast_result& result) {
  if (s.type == WEIGHTCAST_I8) return quantize_codes_q8_0(s, dst, dst_stride, result);
  const int32_t status = quantize_blocks<Q80>(s, nullptr, dst, dst_stride, result);
  if (status == WEIGHTCAST_OK || status == WEIGHTCAST_OVERFLOW) {
    result.requantized_blocks = s.n_out * (s.n_in / Q80::elements);
  }
  return status;
}

}  // namespace
}  // namespace weightcast
