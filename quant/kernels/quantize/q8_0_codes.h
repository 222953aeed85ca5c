// Driver of Q8_0. Blocks of int8 codes keep their codes if float16 holds their scale exactly, so that no
// weight changes; all others are quantized by a rule, ggml's or another.
#pragma once

#include "quantize/driver.h"
#include "quantize/q8_0.h"

namespace weightcast {
namespace {

// Blocks of a column that are staged before writing, so that rows are written in long runs.
constexpr int kStagedBlocks = kMaxDepth / Q80::elements;

struct alignas(64) StagedQ8_0 {
  uint8_t rows[kWidth][kStagedBlocks * Q80::bytes];
};

// The codes of a row of blocks: the in-rows of one block in kWidth columns.
struct alignas(64) Codes {
  int8_t q[Q80::elements][kWidth];
};

// The scales of one group for the columns of a tile as float16, and which of them are exact.
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

// Load the codes of a view from column `skip` and row `i0` on.
inline void load_codes(const MemoryView& view, int skip, int width, int i0, Codes& codes) {
  const auto* data = static_cast<const int8_t*>(view.first) + skip * view.stride_out;
  if (width < kWidth) std::memset(&codes, 0, sizeof codes);
  for (int i = 0; i < Q80::elements; ++i) {
    const int8_t* row = data + (i0 + i) * view.stride_in;
    for (int c = 0; c < width; ++c) codes.q[i][c] = row[c * view.stride_out];
  }
}

// Store codes [32, 64] and their scales as block number `block` of the staged rows.
inline void stage_codes(const int8_t* codes, int64_t stride, const uint16_t (&d)[kWidth],
                        int block, StagedQ8_0& staged) {
  constexpr int n = kSquare<int8_t>;
  for (int c = 0; c < kWidth; c += n) {
    auto* first = reinterpret_cast<int8_t*>(&staged.rows[c][block * Q80::bytes + 2]);
    for (int i = 0; i < Q80::elements; i += n) {
      transpose_square(codes + i * stride + c, stride, first + i, sizeof staged.rows[0]);
    }
  }
  for (int c = 0; c < kWidth; ++c) std::memcpy(&staged.rows[c][block * Q80::bytes], &d[c], 2);
}

// Columns of a source that are made together, and the scales they have at present.
struct Columns {
  int64_t out0;
  int skip, width;  // in their view
  ScalesF16 scales;
};

// Quantize a row of blocks where the codes cannot be kept.
template <class Rule>
void stage_mixed(Rule rule, const float* importance, const Columns& columns, const bool* keep, int block,
                 const Tile& tile, int64_t in0, StagedQ8_0& staged, weightcast_result& result,
                 bool& overflow) {
  for (int c0 = 0; c0 < columns.width; c0 += kLanes) {
    alignas(64) uint8_t made[(Q80::bytes + 15) / 16 * 16 * kLanes] = {};
    alignas(64) uint8_t rows[kLanes][Q80::bytes];
    typename Rule::Scratch scratch;
    rule(Strip{&tile.x[0][c0]}, importance == nullptr ? nullptr : importance + in0, 0.0f, scratch,
         Bytes{made});
    store_columns(made, Q80::bytes, kLanes, rows[0], Q80::bytes);
    for (int c = 0; c < kLanes && c0 + c < columns.width; ++c) {
      if (keep[c0 + c]) continue;
      std::memcpy(&staged.rows[c0 + c][block * Q80::bytes], rows[c], Q80::bytes);
      if (!overflow && (rows[c][1] & 0x7c) == 0x7c) {
        overflow = true;
        result.bad_out = columns.out0 + c0 + c;
        result.bad_in = in0;
      }
    }
  }
}

// Stage the blocks of some columns from row `i0` of a view, in-row `in0` of the source.
template <class Rule>
void stage_block(Rule rule, const weightcast_source& s, const float* importance, const MemoryView& view,
                 Columns& columns, int i0, int64_t in0, Tile& tile, StagedQ8_0& staged,
                 weightcast_result& result, bool& overflow) {
  constexpr bool nothing[kWidth] = {};
  const int64_t group = in0 / group_rows(s);
  const bool one_group = group == (in0 + Q80::elements - 1) / group_rows(s);
  ScalesF16& scales = columns.scales;
  if (group != scales.group) scales.load(s, columns.out0, columns.width, group);
  const int block = i0 / Q80::elements;
  if (one_group && view.stride_out == 1 && columns.width == kWidth) {
    const auto* codes = static_cast<const int8_t*>(view.first) + i0 * view.stride_in;
    stage_codes(codes + columns.skip, view.stride_in, scales.d, block, staged);
  } else if (one_group) {
    Codes codes;
    load_codes(view, columns.skip, columns.width, i0, codes);
    stage_codes(codes.q[0], kWidth, scales.d, block, staged);
  }
  if (one_group && scales.all_exact) {
    result.exact_blocks += columns.width;
    return;
  }
  const bool* keep = one_group ? scales.exact : nothing;
  const MemoryView rows{static_cast<const int8_t*>(view.first) + i0 * view.stride_in,
                        view.stride_out, view.stride_in};
  load_tile(s, rows, columns.skip, columns.out0, columns.width, in0, Q80::elements, tile);
  stage_mixed(rule, importance, columns, keep, block, tile, in0, staged, result, overflow);
  for (int c = 0; c < columns.width; ++c) {
    ++(keep[c] ? result.exact_blocks : result.requantized_blocks);
  }
}

inline void count_inexact_scales(const weightcast_source& s, weightcast_result& result) {
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t out = 0; out < s.n_out; ++out) {
      const float scale = s.scales[g * s.scale_stride + out];
      result.inexact_scales += f16_to_f32(f32_to_f16(scale)) != scale;
    }
  }
}

// Buffers of Q8_0 of int8 codes: part of the source, one tile of it, the rows that it becomes.
struct CodesWorkspace {
  Stage stage;
  Tile tile;
  StagedQ8_0 staged;
};

// Make Q8_0 of int8 codes: unchanged (d = scale, q = code) where the block is within one group and the
// scale is exact in float16, by `rule` elsewhere.
template <class Rule>
int32_t quantize_codes_q8_0(Rule rule, const weightcast_source& s, const float* importance, uint8_t* dst,
                            int64_t dst_stride, weightcast_result& result) {
  if (s.n_in % Q80::elements != 0) return WEIGHTCAST_BAD_SHAPE;
  const OnHeap<CodesWorkspace> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  auto& [stage, tile, staged] = *buffers;
  count_inexact_scales(s, result);
  bool overflow = false;
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int count = at_most(s.n_out - out0, run);
    Columns strips[kMaxRun / kWidth];
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kMaxDepth) {
      const int depth = at_most(s.n_in - in0, kMaxDepth);
      const MemoryView view = view_at(s, out0, count, in0, depth, stage);
      for (int skip = 0; skip < count; skip += kWidth) {
        Columns& columns = strips[skip / kWidth];
        columns.out0 = out0 + skip;
        columns.skip = skip;
        columns.width = at_most(count - skip, kWidth);
        for (int i0 = 0; i0 < depth; i0 += Q80::elements) {
          stage_block(rule, s, importance, view, columns, i0, in0 + i0, tile, staged, result, overflow);
        }
        uint8_t* rows = dst + columns.out0 * dst_stride + in0 / Q80::elements * Q80::bytes;
        const size_t bytes = static_cast<size_t>(depth / Q80::elements) * Q80::bytes;
        for (int c = 0; c < columns.width; ++c, rows += dst_stride) {
          std::memcpy(rows, staged.rows[c], bytes);
        }
      }
    }
  }
  return overflow ? WEIGHTCAST_OVERFLOW : WEIGHTCAST_OK;
}

template <class Rule>
int32_t quantize_q8_0(Rule rule, const weightcast_source& s, const float* importance, uint8_t* dst,
                      int64_t dst_stride, weightcast_result& result) {
  if (s.type == WEIGHTCAST_I8) return quantize_codes_q8_0(rule, s, importance, dst, dst_stride, result);
  const int32_t status = quantize_blocks<Q80>(rule, s, importance, dst, dst_stride, result);
  if (status == WEIGHTCAST_OK || status == WEIGHTCAST_OVERFLOW) {
    result.requantized_blocks = s.n_out * (s.n_in / Q80::elements);
  }
  return status;
}

}  // namespace
}  // namespace weightcast
